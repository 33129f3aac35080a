"""How close one image is to another, for each pair of a batch: averaging is left to the caller, in sight.

Images are (B, C, H, W) in [-1, 1], so the data range is 2. Results are (B,) float64.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

DATA_RANGE = 2.0


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error of each pair over channels and pixels, on the [-1, 1] scale."""
    _check(a, b)
    return (a.double() - b.double()).square().mean((1, 2, 3))


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair in dB, 10 log10(range^2 / mse); infinite for equal images."""
    return 10 * torch.log10(DATA_RANGE**2 / mse(a, b))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each pair, in [-1, 1] (Wang et al. 2004, equation 13).

    Gaussian window of 11 pixels with sigma 1.5, K1 = 0.01, K2 = 0.03, population variances; the mean
    is over the windows that lie wholly inside the image, then over channels.

    Raises:
        ValueError: for images smaller than the window.
    """
    _check(a, b)
    if min(a.shape[2:]) < 11:
        raise ValueError(
            f"SSIM's window is 11 pixels wide; images of {a.shape[2]} x {a.shape[3]} are too small"
        )
    c = a.shape[1]
    taps = torch.exp(-0.5 * (torch.arange(-5, 6, dtype=torch.float64, device=a.device) / 1.5).square())
    taps = (taps / taps.sum()).expand(c, 1, 1, 11)

    def local_mean(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, taps, groups=c), taps.transpose(2, 3), groups=c)

    a, b = a.double(), b.double()
    mu_a, mu_b = local_mean(a), local_mean(b)
    var_a = local_mean(a * a) - mu_a.square()
    var_b = local_mean(b * b) - mu_b.square()
    cov = local_mean(a * b) - mu_a * mu_b
    c1, c2 = (0.01 * DATA_RANGE) ** 2, (0.03 * DATA_RANGE) ** 2
    luminance = (2 * mu_a * mu_b + c1) / (mu_a.square() + mu_b.square() + c1)
    structure = (2 * cov + c2) / (var_a + var_b + c2)
    return (luminance * structure).mean((1, 2, 3))


def _check(a: Tensor, b: Tensor) -> None:
    if a.ndim != 4 or a.shape != b.shape:
        raise ValueError(f"expected two equal (B, C, H, W) shapes, got {tuple(a.shape)} and {tuple(b.shape)}")
