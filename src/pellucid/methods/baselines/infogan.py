"""InfoGAN (Chen et al., 2016) with one categorical code: the discriminator's trunk also says which code it sees.

    discriminator   game + info CE(Q(c | G(z)), c)
    generator       game + info CE(Q(c | G(z)), c)

-CE + log K is the paper's variational lower bound of the information between code and picture (eq. 5). Two things
differ from the paper: the latent vector is as long as that of the methods it stands beside, and the discriminator's
gradient is penalised (R1), as in every method of these.
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
    Discriminator,
    GameStage,
    agreement,
    passing,
)
from pellucid.methods.priors import Prior
from pellucid.types import Batch


@dataclass(frozen=True, kw_only=True)
class InfoGANConfig(CodedGANConfig):
    info: float = 1.0
    """Weight of the cross-entropy by which codes are read back, in both players' losses; the paper's lambda."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.info < 0:
            raise ValueError(f"info is {self.info}; a weight, 0 or more")


class InformedGame(GameStage):
    """A game in which the discriminator reads the codes of generated pictures back."""

    def __init__(self, method: InfoGAN) -> None:
        super().__init__(method, with_generator=(method.prior,))
        self.method = method

    def losses(self, batch: Batch, rng: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        method, cfg = self.method, self.method.config
        for _ in range(cfg.game.critic_steps):
            with torch.no_grad():
                z, code = method.latents(len(batch), rng)
                fake = method.generator(z)
            x = batch.x0.detach().requires_grad_()
            real, _ = method.discriminator(x)
            judged, said = method.discriminator(fake)
            yield (
                "discriminator",
                method.discriminator_terms(real, x, judged, fake, rng)
                | {"info": cfg.info * F.cross_entropy(said, code), "_read_back": agreement(said, code)},
            )

        z, code = method.latents(len(batch), rng)
        judged, said = method.discriminator(method.generator(z))
        yield (
            "generator",
            {"pass": passing(judged, cfg.game.loss), "info": cfg.info * F.cross_entropy(said, code)},
        )


class InfoGAN(CodedGAN):
    """One-hot codes and noise; real pictures are read by the discriminator's answer."""

    name: ClassVar[str] = "infogan"
    config: InfoGANConfig

    def __init__(self, config: InfoGANConfig, *, prior: Prior | None = None) -> None:
        discriminator = Discriminator(config.gan, answers=config.prior.codes)
        super().__init__(config, prior=prior, discriminator=discriminator)

    def stages(self) -> tuple[Stage, ...]:
        return (InformedGame(self),)

    def code_log_odds(self, x: Tensor) -> Tensor:
        return self.discriminator(x)[1]
