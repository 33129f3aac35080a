"""Radiance fields and how light is gathered along rays.

    P  points   R  rays   N  samples along a ray

A field is asked at points of [-1, 1]^3 and answers with density and colour. Which part of the world that cube is, the
`space` of a rendering says: the ball about the origin, or what lies in front of a camera.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Background = Literal["white", "black", "random", "none"]
"""What lies behind everything, in pictures of [-1, 1]. `random` gives each ray a colour of its own, so that only what
is opaque can be right; with `none` the last sample takes all light that is left."""


@dataclass(frozen=True, kw_only=True)
class FieldConfig:
    """A radiance field, by its numbers."""

    kind: Literal["mlp", "grid", "hash"] = "grid"
    """mlp: the paper's network of Fourier features; grid: features on dense grids of several sizes, the faster one on a
    CPU; hash: the same with fine grids in tables of fixed size (Mueller et al., 2022)."""
    width: int = 64
    depth: int = 2
    """Hidden layers of the network; with grids, of the small one behind them."""
    frequencies: int = 10
    """Octaves of the Fourier features of places (mlp)."""
    grids: tuple[int, ...] = (16, 32, 64)
    """Points of a side of each grid, coarse to fine (grid, hash)."""
    features: int = 4
    """Entries at each point of a grid."""
    table: int = 2**15
    """Entries of a hash table; grids with no more points than that are dense."""
    directions: int = 0
    """Octaves of the Fourier features of directions: what shines differently from elsewhere. 0: nothing does."""
    first_density: float = 0.1
    """Density everywhere at first, per unit of length."""

    def __post_init__(self) -> None:
        if (
            self.width < 1
            or self.depth < 1
            or self.features < 1
            or self.directions < 0
            or self.frequencies < 1
        ):
            raise ValueError(
                f"a field needs width, depth, features and frequencies of at least 1 and directions of at least 0; got "
                f"{self.width}, {self.depth}, {self.features}, {self.frequencies}, {self.directions}"
            )
        if self.kind != "mlp" and (not self.grids or min(self.grids) < 2):
            raise ValueError(f"grids are {self.grids}: at least one, of at least 2 points a side")
        if self.table < 2 or self.first_density <= 0:
            raise ValueError(
                f"table is {self.table} and first_density {self.first_density}: at least 2, and above 0"
            )


class Field(nn.Module):
    """Points and directions -> density and colour. Subclasses give `features` (P, 3) -> (P, width).

    `opened`, 0 to 1, is how much detail is let in: frequencies or fine grids open one after the other (Lin et al.,
    2021), and until then no gradient finds its way by what is finer.
    """

    opened: Tensor

    def __init__(self, config: FieldConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("opened", torch.ones(()))
        width, seen = config.width, 3 * 2 * config.directions
        self.density = nn.Linear(width, 1)
        self.colour: nn.Module = nn.Linear(width, channels)
        if seen:
            self.colour = nn.Sequential(nn.Linear(width + seen, width), nn.ReLU(), nn.Linear(width, channels))
        nn.init.constant_(self.density.bias, math.log(math.expm1(config.first_density)))
        nn.init.normal_(self.density.weight, std=1e-2)

    def features(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Points (P, 3) in [-1, 1]^3, directions (P, 3) -> density (P,), 0 or more; colour (P, C) in [-1, 1]."""
        h = self.features(x)
        density = F.softplus(self.density(h)[:, 0])
        if self.config.directions:
            h = torch.cat([h, fourier(directions, self.config.directions)], 1)
        return density, torch.tanh(self.colour(h))

    def open(self, share: float) -> None:
        """Let in detail up to a share of 0 to 1 of what there is."""
        self.opened.fill_(share)

    def _weights(self, levels: int, like: Tensor) -> Tensor:
        """(levels,): how far each level is open; the first always is."""
        at = self.opened * levels - torch.arange(levels, dtype=like.dtype, device=like.device)
        weights = (1 - (at.clamp(0, 1) * math.pi).cos()) / 2
        return torch.cat([torch.ones_like(weights[:1]), weights[1:]])


def fourier(x: Tensor, octaves: int) -> Tensor:
    """(P, D) -> (P, 2 D octaves): sin and cos of pi 2^k x (Mildenhall et al., 2020, eq. 4), octave by octave."""
    scaled = x[:, None] * (math.pi * 2.0 ** torch.arange(octaves, dtype=x.dtype, device=x.device))[:, None]
    return torch.stack([scaled.sin(), scaled.cos()], 2).flatten(1)


class MLPField(Field):
    """The paper's: a network of Fourier features, which are heard again half-way (Mildenhall et al., 2020)."""

    def __init__(self, config: FieldConfig, channels: int) -> None:
        super().__init__(config, channels)
        seen = 3 + 6 * config.frequencies
        self.again = config.depth // 2 if config.depth >= 4 else None
        self.layers = nn.ModuleList(
            nn.Linear((seen if i == 0 else config.width) + (seen if i == self.again else 0), config.width)
            for i in range(config.depth)
        )

    def features(self, x: Tensor) -> Tensor:
        octaves = self.config.frequencies
        waves = fourier(x, octaves).unflatten(1, (octaves, 6))
        seen = torch.cat([x, (waves * self._weights(octaves, x)[:, None]).flatten(1)], 1)
        h = seen
        for i, layer in enumerate(self.layers):
            h = F.relu(layer(torch.cat([h, seen], 1) if i == self.again else h))
        return h


class GridField(Field):
    """Features between the points of dense grids, coarse to fine, and a small network behind them."""

    def __init__(self, config: FieldConfig, channels: int) -> None:
        super().__init__(config, channels)
        self.grids = nn.ParameterList(
            nn.Parameter(1e-2 * torch.randn(config.features, side**3)) for side in config.grids
        )
        widths = [config.features * len(config.grids), *[config.width] * config.depth]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def features(self, x: Tensor) -> Tensor:
        places = x.view(1, -1, 1, 1, 3)
        weights = self._weights(len(self.grids), x)
        found = []
        for weight, side, points in zip(weights, self.config.grids, self.grids, strict=True):
            if weight == 0:
                found.append(x.new_zeros(len(points), len(x)))
                continue
            grid = points.view(1, -1, side, side, side)
            read = F.grid_sample(grid, places.to(grid.dtype), align_corners=True, padding_mode="border")
            found.append(weight * read.view(len(points), -1))
        h = torch.cat(found).T
        for layer in self.layers:
            h = F.relu(layer(h))
        return h


class HashField(Field):
    """The same with fine grids in hash tables (Mueller et al., 2022, section 3), whose collisions the network
    resolves."""

    corners: Tensor
    primes: Tensor

    def __init__(self, config: FieldConfig, channels: int) -> None:
        super().__init__(config, channels)
        self.tables = nn.ParameterList(
            nn.Parameter(1e-2 * torch.randn(min(config.table, side**3), config.features))
            for side in config.grids
        )
        widths = [config.features * len(config.grids), *[config.width] * config.depth]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.register_buffer(
            "corners",
            torch.tensor([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]),
            persistent=False,
        )
        self.register_buffer("primes", torch.tensor([1, 2654435761, 805459861]), persistent=False)

    def features(self, x: Tensor) -> Tensor:
        weights = self._weights(len(self.tables), x)
        found = []
        for weight, table, side in zip(weights, self.tables, self.config.grids, strict=True):
            place = (x.clamp(-1, 1) + 1) * ((side - 1) / 2)
            low = place.detach().floor().clamp(max=side - 2)
            share = (place - low)[:, None]  # (P, 1, 3)
            corner = low.long()[:, None] + self.corners  # (P, 8, 3)
            near = torch.where(self.corners.bool(), share, 1 - share).prod(-1)  # (P, 8)
            rows = self._row(corner, side, len(table))
            # one bag a point: the weighted sum of its corners' entries, without the eight of them in memory
            found.append(
                weight * F.embedding_bag(rows, table, per_sample_weights=near.to(table.dtype), mode="sum")
            )
        h = torch.cat(found, 1)
        for layer in self.layers:
            h = F.relu(layer(h))
        return h

    def _row(self, corner: Tensor, side: int, entries: int) -> Tensor:
        if entries == side**3:
            return (corner[..., 0] * side + corner[..., 1]) * side + corner[..., 2]
        x, y, z = (corner * self.primes).unbind(-1)
        return (x ^ y ^ z) % entries


def make_field(config: FieldConfig, channels: int = 3) -> Field:
    return {"mlp": MLPField, "grid": GridField, "hash": HashField}[config.kind](config, channels)


class Rivals(Field):
    """Two fields of one kind: the first is what is asked, or the second where they have been `turned`."""

    turned: Tensor

    def __init__(self, config: FieldConfig, channels: int) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.register_buffer("opened", torch.ones(()))
        self.register_buffer("turned", torch.zeros(()))
        self.worlds = nn.ModuleList(make_field(config, channels) for _ in range(2))

    @property
    def other(self) -> nn.Module:
        """The one that is not asked."""
        return self.worlds[0 if self.turned else 1]

    def forward(self, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self.worlds[1 if self.turned else 0](x, directions)
        return found

    def open(self, share: float) -> None:
        super().open(share)
        for world in self.worlds:
            assert isinstance(world, Field)
            world.open(share)


class Baked:
    """What a field says at the points of a grid, and in between a mean of the eight about: no gradient, no directions.

    For many questions to a field that stays as it is, where a glance is enough. With `ball` only what lies in the unit
    ball is looked at.
    """

    @torch.no_grad()
    def __init__(self, field: Field, side: int, *, ball: bool) -> None:
        like = field.opened
        line = torch.linspace(-1, 1, side, device=like.device, dtype=like.dtype)
        z, y, x = torch.meshgrid(line, line, line, indexing="ij")
        points = torch.stack([x, y, z], -1).view(-1, 3)
        # a point counts where a cell that it is a corner of reaches into the ball
        near = points.norm(dim=1) <= 1 + 2 * math.sqrt(3) / (side - 1) if ball else points[:, 0] <= 1
        chosen = near.nonzero()[:, 0]
        asked = points.index_select(0, chosen)
        density, colour = field(asked, torch.zeros_like(asked))
        found = torch.cat([density[:, None], colour], 1).to(like.dtype)
        held = found.new_zeros(len(points), found.shape[1]).index_copy(0, chosen, found)
        self.grid = held.T.reshape(1, -1, side, side, side)

    def __call__(self, x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        found = F.grid_sample(
            self.grid, x.view(1, -1, 1, 1, 3).to(self.grid), align_corners=True, padding_mode="border"
        ).view(self.grid.shape[1], -1)
        return found[0], found[1:].T


Ask = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Points (P, 3) of the cube and directions (P, 3) -> density (P,) and colour (P, C): a field, or its stand-in."""


# ---- along rays --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Space:
    """Which part of the world a field is of, and how it is sampled along rays."""

    near: float
    """Distances along rays at which these begin and end."""
    far: float
    forward: bool = False
    """In front of the cameras, to any distance, seen through the normalised device coordinates of a camera at the
    origin (Mildenhall et al., 2020, appendix C); otherwise the ball about the origin of radius `bound`."""
    bound: float = 1.0
    contracted: bool = False
    """All of the world about the origin: half of the cube is for the ball, and what lies beyond is drawn together into
    the other half (Barron et al., "Mip-NeRF 360", 2022, eq. 10)."""
    reach: float = 1e6
    """Distance from the origin beyond which no ray goes, and nothing is said of the field (contracted)."""
    focal: float = 1.0
    """Of the camera of those coordinates (forward)."""

    def __post_init__(self) -> None:
        if not 0 < self.near < self.far or min(self.bound, self.focal, self.reach) <= 0:
            raise ValueError(
                f"near is {self.near} and far {self.far}, bound {self.bound}, focal {self.focal} and reach "
                f"{self.reach}: all above 0, and near before far"
            )

    @property
    def edge(self) -> float:
        """How far from the middle of the cube the field counts, where that is no matter of direction (not forward)."""
        if not self.contracted:
            return 1.0
        far = self.reach / self.bound
        return 1 - 0.5 / far if far > 1 else far / 2

    def inside(self, points: Tensor) -> Tensor:
        """Points of the world (..., 3) -> of the field's cube."""
        if self.contracted:
            points = points / self.bound
            length = points.norm(dim=-1, keepdim=True).clamp(min=1.0)
            return points * ((2 - 1 / length) / length) / 2
        if not self.forward:
            return points / self.bound
        depth = -points[..., 2:]
        depth = torch.where(depth.abs() < 1e-3, torch.full_like(depth, 1e-3), depth)
        wide = 2 * self.focal * points[..., :2] / depth
        share = (1 / self.near - 1 / depth) / (1 / self.near - 1 / self.far)
        return torch.cat([wide / 1.5, 2 * share - 1], -1)

    def outside(self, points: Tensor) -> Tensor:
        """Points of the field's cube (..., 3) -> of the world: what `inside` undoes, up to `reach`."""
        if self.contracted:
            length = 2 * points.norm(dim=-1, keepdim=True)
            reached = length.clamp(max=2 * self.edge)
            far = torch.where(reached <= 1, reached, 1 / (2 - reached))
            return 2 * points * (far / length.clamp(min=1e-6)) * self.bound
        if not self.forward:
            return points * self.bound
        share = (points[..., 2:] + 1) / 2
        depth = 1 / (1 / self.near - share * (1 / self.near - 1 / self.far))
        return torch.cat([points[..., :2] * (1.5 * depth / (2 * self.focal)), -depth], -1)

    @torch.no_grad()
    def reached(self, origins: Tensor, directions: Tensor, distances: Tensor) -> Tensor:
        """Whether rays (R, 3), (R, 3) are inside at distances (R, N), where a field can be asked: (R, N)."""
        if self.contracted:
            return torch.ones_like(distances, dtype=torch.bool)
        if self.forward:
            points = self.inside(origins[:, None] + distances[..., None] * directions[:, None])
            return (points.abs() <= 1).all(-1)
        # |o + t d|^2 of unit d, without a point for every sample
        along = (origins * directions).sum(-1, keepdim=True)
        aside = origins.square().sum(-1, keepdim=True) - along.square()
        return (distances + along).square() + aside <= self.bound**2

    def distances(
        self, rays: int, samples: int, *, rng: torch.Generator | None, device: torch.device
    ) -> Tensor:
        """(R, N + 1) ends of so many pieces of each ray, near to far: even ones, or with a generator stratified ones.

        Even in distance, or in its inverse where the space reaches far (`forward`, `contracted`).
        """
        ends = torch.linspace(0, 1, samples + 1, device=device).expand(rays, -1)
        if rng is not None:
            moved = torch.rand(rays, samples + 1, generator=rng, device=rng.device).to(device) - 0.5
            moved[:, 0], moved[:, -1] = 0, 0
            ends = ends + moved / samples
        if self.forward or self.contracted:
            return 1 / (1 / self.near + ends * (1 / self.far - 1 / self.near))
        return self.near + ends * (self.far - self.near)


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """What rays gathered."""

    colour: Tensor
    """(R, C) in [-1, 1], the background behind it."""
    depth: Tensor
    """(R,) the mean distance at which light was stopped; where none was, the far end."""
    opacity: Tensor
    """(R,) the share of the light that was stopped, 0 to 1."""
    weights: Tensor
    """(R, N) the share that each piece of a ray has."""


def shares(density: Tensor, lengths: Tensor) -> Tensor:
    """The share of the light that each piece of a ray stops: density (R, N) and lengths (R, N) -> (R, N).

    T_i (1 - exp(-sigma_i delta_i)) with T_i = exp(-sum_(j < i) sigma_j delta_j) (Mildenhall et al., 2020, eq. 3); their
    sum is 1 - exp(-sum sigma delta), to rounding.
    """
    stopped = density * lengths
    # not cumsum - stopped: after a piece without end nothing of what lies before would be left of that
    before = F.pad(torch.cumsum(stopped[..., :-1], -1), (1, 0))
    return torch.exp(-before) * -torch.expm1(-stopped)


class Occupancy(nn.Module):
    """Where a field may be other than empty, on a grid over its cube, so that empty places need not be asked."""

    peak: Tensor

    def __init__(self, side: int = 32) -> None:
        super().__init__()
        self.register_buffer("peak", torch.full((side,) * 3, torch.inf))

    @torch.no_grad()
    def update(self, field: Field, rng: torch.Generator, *, decay: float = 0.9) -> None:
        """Ask the field at a random place of every cell; what was seen there before fades."""
        side, device = len(self.peak), self.peak.device
        corner = torch.stack(torch.meshgrid(*[torch.arange(side)] * 3, indexing="ij"), -1).view(-1, 3)
        within = torch.rand(corner.shape, generator=rng, device=rng.device).to(device)
        place = (corner.to(device) + within) / side * 2 - 1
        density, _ = field(place, torch.zeros_like(place))
        self.peak.copy_(
            torch.maximum(torch.nan_to_num(self.peak, posinf=0.0) * decay, density.view_as(self.peak))
        )

    def __call__(self, points: Tensor, least: float) -> Tensor:
        """Points (P, 3) of the cube -> (P,) whether there may be more than a density of `least`."""
        side = len(self.peak)
        x, y, z = ((points + 1) * (side / 2)).long().clamp(0, side - 1).unbind(1)
        return (self.peak.flatten() > least).index_select(0, (x * side + y) * side + z)


def render(
    field: Ask,
    space: Space,
    origins: Tensor,
    directions: Tensor,
    samples: int,
    *,
    background: Background,
    rng: torch.Generator | None = None,
    occupancy: Occupancy | None = None,
    least: float = 0.01,
) -> Rendered:
    """Rays (R, 3), (R, 3) through a field; with a generator the samples are stratified, without they are even.

    Points outside the ball (or, forward, beside the cube) are empty and cost nothing, and so are those that `occupancy`
    knows to have no more than `least` density.
    """
    ends = space.distances(len(origins), samples, rng=rng, device=origins.device)
    middle = (ends[:, 1:] + ends[:, :-1]) / 2
    chosen = space.reached(origins, directions, middle).flatten().nonzero()[:, 0]
    ray = chosen.div(samples, rounding_mode="floor")
    far = middle.flatten()
    way = directions.index_select(0, ray)  # (P, 3)
    points = space.inside(origins.index_select(0, ray) + far.index_select(0, chosen)[:, None] * way)
    if occupancy is not None:
        kept = occupancy(points.detach(), least)
        if background == "none":  # all light that is left ends in the last sample, whatever its density
            kept = kept | (chosen % samples == samples - 1)
        kept = kept.nonzero()[:, 0]
        chosen, ray, way, points = (v.index_select(0, kept) for v in (chosen, ray, way, points))
    found, shown = (v.to(points.dtype) for v in field(points, way))
    density = points.new_zeros(far.shape).index_copy(0, chosen, found).view(middle.shape)
    lengths = ends.diff(dim=-1)
    if background == "none":
        lengths = torch.cat([lengths[:, :-1], torch.full_like(lengths[:, -1:], 1e10)], 1)
        density = torch.cat([density[:, :-1], density[:, -1:].clamp(min=1e-6)], 1)
    weights = shares(density, lengths)
    opacity = weights.sum(-1)
    left = (1 - opacity)[:, None]
    each = weights.flatten().index_select(0, chosen)[:, None] * shown
    gathered = each.new_zeros(len(origins), shown.shape[1]).index_add(0, ray, each)
    if background == "random":
        if rng is not None:
            drawn = torch.rand(gathered.shape, generator=rng, device=rng.device).to(gathered)
            gathered = gathered + left * (drawn * 2 - 1)
    elif background != "none":
        gathered = gathered + left * (1.0 if background == "white" else -1.0)
    depth = (weights * middle).sum(-1) + left[:, 0] * ends[:, -1]
    return Rendered(colour=gathered, depth=depth, opacity=opacity, weights=weights)
