"""What frozen networks say of every picture: computed once, kept in the cache folder, handed out with the batches.

    CACHE/derived/KEY/about.json   names, types, shapes, and the SHA-256 of each file
                      rows.npy     (R,) int64, increasing: row r is of sample rows[r] // 2, mirrored where odd
                      0.npy ...    (R, ...) float32, or int64 for whole numbers

KEY is a hash of everything that the values depend on, so that values of other pictures or other weights are
never taken for them. What is damaged or not whole is made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pellucid.config import fingerprint
from pellucid.data.images import MEMORY_BUDGET, Dataset, cache_folder
from pellucid.data.order import Order, mirror

Derive = Callable[[Tensor], Mapping[str, Tensor]]
"""Pictures (b, C, H, W) -> what is said of each, sample axis first."""

PART = 64
"""Pictures computed at a time; always the same, so that the same values come out."""
VERSION = 1
"""Raise it when the files change, so that older ones are made anew."""
ROOM = 64 << 20
"""Bytes of the disk that are left free."""


def asked_for(order: Order, steps: int, *, flip: bool, all_of_them: bool = False) -> np.ndarray:
    """Which samples some steps of an order ask for, over all ranks: (R,) int64, increasing.

    2 * index for a picture, 2 * index + 1 for its mirror image. From four epochs on nearly all are, and all are
    named, whatever the number of steps; and with `all_of_them`, where any sample may be another's partner.
    """
    seen = steps * order.batch_size
    if all_of_them or seen >= 4 * order.length:
        return np.arange(0, 2 * order.length, 1 if flip else 2, dtype=np.int64)
    at_once = Order(order.length, seen, order.seed)
    rows = 2 * at_once.indices(0)
    return np.unique(rows + at_once.coins(0, salt=0) if flip else rows)


def place_for(key: Sequence[Any], rows: np.ndarray) -> Path:
    """Where values are kept that depend on `key` (JSON values) and are of `rows`."""
    rows_hash = hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()
    return cache_folder() / "derived" / fingerprint([VERSION, PART, list(key), rows_hash])


def pictures(dataset: Dataset, rows: np.ndarray) -> Tensor:
    """The pictures of some rows, mirrored where they are odd. (R, C, H, W)."""
    return mirror(dataset.batch(rows // 2).x0, torch.from_numpy(rows % 2 == 1))


class Derived:
    """A table of what is known of samples and their mirror images; get one from `open`."""

    def __init__(self, rows: np.ndarray, columns: Mapping[str, np.ndarray]) -> None:
        self.rows, self.columns = rows, columns

    @classmethod
    def open(
        cls, place: Path, rows: np.ndarray, *, check: bool, budget: int = MEMORY_BUDGET
    ) -> Derived | None:
        """What was written to a place, in memory up to `budget` bytes; None where it is not there, or not whole.

        `check` compares every file with its hash.
        """
        try:
            about = json.loads((place / "about.json").read_text())
            if check and any(_hash(place / name) != told for name, told in about["files"].items()):
                return None
            nbytes = sum((place / file).stat().st_size for file in about["columns"].values())
            mode = None if nbytes <= budget else "r"
            columns = {
                name: np.load(place / file, mmap_mode=mode, allow_pickle=False)  # type: ignore[arg-type]
                for name, file in about["columns"].items()
            }
            kept = np.load(place / "rows.npy", allow_pickle=False)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError):
            return None
        if not np.array_equal(kept, rows) or any(len(c) != len(rows) for c in columns.values()):
            return None
        return cls(kept, columns)

    def of(self, indices: np.ndarray, mirrored: np.ndarray) -> dict[str, Tensor]:
        """What is known of samples: (B,) int64 indices, and (B,) bool whether it is of the mirror image.

        Raises IndexError for a sample of which nothing was derived.
        """
        wanted = 2 * indices + mirrored
        at = np.searchsorted(self.rows, wanted).clip(max=len(self.rows) - 1)
        if not np.array_equal(self.rows[at], wanted):
            lost = wanted[self.rows[at] != wanted][0]
            raise IndexError(f"nothing was derived of sample {lost // 2}{', mirrored' * bool(lost % 2)}")
        return {name: torch.from_numpy(np.array(column[at])) for name, column in self.columns.items()}


def write(
    place: Path,
    rows: np.ndarray,
    dataset: Dataset,
    derive: Derive,
    *,
    each: Callable[[int], object] = lambda done: None,
) -> None:
    """Compute what is said of some rows of a data set, in one pass, and keep it at a place: all of it or nothing.

    `each` is called after every `PART` with the number of rows done; what it raises ends the work.

    Raises ValueError where the disk has no room for it, or `derive` does not say the same of every picture.
    """
    root = place.parent
    try:
        root.mkdir(parents=True, exist_ok=True)
        for stale in root.glob("*.part-*"):  # left by runs that were killed
            if time.time() - stale.stat().st_mtime > 86_400:
                shutil.rmtree(stale, ignore_errors=True)
        part = root / f"{place.name}.part-{os.getpid()}"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        try:
            _fill(part, rows, dataset, derive, each)
            if place.exists():  # damaged, or it would have been opened
                shutil.rmtree(place)
            with suppress(OSError):  # another process was first, with the same values
                part.rename(place)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise ValueError(
            f"what is derived of {len(rows)} pictures cannot be kept in {root}: {error.strerror or error}. Make room "
            f"there, or set PELLUCID_CACHE to another folder, and start again: the run continues"
        ) from error


def _fill(
    part: Path, rows: np.ndarray, dataset: Dataset, derive: Derive, each: Callable[[int], object]
) -> None:
    np.save(part / "rows.npy", rows, allow_pickle=False)
    said = _said(rows, dataset, derive)
    first = next(said)
    columns = {name: f"{i}.npy" for i, name in enumerate(first)}
    need = sum(value[:1].nbytes for value in first.values()) * len(rows) + ROOM
    free = shutil.disk_usage(part).free
    if need > free:
        raise OSError(f"it takes {(need >> 20) + 1} MiB, and {free >> 20} are left")
    with ExitStack() as stack:
        files = {name: stack.enter_context((part / file).open("wb")) for name, file in columns.items()}
        for name, value in first.items():
            head = {"descr": value.dtype.str, "fortran_order": False, "shape": (len(rows), *value.shape[1:])}
            np.lib.format.write_array_header_1_0(files[name], head)
        done, values = 0, first
        while True:  # written as it comes, not mapped: a full disk is then an error and not a signal
            for name, file in files.items():
                file.write(values[name].tobytes())
            done += len(next(iter(values.values())))
            each(done)
            following = next(said, None)
            if following is None:
                break
            values = following
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    hashes = {name: _hash(part / name) for name in ("rows.npy", *columns.values())}
    (part / "about.json").write_text(json.dumps({"columns": columns, "files": hashes}, indent=1) + "\n")


def _said(rows: np.ndarray, dataset: Dataset, derive: Derive) -> Iterator[dict[str, np.ndarray]]:
    """What is said of the rows, a part at a time; ValueError where it is not alike for all parts."""
    alike: dict[str, tuple[np.dtype, tuple[int, ...]]] | None = None
    for start in range(0, len(rows), PART):
        here = rows[start : start + PART]
        found = {
            name: (value.float() if value.is_floating_point() else value.long()).cpu().contiguous().numpy()
            for name, value in derive(pictures(dataset, here)).items()
        }
        kinds = {name: (value.dtype, value.shape[1:]) for name, value in found.items()}
        if not found or any(len(v) != len(here) for v in found.values()) or kinds != (alike or kinds):
            told = {name: value.shape for name, value in found.items()}
            raise ValueError(
                f"of {len(here)} pictures {told} was derived; expected {alike or 'a row of each'}"
            )
        alike = kinds
        yield found


def _hash(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
