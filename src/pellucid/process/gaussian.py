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

import torch
from torch import Tensor, nn

from pellucid.process.schedule import alpha_sigma, expand


def cosines(n: int, device: torch.device | None = None) -> Tensor:
    """The orthonormal DCT-II as a matrix (n, n); its transpose is the inverse."""
    k, i = torch.arange(n, device=device)[:, None], torch.arange(n, device=device)[None]
    rows = torch.cos(math.pi * k * (2 * i + 1) / (2 * n)) * math.sqrt(2 / n)
    return torch.cat([rows[:1] / math.sqrt(2), rows[1:]])


class Gaussian(nn.Module):
    """Mean and covariance of pictures; nothing here is trained, everything is kept with the weights."""

    mean: Tensor
    basis: Tensor
    power: Tensor

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        c, h, w = shape
        self.register_buffer("mean", torch.zeros(c, h, w))
        self.register_buffer(
            "basis", torch.eye(c).expand(h, w, c, c).clone()
        )  # columns are directions of colour
        self.register_buffer("power", torch.ones(h, w, c))

    @torch.no_grad()
    def fit(self, pictures: Tensor) -> None:
        """Take mean and covariance of pictures (N, C, H, W), and of one of white noise beside them.

        So few pictures are not taken for all there is, and a colour that never varies in them still may.
        """
        pictures = pictures.to(self.mean.device, torch.float32)
        self.mean.copy_(pictures.mean(0))
        waves = self._waves(pictures - self.mean)
        power, basis = torch.linalg.eigh(torch.einsum("nchw,ndhw->hwcd", waves, waves))
        self.power.copy_((power.clamp(min=0) + 1) / (len(pictures) + 1))
        self.basis.copy_(basis)

    def _waves(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        return cosines(h, x.device) @ x @ cosines(w, x.device).T

    def v(self, x_t: Tensor, logsnr: Tensor) -> Tensor:
        """alpha eps - sigma x0 of the posterior mean of this Gaussian: x_t (B, C, H, W), logsnr (B,) -> (B, C, H, W).

        sigma alpha (1 - S) / (alpha^2 S + sigma^2) (x_t - alpha mean) - sigma mean
        """
        h, w = x_t.shape[-2:]
        with torch.autocast(x_t.device.type, enabled=False):
            alpha, sigma = (expand(s.float(), x_t) for s in alpha_sigma(logsnr))
            waves = torch.einsum("hwcd,nchw->ndhw", self.basis, self._waves(x_t.float() - alpha * self.mean))
            power = self.power.permute(2, 0, 1)
            waves = waves * (1 - power) / (alpha.square() * power + sigma.square())
            waves = torch.einsum("hwcd,ndhw->nchw", self.basis, waves)
            back = cosines(h, x_t.device).T @ waves @ cosines(w, x_t.device)
            return sigma * alpha * back - sigma * self.mean
