"""Samplers: one function each, one signature. They see a closure `denoise(x_t, t) -> x0_hat` and a schedule.

    denoise   (B, *S), (B,) -> (B, *S)
    x         (B, *S) at time levels[0]
    levels    (N + 1,) times, decreasing for sampling, increasing for `invert`
    rng       a torch.Generator on the device of x; needed by samplers that add noise
    on_step   called as on_step(i, t, x_t, x0_hat) before each move

The last level of a table-based schedule is t = 0, which the samplers treat as clean: the last move
lands on x0_hat itself. The single moves are public, so that a caller can drive its own loop.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pellucid.process.schedule import Schedule, alpha_sigma
from pellucid.types import Denoise

OnStep = Callable[[int, float, Tensor, Tensor], None]
Level = tuple[Tensor, Tensor]
"""(alpha, sigma) of one time, as scalars."""


def level(schedule: Schedule, t: Tensor, dtype: torch.dtype, *, clean_at_zero: bool = True) -> Level:
    """(alpha, sigma) at a scalar time; exactly (1, 0) at t = 0."""
    if clean_at_zero and float(t) == 0.0:
        return torch.ones((), dtype=dtype, device=t.device), torch.zeros((), dtype=dtype, device=t.device)
    alpha, sigma = alpha_sigma(schedule.logsnr(t.double()))
    return alpha.to(dtype), sigma.to(dtype)


def noise_like(x: Tensor, rng: torch.Generator | None) -> Tensor:
    if rng is None:
        raise ValueError(
            "this sampler adds noise and needs rng=torch.Generator(); nothing reads the global one"
        )
    return torch.randn(x.shape, generator=rng, dtype=x.dtype, device=x.device)


def ddim_step(
    x: Tensor, x0: Tensor, now: Level, then: Level, *, eta: float = 0.0, noise: Tensor | None = None
) -> Tensor:
    """Song et al., "Denoising Diffusion Implicit Models" (2021), eq. 12. eta = 1 is ancestral sampling."""
    (a, s), (a2, s2) = now, then
    eps = (x - a * x0) / s
    if eta == 0.0:
        return a2 * x0 + s2 * eps
    if noise is None:
        raise ValueError(f"eta is {eta}: this step adds noise and needs it")
    var = (eta**2) * (s2 / s) ** 2 * (1 - (a / a2) ** 2).clamp(min=0)
    return a2 * x0 + (s2**2 - var).clamp(min=0).sqrt() * eps + var.sqrt() * noise


def ddpm_step(x: Tensor, x0: Tensor, now: Level, then: Level, noise: Tensor | None) -> Tensor:
    """The posterior q(x_s | x_t, x0): Ho et al. (2020), eqs. 6 and 7, between any two times. No noise at the end."""
    (a, s), (a2, s2) = now, then
    ratio = a / a2
    beta = 1 - ratio**2
    mean = (a2 * beta * x0 + ratio * s2**2 * x) / s**2
    if float(s2) == 0.0:
        return mean
    if noise is None:
        raise ValueError("a DDPM step adds noise and needs it")
    return mean + (beta.clamp(min=0) * s2**2 / s**2).sqrt() * noise


def _walk(
    denoise: Denoise,
    x: Tensor,
    levels: Tensor,
    schedule: Schedule,
    on_step: OnStep | None,
    clean: bool = True,
):
    """Yield (i, x0_hat of the current x, now, then); send back the next x. Returns nothing."""
    levels = levels.to(x.device)
    for i in range(len(levels) - 1):
        x0 = denoise(x, levels[i].to(x.dtype).expand(len(x)))
        if on_step is not None:
            on_step(i, float(levels[i]), x, x0)
        now = level(schedule, levels[i], x.dtype, clean_at_zero=clean)
        then = level(schedule, levels[i + 1], x.dtype, clean_at_zero=clean)
        x = yield i, x0, now, then


def _drive(steps, x: Tensor, move) -> Tensor:
    try:
        item = next(steps)
        while True:
            x = move(x, *item)
            item = steps.send(x)
    except StopIteration:
        return x


def ddim(
    denoise: Denoise,
    x: Tensor,
    levels: Tensor,
    schedule: Schedule,
    *,
    eta: float = 0.0,
    rng: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """DDIM (Song et al., 2021): deterministic at eta = 0."""

    def move(x, i, x0, now, then):
        return ddim_step(x, x0, now, then, eta=eta, noise=noise_like(x, rng) if eta else None)

    return _drive(_walk(denoise, x, levels, schedule, on_step), x, move)


def ddpm(
    denoise: Denoise,
    x: Tensor,
    levels: Tensor,
    schedule: Schedule,
    *,
    rng: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Ancestral sampling (Ho et al., 2020, algorithm 2) over any subset of times."""

    def move(x, i, x0, now, then):
        return ddpm_step(x, x0, now, then, None if float(then[1]) == 0.0 else noise_like(x, rng))

    return _drive(_walk(denoise, x, levels, schedule, on_step), x, move)


def invert(
    denoise: Denoise,
    x: Tensor,
    levels: Tensor,
    schedule: Schedule,
    *,
    rng: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """DDIM run backwards: from an image to the noise that gives it. levels increase.

    The first level may be 0; it then means the cleanest level of the schedule, whose noise is not
    zero, since eps cannot be read off where sigma vanishes.
    """
    if not bool((levels[1:] > levels[:-1]).all()):
        raise ValueError("invert goes from clean to noise: its levels must increase")

    def move(x, i, x0, now, then):
        return ddim_step(x, x0, now, then)

    return _drive(_walk(denoise, x, levels, schedule, on_step, clean=False), x, move)


def heun(
    denoise: Denoise,
    x: Tensor,
    levels: Tensor,
    schedule: Schedule,
    *,
    rng: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Second order in the variance-exploding view (Karras et al., 2022, algorithm 1, no churn).

    With y = x / alpha and s = sigma / alpha the probability flow is dy/ds = (y - x0_hat) / s;
    each step but the last, which lands on s = 0, averages the slope at both ends.
    """

    def move(x, i, x0, now, then):
        (a, s), (a2, s2) = now, then
        y, r, r2 = x / a, s / a, s2 / a2
        slope = (y - x0) / r
        y2 = y + (r2 - r) * slope
        if float(s2) > 0.0:
            t2 = levels[i + 1].to(x).expand(len(x))
            slope2 = (y2 - denoise(a2 * y2, t2)) / r2
            y2 = y + (r2 - r) * 0.5 * (slope + slope2)
        return a2 * y2

    return _drive(_walk(denoise, x, levels, schedule, on_step), x, move)


def dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    levels: Tensor,
    schedule: Schedule,
    *,
    rng: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """DPM-Solver++ (2M): Lu et al., "DPM-Solver++" (2022), algorithm 2, multistep, data prediction.

    First order in the first and the last step, as the solver's authors do for few steps.
    """
    last: list[tuple[Tensor, Tensor]] = []  # (x0_hat, half log-SNR) of the step before

    def move(x, i, x0, now, then):
        (a, s), (a2, s2) = now, then
        lam = torch.log(a / s)
        data = x0
        if float(s2) == 0.0:
            last.append((x0, lam))
            return x0.clone()
        h = torch.log(a2 / s2) - lam
        if last:
            before, lam_before = last[-1]
            r = (lam - lam_before) / h
            data = x0 + (x0 - before) / (2 * r)
        last.append((x0, lam))
        del last[:-1]
        return (s2 / s) * x - a2 * torch.expm1(-h) * data

    return _drive(_walk(denoise, x, levels, schedule, on_step), x, move)


SAMPLERS = {"ddim": ddim, "ddpm": ddpm, "dpmpp_2m": dpmpp_2m, "heun": heun}
