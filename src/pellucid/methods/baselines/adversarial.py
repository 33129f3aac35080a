"""What the label-free conditional GANs that CoFi-UCGen is compared with share: the game, the networks, how they sample.

They differ in what stands for a code, in who reads it back, and in the losses that come of that; every method has a
file of its own, with its losses in it. Here are a discriminator with further answers beside its judgement, the losses
of three games, two penalties of its gradient, and a method that is sampled by code.

    B  batch    K  codes    d  entries of the latent vector    A  answers besides the judgement
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from pellucid.methods.base import Method, Stage, resolve
from pellucid.methods.priors import Prior, PriorConfig, PriorKind, make_prior
from pellucid.nets.gan import Encoder, GANConfig, Generator
from pellucid.types import Control, Readout, Sample

Game = Literal["logistic", "hinge", "wasserstein"]


@dataclass(frozen=True, kw_only=True)
class GameConfig:
    loss: Game = "logistic"
    """logistic: the non-saturating game of Goodfellow et al. (2014). hinge: that of Lim and Ye (2017). wasserstein:
    that of Arjovsky et al. (2017), which needs the interpolated penalty."""
    penalty: Literal["r1", "interpolated"] = "r1"
    """r1: half the square of the gradient at real pictures (Mescheder et al., 2018). interpolated: the square of what
    its length differs from 1 by, between real and generated pictures (Gulrajani et al., 2017)."""
    penalty_weight: float = 1.0
    critic_steps: int = 1
    """Steps of the discriminator for each of the generator's, on the same real pictures and new generated ones."""

    def __post_init__(self) -> None:
        if self.penalty_weight < 0:
            raise ValueError(f"penalty_weight is {self.penalty_weight}; a weight, 0 or more")
        if self.critic_steps < 1:
            raise ValueError(f"critic_steps is {self.critic_steps}; at least 1")
        if self.loss == "wasserstein" and (self.penalty != "interpolated" or not self.penalty_weight):
            raise ValueError(
                f"loss is 'wasserstein' and penalty {self.penalty!r} with weight {self.penalty_weight}; a "
                f"discriminator without bound needs 'interpolated', with a weight above 0"
            )


@dataclass(frozen=True, kw_only=True)
class CodedGANConfig:
    """What every one of these methods is told."""

    codes_are: ClassVar[PriorKind] = "onehot"
    size: int = 32
    channels: int = 3
    prior: PriorConfig = field(default_factory=lambda: PriorConfig(kind="onehot"))
    gan: GANConfig = field(default_factory=GANConfig)
    """Of the generator and of whatever looks at pictures."""
    game: GameConfig = field(default_factory=GameConfig)

    def __post_init__(self) -> None:
        if (self.gan.size, self.gan.channels) != (self.size, self.channels):
            raise ValueError(
                f"gan is for {self.gan.channels} channels at size {self.gan.size}; the pictures have {self.channels} "
                f"at {self.size}"
            )
        if self.prior.kind != self.codes_are:
            raise ValueError(f"prior.kind is {self.prior.kind!r}; this method's codes are {self.codes_are!r}")
        if self.prior.kind == "onehot" and self.prior.dim == self.prior.codes:
            raise ValueError(
                f"prior.dim is {self.prior.dim} and all of its entries are the code; the noise needs some"
            )


class Discriminator(nn.Module):
    """One trunk that judges pictures and answers questions about them."""

    def __init__(self, gan: GANConfig, *, judgements: int = 1, answers: int = 0) -> None:
        super().__init__()
        self.judgements = judgements
        self.trunk = Encoder(gan, judgements + answers)

    def forward(self, x: Tensor, code: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Pictures (B, C, H, W) -> how real each is (B,), unbounded, and the answers (B, A).

        Where there is a judgement for each code, `code` (B,) chooses among them.
        """
        return self.concluded(self.features(x), code)

    def features(self, x: Tensor) -> Tensor:
        """Pictures (B, C, H, W) -> (B, D); where x requires a gradient, that gradient has one too."""
        # fast attention cannot be differentiated twice
        with sdpa_kernel(SDPBackend.MATH) if x.requires_grad else nullcontext():
            return self.trunk.features(x)

    def concluded(self, features: Tensor, code: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same from the trunk's features (B, D)."""
        said = self.trunk.concluded(features).float()
        judged, answers = said[:, : self.judgements], said[:, self.judgements :]
        if code is None:
            assert self.judgements == 1
            return judged[:, 0], answers
        return judged.gather(1, code[:, None])[:, 0], answers


def telling_apart(real: Tensor, fake: Tensor, loss: Game) -> dict[str, Tensor]:
    """The discriminator's losses from its judgements (B,) of real and of generated pictures."""
    if loss == "logistic":
        return {"real": F.softplus(-real).mean(), "fake": F.softplus(fake).mean()}
    if loss == "hinge":
        return {"real": F.relu(1 - real).mean(), "fake": F.relu(1 + fake).mean()}
    return {"real": -real.mean(), "fake": fake.mean()}


def passing(fake: Tensor, loss: Game) -> Tensor:
    """The generator's loss from the judgements (B,) of its pictures; the same for both others."""
    return F.softplus(-fake).mean() if loss == "logistic" else -fake.mean()


def agreement(said: Tensor, code: Tensor) -> Tensor:
    """The share of codes (B,) that the most probable answers (B, K) name."""
    return (said.argmax(1) == code).float().mean()


def steepness(judged: Tensor, x: Tensor) -> Tensor:
    """The squared length of each judgement's gradient by its own picture: (B,), differentiable."""
    (gradient,) = torch.autograd.grad(judged.sum(), x, create_graph=True)
    return gradient.flatten(1).square().sum(1)


def between(real: Tensor, fake: Tensor, rng: torch.Generator) -> Tensor:
    """A picture on the line between each real and each generated one, at a random place: (B, C, H, W)."""
    share = torch.rand(len(real), 1, 1, 1, generator=rng, device=rng.device).to(real)
    return torch.lerp(real.detach(), fake, share).requires_grad_()


class CodedGAN(Method):
    """A GAN whose latent vectors have codes 0..K-1, and which says of any picture which code it is of."""

    reads_any_size = False

    def __init__(
        self,
        config: CodedGANConfig,
        *,
        prior: Prior | None = None,
        discriminator: Discriminator | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.image_shape = (config.channels, config.size, config.size)
        self.prior = make_prior(config.prior) if prior is None else prior
        self.generator = Generator(config.gan, self.prior.dim)
        self.discriminator = Discriminator(config.gan) if discriminator is None else discriminator
        codes = self.prior.codes
        self.controls = {
            "code": Control(
                kind="int", low=0, high=codes - 1, help="one of the codes; where not set it is random"
            )
        }
        self.readouts = {"code": Readout(kind="shares", shape=(codes,), help="how likely each code is")}

    def code_log_odds(self, x: Tensor) -> Tensor:
        """Pictures (B, C, H, W) -> (B, K): how much speaks for each code, the logarithm of a probability and more."""
        raise NotImplementedError

    def drawn(self, n: int, rng: torch.Generator) -> Tensor:
        """Random codes (n,), as often as each is there."""
        return torch.randint(self.prior.codes, (n,), generator=rng, device=rng.device)

    def latents(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """z (n, d) and its random codes (n,)."""
        return self.prior.sample(n, rng, self.drawn(n, rng))

    def discriminator_terms(
        self,
        real: Tensor,
        x: Tensor,
        judged: Tensor,
        fake: Tensor,
        rng: torch.Generator,
        judge: Callable[[Tensor], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The discriminator's terms, of its judgements `real` of pictures x and `judged` of generated ones."""
        terms = telling_apart(real, judged, self.config.game.loss)
        if self.config.game.penalty_weight:
            terms["penalty"] = self.penalty(real, x, fake, rng, judge)
        return terms

    def penalty(
        self,
        judged: Tensor,
        x: Tensor,
        fake: Tensor,
        rng: torch.Generator,
        judge: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """The weighted penalty of the discriminator's gradient.

        `judged` (B,) are its judgements of the real pictures x, which require a gradient where the penalty is r1;
        `fake` are as many generated ones; `judge` says how it judges others under what the real ones are judged
        under, if it is told anything.
        """
        game = self.config.game
        if game.penalty == "r1":
            return game.penalty_weight / 2 * steepness(judged, x).mean()
        x = between(x, fake, rng)
        said = self.discriminator(x)[0] if judge is None else judge(x)
        length = (steepness(said, x) + 1e-12).sqrt()
        return game.penalty_weight * (length - 1).square().mean()

    @torch.no_grad()
    def read(self, x: Tensor, rng: torch.Generator, **controls: Any) -> dict[str, Tensor]:
        """Which code pictures (B, C, H, W) of this model's size are of."""
        resolve(self.controls, controls, reading=True)
        return {"code": self.code_log_odds(x).float().softmax(1)}

    @torch.no_grad()
    def sample(self, n: int, rng: torch.Generator, **controls: Any) -> Sample:
        """n pictures of random codes or of one; the readout is the code that each was made of."""
        if n < 1:
            raise ValueError(f"n is {n}; ask for at least one image")
        use = resolve(self.controls, controls)
        code = self.drawn(n, rng)  # drawn whatever is set, so that setting it changes nothing else
        if use["code"] is not None:
            code = torch.full_like(code, use["code"])
        z, code = self.prior.sample(n, rng, code)
        made = F.one_hot(code, self.prior.codes).float()
        return Sample(images=self.generator(z), readouts={"code": made}, controls=use)


class GameStage(Stage):
    """The game that a coded GAN is trained by: discriminator, then generator. Subclasses give the losses."""

    name = "game"

    def __init__(self, method: CodedGAN, *, with_generator: tuple[nn.Module, ...] = ()) -> None:
        parts = (method.generator, *with_generator)
        self.players = {
            "discriminator": list(method.discriminator.parameters()),
            "generator": [p for part in parts for p in part.parameters()],
        }
