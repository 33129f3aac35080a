"""What holds for every method in the registry, with no list of exceptions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from pellucid.methods.registry import METHODS
from pellucid.recipes import DataSpec, build, recipe, recipe_from_json, recipe_to_json, recipes
from pellucid.types import Batch, Control

SIZE = 16


def a_batch(n: int = 4) -> Batch:
    rng = torch.Generator().manual_seed(0)
    return Batch(
        x0=torch.rand(n, 3, SIZE, SIZE, generator=rng) * 2 - 1,
        labels=torch.arange(n) % 2,
        masks=(torch.rand(n, SIZE, SIZE, generator=rng) > 0.6).long(),
    )


def made(name: str):
    return recipe(name, "tiny", DataSpec(spec="scenes", size=SIZE, class_names=("a", "b")), steps=2)


def some_steps(method, steps: int = 2) -> tuple[list[dict[str, float]], set[int]]:
    """Steps of plain SGD over every stage and player; the terms of each, and the ids of what had a gradient."""
    batch = a_batch()
    seen, taught = [], set()
    for stage in method.stages():
        owned = {player: list(ps) for player, ps in stage.players.items()}
        given = batch
        if stage.derives:
            with torch.no_grad():
                given = replace(batch, derived=stage.derive(batch.x0))
        for step in range(steps):
            rng = torch.Generator().manual_seed(step)
            for player, terms in stage.losses(given, rng):
                seen.append({k: v.item() for k, v in terms.items()})
                for p in owned[player]:
                    p.grad = None
                sum(v for k, v in terms.items() if not k.startswith("_")).backward()
                for p in owned[player]:
                    assert p.grad is not None
                    p.data -= 0.05 * p.grad
                    if p.grad.any():
                        taught.add(id(p))
            stage.after_step(step)
    return seen, taught


@pytest.fixture(params=sorted(recipes()))
def name(request) -> str:
    return request.param


@pytest.fixture
def method(name):
    method = build(made(name))
    for stage in method.stages():
        stage.prepare(lambda n: iter([a_batch(8).x0]))
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
    x = a_batch().x0
    for key, value in method.read(x, torch.Generator().manual_seed(1)).items():
        assert torch.equal(value, other.read(x, torch.Generator().manual_seed(1))[key])
    if method.controls:
        one, two = (m.sample(2, torch.Generator().manual_seed(1), num_steps=2) for m in (method, other))
        assert torch.equal(one.images, two.images)


def test_readouts_have_the_shape_they_declare(method):
    method.eval()
    found = method.read(a_batch().x0, torch.Generator().manual_seed(0))
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
    sample = method.eval().sample(3, torch.Generator().manual_seed(0), num_steps=2)
    assert sample.images.shape == (3, *method.image_shape)
    assert sample.images.abs().max() <= 1
    assert set(sample.readouts) == set(method.readouts)


def other_value(name: str, declared: Mapping[str, Control]) -> dict:
    """A value of a control that is not its default, with the other controls it needs."""
    control = declared[name]
    other, _, choice = control.needs.partition("=")
    given = {} if not other else {other: choice} if choice else other_value(other, declared)
    if control.kind == "image":
        given[name] = a_batch(1).x0 * (-1 if control.needs else 1)
    elif control.kind == "indices":
        given |= {"strength": 0.5, name: (0,)}
    elif control.kind == "choice":
        given[name] = control.choices[-1]
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
            alone = {name: other_value(name, method.controls)[name]}
            if choice:
                alone[other] = next(c for c in method.controls[other].choices if c != choice)
            with pytest.raises(ValueError, match=f"^{name} does .*{other}"):
                method.sample(1, torch.Generator().manual_seed(0), num_steps=2, **alone)


def test_every_control_changes_the_sample(method):
    """Against the same call without it; `snapshots` changes what is kept, not what is made."""
    some_steps(method)
    torch.manual_seed(0)
    for p in method.parameters():  # a barely trained network answers weakly: make every path loud
        p.data += 0.1 * torch.randn_like(p)
    method.eval()
    for name in method.controls:
        given = other_value(name, method.controls)
        without = {k: v for k, v in given.items() if k != name}
        for calls in (given, without):
            if name != "num_steps":
                calls["num_steps"] = 4
        if name == "num_steps":
            given, without = {"num_steps": 5}, {"num_steps": 2}
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
    method.read(a_batch().x0, torch.Generator().manual_seed(0))
    if method.controls:
        method.sample(1, torch.Generator().manual_seed(0), num_steps=2)
    assert torch.equal(state, torch.get_rng_state())
