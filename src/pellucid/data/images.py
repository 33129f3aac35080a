"""Stored images -> batches: a folder, parquet files, web shards, or a data set of the Hugging Face hub.

Each image is decoded once, to a size x size uint8 square. The squares are held in memory up to
`MEMORY_BUDGET`, beyond it in a memory-mapped file of the cache folder. A bad file is left out with
one warning for all of them; more than `BAD_LIMIT` of them stop the run with the list.

What is trusted: pixels only. Nothing here reads a pickle, follows a path found inside a file, or runs
a decoder chosen by one.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import shutil
import tarfile
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

import numpy as np
import PIL
import torch
from torch import Tensor

from pellucid.data.decode import (
    EXTENSIONS,
    BadImage,
    Encoded,
    Header,
    decode,
    decode_mask,
    inspect,
    prepare,
    prepare_mask,
)
from pellucid.types import Batch

__all__ = [
    "BadImage",
    "Dataset",
    "Encoded",
    "FolderSource",
    "Header",
    "HubImages",
    "ImageFolder",
    "ParquetImages",
    "Record",
    "Source",
    "Split",
    "StoredImages",
    "WebShards",
    "cache_folder",
    "decode",
    "inspect",
    "prepare",
    "split_of",
    "to_uint8",
    "to_unit",
]

Split = Literal["train", "val", "test"]

MEMORY_BUDGET = 1 << 30
"""Bytes of decoded images that are held in memory; more stay on disk, memory-mapped."""
CACHE_FROM = 1024
"""From this many images on, decoded squares are kept in the cache folder for the next start."""
BAD_LIMIT = 0.01
"""The share of bad files above which training refuses to start."""
DECODER_VERSION = 1
"""Raise it when the image policy changes, so that cached squares are made anew."""

_log = logging.getLogger(__name__)


class Dataset(Protocol):
    """Samples that can be asked for by index, the same each time."""

    shape: tuple[int, int, int]
    """(C, H, W)."""
    num_classes: int | None
    class_names: tuple[str, ...]
    fingerprint: str
    """Changes when the samples would."""

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> Batch:
        """The samples of (B,) int64 indices, in that order."""
        ...


def to_unit(pixels: np.ndarray) -> Tensor:
    """(B, H, W, C) uint8 -> (B, C, H, W) float32 in [-1, 1]. 0 -> -1, 255 -> 1."""
    if pixels.dtype != np.uint8 or pixels.ndim != 4:
        raise ValueError(f"pixels are {pixels.dtype} {pixels.shape}: expected uint8 (B, H, W, C)")
    planes = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    return planes.float().mul_(2 / 255).sub_(1)


def to_uint8(x: Tensor) -> np.ndarray:
    """(B, C, H, W) floats, clamped to [-1, 1] -> (B, H, W, C) uint8. The inverse of `to_unit`."""
    planes = x.detach().float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return planes.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def cache_folder() -> Path:
    """Where decoded and fetched data is kept: $PELLUCID_CACHE, else ~/.cache/pellucid."""
    return Path(os.environ.get("PELLUCID_CACHE") or Path.home() / ".cache" / "pellucid")


# ---------------------------------------------------------------------------------------- sources


@dataclass(frozen=True, slots=True)
class Record:
    """One encoded image of a source."""

    key: str
    """Unique within the source and the same on every machine; splits are drawn by it."""
    where: Any
    """How the source finds it."""
    nbytes: int = 0
    changed: int = 0
    """Modification time, ns; decides whether a cached copy is stale."""
    label: int | None = None
    split: Split | None = None
    """Where the data itself says which split it belongs to."""


class Source(Protocol):
    """Encoded images in some kind of storage."""

    records: Sequence[Record]
    class_names: tuple[str, ...]
    has_masks: bool
    unreadable: Sequence[tuple[str, str]]
    """(folder, reason) of what could not even be listed."""

    def read(self, records: Iterable[Record]) -> Iterator[tuple[Encoded, Encoded | None]]:
        """(image, mask) of each record, in the order given; fastest in the order of `self.records`."""
        ...


def split_of(key: str) -> Split:
    """90 / 5 / 5 by a hash of the key: adding files never moves the ones that were there."""
    u = _hash(key, "split")
    return "train" if u < 0.90 else "val" if u < 0.95 else "test"


def choose(records: Sequence[Record], split: Split | None, limit: int | None = None) -> list[Record]:
    """The records of one split, at most `limit` of them (a subset drawn by hash, in stored order).

    Splits that the data declares are kept; a missing one is drawn from its train part. With very few
    images a drawn split may come out empty: it is then given the image nearest to it in hash order.
    """
    chosen = list(records)
    if split is not None and records:
        declared = {r.split for r in records if r.split}
        pool = [r for r in records if (r.split or "train") == "train"]
        drawn = {r.key: s for r in pool if (s := split_of(r.key)) not in declared - {"train"}}
        if len(pool) >= 3:
            by_hash = sorted(drawn, key=lambda k: _hash(k, "split"))
            for name, place in (("test", -1), ("val", -2)):
                if name not in declared and name not in drawn.values() and len(by_hash) >= 3:
                    drawn[by_hash[place]] = name  # type: ignore[assignment]
        chosen = [
            r
            for r in records
            if (r.split if r.split not in (None, "train") else drawn.get(r.key, "train")) == split
        ]
    if limit is not None and limit < len(chosen):
        if limit < 1:
            raise ValueError(f"limit is {limit}: at least 1, or None for all")
        kept = {r.key for r in sorted(chosen, key=lambda r: _hash(r.key, "limit"))[:limit]}
        chosen = [r for r in chosen if r.key in kept]
    return chosen


class FolderSource:
    """Image files below a folder, symbolic links followed, hidden files and folders left out.

    - `images/` and `masks/` with equal stems: a labelled segmentation set.
    - `train/` with perhaps `val/` and `test/`: its own splits, each laid out like a folder.
    - every image below one of several sub-folders: the sub-folder's name is its class.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise ValueError(f"{self.root} is {'not a folder' if self.root.exists() else 'not there'}")
        self.others: dict[str, int] = {}
        """Files that are no images, counted by extension."""
        self.unreadable: Sequence[tuple[str, str]] = []
        self.has_masks = False
        parts: dict[Split | None, Path] = {None: self.root}
        if (self.root / "train").is_dir():
            aliases: tuple[tuple[Split, str], ...] = (
                ("train", "train"),
                ("val", "val"),
                ("val", "valid"),
                ("val", "validation"),
                ("test", "test"),
            )
            parts = {split: self.root / name for split, name in aliases if (self.root / name).is_dir()}
        found = [entry for split, part in parts.items() for entry in self._list(split, part)]
        classes = {parents[0] if parents else None for _, parents, _, _ in found}
        self.class_names: tuple[str, ...] = ()
        if len(classes) > 1 and None not in classes and not self.has_masks:
            self.class_names = tuple(sorted(c for c in classes if c is not None))
        index = {name: i for i, name in enumerate(self.class_names)}
        records = []
        for split, parents, path, mask in found:
            size, changed = _stat(path)
            if mask is not None:
                changed = max(changed, _stat(mask)[1])
            records.append(
                Record(
                    key=unicodedata.normalize("NFC", path.relative_to(self.root).as_posix()),
                    where=(path, mask),
                    nbytes=size,
                    changed=changed,
                    label=index.get(parents[0]) if parents else None,
                    split=split,
                )
            )
        self.records: Sequence[Record] = sorted(records, key=lambda r: r.key)

    def _list(
        self, split: Split | None, part: Path
    ) -> Iterator[tuple[Split | None, tuple[str, ...], Path, Path | None]]:
        images, masks = part / "images", part / "masks"
        if not (images.is_dir() and masks.is_dir()):
            for path in self._walk(part):
                yield split, path.relative_to(part).parts[:-1], path, None
            return
        self.has_masks = True
        by_stem = {path.relative_to(masks).with_suffix(""): path for path in self._walk(masks)}
        for path in self._walk(images):
            yield split, (), path, by_stem.get(path.relative_to(images).with_suffix(""))

    def _walk(self, top: Path) -> Iterator[Path]:
        seen: set[tuple[int, int]] = set()

        def failed(error: OSError) -> None:
            self.unreadable = (*self.unreadable, (str(error.filename), os.strerror(error.errno or 0).lower()))

        for here, folders, files in os.walk(top, followlinks=True, onerror=failed):
            status = os.stat(here)
            if (status.st_dev, status.st_ino) in seen:  # a link back to a folder we came through
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__MACOSX")
            for name in sorted(files):
                if name.startswith("."):
                    continue
                suffix = PurePosixPath(name).suffix.lower()
                if suffix in EXTENSIONS:
                    yield Path(here, name)
                else:
                    self.others[suffix] = self.others.get(suffix, 0) + 1

    def read(self, records: Iterable[Record]) -> Iterator[tuple[Encoded, Encoded | None]]:
        for record in records:
            yield record.where


class ParquetSource:
    """Rows of parquet files with encoded images, as the `datasets` library writes them.

    Args:
        paths: a file, a folder of `*.parquet`, or a glob pattern.
        image_column: a binary column, or a struct with a `bytes` field; found by itself if there is one.
        label_column: an integer or string column; `label` if there is one.
    """

    has_masks = False
    unreadable: Sequence[tuple[str, str]] = ()

    def __init__(
        self,
        paths: str | os.PathLike[str],
        image_column: str | None = None,
        label_column: str | None = None,
    ) -> None:
        pq = _optional("pyarrow.parquet", "parquet files", "data")
        self.files = _expand(paths, ".parquet")
        try:
            opened = [pq.ParquetFile(file) for file in self.files]
        except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
            raise ValueError(f"{paths} is not readable as parquet: {error}") from error
        schema = opened[0].schema_arrow
        self.image_column = image_column or _image_column(schema, self.files[0])
        names = schema.names
        if label_column is None:
            label_column = next((c for c in ("label", "labels", "class", "fine_label") if c in names), None)
        for column in (self.image_column, label_column):
            if column is not None and column not in names:
                raise ValueError(f"{self.files[0]} has no column {column!r}; it has {', '.join(names)}")
        values: list[Any] = []
        if label_column:
            for file in opened:
                values += file.read(columns=[label_column])[label_column].to_pylist()
        labels, self.class_names = _labels(values, _hub_class_names(schema, label_column))
        records: list[Record] = []
        for file, parquet in zip(self.files, opened, strict=True):
            size, changed = _stat(file)
            for row in range(parquet.metadata.num_rows):
                records.append(
                    Record(
                        key=f"{file.name}:{row}",
                        where=(file, row),
                        nbytes=size,
                        changed=changed,
                        label=labels[len(records)] if labels else None,
                    )
                )
            parquet.close()
        self.records: Sequence[Record] = records

    def read(self, records: Iterable[Record]) -> Iterator[tuple[Encoded, Encoded | None]]:
        pq = _optional("pyarrow.parquet", "parquet files", "data")
        file, parquet, groups = None, None, None
        first, column = 0, None  # the row group at hand: its first row and its images
        for record in records:
            path, row = record.where
            if path != file:
                file, parquet, column = path, pq.ParquetFile(path), None
                sizes = [parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)]
                groups = np.concatenate([[0], np.cumsum(sizes)])
            assert parquet is not None
            assert groups is not None
            if column is None or not first <= row < first + len(column):
                group = int(np.searchsorted(groups, row, side="right")) - 1
                column = parquet.read_row_group(group, columns=[self.image_column])[self.image_column]
                first = int(groups[group])
            value = column[row - first].as_py()
            if isinstance(value, dict):
                value = value.get("bytes")
            yield value if isinstance(value, bytes) else b"", None


class TarSource:
    """Webdataset shards: tar files whose members share a key up to the first dot of their name.

    An image member is `KEY.jpg` (or another image extension); `KEY.cls` holds its class as a decimal
    number; `KEY.mask.png` or `KEY.seg.png` its mask. Other members are left alone. Members that
    hold pickles make the whole shard suspect: it is refused.
    """

    unreadable: Sequence[tuple[str, str]] = ()
    PICKLES = frozenset({"pyd", "pickle", "pkl", "pck", "pth", "pt", "joblib", "dill"})

    def __init__(self, paths: str | os.PathLike[str]) -> None:
        self.files = _expand(paths, ".tar")
        records: list[Record] = []
        self.class_names: tuple[str, ...] = ()
        labels: dict[str, int] = {}
        for file in self.files:
            records += self._index(file, labels)
        self.has_masks = any(r.where[1] is not None for r in records)
        if labels:
            numbers, self.class_names = _labels([labels.get(r.key) for r in records], ())
            if numbers:
                records = [replace(r, label=n) for r, n in zip(records, numbers, strict=True)]
        self.records: Sequence[Record] = records

    def _index(self, file: Path, labels: dict[str, int]) -> list[Record]:
        images: dict[str, tuple[int, int]] = {}
        masks: dict[str, tuple[int, int]] = {}
        try:
            with tarfile.open(file, "r:") as tar:
                for member in tar:
                    folder, _, name = member.name.rpartition("/")
                    stem, _, extension = name.partition(".")
                    extension = extension.lower()
                    if extension.rpartition(".")[2] in self.PICKLES:
                        raise ValueError(
                            f"{file} holds a pickle ({member.name}), which could run code when read: "
                            "write the shard again without it"
                        )
                    if not member.isreg() or member.issparse():
                        continue
                    key = f"{file.name}:{folder}/{stem}" if folder else f"{file.name}:{stem}"
                    place = (member.offset_data, member.size)
                    if extension in ("mask.png", "seg.png"):
                        masks[key] = place
                    elif f".{extension}" in EXTENSIONS:
                        images[key] = place
                    elif extension == "cls" and member.size <= 32:
                        stream = tar.extractfile(member)
                        text = stream.read() if stream else b""
                        if not text.strip().isdigit():
                            raise ValueError(f"{file}: {member.name} holds {text!r}, not a class number")
                        labels[key] = int(text)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise ValueError(
                f"{file} is not readable as an uncompressed tar file ({error}); "
                "unpack compressed archives and give the folder"
            ) from error
        changed = _stat(file)[1]
        return [
            Record(key, (file, masks.get(key), *place), place[1], changed) for key, place in images.items()
        ]

    def read(self, records: Iterable[Record]) -> Iterator[tuple[Encoded, Encoded | None]]:
        stream, opened = None, None
        try:
            for record in records:
                file, mask, offset, size = record.where
                if file != opened:
                    if stream is not None:
                        stream.close()
                    stream, opened = Path(file).open("rb"), file  # noqa: SIM115
                assert stream is not None
                stream.seek(offset)
                image = stream.read(size)
                found = None
                if mask is not None:
                    stream.seek(mask[0])
                    found = stream.read(mask[1])
                yield image, found
        finally:
            if stream is not None:
                stream.close()


class HubSource:
    """A data set of the Hugging Face hub (or a local folder in its layout), read by `datasets`.

    `name` may carry a configuration: `user/name:config`. Splits named train, validation and test
    are kept; others are left alone unless there is no train.
    """

    has_masks = False
    unreadable: Sequence[tuple[str, str]] = ()

    def __init__(self, name: str) -> None:
        datasets = _optional("datasets", f"hf:{name}", "data")
        path, _, config = name.partition(":")
        try:
            loaded = datasets.load_dataset(path, config or None)
        except Exception as error:  # its own errors, those of requests and those of fsspec
            raise ValueError(f"hf:{name} could not be loaded: {error}") from error
        own: dict[str, Split] = {"train": "train", "validation": "val", "val": "val", "test": "test"}
        chosen = {s: d for s, d in loaded.items() if s in own} if "train" in loaded else dict(loaded)
        records: list[Record] = []
        self.class_names: tuple[str, ...] = ()
        self._tables: dict[str, tuple[Any, str]] = {}
        values: list[Any] = []
        names: tuple[str, ...] = ()
        for part, table in chosen.items():
            columns = [c for c, f in table.features.items() if isinstance(f, datasets.Image)]
            if not columns:
                raise ValueError(f"hf:{name} has no image column; it has {', '.join(table.features)}")
            labelled = next(
                (c for c in ("label", "labels", "class", "fine_label") if c in table.features), None
            )
            if labelled:
                names = tuple(getattr(table.features[labelled], "names", None) or ())
                values += list(table[labelled])
            self._tables[part] = (table.cast_column(columns[0], datasets.Image(decode=False)), columns[0])
            mark = int(hashlib.sha256(str(table._fingerprint).encode()).hexdigest()[:15], 16)
            records += [
                Record(
                    f"{part}:{row}", (part, row), mark, 0, None, own.get(part) if "train" in chosen else None
                )
                for row in range(len(table))
            ]
        if len(values) == len(records):
            labels, self.class_names = _labels(values, names)
            if labels:
                records = [replace(r, label=n) for r, n in zip(records, labels, strict=True)]
        self.records: Sequence[Record] = records

    def read(self, records: Iterable[Record]) -> Iterator[tuple[Encoded, Encoded | None]]:
        for record in records:
            part, row = record.where
            table, column = self._tables[part]
            value = table[row][column]
            yield value["bytes"] or value["path"] or b"", None


# ----------------------------------------------------------------------------------------- images


class Squares:
    """Ready pixels as a `Dataset`: (N, H, W, C) uint8, with (N,) labels and (N, H, W) masks perhaps."""

    def __init__(
        self,
        pixels: np.ndarray,
        *,
        fingerprint: str,
        labels: np.ndarray | None = None,
        masks: np.ndarray | None = None,
        class_names: tuple[str, ...] = (),
    ) -> None:
        _, height, width, channels = pixels.shape
        self.shape = (channels, height, width)
        self.class_names, self.num_classes = class_names, len(class_names) or None
        self.fingerprint = fingerprint
        self._pixels, self._labels, self._masks = pixels, labels, masks

    def __len__(self) -> int:
        return len(self._pixels)

    def batch(self, indices: np.ndarray) -> Batch:
        """The samples of (B,) int64 indices, in that order; `masks` and `labels` where the data has them."""
        rows = self._at(indices)
        return Batch(
            x0=to_unit(self._pixels[rows]),
            labels=None if self._labels is None else torch.from_numpy(self._labels[rows].astype(np.int64)),
            masks=None if self._masks is None else torch.from_numpy(self._masks[rows].astype(np.int64)),
        )

    def _at(self, indices: np.ndarray) -> np.ndarray:
        """Rows of the arrays that hold these samples."""
        indices = np.asarray(indices, dtype=np.int64)
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"indices {indices.min()}..{indices.max()} of a data set of {len(self)}")
        return indices


_Decoded = tuple[np.ndarray, np.ndarray | None, list[tuple[int, str]]]
"""Squares, masks, and (row, reason) of the bad rows, whose squares stay black and unused."""


class StoredImages(Squares):
    """A source's images as a `Dataset`: decoded once, bad files left out.

    Args:
        source: where the encoded images are.
        size: height and width of the squares, pixels.
        channels: 3 for colour, 1 for grey.
        split: keep only this split; None keeps every image.
        limit: keep at most this many.
        background: 0..255 RGB under transparent pixels.
        cache: folder for decoded squares, `cache_folder()` by default.

    Attributes:
        keys: the name of each sample within its source.
        bad: (name, reason) of each file that was left out.

    Raises:
        ValueError: no images, more than `BAD_LIMIT` bad files, or no room for the decoded squares.
    """

    def __init__(
        self,
        source: Source,
        size: int,
        channels: int = 3,
        *,
        split: Split | None = None,
        limit: int | None = None,
        background: tuple[int, int, int] = (255, 255, 255),
        cache: Path | None = None,
        budget: int = MEMORY_BUDGET,
        name: str = "",
    ) -> None:
        if channels not in (1, 3):
            raise ValueError(f"channels is {channels}: use 3 for colour or 1 for grey")
        if size < 1:
            raise ValueError(f"size is {size}: a number of pixels")
        if not source.records:
            raise ValueError(f"no images in {name}: looked for {', '.join(sorted(EXTENSIONS))}")
        records = choose(source.records, split, limit)
        if not records:
            raise ValueError(
                f"the {split} split of {name} is empty ({len(source.records)} images in all): add images, "
                "or make sub-folders train, val and test"
            )
        self.shape = (channels, size, size)
        self._source, self._background, self._budget, self._name = source, background, budget, name

        digest = hashlib.sha256(json.dumps([DECODER_VERSION, size, channels, background]).encode())
        stamps = hashlib.sha256(PIL.__version__.encode())
        for record in records:
            digest.update(_bytes(f"{record.key}\0{record.nbytes}\0{record.label}\n"))
            stamps.update(_bytes(f"{record.key}\0{record.changed}\n"))
        fingerprint = digest.hexdigest()[:16]

        place = (cache or cache_folder()) / "decoded" / f"{fingerprint}-{stamps.hexdigest()[:8]}"
        pixels, masks, bad = self._decoded(records, place)
        unusable = {row for row, _ in bad}
        self.bad = tuple(source.unreadable) + tuple((_name_of(records[row]), why) for row, why in bad)
        self._report(len(records))
        self._rows = np.array([row for row in range(len(records)) if row not in unusable], dtype=np.int64)
        self.keys = tuple(records[row].key for row in self._rows)
        labels = np.array([r.label for r in records], dtype=np.int64) if source.class_names else None
        super().__init__(
            pixels, fingerprint=fingerprint, labels=labels, masks=masks, class_names=source.class_names
        )

    def __len__(self) -> int:
        return len(self._rows)

    def _at(self, indices: np.ndarray) -> np.ndarray:
        return self._rows[super()._at(indices)]

    def _report(self, total: int) -> None:
        if not self.bad:
            return
        shown = "\n".join(f"  {name}: {reason}" for name, reason in self.bad[:20])
        more = f"\n  and {len(self.bad) - 20} more" if len(self.bad) > 20 else ""
        count = f"{len(self.bad)} of {total} files of {self._name} cannot be used"
        if len(self.bad) > BAD_LIMIT * total:
            raise ValueError(
                f"{count}, over the limit of {BAD_LIMIT:.0%}. Mend or remove them "
                f"(`pellucid doctor` lists them all):\n{shown}{more}"
            )
        _log.warning("%s and are left out:\n%s%s", count, shown, more)

    def _decoded(self, records: Sequence[Record], place: Path) -> _Decoded:
        channels, size, _ = self.shape
        shapes: dict[str, tuple[int, ...]] = {"pixels": (len(records), size, size, channels)}
        if self._source.has_masks:
            shapes["masks"] = (len(records), size, size)
        nbytes = sum(int(np.prod(shape)) for shape in shapes.values())
        fits = nbytes <= self._budget
        if len(records) >= CACHE_FROM or not fits:
            try:
                if not (kept := _load(place, shapes, in_memory=fits)):
                    self._write(records, place, shapes, nbytes)
                    kept = _load(place, shapes, in_memory=fits)
                if kept:
                    return kept
            except OSError as error:
                if not fits:
                    raise ValueError(
                        f"{nbytes / 2**30:.1f} GiB of decoded images do not fit in {place.parent} ({error}): "
                        "set PELLUCID_CACHE to a folder with more room, or ask for a smaller size or limit"
                    ) from error
                _log.warning("decoded images are not kept for the next start: %s", error)
        arrays = {key: np.zeros(shape, dtype=np.uint8) for key, shape in shapes.items()}
        bad = self._fill(records, arrays["pixels"], arrays.get("masks"))
        return arrays["pixels"], arrays.get("masks"), bad

    def _write(
        self, records: Sequence[Record], place: Path, shapes: dict[str, tuple[int, ...]], nbytes: int
    ) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        for stale in place.parent.glob("*.part-*"):  # left by runs that were killed
            if time.time() - _stat(stale)[1] / 1e9 > 86_400:
                shutil.rmtree(stale, ignore_errors=True)
        free = shutil.disk_usage(place.parent).free
        if nbytes + (64 << 20) > free:
            raise OSError(f"{free / 2**30:.1f} GiB free")
        part = place.with_name(f"{place.name}.part-{os.getpid()}")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            arrays = {
                key: np.lib.format.open_memmap(part / f"{key}.npy", mode="w+", dtype=np.uint8, shape=shape)
                for key, shape in shapes.items()
            }
            bad = self._fill(records, arrays["pixels"], arrays.get("masks"))
            for array in arrays.values():
                array.flush()
            (part / "bad.json").write_text(json.dumps(bad))
            try:
                part.rename(place)
            except OSError:
                if not (place / "bad.json").exists():  # else another process was first, with the same squares
                    shutil.rmtree(place, ignore_errors=True)
                    part.rename(place)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _fill(
        self, records: Sequence[Record], pixels: np.ndarray, masks: np.ndarray | None
    ) -> list[tuple[int, str]]:
        work = partial(
            _square,
            size=self.shape[1],
            channels=self.shape[0],
            background=self._background,
            masked=masks is not None,
        )
        bad: list[tuple[int, str]] = []
        encoded = self._source.read(records)
        told = time.monotonic()
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            row = 0
            while chunk := list(islice(encoded, 256)):  # a bound on the encoded bytes held at once
                for square, mask, reason in pool.map(work, chunk):
                    if reason is not None:
                        bad.append((row, reason))
                    else:
                        pixels[row] = square
                        if masks is not None:
                            masks[row] = mask
                    row += 1
                if time.monotonic() - told > 10:
                    _log.info("decoded %d of %d images", row, len(records))
                    told = time.monotonic()
        return bad


class ImageFolder(StoredImages):
    """The images below a folder; see `FolderSource` for what its sub-folders mean."""

    def __init__(self, root: str | os.PathLike[str], size: int, channels: int = 3, **options: Any) -> None:
        super().__init__(FolderSource(root), size, channels, name=os.fspath(root), **options)


class ParquetImages(StoredImages):
    """The images in parquet files; see `ParquetSource`. Needs pyarrow."""

    def __init__(self, paths: str | os.PathLike[str], size: int, channels: int = 3, **options: Any) -> None:
        super().__init__(ParquetSource(paths), size, channels, name=os.fspath(paths), **options)


class WebShards(StoredImages):
    """The images in webdataset shards; see `TarSource`."""

    def __init__(self, paths: str | os.PathLike[str], size: int, channels: int = 3, **options: Any) -> None:
        super().__init__(TarSource(paths), size, channels, name=os.fspath(paths), **options)


class HubImages(StoredImages):
    """The images of a data set of the Hugging Face hub; see `HubSource`. Needs `datasets`."""

    def __init__(self, name: str, size: int, channels: int = 3, **options: Any) -> None:
        super().__init__(HubSource(name), size, channels, name=f"hf:{name}", **options)


def _square(
    encoded: tuple[Encoded, Encoded | None],
    *,
    size: int,
    channels: int,
    background: tuple[int, int, int],
    masked: bool,
) -> tuple[np.ndarray | None, np.ndarray | None, str | None]:
    """(square, mask, None), or (None, None, reason)."""
    image, mask = encoded
    try:
        if not masked:
            # twice the pixels that are needed leave the antialiasing to the resize
            return (
                prepare(decode(image, background=background, at_least=2 * size), size, channels),
                None,
                None,
            )
        if mask is None:
            raise BadImage("no mask of the same name")
        picture, regions = decode(image, background=background), decode_mask(mask)
        if picture.size != regions.size:
            raise BadImage("image is {}x{} and mask {}x{}".format(*picture.size, *regions.size))
        return prepare(picture, size, channels), prepare_mask(regions, size), None
    except BadImage as error:
        return None, None, error.reason


def _load(place: Path, shapes: dict[str, tuple[int, ...]], *, in_memory: bool) -> _Decoded | None:
    """Squares that an earlier start has kept, or None where they are missing or not whole."""
    try:
        arrays = {
            key: np.load(place / f"{key}.npy", mmap_mode=None if in_memory else "r", allow_pickle=False)
            for key in shapes
        }
        bad = [(int(row), str(reason)) for row, reason in json.loads((place / "bad.json").read_text())]
    except (OSError, ValueError, TypeError, EOFError):
        return None
    if any(arrays[key].shape != shape or arrays[key].dtype != np.uint8 for key, shape in shapes.items()):
        return None
    return arrays["pixels"], arrays.get("masks"), bad


def _hash(key: str, salt: str) -> float:
    """Uniform on [0, 1), the same on every machine."""
    return int.from_bytes(hashlib.sha256(_bytes(f"{salt}\0{key}")).digest()[:8], "big") / 2**64


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")  # file names need not be valid unicode


def _name_of(record: Record) -> str:
    return record.key.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _stat(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0  # a broken link: decoding says what is wrong with it
    return status.st_size, status.st_mtime_ns


def _expand(paths: str | os.PathLike[str], suffix: str) -> list[Path]:
    text = os.fspath(paths)
    if Path(text).is_dir():
        found = sorted(p for p in Path(text).iterdir() if p.suffix == suffix)
    elif Path(text).exists():
        found = [Path(text)]
    else:
        found = sorted(Path(p) for p in glob.glob(text))
    if not found:
        raise ValueError(f"no {suffix} file at {text}; give a file, a folder of them, or a pattern with *")
    return found


def _labels(values: Sequence[Any], names: tuple[str, ...]) -> tuple[list[int] | None, tuple[str, ...]]:
    """Class indices and names from stored labels; (None, ()) where there are none or some are missing."""
    if not values or any(not isinstance(v, int | str) or isinstance(v, bool) for v in values):
        return None, ()
    if all(isinstance(v, int) for v in values) and min(values) >= 0:
        return list(values), names if len(names) > max(values) else tuple(map(str, range(max(values) + 1)))
    found = tuple(sorted({str(v) for v in values}))
    return [found.index(str(v)) for v in values], found


def _image_column(schema: Any, file: Path) -> str:
    def holds_images(field: Any) -> bool:
        kind = str(field.type)
        return kind in ("binary", "large_binary") or (kind.startswith("struct") and "bytes: binary" in kind)

    columns = [field.name for field in schema if holds_images(field)]
    named = [c for c in columns if c in ("image", "img", "jpg", "png")]
    if len(columns) == 1 or named:
        return (named or columns)[0]
    raise ValueError(
        f"{file} has {len(columns)} columns that may hold images ({', '.join(columns) or 'none'}) among "
        f"{', '.join(schema.names)}: name the one with encoded images `image`"
    )


def _hub_class_names(schema: Any, column: str | None) -> tuple[str, ...]:
    """Class names as the `datasets` library notes them in a parquet file's metadata."""
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])
        return tuple(map(str, info["info"]["features"][column]["names"]))
    except (KeyError, TypeError, ValueError):
        return ()


def _optional(module: str, what: str, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # RuntimeError: a package that trips over another one
        raise ValueError(
            f"{what} need {module.split('.')[0]}: pip install 'pellucid[{extra}]' ({error})"
        ) from error
