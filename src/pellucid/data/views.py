"""Pictures of one scene from many places: what a camera is, data sets that know theirs, folders with `transforms.json`.

A camera is a 4 x 4 matrix from its own axes to the world's: x to the right of the picture, y up, and it looks along -z,
as in OpenGL, Blender and nerfstudio. Its focal length f is in sides of the square picture, and its principal point is
the middle: the ray through (u, v), both from 0 to 1, right and down, has the direction
((u - 1/2) / f, (1/2 - v) / f, -1) in the camera's axes.

The world depends on where the cameras are (`normalised`), never on the units or axes that a file was written in:

    around a thing     z is up, the origin is what the cameras look at, and the unit ball is what a camera at the median
                       distance just sees whole
    forward-facing     the axes of the mean camera, which stands at the origin and looks along -z with y up; the median
                       distance of the cameras from it is `SPREAD`

Known cameras are there to be scored against, and for supervised baselines: they come as `Batch.truth`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from pellucid.data.decode import EXTENSIONS, BadImage, Encoded, Header, decode, inspect, prepare
from pellucid.data.images import Dataset, StoredImages, to_uint8
from pellucid.data.sources import Record, Split
from pellucid.types import Attribute, Batch

Background = Literal["white", "black", "scene"]

SPREAD = 0.5
"""Median distance of forward-facing cameras from their mean, in units of the world of a folder."""
NEAR_FORWARD, FAR_FORWARD = 1.0, 32.0
"""Between which depths a forward-facing folder's scene is looked for: 2 to 64 times `SPREAD`."""
TABLES: tuple[tuple[str, Split | None], ...] = (
    ("transforms.json", None),
    ("transforms_train.json", "train"),
    ("transforms_val.json", "val"),
    ("transforms_test.json", "test"),
)
"""Files with cameras, and the split that each declares."""
_RIGID = 1e-3
"""How far a rotation may be from orthonormal, which is the rounding of a file with four digits."""
_SQUARE = 0.02
"""How much the two focal lengths of a picture, or two statements of its shape, may differ, as a share."""
_MIDDLE = 0.02
"""A principal point farther from the middle than this share of the side is told."""
_STRAIGHT = 0.01
"""A coefficient of lens distortion above this is told."""
_PARALLEL = 0.9
"""Mean of unit vectors: longer than this, and they point one way."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is known of a scene without looking: where its cameras stand and where along their rays it lies."""

    radius: float
    """Median distance of the cameras from the origin."""
    near: float
    """Nothing is closer to a camera than this."""
    far: float
    """Nothing is farther than this; beyond it is background."""
    focal: float | None
    """The cameras' median focal length in sides of the square; None where it is not known."""
    forward: bool
    """Whether the cameras face one way, rather than stand around a thing."""
    background: Background
    """What rays end in that meet nothing: a colour, or "scene" where pictures show their surroundings."""


class Views:
    """Pictures with the cameras that took them, as a `Dataset`.

    Args:
        pictures: the pictures alone.
        cameras: (N, 4, 4) camera to world.
        focal: (N,) sides of the square.
        scene: what the cameras stand around.
        depth: (N, H, W) distance along the ray through the middle of each pixel, 0 where it meets nothing.

    `batch()` carries `truth`: "camera" (B, 4, 4) and "focal" (B,), float32, and "depth" (B, H, W) where it is known.
    """

    def __init__(
        self,
        pictures: Dataset,
        cameras: np.ndarray,
        focal: np.ndarray,
        scene: Scene,
        *,
        depth: np.ndarray | None = None,
    ) -> None:
        count = len(pictures)
        if cameras.shape != (count, 4, 4) or focal.shape != (count,):
            raise ValueError(
                f"{count} pictures have cameras {cameras.shape} and focal {focal.shape}: "
                f"expected ({count}, 4, 4) and ({count},)"
            )
        if depth is not None and depth.shape != (count, *pictures.shape[1:]):
            raise ValueError(f"depth is {depth.shape}: expected {(count, *pictures.shape[1:])}")
        self.pictures, self.cameras, self.focal, self.scene = pictures, cameras, focal, scene
        self.shape, self.class_names, self.attributes = (
            pictures.shape,
            pictures.class_names,
            pictures.attributes,
        )
        self.table: np.ndarray | None = pictures.table
        self.keys: tuple[str, ...] | None = getattr(pictures, "keys", None)
        self._depth = depth
        told = hashlib.sha256(np.ascontiguousarray(cameras, np.float32).tobytes())
        told.update(np.ascontiguousarray(focal, np.float32).tobytes())
        self.fingerprint = f"{pictures.fingerprint}-{told.hexdigest()[:8]}"

    def __len__(self) -> int:
        return len(self.pictures)

    def batch(self, indices: np.ndarray) -> Batch:
        """The samples of (B,) int64 indices, in that order."""
        batch = self.pictures.batch(indices)
        rows = np.asarray(indices, dtype=np.int64)
        truth = {"camera": self.cameras[rows], "focal": self.focal[rows]}
        if self._depth is not None:
            truth["depth"] = self._depth[rows]
        known = {name: torch.from_numpy(value.astype(np.float32)) for name, value in truth.items()}
        return replace(batch, truth={**batch.truth, **known})


# ---------------------------------------------------------------------------------------------------------- cameras


def radius_of(focal: float) -> float:
    """The distance from which a camera just sees the whole unit ball: 1 / sin(half its field of view)."""
    return math.sqrt(1 + 4 * focal * focal)


def normalised(cameras: np.ndarray, focal: np.ndarray) -> tuple[np.ndarray, bool]:
    """Cameras (N, 4, 4) with focal lengths (N,) in the world of this module -> cameras, and whether they face forward.

    Any similarity of all cameras gives the same result. Cameras face forward where they look one way and stand upright
    alike; an arc of up to 90 degrees does. Around a thing, the origin is the point nearest to all their axes (least
    squares), up is at right angles to what is right of each of them, and the first camera's right points along y. So a
    set whose cameras do not roll is turned about its vertical axis alone.

    Raises:
        ValueError: fewer than two cameras, all at one place, or looking away from one another.
    """
    count = len(cameras)
    if count < 2:
        raise ValueError(f"{count} camera: a scene is found from two photographs or more, better 20")
    right, up, back, place = (cameras[:, :3, i].astype(np.float64) for i in range(4))
    middle = np.median(place, axis=0)
    if np.linalg.norm(place - middle, axis=1).max() <= 1e-9 * max(1.0, float(np.abs(place).max())):
        raise ValueError("all cameras stand at one place: without parallax there is no depth to find")
    forward = _length(right.mean(0)) > _PARALLEL and _length(back.mean(0)) > _PARALLEL
    if forward:
        axes, centre = _nearest_rotation(np.stack([v.mean(0) for v in (right, up, back)], 1)), place.mean(0)
        distance = np.linalg.norm(place - centre, axis=1)
        scale = SPREAD / float(np.median(distance) or distance.max())
    else:
        across = (
            np.eye(3) - back[:, :, None] * back[:, None, :]
        )  # what of a vector is at right angles to an axis
        mean = place.mean(0)
        pull = (across @ (place - mean)[:, :, None]).sum(0)[:, 0]
        centre = mean + np.linalg.lstsq(across.sum(0), pull)[0]
        ahead = ((place - centre) * back).sum(1) > 0
        if ahead.mean() < 0.5:
            raise ValueError(
                f"{count - ahead.sum()} of {count} cameras look away from the point that their axes share: a scene "
                "around the cameras, such as a room seen from its middle, is neither around a thing nor forward-facing"
            )
        axes = _upright(right, up)
        scale = radius_of(float(np.median(focal))) / float(np.median(np.linalg.norm(place - centre, axis=1)))
    out = np.zeros((count, 4, 4))
    out[:, :3, :3] = axes.T @ cameras[:, :3, :3]
    out[:, :3, 3] = (place - centre) @ axes * scale
    out[:, 3, 3] = 1
    return out, forward


def _upright(right: np.ndarray, up: np.ndarray) -> np.ndarray:
    """The axes (columns) of a world whose z is up for cameras with these right and up vectors, each (N, 3)."""
    _, _, frame = np.linalg.svd(right, full_matrices=True)
    z = frame[-1]  # least along any of them
    z = z if (up @ z).sum() >= 0 else -z
    for first in right:
        y = first - (first @ z) * z
        if _length(y) > 0.5:  # that camera is not rolled on its side
            break
    else:
        y = np.cross(z, right[0])
    y = y / _length(y)
    return np.stack([np.cross(y, z), y, z], 1)


def _nearest_rotation(matrix: np.ndarray) -> np.ndarray:
    left, _, right = np.linalg.svd(matrix)
    sign = np.diag([1.0, 1.0, float(np.sign(np.linalg.det(left @ right)))])
    return left @ sign @ right


def _length(vector: np.ndarray) -> float:
    return float(np.linalg.norm(vector))


# ------------------------------------------------------------------------------------------------- transforms.json


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One picture of a `transforms.json`, as it is written there."""

    key: str
    """Its path from the folder, or where pictures lie outside it from the one that holds them all."""
    path: Path
    camera: np.ndarray
    """(4, 4), in the file's world."""
    focal: float
    """Sides of the centre square of the upright picture."""
    header: Header
    split: Split | None


class ViewsSource:
    """The pictures that a folder's `transforms.json` names, or Blender's `transforms_train.json`, `_val` and `_test`.

    Splits are Blender's, or those of nerfstudio's `train_filenames`, `val_filenames` and `test_filenames`; else the
    usual ones. Paths count from the folder and may lead out of it; one without an extension is completed.

    Args:
        root: the folder.
        strict: refuse a folder with faults, rather than leave those frames out.

    Attributes:
        frames: the sound ones, sorted as `records`.
        faults: (file, what is wrong) of the others.
        unnamed: pictures beside those of frames, which no frame names.

    Raises:
        ValueError: a file that is no JSON or has no frames, or (strict) a frame whose picture is missing or unreadable,
            whose matrix is no rigid motion, whose focal length is missing or not positive, or that occurs twice.
    """

    class_names: tuple[str, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    has_masks = False
    unreadable: Sequence[tuple[str, str]] = ()

    def __init__(self, root: str | os.PathLike[str], *, strict: bool = True) -> None:
        self.root = Path(os.path.abspath(root))
        tables = [(self.root / name, split) for name, split in TABLES if (self.root / name).is_file()]
        if not tables:
            raise ValueError(f"{root} has no {' and no '.join(name for name, _ in TABLES[:2])}")
        if len(tables) > 1 and tables[0][1] is None:
            raise ValueError(
                f"{root} has {' and '.join(table.name for table, _ in tables)}: keep one or the other"
            )
        self.faults: list[tuple[str, str]] = []
        found: dict[Path, tuple[Frame, str]] = {}
        for table, split in tables:
            for place, frame in self._frames(table, split):
                if frame.path in found:
                    name = os.path.relpath(frame.path, self.root)
                    self.faults.append((name, f"{place}: named before, by {found[frame.path][1]}"))
                else:
                    found[frame.path] = (frame, place)
        if strict and self.faults:
            shown = "\n".join(f"  {name}: {why}" for name, why in self.faults[:20])
            more = f"\n  and {len(self.faults) - 20} more" if len(self.faults) > 20 else ""
            raise ValueError(f"{len(self.faults)} frames of {root} cannot be used:\n{shown}{more}")
        base = os.path.commonpath([self.root, *(f.path.parent for f, _ in found.values())])
        from_base = lambda path: unicodedata.normalize("NFC", path.relative_to(base).as_posix())
        frames = [replace(frame, key=from_base(frame.path)) for frame, _ in found.values()]
        self.frames = sorted(frames, key=lambda frame: frame.key)
        beside = {path for folder in {f.path.parent for f in self.frames} for path in folder.iterdir()}
        named = {frame.path for frame in self.frames}
        self.unnamed = sorted(
            from_base(path)
            for path in beside - named
            if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")
        )
        self.records: Sequence[Record] = [self._record(frame) for frame in self.frames]

    def read(self, records: Iterable[Record]) -> Iterator[tuple[Encoded, Encoded | None]]:
        for record in records:
            yield record.where, None

    @staticmethod
    def _record(frame: Frame) -> Record:
        status = frame.path.stat()
        return Record(
            key=frame.key,
            where=frame.path,
            mark=status.st_size,
            changed=status.st_mtime_ns,
            split=frame.split,
        )

    def _frames(self, table: Path, split: Split | None) -> Iterator[tuple[str, Frame]]:
        """(where it is written, frame) of each sound frame; the others are added to `faults`."""
        meta = _table(table)
        if (model := meta.get("camera_model", "OPENCV")) not in ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE"):
            raise ValueError(
                f"{table}: camera_model is {model!r}, and only perspective cameras are read (OPENCV, PINHOLE): "
                "undistort the pictures first"
            )
        declared = _declared(meta, table)
        off, bent = 0.0, 0.0
        for number, entry in enumerate(meta["frames"]):
            place = f"{table.name}, frame {number}"
            name = entry.get("file_path") if isinstance(entry, dict) else None
            if not isinstance(name, str) or not name:
                self.faults.append((table.name, f"frame {number}: no file_path"))
                continue
            try:
                path = self._file(name)
                camera = _rigid(entry.get("transform_matrix"))
                header = inspect(path)
                focal, away = _focal({**meta, **entry}, header)
                lens = [_real({**meta, **entry}, k) for k in ("k1", "k2", "p1", "p2")]
            except BadImage as error:
                self.faults.append((name, f"{place}: {error.reason}"))
            except ValueError as error:
                self.faults.append((name, f"{place}: {error}"))
            else:
                off = max(off, away)
                bent = max(bent, *(abs(value or 0.0) for value in lens))
                own = declared.get(os.path.normpath(name), split)
                yield (
                    place,
                    Frame(
                        key=path.as_posix(), path=path, camera=camera, focal=focal, header=header, split=own
                    ),
                )
        if off > _MIDDLE:
            _log.warning(
                "%s: principal points lie up to %.0f%% of a side off the middle, and are taken to be there",
                table,
                100 * off,
            )
        if bent > _STRAIGHT:
            _log.warning("%s: lens distortion of up to %.3g is not undone", table, bent)

    def _file(self, name: str) -> Path:
        """The picture that a path in a table means. Raises ValueError where there is none."""
        path = Path(os.path.normpath(self.root / name.replace("\\", "/")))
        if path.is_file():
            return path
        suffixes = (".png", *(suffix for suffix in EXTENSIONS if suffix != ".png"))
        for suffix in suffixes if path.suffix.lower() not in EXTENSIONS else ():
            if (whole := path.with_name(path.name + suffix)).is_file():
                return whole
        raise ValueError("a folder, not a picture" if path.is_dir() else "no such file")


def has_cameras(folder: Path) -> bool:
    """Whether a folder holds a table of cameras that `ViewsSource` reads."""
    return any((folder / name).is_file() for name, _ in TABLES[:2])


def open_views(
    source: ViewsSource,
    size: int,
    channels: int = 3,
    *,
    split: Split | None = None,
    limit: int | None = None,
    name: str = "",
) -> Views:
    """The pictures of a source with their cameras, in one world for all splits.

    Raises ValueError as `ViewsSource`, `normalised` and `StoredImages`.
    """
    try:
        cameras, forward = normalised(
            np.stack([frame.camera for frame in source.frames]),
            np.array([frame.focal for frame in source.frames]),
        )
    except ValueError as error:
        raise ValueError(f"{name or source.root}: {error}") from None
    row = {frame.key: i for i, frame in enumerate(source.frames)}
    focal = np.array([frame.focal for frame in source.frames])
    pictures = StoredImages(source, size, channels, split=split, limit=limit, name=name)
    rows = [row[key] for key in pictures.keys]
    scene = scene_of(cameras, focal, forward=forward, background=_background(source))
    return Views(pictures, cameras[rows], focal[rows], scene)


def unseen(data: Dataset) -> Scene:
    """What is assumed of pictures that come without cameras: views of a thing in the middle, from all around, from the
    distance at which the thing fills them; on white or black where their borders are nearly all so. The focal length is
    EXIF's where pictures have one, and one alone (within a fiftieth)."""
    some = np.unique(np.linspace(0, len(data) - 1, 16).round().astype(int))
    pixels = to_uint8(data.batch(some).x0)
    ground = _ground([np.concatenate([p[0], p[-1], p[:, 0], p[:, -1]]) for p in pixels])
    near, far = (0.3, 12.0) if ground == "scene" else (2.0, 4.0)
    headers = data.headers(some) if isinstance(data, StoredImages) else ()
    focal = one_focal([header.focal for header in headers])
    return Scene(radius=3.0, near=near, far=far, focal=focal, forward=False, background=ground)


def one_focal(lengths: Sequence[float | None]) -> float | None:
    """The focal length of pictures that all have about the same; None where one has none, or another."""
    known = [length for length in lengths if length is not None]
    same = len(known) == len(lengths) > 0 and max(known) < 1.02 * min(known)
    return float(np.median(known)) if same else None


def scene_of(cameras: np.ndarray, focal: np.ndarray, *, forward: bool, background: Background) -> Scene:
    """The scene of normalised cameras (N, 4, 4).

    Around a thing on a plain ground it is the unit ball. With surroundings it begins at a tenth of the radius and ends
    four radii away; forward-facing it lies from `NEAR_FORWARD` to `FAR_FORWARD`: cameras alone do not tell depth.
    """
    distance = np.linalg.norm(cameras[:, :3, 3], axis=1)
    radius = float(np.median(distance))
    if forward:
        near, far = NEAR_FORWARD, FAR_FORWARD
    elif background == "scene":
        near, far = 0.1 * radius, 4 * radius
    else:
        near, far = max(0.1 * radius, float(distance.min()) - 1), float(distance.max()) + 1
    return Scene(
        radius=radius,
        near=near,
        far=far,
        focal=float(np.median(focal)),
        forward=forward,
        background=background,
    )


def to_transforms(
    files: Sequence[str], cameras: np.ndarray, focal: np.ndarray, sizes: int | Sequence[tuple[int, int]]
) -> dict[str, Any]:
    """What `transforms.json` holds of some pictures: nerfstudio's form, which `ViewsSource` reads.

    Args:
        files: a path for each picture, from the folder that the JSON lies in.
        cameras: (N, 4, 4).
        focal: (N,) sides of the centre square.
        sizes: width and height of each picture, pixels; or the side of all, where they are squares.

    Raises ValueError where their numbers differ.
    """
    whole = [(sizes, sizes)] * len(files) if isinstance(sizes, int) else list(sizes)
    if not len(files) == len(cameras) == len(focal) == len(whole):
        raise ValueError(
            f"{len(files)} files, {len(cameras)} cameras, {len(focal)} focal lengths and {len(whole)} sizes"
        )
    of = lambda w, h: {"w": w, "h": h, "cx": w / 2, "cy": h / 2}
    alike = len(set(whole)) == 1
    frames = [
        {
            "file_path": file,
            **({} if alike else of(*size)),
            "fl_x": float(f) * min(size),
            "fl_y": float(f) * min(size),
            "transform_matrix": np.asarray(camera, np.float64).tolist(),
        }
        for file, camera, f, size in zip(files, cameras, focal, whole, strict=True)
    ]
    return {"camera_model": "OPENCV", **(of(*whole[0]) if alike else {}), "frames": frames}


def cameras_in(path: Path) -> np.ndarray:
    """The cameras (N, 4, 4) of a `transforms.json`, in its order and its own world; its pictures need not be there.

    Raises ValueError for what is no such file, and for a matrix that is no rigid motion.
    """
    found = []
    for number, entry in enumerate(_table(path)["frames"]):
        try:
            found.append(_rigid(entry.get("transform_matrix") if isinstance(entry, dict) else None))
        except ValueError as error:
            raise ValueError(f"{path}, frame {number}: {error}") from None
    return np.stack(found)


def focal_in(path: Path) -> float | None:
    """The one focal length of a `transforms.json`, in sides of the centre square; its pictures need not be there.

    None where a frame has neither an angle, which without `w` and `h` is taken for a square's, nor a length with them.
    Raises ValueError for what is no such file, and where frames differ by more than a fiftieth.
    """
    meta, found = _table(path), []
    for number, entry in enumerate(meta["frames"]):
        own = {**meta, **(entry if isinstance(entry, dict) else {})}
        try:
            w, h = (_positive(own, name) for name in ("w", "h"))
            if w is None or h is None:
                w = h = None if own.get("fl_x") is not None else 1.0
            if w is None or h is None or (own.get("fl_x"), own.get("camera_angle_x")) == (None, None):
                return None
            found.append(_across(own, w) * w / min(w, h))
        except ValueError as error:
            raise ValueError(f"{path}, frame {number}: {error}") from None
    least, most = min(found), max(found)
    if most / least - 1 > _SQUARE:
        raise ValueError(
            f"{path} has focal lengths from {least:.4g} to {most:.4g} sides of the picture, and the views of a path "
            f"share one: give it as render_focal"
        )
    return float(np.median(found))


def _table(path: Path) -> dict[str, Any]:
    """A file of cameras as it is written, with one frame or more. Raises ValueError for anything else."""
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(meta, dict) or not isinstance(meta.get("frames"), list) or not meta["frames"]:
        raise ValueError(f"{path} has no frames: expected an object with a list of at least one")
    return meta


def _declared(meta: Mapping[str, Any], table: Path) -> dict[str, Split]:
    """The split of each file that nerfstudio's lists name."""
    found: dict[str, Split] = {}
    parts: tuple[Split, ...] = ("train", "val", "test")
    named = {os.path.normpath(e["file_path"]) for e in meta["frames"]
             if isinstance(e, dict) and isinstance(e.get("file_path"), str)}  # fmt: skip
    for split in parts:
        names = meta.get(f"{split}_filenames", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{table}: {split}_filenames is no list of files")
        for name in map(os.path.normpath, names):
            if name not in named:
                raise ValueError(f"{table}: {split}_filenames has {name}, which is no frame's file_path")
            if found.setdefault(name, split) != split:
                raise ValueError(f"{table}: {name} is in {found[name]}_filenames and in {split}_filenames")
    return found


def _rigid(matrix: Any) -> np.ndarray:
    """(4, 4) of a rotation and a translation. Raises ValueError for anything else."""
    try:
        camera = np.array(matrix, np.float64)
    except (TypeError, ValueError):
        raise ValueError("transform_matrix is not 4 rows of 4 numbers") from None
    if camera.shape == (3, 4):
        camera = np.concatenate([camera, [[0.0, 0.0, 0.0, 1.0]]])
    if camera.shape != (4, 4):
        raise ValueError("transform_matrix is not 4 rows of 4 numbers")
    if not np.isfinite(camera).all():
        raise ValueError("transform_matrix holds NaN or infinity")
    turn = camera[:3, :3]
    if np.abs(turn.T @ turn - np.eye(3)).max() > _RIGID or np.abs(camera[3] - [0, 0, 0, 1]).max() > _RIGID:
        raise ValueError(
            "transform_matrix is no rigid motion: its columns are not at right angles, or scaled"
        )
    if np.linalg.det(turn) < 0:
        raise ValueError("transform_matrix mirrors: its determinant is -1, not 1")
    camera[:3, :3], camera[3] = _nearest_rotation(turn), (0, 0, 0, 1)
    return camera


def _real(entry: Mapping[str, Any], name: str) -> float | None:
    """A finite number of a frame or of what all share; None where there is none. Raises ValueError."""
    value = entry.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}: expected a number")
    return float(value)


def _positive(entry: Mapping[str, Any], name: str) -> float | None:
    value = _real(entry, name)
    if value is not None and value <= 0:
        raise ValueError(f"{name} is {value:g}: expected above 0")
    return value


def _across(entry: Mapping[str, Any], w: float) -> float:
    """The focal length in widths of a picture, which is w pixels wide. Raises ValueError where none is said."""
    fl_x, angle = (_positive(entry, name) for name in ("fl_x", "camera_angle_x"))
    if fl_x is not None:
        return fl_x / w
    if angle is None:
        raise ValueError("no focal length: neither fl_x nor camera_angle_x")
    if angle >= math.pi:
        raise ValueError(f"camera_angle_x is {angle:g}: radians, below pi")
    return 0.5 / math.tan(angle / 2)


def _focal(entry: Mapping[str, Any], header: Header) -> tuple[float, float]:
    """(focal length, principal point's distance from the middle), both in sides of the picture's centre square.

    The picture may be a smaller copy of the one that the lengths were measured on.
    """
    width, height = header.width, header.height
    side = min(width, height)
    w, h = _positive(entry, "w") or width, _positive(entry, "h") or height
    if abs(w / h * height / width - 1) > _SQUARE:
        turned = "; EXIF turns it upright: save it upright, without EXIF" if header.rotated else ""
        raise ValueError(f"the picture is {width}x{height} and w, h say {w:g}x{h:g}{turned}")
    fl_x, fl_y = (_positive(entry, name) for name in ("fl_x", "fl_y"))
    focal = _across(entry, w) * width / side
    if fl_x is not None and fl_y is not None and abs(fl_y / h * height / side / focal - 1) > _SQUARE:
        raise ValueError(f"fl_x is {fl_x:g} and fl_y {fl_y:g}: pixels must be square")
    away = 0.0
    for name, length, real in (("cx", w, width), ("cy", h, height)):
        value = _real(entry, name)
        if value is not None:
            away = max(away, abs(value / length - 0.5) * real / side)
    return focal, away


def _background(source: ViewsSource) -> Background:
    """What lies at the borders of pictures spread over all splits, transparency on white."""
    frames = source.frames[:: max(1, len(source.frames) // 16)]
    borders = []
    for frame in frames:
        try:
            square = prepare(decode(frame.path, at_least=64), 32)
        except BadImage:
            continue  # `StoredImages` names it
        borders.append(np.concatenate([square[0], square[-1], square[:, 0], square[:, -1]]))
    return _ground(borders)


def _ground(borders: Sequence[np.ndarray]) -> Background:
    """What pixels (N, C) uint8 at the borders of some pictures are."""
    if not borders:
        return "scene"
    edge = np.concatenate(borders)
    if (edge >= 250).all(1).mean() > 0.8:
        return "white"
    return "black" if (edge <= 5).all(1).mean() > 0.8 else "scene"
