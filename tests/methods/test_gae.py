"""DiffuseGAE: what its controls do to codes and noise, where its stages begin, and what it refuses."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import pellucid
from pellucid.cli import main
from pellucid.methods.gae.method import GAEConfig, slerp
from pellucid.methods.parts import Parts
from pellucid.recipes import DataSpec, build, recipe
from pellucid.train.checkpoint import load_weights
from pellucid.types import Attribute

TABLE = (
    Attribute(name="hair colour", values=("red", "black")),
    Attribute(name="side", values=("l", "m", "r")),
)
SPEC = DataSpec(spec="toys", size=16, attributes=TABLE)


TINY = [
    "--data",
    "toys",
    "--scale",
    "tiny",
    "--size",
    "16",
    "--steps",
    "3",
    "--batch-size",
    "4",
    "--limit",
    "200",
]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(n, seed=1):
    return torch.rand(n, 3, 16, 16, generator=rng(seed)) * 2 - 1


@pytest.fixture(scope="module")
def method():
    """With loud random weights: what is zero at first would hide what a control does."""
    method = build(recipe("gae", "tiny", SPEC)).eval()
    noise = rng()
    for p in method.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=noise)
    return method


@pytest.fixture(scope="module")
def steady(method):
    """The same with a denoiser so faint that DDIM comes back to a picture in few steps."""
    other = build(recipe("gae", "tiny", SPEC)).eval()
    other.load_state_dict(method.state_dict())
    for p in other.denoiser.unet.decoder.tail.parameters():
        p.data *= 0.02
    return other


def test_slerp_has_its_ends_its_lengths_and_constant_speed():
    a, b = torch.randn(3, 2, 4, 4, generator=rng()), 2 * torch.randn(3, 2, 4, 4, generator=rng(1))
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b)
    unit = [
        slerp(a / a.flatten(1).norm(dim=1)[:, None, None, None], b, s).flatten(1) for s in (0.0, 0.25, 0.5)
    ]
    turn = [torch.cosine_similarity(u, v).arccos() for u, v in pairwise(unit)]
    torch.testing.assert_close(turn[0], turn[1], rtol=1e-4, atol=1e-5)
    lengths = slerp(a, b, 0.5).flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, (a.flatten(1).norm(dim=1) + b.flatten(1).norm(dim=1)) / 2)
    torch.testing.assert_close(slerp(a, a, 0.3), a)
    each = torch.tensor([0.0, 0.5, 1.0])
    for i, share in enumerate(each.tolist()):
        torch.testing.assert_close(slerp(a, b, each)[i], slerp(a, b, share)[i])


def test_a_picture_comes_back_from_its_code_and_noise_and_the_nearer_the_more_steps(steady):
    x = 0.8 * pictures(4)
    error = lambda steps: (
        (steady.sample(4, rng(), image=x, inversion_steps=steps, num_steps=steps).images - x)
        .square()
        .mean()
        .item()
    )
    errors = [error(steps) for steps in (5, 20, 100)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3
    drawn = steady.sample(4, rng(), image=x, noise="random", num_steps=20).images
    assert (drawn - x).square().mean().item() > 10 * errors[2]


def test_taking_all_parts_of_another_picture_is_taking_its_code(method):
    x, y = pictures(2), pictures(2, seed=2)
    parts = dict.fromkeys(("hair_colour", "side"), y)
    made = method.sample(2, rng(), image=x, replace=parts, noise="random", num_steps=3)
    other = method.sample(2, rng(), image=y, noise="random", num_steps=3)
    assert torch.equal(made.images, other.images)
    assert torch.equal(made.readouts["code"], method.read(y, rng())["code"])


def test_one_part_is_taken_and_the_others_stay(method):
    x, y = pictures(2), pictures(1, seed=2)
    own, theirs = (method.read(v, rng())["code"] for v in (x, y))
    made = method.sample(2, rng(), image=x, replace={"side": y}, noise="random", num_steps=2).readouts["code"]
    torch.testing.assert_close(made[:, 4:], theirs[:, 4:].expand(2, -1))
    torch.testing.assert_close(made[:, :4], own[:, :4])


def test_a_value_is_set_to_what_it_typically_is(method):
    made = method.sample(3, rng(), side="m", num_steps=2).readouts["code"]
    where = method.parts.mean[4:] + method.parts.std[4:] * method.parts.typical[1][1]
    torch.testing.assert_close(made[:, 4:], where.expand(3, -1))
    with pytest.raises(ValueError, match="side is 'up'; it is one of l, m, r"):
        method.sample(1, rng(), side="up")
    with pytest.raises(ValueError, match="side is set, and also taken from a picture"):
        method.sample(1, rng(), side="m", replace={"side": pictures(1)})


def test_sliding_one_part_leaves_the_others_and_the_noise(method):
    x, y = pictures(2), pictures(2, seed=2)
    use = {"image": x, "blend_with": y, "noise": "random", "num_steps": 2}
    own, theirs = (method.read(v, rng())["code"] for v in (x, y))
    slid = method.sample(2, rng(), slide={"side": 0.25}, **use).readouts["code"]
    torch.testing.assert_close(slid[:, 4:], torch.lerp(own, theirs, 0.25)[:, 4:])
    assert torch.equal(slid[:, :4], own[:, :4])
    ends = [method.sample(2, rng(), blend=share, **use).readouts["code"] for share in (0.0, 1.0)]
    torch.testing.assert_close(torch.stack(ends), torch.stack([own, theirs]))


def test_directions_lead_from_the_ones_to_the_others(method):
    shows, lacks, x = pictures(5, seed=3), pictures(4, seed=4), pictures(2)
    mean = lambda v: method.read(v, rng())["code"].mean(0)
    use = {"image": x, "towards": shows, "away_from": lacks, "noise": "random", "num_steps": 2}
    made = method.sample(2, rng(), amount=2.0, **use).readouts["code"]
    torch.testing.assert_close(made, method.read(x, rng())["code"] + 2 * (mean(shows) - mean(lacks)))


def test_new_noise_at_each_step_and_a_kept_picture_exclude_each_other(method):
    with pytest.raises(ValueError, match="sampler is ddpm"):
        method.sample(1, rng(), image=pictures(1), sampler="ddpm")


def test_typical_parts_and_readers_are_learned_from_codes():
    torch.manual_seed(0)
    parts = Parts((3, 2), TABLE)
    values = torch.randint(0, 2, (400, 2), generator=rng())
    values[:7, 0] = -1  # unknown
    centres = [torch.randn(2, 3, generator=rng(1)) * 2, torch.randn(3, 2, generator=rng(2)) * 2]
    w = torch.cat([centres[0][values[:, 0]], centres[1][values[:, 1]]], 1)
    w = 1e-3 * (
        w + 0.1 * torch.randn(w.shape, generator=rng(3))
    )  # codes may be small: their units are measured
    parts.fit(w)
    optimizer = torch.optim.Adam(parts.parameters(), 0.05)
    for _ in range(400):
        optimizer.zero_grad()
        (parts.reading_loss(w, values) + parts.lying_loss(w, values)).backward()
        optimizer.step()
    where = parts.mean[:3] + parts.std[:3] * parts.typical[0].data
    torch.testing.assert_close(where, 1e-3 * centres[0], atol=5e-5, rtol=0)
    scatter = parts.std[:3] * (0.5 * parts.logvars[0].data).exp()
    assert math.isclose(scatter.mean().item(), 1e-4, abs_tol=2e-5)
    known = values[:, 0] >= 0
    right = parts.shares(w)["hair_colour"][known].gather(1, values[known, :1])
    assert right.min() > 0.9
    assert parts.drawn(50, rng()).shape == (50, 5)
    nothing = torch.full_like(values, -1)
    assert parts.reading_loss(w, nothing).item() == parts.lying_loss(w, nothing).item() == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"parts": (4, 5)}, r"parts \(4, 5\) add up to 9, and the code has 8"),
        ({"parts": (2, 3, 3)}, r"for 3 attributes; there are 2 \(hair colour, side\)"),
        ({"parts": (8, 0)}, r"one entry at least"),
        ({"swap": -1.0}, r"swap is -1"),
    ],
)
def test_parts_that_do_not_add_up_are_refused(change, said):
    _, config, _ = pellucid.recipes.gae.gae("tiny", SPEC)
    with pytest.raises(ValueError, match=said):
        replace(config, group=replace(config.group, **change))


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ((TABLE[0], Attribute(name="side", values=("l",))), "'side' has one value alone, 'l'"),
        ((TABLE[0], Attribute(name="seed", values=("l", "r"))), "an attribute is called 'seed'"),
        (
            (TABLE[0], Attribute(name="Hair-Colour", values=("l", "r"))),
            "'Hair-Colour', which means something else",
        ),
        ((), "none: put an attributes.csv beside them"),
    ],
)
def test_tables_that_cannot_be_learned_from_are_refused(attributes, said):
    with pytest.raises(ValueError, match=said):
        build(recipe("gae", "tiny", replace(SPEC, attributes=attributes)))


def test_what_begins_from_a_diffusion_autoencoder_is_what_trains_one_first(tmp_path):
    main(["train", "diffae", "--out", str(tmp_path / "first"), *TINY])
    main(["train", "gae", "--out", str(tmp_path / "begun"), "--begin-from", str(tmp_path / "first"), *TINY])
    main(["train", "gae", "--out", str(tmp_path / "whole"), *TINY])
    begun, whole = (load_weights(tmp_path / name) for name in ("begun", "whole"))
    assert all(torch.equal(begun[k], whole[k]) for k in whole)
    assert json.loads((tmp_path / "begun" / "config.json").read_text())["began_from"] == str(
        tmp_path / "first"
    )
    with pytest.raises(SystemExit):
        main(
            [
                "train",
                "gzsnet",
                "--out",
                str(tmp_path / "other"),
                "--begin-from",
                str(tmp_path / "first"),
                *TINY,
            ]
        )


def test_what_a_run_cannot_begin_from_is_said(tmp_path, capsys):
    main(["train", "diffae", "--out", str(tmp_path / "v"), *TINY, "--set", "diffusion.predicts=v"])
    assert json.loads((tmp_path / "v" / "config.json").read_text())["recipe"]["train"]["flip"] is False
    for other, said in ((tmp_path / "v", "diffusion.predicts"), (tmp_path / "none", "cannot begin from")):
        with pytest.raises(SystemExit):
            main(["train", "gae", "--out", str(tmp_path / "gae"), "--begin-from", str(other), *TINY])
        assert said in capsys.readouterr().err


def test_sliding_and_blending_exclude_each_other(method):
    x = pictures(1)
    with pytest.raises(ValueError, match=r"blend is 0\.9, and slide says"):
        method.sample(1, rng(), image=x, blend_with=x, blend=0.9, slide={"side": 0.2}, num_steps=2)


def test_typical_pictures_are_what_codes_are_on_average(method):
    other = build(recipe("gae", "tiny", SPEC)).eval()
    stage = other.stages()[-1]
    x = pictures(12)
    stage.prepare(lambda n: iter([x[:7], x[7:]]))
    torch.testing.assert_close(other.typical, other.read(x, rng())["code"].mean(0))
    made = other.sample(1, rng(), image=x[:1], towards=x[:4], noise="random", num_steps=2).readouts["code"]
    wanted = other.read(x[:1], rng())["code"] + other.read(x[:4], rng())["code"].mean(0) - other.typical
    torch.testing.assert_close(made, wanted)


def test_a_method_without_attributes_is_the_diffusion_autoencoder_alone():
    _, config, _ = pellucid.recipes.gae.gae("tiny", SPEC, group=False)
    assert isinstance(config, GAEConfig)
    method = build(recipe("diffae", "tiny", SPEC))
    assert set(method.readouts) == {"code"}
    assert not {"replace", "slide", "side"} & set(method.controls)
    assert [stage.name for stage in method.stages()] == ["autoencoder", "latents"]
