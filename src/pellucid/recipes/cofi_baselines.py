"""Recipes of the label-free conditional GANs that CoFi-UCGen is compared with, on pictures and on points.

Networks, number of codes, latent size, data, batch and steps are those of CoFi-UCGen's own recipes. The games and their
weights are each method's own: the paper's where the ring trains well by it, otherwise what served the method best on
the ring's validation points.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pellucid.methods.baselines.adversarial import CodedGANConfig, GameConfig
from pellucid.methods.baselines.clustergan import ClusterGANConfig
from pellucid.methods.baselines.icgan import ICGANConfig
from pellucid.methods.baselines.infogan import InfoGANConfig
from pellucid.methods.baselines.mic import MICConfig
from pellucid.methods.baselines.selfcond import SelfCondConfig
from pellucid.methods.baselines.selfguided import SelfGuidedConfig
from pellucid.methods.baselines.selfsupervised import ContrastConfig
from pellucid.methods.priors import PriorConfig
from pellucid.nets.gan import GANConfig
from pellucid.recipes.cofi import gan, prior, ring_training, training, unet
from pellucid.recipes.factorized import predicts
from pellucid.train.trainer import StageConfig, TrainConfig

if TYPE_CHECKING:
    from pellucid.recipes import DataSpec, Maker, Scale

CONFIGS: Mapping[str, type[CodedGANConfig]] = {
    "clustergan": ClusterGANConfig,
    "icgan": ICGANConfig,
    "infogan": InfoGANConfig,
    "mic": MICConfig,
    "selfcond": SelfCondConfig,
}


MODES: Mapping[str, Mapping[str, float]] = {"mic": {"sigma": 0.6}}
"""A learned mixture begins with wider modes than CoFi-UCGen's prior has: with 0.3 its points end a little inside the
circle (radius 0.994)."""


def pictures(
    scale: Scale, data: DataSpec, *, method: str, **options: Any
) -> tuple[str, CodedGANConfig, TrainConfig]:
    if data.size == 1:
        raise ValueError(f"these are points and not pictures; the recipe for points is {method}-ring")
    kind = CONFIGS[method].codes_are
    config = CONFIGS[method](
        size=data.size,
        channels=data.channels,
        prior=prior(scale, kind=kind, **MODES.get(method, {})),
        gan=gan(scale, data),
        **{"game": GameConfig(penalty_weight=10.0)} | options,
    )
    train = training(scale)
    game = train.stages["coarse"]
    return method, config, replace(train, stages={"game": replace(game, lr_of=renamed(game.lr_of))})


def renamed(lr_of: Mapping[str, float]) -> dict[str, float]:
    """What holds for CoFi-UCGen's critic holds for a discriminator."""
    return {"discriminator" if player == "critic" else player: v for player, v in lr_of.items()}


ON_POINTS: Mapping[str, Mapping[str, float]] = {
    "clustergan": {"lr": 5e-4, "penalty_weight": 0.02, "noise_weight": 0.1, "code_weight": 1.0},
    "infogan": {"lr": 5e-4, "penalty_weight": 0.02},
    "mic": {"lr": 2e-4, "penalty_weight": 0.02},
    "selfcond": {"lr": 2e-4, "penalty_weight": 0.1},
}
"""What each method does otherwise on points than on pictures; of what was tried, what covers validation points best.

The circle is a thin line, which a discriminator that may not be steep cannot see: penalties are weak. Points have two
numbers, and cannot carry ClusterGAN's 28 of noise: at the paper's weight of 10 its generator leaves the circle to try.
"""


SMOOTH = ("selfcond",)
"""Whose generator of points is smooth, as CoFi-UCGen's is: those that cover validation points better so."""


def ring(scale: Scale, data: DataSpec, *, method: str) -> tuple[str, CodedGANConfig, TrainConfig]:
    """Points, with networks of four layers."""
    if data.size != 1:
        raise ValueError(
            f"{method}-ring takes points, of size 1, and these are pictures of {data.size}; use {method}"
        )
    own = dict(ON_POINTS[method])
    lr, game = own.pop("lr"), GameConfig(penalty_weight=own.pop("penalty_weight"))
    config = CONFIGS[method](
        size=1,
        channels=data.channels,
        prior=PriorConfig(kind=CONFIGS[method].codes_are, dim=32, bits=2, **MODES.get(method, {})),
        gan=GANConfig(kind="mlp", size=1, channels=data.channels, base=64, smooth=method in SMOOTH),
        game=game,
        **own,
    )
    return method, config, replace(ring_training(scale), lr=lr)


def contrast(scale: Scale, data: DataSpec) -> ContrastConfig:
    """The self-supervised encoder: the one that CoFi-UCGen has."""
    width = 16 if scale == "tiny" else 128
    return ContrastConfig(encoder=gan(scale, data), dim=width, projector=width)


def selfguided(scale: Scale, data: DataSpec) -> tuple[str, SelfGuidedConfig, TrainConfig]:
    if data.size == 1:
        raise ValueError("these are points, which have no views to contrast; selfguided takes pictures")
    config = SelfGuidedConfig(
        size=data.size,
        bits=prior(scale, kind="mixture").bits,
        contrast=contrast(scale, data),
        unet=unet(scale, data.channels, data.size),
        predicts=predicts(scale),
    )
    train = training(scale)
    return "selfguided", config, replace(train, stages={"contrast": contrast_training(train)})


def contrast_training(train: TrainConfig) -> StageConfig:
    """As many steps and pictures as CoFi-UCGen's coarse stage has."""
    return StageConfig(steps=train.stages["coarse"].steps, batch_size=train.stages["coarse"].batch_size)


def icgan(scale: Scale, data: DataSpec) -> tuple[str, CodedGANConfig, TrainConfig]:
    if data.size == 1:
        raise ValueError("these are points, which have no views to contrast; icgan takes pictures")
    _, config, train = pictures(scale, data, method="icgan", contrast=contrast(scale, data))
    stages = {"contrast": contrast_training(training(scale)), **train.stages}
    return "icgan", config, replace(train, stages=stages)


RECIPES: Mapping[str, Maker] = {
    **{name: partial(pictures, method=name) for name in ON_POINTS},
    **{f"{name}-ring": partial(ring, method=name) for name in ON_POINTS},
    "icgan": icgan,
    "selfguided": selfguided,
}
