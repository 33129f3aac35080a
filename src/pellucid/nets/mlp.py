"""Networks of vectors: residual blocks that keep or change the width, and a denoiser of latent codes.

B  batch; D  entries of a code
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.nets.blocks import groups_for
from pellucid.nets.embed import sinusoidal

Norm = Literal["layer", "group"]


class VectorGroupNorm(nn.GroupNorm):
    """Group norm of vectors (B, D), as a layer norm of each group: the same, and on a CPU many times faster."""

    def forward(self, x: Tensor) -> Tensor:
        groups = x.unflatten(1, (self.num_groups, -1))
        normed = F.layer_norm(groups, groups.shape[2:], eps=self.eps).flatten(1)
        return torch.addcmul(self.bias, normed, self.weight)


def norm_of(kind: Norm, width: int) -> nn.Module:
    """Over all entries, or over groups of them."""
    return nn.LayerNorm(width) if kind == "layer" else VectorGroupNorm(groups_for(width, 8), width)


class MLPBlock(nn.Module):
    """x + linear(SiLU(norm(x))) at one width; without the skip, only the second term (DiffuseGAE, figure 1b)."""

    def __init__(self, width: int, norm: Norm, *, skip: bool = True) -> None:
        super().__init__()
        self.norm, self.linear, self.skip = norm_of(norm, width), nn.Linear(width, width), skip

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(F.silu(self.norm(x)))
        return x + h if self.skip else h


class BottleneckBlock(nn.Module):
    """From one width to another, by the narrower of them, around a linear skip: (B, c_in) -> (B, c_out)."""

    def __init__(self, c_in: int, c_out: int, norm: Norm, *, skip: bool = True) -> None:
        super().__init__()
        narrow = min(c_in, c_out)
        self.norm1, self.linear1 = norm_of(norm, c_in), nn.Linear(c_in, narrow)
        self.norm2, self.linear2 = norm_of(norm, narrow), nn.Linear(narrow, c_out)
        self.skip = nn.Linear(c_in, c_out, bias=False) if skip else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear1(F.silu(self.norm1(x)))
        h = self.linear2(F.silu(self.norm2(h)))
        return h if self.skip is None else h + self.skip(x)


def chain(widths: Sequence[int], blocks: int, norm: Norm, *, skip: bool = True) -> nn.Sequential:
    """A bottleneck block from each of `widths` to the next, and `blocks` MLP blocks at the one end that is wider.

    (B, widths[0]) -> (B, widths[-1]). The last block of all keeps its skip, without which training is unstable
    (DiffuseGAE, section 3.4).
    """
    n = len(widths) - 1
    inward = widths[0] >= widths[-1]
    between = [
        BottleneckBlock(a, b, norm, skip=skip or (inward and i == n - 1))
        for i, (a, b) in enumerate(pairwise(widths))
    ]
    wide = [
        MLPBlock(max(widths[0], widths[-1]), norm, skip=skip or (not inward and i == blocks - 1))
        for i in range(blocks)
    ]
    return nn.Sequential(*wide, *between) if inward else nn.Sequential(*between, *wide)


class LatentDenoiser(nn.Module):
    """(B, D), t (B,) -> (B, D): layers that see the noisy code again at each of them, scaled by the time.

    The latent network of Preechakul et al., "Diffusion Autoencoders" (2022), table 7.
    """

    def __init__(self, dim: int, *, width: int, depth: int, time: int = 64) -> None:
        super().__init__()
        self.time = time
        self.embed = nn.Sequential(nn.Linear(time, width), nn.SiLU(), nn.Linear(width, width))
        self.inner = nn.ModuleList(nn.Linear(dim if i == 0 else width + dim, width) for i in range(depth))
        self.scales = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.tail = nn.Linear(width + dim, dim)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        told = F.silu(self.embed(sinusoidal(1000 * t, self.time).to(z.dtype)))
        h = z.new_zeros(len(z), 0)
        for linear, scale, norm in zip(self.inner, self.scales, self.norms, strict=True):
            h = linear(torch.cat([h, z], 1))
            h = F.silu(norm(h * (1 + scale(told))))
        return self.tail(torch.cat([h, z], 1))
