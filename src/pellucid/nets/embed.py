"""Embeddings of scalars."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoidal(value: Tensor, dim: int, *, longest: float = 10_000.0) -> Tensor:
    """(B,) -> (B, dim): sines, then cosines, of wavelengths 2 pi to 2 pi `longest` (Vaswani et al., 2017)."""
    if dim % 2:
        raise ValueError(f"a sinusoidal embedding has an even size, not {dim}")
    frequency = torch.exp(-math.log(longest) * torch.arange(dim // 2, device=value.device) / (dim // 2))
    angle = value.float()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)
