"""Models of triangles, put together and hit by rays: the `Trace` of scenes made of fetched models, and of a user's own.

Files are read by trimesh; rays are traced by embree.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pellucid.data import fetch
from pellucid.data.renders import lit

_EXTENT = 0.95
"""Distance of the farthest corner from the origin, a little within the unit ball that cameras just see."""
_Y_UP = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
FORMATS = {".obj": True, ".glb": True, ".ply": False, ".stl": False, ".off": False}
"""Endings of files that a model of a user may have, and whether y is up in them; else z is."""
GREY = (0.6, 0.6, 0.6)
"""What a model of a user is painted in whose file says nothing of colours."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A model, and where it stands."""

    path: Path
    y_up: bool = True
    """Whether the file's y is up; else its z."""
    turn: float = 0.0
    """Degrees about the vertical."""
    height: float | None = 1.0
    """Once it stands; None leaves it as large as in its file."""
    at: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Where the middle of its underside stands."""
    colour: tuple[float, float, float] | None = None
    """Instead of what its file says."""
    bare: tuple[float, float, float] | None = None
    """Where its file says nothing of colours; without it, that is an error."""


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


def own(path: str) -> Placed:
    """A user's model as it stands in its file. Raises ValueError where nothing is there, or no file of `FORMATS`."""
    file = Path(path).expanduser()
    y_up = FORMATS.get(file.suffix.lower())
    if y_up is None or not file.is_file():
        what = "a folder" if file.is_dir() else "not there" if not file.exists() else "no model, by its name"
        raise ValueError(f"{path or 'the path of a model'} is {what}: give a file, {', '.join(FORMATS)}")
    return Placed(path=file, y_up=y_up, height=None, bare=GREY)


def contents(placed: Placed) -> str:
    """Stands for what is in a model's file and in those that it names, its materials and textures.

    One that cannot be had is told: the model is without it. Raises ValueError as `Meshes`.
    """
    _, digest, missing = _read(placed.path)
    for name in missing:
        _log.warning("%s names %s, which is not in its folder: it is seen without", placed.path, name)
    return digest


class Meshes:
    """What rays meet among models, which are moved and scaled together.

    The middle of the smallest ball around them comes to the origin, and that ball to a radius of `_EXTENT`.

    Attributes:
        vertices, faces: (V, 3) and (F, 3) of all of them, once moved.

    Raises:
        ValueError: trimesh or embree is missing, or a file is no model, or has no triangles or no colours.
    """

    def __init__(self, placed: Sequence[Placed]) -> None:
        needed("embreex.rtcore_scene")
        trimesh = needed("trimesh")
        models = [model for part in placed for model in _stood(part)]
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
    """Triangles of one material."""

    vertices: np.ndarray
    faces: np.ndarray
    colours: np.ndarray
    """(F, 3, 3) of the corners of each triangle, from 0 to 1; where there is a texture, by what it is multiplied."""
    uv: np.ndarray | None = None
    """(V, 2); v runs up."""
    texture: np.ndarray | None = None
    """(H, W, 3) from 0 to 1."""

    def seen(self, triangles: np.ndarray, share: np.ndarray) -> np.ndarray:
        """Colours (n, 3) of points in triangles (n,) at these shares of their corners (n, 3), bilinear."""
        plain = (self.colours[triangles] * share[..., None]).sum(1)
        if self.uv is None or self.texture is None:
            return plain
        height, width, _ = self.texture.shape
        u, v = ((self.uv[self.faces[triangles]] * share[..., None]).sum(1)).T
        x, y = (u % 1) * width - 0.5, (1 - v % 1) * height - 0.5
        left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
        right, low = (left + 1).clip(0, width - 1), (top + 1).clip(0, height - 1)
        a, b = (x - left)[:, None], (y - top)[:, None]
        left, top = left.clip(0, width - 1), top.clip(0, height - 1)
        upper = self.texture[top, left] * (1 - a) + self.texture[top, right] * a
        lower = self.texture[low, left] * (1 - a) + self.texture[low, right] * a
        return plain * (upper * (1 - b) + lower * b)


def _stood(placed: Placed) -> list[_Model]:
    """A model, a part for each of its materials, where it stands."""
    models = [_painted(mesh, placed) for mesh in _read(placed.path)[0]]
    if not models:
        raise ValueError(f"{placed.path} holds no triangles: points and lines alone have no surface to see")
    vertices = [model.vertices @ _Y_UP.T if placed.y_up else model.vertices for model in models]
    angle = np.radians(placed.turn)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]],
    )
    vertices = [part @ turn.T for part in vertices]
    low, high = np.min([part.min(0) for part in vertices], 0), np.max([part.max(0) for part in vertices], 0)
    if not (high > low).any():
        raise ValueError(f"{placed.path} has no size: all corners of its triangles lie at one place")
    foot = np.array([*((low + high) / 2)[:2], low[2]])
    scale = 1.0 if placed.height is None else placed.height / (high[2] - low[2])
    return [
        replace(model, vertices=(part - foot) * scale + np.array(placed.at))
        for model, part in zip(models, vertices, strict=True)
    ]


def _read(path: Path) -> tuple[list[Any], str, list[str]]:
    """The meshes of a file, where the file puts them; what stands for its bytes and those of the files that it names;
    and which of these cannot be had."""
    trimesh, resolvers = needed("trimesh"), needed("trimesh.resolvers")
    digest, missing = hashlib.sha256(), []

    class Noted(resolvers.FilePathResolver):  # type: ignore[name-defined]
        def get(self, name: str) -> bytes:
            try:
                found: bytes = super().get(name)
            except (OSError, ValueError):
                missing.append(name)
                raise
            digest.update(found)
            return found

    try:
        digest.update(path.read_bytes())
        scene = trimesh.load_scene(
            path, process=False, file_type=path.suffix[1:], resolver=Noted(str(path.absolute()))
        )
        meshes = [mesh for mesh in scene.dump() if isinstance(mesh, trimesh.Trimesh) and len(mesh.faces)]
    except Exception as error:  # what readers raise of a damaged file is no closed list
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or repr(error)
        raise ValueError(
            f"{path} cannot be read as a model: {why.strip().splitlines()[0]}. Save it anew, as .glb for one"
        ) from None
    return meshes, digest.hexdigest()[:16], missing


def _painted(mesh: Any, placed: Placed) -> _Model:
    """A mesh of trimesh, in the axes of its file."""
    used, faces = np.unique(np.asarray(mesh.faces), return_inverse=True)
    if used[0] < 0 or used[-1] >= len(mesh.vertices):
        raise ValueError(f"{placed.path} has triangles of corners that are not there")
    vertices = np.asarray(mesh.vertices, np.float64)[used]
    if not np.isfinite(vertices).all():
        raise ValueError(f"{placed.path} has corners at NaN or infinity")
    faces = faces.reshape(-1, 3)
    plain = lambda colour: np.broadcast_to(np.asarray(colour, np.float64)[:3], (len(faces), 3, 3))
    if placed.colour is not None:
        return _Model(vertices=vertices, faces=faces, colours=plain(placed.colour))
    visual = mesh.visual
    of_vertices = lambda values: np.asarray(values)[used][faces, :3] / 255
    material = getattr(visual, "material", None)
    image = getattr(material, "image", None) or getattr(material, "baseColorTexture", None)
    tint = getattr(material, "baseColorFactor", None)  # of glTF, which multiplies by it
    uv = getattr(visual, "uv", None)
    texture = None
    if image is not None and uv is not None:
        uv = np.asarray(uv, np.float64)[used]
        try:
            texture = np.asarray(image.convert("RGB"), np.float64) / 255
        except Exception as error:  # as in `_read`
            raise ValueError(f"{placed.path} has a texture that cannot be read: {error}") from None
    beside = None if material is None else visual.vertex_attributes.get("color")
    if beside is not None:
        colours = of_vertices(needed("trimesh.visual.color").to_rgba(beside))
        colours = colours if tint is None else colours * plain(tint / 255)
    elif visual.kind == "vertex":
        colours = of_vertices(visual.vertex_colors)
    elif visual.kind == "face":
        colours = np.repeat(np.asarray(visual.face_colors)[:, None, :3] / 255, 3, axis=1)
    elif texture is not None:
        colours = plain((1, 1, 1) if tint is None else tint / 255)
    elif (said := getattr(material, "diffuse", tint)) is not None:
        colours = plain(said / 255)
    elif placed.bare is not None:
        colours = plain(placed.bare)
    else:
        raise ValueError(f"{placed.path} has no texture and no colours: give it a colour")
    return _Model(vertices=vertices, faces=faces, colours=colours, uv=uv, texture=texture)


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
