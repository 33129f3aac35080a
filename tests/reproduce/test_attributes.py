"""What the tables of attributes are made of, on a method whose answers are known: pictures are their attributes."""

import pytest
import torch

from pellucid.methods.base import Method
from pellucid.methods.parts import Parts
from pellucid.recipes import DataSpec, build, recipe
from pellucid.reproduce.attributes import AttributeJudge, Pictures, opened, parts_of, sources
from pellucid.reproduce.harness import Setting
from pellucid.reproduce.reconstruct import ROWS, by_noise_alone, come_back
from pellucid.reproduce.zeroshot import one_by_one, recombined
from pellucid.types import Attribute, Control, Sample

TABLE = (
    Attribute(name="a", values=("0", "1", "2")),
    Attribute(name="b", values=("0", "1")),
    Attribute(name="c", values=("0", "1", "2", "3")),
)
SIZES = torch.tensor([len(a.values) for a in TABLE])


class Literal(Method):
    """Channel i of a picture says attribute i, and a part is copied exactly; with `leaks`, so is the next one's."""

    image_shape = (3, 8, 8)

    def __init__(self, *, leaks: bool = False) -> None:
        super().__init__()
        self.readouts = {}
        self.place, self.leaks = torch.nn.Parameter(torch.zeros(1)), leaks
        self.controls = {
            "image": Control(kind="image", help=""),
            "replace": Control(kind="images", choices=tuple(a.name for a in TABLE), help=""),
        }

    def sample(self, n, rng, **controls):
        images = controls.get("image", torch.zeros(n, 3, 8, 8)).clone()
        for i, a in enumerate(TABLE):
            for channel in (i, (i + 1) % 3) if self.leaks else (i,):
                if a.name in controls["replace"]:
                    images[:, channel] = controls["replace"][a.name][:, channel]
        return Sample(images=images)


class Reads(AttributeJudge):
    def __init__(self) -> None:
        self.attributes = TABLE

    def values(self, x):
        return (x[:, :, 0, 0] * 4).round().long()


def pictures(n, seed=0):
    values = torch.stack(
        [
            torch.randint(int(k), (n,), generator=torch.Generator().manual_seed(seed + i))
            for i, k in enumerate(SIZES)
        ],
        1,
    )
    return Pictures(x=(values / 4.0)[..., None, None].expand(-1, -1, 8, 8).clone(), values=values)


def test_sources_have_the_values_they_lend():
    lent, wanted = pictures(200), pictures(50, seed=9).values
    rows = sources(lent, wanted, torch.Generator().manual_seed(0))
    for i, found in enumerate(rows):
        assert torch.equal(lent.values[found, i], wanted[:, i])
    assert len(torch.stack(rows).unique()) > 50  # drawn, and not the first that fits
    none = Pictures(x=lent.x[:3], values=torch.zeros_like(lent.values[:3]))
    with pytest.raises(ValueError, match="no picture of a combination that was trained on has value"):
        sources(none, wanted, torch.Generator())


def test_exact_parts_give_exact_pictures_of_any_combination():
    lent, wanted = pictures(200), pictures(230, seed=9).values  # more than one batch
    made = recombined(Literal(), lent, sources(lent, wanted, torch.Generator().manual_seed(0)), 0)
    assert Reads().accuracy(made, wanted) == {"is_a": 1.0, "is_b": 1.0, "is_c": 1.0, "mean": 1.0, "all": 1.0}


def test_the_matrix_of_edits_is_the_identity_where_parts_are_exact_and_shows_where_they_leak():
    found = one_by_one(Literal(), Reads(), pictures(150), 120, 0)
    assert torch.equal(found.matrix, torch.eye(3, dtype=found.matrix.dtype))
    assert found.diagonal_dominant
    leaking = one_by_one(Literal(leaks=True), Reads(), pictures(150), 120, 0).matrix
    assert leaking.diagonal().eq(1).all()
    assert min(leaking[0, 1], leaking[1, 2], leaking[2, 0]) > 0.3
    assert leaking[0, 2] == leaking[1, 0] == leaking[2, 1] == 0


def test_codes_are_cut_where_their_parts_are_and_else_in_proportion():
    codes = torch.arange(20.0).expand(2, 20)
    method = Literal()
    assert [p.shape[1] for p in parts_of(method, codes, (6, 2, 2))] == [12, 4, 4]
    method.parts = Parts((3, 7), TABLE[:2])
    assert [p.shape[1] for p in parts_of(method, codes[:, :10], (5, 5))] == [3, 7]


def test_data_without_a_table_or_without_groups_is_refused_before_training(tmp_path, monkeypatch):
    from pellucid.data.scenes import Toys

    setting = Setting(
        scale="tiny", seeds=(0,), data=("toys",), out=tmp_path, say=print, size=16, held_out=0.125
    )
    assert [a.name for a in opened(setting, "toys")] == ["identity", "background", "pose"]
    with pytest.raises(ValueError, match="these pictures have none"):
        opened(setting, "scenes")
    whole = Toys._values

    def lonely(self, indices):
        table = whole(self, indices)
        table[:, 1] = table[:, 0]
        return table

    monkeypatch.setattr(Toys, "_values", lonely)
    with pytest.raises(
        ValueError, match=r"toys, without the combinations that are held out: no group can be formed"
    ):
        opened(setting, "toys")
    assert not list(tmp_path.iterdir())


def test_a_ddpm_with_a_code_comes_back_by_its_code_and_not_by_noise_alone():
    """PDAE is a DDPM as well: what a row is of decides, not what class its method has."""
    method = build(recipe("pdae", "tiny", DataSpec(spec="toys", size=16))).eval()
    noise = torch.Generator().manual_seed(0)
    for p in method.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=noise)
    x = torch.rand(3, 3, 16, 16, generator=noise) * 2 - 1
    drawn = come_back(method, ROWS["PDAE, random x_T"], x, 3, 0)
    given = {"image": x, "noise": "random", "num_steps": 3}
    assert torch.equal(drawn, method.sample(3, torch.Generator().manual_seed(0), **given).images)
    alone, _ = by_noise_alone(method, x, 3)
    assert not torch.equal(come_back(method, ROWS["PDAE, inferred x_T"], x, 3, 0), alone)
