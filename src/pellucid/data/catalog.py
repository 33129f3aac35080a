"""Data sets by name: what `--data` takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pellucid.data.images import Dataset, Squares, StoredImages, prepare
from pellucid.data.meshes import FORMATS
from pellucid.data.renders import MESH, VIEWS, rendered
from pellucid.data.sources import FolderSource, HubSource, ParquetSource, Source, Split, TarSource
from pellucid.data.views import ViewsSource, has_cameras, open_views

BUILT_IN = {
    "scenes": "a procedural world of textured shapes, with every ground truth",
    "toys": "a toy a picture, with a table of what it is, what it stands on and where it is seen",
    "emoji": "emoji over crops of photographs, with exact masks (fetched)",
    "emoji-plain": "the same emoji on white (fetched)",
    "hands": "emoji of hands on white, with a table of sign, skin tone and who drew them (fetched)",
    "clipart": "drawings over crops of photographs, with exact masks (fetched)",
    "clipart-plain": "the same drawings on white (fetched)",
    "fashion": "Fashion-MNIST: 70,000 grey pictures of clothing in ten classes (fetched)",
    "photos": "crops of photographs (fetched)",
    **VIEWS,
    "ring": "100,000 points on half a ring, in four clusters: for CoFi's figure 8, not pictures",
}
LENGTHS: dict[Split, int] = {"train": 50_000, "val": 2_000, "test": 5_000}
"""Samples in each split of the data sets that are made as they are asked for."""

TABLED: dict[Split, int] = {"train": 10_000, "val": 1_000, "test": 2_000}
"""The same of those with a table of attributes."""

_GARMENTS = (
    "t-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


def open_data(
    spec: str,
    *,
    size: int,
    channels: int = 3,
    split: Split = "train",
    seed: int = 0,
    limit: int | None = None,
) -> Dataset:
    """Open a data set.

    Args:
        spec: a name of `BUILT_IN`; a folder, whose pictures come with their cameras where it holds `transforms.json`
            (`data.views`); a parquet file, a tar shard, a folder or pattern (`*`) of either; `hf:NAME` for a
            data set of the Hugging Face hub (`hf:NAME:CONFIG`); or `mesh:FILE` for views of a model (`data.meshes`).
        size: height and width, pixels.
        channels: 3 for colour, 1 for grey.
        split: "train", "val" or "test". A folder with sub-folders train, val, test keeps them; any other
            is split 90 / 5 / 5 by a hash of each file's path.
        seed: of the data sets that are made as they are asked for.
        limit: at most this many samples.

    Raises:
        ValueError: nothing is there, it is not of a known kind, it is empty, or too many files are bad.
    """
    if split not in ("train", "val", "test"):
        raise ValueError(f"split is {split!r}: use train, val or test")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}: at least 1, or None for all")
    length = LENGTHS[split] if limit is None else min(limit, LENGTHS[split])
    if spec in BUILT_IN and Path(spec).is_dir():
        raise ValueError(f"{spec} is a built-in set and also a folder here: write ./{spec} for the folder")
    if spec == "scenes":
        from pellucid.data.scenes import Scenes

        return Scenes(size=size, length=length, seed=seed, split=split, channels=channels)
    if spec in ("toys", "hands"):
        from pellucid.data.composites import Hands
        from pellucid.data.scenes import Toys

        made: type[Toys] | type[Hands] = Toys if spec == "toys" else Hands
        length = TABLED[split] if limit is None else min(limit, TABLED[split])
        return made(size=size, length=length, seed=seed, split=split, channels=channels)
    if spec == "ring":
        from pellucid.data.ring import Ring

        whole = 100_000 if split == "train" else LENGTHS[split] * 2
        return Ring(length=whole if limit is None else min(limit, whole), seed=seed, split=split)
    if spec in ("emoji", "emoji-plain", "clipart", "clipart-plain"):
        from pellucid.data.composites import Composites, Kind

        kind: Kind = "clipart" if spec.startswith("clipart") else "emoji"
        plain = spec.endswith("-plain")
        return Composites(
            kind=kind, size=size, split=split, length=length, seed=seed, channels=channels, plain=plain
        )
    if spec == "photos":
        return _photos(size, channels, split, limit)
    if spec == "fashion":
        return _fashion(size, channels, split, limit)
    if spec in VIEWS or spec.startswith(MESH):
        return rendered(spec, size=size, channels=channels, split=split, seed=seed, limit=limit)
    source = open_source(spec)
    if isinstance(source, ViewsSource):
        return open_views(source, size, channels, split=split, limit=limit, name=spec)
    return StoredImages(source, size, channels, split=split, limit=limit, name=spec)


def open_source(spec: str) -> Source:
    """The encoded images of a folder, `.parquet`, `.tar`, or `hf:NAME`. Raises ValueError as `open_data`."""
    if spec.startswith("hf:"):
        return HubSource(spec.removeprefix("hf:"))
    if spec.startswith(MESH):
        raise ValueError(
            f"{spec} is rendered as it is asked for and has no pictures of its own: `pellucid data show {spec}` draws "
            f"some"
        )
    if spec in BUILT_IN:
        raise ValueError(
            f"{spec} is built in and has no files of yours: `pellucid data show {spec}` draws some of it; a folder of "
            f"that name is ./{spec}"
        )
    path = Path(spec).expanduser()
    if path.is_dir():
        if has_cameras(path):
            return ViewsSource(path)
        suffixes = {p.suffix for p in path.iterdir() if p.is_file()}
        if suffixes & {".parquet", ".tar"} and not any(p.is_dir() for p in path.iterdir()):
            return ParquetSource(path) if ".parquet" in suffixes else TarSource(path)
        return FolderSource(path)
    if path.suffix == ".parquet":
        return ParquetSource(path)
    if path.suffix == ".tar":
        return TarSource(path)
    if path.suffix.lower() in FORMATS and path.is_file():
        raise ValueError(f"{path} is a model: give {MESH}{spec} for views of it")
    if path.exists():
        raise ValueError(f"{path} is a single file: give a folder of images, a .parquet or a .tar file")
    raise ValueError(
        f"no data at {spec!r}: give a folder of images, a .parquet or .tar file, hf:NAME, {MESH}FILE, "
        f"or one of {', '.join(BUILT_IN)}"
    )


def _photos(size: int, channels: int, split: Split, limit: int | None) -> Dataset:
    from pellucid.data.composites import Photographs

    crops = Photographs(size=size, split=split)
    pixels = np.asarray(crops.grounds)
    pixels = _evenly(pixels, limit)
    if channels == 1:
        pixels = np.stack([prepare(Image.fromarray(p), size, 1) for p in pixels])
    return Squares(pixels, fingerprint=f"{crops.fingerprint}-{channels}-{len(pixels)}")


def _fashion(size: int, channels: int, split: Split, limit: int | None) -> Dataset:
    """The publisher's test set; of its 60,000 training pictures the last 5,000 are `val`."""
    from pellucid.data.fetch import get, read_idx

    folder, part = get("fashion"), "t10k" if split == "test" else "train"
    images = read_idx(folder / f"{part}-images-idx3-ubyte")
    labels = read_idx(folder / f"{part}-labels-idx1-ubyte")
    keep = {"train": slice(0, 55_000), "val": slice(55_000, None), "test": slice(None)}[split]
    images, labels = _evenly(images[keep], limit), _evenly(labels[keep], limit)
    pixels = np.stack([prepare(Image.fromarray(i), size, channels) for i in images])
    fingerprint = f"fashion-{split}-{size}-{channels}-{len(pixels)}"
    return Squares(pixels, fingerprint=fingerprint, labels=labels, class_names=_GARMENTS)


def _evenly(array: np.ndarray, limit: int | None) -> np.ndarray:
    """`limit` items spread over the whole, so that every photograph and class keeps its share."""
    if limit is None or limit >= len(array):
        return array
    return array[np.arange(limit) * len(array) // limit]
