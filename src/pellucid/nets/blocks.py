"""The convolutional parts that networks are built of."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.types import Affine


def groups_for(width: int, most: int = 32) -> int:
    """Groups of a GroupNorm: `most` where that divides `width`, else fewer; four channels or more in each."""
    return math.gcd(width, min(most, max(1, width // 4)))


def conv3(c_in: int, c_out: int, *, padding_mode: str, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, padding_mode=padding_mode)


class ResBlock(nn.Module):
    """norm, SiLU, conv, norm, modulation, SiLU, conv, around a residual (Ho et al., 2020; ADM, appendix A).

    The last convolution starts at zero, so that a new block is its residual path.
    """

    def __init__(self, c_in: int, c_out: int, *, dropout: float = 0.0, padding_mode: str = "zeros") -> None:
        super().__init__()
        self.width = c_out
        self.norm1 = nn.GroupNorm(groups_for(c_in), c_in)
        self.conv1 = conv3(c_in, c_out, padding_mode=padding_mode)
        self.norm2 = nn.GroupNorm(groups_for(c_out), c_out)
        self.drop = nn.Dropout(dropout)
        self.conv2 = conv3(c_out, c_out, padding_mode=padding_mode)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, affines: Sequence[Affine]) -> Tensor:
        """x (B, c_in, H, W) -> (B, c_out, H, W); affines are applied in order."""
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        for scale, shift in affines:
            h = shift + h * (1 + scale)
        return self.skip(x) + self.conv2(self.drop(F.silu(h)))


class Down(nn.Module):
    """Half the size, by a strided convolution."""

    def __init__(self, width: int, *, padding_mode: str = "zeros") -> None:
        super().__init__()
        self.conv = conv3(width, width, padding_mode=padding_mode, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Up(nn.Module):
    """Twice the size, nearest neighbour and a convolution."""

    def __init__(self, width: int, *, padding_mode: str = "zeros") -> None:
        super().__init__()
        self.conv = conv3(width, width, padding_mode=padding_mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
