"""Stored images -> batches.

Each image is decoded once, to a size x size uint8 square. The squares are held in memory up to
`MEMORY_BUDGET`, beyond it in a memory-mapped file of the cache folder. A bad file is left out with
one warning for all of them; more than `BAD_LIMIT` of them stop the run with the list.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

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
from pellucid.data.sources import FolderSource, Record, Source, Split, key_bytes, limited, of_split
from pellucid.types import Attribute, Batch

__all__ = [
    "BadImage",
    "Dataset",
    "ImageFolder",
    "Split",
    "Squares",
    "StoredImages",
    "cache_folder",
    "decode",
    "prepare",
    "to_uint8",
    "to_unit",
]

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

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        """What a table says of every sample, where there is a table."""
        ...

    @property
    def table(self) -> np.ndarray | None:
        """That table: (N, m) int64 indices into the values of each attribute, -1 where it has none."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when the samples would."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray) -> Batch:
        """The samples of (B,) int64 indices, in that order."""
        ...


def to_unit(pixels: np.ndarray) -> Tensor:
    """(B, H, W, C) uint8 -> (B, C, H, W) float32 in [-1, 1]. 0 -> -1, 255 -> 1."""
    if pixels.dtype != np.uint8 or pixels.ndim != 4:
        raise ValueError(f"pixels are {pixels.dtype} {pixels.shape}: expected uint8 (B, H, W, C)")
    planes = torch.from_numpy(np.array(pixels.transpose(0, 3, 1, 2), order="C"))
    return planes.float().div_(127.5).sub_(1)  # exact at both ends


def to_uint8(x: Tensor) -> np.ndarray:
    """(B, C, H, W) floats, clamped to [-1, 1] -> (B, H, W, C) uint8. The inverse of `to_unit`."""
    planes = x.detach().float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return planes.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def cache_folder() -> Path:
    """Where decoded and fetched data is kept: $PELLUCID_CACHE, else ~/.cache/pellucid."""
    return Path(os.environ.get("PELLUCID_CACHE") or Path.home() / ".cache" / "pellucid")


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
        attributes: tuple[Attribute, ...] = (),
        table: np.ndarray | None = None,
    ) -> None:
        _, height, width, channels = pixels.shape
        self.shape = (channels, height, width)
        self.class_names, self.attributes, self.table = class_names, attributes, table
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
            attributes=None if self.table is None else torch.from_numpy(self.table[indices]),
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
        part = of_split(source.records, split)
        records = limited(part, limit)
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
            told = "" if record.values in ((), (record.label,)) else f"\0{record.values}"
            digest.update(key_bytes(f"{record.key}\0{record.mark}\0{record.label}{told}\n"))
            stamps.update(key_bytes(f"{record.where}\0{record.changed}\n"))
        fingerprint = digest.hexdigest()[:16]

        place = (cache or cache_folder()) / "decoded" / f"{fingerprint}-{stamps.hexdigest()[:8]}"
        pixels, masks, bad = self._decoded(records, place)
        unusable = {row for row, _ in bad}
        self.bad = tuple(source.unreadable) + tuple((_name_of(records[row]), why) for row, why in bad)
        # The share is that of the whole collection: one bad file in a small split is no reason to stop.
        self._report(len(records), allowed=BAD_LIMIT * len(source.records) * len(records) / len(part))
        self._rows = np.array([row for row in range(len(records)) if row not in unusable], dtype=np.int64)
        self._records = records
        self.keys = tuple(records[row].key for row in self._rows)
        labels = np.array([r.label for r in records], dtype=np.int64) if source.class_names else None
        super().__init__(
            pixels,
            fingerprint=fingerprint,
            labels=labels,
            masks=masks,
            class_names=source.class_names,
            attributes=source.attributes,
            table=np.array([records[r].values for r in self._rows]) if source.attributes else None,
        )

    def __len__(self) -> int:
        return len(self._rows)

    def headers(self, indices: np.ndarray) -> list[Header]:
        """What the files of (B,) indices say of themselves."""
        records = [self._records[row] for row in self._at(indices)]
        return [inspect(picture) for picture, _ in self._source.read(records)]

    def _at(self, indices: np.ndarray) -> np.ndarray:
        return self._rows[super()._at(indices)]

    def _report(self, total: int, allowed: float) -> None:
        if not self.bad:
            return
        shown = "\n".join(f"  {name}: {reason}" for name, reason in self.bad[:20])
        more = f"\n  and {len(self.bad) - 20} more" if len(self.bad) > 20 else ""
        count = f"{len(self.bad)} of {total} files of {self._name} cannot be used"
        if len(self.bad) > allowed or len(self.bad) >= total:
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
        if place.exists():  # damaged, or it would have been loaded
            shutil.rmtree(place)
        for stale in place.parent.glob("*.part-*"):  # left by runs that were killed
            if time.time() - stale.stat().st_mtime > 86_400:
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
            with suppress(OSError):  # another process was first, with the same squares
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


def _name_of(record: Record) -> str:
    return record.key.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
