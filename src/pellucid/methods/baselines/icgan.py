"""Instance-conditioned GAN (Casanova et al., NeurIPS 2021): every training picture stands for the pictures like it.

`contrast` learns features of pictures. In the game the generator is told the feature of one training picture, the
instance, and the discriminator sees, under that same feature, one of the instance's nearest neighbours as real. Codes
are K instances, those nearest to the centres of k-means, as the paper keeps for sampling; a picture is read by which of
them it is most like.

    discriminator   game, its judgement conditioned on the feature by projection (Miyato and Koyama, 2018)
    generator       game, told noise and the feature

Differs from the paper: features are learned here (see `selfsupervised`), and pairs of an instance and its neighbour are
drawn from the neighbour's side: the picture is the batch's, and the instance one of its nearest in a bank of training
pictures. Where nearness is mutual that is the same distribution of pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from pellucid.methods.base import Pictures, Stage
from pellucid.methods.baselines.adversarial import (
    CodedGAN,
    CodedGANConfig,
    Discriminator,
    GameStage,
    passing,
)
from pellucid.methods.baselines.segmenters import kmeans
from pellucid.methods.baselines.selfsupervised import Contrast, ContrastConfig, Features
from pellucid.methods.priors import Prior, PriorConfig, PriorKind
from pellucid.nets.gan import GANConfig
from pellucid.types import Batch


@dataclass(frozen=True, kw_only=True)
class ICGANConfig(CodedGANConfig):
    codes_are: ClassVar[PriorKind] = "mixture"
    prior: PriorConfig = field(default_factory=lambda: PriorConfig(kind="mixture"))
    """`dim` entries of noise stand beside the feature; 2^bits instances are kept as codes. Its modes are not used."""
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    bank: int = 4096
    """How many training pictures are instances."""
    neighbours: int = 50
    """How many of them a picture is near to; the paper's k."""

    def __post_init__(self) -> None:
        super().__post_init__()
        encoder = self.contrast.encoder
        if (encoder.size, encoder.channels) != (self.size, self.channels):
            raise ValueError(
                f"contrast.encoder is for {encoder.channels} channels at size {encoder.size}; the pictures have "
                f"{self.channels} at {self.size}"
            )
        if self.neighbours < 1 or self.bank < self.prior.codes:
            raise ValueError(
                f"neighbours is {self.neighbours} and bank {self.bank}; at least 1, and at least a picture for each of "
                f"{self.prior.codes} codes"
            )


class Instances(Prior):
    """[noise, feature]: z of code c is standard normal noise beside the feature of instance c."""

    features: Tensor
    """(K, D), unit vectors."""

    def __init__(self, config: PriorConfig, width: int) -> None:
        super().__init__(config)
        self.dim = config.dim + width
        noise = torch.cat([torch.ones(config.dim), torch.zeros(width)])
        self.register_buffer("noise", noise, persistent=False)
        self.register_buffer("features", torch.zeros(config.codes, width))

    def means(self, code: Tensor) -> Tensor:
        return self.beside(torch.zeros(len(code), self.config.dim, device=code.device), self.features[code])

    def beside(self, noise: Tensor, feature: Tensor) -> Tensor:
        """(B, noise) and (B, D) -> z (B, d)."""
        return torch.cat([noise, feature], 1)

    def log_likelihoods(self, z: Tensor) -> Tensor:
        # the feature has no spread: the nearest code is the one, by far
        return -torch.cdist(z[:, self.config.dim :], self.features).square() / self.config.sigma**2


class ProjectionDiscriminator(Discriminator):
    """A judgement of pictures, plus how well their features agree with what they are conditioned on."""

    def __init__(self, gan: GANConfig, width: int) -> None:
        super().__init__(gan)
        self.embed = nn.Linear(width, self.trunk.feature_width)

    def under(self, x: Tensor, feature: Tensor) -> Tensor:
        """Pictures (B, C, H, W) under features (B, D): (B,)."""
        seen = self.features(x)
        judged, _ = self.concluded(seen)
        return judged + (self.embed(feature) * seen).float().sum(1) / seen.shape[1] ** 0.5


class InstanceGame(GameStage):
    """A game under the features of training pictures."""

    def __init__(self, method: ICGAN) -> None:
        super().__init__(method)
        self.method = method

    def prepare(self, pictures: Pictures) -> None:
        method, k = self.method, self.method.prior.codes
        found = method.features.of(pictures, len(method.bank), k, "instances")
        method.bank[: len(found)] = found
        method.banked.fill_(len(found))
        rng = torch.Generator().manual_seed(0)  # which instances are codes is a function of the features
        centres = kmeans(found[None].cpu(), k, rng)[1][0].to(found.device)
        method.prior.features.copy_(found[torch.cdist(centres, found).argmin(1)])

    def losses(self, batch: Batch, rng: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        method, cfg = self.method, self.method.config
        n = len(batch)
        with torch.no_grad():
            own = method.instances_near(method.features(batch.x0), rng)
        for _ in range(cfg.game.critic_steps):
            with torch.no_grad():
                told = method.instances(n, rng)
                fake = method.generated(told, rng)
            x = batch.x0.detach().requires_grad_()
            real = method.discriminator.under(x, own)
            judged = method.discriminator.under(fake, told)
            judge = lambda between: method.discriminator.under(between, own)
            yield "discriminator", method.discriminator_terms(real, x, judged, fake, rng, judge)

        told = method.instances(n, rng)
        judged = method.discriminator.under(method.generated(told, rng), told)
        yield "generator", {"pass": passing(judged, cfg.game.loss)}


class ICGAN(CodedGAN):
    """Codes are training pictures; read by likeness to them."""

    name: ClassVar[str] = "icgan"
    config: ICGANConfig
    prior: Instances
    discriminator: ProjectionDiscriminator
    bank: Tensor
    """(N, D), features of training pictures."""
    banked: Tensor
    """() how many there are."""

    def __init__(self, config: ICGANConfig) -> None:
        width = config.contrast.dim
        super().__init__(
            config,
            prior=Instances(config.prior, width),
            discriminator=ProjectionDiscriminator(config.gan, width),
        )
        self.features = Features(config.contrast)
        self.register_buffer("bank", torch.zeros(config.bank, width))
        self.register_buffer("banked", torch.zeros((), dtype=torch.int64))

    def stages(self) -> tuple[Stage, ...]:
        return (Contrast(self.features), InstanceGame(self))

    def instances(self, n: int, rng: torch.Generator) -> Tensor:
        """Features (n, D) of random training pictures."""
        chosen = torch.randint(int(self.banked), (n,), generator=rng, device=rng.device)
        return self.bank[chosen.to(self.bank.device)]

    def instances_near(self, features: Tensor, rng: torch.Generator) -> Tensor:
        """For each of features (B, D), that of one of the `neighbours` nearest training pictures: (B, D)."""
        there = self.bank[: int(self.banked)]
        near = (
            torch.cdist(features, there).topk(min(self.config.neighbours, len(there)), largest=False).indices
        )
        chosen = torch.randint(near.shape[1], (len(near), 1), generator=rng, device=rng.device)
        return there[near.gather(1, chosen.to(near.device))[:, 0]]

    def generated(self, feature: Tensor, rng: torch.Generator) -> Tensor:
        """A picture for each feature (B, D), of new noise: (B, C, H, W)."""
        noise = torch.randn(len(feature), self.config.prior.dim, generator=rng, device=rng.device)
        return self.generator(self.prior.beside(noise.to(feature.device), feature))

    def code_log_odds(self, x: Tensor) -> Tensor:
        like = -torch.cdist(self.features(x), self.prior.features).square()
        return like / self.config.contrast.temperature
