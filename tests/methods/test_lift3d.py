"""Candidates and their sectors, who wins and who learns from it, and a coloured cube whose rays are known exactly."""

import math
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F

from pellucid.cameras import angle_between, angles_of, apart, on_sphere, pixels, rays
from pellucid.data.catalog import open_data
from pellucid.data.views import Scene
from pellucid.methods.base import CollapseError
from pellucid.methods.baselines.nerf import NeRF, NeRFConfig
from pellucid.methods.lift3d.method import Lift3D
from pellucid.methods.lift3d.poses import Candidates, Poses, Single, moved, sectors
from pellucid.methods.radiance import FOCAL_RATE, ViewConfig, chosen_rays, telling_rays
from pellucid.nets.nerf import Baked, FieldConfig, Space, make_field, render
from pellucid.process.samplers import ddim_step, path
from pellucid.process.schedule import TabulatedSchedule, alpha_sigma, levels
from pellucid.recipes import DataSpec, build, changed, recipe
from pellucid.train.trainer import TrainingError, train
from pellucid.types import Batch

SPHERE = {"low": -math.pi / 2, "high": math.pi / 2}
SPEC = DataSpec(spec="views-boxes", size=16, count=4)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(n, 3, 16, 16, generator=rng(seed)) * 2 - 1


def lift(name="lift3d", *, imagined=0, **poses):
    """A tiny model whose field is no fog and whose candidates differ from picture to picture."""
    made = recipe(name, "tiny", SPEC)
    config = replace(made.config, poses=replace(made.config.poses, **poses), imagined=imagined)
    torch.manual_seed(3)
    method = build(replace(made, config=config))
    for p in method.parameters():
        p.data += 0.3 * torch.randn(p.shape)
    return method


# ---- sectors


def solid(sector: torch.Tensor) -> torch.Tensor:
    (first, last), (low, high) = sector.double()
    return (last - first) * (high.sin() - low.sin())


def test_eight_of_the_whole_sphere_are_its_octants():
    found = sectors(8, **SPHERE)
    quarter = math.pi / 2
    expected = [
        [[k * quarter, (k + 1) * quarter], span]
        for span in ([-quarter, 0.0], [0.0, quarter])
        for k in range(4)
    ]
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize(("low", "high"), [(-90, 90), (0, 90), (-30, 45), (10, 12), (80, 90)])
def test_sectors_share_the_band_out_evenly_and_leave_nothing(low, high):
    band = {"low": math.radians(low), "high": math.radians(high)}
    whole = 2 * math.pi * (math.sin(band["high"]) - math.sin(band["low"]))
    height = torch.rand(2000, generator=rng(), dtype=torch.float64)
    elevation = torch.asin(math.sin(band["low"]) + height * (math.sin(band["high"]) - math.sin(band["low"])))
    azimuth = 2 * math.pi * torch.rand(2000, generator=rng(1), dtype=torch.float64)
    for m in range(1, 31):
        found = sectors(m, **band)
        assert found.shape == (m, 2, 2)
        areas = torch.stack([solid(s) for s in found])
        torch.testing.assert_close(areas, torch.full_like(areas, whole / m), rtol=1e-4, atol=1e-6)
        (first, last), (bottom, top) = found.double().permute(1, 2, 0)
        turned = (azimuth[:, None] - first) % (2 * math.pi) < last - first
        inside = turned & (elevation[:, None] >= bottom) & (elevation[:, None] < top)
        hit = inside.sum(1)
        assert (hit <= 1).double().mean() == 1
        assert (hit == 1).double().mean() > 0.998  # but for the rounding of borders


@pytest.mark.parametrize(("m", "low", "high"), [(0, -1.0, 1.0), (4, 1.0, 0.5), (4, -2.0, 0.0)])
def test_bands_that_are_none_are_refused(m, low, high):
    with pytest.raises(ValueError, match="at least one, and"):
        sectors(m, low=low, high=high)


# ---- heads


def candidates(m: int = 12, *, overlap: float = 0.25, loud: float = 1.0, **band) -> Candidates:
    torch.manual_seed(0)
    made = Candidates(7, m, radius=2.5, overlap=overlap, hidden=9, **(band or SPHERE))
    for p in made.parameters():
        p.data.normal_(std=loud)
    return made.double()


@pytest.mark.parametrize("m", [1, 5, 8, 12])
@pytest.mark.parametrize("loud", [1.0, 100.0])
def test_a_candidate_stays_in_its_sector_whatever_comes(m, loud):
    band = {"low": 0.1, "high": math.pi / 2}
    head = candidates(m, loud=loud, **band)
    poses = head(torch.randn(64, 7, generator=rng(), dtype=torch.float64))
    assert poses.cameras.shape == (64, m, 4, 4)
    assert poses.scores.shape == (64, m)
    cameras = poses.cameras
    torch.testing.assert_close(
        cameras[..., :3, 3], 2.5 * cameras[..., :3, 2]
    )  # at the radius, towards the origin
    azimuth, elevation = angles_of(cameras)
    (first, last), (bottom, top) = sectors(m, **band).double().permute(1, 2, 0)
    wide, tall = 0.25 * (last - first), 0.25 * (top - bottom)
    assert (elevation >= (bottom - tall).clamp(*band.values()) - 1e-6).all()
    assert (elevation <= (top + tall).clamp(*band.values()) + 1e-6).all()
    sure = elevation < math.pi / 2 - 1e-4  # at the pole itself a place has no azimuth
    turned = (azimuth - (first - wide) + 1e-6) % (2 * math.pi)
    assert (turned <= last - first + 2 * wide + 2e-6)[sure].all()


def test_candidates_begin_in_the_middle_of_their_sectors():
    head = Candidates(7, 12, low=0.0, high=math.pi / 2, radius=3.0, overlap=0.0, hidden=9)
    cameras = head(torch.randn(2, 7, generator=rng())).cameras
    middle = sectors(12, low=0.0, high=math.pi / 2).mean(2)
    torch.testing.assert_close(cameras, on_sphere(middle[:, 0], middle[:, 1], 3.0).expand(2, -1, -1, -1))


@pytest.mark.parametrize("m", [1, 3, 8])
def test_gradients_of_candidates_are_right_to_the_poles(m):
    """With a saturated offset the camera stands at the very pole."""
    head = candidates(m)
    x = torch.randn(2, 7, generator=rng(), dtype=torch.float64).requires_grad_()
    assert gradcheck(lambda h: head(h).cameras, (x,))
    head.offsets.weight.data.zero_()
    head.offsets.bias.data.fill_(60.0)
    _, elevation = angles_of(head(x).cameras)
    assert elevation.max() > math.pi / 2 - 1e-6
    assert gradcheck(lambda h: head(h).cameras, (x,))
    (head(x).cameras.sum() + head(x).scores.sum()).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_one_camera_begins_where_it_was_told_and_its_gradient_is_right_there():
    first = on_sphere(torch.tensor(0.3), torch.tensor(0.4), 3.0)
    head = Single(7, first=first, hidden=9).double()
    x = torch.randn(2, 7, generator=rng(), dtype=torch.float64).requires_grad_()
    torch.testing.assert_close(head(x).cameras[:, 0], first.double().expand(2, -1, -1))
    move = torch.zeros(2, 6, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda m: moved(first.double(), m), (move,))
    head.move.weight.data.normal_()
    assert gradcheck(lambda h: head(h).cameras, (x,))


def test_poses_keep_their_digits_under_autocast():
    method, x, t = lift(), pictures(3), torch.full((3,), 0.2)
    method.encoder.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        cameras = method.posed(x, t).cameras
    assert cameras.dtype == torch.float32
    turn = cameras[..., :3, :3]
    torch.testing.assert_close(turn @ turn.transpose(-1, -2), torch.eye(3).expand_as(turn), atol=1e-5, rtol=0)
    single = build(recipe("lift3d-single", "tiny", SPEC))
    single.poses.move.weight.data.normal_()
    with torch.autocast("cpu", torch.bfloat16):
        turn = single.posed(x, t).cameras[..., :3, :3]
    torch.testing.assert_close(turn @ turn.transpose(-1, -2), torch.eye(3).expand_as(turn), atol=1e-5, rtol=0)


# ---- the winner, and who learns


def test_the_winner_is_the_best_of_whole_renderings_where_all_rays_are_asked_for():
    method = lift(pick_rays=256, pick_samples=12)
    x0 = pictures(5)
    cameras = method.posed(x0, torch.full((5,), 0.3)).cameras.detach()
    found = method.winners(cameras, x0, rng())
    errors = torch.empty(5, 12)
    for i in range(5):
        for k in range(12):
            seen = method.seen(cameras[i, k][None], pixels(16), 12, None).colour
            errors[i, k] = (seen - x0[i].flatten(1).T).square().mean()
    assert torch.equal(found, errors.argmin(1))
    assert len(found.unique()) > 1
    hidden = method.winners(cameras[:, found[0] :], x0, rng())[
        0
    ]  # whoever is left out, the best of the others wins
    assert hidden == 0


def test_the_winner_is_the_camera_that_took_the_picture():
    method = lift(pick_rays=100, pick_samples=12)
    azimuth = torch.linspace(0, 2 * math.pi, 31)[:30]
    method.field = solids()
    true = torch.arange(30)
    cameras = on_sphere(azimuth, 0.5 + 0.3 * azimuth.cos(), 3.0)
    x0 = method.pictures(cameras)[0]
    shuffled = torch.stack([torch.randperm(30, generator=rng(i)) for i in range(30)])
    found = method.winners(cameras[shuffled], x0, rng())
    assert (shuffled.gather(1, found[:, None])[:, 0] == true).float().mean() > 0.95
    assert not found.requires_grad


def solids(**changes):
    """A field of lumps of several colours, all different from all sides."""
    field = make_field(FieldConfig(grids=(4,), features=4, width=4, depth=1, **changes))
    torch.manual_seed(5)
    for p in field.parameters():
        p.data.normal_(std=1.5)
    return field


def test_losers_learn_nothing_and_scores_learn_from_who_won_alone():
    method = lift()
    heard = {}
    inner = method.poses.forward

    def listening(h):
        poses = inner(h)
        poses.cameras.retain_grad()
        poses.scores.retain_grad()
        return heard.setdefault("poses", poses)

    method.poses.forward = listening
    won = []
    pick = method.winners
    method.winners = lambda *given: won.append(pick(*given)) or won[-1]
    stage = method.stages()[0]
    ((players, terms),) = list(stage.losses(Batch(x0=pictures(6)), rng()))
    assert set(players) == set(stage.players)
    poses, (best,) = heard["poses"], won
    terms["denoise"].backward(retain_graph=True)
    got = poses.cameras.grad.flatten(2).abs().sum(2)
    lost = ~F.one_hot(best, 12).bool()
    assert (got[lost] == 0).all()
    assert (got[~lost] > 0).all()
    assert poses.scores.grad is None
    before = poses.cameras.grad.clone()
    terms["scores"].backward()
    assert torch.equal(poses.cameras.grad, before)
    expected = 0.1 * (poses.scores.softmax(1) - F.one_hot(best, 12)).detach() / 6
    torch.testing.assert_close(poses.scores.grad, expected)


def test_offsets_of_candidates_that_never_win_stay_where_they_are():
    method = lift()
    stage = method.stages()[0]
    method.winners = lambda cameras, x0, rng: torch.full((len(x0),), 5)
    ((_, terms),) = list(stage.losses(Batch(x0=pictures(4)), rng()))
    terms["denoise"].backward()
    for grad in (method.poses.offsets.weight.grad, method.poses.offsets.bias.grad):
        rows = grad.unflatten(0, (12, 2))
        assert rows[5].any()
        assert rows[torch.arange(12) != 5].abs().max() == 0
    assert method.poses.scores.weight.grad is None


def test_one_camera_has_no_classifier():
    method = lift("lift3d-single")
    stage = method.stages()[0]
    ((_, terms),) = list(stage.losses(Batch(x0=pictures(2)), rng()))
    assert set(terms) == {"denoise"}
    assert method.readouts["scores"].shape == (1,)


def test_an_autoencoder_sees_no_noise():
    said = []
    for noisy in (True, False):
        method = lift("lift3d" if noisy else "lift3d-clean")
        seen = []
        inner = method.posed
        method.posed = lambda x, t, seen=seen, inner=inner: (seen.append((x, t)), inner(x, t))[1]
        x0 = pictures(4)
        list(method.stages()[0].losses(Batch(x0=x0), rng()))
        ((x, t),) = seen
        said.append(torch.equal(x, x0))
        assert bool((t > 0).all()) == noisy
        assert (t <= 1).all()
        torch.testing.assert_close(t * 100, (t * 100).round())
    assert said == [False, True]


# ---- rays of pictures


def test_chosen_rays_see_the_pixels_that_lie_there():
    x0 = pictures(3)
    at, there = chosen_rays(x0, 40, rng())
    again = F.grid_sample(x0, at[:, None] * 2 - 1, mode="nearest", align_corners=False)[:, :, 0].transpose(
        1, 2
    )
    assert torch.equal(there, again)


@pytest.mark.parametrize("background", ["white", "black", "none"])
def test_telling_rays_are_unbiased_and_closer_where_there_is_something(background):
    behind = {"white": 1.0, "black": -1.0, "none": 0.0}[background]
    x0 = torch.full((400, 3, 16, 16), behind)
    x0[:, :, 4:9, 6:12] = 0.3
    at, there, weights = telling_rays(x0, 20, background, rng())
    assert at.shape == (400, 20, 2)
    again = F.grid_sample(x0, at[:, None] * 2 - 1, mode="nearest", align_corners=False)[:, :, 0].transpose(
        1, 2
    )
    assert torch.equal(there, again)
    torch.testing.assert_close(weights.sum(1).mean(), torch.ones(()), atol=0.02, rtol=0)
    of = lambda v: (v[..., 0] * 3).sin() + v[..., 1]
    torch.testing.assert_close((weights * of(at)).sum(1).mean(), of(pixels(16)).mean(), atol=0.02, rtol=0)
    share = (there[..., 0] == 0.3).float().mean()
    assert (share > 0.2) == (background != "none")
    at, there, weights = telling_rays(x0, 256, background, rng())
    assert torch.equal(at[0], pixels(16))
    torch.testing.assert_close(weights.sum(1), torch.ones(400))
    blank = telling_rays(torch.full((2, 3, 16, 16), behind), 9, background, rng())
    assert all(v.isfinite().all() for v in blank)


def test_a_field_on_a_grid_is_the_field_at_its_points():
    field = solids().double()
    line = torch.linspace(-1, 1, 9, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1).view(-1, 3)
    inside = points.norm(dim=1) <= 1
    for ball in (True, False):
        baked = Baked(field, 9, ball=ball)
        for ours, theirs in zip(baked(points, points), field(points, points), strict=True):
            torch.testing.assert_close(ours[inside], theirs[inside])
            assert torch.allclose(ours, theirs) == (not ball)
    middle = torch.tensor([[0.125, 0.125, 0.125]], dtype=torch.float64)
    about = torch.cartesian_prod(*[line[4:6]] * 3)
    torch.testing.assert_close(baked(middle, middle)[0], field(about, about)[0].mean()[None])


# ---- the schedule, reading, collapse


def test_a_hundred_steps_end_in_noise():
    method = lift()
    assert method.schedule.steps == 100
    alpha, _ = alpha_sigma(method.schedule.logsnr(torch.ones(1, dtype=torch.float64)))
    assert alpha.square().item() < 1e-3
    unscaled, _ = alpha_sigma(TabulatedSchedule.linear(100).logsnr(torch.ones(1, dtype=torch.float64)))
    assert unscaled.square().item() == pytest.approx(0.36, abs=0.01)


def test_reading_is_a_function_of_the_picture_and_the_generator():
    method, x = lift().eval(), pictures(2)
    one, two, other = (method.read(x, rng(seed)) for seed in (4, 4, 5))
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["scores"], other["scores"])
    camera = one["camera"].view(2, 4, 4)
    torch.testing.assert_close(camera[:, :3, 3].norm(dim=1), torch.full((2,), 3.0))


def test_a_view_of_a_picture_is_rendered_from_the_camera_that_was_read():
    method, x = lift().eval(), pictures(2)
    made = method.sample(2, rng(), image=x)
    cameras = made.readouts["camera"].view(2, 4, 4)
    torch.testing.assert_close(made.images, method.sample(2, rng(), cameras=cameras).images)
    with pytest.raises(ValueError, match="cameras does too"):
        method.sample(2, rng(), image=x, cameras=cameras)


def test_a_drawn_view_is_what_the_field_shows_from_its_camera():
    method = lift().eval()
    made = method.sample(2, rng(), num_steps=3)
    again = method.sample(2, rng(), cameras=made.readouts["camera"].view(2, 4, 4))
    torch.testing.assert_close(made.images, again.images)
    assert made.readouts["scores"].argmax(1).shape == (2,)


@torch.no_grad()
def test_the_views_and_cameras_kept_are_those_of_every_pass():
    """Against the sampler's moves, made one by one."""
    method = lift().eval()
    made = method.sample(2, rng(7), num_steps=5, snapshots=64)
    x = torch.randn(2, *method.image_shape, generator=rng(7))
    walk = path(levels(5, table=100), method.schedule)
    for (now, then), (t, state) in zip(pairwise(walk), made.trace, strict=True):
        poses = method.posed(x, now.times(x))
        cameras = state.readouts["camera"].view(2, 4, 4)
        assert t == now.t
        torch.testing.assert_close(cameras, method.best(poses))
        torch.testing.assert_close(state.readouts["scores"], poses.scores.softmax(1))
        seen, depth, opacity = method.pictures(cameras)
        assert torch.equal(state.images, seen)
        assert torch.equal(state.readouts["depth"], depth)
        assert torch.equal(state.readouts["opacity"], opacity)
        x = ddim_step(x, seen, now, then)
    assert len({tuple(s.readouts["camera"].flatten().tolist()) for _, s in made.trace}) == 5
    without = method.sample(2, rng(7), num_steps=5)
    assert not without.trace
    for other in (made.trace[-1][1], without):
        assert torch.equal(made.images, other.images)
        assert all(torch.equal(made.readouts[k], other.readouts[k]) for k in made.readouts)


def test_views_on_the_way_are_as_large_as_the_last():
    method = lift().eval()
    made = method.sample(2, rng(), num_steps=5, snapshots=3, render_size=20)
    assert [t for t, _ in made.trace] == sorted((t for t, _ in made.trace), reverse=True)
    assert [s.images.shape for _, s in made.trace] == [(2, 3, 20, 20)] * 3
    assert torch.equal(made.trace[-1][1].images, made.images)


@pytest.mark.parametrize("told", ["cameras", "image"])
def test_nothing_is_kept_on_the_way_where_there_is_none(told):
    method = lift().eval()
    given = {"cameras": method.around(1), "image": pictures(1)}[told]
    with pytest.raises(ValueError, match=f"snapshots is 2.*{told} says"):
        method.sample(1, rng(), snapshots=2, **{told: given})


def seeing(name):
    """A tiny model whose field is no fog, and a few cameras."""
    torch.manual_seed(5)
    method = build(recipe(name, "tiny", SPEC)).eval()
    for p in method.field.parameters():
        p.data += 0.3 * torch.randn(p.shape)
    return method, method.around(2)


def maps(sample):
    """Everything that a sample has at each pixel."""
    return [sample.images, *(v for k, v in sample.readouts.items() if k in ("depth", "opacity"))]


@pytest.mark.parametrize("name", ["lift3d", "lift3d-forward", "nerf"])
def test_a_wide_view_has_the_square_one_in_its_middle_and_a_narrow_one_is_its_middle(name):
    method, cameras = seeing(name)
    view = lambda **more: maps(method.sample(2, rng(), cameras=cameras, render_size=12, **more))
    square, wide, narrow = view(), view(render_width=20), view(render_width=8)
    assert square[0].std() > 0.01
    for whole, more, less in zip(square, wide, narrow, strict=True):
        assert more.shape == (*whole.shape[:-1], 20)
        torch.testing.assert_close(more[..., 4:16], whole)
        torch.testing.assert_close(less, whole[..., 2:10])


@pytest.mark.parametrize("name", ["lift3d", "nerf"])
def test_twice_the_focal_length_shows_the_middle_twice_as_large(name):
    method, cameras = seeing(name)
    view = lambda **more: maps(method.sample(2, rng(), cameras=cameras, **more))
    near = view(render_size=12, render_width=6, render_focal=2 * method.focal.item())
    for far, middle in zip(view(render_size=24), near, strict=True):
        torch.testing.assert_close(middle, far[..., 6:18, 9:15], atol=1e-5, rtol=1e-5)


def test_a_collapse_is_said_after_patience_alone():
    method = lift()
    stage = method.stages()[0]
    patience = method.config.patience

    def after(step, *usage):
        method.usage.copy_(torch.tensor(usage))
        stage.seen.append(torch.cat([method.usage, method.course]))
        stage.after_step(step)

    one = (0.97, *[0.03 / 11] * 11)
    after(patience - 2, *one)
    with pytest.raises(CollapseError, match=r"one camera of 12 \(1\.\d in use\).*poses\.score_weight.*0\.1"):
        after(patience - 1, *one)
    after(patience + 5, *[1 / 12] * 12)
    after(patience + 6, 0.5, 0.5, *[0.0] * 10)


@pytest.mark.parametrize(
    ("course", "said"), [((0.99, 0.19, 0.2), True), ((0.9, 0.19, 0.2), False), ((0.99, 0.1, 0.2), False)]
)
def test_a_classifier_that_is_certain_of_nothing_is_said(course, said):
    method = lift()
    stage = method.stages()[0]
    method.course.copy_(torch.tensor(course))
    stage.seen.append(torch.cat([method.usage, method.course]))
    said_so = pytest.raises(
        CollapseError, match=r"certain .*99%.*error 0\.19.*spread 0\.2.*poses\.score_weight"
    )
    with said_so if said else nullcontext():
        stage.after_step(method.config.patience)


def test_the_spread_is_the_error_of_the_mean_picture():
    """Over many batches, the error of one picture for all views: their mean is the best such."""
    method = lift()
    stage = method.stages()[0]
    x = pictures(64)
    for i in range(400):
        rows = torch.randint(len(x), (4,), generator=rng(i))
        list(stage.losses(Batch(x0=x[rows]), rng(i)))
    spread = torch.stack(stage.seen)[:, -1].mean()
    torch.testing.assert_close(spread, (x - x.mean(0)).square().mean(), rtol=0.05, atol=0)


def test_use_is_that_of_the_batch_however_many_parts_it_comes_in():
    whole, parts = lift(), lift()
    a, b = whole.stages()[0], parts.stages()[0]
    won = torch.eye(12)[[0, 1, 1, 5]]
    with_course = lambda use: torch.cat([use, torch.zeros(3)])
    a.seen.append(with_course(won.mean(0)))
    b.seen += [with_course(won[:2].mean(0)), with_course(won[2:].mean(0))]
    a.after_step(0), b.after_step(0)
    torch.testing.assert_close(whole.usage, parts.usage)


def test_use_is_followed_by_who_wins():
    method = lift()
    stage = method.stages()[0]
    method.winners = lambda cameras, x0, rng: torch.full((len(x0),), 3)
    for i in range(300):
        ((_, terms),) = list(stage.losses(Batch(x0=pictures(1)), rng(i)))
        stage.after_step(i)
    assert method.usage[3] > 0.99
    torch.testing.assert_close(method.usage.sum(), torch.ones(()))
    assert terms["_used"] < 1.1


def test_what_a_run_continues_with_is_in_the_weights():
    held = lift().state_dict()
    assert {"usage", "course", "field.opened", "log_focal"} <= set(held)
    made = recipe("lift3d", "tiny", SPEC)
    config = replace(made.config, view=replace(made.config.view, occupied=1, opens=10))
    method = build(replace(made, config=config))
    method.after_views(4)
    assert method.state_dict()["field.opened"] == 0.5
    assert method.state_dict()["occupancy.peak"].isfinite().all()


# ---- fields that are told their cameras, or learn them


def cube_pixels(origins: torch.Tensor, directions: torch.Tensor, half: float = 0.5) -> torch.Tensor:
    """What rays (R, 3) see of a cube with a colour for each of its sides, on white: by slabs, exactly."""
    a, b = (-half - origins) / directions, (half - origins) / directions
    near, far = torch.minimum(a, b), torch.maximum(a, b)
    enter, axis = near.max(1)
    hit = enter < far.min(1).values
    side = 2 * axis + (directions.gather(1, axis[:, None])[:, 0] < 0).long()
    colours = torch.tensor([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, -1], [-1, 1, 1], [1, -1, 1]]) * 0.8
    return torch.where(hit[:, None], colours[side], 1.0)


def cube(n: int, size: int = 20, seed: int = 0) -> Batch:
    turned = torch.rand(n, generator=rng(seed)) * 6.28 + 1e-3
    up = (torch.rand(n, generator=rng(seed + 1)) - 0.5) * 2.4
    cameras = on_sphere(turned, up, 3.0)
    seen = cube_pixels(*(v.flatten(0, 1) for v in rays(cameras, 1.4, pixels(size))))
    x0 = seen.view(n, size, size, 3).permute(0, 3, 1, 2).contiguous()
    return Batch(x0=x0, index=torch.arange(n), truth={"camera": cameras, "focal": torch.full((n,), 1.4)})


VIEW = ViewConfig(
    field=FieldConfig(width=32, depth=1, grids=(8, 16), features=4, first_density=0.5),
    rays=96,
    samples=24,
    fine_samples=48,
)


def fitted(batch: Batch, config: NeRFConfig, steps: int) -> NeRF:
    torch.manual_seed(0)
    method = NeRF(config)
    stage = method.stages()[0]
    optimizers = [torch.optim.Adam(ps, 2e-2) for ps in stage.players.values()]
    for step in range(steps):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 2e-2 * min(1, 2 * (1 - step / steps))
        rows = torch.randint(len(batch), (8,), generator=rng(step))
        ((_, terms),) = list(stage.losses(batch.map(lambda v, rows=rows: v[rows]), rng(step)))
        terms["colour"].backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        stage.after_step(step)
    return method.eval()


def psnr(method: NeRF, batch: Batch) -> float:
    seen = method.sample(len(batch), rng(), cameras=batch.truth["camera"]).images
    return float(10 * torch.log10(4 / (seen - batch.x0).square().mean()))


def test_a_field_that_knows_its_cameras_learns_a_cube():
    """Cameras of other pictures teach no more than the mean of all."""
    train, new = cube(30), cube(6, seed=7)
    config = NeRFConfig(size=20, view=VIEW)
    known = psnr(fitted(train, config, 350), new)
    mixed = replace(train, truth=train.truth | {"camera": train.truth["camera"].roll(7, 0)})
    assert known > 19
    assert known > psnr(fitted(mixed, config, 120), new) + 6


def test_learned_cameras_are_those_of_the_pictures_that_a_batch_names():
    config = NeRFConfig(size=20, view=VIEW, poses="learned", views=30)
    method = NeRF(config)
    torch.testing.assert_close(method.cameras(torch.tensor([3, 9])), method.first.expand(2, 4, 4))
    batch = cube(30).map(lambda v: v[[4, 17, 4]])
    stage = method.stages()[0]
    method.field.density.weight.data.normal_()
    for p in method.field.layers.parameters():
        p.data.normal_()
    ((players, terms),) = list(stage.losses(batch, rng()))
    assert set(players) == {"field", "poses"}
    terms["colour"].backward()
    moved_ = method.moves.grad.abs().sum(1)
    assert moved_.nonzero()[:, 0].tolist() == [4, 17]
    with pytest.raises(ValueError, match="which these are"):
        list(stage.losses(replace(batch, index=None), rng()))


def test_learned_cameras_find_back_from_a_small_turn():
    """The field is known and stays; the cameras begin a few degrees off."""
    train = cube(4)
    known = fitted(cube(30), NeRFConfig(size=20, view=VIEW), 120)
    method = NeRF(NeRFConfig(size=20, view=VIEW, poses="learned", views=4))
    method.field = known.field
    start = method.first
    with torch.no_grad():  # every picture is seen from where learned cameras begin, but for a turn
        off = torch.tensor([[0.03, -0.05, 0.04, 0, 0, 0]]).repeat(4, 1)
        seen = cube_pixels(*(v.flatten(0, 1) for v in rays(start.expand(4, 4, 4), 1.4, pixels(20))))
        x0 = seen.view(4, 20, 20, 3).permute(0, 3, 1, 2).contiguous()
        method.moves.copy_(off)
    optimizer, (stage,) = torch.optim.Adam([method.moves], 3e-3), method.stages()
    apart = lambda: float(
        angle_between(method.cameras(torch.arange(4))[:, :3, :3], start[:3, :3].expand(4, 3, 3)).mean()
    )
    begun = apart()
    for step in range(60):
        ((_, terms),) = list(stage.losses(replace(train, x0=x0), rng(step)))
        optimizer.zero_grad()
        terms["colour"].backward()
        optimizer.step()
    assert apart() < 0.5 * begun


@pytest.mark.parametrize("learned", [True, False])
def test_a_focal_length_is_learned_where_it_is_asked_for(learned):
    made = recipe("lift3d", "tiny", SPEC)
    method = build(
        replace(made, config=replace(made.config, view=replace(made.config.view, learn_focal=learned)))
    )
    method.field = solids()
    assert ("log_focal" in dict(method.named_parameters())) == learned
    assert ("log_focal" in dict(method.named_buffers())) != learned
    stage = method.stages()[0]
    assert ("focal" in stage.players) == learned
    if learned:
        assert stage.players["focal"] == [method.log_focal]
        for opened in (0.4, 0.5):  # it waits for the field, and then it learns
            method.log_focal.grad = None
            method.field.opened = torch.tensor(opened)
            ((_, terms),) = list(stage.losses(Batch(x0=pictures(4)), rng()))
            terms["denoise"].backward()
            moved = bool(method.log_focal.grad.abs() > 0)
            assert moved == (opened == 0.5)


def test_a_focal_length_cannot_be_learned_where_it_is_given():
    with pytest.raises(ValueError, match="learn_focal"):
        NeRFConfig(view=replace(VIEW, learn_focal=True))


def test_a_field_without_cameras_says_what_is_missing():
    (stage,) = NeRF(NeRFConfig(size=20, view=VIEW)).stages()
    with pytest.raises(ValueError, match=r"transforms\.json"):
        list(stage.losses(Batch(x0=cube(2).x0), rng()))


def test_a_rendered_cube_is_the_cube():
    """The renderer against the slabs, with a field that is a cube."""
    inside = lambda x: (x.abs() < 0.5).all(1)
    field = lambda x, way: (
        1e3 * inside(x).to(x.dtype),
        torch.where(inside(x)[:, None], 0.8, 0.0).expand(-1, 3),
    )
    origins, directions = (v.flatten(0, 1) for v in rays(cube(3).truth["camera"], 1.4, pixels(24)))
    seen = render(field, Space(near=2.0, far=4.0), origins, directions, 400, background="black")
    hit = cube_pixels(origins, directions).ne(1.0).any(1)
    assert ((seen.opacity > 0.5) == hit).float().mean() > 0.995


def test_by_views_of_much_noise_poses_learn_and_the_field_does_not(monkeypatch):
    method = lift()
    method = type(method)(replace(method.config, field_until=0.5))
    stage = method.stages()[0]
    torch.nn.init.normal_(method.poses.offsets.weight)

    def learned(t: float) -> dict[str, float]:
        monkeypatch.setattr(
            "pellucid.methods.lift3d.method.training_times", lambda schedule, n, rng, **_: torch.full((n,), t)
        )
        ((_, terms),) = list(stage.losses(Batch(x0=pictures(4)), rng()))
        method.zero_grad()
        terms["denoise"].backward()
        players = {"field": stage.players["field"], "poses": [method.poses.offsets.weight]}
        # a gradient of zeros, and not none: processes add theirs up
        return {name: sum(p.grad.abs().sum().item() for p in ps) for name, ps in players.items()}

    much, little = learned(0.51), learned(0.5)
    assert much["field"] == 0
    assert much["poses"] > 0
    assert min(little["field"], little["poses"]) > 0
    assert all(p.requires_grad for p in method.field.parameters())


def test_the_error_is_the_mean_over_all_views_whichever_teach():
    """Split in two by time, the loss is what it is in one: rays at the same places of the same cameras."""
    torch.manual_seed(0)
    method = lift().eval()
    whole = type(method)(replace(method.config, field_until=1.0))
    split = type(method)(replace(method.config, field_until=0.3))
    split.load_state_dict(whole.state_dict())
    x, errors = pictures(256), []
    for some in (whole, split):
        stage = some.stages()[0]
        ((_, terms),) = list(stage.losses(Batch(x0=x), rng()))
        errors.append(terms["denoise"].item())
    assert errors[0] == pytest.approx(errors[1], rel=0.02)


# ---- settings


PLAIN = DataSpec(spec="photographs", size=16, count=12)  # says nothing of its cameras


def player_rates(made) -> dict[str, float]:
    stage = build(made).stages()[0]
    factors = {**stage.rates, **made.train.stages[stage.name].lr_of}
    assert set(made.train.stages[stage.name].lr_of) <= set(stage.players)  # what the trainer insists on
    return {player: factors.get(player, 1.0) for player in stage.players}


@pytest.mark.parametrize("name", ["lift3d", "lift3d-single", "nerf--"])
def test_a_focal_length_is_learned_slowly_or_given_whatever_the_data_say(name):
    learned = recipe(name, "tiny", PLAIN)
    assert player_rates(learned)["focal"] == FOCAL_RATE["focal"]
    given = changed(learned, {"view.learn_focal": "false", "view.focal": "1.0"})
    assert "focal" not in player_rates(given)
    known = replace(
        PLAIN, scene=Scene(radius=3.0, near=2.0, far=4.0, focal=1.2, forward=False, background="white")
    )
    assert "focal" not in player_rates(recipe(name, "tiny", known))
    again = changed(recipe(name, "tiny", known), {"view.learn_focal": "true"})
    assert player_rates(again)["focal"] == FOCAL_RATE["focal"]
    faster = changed(
        learned, {"stages.lift.lr_of.focal" if name != "nerf--" else "stages.fit.lr_of.focal": "0.5"}
    )
    assert player_rates(faster)["focal"] == 0.5


def test_what_is_imagined_costs_as_many_rays_whatever_the_size():
    rays_of = lambda scale, size: (
        (made := recipe("lift3d", scale, replace(PLAIN, size=size))).config.imagined
        * made.train.batch_size
        * size**2
    )
    assert rays_of("cpu", 32) == rays_of("cpu", 64) == 2**13
    assert rays_of("gpu", 128) == 2**14
    assert (
        recipe("lift3d", "cpu", replace(PLAIN, size=16)).config.imagined == 0.5
    )  # of each second photograph one
    assert recipe("lift3d", "paper", replace(PLAIN, size=128)).config.imagined == 0


@pytest.mark.parametrize("text", [".5", "0.5", "5e-1"])
def test_a_number_is_read_as_people_write_it(text):
    assert changed(recipe("lift3d", "tiny", PLAIN), {"poses.overlap": text}).config.poses.overlap == 0.5


@pytest.mark.parametrize("text", ["nan", "inf", "half"])
def test_what_is_no_number_is_refused_where_one_is_due(text):
    with pytest.raises(ValueError, match="expected float"):
        changed(recipe("lift3d", "tiny", PLAIN), {"poses.overlap": text})


def test_what_counts_in_steps_follows_the_steps_that_are_trained():
    usual, short = recipe("lift3d", "cpu", PLAIN), recipe("lift3d", "cpu", PLAIN, steps=500)
    share = 500 / usual.train.steps
    assert short.config.view.opens == round(share * usual.config.view.opens)
    assert short.config.patience == math.ceil(share * usual.config.patience)
    assert replace(short.config, view=usual.config.view, patience=usual.config.patience) == usual.config
    assert recipe("lift3d", "cpu", PLAIN, steps=usual.train.steps).config == usual.config
    field = recipe("nerf", "cpu", PLAIN, steps=500).config.view
    assert field.opens == round(share * recipe("nerf", "cpu", PLAIN).config.view.opens)


@pytest.mark.parametrize("changes", [{"radius": 4.5}, {"near": 2.2}, {"far": 3.9}, {"radius": 2.5}])
def test_rays_that_leave_out_a_part_of_the_object_are_refused(changes):
    with pytest.raises(
        ValueError, match=r"leaves out a part of the unit ball.*set near to at most.*far to at"
    ):
        ViewConfig(**changes)
    ViewConfig(radius=4.5, near=3.5, far=5.5)
    ViewConfig(radius=4.5, near=0.1, far=9)


def test_a_field_that_opens_is_closed_at_its_first_step():
    made = recipe("lift3d", "tiny", SPEC)
    opening = replace(made, config=replace(made.config, view=replace(made.config.view, opens=10)))
    assert build(opening).field.opened == 0
    assert build(made).field.opened == 1


@pytest.mark.parametrize("name", ["lift3d", "nerf--"])
def test_every_player_has_a_gradient_at_every_step(name):
    """Before the field has opened a focal length learns nothing; processes that add gradients up want zeros then."""
    made = changed(recipe(name, "tiny", PLAIN), {"view.opens": "10"})
    method = build(made)
    stage = method.stages()[0]
    ((players, terms),) = list(stage.losses(Batch(x0=pictures(4), index=torch.arange(4)), rng()))
    assert set(players) == set(stage.players)
    sum(v for k, v in terms.items() if not k.startswith("_")).backward()
    assert all(p.grad is not None for p in (*stage.players["field"], *stage.players["focal"]))
    assert method.log_focal.grad == 0


def test_cameras_are_refined_in_parts_as_large_as_the_budget(monkeypatch):
    method = lift().eval()
    x, cameras = pictures(5), method.along("orbit", 5)
    whole = method.refined(cameras, x, 2, rng())
    asked, refined = [], type(method)._refined
    monkeypatch.setattr(
        type(method), "_refined", lambda self, c, *rest: asked.append(len(c)) or refined(self, c, *rest)
    )
    method.view = replace(method.view, budget=2 * 256 * method.view.samples)
    in_parts = method.refined(cameras, x, 2, rng())
    assert asked == [2, 2, 1]
    assert in_parts.shape == whole.shape
    torch.testing.assert_close(in_parts[:2], method.refined(cameras[:2], x[:2], 2, rng()))


def test_finding_cameras_renders_nothing(monkeypatch):
    method = lift().eval()
    x = pictures(3)
    told = method.read(x, rng())["camera"].view(-1, 4, 4)
    monkeypatch.setattr(type(method), "pictures", lambda *_, **__: pytest.fail("a picture was rendered"))
    torch.testing.assert_close(method.seen_from(Batch(x0=x), rng()), told)


def test_scenes_are_not_split_among_processes(tmp_path):
    made = recipe("lift3d", "tiny", SPEC, steps=2)
    config = replace(made.train, parallel="fsdp")
    with pytest.raises(TrainingError, match=r"lift3d has weights that are asked for whole.*--parallel ddp"):
        train(build(made), open_data("views-boxes", size=16, limit=4), config, tmp_path / "run", meta={})


# ---- views of the field's own


@pytest.mark.parametrize("m", [1, 4, 12])
def test_near_a_candidate_is_within_half_a_sector_and_in_the_band(m):
    head = candidates(m, low=0.1, high=1.2)
    angles = torch.rand(2, 500, generator=rng(), dtype=torch.float64)
    there = on_sphere(6 * angles[0], 0.1 + 1.1 * angles[1], 2.5)
    found = head.near(there, rng(2))
    azimuth, elevation = angles_of(found)
    # none is rolled, and all look at the middle
    torch.testing.assert_close(found, on_sphere(azimuth, elevation, 2.5))
    assert elevation.min() >= 0.1 - 1e-5
    assert elevation.max() <= 1.2 + 1e-5
    # a square of the sector's area, from the middle of one of its sides to the other
    half = math.sqrt(2 * math.pi * (math.sin(1.2) - math.sin(0.1)) / m) / 2
    up = elevation - angles_of(there)[1]
    assert up.abs().max() <= half + 1e-5
    assert up.abs().max() > 0.8 * min(half, 1.1)
    aside = (azimuth - angles_of(there)[0] + math.pi) % (2 * math.pi) - math.pi
    aside = aside * angles_of(there)[1].cos().clamp(min=0.3)
    assert aside.abs().max() <= half + 1e-5
    assert aside.abs().max() > 0.9 * min(half, math.pi)
    assert torch.equal(found, head.near(there, rng(2)))


def test_near_cameras_that_may_go_anywhere_is_on_their_way_to_each_other():
    head = Single(4, first=torch.eye(4), hidden=8)
    there = torch.eye(4).repeat(2, 1, 1)
    there[1, 0, 3] = 1.0  # side by side, looking one way
    found = torch.stack([head.near(there, rng(k)) for k in range(200)])
    assert torch.equal(found[..., :3, :3], torch.eye(3).expand(200, 2, 3, 3))
    across = found[:, :, 0, 3]
    assert (found[:, :, 1:3, 3] == 0).all()
    for i, at in enumerate((0.0, 1.0)):
        assert (across[:, i] - at).abs().max() <= 0.5
        assert across[:, i].min() < at - 0.4 < at + 0.4 < across[:, i].max()
    assert torch.equal(
        head.near(there[:1], rng()), there[:1]
    )  # one alone is on its way to the first, where it stands
    assert not torch.equal(head.near(there[1:], rng()), there[1:])


@pytest.mark.parametrize("name", ["lift3d", "lift3d-single"])
def test_imagining_keeps_its_digits_under_autocast(name):
    method = lift(name, imagined=0.75)
    inner, heard = method.pictures, []
    method.pictures = lambda cameras, **more: heard.append(cameras) or inner(cameras, **more)
    with torch.autocast("cpu", torch.bfloat16):
        list(method.stages()[0].losses(Batch(x0=pictures(4)), rng()))
    (cameras,) = heard
    assert cameras.dtype == torch.float32
    turn = cameras[:, :3, :3]
    torch.testing.assert_close(turn @ turn.transpose(1, 2), torch.eye(3).expand_as(turn), atol=1e-5, rtol=0)


@pytest.mark.parametrize("parts", [1, 4, 16])
def test_as_many_views_are_imagined_however_many_parts_a_batch_comes_in(parts):
    method, x = lift(imagined=0.5), pictures(16)
    stage, counts, weights = method.stages()[0], [], []
    stage._imagined = lambda cameras, rng: counts.append(len(cameras)) or torch.ones(())
    for seed in range(20):
        for k, part in enumerate(x.chunk(parts)):
            ((_, terms),) = stage.losses(Batch(x0=part), rng(100 * seed + k))
            weights.append(float(terms.get("imagined", 0.0)) / parts)
    assert sum(counts) / 20 == pytest.approx(8, abs=1)
    assert sum(weights) / 20 == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("name", ["lift3d", "lift3d-clean", "lift3d-single"])
def test_views_of_the_fields_own_teach_the_poses_alone(name):
    method = lift(name, imagined=0.75)
    ((_, terms),) = list(method.stages()[0].losses(Batch(x0=pictures(4)), rng()))
    terms["imagined"].backward()
    assert all(p.grad is None or not p.grad.any() for p in method.field.parameters())
    heads = [method.poses.move] if name == "lift3d-single" else [method.poses.offsets, method.poses.scores]
    assert all(head.weight.grad.abs().sum() > 0 for head in heads)


def test_nothing_is_imagined_before_half_of_the_detail_is_there():
    method = lift(imagined=0.75)
    terms = lambda: next(method.stages()[0].losses(Batch(x0=pictures(4)), rng()))[1]
    for opened, there in ((0.49, False), (0.5, True)):
        method.field.open(opened)
        assert ("imagined" in terms()) == there
    method.config = replace(method.config, imagined=0.0)
    assert "imagined" not in terms()


def test_a_camera_that_is_read_rightly_is_no_error():
    """Poses that say of every view the camera it was rendered from, as the second of three, and are sure of it."""
    method = lift(imagined=0.75)
    stage, rendered = method.stages()[0], []

    class Knowing(torch.nn.Module):
        def near(self, cameras, rng):
            rendered.append(cameras)
            return cameras

    method.poses = Knowing()
    far = on_sphere(torch.tensor(0.3), torch.tensor(1.2), 3.0)

    def posed(x_t, t):
        right = rendered[-1].repeat(len(x_t) // len(rendered[-1]), 1, 1)
        cameras = torch.stack([far.expand_as(right), right, far.expand_as(right)], 1)
        return Poses(cameras=cameras, scores=torch.tensor([0.0, 30.0, 0.0]).expand(len(x_t), 3))

    method.posed = posed
    cameras = on_sphere(torch.tensor([2.0, 3.0, 4.0]), torch.tensor([0.2, 0.5, 0.8]), 3.0)
    assert stage._imagined(cameras, rng()).item() == pytest.approx(0.0, abs=1e-5)


def test_an_encoder_learns_from_the_fields_views_to_read_its_scene():
    """The field is fixed; no photograph is of any use, as all are noise."""
    batch = cube(24)
    scene = fitted(batch, NeRFConfig(size=20, view=VIEW), 150)
    made = recipe("lift3d", "tiny", replace(PLAIN, size=20))
    torch.manual_seed(0)
    method = build(replace(made, config=replace(made.config, view=VIEW)))
    method.field.load_state_dict(scene.field.state_dict())
    stage, there = method.stages()[0], batch.truth["camera"].float()
    optimizer = torch.optim.Adam(stage.players["poses"], 2e-3)

    def off() -> float:
        with torch.no_grad():
            return float(apart(method.best(method.poses_of(batch.x0, rng())), there, 3.0).median())

    before = off()
    for step in range(150):
        rows = torch.randint(24, (8,), generator=rng(step))
        optimizer.zero_grad()
        stage._imagined(there[rows], rng(step)).backward()
        optimizer.step()
    assert off() < before / 4


# ---- a world and the same inside out


def two_worlds(**changes) -> Lift3D:
    """A tiny model of a scene that cameras look into, before it is known which way round that is."""
    made = recipe("lift3d-forward", "tiny", SPEC, steps=8)
    torch.manual_seed(0)
    changes = {"imagined": 0.0, "field_until": 1.0} | changes
    method = build(replace(made, config=replace(made.config, **changes)))
    torch.nn.init.normal_(method.poses.move.weight, std=0.02)
    return method


def test_reversed_cameras_move_the_other_way_and_turn_as_they_like():
    head = Single(4, first=torch.eye(4), hidden=8, both=True)
    torch.nn.init.normal_(head.move.weight)
    h = torch.randn(5, 4, generator=rng())
    said = head(h)
    place, other = said.cameras[:, 0, :3, 3], said.reversed[:, :3, 3]
    torch.testing.assert_close(other, place * torch.tensor([-1.0, -1.0, 1.0]))
    assert (angle_between(said.cameras[:, 0, :3, :3], said.reversed[:, :3, :3]) > 1).all()
    head.turned.fill_(1.0)
    again = head(h)
    assert torch.equal(again.cameras[:, 0], said.reversed)
    assert torch.equal(again.reversed, said.cameras[:, 0])
    assert Single(4, first=torch.eye(4), hidden=8)(h).reversed is None


def test_each_world_learns_from_its_own_half_of_the_pictures_by_its_own_cameras():
    method = two_worlds()
    stage, x, asked, inner = method.stages()[0], pictures(8), [], method.seen

    def seen(cameras, *given, field, skips, **more):
        asked.append((field, cameras, skips))
        return inner(cameras, *given, field=field, skips=skips, **more)

    method.seen = seen
    heard = []
    posed = method.posed
    method.posed = lambda *given: heard.append(posed(*given)) or heard[-1]
    ((_, terms),) = list(stage.losses(Batch(x0=x), rng()))
    (poses,) = heard
    assert [id(field) for field, _, _ in asked] == [id(method.field), id(method.field.other)]
    assert not any(skips for _, _, skips in asked)  # what is known to be empty is so in one of them
    rows = [
        [next(i for i, c in enumerate(there) if torch.equal(c, camera)) for camera in cameras]
        for (_, cameras, _), there in zip(asked, (poses.cameras[:, 0], poses.reversed), strict=True)
    ]
    assert sorted(rows[0] + rows[1]) == list(range(8))
    terms["denoise"].backward()
    for world in method.field.worlds:
        assert any(p.grad.abs().sum() > 0 for p in world.parameters())
    (rivals,) = stage.rivals
    assert rivals[1::2].tolist() == [len(rows[0]), len(rows[1])]
    # what both say together is the loss of the batch
    assert rivals[::2].sum() / (8 * method.view.rays * 3) == pytest.approx(terms["denoise"].item(), rel=1e-5)


def test_worlds_are_compared_by_the_views_that_teach_them():
    method = two_worlds(field_until=0.05, low_share=0.0)
    stage = method.stages()[0]
    list(stage.losses(Batch(x0=pictures(64)), rng()))
    (rivals,) = stage.rivals
    assert 0 < rivals[1::2].sum() < 20


@pytest.mark.parametrize("better", [0, 1])
def test_the_world_that_shows_its_pictures_better_stays(better):
    method = two_worlds()
    stage, x = method.stages()[0], pictures(4)
    before = method.poses_of(x, rng())
    points = torch.rand(50, 3, generator=rng()) * 2 - 1
    world = method.field.worlds[better]
    for step in range(6):
        assert method.undecided
        stage.rivals.append(torch.tensor([[1.0, 4.0, 2.0, 4.0], [2.0, 4.0, 1.0, 4.0]][better]))
        stage.after_step(step)
    assert not method.undecided
    after = method.poses_of(x, rng())
    assert torch.equal(after.cameras[:, 0], before.reversed if better else before.cameras[:, 0])
    assert torch.equal(method.field(points, points)[0], world(points, points)[0])
    assert world.opened == method.field.opened == pytest.approx(0.75)
    terms = next(stage.losses(Batch(x0=x), rng()))[1]  # from now on there is one
    terms["denoise"].backward()
    assert all(not p.grad.any() for p in method.field.other.parameters())
    assert not stage.rivals
    again = two_worlds()  # what a run continues with
    again.load_state_dict(method.state_dict())
    assert not again.undecided
    assert torch.equal(again.poses_of(x, rng()).cameras, after.cameras)


def test_errors_of_worlds_are_followed_slowly_and_each_by_its_own_pictures():
    method = two_worlds()
    stage = method.stages()[0]
    stage.rivals.append(torch.tensor([6.0, 2.0, 0.0, 0.0]))  # a batch of one has pictures of one world alone
    stage.after_step(0)
    assert method.rivalry.tolist() == pytest.approx([1 + 0.02 * 2, 1.0])


def test_what_is_known_to_be_empty_is_forgotten_with_the_world_in_which_it_is():
    made = recipe("lift3d-forward", "tiny", SPEC, steps=8)
    method = build(replace(made, config=replace(made.config, view=replace(made.config.view, occupied=1))))
    stage = method.stages()[0]
    for step in range(6):
        stage.rivals.append(torch.tensor([2.0, 1.0, 1.0, 1.0]))
        stage.after_step(step)
        assert method.occupancy.peak.isfinite().all() == method.undecided
    assert method.field.turned


def test_there_is_one_world_about_a_thing():
    with pytest.raises(ValueError, match=r"both_until is 0\.5 and poses\.kind candidates"):
        changed(recipe("lift3d", "tiny", SPEC), {"both_until": "0.5"})
    for name in ("lift3d", "lift3d-single"):
        assert not build(recipe(name, "tiny", SPEC)).undecided
    made = recipe("lift3d-forward", "tiny", SPEC, steps=8)
    with pytest.raises(ValueError, match=r"Set both_until=0 for one world, or view\.opens"):
        changed(made, {"view.opens": "0"})


def test_a_run_that_was_interrupted_settles_as_one_that_was_not(tmp_path):
    data = open_data("views-forward", size=16, limit=8)
    weights = []
    for name, stops in (("whole", ()), ("resumed", (3, 10))):  # before and after it is settled
        for until in (*stops, None):
            spec = DataSpec.of("lift3d-forward", "views-forward", data)
            made = recipe("lift3d-forward", "tiny", spec, steps=12)
            method = build(made)
            train(method, data, made.train, tmp_path / name, meta={}, stop_after=until)
            assert method.undecided == (until == 3)
        weights.append(method.state_dict())
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key
