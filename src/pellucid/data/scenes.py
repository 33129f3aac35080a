"""A procedural world with every ground truth: textured shapes that float over a textured ground.

Everything is a closed form of the point, drawn over whole batches at once: shapes are signed distances,
textures are sums of sines whose amplitudes are those of their mean over a pixel. So a sample is the same
scene at every size, antialiased, and nothing is stored.

Nothing simple gives the objects away: ground and objects draw their textures, tones and contrasts
from the same distributions and lie anywhere in the frame. What differs is the hue (by two of the eight named
hues at least), the texture's parameters, the shading and the shadow.

Frame coordinates run from -1 to 1, x to the right and y down. The world's ground plane is the frame
under the pose (0, 0, 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np
import torch

from pellucid.data.draws import Draws
from pellucid.data.images import Split
from pellucid.types import Attribute, Batch

COLOURS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink")
TEXTURES = ("striped", "wavy", "checked", "dotted", "cloudy", "streaked")

_VERSION = 1  # part of the fingerprint: raise it when a sample changes
_HUES = np.deg2rad(np.array([27, 58, 98, 142, 190, 255, 305, 350], np.float32))  # of COLOURS, in OKLCh
_CAMERA = 3.0
"""The camera's distance from the ground, in half frames."""
_COVERED = (0.14, 0.42)
"""The share of the frame that the objects cover together, as drawn; overlap takes some of it away."""
_CHUNK = 32
"""Images drawn at once: small enough for their intermediate arrays to stay in the processor's cache."""
_WAVES = 8

# Weights of (sine, cross sine, their product, noise, bias) in each of TEXTURES; the tone is their squashed sum.
_MIX = np.array(
    [
        [1.0, 0.0, 0.0, 0.15, 0.0],
        [1.0, 0.0, 0.0, 0.15, 0.0],
        [0.0, 0.0, 1.3, 0.15, 0.0],
        [0.8, 0.8, 0.0, 0.10, -0.55],
        [0.0, 0.0, 0.0, 1.0, 0.0],
        [0.0, 0.0, 0.0, 1.0, 0.0],
    ],
    np.float32,
)

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


def _disc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - 1


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    qx, qy = np.abs(x) - 0.72, np.abs(y) - 0.72
    return np.hypot(np.maximum(qx, 0), np.maximum(qy, 0)) + np.minimum(np.maximum(qx, qy), 0) - 0.08


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    r, k = 0.85, 3**0.5
    x, y = np.abs(x) - r, r / k - y
    outside = x + k * y > 0
    x, y = np.where(outside, (x - k * y) / 2, x), np.where(outside, (-k * x - y) / 2, y)
    x = x - np.clip(x, -2 * r, 0)
    return -np.hypot(x, y) * np.sign(y) - 0.06


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x), -y
    for kx, ky in ((0.809016994, -0.587785252), (-0.809016994, -0.587785252)):
        fold = 2 * np.maximum(kx * x + ky * y, 0)
        x, y = x - fold * kx, y - fold * ky
    x, y = np.abs(x), y - 1
    bx, by = 0.52 * 0.587785252, 0.52 * 0.809016994 - 1
    along = np.clip((x * bx + y * by) / (bx * bx + by * by), 0, 1)
    return np.hypot(x - bx * along, y - by * along) * np.sign(y * bx - x * by)


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x), np.abs(y)
    x, y = np.maximum(x, y), np.minimum(x, y)
    long, wide = 0.92, 0.36
    qx, qy = x - long, y - wide
    k = np.maximum(qx, qy)
    out = k > 0
    wx, wy = np.where(out, qx, wide - x), np.where(out, qy, -k)
    return np.sign(k) * np.hypot(np.maximum(wx, 0), np.maximum(wy, 0)) - 0.04


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.7) - 0.3


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x) * 0.6, 0.6566 - y * 0.6
    lobe = np.hypot(x - 0.25, y - 0.75) - 2**0.5 / 4
    half = np.maximum(x + y, 0) / 2
    tip = np.minimum(np.hypot(x, y - 1), np.hypot(x - half, y - half)) * np.sign(x - y)
    return np.where(x + y > 1, lobe, tip) / 0.6


def _moon(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x - 0.337, np.abs(y)
    d, inner = 0.55, 0.75
    a = (1 - inner * inner + d * d) / (2 * d)
    b = (1 - a * a) ** 0.5
    tip = d * (x * b - y * a) > d * d * np.maximum(b - y, 0)
    edge = np.maximum(np.hypot(x, y) - 1, inner - np.hypot(x - d, y))
    return np.where(tip, np.hypot(x - a, y - b), edge)


# name -> (signed distance, area, radius of the circle around the origin that holds it), at scale 1.
# The distances follow I. Quilez, "2D distance functions".
_SHAPES: dict[str, tuple[Distance, float, float]] = {
    "disc": (_disc, 3.1416, 1.0),
    "square": (_square, 2.5545, 1.099),
    "triangle": (_triangle, 1.5683, 1.042),
    "star": (_star, 1.5282, 1.0),
    "cross": (_cross, 2.4292, 1.028),
    "ring": (_ring, 2.6389, 1.0),
    "heart": (_heart, 2.4799, 1.095),
    "moon": (_moon, 1.7396, 1.252),
}
SHAPES = tuple(_SHAPES)
_AREA = np.array([area for _, area, _ in _SHAPES.values()], np.float32)
_BOUND = np.array([bound for _, _, bound in _SHAPES.values()], np.float32)


@dataclass(frozen=True)
class _World:
    """Scenes as they are before anybody looks. B scenes, N object slots far to near, layer 0 is ground."""

    count: np.ndarray  # (B,)
    shape: np.ndarray  # (B, N)
    colour: np.ndarray  # (B, N + 1)
    texture: np.ndarray  # (B, N + 1)
    scale: np.ndarray  # (B, N) of the shape's distance function, half frames
    place: np.ndarray  # (B, N, 2) on the plane of the object
    height: np.ndarray  # (B, N) above the ground, half frames
    angle: np.ndarray  # (B, N) radians, clockwise on the screen
    velocity: np.ndarray  # (B, N, 2) a frame
    spin: np.ndarray  # (B, N) radians a frame
    bump: np.ndarray  # (B, N) how strongly the rim is shaded
    pose: np.ndarray  # (B, 3) pan x, pan y, zoom
    sway: np.ndarray  # (B, 3) how far the pose moves
    light: np.ndarray  # (B, 2) direction it comes from on the screen; unit length
    slant: np.ndarray  # (B,) length of a shadow by the height of what casts it
    falloff: np.ndarray  # (B,) how unevenly the light falls
    dark: np.ndarray  # (B,) the share of light that a shadow takes
    tones: np.ndarray  # (B, N + 1, 2, 3) linear RGB
    carriers: np.ndarray  # (B, N + 1, 4, 3) sine, cross sine and a warp of each: (kx, ky, phase)
    waves: np.ndarray  # (B, N + 1, _WAVES, 4) noise: (kx, ky, phase, amplitude)
    warp: np.ndarray  # (B, N + 1) radians
    mix: np.ndarray  # (B, N + 1, 5)
    sharp: np.ndarray  # (B, N + 1)

    def at(self, rows: np.ndarray | slice) -> _World:
        return _World(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


class Scenes:
    """A data set of procedural scenes.

    `labels` are the shape of the largest object. `masks` are 0 on ground and 1..N on objects, 1 the farthest.
    `truth` holds, with -1 (or 0 where it is a length) for objects that are not there:

        count (B,); shape, colour, texture (B, N): indices into SHAPES, COLOURS, TEXTURES
        ground_colour, ground_texture (B,)
        position (B, N, 2): centres in frame coordinates;  share (B, N): of the frame, occlusion apart
        rotation (B, N): radians clockwise;  height (B, N): above ground;  velocity (B, N, 2): a frame
        pose (B, 3): pan x, pan y, zoom;  light (B, 3): the direction to it on the screen, and its slant
        depth (B, H, W): distance from the camera;  shadow (B, H, W): the share of light taken, 0 to 1

    Lengths are half frames. Every number of a scene is a function of (seed, split, index) alone, and
    the splits are independent.

    Args:
        size: height and width, pixels.
        length: number of scenes.
        objects: least and most objects of a scene; at most 8.
        channels: 3 for colour, 1 for luminance.
    """

    class_names: tuple[str, ...] = SHAPES
    attributes: tuple[Attribute, ...] = ()
    table: np.ndarray | None = None

    def __init__(
        self,
        *,
        size: int,
        length: int = 50_000,
        seed: int = 0,
        split: Split = "train",
        objects: tuple[int, int] = (1, 3),
        channels: int = 3,
    ) -> None:
        low, high = objects
        if not 1 <= low <= high <= 8:
            raise ValueError(f"objects is {objects}: least and most of 1 to 8 objects, such as (1, 3)")
        if channels not in (1, 3):
            raise ValueError(f"channels is {channels}: use 3 for colour or 1 for grey")
        if size < 8:
            raise ValueError(f"size is {size}: scenes need at least 8 pixels")
        if length < 1:
            raise ValueError(f"length is {length}: at least 1")
        Draws(seed, split, np.zeros(1, np.int64))  # says what is wrong with either before training starts
        self.shape = (channels, size, size)
        self.seed, self.split, self.objects, self._length = seed, split, (low, high), length
        self.fingerprint = f"scenes-v{_VERSION}-{split}-{seed}-{length}-{size}-{channels}-{low}-{high}"

    def __len__(self) -> int:
        return self._length

    def batch(self, indices: np.ndarray) -> Batch:
        """The scenes of (B,) indices as they are at time 0, seen from their own pose."""
        world = self._world(indices)
        return self._render(world, world.pose, np.zeros(len(world.count), np.float32))

    def frames(self, index: int, count: int) -> Batch:
        """`count` frames of one scene in motion; frame 0 is the picture that `batch` gives.

        Objects drift, turn and come back at the edge of the world; the camera sways.
        """
        if count < 1:
            raise ValueError(f"count is {count}: at least 1 frame")
        world = self._world(np.full(count, index))
        time = np.arange(count, dtype=np.float32)
        return self._render(world, world.pose + world.sway * np.sin(0.35 * time)[:, None], time)

    def views(self, index: int, poses: np.ndarray) -> Batch:
        """One scene at time 0 from (V, 3) poses (pan x, pan y, zoom): what is nearer shifts more."""
        given = np.asarray(poses, np.float32)
        if given.ndim != 2 or given.shape[1] != 3 or not (given[:, 2] > 0).all():
            raise ValueError(f"poses are {given.shape}: expected (V, 3) of pan x, pan y and a zoom over 0")
        world = self._world(np.full(len(given), index))
        return self._render(world, given, np.zeros(len(given), np.float32))

    def captions(self, indices: np.ndarray) -> list[str]:
        """A sentence for each scene at time 0, objects from left to right."""
        world = self._world(indices)
        texts = []
        for row, count in enumerate(world.count):
            grounded = f"{TEXTURES[world.texture[row, 0]]} {COLOURS[world.colour[row, 0]]} ground"
            names = [
                _with_article(
                    f"{TEXTURES[world.texture[row, k + 1]]} {COLOURS[world.colour[row, k + 1]]} "
                    f"{SHAPES[world.shape[row, k]]}"
                )
                for k in np.argsort(world.place[row, :count, 0], kind="stable")
            ]
            listed = names[0] if count == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
            texts.append(f"{listed} over {_with_article(grounded)}")
        return texts

    def _world(self, indices: np.ndarray) -> _World:
        indices = np.asarray(indices, np.int64)
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"indices {indices.min()}..{indices.max()} of a data set of {len(self)}")
        draw = Draws(self.seed, self.split, indices)
        low, high = self.objects
        count = low + draw.choice(high - low + 1)
        there = np.arange(high) < count[:, None]

        ground_hue = draw.choice(8, 1)
        hues = (ground_hue + 2 + draw.choice(5, high)) % 8  # two named hues away from the ground's or more
        colour = np.concatenate([ground_hue, hues], 1)
        texture = draw.choice(len(TEXTURES), high + 1)
        shape = draw.choice(len(SHAPES), high)

        weight = draw.between(0.6, 1.4, high) * there
        share = draw.between(*_COVERED, 1) * weight / weight.sum(1, keepdims=True)
        on_screen = 2 * np.sqrt(share / _AREA[shape])  # the frame's area is 4
        height = np.sort(draw.between(0.08, 0.45, high), 1)
        pose = np.concatenate([draw.between(-0.2, 0.2, 2), np.exp2(draw.between(-0.3, 0.3, 1))], 1)
        nearness = pose[:, 2:] * _CAMERA / (_CAMERA - height)
        place = _spread(draw.between(-1, 1, 8, high, 2), on_screen * _BOUND[shape], there)
        direction = draw.between(0, 2 * np.pi)
        carriers, waves, warp, mix, sharp = _textures(draw, texture)
        return _World(
            count=count,
            shape=shape,
            colour=colour,
            texture=texture,
            scale=on_screen / nearness,
            place=place / nearness[..., None] + pose[:, None, :2],
            height=height,
            angle=draw.between(-1, 1, high),
            velocity=draw.between(-0.07, 0.07, high, 2),
            spin=draw.between(-0.15, 0.15, high),
            bump=draw.between(0.35, 0.8, high),
            pose=pose,
            sway=draw.between(-1, 1, 3) * np.array([0.2, 0.2, 0.08], np.float32),
            light=np.stack([np.cos(direction), np.sin(direction)], 1),
            slant=draw.between(0.4, 1.0),
            falloff=draw.between(0.05, 0.3),
            dark=draw.between(0.35, 0.65),
            tones=_tones(draw, colour),
            carriers=carriers,
            waves=waves,
            warp=warp,
            mix=mix,
            sharp=sharp,
        )

    def _render(self, world: _World, pose: np.ndarray, time: np.ndarray) -> Batch:
        size, total, slots = self.shape[-1], len(pose), world.shape.shape[1]
        image = np.empty((total, 3, size * size), np.float32)
        masks = np.zeros((total, size * size), np.int64)
        depth = np.full((total, size * size), _CAMERA, np.float32)
        shadow = np.zeros((total, size * size), np.float32)
        seen = [np.empty((total, slots, n), np.float32) for n in (2, 1, 1)]
        for start in range(0, total, _CHUNK):
            rows = slice(start, start + _CHUNK)
            layers = (a[rows] for a in (image, masks, depth, shadow))
            for out, part in zip(
                seen, _draw(world.at(rows), pose[rows], time[rows], size, *layers), strict=True
            ):
                out[rows] = part
        position, share, rotation = seen
        there = np.arange(slots) < world.count[:, None]
        if self.shape[0] == 1:
            image = np.tensordot(image, _LUMINANCE, (1, 0))[:, None]
        np.sqrt(image, out=image)  # linear light to what a screen takes, near enough
        image *= 2
        image -= 1
        largest = np.where(there, share[..., 0], -1).argmax(1)
        square = (total, size, size)
        truth = {
            "count": world.count,
            "shape": np.where(there, world.shape, -1),
            "colour": np.where(there, world.colour[:, 1:], -1),
            "texture": np.where(there, world.texture[:, 1:], -1),
            "ground_colour": world.colour[:, 0],
            "ground_texture": world.texture[:, 0],
            "position": position * there[..., None],
            "share": share[..., 0] * there,
            "rotation": rotation[..., 0] * there,
            "height": world.height * there,
            "velocity": world.velocity * there[..., None],
            "pose": pose,
            "light": np.concatenate([world.light, world.slant[:, None]], 1),
            "depth": depth.reshape(square),
            "shadow": shadow.reshape(square),
        }
        return Batch(
            x0=torch.from_numpy(image.reshape(total, self.shape[0], size, size)),
            labels=torch.from_numpy(world.shape[np.arange(total), largest]),
            masks=torch.from_numpy(masks.reshape(square)),
            truth={name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in truth.items()},
        )


@dataclass(frozen=True)
class _Toy:
    shape: str
    colour: str
    texture: str


TOYS = {
    "heart": _Toy("heart", "red", "cloudy"),
    "star": _Toy("star", "yellow", "striped"),
    "moon": _Toy("moon", "blue", "dotted"),
    "cross": _Toy("cross", "green", "checked"),
    "ring": _Toy("ring", "purple", "streaked"),
    "square": _Toy("square", "orange", "wavy"),
}
"""What a toy is: its shape, and what it is made of."""
GROUNDS = tuple(
    (texture, colour) for texture in ("striped", "cloudy") for colour in ("red", "yellow", "teal", "purple")
)
"""Texture and colour of what a toy stands on, duller than any toy."""
PLACES = {"middle": (0.0, 0.0), "left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
DISTANCES = {"near": 0.30, "far": 0.13}
"""The share of the frame that a disc as large as the toy covers."""
_OFF = {"near": 0.38, "far": 0.52}
"""How far from the middle a place is, half frames."""


class Toys(Scenes):
    """One toy a picture, with a table of three attributes: what it is, what it stands on, where it is seen.

    The factors of iLab-20M as DiffuseGAE takes them (identity, background, pose: 6 x 111 x 10 there), each drawn
    uniformly and independently. As there, a toy and a ground are each one thing, with a texture of its own, the same
    in every split. What the table does not say varies within a value: light and shadow, the exact place, the turn, and
    which part of the ground is seen. `labels` are the identity; `truth` is that of `Scenes`.

    Args:
        size, length, seed, split, channels: as of `Scenes`.
    """

    class_names = tuple(TOYS)
    attributes = (
        Attribute(name="identity", values=tuple(TOYS)),
        Attribute(name="background", values=tuple(f"{texture} {colour}" for texture, colour in GROUNDS)),
        Attribute(name="pose", values=tuple(f"{place} {far}" for far in DISTANCES for place in PLACES)),
    )

    def __init__(
        self, *, size: int, length: int = 10_000, seed: int = 0, split: Split = "train", channels: int = 3
    ) -> None:
        super().__init__(size=size, length=length, seed=seed, split=split, objects=(1, 1), channels=channels)
        self.fingerprint = f"toys-v1-{self.fingerprint}"
        self.table = self._values(np.arange(length))

    def _values(self, indices: np.ndarray) -> np.ndarray:
        """(B, 3), the first numbers drawn of a stream that the rest of the toys' draws continue."""
        draw = self._draws(indices)
        return np.stack([draw.choice(len(attribute.values)) for attribute in self.attributes], 1)

    def _draws(self, indices: np.ndarray) -> Draws:
        return Draws(self.seed + 1_000_003, self.split, indices)

    def batch(self, indices: np.ndarray) -> Batch:
        assert self.table is not None
        values = torch.from_numpy(self.table[np.asarray(indices, np.int64)])
        return replace(super().batch(indices), attributes=values, labels=values[:, 0])

    def _world(self, indices: np.ndarray) -> _World:
        world = super()._world(indices)
        draw = self._draws(indices)
        identity, background, pose = (draw.choice(len(attribute.values)) for attribute in self.attributes)
        toys = tuple(TOYS.values())
        shape = np.array([SHAPES.index(toy.shape) for toy in toys])[identity][:, None]
        made = _made_of()
        layers = np.stack([background, len(GROUNDS) + identity], 1)  # (B, 2): ground, then toy
        far = np.array(list(DISTANCES.values()))[pose // len(PLACES)]
        off = np.array(list(_OFF.values()))[pose // len(PLACES)]
        place = np.array(list(PLACES.values()), np.float32)[pose % len(PLACES)] * off[:, None]
        place = place + draw.between(-0.08, 0.08, 2)
        on_screen = (2 * np.sqrt(far / _AREA[0]) * np.exp2(draw.between(-0.1, 0.1))).astype(np.float32)[
            :, None
        ]
        height = draw.between(0.1, 0.3, 1)
        camera = np.concatenate([draw.between(-0.1, 0.1, 2), np.ones((len(indices), 1), np.float32)], 1)
        nearness = _CAMERA / (_CAMERA - height)
        return replace(
            world,
            shape=shape,
            **{name: values[layers] for name, values in made.items()},
            scale=on_screen / nearness,
            place=(place / nearness).astype(np.float32)[:, None] + camera[:, None, :2],
            height=height,
            angle=draw.between(-0.25, 0.25, 1),
            pose=camera,
        )


@lru_cache(maxsize=1)
def _made_of() -> dict[str, np.ndarray]:
    """Colour, texture and tones of every ground and then of every toy, the first axis of each array."""
    things = (*GROUNDS, *((toy.texture, toy.colour) for toy in TOYS.values()))
    draw = Draws(0, "train", np.arange(len(things)))
    texture = np.array([[TEXTURES.index(name)] for name, _ in things])
    colour = np.array([[COLOURS.index(name)] for _, name in things])
    carriers, waves, warp, mix, sharp = _textures(draw, texture)
    chroma = np.where(np.arange(len(things)) < len(GROUNDS), 0.055, 0.16).astype(np.float32)
    found = {
        "colour": colour, "texture": texture, "tones": _tones(draw, colour, chroma[:, None, None]),
        "carriers": carriers, "waves": waves, "warp": warp, "mix": mix, "sharp": sharp,
    }  # fmt: skip
    return {name: value[:, 0] for name, value in found.items()}


_LUMINANCE = np.array([0.2126, 0.7152, 0.0722], np.float32)
_LAB_TO_LMS = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]],
    np.float32,
)
_LMS_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ],
    np.float32,
)


def _with_article(text: str) -> str:
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def _spread(tries: np.ndarray, radius: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Of several layouts the first without overlap, or the one with least. (B, T, N, 2) -> (B, N, 2)."""
    places = tries * np.maximum(1 - 0.8 * radius, 0.05)[:, None, :, None]
    slack = np.zeros(tries.shape[:2], np.float32)
    slots = radius.shape[1]
    for i in range(slots):
        for j in range(i):
            apart = np.hypot(*np.moveaxis(places[:, :, i] - places[:, :, j], -1, 0))
            gap = apart - 0.85 * (radius[:, i] + radius[:, j])[:, None]
            both = (there[:, i] & there[:, j])[:, None]
            slack = np.minimum(slack, np.where(both, gap, 0))
    return places[np.arange(len(places)), slack.argmax(1)]


def _tones(draw: Draws, colour: np.ndarray, chroma: np.ndarray | None = None) -> np.ndarray:
    """Two tones of each layer's hue, a dark and a light one: (B, M) -> (B, M, 2, 3) linear RGB, by OKLCh
    (B. Ottosson, "A perceptual color space for image processing", 2020). `chroma` is drawn, or (B, M or 1, 1)."""
    layers = colour.shape[1]
    middle = draw.between(0.42, 0.75, layers, 1)
    contrast = draw.between(0.14, 0.34, layers, 1)
    lightness = middle + contrast * np.array([-0.5, 0.5], np.float32)
    strength = draw.between(0.08, 0.17, layers, 1) if chroma is None else chroma
    strength = strength * np.ones(2, np.float32)
    hue = (
        _HUES[colour][..., None] + draw.between(-0.15, 0.15, layers, 1) + draw.between(-0.15, 0.15, layers, 2)
    )
    lab = np.stack([lightness, strength * np.cos(hue), strength * np.sin(hue)], -1)
    return ((lab @ _LAB_TO_LMS.T) ** 3 @ _LMS_TO_RGB.T).clip(0.002, 1)


def _textures(draw: Draws, texture: np.ndarray) -> tuple[np.ndarray, ...]:
    """carriers, waves, warp, mix and sharp of `_World` for (B, M) families; wave numbers in radians a unit."""
    layers = texture.shape[1]
    turn = draw.between(0, np.pi, layers, 1)
    number = np.pi * 2.5 * (7 / 2.5) ** draw.uniform(layers, 1)  # 2.5 to 7 cycles a frame
    across = turn + np.pi / 2 + draw.between(-0.2, 0.2, layers, 1)
    angles = np.concatenate([turn, across, across, turn], -1)
    numbers = number * np.concatenate(
        [np.ones_like(number), draw.between(0.75, 1.3, layers, 1), draw.between(0.3, 0.6, layers, 2)], -1
    )
    phases = draw.between(0, 2 * np.pi, layers, 4)
    carriers = np.stack([numbers * np.cos(angles), numbers * np.sin(angles), phases], -1)

    streaked = (texture == TEXTURES.index("streaked"))[..., None]
    around = draw.between(-1, 1, layers, _WAVES)
    angles = turn + np.where(streaked, 0.15, np.pi) * around
    octave = draw.between(-1.2, 0.5, layers, _WAVES)
    octave[..., -2:] += 2.5  # fine grain: large pictures show it, small ones average it away
    numbers = number * np.exp2(octave)
    amplitude = np.exp2(-0.5 * octave) * np.float32(0.36)
    phases = draw.between(0, 2 * np.pi, layers, _WAVES)
    waves = np.stack([numbers * np.cos(angles), numbers * np.sin(angles), phases, amplitude], -1)

    wavy = texture == TEXTURES.index("wavy")
    warp = np.where(wavy, draw.between(1.2, 2.2, layers), draw.between(0, 0.5, layers))
    sharp = draw.between(1.2, 4, layers)
    return carriers, waves.astype(np.float32), warp, _MIX[texture], sharp


Texture = tuple[np.ndarray, ...]


def _seen(world: _World, layer: int | slice, pixel: np.ndarray) -> Texture:
    """A layer's texture as pixels of this width (world units) average it; parameter axes first, B last."""

    def last(a: np.ndarray) -> np.ndarray:
        # (B, *params) or (B, N, *params) -> (*params, B) or (*params, N * B), slot by slot
        a = np.moveaxis(a[:, layer], 0, -1)
        if isinstance(layer, int):
            return a
        return np.moveaxis(a, 0, -2).reshape(*a.shape[1:-1], -1)

    def filtered(number: np.ndarray) -> np.ndarray:
        return np.sinc(number * (pixel / np.float32(2 * np.pi)))  # the mean of a sine over a pixel

    carriers, waves, tones = last(world.carriers), last(world.waves).copy(), last(world.tones)
    waves[:, 3] *= filtered(np.hypot(waves[:, 0], waves[:, 1]))
    numbers = np.hypot(carriers[:2, 0], carriers[:2, 1])
    first, second = filtered(numbers)
    # an edge no sharper than a pixel
    sharp = 1 / np.sqrt(1 / last(world.sharp) ** 2 + (0.5 * numbers[0] * pixel) ** 2)
    mix = last(world.mix) * sharp
    mix = np.stack([mix[0] * first, mix[1] * second, mix[2] * first * second, mix[3], mix[4]])
    return carriers, waves, last(world.warp), mix, tones


def _paint(x: np.ndarray, y: np.ndarray, texture: Texture) -> np.ndarray:
    """Linear RGB (3, ...) of a texture at points (world units); its parameters broadcast against them."""
    carriers, waves, warp, mix, tones = texture

    def sine(wave: np.ndarray, shift: np.ndarray | float = 0.0) -> np.ndarray:
        phase = (wave[0] * x + wave[2]) + wave[1] * y
        phase += shift
        return np.sin(phase, out=phase)

    first = sine(carriers[0], warp * sine(carriers[2]))
    second = sine(carriers[1], warp * sine(carriers[3]))
    noise = waves[0, 3] * sine(waves[0])
    for wave in waves[1:]:
        noise += wave[3] * sine(wave)
    tone = mix[0] * first + mix[1] * second + mix[2] * (first * second) + mix[3] * noise + mix[4]
    tone = tone / np.sqrt(1 + tone * tone) * 0.5 + 0.5
    return tones[0] + (tones[1] - tones[0]) * tone


def _draw(
    world: _World,
    pose: np.ndarray,
    time: np.ndarray,
    size: int,
    image: np.ndarray,
    masks: np.ndarray,
    depth: np.ndarray,
    shadow: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fill image (B, 3, P), masks, depth and shadow (B, P) with P = size * size pixels.

    -> where the objects are seen: position (B, N, 2), share (B, N, 1), rotation (B, N, 1).
    """
    batch, slots = world.shape.shape
    pan, zoom = pose[:, :2], pose[:, 2]
    pixel = np.float32(2 / size)
    grid = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * pixel - 1
    light_x, light_y = world.light.T

    # the ground
    x = (grid / zoom[:, None] + pan[:, :1])[:, None, :]
    y = (grid / zoom[:, None] + pan[:, 1:])[:, :, None]
    ground = tuple(a[..., None, None] for a in _seen(world, 0, pixel / zoom))
    canvas = _paint(x, y, ground).reshape(3, -1)  # (3, B * P)
    masks, depth, shadow = masks.reshape(-1), depth.reshape(-1), shadow.reshape(-1)

    # the objects as they are now, slot by slot: (N * B,)
    there = (np.arange(slots)[:, None] < world.count).reshape(-1)
    scene = np.tile(np.arange(batch), slots)
    nearness = zoom[:, None] * _CAMERA / (_CAMERA - world.height)
    place = _fold(world.place + world.velocity * time[:, None, None], np.maximum(np.abs(world.place), 1))
    centre = (place - pan[:, None]) * nearness[..., None]
    angle = world.angle + world.spin * time[:, None]
    scale = world.scale * nearness
    fallen = (
        place - world.light[:, None] * (world.height * world.slant[:, None])[..., None] - pan[:, None]
    ) * zoom[:, None, None]
    flat = lambda a: np.ascontiguousarray(a.T).reshape(-1)
    shape, turned, lifted = flat(world.shape), flat(angle), flat(world.height)
    bound = _BOUND[shape]
    scale_here, scale_below = flat(scale), flat(world.scale) * zoom[scene]

    # their pixels and those of their shadows; distances of both in one go
    middle = (flat(centre[..., 0]), flat(centre[..., 1]))
    below = (flat(fallen[..., 0]), flat(fallen[..., 1]))
    soft = 0.03 + 0.35 * lifted * zoom[scene]
    who, at, dx, dy = _near(*middle, scale_here * bound + pixel, there, grid, batch)
    who_s, at_s, sx, sy = _near(*below, scale_below * bound + soft, there, grid, batch)
    cos, sin = np.cos(turned), np.sin(turned)
    dx, dy = (a / scale_here[who] for a in _rotated(dx, dy, cos[who], sin[who]))
    sx, sy = (a / scale_below[who_s] for a in _rotated(sx, sy, cos[who_s], sin[who_s]))
    toward_x, toward_y = _rotated(light_x[scene], light_y[scene], cos, sin)
    step = np.float32(0.12)
    kinds = shape[who]
    near, lit, fell = np.split(
        _distances(
            np.concatenate([kinds, kinds, shape[who_s]]),
            np.concatenate([dx, dx + step * toward_x[who], sx]),
            np.concatenate([dy, dy + step * toward_y[who], sy]),
        ),
        [len(who), 2 * len(who)],
    )

    alpha = np.clip(0.5 - near * (scale_here / pixel)[who], 0, 1)
    texture = _seen(world, slice(1, None), pixel / flat(nearness))
    world_scale = flat(world.scale)[who]
    colour = _paint(dx * world_scale, dy * world_scale, tuple(np.take(a, who, -1) for a in texture))
    colour *= (1 + flat(world.bump)[who] * (_rim(near) - _rim(lit)) / step).clip(0.3, 1.7)
    blocked = np.clip(0.5 - fell * (scale_below / soft)[who_s], 0, 1)
    blocked *= blocked * (3 - 2 * blocked)

    for slot in range(slots):  # far to near
        part = slice(*np.searchsorted(who_s, (slot * batch, (slot + 1) * batch)))
        pixels, taken = at_s[part], blocked[part] * world.dark[scene[who_s[part]]]
        canvas[:, pixels] *= 1 - taken
        shadow[pixels] = np.maximum(shadow[pixels], taken)
        part = slice(*np.searchsorted(who, (slot * batch, (slot + 1) * batch)))
        pixels, cover = at[part], alpha[part]
        under = canvas[:, pixels]
        canvas[:, pixels] = under + cover * (colour[:, part] - under)
        shadow[pixels] *= 1 - cover
        solid = cover >= 0.5
        masks[pixels[solid]] = slot + 1
        depth[pixels[solid]] = (_CAMERA - lifted)[who[part][solid]]

    lights = 1 + world.falloff[:, None, None] * (
        light_x[:, None, None] * grid + light_y[:, None, None] * grid[:, None]
    )
    canvas *= lights.reshape(-1)
    np.clip(canvas, 0, 1, out=canvas)
    image[:] = canvas.reshape(3, batch, -1).transpose(1, 0, 2)
    share = _AREA[world.shape] * scale**2 / 4
    return centre, share[..., None], angle[..., None]


def _fold(x: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """x reflected into [-limit, limit] as often as needed."""
    return limit - np.abs((x + limit) % (4 * limit) - 2 * limit)


def _rotated(x: np.ndarray, y: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Screen offsets -> an object's own axes, which are turned clockwise (y runs down)."""
    return cos * x + sin * y, cos * y - sin * x


def _near(
    x: np.ndarray, y: np.ndarray, reach: np.ndarray, there: np.ndarray, grid: np.ndarray, batch: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pixels in the boxes of objects (N * B,): the object, the place in (B * P,) and the offset of each."""
    size = len(grid)
    batch_of = np.flatnonzero(there)
    columns = np.abs(grid - x[batch_of, None]) <= reach[batch_of, None]
    rows = np.abs(grid - y[batch_of, None]) <= reach[batch_of, None]
    found = np.flatnonzero(rows[:, :, None] & columns[:, None, :])
    pair, pixel = np.divmod(found, size * size)
    who = batch_of[pair]
    row, column = np.divmod(pixel, size)
    scene = who % batch
    return who, scene * (size * size) + pixel, grid[column] - x[who], grid[row] - y[who]


def _distances(shape: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distances at points of shapes at scale 1, negative inside."""
    out = np.empty_like(x)
    for kind, (distance, _, _) in enumerate(_SHAPES.values()):
        mine = np.flatnonzero(shape == kind)
        if len(mine):
            out[mine] = distance(x[mine], y[mine])
    return out


def _rim(distance: np.ndarray) -> np.ndarray:
    """The height of a bevelled surface at a distance from its edge, shape scale 1."""
    inward = np.clip(distance * np.float32(-1 / 0.4), 0, 1)
    return 0.4 * inward * (2 - inward)
