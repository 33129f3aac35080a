"""The plain DDPM (Ho et al., 2020) of the same U-Net: what factorized diffusion is measured against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from pellucid.methods.base import Pictures, Stage
from pellucid.methods.denoising import NOTHING, DenoisingMethod, Prediction, Predicts, standard_controls
from pellucid.nets.modulation import TimeModulator
from pellucid.nets.unet import UNet, UNetConfig
from pellucid.process.loss import denoising_loss
from pellucid.process.schedule import ScheduleName
from pellucid.types import Batch


@dataclass(frozen=True, kw_only=True)
class DDPMConfig:
    size: int = 32
    unet: UNetConfig = field(default_factory=UNetConfig)
    schedule: ScheduleName = "linear_betas"
    predicts: Predicts = "eps"
    """What the network's output stands for; the loss is that of the noise whatever it is."""


class Denoising(Stage):
    """Denoise pictures, told nothing of them (Ho et al., 2020, L_simple)."""

    name = "denoise"

    def __init__(self, method: DDPM) -> None:
        self.method = method
        self.players = {"model": [*method.unet.parameters(), *method.time.parameters()]}

    def prepare(self, pictures: Pictures) -> None:
        self.method.fit(pictures)

    def losses(self, batch: Batch, rng: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        method, x0 = self.method, batch.x0
        x_t, t, logsnr, eps = method.diffused(x0, rng)
        yield "model", {"denoise": denoising_loss(method.predict(x_t, t).eps, x_t, eps, logsnr).mean()}


class DDPM(DenoisingMethod):
    """Unconditional DDPM with L_simple."""

    name: ClassVar[str] = "ddpm"

    def __init__(self, config: DDPMConfig) -> None:
        super().__init__((config.unet.channels, config.size, config.size), config.schedule, config.predicts)
        self.config = config
        self.unet = UNet(config.unet)
        self.time = TimeModulator(self.unet.widths, config.unet.base)
        self.controls = standard_controls(())
        self.readouts = {}

    @property
    def stride(self) -> int:
        return self.config.unet.stride

    def stages(self) -> tuple[Stage, ...]:
        return (Denoising(self),)

    def predict(
        self, x: Tensor, t: Tensor, label: Tensor | None = None, use: Mapping[str, Any] = NOTHING
    ) -> Prediction:
        return Prediction(self.noise_said(self.unet(x, self.time(t)).float(), x, t))

    def read(self, x: Tensor, rng: torch.Generator, **controls: Any) -> dict[str, Tensor]:
        """A DDPM finds nothing in an image; its features can be clustered, see `features`."""
        return {}

    @torch.no_grad()
    def features(self, x: Tensor, rng: torch.Generator, *, steps: tuple[int, ...] = (50, 150, 250)) -> Tensor:
        """Decoder features of x noised to each of `steps` (of 1,000), side by side: (B, D, H, W).

        What Baranchuk et al. (2022) segment with, taken at the decoder's last stage.
        """
        parts = []
        for step in steps:
            x_t, t = self.noised(x, step / 1000, rng)
            parts.append(self.unet.features(x_t, self.time(t)))
        return torch.cat(parts, dim=1)
