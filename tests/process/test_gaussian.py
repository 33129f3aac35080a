import numpy as np
import pytest
import scipy.fft
import torch

from pellucid.process.gaussian import Gaussian, cosines
from pellucid.process.loss import diffuse
from pellucid.process.predict import from_x0
from pellucid.process.schedule import alpha_sigma


def waves(n: int, shape=(3, 6, 8), seed: int = 0) -> torch.Tensor:
    """Pictures whose covariance is diagonal over a cosine transform but for colours, as the model supposes."""
    c, h, w = shape
    rng = torch.Generator().manual_seed(seed)
    mix = torch.randn(h, w, c, c, generator=rng) / (1 + torch.arange(h)[:, None, None, None])
    z = torch.einsum("hwcd,nhwd->nchw", mix, torch.randn(n, h, w, c, generator=rng))
    return cosines(h).T @ z @ cosines(w) + torch.linspace(-0.5, 0.5, w)


@pytest.mark.parametrize("n", [1, 2, 7, 32])
def test_cosines_are_those_of_scipy(n):
    x = np.random.default_rng(0).normal(size=(n, 5)).astype(np.float32)
    theirs = scipy.fft.dct(x, axis=0, norm="ortho")
    np.testing.assert_allclose(cosines(n).numpy() @ x, theirs, atol=1e-5)
    torch.testing.assert_close(cosines(n) @ cosines(n).T, torch.eye(n), atol=1e-5, rtol=0)


def test_before_fitting_its_v_is_zero():
    x_t, logsnr = torch.randn(4, 3, 6, 8), torch.linspace(-9, 9, 4)
    torch.testing.assert_close(Gaussian((3, 6, 8)).v(x_t, logsnr), torch.zeros_like(x_t))


def test_it_is_the_posterior_mean_of_the_covariance_that_was_fitted():
    """Against the textbook formula with the whole (C H W)^2 covariance, put together pixel by pixel."""
    c, h, w = 3, 6, 8
    pictures = waves(4000)
    fitted = Gaussian((c, h, w))
    fitted.fit(pictures.split(1000))
    # columns of the square root of the covariance: each direction of colour of each wave
    roots = torch.einsum("hwcd,hwd->hwcd", fitted.basis, fitted.power.sqrt())
    placed = torch.zeros(h, w, c, c, h, w)
    for i in range(h):
        for j in range(w):
            placed[i, j, :, :, i, j] = roots[i, j].T
    placed = (cosines(h).T @ placed @ cosines(w)).reshape(h * w * c, -1).double()
    covariance = placed.T @ placed
    # that covariance is the pictures' own, to what 4,000 of them can say
    own = torch.cov(pictures.flatten(1).T.double())
    assert (covariance - own).norm() < 0.15 * own.norm()

    x0, eps = pictures[:5], torch.randn(5, c, h, w, generator=torch.Generator().manual_seed(3))
    logsnr = torch.tensor([-8.0, -2.0, 0.0, 3.0, 8.0])
    x_t = diffuse(x0, eps, logsnr)
    found = fitted.v(x_t, logsnr)
    mean = fitted.mean.flatten().double()
    for i in range(5):
        alpha, sigma = (s.double() for s in alpha_sigma(logsnr[i]))
        noisy = alpha**2 * covariance + sigma**2 * torch.eye(c * h * w)
        apart = x_t[i].flatten().double() - alpha * mean
        posterior = mean + alpha * covariance @ torch.linalg.solve(noisy, apart)
        v = from_x0(posterior.view(1, c, h, w).float(), x_t[i : i + 1], logsnr[i : i + 1], "v")[0]
        torch.testing.assert_close(found[i], v, atol=2e-3, rtol=1e-3)


def test_no_other_linear_denoiser_does_better_on_gaussian_pictures():
    pictures = waves(4000)
    fitted = Gaussian((3, 6, 8))
    fitted.fit([pictures[:2000]])
    x0 = pictures[2000:]
    for level in (-3.0, 0.0, 3.0):
        logsnr = torch.full((len(x0),), level)
        alpha, sigma = alpha_sigma(logsnr)
        x_t = diffuse(x0, torch.randn(x0.shape, generator=torch.Generator().manual_seed(1)), logsnr)
        ours = alpha[0] * x_t - sigma[0] * fitted.v(x_t, logsnr)
        # least squares from all pixels to all pixels, fitted on the pictures that it is then tried on
        x, y = x_t.flatten(1), x0.flatten(1)
        best = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], 1), y).solution
        theirs = torch.cat([x, torch.ones(len(x), 1)], 1) @ best
        floor = (theirs - y).square().mean()
        assert (ours - x0).square().mean() < 1.15 * floor


def test_a_single_picture_is_not_taken_for_all_there_is():
    fitted = Gaussian((1, 4, 4))
    fitted.fit([torch.full((1, 1, 4, 4), 0.3)])
    torch.testing.assert_close(fitted.power, torch.full((4, 4, 1), 0.5))
    x_t, logsnr = torch.randn(2, 1, 4, 4), torch.tensor([-20.0, 20.0])
    alpha, sigma = (s.view(-1, 1, 1, 1) for s in alpha_sigma(logsnr))
    x0 = alpha * x_t - sigma * fitted.v(x_t, logsnr)
    torch.testing.assert_close(
        x0[0], torch.full((1, 4, 4), 0.3), atol=1e-3, rtol=0
    )  # nothing but noise is seen
    torch.testing.assert_close(x0[1], x_t[1], atol=1e-3, rtol=0)  # the picture is seen


def test_batches_make_no_difference_and_the_device_does_not_compute(monkeypatch):
    """Some devices have no eigh; what is fitted is computed on the CPU in double precision wherever weights live."""
    seen = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda x: (seen.append((x.device.type, x.dtype)), eigh(x))[1])
    pictures, found = waves(60), []
    for batches in ([pictures], pictures.split(7)):
        found.append(Gaussian((3, 6, 8)))
        found[-1].fit(batches)
    assert set(seen) == {("cpu", torch.float64)}
    torch.testing.assert_close(found[0].power, found[1].power)
    torch.testing.assert_close(found[0].mean, pictures.mean(0), atol=1e-5, rtol=0)


def test_pictures_of_another_size_are_named():
    with pytest.raises(ValueError, match=r"\(3, 6, 9\); the Gaussian is one of \(3, 6, 8\)"):
        Gaussian((3, 6, 8)).v(torch.zeros(1, 3, 6, 9), torch.zeros(1))
