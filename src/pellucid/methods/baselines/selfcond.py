"""Self-conditioned GAN (Liu et al., CVPR 2020): a conditional GAN whose classes are clusters that it finds itself.

Real pictures are of the class whose centroid is nearest to the discriminator's features of them. Features change with
training, and so do the clusters: every so many steps k-means runs anew on the features of the latest pictures, from the
centroids it had, so that a class keeps its number. The first centroids are found on an untrained discriminator's
features, as in the paper.

    discriminator   game, its judgement chosen by the picture's class (one of K)
    generator       game, told the class

Differs from the paper: features are those of the latest pictures, kept as they were when the pictures were trained on,
where the paper goes through 50,000 pictures again; and old labels are kept because k-means starts at the old
centroids, without the matching that its fresh starts need. It does so after tens of steps and not after thousands: on
the ring, whose discriminator moves fast, the game diverged where 500 steps lay between two clusterings. Features of
images are averaged over places.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pellucid.methods.base import Pictures, Stage
from pellucid.methods.baselines.adversarial import (
    CodedGAN,
    CodedGANConfig,
    Discriminator,
    GameStage,
    passing,
)
from pellucid.methods.baselines.segmenters import kmeans
from pellucid.types import Batch


@dataclass(frozen=True, kw_only=True)
class SelfCondConfig(CodedGANConfig):
    every: int = 25
    """Steps from one clustering to the next."""
    kept: int = 4096
    """How many of the latest pictures' features are clustered."""
    iterations: int = 3
    """Rounds of k-means each time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("every", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; at least 1")
        if self.kept < self.prior.codes:
            raise ValueError(
                f"kept is {self.kept}; {self.prior.codes} clusters need as many features at least, better tens of each"
            )


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """The nearest of centroids (K, D) to each point (N, D): (N,)."""
    return torch.cdist(points, centroids).argmin(1)


def moved_centroids(points: Tensor, centroids: Tensor, iterations: int) -> Tensor:
    """Lloyd's algorithm on points (N, D) from centroids (K, D), which keep their numbers: (K, D).

    A cluster that is left empty takes the point that is farthest from its own centroid.
    """
    centroids = centroids.clone()
    for _ in range(iterations):
        distance, label = torch.cdist(points, centroids).min(1)
        count = torch.bincount(label, minlength=len(centroids))
        sums = torch.zeros_like(centroids).index_add_(0, label, points)
        centroids = torch.where(count[:, None] > 0, sums / count.clamp_min(1)[:, None], centroids)
        for empty in (count == 0).nonzero()[:, 0].tolist():
            farthest = distance.argmax()
            centroids[empty] = points[farthest]
            distance[farthest] = 0
    return centroids


class ClusteredGame(GameStage):
    """A conditional game, and the clusters that are its classes."""

    def __init__(self, method: SelfCond) -> None:
        super().__init__(method)
        self.method = method
        self.latest: list[Tensor] = []  # features of this step's micro-batches

    def prepare(self, pictures: Pictures) -> None:
        method = self.method
        with torch.no_grad():
            found = torch.cat([method.features(x.to(method.device)) for x in pictures(method.config.kept)])
        if len(found) < method.prior.codes:
            raise ValueError(
                f"there are {len(found)} pictures for {method.prior.codes} clusters; set fewer prior.bits, or add "
                f"pictures"
            )
        method.remember(found)
        rng = torch.Generator().manual_seed(0)  # the first centroids are a function of weights and pictures
        _, centroids = kmeans(found[None].cpu(), method.prior.codes, rng)
        method.centroids.copy_(centroids[0])
        method.recluster()

    def losses(self, batch: Batch, rng: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        method, cfg = self.method, self.method.config
        for again in range(cfg.game.critic_steps):
            with torch.no_grad():
                z, code = method.latents(len(batch), rng)
                fake = method.generator(z)
            x = batch.x0.detach().requires_grad_()
            features = method.discriminator.features(x)
            pooled = method.pooled(features.detach())
            own = nearest(pooled, method.centroids)
            if again == 0:
                self.latest.append(pooled)
            real, _ = method.discriminator.concluded(features, own)
            judged, _ = method.discriminator(fake, code)
            judge = lambda between, own=own: method.discriminator(between, own)[0]
            terms = method.discriminator_terms(real, x, judged, fake, rng, judge)
            counts = torch.bincount(own, minlength=method.prior.codes)
            yield "discriminator", terms | {"_smallest_cluster": counts.min() / len(own)}

        z, code = method.latents(len(batch), rng)
        judged, _ = method.discriminator(method.generator(z), code)
        yield "generator", {"pass": passing(judged, cfg.game.loss)}

    def after_step(self, step: int) -> None:
        found = torch.cat(self.latest)
        self.latest.clear()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts = [torch.empty_like(found) for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather(parts, found)  # every process clusters the same features
            found = torch.cat(parts)
        self.method.remember(found)
        if (step + 1) % self.method.config.every == 0:
            self.method.recluster()


class SelfCond(CodedGAN):
    """Codes are clusters of the discriminator's features; pictures are read by the nearest centroid."""

    name: ClassVar[str] = "selfcond"
    config: SelfCondConfig
    centroids: Tensor
    """(K, D)."""
    kept: Tensor
    """(N, D), the latest features, the oldest overwritten first."""
    written: Tensor
    """() how many features have been kept in all."""
    shares: Tensor
    """(K,), how much of the latest pictures each cluster holds."""

    def __init__(self, config: SelfCondConfig) -> None:
        codes = config.prior.codes
        super().__init__(config, discriminator=Discriminator(config.gan, judgements=codes))
        width = self.discriminator.trunk.feature_width // (1 if config.gan.kind == "mlp" else 16)
        self.register_buffer("centroids", torch.zeros(codes, width))
        self.register_buffer("kept", torch.zeros(config.kept, width))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))
        self.register_buffer("shares", torch.full((codes,), 1 / codes))

    def stages(self) -> tuple[Stage, ...]:
        return (ClusteredGame(self),)

    def pooled(self, features: Tensor) -> Tensor:
        """What is clustered, (B, D), of the trunk's features: their means over the 4 x 4 places of an image."""
        features = features.float()
        return features if self.config.gan.kind == "mlp" else features.unflatten(1, (-1, 16)).mean(2)

    def features(self, x: Tensor) -> Tensor:
        """Pictures (B, C, H, W) -> (B, D)."""
        return self.pooled(self.discriminator.features(x))

    def remember(self, found: Tensor) -> None:
        """Keep features (B, D) in the place of the oldest."""
        found = found[-len(self.kept) :]
        places = (int(self.written) + torch.arange(len(found), device=found.device)) % len(self.kept)
        self.kept[places] = found
        self.written += len(found)

    def recluster(self) -> None:
        """Move the centroids to where the latest features are."""
        there = self.kept[: int(self.written)]
        self.centroids.copy_(moved_centroids(there, self.centroids, self.config.iterations))
        counts = torch.bincount(nearest(there, self.centroids), minlength=len(self.centroids))
        self.shares.copy_(counts / counts.sum())

    def drawn(self, n: int, rng: torch.Generator) -> Tensor:
        return torch.multinomial(self.shares.to(rng.device), n, replacement=True, generator=rng)

    def code_log_odds(self, x: Tensor) -> Tensor:
        # one Gaussian of the same width around each centroid, as k-means has it; a quarter of the mean square distance
        # of two centroids for a width, so that a picture in the middle of two is of both
        square = torch.cdist(self.features(x), self.centroids).square()
        width = torch.cdist(self.centroids, self.centroids).square().mean().clamp_min(1e-12)
        return -4 * square / width
