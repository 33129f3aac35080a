"""The label-free segmenters against scikit-image and scikit-learn, and on pictures with one right answer."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from pellucid.methods.baselines.segmenters import (
    border_rule,
    centre_box,
    colour_position_kmeans,
    feature_kmeans,
    grabcut,
    kmeans,
    number_regions,
    otsu,
)


def gen(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def discs() -> tuple[torch.Tensor, torch.Tensor]:
    """Bright discs on dark ground, a little noise: images (4, 3, 24, 24), truth (4, 24, 24)."""
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    shift = torch.tensor([0.0, 1.0, 2.0, -2.0]).view(4, 1, 1)
    truth = (y - 12 - shift).square() + (x - 12 + shift).square() < 36
    colour = torch.tensor([0.7, 0.2, 0.5]).view(1, 3, 1, 1)
    images = torch.where(truth[:, None], colour, -0.6) + 0.05 * torch.randn(4, 3, 24, 24, generator=gen())
    return images.clamp(-1, 1), truth


SEGMENTERS = {
    "otsu2": lambda x: otsu(x),
    "otsu3": lambda x: otsu(x, 3, order="brightness"),
    "kmeans": lambda x: colour_position_kmeans(x, 3, gen()),
    "border": lambda x: border_rule(x, gen()),
    "box": lambda x: centre_box(x),
    "features": lambda x: feature_kmeans(x, 3, gen()),
    "shared features": lambda x: feature_kmeans(x, 3, gen(), scope="dataset"),
}


@pytest.mark.parametrize("name", SEGMENTERS)
@pytest.mark.parametrize("channels", [1, 3])
def test_masks_are_a_partition_and_repeatable(name: str, channels: int) -> None:
    images = torch.rand(3, channels, 9, 14, generator=gen()) * 2 - 1
    masks = SEGMENTERS[name](images)
    assert masks.shape[0] == 3
    assert masks.shape[2:] == (9, 14)
    assert torch.equal(masks.sum(1), torch.ones(3, 9, 14))
    assert set(masks.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(masks, SEGMENTERS[name](images))


@pytest.mark.parametrize("name", ["otsu2", "border"])
def test_the_object_is_the_last_region(name: str, discs) -> None:
    images, truth = discs
    for picture in (images, -images):  # bright on dark, dark on bright
        found = SEGMENTERS[name](picture)[:, 1] > 0
        assert (found == truth).float().mean() > 0.99


def test_brightness_order_follows_brightness(discs) -> None:
    images, truth = discs
    for k in (2, 3):
        masks = otsu(images, k, order="brightness")
        luma = (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
        means = (masks * luma).sum((2, 3)) / masks.sum((2, 3))
        assert (means.diff(dim=1) > 0).all()
    assert (otsu(-images, order="brightness")[:, 0] > 0).eq(truth).float().mean() > 0.99


def test_border_order_puts_empty_regions_last() -> None:
    labels = torch.full((1, 4, 4), 2)
    labels[:, 1, 1] = 0
    numbered = number_regions(labels, None, 4, "border")
    assert numbered[0, 0, 0] == 0
    assert numbered[0, 1, 1] == 1


def test_otsu_equals_scikit_image(discs) -> None:
    filters = pytest.importorskip("skimage.filters")
    pictures = torch.rand(3, 1, 16, 16, generator=gen(1)).pow(2) * 2 - 1
    for x in (pictures, discs[0][:, :1]):
        levels = ((x[:, 0] + 1) * 127.5).round().long()
        ours = otsu(x, order="brightness")[:, 1] > 0
        for i in range(len(x)):
            hist = np.bincount(levels[i].flatten().numpy(), minlength=256)
            threshold = filters.threshold_otsu(hist=(hist, np.arange(256)))
            assert torch.equal(ours[i], levels[i] > int(threshold))


def test_three_class_otsu_is_the_best_of_all() -> None:
    levels = torch.tensor([0, 3, 9, 10, 40, 41, 43, 80, 81, 255])
    x = (levels / 127.5 - 1).view(1, 1, 2, 5)
    values = levels.double()

    def within(labels: torch.Tensor) -> float:
        return sum(
            ((values[labels == c] - values[labels == c].mean()) ** 2).sum().item() for c in labels.unique()
        )

    ours = within(otsu(x, 3, order="brightness").argmax(1).flatten())
    every = [
        within((torch.arange(10) >= a).long() + (torch.arange(10) >= b).long())
        for a, b in combinations(range(1, 10), 2)
    ]
    assert ours == pytest.approx(min(every))


def test_kmeans_is_as_good_as_scikit_learn() -> None:
    sk = pytest.importorskip("sklearn.cluster")
    points = (
        torch.randn(3, 300, 4, generator=gen(2)) + torch.randint(0, 3, (3, 300, 1), generator=gen(3)) * 2.5
    )
    labels, centres = kmeans(points, 3, gen())
    inertia = (points - centres.gather(1, labels[..., None].expand(-1, -1, 4))).square().sum((1, 2))
    for i in range(3):
        reference = sk.KMeans(3, n_init=10, random_state=0).fit(points[i].numpy())
        assert inertia[i].item() == pytest.approx(reference.inertia_, rel=1e-3)
    # A fixed point of Lloyd's iteration: each centre is the mean of its points, each point at its nearest.
    for c in range(3):
        torch.testing.assert_close(centres[0, c], points[0][labels[0] == c].mean(0), atol=1e-4, rtol=1e-4)
    assert torch.equal(torch.cdist(points, centres).argmin(-1), labels)


def test_kmeans_of_few_distinct_points() -> None:
    labels, centres = kmeans(torch.zeros(2, 5, 3), 3, gen())
    assert torch.isfinite(centres).all()
    assert labels.unique().tolist() == [0]
    two = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0]).view(1, 5, 1)
    labels, _ = kmeans(two, 2, gen())
    assert labels[0, 0] == labels[0, 1] != labels[0, 2] == labels[0, 4]


def test_shared_centres_mean_the_same_in_every_image() -> None:
    left, right = torch.zeros(1, 2, 6, 6), torch.zeros(1, 2, 6, 6)
    left[:, 0, :, :3], right[:, 0, :, 3:] = 5, 5
    features = torch.cat([left, right]) + 0.01 * torch.randn(2, 2, 6, 6, generator=gen())
    labels = feature_kmeans(features, 2, gen(), scope="dataset").argmax(1)
    assert labels[0, 0, 0] == labels[1, 0, 5] != labels[0, 0, 5] == labels[1, 0, 0]


def test_centre_box_has_the_asked_area() -> None:
    assert centre_box(torch.zeros(2, 3, 20, 40), side=0.5)[:, 1].mean().item() == 0.25


def test_grabcut_finds_the_disc_and_survives_plain_images(discs) -> None:
    pytest.importorskip("cv2")
    images, truth = discs
    masks = grabcut(images)
    assert (masks[:, 1].bool() == truth).float().mean() > 0.97
    assert torch.equal(masks, grabcut(images))
    boxes = torch.tensor([[2, 3, 10, 11]])
    plain = grabcut(torch.zeros(1, 1, 16, 16), boxes)
    assert plain[0, 1].sum() == 64


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: otsu(torch.zeros(1, 2, 4, 4)), "1 or 3"),
        (lambda: otsu(torch.zeros(1, 3, 4, 4), 1), "k=1"),
        (lambda: kmeans(torch.zeros(1, 3, 2), 4, gen()), "k=4"),
        (lambda: centre_box(torch.zeros(1, 3, 4, 4), side=1.5), "side=1.5"),
        (lambda: otsu(torch.zeros(1, 3, 4, 4), order="size"), "order='size'"),
    ],
)
def test_mistakes_are_named(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_boxes_outside_the_image_are_refused() -> None:
    pytest.importorskip("cv2")
    with pytest.raises(ValueError, match="box 0"):
        grabcut(torch.zeros(1, 3, 8, 8), torch.tensor([[0, 0, 9, 8]]))
