"""How much of what went into a generator can be read back from what came out.

Of a latent vector z, a lower bound (CoFi-UCGen, lemma 1). For any encoder E, with r = E |E(G(z)) - z|^2,

    I(z; G(z)) = h(z) - h(z | G(z)) >= h(z) - (d / 2) log(2 pi e r / d)

because q(z | x) = N(z; E(x), s^2 I) in place of p(z | x) can only raise the cross-entropy (Barber & Agakov
2003), which s^2 = r / d makes smallest. The paper leaves s^2 and the constant open; with them the bound is a
number. It is reached where the posterior is that Gaussian and E its mean. A bound below 0 says nothing.

Of a code, an estimate from counts. Information about z is in nats, information about a code in bits.

Shapes: N samples, d entries of z, K modes of its prior.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pellucid.metrics.clustering import contingency


def information_bound(entropy_of_z: float, r: float, d: int) -> float:
    """A lower bound on I(z; G(z)) in nats; infinite where z is read back without error.

    Args:
        entropy_of_z: differential entropy of the prior in nats, as from `mixture_entropy`.
        r: mean over samples of |E(G(z)) - z|^2, the d entries *summed*.
        d: entries of z.
    """
    if d < 1 or not r >= 0:
        raise ValueError(f"expected d >= 1 and a squared error r >= 0, got d={d}, r={r}")
    if r == 0:
        return math.inf
    return entropy_of_z - d / 2 * math.log(2 * math.pi * math.e * r / d)


def mixture_entropy(log_posterior: Tensor, noise: Tensor) -> tuple[float, float]:
    """Differential entropy in nats of an equal mixture of K Gaussians N(mu_c, diag(noise^2)).

    h(z) = h(z | c) + log K - E H(c | z): only the last term is estimated, the mean over samples of the
    entropy of the mode given the sample. It lies in [0, log K], and is 0 where the modes are well apart, so
    the entropy has h(z | c) = sum_i log(2 pi e noise_i^2) / 2 and that plus log K as its bounds.

    Args:
        log_posterior: (N, K) log p(c | z) of each mode, for z drawn from the mixture.
        noise: (d,) standard deviation of each entry within a mode.

    Returns:
        entropy, its standard error.
    """
    if log_posterior.ndim != 2 or len(log_posterior) < 2:
        raise ValueError(f"expected log-posteriors (N, K) of 2 samples, got {tuple(log_posterior.shape)}")
    if noise.ndim != 1 or not len(noise) or not (noise > 0).all():
        raise ValueError(
            f"expected noise (d,), all above 0, got shape {tuple(noise.shape)}: entries without noise have no "
            "density, leave them out"
        )
    log_p = log_posterior.double()
    if not (log_p.logsumexp(1).abs() < 1e-3).all():
        raise ValueError("rows of log-posteriors are not log-probabilities: take the log_softmax first")
    p = log_p.exp()
    unsure = -torch.where(p > 0, p * log_p, 0.0).sum(1)  # H(c | z) of each sample; 0 log 0 is 0
    within = 0.5 * (2 * math.pi * math.e * noise.double().square()).log().sum().item()
    error = unsure.std() / len(unsure) ** 0.5
    return within + math.log(log_p.shape[1]) - unsure.mean().item(), error.item()


def code_information(codes: Tensor, read: Tensor, *, corrected: bool = False) -> float:
    """Mutual information in bits between the code put in and the code read back, from their counts.

    The plug-in estimate is too high by about (K - 1)(K' - 1) / 2N nats for K codes and K' readings that know
    nothing of each other, which is not small where N is not many times the cells of the table.

    Args:
        codes: (N,) whole numbers.
        read: (N,) whole numbers.
        corrected: take that bias off (Miller 1955), counting the codes, the readings and the pairs that
            occurred. The result can be below 0.
    """
    table = contingency(codes, read).double()
    n = table.sum()
    joint, expected = table / n, torch.outer(table.sum(1), table.sum(0)) / n**2
    nats = torch.xlogy(joint, joint).sum() - torch.xlogy(joint, expected).sum()
    if corrected:
        nats = nats + (sum(table.shape) - (table > 0).sum() - 1) / (2 * n)
    return nats.item() / math.log(2)
