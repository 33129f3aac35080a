"""What a picture would be if pictures were Gaussian: the part of denoising that need not be learned.

At high noise the best denoiser of any data is nearly that of a Gaussian with the same mean and covariance (Wang
and Vastola, 2024), and that one is known: Wiener's filter. A covariance of all pixels is large; over a
discrete cosine transform it is nearly diagonal (Ahmed et al., 1974), but for the colours of one frequency:

    x ~ N(mean, T' S T)        T  cosine transform; S  one C x C covariance for each frequency

A network then says what v is beyond the Gaussian's. With mean 0 and S = 1, which is what stands here before
anything has been fitted, the Gaussian's v is 0 and the network says v itself.

    B  batch; C, H, W  a picture
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pellucid.process.schedule import alpha_sigma, expand


def cosines(n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The orthonormal DCT-II as a matrix (n, n); its transpose is the inverse."""
    steps = torch.arange(n, dtype=dtype)
    k, i = steps[:, None], steps[None]
    rows = torch.cos(math.pi * k * (2 * i + 1) / (2 * n)) * math.sqrt(2 / n)
    return torch.cat([rows[:1] / math.sqrt(2), rows[1:]])


class Gaussian(nn.Module):
    """Mean and covariance of pictures; nothing here is trained, everything is kept with the weights.

    A starting point, not an estimate to rely on: what it gets wrong the network says beyond it.
    """

    mean: Tensor
    basis: Tensor
    power: Tensor
    down: Tensor
    across: Tensor

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        c, h, w = shape
        self.register_buffer("mean", torch.zeros(c, h, w))
        self.register_buffer(
            "basis", torch.eye(c).expand(h, w, c, c).clone()
        )  # columns are directions of colour
        self.register_buffer("power", torch.ones(h, w, c))
        self.register_buffer("down", cosines(h), persistent=False)
        self.register_buffer("across", cosines(w), persistent=False)

    @torch.no_grad()
    def fit(self, pictures: Iterable[Tensor]) -> None:
        """Take mean and covariance of batches (n, C, H, W) of pictures, and of one of white noise beside them.

        So few pictures are not taken for all there is, and a colour that never varies in them still may. Computed
        on the CPU in double precision, so that it is the same for every device.
        """
        _, h, w = self.mean.shape
        down, across = cosines(h, torch.float64), cosines(w, torch.float64)
        total = torch.zeros(self.mean.shape, dtype=torch.float64)
        square = torch.zeros(self.basis.shape, dtype=torch.float64)
        count = 0
        for part in pictures:
            waves = down @ part.to("cpu", torch.float64) @ across.T
            total += waves.sum(0)
            square += torch.einsum("nchw,ndhw->hwcd", waves, waves)
            count += len(part)
        mean = total / count
        power, basis = torch.linalg.eigh(square - count * torch.einsum("chw,dhw->hwcd", mean, mean))
        self.mean.copy_(down.T @ mean @ across)
        self.power.copy_((power.clamp(min=0) + 1) / (count + 1))
        self.basis.copy_(basis)

    def v(self, x_t: Tensor, logsnr: Tensor) -> Tensor:
        """alpha eps - sigma x0 of the posterior mean of this Gaussian: x_t (B, C, H, W), logsnr (B,) -> (B, C, H, W).

        sigma alpha (1 - S) / (alpha^2 S + sigma^2) (x_t - alpha mean) - sigma mean
        """
        if x_t.shape[1:] != self.mean.shape:
            raise ValueError(
                f"pictures are {tuple(x_t.shape[1:])}; the Gaussian is one of {tuple(self.mean.shape)}"
            )
        with torch.autocast(x_t.device.type, enabled=False):
            alpha, sigma = (expand(s.float(), x_t) for s in alpha_sigma(logsnr))
            waves = self.down @ (x_t.float() - alpha * self.mean) @ self.across.T
            # frequency by frequency, (H, W, B, C): laid out so, it is one batched product and not H W small ones
            waves = waves.permute(2, 3, 0, 1).contiguous() @ self.basis
            power, a, s = self.power[:, :, None], alpha.view(-1, 1), sigma.view(-1, 1)
            waves = waves * (1 - power) / (a.square() * power + s.square())
            waves = (waves @ self.basis.mT).permute(2, 3, 0, 1)
            return sigma * alpha * (self.down.T @ waves @ self.across) - sigma * self.mean
