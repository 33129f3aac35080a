"""How far found cameras are from true ones, once the freedom that pictures leave is taken out.

Pictures say nothing of where the world's origin lies, how it is turned and how large it is: cameras are compared after
the similarity that fits them best (Umeyama, "Least-squares estimation of transformation parameters between two point
patterns", 1991). Cameras are (N, 4, 4) from camera to world, see `pellucid.cameras`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.cameras import angle_between


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """x -> scale * rotation @ x + move."""

    scale: float
    rotation: Tensor
    """(3, 3), without mirroring."""
    move: Tensor
    """(3,)."""

    def cameras(self, cameras: Tensor) -> Tensor:
        """Cameras (N, 4, 4) as they are in the other world."""
        found = cameras.double().clone()
        found[:, :3, :3] = self.rotation @ found[:, :3, :3]
        found[:, :3, 3] = self.points(found[:, :3, 3])
        return found

    def points(self, points: Tensor) -> Tensor:
        """Points (N, 3) in the other world."""
        return self.scale * points.double() @ self.rotation.T + self.move

    def inverse(self) -> Similarity:
        back = self.rotation.T
        return Similarity(scale=1 / self.scale, rotation=back, move=-(back @ self.move) / self.scale)


def umeyama(a: Tensor, b: Tensor) -> Similarity:
    """The similarity that takes points a (N, 3) closest to b (N, 3) in squares (Umeyama, eq. 40 to 42).

    Points that all lie on a line leave a turn about it open; which one is then as good as any. Raises ValueError for
    fewer than three points, or where all of them are one.
    """
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] != 3 or len(a) < 3:
        raise ValueError(
            f"points are {tuple(a.shape)} and {tuple(b.shape)}: two (N, 3) of at least three points"
        )
    a, b = a.double(), b.double()
    mean_a, mean_b = a.mean(0), b.mean(0)
    spread = (a - mean_a).square().sum(1).mean()
    if spread < 1e-18:
        raise ValueError(
            "all cameras stand at one point: nothing says how they are turned or how large their world is"
        )
    u, d, vt = torch.linalg.svd((b - mean_b).T @ (a - mean_a) / len(a))
    sign = torch.ones_like(d)
    sign[2] = torch.sign(torch.linalg.det(u) * torch.linalg.det(vt))
    rotation = u @ torch.diag(sign) @ vt
    scale = float((d * sign).sum() / spread)
    return Similarity(scale=scale, rotation=rotation, move=mean_b - scale * rotation @ mean_a)


def aligned(found: Tensor, true: Tensor) -> Similarity:
    """The similarity that takes found cameras (N, 4, 4) to the true ones: by where they stand and which way they look.

    Of each camera its place counts, and the places a step of the cameras' spread along its three axes, so that cameras
    on a line or at one point, which leave the places' similarity open, are aligned too.
    """
    spread = lambda c: float((c[:, :3, 3] - c[:, :3, 3].mean(0)).square().sum(1).mean().sqrt())
    found, true = found.double(), true.double()
    sizes = spread(found), spread(true)
    if min(sizes) < 1e-9:  # one world's size is not known: a step in it is a step in the other
        sizes = (max(sizes) if max(sizes) > 1e-9 else 1.0,) * 2
    marks = lambda c, step: torch.cat([c[:, :3, 3], *(c[:, :3, 3] + step * c[:, :3, k] for k in range(3))])
    return umeyama(marks(found, sizes[0]), marks(true, sizes[1]))


@dataclass(frozen=True, kw_only=True)
class CameraErrors:
    """Of each camera, after alignment."""

    rotation: Tensor
    """(N,), degrees."""
    translation: Tensor
    """(N,), as a share of the true cameras' median distance from the middle of them all."""


def camera_errors(found: Tensor, true: Tensor, by: Similarity) -> CameraErrors:
    """Errors of found cameras (N, 4, 4), taken to the world of the true ones by a similarity."""
    moved, true = by.cameras(found), true.double()
    radius = (true[:, :3, 3] - true[:, :3, 3].mean(0)).norm(dim=1).median().clamp(min=1e-12)
    return CameraErrors(
        rotation=angle_between(moved[:, :3, :3], true[:, :3, :3]),
        translation=(moved[:, :3, 3] - true[:, :3, 3]).norm(dim=1) / radius,
    )
