"""Noise schedules, each nothing but a log signal-to-noise ratio for every time t in [0, 1].

With logsnr = log(alpha^2 / sigma^2) and the variance-preserving process x_t = alpha x0 + sigma eps,
alpha and sigma follow from it alone (Kingma et al., "Variational Diffusion Models", 2021):

    alpha^2 = sigmoid(logsnr),  sigma^2 = sigmoid(-logsnr)

so every beta table and every parameterisation is one number per t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
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
        """Discrete step (0 .. T-1) -> t."""
        return (torch.as_tensor(step, dtype=torch.float64) + 1) / self.steps

    def logsnr(self, t: Tensor) -> Tensor:
        table = self.table.to(t.device)
        place = t.double().clamp(0, 1) * self.steps
        low = place.floor().long().clamp(max=self.steps - 1)
        return torch.lerp(table[low], table[low + 1], place - low).to(t.dtype)


@dataclass(frozen=True)
class CosineSchedule:
    """alpha = cos(pi t / 2), cut to [low, high] (Nichol and Dhariwal, 2021, in the continuous form)."""

    low: float = -15.0
    high: float = 15.0

    def logsnr(self, t: Tensor) -> Tensor:
        first = math.atan(math.exp(-0.5 * self.high))
        last = math.atan(math.exp(-0.5 * self.low))
        return -2 * torch.log(torch.tan(first + t * (last - first)))


@dataclass(frozen=True)
class LinearSchedule:
    """Log-SNR falls on a straight line from `high` at t = 0 to `low` at t = 1."""

    low: float = -10.0
    high: float = 10.0

    def logsnr(self, t: Tensor) -> Tensor:
        return torch.lerp(torch.full_like(t, self.high), torch.full_like(t, self.low), t)


ScheduleName = Literal["linear_betas", "cosine", "linear_logsnr"]


def make_schedule(name: ScheduleName) -> Schedule:
    """A schedule by its name in a config: Ho et al.'s 1,000 linear betas, the cosine, or a straight log-SNR."""
    makers = {
        "linear_betas": TabulatedSchedule.linear,
        "cosine": CosineSchedule,
        "linear_logsnr": LinearSchedule,
    }
    if name not in makers:
        raise ValueError(f"schedule is {name!r}; it is one of {', '.join(map(repr, makers))}")
    return makers[name]()


def levels(num_steps: int, *, start: float = 1.0, table: int | None = None) -> Tensor:
    """The times a sampler visits: (num_steps + 1,) float64 from `start` down to 0.

    With `table` = T they are the evenly spaced ("trailing") steps of a table of T betas, so that
    num_steps = T visits each once and the first is t = 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; a sampler needs at least one step")
    if table is not None and num_steps > table:
        raise ValueError(
            f"num_steps is {num_steps}, more than the {table} steps of the table; use at most {table}"
        )
    if not 0 < start <= 1:
        raise ValueError(f"start is {start}; sampling starts at a time in (0, 1]")
    times = start * torch.arange(num_steps, -1, -1, dtype=torch.float64) / num_steps
    return times if table is None else (times * table).round() / table
