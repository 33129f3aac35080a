"""Cut-outs over crops of photographs: pictures whose true masks are exact and whose grounds no threshold separates.

Each sample is a pure function of (seed, split, index). Identities (an emoji with all its skin tones
and vendors; a drawing) and photographs each belong to one split alone, so test pictures hold unseen
objects on unseen grounds.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from pellucid.data import fetch
from pellucid.data.draws import Draws
from pellucid.data.images import BadImage, cache_folder, decode, to_unit
from pellucid.data.sources import Split
from pellucid.types import Attribute, Batch

Kind = Literal["emoji", "clipart"]
_VERSION = 3  # of the pictures: part of their fingerprint
_BANK = 5  # of what is cached: part of the cache's key
_SALT = {"train": 1, "val": 2, "test": 3}
_AREA = (0.12, 0.45)
"""The object's share of the frame, drawn uniformly."""
_INSIDE = 0.85
"""At least this much of a cut-out's width and of its height lies in the frame."""


def split_of(name: str) -> Split:
    """Which split a name belongs to, by its hash: 80, 8 and 12 in a hundred."""
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32
    return "train" if place < 0.8 else "val" if place < 0.88 else "test"


def photograph_splits(names: list[str]) -> dict[str, Split]:
    """Few photographs are split by rank of their hash, so that no split is left empty: 3 in 5, 1 in 5, 1 in 5."""
    ranked = sorted(names, key=lambda n: hashlib.sha256(n.encode()).digest())
    kinds: tuple[Split, ...] = ("train", "val", "train", "test", "train")
    return {name: kinds[i % 5] for i, name in enumerate(ranked)}


def _cutout_files(kind: Kind) -> list[tuple[str, str, Path]]:
    """(identity, class, file) of every cut-out: an emoji's category, the folder that a drawing lies in."""
    root = fetch.get(kind)
    if kind == "clipart":
        top = root / "drawings" / "png"
        return [(p.stem, p.relative_to(top).parts[0], p) for p in sorted(top.glob("**/*.png"))]
    entries = json.loads((root / "emoji.json").read_text())
    files = []
    for entry in entries:
        variants = [entry["image"], *(v["image"] for v in entry.get("skin_variations", {}).values())]
        for vendor in ("google", "twitter"):
            named = entry["short_name"], entry["category"]
            files += [(*named, root / vendor / "64" / image) for image in variants]
    return [(identity, category, p) for identity, category, p in files if p.is_file()]


def _load_cutout(path: Path, size: int) -> np.ndarray | None:
    """A cut-out trimmed to its alpha, longest side `size`, premultiplied, in a (size, size, 4) uint8 square."""
    try:
        rgba = np.asarray(decode(path, background=None), np.float32)
    except BadImage:
        return None
    solid = rgba[..., 3] >= 128
    if solid.mean() < 0.05 or (solid.mean() > 0.97):
        return None
    ys, xs = np.nonzero(solid)
    rgba = rgba[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    height, width = rgba.shape[:2]
    if (rgba[..., 3] >= 128).mean() < 0.3 or max(height, width) > 4 * min(height, width):
        return None
    rgba[..., :3] *= rgba[..., 3:] / 255
    scale = size / max(height, width)
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    channels = [
        np.asarray(Image.fromarray(rgba[..., c]).resize(shape, Image.Resampling.BOX)) for c in range(4)
    ]
    out = np.zeros((size, size, 4), np.uint8)
    out[: shape[1], : shape[0]] = np.stack(channels, -1).round().clip(0, 255)
    return out


def _photographs() -> list[tuple[str, Path]]:
    return [(p.name, p) for p in sorted((fetch.get("photos") / "photographs").iterdir())]


@lru_cache(maxsize=8)
def _bank(kind: Kind, split: Split, size: int) -> tuple[np.ndarray, ...]:
    """What samples of a split are made of, prepared once and cached on disk.

    -> cut-outs (N, S, S, 4) premultiplied, their sizes (N, 2), their classes (N,), the names of all classes,
    grounds (M, size, size, 3).
    """
    at = cache_folder() / "composites" / f"v{_BANK}-{kind}-{split}-{size}"
    names = ("cutouts", "sizes", "classes", "class_names", "grounds")
    if not at.is_dir():
        cutout, every = max(32, size), _cutout_files(kind)
        known = sorted({category for _, category, _ in every})
        files = [(category, p) for name, category, p in every if split_of(name) == split]
        loaded = [(known.index(category), _load_cutout(p, cutout)) for category, p in files]
        pieces = [(category, piece) for category, piece in loaded if piece is not None]
        cutouts, classes = np.stack([piece for _, piece in pieces]), np.array([c for c, _ in pieces])
        covered = cutouts[..., 3] > 0
        sizes = np.stack([covered.any(2).sum(1), covered.any(1).sum(1)], 1)
        grounds = _grounds(split, size)
        at.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=at.parent) as work:
            made = Path(work, "made")
            made.mkdir()
            for name, array in zip(names, (cutouts, sizes, classes, np.array(known), grounds), strict=True):
                np.save(made / f"{name}.npy", array, allow_pickle=False)
            if not at.is_dir():
                os.replace(made, at)
    return tuple(np.load(at / f"{n}.npy", mmap_mode="r", allow_pickle=False) for n in names)


def _grounds(split: Split, size: int, *, total: int = 6000) -> np.ndarray:
    """Crops of the split's photographs at scales from the whole picture to a sixteenth of it."""
    photographs = _photographs()
    splits = photograph_splits([name for name, _ in photographs])
    mine = [(name, p) for name, p in photographs if splits[name] == split]
    if split != "train":
        total //= 6
    crops = []
    for name, path in mine:
        rng = np.random.default_rng([*name.encode()])
        try:
            picture = decode(path, at_least=1024)
        except BadImage as error:
            raise ValueError(
                f"the fetched photograph {path} cannot be read ({error}); fetch `photos` again"
            ) from None
        shorter = min(picture.size)
        for _ in range(total // len(mine)):
            side = int(max(size, shorter * 2.0 ** -rng.uniform(0, 4)))
            x, y = (int(rng.integers(0, length - side + 1)) for length in picture.size)
            crop = picture.resize(
                (size, size), Image.Resampling.LANCZOS, box=(x, y, x + side, y + side), reducing_gap=2.0
            )
            crops.append(np.asarray(crop))
    return np.stack(crops)


class Composites:
    """A data set of composites with exact masks; `plain` puts the cut-outs on white.

    masks are 1 where the cut-out's alpha is one half or more; labels are the cut-outs' categories.
    """

    def __init__(
        self,
        *,
        kind: Kind,
        size: int,
        split: Split = "train",
        length: int = 20_000,
        seed: int = 0,
        channels: int = 3,
        plain: bool = False,
    ) -> None:
        if channels != 3:
            raise ValueError("composites are colour pictures: channels must be 3")
        self.attributes: tuple[Attribute, ...] = ()
        self.table: np.ndarray | None = None
        self.kind, self.split, self.length, self.seed, self.plain = kind, split, length, seed, plain
        self.shape = (3, size, size)
        self.cutouts, self.sizes, self.classes, known, self.grounds = _bank(kind, split, size)
        self.class_names: tuple[str, ...] = tuple(known.tolist())
        name = f"{kind}-plain" if plain else kind
        self.fingerprint = f"composites-v{_VERSION}-{name}-{split}-{size}-{seed}-{length}-{len(self.cutouts)}"

    def __len__(self) -> int:
        return self.length

    def batch(self, indices: np.ndarray) -> Batch:
        size = self.shape[-1]
        pixels = np.empty((len(indices), size, size, 3), np.uint8)
        masks = np.zeros((len(indices), size, size), np.int64)
        labels = np.zeros(len(indices), np.int64)
        for row, index in enumerate(np.asarray(indices)):
            pixels[row], masks[row], labels[row] = self._draw(int(index))
        return Batch(x0=to_unit(pixels), labels=torch.from_numpy(labels), masks=torch.from_numpy(masks))

    def _draw(self, index: int) -> tuple[np.ndarray, np.ndarray, int]:
        rng = np.random.default_rng([self.seed, _SALT[self.split], index])
        size = self.shape[-1]
        ground = self.grounds[int(rng.integers(len(self.grounds)))]
        if rng.random() < 0.5:
            ground = ground[:, ::-1]
        if self.plain:
            ground = np.full_like(ground, 255)
        which = int(rng.integers(len(self.cutouts)))
        height, width = (int(v) for v in self.sizes[which])
        piece = self.cutouts[which][:height, :width]
        if rng.random() < 0.5:
            piece = piece[:, ::-1]
        solid = (piece[..., 3] >= 128).sum()
        scale = np.sqrt(rng.uniform(*_AREA) * size * size / max(1, solid))
        scale = min(scale, size / (_INSIDE * max(height, width)))
        new = (max(2, round(width * scale)), max(2, round(height * scale)))
        piece = np.asarray(
            Image.fromarray(np.ascontiguousarray(piece), "RGBa").resize(new, Image.Resampling.BILINEAR)
        )
        top, left = (int(rng.integers(*_span(n, size))) for n in (new[1], new[0]))
        light = rng.uniform(0.8, 1.1)  # cut-outs are lit as unevenly as photographs are
        out = ground.astype(np.float32)
        rows = slice(max(0, top), min(size, top + new[1]))
        columns = slice(max(0, left), min(size, left + new[0]))
        part = piece[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        alpha = part[..., 3:].astype(np.float32) / 255
        out[rows, columns] = out[rows, columns] * (1 - alpha) + part[..., :3] * light
        mask = np.zeros((size, size), np.int64)
        mask[rows, columns] = alpha[..., 0] >= 0.5
        return out.clip(0, 255).astype(np.uint8), mask, int(self.classes[which])


def _span(length: int, size: int) -> tuple[int, int]:
    """Where a piece may begin, so that `_INSIDE` of it stays in the frame: [low, high)."""
    out = int((1 - _INSIDE) * length)
    low, high = -out, size - length + out
    return (low, high + 1) if high >= low else (high, low + 1)


SIGNS = (
    "wave", "ok_hand", "+1", "-1", "facepunch", "the_horns", "v", "point_up_2", "point_left", "call_me_hand", "muscle",
    "ear",
)  # fmt: skip
"""Short names of the emoji that `Hands` shows."""
TONES = {
    "light": "1f3fb",
    "medium-light": "1f3fc",
    "medium": "1f3fd",
    "medium-dark": "1f3fe",
    "dark": "1f3ff",
}
VENDORS = ("google", "twitter")
_SOLID = (0.25, 0.4)
"""The share of the frame that a hand covers."""


@lru_cache(maxsize=4)
def _hands(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Every hand (signs, tones, vendors, S, S, 4) premultiplied, and the height and width of each (.., 2)."""
    root = fetch.get("emoji")
    entries = {entry["short_name"]: entry for entry in json.loads((root / "emoji.json").read_text())}
    pieces, sizes = [], []
    for sign in SIGNS:
        variants = entries[sign]["skin_variations"]
        for tone in TONES.values():
            for vendor in VENDORS:
                path = root / vendor / "64" / variants[tone.upper()]["image"]
                piece = _load_cutout(path, max(32, size))
                if piece is None:
                    raise ValueError(
                        f"{path} is no picture of a hand; `pellucid data get emoji` fetches the set anew"
                    )
                covered = piece[..., 3] > 0
                pieces.append(piece)
                sizes.append((covered.any(1).sum(), covered.any(0).sum()))
    shape = (len(SIGNS), len(TONES), len(VENDORS))
    return np.stack(pieces).reshape(*shape, *pieces[0].shape), np.array(sizes).reshape(*shape, 2)


class Hands:
    """Emoji of hands on white, with a table of three attributes: the sign, the tone of the skin, and who drew it.

    12 x 5 x 2 drawings, each drawn uniformly. Place, size and light vary from picture to picture. All splits show the
    same drawings: what is unseen in test pictures is where they lie, and of `groups.Subset` which values come together.
    """

    attributes = (
        Attribute(name="sign", values=SIGNS),
        Attribute(name="tone", values=tuple(TONES)),
        Attribute(name="vendor", values=VENDORS),
    )
    class_names = SIGNS

    def __init__(
        self, *, size: int, split: Split = "train", length: int = 10_000, seed: int = 0, channels: int = 3
    ) -> None:
        if channels != 3:
            raise ValueError("hands are colour pictures: channels must be 3")
        self.shape, self.seed, self.split, self._length = (3, size, size), seed, split, length
        self._pieces, self._sizes = _hands(size)
        self.fingerprint = f"hands-v1-{split}-{size}-{seed}-{length}"
        draw = Draws(seed, split, np.arange(length))
        self.table: np.ndarray | None = np.stack([draw.choice(len(a.values)) for a in self.attributes], 1)
        self._place, self._light = draw.uniform(3), draw.between(0.95, 1.05)

    def __len__(self) -> int:
        return self._length

    def batch(self, indices: np.ndarray) -> Batch:
        """The samples of (B,) indices, in that order."""
        assert self.table is not None
        size = self.shape[-1]
        pixels = np.empty((len(indices), size, size, 3), np.uint8)
        for row, index in enumerate(np.asarray(indices)):
            which = tuple(self.table[index])
            height, width = (int(v) for v in self._sizes[which])
            piece = self._pieces[which][:height, :width]
            share, across, down = self._place[index]
            solid = max(1, int((piece[..., 3] >= 128).sum()))
            scale = np.sqrt((_SOLID[0] + share * (_SOLID[1] - _SOLID[0])) * size * size / solid)
            scale = min(scale, size / max(height, width))
            new = (max(2, round(width * scale)), max(2, round(height * scale)))
            hand = np.asarray(
                Image.fromarray(np.ascontiguousarray(piece), "RGBa").resize(new, Image.Resampling.BILINEAR)
            ).astype(np.float32)
            top, left = (round(float(u) * (size - n)) for u, n in ((down, new[1]), (across, new[0])))
            out = np.full((size, size, 3), 255, np.float32)
            under = out[top : top + new[1], left : left + new[0]]
            under[:] = under * (1 - hand[..., 3:] / 255) + hand[..., :3] * self._light[index]
            pixels[row] = out.clip(0, 255).astype(np.uint8)
        values = torch.from_numpy(self.table[np.asarray(indices)])
        return Batch(x0=to_unit(pixels), labels=values[:, 0], attributes=values)


class Photographs:
    """Crops of the fetched photographs, without masks."""

    class_names: tuple[str, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    table: np.ndarray | None = None

    def __init__(self, *, size: int, split: Split = "train") -> None:
        self.shape = (3, size, size)
        self.grounds = _bank("emoji", split, size)[-1] if fetch.have("emoji") else _grounds(split, size)
        self.fingerprint = f"photos-v{_VERSION}-{split}-{size}-{len(self.grounds)}"

    def __len__(self) -> int:
        return len(self.grounds)

    def batch(self, indices: np.ndarray) -> Batch:
        return Batch(x0=to_unit(self.grounds[indices]))
