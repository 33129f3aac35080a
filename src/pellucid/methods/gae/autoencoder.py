"""The diffusion autoencoder: a code of a picture, and a diffusion that is told it (Preechakul et al., 2022).

    B  batch; D  entries of the code z; L  ResBlocks

    AdaGN(h, t, z) = (1 + z_s) ((1 + t_s) GroupNorm(h) + t_b) + z_b                    (DiffuseGAE, eq. 8)

which is the shared U-Net under two modulators, time and then z. The paper writes z_s and t_s without the 1: a network
whose heads start near zero would then begin by wiping out its features. Preechakul et al. have the 1 and no z_b.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pellucid.methods.base import Pictures, Stage
from pellucid.methods.denoising import Diffusion, Predicts
from pellucid.methods.parts import measured
from pellucid.nets.mlp import LatentDenoiser
from pellucid.nets.modulation import TimeModulator, VectorModulator
from pellucid.nets.resnet import AlterResNet, ResNetConfig
from pellucid.nets.unet import UNet, UNetConfig
from pellucid.process.loss import Weight, denoising_loss
from pellucid.process.predict import to_x0
from pellucid.process.schedule import ScheduleName
from pellucid.types import Batch, Denoise

FLAT = 0.05
"""The least spread that an entry of a code is divided by: one that hardly differs between pictures says nothing, and
blown up it would be noise."""


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The diffusion autoencoder by its numbers."""

    unet: UNetConfig
    encoder: ResNetConfig
    dim: int = 512
    """D, entries of z."""
    weighting: Weight = "simple"
    """Of the error of the noise at each time; "simple" is the paper's. "v" counts the error where pictures are nearly
    all noise, which is where a code says most: with few steps it is heard sooner."""
    schedule: ScheduleName = "linear_betas"
    predicts: Predicts = "eps"

    def __post_init__(self) -> None:
        if self.dim < 2:
            raise ValueError(f"dim is {self.dim}; a code has 2 entries at least")
        if self.unet.channels != self.encoder.channels:
            raise ValueError(
                f"unet is for {self.unet.channels} channels and encoder for {self.encoder.channels}: they see the same"
            )


class CodedUNet(Diffusion):
    """A U-Net that denoises pictures and is told a code of each."""

    def __init__(self, config: DiffusionConfig, shape: tuple[int, int, int]) -> None:
        super().__init__(shape, config.schedule, config.predicts)
        self.config, self.shape = config, shape
        self.unet = UNet(config.unet)
        self.time = TimeModulator(self.unet.widths, config.unet.base)
        self.code = VectorModulator(self.unet.widths, config.dim)

    def eps(self, x_t: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """The noise in x_t (B, C, H, W) at t (B,), told z (B, D)."""
        said = self.unet(x_t, self.time(t), self.code(z))
        return self.noise_said(said.float(), x_t, t)

    def denoiser(self, z: Tensor) -> Denoise:
        """What samplers take, told z (B, D)."""
        return lambda x, t: to_x0(self.eps(x, t, z), x, self.schedule.logsnr(t), "eps")

    def loss(self, x0: Tensor, z: Tensor, rng: torch.Generator) -> Tensor:
        """The mean denoising loss of pictures (B, C, H, W) told their codes (B, D): a scalar (eq. 1)."""
        x_t, t, logsnr, eps = self.diffused(x0, rng)
        return denoising_loss(self.eps(x_t, t, z), x_t, eps, logsnr, weighting=self.config.weighting).mean()


class UnitCodes(nn.Module):
    """An encoder whose codes are also known with mean 0 and variance 1 in each entry, over the pictures measured."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ResNetConfig, dim: int) -> None:
        super().__init__()
        self.encoder = AlterResNet(config, dim)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def fit(self, pictures: Pictures) -> None:
        """Measure mean and spread, for the stages that work on codes."""
        codes = measured(pictures, self, self.mean.device).double()
        if not codes.isfinite().all():
            raise ValueError("codes are not finite: the autoencoder's training has failed; lower lr")
        self.mean.copy_(codes.mean(0).float())
        self.std.copy_(codes.std(0, correction=0).clamp(min=FLAT).float())

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> z (B, D), as the U-Net is told it."""
        return self.encoder(x).float()

    def unit(self, z: Tensor) -> Tensor:
        """z -> the same in units of its spread, about its mean."""
        return (z - self.mean) / self.std

    def back(self, unit: Tensor) -> Tensor:
        """The inverse of `unit`."""
        return unit * self.std + self.mean


class DiffusionAutoencoding(Stage):
    """The first stage: encoder and denoiser together, by the denoising loss alone (eq. 1)."""

    name = "autoencoder"
    shows = None

    def __init__(self, codes: UnitCodes, denoiser: CodedUNet) -> None:
        self.codes, self.denoiser = codes, denoiser
        self.players = {"autoencoder": [*codes.parameters(), *denoiser.parameters()]}

    def prepare(self, pictures: Pictures) -> None:
        self.denoiser.fit(pictures)

    def losses(self, batch: Batch, rng: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        z = self.codes(batch.x0)
        loss = self.denoiser.loss(batch.x0, z, rng)
        # codes that are alike for all pictures say nothing, however low the loss
        yield "autoencoder", {"denoise": loss, "_spread": z.detach().std(0, correction=0).mean()}


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """The diffusion of codes, for samples from nothing."""

    width: int = 2048
    depth: int = 10
    schedule: ScheduleName = "linear_betas"

    def __post_init__(self) -> None:
        if self.width < 8 or self.depth < 2:
            raise ValueError(f"width is {self.width} and depth {self.depth}; at least 8 and 2")


class CodeDiffusion(Diffusion):
    """A diffusion of codes in units of their spread; its network says v (see `process.predict`)."""

    def __init__(self, config: LatentConfig, dim: int) -> None:
        super().__init__((dim, 1, 1), config.schedule, "v")
        self.net = LatentDenoiser(dim, width=config.width, depth=config.depth)

    def eps(self, z_t: Tensor, t: Tensor) -> Tensor:
        """The noise in z_t (B, D) at t (B,)."""
        return self.noise_said(self.net(z_t, t).float(), z_t, t)

    def denoise(self, z_t: Tensor, t: Tensor) -> Tensor:
        """What samplers take."""
        return to_x0(self.eps(z_t, t), z_t, self.schedule.logsnr(t), "eps")
