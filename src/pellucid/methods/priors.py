"""Priors of a coarse code: Gaussian mixtures in R^d whose mode says what a picture roughly is.

    B  batch; d  dimensions; K  codes; n  bits, K = 2^n

All three have diagonal noise of one scale, and the same mean square (mu^2 + sigma^2 an entry where every entry has a
mode), so that an ablation between them changes the topology of the latent space and nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

PriorKind = Literal["bits", "mixture", "onehot"]


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    kind: PriorKind = "bits"
    """bits: n segments with two modes each (CoFi-UCGen, eqs. 4 to 6). mixture: 2^n modes at random corners. onehot:
    2^n entries hold the code and the rest noise, as in ClusterGAN and InfoGAN."""
    dim: int = 300
    """d, entries of the code."""
    bits: int = 5
    """n; there are 2^n codes, whatever the kind."""
    mean: float = 0.6
    """|mu| of every entry. An encoder that ends in tanh reaches no more than 1."""
    sigma: float = 0.3
    """Standard deviation within a mode."""

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 16:
            raise ValueError(f"bits is {self.bits}; from 1 to 16")
        if self.dim < 1:
            raise ValueError(f"dim is {self.dim}; at least 1")
        if self.kind == "bits" and self.dim % self.bits:
            near = max(1, round(self.dim / self.bits)) * self.bits
            raise ValueError(
                f"dim is {self.dim}, which {self.bits} bits do not divide into equal segments; {near} would do"
            )
        if self.kind == "onehot" and self.dim < self.codes:
            raise ValueError(
                f"dim is {self.dim}; a one-hot code of {self.codes} needs as many entries at least"
            )
        if not 0 < self.mean < 1 or not 0 < self.sigma < 1:
            raise ValueError(f"mean is {self.mean} and sigma {self.sigma}; both lie between 0 and 1")

    @property
    def codes(self) -> int:
        """K."""
        return 2**self.bits


def bits_of(code: Tensor, n: int) -> Tensor:
    """b_k = floor(c / 2^(k-1)) mod 2, k = 1..n (eq. 5): (B,) -> (B, n) int64."""
    return code[:, None] >> torch.arange(n, device=code.device) & 1


def code_of(bits: Tensor) -> Tensor:
    """The inverse of `bits_of`: (B, n) of 0 and 1 -> (B,) int64."""
    return (bits.long() << torch.arange(bits.shape[1], device=bits.device)).sum(1)


class Prior(nn.Module):
    """p(c) uniform on 0..K-1, p(z | c) = N(mean of c, diag(noise^2))."""

    noise: Tensor
    """(d,) standard deviation of each entry."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config, self.dim, self.codes, self.bits = config, config.dim, config.codes, config.bits

    def means(self, code: Tensor) -> Tensor:
        """(B,) codes -> (B, d)."""
        raise NotImplementedError

    def evidence(self, z: Tensor) -> Tensor:
        """(B, d) -> (B, r), all that z says of its code: a sufficient statistic of c."""
        raise NotImplementedError

    def log_likelihoods(self, z: Tensor) -> Tensor:
        """(B, d) -> (B, K), log p(z | c) of every code, up to what all codes share."""
        raise NotImplementedError

    def axes(self) -> Tensor:
        """(r, d) orthonormal rows that span the differences between modes."""
        means = self.means(torch.arange(self.codes)).double()
        _, strength, rows = torch.linalg.svd(means - means.mean(0), full_matrices=False)
        return rows[strength > 1e-6 * strength[0]].float()

    def sample(self, n: int, rng: torch.Generator, code: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z (n, d) and its codes (n,), uniform unless given. Raises ValueError for codes outside 0..K-1."""
        if code is None:
            code = torch.randint(self.codes, (n,), generator=rng, device=rng.device)
        elif len(code) != n or int(code.min()) < 0 or int(code.max()) >= self.codes:
            raise ValueError(
                f"codes are {code.tolist()[:8]}; expected {n} of them, each from 0 to {self.codes - 1}"
            )
        code = code.to(self.noise.device)
        eps = torch.randn(n, self.dim, generator=rng, device=rng.device).to(self.noise.device)
        return self.means(code) + self.noise * eps, code

    def read(self, z: Tensor) -> Tensor:
        """The most likely code of each z: (B, d) -> (B,)."""
        return self.log_likelihoods(z).argmax(1)

    @property
    def entropy(self) -> float:
        """Differential entropy in nats of the entries of z that have noise, for modes that do not overlap: an upper
        bound otherwise. Entries without noise have no density, and a code that lies in them is no part of the rest.
        """
        noisy = self.noise[self.noise > 0].double()
        within = 0.5 * (math.log(2 * math.pi * math.e) + 2 * noisy.log()).sum()
        return math.log(self.codes) * (len(noisy) == self.dim) + float(within)


class BitCodes(Prior):
    """n segments of d / n entries; bit k chooses the mode of segment k (CoFi-UCGen, eqs. 4 to 6, lemma 2)."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__(config)
        self.segment = config.dim // config.bits
        self.register_buffer("noise", torch.full((config.dim,), config.sigma), persistent=False)

    def signs(self, bits: Tensor) -> Tensor:
        """(-1)^b for every entry: (B, n) -> (B, d)."""
        return (1 - 2 * bits.float()).repeat_interleave(self.segment, 1)

    def means(self, code: Tensor) -> Tensor:
        return self.config.mean * self.signs(bits_of(code, self.bits))

    def axes(self) -> Tensor:
        # the segments themselves: the singular vectors above would be any rotation of them (theorem 1)
        return torch.eye(self.bits).repeat_interleave(self.segment, 1) / self.segment**0.5

    def evidence(self, z: Tensor) -> Tensor:
        """Each segment's mean entry: (B, d) -> (B, n), positive where its bit is 0; a sufficient statistic of b_k."""
        return z.unflatten(1, (self.bits, self.segment)).mean(2)

    def log_likelihoods(self, z: Tensor) -> Tensor:
        # log N(z_k; s mu) = s mu sum(z_k) / sigma^2 + what both modes share
        odds = self.evidence(z) * self.segment * self.config.mean / self.config.sigma**2  # (B, n)
        every = torch.arange(self.codes, device=z.device)
        return odds @ (1 - 2 * bits_of(every, self.bits).to(odds.dtype)).T

    def read(self, z: Tensor) -> Tensor:
        return code_of(self.evidence(z) < 0)

    def moved(self, z: Tensor, bits: Tensor) -> Tensor:
        """z (B, d) with its modes changed to bits (B, n), and its place within each mode kept."""
        return z + self.config.mean * (self.signs(bits) - self.signs(bits_of(self.read(z), self.bits)))


class Corners(Prior):
    """K modes at fixed random corners of the cube [-mu, mu]^d: a mixture without the factors of bit-codes."""

    corners: Tensor

    def __init__(self, config: PriorConfig) -> None:
        super().__init__(config)
        rng = torch.Generator().manual_seed(config.codes)  # the same in every run: part of what the prior is
        signs = torch.randint(2, (config.codes, config.dim), generator=rng) * 2.0 - 1
        self.register_buffer("corners", config.mean * signs, persistent=False)
        self.register_buffer("noise", torch.full((config.dim,), config.sigma), persistent=False)

    def means(self, code: Tensor) -> Tensor:
        return self.corners[code]

    def evidence(self, z: Tensor) -> Tensor:
        """The share of each corner in z, 1 where they are the same: (B, d) -> (B, K)."""
        return z @ self.corners.T / (self.dim * self.config.mean**2)

    def log_likelihoods(self, z: Tensor) -> Tensor:
        return self.evidence(z) * self.dim * (self.config.mean / self.config.sigma) ** 2


class OneHot(Prior):
    """[one-hot of c, Gaussian noise]: the code and the noise that varies a picture lie in entries of their own.

    The one-hot entries hold 0 and 1 and carry no noise (Mukherjee et al., "ClusterGAN", 2019, eq. 1); the others have
    the mean square of the other priors' entries.
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__(config)
        noise = torch.full((config.dim,), (config.mean**2 + config.sigma**2) ** 0.5)
        noise[: config.codes] = 0
        self.register_buffer("noise", noise, persistent=False)

    def means(self, code: Tensor) -> Tensor:
        return nn.functional.one_hot(code, self.dim).to(self.noise.dtype)

    def evidence(self, z: Tensor) -> Tensor:
        """The one-hot entries: (B, d) -> (B, K)."""
        return z[:, : self.codes]

    def log_likelihoods(self, z: Tensor) -> Tensor:
        return self.evidence(z) / self.config.sigma**2


PRIORS: dict[PriorKind, type[Prior]] = {"bits": BitCodes, "mixture": Corners, "onehot": OneHot}


def make_prior(config: PriorConfig) -> Prior:
    """The prior that a config describes."""
    return PRIORS[config.kind](config)
