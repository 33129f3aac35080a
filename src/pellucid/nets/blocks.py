"""The convolutional parts that networks are built of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.types import Affine

Padding = Literal["zeros", "replicate", "circular", "reflect"]
M = TypeVar("M", bound=nn.Module)


def groups_for(width: int, most: int = 32) -> int:
    """Groups of a GroupNorm: `most` where that divides `width`, else fewer; four channels or more in each."""
    return math.gcd(width, min(most, max(1, width // 4)))


def conv3(c_in: int, c_out: int, *, padding_mode: Padding, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, padding_mode=padding_mode)


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """What the network computes inside passes gradients on to its input, and none to its parameters.

    So a generator learns from a critic, or cameras by a field, without half of the arithmetic of the way back.
    """
    ours = [p for p in network.parameters() if p.requires_grad]
    for p in ours:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in ours:
            p.requires_grad_(True)


def zeroed(module: M) -> M:
    """The module, its parameters set to zero: what it adds to a residual is nothing at first."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


class NormSiLU(nn.GroupNorm):
    """SiLU of the group norm of x (B, C, H, W), after each (scale, shift) in order: h * (1 + scale) + shift.

    On a CPU in full precision, affines without spatial extent are folded into the norm's own weight
    and bias and the whole runs as one autograd step, which keeps x alone where the plain form keeps
    four maps of its size and which never meets the slow channels_last kernels of GroupNorm.
    """

    def __init__(self, width: int) -> None:
        super().__init__(groups_for(width), width)

    def forward(self, x: Tensor, affines: Sequence[Affine] = ()) -> Tensor:
        flat = all(part.shape[-2:] == (1, 1) for pair in affines for part in pair)
        fused = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
        if flat and fused and not torch.compiler.is_compiling():
            a, b = self.weight.view(1, -1, 1, 1), self.bias.view(1, -1, 1, 1)
            for scale, shift in affines:
                a, b = a * (1 + scale), torch.addcmul(shift, b, 1 + scale)
            return _NormSiLU.apply(x, a, b, self.num_groups, self.eps)
        h = super().forward(x)
        for scale, shift in affines:
            h = shift + h * (1 + scale)
        return F.silu(h)


class _NormSiLU(torch.autograd.Function):
    """silu(a * (x - mean) * rstd + b), with mean and rstd of each group; a, b (1 or B, C, 1, 1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, groups: int, eps: float) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        y = x - mean  # centred before it is squared: a large mean costs no digits
        var = y.square_().mean((2, 3), keepdim=True)
        centre = _over_groups(mean, groups)
        rstd = (_over_groups(var + (mean - centre).square(), groups) + eps).rsqrt()
        gain = a * rstd
        torch.addcmul(torch.addcmul(b, gain, centre, value=-1), x, gain, out=y)
        ctx.groups, ctx.eps = groups, eps
        ctx.save_for_backward(x, a, b, centre, rstd)
        return F.silu(y, inplace=True)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, centre, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of this gradient is wanted, as for a penalty of its length
            y = _norm_silu(x, a, b, ctx.groups, ctx.eps)
            asked = [p for p, needed in zip((x, a, b), ctx.needs_input_grad[:3], strict=True) if needed]
            found = iter(torch.autograd.grad(y, asked, g, create_graph=True))
            return *(next(found) if needed else None for needed in ctx.needs_input_grad[:3]), None, None
        gain = a * rstd
        u = torch.addcmul(torch.addcmul(b, gain, centre, value=-1), x, gain)
        du = torch.ops.aten.silu_backward(g, u)
        db = du.sum((2, 3), keepdim=True)
        da = (torch.mul(du, x, out=u).sum((2, 3), keepdim=True) - centre * db) * rstd
        dx = None
        if ctx.needs_input_grad[0]:
            # dx = rstd (a du - mean(a du) - xhat mean(a du xhat)), means over a group, in terms of x and du
            places = x.shape[2] * x.shape[3]
            slope = rstd.square() * _over_groups(a * da, ctx.groups) / places
            level = slope * centre - rstd * _over_groups(a * db, ctx.groups) / places
            dx = torch.addcmul(level, x, slope, value=-1, out=u).addcmul_(du, gain)
        return dx, da.sum_to_size(a.shape), db.sum_to_size(b.shape), None, None


def _norm_silu(x: Tensor, a: Tensor, b: Tensor, groups: int, eps: float) -> Tensor:
    """What `_NormSiLU` computes, in steps that autograd knows."""
    return F.silu(torch.addcmul(b, a, F.group_norm(x, groups, eps=eps)))


def _over_groups(x: Tensor, groups: int) -> Tensor:
    """(B, C, 1, 1) -> the same shape, each channel holding the mean over its group."""
    grouped = x.unflatten(1, (groups, -1))
    return grouped.mean(2, keepdim=True).expand_as(grouped).flatten(1, 2)


class ResBlock(nn.Module):
    """norm, SiLU, conv, norm, modulation, SiLU, conv, around a residual (Ho et al., 2020; ADM, appendix A).

    The last convolution starts at zero, so that a new block is its residual path.
    """

    def __init__(
        self, c_in: int, c_out: int, *, dropout: float = 0.0, padding_mode: Padding = "zeros"
    ) -> None:
        super().__init__()
        self.width = c_out
        self.norm1 = NormSiLU(c_in)
        self.conv1 = conv3(c_in, c_out, padding_mode=padding_mode)
        self.norm2 = NormSiLU(c_out)
        self.drop = nn.Dropout(dropout)
        self.conv2 = zeroed(conv3(c_out, c_out, padding_mode=padding_mode))
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, affines: Sequence[Affine]) -> Tensor:
        """x (B, c_in, H, W) -> (B, c_out, H, W); affines are applied in order."""
        h = self.conv1(self.norm1(x))
        h = self.conv2(self.drop(self.norm2(h, affines)))
        return h.add_(self.skip(x))


class Down(nn.Module):
    """Half the size, by a strided convolution."""

    def __init__(self, width: int, *, padding_mode: Padding = "zeros") -> None:
        super().__init__()
        self.conv = conv3(width, width, padding_mode=padding_mode, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Up(nn.Conv2d):
    """Twice the size: nearest neighbour and a 3 x 3 convolution, on a CPU computed at the small size.

    Each output pixel sees two of its three input rows and columns twice, so the nine products fold
    into four: a transposed 4 x 4 convolution of stride 2 with rows and columns of the kernel summed
    (Shi et al., 2016, on sub-pixel convolution). Equal to the plain form, with 4/9 of its arithmetic.
    """

    def __init__(self, width: int, *, padding_mode: Padding = "zeros") -> None:
        super().__init__(width, width, 3, padding=1, padding_mode=padding_mode)
        # A doubled picture reflected about its border pixel shows that pixel's twin, hence replicate.
        self.pad = {"zeros": None, "reflect": "replicate"}.get(padding_mode, padding_mode)
        fold = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
        self.register_buffer("fold", fold, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":  # where it was measured; elsewhere the plain form
            return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        kernel = torch.einsum("ai,bj,ocij->coab", self.fold, self.fold, self.weight)
        if self.pad is None:
            return F.conv_transpose2d(x, kernel, self.bias, stride=2, padding=1)
        return F.conv_transpose2d(
            F.pad(x, (1, 1, 1, 1), mode=self.pad), kernel, self.bias, stride=2, padding=3
        )
