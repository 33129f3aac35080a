"""What can be trained, at four scales: the table of contents.

A recipe is a method with its numbers, its data and how long it is trained:

    tiny    seconds, for tests            cpu    minutes on two cores
    gpu     minutes to hours on one GPU   paper  the paper's own numbers
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal

from pellucid.config import from_json, to_json
from pellucid.data.views import Scene, unseen
from pellucid.methods.base import Method
from pellucid.methods.radiance import ViewConfig
from pellucid.methods.registry import METHODS
from pellucid.nets.unet import UNetConfig
from pellucid.train.trainer import StageConfig, TrainConfig
from pellucid.types import Attribute

if TYPE_CHECKING:
    from pellucid.data.images import Dataset
    from pellucid.nets.vae import PretrainedConfig

VIEWS = "views-boxes"
"""The data set of recipes of views that are told none."""
Scale = Literal["tiny", "cpu", "gpu", "paper"]
SCALES: tuple[Scale, ...] = ("tiny", "cpu", "gpu", "paper")


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Where the pictures come from, and what training sees of them."""

    spec: str
    """A name (scenes, emoji, clipart, fashion, photos), a folder, a parquet or tar file, hf:NAME, or mesh:FILE."""
    size: int
    channels: int = 3
    class_names: tuple[str, ...] = ()
    """The classes, where the recipe conditions on them."""
    limit: int | None = None
    """At most so many pictures."""
    attributes: tuple[Attribute, ...] = ()
    """What a table says of every picture, where the recipe learns from it."""
    scene: Scene | None = None
    """Where the cameras stand and what they see, where the pictures are views of one scene and the recipe learns it."""
    count: int = 0
    """How many training pictures there are, where the recipe has something for each."""

    @classmethod
    def of(cls, name: str, spec: str, data: Dataset, *, limit: int | None = None) -> DataSpec:
        """What the recipe of a name may know of a data set that `spec` opened."""
        of_views = data_of(name) == VIEWS
        return cls(
            spec=spec,
            size=data.shape[-1],
            channels=data.shape[0],
            class_names=data.class_names,
            limit=limit,
            attributes=data.attributes,
            scene=(getattr(data, "scene", None) or unseen(data)) if of_views else None,
            count=len(data) if of_views else 0,
        )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    method: str
    scale: Scale
    config: Any
    """The method's own config."""
    data: DataSpec
    train: TrainConfig

    def __post_init__(self) -> None:
        made_for = {"size": getattr(self.config, "size", None)}
        made_for["channels"] = getattr(getattr(self.config, "unet", None), "channels", None)
        for name, own in made_for.items():
            given = getattr(self.data, name)
            if own is not None and own != given:
                raise ValueError(
                    f"the method's {name} is {own} and its data's {given}: set both, by --{name}"
                )


Maker = Callable[..., tuple[str, Any, TrainConfig]]
"""(scale, data) -> method, config, training; where the method works on latents, with a `pretrained` autoencoder too."""


def recipes() -> Mapping[str, Maker]:
    """Every recipe by name."""
    from pellucid.recipes import cofi, cofi_baselines, factorized, gae, lift3d

    return {
        **factorized.RECIPES, **cofi.RECIPES, **cofi_baselines.RECIPES, **gae.RECIPES, **lift3d.RECIPES
    }  # fmt: skip


def data_of(name: str) -> str:
    """The data set of a recipe that is told none: points for the recipes of points, pictures with a table of attributes
    for those that learn by one, `scenes` for all others."""
    from pellucid.recipes.gae import RECIPES as WITH_TABLE
    from pellucid.recipes.lift3d import RECIPES as OF_VIEWS

    if "-ring" in name:
        return "ring"
    return VIEWS if name in OF_VIEWS else "toys" if name in WITH_TABLE else "scenes"


def recipe(
    name: str, scale: Scale, data: DataSpec, *, pretrained: PretrainedConfig | None = None, **train: Any
) -> Recipe:
    """A recipe at a scale on some data; `train` overrides fields of its TrainConfig, those that are not None.

    `steps`, `batch_size` and `flip=False` hold for every stage, whatever the recipe says of it. `pretrained` is an
    autoencoder in place of the one that the recipe would train.

    Raises ValueError where the name or the scale is unknown, the recipe has no autoencoder to take the place of, or it
    learns a scene and would mirror its views.
    """
    known = recipes()
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no recipe named {name!r}; there are {', '.join(known)}.{hint}")
    if scale not in SCALES:
        raise ValueError(f"scale is {scale!r}; it is one of {', '.join(SCALES)}")
    takes = pretrained is not None and "pretrained" in signature(known[name]).parameters
    method, config, training = known[name](scale, data, **({"pretrained": pretrained} if takes else {}))
    if pretrained is not None and getattr(config, "autoencoder", None) is not pretrained:
        raise ValueError(f"{name} has no stage on latents, and takes no autoencoder; cofi does")
    if not getattr(config, "class_names", ()):
        data = replace(data, class_names=())  # it does not matter to this run which classes there are
    if not getattr(config, "attributes", ()):
        data = replace(data, attributes=())
    if not getattr(config, "views", 0):
        data = replace(data, count=0)
    train = {k: v for k, v in train.items() if v is not None}
    if "steps" in train and hasattr(config, "stretched"):  # what counts in steps of the whole
        config = config.stretched(train["steps"] / training.steps)
    everywhere: dict[str, Any] = {
        k: None for k, v in train.items() if k in ("steps", "batch_size") or (k == "flip" and not v)
    }
    stages = {stage: replace(own, **everywhere) for stage, own in training.stages.items()}
    return _as_seen(
        Recipe(
            method=method,
            scale=scale,
            config=config,
            data=data,
            train=replace(training, **{"stages": stages} | train),
        )
    )


def changed(made: Recipe, settings: Mapping[str, str]) -> Recipe:
    """A recipe with fields of its config or its training set to other values, given as text.

    ("regions", "5"), ("unet.base", "32"), ("lr", "3e-4"), ("stages.coarse.steps", "50"): values as JSON, anything
    else a string. Raises ValueError where there is no such field, the value is not one of its kind, or views would be
    mirrored; which stages there are is known when training starts.
    """
    data = to_json(made)
    for name, text in settings.items():
        *outer, last = name.split(".")
        place = data["config"] if (outer or [last])[0] in data["config"] else data["train"]
        if outer[:1] == ["stages"] and len(outer) > 1 and place is data["train"]:
            place["stages"].setdefault(outer[1], to_json(StageConfig()))
        for part in outer:
            place = place.get(part) if isinstance(place, dict) else None
        open_ended = outer[:1] == ["stages"] and outer[2:] == ["lr_of"]  # its keys are players
        if not isinstance(place, dict) or (last not in place and not open_ended):
            known = [*data["config"], *data["train"]]
            near = get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{made.method} has no field {name!r}; there are {', '.join(known)}.{hint}")
        place[last] = _value(text)
    return _as_seen(recipe_from_json(data, "the recipe"))


def _value(text: str) -> Any:
    """What is written as JSON, and numbers as people write them, such as .5 and 1.; else the text itself."""
    with contextlib.suppress(ValueError):
        return json.loads(text)
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(text)):
            return number
    return text


def _as_seen(made: Recipe) -> Recipe:
    """The recipe. A ValueError where it learns a scene from views and mirrors them."""
    flips = made.train.flip or any(stage.flip for stage in made.train.stages.values())
    if flips and isinstance(getattr(made.config, "view", None), ViewConfig):
        raise ValueError(
            f"{made.method} learns one scene from views, and a mirrored view is of another scene: leave flip out"
        )
    return made


def build(made: Recipe) -> Method:
    """The method of a recipe, with fresh weights drawn from its seed."""
    import torch

    config_class, method_class = METHODS[made.method]
    assert isinstance(made.config, config_class)
    with torch.random.fork_rng(devices=[]):  # layers draw from the global generator; leave it as it was
        torch.manual_seed(made.train.seed)
        return method_class(made.config)


def _with_stems(config: Any) -> Any:
    """A method's config in JSON with what U-Nets had before there was a choice: a stem of one pixel."""
    if not isinstance(config, dict):
        return config
    mended = {key: _with_stems(value) for key, value in config.items()}
    is_unet = {f.name for f in fields(UNetConfig)} - {"stem"} <= mended.keys()
    return {"stem": 1} | mended if is_unet else mended


def recipe_to_json(made: Recipe) -> dict[str, Any]:
    return to_json(made)


def recipe_from_json(data: Mapping[str, Any], where: str = "config") -> Recipe:
    """The inverse of `recipe_to_json`, strict: an unknown or missing key is a ValueError.

    Runs of before there were settings of stages, attributes, scenes, or stems of U-Nets have none, and are read.
    """
    fields = {"method", "scale", "config", "data", "train"}
    if set(data) != fields:
        raise ValueError(f"{where}: expected the keys {sorted(fields)}, got {sorted(data)}")
    if data["method"] not in METHODS:
        raise ValueError(f"{where}.method is {data['method']!r}; this version knows {', '.join(METHODS)}")
    if data["scale"] not in SCALES:
        raise ValueError(f"{where}.scale is {data['scale']!r}; it is one of {', '.join(SCALES)}")
    train = data["train"]
    if isinstance(train, dict):
        train = {"stages": {}} | train
    spec = data["data"]
    if isinstance(spec, dict):
        spec = {"attributes": [], "scene": None, "count": 0} | spec
    data = {**data, "config": _with_stems(data["config"])}
    return Recipe(
        method=data["method"],
        scale=data["scale"],
        config=from_json(METHODS[data["method"]][0], data["config"], f"{where}.config"),
        data=from_json(DataSpec, spec, f"{where}.data"),
        train=from_json(TrainConfig, train, f"{where}.train"),
    )
