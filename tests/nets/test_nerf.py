"""Against closed forms (a uniform ball, a wall, fog), nerfacc's dense path, and finite differences in float64."""

import math
from dataclasses import replace

import nerfacc
import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.nn import functional as F

from pellucid.cameras import on_sphere, pixels, rays
from pellucid.methods.radiance import Radiance, ViewConfig
from pellucid.nets.nerf import Field, FieldConfig, Occupancy, Space, make_field, render, shares

BALL = Space(near=2.0, far=4.0)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Known(Field):
    """A field that is a formula: density of points (P, 3) -> (P,), and a colour."""

    def __init__(self, density, colour=lambda x: torch.full_like(x, 0.25)) -> None:
        nn.Module.__init__(self)
        self.of, self.colour_of, self.asked = density, colour, 0

    def forward(self, x, directions):
        self.asked += len(x)
        return self.of(x), self.colour_of(x)


def fog(sigma: float) -> Known:
    return Known(lambda x: torch.full_like(x[:, 0], sigma))


def parallel(offsets: torch.Tensor, far: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rays along -x that pass the origin at some distances."""
    origins = torch.stack([torch.full_like(offsets, far), offsets, torch.zeros_like(offsets)], 1)
    return origins, torch.tensor([-1.0, 0, 0], dtype=offsets.dtype).expand_as(origins)


# ---- closed forms


def test_light_through_a_uniform_ball_falls_exponentially_with_its_chord():
    offsets = torch.tensor([0.0, 0.3, 0.6, 0.9, 0.99, 1.01, 1.5])
    seen = render(fog(1.7), BALL, *parallel(offsets), 4096, background="black")
    chord = 2 * (1 - offsets.square()).clamp(min=0).sqrt()
    torch.testing.assert_close(1 - seen.opacity, torch.exp(-1.7 * chord), atol=2e-3, rtol=0)
    torch.testing.assert_close(
        seen.colour, (seen.opacity * 1.25 - 1)[:, None].expand(-1, 3), atol=1e-5, rtol=0
    )
    assert seen.opacity[-2:].abs().max() == 0
    torch.testing.assert_close(seen.depth[-2:], torch.full((2,), 4.0))


def test_the_mean_depth_of_fog_is_that_of_an_exponential():
    sigma, length = 1.5, 2.0
    seen = render(fog(sigma), BALL, *parallel(torch.zeros(1)), 2048, background="white")
    left = math.exp(-sigma * length)
    inside = 1 / sigma - length * left / (1 - left)  # mean of an exponential, cut off
    torch.testing.assert_close(
        seen.depth, torch.tensor([(2 + inside) * (1 - left) + 4 * left]), atol=2e-3, rtol=0
    )


@pytest.mark.parametrize("at", [-0.5, 0.0, 0.37])
def test_a_wall_is_as_deep_as_it_is_far(at):
    wall = Known(lambda x: 1e4 * (x[:, 0] < at).to(x.dtype))
    seen = render(wall, BALL, *parallel(torch.tensor([0.0, 0.2, 0.5])), 1000, background="white")
    torch.testing.assert_close(seen.depth, torch.full((3,), 3 - at), atol=2e-3, rtol=0)
    torch.testing.assert_close(seen.opacity, torch.ones(3))
    torch.testing.assert_close(seen.colour, torch.full((3, 3), 0.25))


def test_a_ball_of_another_size_is_seen_as_large_as_it_is():
    space = replace(BALL, bound=0.5)
    seen = render(fog(2.0), space, *parallel(torch.tensor([0.0, 0.3, 0.6])), 2000, background="black")
    chord = 2 * (0.25 - torch.tensor([0.0, 0.3, 0.6]).square()).clamp(min=0).sqrt()
    torch.testing.assert_close(1 - seen.opacity, torch.exp(-2 * chord), atol=3e-3, rtol=0)


# ---- shares, against nerfacc


def pieces(r: int = 7, n: int = 33, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    density = torch.randn(r, n, generator=rng(seed), dtype=torch.float64).mul(2).exp()
    ends = torch.rand(r, n + 1, generator=rng(seed + 1), dtype=torch.float64).cumsum(1) / n
    return density, ends


def test_shares_are_nerfacc_s_weights_and_add_up():
    density, ends = pieces()
    ours = shares(density, ends.diff(dim=1))
    theirs, _, _ = nerfacc.render_weight_from_density(ends[:, :-1], ends[:, 1:], density)
    torch.testing.assert_close(ours, theirs)
    stopped = (density * ends.diff(dim=1)).sum(1)
    torch.testing.assert_close(ours.sum(1), 1 - torch.exp(-stopped))


def test_the_gradient_of_shares_is_right():
    density, ends = pieces(2, 5)
    assert gradcheck(shares, (density.requires_grad_(), ends.diff(dim=1).requires_grad_()))


def test_shares_add_up_before_a_piece_without_end():
    """The last piece of a ray that has no background: what was stopped before it still counts."""
    lengths = torch.tensor([[0.5, 0.5, 0.5, 1e10]])
    for sigma in (0.0, 1.0, 4.0, 50.0):
        density = torch.tensor([[sigma, sigma, sigma, 5.0]])
        found = shares(density, lengths)
        torch.testing.assert_close(found.sum(1), torch.ones(1))
        torch.testing.assert_close(found[:, -1], torch.tensor([math.exp(-1.5 * sigma)]))


@pytest.mark.parametrize("background", ["white", "black"])
def test_a_rendering_is_nerfacc_s(background):
    torch.manual_seed(0)
    field = make_field(FieldConfig(kind="mlp", width=16, depth=2, frequencies=3, directions=2)).double()
    field.density.weight.data.normal_(std=2.0)
    origins, directions = (v.flatten(0, 1) for v in rays(on_sphere(*angles()), 1.4, pixels(4)))
    ours = render(field, BALL, origins, directions, 24, background=background, rng=rng(3))
    ends = BALL.distances(len(origins), 24, rng=rng(3), device=torch.device("cpu")).double()
    middle = (ends[:, 1:] + ends[:, :-1]) / 2
    points = origins[:, None] + middle[..., None] * directions[:, None]
    density, colour = field(points.flatten(0, 1), directions[:, None].expand_as(points).flatten(0, 1))
    density = density.view(middle.shape) * (points.norm(dim=-1) <= 1)
    weights, _, _ = nerfacc.render_weight_from_density(ends[:, :-1], ends[:, 1:], density)
    shown = nerfacc.accumulate_along_rays(weights, values=colour.view(*middle.shape, 3))
    opacity = nerfacc.accumulate_along_rays(weights, values=None)
    depth = nerfacc.accumulate_along_rays(weights, values=middle[..., None])
    close = {"atol": 1e-6, "rtol": 0, "check_dtype": False}
    torch.testing.assert_close(ours.weights, weights, **close)
    torch.testing.assert_close(ours.opacity, opacity[:, 0], **close)
    torch.testing.assert_close(
        ours.colour, shown + (1 - opacity) * (1 if background == "white" else -1), **close
    )
    torch.testing.assert_close(ours.depth, (depth + (1 - opacity) * ends[:, -1:])[:, 0], **close)


def angles(n: int = 3) -> tuple[torch.Tensor, torch.Tensor, float]:
    turned = torch.linspace(0, 4, n, dtype=torch.float64)
    return turned, turned / 4, 3.0


# ---- backgrounds


def test_what_lies_behind_everything():
    ray = parallel(torch.tensor([0.0, 5.0]).repeat(500))
    left = math.exp(-0.6 * 2)
    for background, behind in (("white", 1.0), ("black", -1.0)):
        seen = render(fog(0.6), BALL, *ray, 512, background=background).colour
        torch.testing.assert_close(
            seen[0], torch.full((3,), 0.25 * (1 - left) + behind * left), atol=1e-3, rtol=0
        )
        torch.testing.assert_close(seen[1], torch.full((3,), behind))
    drawn = render(fog(0.6), BALL, *ray, 64, background="random", rng=rng()).colour[1::2]
    assert drawn.min() < -0.9
    assert drawn.max() > 0.9
    assert drawn.mean().abs() < 0.06
    assert drawn.var(1).min() > 0  # a colour for each ray, not a grey
    again = render(fog(0.6), BALL, *ray, 64, background="random", rng=rng()).colour[1::2]
    assert torch.equal(drawn, again)
    assert render(fog(0.6), BALL, *ray, 64, background="random").colour[1].abs().max() == 0


def test_a_random_background_cannot_show_through_what_is_opaque():
    seen = render(fog(1e4), BALL, *parallel(torch.zeros(9)), 64, background="random", rng=rng())
    torch.testing.assert_close(seen.colour, torch.full((9, 3), 0.25))


@pytest.mark.parametrize("sigma", [0.0, 0.3, 3.0, 100.0])
def test_without_a_background_all_light_is_stopped(sigma):
    front = Space(near=1.0, far=32.0, forward=True, focal=1.4)
    origins, directions = (v.flatten(0, 1) for v in rays(torch.eye(4)[None], 1.4, pixels(6)))
    shaded = Known(lambda x: torch.full_like(x[:, 0], sigma), lambda x: x)
    seen = render(shaded, front, origins, directions, 32, background="none")
    torch.testing.assert_close(seen.weights.sum(1), torch.ones(36))
    torch.testing.assert_close(seen.opacity, torch.ones(36))
    assert seen.colour.abs().max() <= 1
    assert (seen.depth <= 32).all()


# ---- samples along rays


@pytest.mark.parametrize("space", [BALL, Space(near=1.0, far=32.0, forward=True)])
def test_stratified_samples_lie_in_their_bins_and_are_even_on_average(space):
    even = space.distances(1, 8, rng=None, device=torch.device("cpu"))[0]
    drawn = space.distances(20_000, 8, rng=rng(), device=torch.device("cpu"))
    torch.testing.assert_close(drawn[:, [0, -1]], even[[0, -1]].expand(20_000, 2))
    assert (drawn.diff(dim=1) >= -1e-6).all()
    if space.forward:  # even in the inverse of distance
        even, drawn = 1 / even, 1 / drawn
    width = (even[1] - even[0]).abs()
    torch.testing.assert_close(even.diff().abs(), width.expand(8))
    middle, bins = (drawn[:, 1:] + drawn[:, :-1]) / 2, (even[1:] + even[:-1]) / 2
    assert ((middle - bins).abs() <= width / 2 + 1e-6).all()
    torch.testing.assert_close(drawn.mean(0), even, atol=0.01 * float(width), rtol=0)
    assert (drawn[:, 1:-1].std(0) > 0.28 * width).all()  # of a whole bin: 1 / sqrt(12)


def test_stratified_renderings_are_right_on_average():
    shaded = Known(lambda x: 1.5 + 0.8 * torch.sin(9 * x[:, 0]))
    exact = render(shaded, BALL, *parallel(torch.zeros(1)), 8192, background="black").opacity
    coarse = render(shaded, BALL, *parallel(torch.zeros(4000)), 16, background="black", rng=rng()).opacity
    assert abs(float(coarse.mean() - exact)) < 4e-3


def test_the_same_generator_draws_the_same_samples():
    one, two = (
        render(fog(1.0), BALL, *parallel(torch.zeros(3)), 8, background="white", rng=rng(4)) for _ in "ab"
    )
    assert torch.equal(one.weights, two.weights)


# ---- memory


def scene(**changes) -> Radiance:
    torch.manual_seed(0)
    config = ViewConfig(
        field=FieldConfig(width=8, depth=1, grids=(4, 8), features=2), fine_samples=16, **changes
    )
    made = Radiance(config, 12, 3)
    for p in made.field.parameters():
        p.data.normal_(std=0.7)
    return made


def test_a_picture_in_parts_is_the_picture():
    cameras = on_sphere(*angles()[:2], 3.0).float()
    whole, parts = scene(), scene(budget=16 * 25)
    for one, other in zip(whole.pictures(cameras), parts.pictures(cameras), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    assert whole.pictures(cameras, size=20)[0].shape == (3, 3, 20, 20)


def test_no_more_points_are_asked_at_once_than_the_budget_allows():
    method = scene(budget=16 * 25)
    most, inner = [], method.field.features
    method.field.features = lambda x: (most.append(len(x)), inner(x))[1]
    for size in (12, 60):
        most.clear()
        method.pictures(on_sphere(*angles(1)[:2], 3.0).float(), size=size)
        assert 0 < max(most) <= 16 * 25


def test_cameras_may_have_focal_lengths_of_their_own():
    method, cameras = scene(), on_sphere(*angles(2)[:2], 3.0).float()
    both = method.pictures(cameras, focal=torch.tensor([1.0, 2.0]))[0]
    for i, focal in enumerate((1.0, 2.0)):
        alone = method.pictures(cameras[i : i + 1], focal=torch.tensor(focal))[0]
        torch.testing.assert_close(both[i], alone[0])


# ---- fields

KINDS = {
    "mlp": FieldConfig(kind="mlp", width=9, depth=4, frequencies=3, directions=2),
    "grid": FieldConfig(kind="grid", width=9, depth=2, grids=(3, 5, 8), features=3, directions=1),
    "hash": FieldConfig(kind="hash", width=9, depth=1, grids=(3, 5, 12), features=2, table=200),
}


@pytest.fixture(params=sorted(KINDS))
def field(request) -> Field:
    torch.manual_seed(1)
    made = make_field(KINDS[request.param]).double()
    for p in made.parameters():
        p.data.normal_(std=0.5)
    return made


def points(n: int = 12) -> torch.Tensor:
    return torch.rand(n, 3, generator=rng(2), dtype=torch.float64) * 1.9 - 0.95


def test_gradients_with_respect_to_points_and_directions_are_right(field):
    x, directions = points().requires_grad_(), F.normalize(points(), dim=1).requires_grad_()
    seen = (x, directions) if field.config.directions else (x,)
    assert gradcheck(lambda *given: field(*(given if len(given) == 2 else (*given, directions))), seen)


def test_gradients_of_parameters_are_right(field):
    params = dict(field.named_parameters())
    loss = lambda *given: torch.func.functional_call(field, dict(zip(params, given, strict=True)), (x, x))
    x = points(2)
    assert gradcheck(loss, tuple(p.detach().requires_grad_() for p in params.values()), fast_mode=True)


def test_density_is_positive_and_colour_in_range(field):
    density, colour = field(5 * points(200), points(200))
    assert density.shape == (200,)
    assert (density >= 0).all()
    assert colour.shape == (200, 3)
    assert colour.abs().max() <= 1


def test_a_field_begins_as_thin_fog():
    for config in KINDS.values():
        torch.manual_seed(0)
        density, _ = make_field(replace(config, first_density=0.2))(points().float(), points().float())
        torch.testing.assert_close(density, torch.full_like(density, 0.2), atol=0.05, rtol=0)


def read(field: Field, x: torch.Tensor) -> torch.Tensor:
    """What the grids hold at places: the network behind them made one that lets everything through."""
    width = sum(1 for _ in field.config.grids) * field.config.features
    layer = nn.Linear(width, width, dtype=x.dtype)
    layer.weight.data, layer.bias.data = torch.eye(width, dtype=x.dtype), torch.zeros(width, dtype=x.dtype)
    field.layers = nn.ModuleList([layer])
    return field.features(x)


def corners(side: int) -> torch.Tensor:
    """The points of a grid over the cube, (side^3, 3), x slowest."""
    line = torch.linspace(-1, 1, side, dtype=torch.float64)
    return torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1).view(-1, 3)


def test_grids_that_hold_something_linear_are_linear_in_between():
    config = FieldConfig(grids=(3, 7), features=1, depth=1)
    way, above = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64), 2.0
    x = points(50)
    dense = make_field(config).double()
    for side, grid in zip(config.grids, dense.grids, strict=True):
        held = (corners(side) @ way + above).view(side, side, side)
        grid.data = held.permute(2, 1, 0).reshape(1, -1)  # grid_sample has x fastest
    torch.testing.assert_close(read(dense, x), (x @ way + above)[:, None].expand(-1, 2))
    hashed = make_field(replace(config, kind="hash")).double()
    for side, table in zip(config.grids, hashed.tables, strict=True):
        table.data = (corners(side) @ way + above)[:, None]
    torch.testing.assert_close(read(hashed, x), (x @ way + above)[:, None].expand(-1, 2))


def test_a_hash_table_with_room_for_all_is_a_dense_grid():
    config = FieldConfig(grids=(3, 5, 8), features=4, depth=1)
    dense, hashed = (make_field(replace(config, kind=kind, table=8**3)).double() for kind in ("grid", "hash"))
    for side, grid, table in zip(config.grids, dense.grids, hashed.tables, strict=True):
        grid.data.normal_()
        table.data = grid.data.view(-1, side, side, side).permute(3, 2, 1, 0).reshape(side**3, -1)
    x = torch.cat([points(60), corners(2), 1.5 * corners(2)])  # what lies outside has the border's values
    torch.testing.assert_close(read(dense, x), read(hashed, x))


def test_a_hash_table_that_is_too_small_is_shared_by_all_of_its_entries():
    field = make_field(FieldConfig(kind="hash", grids=(4, 64), features=2, table=512))
    assert [len(t) for t in field.tables] == [64, 512]
    grid = torch.stack(torch.meshgrid(*[torch.arange(64)] * 3, indexing="ij"), -1).view(-1, 3)
    rows = field._row(grid, 64, 512).bincount(minlength=512)
    assert len(rows) == 512
    assert rows.min() > 0.5 * 64**3 / 512
    assert rows.max() < 2 * 64**3 / 512


def fine(field: Field) -> list[torch.Tensor]:
    """The parts of a field's parameters' gradients that only fine detail has, coarse to fine."""
    if field.config.kind == "mlp":
        octaves = field.config.frequencies
        return list(field.layers[0].weight.grad[:, 3:].unflatten(1, (octaves, 6)).unbind(1))
    held = field.grids if field.config.kind == "grid" else field.tables
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in held]


@pytest.mark.parametrize(("opened", "closed"), [(0.0, (1, 2)), (1 / 3, (1, 2)), (0.5, (2,)), (1.0, ())])
def test_what_is_closed_gets_no_gradient(field, opened, closed):
    field.open(opened)
    density, colour = field(points(), points())
    (density.sum() + colour.sum()).backward()
    for i, grad in enumerate(fine(field)):
        assert bool(grad.any()) == (i not in closed), f"level {i} at {opened}"


def test_detail_comes_smoothly(field):
    def at(share):
        field.open(share)
        return field._weights(3, points())

    weights = torch.stack([at(i / 3000) for i in range(3001)])
    speed = weights.diff(dim=0) * 3000
    assert (speed >= -1e-9).all()
    assert speed.max() <= 3 * math.pi / 2 + 1e-3  # each takes a third of the way
    assert speed.diff(dim=0).abs().max() < 0.02  # and begins and ends at rest
    torch.testing.assert_close(weights[0], torch.tensor([1.0, 0, 0], dtype=torch.float64))
    torch.testing.assert_close(weights[-1], torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(weights[1500], torch.tensor([1.0, 0.5, 0], dtype=torch.float64))


# ---- occupancy


def lump(where: float = 0.25) -> Known:
    return Known(lambda x: 20 * (x[:, 0] > where).to(x.dtype), lambda x: x.clone())


def test_empty_places_are_not_asked_and_change_nothing():
    field, occupancy = lump(), Occupancy(16)
    cameras = on_sphere(*angles(4)[:2], 3.0).float()
    origins, directions = (v.flatten(0, 1) for v in rays(cameras, 1.4, pixels(12)))
    plain = render(field, BALL, origins, directions, 40, background="white")
    asked, field.asked = field.asked, 0
    untouched = render(field, BALL, origins, directions, 40, background="white", occupancy=occupancy)
    assert field.asked == asked  # nothing is known at first: all is asked
    assert torch.equal(plain.colour, untouched.colour)
    occupancy.update(field, rng())
    field.asked = 0
    some = render(field, BALL, origins, directions, 40, background="white", occupancy=occupancy)
    assert field.asked < 0.5 * asked
    assert torch.equal(plain.weights, some.weights)
    torch.testing.assert_close(plain.colour, some.colour)
    torch.testing.assert_close(plain.depth, some.depth)


def test_pixels_are_those_without_it_where_everything_is_denser_than_the_least():
    method = scene(occupied=1)
    assert method.occupancy is not None
    cameras = on_sphere(*angles()[:2], 3.0).float()
    plain = [v.clone() for v in method.pictures(cameras)]
    method.occupancy.peak.fill_(0.02)
    for one, other in zip(plain, method.pictures(cameras), strict=True):
        assert torch.equal(one, other)
    method.occupancy.peak.fill_(0.005)
    assert method.pictures(cameras)[2].abs().max() == 0


def test_what_was_seen_fades_and_comes_back():
    occupancy = Occupancy(8)
    occupancy.update(lump(), rng())
    seen = occupancy.peak.clone()
    assert seen[7].min() == 20  # x first
    assert seen[:4].max() == 0
    occupancy.update(fog(0.0), rng())
    torch.testing.assert_close(occupancy.peak, 0.9 * seen)
    occupancy.update(fog(1e3), rng())
    assert (occupancy.peak == 1e3).all()


# ---- in front of cameras

FRONT = Space(near=1.0, far=20.0, forward=True, focal=1.3)


def test_a_frustum_becomes_a_box():
    """Its sides lie at 2 / 3 of the cube, which leaves room for cameras beside the first; its ends at both faces."""
    edge = torch.tensor([[x, y] for x in (-0.5, 0.5) for y in (-0.5, 0.5)], dtype=torch.float64) / 1.3
    for depth, face in ((1.0, -1.0), (20.0, 1.0)):
        corner = torch.cat([edge * depth, torch.full((4, 1), -depth, dtype=torch.float64)], 1)
        found = FRONT.inside(corner)
        torch.testing.assert_close(found[:, 2], torch.full((4,), face, dtype=torch.float64))
        torch.testing.assert_close(found[:, :2], edge.sign() * 2 / 3)


def test_points_on_a_line_stay_on_one():
    a, b = torch.tensor([[-1.0, 0.5, -1.5], [2.0, 1.0, -9.0]], dtype=torch.float64)
    line = FRONT.inside(a + torch.linspace(0, 1, 12, dtype=torch.float64)[:, None] * (b - a))
    way = F.normalize(line[1:] - line[:1], dim=1)
    torch.testing.assert_close(way, way[:1].expand_as(way))
    assert (line[:, 2].diff() > 0).all()


def test_behind_the_camera_and_beyond_nothing_is_asked():
    seen = Known(lambda x: (assert_inside(x), torch.ones_like(x[:, 0]))[1])
    origins = torch.tensor([[0.0, 0, 0], [0, 0, 3.0], [0.3, -0.2, 0.1]])
    towards = F.normalize(torch.tensor([[0.0, 0, -1], [0.1, 0, 1], [0.5, 0.1, -1]]), dim=1)
    made = render(seen, FRONT, origins, towards, 64, background="white")
    assert made.opacity[1] == 0  # it looks the other way
    assert (made.opacity[[0, 2]] > 0.9).all()
    assert made.colour.isfinite().all()


def assert_inside(x: torch.Tensor) -> None:
    assert x.abs().max() <= 1


def test_the_gradient_of_the_warp_is_right():
    x = torch.tensor([[0.2, 0.3, -1.5], [1.0, -2.0, -15.0], [0.1, 0.0, 2.0]], dtype=torch.float64)
    assert gradcheck(FRONT.inside, (x.requires_grad_(),))


# ---- what is refused


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: FieldConfig(width=0), "width, depth, features"),
        (lambda: FieldConfig(kind="grid", grids=(1, 4)), r"grids are \(1, 4\)"),
        (lambda: FieldConfig(first_density=0.0), "first_density 0.0"),
        (lambda: Space(near=2.0, far=1.0), "near is 2.0 and far 1.0"),
        (lambda: ViewConfig(near=0.0), "near is 0.0"),
        (lambda: ViewConfig(samples=1), "samples is 1; at least 2"),
        (lambda: ViewConfig(radius=-1.0), "radius is -1.0"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(made, said):
    with pytest.raises(ValueError, match=said):
        made()


def test_a_contracted_space_keeps_directions_and_holds_all_of_the_world():
    space = Space(near=0.1, far=100.0, contracted=True)
    rng = torch.Generator().manual_seed(0)
    points = torch.randn(200, 3, generator=rng, dtype=torch.float64) * torch.logspace(-2, 4, 200)[:, None]
    seen, far = space.inside(points), points.norm(dim=1)
    torch.testing.assert_close(seen / seen.norm(dim=1, keepdim=True), points / far[:, None])
    expected = torch.where(far <= 1, far, 2 - 1 / far) / 2  # Mip-NeRF 360, eq. 10, at half its size
    torch.testing.assert_close(seen.norm(dim=1), expected)
    assert seen.norm(dim=1).max() < 1
    torch.testing.assert_close(space.outside(seen), points, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("reach", "bound"), [(15.0, 1.0), (15.0, 2.0), (1.5, 1.0), (0.8, 1.0)])
def test_a_contracted_space_ends_where_rays_do(reach, bound):
    space = Space(near=0.1, far=12.0, contracted=True, reach=reach, bound=bound)
    ways = F.normalize(torch.randn(50, 3, generator=rng()), dim=1)
    share = torch.linspace(0, 1, 50)[:, None]
    within = ways * reach * share
    torch.testing.assert_close(space.outside(space.inside(within)), within, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(space.inside(ways * reach).norm(dim=1), torch.full((50,), space.edge))
    corner = 3**0.5
    beyond = space.outside(ways * (space.edge + (corner - space.edge) * share))
    torch.testing.assert_close(beyond, ways * reach, rtol=1e-4, atol=0)


def test_the_shell_behind_what_views_reach_is_no_part_of_a_scene():
    view = ViewConfig(radius=3.0, near=0.3, far=12.0, surroundings=True, background="none")
    assert view.space().reach == 15
    assert view.space().edge < 1 == ViewConfig().space().edge
