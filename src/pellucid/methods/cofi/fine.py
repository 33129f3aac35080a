"""Diffusion under codes: the coarse diffusion of pixels, and the fine stage's HM-UNet (CoFi-UCGen, section III-C).

Both are the shared U-Net under two modulators, time and codes. In the fine stage every ResBlock has a direction d_i of
its own, and one number s_i of the picture says how far to go along it:

    m_i = s_i d_i + MLP(z_c)                                    (eq. 14)

    L  ResBlocks; D  entries of the fine code s; d  entries of the coarse code z_c
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.methods.base import Pictures, Stage
from pellucid.methods.denoising import Diffusion, Predicts
from pellucid.nets.gan import Encoder, GANConfig
from pellucid.nets.modulation import TimeModulator, VectorModulator
from pellucid.nets.unet import UNet, UNetConfig
from pellucid.nets.vae import draw, kl
from pellucid.process.loss import Weight, denoising_loss
from pellucid.process.predict import to_x0
from pellucid.process.schedule import ScheduleName
from pellucid.types import Affine, Batch

if TYPE_CHECKING:
    from pellucid.methods.cofi.method import CoFi


@dataclass(frozen=True, kw_only=True)
class FineConfig:
    unet: UNetConfig
    """Its `channels` are those of what is diffused: the autoencoder's latents, or the picture's own."""
    encoder: GANConfig | None = None
    """Of the fine code, from what is diffused; None where there is no fine code (the coarse diffusion)."""
    dim: int = 64
    """D, entries of the fine code."""
    hierarchy: bool = True
    """A direction for each ResBlock; without (the paper's ablation), one vector of z_c and all s_i together, of which
    every ResBlock has its own projection, as it has of z_c's with directions too."""
    kl: float = 1e-3
    """Weight of KL(q(s | x) || N(0, I)), nats summed over D, beside the mean squared error of the noise."""
    reciprocal: float = 0.1
    """Weight of the mean square of s - mu(x0_hat), where t is below `reciprocal_until`."""
    reciprocal_until: float = 0.5
    """Tweedie's x0_hat is worthless near t = 1: an error of the noise comes back 157 times as large."""
    clip: float = 4.0
    """Tweedie's x0_hat is clipped to so many standard deviations of the latents before it is encoded again."""
    redrawn: float = 0.0
    """Share of the variance of a coarse code within its mode that is drawn anew at every step. 0 is the paper's, where
    z_c says nearly all of a picture and leaves little for s to say; at 1 all that is known of it are its bits."""
    dropout: float = 0.1
    """Share of the samples that are trained without codes, for guidance."""
    weighting: Weight = "simple"
    """Of the error of the noise at each time; "simple" is the paper's. There the error where pictures are nearly all
    noise, which is where codes say most, counts next to nothing, and few steps leave codes unheard; "v" counts it."""
    schedule: ScheduleName = "linear_betas"
    predicts: Predicts = "eps"

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"dim is {self.dim}; at least 1")
        if not self.clip > 0:
            raise ValueError(f"clip is {self.clip}; so many standard deviations, above 0")
        for name in ("kl", "reciprocal"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; 0 or more")
        if not 0 <= self.redrawn <= 1:
            raise ValueError(f"redrawn is {self.redrawn}; a share, 0 to 1")
        for name in ("dropout", "reciprocal_until"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; at least 0 and below 1")


class CodeModulator(nn.Module):
    """Codes -> one affine pair for each ResBlock."""

    def __init__(self, widths: Sequence[int], coarse: int, fine: int, *, hierarchy: bool) -> None:
        super().__init__()
        self.sizes = [2 * width for width in widths]
        self.hierarchy = hierarchy
        hidden = 4 * max(32, min(widths))
        seen = coarse if hierarchy or not fine else coarse + len(widths)
        self.mlp = nn.Sequential(nn.Linear(seen, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.shared = VectorModulator(widths, hidden)
        self.to_scalars = nn.Parameter(torch.randn(len(widths), fine)) if fine else None
        self.axes = nn.Parameter(0.1 * torch.randn(sum(self.sizes))) if fine and hierarchy else None
        """d_1 .. d_L, one after the other."""

    def scalars(self, s: Tensor) -> Tensor:
        """s (B, D) -> s_1 .. s_L (B, L), each a unit direction of s: standard normal where s is."""
        assert self.to_scalars is not None
        return s @ F.normalize(self.to_scalars, dim=1).T

    def forward(self, coarse: Tensor, scalars: Tensor | None) -> list[Affine]:
        """coarse (B, d), scalars (B, L) or None -> L pairs of (B, C_i, 1, 1)."""
        told = coarse
        if scalars is not None and not self.hierarchy:
            told = torch.cat([coarse, scalars], 1)
        pairs = self.shared(self.mlp(told))
        if scalars is None or self.axes is None:
            return pairs
        along = [
            (s * axis)[..., None, None].chunk(2, 1)
            for s, axis in zip(scalars.split(1, 1), self.axes.split(self.sizes), strict=True)
        ]
        return [(a + da, b + db) for (a, b), (da, db) in zip(pairs, along, strict=True)]


class CodedDiffusion(Diffusion):
    """A U-Net that denoises under a coarse code, and where it has an encoder also under a fine code."""

    def __init__(self, config: FineConfig, shape: tuple[int, int, int], coarse: int) -> None:
        super().__init__(shape, config.schedule, config.predicts)
        self.config, self.shape = config, shape
        self.unet = UNet(config.unet)
        self.time = TimeModulator(self.unet.widths, config.unet.base)
        fine = config.dim if config.encoder is not None else 0
        self.codes = CodeModulator(self.unet.widths, coarse, fine, hierarchy=config.hierarchy)
        self.encoder = None if config.encoder is None else Encoder(config.encoder, 2 * fine)

    @property
    def depths(self) -> tuple[str, ...]:
        """A name for each ResBlock: down, middle or up, the stage (0 is the full size), the block in it."""
        stages, blocks = len(self.config.unet.multipliers), self.config.unet.blocks
        down = [f"down{s}.{b}" for s in range(stages) for b in range(blocks)]
        up = [f"up{s}.{b}" for s in reversed(range(stages)) for b in range(blocks + 1)]
        return (*down, "middle.0", "middle.1", *up)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(s | x), (B, D) each (eq. 16)."""
        assert self.encoder is not None
        mean, logvar = self.encoder(x).float().chunk(2, 1)
        return mean, logvar.clamp(-10, 5)

    def eps(self, x_t: Tensor, t: Tensor, coarse: Tensor, scalars: Tensor | None) -> Tensor:
        """The noise in x_t (B, *S) at t (B,), given codes (B, d) and (B, L)."""
        said = self.unet(x_t, self.time(t), self.codes(coarse, scalars))
        return self.noise_said(said.float(), x_t, t)


class CodedStage(Stage):
    """Denoise under the codes of the frozen coarse encoder: stage "diffusion" on pixels, "fine" on latents."""

    derives = True

    def __init__(self, method: CoFi, name: str, denoiser: CodedDiffusion) -> None:
        self.method, self.name, self.denoiser = method, name, denoiser
        self.players = {"denoiser": list(denoiser.parameters())}
        self.shows = {"grain": name} if "grain" in method.controls else {}

    def prepare(self, pictures: Pictures) -> None:
        method = self.method
        if self.name == "fine" and method.latents is not None:
            method.latents.fit(pictures)
        method.fill_bank(pictures)
        self.denoiser.fit(
            lambda n: (self.derive(part.to(method.device))["clean"].cpu() for part in pictures(n))
        )

    @torch.no_grad()
    def derive(self, x0: Tensor) -> dict[str, Tensor]:
        clean = self.method.to_latent(x0) if self.name == "fine" else x0
        return {"clean": clean, "coarse": self.method.encode(x0)}

    def losses(self, batch: Batch, rng: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        net, cfg = self.denoiser, self.denoiser.config
        clean, coarse = batch.derived["clean"], batch.derived["coarse"]
        if cfg.redrawn:
            fresh, _ = self.method.prior.sample(len(clean), rng)
            coarse = self.method.redrawn(coarse, fresh, cfg.redrawn)
        x_t, t, logsnr, eps = net.diffused(clean, rng)
        told = (torch.rand(len(clean), generator=rng, device=rng.device) >= cfg.dropout).to(coarse)[:, None]

        if net.encoder is None:
            found = net.eps(x_t, t, told * coarse, None)
            yield (
                "denoiser",
                {"denoise": denoising_loss(found, x_t, eps, logsnr, weighting=cfg.weighting).mean()},
            )
            return
        mean, logvar = net.posterior(clean)
        s = draw(mean, logvar, rng)  # eq. 17
        found = net.eps(x_t, t, told * coarse, told * net.codes.scalars(s))
        terms = {"denoise": denoising_loss(found, x_t, eps, logsnr, weighting=cfg.weighting).mean()}  # eq. 22
        nats = kl(mean, logvar).mean()
        terms["kl"] = cfg.kl * nats  # eq. 23
        if cfg.reciprocal:
            # eqs. 24 and 25, of those samples alone that count. The target stays where it is: a loss that may move
            # it is least where posteriors are narrow and alike, and then s says nothing of a picture
            near = (told[:, 0] * (t < cfg.reciprocal_until)).nonzero()[:, 0]
            x0_hat = to_x0(found[near], x_t[near], logsnr[near], "eps").clamp(-cfg.clip, cfg.clip)
            again, _ = net.posterior(x0_hat)
            error = (s[near].detach() - again).square().mean(1).sum()
            terms["reciprocal"] = cfg.reciprocal * error / max(1, len(near))
        # a posterior may be far from the prior and the same for every picture: nats alone do not say that s is used
        yield "denoiser", terms | {"_nats": nats.detach(), "_spread": mean.detach().std(0).mean()}
