"""Heads that say from where a picture was taken (Yuan, sections 3.3.1 and 3.3.3).

B  pictures   M  candidates   D  entries of what an encoder found
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pellucid.cameras import angles_of, moved, on_sphere, on_the_way
from pellucid.nets.blocks import zeroed


@dataclass(frozen=True, kw_only=True)
class Poses:
    """What a head says of some pictures."""

    cameras: Tensor
    """(B, M, 4, 4)."""
    scores: Tensor
    """(B, M) logits: which of its cameras a picture was taken from."""
    reversed: Tensor | None = None
    """(B, 4, 4), the camera in a world turned inside out, where that is asked for."""


def sectors(candidates: int, *, low: float, high: float) -> Tensor:
    """A band of the sphere between two elevations, radians, cut into M sectors of about one area: (M, 2, 2), of each
    the (first, last) azimuth and elevation.

    Rings of about square sectors, of as many sectors as their share of the area asks for; eight of the whole sphere are
    its octants.
    """
    if candidates < 1 or not -math.pi / 2 <= low < high <= math.pi / 2:
        raise ValueError(
            f"{candidates} candidates between elevations {low:.3g} and {high:.3g} (radians): at least one, and "
            f"elevations between the poles, the lower one first"
        )
    area = 2 * math.pi * (math.sin(high) - math.sin(low))
    rings = max(1, min(candidates, int((high - low) / math.sqrt(area / candidates))))
    ends = [round(i * candidates / rings) for i in range(rings + 1)]
    heights = [math.sin(low) + (math.sin(high) - math.sin(low)) * end / candidates for end in ends]
    found = []
    for i, (first, last) in enumerate(itertools.pairwise(ends)):
        n = last - first
        elevations = [math.asin(max(-1.0, min(1.0, h))) for h in heights[i : i + 2]]
        # sectors of neighbouring rings stand in each other's gaps, where there is more than one pair
        shift = (i % 2) / 2 if rings > 2 else 0.0
        found += [
            [[2 * math.pi * (k + shift) / n, 2 * math.pi * (k + 1 + shift) / n], elevations] for k in range(n)
        ]
    return torch.tensor(found)


class Candidates(nn.Module):
    """A camera in each of M sectors of a sphere, all of which look at the origin, and a score for each.

    Sigmoid offsets keep a camera in its sector, which `overlap` makes larger by that share of its size on each side, so
    that a border between two is not at the end of both.
    """

    span: Tensor

    def __init__(
        self,
        dim: int,
        candidates: int,
        *,
        low: float,
        high: float,
        radius: float,
        overlap: float,
        hidden: int,
    ) -> None:
        super().__init__()
        self.radius, self.low, self.high = radius, low, high
        self.half_sector = math.sqrt(2 * math.pi * (math.sin(high) - math.sin(low)) / candidates) / 2
        span = sectors(candidates, low=low, high=high)
        size = span[..., 1] - span[..., 0]
        span = torch.stack([span[..., 0] - overlap * size, span[..., 1] + overlap * size], -1)
        span[:, 1] = span[:, 1].clamp(low, high)
        self.register_buffer("span", span, persistent=False)
        self.trunk = nn.Sequential(nn.Linear(dim, hidden), nn.SiLU())
        self.offsets = zeroed(nn.Linear(hidden, 2 * candidates))
        self.scores = zeroed(nn.Linear(hidden, candidates))

    def forward(self, h: Tensor) -> Poses:
        h = self.trunk(h)
        share = self.offsets(h).unflatten(1, (-1, 2)).sigmoid()  # (B, M, 2)
        first, last = self.span.unbind(-1)
        angle = first + share * (last - first)
        return Poses(cameras=on_sphere(angle[..., 0], angle[..., 1], self.radius), scores=self.scores(h))

    def near(self, cameras: Tensor, rng: torch.Generator) -> Tensor:
        """Cameras (B, 4, 4) anew, each within about half a sector of where it was to all sides."""
        aside, up = _drawn(2, cameras, rng) * self.half_sector
        azimuth, elevation = angles_of(cameras)
        # near a pole the meridians are close together
        azimuth = azimuth + aside / elevation.cos().clamp(min=0.3)
        return on_sphere(azimuth, (elevation + up).clamp(self.low, self.high), self.radius)


class Single(nn.Module):
    """One camera, turned from a first one by an axis-angle and moved by a translation, each three numbers.

    With `both` it says a second one, which is moved the other way in the picture's plane, and turned by three numbers
    of its own. A scene whose far is near, seen by cameras that move the other way and turn to make up for it, looks
    alike but for perspective (the reversal known of structure from motion); it is `turned` where the two change places.
    """

    first: Tensor
    turned: Tensor

    def __init__(self, dim: int, *, first: Tensor, hidden: int, both: bool = False) -> None:
        super().__init__()
        self.register_buffer("first", first, persistent=False)
        self.both = both
        if both:
            self.register_buffer("turned", torch.zeros(()))
        self.trunk = nn.Sequential(nn.Linear(dim, hidden), nn.SiLU())
        self.move = zeroed(nn.Linear(hidden, 9 if both else 6))

    def forward(self, h: Tensor) -> Poses:
        turn, place, *others = self.move(self.trunk(h)).split(3, 1)
        said, reversed_ = torch.cat([turn, place], 1), None
        if self.both:
            other = torch.cat([others[0], place * place.new_tensor([-1.0, -1.0, 1.0])], 1)
            said, other = torch.where(self.turned > 0, other, said), torch.where(self.turned > 0, said, other)
            reversed_ = moved(self.first, other)
        cameras = moved(self.first, said)[:, None]
        return Poses(cameras=cameras, scores=place.new_zeros(len(h), 1), reversed=reversed_)

    def near(self, cameras: Tensor, rng: torch.Generator) -> Tensor:
        """Cameras (B, 4, 4) anew, each up to half-way to another of them, or where there is none to the first, or
        as far away from it."""
        share = _drawn(1, cameras, rng)[0] / 2
        others = cameras.roll(1, 0) if len(cameras) > 1 else self.first[None].to(cameras)
        way = (on_the_way(a, b, s[None])[0] for a, b, s in zip(cameras, others, share, strict=True))
        return torch.stack(list(way))


def _drawn(n: int, cameras: Tensor, rng: torch.Generator) -> Tensor:
    """(n, B) numbers from -1 to 1."""
    u = torch.rand(n, len(cameras), generator=rng, device=rng.device)
    return 2 * u.to(cameras) - 1
