"""Attributes in codes, against codes whose contents are known, tables done by hand and scikit-learn."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch

from pellucid.metrics.attributes import (
    chance,
    dci,
    edit_matrix,
    mig,
    perceptual_path_length,
    perplexity_matrix,
    sap,
)

VALUES = (2, 3, 5)


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=gen(seed), dtype=torch.float64)


def every_combination(times: int) -> torch.Tensor:
    """(30 times, 3): all combinations of the values equally often, so that attributes are independent."""
    return torch.cartesian_prod(*(torch.arange(k) for k in VALUES)).repeat(times, 1)


def rotation(d: int) -> torch.Tensor:
    return torch.linalg.qr(normal(d, d, seed=9)).Q


def one_attribute_a_part(attributes: torch.Tensor, d: int = 6, noise: float = 0.2) -> list[torch.Tensor]:
    """Part i is a random place for each value of attribute i, and noise."""
    n = len(attributes)
    return [
        normal(k, d, seed=i)[attributes[:, i]] + noise * normal(n, d, seed=10 + i)
        for i, k in enumerate(VALUES)
    ]


def test_parts_of_one_attribute_each_have_ones_on_the_diagonal_and_chance_elsewhere() -> None:
    attributes = every_combination(40)
    found = perplexity_matrix(one_attribute_a_part(attributes), attributes, VALUES)
    guess = chance(attributes, VALUES).uniform
    assert found.shape == (3, 3)
    assert found.dtype == torch.float64
    assert found.diagonal().min() > 0.98
    off = ~torch.eye(3, dtype=torch.bool)
    spread = (guess * (1 - guess) / 240).sqrt()
    assert ((found - guess).abs() < 4 * spread)[off].all()


def test_shuffled_attributes_are_read_by_chance_and_a_rotated_part_as_well_as_before() -> None:
    attributes = every_combination(40)
    parts = one_attribute_a_part(attributes)
    shuffled = attributes[torch.randperm(len(attributes), generator=gen())]
    guess = chance(attributes, VALUES).uniform
    assert ((perplexity_matrix(parts, shuffled, VALUES) - guess).abs() < 0.13).all()
    turned = perplexity_matrix([part @ rotation(6) for part in parts], attributes, VALUES)
    assert turned.diagonal().min() > 0.98


def test_order_and_scale_of_entries_and_the_numbers_of_values_do_not_matter() -> None:
    attributes = every_combination(20)
    parts = one_attribute_a_part(attributes, noise=1.0)
    found = perplexity_matrix(parts, attributes, VALUES)
    assert 0.4 < found.diagonal().min() < found.diagonal().max() < 0.98
    order = torch.randperm(6, generator=gen())
    scale = torch.tensor([1e-3, 1, 5, -2, 1e3, 1], dtype=torch.float64)
    same = perplexity_matrix([part[:, order] * scale + 3 for part in parts], attributes, VALUES)
    torch.testing.assert_close(same, found, atol=1.01 / 120, rtol=0)
    renamed = perplexity_matrix(parts, torch.tensor(VALUES) - 1 - attributes, VALUES)
    torch.testing.assert_close(renamed, found, atol=1.01 / 120, rtol=0)


def test_the_matrix_is_scikit_learns_on_the_split_that_the_seed_draws() -> None:
    pytest.importorskip("sklearn")
    from sklearn.linear_model import LogisticRegression

    attributes = every_combination(10)
    part = one_attribute_a_part(attributes, noise=1.0)[2]
    order = torch.randperm(300, generator=gen(4)).numpy()
    held, fitted = order[:60], order[60:]
    x, y = part.numpy(), attributes[:, 2].numpy()
    x = (x - x[fitted].mean(0)) / x[fitted].std(0)
    expected = LogisticRegression(C=0.1, max_iter=1000).fit(x[fitted], y[fitted]).score(x[held], y[held])
    found = perplexity_matrix([part], attributes, VALUES, seed=4)[0, 2].item()
    assert found == pytest.approx(expected, abs=1.01 / 60)
    others = {perplexity_matrix([part], attributes, VALUES, seed=s)[0, 2].item() for s in range(4)}
    assert len(others) > 1


def test_unknown_rows_are_left_out_for_their_attribute_alone() -> None:
    attributes = every_combination(20)
    parts = one_attribute_a_part(attributes)
    codes = torch.stack([part[:, 0] for part in parts], 1)
    hidden = torch.rand(len(attributes), generator=gen()) < 0.3
    partly = attributes.clone()
    partly[hidden, 1] = -1
    lies = [part.clone() for part in parts]
    lies[1][hidden] = 1e3 * normal(int(hidden.sum()), 6, seed=5)
    found, spoilt = (perplexity_matrix(x, partly, VALUES) for x in (parts, lies))
    assert torch.equal(found[:, 1], spoilt[:, 1])
    full = perplexity_matrix(parts, attributes, VALUES)
    assert torch.equal(found[:, [0, 2]], full[:, [0, 2]])
    assert mig(codes, partly).per_attribute[[0, 2]].equal(mig(codes, attributes).per_attribute[[0, 2]])
    assert sap(codes, partly).highest[[0, 2]].equal(sap(codes, attributes).highest[[0, 2]])
    assert dci(codes, partly).importances[:, 0].equal(dci(codes, attributes).importances[:, 0])


def test_chance_by_hand() -> None:
    attributes = torch.tensor([[0, 2], [0, -1], [1, 2], [0, 0], [-1, 1]])
    found = chance(attributes, (2, 4))
    assert found.uniform.tolist() == [1 / 2, 1 / 4]
    assert found.majority.tolist() == [3 / 4, 2 / 4]


def test_one_entry_an_attribute_is_perfect_by_all_three() -> None:
    attributes = every_combination(20)
    codes = attributes.double() * torch.tensor([1.0, -3.0, 0.01])
    gap = mig(codes, attributes)
    torch.testing.assert_close(gap.per_attribute, torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(gap.highest, torch.ones(3, dtype=torch.float64))
    assert gap.mean == pytest.approx(1)
    found = dci(codes, attributes)
    assert min(found.disentanglement, found.completeness) > 0.99
    assert found.informativeness.tolist() == [1, 1, 1]
    torch.testing.assert_close(found.importances, torch.eye(3).double(), atol=0.01, rtol=0)
    separated = sap(codes, attributes)
    assert separated.highest.tolist() == [1, 1, 1]
    assert ((separated.per_attribute - 1 + 1 / torch.tensor(VALUES)).abs() < 0.12).all()


def test_noise_entries_beside_it_change_nothing_and_a_rotation_changes_all() -> None:
    attributes = every_combination(20)
    scaled = attributes / torch.tensor(VALUES) * 3 + 0.02 * normal(600, 3)
    codes = torch.cat([scaled, normal(600, 13, seed=1)], 1)
    found = dci(codes, attributes)
    assert min(found.disentanglement, found.completeness) > 0.97
    assert mig(codes, attributes).mean > 0.8
    assert sap(codes, attributes).mean > 0.4
    turned = codes @ rotation(16)
    found = dci(turned, attributes)
    assert max(found.disentanglement, found.completeness) < 0.25
    assert mig(turned, attributes).mean < 0.05
    assert sap(turned, attributes).mean < 0.1


def test_an_attribute_in_two_entries_is_not_complete_and_an_entry_of_two_is_not_disentangled() -> None:
    attributes = every_combination(20)
    codes = attributes.double()
    twice = torch.cat([codes, codes], 1)
    torch.testing.assert_close(mig(twice, attributes).per_attribute, torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(mig(twice, attributes).highest, torch.ones(3, dtype=torch.float64))
    assert sap(twice, attributes).per_attribute.tolist() == [0, 0, 0]
    found = dci(twice, attributes)
    assert found.disentanglement > 0.99
    assert found.completeness < 0.8
    # Attributes that say the same share their entry, and the other entry is of no use to them.
    both = dci(torch.stack([codes[:, 2], normal(600)], 1), attributes[:, [2, 2]])
    assert both.disentanglement == pytest.approx(0, abs=0.01)
    assert both.completeness > 0.97


def test_dci_is_its_formula_over_the_importances() -> None:
    stats = pytest.importorskip("scipy.stats")
    attributes = every_combination(10)
    codes = torch.cat([attributes.double() @ normal(3, 4), torch.zeros(300, 1)], 1)
    found = dci(codes, attributes, seed=3)
    r = found.importances.numpy()
    assert r.sum(0) == pytest.approx(np.ones(3))
    assert (r[4] == 0).all()
    of_entry = [1 - stats.entropy(row, base=3) for row in r[:4]]
    weights = r[:4].sum(1) / r.sum()
    assert found.disentanglement == pytest.approx(float(weights @ of_entry))
    assert found.completeness == pytest.approx(float(np.mean(1 - stats.entropy(r, base=5))))
    assert torch.equal(found.importances, dci(codes, attributes, seed=3).importances)
    assert not torch.equal(found.importances, dci(codes, attributes, seed=4).importances)


def test_mig_of_a_table_by_hand() -> None:
    """The first entry has the attribute in 3 of 4 rows, as 2 x 2 counts (3, 1; 1, 3); the second nothing."""
    value = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])[:, None]
    codes = torch.tensor([[0.0, 0, 0, 1, 1, 1, 1, 0], [0, 1, 0, 1, 0, 1, 0, 1]]).T
    bits = 1 + 3 / 4 * math.log2(3 / 4) + 1 / 4 * math.log2(1 / 4)
    found = mig(codes, value)
    assert found.per_attribute.item() == pytest.approx(bits)
    assert found.highest.item() == found.mean == pytest.approx(bits)


def test_mig_is_of_scikit_learns_information_in_numpys_bins() -> None:
    information = pytest.importorskip("sklearn.metrics").mutual_info_score
    attributes = every_combination(7)
    codes = attributes.double() @ normal(3, 5) + normal(210, 5, seed=1)
    found = mig(codes, attributes)
    for j, value in enumerate(attributes.T.numpy()):
        edges = [np.histogram_bin_edges(z, 20)[1:-1] for z in codes.T.numpy()]
        binned = [np.digitize(z, e) for z, e in zip(codes.T.numpy(), edges, strict=True)]
        shares = sorted(information(b, value) / information(value, value) for b in binned)
        assert found.per_attribute[j].item() == pytest.approx(shares[-1] - shares[-2])
        assert found.highest[j].item() == pytest.approx(shares[-1])


def test_order_of_entries_and_an_empty_one_change_no_gap() -> None:
    attributes = every_combination(7)
    codes = attributes.double() @ normal(3, 5) + normal(210, 5, seed=1)
    other = torch.cat([codes.flip(1), torch.ones(210, 1)], 1)
    for gap in (mig, sap):
        assert gap(other, attributes).per_attribute.equal(gap(codes, attributes).per_attribute)
    torch.testing.assert_close(
        mig(codes * 7 - 3, attributes).per_attribute, mig(codes, attributes).per_attribute
    )


def test_sap_of_two_values_is_the_best_single_threshold() -> None:
    """With class 1 in one row of ten: plain accuracy would be 0.9 for any entry."""
    value = (torch.arange(400) % 10 == 0).long()[:, None]
    codes = torch.cat([value * 2.0 + 0.1 * normal(400, 1), normal(400, 1, seed=1)], 1)
    found = sap(codes, value)
    assert found.highest.item() == 1
    assert found.per_attribute.item() == pytest.approx(0.5, abs=0.2)
    assert sap(normal(400, 2), value).highest.item() < 0.7
    middle = torch.arange(600)[:, None] % 3  # the middle value is between two thresholds
    both = torch.cat([middle * 1.0, -1.0 * middle], 1)
    assert sap(both, middle).highest.item() == 1


def squared(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).square().flatten(1).mean(1)


@pytest.mark.parametrize("epsilon", [1e-4, 1e-3])
@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_the_length_of_straight_paths_is_their_slope_squared_in_float32(epsilon: float, batch: int) -> None:
    a, b = (torch.rand(90, 3, 8, 8, generator=gen(s)) * 2 - 1 for s in (0, 1))
    seen: list[int] = []

    def render(index: slice, alpha: torch.Tensor) -> torch.Tensor:
        seen.extend(range(90)[index])
        return torch.lerp(a[index], b[index], alpha.view(-1, 1, 1, 1))

    alphas = torch.rand(90, generator=gen(2))
    found = perceptual_path_length(render, squared, alphas, epsilon=epsilon, batch=batch)
    assert found == pytest.approx((b - a).double().square().mean().item(), rel=1e-4)
    assert sorted(seen) == sorted([*range(90), *range(90)])


def test_slow_paths_are_not_drowned_by_rounding() -> None:
    """Pixels near 1 that change by a hundredth over the path: 1e-6 a step, where float32 steps by 6e-8."""
    end = 0.9 + 0.01 * torch.rand(50, 3, 16, 16, generator=gen())
    start = torch.full_like(end, 0.9)
    render = lambda index, alpha: torch.lerp(start[index], end[index], alpha.view(-1, 1, 1, 1))
    found = perceptual_path_length(render, squared, torch.rand(50, generator=gen(1)))
    slope = (end - 0.9).double().square().mean().item()
    assert found == pytest.approx(slope, abs=1e-7)  # what the docstring allows for rounding
    assert found > 0.9 * slope


def test_the_length_on_a_circle_and_without_the_ends() -> None:
    angle = lambda index, alpha: torch.stack([(5 * alpha.double()).cos(), (5 * alpha.double()).sin()], 1)
    total = lambda a, b: (a - b).square().sum(1)
    alphas = torch.rand(400, generator=gen())
    assert perceptual_path_length(angle, total, alphas) == pytest.approx(25, rel=1e-6)
    assert perceptual_path_length(lambda i, alpha: angle(i, 0 * alpha), total, alphas) == 0
    # Slopes 0 to 399: a hundredth is 4 values at each end, however large they are.
    slopes = torch.arange(400.0).double()
    slopes[-4:] = 1e6
    steps = lambda index, alpha: (slopes[index].sqrt() * alpha.double())[:, None]
    found = perceptual_path_length(steps, total, alphas)
    assert found == pytest.approx(sum(range(4, 396)) / 392, rel=1e-6)


def test_edit_matrix_by_hand() -> None:
    before = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    wanted = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]])
    first = torch.stack([wanted[0], torch.tensor([0, 1, 1, 1])], 1)  # all reached, 1 of 4 others changed
    second = torch.stack([torch.tensor([0, 0, 0, 0]), torch.tensor([1, 0, 1, 1])], 1)  # 3 reached, 2 changed
    found = edit_matrix(before, torch.stack([first, second]), wanted)
    assert found.matrix.tolist() == [[1, 0.25], [0.5, 0.75]]
    assert found.diagonal_dominant
    third = torch.stack([1 - before[:, 0], torch.tensor([1, 0, 1, 1])], 1)  # every other one changed
    found = edit_matrix(before, torch.stack([first, third]), wanted)
    assert found.matrix.tolist() == [[1, 0.25], [1, 0.75]]
    assert not found.diagonal_dominant


def test_edits_that_reach_all_are_the_identity_and_edits_that_do_nothing_have_no_diagonal() -> None:
    before = every_combination(2)
    wanted = (before.T + 1) % torch.tensor(VALUES)[:, None]
    perfect = before.expand(3, -1, -1).clone()
    for i in range(3):
        perfect[i, :, i] = wanted[i]
    assert edit_matrix(before, perfect, wanted).matrix.equal(torch.eye(3).double())
    idle = edit_matrix(before, before.expand(3, -1, -1), wanted)
    assert idle.matrix.equal(torch.zeros(3, 3).double())
    assert not idle.diagonal_dominant
    assert edit_matrix(before[:, :1], perfect[:1, :, :1], wanted[:1]).diagonal_dominant


@pytest.mark.parametrize(
    "call",
    [
        lambda: perplexity_matrix([torch.zeros(9, 2)], torch.zeros(9, 1).long(), (2,)),
        lambda: sap(torch.zeros(9, 2), torch.zeros(9, 1).long()),
        lambda: dci(torch.zeros(9, 2), torch.zeros(9, 2).long()),
    ],
)
def test_a_missing_package_names_the_extra(call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"pellucid\[metrics\]"):
        call()


RENDER = lambda index, alpha: alpha[:, None]
LABELS = torch.arange(40)[:, None] % 2
CODES = torch.arange(80.0).view(40, 2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: perplexity_matrix([], LABELS, (2,)), "at least one part"),
        (lambda: perplexity_matrix([CODES, CODES[:9]], LABELS, (2,)), r"\(9, 2\) and \(40, 1\)"),
        (lambda: perplexity_matrix([CODES], LABELS, (2, 2)), "2 numbers of values for 1 attributes"),
        (lambda: perplexity_matrix([CODES], LABELS + 1, (2,)), r"values\[0\]=2, .* up to 2"),
        (lambda: perplexity_matrix([CODES], 0 * LABELS, (1,)), r"values\[0\]=1"),
        (lambda: perplexity_matrix([CODES], 0 * LABELS, (2,)), "attribute 0 has 1 values in 32 known rows"),
        (lambda: perplexity_matrix([CODES[:4]], LABELS[:4], (2,)), "0 known rows to score"),
        (lambda: chance(0 * LABELS - 1, (2,)), "unknown, in all 40 rows"),
        (lambda: chance(LABELS.double(), (2,)), "whole numbers, got torch.float64"),
        (lambda: chance(LABELS - 2, (2,)), "attributes hold -2"),
        (lambda: chance(LABELS[:, 0], (2,)), r"\(N, m\), got \(40,\)"),
        (lambda: mig(CODES[:, :1], LABELS), "1 entry"),
        (lambda: mig(CODES / 0, LABELS), "nan or inf"),
        (lambda: mig(CODES[0], LABELS), r"got \(2,\)"),
        (lambda: mig(CODES, 0 * LABELS), "attribute 0 has 1 known values"),
        (lambda: sap(CODES[:, :1], LABELS), "1 entry"),
        (lambda: sap(CODES, 0 * LABELS - 1), "attribute 0 has 0 values"),
        (lambda: dci(CODES, LABELS), "got 1 attribute"),
        (lambda: dci(0 * CODES, LABELS.expand(40, 2)), "same in all rows"),
        (lambda: perceptual_path_length(RENDER, squared, torch.zeros(0)), r"alphas \(N,\)"),
        (lambda: perceptual_path_length(RENDER, squared, torch.tensor([1.1])), r"\[0, 1\]"),
        (lambda: perceptual_path_length(RENDER, squared, torch.tensor([torch.nan])), r"\[0, 1\]"),
        (lambda: perceptual_path_length(RENDER, squared, torch.rand(3), epsilon=1e-8), "got 1e-08"),
        (lambda: perceptual_path_length(RENDER, squared, torch.rand(3), batch=0), "and 0"),
        (
            lambda: perceptual_path_length(lambda i, a: a[:, None].bfloat16(), squared, torch.rand(3)),
            "bfloat16.*render in float32",
        ),
        (
            lambda: perceptual_path_length(RENDER, lambda a, b: squared(a, b).mean(), torch.rand(3)),
            r"\(3,\), got \(\): do not average",
        ),
        (
            lambda: perceptual_path_length(RENDER, lambda a, b: (a - b)[:, 0], torch.rand(3)),
            "negative",
        ),
        (lambda: edit_matrix(torch.zeros(4).long(), torch.zeros(4).long(), LABELS), r"\(N, m\), got \(4,\)"),
        (
            lambda: edit_matrix(torch.zeros(4, 2).long(), torch.zeros(4, 2, 2).long(), LABELS),
            r"expected after \(2, 4, 2\) and wanted \(2, 4\), got \(4, 2, 2\)",
        ),
        (lambda: edit_matrix(LABELS, LABELS[None] - 1, LABELS.T), "after must be .* from -1"),
        (lambda: edit_matrix(LABELS.float(), LABELS[None], LABELS.T), "before must be .* torch.float32"),
    ],
)
def test_mistakes_are_named(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
