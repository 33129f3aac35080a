"""Training a KL-autoencoder as a stage of its own, and the unit-variance latents that diffusion then works on.

B  batch; C, H, W  a picture; f  how many times smaller the latents are; z  channels of the latents
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from pellucid.methods.base import Pictures, Stage
from pellucid.nets.vae import Autoencoder, LatentSpace, Pretrained, draw, kl
from pellucid.types import Batch

MEASURED_ON = 512
"""How many training pictures the latents' mean and spread are measured on."""


def edges(error: Tensor) -> Tensor:
    """Mean absolute difference between neighbours of an error (B, C, H, W), down and across, summed: a scalar.

    The gradient difference loss of Mathieu et al. (2016) with signs kept: an edge in the wrong direction is an error
    too. A picture that is blurred has small errors everywhere and these at every edge.
    """
    down, across = error[..., 1:, :] - error[..., :-1, :], error[..., 1:] - error[..., :-1]
    return down.abs().mean() + across.abs().mean()


def psnr(made: Tensor, x0: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of reconstructions (B, C, H, W), clipped to [-1, 1]: the mean over the batch.

    At most 100 dB, so that a perfect one is finite.
    """
    mse = (made.float().clamp(-1, 1) - x0.float()).square().mean((1, 2, 3))
    return 10 * torch.log10(4 / mse.clamp(min=4e-10)).mean()


class Autoencoding(Stage):
    """Latent diffusion's first stage (Rombach et al., 2022, appendix G), without perceptual network and critic.

    loss = mean |x - x'| + edge_weight * edges(x - x') + kl_weight * KL / (C H W),   x' = D(z), z ~ q(z | x)

    KL is summed over the latents and divided by the numbers of a picture, as the first term is, so that `kl_weight`
    is the paper's, which sums both. `edges` stands where the paper has its perceptual network. Half a minute on one
    core (165 steps of 16 emoji over photographs, 32 x 32) leads to 20.9 dB without it, 22.2 at weight 1, 23.6 at 3, and
    edges that hold more of their strength; at 10, colours drift.

    A pretrained autoencoder has no such stage.
    """

    name = "autoencoder"
    shows = None

    def __init__(
        self, autoencoder: Autoencoder, *, kl_weight: float = 1e-6, edge_weight: float = 3.0
    ) -> None:
        if kl_weight < 0 or edge_weight < 0:
            raise ValueError(f"kl_weight is {kl_weight} and edge_weight {edge_weight}; both are at least 0")
        self.autoencoder, self.kl_weight, self.edge_weight = autoencoder, kl_weight, edge_weight
        self.players = {"autoencoder": list(autoencoder.parameters())}

    def losses(self, batch: Batch, rng: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        x0 = batch.x0
        mean, logvar = self.autoencoder.moments(x0)
        made = self.autoencoder.decode(draw(mean, logvar, rng))
        error = made.float() - x0
        terms = {
            "l1": error.abs().mean(),
            "edges": self.edge_weight * edges(error),
            "kl": self.kl_weight * kl(mean, logvar).mean() / x0[0].numel(),
        }
        yield "autoencoder", terms | {"_psnr": psnr(made.detach(), x0)}


@torch.no_grad()
def latent_statistics(autoencoder: LatentSpace, pictures: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of the latents of pictures (b, C, H, W): two (z, 1, 1), float32.

    Of draws from q over pictures and places, Var[mean] + E[exp(logvar)], so that a channel which says nothing, a
    standard normal to the last, is not blown up. Rombach et al. (2022, appendix G) divide by one number for all
    channels, of a single batch and without its mean. Where KL weighs a millionth nothing holds channels to one
    spread or to mean zero; each for itself costs as little and is what a diffusion that ends in N(0, 1) assumes.

    Raises ValueError where there are no pictures or their latents are not finite.
    """
    total = square = noise = torch.zeros(autoencoder.latent_channels, dtype=torch.float64)
    count = 0
    device = next(autoencoder.parameters()).device
    for part in pictures:
        mean, logvar = (m.double().cpu() for m in autoencoder.moments(part.to(device)))
        total = total + mean.sum((0, 2, 3))
        square = square + mean.square().sum((0, 2, 3))
        noise = noise + logvar.exp().sum((0, 2, 3))
        count += mean.numel() // mean.shape[1]
    if not count:
        raise ValueError("there are no pictures to measure latents on; give one or more")
    centre = total / count
    spread = ((square / count - centre.square()).clamp(min=0) + noise / count).sqrt()
    if not (centre.isfinite().all() and spread.isfinite().all()):
        raise ValueError(
            "the latents are not finite: the autoencoder's training has failed; try a smaller learning rate"
        )
    return centre.float()[:, None, None].to(device), spread.float()[:, None, None].to(device)


class UnitLatents(nn.Module):
    """An autoencoder whose latents have mean 0 and variance 1 in each channel, over the pictures it was fitted on.

    A method holds this and not the autoencoder beside it, so that a checkpoint has every weight once.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, autoencoder: LatentSpace) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.register_buffer("mean", torch.zeros(autoencoder.latent_channels, 1, 1))
        self.register_buffer("std", torch.ones(autoencoder.latent_channels, 1, 1))

    def fetch(self) -> None:
        """Give a pretrained autoencoder its weights, unless it has them: for a method's first stage, so that what is
        amiss is said at once, and every checkpoint is whole."""
        if isinstance(self.autoencoder, Pretrained) and not self.autoencoder.has_weights:
            self.autoencoder.fetch()

    def fit(self, pictures: Pictures) -> None:
        """For the first stage that works on latents to call as it prepares: the latents' statistics are measured."""
        self.fetch()
        mean, std = latent_statistics(self.autoencoder, pictures(MEASURED_ON))
        self.mean.copy_(mean)
        self.std.copy_(std)

    def encode(self, x: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """x (B, C, H, W) -> (B, z, H/f, W/f): the mean of q, or a draw from it, in units of the latents' spread."""
        return (self.autoencoder.encode(x, rng) - self.mean) / self.std

    def decode(self, z: Tensor) -> Tensor:
        """z (B, z, h, w) in those units -> (B, C, f h, f w), not clipped."""
        return self.autoencoder.decode(z * self.std + self.mean)
