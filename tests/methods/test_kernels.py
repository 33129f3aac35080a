import math

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid

from pellucid.methods.kernels import (
    DEFAULT,
    FAINT,
    KernelConfig,
    Likelihood,
    confidence,
    evidence,
    explain,
    places,
    refine,
)

BANDWIDTH, OWN, UNKNOWN = DEFAULT.bandwidth, DEFAULT.own, DEFAULT.unknown
RNG = np.random.default_rng(0)


def picture(size=32, *, ground=(-0.6, -0.2, 0.3), objects=((0.9, 0.5, -0.8),)):
    """A square in the middle, in vertical stripes of the object's colours, over a ground with a little noise."""
    x = np.tile(np.array(ground)[:, None, None], (1, size, size))
    mask = np.zeros((size, size), bool)
    mask[size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = True
    columns = np.array_split(np.arange(size // 4, 3 * size // 4), len(objects))
    for colour, where in zip(objects, columns, strict=True):
        x[:, size // 4 : 3 * size // 4, where] = np.array(colour)[:, None, None]
    x = x + RNG.normal(0, 0.03, x.shape)
    return torch.from_numpy(x)[None].float().clamp(-1, 1), torch.from_numpy(mask)[None]


def test_densities_are_their_definition():
    """Against plain loops in float64."""
    x = torch.from_numpy(RNG.uniform(-1, 1, (1, 3, 6, 5))).float()
    masks = torch.from_numpy(RNG.dirichlet([1, 1, 1], (1, 6, 5))).permute(0, 3, 1, 2).float()
    found = Likelihood(x, own=OWN, bandwidth=BANDWIDTH, unknown=UNKNOWN)(masks)[0].double().numpy()
    pixels, m = x[0].double().numpy(), masks[0].double().numpy()
    h, w = 6, 5
    alike = lambda p, q: math.exp(-((pixels[:, *p] - pixels[:, *q]) ** 2).mean() / (2 * BANDWIDTH**2))
    every = [(i, j) for i in range(h) for j in range(w)]
    frame = [(i, j) for i, j in every if i in (0, h - 1) or j in (0, w - 1)]
    for p in every:
        reach = {q: math.exp(-((p[0] - q[0]) ** 2 + (p[1] - q[1]) ** 2) / (2 * (w / 2) ** 2)) for q in frame}
        weight = {q: reach[q] * (0.1 + m[0][q]) for q in frame}
        ground = sum(weight[q] * alike(p, q) for q in frame) / sum(weight.values())
        assert found[0][p] == pytest.approx(math.log(ground + FAINT), abs=1e-3)
        for k in (1, 2):
            own = sum(m[k][q] * alike(p, q) for q in every) / (sum(m[k][q] for q in every) + 1)
            assert found[k][p] == pytest.approx(math.log(OWN * own + (1 - OWN) * UNKNOWN / 2), abs=1e-3)


def test_a_likelihood_is_the_denoising_error_over_all_noise():
    """Half the noise's squared error, integrated over log-SNR: it differs between two values as -log p does.

    p is a kernel density in one dimension, whose best denoiser is known; the noise is averaged by Gauss-Hermite.
    """
    centres, width = np.array([-0.8, -0.5, 0.4]), 0.2
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()

    def error(value, logsnr):
        snr = np.exp(logsnr)
        y = value + nodes / np.sqrt(snr)  # (80,)
        spread = width**2 + 1 / snr
        like = np.exp(-((y[:, None] - centres) ** 2) / (2 * spread))
        means = centres + width**2 / spread * (y[:, None] - centres)
        best = (like * means).sum(1) / like.sum(1)
        return (weights * (value - best) ** 2).sum() * snr

    density = lambda v: np.exp(-((v - centres) ** 2) / (2 * width**2)).sum()
    logsnr = np.linspace(-12, 16, 2001)
    one, other = -0.6, 0.1
    integral = trapezoid([error(one, s) - error(other, s) for s in logsnr], logsnr) / 2
    assert integral == pytest.approx(np.log(density(other)) - np.log(density(one)), abs=0.02)


@pytest.mark.parametrize("size", [(32, 32), (48, 32), (20, 36)])
def test_the_frame_goes_all_the_way_round(size):
    where = places(*size, torch.device("cpu"))
    marked = torch.zeros(size).flatten().index_fill(0, where.frame, 1).view(size)
    assert marked[0].all()
    assert marked[-1].all()
    assert marked[:, 0].all()
    assert marked[:, -1].all()
    assert not marked[2:-2, 2:-2].any()
    assert len(where.grid) <= 256


def test_what_the_frame_cannot_explain_is_an_object():
    x, mask = picture()
    found = explain(x, 2).argmax(1) == 1
    assert ((found & mask).sum() / (found | mask).sum()) > 0.95


def test_an_object_of_two_colours_has_a_region_for_each_darkest_first():
    x, mask = picture(objects=((-0.9, -0.9, -0.5), (0.9, 0.9, 0.2)))
    labels = explain(x, 3).argmax(1)[0]
    assert ((labels > 0) == mask[0]).float().mean() > 0.98
    assert (labels[10:22, 10:15] == 1).float().mean() > 0.95
    assert (labels[10:22, 17:22] == 2).float().mean() > 0.95


@pytest.mark.parametrize("regions", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (1, 1, 24, 16), (1, 3, 96, 160)])
def test_regions_are_partitions_at_any_size(regions, shape):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for masks in (explain(x, regions), refine(x, torch.ones(shape[0], regions, *shape[2:]) / regions)):
        assert masks.shape == (shape[0], regions, *shape[2:])
        torch.testing.assert_close(masks.sum(1), torch.ones(shape[0], *shape[2:]))
        assert (masks >= 0).all()


def test_refining_corrects_a_coarse_mask_by_colour():
    x, mask = picture()
    coarse = torch.zeros(1, 2, 32, 32)
    coarse[:, 1, 6:26, 7:26] = 0.52
    coarse[:, 0] = 1 - coarse[:, 1]
    iou = lambda m: ((m.argmax(1) == 1) & mask).sum() / ((m.argmax(1) == 1) | mask).sum()
    assert iou(refine(x, coarse)) > 0.95 > iou(coarse)


def test_evidence_tells_ground_from_object_and_fades_with_noise():
    x, mask = picture()
    clean = evidence(x, torch.zeros(1))[0]
    assert clean.shape == (2, 32, 32)
    for seen in clean:
        assert seen[~mask[0]].mean() - seen[mask[0]].mean() > 1
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert evidence(noise, torch.ones(1)).std() < 0.3 * clean.std()


def test_confidence_is_one_where_nothing_is_in_doubt():
    sure = torch.zeros(1, 3, 4, 4)
    sure[:, 1] = 1
    assert confidence(sure).item() == 1
    assert confidence(torch.full((1, 2, 4, 4), 0.5)).item() == 0


def test_densities_are_the_same_under_autocast():
    x, _ = picture()
    masks = explain(x, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(explain(x, 3), masks)
        half = evidence(x, torch.full((1,), 0.1))
    assert torch.equal(half, evidence(x, torch.full((1,), 0.1)))


@pytest.mark.parametrize("wrong", [{"bandwidth": 0.0}, {"unknown": -1.0}, {"own": 1.5}, {"own_known": -0.1}])
def test_constants_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=r"kernel|shares"):
        KernelConfig(**wrong)
