"""What methods with a radiance field share: its pictures, from any cameras, and what is said of them.

B  pictures   R  rays   N  samples along a ray
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.cameras import moved, on_sphere, orbit, pixels, rays, rigid, spiral
from pellucid.methods.base import Method
from pellucid.nets.nerf import (
    Ask,
    Background,
    FieldConfig,
    Occupancy,
    Rendered,
    Space,
    make_field,
    render,
)
from pellucid.types import Batch, Control, Readout

REFINING = 0.01
"""Adam's rate where a camera is refined: radians and units of the world."""
FOCAL_RATE: Mapping[str, float] = {"focal": 0.03}
"""Of the one focal length of all pictures, as a factor on the field's rate."""
FOCAL_FROM = 0.5
"""Of the field's detail, how much has to be let in before a focal length is learned."""
REFINING_RAYS = 256
"""Of a picture, in each step of that; all, where there are no more."""
SWAY = 0.15
"""How far, as a share of the nearest distance, cameras that look into a scene move aside to show its depth."""
Options = Mapping[str, tuple[float, float, float]]
"""Of a path by name: (default, least, greatest)."""
_START = (0.0, -360.0, 360.0)
AROUND: Mapping[str, Options] = {
    "orbit": {"elevation": (30.0, -90.0, 90.0), "start": _START},
    "spiral": {"low": (10.0, -90.0, 90.0), "high": (60.0, -90.0, 90.0), "turns": (2.0, 0.0, 100.0)},
}
"""Paths about an object; angles in degrees."""
INTO: Mapping[str, Options] = {
    "orbit": {"sway": (SWAY, 0.0, 10.0), "start": _START},
    "spiral": {"sway": (SWAY, 0.0, 10.0), "turns": (2.0, 0.0, 100.0)},
}
"""Paths before a scene: how far aside, as a share of the nearest distance."""


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """A scene: how large it is, how it is seen, and how its rays are sampled."""

    radius: float = 3.0
    """Distance of the cameras from the origin, where they stand about an object, which lies within 1 of it."""
    near: float = 2.0
    """Distances between which rays are sampled."""
    far: float = 4.0
    focal: float = 1.4
    """In sides of the picture: 1 / (2 tan(angle of view / 2))."""
    learn_focal: bool = False
    """One focal length, for all pictures, is learned; `focal` is where it begins."""
    forward: bool = False
    """Cameras side by side look into a scene, instead of standing about an object."""
    surroundings: bool = False
    """Pictures show what stands about the object, too, to any distance."""
    background: Background = "white"
    field: FieldConfig = field(default_factory=FieldConfig)
    rays: int = 128
    """Rays of each picture that a training step renders."""
    samples: int = 32
    """Samples along a ray, in training."""
    fine_samples: int = 64
    """Samples along a ray of a picture that is shown."""
    budget: int = 2**18
    """Samples that are rendered at once where no gradient is wanted: what memory is used follows from this, not from
    the size of pictures."""
    opens: int = 0
    """Steps after which the field shows all its detail; 0: from the first."""
    occupied: int = 0
    """Steps between two looks at where the field is empty, to pass over that; 0: all places are asked."""

    def __post_init__(self) -> None:
        self.space()
        if self.radius <= 0:
            raise ValueError(f"radius is {self.radius}; cameras stand at a distance above 0")
        first, last = max(0.1 * self.radius, self.radius - 1), self.radius + 1
        if not self.forward and (self.near > first * (1 + 1e-6) or self.far < last * (1 - 1e-6)):
            raise ValueError(
                f"radius is {self.radius:g}, and rays run from near = {self.near:g} to far = {self.far:g}, which "
                f"leaves out a part of the unit ball in which the object lies: set near to at most {first:g} and far "
                f"to at least {last:g}"
            )
        if self.forward and self.background in ("white", "black"):
            raise ValueError(
                f"background is {self.background}, and forward a scene without any plain ground: use none or random"
            )
        for name, least in (
            ("rays", 1),
            ("samples", 2),
            ("fine_samples", 2),
            ("budget", 1),
            ("opens", 0),
            ("occupied", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; at least {least}")

    def stretched(self, share: float) -> ViewConfig:
        """For a training so many times as long: detail comes as late in it."""
        return replace(self, opens=round(share * self.opens))

    def space(self) -> Space:
        return Space(
            near=self.near, far=self.far, forward=self.forward, contracted=self.surroundings,
            reach=self.radius + self.far, focal=self.focal,
        )  # fmt: skip


class Radiance(Method):
    """A method whose pictures are seen in a field of density and colour."""

    shardable: ClassVar[bool] = False  # grids are read where nobody calls them, whole
    log_focal: Tensor
    posed_by: Literal["reading", "data", "learning"]
    """Whence the cameras of photographs: read of any picture, given with it, or learned, of training pictures alone."""

    def __init__(self, config: ViewConfig, size: int, channels: int) -> None:
        super().__init__()
        self.view, self.image_shape = config, (channels, size, size)
        self.space = config.space()
        self.field = make_field(config.field, channels)
        self.field.open(0.0 if config.opens else 1.0)
        self.occupancy = Occupancy() if config.occupied else None
        first = torch.tensor(config.focal).log()
        self.shared: list[nn.Parameter] = [nn.Parameter(first)] if config.learn_focal else []
        if self.shared:
            self.register_parameter("log_focal", self.shared[0])
        else:
            self.register_buffer("log_focal", first)

    def scene(self) -> dict[str, list[nn.Parameter]]:
        """The players of what is learned of the scene itself: the field, and the focal length where that is learned."""
        return {"field": list(self.field.parameters())} | ({"focal": self.shared} if self.shared else {})

    @property
    def first(self) -> Tensor:
        """The camera (4, 4) at which those begin that may go anywhere: half-way up, or before a scene."""
        if self.view.forward:
            return torch.eye(4, device=self.device)
        zero = torch.zeros((), device=self.device)
        return on_sphere(zero, zero + 0.5, self.view.radius)

    @property
    def focal(self) -> Tensor:
        """(), in sides of the picture."""
        focal = self.log_focal.exp()
        # of fog alone, any is right: it would run away before the field shows what it could be told by
        return focal if self.field.opened >= FOCAL_FROM else focal.detach()

    def no_gradient(self) -> Tensor:
        """Zero, with a gradient of zeros for all that is learned of the scene: of what one part of a batch teaches
        nothing, another may, and gradients of all parts and processes are added up."""
        return 0.0 * torch.stack([p.sum() for owned in self.scene().values() for p in owned]).sum()

    # ---- rays --------------------------------------------------------------------------------

    def seen(
        self,
        cameras: Tensor,
        at: Tensor,
        samples: int,
        rng: torch.Generator | None,
        *,
        focal: Tensor | None = None,
        field: Ask | None = None,
        skips: bool = True,
    ) -> Rendered:
        """What cameras (B, 4, 4) see at places (R, 2) or (B, R, 2) of their pictures; the rays (B R) in one batch.

        `field` stands for the method's own, where it is given; what is known to be empty is skipped unless told not to.
        """
        origins, directions = rays(cameras, self.focal if focal is None else focal, at)
        return render(
            field or self.field, self.space, origins.flatten(0, 1), directions.flatten(0, 1), samples,
            background=self.view.background, rng=rng, occupancy=self.occupancy if skips else None,
        )  # fmt: skip

    @torch.no_grad()
    def pictures(
        self,
        cameras: Tensor,
        *,
        size: int | None = None,
        width: int | None = None,
        focal: Tensor | None = None,
        samples: int | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Whole pictures from cameras (B, 4, 4): colour (B, C, H, W) in [-1, 1], depth (B, H, W) along the rays, and
        opacity (B, H, W), so many rays at a time as `budget` allows. `size` is that of the pictures by default; with a
        `width` of its own it is their height, in which the focal length then counts."""
        side = size or self.image_shape[-1]
        shape = (side, width or side)
        at = pixels(*shape, device=cameras.device)
        samples = samples or self.view.fine_samples
        many = max(1, self.view.budget // samples)
        colour = cameras.new_empty(len(cameras), len(at), self.image_shape[0])
        depth, opacity = (cameras.new_empty(len(cameras), len(at)) for _ in range(2))
        for i in range(len(cameras)):
            own = focal[i : i + 1] if focal is not None and focal.ndim else focal
            for rows in torch.arange(len(at), device=at.device).split(many):
                seen = self.seen(cameras[i : i + 1], at[rows], samples, None, focal=own)
                colour[i, rows], depth[i, rows], opacity[i, rows] = seen.colour, seen.depth, seen.opacity
        colour, depth, opacity = (v.unflatten(1, shape) for v in (colour.clamp(-1, 1), depth, opacity))
        return colour.permute(0, 3, 1, 2).contiguous(), depth, opacity

    def rendered(self, cameras: Tensor, use: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """`pictures` as large and as near as `camera_control` has them in `use`."""
        focal = use.get("render_focal")
        return self.pictures(
            cameras,
            size=use.get("render_size"),
            width=use.get("render_width"),
            focal=None if focal is None else cameras.new_tensor(focal),
        )

    def refined(self, cameras: Tensor, x: Tensor, steps: int, rng: torch.Generator) -> Tensor:
        """Cameras (B, 4, 4) moved so that what the field shows from there is closer to pictures (B, C, H, W).

        Adam on an axis-angle and a translation for each (Yen-Chen et al., "iNeRF", 2021), by some rays of a step. One
        that sees its picture worse in the end, by more than the hundredth that sampled rays leave open, stays. One that
        sees nothing at all, and so no way to go, begins where cameras that may go anywhere begin.
        """
        if not steps:
            return cameras
        at_once = max(1, self.view.budget // (REFINING_RAYS * self.view.samples))
        parts = zip(cameras.split(at_once), x.split(at_once), strict=True)
        return torch.cat([self._refined(some, there, steps, rng) for some, there in parts])

    def _refined(self, cameras: Tensor, x: Tensor, steps: int, rng: torch.Generator) -> Tensor:
        seen_first = self.pictures(cameras)[0]
        lost = seen_first.flatten(1).std(1) < 1e-6
        cameras = torch.where(lost[:, None, None], self.first, cameras.detach())
        with torch.enable_grad():
            move = torch.zeros(len(cameras), 6, device=cameras.device, requires_grad=True)
            optimizer = torch.optim.Adam([move], lr=REFINING, betas=(0.9, 0.99))
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            for _ in range(steps):
                at, there, weights = telling_rays(x, REFINING_RAYS, self.view.background, rng)
                seen = self.seen(moved(cameras, move), at, self.view.samples, None)
                loss = ((seen.colour.view_as(there) - there).square().mean(2) * weights).sum()
                (move.grad,) = torch.autograd.grad(loss, [move])
                optimizer.step()
                schedule.step()
        found = moved(cameras, move.detach())
        before, after = ((v - x).square().mean((1, 2, 3)) for v in (seen_first, self.pictures(found)[0]))
        return torch.where((lost | (after < 1.01 * before))[:, None, None], found, cameras)

    @property
    def paths(self) -> Mapping[str, Options]:
        """The paths of cameras that `along` knows, with their options."""
        return INTO if self.view.forward else AROUND

    def along(self, path: str, n: int, **options: float) -> Tensor:
        """n cameras (n, 4, 4) on one of `paths`: an orbit closes, evenly and no camera twice; a spiral climbs from one
        elevation to another. Before a scene both are small circles, which in a spiral widen from none."""
        use = {k: default for k, (default, _, _) in self.paths[path].items()} | options
        start, turns = math.radians(use.get("start", 0.0)), use.get("turns", 1.0)
        if self.view.forward:
            share = torch.arange(n) / n if path == "orbit" else torch.linspace(0, 1, n)
            turn, wide = start + share * turns * 2 * math.pi, torch.ones(n) if path == "orbit" else share
            at = torch.stack([turn.cos() * wide, turn.sin() * wide, torch.zeros(n)], 1)
            found = rigid(torch.eye(3).expand(n, 3, 3), at * (use["sway"] * self.view.near))
        elif path == "orbit":
            found = orbit(n, elevation=math.radians(use["elevation"]), radius=self.view.radius, start=start)
        else:
            low, high = math.radians(use["low"]), math.radians(use["high"])
            found = spiral(n, low=low, high=high, radius=self.view.radius, turns=turns)
        return found.to(self.device)

    def around(self, n: int) -> Tensor:
        """n cameras (n, 4, 4) from all around, half-way up; or looking into a scene, on a small circle."""
        return self.along("orbit", n)

    def focal_of(self, batch: Batch) -> Tensor:
        """The focal lengths (B,) of training pictures."""
        return self.focal.detach().expand(len(batch))

    @torch.no_grad()
    def seen_from(self, batch: Batch, rng: torch.Generator, **controls: Any) -> Tensor:
        """The cameras (B, 4, 4) from which training pictures were taken, as far as the method knows."""
        raise NotImplementedError

    def after_views(self, step: int) -> None:
        """What follows a training step: more detail, and a look at where nothing is."""
        view = self.view
        self.field.open(min(1.0, (step + 1) / view.opens) if view.opens else 1.0)
        if self.occupancy is not None and (step + 1) % view.occupied == 0:
            self.occupancy.update(self.field, torch.Generator().manual_seed(step))


def chosen_rays(x0: Tensor, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Some pixels of each picture (B, C, H, W), drawn with replacement: their places (B, R, 2), as `cameras.pixels` has
    them, and what is there (B, R, C)."""
    b, _, _, side = x0.shape
    chosen = torch.randint(side * side, (b, count), generator=rng, device=rng.device).to(x0.device)
    at = pixels(side, device=x0.device)[chosen]
    return at, x0.flatten(2).transpose(1, 2).gather(1, chosen[..., None].expand(-1, -1, x0.shape[1]))


def telling_rays(
    x0: Tensor, count: int, background: Background, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels by which renderings of pictures are told apart, as `chosen_rays` gives them, and weights (B, R) by which a
    sum over them is, in expectation, the mean over all.

    They are spread, and lie closer where there is something before the background. All pixels where there are no more.
    """
    _, c, _, side = x0.shape
    places, colours = pixels(side, device=x0.device), x0.flatten(2).transpose(1, 2)
    if count >= side**2:
        return places.expand(len(x0), -1, -1), colours, torch.full_like(colours[..., 0], 1 / side**2)
    odds = torch.ones_like(colours[..., 0])
    if background in ("white", "black"):
        something = (x0 - (1.0 if background == "white" else -1.0)).abs().mean(1, keepdim=True)
        # another view's edges are near its own
        near = F.avg_pool2d(something, 5, stride=1, padding=2).flatten(1)
        odds = 0.5 + near / near.mean(1, keepdim=True).clamp(min=1e-3)
    odds = odds / odds.sum(1, keepdim=True)
    drawn = torch.rand(len(x0), 1, generator=rng, device=rng.device).to(x0.device)
    spread = (torch.arange(count, device=x0.device) + drawn) / count
    chosen = torch.searchsorted(odds.cumsum(1), spread).clamp(max=side**2 - 1)
    there = colours.gather(1, chosen[..., None].expand(-1, -1, c))
    return places[chosen], there, 1 / (count * side**2 * odds.gather(1, chosen))


def view_readouts(view: ViewConfig) -> dict[str, Readout]:
    return {
        "camera": Readout(
            kind="camera",
            shape=(16,),
            help="from camera to world, row by row (OpenGL axes: x right, y up, looks along -z)",
        ),
        "depth": Readout(
            kind="map",
            shape=("H", "W"),
            help="distance along each ray at which its light was stopped",
            span=(view.near, view.far),
        ),
        "opacity": Readout(kind="map", shape=("H", "W"), help="share of the light that was stopped"),
    }


def camera_control() -> dict[str, Control]:
    return {
        "cameras": Control(
            kind="cameras",
            help="from where each image is seen",
        ),
        "render_size": Control(
            kind="int", low=1, high=4096, help="pixels of a side, where not those of the training pictures"
        ),
        "render_width": Control(
            kind="int",
            low=1,
            high=4096,
            help="pixels across, where not as many as down: more or less is seen at the sides, nothing is stretched",
        ),
        "render_focal": Control(
            kind="float",
            low=0.1,
            high=20.0,
            help="focal length in heights of the picture, where not the scene's own; more is nearer",
        ),
    }
