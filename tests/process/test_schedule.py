import math

import pytest
import torch
from diffusers import DDPMScheduler

from pellucid.process.schedule import (
    CosineSchedule,
    LinearSchedule,
    TabulatedSchedule,
    alpha_sigma,
    levels,
    make_schedule,
    moments,
    revisit,
)

NAMES = ("linear_betas", "cosine", "linear_logsnr")
GRID = torch.linspace(0, 1, 2001, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_every_schedule_falls_strictly_and_is_finite(name):
    logsnr = make_schedule(name).logsnr(GRID)
    assert torch.isfinite(logsnr).all()
    assert (logsnr.diff() < 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_every_schedule_ends_in_noise_and_begins_nearly_clean(name):
    alpha, sigma = alpha_sigma(make_schedule(name).logsnr(GRID))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(GRID))
    assert alpha[0] > 0.9999
    assert sigma[0] < 0.011
    assert alpha[-1] < 0.01
    assert sigma[-1] > 0.9999


@pytest.mark.parametrize("made", [CosineSchedule(low=-9, high=7), LinearSchedule(low=-9, high=7)])
def test_a_schedule_given_by_its_ends_has_them(made):
    ends = made.logsnr(torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([7.0, -9.0], dtype=torch.float64))


def test_the_cosine_is_a_cosine():
    """With ends far out, t is hardly shrunk and alpha is cos(pi t / 2)."""
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    alpha, _ = alpha_sigma(CosineSchedule(low=-40, high=40).logsnr(t))
    torch.testing.assert_close(alpha, torch.cos(math.pi * t / 2))


def test_the_table_is_the_one_diffusers_has():
    ours = TabulatedSchedule.linear()
    theirs = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear").alphas_cumprod.double()
    alpha, _ = alpha_sigma(ours.logsnr(ours.time_of(torch.arange(1000))))
    torch.testing.assert_close(alpha**2, theirs, rtol=1e-5, atol=1e-8)  # theirs is a float32 product


def test_log_snr_is_linear_between_the_steps_of_a_table():
    made = TabulatedSchedule.linear(10)
    a, b = (made.logsnr(made.time_of(i)) for i in (3, 4))
    torch.testing.assert_close(made.logsnr((made.time_of(3) + made.time_of(4)) / 2), (a + b) / 2)


@pytest.mark.parametrize("betas", [(), (0.1,), (0.0, 0.1), (0.1, 1.0), (-0.1, 0.1)])
def test_a_table_that_is_none_is_refused(betas):
    with pytest.raises(ValueError, match="two or more betas"):
        TabulatedSchedule(betas)


@pytest.mark.parametrize("made", [CosineSchedule, LinearSchedule])
@pytest.mark.parametrize(("low", "high"), [(5, -5), (1, 1), (-math.inf, 5), (-5, math.nan)])
def test_ends_that_do_not_fall_are_refused(made, low, high):
    with pytest.raises(ValueError, match="has to fall"):
        made(low=low, high=high)


def test_an_unknown_schedule_names_the_known():
    with pytest.raises(ValueError, match=r"'sigmoid'.*'linear_betas', 'cosine', 'linear_logsnr'"):
        make_schedule("sigmoid")


def test_levels_fall_evenly_from_start_to_clean():
    torch.testing.assert_close(
        levels(4, start=0.8), torch.tensor([0.8, 0.6, 0.4, 0.2, 0.0], dtype=torch.float64)
    )


def test_levels_of_a_table_are_trailing_steps():
    scheduler = DDPMScheduler(num_train_timesteps=1000, timestep_spacing="trailing")
    for n in (1, 7, 50, 333, 1000):
        scheduler.set_timesteps(n)
        steps = (levels(n, table=1000)[:-1] * 1000).round().long() - 1
        assert steps.tolist() == scheduler.timesteps.tolist()


def test_levels_start_where_they_are_told_on_a_table_too():
    assert (levels(5, start=0.25, table=1000) * 1000).tolist() == [250, 200, 150, 100, 50, 0]


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"num_steps": 0}, "at least one"),
        ({"num_steps": 5, "start": 0.0}, "start is 0"),
        ({"num_steps": 5, "start": 1.5}, "start is 1.5"),
        ({"num_steps": 11, "start": 0.1, "table": 100}, "at most 10"),
    ],
)
def test_levels_that_cannot_be_walked_are_refused(kwargs, match):
    with pytest.raises(ValueError, match=match):
        levels(**kwargs)


def test_revisiting_walks_each_stretch_again():
    down = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0], dtype=torch.float64)
    assert revisit(down, jump=2, times=2).tolist() == [1, 0.75, 0.5, 1, 0.75, 0.5, 0.25, 0, 0.5, 0.25, 0]
    assert revisit(down, jump=2, times=1).tolist() == down.tolist()
    with pytest.raises(ValueError, match="1 or more"):
        revisit(down, jump=0, times=1)


def test_moments_are_spread_from_the_first_move_to_the_last():
    down = levels(10)
    assert [sorted(moments(down, k)) for k in (0, 1, 2, 4)] == [[], [0], [0, 9], [0, 3, 6, 9]]
    assert all(moments(down, k) == set(range(10)) for k in range(10, 30))
    again = revisit(down, jump=5, times=2)  # 5 moves down, 1 back up, the same 5 down; and the other half so
    assert sorted(moments(again, 64)) == [*range(6, 11), *range(17, 22)]
