"""Modulators: every vector condition enters a U-Net as one (scale, shift) for each ResBlock.

A modulator is told the widths of the ResBlocks in the order they run, and maps its condition to as
many affine pairs. Modulators are applied one after the other: h * (1 + scale) + shift.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.nets.blocks import zeroed
from pellucid.nets.embed import sinusoidal
from pellucid.types import Affine

Modulation = Sequence[Affine]
"""One affine pair for each ResBlock, in the order they run."""


class VectorModulator(nn.Module):
    """A vector (B, D) -> L pairs of (B, C_i, 1, 1), one linear map for all blocks at once.

    With `zero` it starts as the identity: a condition added to a trained network changes nothing at first.
    """

    def __init__(self, widths: Sequence[int], dim: int, *, zero: bool = False) -> None:
        super().__init__()
        self.sizes = [c for width in widths for c in (width, width)]
        self.project = nn.Linear(dim, sum(self.sizes))
        if zero:
            zeroed(self.project)

    def forward(self, z: Tensor) -> list[Affine]:
        parts = self.project(F.silu(z))[..., None, None].split(self.sizes, dim=1)
        return list(zip(parts[::2], parts[1::2], strict=True))


class TimeModulator(nn.Module):
    """Time t (B,) in [0, 1], optionally with a class (B,), -> L pairs.

    The sinusoid sees 1000 t, so that its frequencies are those of a thousand discrete steps. Class
    `num_classes` is the null class that guidance needs.
    """

    def __init__(self, widths: Sequence[int], dim: int, *, num_classes: int | None = None) -> None:
        super().__init__()
        self.dim, self.width = dim, 4 * dim
        self.embed = nn.Sequential(nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, 4 * dim))
        self.classes = nn.Embedding(num_classes + 1, 4 * dim) if num_classes else None
        self.to_affine = VectorModulator(widths, 4 * dim)

    def embedded(self, t: Tensor, label: Tensor | None = None) -> Tensor:
        """(B, width): what the pairs are made of."""
        h = self.embed(sinusoidal(1000 * t, self.dim).to(next(self.embed.parameters()).dtype))
        if self.classes is not None:
            if label is None:
                label = torch.full(t.shape, self.classes.num_embeddings - 1, device=t.device)
            h = h + self.classes(label)
        return h

    def forward(self, t: Tensor, label: Tensor | None = None) -> list[Affine]:
        return self.to_affine(self.embedded(t, label))


def repeat(modulation: Modulation, k: int) -> list[Affine]:
    """Each sample's pairs k times in a row, (B, ...) -> (B k, ...), for a batch with k regions folded in."""
    return [(a.repeat_interleave(k, 0), b.repeat_interleave(k, 0)) for a, b in modulation]
