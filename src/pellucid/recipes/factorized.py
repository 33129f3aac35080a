"""Recipes of factorized diffusion and of what it is compared with.

`paper` holds the numbers of Yuan's thesis, section 2.4; `cpu` is what two cores train in minutes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from pellucid.methods.baselines.ddpm import DDPMConfig
from pellucid.methods.baselines.supervised import SegmenterConfig
from pellucid.methods.denoising import Predicts
from pellucid.methods.factorized import FactorizedConfig, Form
from pellucid.nets.unet import UNetConfig
from pellucid.train.trainer import TrainConfig

if TYPE_CHECKING:
    from pellucid.recipes import DataSpec, Maker, Scale


def unet(scale: Scale, data: DataSpec) -> UNetConfig:
    """The U-Net of a scale; the same for our method and every baseline."""
    if scale == "tiny":
        return UNetConfig(
            channels=data.channels, base=8, multipliers=(1, 2), blocks=1, middle_attention=False
        )
    if scale == "cpu":
        return UNetConfig(channels=data.channels, base=16, multipliers=(1, 2, 3), blocks=1)
    if scale == "gpu":
        return UNetConfig(channels=data.channels, base=64, multipliers=(1, 2, 3, 4), blocks=2, attention=(2,))
    if data.size >= 128:
        return UNetConfig(
            channels=data.channels, base=128, multipliers=(1, 1, 2, 3, 4), blocks=2, attention=(3,)
        )
    return UNetConfig(channels=data.channels, base=128, multipliers=(1, 2, 3, 4), blocks=3, attention=(2,))


def predicts(scale: Scale) -> Predicts:
    """The noise, as the papers do; where steps are few, what is not known beforehand (see `process.gaussian`)."""
    return "beyond" if scale in ("tiny", "cpu") else "eps"


def training(scale: Scale) -> TrainConfig:
    if scale == "tiny":
        return TrainConfig(
            steps=30,
            batch_size=8,
            lr=1e-3,
            ema_decay=0.9,
            warmup=2,
            log_every=5,
            sample_every=0,
            checkpoint_every=15,
        )
    if scale == "cpu":
        return TrainConfig(
            steps=800, batch_size=16, lr=2e-3, ema_decay=0.995, warmup=50, decay=0.3,
            log_every=40, sample_every=400, checkpoint_every=200,
        )  # fmt: skip
    if scale == "gpu":
        return TrainConfig(
            steps=20_000, batch_size=128, lr=3e-4, ema_decay=0.999, warmup=500, decay=0.2, precision="bf16",
            log_every=50, sample_every=2000, checkpoint_every=2000, workers=4,
        )  # fmt: skip
    return TrainConfig(
        steps=50_000, batch_size=128, lr=1e-4, ema_decay=0.9999, warmup=0, grad_clip=0.0,
        log_every=100, sample_every=5000, checkpoint_every=5000, workers=8,
    )  # fmt: skip


def factorized(
    scale: Scale,
    data: DataSpec,
    *,
    form: Form = "kernel",
    regions: int = 3,
    subregions: int = 0,
    conditional: bool = False,
    **options: Any,
) -> tuple[str, FactorizedConfig, TrainConfig]:
    if conditional and not data.class_names:
        raise ValueError(
            "factorized-class conditions on classes and this data has none; use `factorized`, or sort the "
            "pictures into a folder for each class"
        )
    if form == "kernel":  # its masks are read where there is least noise, and so learned there more often
        painter = "own" if scale in ("tiny", "cpu") else "shared"
        options = {"read_time": 0.005, "low_noise_share": 0.25, "painter": painter} | options
    config = FactorizedConfig(
        size=data.size,
        unet=unet(scale, data),
        form=form,
        regions=regions,
        subregions=subregions,
        class_names=data.class_names if conditional else (),
        predicts=predicts(scale),
        code_width=64 if scale in ("gpu", "paper") else 32,
        **options,
    )
    return "factorized", config, training(scale)


def ddpm(scale: Scale, data: DataSpec) -> tuple[str, DDPMConfig, TrainConfig]:
    config = DDPMConfig(size=data.size, unet=unet(scale, data), predicts=predicts(scale))
    return "ddpm", config, training(scale)


def segmenter(scale: Scale, data: DataSpec) -> tuple[str, SegmenterConfig, TrainConfig]:
    return "segmenter", SegmenterConfig(size=data.size, unet=unet(scale, data)), training(scale)


RECIPES: Mapping[str, Maker] = {
    "factorized": factorized,
    "factorized-hybrid": partial(factorized, form="hybrid"),
    "factorized-code": partial(factorized, form="code"),
    "factorized-shared": partial(factorized, form="shared"),
    "factorized-unshared": partial(factorized, form="unshared"),
    "factorized-concat": partial(factorized, form="concat"),
    "factorized-masked-mid": partial(factorized, form="masked_mid"),
    "factorized-hierarchy": partial(factorized, form="shared", subregions=3),
    "factorized-hierarchy-code": partial(factorized, form="code", subregions=3),
    "factorized-nine-code": partial(factorized, form="code", regions=9),
    "factorized-class": partial(factorized, conditional=True),
    "ddpm": ddpm,
    "segmenter": segmenter,
}
