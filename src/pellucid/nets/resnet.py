"""Alter-ResNet: a residual network whose stages end in attention.

After Park and Kim, "How Do Vision Transformers Work?" (2022): convolutions first and attention last in every stage.
The one lets what varies quickly through, the other averages it, and a stage that ends in an average hands on less
noise. DiffuseGAE (section 3.2, figure 3) takes group norms and SiLU.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.nets.attention import SelfAttention
from pellucid.nets.blocks import Down, NormSiLU, ResBlock, conv3


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """An image encoder by its numbers; the defaults are ResNet-50's, with attention where DiffuseGAE has it."""

    channels: int = 3
    """Channels of the image."""
    base: int = 64
    """Channels of the first stage."""
    multipliers: tuple[int, ...] = (1, 2, 4, 8)
    """Each stage's channels as a multiple of `base`; one halving of the size between two stages."""
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    """Blocks of each stage, those of attention among them."""
    attention: tuple[int, ...] = (0, 1, 3, 2)
    """How many of them, at the end of the stage, are attention."""
    stem: int = 2
    """Stride of the first convolution."""
    head_width: int = 32
    """Channels an attention head; the heads follow from it."""
    places: int = 1
    """Places of a side that are told apart in the end. 1 is the mean over all, as ResNets have it; 4 says where things
    are, which few layers cannot turn into channels before that mean."""

    def __post_init__(self) -> None:
        if not len(self.multipliers) == len(self.blocks) == len(self.attention) > 0:
            raise ValueError(
                f"multipliers {self.multipliers}, blocks {self.blocks} and attention {self.attention} have one number "
                f"for each stage"
            )
        if self.base < 4 or self.stem not in (1, 2, 4):
            raise ValueError(f"base is {self.base}, at least 4; stem is {self.stem}, one of 1, 2 and 4")
        for blocks, attention in zip(self.blocks, self.attention, strict=True):
            if not 0 <= attention < blocks:
                raise ValueError(
                    f"attention is {self.attention}, blocks {self.blocks}: a stage begins with a convolution, so that "
                    f"attention is at least one less than its blocks"
                )

    @property
    def stride(self) -> int:
        """What height and width must be divisible by."""
        return self.stem * 2 ** (len(self.multipliers) - 1)


class AlterResNet(nn.Module):
    """(B, C, H, W) -> (B, outputs): stages of convolution and attention, a norm, means over places, a linear map."""

    def __init__(self, cfg: ResNetConfig, outputs: int) -> None:
        super().__init__()
        self.cfg = cfg
        c = cfg.base * cfg.multipliers[0]
        self.head = (
            conv3(cfg.channels, c, padding_mode="zeros")
            if cfg.stem == 1
            else nn.Conv2d(cfg.channels, c, 2 * cfg.stem, stride=cfg.stem, padding=cfg.stem // 2)
        )
        self.stages, self.downs = nn.ModuleList(), nn.ModuleList()
        for i, (multiplier, blocks, attention) in enumerate(
            zip(cfg.multipliers, cfg.blocks, cfg.attention, strict=True)
        ):
            if i:
                self.downs.append(Down(c))
            stage = nn.ModuleList()
            width = cfg.base * multiplier
            for _ in range(blocks - attention):
                stage.append(ResBlock(c, width))
                c = width
            for _ in range(attention):
                stage.append(SelfAttention(c, max(1, c // cfg.head_width)))
            self.stages.append(stage)
        self.norm = NormSiLU(c)
        self.tail = nn.Linear(c * cfg.places**2, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.head(x)
        for i, stage in enumerate(self.stages):
            if i:
                h = self.downs[i - 1](h)
            for block in stage.children():
                h = block(h, ()) if isinstance(block, ResBlock) else block(h)
        return self.tail(F.adaptive_avg_pool2d(self.norm(h), self.cfg.places).flatten(1))
