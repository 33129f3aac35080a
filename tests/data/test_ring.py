"""The ring against scipy: von Mises' moments, and the Bayes rule's score by quadrature and by counting."""

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from pellucid.data.catalog import open_data
from pellucid.data.ring import Ring, ceiling, density

ALL = np.arange(100_000)
CENTRES = np.pi / 4 * np.arange(4)


@pytest.fixture(scope="module")
def batch():
    return Ring(length=len(ALL)).batch(ALL)


@pytest.fixture(scope="module")
def angles(batch):
    return np.arctan2(batch.x0[:, 1, 0, 0].double(), batch.x0[:, 0, 0, 0].double()).numpy()


def test_points_lie_on_the_circle_and_are_pictures_of_one_pixel(batch):
    assert batch.x0.shape == (len(ALL), 2, 1, 1)
    assert batch.x0.dtype == torch.float32
    assert batch.labels.dtype == torch.int64
    torch.testing.assert_close(batch.x0.norm(dim=1).flatten(), torch.ones(len(ALL)), atol=1e-6, rtol=0)


def test_clusters_are_equally_large(batch):
    assert stats.chisquare(np.bincount(batch.labels, minlength=4)).pvalue > 1e-3


@pytest.mark.parametrize("cluster", range(4))
def test_each_cluster_is_von_mises(batch, angles, cluster):
    """Mean direction its centre, mean resultant length I1(30) / I0(30), and the whole distribution."""
    own = angles[batch.labels.numpy() == cluster]
    mean = np.exp(1j * own).mean()
    length = special.i1e(30) / special.i0e(30)
    spread = np.sqrt((1 - length) / 30 / len(own)) + 1 / np.sqrt(30 * len(own))
    assert np.angle(mean * np.exp(-1j * CENTRES[cluster])) == pytest.approx(0, abs=5 * spread)
    assert np.abs(mean) == pytest.approx(length, abs=5 * np.sqrt(0.5) / 30 / np.sqrt(len(own)))
    away = np.angle(np.exp(1j * (own - CENTRES[cluster])))
    assert stats.kstest(away, stats.vonmises(30).cdf).pvalue > 1e-3


def test_the_density_is_scipys():
    angle = np.linspace(-3, 3, 50)
    wanted = stats.vonmises(30).pdf(angle[:, None] - CENTRES)
    assert np.allclose(density(angle), wanted)


def best(angle):
    """The Bayes rule, in closed form: the nearest centre."""
    return np.cos(angle[:, None] - CENTRES).argmax(1)


def test_the_ceiling_is_the_bayes_rules_score(batch, angles):
    pdf = stats.vonmises(30).pdf
    inner = integrate.quad(pdf, -np.pi / 8, np.pi / 8)[0]  # a cluster with two neighbours
    # the two at the ends have one; they meet each other on the far side, 5 pi / 8 from either
    outer = integrate.quad(pdf, -np.pi / 8, 5 * np.pi / 8, points=[0])[0]
    assert ceiling() == pytest.approx((inner + outer) / 2, abs=1e-7)
    right = (best(angles) == batch.labels.numpy()).mean()
    assert ceiling() == pytest.approx(right, abs=4 * np.sqrt(0.25 / len(ALL)))


def test_a_point_is_a_function_of_its_index(batch):
    ring = Ring(length=len(ALL))
    some = np.array([70_000, 3, 12, 3])
    part = ring.batch(some)
    assert torch.equal(part.x0, batch.x0[some])
    assert torch.equal(part.labels, batch.labels[some])
    assert torch.equal(Ring(length=5).batch(np.arange(5)).x0, batch.x0[:5])


def test_seeds_and_splits_hold_other_points(batch):
    some = np.arange(1000)
    for options in ({"seed": 1}, {"split": "val"}, {"split": "test"}):
        ring = Ring(length=1000, **options)
        other = ring.batch(some)
        assert not (other.x0 == batch.x0[:1000]).flatten(1).all(1).any()
        agree = (other.labels == batch.labels[:1000]).double().mean()
        assert agree == pytest.approx(0.25, abs=0.07)
        assert ring.fingerprint != Ring(length=1000).fingerprint


def test_the_catalog_opens_it(batch):
    ring = open_data("ring", size=32)
    assert len(ring) == 100_000
    assert ring.shape == (2, 1, 1)
    assert torch.equal(ring.batch(ALL[:9]).x0, batch.x0[:9])
    small = open_data("ring", size=32, split="val", seed=3, limit=7)
    assert len(small) == 7
    assert torch.equal(small.batch(ALL[:7]).x0, Ring(length=7, seed=3, split="val").batch(ALL[:7]).x0)


@pytest.mark.parametrize("indices", [[-1], [0, 10]])
def test_points_that_are_not_there_are_refused(indices):
    with pytest.raises(IndexError, match="of a data set of 10"):
        Ring(length=10).batch(np.array(indices))


def test_a_ring_without_points_is_refused():
    with pytest.raises(ValueError, match="length is 0"):
        Ring(length=0)
