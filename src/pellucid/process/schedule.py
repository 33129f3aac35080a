"""Noise schedules, each nothing but a log signal-to-noise ratio for every time t in [0, 1].

With logsnr = log(alpha^2 / sigma^2) and the variance-preserving process x_t = alpha x0 + sigma eps,
alpha and sigma follow from it alone (Kingma et al., "Variational Diffusion Models", 2021):

    alpha^2 = sigmoid(logsnr),  sigma^2 = sigmoid(-logsnr)

so every beta table and every parameterisation is one number per t.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Literal, Protocol

import torch
from torch import Tensor


class Schedule(Protocol):
    def logsnr(self, t: Tensor) -> Tensor:
        """t of any shape in [0, 1] -> log-SNR of that shape, decreasing in t."""
        ...


def alpha_sigma(logsnr: Tensor) -> tuple[Tensor, Tensor]:
    """Signal and noise amplitude of a variance-preserving process; alpha^2 + sigma^2 = 1."""
    return torch.sigmoid(logsnr).sqrt(), torch.sigmoid(-logsnr).sqrt()


def expand(value: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ..., 1), in the precision of `like`, so that it broadcasts against (B, *S)."""
    return value.to(like.dtype).reshape(-1, *(1,) * (like.ndim - 1))


@dataclass(frozen=True)
class TabulatedSchedule:
    """A table of betas, as in Ho et al., "Denoising Diffusion Probabilistic Models" (2020).

    The discrete step i (0 .. T-1, betas[i] applied last) sits at t = (i + 1) / T; log-SNR is linear
    in t between the steps. Below t = 1/T the line of the first two steps continues, so t = 0 is a
    little cleaner than step 0 and never infinite.
    """

    betas: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.betas) < 2 or not all(0 < b < 1 for b in self.betas):
            raise ValueError("a beta table needs two or more betas, each between 0 and 1 (both excluded)")

    @classmethod
    def linear(cls, steps: int = 1000, first: float = 1e-4, last: float = 2e-2) -> TabulatedSchedule:
        """The linear table of Ho et al.; its defaults are theirs."""
        return cls(tuple(torch.linspace(first, last, steps, dtype=torch.float64).tolist()))

    @property
    def steps(self) -> int:
        return len(self.betas)

    @cached_property
    def table(self) -> Tensor:
        """(T + 1,) float64 log-SNR at t = 0, 1/T, ..., 1."""
        beta = torch.tensor(self.betas, dtype=torch.float64)
        log_alpha2 = torch.log1p(-beta).cumsum(0)
        logsnr = log_alpha2 - torch.log(-torch.expm1(log_alpha2))
        return torch.cat([(2 * logsnr[0] - logsnr[1])[None], logsnr])

    def time_of(self, step: Tensor | int) -> Tensor:
        """Discrete step (0 .. T-1) -> t, float64 of the same shape."""
        return (torch.as_tensor(step, dtype=torch.float64) + 1) / self.steps

    def logsnr(self, t: Tensor) -> Tensor:
        table = _on_device(self, t.device, t.dtype)
        place = t.clamp(0, 1) * self.steps
        low = place.detach().long().clamp(max=self.steps - 1)
        return torch.lerp(table[low], table[low + 1], place - low)


@lru_cache(maxsize=64)
def _on_device(schedule: TabulatedSchedule, device: torch.device, dtype: torch.dtype) -> Tensor:
    return schedule.table.to(device, dtype)


@dataclass(frozen=True)
class CosineSchedule:
    """alpha = cos(pi t / 2) (Nichol and Dhariwal, 2021), in t shrunk so that log-SNR runs from `high` to `low`."""

    low: float = -15.0
    high: float = 15.0

    def __post_init__(self) -> None:
        _check_range(self.low, self.high)

    def logsnr(self, t: Tensor) -> Tensor:
        first = math.atan(math.exp(-0.5 * self.high))
        last = math.atan(math.exp(-0.5 * self.low))
        return -2 * torch.log(torch.tan(torch.lerp(torch.full_like(t, first), torch.full_like(t, last), t)))


@dataclass(frozen=True)
class LinearSchedule:
    """Log-SNR falls on a straight line from `high` at t = 0 to `low` at t = 1."""

    low: float = -10.0
    high: float = 10.0

    def __post_init__(self) -> None:
        _check_range(self.low, self.high)

    def logsnr(self, t: Tensor) -> Tensor:
        return torch.lerp(torch.full_like(t, self.high), torch.full_like(t, self.low), t)


def _check_range(low: float, high: float) -> None:
    if not -math.inf < low < high < math.inf:
        raise ValueError(
            f"log-SNR from {high} at t = 0 to {low} at t = 1: it has to fall, between finite numbers"
        )


ScheduleName = Literal["linear_betas", "cosine", "linear_logsnr"]


def make_schedule(name: ScheduleName) -> Schedule:
    """A schedule by its name in a config: Ho et al.'s 1,000 linear betas, the cosine, or a straight log-SNR."""
    makers: dict[str, Callable[[], Schedule]] = {
        "linear_betas": TabulatedSchedule.linear,
        "cosine": CosineSchedule,
        "linear_logsnr": LinearSchedule,
    }
    if name not in makers:
        raise ValueError(f"schedule is {name!r}; it is one of {', '.join(map(repr, makers))}")
    return makers[name]()


def training_times(
    schedule: Schedule, n: int, rng: torch.Generator, *, low_share: float = 0.0, low_end: float = 0.2
) -> Tensor:
    """n times, (n,) where the generator lives: uniform (over the table's steps, where there is one), or a share of them
    from [0, low_end]."""
    u = torch.rand(n, generator=rng, device=rng.device)
    low = torch.rand(n, generator=rng, device=rng.device) < low_share
    u = torch.where(low, u * low_end, u)
    if isinstance(schedule, TabulatedSchedule):
        u = (u * schedule.steps).floor().clamp(max=schedule.steps - 1).add(1) / schedule.steps
    return u


def levels(num_steps: int, *, start: float = 1.0, table: int | None = None) -> Tensor:
    """The times a sampler visits: (num_steps + 1,) float64, falling evenly from `start` to 0.

    With `table` = T they are steps of a table of T betas, "trailing" ones (Lin et al., "Common Diffusion Noise
    Schedules and Sample Steps Are Flawed", 2024, table 2): the first is `start`'s own step, and from t = 1,
    num_steps = T visits each once. A table has no more than `start` T steps to visit.
    """
    if not 0 < start <= 1:
        raise ValueError(f"start is {start}; sampling starts at a time in (0, 1]")
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; a sampler needs at least one step")
    down = torch.arange(num_steps, -1, -1, dtype=torch.float64)
    if table is None:
        return start * down / num_steps
    first = max(round(start * table), 1)
    if num_steps > first:
        raise ValueError(
            f"num_steps is {num_steps}, but from t = {start:g} a table of {table} has {first} to visit; use at most "
            f"{first}"
        )
    return (first * down / num_steps).round() / table


def moments(levels: Tensor, snapshots: int) -> set[int]:
    """Which moves of a path to keep, evenly from the first to the last; all where there are no more.

    Moves are counted as a sampler's `on_step` counts them. Where a stretch is walked more than once, its last time is
    kept.
    """
    last = {now: i for i, (now, then) in enumerate(pairwise(levels.tolist())) if then < now}
    falls = sorted(last.values())
    return {falls[round(i)] for i in torch.linspace(0, len(falls) - 1, snapshots).tolist()}


def revisit(levels: Tensor, *, jump: int, times: int) -> Tensor:
    """A path that walks each `jump` moves of `levels` `times` times, going back up by noising in between.

    What was generated beside something known (see `guidance.keep_known`) has then been seen by the network
    with it, `times` over, and fits it better (Lugmayr et al., "RePaint", 2022, section 4.2); at `times` as
    many network passes. For `ddim` and `ddpm`.
    """
    if jump < 1 or times < 1:
        raise ValueError(f"jump is {jump} and times is {times}; both are 1 or more")
    pieces = [levels[:1]]
    for i in range(0, len(levels) - 1, jump):
        down = levels[i + 1 : i + 1 + jump]
        pieces += [down, *(p for _ in range(times - 1) for p in (levels[i : i + 1], down))]
    return torch.cat(pieces)
