"""eps, v and x0: what a network may predict, converted here and nowhere else.

    x_t = alpha x0 + sigma eps          v = alpha eps - sigma x0       (Salimans and Ho, 2022)

Everywhere: pred, x0, eps, x_t (B, *S), logsnr (B,).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from pellucid.process.schedule import alpha_sigma, expand

Prediction = Literal["eps", "v", "x0"]


def to_x0(pred: Tensor, x_t: Tensor, logsnr: Tensor, kind: Prediction) -> Tensor:
    """What a network of this kind believes the clean image to be."""
    alpha, sigma = (expand(v, x_t) for v in alpha_sigma(logsnr))
    if kind == "x0":
        return pred
    if kind == "eps":
        return (x_t - sigma * pred) / alpha
    if kind == "v":
        return alpha * x_t - sigma * pred
    raise _unknown(kind)


def to_eps(pred: Tensor, x_t: Tensor, logsnr: Tensor, kind: Prediction) -> Tensor:
    """What a network of this kind believes the noise to be."""
    alpha, sigma = (expand(v, x_t) for v in alpha_sigma(logsnr))
    if kind == "x0":
        return (x_t - alpha * pred) / sigma
    if kind == "eps":
        return pred
    if kind == "v":
        return alpha * pred + sigma * x_t
    raise _unknown(kind)


def from_x0(x0: Tensor, x_t: Tensor, logsnr: Tensor, kind: Prediction) -> Tensor:
    """The inverse of `to_x0`: what a network of this kind would have had to say."""
    alpha, sigma = (expand(v, x_t) for v in alpha_sigma(logsnr))
    if kind == "x0":
        return x0
    if kind == "eps":
        return (x_t - alpha * x0) / sigma
    if kind == "v":
        return (alpha * x_t - x0) / sigma
    raise _unknown(kind)


def _unknown(kind: str) -> ValueError:
    return ValueError(f"prediction is {kind!r}; it is one of 'eps', 'v', 'x0'")
