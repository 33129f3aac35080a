"""Against diffusers' schedulers on the same network outputs, and against data whose denoiser is known."""

from itertools import pairwise

import pytest
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
)

from pellucid.process.guidance import clipped, guided, keep_known
from pellucid.process.predict import to_x0
from pellucid.process.samplers import SAMPLERS, ddim, ddim_step, ddpm, dpmpp_2m, heun, invert, path
from pellucid.process.schedule import TabulatedSchedule, alpha_sigma, levels, make_schedule, revisit

TABLE = TabulatedSchedule.linear()
NOISE = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def network(x, step):
    """Some eps that depends on everything, and on the discrete step as diffusers counts it."""
    return torch.tanh(0.7 * x + 0.3 * x.roll(1, -1)) * (1 - step / 3000) + 0.1 * torch.sin(3 * x)


def denoise(x, t):
    step = float((t[0] * 1000).round()) - 1
    return to_x0(network(x, step), x, TABLE.logsnr(t), "eps")


def rng():
    return torch.Generator().manual_seed(11)


def theirs(scheduler, n, **options):
    # a product of 1,000 float32 factors is off by 1e-5 by itself, and 1,000 steps make more of it
    scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)
    scheduler.set_timesteps(n)
    x = NOISE
    for step in scheduler.timesteps:
        x = scheduler.step(network(x, float(step)), step, x, **options).prev_sample
    return x


@pytest.mark.parametrize("n", [1, 5, 50, 1000])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim_agrees_with_diffusers(n, eta):
    scheduler = DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    ours = ddim(denoise, NOISE, levels(n, table=1000), TABLE, eta=eta, rng=rng())
    torch.testing.assert_close(ours, theirs(scheduler, n, eta=eta, generator=rng()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [1, 5, 50, 1000])
def test_inversion_agrees_with_diffusers(n):
    scheduler = DDIMInverseScheduler(timestep_spacing="trailing", clip_sample=False)
    ours = invert(denoise, NOISE, levels(n, table=1000).flip(0), TABLE)
    torch.testing.assert_close(ours, theirs(scheduler, n), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [1, 5, 50, 1000])
def test_ddpm_agrees_with_diffusers(n):
    scheduler = DDPMScheduler(timestep_spacing="trailing", clip_sample=False)
    ours = ddpm(denoise, NOISE, levels(n, table=1000), TABLE, rng=rng())
    torch.testing.assert_close(ours, theirs(scheduler, n, generator=rng()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [2, 5, 50])
def test_dpmpp_agrees_with_diffusers(n):
    scheduler = DPMSolverMultistepScheduler(
        beta_schedule="linear", timestep_spacing="trailing", final_sigmas_type="zero"
    )
    ours = dpmpp_2m(denoise, NOISE, levels(n, table=1000), TABLE)
    torch.testing.assert_close(ours, theirs(scheduler, n), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [5, 20, 50])
def test_heun_agrees_with_diffusers(n):
    """Their scheduler walks in y = x / alpha, up to 157, in float32; at 2 steps that rounding shows."""
    scheduler = HeunDiscreteScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", timestep_spacing="trailing"
    )
    scheduler.set_timesteps(n)
    y = NOISE * (1 + scheduler.sigmas[0].double() ** 2).sqrt()
    for step in scheduler.timesteps:
        x = scheduler.scale_model_input(y, step)
        y = scheduler.step(network(x, float(step)), step, y).prev_sample
    ours = heun(denoise, NOISE, levels(n, table=1000), TABLE)
    torch.testing.assert_close(ours, y, rtol=1e-5, atol=1e-5)


# ---- data x0 ~ N(MEAN, STD^2), whose best denoiser is a line

MEAN, STD = 0.4, 0.3


def gaussian(schedule):
    def best(x, t):
        alpha, sigma = (v[0].to(x.dtype) for v in alpha_sigma(schedule.logsnr(t)))
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        return MEAN + gain * (x - alpha * MEAN)

    return best


@pytest.mark.parametrize("name", ["linear_betas", "cosine", "linear_logsnr"])
@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_gaussian_data_comes_out_with_its_mean_and_variance(sampler, name):
    schedule = make_schedule(name)
    x = torch.randn(40_000, 1, generator=rng(), dtype=torch.float64)
    n = 1000 if sampler == "ddpm" else 200  # the posterior's variance is exact only for many small moves
    out = SAMPLERS[sampler](gaussian(schedule), x, levels(n), schedule, rng=rng())
    assert out.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert out.std().item() == pytest.approx(STD, rel=0.03)


@pytest.mark.parametrize("sampler", [ddim, heun, dpmpp_2m])
def test_a_deterministic_sampler_follows_the_flow_of_gaussian_data(sampler):
    """The probability flow keeps each x at its own quantile: (x_t - alpha MEAN) / std_t does not change."""
    schedule = make_schedule("cosine")
    now = path(levels(1), schedule)[0]
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    exact = MEAN + STD * (x - now.alpha * MEAN) / (now.alpha**2 * STD**2 + now.sigma**2) ** 0.5
    errors = [
        (sampler(gaussian(schedule), x, levels(n), schedule) - exact).abs().max().item() for n in (50, 200)
    ]
    assert errors[1] < 0.01
    assert errors[1] < errors[0]


def test_second_order_beats_first_at_equal_looks():
    schedule = make_schedule("cosine")
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    exact = ddim(gaussian(schedule), x, levels(20_000), schedule)
    error = {
        name: (SAMPLERS[name](gaussian(schedule), x, levels(n), schedule) - exact).abs().max().item()
        for name, n in (("ddim", 40), ("heun", 20), ("dpmpp_2m", 40))
    }
    assert error["heun"] < error["ddim"]
    assert error["dpmpp_2m"] < error["ddim"]


# ---- inversion


def test_inverting_and_sampling_returns_the_image():
    schedule = make_schedule("cosine")
    x0 = torch.linspace(-0.5, 1.2, 9, dtype=torch.float64)[:, None]
    down = levels(50, start=0.9)
    noise = invert(gaussian(schedule), x0, down.flip(0), schedule, iterations=40)
    torch.testing.assert_close(ddim(gaussian(schedule), noise, down, schedule), x0)


def test_one_iteration_inverts_in_the_limit_of_many_levels():
    schedule = make_schedule("cosine")
    x0 = torch.linspace(-0.5, 1.2, 9, dtype=torch.float64)[:, None]
    errors = []
    for n in (50, 400):
        noise = invert(gaussian(schedule), x0, levels(n).flip(0), schedule)
        errors.append((ddim(gaussian(schedule), noise, levels(n), schedule) - x0).abs().max().item())
    assert errors[1] < errors[0] / 4


# ---- what every sampler promises


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_a_sampler_lands_on_its_last_look_and_reports_each(sampler):
    seen = []
    out = SAMPLERS[sampler](
        denoise, NOISE, levels(6, table=1000), TABLE, rng=rng(), on_step=lambda *a: seen.append(a)
    )
    assert [i for i, *_ in seen] == list(range(6))
    assert [t for _, t, *_ in seen] == pytest.approx(levels(6, table=1000)[:-1].tolist())
    torch.testing.assert_close(seen[0][2], NOISE)
    torch.testing.assert_close(out, seen[-1][3])


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_one_seed_gives_one_picture(sampler):
    walk = levels(5, table=1000)
    first, again = (SAMPLERS[sampler](denoise, NOISE, walk, TABLE, rng=rng()) for _ in range(2))
    assert torch.equal(first, again)


def test_noise_without_a_generator_is_refused():
    for sampler, options in ((ddpm, {}), (ddim, {"eta": 0.5})):
        with pytest.raises(ValueError, match="needs rng"):
            sampler(denoise, NOISE, levels(3), TABLE, **options)


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_outside_its_range_is_refused(eta):
    with pytest.raises(ValueError, match=f"eta is {eta}"):
        ddim(denoise, NOISE, levels(3), TABLE, eta=eta, rng=rng())


@pytest.mark.parametrize(
    ("walk", "match"),
    [
        ([0.0, 0.5], "nothing to sample"),
        ([1.0, 1.0, 0.0], "from t = 1 to 1"),
        ([1.2, 0.0], "from 0 to 1"),
        ([1.0], "two times or more"),
    ],
)
@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_levels_that_make_no_sense_are_refused(sampler, walk, match):
    with pytest.raises(ValueError, match=match):
        SAMPLERS[sampler](denoise, NOISE, torch.tensor(walk), TABLE, rng=rng())


@pytest.mark.parametrize("sampler", [heun, dpmpp_2m])
def test_only_first_order_samplers_go_back_up(sampler):
    with pytest.raises(ValueError, match="they fall at each step"):
        sampler(denoise, NOISE, torch.tensor([1.0, 0.5, 0.8, 0.0]), TABLE)
    with pytest.raises(ValueError, match="increase"):
        invert(denoise, NOISE, torch.tensor([0.0, 0.5, 0.3]), TABLE)


def test_going_back_up_keeps_the_law_of_the_data():
    schedule = make_schedule("cosine")
    x = torch.randn(40_000, 1, generator=rng(), dtype=torch.float64)
    walk = revisit(levels(400), jump=50, times=3)
    out = ddpm(gaussian(schedule), x, walk, schedule, rng=rng())
    assert out.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert out.std().item() == pytest.approx(STD, rel=0.05)


# ---- guidance


def test_guidance_is_the_same_on_x0_and_on_eps():
    t = torch.full((3,), 0.4, dtype=torch.float64)
    logsnr = TABLE.logsnr(t)
    other = lambda x, t: to_x0(torch.cos(x), x, TABLE.logsnr(t), "eps")
    ours = guided(denoise, other, 3.0)(NOISE, t)
    eps = torch.cos(NOISE) + 3.0 * (network(NOISE, 399.0) - torch.cos(NOISE))
    torch.testing.assert_close(ours, to_x0(eps, NOISE, logsnr, "eps"))
    assert guided(denoise, other, 1.0) is denoise
    torch.testing.assert_close(guided(denoise, other, 0.0)(NOISE, t), other(NOISE, t))


def test_clipping_keeps_the_range():
    t = torch.ones(3, dtype=torch.float64)
    assert denoise(NOISE * 3, t).abs().max() > 1
    assert clipped(denoise)(NOISE * 3, t).abs().max() <= 1


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_what_is_known_is_kept_exactly(sampler):
    known = NOISE.tanh()
    keep = torch.zeros(3, 1, 4, 4, dtype=torch.float64)
    keep[..., :2] = 1
    held = keep_known(clipped(denoise), known, keep, TABLE, rng())
    out = SAMPLERS[sampler](held, NOISE.flip(0), levels(8, table=1000), TABLE, rng=rng())
    assert torch.equal(out[..., :2], known[..., :2])
    assert (out[..., 2:] - known[..., 2:]).abs().max() > 0.1


def test_single_moves_make_the_same_walk():
    x = NOISE
    walk = levels(7, table=1000)
    for now, then in pairwise(path(walk, TABLE)):
        x = ddim_step(x, denoise(x, now.times(x)), now, then)
    assert torch.equal(x, ddim(denoise, NOISE, walk, TABLE))
