"""Contrastive learning on real pictures: two random views of each, told apart from those of the others.

Chen et al., "SimCLR" (2020); CoFi-UCGen, eqs. 11 to 13. Every random number is drawn from the generator that is passed
in; the image operations are kornia's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """How strongly a view differs from its picture."""

    crop: float = 0.3
    """Smallest share of the picture's area that a crop keeps."""
    mirror: bool = True
    """Mirror every other view."""
    jitter: float = 0.4
    """Largest relative change of brightness, contrast and saturation; a quarter of it, in turns, for the hue."""
    grey: float = 0.1
    """Share of the views without colour."""
    blur: float = 0.5
    """Share of the views that are blurred, by up to a 24th of their side."""

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop is {self.crop}; a share of the picture's area, above 0 and at most 1")
        for name in ("jitter", "grey", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it lies from 0 to 1")


def view(x: Tensor, cfg: ViewConfig, rng: torch.Generator) -> Tensor:
    """A random view of each picture: x (B, C, H, W) in [-1, 1] -> the same shape and range.

    Crop and mirroring are one resampling; colours change only where there are three channels.
    """
    from kornia import enhance, filters

    b, c, height, _ = x.shape
    uniform = lambda: torch.rand(b, generator=rng, device=rng.device).to(x.device)
    side = torch.lerp(
        torch.full((b,), cfg.crop, device=x.device), torch.ones(b, device=x.device), uniform()
    ).sqrt()
    turn = torch.where(uniform() < 0.5, -1.0, 1.0) if cfg.mirror else torch.ones(b, device=x.device)
    place = [(1 - side) * (2 * uniform() - 1) for _ in range(2)]  # of the crop's centre, in half widths
    zero = torch.zeros_like(side)
    affine = torch.stack([turn * side, zero, place[0], zero, side, place[1]], 1).view(b, 2, 3)
    grid = F.affine_grid(affine, list(x.shape), align_corners=False)
    y = F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)

    y = (y + 1) / 2
    if cfg.jitter:
        factor = lambda: 1 + cfg.jitter * (2 * uniform() - 1)
        y = enhance.adjust_brightness_accumulative(y, factor())
        y = enhance.adjust_contrast_with_mean_subtraction(y, factor())
        if c == 3:
            y = enhance.adjust_saturation_with_gray_subtraction(y, factor())
            y = enhance.adjust_hue(y.clamp(0, 1), (factor() - 1) / 4 * 2 * math.pi)
    if cfg.grey and c == 3:
        dull = (uniform() < cfg.grey).view(b, 1, 1, 1)
        weights = y.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        y = torch.where(dull, (y * weights).sum(1, keepdim=True).expand_as(y), y)
    if cfg.blur and height >= 24:
        sigma = (uniform() * height / 24).clamp(min=0.1)
        kernel = 2 * math.ceil(height / 24 * 2) + 1
        soft = filters.gaussian_blur2d(y, kernel, torch.stack([sigma, sigma], 1))
        y = torch.where((uniform() < cfg.blur).view(b, 1, 1, 1), soft, y)
    return y.clamp(0, 1) * 2 - 1


def nt_xent(a: Tensor, b: Tensor, temperature: float = 0.5) -> Tensor:
    """The normalised, temperature-scaled cross-entropy over both views (SimCLR, eq. 1): a, b (B, D) -> scalar.

    Row i of `a` and of `b` are views of one picture; the other 2 B - 2 rows are its negatives. The positive stands in
    the denominator, which eq. 13 of CoFi-UCGen leaves out: without it the loss has no lower bound.
    """
    if a.shape != b.shape or len(a) < 2:
        raise ValueError(f"views are {tuple(a.shape)} and {tuple(b.shape)}; equal shapes of two rows or more")
    unit = F.normalize(torch.cat([a, b]).float(), dim=1)
    with torch.autocast(unit.device.type, enabled=False):
        similar = unit @ unit.T / temperature
    similar = similar.masked_fill(torch.eye(len(unit), dtype=torch.bool, device=unit.device), -torch.inf)
    partner = torch.arange(len(unit), device=unit.device).roll(len(a))
    return F.cross_entropy(similar, partner)
