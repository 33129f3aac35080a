"""The weighted denoising loss."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pellucid.process.predict import Prediction, from_x0, to_x0
from pellucid.process.schedule import alpha_sigma, expand

Weight = Literal["simple", "min_snr", "x0"]


def diffuse(x0: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
    """x_t = alpha x0 + sigma eps; x0, eps (B, *S), logsnr (B,)."""
    alpha, sigma = (expand(v, x0) for v in alpha_sigma(logsnr))
    return alpha * x0 + sigma * eps


def weight(logsnr: Tensor, kind: Weight, *, gamma: float = 5.0) -> Tensor:
    """The factor on ||eps - eps_hat||^2: (B,) -> (B,).

    "simple" is Ho et al.'s L_simple (1 everywhere); "min_snr" caps the signal-to-noise ratio at
    gamma (Hang et al., 2023), "x0" turns the loss into ||x0 - x0_hat||^2 (1 / SNR).
    """
    if kind == "simple":
        return torch.ones_like(logsnr)
    if kind == "min_snr":
        return (gamma * torch.exp(-logsnr)).clamp(max=1.0)
    if kind == "x0":
        return torch.exp(-logsnr)
    raise ValueError(f"weight is {kind!r}; it is one of 'simple', 'min_snr', 'x0'")


def denoising_loss(
    pred: Tensor,
    x_t: Tensor,
    eps: Tensor,
    logsnr: Tensor,
    *,
    kind: Prediction = "eps",
    weighting: Weight = "simple",
) -> Tensor:
    """Mean over S of the weighted squared error of the noise: (B,).

    Whatever the network predicts is converted to eps first, so a weighting means the same for all.
    """
    eps_hat = pred if kind == "eps" else from_x0(to_x0(pred, x_t, logsnr, kind), x_t, logsnr, "eps")
    error = (eps_hat - eps).square().flatten(1).mean(1)
    return error * weight(logsnr, weighting)
