"""The weighted denoising loss."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from pellucid.process.predict import Prediction, to_eps
from pellucid.process.schedule import alpha_sigma, expand

Weight = Literal["simple", "min_snr", "x0", "v"]


def diffuse(x0: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
    """x_t = alpha x0 + sigma eps; x0, eps (B, *S), logsnr (B,)."""
    alpha, sigma = (expand(v, x0) for v in alpha_sigma(logsnr))
    return alpha * x0 + sigma * eps


def weight(logsnr: Tensor, kind: Weight, *, gamma: float = 5.0) -> Tensor:
    """The factor on ||eps - eps_hat||^2, any shape -> that shape.

    "simple" is L_simple of Ho et al. (2020), 1 everywhere; "x0" turns the loss into ||x0 - x0_hat||^2, by
    1 / SNR; "min_snr" is min(SNR, gamma) times that (Hang et al., 2023, section 3.4); "v" turns it into ||v - v_hat||^2
    (Salimans and Ho, 2022, appendix D), by 1 + 1 / SNR.
    """
    if kind == "simple":
        return torch.ones_like(logsnr)
    if kind == "min_snr":
        return (gamma * torch.exp(-logsnr)).clamp(max=1.0)
    if kind == "x0":
        return torch.exp(-logsnr)
    if kind == "v":
        return 1 + torch.exp(-logsnr)
    raise ValueError(f"weight is {kind!r}; it is one of {', '.join(map(repr, get_args(Weight)))}")


def denoising_loss(
    pred: Tensor,
    x_t: Tensor,
    eps: Tensor,
    logsnr: Tensor,
    *,
    kind: Prediction = "eps",
    weighting: Weight = "simple",
) -> Tensor:
    """Mean over S of the weighted squared error of the noise: pred, x_t, eps (B, *S), logsnr (B,) -> (B,).

    Whatever the network predicts is converted to eps first, so a weighting means the same for all.
    """
    error = (to_eps(pred, x_t, logsnr, kind) - eps).square().flatten(1).mean(1)
    return error * weight(logsnr, weighting)
