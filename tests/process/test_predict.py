import pytest
import torch
from diffusers import DDPMScheduler

from pellucid.process.loss import denoising_loss, diffuse, weight
from pellucid.process.predict import from_x0, to_eps, to_x0
from pellucid.process.schedule import TabulatedSchedule, alpha_sigma

KINDS = ("eps", "v", "x0")


@pytest.fixture
def drawn():
    rng = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 64, 3, 2, 2, generator=rng, dtype=torch.float64)
    logsnr = torch.linspace(12, -12, 64, dtype=torch.float64)
    return x0, eps, logsnr, diffuse(x0, eps, logsnr)


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversion_and_back_is_nothing(kind, drawn):
    x0, eps, logsnr, x_t = drawn
    said = from_x0(x0, x_t, logsnr, kind)
    torch.testing.assert_close(to_x0(said, x_t, logsnr, kind), x0)
    torch.testing.assert_close(to_eps(said, x_t, logsnr, kind), eps)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_word_converts_back_too(kind, drawn):
    """The conversions are inverses for any prediction, not only for a right one."""
    _, _, logsnr, x_t = drawn
    said = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(from_x0(to_x0(said, x_t, logsnr, kind), x_t, logsnr, kind), said)


def test_v_is_the_velocity_of_diffusers(drawn):
    x0, eps, _, _ = drawn
    schedule = TabulatedSchedule.linear()
    steps = torch.arange(0, 1000, 16)[:63]
    x0, eps = x0[:63], eps[:63]
    logsnr = schedule.logsnr(schedule.time_of(steps))
    theirs = DDPMScheduler().get_velocity(x0, eps, steps)
    torch.testing.assert_close(
        from_x0(x0, diffuse(x0, eps, logsnr), logsnr, "v"), theirs, rtol=1e-5, atol=1e-5
    )


def test_diffusing_is_diffusers_adding_noise(drawn):
    x0, eps, _, _ = drawn
    schedule = TabulatedSchedule.linear()
    steps = torch.arange(0, 1000, 16)[:63]
    theirs = DDPMScheduler().add_noise(x0[:63], eps[:63], steps)
    ours = diffuse(x0[:63], eps[:63], schedule.logsnr(schedule.time_of(steps)))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_the_truth_is_zero_whatever_is_predicted(kind, drawn):
    x0, eps, logsnr, x_t = drawn
    loss = denoising_loss(from_x0(x0, x_t, logsnr, kind), x_t, eps, logsnr, kind=kind)
    torch.testing.assert_close(loss, torch.zeros(64, dtype=torch.float64))


def test_the_x0_weight_makes_it_a_loss_of_the_image(drawn):
    x0, eps, logsnr, x_t = drawn
    said = x0 + 0.1
    loss = denoising_loss(said, x_t, eps, logsnr, kind="x0", weighting="x0")
    torch.testing.assert_close(loss, torch.full((64,), 0.01, dtype=torch.float64))


def test_the_v_weight_makes_it_a_loss_of_v(drawn):
    x0, eps, logsnr, x_t = drawn
    said = from_x0(x0, x_t, logsnr, "v") + 0.1
    loss = denoising_loss(said, x_t, eps, logsnr, kind="v", weighting="v")
    torch.testing.assert_close(loss, torch.full((64,), 0.01, dtype=torch.float64))


def test_min_snr_caps_what_the_x0_weight_lets_grow():
    logsnr = torch.linspace(-8, 8, 33)
    alpha, sigma = alpha_sigma(logsnr)
    snr = (alpha / sigma) ** 2
    torch.testing.assert_close(weight(logsnr, "min_snr"), snr.clamp(max=5) / snr)
    assert weight(logsnr, "simple").tolist() == [1.0] * 33


def test_words_that_mean_nothing_are_refused(drawn):
    x0, _, logsnr, x_t = drawn
    for convert in (to_x0, to_eps, from_x0):
        with pytest.raises(ValueError, match=r"'score'.*'eps', 'v', 'x0'"):
            convert(x0, x_t, logsnr, "score")
    with pytest.raises(ValueError, match="'lognormal'"):
        weight(logsnr, "lognormal")
