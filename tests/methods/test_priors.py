"""Priors against torch.distributions, numpy and the paper's lemma 2 and theorem 1."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.linalg import subspace_angles
from torch import distributions as dist

from pellucid.methods.priors import PriorConfig, bits_of, code_of, make_prior
from pellucid.metrics.disentangle import independence, segment_movement

KINDS = ("bits", "mixture", "onehot")
N = 40_000


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def made(kind="bits", **options):
    return make_prior(PriorConfig(**{"kind": kind, "dim": 12, "bits": 3} | options))


# ---- codes and bits (eq. 5)


@pytest.mark.parametrize("n", [1, 3, 5, 10])
def test_bits_are_the_binary_digits_of_a_code(n):
    codes = torch.arange(2**n)
    bits = bits_of(codes, n)
    for c in (0, 1, 2**n - 1, 2**n // 3):
        assert "".join(str(int(b)) for b in bits[c].flip(0)) == format(c, f"0{n}b")
    assert (bits.double().numpy() @ 2.0 ** np.arange(n)).tolist() == codes.tolist()  # c = sum b_k 2^(k-1)
    assert torch.equal(code_of(bits), codes)


# ---- eq. 6: each segment, given its bit


def test_a_segment_has_the_moments_that_its_bit_says():
    prior = made(mean=0.5, sigma=0.2)
    z, code = prior.sample(N, seeded())
    parts, bits = z.view(N, 3, 4), bits_of(code, 3)
    for k in range(3):
        for b in (0, 1):
            part = parts[bits[:, k] == b, k].double()
            error = 0.2 / len(part) ** 0.5
            assert (part.mean(0) - (-1) ** b * 0.5).abs().max() < 5 * error
            assert (part.T.cov() - 0.04 * torch.eye(4)).abs().max() < 5 * 0.04 * (2 / len(part)) ** 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_uniform_and_given_ones_are_kept(kind):
    prior = made(kind)
    _, code = prior.sample(N, seeded())
    assert stats.chisquare(np.bincount(code, minlength=8)).pvalue > 1e-3
    z, kept = prior.sample(8, seeded(), torch.arange(8))
    assert kept.tolist() == list(range(8))
    assert torch.equal(prior.read(z), kept)


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_have_the_mean_square_that_was_asked_for(kind):
    """Where an entry has a mode or is noise; the one-hot entries of ClusterGAN's prior are 0 and 1."""
    prior = made(kind, mean=0.5, sigma=0.3)
    z, _ = prior.sample(N, seeded())
    z = z[:, 8:] if kind == "onehot" else z
    torch.testing.assert_close(z.square().mean(0), torch.full((z.shape[1],), 0.34), atol=0.015, rtol=0)


# ---- lemma 2


def dependence(z, *, joint=False):
    """Independence of three segments; `joint`: of the first two together from the third."""
    parts = z.view(N, 3, 4)
    if joint:
        parts = torch.stack([parts[:, :2].flatten(1), parts[:, 2].repeat(1, 2)], 1)
    return independence(parts, seeded(1), subsample=200, permutations=150)


@pytest.mark.parametrize("joint", [False, True])
def test_uniform_codes_make_independent_segments(joint):
    found = dependence(made().sample(N, seeded())[0], joint=joint)
    assert found.correlation < 1.25 * found.correlation_limit
    assert found.p_values[~found.p_values.isnan()].min() > 0.05 / 3


@pytest.mark.parametrize("codes", [(0, 3), (1, 2)])
def test_codes_that_tie_two_bits_make_dependent_ones(codes):
    """Bits 1 and 2 are equal in codes 0 and 3, opposite in 1 and 2; bit 3 is always 0, and alone."""
    tied = torch.tensor(codes)[torch.randint(2, (N,), generator=seeded(5))]
    found = dependence(made().sample(N, seeded(), tied)[0])
    assert found.correlation > 20 * found.correlation_limit
    assert found.p_values[0, 1] < 0.01
    assert found.p_values[0, 2] > 0.01


def test_codes_that_leave_pairs_independent_are_told_by_all_three():
    """b_3 = b_1 xor b_2: no two segments know of each other, and the lemma claims more than pairs."""
    bits = bits_of(torch.randint(4, (N,), generator=seeded(5)), 2)
    z, _ = made().sample(N, seeded(), code_of(torch.cat([bits, bits[:, :1] ^ bits[:, 1:]], 1)))
    pairs = dependence(z)
    assert pairs.correlation < 1.25 * pairs.correlation_limit
    assert pairs.p_values[~pairs.p_values.isnan()].min() > 0.05 / 3
    assert dependence(z, joint=True).p_values[0, 1] < 0.01


def test_segments_are_identically_distributed():
    parts = made().sample(N, seeded())[0].view(N, 3, 4)
    direction = torch.randn(4, 5, generator=seeded(2))
    seen = (parts @ direction).numpy()  # (N, 3, 5)
    for other in (1, 2):
        for along in range(5):
            assert stats.ks_2samp(seen[:, 0, along], seen[:, other, along]).pvalue > 1e-3
    skewed = made().sample(N, seeded(), torch.randint(4, (N,), generator=seeded(3)))[0].view(N, 3, 4)
    seen = (skewed @ direction).numpy()
    assert stats.ks_2samp(seen[:, 0, 0], seen[:, 2, 0]).pvalue < 1e-3  # bit 3 is never set


def test_corners_of_a_mixture_tie_their_entries():
    """The ablation's prior: what bit-codes have and it has not."""
    found = dependence(made("mixture").sample(N, seeded())[0])
    assert found.correlation > 20 * found.correlation_limit


# ---- theorem 1


@pytest.mark.parametrize(("dim", "bits", "mean", "sigma"), [(12, 3, 0.6, 0.3), (20, 5, 0.4, 0.5)])
def test_the_leading_eigenvectors_span_the_directions_of_the_segments(dim, bits, mean, sigma):
    prior = made(dim=dim, bits=bits, mean=mean, sigma=sigma)
    z, _ = prior.sample(N, seeded())
    values, vectors = np.linalg.eigh(np.cov(z.double().numpy().T))
    top, rest = values[-bits:], values[:-bits]
    high, low = sigma**2 + dim / bits * mean**2, sigma**2
    assert np.allclose(top, high, rtol=0.03)
    assert np.allclose(rest, low, rtol=0.05)
    claimed = np.kron(np.eye(bits), np.ones((dim // bits, 1)))  # eq. 8, up to length
    assert np.rad2deg(subspace_angles(vectors[:, -bits:], claimed)).max() < 1.5


def test_the_vectors_themselves_are_not_the_theorems():
    """The eigenvalues are equal, so any rotation within the subspace is as leading: single vectors mean nothing."""
    z, _ = made().sample(N, seeded())
    _, vectors = np.linalg.eigh(np.cov(z.double().numpy().T))
    claimed = np.kron(np.eye(3), np.full((4, 1), 0.5))
    found = np.abs(vectors[:, -3:].T @ claimed).max(1)
    assert found.min() < 0.95


# ---- reading


def reference(prior, z):
    """log p(z | c) by torch.distributions; a one-hot's own entries under noise of sigma."""
    cfg, every = prior.config, torch.arange(prior.codes)
    scale = torch.full((prior.dim,), cfg.sigma)
    if cfg.kind == "bits":
        means = cfg.mean * (1 - 2 * bits_of(every, cfg.bits).float()).repeat_interleave(
            prior.dim // cfg.bits, 1
        )
    elif cfg.kind == "mixture":
        means = prior.corners
    else:
        means = torch.eye(prior.codes, prior.dim)
    return dist.Normal(means, scale).log_prob(z[:, None]).sum(2)


@pytest.mark.parametrize("kind", KINDS)
def test_likelihoods_are_those_of_gaussians_up_to_what_codes_share(kind):
    prior = made(kind, dim=24)
    z = torch.randn(50, 24, generator=seeded(3))
    wanted, found = reference(prior, z), prior.log_likelihoods(z)
    assert found.shape == (50, 8)
    torch.testing.assert_close(found - found[:, :1], wanted - wanted[:, :1], atol=2e-3, rtol=1e-4)
    assert torch.equal(prior.read(z), wanted.argmax(1))
    assert torch.equal(prior.read(z), found.argmax(1))


@pytest.mark.parametrize("kind", KINDS)
def test_the_evidence_is_all_that_a_code_says_of_its_mode(kind):
    """What differs in nothing but directions that evidence leaves out has the same odds; modes are told apart by it."""
    prior = made(kind, dim=24)
    z = torch.randn(50, 24, generator=seeded(3))
    means = prior.means(torch.arange(prior.codes))
    said = prior.evidence(means)
    assert len(torch.unique(said.round(decimals=4), dim=0)) == prior.codes
    axes = prior.axes()
    within = z @ axes.T @ axes
    if kind == "onehot":  # one entry of K is not in the span of the differences, and shared by all codes
        within[:, : prior.codes] = z[:, : prior.codes]
    if kind == "mixture":
        within = z @ torch.linalg.pinv(means) @ means
    torch.testing.assert_close(prior.evidence(within), prior.evidence(z), atol=1e-4, rtol=1e-4)


def test_reading_errs_as_often_as_bayes():
    """A bit is misread where noise of sigma / sqrt(d/n) exceeds mu: the normal tail."""
    prior = made(dim=6, mean=0.3, sigma=0.4)
    z, code = prior.sample(N, seeded())
    wrong = (bits_of(prior.read(z), 3) != bits_of(code, 3)).double().mean().item()
    assert wrong == pytest.approx(stats.norm.sf(0.3 / (0.4 / math.sqrt(2))), abs=5 * math.sqrt(0.25 / N / 3))


def test_other_bits_move_their_own_segments_by_twice_the_mean():
    prior = made()
    z, code = prior.sample(8, seeded(), torch.arange(8))
    for k in range(3):
        bits = bits_of(code, 3)
        bits[:, k] = 1 - bits[:, k]
        after = prior.moved(z, bits)
        assert segment_movement(z, after, 3).tolist() == [float(k == j) for j in range(3)]
        step = (after - z).view(8, 3, 4)[:, k]
        wanted = 2 * 0.6 * (2.0 * bits_of(code, 3)[:, k] - 1)
        torch.testing.assert_close(step, wanted[:, None].expand(8, 4))
        assert torch.equal(prior.read(after), code_of(bits))
        torch.testing.assert_close(prior.moved(after, bits_of(code, 3)), z)  # and back
    assert torch.equal(prior.moved(z, bits_of(code, 3)), z)


@pytest.mark.parametrize("kind", ["bits", "mixture"])
def test_entropy_is_monte_carlos_where_modes_are_apart(kind):
    prior = made(kind, mean=0.8, sigma=0.1)
    z, _ = prior.sample(20_000, seeded())
    wanted = -(torch.logsumexp(reference(prior, z).double(), 1) - math.log(prior.codes)).mean().item()
    assert prior.entropy == pytest.approx(wanted, abs=0.08)  # 5 standard errors of sqrt(d / 2N)


def test_entropy_of_overlapping_modes_is_an_upper_bound():
    prior = made(mean=0.05, sigma=0.5)
    z, _ = prior.sample(20_000, seeded())
    found = -(torch.logsumexp(reference(prior, z).double(), 1) - math.log(prior.codes)).mean().item()
    assert prior.entropy > found + 1  # nearly all of log 8 = 2.08


def test_entropy_of_a_one_hot_is_that_of_its_noise_alone():
    prior = made("onehot", mean=0.6, sigma=0.3)
    wanted = 4 * dist.Normal(0.0, math.sqrt(0.45)).entropy().item()
    assert prior.entropy == pytest.approx(wanted, rel=1e-5)


def test_the_corners_are_the_same_in_every_run_and_differ_among_themselves():
    one, two = made("mixture", dim=40, bits=5), made("mixture", dim=40, bits=5)
    every = torch.arange(32)
    assert torch.equal(one.means(every), two.means(every))
    assert len(one.means(every).unique(dim=0)) == 32
    assert one.means(every).abs().unique().tolist() == pytest.approx([0.6])


# ---- what cannot be


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"bits": 0}, "bits is 0; from 1 to 16"),
        ({"bits": 17, "dim": 17}, "bits is 17"),
        ({"dim": 0}, "dim is 0"),
        ({"dim": 301}, "dim is 301, which 5 bits do not divide into equal segments; 300 would do"),
        ({"dim": 2}, "5 would do"),
        ({"kind": "onehot", "dim": 31}, "a one-hot code of 32 needs as many"),
        ({"mean": 1.0}, "mean is 1.0"),
        ({"sigma": 0.0}, "sigma 0.0"),
    ],
)
def test_a_prior_that_cannot_be_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        PriorConfig(**wrong)


@pytest.mark.parametrize("codes", [[0, 8], [-1, 0], [0, 1, 2]])
def test_codes_that_are_not_there_are_refused(codes):
    with pytest.raises(ValueError, match="expected 2 of them, each from 0 to 7"):
        made().sample(2, seeded(), torch.tensor(codes))
