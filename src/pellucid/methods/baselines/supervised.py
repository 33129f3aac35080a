"""A U-Net trained on the true masks: the ceiling that label-free segmentation is held against."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid.methods.base import Method, Stage
from pellucid.nets.modulation import TimeModulator
from pellucid.nets.unet import UNet, UNetConfig
from pellucid.types import Batch, Readout, Sample


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig:
    size: int = 32
    unet: UNetConfig = field(default_factory=UNetConfig)


class _Label(Stage):
    name = "label"

    def __init__(self, method: Segmenter) -> None:
        self.method = method
        self.players = {"model": list(method.parameters())}

    def losses(self, batch: Batch, rng: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        if batch.masks is None:
            raise ValueError("a supervised segmenter needs data with masks")
        truth = (batch.masks > 0).long()
        yield "model", {"cross_entropy": F.cross_entropy(self.method.logits(batch.x0), truth)}


class Segmenter(Method):
    """Foreground against ground, from labels."""

    name: ClassVar[str] = "segmenter"

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        self.image_shape = (config.unet.channels, config.size, config.size)
        self.unet = UNet(config.unet, out_channels=2)
        self.time = TimeModulator(self.unet.widths, config.unet.base)
        self.controls = {}
        self.readouts = {
            "masks": Readout(kind="masks", shape=(2, "H", "W"), help="ground and object probabilities"),
            "shares": Readout(kind="shares", shape=(2,), help="each one's share of the picture"),
        }

    @property
    def stride(self) -> int:
        return self.config.unet.stride

    def stages(self) -> tuple[Stage, ...]:
        return (_Label(self),)

    def logits(self, x: Tensor) -> Tensor:
        return self.unet(x, self.time(torch.zeros(len(x), device=x.device)))

    @torch.no_grad()
    def read(self, x: Tensor, rng: torch.Generator, **controls: Any) -> dict[str, Tensor]:
        masks = self.logits(x).float().softmax(1)
        return {"masks": masks, "shares": masks.mean((2, 3))}

    def sample(self, n: int, rng: torch.Generator, **controls: Any) -> Sample:
        raise ValueError("a segmenter labels pictures and generates none; use a generative recipe to sample")
