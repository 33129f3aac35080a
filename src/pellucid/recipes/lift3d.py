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

AROUND = Scene(radius=3.0, near=2.0, far=4.0, focal=None, forward=False, background="white")
"""Where nothing is known of the pictures: a thing in the middle, from all around, on white."""
INTO = Scene(radius=0.5, near=1.0, far=32.0, focal=None, forward=True, background="scene")
"""Where it is only known that cameras look into a scene side by side."""
FOCAL = 1.4
"""Where no focal length is known: 39 degrees across the centre square. A telephone's wide lens has about 1.0, one of 50
mm before a full frame 2.1. It is learned from there."""


def view(scale: Scale, data: DataSpec) -> ViewConfig:
    """The scene of the data, with the field and the rays of a scale."""
    scene = data.scene or AROUND
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
        "tiny": {"rays": 8, "samples": 8, "fine_samples": 8, "opens": 20 if scene.forward else 0},
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
        surroundings=scene.background == "scene" and not scene.forward,
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


POSE_RATES: Mapping[Scale, float] = {"tiny": 0.1, "cpu": 0.03, "gpu": 0.1, "paper": 0.2}
"""Of the encoder, as a factor on the field's rate."""


IMAGINED: Mapping[Scale, int] = {"tiny": 512, "cpu": 2**13, "gpu": 2**14, "paper": 0}
"""Rays of each step by which the field's own views are seen, whole ones: the larger they are, the fewer."""


def training(scale: Scale) -> TrainConfig:
    """Adam's rate is that of the field; poses have theirs by a factor, see `POSE_RATES`."""
    if scale == "tiny":
        return TrainConfig(
            steps=20,
            batch_size=4,
            lr=1e-2,
            ema_decay=0.9,
            flip=False,
            log_every=5,
            checkpoint_every=10,
        )
    if scale == "cpu":
        return TrainConfig(
            steps=2500, batch_size=16, lr=1e-2, ema_decay=0.99, warmup=200, decay=0.5, flip=False, log_every=25,
            sample_every=0, checkpoint_every=500, keep_last=20,
        )  # fmt: skip
    if scale == "gpu":
        return TrainConfig(
            steps=40_000, batch_size=32, lr=1e-3, ema_decay=0.999, warmup=500, decay=0.3, precision="fp32", flip=False,
            log_every=50, sample_every=0, checkpoint_every=2000, keep_last=20,
        )  # fmt: skip
    return TrainConfig(
        steps=200_000, batch_size=4, lr=1e-4, betas=(0.9, 0.999), ema_decay=0.999, flip=False, log_every=100,
        sample_every=0, checkpoint_every=10_000, keep_last=20,
    )  # fmt: skip


def lift3d(
    scale: Scale,
    data: DataSpec,
    *,
    candidates: int = 12,
    single: bool = False,
    noisy: bool = True,
    imagined: bool = True,
    **poses: Any,
) -> tuple[str, Lift3DConfig, TrainConfig]:
    """Ours; `poses` are fields of `PoseConfig`. A scene that cameras look into has one camera for each picture."""
    enough(data)
    own, train = view(scale, data), training(scale)
    kind: Literal["single", "candidates"] = "single" if single or own.forward else "candidates"
    small: dict[str, int] = {
        "tiny": {"hidden": 16, "pick_rays": 8, "pick_samples": 8},
        "cpu": {"pick_rays": 224, "pick_samples": 16, "pick_grid": 32},
        "gpu": {},
        "paper": {},
    }[scale]
    config = Lift3DConfig(
        size=data.size,
        channels=data.channels,
        encoder=encoder(scale, data),
        poses=PoseConfig(kind=kind, candidates=1 if kind == "single" else candidates, **small | poses),
        view=own,
        noisy=noisy,
        # most views get little noise, and only they teach the field: cameras are found sooner, and it is sharper.
        # Measured at scale cpu, see results.md; the paper does neither
        low_share=0.75 if noisy and scale != "paper" else 0.0,
        field_until=0.2 if noisy and scale != "paper" else 1.0,
        imagined=min(0.5, IMAGINED[scale] / (train.batch_size * data.size**2)) if imagined else 0.0,
        # so late at scale tiny that its few grids have opened
        both_until=(0.75 if scale == "tiny" else 0.5) if own.forward and own.opens else 0.0,
    )
    return "lift3d", config, with_rates(train, "lift", poses=POSE_RATES[scale])


def into(scale: Scale, data: DataSpec) -> tuple[str, Lift3DConfig, TrainConfig]:
    """Of a scene that cameras look into side by side, where the pictures do not say that they do."""
    forward = data.scene is not None and data.scene.forward
    return lift3d(scale, data if forward else replace(data, scene=INTO))


def nerf(
    scale: Scale, data: DataSpec, *, poses: Literal["given", "learned"] = "given"
) -> tuple[str, NeRFConfig, TrainConfig]:
    """The same field with the data's own cameras, or with cameras that are parameters."""
    enough(data)
    own = view(scale, data)
    if poses == "given":  # known cameras need no slow opening
        own = replace(own, opens=own.opens // 4, learn_focal=False)
    views = 0 if poses == "given" else data.count
    config = NeRFConfig(size=data.size, channels=data.channels, view=own, poses=poses, views=views)
    # a parameter of one picture is stepped on with that alone, and has as far to go as an encoder's word
    rates = {} if poses == "given" else {"poses": 10 * POSE_RATES[scale]}
    return "nerf", config, with_rates(training(scale), "fit", **rates)


def enough(data: DataSpec) -> None:
    """A ValueError where there are too few views for a scene."""
    if 0 < data.count < 3:
        raise ValueError(
            f"{data.spec} has {data.count} photograph{'s' * (data.count > 1)} to learn from, and a scene needs "
            f"three views at the very least, and tens to be seen from all around"
        )


def with_rates(train: TrainConfig, stage: str, **rates: float) -> TrainConfig:
    """Training in which players have rates of their own, as factors on the field's."""
    return replace(train, stages={stage: StageConfig(lr_of=rates)})


RECIPES: Mapping[str, Maker] = {
    "lift3d": lift3d,
    "lift3d-forward": into,
    "lift3d-clean": partial(lift3d, noisy=False),
    "lift3d-single": partial(lift3d, single=True, imagined=False),
    "lift3d-4": partial(lift3d, candidates=4),
    "lift3d-8": partial(lift3d, candidates=8),
    "nerf": nerf,
    "nerf--": partial(nerf, poses="learned"),
}
