"""What holds for every method in the registry, with no list of exceptions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from pellucid.cameras import on_sphere
from pellucid.data.catalog import open_data
from pellucid.methods.registry import METHODS
from pellucid.recipes import DataSpec, build, data_of, recipe, recipe_from_json, recipe_to_json, recipes
from pellucid.types import Attribute, Batch, Control

SIZE = 16


def a_batch(shape: tuple[int, int, int] = (3, SIZE, SIZE), n: int = 4) -> Batch:
    rng = torch.Generator().manual_seed(0)
    values = torch.arange(n)[:, None] // torch.tensor([1, 2]) % 2
    turned = torch.linspace(0, 3, n)
    return Batch(
        attributes=values,
        x0=torch.rand(n, *shape, generator=rng) * 2 - 1,
        labels=torch.arange(n) % 2,
        masks=(torch.rand(n, *shape[1:], generator=rng) > 0.6).long(),
        index=torch.arange(n),
        truth={"camera": on_sphere(turned, turned / 4, 3.0), "focal": torch.full((n,), 1.4)},
    )


TABLE = (Attribute(name="what", values=("a", "b")), Attribute(name="where", values=("c", "d")))


def made(name: str):
    """A recipe for the data that is its own: pictures, or points."""
    channels, _, side = open_data(data_of(name), size=SIZE).shape
    spec = DataSpec(
        spec=data_of(name), size=side, channels=channels, class_names=("a", "b"), attributes=TABLE, count=4
    )
    return recipe(name, "tiny", spec, steps=6)


def seen_by(stage, batch: Batch) -> Batch:
    """What the trainer would hand a stage: partners, and what it derives, where it asks for them."""
    if stage.derives:
        batch = replace(batch, derived=stage.derive(batch.x0))
    if stage.shared:
        each = math.comb(len(TABLE), stage.shared)
        turned = [batch.map(lambda v, k=k: v.roll(k + 1, 0)) for k in range(each)]
        x0 = torch.stack([t.x0 for t in turned], 1)
        derived = {k: torch.stack([t.derived[k] for t in turned], 1) for k in batch.derived}
        batch = replace(batch, partners=Batch(x0=x0, derived=derived))
    return batch


def some_steps(method, steps: int = 2) -> tuple[list[dict[str, float]], set[int]]:
    """Steps of plain SGD over every stage and player; the terms of each, and the ids of what had a gradient."""
    seen, taught = [], set()
    for stage in method.stages():
        owned = {player: list(ps) for player, ps in stage.players.items()}
        batch = seen_by(stage, a_batch(method.image_shape))
        for step in range(steps):
            rng = torch.Generator().manual_seed(step)
            for player, terms in stage.losses(batch, rng):
                seen.append({k: v.item() for k, v in terms.items()})
                stepped = [
                    p for one in ((player,) if isinstance(player, str) else player) for p in owned[one]
                ]
                for p in stepped:
                    p.grad = None
                sum(v for k, v in terms.items() if not k.startswith("_")).backward()
                for p in stepped:
                    assert p.grad is not None
                    p.data -= 0.05 * p.grad
                    if p.grad.any():
                        taught.add(id(p))
            stage.after_step(step)
    return seen, taught


@pytest.fixture(params=sorted(recipes()))
def name(request) -> str:
    return request.param


def quick(method, steps: int = 2) -> dict[str, int]:
    """Controls by which a sample takes few steps."""
    return {"num_steps": steps} if "num_steps" in method.controls else {}


@pytest.fixture
def method(name):
    method = build(made(name))
    for stage in method.stages():
        stage.prepare(lambda n: iter([a_batch(method.image_shape, 8).x0]))
    return method


def test_every_method_has_a_recipe():
    assert {made(name).method for name in recipes()} == set(METHODS)


def test_training_reaches_every_parameter_that_a_player_owns(method):
    # a layer behind zero-initialised ones gets its first gradient only when those have moved
    terms, taught = some_steps(method, steps=6)
    assert all(torch.isfinite(torch.tensor(v)) for t in terms for v in t.values())
    owned = {id(p) for stage in method.stages() for ps in stage.players.values() for p in ps}
    assert not [k for k, p in method.named_parameters() if id(p) in owned - taught]


def test_every_parameter_has_an_owner(method):
    owned = {id(p) for stage in method.stages() for ps in stage.players.values() for p in ps}
    assert {id(p) for p in method.parameters()} == owned


def test_saved_and_loaded_weights_read_and_sample_the_same(name, method, tmp_path):
    some_steps(method)
    save_file(method.state_dict(), tmp_path / "model.safetensors")
    other = build(replace(made(name), train=replace(made(name).train, seed=99)))
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    method.eval(), other.eval()
    x = a_batch(method.image_shape).x0
    for key, value in method.read(x, torch.Generator().manual_seed(1)).items():
        assert torch.equal(value, other.read(x, torch.Generator().manual_seed(1))[key])
    if method.controls:
        one, two = (m.sample(2, torch.Generator().manual_seed(1), **quick(m)) for m in (method, other))
        assert torch.equal(one.images, two.images)


def test_readouts_have_the_shape_they_declare(method):
    method.eval()
    found = method.read(a_batch(method.image_shape).x0, torch.Generator().manual_seed(0))
    assert set(found) == set(method.readouts)
    sizes = {"H": SIZE, "W": SIZE}
    for key, readout in method.readouts.items():
        assert tuple(found[key].shape) == (4, *(sizes.get(s, s) for s in readout.shape))
        if readout.kind == "masks":
            torch.testing.assert_close(found[key].sum(1), torch.ones(4, SIZE, SIZE))
        if readout.kind == "shares":
            torch.testing.assert_close(found[key].sum(1), torch.ones(4))


def test_samples_carry_the_declared_readouts(method):
    if not method.controls:
        with pytest.raises(ValueError, match="generates none"):
            method.sample(1, torch.Generator())
        return
    sample = method.eval().sample(3, torch.Generator().manual_seed(0), **quick(method))
    assert sample.images.shape == (3, *method.image_shape)
    assert sample.images.abs().max() <= 1
    assert set(sample.readouts) == set(method.readouts)


def other_value(name: str, declared: Mapping[str, Control], shape: tuple[int, int, int]) -> dict:
    """A value of a control that is not its default, with the other controls it needs."""
    control = declared[name]
    other, _, choice = control.needs.partition("=")
    given = {} if not other else {other: choice} if choice else other_value(other, declared, shape)
    if control.kind == "image":
        given[name] = a_batch(shape, 1).x0 * (-1 if control.needs else 1)
    elif control.kind == "pictures":
        given[name] = a_batch(shape, 3).x0 * (-1 if control.needs else 1)
    elif control.kind == "images":
        given[name] = {control.choices[0]: a_batch(shape, 1).x0}
    elif control.kind == "indices":
        given[name] = (int(control.low or 0),)
        if "strength" in declared:
            given["strength"] = 0.5
    elif control.kind == "bits":
        given[name] = "1" * int(control.high or 0)
    elif control.kind == "sliders":
        given[name] = dict.fromkeys(control.choices, control.high)
    elif control.kind == "cameras":
        given[name] = on_sphere(torch.tensor([0.5]), torch.tensor([0.2]), 3.0)
    elif control.kind == "choice":
        given[name] = next(c for c in reversed(control.choices) if c != control.default)
    elif control.kind == "int":
        more = min(int(control.high or 9), (control.default or 0) + 3)
        given[name] = more if more != control.default else int(control.low or 0)
    else:
        given[name] = 0.8 * control.high
    return given


def test_a_control_that_does_nothing_alone_says_so(method):
    for name, control in method.controls.items():
        if control.needs:
            other, _, choice = control.needs.partition("=")
            alone = {name: other_value(name, method.controls, method.image_shape)[name]}
            if choice:
                alone[other] = next(c for c in method.controls[other].choices if c != choice)
            with pytest.raises(ValueError, match=f"^{name} does .*{other}"):
                method.sample(1, torch.Generator().manual_seed(0), **quick(method) | alone)


def test_every_control_changes_the_sample(method):
    """Against the same call without it; `snapshots` changes what is kept, not what is made."""
    some_steps(method)
    torch.manual_seed(0)
    for p in method.parameters():  # a barely trained network answers weakly: make every path loud
        p.data += 0.1 * torch.randn_like(p)
    method.eval()
    for name in method.controls:
        given = other_value(name, method.controls, method.image_shape)
        without = {k: v for k, v in given.items() if k != name}
        for calls in (given, without):
            if name != "num_steps":
                calls |= {k: v for k, v in quick(method, 4).items() if k not in calls}
        if name == "num_steps":
            given, without = {"num_steps": 5}, {"num_steps": 2}
        if name.startswith("render_"):  # cameras that noise is taken for may look past everything
            given, without = ({"cameras": method.around(2)} | calls for calls in (given, without))
        one = method.sample(2, torch.Generator().manual_seed(3), **given)
        two = method.sample(2, torch.Generator().manual_seed(3), **without)
        if name == "snapshots":
            assert len(one.trace) > len(two.trace)
        else:
            same = [torch.equal(one.readouts[k], two.readouts[k]) for k in one.readouts]
            assert not (all(same) and torch.equal(one.images, two.images)), f"{name} changes nothing"


def test_a_recipe_survives_json(name):
    assert recipe_from_json(recipe_to_json(made(name))) == made(name)


def test_no_method_reads_the_global_generator(method):
    method.eval()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    method.read(a_batch(method.image_shape).x0, torch.Generator().manual_seed(0))
    if method.controls:
        method.sample(1, torch.Generator().manual_seed(0), **quick(method))
    assert torch.equal(state, torch.get_rng_state())
