"""NeRF with poses given (Mildenhall et al., 2020), and NeRF-- with poses as parameters (Wang et al., 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pellucid.cameras import moved
from pellucid.methods.base import Stage, resolve
from pellucid.methods.radiance import FOCAL_RATE, Radiance, ViewConfig, camera_control, chosen_rays
from pellucid.types import Batch, Sample


@dataclass(frozen=True, kw_only=True)
class NeRFConfig:
    size: int = 32
    channels: int = 3
    view: ViewConfig = field(default_factory=ViewConfig)
    poses: Literal["given", "learned"] = "given"
    """The data's own cameras, or one axis-angle and one translation for each picture, learned with the field."""
    views: int = 0
    """Pictures of the training set (learned)."""

    def __post_init__(self) -> None:
        if (self.views > 0) != (self.poses == "learned"):
            raise ValueError(
                f"views is {self.views} and poses {self.poses!r}: learned poses need the number of training pictures, "
                f"and given ones none"
            )
        if self.view.learn_focal and self.poses == "given":
            raise ValueError("learn_focal has nothing to learn: given cameras come with their focal lengths")

    def stretched(self, share: float) -> NeRFConfig:
        """For a training so many times as long."""
        return replace(self, view=self.view.stretched(share))


class NeRF(Radiance):
    """A radiance field of photographs whose cameras are known, or are parameters themselves.

    It reads no poses of new pictures: `sample` needs `cameras`, and without any shows a circle about the scene.
    """

    name: ClassVar[str] = "nerf"

    def __init__(self, config: NeRFConfig) -> None:
        super().__init__(config.view, config.size, config.channels)
        self.config = config
        self.posed_by = "data" if config.poses == "given" else "learning"
        self.moves = nn.Parameter(torch.zeros(config.views, 6)) if config.poses == "learned" else None
        self.controls = camera_control()
        self.readouts = {}

    def cameras(self, which: Tensor) -> Tensor:
        """The learned cameras (B, 4, 4) of training pictures (B,)."""
        assert self.moves is not None
        return moved(self.first, self.moves[which])

    def focal_of(self, batch: Batch) -> Tensor:
        known = self.moves is None and "focal" in batch.truth
        return batch.truth["focal"].to(self.device) if known else super().focal_of(batch)

    @torch.no_grad()
    def seen_from(self, batch: Batch, rng: torch.Generator, **controls: Any) -> Tensor:
        """The cameras (B, 4, 4) of training pictures: the learned ones, or those that come with them."""
        resolve(self.controls, controls, reading=True)
        if self.moves is not None:
            assert batch.index is not None
            return self.cameras(batch.index.to(self.device))
        if "camera" not in batch.truth:
            raise ValueError(
                "this model learned from known cameras, and these pictures come without any: give a folder with a "
                "transforms.json"
            )
        return batch.truth["camera"].to(self.device)

    def stages(self) -> tuple[Stage, ...]:
        return (Fitting(self),)

    @torch.no_grad()
    def read(self, x: Tensor, rng: torch.Generator, **controls: Any) -> dict[str, Tensor]:
        """Nothing: a field alone does not know where a new picture was taken."""
        resolve(self.controls, controls, reading=True)
        return {}

    @torch.no_grad()
    def sample(self, n: int, rng: torch.Generator, **controls: Any) -> Sample:
        """n views from `cameras`; without any, from all around (or side by side, into a scene)."""
        if n < 1:
            raise ValueError(f"n is {n}; ask for at least one image")
        use = resolve(self.controls, controls)
        given = use["cameras"]
        cameras = self.around(n) if given is None else given.to(self.device).expand(n, -1, -1)
        return Sample(images=self.rendered(cameras, use)[0], controls=self.said(use))


class Fitting(Stage):
    """Rays of pictures whose cameras are known, or learned with the field."""

    name = "fit"
    rates = FOCAL_RATE

    def __init__(self, method: NeRF) -> None:
        self.method = method
        self.players = method.scene()
        if method.moves is not None:
            self.players["poses"] = [method.moves]

    def losses(self, batch: Batch, rng: torch.Generator) -> Iterator[tuple[Any, dict[str, Tensor]]]:
        method, x0 = self.method, batch.x0
        if method.moves is None:
            if "camera" not in batch.truth:
                raise ValueError(
                    "nerf learns from pictures with known cameras and these have none: give a folder with a "
                    "transforms.json, or train lift3d, which finds them"
                )
            cameras, focal = batch.truth["camera"], batch.truth["focal"]
        else:
            if batch.index is None:
                raise ValueError(
                    "learned poses are one for each picture: the batch does not say which these are"
                )
            cameras, focal = method.cameras(batch.index), None
        at, there = chosen_rays(x0, method.view.rays, rng)
        seen = method.seen(cameras, at, method.view.samples, rng, focal=focal)
        error = (seen.colour.view_as(there) - there).square().mean()
        yield tuple(self.players), {"colour": error + method.no_gradient()}

    def after_step(self, step: int) -> None:
        self.method.after_views(step)
