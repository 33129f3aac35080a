"""Disentanglement against closed forms, scipy and constructions whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pellucid.metrics.disentangle import (
    change_map,
    direction_orthogonality,
    independence,
    segment_movement,
    traversal,
)


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=gen(seed), dtype=torch.float64)


def test_flipping_one_segment_moves_one_segment() -> None:
    z = normal(50, 12)
    flipped = z.clone()
    flipped[:, 3:6] *= -1
    assert segment_movement(z, flipped, 4).tolist() == [0, 1, 0, 0]
    assert segment_movement(z, z + 1, 3).tolist() == pytest.approx([1 / 3] * 3)
    by_hand = torch.tensor([[3.0, 4.0, 5.0, 5.0], [0.0, 1.0, 0.0, 2.0]])
    assert segment_movement(torch.zeros(2, 4), by_hand, 2).tolist() == pytest.approx([26 / 80, 54 / 80])


@pytest.mark.parametrize("d", [2, 3, 40])
def test_random_directions_have_the_cosine_that_chance_says(d: int) -> None:
    found = direction_orthogonality(normal(4, 3000, d))
    assert found.pairs == 6 * 3000
    assert found.cosine == pytest.approx(found.chance, abs=4 * d**-0.5 / 3000**0.5)
    assert found.chance == pytest.approx(
        {2: 2 / math.pi, 3: 1 / 2}.get(d, (2 / math.pi / d) ** 0.5), rel=0.01
    )


def test_directions_of_one_line_and_at_right_angles() -> None:
    line = normal(1, 20, 6)
    assert direction_orthogonality(torch.cat([line, -2 * line])).cosine == pytest.approx(1)
    axes = torch.eye(5)[:, None].expand(5, 20, 5)
    turned = torch.linalg.qr(normal(5, 5)).Q
    assert direction_orthogonality(axes @ turned.float()).cosine == pytest.approx(0, abs=1e-6)
    spread = axes.clone()
    spread[1] = spread[0] + spread[1]  # at 45 degrees to one of the others
    found = direction_orthogonality(spread)
    assert found.cosine == pytest.approx(0.5**0.5 / 10, rel=1e-6)
    spread[4, :3] = 0  # a control that changes nothing in three samples
    found = direction_orthogonality(spread)
    assert (found.pairs, found.left_out) == (200 - 12, 12)


def test_a_straight_even_way_and_a_jump() -> None:
    start, way = normal(7, 1, 4), normal(7, 1, 4, seed=1)
    even = traversal(start + torch.linspace(0, 3, 9).double().view(1, 9, 1) * way)
    torch.testing.assert_close(even.monotonicity, torch.ones(7, dtype=torch.float64))
    torch.testing.assert_close(even.smoothness, torch.ones(7, dtype=torch.float64))
    torch.testing.assert_close(even.movement, 3 * way[:, 0].norm(dim=1))
    jump = traversal(start + (torch.arange(9) >= 4).double().view(1, 9, 1) * way)
    torch.testing.assert_close(jump.smoothness, torch.full((7,), 8.0, dtype=torch.float64))
    assert jump.monotonicity.tolist() == [1 / 7] * 7
    still = traversal(start.expand(7, 9, 4))
    assert still.movement.tolist() == still.monotonicity.tolist() == [0] * 7
    assert still.smoothness.isnan().all()


def test_a_circle_leads_away_for_half_of_its_way_and_noise_for_half_of_its_steps() -> None:
    angle = torch.linspace(0, 2 * math.pi, 21, dtype=torch.float64)[None]
    circle = traversal(torch.stack([angle.cos(), angle.sin()], -1))
    assert circle.monotonicity.item() == 9 / 19  # the chord grows up to step 10 of 20
    assert circle.smoothness.item() == pytest.approx(1)
    assert circle.movement.item() == pytest.approx(20 * 2 * math.sin(math.pi / 20))
    assert traversal(normal(400, 10, 5)).monotonicity.mean().item() == pytest.approx(0.5, abs=0.03)


def waves(period: float, size: int = 64) -> torch.Tensor:
    """(1, 9, 1, H, W): a plane wave whose strength is moved by a slider."""
    wave = torch.sin(2 * math.pi * torch.arange(size, dtype=torch.float64) / period)
    return torch.linspace(-1, 1, 9).double().view(1, 9, 1, 1, 1) * wave.expand(1, 1, 1, size, size)


@pytest.mark.parametrize(
    ("period", "band"), [(64, 0), (32, 0), (16, 1), (10.6667, 1), (8, 2), (4, 3), (2.5, 3)]
)
@pytest.mark.parametrize("axis", [3, 4])
def test_a_wave_has_one_band(period: float, band: int, axis: int) -> None:
    images = waves(64 / round(64 / period)).transpose(axis, 4)
    found = change_map(images)
    assert found.shares[band].item() == pytest.approx(1)
    torch.testing.assert_close(found.pixels, 0.25 * images[0, -1, 0].abs())


def test_brightness_is_coarse_and_white_noise_fills_bands_by_their_area() -> None:
    ramp = torch.linspace(0, 1, 5).view(1, 5, 1, 1, 1).expand(2, 5, 3, 32, 24)
    found = change_map(ramp)
    assert found.shares.tolist() == pytest.approx([1, 0, 0, 0])
    torch.testing.assert_close(found.pixels, torch.full((32, 24), 0.25, dtype=torch.float64))
    noise = change_map(normal(6, 8, 3, 32, 48))
    assert noise.areas.sum().item() == pytest.approx(1)
    # disks of radius 1/16, 1/8 and 1/4 in a square of area 1
    disks = torch.tensor([math.pi / 256, math.pi / 64, math.pi / 16], dtype=torch.float64)
    torch.testing.assert_close(noise.areas[:3].cumsum(0), disks, atol=0.01, rtol=0)
    torch.testing.assert_close(noise.shares, noise.areas, atol=0.005, rtol=0.05)
    assert change_map(normal(1, 2, 1, 8, 8), bands=1).shares.tolist() == pytest.approx([1])


def test_a_change_is_found_where_it_is() -> None:
    images = normal(3, 1, 2, 16, 16).repeat(1, 4, 1, 1, 1)
    images[:, 2:, :, 5:9, 3:6] += 1.5
    found = change_map(images)
    expected = torch.zeros(16, 16, dtype=torch.float64)
    expected[5:9, 3:6] = 0.5  # one step of three
    torch.testing.assert_close(found.pixels, expected)


def signs(n: int, bits: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 2, (n, bits), generator=gen(seed)).double() * 2 - 1


@pytest.mark.parametrize("noise", [0.2, 0])
def test_dependence_without_correlation_is_found(noise: float) -> None:
    """The second segment's signs have the product of the first's: any two entries are independent."""
    first, third = signs(600, 2, 0), signs(600, 2, 2)
    one = signs(600, 1, 1)
    second = torch.cat([one, first.prod(1, keepdim=True) * one], 1)
    segments = torch.stack([first, second, third], 1) + noise * normal(600, 3, 2)
    found = independence(segments, gen())
    assert found.correlation < found.correlation_limit
    assert found.p_values[0, 1].item() == found.p_values[1, 0].item() == pytest.approx(1 / 501)
    assert min(found.p_values[0, 2], found.p_values[1, 2]) > 0.05 / 3
    assert found.p_values.diagonal().isnan().all()


def test_correlation_is_the_largest_between_segments_and_not_within() -> None:
    segments = normal(500, 3, 2)
    segments[:, 0, 1] = segments[:, 0, 0] + 0.01 * segments[:, 0, 1]  # within: does not count
    segments[:, 2, 0] = 0.6 * segments[:, 1, 1] + 0.8 * segments[:, 2, 0]
    found = independence(segments, gen(), permutations=50)
    table = np.abs(np.corrcoef(segments.flatten(1).numpy(), rowvar=False))
    assert found.correlation == pytest.approx(table[3, 4])
    assert found.correlation > 3 * found.correlation_limit
    assert found.p_values[1, 2].item() == pytest.approx(1 / 51)


def test_independent_segments_pass_as_often_as_said() -> None:
    found = [
        independence(normal(80, 3, 2, seed=i), gen(i), subsample=40, permutations=39) for i in range(200)
    ]
    below = np.mean([f.correlation < f.correlation_limit for f in found])
    assert below == pytest.approx(0.95, abs=3 * (0.95 * 0.05 / 200) ** 0.5)
    p = torch.stack([f.p_values[torch.ones(3, 3).triu(1).bool()] for f in found]).flatten().numpy()
    # uniform on 1/40, 2/40, ..., 1
    assert p.mean() == pytest.approx(41 / 80, abs=4 * (1 / 12 / len(p)) ** 0.5)
    assert np.mean(p <= 0.1) == pytest.approx(0.1, abs=4 * (0.09 / len(p)) ** 0.5)


def test_the_limit_of_one_pair_is_that_of_a_table() -> None:
    stats = pytest.importorskip("scipy.stats")
    limit = independence(normal(30, 2, 1), gen(), permutations=1).correlation_limit
    t = stats.t.ppf(0.975, 28)
    assert limit == pytest.approx(t / (28 + t**2) ** 0.5, rel=0.01)  # 0.361, exact for Gaussians


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: segment_movement(torch.zeros(3, 4), torch.zeros(3, 5), 2), r"\(3, 4\) and \(3, 5\)"),
        (lambda: segment_movement(torch.zeros(3, 4), torch.ones(3, 4), 3), "n=3"),
        (lambda: segment_movement(torch.zeros(3, 4), torch.zeros(3, 4), 2), "nothing moved"),
        (lambda: direction_orthogonality(torch.ones(1, 3, 4)), r"\(1, 3, 4\)"),
        (lambda: direction_orthogonality(torch.full((2, 3, 4), torch.nan)), "nan"),
        (lambda: direction_orthogonality(torch.zeros(2, 3, 4)), "no angle"),
        (lambda: traversal(torch.ones(5, 2, 4)), r"T=3 .*\(5, 2, 4\)"),
        (lambda: change_map(torch.ones(5, 1, 3, 4, 4)), r"T=2 .*\(5, 1, 3, 4, 4\)"),
        (lambda: change_map(torch.ones(5, 2, 3, 4, 4)), "nothing changed"),
        (lambda: independence(torch.ones(9, 2, 2), gen()), "the same for all"),
        (lambda: independence(torch.ones(9, 4), gen()), r"\(9, 4\)"),
        (lambda: independence(normal(9, 2, 2), gen(), permutations=0), "permutations >= 1"),
    ],
)
def test_mistakes_are_named(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
