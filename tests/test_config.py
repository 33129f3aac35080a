"""Strict both ways: what is written reads back equal, and nothing else reads at all."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pellucid.config import fingerprint, from_json, to_json
from pellucid.data.scenes import Toys
from pellucid.recipes import (
    SCALES,
    DataSpec,
    Recipe,
    build,
    data_of,
    recipe,
    recipe_from_json,
    recipe_to_json,
    recipes,
)


@dataclass(frozen=True)
class Inner:
    width: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    inner: Inner
    rate: float
    kind: Literal["a", "b"] = "a"
    pair: tuple[int, float] = (1, 2.0)
    maybe: str | None = None
    flag: bool = False

    def __post_init__(self):
        if self.rate < 0:
            raise ValueError(f"rate is {self.rate}; it is positive")


finite = st.floats(allow_nan=False, allow_infinity=False)
outers = st.builds(
    Outer,
    inner=st.builds(Inner, width=st.integers(), names=st.lists(st.text()).map(tuple)),
    rate=finite.filter(lambda v: v >= 0),
    kind=st.sampled_from(["a", "b"]),
    pair=st.tuples(st.integers(), finite),
    maybe=st.none() | st.text(),
    flag=st.booleans(),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@given(outers)
def test_what_is_written_reads_back_equal(config):
    read = from_json(Outer, json.loads(json.dumps(to_json(config))))
    assert read == config
    assert fingerprint(read) == fingerprint(config)


@given(anything)
def test_nothing_but_a_config_reads_as_one(data):
    """Any JSON at all: a ValueError, or a config that writes the same again; never another exception."""
    try:
        config = from_json(Outer, data)
    except ValueError:
        return
    assert to_json(config) == data


@given(outers, st.text(), anything)
def test_an_unknown_key_is_refused(config, key, value):
    data = to_json(config)
    if key in data:
        return
    with pytest.raises(ValueError, match="unknown key"):
        from_json(Outer, {**data, key: value})


@given(outers, st.sampled_from([f.name for f in dataclasses.fields(Outer)]))
def test_a_missing_key_is_refused_though_it_has_a_default(config, key):
    data = to_json(config)
    del data[key]
    with pytest.raises(ValueError, match=f"lacks '{key}'"):
        from_json(Outer, data)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"kind": "c"}, r"config.kind is 'c'; it is one of 'a', 'b'"),
        ({"rate": "fast"}, r"config.rate is 'fast'; expected float"),
        ({"rate": float("nan")}, "finite"),
        ({"rate": -1.0}, "it is positive"),
        ({"flag": 1}, r"config.flag is 1; expected bool"),
        ({"pair": [1]}, "has 1 entries; expected 2"),
        ({"inner": {"width": True, "names": []}}, r"config.inner.width is True; expected int"),
        ({"inner": {"width": 1, "names": [1]}}, r"config.inner.names\[0\] is 1; expected str"),
        ({"inner": []}, "expected an object with the fields of Inner"),
        ({"rates": 1.0}, "did you mean 'rate'"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(change, match):
    data = to_json(Outer(inner=Inner(3), rate=0.1)) | change
    with pytest.raises(ValueError, match=match):
        from_json(Outer, data)


@pytest.mark.parametrize("value", [float("inf"), {1, 2}, object(), b"bytes"])
def test_what_json_cannot_hold_is_not_written(value):
    with pytest.raises(ValueError, match="cannot"):
        to_json({"key": value})


@given(outers, outers)
def test_equal_fingerprints_mean_equal_configs(one, other):
    assert (fingerprint(one) == fingerprint(other)) == (to_json(one) == to_json(other))


# ---- recipes are configs

CLASSED = DataSpec(spec="fashion", size=32, class_names=("coat", "bag"))


def data_for(name):
    if data_of(name) == "ring":
        return DataSpec(spec="ring", size=1, channels=2)
    if data_of(name) == "toys":
        return DataSpec(spec="toys", size=32, attributes=Toys.attributes)
    if data_of(name) == "views-boxes":
        return DataSpec(spec="views-boxes", size=32, count=64)
    return CLASSED if name == "factorized-class" else DataSpec(spec="scenes", size=32)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", list(recipes()))
def test_every_recipe_reads_back_equal(name, scale):
    made = recipe(name, scale, data_for(name))
    assert recipe_from_json(json.loads(json.dumps(recipe_to_json(made)))) == made


@given(anything)
def test_nothing_but_a_recipe_reads_as_one(data):
    if not isinstance(data, dict):
        data = {"method": data}
    with pytest.raises(ValueError, match="config"):
        recipe_from_json(data)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"method": "gan"}, "config.method is 'gan'; this version knows"),
        ({"scale": "huge"}, "config.scale is 'huge'; it is one of tiny, cpu, gpu, paper"),
        ({"seed": 3}, "expected the keys"),
    ],
)
def test_a_recipe_of_another_version_is_refused(change, match):
    data = recipe_to_json(recipe("ddpm", "tiny", DataSpec(spec="scenes", size=32))) | change
    with pytest.raises(ValueError, match=match):
        recipe_from_json(data)


def test_recipes_that_do_not_exist_name_what_was_meant():
    with pytest.raises(ValueError, match="Did you mean 'factorized'"):
        recipe("factorised", "tiny", DataSpec(spec="scenes", size=32))
    with pytest.raises(ValueError, match="scale is 'big'"):
        recipe("ddpm", "big", DataSpec(spec="scenes", size=32))
    with pytest.raises(ValueError, match="this data has none"):
        recipe("factorized-class", "tiny", DataSpec(spec="photos", size=32))


def test_weights_are_drawn_from_the_seed_and_from_nothing_else():
    made = recipe("ddpm", "tiny", DataSpec(spec="scenes", size=32), seed=5)
    state = torch.get_rng_state()
    one = build(made).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert all(torch.equal(v, build(made).state_dict()[k]) for k, v in one.items())
    other = build(Recipe(**{**vars(made), "train": dataclasses.replace(made.train, seed=6)})).state_dict()
    assert not all(torch.equal(v, other[k]) for k, v in one.items())


def test_runs_of_before_a_unet_had_a_stem_and_data_a_table_are_read():
    made = recipe("factorized", "tiny", DataSpec(spec="scenes", size=16))
    old = recipe_to_json(made)
    del old["config"]["unet"]["stem"], old["data"]["attributes"]
    assert recipe_from_json(old) == made
