"""Against scipy's rotations, the matrix exponential and finite differences, poles and half turns included."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch.autograd import gradcheck

from pellucid.cameras import (
    angle_between,
    angles_of,
    apart,
    between,
    look_at,
    on_sphere,
    on_the_way,
    orbit,
    pixels,
    rays,
    rigid,
    rotation,
    spiral,
)

POLES = (-math.pi / 2, math.pi / 2)
EYE3 = torch.eye(3, dtype=torch.float64)


def places(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def around() -> tuple[torch.Tensor, torch.Tensor]:
    """Azimuths and elevations all over the sphere, both poles among them."""
    azimuth = torch.linspace(-4, 4, 23, dtype=torch.float64)
    elevation = torch.linspace(*POLES, 9, dtype=torch.float64)
    a, e = torch.meshgrid(azimuth, elevation, indexing="ij")
    return a.flatten(), e.flatten()


def assert_rigid(cameras: torch.Tensor, atol: float = 1e-12) -> None:
    turn = cameras[..., :3, :3]
    same = torch.eye(3, dtype=turn.dtype).expand_as(turn)
    torch.testing.assert_close(turn @ turn.transpose(-1, -2), same, atol=atol, rtol=0)
    torch.testing.assert_close(turn.det(), torch.ones(turn.shape[:-2], dtype=turn.dtype), atol=atol, rtol=0)
    last = torch.tensor([0.0, 0, 0, 1], dtype=turn.dtype)
    assert torch.equal(cameras[..., 3, :], last.expand_as(cameras[..., 3, :]))


def someone(n: int, seed: int = 0) -> torch.Tensor:
    """n cameras anywhere, turned in any way."""
    turn = Rotation.random(n, rng=np.random.default_rng(seed)).as_matrix()
    move = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return rigid(torch.from_numpy(turn), move)


# ---- on the sphere


def test_cameras_on_the_sphere_are_rigid_and_look_at_the_origin():
    azimuth, elevation = around()
    cameras = on_sphere(azimuth, elevation, 3.0, torch.linspace(0, 6, len(azimuth), dtype=torch.float64))
    assert_rigid(cameras)
    torch.testing.assert_close(cameras[:, :3, 3], 3 * cameras[:, :3, 2])  # it looks along -z
    torch.testing.assert_close(cameras[:, :3, 3].norm(dim=1), torch.full_like(azimuth, 3.0))


def test_angles_say_where_a_camera_stands_and_that_up_is_up():
    azimuth, elevation = places(0.3, -2.0, 3.1), places(0.2, -1.2, 1.5)
    cameras = on_sphere(azimuth, elevation, 2.0)
    for found, given in zip(angles_of(cameras), (azimuth, elevation), strict=True):
        torch.testing.assert_close(found, given)
    assert cameras[:, 2, 0].abs().max() == 0  # the horizon is level
    assert (cameras[:, 2, 1] > 0).all()
    # from the x axis, the picture's right is y
    torch.testing.assert_close(on_sphere(places(0), places(0))[0, :3, 0], places(0, 1, 0))


def test_roll_turns_the_picture_about_its_middle():
    plain, turned = (on_sphere(places(0.4), places(0.7), 2.0, r)[0] for r in (0.0, 0.3))
    about = torch.from_numpy(Rotation.from_euler("z", 0.3).as_matrix())
    torch.testing.assert_close(turned[:3, :3], plain[:3, :3] @ about)


@pytest.mark.parametrize("elevation", [*POLES, 0.0, 1.2])
def test_gradients_on_the_sphere_are_right_at_the_poles_too(elevation):
    azimuth, elevation, radius, roll = (
        v.requires_grad_() for v in (places(0.7), places(elevation), places(2.0), places(0.1))
    )
    assert gradcheck(on_sphere, (azimuth, elevation, radius, roll))


# ---- from one place to another


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_look_at_is_rigid_from_everywhere(dtype):
    azimuth, elevation = around()
    for off in (
        0.0,
        1e-7,
        1e-5,
        1e-4,
        3e-4,
        1e-3,
        1e-2,
    ):  # nearly along `up` is where a cross product is all rounding
        eye = on_sphere(azimuth, elevation * (1 - off), 2.0)[:, :3, 3].to(dtype)
        cameras = look_at(eye, torch.zeros(3, dtype=dtype), torch.tensor([0.0, 0, 1], dtype=dtype))
        assert_rigid(cameras, atol=2e-5 if dtype == torch.float32 else 1e-12)
        torch.testing.assert_close(cameras[:, :3, 2], eye / 2)
        torch.testing.assert_close(cameras[:, :3, 3], eye)
        tilted = torch.nn.functional.normalize(eye + off * eye.roll(1, 1), dim=1)
        assert_rigid(
            look_at(eye, torch.zeros_like(eye), tilted), atol=2e-5 if dtype == torch.float32 else 1e-12
        )


def test_look_at_is_the_sphere_s_camera_away_from_poles():
    azimuth, elevation = (v[around()[1].abs() < 1.5] for v in around())
    cameras = on_sphere(azimuth, elevation, 2.0)
    up, origin = places(0, 0, 5), places(0, 0, 0)
    torch.testing.assert_close(look_at(cameras[:, :3, 3], origin, up), cameras)


@pytest.mark.parametrize("up", [(0, 0, 1), (0, 0, -1), (0, 1, 0), (1, 0, 0), (1, 1, 1)])
@pytest.mark.parametrize("sign", [-2.0, 2.0])
def test_look_at_along_up_has_some_right_angle(up, sign):
    up = places(*up)
    assert_rigid(look_at((sign * up)[None], torch.zeros_like(up)[None], up))


def test_a_camera_cannot_look_at_where_it_stands():
    with pytest.raises(ValueError, match="at the very point"):
        look_at(places(1, 2, 3)[None], places(1, 2, 3), places(0, 0, 1))


# ---- rotations

AXES = torch.cat(
    [
        torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
        torch.eye(3, dtype=torch.float64) * math.pi,
        places(1, 2, 3)[None] * torch.logspace(-9, 0, 19, dtype=torch.float64)[:, None],
        torch.zeros(1, 3, dtype=torch.float64),
    ]
)


def test_rotations_agree_with_scipy_and_the_matrix_exponential():
    found = rotation(AXES)
    torch.testing.assert_close(
        found, torch.from_numpy(Rotation.from_rotvec(AXES.numpy()).as_matrix()), atol=1e-12, rtol=0
    )
    x, y, z = AXES.unbind(1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).view(-1, 3, 3)
    torch.testing.assert_close(found, torch.linalg.matrix_exp(cross), atol=1e-12, rtol=0)
    torch.testing.assert_close(rotation(AXES.float()).double(), found, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [0.0, 1e-6, 5e-4, 2e-3, 0.5, 3.0])
def test_the_gradient_of_a_rotation_is_right_at_none_at_all(size):
    axis = (size * places(1, -2, 0.5)[None]).requires_grad_()
    assert gradcheck(rotation, (axis,))


@pytest.mark.parametrize("size", [0.0, 1e-5, 1e-3, 2e-3, 1e-2])
def test_the_gradient_of_a_small_rotation_is_right_in_float32(size):
    axis = size * places(1, -2, 0.5)
    exact, rounded = (
        torch.autograd.functional.jacobian(rotation, axis.to(d)) for d in (torch.float64, torch.float32)
    )
    torch.testing.assert_close(rounded.double(), exact, atol=2e-6, rtol=0)


# ---- rays


def test_pixels_are_row_by_row_right_and_down():
    at = pixels(4)
    assert at.shape == (16, 2)
    torch.testing.assert_close(at[0], torch.tensor([1 / 8, 1 / 8]))
    torch.testing.assert_close(at[1], torch.tensor([3 / 8, 1 / 8]))
    torch.testing.assert_close(at[4], torch.tensor([1 / 8, 3 / 8]))
    picture = torch.arange(16.0).view(1, 1, 4, 4)
    torch.testing.assert_close(
        torch.nn.functional.grid_sample(picture, (at * 2 - 1)[None, None], align_corners=False).flatten(),
        torch.arange(16.0),
    )


def test_a_point_projects_to_where_its_ray_passes():
    cameras = someone(5)
    own = torch.tensor([[0.3, 0.2, -2.0], [-0.4, 0.9, -3.0], [0.0, 0.0, -1.0]], dtype=torch.float64)
    world = own @ cameras[:, :3, :3].transpose(1, 2) + cameras[:, None, :3, 3]  # (5, 3, 3)
    focal = places(1.0, 1.2, 1.4, 2.0, 0.5)
    at = focal[:, None, None] * own[None, :, :2] / -own[None, :, 2:] * places(1, -1) + 0.5
    origins, directions = rays(cameras, focal, at)
    torch.testing.assert_close(directions.norm(dim=2), torch.ones(5, 3, dtype=torch.float64))
    t = ((world - origins) * directions).sum(-1, keepdim=True)
    assert (t > 0).all()
    torch.testing.assert_close(origins + t * directions, world)
    for i, f in enumerate(focal):  # one focal length for all, and shared places
        alone = rays(cameras[i : i + 1], float(f), at[i])
        torch.testing.assert_close(alone[1][0], directions[i])


def test_the_picture_s_right_and_top_are_right_and_up():
    camera = on_sphere(places(0), places(0), 3.0)  # on the x axis: right is y, up is z
    _, directions = rays(camera, 1.0, torch.tensor([[0.9, 0.5], [0.5, 0.1]]))
    assert directions[0, 0, 1] > 0.3
    assert directions[0, 1, 2] > 0.3
    assert directions[0, :, 0].max() < 0


def test_rays_keep_their_precision_under_autocast():
    cameras, at = someone(3).float(), pixels(6)
    exact = rays(cameras, 1.4, at)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(rays(cameras, 1.4, at), exact)
        assert rotation(AXES.float()).dtype == torch.float32


def test_a_focal_length_and_a_camera_get_the_gradient_of_their_rays():
    camera, focal = someone(2).requires_grad_(), places(1.1, 0.7).requires_grad_()
    at = torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert gradcheck(lambda c, f: rays(c, f, at), (camera, focal))


# ---- angles


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 1.0, math.pi / 2, 3.0, math.pi - 1e-6, math.pi])
def test_angles_between_agree_with_scipy(angle):
    one = someone(6)[:, :3, :3]
    axes = torch.nn.functional.normalize(AXES[:6], dim=1) * angle
    other = one @ torch.from_numpy(Rotation.from_rotvec(axes.numpy()).as_matrix())
    found = angle_between(one, other)
    apart = (Rotation.from_matrix(one.numpy()).inv() * Rotation.from_matrix(other.numpy())).magnitude()
    torch.testing.assert_close(found, torch.from_numpy(np.degrees(apart)), atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(found, torch.full_like(found, math.degrees(angle)), atol=1e-5, rtol=1e-6)


# ---- paths


def test_an_orbit_is_even_and_closes():
    cameras = orbit(8, elevation=0.4, radius=2.5, start=0.1).double()
    azimuth, elevation = angles_of(cameras)
    torch.testing.assert_close(elevation, torch.full_like(elevation, 0.4), atol=1e-6, rtol=0)
    torch.testing.assert_close(azimuth[0], places(0.1)[0], atol=1e-6, rtol=0)
    steps = angle_between(cameras[:, :3, :3], cameras.roll(1, 0)[:, :3, :3])
    torch.testing.assert_close(steps, steps[:1].expand(8), atol=1e-3, rtol=0)
    assert_rigid(cameras, atol=1e-6)


def test_a_spiral_climbs():
    azimuth, elevation = angles_of(spiral(9, low=-0.2, high=1.0, radius=2.0, turns=0.4).double())
    torch.testing.assert_close(elevation, torch.linspace(-0.2, 1.0, 9).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(azimuth[-1], places(0.8 * math.pi)[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        spiral(1, low=0.3, high=0.6, radius=2.0)[0, 2, 3], torch.tensor(2 * math.sin(0.3))
    )


def ends() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of cameras: any, on one sphere, the same, nearly the same, half a turn apart about each axis."""
    any_ = someone(6, seed=3)
    azimuth, elevation = places(0.2, 2.9), places(0.3, 1.1)
    sphere = on_sphere(azimuth, elevation, 3.0)
    found = [(any_[0], any_[1]), (any_[2], any_[3]), (sphere[0], sphere[1]), (any_[4], any_[4])]
    for size in (1e-7, 1e-5, 1e-3, math.pi - 1e-5):
        small = rotation(places(0.6, 0, -0.8)[None] * size)[0]
        found.append((any_[5], rigid(small @ any_[5][:3, :3], any_[5][:3, 3] + 0.1)))
    for axis in (*EYE3, places(0.6, 0, -0.8), places(1, 1, 1) / math.sqrt(3)):
        half = rotation(math.pi * axis[None])[0]
        found.append((any_[5], rigid(half @ any_[5][:3, :3], any_[4][:3, 3])))
    return found


@pytest.mark.parametrize("pair", range(len(ends())))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_what_lies_between_two_cameras_begins_and_ends_with_them(pair, dtype):
    a, b = (v.to(dtype) for v in ends()[pair])
    path = between(a, b, 7)
    atol = 1e-5 if dtype == torch.float32 else 1e-7
    assert_rigid(path, atol)
    torch.testing.assert_close(path[0], a, atol=atol, rtol=0)
    torch.testing.assert_close(path[-1], b, atol=atol, rtol=0)
    whole = float(angle_between(a[:3, :3].double(), b[:3, :3].double()))
    steps = angle_between(path[1:, :3, :3].double(), path[:-1, :3, :3].double())
    torch.testing.assert_close(
        steps, torch.full_like(steps, whole / 6), atol=2e-3 if atol == 1e-5 else 1e-5, rtol=0
    )


def test_between_turns_as_slerp_does():
    from scipy.spatial.transform import Slerp

    a, b = someone(2, seed=5)
    turned = Slerp([0, 1], Rotation.from_matrix(torch.stack([a, b])[:, :3, :3].numpy()))(np.linspace(0, 1, 5))
    torch.testing.assert_close(between(a, b, 5)[:, :3, :3], torch.from_numpy(turned.as_matrix()))


def test_between_cameras_that_look_at_the_origin_all_do():
    a, b = on_sphere(places(0.2, 2.4), places(0.3, 1.1), places(3.0, 4.0))
    path = between(a, b, 9)
    far = path[:, :3, 3].norm(dim=1)
    torch.testing.assert_close(far, torch.linspace(3, 4, 9, dtype=torch.float64))
    torch.testing.assert_close(path[:, :3, 3], far[:, None] * path[:, :3, 2])


@pytest.mark.parametrize("angle", [0.0, 1e-4, 0.3, math.pi])
def test_cameras_are_apart_by_their_turn_and_their_step(angle):
    axis = places(1.0, 2.0, -2.0) / 3
    turn = torch.from_numpy(Rotation.from_rotvec(axis.numpy() * angle).as_matrix())
    a, b = rigid(EYE3, places(1.0, 2.0, 3.0)), rigid(turn, places(1.0, 2.0, 5.0))
    assert float(apart(a, b, 4.0)) == pytest.approx(2 * (1 - math.cos(angle)) + 0.25, abs=1e-12)
    assert float(apart(b, a, 4.0)) == float(apart(a, b, 4.0))


def test_on_the_way_goes_on_beyond_both_ends():
    a, b = on_sphere(places(0.2, 0.5), places(0.0, 0.0), 3.0)
    found = on_the_way(a, b, places(-1.0, 0.0, 0.5, 1.0, 2.0))
    azimuth, _ = angles_of(found)
    torch.testing.assert_close(azimuth, places(-0.1, 0.2, 0.35, 0.5, 0.8))
    torch.testing.assert_close(found, on_sphere(azimuth, torch.zeros_like(azimuth), 3.0))
