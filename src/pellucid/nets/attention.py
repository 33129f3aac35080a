"""Self-attention over the places of a feature map."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.nets.blocks import groups_for, zeroed


class SelfAttention(nn.Module):
    """(B, C, H, W) -> the same, a residual around multi-head attention over the H * W places."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide {width} channels; use a divisor")
        self.heads = heads
        self.norm = nn.GroupNorm(groups_for(width), width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = zeroed(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, HW, C)
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(h).transpose(1, 2).view(b, c, height, width)
