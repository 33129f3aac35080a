"""What a field has learned, as geometry: the cameras of its photographs, points, a surface.

N  cameras   P  points   V  vertices   F  triangles
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid.cameras import pixels, rays
from pellucid.data.catalog import open_data
from pellucid.data.images import Dataset
from pellucid.data.meshes import needed
from pellucid.methods.radiance import Radiance
from pellucid.model import Model
from pellucid.types import Batch

SOLID = math.log(2) / 0.1
"""The density of which a tenth of a unit of length stops half of the light."""


def radiance(model: Model) -> Radiance:
    """The method of a model that has a scene. Raises ValueError for any other."""
    if not isinstance(model.method, Radiance):
        raise ValueError(
            f"{model.recipe.method} has no scene: there are no cameras, points or surfaces to show of it"
        )
    return model.method


def training_pictures(model: Model, spec: str | None = None) -> Dataset:
    """The pictures that a model was trained on, opened again; or, with `spec`, those.

    Raises ValueError where they are not there any more, or have changed since.
    """
    made = model.recipe.data
    if spec is not None:
        return open_data(spec, size=made.size, channels=made.channels)
    try:
        data = open_data(made.spec, size=made.size, channels=made.channels, limit=made.limit)
    except ValueError as error:
        raise ValueError(
            f"the training pictures cannot be opened: {error}. Say where they are with --data"
        ) from None
    if model.trained_on.get("fingerprint") not in (None, data.fingerprint):
        raise ValueError(
            f"the pictures in {made.spec} are not those that the model was trained on: some were added, removed or "
            f"changed. --data {made.spec} takes them as they are"
        )
    return data


class Joined:
    """Several data sets of one shape, one after the other, as far as pictures go."""

    def __init__(self, parts: Sequence[Dataset]) -> None:
        self.parts, self.shape, self.fingerprint = parts, parts[0].shape, parts[0].fingerprint
        self.class_names, self.attributes, self.table = (), (), None
        self.keys = tuple(key for part in parts for key in getattr(part, "keys", ()) or ())

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def batch(self, indices: np.ndarray) -> Batch:
        """The samples of (B,) indices, all in one of the parts."""
        first = 0
        for part in self.parts:
            own = np.asarray(indices) - first
            if (own >= 0).all() and (own < len(part)).all():
                return part.batch(own)
            first += len(part)
        raise IndexError(f"indices {indices} of {len(self)} pictures lie in no single part")


def every_picture(model: Model, spec: str | None = None) -> Dataset:
    """The pictures that a model was trained on, and after them those of the same place that were held out, whose
    cameras it can read as well. Learned poses are of training pictures alone. Raises ValueError as
    `training_pictures`."""
    data = training_pictures(model, spec)
    made = model.recipe.data
    trained_alone = radiance(model).posed_by == "learning" or made.limit is not None
    if trained_alone or not getattr(data, "keys", None):
        return data
    parts = [data]
    for split in ("val", "test"):
        with suppress(ValueError):  # there is none
            parts.append(open_data(spec or made.spec, size=made.size, channels=made.channels, split=split))
    return Joined(parts) if len(parts) > 1 else data


def found_cameras(
    model: Model, data: Dataset, *, rows: Iterable[int] | None = None, seed: int = 0, **controls: Any
) -> tuple[Tensor, Tensor]:
    """From where each picture was taken, (N, 4, 4) in the model's world, and focal lengths (N,) in sides of the square.

    Of all, or of those with the numbers `rows`. Each is read as it would be alone, with the same seed.
    """
    method, cameras, focal = radiance(model), [], []
    for i in range(len(data)) if rows is None else rows:
        row = np.array([i])
        batch = replace(data.batch(row), index=torch.from_numpy(row))
        cameras.append(method.seen_from(batch, torch.Generator().manual_seed(seed), **controls).cpu())
        focal.append(method.focal_of(batch).cpu())
    return torch.cat(cameras), torch.cat(focal)


@torch.no_grad()
def points(
    model: Model, cameras: Iterable[Tensor], *, size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Where rays of cameras (4, 4) end that stop more than half of the light: (P, 3), and colours (P, 3) uint8.

    A ray ends at the mean distance of what stopped its light; its colour is without the background's share. Raises
    ValueError where no ray does.
    """
    method = radiance(model)
    side = size or method.image_shape[-1]
    if side < 1:
        raise ValueError(f"views of {side} pixels have no points: give at least 1")
    at = pixels(side, device=method.device)
    behind = {"white": 1.0, "black": -1.0}.get(method.view.background, 0.0)
    places, colours, clearest = [], [], 0.0
    for camera in cameras:
        camera = camera.to(method.device)
        colour, depth, opacity = (v[0].flatten(-2) for v in method.pictures(camera[None], size=side))
        clearest = max(clearest, opacity.max().item())
        origins, directions = (v[0] for v in rays(camera[None], method.focal, at))
        # what was not stopped counts in the picture as at the far end, and as background
        left = 1 - opacity
        if method.view.background != "none":
            distance = (depth - left * method.space.far) / opacity.clamp(min=1e-6)
        else:
            distance = depth
        ends = origins + distance[:, None] * directions
        cube = method.space.inside(ends)
        there = (cube.abs() <= 1).all(-1) if method.view.forward else cube.square().sum(-1) <= 1
        solid = (opacity > 0.5) & there
        own = (colour - left * behind) / opacity.clamp(min=1e-6)
        places.append(ends[solid].cpu())
        colours.append(own.T[solid].expand(-1, 3).cpu())
    if not sum(map(len, places)):
        raise ValueError(
            f"no ray of the training cameras is stopped by half within the scene (at most {clearest:.0%}): the field "
            f"shows nothing solid yet. Train it for longer, or look at `pellucid sample {model.origin} --path orbit`"
        )
    return torch.cat(places).numpy(), _bytes(torch.cat(colours))


@torch.no_grad()
def surface(
    model: Model, *, density: float | None = None, cells: int = 128
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where a field is as dense as `density`: vertices (V, 3), triangles (F, 3) and colours (V, 3) uint8.

    Marching cubes (Lorensen and Cline, 1987) on a grid of `cells` a side over the field's cube, closed at its border.
    Raises ValueError where nothing is as dense.
    """
    method, level = radiance(model), SOLID if density is None else density
    if not 8 <= cells <= 1024:
        raise ValueError(f"cells is {cells}; a mesh needs 8 to 1024 along a side")
    if not level > 0 or math.isinf(level):
        raise ValueError(f"density is {level:g}; it is a number above 0")
    measure = needed("skimage.measure")
    volume = F.pad(densities(method, cells + 1), (1,) * 6)
    if volume.max() <= level:
        raise ValueError(
            f"nothing in the field is denser than {level:g} (the densest is {volume.max():.3g}): give a lower "
            f"--density, or train for longer"
        )
    # triangles turn outwards; the third axis of a forward cube leads away from the cameras, the world's towards them
    turned = "descent" if method.view.forward else "ascent"
    corners, faces, _, _ = measure.marching_cubes(volume.numpy(), level, gradient_direction=turned)
    cube = torch.from_numpy((corners - 1) * (2 / cells) - 1).float().clamp(-1, 1)
    world = method.space.outside(cube.to(method.device)).cpu()
    # seen from where cameras stand
    eye = torch.zeros(3) if method.view.forward else F.normalize(world, dim=1) * method.view.radius
    directions = F.normalize(world - eye, dim=1)
    colour = torch.cat([c for _, c in _asked(method, cube, directions)])
    return world.numpy(), faces, _bytes(colour.expand(-1, 3))


@torch.no_grad()
def densities(method: Radiance, side: int) -> Tensor:
    """(side, side, side): the density on a grid over the field's cube, 0 where rays do not look."""
    ends = torch.linspace(-1, 1, side)
    density = torch.zeros(side**3)
    # the coordinates of all at once would be three times as large as what is asked for
    for first in range(0, len(density), method.view.budget):
        rows = torch.arange(first, min(first + method.view.budget, len(density)))
        cube = torch.stack([ends[i] for i in torch.unravel_index(rows, (side,) * 3)], -1)
        if not method.view.forward:
            looked_at = cube.square().sum(-1) <= method.space.edge**2
            rows, cube = rows[looked_at], cube[looked_at]
        if len(rows):
            ((density[rows], _),) = _asked(method, cube, torch.zeros(1, 3))
    return density.view(side, side, side)


def _asked(method: Radiance, cube: Tensor, directions: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Density (P,) and colour (P, C) at points (P, 3) of the field's cube, part by part, on the CPU."""
    towards = directions.expand_as(cube)
    for part, seen in zip(cube.split(method.view.budget), towards.split(method.view.budget), strict=True):
        density, colour = method.field(part.to(method.device), seen.to(method.device))
        yield density.float().cpu(), colour.float().cpu()


def _bytes(colours: Tensor) -> np.ndarray:
    return colours.add(1).mul(127.5).round().clamp(0, 255).byte().numpy()
