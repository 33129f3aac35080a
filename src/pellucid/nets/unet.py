"""The U-Net, as three modules that can be used apart: Encoder, Middle and Decoder.

    B  batch; C_i, H_i, W_i  the size of ResBlock i; L  ResBlocks of a part

A part declares `widths`, the channels of its ResBlocks in the order they run, which is all that a
modulator needs to know, and takes any number of modulations of that length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.nets.attention import SelfAttention
from pellucid.nets.blocks import Down, NormSiLU, Padding, ResBlock, Up, conv3, zeroed
from pellucid.nets.modulation import Modulation


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Ho et al.'s (2020) U-Net, by its numbers."""

    channels: int = 3
    """Channels of the image, in and out."""
    stem: int = 1
    """Pixels of a side that the first and last convolutions take at once; 2 leaves out the full size, and with it most
    of the arithmetic. `base` is then the width at half the size."""
    base: int = 64
    """Channels of the first stage."""
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    """Each stage's channels as a multiple of `base`; one halving of the size between two stages."""
    blocks: int = 2
    """ResBlocks a stage on the way down (one more on the way up)."""
    attention: tuple[int, ...] = ()
    """Stages (0 is the full size) with self-attention after each ResBlock."""
    middle_attention: bool = True
    head_width: int = 32
    """Channels an attention head; the heads follow from it."""
    dropout: float = 0.0
    padding_mode: Padding = "zeros"

    def __post_init__(self) -> None:
        if self.base < 4 or self.blocks < 1 or not self.multipliers:
            raise ValueError(
                f"a U-Net needs base >= 4, blocks >= 1 and a multiplier; got base={self.base}, "
                f"blocks={self.blocks}, multipliers={self.multipliers}"
            )
        if self.stem not in (1, 2, 4):
            raise ValueError(f"stem is {self.stem}; it is 1, 2 or 4 pixels of a side")
        if any(not 0 <= s < len(self.multipliers) for s in self.attention):
            raise ValueError(
                f"attention={self.attention} names a stage that is not there; stages run from 0 to "
                f"{len(self.multipliers) - 1}"
            )

    @property
    def stage_widths(self) -> tuple[int, ...]:
        return tuple(self.base * m for m in self.multipliers)

    @property
    def stride(self) -> int:
        """What height and width must be divisible by."""
        return self.stem * 2 ** (len(self.multipliers) - 1)

    def heads(self, width: int) -> int:
        return max(1, width // self.head_width) if width % self.head_width == 0 else 1


class Block(nn.Module):
    """A ResBlock, and attention where the stage has it."""

    def __init__(self, cfg: UNetConfig, c_in: int, c_out: int, *, attention: bool) -> None:
        super().__init__()
        self.res = ResBlock(c_in, c_out, dropout=cfg.dropout, padding_mode=cfg.padding_mode)
        self.attend = SelfAttention(c_out, cfg.heads(c_out)) if attention else None

    def forward(self, x: Tensor, affines: Sequence) -> Tensor:
        h = self.res(x, affines)
        return h if self.attend is None else self.attend(h)


def skip_widths(cfg: UNetConfig) -> list[int]:
    """Channels of the skips that the Encoder hands on, finest first."""
    widths = [cfg.base]
    for s, width in enumerate(cfg.stage_widths):
        widths += [width] * (cfg.blocks + (s < len(cfg.multipliers) - 1))
    return widths


def at(mods: Sequence[Modulation], i: int) -> list:
    """The affine pairs of ResBlock i, one from each modulation."""
    return [m[i] for m in mods]


class Encoder(nn.Module):
    """The way down: an image to its coarsest features, keeping those of every block and halving as skips.

    `in_extra` are channels that the caller concatenates to the image.
    """

    def __init__(self, cfg: UNetConfig, *, in_extra: int = 0) -> None:
        super().__init__()
        self.cfg = cfg
        widths = cfg.stage_widths
        self.head = conv3((cfg.channels + in_extra) * cfg.stem**2, cfg.base, padding_mode=cfg.padding_mode)
        self.stages = nn.ModuleList()
        self.downs = nn.ModuleList()
        c = cfg.base
        for s, width in enumerate(widths):
            blocks = nn.ModuleList()
            for _ in range(cfg.blocks):
                blocks.append(Block(cfg, c, width, attention=s in cfg.attention))
                c = width
            self.stages.append(blocks)
            if s < len(widths) - 1:
                self.downs.append(Down(c, padding_mode=cfg.padding_mode))
        self.widths = tuple(w for w in widths for _ in range(cfg.blocks))

    def forward(self, x: Tensor, *mods: Modulation) -> tuple[Tensor, list[Tensor]]:
        """x (B, C, H, W) -> h (B, C_L, H / stride, W / stride) and the skips, finest first."""
        stride = self.cfg.stride
        if x.shape[-1] % stride or x.shape[-2] % stride:
            raise ValueError(
                f"the image is {x.shape[-2]}x{x.shape[-1]}; this U-Net makes it {stride} times smaller, so both sides "
                f"must be multiples of {stride}"
            )
        h = self.head(x if self.cfg.stem == 1 else F.pixel_unshuffle(x, self.cfg.stem))
        skips = [h]
        i = 0
        for s, blocks in enumerate(self.stages):
            for block in blocks.children():
                h = block(h, at(mods, i))
                skips.append(h)
                i += 1
            if s < len(self.downs):
                h = self.downs[s](h)
                skips.append(h)
        return h, skips


class Middle(nn.Module):
    """Two ResBlocks at the coarsest size, with attention between them where the config asks for it."""

    def __init__(self, cfg: UNetConfig) -> None:
        super().__init__()
        c = cfg.stage_widths[-1]
        self.first = Block(cfg, c, c, attention=cfg.middle_attention)
        self.second = Block(cfg, c, c, attention=False)
        self.widths = (c, c)

    def forward(self, h: Tensor, *mods: Modulation) -> Tensor:
        return self.second(self.first(h, at(mods, 0)), at(mods, 1))


class Decoder(nn.Module):
    """The way up, to an output convolution that starts at zero unless `zero_tail` is off.

    `skip_extra` and `in_extra` are channels that the caller concatenates to each skip and to h.
    """

    def __init__(
        self,
        cfg: UNetConfig,
        out_channels: int | None = None,
        *,
        skip_extra: int = 0,
        in_extra: int = 0,
        zero_tail: bool = True,
    ) -> None:
        super().__init__()
        widths = cfg.stage_widths
        skips = skip_widths(cfg)
        self.stages = nn.ModuleList()
        self.ups = nn.ModuleList()
        c = widths[-1] + in_extra
        for s in reversed(range(len(widths))):
            blocks = nn.ModuleList()
            for _ in range(cfg.blocks + 1):
                blocks.append(
                    Block(cfg, c + skips.pop() + skip_extra, widths[s], attention=s in cfg.attention)
                )
                c = widths[s]
            self.stages.append(blocks)
            if s:
                self.ups.append(Up(c, padding_mode=cfg.padding_mode))
        self.norm = NormSiLU(c)
        self.stem = cfg.stem
        tail = conv3(c, (out_channels or cfg.channels) * cfg.stem**2, padding_mode=cfg.padding_mode)
        self.tail = zeroed(tail) if zero_tail else tail
        self.widths = tuple(w for w in reversed(widths) for _ in range(cfg.blocks + 1))
        self.feature_width = c

    def features(self, h: Tensor, skips: Sequence[Tensor], *mods: Modulation) -> Tensor:
        """Everything but the last convolution: (B, feature_width, H / stem, W / stem)."""
        rest = list(skips)
        i = 0
        for s, blocks in enumerate(self.stages):
            for block in blocks.children():
                h = block(torch.cat([h, rest.pop()], dim=1), at(mods, i))
                i += 1
            if s < len(self.ups):
                h = self.ups[s](h)
        return self.norm(h)

    def forward(self, h: Tensor, skips: Sequence[Tensor], *mods: Modulation) -> Tensor:
        """h and skips as the Encoder gave them -> (B, out_channels, H, W)."""
        return self.concluded(self.features(h, skips, *mods))

    def concluded(self, features: Tensor) -> Tensor:
        """The last convolution: what `features` gave -> (B, out_channels, H, W)."""
        out = self.tail(features)
        return out if self.stem == 1 else F.pixel_shuffle(out, self.stem)


class UNet(nn.Module):
    """Encoder, Middle and Decoder in a row. `in_extra` are channels that the caller concatenates to the image."""

    def __init__(self, cfg: UNetConfig, out_channels: int | None = None, *, in_extra: int = 0) -> None:
        super().__init__()
        self.encoder, self.middle = Encoder(cfg, in_extra=in_extra), Middle(cfg)
        self.decoder = Decoder(cfg, out_channels)
        self.widths = self.encoder.widths + self.middle.widths + self.decoder.widths

    def split(self, mod: Modulation) -> tuple[Modulation, Modulation, Modulation]:
        """One modulation of the whole -> those of encoder, middle and decoder."""
        e, m = len(self.encoder.widths), len(self.middle.widths)
        return mod[:e], mod[e : e + m], mod[e + m :]

    def features(self, x: Tensor, *mods: Modulation) -> Tensor:
        """The decoder's last features, before the output convolution."""
        parts = [self.split(m) for m in mods]
        h, skips = self.encoder(x, *(p[0] for p in parts))
        h = self.middle(h, *(p[1] for p in parts))
        return self.decoder.features(h, skips, *(p[2] for p in parts))

    def forward(self, x: Tensor, *mods: Modulation) -> Tensor:
        return self.decoder.concluded(self.features(x, *mods))
