"""Recipes of 3-D from photographs of unknown pose, of its ablations, and of the fields that are told their cameras.

`paper` holds the paper's numbers (section 3.4.1): a network of Fourier features alone, T = 100, an encoder of five
stages of [64, 64, 128, 128, 256] channels, Adam at 1e-4 for the field and 2e-5 for the poses, lambda 0.1, 200,000
steps.
`cpu` is for two cores: a field of dense grids, and small pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pellucid.data.views import Scene
from pellucid.methods.baselines.nerf import NeRFConfig
from pellucid.methods.lift3d.method import Lift3DConfig, PoseConfig
from pellucid.methods.radiance import ViewConfig
from pellucid.nets.nerf import Background, FieldConfig
from pellucid.nets.unet import UNetConfig
from pellucid.train.trainer import StageConfig, TrainConfig

if TYPE_CHECKING:
    from pellucid.recipes import DataSpec, Maker, Scale

UNSEEN = Scene(radius=3.0, near=2.0, far=4.0, focal=None, forward=False, background="white")
"""What is assumed of photographs that come without cameras: a thing in the middle, from all around, on white."""
FOCAL = 1.4
"""Where no focal length is known: an angle of view of 39 degrees, that of a normal lens. It is learned from there."""


def view(scale: Scale, data: DataSpec) -> ViewConfig:
    """The scene of the data, with the field and the rays of a scale."""
    scene = data.scene or UNSEEN
    background: Background = "none" if scene.background == "scene" else scene.background
    field = {
        "tiny": FieldConfig(width=8, depth=1, grids=(4, 8), features=2),
        "cpu": FieldConfig(width=32, depth=1, grids=(16, 32, 48)),
        "gpu": FieldConfig(
            kind="hash", width=64, depth=2, grids=(16, 32, 64, 128, 256), features=4, table=2**19
        ),
        "paper": FieldConfig(kind="mlp", width=256, depth=8, directions=4),
    }[scale]
    sampled: dict[str, int] = {
        "tiny": {"rays": 8, "samples": 8, "fine_samples": 8},
        "cpu": {"rays": 128, "samples": 32, "fine_samples": 64, "opens": 2000, "budget": 2**17},
        "gpu": {
            "rays": 512,
            "samples": 64,
            "fine_samples": 128,
            "opens": 10_000,
            "budget": 2**22,
            "occupied": 100,
        },
        "paper": {"rays": 1024, "samples": 128, "fine_samples": 192, "opens": 0, "budget": 2**22},
    }[scale]
    return ViewConfig(
        radius=scene.radius,
        near=scene.near,
        far=scene.far,
        focal=scene.focal or FOCAL,
        learn_focal=scene.focal is None,
        forward=scene.forward,
        background=background,
        field=field,
        **sampled,
    )


def encoder(scale: Scale, data: DataSpec) -> UNetConfig:
    """Of the U-Net whose way down reads poses."""
    if scale == "tiny":
        return UNetConfig(channels=data.channels, stem=2, base=8, multipliers=(1, 2), blocks=1)
    if scale == "cpu":
        stem = 4 if data.size >= 64 else 2
        return UNetConfig(channels=data.channels, stem=stem, base=32, multipliers=(1, 2, 2), blocks=1)
    return UNetConfig(
        channels=data.channels,
        stem=2 if data.size >= 256 else 1,
        base=64,
        multipliers=(1, 1, 2, 2, 4),
        blocks=2,
    )


def training(scale: Scale) -> TrainConfig:
    """Adam's rate is that of the field; poses have theirs by a factor."""
    slower = {"tiny": 0.1, "cpu": 0.03, "gpu": 0.1, "paper": 0.2}[scale]
    stages = {"lift": StageConfig(lr_of={"poses": slower})}
    if scale == "tiny":
        return TrainConfig(
            steps=20,
            batch_size=4,
            lr=1e-2,
            ema_decay=0.9,
            flip=False,
            log_every=5,
            checkpoint_every=10,
            stages=stages,
        )
    if scale == "cpu":
        return TrainConfig(
            steps=2500, batch_size=16, lr=1e-2, ema_decay=0.99, warmup=200, decay=0.3, flip=False, log_every=25,
            sample_every=0, checkpoint_every=500, stages=stages,
        )  # fmt: skip
    if scale == "gpu":
        return TrainConfig(
            steps=40_000, batch_size=32, lr=1e-3, ema_decay=0.999, warmup=500, decay=0.3, precision="fp32", flip=False,
            log_every=50, sample_every=0, checkpoint_every=2000, stages=stages,
        )  # fmt: skip
    return TrainConfig(
        steps=200_000, batch_size=4, lr=1e-4, betas=(0.9, 0.999), ema_decay=0.999, flip=False, log_every=100,
        sample_every=0, checkpoint_every=5000, stages=stages,
    )  # fmt: skip


def lift3d(
    scale: Scale,
    data: DataSpec,
    *,
    candidates: int = 12,
    single: bool = False,
    noisy: bool = True,
    **poses: Any,
) -> tuple[str, Lift3DConfig, TrainConfig]:
    """Ours; `poses` are fields of `PoseConfig`. A scene that cameras look into has one camera for each picture."""
    scene = data.scene or UNSEEN
    kind: Literal["single", "candidates"] = "single" if single or scene.forward else "candidates"
    small: dict[str, int] = {
        "tiny": {"hidden": 16, "pick_rays": 8, "pick_samples": 8},
        "cpu": {"pick_rays": 224, "pick_samples": 16, "pick_grid": 32},
        "gpu": {},
        "paper": {},
    }[scale]
    if kind == "single":
        candidates = 1
    config = Lift3DConfig(
        size=data.size,
        channels=data.channels,
        encoder=encoder(scale, data),
        poses=PoseConfig(kind=kind, candidates=candidates, **small | poses),
        view=view(scale, data),
        noisy=noisy,
    )
    return "lift3d", config, training(scale)


def nerf(
    scale: Scale, data: DataSpec, *, poses: Literal["given", "learned"] = "given"
) -> tuple[str, NeRFConfig, TrainConfig]:
    """The same field with the data's own cameras, or with cameras that are parameters."""
    own = view(scale, data)
    given = poses == "given"
    # known cameras need no slow opening; and no pose hinders more rays
    own = replace(own, opens=own.opens // 4, learn_focal=False) if given else own
    config = NeRFConfig(
        size=data.size, channels=data.channels, view=own, poses=poses, views=0 if given else data.count
    )
    stages = {} if given else {"fit": training(scale).stages["lift"]}
    return "nerf", config, replace(training(scale), stages=stages)


RECIPES: Mapping[str, Maker] = {
    "lift3d": lift3d,
    "lift3d-clean": partial(lift3d, noisy=False),
    "lift3d-single": partial(lift3d, single=True),
    "lift3d-4": partial(lift3d, candidates=4),
    "lift3d-8": partial(lift3d, candidates=8),
    "nerf": nerf,
    "nerf--": partial(nerf, poses="learned"),
}
