"""Pictures of tensors: grids, overlays of regions, and PNGs that carry what made them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from pellucid.methods.base import Method, Stage

Preview = Callable[[Method, Stage], tuple[Image.Image, dict[str, Any]] | None]
"""Called with the method carrying its averaged weights, and the stage that is trained -> a picture of what it makes,
and what made the picture; None where there is nothing to see."""
PALETTE = (
    (230, 75, 53), (77, 187, 213), (0, 160, 135), (60, 84, 136), (243, 155, 127), (132, 145, 180),
    (145, 209, 194), (220, 0, 0), (126, 97, 72), (176, 156, 133), (255, 205, 86), (90, 24, 154),
)  # fmt: skip
"""One colour a region, told apart also in grey; more regions begin again."""

TURBO = (
    (0.13572138, 4.61539260, -42.66032258, 132.13108234, -152.94239396, 59.28637943),
    (0.09140261, 2.19418839, 4.84296658, -14.18503333, 4.27729857, 2.82956604),
    (0.10667330, 12.64194608, -60.58204836, 110.36276771, -89.90310912, 27.34824973),
)
"""Red, green and blue of `heat`, as polynomials of the number."""


def colours(k: int) -> np.ndarray:
    """(k, 3) uint8."""
    return np.array([PALETTE[i % len(PALETTE)] for i in range(k)], np.uint8)


def grid(images: Tensor, *, columns: int = 8, gap: int = 1) -> Image.Image:
    """(N, C, H, W) in [-1, 1] -> one picture, row by row, on white."""
    if images.ndim != 4 or not len(images):
        raise ValueError(f"a grid takes (N, C, H, W) images, one or more; got {tuple(images.shape)}")
    n, _, h, w = images.shape
    levels = images.detach().float().cpu().add(1).mul(127.5).round().clamp(0, 255).byte()
    pixels = levels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    rows = -(-n // columns)
    sheet = np.full((rows * (h + gap) + gap, min(n, columns) * (w + gap) + gap, 3), 255, np.uint8)
    for i in range(n):
        y, x = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        sheet[y : y + h, x : x + w] = pixels[i]
    picture = Image.fromarray(sheet)
    zoom = max(1, 64 // h)  # small images are shown large, in whole pixels
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def overlay(images: Tensor, labels: Tensor, *, strength: float = 0.6) -> Tensor:
    """Images (N, C, H, W) in [-1, 1] with each region (N, H, W) tinted in its colour -> (N, 3, H, W)."""
    table = torch.from_numpy(colours(int(labels.max()) + 1)).float().div(127.5).sub(1).to(images.device)
    tint = table[labels.long()].permute(0, 3, 1, 2)
    grey = images.float().mean(1, keepdim=True).expand(-1, 3, -1, -1)
    return torch.lerp(grey, tint, strength)


def indexed(labels: np.ndarray) -> Image.Image:
    """(H, W) region numbers -> a palette PNG whose pixel values are the numbers."""
    picture = Image.fromarray(labels.astype(np.uint8), "P")
    picture.putpalette(colours(256).flatten().tolist())
    return picture


def heat(values: Tensor, span: tuple[float, float]) -> Tensor:
    """Maps (N, H, W) of numbers in `span` -> pictures (N, 3, H, W) in [-1, 1]: blue is low, red is high.

    A polynomial of the turbo colour map (Mikhailov, 2019), whose lightness rises and falls once.
    """
    low, high = span
    x = ((values.float() - low) / (high - low)).clamp(0, 1)
    powers = torch.stack([x**k for k in range(6)], 1)  # (N, 6, H, W)
    rgb = torch.einsum("ck,nkhw->nchw", torch.tensor(TURBO, device=x.device), powers)
    return rgb.clamp(0, 1) * 2 - 1


def sixteen_bits(values: Tensor, span: tuple[float, float]) -> Image.Image:
    """A map (H, W) of numbers in `span` as a grey picture: low + (high - low) * pixel / 65535 is the number."""
    low, high = span
    levels = ((values.float() - low) / (high - low)).clamp(0, 1).mul(65535).round()
    return Image.fromarray(levels.cpu().numpy().astype(np.uint16))


def save_png(path: Path, picture: Image.Image, made_by: Mapping[str, Any]) -> None:
    """Write a PNG whose `pellucid` text chunk is `made_by` as JSON; complete or not there at all."""
    info = PngInfo()
    info.add_itxt("pellucid", json.dumps(dict(made_by), default=str))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    picture.save(part, "PNG", pnginfo=info)
    os.replace(part, path)


def samples_of(name: str, seed: int) -> Preview:
    """Draws what a method makes of the same noise each time, with its masks below; and says what made the picture.

    A stage says by which controls; nothing is drawn where it shows nothing, or where what is made is no picture.
    """

    def draw(method: Method, stage: Stage) -> tuple[Image.Image, dict[str, Any]] | None:
        channels, *sides = method.image_shape
        if not method.controls or stage.shows is None or channels not in (1, 3) or min(sides) < 2:
            return None
        controls = {"num_steps": 25} if "num_steps" in method.controls else {}
        sample = method.sample(8, torch.Generator().manual_seed(seed), **controls | dict(stage.shows))
        rows = [sample.images.cpu().expand(-1, 3, -1, -1)]
        if "masks" in sample.readouts:
            rows.append(overlay(sample.images.cpu(), sample.readouts["masks"].argmax(1).cpu()))
        made_by = {"recipe": name, "stage": stage.name, "seed": seed, "controls": dict(sample.controls)}
        return grid(torch.cat(rows)), made_by

    return draw
