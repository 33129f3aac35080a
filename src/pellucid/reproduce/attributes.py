"""What the tables of attribute editing share: codes cut into parts, pictures of held-out combinations, and a judge.

N  pictures; m  attributes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.data.groups import Groups, Subset
from pellucid.data.images import Dataset
from pellucid.data.order import permutation
from pellucid.methods.base import Method
from pellucid.methods.swaps import columns_of
from pellucid.nets.gan import Encoder
from pellucid.recipes import DataSpec
from pellucid.recipes.cofi import gan
from pellucid.reproduce import TABLED
from pellucid.reproduce.harness import Setting, batches, data_for, read
from pellucid.types import Attribute

HELD_OUT = 1 / 8
"""Share of the combinations of values that nothing but the judge is trained on; the same for all these tables, which
so use each other's networks."""
TEACHING = {"tiny": 4, "cpu": 600, "gpu": 2000, "paper": 2000}
"""Steps that the judge is trained for."""


def without_held_out(setting: Setting) -> Setting:
    """The setting in which networks see no combination that is held out."""
    return replace(setting, held_out=HELD_OUT)


def tabled(data: Dataset) -> tuple[tuple[Attribute, ...], np.ndarray]:
    """The attributes of a data set and its table. Raises ValueError where it has none."""
    if data.table is None or not data.attributes:
        raise ValueError(
            f"this table is about attributes, and these pictures have none: give data with a table, such as "
            f"{' or '.join(TABLED)}, or a folder with an attributes.csv"
        )
    return data.attributes, data.table


def opened(setting: Setting, spec: str) -> tuple[Attribute, ...]:
    """The attributes of a data set, once all groups are known to be there: before hours of training, not after.

    Raises ValueError where there is no table, or a group cannot be formed of what is not held out.
    """
    attributes, _ = tabled(data_for(setting, spec, "test"))
    try:
        Groups.of(data_for(setting, spec, "train"))
    except ValueError as error:
        raise ValueError(f"{spec}, without the combinations that are held out: {error}") from None
    return attributes


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Some pictures with what their table says of them."""

    x: Tensor
    values: Tensor
    """(N, m)."""

    @classmethod
    def of(cls, data: Dataset, limit: int) -> Pictures:
        tabled(data)
        found = list(batches(data, limit))
        return cls(x=torch.cat([b.x0 for b in found]), values=torch.cat([b.attributes for b in found]))


def held_and_seen(setting: Setting, spec: str, limit: int) -> tuple[Pictures, Pictures]:
    """Test pictures of combinations that were held out of training; and of others, those with full rows."""
    test = data_for(setting, spec, "test")
    held, seen = (Pictures.of(Subset(test, HELD_OUT, held=held), limit) for held in (True, False))
    full = (seen.values >= 0).all(1)
    return held, Pictures(x=seen.x[full], values=seen.values[full])


def codes_of(method: Method, x: Tensor) -> Tensor:
    """(N, D), the code that a method reads in pictures."""
    rng = torch.Generator().manual_seed(0)
    return torch.cat([read(method, part, rng)["code"] for part in x.split(250)])


def parts_of(method: Method, codes: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """A code cut into its parts; one without parts is cut in the same proportions, which say nothing then."""
    own = getattr(method, "parts", None)
    if own is not None:
        return [codes[:, part] for part in own.columns]
    ends = (torch.tensor(sizes).cumsum(0) * codes.shape[1] / sum(sizes)).round().int().tolist()
    cut = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    return [codes[:, part] for part in columns_of(cut)]


class AttributeJudge:
    """A classifier of every attribute, trained on real pictures of all combinations, to which others are shown."""

    def __init__(self, net: nn.Module, attributes: tuple[Attribute, ...]) -> None:
        self.net, self.attributes = net, attributes

    @torch.inference_mode()
    def values(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, m), the likeliest value of each attribute."""
        sizes = [len(a.values) for a in self.attributes]
        found = [self.net(part).split(sizes, 1) for part in x.split(250)]
        return torch.stack([torch.cat(scores).argmax(1) for scores in zip(*found, strict=True)], 1)

    def accuracy(self, x: Tensor, values: Tensor) -> dict[str, float]:
        """Share of pictures whose attribute is read as wanted, by attribute; their mean, and that of all at once."""
        right = (self.values(x) == values).double()
        each = {f"is_{a.name}": right[:, i].mean().item() for i, a in enumerate(self.attributes)}
        return each | {"mean": right.mean().item(), "all": right.amin(1).mean().item()}

    @classmethod
    def taught(cls, setting: Setting, spec: str, *, seed: int = 0) -> AttributeJudge:
        """Trained on all training pictures, held-out combinations among them."""
        data = data_for(replace(setting, held_out=0.0), spec, "train")
        attributes, _ = tabled(data)
        sizes = [len(a.values) for a in attributes]
        small = setting.scale if setting.scale in ("tiny", "cpu") else "gpu"
        shape = DataSpec(spec=spec, size=data.shape[-1], channels=data.shape[0])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = Encoder(gan(small, shape), sum(sizes))
        steps = setting.steps or TEACHING[setting.scale]
        optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1, pct_start=0.1)
        order = np.concatenate(
            [permutation(len(data), seed, epoch) for epoch in range(1 + steps * 64 // len(data))]
        )
        for step in range(steps):
            batch = data.batch(order[step * 64 : (step + 1) * 64])
            assert batch.attributes is not None
            loss = torch.zeros(())
            for i, scores in enumerate(net(batch.x0).split(sizes, 1)):
                known = batch.attributes[:, i] >= 0
                if known.any():
                    loss = loss + F.cross_entropy(scores[known], batch.attributes[known, i])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        return cls(net.eval(), attributes)


def sources(pictures: Pictures, wanted: Tensor, rng: torch.Generator) -> list[Tensor]:
    """For wanted values (N, m), of each attribute a picture that has it: m times (N,) rows of `pictures`, at random."""
    found = []
    for i in range(wanted.shape[1]):
        rows = []
        for value in wanted[:, i].tolist():
            there = (pictures.values[:, i] == value).nonzero()[:, 0]
            if not len(there):
                raise ValueError(
                    f"no picture of a combination that was trained on has value {value} of attribute {i}"
                )
            rows.append(there[torch.randint(len(there), (1,), generator=rng)])
        found.append(torch.cat(rows))
    return found
