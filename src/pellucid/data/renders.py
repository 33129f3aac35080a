"""Scenes that are rendered from known cameras: things of textured boxes, and models that `meshes` reads.

View i of a split is a function of (seed, split, i): the seed moves the cameras, the scene stays. Cameras and world are
those of `views`. A pixel is the mean over `SAMPLES` x `SAMPLES` rays, as screens show it, without gamma: what a
radiance field that is fitted to pictures can reproduce. Light is fixed to the world and diffuse, and nothing casts
shadows, so a point looks the same from everywhere.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pellucid.cameras import look_at, on_sphere, rays
from pellucid.cameras import pixels as places
from pellucid.data.draws import Draws
from pellucid.data.images import Squares, cache_folder, prepare
from pellucid.data.sources import Split
from pellucid.data.views import SPREAD, Scene, Views, radius_of

VIEWS = {
    "views-boxes": "a thing of textured boxes from all around, with cameras and depth",
    "views-forward": "boxes before a wall, through a small window, with cameras and depth",
    "views-duck": "a textured model of a duck, with cameras and depth (fetched; needs pellucid[views])",
    "views-still": "a still life of five models, with cameras and depth (fetched; needs pellucid[views])",
}
MESH = "mesh:"
"""Before the path of a model's file: a scene of a user's own."""
LENGTHS: dict[Split, int] = {"train": 64, "val": 8, "test": 16}
"""Views in each split."""
SAMPLES = 4
"""Rays of a pixel along each axis."""
ELEVATION = (10.0, 60.0)
"""Degrees above the horizon between which cameras around a thing stand."""
_VERSION: dict[Split, int] = {"train": 1, "val": 2, "test": 2}  # of the pictures: part of their fingerprint
_PLASTIC = 1.32471795724474602596  # the real root of x^3 = x + 1
_STEPS = 1 / np.array([_PLASTIC, _PLASTIC**2])
"""By which azimuth and elevation go on from view to view."""
_RAYS = 1 << 16
"""Rays that are traced at once."""

Trace = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Origins and unit directions (n, 3) -> colours (n, 3) from 0 to 1, and distances (n,), inf where nothing is met."""

_FOCAL = 2.0**0.5
AROUND = Scene(radius=radius_of(_FOCAL), near=2.0, far=4.0, focal=_FOCAL, forward=False, background="white")
"""Cameras stand 3 from the origin, and just see the unit ball."""
FORWARD = Scene(radius=SPREAD, near=2.0, far=12.0, focal=1.0, forward=True, background="scene")
_WINDOW = np.array([0.72, 0.54, 0.12])
"""How far forward-facing cameras stand from their mean, to each side."""
_AIM = np.array([0.0, 0.0, -4.0])
"""What they look at, within `_WANDER` of it."""
_WANDER = 0.3


def rendered(
    name: str,
    *,
    size: int,
    channels: int = 3,
    split: Split = "train",
    seed: int = 0,
    limit: int | None = None,
) -> Views:
    """A scene of `VIEWS`, or of a model (`MESH` and its path), rendered now or kept from before below the cache folder.

    Raises ValueError where its models cannot be fetched or read, or the packages that read them are missing.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels is {channels}: use 3 for colour or 1 for grey")
    if size < 1:
        raise ValueError(f"size is {size}: a number of pixels")
    count = LENGTHS[split] if limit is None else min(limit, LENGTHS[split])
    scene = FORWARD if name == "views-forward" else AROUND
    assert scene.focal is not None
    cameras = cameras_of(scene, seed=seed, split=split, count=count)
    called, tracer = _scene(name)
    key = f"{called}-v{_VERSION[split]}-{split}-{size}-{seed}-{count}"
    place = cache_folder() / "views" / f"{key}.npz"
    kept = _kept(place, (count, size, size))
    if kept is None:
        kept = render(tracer(), cameras, scene.focal, size, white=scene.background == "white")
        _keep(place, *kept)
    pixels, depth = kept
    if channels == 1:
        pixels = np.stack([prepare(Image.fromarray(p), size, 1) for p in pixels])
    pictures = Squares(pixels, fingerprint=f"{key}-{channels}")
    return Views(pictures, cameras, np.full(count, scene.focal), scene, depth=depth)


def cameras_of(scene: Scene, *, seed: int, split: Split, count: int) -> np.ndarray:
    """The first cameras of a split, (count, 4, 4).

    Around a thing they look at the origin from `scene.radius` away, azimuth and elevation uniform (`ELEVATION`). Those
    to learn from are spread evenly: a Kronecker sequence from a random start, so that the first views are as even as
    all of them. Those held out are drawn one by one: another such sequence would be the first one, moved, and each of
    its views as far from the nearest of training as all the others.
    Facing forward they stand uniformly in a box about the origin and look near a point ahead.
    """
    index = np.arange(count)
    if scene.forward:
        u = 2 * Draws(seed, split, index).uniform(6).astype(np.float64) - 1
        eye, target = (torch.from_numpy(v) for v in (u[:, :3] * _WINDOW, _AIM + u[:, 3:] * _WANDER))
        return look_at(eye, target, up=torch.tensor([0.0, 1.0, 0.0], dtype=eye.dtype)).numpy()
    if split == "train":
        start = Draws(seed, split, np.zeros(1)).uniform(2).astype(np.float64)
        across, high = ((start + index[:, None] * _STEPS) % 1).T
    else:
        across, high = Draws(seed, split, index).uniform(2).astype(np.float64).T
    azimuth = 2 * np.pi * across
    elevation = np.radians(ELEVATION[0] + (ELEVATION[1] - ELEVATION[0]) * high)
    return on_sphere(torch.from_numpy(azimuth), torch.from_numpy(elevation), scene.radius).numpy()


def render(
    trace: Trace, cameras: np.ndarray, focal: float, size: int, *, white: bool = True, samples: int = SAMPLES
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, size, size, 3) uint8 and depths (N, size, size) float32 of what `trace` meets.

    Args:
        cameras: (N, 4, 4).
        focal: sides of the square.
        white: the colour where nothing is met; else black.
        samples: rays of a pixel along each axis.

    Depth is the distance along the ray through the middle of each pixel, 0 where it meets nothing.
    """
    pixels = np.empty((len(cameras), size, size, 3), np.uint8)
    depths = np.empty((len(cameras), size, size), np.float32)
    ground = 1.0 if white else 0.0
    middles = places(size).double()
    offsets = ((np.arange(samples) + 0.5) / samples - 0.5) / size
    for row, camera in enumerate(torch.from_numpy(cameras)):
        through = lambda at, camera=camera: (r[0].numpy() for r in rays(camera[None], focal, at))
        total = np.zeros((size * size, 3))
        for x, y in ((float(x), float(y)) for y in offsets for x in offsets):
            colour, distance = _traced(trace, *through(middles + torch.tensor([x, y])))
            total += np.where(np.isfinite(distance)[:, None], colour, ground)
        pixels[row] = np.rint(total * (255 / samples**2)).clip(0, 255).reshape(size, size, 3)
        _, distance = _traced(trace, *through(middles))
        depths[row] = np.where(np.isfinite(distance), distance, 0).reshape(size, size)
    return pixels, depths


def _traced(trace: Trace, origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    o, d = origins.reshape(-1, 3), directions.reshape(-1, 3)
    parts = [trace(o[i : i + _RAYS], d[i : i + _RAYS]) for i in range(0, len(o), _RAYS)]
    return np.concatenate([colour for colour, _ in parts]), np.concatenate([far for _, far in parts])


def _scene(name: str) -> tuple[str, Callable[[], Trace]]:
    """What stands for a scene where its pictures are kept, and what makes its `Trace`."""
    if name in ("views-boxes", "views-forward"):
        return name, lambda: Boxes(THING if name == "views-boxes" else ROOM)
    from pellucid.data.meshes import Meshes, arrangement, contents, own

    if name.startswith(MESH):
        placed = own(name.removeprefix(MESH))
        return f"mesh-{contents(placed)}", lambda: Meshes([placed])
    return name, lambda: Meshes(arrangement(name))


def _kept(place: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray] | None:
    """What an earlier start has rendered, or None where it is missing or not whole."""
    try:
        with np.load(place, allow_pickle=False) as kept:
            pixels, depth = kept["pixels"], kept["depth"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    whole = pixels.shape == (*shape, 3) and depth.shape == shape
    return (pixels, depth) if whole and pixels.dtype == np.uint8 and depth.dtype == np.float32 else None


def _keep(place: Path, pixels: np.ndarray, depth: np.ndarray) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as work:
        part = Path(work, "part.npz")
        np.savez(part, pixels=pixels, depth=depth)
        os.replace(part, place)


# ------------------------------------------------------------------------------------------------------------ light

_LIGHT = np.array([0.48, 0.36, 0.8])
_AMBIENT = 0.68


def lit(normals: np.ndarray) -> np.ndarray:
    """(n, 1): what share of a surface's colour is seen, by its outward normal (n, 3); 0.36 to 1."""
    return _AMBIENT + (1 - _AMBIENT) * (normals @ (_LIGHT / np.linalg.norm(_LIGHT)))[:, None]


# ------------------------------------------------------------------------------------------------------------ boxes

_COLOURS = {
    "white": (0.97, 0.97, 0.95), "black": (0.08, 0.08, 0.1), "red": (0.85, 0.13, 0.12), "orange": (0.96, 0.55, 0.1),
    "yellow": (0.98, 0.85, 0.2), "green": (0.2, 0.62, 0.25), "teal": (0.1, 0.6, 0.62), "blue": (0.14, 0.3, 0.78),
    "purple": (0.5, 0.22, 0.65), "pink": (0.95, 0.5, 0.68), "brown": (0.45, 0.28, 0.15), "grey": (0.55, 0.57, 0.6),
}  # fmt: skip
_PATTERNS = ("plain", "upright", "level", "checked", "dotted", "shaded")
"""One colour; stripes along the second or the first axis of a face; squares; discs; from one colour to the other."""


@dataclass(frozen=True)
class Box:
    """A box with a pattern of two colours on each face."""

    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    """Half of its sides."""
    faces: tuple[str, ...]
    """Of +x, -x, +y, -y, +z, -z: "pattern colour colour"."""
    turn: tuple[int, float] = (2, 0.0)
    """An axis, and degrees about it."""
    period: float = 0.24
    """How often patterns repeat."""

    def axes(self) -> np.ndarray:
        """(3, 3), a column for each of its axes."""
        axis, angle = self.turn[0], np.radians(self.turn[1])
        i, j = (axis + 1) % 3, (axis + 2) % 3
        out = np.eye(3)
        out[i, i] = out[j, j] = np.cos(angle)
        out[j, i], out[i, j] = np.sin(angle), -np.sin(angle)
        return out


class Boxes:
    """What rays meet among boxes, by the slabs that each is the intersection of: exact, from outside."""

    def __init__(self, boxes: tuple[Box, ...]) -> None:
        self.boxes = boxes
        self._pattern = np.empty((len(boxes), 6), np.int64)
        self._colours = np.empty((len(boxes), 6, 2, 3))
        for i, box in enumerate(boxes):
            for k, face in enumerate(box.faces):
                pattern, *colours = face.split()
                self._pattern[i, k] = _PATTERNS.index(pattern)
                self._colours[i, k] = [_COLOURS[c] for c in colours]

    def __call__(self, origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `Trace`."""
        nearest = np.full(len(origins), np.inf)
        which = np.zeros(len(origins), np.int64)
        with np.errstate(divide="ignore", invalid="ignore"):
            for i, box in enumerate(self.boxes):
                axes = box.axes()
                o, d = (origins - np.array(box.centre)) @ axes, directions @ axes
                first, second = (-np.array(box.half) - o) / d, (np.array(box.half) - o) / d
                enter = np.fmin(first, second).max(1)
                leave = np.fmax(first, second).min(1)
                met = (enter <= leave) & (enter > 0) & (enter < nearest)
                nearest[met], which[met] = enter[met], i
        colour = np.zeros((len(origins), 3))
        for i, box in enumerate(self.boxes):
            rows = np.flatnonzero(np.isfinite(nearest) & (which == i))
            if len(rows):
                at = origins[rows] + nearest[rows, None] * directions[rows]
                colour[rows] = self._seen(i, (at - np.array(box.centre)) @ box.axes())
        return colour, nearest

    def _seen(self, which: int, at: np.ndarray) -> np.ndarray:
        """Colours (n, 3) of points (n, 3) on the surface of a box, in its own axes."""
        box = self.boxes[which]
        axis = (np.abs(at) / np.array(box.half)).argmax(1)
        rows = np.arange(len(at))
        sign = np.sign(at[rows, axis])
        face = 2 * axis + (sign < 0)
        u, v = at[rows, np.where(axis == 0, 1, 0)], at[rows, np.where(axis == 2, 1, 2)]
        pattern = self._pattern[which, face]
        i, j = (np.floor(w / box.period + 0.25).astype(np.int64) for w in (u, v))
        dot = np.hypot(*((w / box.period + 0.25) % 1 - 0.5 for w in (u, v))) < 0.33
        span = np.array(box.half)[np.where(axis == 2, 1, 2)]
        mix = np.select(
            [pattern == k for k in range(len(_PATTERNS))],
            [np.zeros(len(at)), i % 2, j % 2, (i + j) % 2, dot, (v / span + 1) / 2],
        )
        first, second = self._colours[which, face, 0], self._colours[which, face, 1]
        normals = np.zeros((len(at), 3))
        normals[rows, axis] = sign
        return (first + (second - first) * mix[:, None]) * lit(normals @ box.axes().T)


def _faces(*faces: str) -> tuple[str, ...]:
    """Of +x, -x, +y, -y and top; what lies below is seldom seen."""
    return (*faces, "plain grey grey")


THING = (
    Box((-0.06, 0.0, -0.475), (0.62, 0.46, 0.06), _faces(
        "upright red pink", "upright blue teal", "upright green yellow", "upright orange brown", "checked grey teal"),
        period=0.31),
    Box((-0.22, 0.06, -0.17), (0.34, 0.28, 0.245), _faces(
        "plain red red", "checked blue yellow", "upright green yellow", "dotted orange black", "level purple pink")),
    Box((0.33, -0.14, -0.1), (0.2, 0.24, 0.315), _faces(
        "level red yellow", "plain pink pink", "shaded teal blue", "dotted red black", "checked red black")),
    Box((-0.36, 0.2, 0.3), (0.12, 0.12, 0.235), _faces(
        "level purple yellow", "level black orange", "plain green green", "upright teal blue", "plain purple purple"),
        period=0.15),
    Box((0.0, 0.06, 0.545), (0.52, 0.075, 0.075), _faces(
        "plain red red", "plain blue blue", "upright black yellow", "upright brown orange", "upright black yellow"),
        turn=(2, -24.0), period=0.2),
    Box((0.36, -0.1, 0.335), (0.09, 0.09, 0.13), _faces(
        "plain yellow yellow", "plain teal teal", "plain black black", "plain brown brown", "plain pink pink")),
    Box((0.36, 0.3, -0.305), (0.13, 0.1, 0.11), _faces(
        "dotted green black", "plain yellow yellow", "checked blue orange", "plain black black", "plain green green"),
        turn=(2, 33.0), period=0.15),
    Box((-0.5, -0.35, -0.3), (0.09, 0.09, 0.115), _faces(
        "plain teal teal", "upright pink black", "plain brown brown", "level teal black", "plain orange orange"),
        turn=(2, 15.0), period=0.12),
)  # fmt: skip
"""A thing of eight boxes, no two sides of which are alike; z is up, and it lies within the unit ball."""

ROOM = (
    Box((0.0, 0.0, -7.4), (6.5, 6.0, 0.4), ("plain grey grey",) * 4 + ("checked teal white",) + ("plain grey grey",),
        period=1.3),
    Box((0.0, -1.9, -5.0), (5.5, 0.1, 2.1), (
        "plain brown brown", "plain brown brown", "upright brown orange", "plain brown brown", "plain brown brown",
        "plain brown brown"), period=0.9),
    Box((-0.75, -0.2, -2.9), (0.36, 0.5, 0.3), (
        "plain red red", "plain blue blue", "checked red white", "plain black black", "dotted red yellow",
        "plain red red"), turn=(1, 25.0), period=0.33),
    Box((0.95, -0.75, -3.6), (0.45, 0.6, 0.4), (
        "level green white", "shaded blue white", "plain yellow yellow", "plain black black", "upright blue yellow",
        "plain blue blue"), turn=(1, -35.0), period=0.36),
    Box((0.25, 0.75, -4.6), (1.0, 0.3, 0.3), (
        "plain pink pink", "plain pink pink", "plain pink pink", "checked black pink", "dotted purple white",
        "plain purple purple"), turn=(2, 20.0), period=0.4),
    Box((-2.0, -0.3, -5.6), (0.6, 1.4, 0.5), (
        "upright orange black", "plain orange orange", "plain white white", "plain white white", "level orange white",
        "plain white white"), turn=(1, 15.0), period=0.6),
    Box((2.6, 0.9, -6.0), (0.7, 0.7, 0.7), (
        "checked green white", "checked green black", "plain green green", "plain teal teal", "shaded green yellow",
        "plain green green"), turn=(1, 40.0), period=0.5),
)  # fmt: skip
"""Boxes at several depths between a floor and a wall; the mean camera is at the origin and looks along -z, y is up."""
