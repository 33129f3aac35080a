"""Views that are what their config says, and the contrastive loss against a double loop."""

import math

import pytest
import torch

from pellucid.methods.contrast import ViewConfig, nt_xent, view

STILL = {"crop": 1.0, "mirror": False, "jitter": 0.0, "grey": 0.0, "blur": 0.0}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(n=6, channels=3, size=24, seed=1):
    return torch.rand(n, channels, size, size, generator=seeded(seed)) * 2 - 1


def loop(a, b, temperature):
    """Chen et al.'s (2020) algorithm 1, one pair at a time, in float64."""
    rows = [row.double() for pair in zip(a, b, strict=True) for row in pair]
    cosine = lambda x, y: float(x @ y / (x.norm() * y.norm()))
    total = 0.0
    for i, row in enumerate(rows):
        partner = i + 1 if i % 2 == 0 else i - 1
        among = sum(math.exp(cosine(row, other) / temperature) for k, other in enumerate(rows) if k != i)
        total -= math.log(math.exp(cosine(row, rows[partner]) / temperature) / among)
    return total / len(rows)


# ---- the loss


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_the_loss_is_the_double_loops(temperature):
    a, b = torch.randn(2, 7, 5, generator=seeded())
    assert nt_xent(a, b, temperature).item() == pytest.approx(loop(a, b, temperature), rel=1e-5)


def test_the_loss_knows_no_lengths_and_no_order():
    a, b = torch.randn(2, 7, 5, generator=seeded())
    loss = nt_xent(a, b)
    lengths = torch.rand(7, 1, generator=seeded(1)) * 10 + 0.1
    order = torch.randperm(7, generator=seeded(2))
    for other in (
        nt_xent(b, a),
        nt_xent(a * lengths, b),
        nt_xent(a[order], b[order]),
        nt_xent(torch.cat([a[:3], b[3:]]), torch.cat([b[:3], a[3:]])),
    ):
        torch.testing.assert_close(other, loss)
    assert nt_xent(a, b.roll(1, 0)) != loss  # which view belongs to which matters


def test_views_that_agree_and_pictures_that_are_far_apart_have_the_least_loss():
    """The simplex: n unit vectors with cosines -1 / (n - 1), each picture's views equal."""
    n, t = 5, 0.5
    corners = torch.eye(n) - 1 / n
    least = math.log(math.exp(1 / t) + 2 * (n - 1) * math.exp(-1 / (n - 1) / t)) - 1 / t
    assert nt_xent(corners, corners, t).item() == pytest.approx(least, rel=1e-5)
    for seed in range(20):
        a, b = corners + 0.3 * torch.randn(2, n, n, generator=seeded(seed))
        assert nt_xent(a, b, t) > least
    same = torch.ones(n, n)  # all pictures alike: the loss of guessing
    assert nt_xent(same, same, t).item() == pytest.approx(math.log(2 * n - 1), rel=1e-5)


@pytest.mark.parametrize(("a", "b"), [((4, 3), (3, 3)), ((1, 3), (1, 3)), ((4, 3), (4, 2))])
def test_views_that_do_not_pair_are_refused(a, b):
    with pytest.raises(ValueError, match="equal shapes of two rows or more"):
        nt_xent(torch.zeros(a), torch.zeros(b))


# ---- the views


@pytest.mark.parametrize("channels", [1, 3])
def test_a_seed_gives_its_views_and_leaves_the_global_generator_alone(channels):
    x, kept = pictures(channels=channels), pictures(channels=channels)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one, two = (view(x, ViewConfig(), seeded(3)) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(x, kept)
    assert one.shape == x.shape
    assert one.abs().max() <= 1
    assert (one - view(x, ViewConfig(), seeded(4))).abs().mean((1, 2, 3)).min() > 0.05


@pytest.mark.parametrize("channels", [1, 3])
def test_views_at_full_strength_stay_in_range(channels):
    x = pictures(32, channels).sign()  # black and white: whatever overshoots, overshoots here
    y = view(x, ViewConfig(crop=0.05, jitter=1.0, grey=0.5, blur=1.0), seeded())
    assert y.isfinite().all()
    assert y.abs().max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_with_nothing_on_a_view_is_its_picture(channels):
    x = pictures(channels=channels)
    torch.testing.assert_close(view(x, ViewConfig(**STILL), seeded()), x, atol=1e-5, rtol=0)


def test_a_mirror_alone_leaves_or_flips_half_each():
    x = pictures(200, size=8)
    y = view(x, ViewConfig(**STILL | {"mirror": True}), seeded())
    flipped = torch.isclose(y, x.flip(3), atol=1e-5).flatten(1).all(1)
    left = torch.isclose(y, x, atol=1e-5).flatten(1).all(1)
    assert torch.equal(flipped, ~left)
    assert 70 < flipped.sum() < 130  # 100 by a binomial of deviation 7


def test_a_crop_is_a_part_of_its_picture_of_the_share_that_was_asked_for():
    """Pixels hold their own place: what a view shows of it is an interval as long as the crop's side."""
    line = (torch.arange(32) + 0.5) / 16 - 1
    x = torch.stack([line.expand(32, 32), line[:, None].expand(32, 32)]).expand(400, 2, 32, 32)
    y = view(x, ViewConfig(**STILL | {"crop": 0.25}), seeded())
    side = (y[:, 0, 16, 24] - y[:, 0, 16, 8]) / (line[24] - line[8])
    across = (y[:, 1, 24, 16] - y[:, 1, 8, 16]) / (line[24] - line[8])
    torch.testing.assert_close(side, across, atol=1e-4, rtol=0)  # a square stays a square
    area = side.square().sort().values
    assert area[0] >= 0.249
    assert area[-1] <= 1.001
    expected = torch.linspace(0.25, 1, 400)  # uniform: the Kolmogorov distance of 400 draws
    assert (area - expected).abs().max() / 0.75 < 1.63 / 400**0.5
    centre = y[..., 15:17, 15:17].mean((2, 3))
    assert ((centre.abs() + side[:, None]) < 1.001).all()
    assert centre.std(0).min() > 0.05  # and they lie in different places


def test_grey_views_have_equal_channels_and_the_brightness_of_their_picture():
    x = pictures()
    y = view(x, ViewConfig(**STILL | {"grey": 1.0}), seeded())
    assert torch.equal(y[:, 0], y[:, 1])
    assert torch.equal(y[:, 0], y[:, 2])
    luma = torch.tensor([0.299, 0.587, 0.114]) @ x.flatten(2)  # ITU-R BT.601
    torch.testing.assert_close(y[:, 0].flatten(1), luma, atol=1e-5, rtol=0)


def test_jitter_changes_no_greys_hue_and_keeps_within_its_strength():
    flat = torch.full((100, 3, 8, 8), 0.2)
    y = view(flat, ViewConfig(**STILL | {"jitter": 0.3}), seeded())
    assert torch.allclose(y[:, 0], y[:, 2], atol=1e-5)
    brightness = ((y + 1) / 2 / 0.6).mean((1, 2, 3))
    assert brightness.min() >= 0.7 - 1e-4
    assert brightness.max() <= 1.3 + 1e-4
    assert brightness.std() == pytest.approx(0.6 / 12**0.5, rel=0.2)  # uniform


def test_blur_takes_away_what_is_fine_and_keeps_the_mean():
    checks = (torch.arange(48)[:, None] + torch.arange(48)).remainder(2) * 2.0 - 1
    x = checks.expand(40, 3, 48, 48)
    y = view(x, ViewConfig(**STILL | {"blur": 1.0}), seeded())[..., 8:-8, 8:-8]
    assert y.abs().mean() < 0.5
    assert y.mean().abs() < 0.01
    half = view(x, ViewConfig(**STILL | {"blur": 0.5}), seeded())
    untouched = (half - x).abs().amax((1, 2, 3)) < 1e-4
    assert 8 <= untouched.sum() <= 32


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"crop": 0.0}, "crop is 0.0"),
        ({"crop": 1.1}, "crop is 1.1"),
        ({"jitter": -0.1}, "jitter is -0.1"),
        ({"grey": 1.5}, "grey is 1.5"),
        ({"blur": 2.0}, "blur is 2.0"),
    ],
)
def test_views_that_cannot_be_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        ViewConfig(**wrong)
