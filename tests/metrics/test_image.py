"""Image metrics against scikit-image and their definitions."""

from __future__ import annotations

import pytest
import torch

from pellucid.metrics.image import mse, psnr, ssim


def pair(seed: int = 0, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    a = torch.rand(3, channels, 17, 23, generator=g) * 2 - 1
    noise = torch.tensor([0.05, 0.3, 1.0]).view(3, 1, 1, 1)
    return a, (a + noise * torch.randn(a.shape, generator=g)).clamp(-1, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_equal_to_scikit_image(channels: int) -> None:
    reference = pytest.importorskip("skimage.metrics")
    a, b = pair(channels=channels)
    for i in range(3):
        x, y = a[i].double().numpy(), b[i].double().numpy()
        expected = reference.structural_similarity(
            x, y, data_range=2, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert ssim(a, b)[i].item() == pytest.approx(expected, abs=1e-10)
        assert psnr(a, b)[i].item() == pytest.approx(reference.peak_signal_noise_ratio(x, y, data_range=2))
        assert mse(a, b)[i].item() == pytest.approx(reference.mean_squared_error(x, y))


def test_one_number_for_each_image_whatever_shares_its_batch() -> None:
    a, b = pair()
    for metric in (mse, psnr, ssim):
        together = metric(a, b)
        assert together.shape == (3,)
        torch.testing.assert_close(
            together, torch.cat([metric(a[i : i + 1], b[i : i + 1]) for i in range(3)])
        )
        torch.testing.assert_close(together, metric(b, a))


def test_equal_images_are_perfect() -> None:
    a, _ = pair()
    assert mse(a, a).tolist() == [0] * 3
    assert psnr(a, a).tolist() == [float("inf")] * 3
    torch.testing.assert_close(ssim(a, a), torch.ones(3, dtype=torch.float64))


def test_mistakes_are_named() -> None:
    a, b = pair()
    with pytest.raises(ValueError, match="equal"):
        mse(a, b[:, :1])
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(a[..., :8], b[..., :8])
