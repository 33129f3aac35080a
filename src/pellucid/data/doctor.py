"""What is wrong with a collection of images, found before training starts: as pictures, or as views of a scene."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from pellucid.data.attributes import TABLE
from pellucid.data.catalog import open_source
from pellucid.data.decode import EXTENSIONS, BadImage, Encoded, Header, decode, decode_mask, inspect
from pellucid.data.groups import Groups
from pellucid.data.images import BAD_LIMIT
from pellucid.data.sources import FolderSource, Source, splits
from pellucid.data.views import TABLES, ViewsSource, has_cameras, normalised, one_focal

SPLITS = ("train", "val", "test")
_RARE = 4
"""The rarest values of an attribute that a report names."""
_ALIKE_BITS = 4
"""Two gradient hashes of 64 bits that differ in at most this many may be of one picture."""
_ALIKE_LEVELS = 6.0
"""And are, where their thumbnails differ by less than this on average, in levels of 0..255."""
_ALIKE_VIEWS = 2.0
"""Two views of one scene are nearly the same below this: neighbours may well differ by a few degrees alone."""
_BLURRED = 1 / 8
"""A view is blurred where its sharpness is below this share of the views' median."""
_SHARP_SIDE = 128
"""Pixels of the shorter side at which sharpness is measured; blur that is seen only above that does not matter."""
_FEW_VIEWS = 20
"""Views of a scene below which its shape is not well determined."""


@dataclass(frozen=True, kw_only=True)
class Viewpoints:
    """What matters of pictures that are views of one scene, taken by one camera. Files are named as in `Report`."""

    cameras: int | None
    """Frames with a sound camera; None where the folder has no table of cameras."""
    faults: list[tuple[str, str]]
    """(file, reason) of frames of the table that cannot be used; one is enough for training to refuse."""
    unnamed: list[str]
    """Pictures beside those of frames that no frame names."""
    sizes: dict[str, list[str]]
    """Files by size, "640x480", upright, the commonest size first."""
    turned: list[str]
    """Which EXIF turns upright."""
    clear: list[str]
    """With transparency, where others have none."""
    blurred: list[str]
    """Far less sharp than the others: variance of the Laplacian."""
    focal: float | None = None
    """In sides of the centre square, by EXIF, where pictures without cameras all have about the same."""
    alone: str = ""
    """Why all cameras together make no scene."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The findings of `examine`. Files are named by their path within the collection."""

    path: str
    size: int
    images: int
    """Image files found."""
    usable: int
    bad: list[tuple[str, str]]
    """(file, reason)."""
    formats: dict[str, int]
    modes: dict[str, int]
    """Pillow's names: RGB, RGBA, L, P, CMYK, I;16..."""
    width: tuple[int, int, int] | None
    """Smallest, median, largest, pixels."""
    height: tuple[int, int, int] | None
    tiny: list[str]
    """Shorter than `size` on a side: they are enlarged."""
    cropped: int
    """More than half of the picture lies outside the centre square."""
    rotated: int
    """Turned upright by EXIF."""
    transparent: int
    animated: int
    """Of which the first frame is used."""
    mislabelled: list[tuple[str, str]]
    """(file, what it really is)."""
    duplicates: list[list[str]]
    """Groups of files with equal contents."""
    alike: list[list[str]]
    """Groups of different files that look the same."""
    leaks: int
    """Groups of either kind whose members fall into different splits."""
    classes: dict[str, int]
    attributes: dict[str, dict[str, int]]
    """Of each attribute how many usable pictures have each value; "" counts those whose value is not known."""
    rowless: list[str]
    """Usable pictures of which the attributes say nothing at all."""
    splits: dict[str, int]
    masks: bool
    regions: dict[int, int]
    """For labelled segmentation: how many masks hold each region index."""
    others: dict[str, int]
    """Files that are no images, by extension."""
    runs: int
    """Folders that hold a run: none of their pictures is counted, or trained on."""
    environment: list[str]
    """Trouble with the installed packages."""
    views: Viewpoints | None = None
    """Where the pictures are views of one scene."""
    suggestions: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Training would start."""
        refused = self.views is not None and (bool(self.views.faults) or bool(self.views.alone))
        return self.usable > 0 and len(self.bad) <= BAD_LIMIT * self.images and not refused

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {**asdict(self), "ok": self.ok}

    def lines(self) -> list[str]:
        """The report for a terminal: facts, then trouble, then what to do."""
        out = [f"{self.path}: {self.images} images, {self.usable} usable at {self.size}x{self.size}"]
        if self.width and self.height:
            out.append("  width {} to {} (median {})".format(*(self.width[i] for i in (0, 2, 1))))
            out.append("  height {} to {} (median {})".format(*(self.height[i] for i in (0, 2, 1))))
        out.append(f"  formats {_counts(self.formats)}; modes {_counts(self.modes)}")
        notes = (
            (self.rotated, "turned upright by EXIF"),
            (self.transparent, "transparent, composited on white"),
            (self.animated, "animated, first frame used"),
            (self.cropped, "lose more than half to the centre crop"),
            (self.runs, "run folders passed over"),
        )
        out += [f"  {count} {text}" for count, text in notes if count]
        if self.classes:
            out.append(f"  classes {_counts(self.classes)}")
        for name, counts in self.attributes.items():
            known = {value: count for value, count in counts.items() if value}
            rare = sorted(known.items(), key=lambda item: item[1])[:_RARE]
            empty = f"; {counts['']} pictures without" if counts.get("") else ""
            out.append(f"  attribute {name}: {len(known)} values, the rarest {_counts(dict(rare))}{empty}")
        if self.masks:
            out.append(f"  masks with regions {_counts({str(k): v for k, v in self.regions.items()})}")
        out.append("  splits " + ", ".join(f"{name} {self.splits[name]}" for name in SPLITS))
        if self.others:
            out.append(f"  other files {_counts(self.others)}")
        out += _listed("cannot be used", [f"{name}: {why}" for name, why in self.bad])
        out += [] if self.views is None else _seen(self.views)
        out += _listed("are not what their names say", [f"{n} is {what}" for n, what in self.mislabelled])
        out += _listed("have no attributes: no row in the table, or an empty one", self.rowless)
        out += _listed(f"are smaller than {self.size} pixels", self.tiny)
        out += _listed("groups are exact copies", [_few(group, " = ") for group in self.duplicates])
        out += _listed("groups look nearly the same", [_few(group, " ~ ") for group in self.alike])
        out += [f"  {note}" for note in self.environment]
        out += [f"-> {suggestion}" for suggestion in self.suggestions]
        return out


def examine(path: str | os.PathLike[str], size: int = 64, *, views: bool = False) -> Report:
    """Read every image of a folder, parquet file, tar shard or `hf:NAME`, as training would.

    Args:
        path: what to examine.
        size: that training is meant for, pixels.
        views: whether the pictures are to be views of one scene; those of a folder with `transforms.json` always are.

    Raises ValueError where nothing is there to examine.
    """
    if size < 1:
        raise ValueError(f"size is {size}: a number of pixels")
    folder = Path(path).expanduser()
    posed = folder.is_dir() and has_cameras(folder)
    source = ViewsSource(folder, strict=False) if posed else open_source(os.fspath(path))
    views = views or posed
    records = source.records
    found: list[_Finding] = []
    encoded = source.read(records)
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        while chunk := list(islice(encoded, 256)):
            found += pool.map(partial(_look, size=size, masked=source.has_masks, sharp=views), chunk)
    names = [record.key for record in records]
    good = [i for i, f in enumerate(found) if f.reason is None]
    headers = {i: h for i in good if (h := found[i].header) is not None}

    drawn = splits(records)
    split = {i: drawn[i] for i in good}
    copies = _copies([(i, found[i].digest) for i in good])
    first = {i: group[0] for group in copies for i in group}  # exact copies count once among the alike
    once = [i for i in good if first.get(i, i) == i]
    alike = _same_views(once, found) if views else _alike(once, found)
    leaks = sum(len({split[i] for i in group}) > 1 for group in copies + alike)
    regions = Counter(r for i in good for r in found[i].regions)
    classes = Counter(source.class_names[label] for i in good if (label := records[i].label) is not None)

    report = Report(
        path=os.fspath(path),
        size=size,
        images=len(records),
        usable=len(good),
        bad=[
            *source.unreadable,
            *((names[i], f.reason) for i, f in enumerate(found) if f.reason is not None),
        ],
        formats=_sorted(Counter(h.format for h in headers.values())),
        modes=_sorted(Counter(h.mode for h in headers.values())),
        width=_spread([h.width for h in headers.values()]),
        height=_spread([h.height for h in headers.values()]),
        tiny=[names[i] for i, h in headers.items() if min(h.width, h.height) < size],
        cropped=sum(max(h.width, h.height) > 2 * min(h.width, h.height) for h in headers.values()),
        rotated=sum(h.rotated for h in headers.values()),
        transparent=sum(h.transparent for h in headers.values()),
        animated=sum(h.frames > 1 for h in headers.values()),
        mislabelled=[
            (names[i], h.format)
            for i, h in headers.items()
            if EXTENSIONS.get(PurePosixPath(names[i]).suffix.lower(), h.format) != h.format
        ],
        duplicates=[[names[i] for i in group] for group in copies],
        alike=[[names[i] for i in group] for group in alike],
        leaks=leaks,
        classes={name: classes[name] for name in source.class_names},
        attributes=_values(source, good),
        rowless=[names[i] for i in good if source.attributes and set(records[i].values) <= {-1}],
        splits={name: sum(s == name for s in split.values()) for name in SPLITS},
        masks=source.has_masks,
        regions=dict(sorted(regions.items())),
        others=_sorted(Counter(source.others)) if isinstance(source, FolderSource) else {},
        runs=source.runs if isinstance(source, FolderSource) else 0,
        environment=_environment(),
        views=_viewpoints(source, names, found, headers) if views else None,
    )
    report.suggestions.extend(_suggestions(report, source))
    learned_from = [i for i in good if split[i] == "train"]
    if len(source.attributes) > 1 and learned_from:
        try:
            table = np.array([records[i].values for i in learned_from])
            Groups(source.attributes, table, names=[names[i] for i in learned_from])
        except ValueError as error:
            report.suggestions.append(f"for gae: {error}")
    return report


def _values(source: Source, good: Sequence[int]) -> dict[str, dict[str, int]]:
    """How many of some pictures have each value of each attribute, and under "" how many have none, if any has not."""
    found = {}
    for column, attribute in enumerate(source.attributes):
        counts = Counter(source.records[i].values[column] for i in good)
        found[attribute.name] = {value: counts[k] for k, value in enumerate(attribute.values)}
        if counts[-1]:
            found[attribute.name][""] = counts[-1]
    return found


@dataclass(frozen=True, slots=True)
class _Finding:
    reason: str | None
    header: Header | None = None
    digest: bytes = b""
    gradient: int = 0
    """64-bit hash of which of each two neighbouring cells is brighter."""
    thumbnail: np.ndarray | None = None
    """(16, 16, 3) uint8; None where the picture is flat, and any two look alike."""
    regions: tuple[int, ...] = ()
    sharpness: float = 0.0
    """Variance of the Laplacian, where it was asked for."""


def _look(
    encoded: tuple[Encoded, Encoded | None], *, size: int, masked: bool, sharp: bool = False
) -> _Finding:
    source, mask = encoded
    try:
        header = inspect(source)
        picture = decode(source, at_least=max(2 * size, 2 * _SHARP_SIDE if sharp else 32))
        regions: tuple[int, ...] = ()
        if masked:
            if mask is None:
                raise BadImage("no mask of the same name")
            labels = decode_mask(mask)
            if labels.size != (header.width, header.height):
                raise BadImage(
                    f"image is {header.width}x{header.height} and mask {labels.width}x{labels.height}"
                )
            regions = tuple(int(v) for v in np.unique(np.asarray(labels)))
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except BadImage as error:
        return _Finding(error.reason)
    except OSError as error:
        return _Finding(str(error.strerror or error).lower())
    grey = np.asarray(picture.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    bits = np.packbits((np.diff(grey, axis=1) > 0).ravel())
    thumbnail = np.asarray(picture.resize((16, 16), Image.Resampling.BOX))
    return _Finding(
        None,
        header=header,
        digest=hashlib.sha256(data).digest(),
        gradient=int.from_bytes(bits.tobytes(), "big"),
        thumbnail=thumbnail if grey.std() > 4 else None,
        regions=regions,
        sharpness=_sharpness(picture) if sharp else 0.0,
    )


def _sharpness(picture: Image.Image) -> float:
    """Variance of the Laplacian of a picture whose shorter side is brought to `_SHARP_SIDE`, if it is longer."""
    ratio = min(1.0, _SHARP_SIDE / min(picture.size))
    small = picture.convert("L").resize(
        (max(3, round(picture.width * ratio)), max(3, round(picture.height * ratio))), Image.Resampling.BOX
    )
    x = np.asarray(small, dtype=np.float32)
    edges = x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:] - 4 * x[1:-1, 1:-1]
    return float(edges.var())


def _viewpoints(
    source: Source, names: Sequence[str], found: Sequence[_Finding], headers: Mapping[int, Header]
) -> Viewpoints:
    sizes: dict[str, list[str]] = defaultdict(list)
    for i, header in headers.items():
        sizes[f"{header.width}x{header.height}"].append(names[i])
    clear = [names[i] for i, header in headers.items() if header.transparent]
    sharp = {i: found[i].sharpness for i in headers}
    low = _BLURRED * float(np.median(list(sharp.values()))) if len(sharp) >= 5 else 0.0
    posed = isinstance(source, ViewsSource)
    alone = ""
    if isinstance(source, ViewsSource) and source.frames:
        try:
            normalised(
                np.stack([frame.camera for frame in source.frames]),
                np.array([frame.focal for frame in source.frames]),
            )
        except ValueError as error:
            alone = str(error)
    return Viewpoints(
        cameras=len(source.records) if posed else None,
        faults=source.faults if isinstance(source, ViewsSource) else [],
        unnamed=source.unnamed if isinstance(source, ViewsSource) else [],
        sizes=dict(sorted(sizes.items(), key=lambda item: (-len(item[1]), item[0]))),
        turned=[names[i] for i, header in headers.items() if header.rotated],
        clear=clear if len(clear) < len(headers) else [],
        blurred=[names[i] for i, value in sharp.items() if value < low],
        focal=None if posed else one_focal([header.focal for header in headers.values()]),
        alone=alone,
    )


def _seen(views: Viewpoints) -> list[str]:
    """What a terminal is told of views of one scene."""
    out = [] if views.cameras is None else [f"  {views.cameras} views with their cameras"]
    out += [] if views.focal is None else [f"  focal length {views.focal:.2f} sides of the square, by EXIF"]
    out += _listed("frames cannot be used", [f"{name}: {why}" for name, why in views.faults])
    out += _listed("pictures have no camera, and are left out", views.unnamed)
    commonest, *others = list(views.sizes) or [""]
    other = [f"{name}: {size}" for size in others for name in views.sizes[size]]
    out += _listed(f"are not {commonest}, as the others are", other)
    out += _listed("are turned upright by EXIF", views.turned)
    out += _listed("have transparency, which the others have not", views.clear)
    out += _listed("are blurred, against the others", views.blurred)
    return out


def _of_views(report: Report, views: Viewpoints) -> list[str]:
    """What to do about views of one scene."""
    out = []
    if views.faults:
        tables = " and ".join(name for name, _ in TABLES if (Path(report.path).expanduser() / name).is_file())
        out.append(
            f"{len(views.faults)} frames of {tables} cannot be used, and training refuses all of them: mend or remove "
            "them there. Without the file the pictures are views of unknown pose"
        )
    if views.alone:
        out.append(views.alone)
    elif report.usable == 1:
        out.append("one photograph shows no depth: take 20 or more, from all sides")
    elif 1 < report.usable < _FEW_VIEWS:
        out.append(f"{report.usable} views are few: {_FEW_VIEWS} or more, from all sides, determine a shape")
    if len(views.sizes) > 1:
        shapes = {round(w / h, 2) for w, h in (map(int, size.split("x")) for size in views.sizes)}
        crop = ", and the crop to a square gives them different fields of view" if len(shapes) > 1 else ""
        if views.cameras is None and crop:
            out.append(
                f"the views have {len(views.sizes)} sizes{crop}: one focal length is learned for all, so take all with "
                "one camera, held alike"
            )
    if views.turned and len(views.turned) < report.usable:
        out.append(
            f"{len(views.turned)} of {report.usable} views are turned upright by EXIF: right if the phone was turned, "
            "wrong if it noted a turn that was none; look at them"
        )
    if views.clear:
        out.append(
            "some views are cut out and others are not: a field cannot have a ground that comes and goes; cut out all "
            "or none"
        )
    if views.blurred:
        out.append(f"{len(views.blurred)} views are blurred: leave them out, a scene learns their blur")
    return out


def _copies(digests: Sequence[tuple[int, bytes]]) -> list[list[int]]:
    groups: dict[bytes, list[int]] = defaultdict(list)
    for i, digest in digests:
        groups[digest].append(i)
    return [group for group in groups.values() if len(group) > 1]


def _alike(candidates: Sequence[int], found: Sequence[_Finding]) -> list[list[int]]:
    """Groups of pictures that look like the first of their group.

    Of 5 bands of a hash, two hashes that differ in at most 4 bits share one: only pictures with a
    band in common are compared, and a picture that has found its group is not compared again.
    """
    shown = [i for i in candidates if found[i].thumbnail is not None]
    first: dict[int, int] = {}
    for band in range(_ALIKE_BITS + 1):
        low, high = band * 64 // (_ALIKE_BITS + 1), (band + 1) * 64 // (_ALIKE_BITS + 1)
        buckets: dict[int, list[int]] = defaultdict(list)
        for i in shown:
            buckets[found[i].gradient >> low & (1 << high - low) - 1].append(i)
        for bucket in buckets.values():
            for place, i in enumerate(bucket):
                if i in first and first[i] != i:
                    continue
                for j in bucket[place + 1 :]:
                    if (
                        j not in first
                        and (found[i].gradient ^ found[j].gradient).bit_count() <= _ALIKE_BITS
                        and _difference(found[i], found[j]) < _ALIKE_LEVELS
                    ):
                        first[i] = first[j] = i
    groups: dict[int, list[int]] = defaultdict(list)
    for i in sorted(first):
        groups[first[i]].append(i)
    return list(groups.values())


def _same_views(candidates: Sequence[int], found: Sequence[_Finding]) -> list[list[int]]:
    """Groups of views that hardly differ from the first of their group.

    Every two are compared: views are few, and the plain ground that many lie on leaves their hashes to chance.
    """
    seen = {i: thumbnail for i in candidates if (thumbnail := found[i].thumbnail) is not None}
    if not seen:
        return []
    shown, small = list(seen), np.stack(list(seen.values())).astype(np.int16).reshape(len(seen), -1)
    left, groups = np.ones(len(shown), dtype=bool), []
    for row in range(len(shown)):
        if left[row]:
            later = np.flatnonzero(left[row:]) + row
            same = later[np.abs(small[later] - small[row]).mean(1) < _ALIKE_VIEWS]
            left[same] = False
            if len(same) > 1:
                groups.append([shown[i] for i in same])
    return groups


def _difference(a: _Finding, b: _Finding) -> float:
    assert a.thumbnail is not None
    assert b.thumbnail is not None
    return float(np.abs(a.thumbnail.astype(np.int16) - b.thumbnail).mean())


def _environment() -> list[str]:
    """A torchvision that cannot be imported breaks other packages that try. Ours never does."""
    if importlib.util.find_spec("torchvision") is None:
        return []
    probe = [sys.executable, "-c", "import torchvision"]
    try:
        done = subprocess.run(probe, capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if done.returncode == 0:
        return []
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return [
        f"torchvision is installed but cannot be imported ({last}). pellucid does not use it, but diffusers "
        "and torchmetrics then fail too: pip uninstall torchvision, or install the build made for this torch"
    ]


def _suggestions(report: Report, source: Source) -> list[str]:
    out = []
    if report.bad and not report.ok:
        out.append(
            f"{len(report.bad)} bad files are over the {BAD_LIMIT:.0%} that training leaves out: mend or remove them"
        )
    elif report.bad:
        out.append("the bad files will be left out; remove them to be rid of the warning")
    if not report.images and not (report.views and report.views.faults):
        out.append(f"no images found: looked for {', '.join(sorted(EXTENSIONS))}")
    passed_over = _unread()
    if unread := {s: n for s, n in report.others.items() if s in passed_over}:
        out.append(f"pictures of kinds that are not read ({_counts(unread)}): convert them to JPEG or PNG")
    if raw := sum(report.others.get(s, 0) for s in (".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf")):
        out.append(f"{raw} camera raw files are not read: export them as JPEG or 16-bit PNG")
    if report.usable and len(report.tiny) > 0.05 * report.usable and report.width and report.height:
        fits = 1 << (min(report.width[1], report.height[1]).bit_length() - 1)
        advice = f"; --size {fits} suits the median" if fits < report.size else "; leave them out"
        out.append(
            f"{len(report.tiny)} images are smaller than --size {report.size} and would be blurred{advice}"
        )
    if report.cropped > 0.1 * max(1, report.usable):
        out.append("many pictures are far from square: crop them to their subjects first")
    if report.views is not None:
        out += _of_views(report, report.views)
    repeated = sum(len(group) - 1 for group in report.duplicates + report.alike)
    if repeated:
        leak = f"; {report.leaks} groups lie across splits, which flatters scores" if report.leaks else ""
        out.append(f"{repeated} images repeat another: keep one of each{leak}")
    if report.classes and min(report.classes.values()) * 10 < max(report.classes.values()):
        least = min(report.classes, key=lambda name: report.classes[name])
        out.append(f"classes are unequal: {least!r} has only {report.classes[least]} images")
    # one folder around all pictures is a place to keep them, and says nothing of them
    kept = isinstance(source, FolderSource) and not (source.root / TABLE).is_file()
    for name, counts in report.attributes.items():
        values = {value: count for value, count in counts.items() if value}
        if len(values) < 2 and not (kept and len(report.attributes) == 1):
            what = "has one value alone" if values else "has no value"
            way_out = "leave that level of folders out" if kept else "take its column out of the table"
            out.append(f"the attribute {name!r} {what}, and nothing can be learned of it: {way_out}")
        lone = [value for value, count in values.items() if count < 2]
        if len(values) > 1 and lone:
            out.append(
                f"of the attribute {name!r} {len(lone)} value{'s' * (len(lone) > 1)} "
                f"{'have' if len(lone) > 1 else 'has'} one picture or none ({_few(lone, ', ')}), which no other can "
                f"share: join {'them' if len(lone) > 1 else 'it'} to another value, or add pictures"
            )
    if 0 < report.usable < 500 and report.views is None:
        out.append(
            f"{report.usable} images are few: a generator will memorise them; 1,000 or more are better "
            "(`--views` judges them as views of one scene)"
        )
    if report.usable and not all(report.splits[name] for name in SPLITS):
        out.append("a split is empty: sub-folders train, val and test decide it for yourself")
    if report.masks and set(report.regions) == {0}:
        out.append("every mask is all ground: is 0 the background, and are objects 1, 2, ... or white?")
    if report.ok and not out:
        out.append("nothing stands in the way")
    return out


def _unread() -> set[str]:
    """Extensions of pictures that are passed over: what Pillow opens and `EXTENSIONS` lacks, and some it cannot."""
    recognised_only = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF"}
    opened = Image.registered_extensions().items()
    known = {suffix for suffix, kind in opened if kind in Image.OPEN and kind not in recognised_only}
    return {".heic", ".heif", ".avif", ".jxl"} | known - EXTENSIONS.keys()


def _listed(what: str, items: Sequence[str], shown: int = 10) -> list[str]:
    if not items:
        return []
    more = [f"    and {len(items) - shown} more"] if len(items) > shown else []
    return [f"  {len(items)} {what}:", *(f"    {item}" for item in items[:shown]), *more]


def _few(group: Sequence[str], link: str) -> str:
    return link.join(group[:3]) + (f" and {len(group) - 3} more" if len(group) > 3 else "")


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _counts(counts: dict[str, int], shown: int = 12) -> str:
    items = [f"{name or 'no extension'} {count}" for name, count in list(counts.items())[:shown]]
    return ", ".join(items) + (f" and {len(counts) - shown} more" if len(counts) > shown else "")


def _spread(values: Sequence[int]) -> tuple[int, int, int] | None:
    return (min(values), int(np.median(values)), max(values)) if values else None
