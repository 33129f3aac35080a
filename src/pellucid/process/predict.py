"""eps, v and x0: what a network may predict, converted here and nowhere else.

x_t = alpha x0 + sigma eps          v = alpha eps - sigma x0       (Salimans and Ho, 2022)
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from pellucid.process.schedule import alpha_sigma, expand

Prediction = Literal["eps", "v", "x0"]


def to_x0(pred: Tensor, x_t: Tensor, logsnr: Tensor, kind: Prediction) -> Tensor:
    """pred, x_t (B, *S), logsnr (B,) -> x0 (B, *S)."""
    if kind == "x0":
        return pred
    alpha, sigma = (expand(v, x_t) for v in alpha_sigma(logsnr))
    if kind == "eps":
        return (x_t - sigma * pred) / alpha
    if kind == "v":
        return alpha * x_t - sigma * pred
    raise ValueError(f"prediction is {kind!r}; it is one of 'eps', 'v', 'x0'")


def from_x0(x0: Tensor, x_t: Tensor, logsnr: Tensor, kind: Prediction) -> Tensor:
    """The inverse of `to_x0`: what a network of this kind would have had to say."""
    if kind == "x0":
        return x0
    alpha, sigma = (expand(v, x_t) for v in alpha_sigma(logsnr))
    if kind == "eps":
        return (x_t - alpha * x0) / sigma
    if kind == "v":
        return (alpha * x_t - x0) / sigma
    raise ValueError(f"prediction is {kind!r}; it is one of 'eps', 'v', 'x0'")
