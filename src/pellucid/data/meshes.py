"""Models of triangles with textures, put together and hit by rays: the `Trace` of scenes made of fetched models.

Files are Wavefront OBJ, read by trimesh; rays are traced by embree.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pellucid.data import fetch
from pellucid.data.renders import lit

_EXTENT = 0.95
"""Distance of the farthest corner from the origin, a little within the unit ball that cameras just see."""
_Y_UP = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A model, and where it stands."""

    path: Path
    y_up: bool = True
    """Whether the file's y is up; else its z."""
    turn: float = 0.0
    """Degrees about the vertical."""
    height: float = 1.0
    """Once it stands."""
    at: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Where the middle of its underside stands."""
    colour: tuple[float, float, float] | None = None
    """Instead of what its file says; models without a texture need one."""


def arrangement(name: str) -> tuple[Placed, ...]:
    """What stands in a scene of `renders.VIEWS`; its models are fetched where they are missing."""
    root = fetch.get("models")
    duck, block, domino, mug, brick = (root / f"{n}.obj" for n in ("duck", "block", "domino", "mug", "brick"))
    if name == "views-duck":
        return (Placed(path=duck, turn=20.0),)
    return (
        Placed(path=block, y_up=False, height=0.66, turn=12.0),
        Placed(path=duck, height=0.76, turn=-50.0, at=(0.0, 0.0, 0.66)),
        Placed(path=domino, y_up=False, height=0.95, turn=75.0, at=(-0.47, 0.04, 0.0)),
        Placed(path=mug, y_up=False, height=0.5, turn=250.0, at=(0.1, -0.58, 0.0), colour=(0.2, 0.5, 0.75)),
        Placed(path=brick, height=0.34, turn=20.0, at=(0.04, 0.6, 0.0), colour=(0.82, 0.15, 0.14)),
    )  # fmt: skip


class Meshes:
    """What rays meet among models, which are moved and scaled together.

    The middle of the smallest ball around them comes to the origin, and that ball to a radius of `_EXTENT`.

    Attributes:
        vertices, faces: (V, 3) and (F, 3) of all of them, once moved.

    Raises:
        ValueError: trimesh or embree is missing, or a file is no model, or one without texture or colour.
    """

    def __init__(self, placed: Sequence[Placed]) -> None:
        needed("embreex.rtcore_scene")
        trimesh = needed("trimesh")
        models = [_Model.of(part, trimesh) for part in placed]
        vertices = np.concatenate([model.vertices for model in models])
        vertices = vertices - _middle(vertices)
        self.vertices = vertices * (_EXTENT / np.linalg.norm(vertices, axis=1).max())
        starts = np.cumsum([0, *(len(model.vertices) for model in models)])
        self.faces = np.concatenate(
            [model.faces + first for model, first in zip(models, starts, strict=False)]
        )
        self._owner = np.repeat(np.arange(len(models)), [len(model.faces) for model in models])
        self._first = np.cumsum([0, *(len(model.faces) for model in models)])
        self._models = models
        mesh = trimesh.Trimesh(self.vertices, self.faces, process=False)
        self._corners = self.vertices[self.faces]
        normals = np.cross(
            self._corners[:, 1] - self._corners[:, 0], self._corners[:, 2] - self._corners[:, 0]
        )
        self._normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)
        self._rays = needed("trimesh.ray.ray_pyembree").RayMeshIntersector(mesh)

    def __call__(self, origins: np.ndarray, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `renders.Trace`."""
        colour, distance = np.zeros((len(origins), 3)), np.full(len(origins), np.inf)
        triangle = self._rays.intersects_first(origins, directions)
        rows = np.flatnonzero(triangle >= 0)
        if not len(rows):
            return colour, distance
        hit = triangle[rows]
        a, b, c = (self._corners[hit, k] for k in range(3))
        # where the ray meets the triangle's plane, in float64: embree's own answer has 7 digits
        normal = self._normals[hit]
        slope = (directions[rows] * normal).sum(1)
        far = ((a - origins[rows]) * normal).sum(1) / np.where(np.abs(slope) > 1e-12, slope, 1e-12)
        at = origins[rows] + far[:, None] * directions[rows]
        share = _barycentric(a, b, c, at)
        owner = self._owner[hit]
        for k, model in enumerate(self._models):
            mine = np.flatnonzero(owner == k)
            if len(mine):
                colour[rows[mine]] = model.seen(hit[mine] - self._first[k], share[mine])
        colour[rows] *= lit(normal)
        distance[rows] = far
        return colour, distance


@dataclass(frozen=True, kw_only=True)
class _Model:
    vertices: np.ndarray
    faces: np.ndarray
    uv: np.ndarray | None
    """(V, 2); v runs up."""
    texture: np.ndarray
    """(H, W, 3) from 0 to 1; (1, 1, 3) for one colour."""

    @classmethod
    def of(cls, placed: Placed, trimesh: Any) -> _Model:
        try:
            scene = trimesh.load_scene(placed.path, process=False, file_type="obj")
            mesh = scene.to_geometry() if len(scene.geometry) else None
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"{placed.path} cannot be read as a model: {error}") from None
        if mesh is None or not len(mesh.faces):
            raise ValueError(f"{placed.path} holds no triangles")
        vertices = np.asarray(mesh.vertices, np.float64)
        if placed.y_up:
            vertices = vertices @ _Y_UP.T
        angle = np.radians(placed.turn)
        turn = np.array(
            [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]],
        )
        vertices = vertices @ turn.T
        low, high = vertices.min(0), vertices.max(0)
        foot = np.array([*((low + high) / 2)[:2], low[2]])
        vertices = (vertices - foot) * (placed.height / (high[2] - low[2])) + np.array(placed.at)
        image = getattr(getattr(mesh.visual, "material", None), "image", None)
        uv = getattr(mesh.visual, "uv", None)
        if placed.colour is not None:
            return cls(vertices=vertices, faces=np.asarray(mesh.faces), uv=None,
                       texture=np.array(placed.colour).reshape(1, 1, 3))  # fmt: skip
        if image is None or uv is None:
            raise ValueError(f"{placed.path} has no texture: give it a colour")
        return cls(vertices=vertices, faces=np.asarray(mesh.faces), uv=np.asarray(uv, np.float64),
                   texture=np.asarray(image.convert("RGB"), np.float64) / 255)  # fmt: skip

    def seen(self, triangles: np.ndarray, share: np.ndarray) -> np.ndarray:
        """Colours (n, 3) of points in triangles (n,) at these shares of their corners (n, 3), bilinear."""
        if self.uv is None:
            return np.broadcast_to(self.texture[0, 0], (len(triangles), 3))
        height, width, _ = self.texture.shape
        u, v = ((self.uv[self.faces[triangles]] * share[..., None]).sum(1)).T
        x, y = (u % 1) * width - 0.5, (1 - v % 1) * height - 0.5
        left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
        right, low = (left + 1).clip(0, width - 1), (top + 1).clip(0, height - 1)
        a, b = (x - left)[:, None], (y - top)[:, None]
        left, top = left.clip(0, width - 1), top.clip(0, height - 1)
        upper = self.texture[top, left] * (1 - a) + self.texture[top, right] * a
        lower = self.texture[low, left] * (1 - a) + self.texture[low, right] * a
        return upper * (1 - b) + lower * b


def _middle(points: np.ndarray, steps: int = 1000) -> np.ndarray:
    """(3,) of the smallest ball around points (P, 3), to about 1 / sqrt(steps) of its radius.

    By ever smaller steps towards the farthest (Badoiu and Clarkson, "Smaller core-sets for balls", 2003).
    """
    middle = (points.min(0) + points.max(0)) / 2
    for step in range(1, steps + 1):
        away = points - middle
        middle = middle + away[(away * away).sum(1).argmax()] / (step + 1)
    return middle


def _barycentric(a: np.ndarray, b: np.ndarray, c: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Shares (n, 3) of the corners of triangles in points of their planes, each (n, 3); clipped to the triangle."""
    first, second, here = b - a, c - a, at - a
    d00, d01, d11 = (first * first).sum(1), (first * second).sum(1), (second * second).sum(1)
    d20, d21 = (here * first).sum(1), (here * second).sum(1)
    area = np.maximum(d00 * d11 - d01 * d01, 1e-30)
    v, w = (d11 * d20 - d01 * d21) / area, (d00 * d21 - d01 * d20) / area
    share = np.stack([1 - v - w, v, w], 1).clip(0, 1)
    return share / share.sum(1, keepdims=True)


def needed(module: str) -> Any:
    """A module of the extra `views`. Raises ValueError, with how it is installed, where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"models need {module.split('.')[0]}: pip install 'pellucid[views]' ({error})"
        ) from error
