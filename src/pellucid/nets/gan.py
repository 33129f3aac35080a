"""Generator and encoder of a GAN: residual networks for images, four plain layers for points.

After BigGAN (Brock et al., 2019): a picture grows from 4 x 4 by residual blocks, each told the latent code by a scale
and a shift, with self-attention at one size; the encoder is its mirror. Norms are over groups of channels, so that what
a network says of one picture never depends on the others of its batch: a critic's gradient penalty, a reading of one
photograph and an average of weights all need that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pellucid.nets.attention import SelfAttention
from pellucid.nets.blocks import Down, NormSiLU, ResBlock, Up, conv3
from pellucid.nets.modulation import VectorModulator


@dataclass(frozen=True, kw_only=True)
class GANConfig:
    kind: Literal["conv", "mlp"] = "conv"
    """conv: images of 8 pixels a side or more. mlp: points, as (B, C, 1, 1)."""
    size: int = 32
    """Pixels of a side, 4 times a power of two; 1 for points."""
    channels: int = 3
    base: int = 64
    """conv: channels at the full size, doubled with each halving up to `most` times. mlp: units a layer."""
    most: int = 4
    """Largest multiple of `base`."""
    stem: int = 1
    """conv: pixels of a side that the first and last layers take at once; 2 leaves out the full size, and with it most
    of the arithmetic. `base` is then the width at size / stem."""
    attention: int = 16
    """The size at which there is self-attention; 0 for none."""
    smooth: bool = False
    """mlp: SiLU for the generator's ReLU. What ReLU makes of a curve is a chain of straight pieces."""

    def __post_init__(self) -> None:
        if self.kind == "mlp":
            if self.size != 1:
                raise ValueError(f"size is {self.size}; an mlp takes points, of size 1")
        elif self.size < 8 or self.size & (self.size - 1):
            raise ValueError(f"size is {self.size}; a power of two from 8 on")
        if self.base < 8 or self.most < 1:
            raise ValueError(f"base is {self.base} and most {self.most}; at least 8 and 1")
        if self.kind == "conv" and (self.stem not in (1, 2, 4) or self.size // self.stem < 4):
            raise ValueError(
                f"stem is {self.stem}; 1, 2 or 4, and no more than a quarter of size, {self.size}"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each size, from size / stem down to 4 x 4."""
        halvings = (self.size // self.stem // 4).bit_length() - 1
        return tuple(self.base * min(2**i, self.most) for i in range(halvings + 1))


def layers(c_in: int, c_out: int, units: int, *, norm: bool, smooth: bool = False) -> nn.Sequential:
    """Four fully connected layers, with layer norms between the later ones or without: (B, c_in) -> (B, c_out).

    The first has none: what is linear in a point and has been normed says little of how far from the origin it lies.
    """
    parts: list[nn.Module] = []
    for i in range(3):
        parts.append(nn.Linear(c_in, units))
        if norm and i:
            parts.append(nn.LayerNorm(units))
        parts.append(nn.LeakyReLU(0.2) if norm else nn.SiLU() if smooth else nn.ReLU())
        c_in = units
    return nn.Sequential(*parts, nn.Linear(c_in, c_out))


class Generator(nn.Module):
    """(B, d) -> (B, C, H, W): images in [-1, 1]; points anywhere."""

    def __init__(self, cfg: GANConfig, dim: int) -> None:
        super().__init__()
        self.cfg = cfg
        if cfg.kind == "mlp":
            self.net = layers(dim, cfg.channels, cfg.base, norm=False, smooth=cfg.smooth)
            return
        widths = cfg.widths[::-1]
        self.seed = nn.Linear(dim, widths[0] * 16)
        self.blocks, self.ups, self.attend = nn.ModuleList(), nn.ModuleList(), nn.ModuleDict()
        for i, (c_in, c_out) in enumerate(zip((widths[0], *widths), widths, strict=False)):
            self.blocks.append(ResBlock(c_in, c_out))
            if cfg.attention == 4 * 2**i:
                self.attend[str(i)] = SelfAttention(c_out, max(1, c_out // 32))
            if i < len(widths) - 1:
                self.ups.append(Up(c_out))
        self.modulate = VectorModulator(widths, dim)
        self.norm = NormSiLU(widths[-1])
        # up by neighbours and not by a shuffle of channels, whose checks a critic of codes would never see
        self.grow = nn.Sequential(*(Up(widths[-1]) for _ in range(cfg.stem.bit_length() - 1)))
        self.tail = conv3(widths[-1], cfg.channels, padding_mode="zeros")

    def forward(self, z: Tensor) -> Tensor:
        if self.cfg.kind == "mlp":
            return self.net(z)[..., None, None]
        h = self.seed(z).unflatten(1, (-1, 4, 4))
        for i, (block, affine) in enumerate(zip(self.blocks, self.modulate(z), strict=True)):
            h = block(h, [affine])
            if str(i) in self.attend:
                h = self.attend[str(i)](h)
            if i < len(self.ups):
                h = self.ups[i](h)
        return torch.tanh(self.tail(self.grow(self.norm(h))))


class Encoder(nn.Module):
    """(B, C, H, W) -> (B, outputs), unbounded."""

    def __init__(self, cfg: GANConfig, outputs: int) -> None:
        super().__init__()
        self.cfg = cfg
        if cfg.kind == "mlp":
            self.net = layers(cfg.channels, outputs, cfg.base, norm=True)
            return
        widths = cfg.widths
        self.head = (
            conv3(cfg.channels, widths[0], padding_mode="zeros")
            if cfg.stem == 1
            else nn.Conv2d(cfg.channels, widths[0], 2 * cfg.stem, stride=cfg.stem, padding=cfg.stem // 2)
        )
        self.blocks, self.downs, self.attend = nn.ModuleList(), nn.ModuleList(), nn.ModuleDict()
        for i, (c_in, c_out) in enumerate(zip((widths[0], *widths), widths, strict=False)):
            self.blocks.append(ResBlock(c_in, c_out))
            if cfg.attention == cfg.size // cfg.stem // 2**i:
                self.attend[str(i)] = SelfAttention(c_out, max(1, c_out // 32))
            if i < len(widths) - 1:
                self.downs.append(Down(c_out))
        self.norm = NormSiLU(widths[-1])
        self.tail = nn.Linear(widths[-1] * 16, outputs)

    def features(self, x: Tensor) -> Tensor:
        """What the last layer sees: (B, D)."""
        if self.cfg.kind == "mlp":
            return self.net[:-1](x.flatten(1))
        h = self.head(x)
        for i, block in enumerate(self.blocks):
            h = block(h, ())
            if str(i) in self.attend:
                h = self.attend[str(i)](h)
            if i < len(self.downs):
                h = self.downs[i](h)
        return self.norm(h).flatten(1)

    @property
    def feature_width(self) -> int:
        return self.cfg.base if self.cfg.kind == "mlp" else self.cfg.widths[-1] * 16

    def concluded(self, features: Tensor) -> Tensor:
        """The last layer: (B, D) -> (B, outputs)."""
        return (self.net[-1] if self.cfg.kind == "mlp" else self.tail)(features)

    def forward(self, x: Tensor) -> Tensor:
        return self.concluded(self.features(x))
