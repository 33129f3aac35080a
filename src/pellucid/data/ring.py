"""Points on half a ring, in four clusters: a data set whose every answer is known (CoFi-UCGen, figure 8).

A mixture of four von Mises-Fisher distributions on the circle, with mean directions 0, pi/4, pi/2 and 3 pi/4 and
concentration 30. A point is an image of one pixel with two channels, (2, 1, 1): everything that trains on pictures
trains on points.
"""

from __future__ import annotations

import numpy as np
import torch

from pellucid.data.draws import Draws
from pellucid.types import Attribute, Batch

CLUSTERS = 4
CONCENTRATION = 30.0
CLASS_NAMES = ("0", "pi/4", "pi/2", "3 pi/4")
_GRID = 20_001
"""Points of the table by which uniform numbers become angles."""


def density(angle: np.ndarray) -> np.ndarray:
    """(..., 4): how probable an angle is in each cluster, by von Mises' density."""
    away = np.asarray(angle)[..., None] - np.pi / 4 * np.arange(CLUSTERS)
    return np.exp(CONCENTRATION * (np.cos(away) - 1)) / (
        2 * np.pi * np.i0(CONCENTRATION) * np.exp(-CONCENTRATION)
    )


def ceiling() -> float:
    """The best that any reading can score: the share of points whose most probable cluster is their own.

    The integral over the circle of the largest of the four densities, each cluster holding a quarter.
    """
    angle = np.linspace(-np.pi, np.pi, 200_001)
    return float(np.trapezoid(density(angle).max(1), angle) / CLUSTERS)


class Ring:
    """`length` points, each a function of (seed, split, index); labels are their clusters."""

    shape = (2, 1, 1)
    class_names = CLASS_NAMES
    attributes: tuple[Attribute, ...] = ()
    table: np.ndarray | None = None

    def __init__(self, *, length: int, seed: int = 0, split: str = "train") -> None:
        if length < 1:
            raise ValueError(f"length is {length}; at least one point")
        self.length, self.seed, self.split = length, seed, split
        self.fingerprint = f"ring-1-{split}-{seed}-{length}"
        # the inverse of the distribution function, tabulated: uniform numbers to angles about a cluster's centre
        angle = np.linspace(-np.pi, np.pi, _GRID)
        share = np.cumsum(density(angle)[:, 0])
        self._share, self._angle = share / share[-1], angle

    def __len__(self) -> int:
        return self.length

    def batch(self, indices: np.ndarray) -> Batch:
        """The points of (B,) indices, in that order."""
        indices = np.asarray(indices, dtype=np.int64)
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"indices {indices.min()}..{indices.max()} of a data set of {len(self)}")
        draws = Draws(self.seed, self.split, indices)
        cluster = draws.choice(CLUSTERS)
        angle = np.pi / 4 * cluster + np.interp(draws.uniform().astype(np.float64), self._share, self._angle)
        points = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
        return Batch(x0=torch.from_numpy(points)[..., None, None], labels=torch.from_numpy(cluster))
