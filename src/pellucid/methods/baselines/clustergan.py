"""ClusterGAN (Mukherjee et al., AAAI 2019): one-hot codes beside noise, and an encoder that finds both in a picture.

    discriminator        game
    generator, encoder   game + noise_weight |z_n - E(G(z))_n|^2 + code_weight CE(E(G(z))_c, c)        (eq. 4)

Real pictures are clustered by the encoder's code. The paper plays the Wasserstein game with an interpolated penalty of
10 and five steps of the critic for one of the generator. Here the game is logistic with R1 unless the config says
otherwise: at one step each, on the ring, the Wasserstein game had not found the four clusters when the logistic one had
covered them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid.methods.base import Stage
from pellucid.methods.baselines.adversarial import (
    CodedGAN,
    CodedGANConfig,
    GameStage,
    agreement,
    passing,
)
from pellucid.nets.gan import Encoder
from pellucid.types import Batch


@dataclass(frozen=True, kw_only=True)
class ClusterGANConfig(CodedGANConfig):
    noise_weight: float = 10.0
    """beta_n, of the mean square by which the noise is read back."""
    code_weight: float = 10.0
    """beta_c, of the cross-entropy by which the code is."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("noise_weight", "code_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; a weight, 0 or more")


class InvertedGame(GameStage):
    """A game beside which an encoder learns to invert the generator, and the generator to be inverted."""

    def __init__(self, method: ClusterGAN) -> None:
        super().__init__(method, with_generator=(method.encoder,))
        self.method = method

    def losses(self, batch: Batch, rng: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        method, cfg = self.method, self.method.config
        for _ in range(cfg.game.critic_steps):
            with torch.no_grad():
                fake = method.generator(method.latents(len(batch), rng)[0])
            x = batch.x0.detach().requires_grad_()
            real, _ = method.discriminator(x)
            yield (
                "discriminator",
                method.discriminator_terms(real, x, method.discriminator(fake)[0], fake, rng),
            )

        z, code = method.latents(len(batch), rng)
        fake = method.generator(z)
        judged, _ = method.discriminator(fake)
        noise, said = method.encoded(fake)
        yield (
            "generator",
            {
                "pass": passing(judged, cfg.game.loss),
                "noise": cfg.noise_weight * (noise - z[:, method.prior.codes :]).square().mean(),
                "code": cfg.code_weight * F.cross_entropy(said, code),
                "_read_back": agreement(said, code),
            },
        )


class ClusterGAN(CodedGAN):
    """One-hot codes and noise; pictures are read by an encoder of their own."""

    name: ClassVar[str] = "clustergan"
    config: ClusterGANConfig

    def __init__(self, config: ClusterGANConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config.gan, config.prior.dim)

    def stages(self) -> tuple[Stage, ...]:
        return (InvertedGame(self),)

    def encoded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, C, H, W) -> the noise (B, d - K) and the code's log-odds (B, K)."""
        said = self.encoder(x).float()
        return said[:, self.prior.codes :], said[:, : self.prior.codes]

    def code_log_odds(self, x: Tensor) -> Tensor:
        return self.encoded(x)[1]
