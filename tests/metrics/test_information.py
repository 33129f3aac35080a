"""Information against closed forms of Gaussians, quadrature and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pellucid.metrics.information import code_information, information_bound, mixture_entropy


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian_entropy(covariance: torch.Tensor) -> float:
    return 0.5 * torch.logdet(2 * math.pi * math.e * covariance).item()


def test_the_bound_is_the_information_of_a_noisy_copy_read_by_its_posterior_mean() -> None:
    d, s, noise = 6, 1.3, 0.4
    z = s * torch.randn(200_000, d, generator=gen(), dtype=torch.float64)
    x = z + noise * torch.randn(z.shape, generator=gen(1), dtype=torch.float64)
    exact = d / 2 * math.log(1 + s**2 / noise**2)  # Shannon's channel
    entropy = gaussian_entropy(s**2 * torch.eye(d))
    best = x * s**2 / (s**2 + noise**2)
    r = (best - z).square().sum(1).mean().item()
    # the relative error of r is (2 / N d)^(1/2), and d / 2 log r passes it on
    assert information_bound(entropy, r, d) == pytest.approx(exact, abs=4 * d / 2 * (2 / len(z) / d) ** 0.5)
    copied = (x - z).square().sum(1).mean().item()
    assert information_bound(entropy, copied, d) == pytest.approx(d / 2 * math.log(s**2 / noise**2), abs=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_no_linear_encoder_passes_the_information(seed: int) -> None:
    """z ~ N(0, S), x = A z + e, read by any E x: r in closed form, I by the determinants."""
    d, g = 4, gen(seed)
    root, a = (torch.randn(d, d, generator=g, dtype=torch.float64) for _ in range(2))
    prior = root @ root.T + 0.1 * torch.eye(d)
    seen = a @ prior @ a.T + torch.eye(d)
    exact = 0.5 * torch.logdet(seen).item()  # h(x) - h(e), e of unit variance
    posterior_mean = prior @ a.T @ torch.linalg.inv(seen)

    def bound(encoder: torch.Tensor) -> float:
        left = encoder @ a - torch.eye(d)
        r = (left @ prior @ left.T + encoder @ encoder.T).trace().item()
        return information_bound(gaussian_entropy(prior), r, d)

    best = bound(posterior_mean)
    assert best <= exact
    for _ in range(20):
        other = posterior_mean + 0.1 * torch.randn(d, d, generator=g, dtype=torch.float64)
        assert bound(other) < best


def test_bounds_count_in_nats_and_end_in_infinity() -> None:
    assert information_bound(1.0, 2.0, 4) - information_bound(1.0, 4.0, 4) == pytest.approx(2 * math.log(2))
    assert information_bound(3.0, 1.0, 4) - information_bound(1.0, 1.0, 4) == pytest.approx(2)
    assert information_bound(1.0, 0.0, 4) == math.inf
    # reading nothing at all, E = 0 for a standard Gaussian: r = d, and the bound is exactly 0
    assert information_bound(gaussian_entropy(torch.eye(7)), 7.0, 7) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("apart", [0.3, 1.0, 2.0])
def test_entropy_of_a_mixture_by_quadrature(apart: float) -> None:
    """Two modes at +-apart along the first of d axes: that axis by quadrature, the others Gaussian."""
    d, sigma, n = 5, 0.7, 40_000
    noise = torch.tensor([sigma, 0.2, 0.5, 1.0, 3.0])
    grid = np.linspace(-12, 12, 400_001)
    normal = lambda m: np.exp(-0.5 * ((grid - m) / sigma) ** 2) / sigma / math.sqrt(2 * math.pi)
    p = (normal(apart) + normal(-apart)) / 2
    first = -(p * np.log(np.maximum(p, 1e-300))).sum() * (grid[1] - grid[0])
    exact = first + gaussian_entropy(noise[1:].square().diag())

    modes = torch.zeros(2, d)
    modes[:, 0] = torch.tensor([apart, -apart])
    z = modes[torch.randint(0, 2, (n,), generator=gen())] + noise * torch.randn(n, d, generator=gen(1))
    log_posterior = (-torch.cdist(z / noise, modes / noise).square() / 2).log_softmax(1)
    found, error = mixture_entropy(log_posterior, noise)
    assert found == pytest.approx(exact, abs=4 * error)
    assert 0 < error < 0.005


def test_entropy_of_modes_far_apart_and_of_modes_on_one_spot() -> None:
    within = gaussian_entropy(0.25 * torch.eye(3, dtype=torch.float64))
    sure = torch.eye(8).repeat(5, 1).log()
    assert mixture_entropy(sure, torch.full((3,), 0.5)) == pytest.approx((within + math.log(8), 0))
    unsure = torch.full((40, 8), 1 / 8).log()
    assert mixture_entropy(unsure, torch.full((3,), 0.5)) == pytest.approx((within, 0), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_information_of_codes_equals_scikit_learn(seed: int) -> None:
    reference = pytest.importorskip("sklearn.metrics").mutual_info_score
    codes = torch.randint(0, 6, (100,), generator=gen(seed))
    read = torch.where(torch.rand(100, generator=gen(seed + 9)) < 0.6, codes, 9 - codes)
    assert code_information(codes, read) == pytest.approx(reference(codes, read) / math.log(2))
    assert code_information(codes, read) == pytest.approx(code_information(read, codes))


def test_information_of_bits_read_well_and_badly() -> None:
    codes = torch.arange(32).repeat(4)
    assert code_information(codes, (codes * 7 + 3) % 32) == pytest.approx(5)
    assert code_information(codes, codes % 4) == pytest.approx(2)
    assert code_information(codes, torch.zeros_like(codes)) == pytest.approx(0, abs=1e-12)


def test_the_correction_takes_the_bias_off() -> None:
    n, k = 400, 8
    draw = lambda seed: torch.randint(0, k, (n,), generator=gen(seed))
    pairs = [(draw(2 * i), draw(2 * i + 1)) for i in range(60)]
    plain, corrected = (
        np.array([code_information(a, b, corrected=c) for a, b in pairs]) for c in (False, True)
    )
    error = 4 * plain.std() / len(pairs) ** 0.5
    assert plain.mean() == pytest.approx((k - 1) ** 2 / (2 * n) / math.log(2), abs=error)
    assert corrected.mean() == pytest.approx(0, abs=error)
    assert plain.mean() > 3 * error


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: information_bound(1.0, -1.0, 3), "r=-1.0"),
        (lambda: information_bound(1.0, math.nan, 3), "r=nan"),
        (lambda: mixture_entropy(torch.zeros(3), torch.ones(3)), r"\(N, K\) .*\(3,\)"),
        (lambda: mixture_entropy(torch.zeros(3, 2), torch.ones(3)), "log_softmax"),
        (lambda: mixture_entropy(torch.zeros(3, 1), torch.eye(3)[0]), "no density"),
        (lambda: code_information(torch.arange(3), torch.arange(4)), r"\(3,\) and \(4,\)"),
    ],
)
def test_mistakes_are_named(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
