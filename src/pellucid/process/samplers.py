"""Samplers: one function each, one signature. They see a closure `denoise(x_t, t) -> x0_hat` and a schedule.

    denoise   (B, *S), (B,) -> (B, *S)
    x         (B, *S) at time levels[0]
    levels    (N + 1,) times, decreasing for sampling, increasing for `invert`
    rng       a torch.Generator; samplers that add noise need it, the others take it and leave it alone
    on_step   called as on_step(i, t, x_t, x0_hat) after the network has looked, before x moves

At t = 0 an image is clean, whatever the schedule's log-SNR there: alpha = 1, sigma = 0, and a sampler that
ends there lands on its last x0_hat. All that a sampler knows of a time is a `Level`; the single moves take
two of them and are public, so that a caller can drive a loop of its own:

    for now, then in pairwise(path(levels, schedule)):
        x = ddim_step(x, denoise(x, now.times(x)), now, then)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from pellucid.process.schedule import Schedule, alpha_sigma
from pellucid.types import Denoise

OnStep = Callable[[int, float, Tensor, Tensor], None]


class Level(NamedTuple):
    """One time of the process, in plain numbers: nothing waits for a device to learn them."""

    t: float
    alpha: float
    sigma: float

    def times(self, x: Tensor) -> Tensor:
        """This time for each sample of x (B, *S): (B,), as `denoise` takes it; never in half precision."""
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        return torch.full((len(x),), self.t, dtype=dtype, device=x.device)


def path(levels: Tensor, schedule: Schedule) -> list[Level]:
    """The levels at these times (N + 1,), computed in float64."""
    times = levels.detach().to("cpu", torch.float64)
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"levels have shape {tuple(times.shape)}; they are a list of two times or more")
    if not bool(((times >= 0) & (times <= 1)).all()):
        raise ValueError(f"levels are times from 0 to 1; these run from {times.min():g} to {times.max():g}")
    alphas, sigmas = (v.tolist() for v in alpha_sigma(schedule.logsnr(times)))
    return [
        Level(t, a, s) if t > 0 else Level(0.0, 1.0, 0.0)
        for t, a, s in zip(times.tolist(), alphas, sigmas, strict=True)
    ]


# ---- single moves, from x at `now` to x at `then`; x, x0, noise (B, *S)


def ddim_step(
    x: Tensor, x0: Tensor, now: Level, then: Level, *, eta: float = 0.0, noise: Tensor | None = None
) -> Tensor:
    """Song et al., "Denoising Diffusion Implicit Models" (2021), eqs. 12 and 16.

    eta = 0 is deterministic, and runs towards noise as well as away from it; eta = 1 has the variance of
    `ddpm_step`. The equation's eps_hat = (x - alpha x0) / sigma is written out.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; it lies between 0 (deterministic) and 1 (ancestral)")
    _, a, s = now
    _, a2, s2 = then
    var = (eta * s2 / s) ** 2 * (1 - (a / a2) ** 2) if eta else 0.0
    keep = math.sqrt(s2**2 - var)
    out = (keep / s) * x + (a2 - keep * a / s) * x0
    if var == 0:
        return out
    if noise is None:
        raise ValueError(f"with eta = {eta} this step adds noise: give it some, of the shape of x")
    return out + math.sqrt(var) * noise


def ddpm_step(x: Tensor, x0: Tensor, now: Level, then: Level, *, noise: Tensor | None = None) -> Tensor:
    """A draw from q(x_then | x_now, x0): Ho et al. (2020), eqs. 6 and 7, between any two times.

    Its variance is the posterior's ("fixed small"); no noise is needed where `then` is clean.
    """
    _, a, s = now
    _, a2, s2 = then
    if s2 == 0:
        return x0  # all that is left of the mean, without its rounding
    if noise is None:
        raise ValueError("a DDPM step adds noise: give it some, of the shape of x")
    ratio = a / a2
    beta = 1 - ratio**2
    mean = (ratio * s2**2 / s**2) * x + (a2 * beta / s**2) * x0
    return mean + math.sqrt(beta) * s2 / s * noise


def renoise_step(x: Tensor, now: Level, then: Level, *, noise: Tensor) -> Tensor:
    """A draw from q(x_then | x_now) for a noisier `then`: the process itself, forwards."""
    ratio = then.alpha / now.alpha
    return ratio * x + math.sqrt(then.sigma**2 - (ratio * now.sigma) ** 2) * noise


def heun_step(x: Tensor, x0: Tensor, guess: Tensor, x0_guess: Tensor, now: Level, then: Level) -> Tensor:
    """Karras et al., "Elucidating the Design Space" (2022), algorithm 1, lines 7 and 8, without churn.

    In y = x / alpha and r = sigma / alpha the probability flow is dy/dr = (y - x0_hat) / r. Euler's step
    along it is DDIM's: `guess` = ddim_step(x, x0, now, then), and x0_guess what the network sees there.
    """
    _, a, s = now
    _, a2, s2 = then
    slope = (x - a * x0) / s + (guess - a2 * x0_guess) / s2
    return a2 * (x / a + 0.5 * (s2 / a2 - s / a) * slope)


def dpmpp_2m_step(
    x: Tensor, x0: Tensor, now: Level, then: Level, before: tuple[Tensor, Level] | None
) -> Tensor:
    """Lu et al., "DPM-Solver++" (2022), algorithm 2: second order, by the x0_hat and level of the move before.

    First order without one, and into a clean level, where the log-SNR is infinite.
    """
    if then.sigma == 0:
        return x0
    h = _half_logsnr(then) - _half_logsnr(now)
    data = x0
    if before is not None:
        x0_before, level_before = before
        r = (_half_logsnr(now) - _half_logsnr(level_before)) / h
        data = x0 + (x0 - x0_before) / (2 * r)
    return (then.sigma / now.sigma) * x - then.alpha * math.expm1(-h) * data


# ---- whole walks


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
    """DDIM (Song et al., 2021); see `ddim_step`. Where levels rise, noise is added: see `schedule.revisit`."""
    for i, (now, then) in enumerate(pairwise(_away_from_noise(levels, schedule, may_rise=True))):
        if then.t > now.t:
            x = renoise_step(x, now, then, noise=_noise(x, rng))
            continue
        x0 = _look(denoise, x, now, i, on_step)
        x = ddim_step(x, x0, now, then, eta=eta, noise=_noise(x, rng) if eta and then.sigma else None)
    return x


def ddpm(
    denoise: Denoise,
    x: Tensor,
    levels: Tensor,
    schedule: Schedule,
    *,
    rng: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Ancestral sampling (Ho et al., 2020, algorithm 2) over any times. Where levels rise, noise is added."""
    for i, (now, then) in enumerate(pairwise(_away_from_noise(levels, schedule, may_rise=True))):
        if then.t > now.t:
            x = renoise_step(x, now, then, noise=_noise(x, rng))
            continue
        x0 = _look(denoise, x, now, i, on_step)
        x = ddpm_step(x, x0, now, then, noise=_noise(x, rng) if then.sigma else None)
    return x


def heun(
    denoise: Denoise,
    x: Tensor,
    levels: Tensor,
    schedule: Schedule,
    *,
    rng: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Heun's method (Karras et al., 2022): two looks for each move, one for a last move that ends clean."""
    for i, (now, then) in enumerate(pairwise(_away_from_noise(levels, schedule))):
        x0 = _look(denoise, x, now, i, on_step)
        guess = ddim_step(x, x0, now, then)
        x = heun_step(x, x0, guess, denoise(guess, then.times(x)), now, then) if then.sigma else guess
    return x


def dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    levels: Tensor,
    schedule: Schedule,
    *,
    rng: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """DPM-Solver++ (2M) (Lu et al., 2022): second order for one look a move; see `dpmpp_2m_step`."""
    before = None
    for i, (now, then) in enumerate(pairwise(_away_from_noise(levels, schedule))):
        x0 = _look(denoise, x, now, i, on_step)
        x = dpmpp_2m_step(x, x0, now, then, before)
        before = (x0, now)
    return x


def invert(
    denoise: Denoise,
    x: Tensor,
    levels: Tensor,
    schedule: Schedule,
    *,
    iterations: int = 1,
    rng: torch.Generator | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """DDIM backwards: from x at levels[0], as a rule an image at t = 0, to the noise that `ddim` turns into it.

    `ddim` comes from `then` to `now` by the eps_hat it reads at `then`; backwards, the x to read it at is what
    we look for, a fixed point. One iteration reads it at x itself, which is the inversion in common use
    (Mokady et al., "Null-text Inversion", 2023); more come closer to the exact inverse (Pan et al.,
    "Accelerated Iterative Diffusion Inversion", 2023), at one look each. on_step is given `then`.
    """
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; each move of an inversion needs at least one")
    walk = path(levels, schedule)
    if any(then.t <= now.t for now, then in pairwise(walk)):
        raise ValueError("invert runs from clean to noise: its levels increase; flip(0) turns a sampler's")
    for i, (now, then) in enumerate(pairwise(walk)):
        guess = x
        for last in range(1 - iterations, 1):
            x0 = _look(denoise, guess, then, i, None if last else on_step)
            eps = (guess - then.alpha * x0) / then.sigma
            guess = (then.alpha / now.alpha) * (x - now.sigma * eps) + then.sigma * eps
        x = guess
    return x


SAMPLERS = {"ddim": ddim, "ddpm": ddpm, "dpmpp_2m": dpmpp_2m, "heun": heun}


def _away_from_noise(levels: Tensor, schedule: Schedule, *, may_rise: bool = False) -> list[Level]:
    walk = path(levels, schedule)
    if walk[0].t == 0:
        raise ValueError("levels start at t = 0, where an image is clean and there is nothing to sample")
    for now, then in pairwise(walk):
        if then.t == now.t or (then.t > now.t and not may_rise):
            fall = "change" if may_rise else "fall"
            raise ValueError(
                f"levels go from t = {now.t:g} to {then.t:g}; for this sampler they {fall} at each step"
            )
    return walk


def _look(denoise: Denoise, x: Tensor, now: Level, i: int, on_step: OnStep | None) -> Tensor:
    x0 = denoise(x, now.times(x))
    if on_step is not None:
        on_step(i, now.t, x, x0)
    return x0


def _noise(x: Tensor, rng: torch.Generator | None) -> Tensor:
    """Drawn where the generator lives, so that one seed gives one picture on every device."""
    if rng is None:
        raise ValueError(
            "this sampler adds noise and needs rng=torch.Generator(); nothing reads the global one"
        )
    return torch.randn(x.shape, generator=rng, dtype=x.dtype, device=rng.device).to(x.device)


def _half_logsnr(level: Level) -> float:
    return math.log(level.alpha / level.sigma)
