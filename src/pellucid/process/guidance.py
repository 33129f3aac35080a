"""Denoise -> Denoise: what changes a sampler's path without the sampler knowing."""

from __future__ import annotations

import torch
from torch import Tensor

from pellucid.process.schedule import Schedule, alpha_sigma, expand
from pellucid.types import Denoise


def clipped(denoise: Denoise, low: float = -1.0, high: float = 1.0) -> Denoise:
    """Keep x0_hat in the range of the data (Ho et al., 2020, do so at every step)."""
    return lambda x, t: denoise(x, t).clamp(low, high)


def guided(conditional: Denoise, unconditional: Denoise, scale: float) -> Denoise:
    """Classifier-free guidance (Ho and Salimans, 2022): scale 1 is the conditional, 0 the unconditional.

    Guiding x0_hat equals guiding eps, since at a given x_t one is an affine function of the other.
    """
    if scale == 1.0:
        return conditional

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        return torch.lerp(unconditional(x, t), conditional(x, t), scale)

    return denoise


def keep_known(
    denoise: Denoise,
    known: Tensor,
    keep: Tensor,
    schedule: Schedule,
    rng: torch.Generator,
    *,
    fresh: bool = False,
) -> Denoise:
    """Regenerate one part of a picture and keep the rest.

    Before the network looks, the kept part of x_t is replaced by the known picture at that noise
    level (Lugmayr et al., "RePaint", 2022), and after it, the kept part of x0_hat by the picture
    itself; so the kept part of the result is the picture, exactly.

    Its noise is drawn once, so that what is kept walks one way to its end as DDIM does; `fresh` draws it at each
    look, as RePaint does, for walks that go back up.

    known  (B, *S) clean; keep  (B, 1, H, W) or (B, *S) in [0, 1], 1 where the picture stays.
    """

    def drawn() -> Tensor:
        return torch.randn(known.shape, generator=rng, dtype=known.dtype, device=rng.device).to(known.device)

    once = drawn()

    def constrained(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (expand(v, x) for v in alpha_sigma(schedule.logsnr(t)))
        x = torch.lerp(x, alpha * known + sigma * (drawn() if fresh else once), keep)
        return torch.lerp(denoise(x, t), known, keep)

    return constrained
