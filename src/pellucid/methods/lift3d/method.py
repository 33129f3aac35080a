"""NeRF inside diffusion (Yuan, chapter 3): a scene from photographs of unknown pose, by denoising them.

The denoiser of a diffusion over the views of one scene is made of two: an encoder says, of a noisy view, where it was
taken from, and a radiance field seen from there is the clean view. Nothing but denoising teaches either.

    B  pictures   M  candidate cameras   R  rays of a picture
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.cameras import apart
from pellucid.methods.base import CollapseError, Stage, resolve
from pellucid.methods.lift3d.poses import Candidates, Poses, Single
from pellucid.methods.radiance import (
    FOCAL_RATE,
    Radiance,
    ViewConfig,
    camera_control,
    chosen_rays,
    telling_rays,
    view_readouts,
)
from pellucid.nets.blocks import frozen
from pellucid.nets.modulation import TimeModulator
from pellucid.nets.nerf import Ask, Baked, Rivals
from pellucid.nets.unet import Encoder, UNetConfig
from pellucid.process.loss import diffuse
from pellucid.process.samplers import ddim
from pellucid.process.schedule import TabulatedSchedule, levels, moments, training_times
from pellucid.types import Batch, Control, Readout, Sample

READ_AT = 0.05
"""The time of the little noise under which a picture's pose is read."""
COLLAPSED_BELOW = 1.5
"""Fewer candidates than that are in use, by the exponential of their entropy, when poses have collapsed."""
CERTAIN = 0.95
"""How often a classifier is right that has nothing more to learn."""
IMAGINED_FROM = 0.5
"""Of the field's detail, how much has to be let in before its own views teach the poses."""
NOISES = 2
"""Under how many noises each of those is read."""
OFF_BY, CHOSEN = 1.5, 0.3
"""Weights, of those views, of the error of the camera, and of the classifier as a share of what it weighs elsewhere."""
FLAT = 0.8
"""Of the spread of views about their mean, the error of a field that shows hardly more than that mean."""


@dataclass(frozen=True, kw_only=True)
class PoseConfig:
    """Where cameras may be."""

    kind: Literal["candidates", "single"] = "candidates"
    """One camera in each of some sectors of a sphere, the best of which learns (algorithm 4), or one for each picture,
    by axis-angle and translation (algorithm 3)."""
    candidates: int = 12
    low: float = 0.0
    """Elevations between which candidates stand, degrees; -90 and 90 are the whole sphere."""
    high: float = 90.0
    overlap: float = 0.25
    """How far a candidate may leave its sector, as a share of its size."""
    hidden: int = 256
    score_weight: float = 0.1
    """lambda, the weight of the classifier (eq. 3.4)."""
    pick_rays: int = 256
    """Rays of each picture by which the better of the two best candidates is chosen, without gradients. The others are
    left out before, half of them by a tenth of the rays, and so on by twice as many."""
    pick_samples: int = 24
    pick_grid: int = 0
    """Points a side of the grid that stands for the field then; 0: the field is asked itself."""

    def __post_init__(self) -> None:
        if not -90 <= self.low < self.high <= 90:
            raise ValueError(
                f"low is {self.low} and high {self.high}: elevations from -90 to 90 degrees, low first"
            )
        for name in ("candidates", "hidden", "pick_rays", "pick_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; at least 1")
        if self.pick_grid < 0 or self.pick_grid == 1:
            raise ValueError(f"pick_grid is {self.pick_grid}; 0, or at least 2 points a side")
        if self.kind == "single" and self.candidates != 1:
            raise ValueError(f"candidates is {self.candidates} and kind single, of which there is 1")
        if self.overlap < 0 or self.score_weight < 0:
            raise ValueError(f"overlap is {self.overlap} and score_weight {self.score_weight}; 0 or more")


@dataclass(frozen=True, kw_only=True)
class Lift3DConfig:
    size: int = 32
    channels: int = 3
    encoder: UNetConfig = field(default_factory=UNetConfig)
    """Of the U-Net the way down is used."""
    poses: PoseConfig = field(default_factory=PoseConfig)
    view: ViewConfig = field(default_factory=ViewConfig)
    noisy: bool = True
    """Poses are learned from noisy views; of clean ones it is an autoencoder (the paper's ablation)."""
    low_share: float = 0.0
    """Share of the views that get little noise, a fifth of the times. The paper has none."""
    field_until: float = 1.0
    """The latest time of a noisy view that teaches the field; by later ones the poses learn alone, as under much noise
    no camera can be right, and what is learned from wrong ones is blurred. 1: all teach it, as in the paper."""
    imagined: float = 0.0
    """Views that the field itself shows, as a share of the batch, from cameras near those of as many photographs: as
    those are known, the poses learn from them directly. They begin when half of the field's detail is there. The paper
    has none."""
    both_until: float = 0.0
    """Of a single camera, until so much of the field's detail is there: half of the pictures are seen in a second
    field, by cameras that move the other way, and the field that shows its half better stays. 0: there is one, as in
    the paper."""
    steps: int = 100
    """Of the diffusion. Its betas are Ho et al.'s, larger by 1000 / steps, so that the last step is noise."""
    patience: int = 2000
    """Steps after which the cameras have to be more than one, or training stops; 0 lets it go on."""

    def __post_init__(self) -> None:
        if self.encoder.channels != self.channels:
            raise ValueError(
                f"encoder is for {self.encoder.channels} channels; the pictures have {self.channels}"
            )
        if self.size % self.encoder.stride:
            raise ValueError(
                f"size is {self.size}, and the encoder makes it {self.encoder.stride} times smaller: use a multiple"
            )
        if self.view.forward and self.poses.kind != "single":
            raise ValueError(
                "view.forward is a scene that cameras look into side by side, and poses.kind candidates all about an "
                "object: train lift3d-forward, or set poses.kind=single and poses.candidates=1"
            )
        if not 0 <= self.low_share <= 1 or not 0 < self.field_until <= 1:
            raise ValueError(
                f"low_share is {self.low_share} and field_until {self.field_until}: a share from 0 to 1, and a time "
                f"above 0, to 1"
            )
        if not 0 <= self.imagined <= 1:
            raise ValueError(f"imagined is {self.imagined}; a share of the batch, from 0 for none to 1")
        if not 0 <= self.both_until <= 1 or (self.both_until and self.poses.kind != "single"):
            raise ValueError(
                f"both_until is {self.both_until} and poses.kind {self.poses.kind}: a share of the field's detail, "
                f"from 0 to 1, and only of a single camera"
            )
        if self.both_until and not self.view.opens:
            raise ValueError(
                f"both_until is {self.both_until} and view.opens 0: two worlds are compared while detail comes in, and "
                f"there would be no time for that. Set both_until=0 for one world, or view.opens"
            )
        if self.patience < 0:
            raise ValueError(f"patience is {self.patience}; steps, or 0 for none")
        if self.steps < 21:
            raise ValueError(f"steps is {self.steps}; with fewer than 21 the largest beta would pass 1")

    def stretched(self, share: float) -> Lift3DConfig:
        """For a training so many times as long."""
        return replace(self, view=self.view.stretched(share), patience=math.ceil(share * self.patience))


class Pass(NamedTuple):
    """One pass of reverse diffusion: what it was shown, and what it said."""

    t: float
    x_t: Tensor
    """(n, C, H, W)"""
    poses: Poses


class Lift3D(Radiance):
    """A radiance field, and an encoder that says from where pictures of it were taken."""

    name: ClassVar[str] = "lift3d"
    reads_any_size: ClassVar[bool] = False
    posed_by = "reading"
    usage: Tensor
    course: Tensor
    rivalry: Tensor

    def __init__(self, config: Lift3DConfig) -> None:
        super().__init__(config.view, config.size, config.channels)
        self.config = config
        self.schedule = TabulatedSchedule.linear(config.steps, 0.1 / config.steps, 20 / config.steps)
        self.encoder = Encoder(config.encoder)
        self.time = TimeModulator(self.encoder.widths, config.encoder.base)
        dim = config.encoder.stage_widths[-1] * (config.size // config.encoder.stride) ** 2
        poses, radius = config.poses, config.view.radius
        self.poses: Single | Candidates
        if poses.kind == "single":
            head = Single(dim, first=self.first, hidden=poses.hidden, both=config.both_until > 0)
            self.poses, self.candidates = head, 1
        else:
            self.candidates = poses.candidates
            self.poses = Candidates(
                dim, poses.candidates, low=math.radians(poses.low), high=math.radians(poses.high), radius=radius,
                overlap=poses.overlap, hidden=poses.hidden,
            )  # fmt: skip
        if config.both_until:
            self.field = Rivals(config.view.field, config.channels)
            self.field.open(0.0)
        # the errors of the field and of its rival; zeros where there is none, or no more
        self.register_buffer("rivalry", torch.full((2,), float(config.both_until > 0)))
        self.register_buffer("usage", torch.full((self.candidates,), 1 / self.candidates))
        # the classifier's accuracy, the error of what is shown, and the spread of views about their mean
        self.register_buffer("course", torch.tensor([0.0, 0.0, 1.0]))
        self.controls = {
            "num_steps": Control(
                kind="int", default=config.steps, low=1, high=config.steps, help="passes from noise to a view"
            ),
            "snapshots": Control(
                kind="int", default=0, low=0, high=64,
                help="passes from noise to keep, each with its view and camera, as a picture and as JSON",
            ),
            "image": Control(kind="image", help="a photograph: the view from where it was taken"),
            "refine": Control(
                kind="int", default=0, low=0, high=1000, reads=True, needs="image",
                help="steps in which the camera read of a photograph is moved to where the view fits it better",
            ),
            **camera_control(),
        }  # fmt: skip
        self.readouts = view_readouts(config.view) | {
            "scores": Readout(kind="shares", shape=(self.candidates,), help="which candidate the camera is")
        }

    @property
    def undecided(self) -> bool:
        """Whether there still are two worlds, one the other turned inside out."""
        return bool((self.rivalry > 0).all())

    def stages(self) -> tuple[Stage, ...]:
        return (Lifting(self),)

    # ---- poses -------------------------------------------------------------------------------

    def posed(self, x_t: Tensor, t: Tensor) -> Poses:
        """Noisy views (B, C, H, W) at times (B,) -> their cameras and scores."""
        h, _ = self.encoder(x_t, self.time(t))
        with torch.autocast(h.device.type, enabled=False):  # three digits are too few for an angle
            poses: Poses = self.poses(h.flatten(1).float())
        return poses

    def best(self, poses: Poses) -> Tensor:
        """The camera (B, 4, 4) that the classifier trusts most."""
        return _of_each(poses.cameras, poses.scores.argmax(1))

    @torch.no_grad()
    def winners(self, cameras: Tensor, x0: Tensor, rng: torch.Generator) -> Tensor:
        """Which of the cameras (B, M, 4, 4) sees each picture best, on some of its rays and without gradients: (B,)."""
        many, pose = cameras.shape[1], self.config.poses
        left = torch.arange(many, device=x0.device).expand(len(x0), -1)  # (B, M) candidates that are still in
        if many == 1:
            return left[:, 0]
        baked = pose.pick_grid and Baked(self.field, pose.pick_grid, ball=not self.view.forward)
        field, whole = baked or self.field, x0[0, 0].numel()
        rows = torch.arange(len(x0), device=x0.device)[:, None]
        errors = torch.zeros(left.shape, device=x0.device)  # of those still in: the sum over rays so far
        count = pose.pick_rays if pose.pick_rays >= whole else max(1, pose.pick_rays // 10)
        while (still := left.shape[1]) > 2 and count < pose.pick_rays:
            # samples at random places: while all candidates see one fog, it is chance that chooses among them, and
            # not one candidate that wins every picture by a trifle
            errors += count * self._errors(field, cameras[rows, left], x0, count, rng, even=False)
            kept = errors.topk(still // 2 if still > 7 else 2, dim=1, largest=False).indices
            left, errors, count = left.gather(1, kept), errors.gather(1, kept), 2 * count
        errors += pose.pick_rays * self._errors(
            field, cameras[rows, left], x0, pose.pick_rays, rng, even=True
        )
        return left.gather(1, errors.argmin(1, keepdim=True))[:, 0]

    def _errors(
        self, field: Ask, cameras: Tensor, x0: Tensor, count: int, rng: torch.Generator, *, even: bool
    ) -> Tensor:
        """How far what cameras (B, M, 4, 4) see is from pictures (B, C, H, W), judged by some rays: (B, M)."""
        many, samples = cameras.shape[1], self.config.poses.pick_samples
        rays = telling_rays(x0, max(1, count), self.view.background, rng)  # (B, R, 2), (B, R, C), (B, R)
        at_once = max(1, self.view.budget // (many * rays[0].shape[1] * samples))
        found = []
        for some, at, there, weights in zip(*(v.split(at_once) for v in (cameras, *rays)), strict=True):
            drawn = None if even else rng
            seen = self.seen(some.flatten(0, 1), at.repeat_interleave(many, 0), samples, drawn, field=field)
            colour = seen.colour.view(len(some), many, *there.shape[1:])
            found.append(((colour - there[:, None]).square().mean(3) * weights[:, None]).sum(2))
        return torch.cat(found)

    def noised(self, x0: Tensor, t: Tensor, rng: torch.Generator) -> Tensor:
        eps = torch.randn(x0.shape, generator=rng, device=rng.device).to(x0.device)
        return diffuse(x0, eps, self.schedule.logsnr(t))

    @torch.no_grad()
    def read(self, x: Tensor, rng: torch.Generator, **controls: Any) -> dict[str, Tensor]:
        """From where pictures (B, C, H, W) were taken, and what the field shows from there; see `readouts`."""
        use = resolve(self.controls, controls, reading=True)
        return self._described(*self.located(x, use["refine"], rng), use)[1]

    def poses_of(self, x: Tensor, rng: torch.Generator) -> Poses:
        """Cameras and scores of pictures (B, C, H, W), under a little noise."""
        t = torch.full((len(x),), READ_AT if self.config.noisy else 0.0, device=x.device)
        return self.posed(self.noised(x, t, rng) if self.config.noisy else x, t)

    def located(self, x: Tensor, refine: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """From where pictures (B, C, H, W) were taken, (B, 4, 4), by one pass and so many steps of refining; and the
        pass's scores (B, M)."""
        poses = self.poses_of(x, rng)
        return self.refined(self.best(poses), x, refine, rng), poses.scores

    @torch.no_grad()
    def seen_from(self, batch: Batch, rng: torch.Generator, **controls: Any) -> Tensor:
        """The cameras (B, 4, 4) that are read of training pictures; nothing is rendered for them."""
        use = resolve(self.controls, controls, reading=True)
        return self.located(batch.x0.to(self.device), use["refine"], rng)[0]

    def _described(
        self, cameras: Tensor, scores: Tensor | None, use: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What cameras see, as controls have it, and the readouts."""
        images, depth, opacity = self.rendered(cameras, use)
        if scores is None:
            scores = images.new_zeros(len(images), self.candidates)
        told = {"camera": cameras.flatten(1), "depth": depth, "opacity": opacity, "scores": scores.softmax(1)}
        return images, told

    # ---- sampling ----------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, n: int, rng: torch.Generator, **controls: Any) -> Sample:
        """n views: from given cameras, from where a picture was taken, or drawn by denoising noise.

        A denoised view comes with the camera that the last pass gave it, and so does each of the views along the way
        that `snapshots` keeps; `scores` of given cameras are even, as nothing was classified.
        """
        if n < 1:
            raise ValueError(f"n is {n}; ask for at least one image")
        use = resolve(self.controls, controls)
        x_T = torch.randn(n, *self.image_shape, generator=rng, device=rng.device).to(self.device)
        passes: list[Pass] = []
        told_where = [k for k in ("cameras", "image") if use[k] is not None]
        if use["snapshots"] and told_where:
            raise ValueError(
                f"snapshots is {use['snapshots']}, and nothing is drawn from noise where {told_where[0]} says from "
                f"where to look: leave one of them out"
            )
        if use["cameras"] is not None:
            if use["image"] is not None:
                raise ValueError("image says where to look from, and cameras does too: give one of them")
            cameras, scores = use["cameras"].to(self.device).expand(n, -1, -1), None
        elif use["image"] is not None:
            cameras, scores = self.located(self.given(use["image"], n), use["refine"], rng)
        else:
            times = levels(use["num_steps"], table=self.config.steps)
            poses, passes = self.drawn(x_T, times, snapshots=use["snapshots"])
            cameras, scores = self.best(poses), poses.scores
        images, told = self._described(cameras, scores, use)
        trace = []
        for t, _, then in passes:
            view, said = self._described(self.best(then), then.scores, use)
            trace.append((t, Sample(images=view, readouts=said)))
        return Sample(images=images, readouts=told, controls=self.said(use), trace=tuple(trace))

    @torch.no_grad()
    def drawn(self, x_T: Tensor, times: Tensor, *, snapshots: int = 0) -> tuple[Poses, list[Pass]]:
        """Reverse diffusion from noise (n, C, H, W) along times, see `levels`: the poses that its last pass says, and
        as many of its passes as asked for, see `moments`."""
        last: dict[str, Poses] = {}
        kept = moments(times, snapshots)
        passes: list[Pass] = []

        def on_step(i: int, t: float, x_t: Tensor, x0: Tensor) -> None:
            if i in kept:
                passes.append(Pass(t, x_t, last["poses"]))

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            last["poses"] = poses = self.posed(x, t)
            return self.pictures(self.best(poses))[0]

        ddim(denoise, x_T, times, self.schedule, on_step=on_step)
        return last["poses"], passes


def _of_each(values: Tensor, which: Tensor) -> Tensor:
    """values (B, M, ...) and which (B,) -> (B, ...)."""
    return values[torch.arange(len(values), device=values.device), which]


class Lifting(Stage):
    """Algorithms 3 and 4: the best of the candidates is rendered with gradients, and the scores learn which it was."""

    name = "lift"
    rates = FOCAL_RATE

    def __init__(self, method: Lift3D) -> None:
        self.method = method
        self.seen: list[Tensor] = []
        """Of each part of a batch: the shares of the candidates, and what `Lift3D.course` holds."""
        self.rivals: list[Tensor] = []
        """Of each part, and each world: the sum of squares of views that teach it, and how many those are."""
        heads = [method.encoder, method.time, method.poses]
        self.players = method.scene() | {"poses": [p for part in heads for p in part.parameters()]}

    def losses(self, batch: Batch, rng: torch.Generator) -> Iterator[tuple[Any, dict[str, Tensor]]]:
        method, x0 = self.method, batch.x0
        config = method.config
        if config.noisy:
            t = training_times(method.schedule, len(x0), rng, low_share=config.low_share).to(x0.device)
            poses = method.posed(method.noised(x0, t, rng), t)
        else:
            t = torch.zeros(len(x0), device=x0.device)
            poses = method.posed(x0, t)
        won = method.winners(poses.cameras, x0, rng)
        at, there = chosen_rays(x0, method.view.rays, rng)
        cameras, teaches = _of_each(poses.cameras, won), t <= config.field_until
        worlds: list[tuple[nn.Module, Tensor]] = [(method.field, torch.ones_like(teaches))]
        if method.undecided:
            assert isinstance(method.field, Rivals)
            assert poses.reversed is not None
            other = (torch.rand(len(x0), generator=rng, device=rng.device) < 0.5).to(x0.device)
            cameras = torch.where(other[:, None, None], poses.reversed, cameras)
            worlds = [(method.field, ~other), (method.field.other, other)]
        error, rivals = method.no_gradient(), []
        for world, own in worlds:
            rivals += [error.new_zeros(()), (own & teaches).sum().to(error)]
            for learns in (True, False):
                if (rows := own & (teaches == learns)).any():
                    part = self._error(cameras[rows], at[rows], there[rows], rng, world, field_learns=learns)
                    error = error + part
                    if learns:
                        rivals[-2] = part.detach()
        terms = {"denoise": error / there.numel()}
        if method.candidates > 1:
            terms["scores"] = config.poses.score_weight * F.cross_entropy(poses.scores, won)
            accuracy = (poses.scores.argmax(1) == won).float().mean()
            spread = x0.var(0).mean() if len(x0) > 1 else x0.new_tensor(4.0)  # the most there is
            use = F.one_hot(won, method.candidates).float().mean(0)
            self.seen.append(torch.cat([use, torch.stack([accuracy, terms["denoise"].detach(), spread])]))
            terms["_accuracy"], terms["_used"] = accuracy, in_use(method.usage)
        if method.undecided:
            self.rivals.append(torch.stack(rivals))
            terms["_rivalry"] = method.rivalry[1] / method.rivalry[0]
        elif config.imagined and method.field.opened >= IMAGINED_FROM:
            # a batch may come in parts, of a single picture even: as many are imagined, and weigh as much
            wanted = config.imagined * len(x0)
            if n := int(wanted + torch.rand((), generator=rng, device=rng.device).item()):
                terms["imagined"] = n / wanted * self._imagined(cameras[:n].detach(), rng)
        yield tuple(self.players), terms

    def _imagined(self, cameras: Tensor, rng: torch.Generator) -> Tensor:
        """How far the poses are off in views of the field's own, from near cameras (B, 4, 4).

        Of photographs an encoder learns a few dozen by heart; of these there are as many as one likes. Pictures of a
        generator teach the network that inverts it so in GNeRF (Meng et al., 2021), and views of a field one that finds
        cameras in LENS (Moreau et al., 2021).
        """
        method = self.method
        cameras = method.poses.near(cameras, rng)
        x0, _, _ = method.pictures(cameras, samples=max(2, 3 * method.view.samples // 4))
        t = torch.zeros(len(x0), device=x0.device)
        if method.config.noisy:
            # rendering is what takes long: each view serves under several noises, all as little as views are read under
            cameras, x0 = cameras.repeat(NOISES, 1, 1), x0.repeat(NOISES, 1, 1, 1)
            t = training_times(method.schedule, len(x0), rng, low_share=1.0).to(x0.device)
            x0 = method.noised(x0, t, rng)
        poses = method.posed(x0, t)
        view = method.view
        away = (
            view.near if view.forward else view.radius
        )  # of what is seen: how far a step aside shifts a picture
        off = apart(poses.cameras, cameras[:, None], away)  # (B, M)
        nearest = off.argmin(1)  # the best of the candidates learns, here too
        error = OFF_BY * _of_each(off, nearest).mean()
        weight = CHOSEN * method.config.poses.score_weight
        return error + weight * F.cross_entropy(poses.scores, nearest)

    def _error(
        self,
        cameras: Tensor,
        at: Tensor,
        there: Tensor,
        rng: torch.Generator,
        field: nn.Module,
        *,
        field_learns: bool,
    ) -> Tensor:
        """The sum of squares between what cameras see in a field, at places of their pictures, and what is there."""
        method = self.method
        focal = None if field_learns else method.focal.detach()
        with nullcontext() if field_learns else frozen(field):
            seen = method.seen(
                cameras, at, method.view.samples, rng, focal=focal, field=field, skips=not method.undecided
            )
        return (seen.colour.view_as(there) - there).square().sum()

    def after_step(self, step: int) -> None:
        method = self.method
        method.after_views(step)
        if method.undecided:
            self._settle(self._of_all(self.rivals, torch.sum))
        if method.candidates == 1:
            return
        seen = self._of_all(self.seen, torch.mean)
        method.usage.lerp_(seen[:-3].to(method.usage), 0.02)
        method.course.lerp_(seen[-3:].to(method.course), 0.02)
        if method.config.patience and step + 1 >= method.config.patience:
            self.refuse_collapse()

    @staticmethod
    def _of_all(parts: list[Tensor], together: Callable[..., Tensor]) -> Tensor:
        """What the parts of a batch said, which are forgotten: of the whole batch, whoever computed its parts, as all
        processes have to come to one conclusion."""
        said = together(torch.stack(parts), 0)
        parts.clear()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(said)
            said /= torch.distributed.get_world_size()
        return said

    def _settle(self, rivals: Tensor) -> None:
        """Follow the errors of both worlds, and in the end keep the better one."""
        method = self.method
        assert isinstance(method.field, Rivals)
        assert isinstance(method.poses, Single)
        errors, counts = rivals[::2], rivals[1::2]
        followed = method.rivalry.lerp((errors / counts.clamp(min=1)).to(method.rivalry), 0.02)
        method.rivalry.copy_(torch.where((counts > 0).to(followed.device), followed, method.rivalry))
        if method.field.opened >= method.config.both_until:
            if method.rivalry[1] < method.rivalry[0]:
                method.field.turned.fill_(1.0)
                method.poses.turned.fill_(1.0)
            if method.occupancy is not None:  # what it knows may be the other's
                method.occupancy.peak.fill_(torch.inf)
            method.rivalry.zero_()

    def refuse_collapse(self) -> None:
        """A CollapseError where training has come to an end without having found a scene."""
        method, poses = self.method, self.method.config.poses
        left, (accuracy, error, spread) = float(in_use(method.usage)), method.course.tolist()
        if method.candidates > 2 and left < COLLAPSED_BELOW:
            raise CollapseError(
                f"nearly all photographs choose one camera of {method.candidates} ({left:.1f} in use), so that the "
                f"field is a picture and no scene. Try a lower poses.score_weight (now {poses.score_weight:g}), more "
                f"candidates, or elevations (poses.low, poses.high) that fit the photographs; an object that looks "
                f"the same from all sides has no poses to find"
            )
        if accuracy > CERTAIN and error > FLAT * spread:
            raise CollapseError(
                f"the classifier is certain of its candidates (right in {accuracy:.0%} of views) while the field shows "
                f"hardly more than the mean of all photographs (error {error:.3g}, their spread {spread:.3g}): cameras "
                f"were settled before there was anything to tell them by. Lower poses.score_weight (now "
                f"{poses.score_weight:g}), or let detail in later (view.opens, now {method.view.opens})"
            )


def in_use(usage: Tensor) -> Tensor:
    """How many of M there are in use, by the exponential of the entropy of their shares (M,)."""
    return usage.clamp(min=1e-9).log().mul(usage).sum().neg().exp()
