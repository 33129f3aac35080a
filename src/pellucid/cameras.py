"""Cameras: where they stand, which way they look, and which rays leave them.

A camera is a (4, 4) matrix from its own axes to the world's (camera to world), with the axes of OpenGL, Blender and
nerfstudio: x to the right, y up, and it looks along -z. The world's up is z; an object lies within the unit ball about
the origin. A focal length counts in sides of the (square) picture: 1 / (2 tan(angle of view / 2)).

    B  cameras   R  rays   a  azimuth from x towards y   e  elevation above the horizon; radians
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def on_sphere(
    azimuth: Tensor, elevation: Tensor, radius: Tensor | float = 1.0, roll: Tensor | float = 0.0
) -> Tensor:
    """Cameras (*B, 4, 4) that look at the origin from angles (*B), turned about the way they look by `roll`.

    Built of sines and cosines of the angles alone, so that poles, where a cross product with the world's up would be
    0 / 0, are like any other place: there the azimuth says which way the picture's up points.
    """
    sa, ca, se, ce = azimuth.sin(), azimuth.cos(), elevation.sin(), elevation.cos()
    zero = torch.zeros_like(sa)
    right = torch.stack([-sa, ca, zero], -1)
    up = torch.stack([-se * ca, -se * sa, ce], -1)
    back = torch.stack([ce * ca, ce * sa, se], -1)
    turn = torch.as_tensor(roll, dtype=sa.dtype, device=sa.device).expand(sa.shape)[..., None]
    right, up = right * turn.cos() + up * turn.sin(), up * turn.cos() - right * turn.sin()
    far = torch.as_tensor(radius, dtype=sa.dtype, device=sa.device).expand(sa.shape)[..., None]
    return rigid(torch.stack([right, up, back], -1), far * back)


def rigid(rotation: Tensor, place: Tensor) -> Tensor:
    """Cameras (*B, 4, 4) of rotations (*B, 3, 3) and places (*B, 3)."""
    upper = torch.cat([rotation, place[..., None]], -1)
    last = upper.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*upper.shape[:-2], 1, 4)
    return torch.cat([upper, last], -2)


def look_at(eye: Tensor, target: Tensor | None = None, up: Tensor | None = None) -> Tensor:
    """Cameras (*B, 4, 4) at `eye` that look at `target`, the origin by default, with `up`, z by default, upwards in the
    picture; each (*B, 3).

    Where the camera looks along `up` itself another axis takes its place: no camera is NaN. Raises ValueError where
    eye and target are one point.
    """
    back = eye if target is None else eye - target
    up = back.new_tensor([0.0, 0.0, 1.0]) if up is None else up
    if (back.norm(dim=-1) < 1e-9).any():
        raise ValueError("a camera stands at the very point that it looks at: no direction follows from that")
    back = F.normalize(back, dim=-1)
    up = F.normalize(up.expand_as(back), dim=-1)
    along = (back * up).sum(-1, keepdim=True).abs() > 1 - 1e-7
    other = back.new_tensor([0.0, 1.0, 0.0])
    other = torch.where(
        (back * other).sum(-1, keepdim=True).abs() > 0.9, back.new_tensor([1.0, 0.0, 0.0]), other
    )
    right = F.normalize(torch.cross(torch.where(along, other, up), back, dim=-1), dim=-1)
    return rigid(torch.stack([right, torch.cross(back, right, dim=-1), back], -1), eye)


def rotation(axis_angle: Tensor) -> Tensor:
    """Rotations (*B, 3, 3) about axes (*B, 3) by their length, radians (Rodrigues; Yuan, eq. 3.2).

    I + A [v]x + B [v]x^2 with A = sin(phi) / phi and B = (1 - cos(phi)) / phi^2, each by its series where phi is small,
    so that gradients are finite at no rotation.
    """
    squared = axis_angle.square().sum(-1)[..., None, None]
    small = squared < 1e-6
    phi = torch.where(small, torch.ones_like(squared), squared).sqrt()
    a = torch.where(small, 1 - squared / 6 + squared.square() / 120, phi.sin() / phi)
    b = torch.where(small, 0.5 - squared / 24, (1 - phi.cos()) / phi.square())
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    return torch.eye(3, dtype=cross.dtype, device=cross.device) + a * cross + b * product(cross, cross)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Small matrices (*B, N, K) and (*B, K, M) -> (*B, N, M), in their own precision under autocast too: three digits,
    which is what bfloat16 has, are too few for where a ray goes."""
    return (a[..., None] * b[..., None, :, :]).sum(-2)


def moved(first: Tensor, move: Tensor) -> Tensor:
    """Cameras (B, 4, 4): `first` (4, 4) or (B, 4, 4), turned by an axis-angle and moved, both (B, 3) of `move` and in
    the camera's own axes."""
    return product(first, rigid(rotation(move[:, :3]), move[:, 3:]))


def pixels(size: int, width: int | None = None, *, device: torch.device | None = None) -> Tensor:
    """The middles of the pixels of a picture, row by row: (height width, 2), across and down.

    A square's lie in [0, 1]. One of another width, `size` being the height, keeps its middle at 1/2: lengths count in
    heights, and so does then the focal length.
    """
    wide = size if width is None else width
    middles = (torch.arange(size, device=device) + 0.5) / size
    columns = (torch.arange(wide, device=device) + 0.5 * (1 + size - wide)) / size
    down, across = torch.meshgrid(middles, columns, indexing="ij")
    return torch.stack([across, down], -1).flatten(0, 1)


def rays(cameras: Tensor, focal: Tensor | float, at: Tensor) -> tuple[Tensor, Tensor]:
    """Rays through places of pictures: cameras (B, 4, 4), focal () or (B,), at (R, 2) or (B, R, 2) as `pixels` says.

    Returns origins (B, R, 3) and directions (B, R, 3) of length 1.
    """
    focal = torch.as_tensor(focal, dtype=cameras.dtype, device=cameras.device).reshape(-1, 1)
    at = at.to(cameras.dtype)
    across, down = ((at[..., i] - 0.5) / focal for i in (0, 1))
    across, down = torch.broadcast_tensors(across.expand(len(cameras), -1), down)
    own = F.normalize(torch.stack([across, -down, -torch.ones_like(across)], -1), dim=-1)
    directions = product(own, cameras[:, :3, :3].transpose(1, 2))
    return cameras[:, None, :3, 3].expand_as(directions), directions


def project(points: Tensor, camera: Tensor, focal: float) -> Tensor:
    """Where a camera (4, 4) sees points (P, 3) of the world: (P, 3) of across and down, as in `pixels`, and depth.

    Depth is along the camera's axis; where it is not above 0 the point is behind the camera.
    """
    own = (points - camera[:3, 3]) @ camera[:3, :3]
    depth = -own[:, 2]
    return torch.stack([0.5 + focal * own[:, 0] / depth, 0.5 - focal * own[:, 1] / depth, depth], 1)


def angles_of(cameras: Tensor) -> tuple[Tensor, Tensor]:
    """Azimuth and elevation (*B) of where cameras (*B, 4, 4) stand, seen from the origin."""
    x, y, z = cameras[..., :3, 3].unbind(-1)
    return torch.atan2(y, x), torch.atan2(z, torch.hypot(x, y))


def apart(a: Tensor, b: Tensor, away: float) -> Tensor:
    """How far cameras (*B, 4, 4) are from others: (*B), the square of the distance between their places, as a share of
    how far away they look, and half the sum of squares between their rotations, which is about the square of a small
    angle in radians."""
    turned = (a[..., :3, :3] - b[..., :3, :3]).square().sum((-2, -1)) / 2
    return turned + (a[..., :3, 3] - b[..., :3, 3]).square().sum(-1) / away**2


def angle_between(a: Tensor, b: Tensor) -> Tensor:
    """The angle (*B), degrees, of the rotation from one (*B, 3, 3) to another; exact for small ones too."""
    between = a.transpose(-1, -2) @ b
    skew = torch.stack(
        [
            between[..., 2, 1] - between[..., 1, 2],
            between[..., 0, 2] - between[..., 2, 0],
            between[..., 1, 0] - between[..., 0, 1],
        ],
        -1,
    )
    trace = between.diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.atan2(skew.norm(dim=-1), trace - 1) * (180 / math.pi)


def orbit(n: int, *, elevation: float, radius: float, start: float = 0.0) -> Tensor:
    """n cameras (n, 4, 4) on a circle about the object, evenly, none twice. Elevation and start in radians."""
    azimuth = start + torch.arange(n, dtype=torch.float32) * (2 * math.pi / n)
    return on_sphere(azimuth, torch.full_like(azimuth, elevation), radius)


def spiral(n: int, *, low: float, high: float, radius: float, turns: float = 2.0) -> Tensor:
    """n cameras (n, 4, 4) that climb from elevation `low` to `high`, radians, in so many turns about the object."""
    share = torch.linspace(0, 1, n)
    return on_sphere(share * turns * 2 * math.pi, low + (high - low) * share, radius)


def between(a: Tensor, b: Tensor, n: int) -> Tensor:
    """n cameras (n, 4, 4) from a to b, (4, 4) each, ends included: evenly by the screw's rotation, and its distance
    from the origin; for cameras that look at the origin all between do, too."""
    return on_the_way(a, b, torch.linspace(0, 1, n, dtype=a.dtype, device=a.device))


def along(cameras: Tensor, n: int) -> Tensor:
    """n cameras (n, 4, 4), evenly by number from the first of some (F, 4, 4) to the last: those themselves where n is
    F, and `between` neighbours otherwise."""
    at = torch.linspace(0, len(cameras) - 1, n, dtype=torch.float64)
    first = at.round().long()
    first = torch.where((at - first).abs() < 1e-9, first, at.long())
    found = []
    for i, share in zip(first.tolist(), (at - first).tolist(), strict=True):
        near = share < 1e-9
        found.append(
            cameras[i] if near else on_the_way(cameras[i], cameras[i + 1], cameras.new_tensor([share]))[0]
        )
    return torch.stack(found)


def on_the_way(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Cameras (S, 4, 4) so far, (S,) from 0 to 1, on the way from a to b, (4, 4) each; below 0 and above 1 beyond."""
    turn = _axis_angle(product(b[:3, :3], a[:3, :3].T))
    turned = rotation(share[:, None] * turn)  # (n, 3, 3)
    whole = rotation(turn)
    own = a[:3, 3] + share[:, None] * (product(whole.T, b[:3, 3:])[:, 0] - a[:3, 3])
    return rigid(product(turned, a[:3, :3].expand_as(turned)), product(turned, own[..., None])[..., 0])


def _axis_angle(matrix: Tensor) -> Tensor:
    """(3,), the axis times the angle of a rotation (3, 3), half turns included."""
    skew = torch.stack(
        [matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]]
    )
    angle = torch.atan2(skew.norm(), matrix.trace() - 1)
    # the skew part is exact for small turns and vanishes at half ones, where the axis is the only thing that stays
    _values, vectors = torch.linalg.eigh((matrix + matrix.T).double())
    stays = vectors[:, -1].to(matrix.dtype)
    stays = torch.where((stays * skew).sum() < 0, -stays, stays)
    return angle * torch.where(angle < 2, F.normalize(skew, dim=0, eps=1e-30), stays)
