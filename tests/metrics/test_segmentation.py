"""Segmentation scores against brute force, scikit-learn and hand-made cases."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.metrics.segmentation import (
    DatasetAssignment,
    DatasetScores,
    OracleScores,
    adjusted_rand_index,
    as_labels,
    choose_assignment,
    concatenate,
    confusion,
    foreground_scores,
    matched_scores,
    oracle_assignment,
    region_shares,
    score,
    smallest_share,
)


def world(seed: int, n: int = 6, k: int = 3, size: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    truth = torch.rand(n, size, size, generator=g) > 0.6
    labels = torch.randint(0, k, (n, size, size), generator=g)
    labels = torch.where(truth & (torch.rand(n, size, size, generator=g) > 0.3), k - 1, labels)
    return labels, truth


def naive_iou(predicted: np.ndarray, truth: np.ndarray) -> float:
    union = (predicted | truth).sum()
    return 1.0 if union == 0 else float((predicted & truth).sum() / union)


def every_subset(k: int) -> list[tuple[int, ...]]:
    return [s for r in range(k + 1) for s in combinations(range(k), r)]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 5))
def test_both_protocols_equal_brute_force(seed: int, k: int) -> None:
    labels, truth = world(seed, k=k)
    table = np.array(
        [
            [naive_iou(np.isin(i, s), t) for s in every_subset(k)]
            for i, t in zip(labels.numpy(), truth.numpy(), strict=True)
        ]
    )
    oracle = score(labels, truth, oracle_assignment(labels, truth, k))
    np.testing.assert_allclose(oracle.iou, table.max(1), rtol=1e-12)
    chosen = choose_assignment(labels, truth, k)
    assert tuple(sorted(chosen.regions)) == every_subset(k)[table.mean(0).argmax()]
    np.testing.assert_allclose(score(labels, truth, chosen).iou.mean(), table.mean(0).max(), rtol=1e-12)
    assert (oracle.iou >= score(labels, truth, chosen).iou - 1e-12).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_scores_do_not_care_how_regions_are_numbered(seed: int) -> None:
    labels, truth = world(seed)
    renamed = torch.randperm(3, generator=torch.Generator().manual_seed(seed))[labels]
    for make in (oracle_assignment, choose_assignment):
        a = score(labels, truth, make(labels, truth, 3)).iou
        b = score(renamed, truth, make(renamed, truth, 3)).iou
        torch.testing.assert_close(a.mean(), b.mean())


def test_formulas_on_a_case_done_by_hand() -> None:
    predicted = torch.tensor([[[1, 1, 1, 0]]], dtype=torch.bool)
    truth = torch.tensor([[[0, 1, 1, 1]]], dtype=torch.bool)
    s = foreground_scores(predicted, truth)
    assert s.iou.item() == 2 / 4
    assert s.dice.item() == pytest.approx(2 * 2 / (3 + 3))
    assert s.accuracy.item() == 2 / 4
    assert s.mean_iou.item() == (2 / 4 + 0 / 2) / 2


def test_nothing_to_find_and_nothing_found_is_right() -> None:
    nothing = torch.zeros(1, 2, 2, dtype=torch.bool)
    assert foreground_scores(nothing, nothing).iou.item() == 1
    assert foreground_scores(~nothing, nothing).iou.item() == 0


def test_collapsed_masks_score_the_floor() -> None:
    _, truth = world(0)
    collapsed = torch.zeros_like(truth, dtype=torch.int64)
    everything = foreground_scores(torch.ones_like(truth), truth)
    oracle = score(collapsed, truth, oracle_assignment(collapsed, truth, 3))
    torch.testing.assert_close(oracle.iou, everything.iou)
    assert smallest_share(collapsed, 3) == 0


def test_soft_masks_and_labels_agree() -> None:
    masks = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0)).softmax(1)
    labels, k = as_labels(masks)
    assert k == 3
    torch.testing.assert_close(region_shares(masks), region_shares(labels, 3))
    torch.testing.assert_close(region_shares(masks).sum(1), torch.ones(4, dtype=torch.float64))
    hard = torch.nn.functional.one_hot(labels, 3).double().mean((1, 2))
    torch.testing.assert_close(region_shares(masks), hard)


def test_the_protocols_cannot_be_mixed() -> None:
    labels, truth = world(1)
    oracle = score(labels, truth, oracle_assignment(labels, truth, 3))
    dataset = score(labels, truth, choose_assignment(labels, truth, 3))
    assert isinstance(oracle, OracleScores)
    assert isinstance(dataset, DatasetScores)
    assert not oracle.summary().keys() & dataset.summary().keys()
    with pytest.raises(ValueError, match="one protocol"):
        concatenate([oracle, dataset])
    with pytest.raises(ValueError, match="only for the images"):
        score(labels[:3], truth[:3], oracle_assignment(labels, truth, 3))


def test_batches_join_to_the_whole() -> None:
    labels, truth = world(2)
    a = DatasetAssignment(regions=frozenset({2}), k=3)
    joined = concatenate([score(labels[:2], truth[:2], a), score(labels[2:], truth[2:], a)])
    assert joined.summary() == score(labels, truth, a).summary()
    assert len(joined) == 6


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, t: choose_assignment(x, t), "pass k"),
        (lambda x, t: choose_assignment(x, t, 2), "labels run from 0 to 2"),
        (lambda x, t: choose_assignment(x, t.long(), 3), "truth must be bool"),
        (lambda x, t: choose_assignment(x, t[:, :2], 3), "differ in shape"),
        (lambda x, t: choose_assignment(x, t, 20), "at most 12"),
        (lambda x, t: choose_assignment(x[:0], t[:0], 3), "no images"),
        (lambda x, t: score(x, t, DatasetAssignment(regions=frozenset({3}), k=3)), "do not exist"),
        (lambda x, t: as_labels(x[0], 3), "expected masks"),
        (lambda x, t: as_labels(torch.zeros(1, 3, 2, 2), 4), "have 3 regions"),
    ],
)
def test_mistakes_are_named(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(*world(3))


def test_confusion_counts_every_pixel() -> None:
    labels, truth = world(4)
    table = confusion(labels, truth.long(), 3, 2)
    assert table.sum() == labels.numel()
    assert table[1, 2, 1] == ((labels[1] == 2) & truth[1]).sum()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 5), classes=st.integers(1, 4))
def test_rand_index_equals_scikit_learn(seed: int, k: int, classes: int) -> None:
    reference = pytest.importorskip("sklearn.metrics").adjusted_rand_score
    g = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, classes, (3, 4, 4), generator=g)
    labels = torch.where(
        torch.rand(3, 4, 4, generator=g) > 0.5, truth % k, torch.randint(0, k, (3, 4, 4), generator=g)
    )
    ours = adjusted_rand_index(labels, truth, k, classes)
    for i in range(3):
        assert ours[i].item() == pytest.approx(reference(truth[i].flatten(), labels[i].flatten()), abs=1e-12)
        inside = truth[i] > 0
        if inside.sum() > 1:
            objects = adjusted_rand_index(labels, truth, k, classes, objects_only=True)[i].item()
            assert objects == pytest.approx(reference(truth[i][inside], labels[i][inside]), abs=1e-12)


def test_matching_undoes_a_renaming() -> None:
    pytest.importorskip("scipy")
    truth = torch.randint(0, 4, (3, 8, 8), generator=torch.Generator().manual_seed(0))
    names = torch.tensor([2, 0, 3, 1])
    result = matched_scores(names[truth], truth, 4, 4)
    assert result.classes == {int(names[c]): c for c in range(4)}
    assert result.accuracy == 1
    assert result.iou.tolist() == [1] * 4
    split = torch.where((truth == 0) & (torch.arange(8) < 2), 4, names[truth])
    result = matched_scores(split, truth, 5, 4)
    assert result.accuracy == pytest.approx(1 - (split == 4).double().mean().item())
