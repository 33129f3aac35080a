"""A trained model scored on pictures with known masks; or, where it is a scene, on photographs held out."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pellucid.data.catalog import BUILT_IN, open_data, open_source
from pellucid.data.images import Dataset
from pellucid.data.sources import Split, splits
from pellucid.geometry import training_pictures
from pellucid.methods.base import resolve
from pellucid.methods.baselines import segmenters
from pellucid.methods.kernels import explain
from pellucid.methods.radiance import Radiance
from pellucid.metrics.distribution import EfficientNetLite0, Extractor
from pellucid.metrics.segmentation import choose_assignment, oracle_assignment, score, smallest_share
from pellucid.model import Model
from pellucid.train.trainer import place_of
from pellucid.view_scores import LOOKS, TITLES, Photographs, found, scored

REFINED = 100
"""Steps in which cameras of views held out are optimised where a model reads none."""
COLUMNS = (
    {
        "dataset_iou": "IoU, one assignment",
        "oracle_iou": "IoU, oracle",
        "smallest_region": "smallest region",
    }
    | TITLES
    | {f"{LOOKS}efflite0": "perceptual"}
)
"""What `table` calls the figures that it shows, in their order."""


def read_all(
    model: Model,
    data: Dataset,
    indices: np.ndarray | None = None,
    *,
    seed: int = 0,
    batch: int = 64,
    **controls: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """(images, masks (N, K, H, W), truth (N, H, W) bool) of a data set, or of some of it, on the CPU."""
    indices = np.arange(len(data)) if indices is None else indices
    rng = torch.Generator().manual_seed(seed)
    images, masks, truth = [], [], []
    for start in range(0, len(indices), batch):
        part = data.batch(indices[start : start + batch])
        if part.masks is None:
            raise ValueError(
                "these pictures have no masks to score against: give a folder with images/ and masks/ holding "
                "pictures of the same names (0 is ground), or a built-in set with masks: scenes, emoji, clipart"
            )
        found = model.method.read(part.x0.to(model.device), rng, **controls)
        if "masks" not in found:
            raise ValueError(f"{model.recipe.method} reads no masks; there is nothing to score")
        images.append(part.x0)
        masks.append(found["masks"].cpu())
        truth.append(part.masks > 0)
    return torch.cat(images), torch.cat(masks), torch.cat(truth)


def evaluate(
    model: Model, spec: str | None = None, *, limit: int = 1000, seed: int = 0, **controls: Any
) -> dict[str, Any]:
    """The scores of a model on a folder or a built-in set, as `table` prints them.

    Of a model that reads masks, by default on `scenes`, see `evaluate_masks`; of a scene, by default on the model's own
    data, `evaluate_views`. Raises ValueError where the pictures cannot be scored, with what is missing.
    """
    if isinstance(model.method, Radiance):
        return evaluate_views(model, spec or model.recipe.data.spec, limit=limit, seed=seed, **controls)
    return evaluate_masks(model, spec or "scenes", limit=limit, seed=seed, **controls)


def evaluate_views(
    model: Model, spec: str, *, limit: int = 1000, seed: int = 0, **controls: Any
) -> dict[str, Any]:
    """What a scene shows of photographs that it has not seen, from the cameras that it finds for them, and how far
    those are from true ones where these are known.

    In the world of the true cameras, found ones are aligned by training views where those can be opened and have
    cameras, else by the photographs that are scored. `refine` moves each found camera by so many steps. Of a folder the
    held-out pictures are scored, or all where it is not the training folder. How alike pictures look is judged by
    ImageNet features, too, where their package is installed.
    """
    method, made = model.method, model.recipe.data
    assert isinstance(method, Radiance)
    use = resolve(method.controls, controls, reading=True)
    folder = spec not in BUILT_IN and Path(spec).expanduser().exists()
    same = spec == made.spec or (folder and place_of(spec) == place_of(made.spec))
    if not same and method.posed_by != "reading":
        raise ValueError(
            f"{spec} is not where the model learned ({made.spec}): cameras of another folder lie in a world of their "
            f"own, and this model reads none of pictures. Hold pictures of the same folder out (`val_filenames` of its "
            f"transforms.json), or train lift3d, which finds cameras"
        )
    parts: tuple[Split, ...] = _splits(spec, model) if folder else ("test",)
    shape = {"size": made.size, "channels": made.channels}
    held = Photographs.of(*(open_data(spec, split=split, **shape) for split in parts), limit=limit)
    try:
        train = Photographs.of(training_pictures(model), limit=limit)
    except ValueError:  # they are not here: what they would say is left out
        train = None
    if train is not None and not same:  # their cameras lie in a world of their own
        train = replace(train, cameras=None, focal=None)
    if method.posed_by == "learning" and train is None:
        raise ValueError(
            "this model learned its cameras, and where they stand among true ones its training pictures say, which "
            "are not to be had"
        )
    # learned poses read nothing: cameras of views held out are optimised, as their authors do
    refine = int(use.get("refine", REFINED))
    figures = scored(found(method, train, held, seed, refine=refine), train, held, looks())
    by = None
    if "rotation" in figures or "rotation_train" in figures:
        by = "training views" if "rotation_train" in figures else "the views scored"
    return {
        "data": spec,
        "pictures_scored": len(held.x),
        "cameras_aligned_by": by,
        "size": made.size,
        "scores": {model.recipe.method: figures},
    }


def looks() -> tuple[Extractor, ...]:
    try:
        return (EfficientNetLite0(),)
    except ImportError:
        return ()


def evaluate_masks(
    model: Model, spec: str, *, limit: int = 1000, seed: int = 0, **controls: Any
) -> dict[str, Any]:
    """Both assignment protocols, and simple baselines on the same pictures.

    One assignment for the data set needs pictures to choose it on: the validation split of a built-in
    set, and of a folder a random half, which then is not scored; a folder of one picture has only the
    oracle's figures. Of the folder that the model was trained on only the pictures held out are scored.
    """
    size, channels = model.recipe.data.size, model.recipe.data.channels
    if spec not in BUILT_IN and Path(spec).expanduser().exists():
        whole = [open_data(spec, size=size, channels=channels, split=s) for s in _splits(spec, model)]
        # a random choice in random order: names may be sorted by class
        order = torch.randperm(sum(map(len, whole)), generator=torch.Generator().manual_seed(seed))[:limit]
        parts, first = [], 0
        for d in whole:
            here = order[(order >= first) & (order < first + len(d))] - first
            if len(here):
                parts.append(read_all(model, d, here.numpy(), seed=seed, **controls))
            first += len(d)
        again = torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))
        x, masks, truth = (torch.cat([p[i] for p in parts])[again] for i in range(3))
        half = len(x) // 2
        chosen, scored = (slice(0, half), slice(half, None)) if half else (None, slice(0, None))
    else:
        val = read_all(
            model,
            open_data(spec, size=size, channels=channels, split="val", limit=limit),
            seed=seed,
            **controls,
        )
        test = read_all(
            model,
            open_data(spec, size=size, channels=channels, split="test", limit=limit),
            seed=seed,
            **controls,
        )
        x, masks, truth = (torch.cat(pair) for pair in zip(val, test, strict=True))
        chosen, scored = slice(0, len(val[0])), slice(len(val[0]), None)
    if not truth.any():
        raise ValueError(f"every mask of {spec} is all ground (0): nothing can be scored against them")
    rng = torch.Generator().manual_seed(seed)
    k = masks.shape[1]
    rows = {
        model.recipe.method: masks,
        "Otsu": segmenters.otsu(x, 2),
        "k-means, colour + place": segmenters.colour_position_kmeans(x, max(2, k), rng),
        "border rule": segmenters.border_rule(x, rng),
        "centre box": segmenters.centre_box(x),
        "colour kernels alone": explain(x, max(2, k)),
    }
    figures: dict[str, Any] = {}
    for name, regions in rows.items():
        found: dict[str, float] = score(
            regions[scored], truth[scored], oracle_assignment(regions[scored], truth[scored])
        ).summary()
        if chosen is not None:
            fixed = choose_assignment(regions[chosen], truth[chosen])
            found |= score(regions[scored], truth[scored], fixed).summary()
            found["foreground_regions"] = sorted(fixed.regions)  # type: ignore[assignment]
        found["smallest_region"] = smallest_share(regions[scored])
        figures[name] = found
    return {
        "data": spec,
        "pictures_scored": len(truth[scored]),
        "pictures_to_choose_on": len(truth[chosen]) if chosen is not None else 0,
        "size": size,
        "scores": figures,
    }


def _splits(spec: str, model: Model) -> tuple[Split, ...]:
    """Every split of a user's folder, wherever training would put it; without training's own where it did."""
    there = set(splits(open_source(spec).records))
    every: tuple[Split, ...] = ("train", "val", "test")
    found = tuple(s for s in every if s in there) or ("train",)
    held_out = tuple(s for s in found if s != "train")
    seen = model.trained_on
    named = model.recipe.data.spec
    # an export does not say where its pictures lay, but their name may still lead there
    place = seen["place"] if "place" in seen else None if named in BUILT_IN else place_of(named)
    same = place is not None and place == place_of(spec)
    if not same and "fingerprint" in seen and "train" in found:  # it may have been moved or copied
        made = model.recipe.data
        same = seen["fingerprint"] == open_data(
            spec, size=made.size, channels=made.channels, split="train", limit=made.limit
        ).fingerprint  # fmt: skip
    if same and not held_out:
        raise ValueError(f"the model was trained on all of {spec}: score it on pictures that it has not seen")
    return held_out if same else found


def table(result: Mapping[str, Any]) -> list[str]:
    """The scores as aligned text."""
    there = {key for figures in result["scores"].values() for key in figures}
    columns = [(key, title) for key, title in COLUMNS.items() if key in there]
    rows = [["", *(title for _, title in columns)]]
    for name, figures in result["scores"].items():
        rows.append([name, *(f"{figures[key]:.3f}" if key in figures else "-" for key, _ in columns)])
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    return ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]


def how_scored(result: Mapping[str, Any]) -> str:
    """What a reader of the table has to know of how its figures were made."""
    if "cameras_aligned_by" in result:
        by = result["cameras_aligned_by"]
        return f"cameras aligned by {by}" if by else "no cameras are scored"
    chosen_on = result["pictures_to_choose_on"]
    return (
        f"one assignment: chosen on {chosen_on} others"
        if chosen_on
        else "no others to choose one assignment on"
    )


def record(run: Path, result: Mapping[str, Any]) -> None:
    """Keep the newest evaluation on each data set in RUN/metrics.json."""
    path = run / "metrics.json"
    there = json.loads(path.read_text()) if path.is_file() else {}
    there[result["data"] + (" (label map)" if result.get("label_map") else "")] = dict(result)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(there, indent=1) + "\n")
    os.replace(part, path)


def evaluate_mapped(
    model: Model, spec: str, mapping: Mapping[str, str], *, limit: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Zero-shot transfer by a label map (Yuan's thesis, section 2.5.4): each picture is read as the class
    of the model that its own class maps to.

    `spec` is a labelled folder with class sub-folders below images/ and masks/. Figures are the oracle's
    over all classes, and for each class alone.
    """
    shape = {"size": model.recipe.data.size, "channels": model.recipe.data.channels}
    own = spec not in BUILT_IN and Path(spec).expanduser().exists()
    splits: tuple[Split, ...] = _splits(spec, model) if own else ("test",)
    parts = [open_data(spec, split=split, limit=limit, **shape) for split in splits]
    if not mapping or not all(isinstance(v, str) for pair in mapping.items() for v in pair):
        raise ValueError("a label map is a JSON object of at least one class of the data: class of the model")
    names = parts[0].class_names
    unknown = sorted(set(mapping) - set(names))
    if unknown or not names:
        raise ValueError(
            f"the label map names classes that {spec} does not have: {unknown}; it has {list(names)}"
        )
    rng = torch.Generator().manual_seed(seed)
    by_class: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for part in (d.batch(np.arange(i, min(i + 64, len(d)))) for d in parts for i in range(0, len(d), 64)):
        if part.masks is None or part.labels is None:
            raise ValueError(f"{spec} needs masks and classes to be scored by a label map")
        for label in part.labels.unique().tolist():
            name = names[label]
            if name in mapping:
                rows = part.labels == label
                x = part.x0[rows].to(model.device)
                found = model.method.read(x, rng, label=mapping[name])["masks"].cpu()
                by_class.setdefault(name, []).append((found, part.masks[rows] > 0))
    figures = {}
    everything: list[tuple[Tensor, Tensor]] = []
    for name, read in sorted(by_class.items()):
        masks, truth = (torch.cat([r[i] for r in read]) for i in range(2))
        figures[f"{name} as {mapping[name]}"] = score(masks, truth, oracle_assignment(masks, truth)).summary()
        everything.append((masks, truth))
    masks, truth = (torch.cat([p[i] for p in everything]) for i in range(2))
    figures["all classes"] = score(masks, truth, oracle_assignment(masks, truth)).summary()
    return {
        "data": spec, "label_map": dict(mapping), "pictures_scored": len(truth), "pictures_to_choose_on": 0,
        "size": model.recipe.data.size, "scores": figures,
    }  # fmt: skip
