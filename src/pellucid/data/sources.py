"""Where encoded images are kept: a folder, parquet files, web shards, the Hugging Face hub.

What is trusted: bytes of images, and labels that are numbers or words. Nothing here reads a pickle,
follows a path found inside a file, or runs a decoder chosen by one.
"""

from __future__ import annotations

import glob
import hashlib
import importlib
import json
import os
import tarfile
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Protocol

import numpy as np

from pellucid.data.attributes import of_folder
from pellucid.data.decode import EXTENSIONS, Encoded
from pellucid.types import Attribute

Split = Literal["train", "val", "test"]


@dataclass(frozen=True, slots=True)
class Record:
    """One encoded image of a source."""

    key: str
    """Unique within the source and the same on every machine; splits are drawn by it."""
    where: Any
    """How the source finds it."""
    mark: int = 0
    """Differs when the contents do, and is the same on every machine: a file's size, a table's hash."""
    changed: int = 0
    """Modification time, ns; decides whether a cached copy is stale."""
    label: int | None = None
    split: Split | None = None
    """Where the data itself says which split it belongs to."""
    values: tuple[int, ...] = ()
    """Index of the value of each attribute of the source, -1 where it is not known."""


class Source(Protocol):
    """Encoded images in some kind of storage."""

    records: Sequence[Record]
    class_names: tuple[str, ...]
    attributes: tuple[Attribute, ...]
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


def splits(records: Sequence[Record]) -> list[Split]:
    """The split of each record.

    What the data declares is kept; a split that it does not declare is drawn by hash from what is
    left, its train part or everything. Where a draw over three images or more leaves a split empty,
    the image nearest to it in hash order goes there.
    """
    declared = {r.split for r in records} - {None, "train"}
    found: list[Split] = [r.split or "train" for r in records]
    pool = [i for i, split in enumerate(found) if split == "train"]
    for i in pool:
        drawn = split_of(records[i].key)
        if drawn not in declared:
            found[i] = drawn
    if len(pool) >= 3:
        pool.sort(key=lambda i: _hash(records[i].key, "split"))
        places: tuple[tuple[Split, int], ...] = (("test", -1), ("val", -2), ("train", 0))
        for split, place in places:
            if split not in found:
                found[pool[place]] = split
    return found


def of_split(records: Sequence[Record], split: Split | None) -> Sequence[Record]:
    """The records of one split, in stored order; all of them for None."""
    if split is None:
        return records
    return [r for r, s in zip(records, splits(records), strict=True) if s == split]


def limited(records: Sequence[Record], limit: int | None) -> Sequence[Record]:
    """At most `limit` records, in stored order: the same subset on every machine, drawn by hash."""
    if limit is None or limit >= len(records):
        return records
    if limit < 1:
        raise ValueError(f"limit is {limit}: at least 1, or None for all")
    kept = {r.key for r in sorted(records, key=lambda r: _hash(r.key, "limit"))[:limit]}
    return [r for r in records if r.key in kept]


class FolderSource:
    """Image files below a folder, symbolic links followed; hidden files and folders, and runs, left out.

    - `images/` and `masks/` with equal stems, below equal sub-folders if any: a labelled segmentation set.
    - `train/` with perhaps `val/` and `test/`: its own splits, each laid out like a folder.
    - every image below one of several sub-folders (of `images/`, where there is one): its name is the class.
    - attributes: of `attributes.csv` beside the images; else of the sub-folders, where all images lie equally deep:
      `red/left/1.png` has two, and `colour=red/side=left/1.png` names them (see `data.attributes`).
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).absolute()
        if not self.root.is_dir():
            raise ValueError(f"{root} is {'not a folder' if self.root.exists() else 'not there'}")
        self.others: dict[str, int] = {}
        """Files that are no images, counted by extension."""
        self.runs = 0
        """Folders below that hold a run, whose pictures are a model's."""
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
        if len(classes) > 1 and None not in classes:
            self.class_names = tuple(sorted(c for c in classes if c is not None))
        index = {name: i for i, name in enumerate(self.class_names)}
        records = []
        for split, parents, path, mask in found:
            size, changed = _stat(path)
            if mask is not None:
                mask_size, mask_changed = _stat(mask)
                size, changed = size + mask_size, max(changed, mask_changed)
            records.append(
                Record(
                    key=unicodedata.normalize("NFC", path.relative_to(self.root).as_posix()),
                    where=(path, mask),
                    mark=size,
                    changed=changed,
                    label=index.get(parents[0]) if parents else None,
                    split=split,
                )
            )
        records.sort(key=lambda r: r.key)
        folders = {path: parents for _, parents, path, _ in found}
        self.attributes, table = of_folder(self.root, {r.where[0]: folders[r.where[0]] for r in records})
        self.records: Sequence[Record] = [
            replace(record, values=tuple(row)) for record, row in zip(records, table.tolist(), strict=True)
        ]

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
            inside = path.relative_to(images)
            yield split, inside.parts[:-1], path, by_stem.get(inside.with_suffix(""))

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
            is_run = "config.json" in files and ("checkpoints" in folders or "log.jsonl" in files)
            if is_run and Path(here) != top:
                self.runs += 1
                folders.clear()
                continue
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
    attributes: tuple[Attribute, ...] = ()
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
                        mark=size,
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

    attributes: tuple[Attribute, ...] = ()
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
                # tarfile takes a cut or damaged header for the end; a true end is a block of zeros
                with file.open("rb") as raw:
                    raw.seek(tar.offset)
                    if raw.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                        raise tarfile.ReadError("it is cut short or damaged")
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
    attributes: tuple[Attribute, ...] = ()
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
    return [path.absolute() for path in found]


def _labels(values: Sequence[Any], names: tuple[str, ...]) -> tuple[list[int] | None, tuple[str, ...]]:
    """Class indices and names from stored labels; (None, ()) where some are missing or negative."""
    if not values:
        return None, ()
    if all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values):
        return list(values), names if len(names) > max(values) else tuple(map(str, range(max(values) + 1)))
    if all(isinstance(v, str) for v in values):
        index = {name: i for i, name in enumerate(sorted(set(values)))}
        return [index[v] for v in values], tuple(index)
    return None, ()


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
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # RuntimeError: a package that trips over another one
        raise ValueError(
            f"{what} need {module.split('.')[0]}: pip install 'pellucid[{extra}]' ({error})"
        ) from error


def _hash(key: str, salt: str) -> float:
    """Uniform on [0, 1), the same on every machine."""
    return int.from_bytes(hashlib.sha256(key_bytes(f"{salt}\0{key}")).digest()[:8], "big") / 2**64


def key_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")  # file names need not be valid unicode


def _stat(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0  # a broken link: decoding says what is wrong with it
    return status.st_size, status.st_mtime_ns
