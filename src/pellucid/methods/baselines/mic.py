"""A GAN over a learned mixture of Gaussians, after MIC-GANs (Ying et al., ICCV 2021).

Every mode of the latent space has a mean and standard deviations of its own, learned with the generator; a classifier
on the discriminator's trunk learns from generated pictures which mode they are of, and so tells the mode of a real one.

Simplified from the paper: the number of modes is fixed, as in its comparisons, where the paper lets a Chinese
restaurant process find it; modes are equally probable; one classifier on the discriminator's trunk stands for the
paper's posterior over modes, and the modes are not begun from those of a GAN trained before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from pellucid.methods.baselines.infogan import InfoGAN, InfoGANConfig
from pellucid.methods.priors import Corners, PriorConfig, PriorKind


@dataclass(frozen=True, kw_only=True)
class MICConfig(InfoGANConfig):
    codes_are: ClassVar[PriorKind] = "mixture"
    prior: PriorConfig = field(default_factory=lambda: PriorConfig(kind="mixture"))
    """How many modes there are, and where they begin: at random corners, `sigma` wide."""


class LearnedMixture(Corners):
    """K Gaussians with means and diagonal covariances that are learned."""

    corners: Tensor

    def __init__(self, config: PriorConfig) -> None:
        super().__init__(config)
        self.mean = nn.Parameter(self.corners.clone())
        self.log_sigma = nn.Parameter(torch.full_like(self.corners, config.sigma).log())

    def means(self, code: Tensor) -> Tensor:
        return self.mean[code]

    def log_likelihoods(self, z: Tensor) -> Tensor:
        away = (z[:, None] - self.mean) / self.log_sigma.exp()  # (B, K, d)
        return -(0.5 * away.square() + self.log_sigma).sum(2)

    def sample(self, n: int, rng: torch.Generator, code: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As every prior's; gradients reach the modes."""
        fixed, code = super().sample(n, rng, code)
        eps = ((fixed - self.mean[code]) / self.noise).detach()
        return self.mean[code] + self.log_sigma[code].exp() * eps, code

    @property
    def entropy(self) -> float:
        own = (self.log_sigma.detach().double() + 0.5 * math.log(2 * math.pi * math.e)).sum(1)
        return math.log(self.codes) + float(own.mean())


class MIC(InfoGAN):
    """Codes are modes of a learned mixture; read by the discriminator's answer."""

    name: ClassVar[str] = "mic"

    def __init__(self, config: MICConfig) -> None:
        super().__init__(config, prior=LearnedMixture(config.prior))
