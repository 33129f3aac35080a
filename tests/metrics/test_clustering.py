"""Clustering scores against brute force, scikit-learn, entropies and cases done by hand."""

from __future__ import annotations

import sys
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.metrics.clustering import (
    adjusted_rand,
    chance_purity,
    contingency,
    kmeans,
    matched_bit_accuracy,
    nmi,
    purity,
)


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def two_partitions(seed: int, n: int = 40, k: int = 5, c: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    g = gen(seed)
    clusters = torch.randint(0, k, (n,), generator=g)
    noise = torch.randint(0, c, (n,), generator=g)
    return clusters, torch.where(torch.rand(n, generator=g) < 0.5, clusters % c, noise)


def test_purity_takes_clusters_first() -> None:
    clusters = torch.tensor([0, 0, 0, 0, 0, 0])
    classes = torch.tensor([0, 1, 2, 3, 4, 4])
    assert purity(clusters, classes) == 2 / 6
    assert purity(classes, clusters) == 1
    by_hand = torch.tensor([7, 7, 7, -2, -2, -2]), torch.tensor([0, 0, 1, 1, 1, 1])
    assert purity(*by_hand) == 5 / 6
    assert contingency(*by_hand).tolist() == [[0, 3], [2, 1]]


def test_purity_cannot_pass_what_its_clusters_can_name() -> None:
    classes = torch.arange(200).repeat(5)
    assert purity(classes % 32, classes) == 32 / 200
    assert purity(classes, classes) == 1


def test_chance_is_the_mean_over_all_orders_of_the_classes() -> None:
    clusters, classes = torch.tensor([0, 0, 1, 1, 1, 2]), torch.tensor([0, 1, 0, 1, 0, 2])
    every = [purity(clusters, classes[list(order)]) for order in permutations(range(6))]
    found = chance_purity(clusters, classes, gen(), shuffles=600)
    assert found == pytest.approx(np.mean(every), abs=4 * np.std(every) / 600**0.5)
    assert chance_purity(clusters, classes, gen()) == chance_purity(clusters, classes, gen())
    assert chance_purity(torch.arange(6), classes, gen()) == 1
    assert chance_purity(torch.zeros(6).long(), classes, gen()) == 3 / 6


def entropy(counts: np.ndarray) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(2, 8))
def test_nmi_by_its_entropies_and_rand_by_scikit_learn(seed: int, k: int) -> None:
    reference = pytest.importorskip("sklearn.metrics")
    clusters, classes = two_partitions(seed, k=k)
    table = np.array([[((clusters == i) & (classes == j)).sum() for j in range(3)] for i in range(k)])
    h = entropy(table.sum(1)), entropy(table.sum(0))
    assert nmi(clusters, classes) == pytest.approx(2 * (sum(h) - entropy(table.ravel())) / sum(h))
    assert adjusted_rand(clusters * 3 - 5, classes) == pytest.approx(
        reference.adjusted_rand_score(classes, clusters), abs=1e-12
    )
    assert purity(clusters, classes) == pytest.approx(table.max(1).sum() / 40)


def matched_by_trying_all(bits: np.ndarray, classes: np.ndarray) -> float:
    n, names = bits.shape[1], np.unique(classes)
    codes = [[c >> k & 1 for k in range(n)] for c in range(2**n)]
    given = [np.array([codes[order[i]] for i in np.searchsorted(names, classes)])
             for order in permutations(range(2**n), len(names))]  # fmt: skip
    return max((bits == expected).mean() for expected in given)


@pytest.mark.parametrize(("n", "classes"), [(2, 4), (2, 3), (3, 4), (1, 2)])
def test_matched_bits_equal_the_best_of_all_permutations(n: int, classes: int) -> None:
    bits = torch.randint(0, 2, (30, n), generator=gen(n))
    truth = torch.randint(0, classes, (30,), generator=gen(classes)) * 10
    found = matched_bit_accuracy(bits, truth)
    assert found.accuracy == pytest.approx(matched_by_trying_all(bits.numpy(), truth.numpy()))
    assert len(set(found.codes.values())) == len(found.codes) == classes
    expected = torch.tensor([[int(bit) for bit in found.codes[int(c)]] for c in truth])
    assert (bits == expected).double().mean().item() == pytest.approx(found.accuracy)


def test_matched_bits_do_not_care_what_classes_are_called() -> None:
    codes = torch.arange(200) % 8
    bits = codes[:, None] >> torch.arange(3) & 1
    renamed = torch.randperm(8, generator=gen())[codes]
    found = matched_bit_accuracy(bits.bool(), renamed)
    assert found.accuracy == 1
    assert found.codes[int(renamed[6])] == "011"  # 6 = 2 + 4: the first bit is the lowest
    wrong = bits.clone()
    wrong[:25, 0] ^= 1
    assert matched_bit_accuracy(wrong, renamed).accuracy == pytest.approx(1 - 25 / 600)


def test_kmeans_finds_what_is_apart_and_puts_others_with_it() -> None:
    truth = torch.arange(90) % 3
    means = 10 * torch.eye(3, 4)
    points = means[truth] + 0.1 * torch.randn(90, 4, generator=gen())
    found = kmeans(points, 3, gen(1))
    assert adjusted_rand(found.labels, truth) == 1
    torch.testing.assert_close(
        found.centroids, torch.stack([points[found.labels == i].double().mean(0) for i in range(3)])
    )
    assert torch.equal(found.predict(points), found.labels)
    assert torch.equal(found.predict(means), found.predict(means + 1))
    again = kmeans(points, 3, gen(1))
    assert torch.equal(found.labels, again.labels)


def test_kmeans_is_as_tight_as_scikit_learn_and_seeded_by_the_generator_alone() -> None:
    cluster = pytest.importorskip("sklearn.cluster").KMeans
    points = torch.randn(80, 3, generator=gen(2)).double()
    spread = lambda found: (points - found.centroids[found.labels]).square().sum().item()
    best = cluster(4, n_init=50, random_state=0).fit(points.numpy()).inertia_
    assert spread(kmeans(points, 4, gen(), n_init=50)) == pytest.approx(best, rel=0.01)
    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    once = {tuple(kmeans(points, 12, gen(i), n_init=1).labels.tolist()) for i in range(5)}
    assert len(once) > 1
    assert (np.random.get_state()[1] == state[0]).all()
    assert torch.equal(torch.get_rng_state(), state[1])


@pytest.mark.parametrize(
    ("call", "module"),
    [
        (lambda: nmi(torch.arange(3), torch.arange(3)), "sklearn.metrics"),
        (lambda: kmeans(torch.zeros(3, 2), 2, gen()), "sklearn.cluster"),
        (lambda: matched_bit_accuracy(torch.zeros(3, 2), torch.zeros(3)), "scipy.optimize"),
    ],
)
def test_a_missing_package_names_the_extra(call, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pellucid\[metrics\]"):
        call()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: purity(torch.zeros(3).long(), torch.zeros(4).long()), r"\(3,\) and \(4,\)"),
        (lambda: purity(torch.zeros(3), torch.zeros(3).long()), "whole numbers"),
        (lambda: purity(torch.zeros(0).long(), torch.zeros(0).long()), "no samples"),
        (lambda: nmi(torch.zeros(3, 1).long(), torch.zeros(3, 1).long()), r"\(3, 1\)"),
        (lambda: chance_purity(torch.arange(3), torch.arange(3), gen(), shuffles=0), "shuffles=0"),
        (lambda: matched_bit_accuracy(torch.zeros(5, 2), torch.arange(5)), "5 classes .* 2 bits.* 4 codes"),
        (lambda: matched_bit_accuracy(torch.full((5, 2), 0.3), torch.zeros(5)), "0 or 1"),
        (lambda: matched_bit_accuracy(torch.zeros(5, 2), torch.arange(4)), r"\(5, 2\) and \(4,\)"),
        (lambda: matched_bit_accuracy(torch.zeros(5, 40), torch.arange(5)), "40 bits"),
        (lambda: kmeans(torch.zeros(3, 2), 4, gen()), r"k=4 .*\(3, 2\)"),
        (lambda: kmeans(torch.full((3, 2), torch.nan), 2, gen()), "nan"),
        (lambda: kmeans(torch.eye(3), 2, gen()).predict(torch.zeros(3, 2)), r"\(M, 3\), got \(3, 2\)"),
    ],
)
def test_mistakes_are_named(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
