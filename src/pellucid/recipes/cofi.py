"""Recipes of CoFi-UCGen, of its ablations, and of what it is compared with.

`paper` holds the paper's numbers where it gives them (section IV-A): d = 300, n = 5, coarse pictures of 64 pixels, base
96 for the coarse diffusion, 192 at 256 pixels and 256 at 512 for the fine one, Adam at 1e-4; for the ring, four layers
of 64 and d = 32. The rest is RCF-GAN's or ours. `cpu` is for two cores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pellucid.methods.cofi.coarse import CoarseConfig
from pellucid.methods.cofi.fine import FineConfig
from pellucid.methods.cofi.method import CoFiConfig
from pellucid.methods.priors import PriorConfig
from pellucid.nets.gan import GANConfig
from pellucid.nets.unet import UNetConfig
from pellucid.nets.vae import AutoencoderConfig, PretrainedConfig
from pellucid.recipes.factorized import predicts
from pellucid.train.trainer import StageConfig, TrainConfig

if TYPE_CHECKING:
    from pellucid.recipes import DataSpec, Maker, Scale

ADAM = (0.5, 0.999)
"""Betas of the adversarial game."""


def prior(scale: Scale, **options: Any) -> PriorConfig:
    dim = {"tiny": 16, "cpu": 120, "gpu": 300, "paper": 300}[scale]
    bits = 2 if scale == "tiny" else 5
    return PriorConfig(**{"dim": dim, "bits": bits} | options)


def gan(scale: Scale, data: DataSpec) -> GANConfig:
    """Generator and encoder of a scale; the same for our method and every adversarial baseline."""
    if scale == "tiny":
        return GANConfig(size=data.size, channels=data.channels, base=8, most=2, stem=2, attention=0)
    if scale == "cpu":
        return GANConfig(size=data.size, channels=data.channels, base=16, most=4, stem=2, attention=8)
    return GANConfig(size=data.size, channels=data.channels, base=64, most=8, attention=16)


def unet(scale: Scale, channels: int, size: int) -> UNetConfig:
    """The U-Net that diffuses pictures or latents of this size, down to 4 pixels a side at the least."""
    if scale == "tiny":
        return UNetConfig(channels=channels, base=8, multipliers=(1, 2), blocks=1, middle_attention=False)
    stages = max(1, (size // 4).bit_length())
    if scale == "cpu":  # 8 a side and 32 wide, a step costs half of 16 a side and 24 wide
        base = 32 if size <= 8 else 24 if size <= 16 else 16
        return UNetConfig(channels=channels, base=base, multipliers=(1, 2, 3)[:stages], blocks=1)
    deep: dict[str, Any] = {"multipliers": (1, 2, 3, 4)[:stages], "blocks": 2}
    deep["attention"] = tuple(range(2, min(4, stages)))
    if scale == "gpu":
        return UNetConfig(channels=channels, base=64, **deep)
    # the paper's widths: of the coarse diffusion at 64 pixels, and of latents of pictures of 256 and of 512
    base = 96 if channels <= 3 else 256 if size >= 64 else 192
    return UNetConfig(channels=channels, base=base, **deep)


def autoencoder(scale: Scale, data: DataSpec) -> AutoencoderConfig:
    """Latents of 8 pixels a side or more; where there is room, an eighth of the picture's, as in latent diffusion."""
    if scale == "tiny":
        return AutoencoderConfig(channels=data.channels, base=8, multipliers=(1, 1))
    if scale == "cpu":
        widths = (1, 2, 2) if data.size >= 32 else (1, 2)
        return AutoencoderConfig(channels=data.channels, latent_channels=8, base=16, multipliers=widths)
    stages = min(4, max(1, (data.size // 8).bit_length()))
    return AutoencoderConfig(
        channels=data.channels, base=128, multipliers=(1, 2, 4, 4)[:stages], blocks=2, middle_attention=True
    )


def fine(scale: Scale, data: DataSpec, latents: AutoencoderConfig | PretrainedConfig | None) -> FineConfig:
    channels = data.channels if latents is None else latents.latent_channels
    side = data.size if latents is None else data.size // latents.factor
    small = scale in ("tiny", "cpu")
    encoder = GANConfig(
        size=side, channels=channels, base=8 if scale == "tiny" else 24 if small else 64, most=4,
        stem=2 if small and side >= 16 else 1, attention=0 if small else 16,
    )  # fmt: skip
    few: dict[str, Any] = {}
    if scale == "cpu":  # few steps: what the codes say has to be heard, and s to have something to say
        few = {"weighting": "v", "redrawn": 0.9}
    return FineConfig(
        unet=unet(scale, channels, side),
        encoder=encoder,
        dim={"tiny": 8, "cpu": 8, "gpu": 64, "paper": 64}[scale],
        predicts=predicts(scale),
        **few,
    )


def training(scale: Scale) -> TrainConfig:
    """One stage's settings, and what differs in the others."""
    if scale == "tiny":
        return TrainConfig(
            steps=30, batch_size=8, lr=1e-3, ema_decay=0.9, log_every=5, checkpoint_every=15,
            stages={"coarse": StageConfig(betas=ADAM)},
        )  # fmt: skip
    if scale == "cpu":
        return TrainConfig(
            steps=800, batch_size=32, lr=2e-3, ema_decay=0.995, warmup=50, decay=0.3, log_every=20,
            sample_every=400, checkpoint_every=200,
            stages={
                "coarse": StageConfig(
                    steps=400, batch_size=64, lr=4e-4, betas=ADAM, grad_clip=0.0, decay=0.5, warmup=0
                ),
                "autoencoder": StageConfig(batch_size=16, steps=2500),
                "fine": StageConfig(steps=5000),
            },
        )  # fmt: skip
    if scale == "gpu":
        return TrainConfig(
            steps=40_000, batch_size=128, lr=2e-4, ema_decay=0.999, warmup=500, decay=0.2, precision="bf16",
            log_every=50, sample_every=2000, checkpoint_every=2000, workers=4,
            stages={
                "coarse": StageConfig(
                    betas=ADAM, grad_clip=0.0, warmup=0, lr=1e-4, lr_of={"critic": 4.0}, decay=0.5
                ),
                "autoencoder": StageConfig(steps=20_000, batch_size=64),
            },
        )  # fmt: skip
    return TrainConfig(
        steps=200_000, batch_size=64, lr=1e-4, ema_decay=0.9999, grad_clip=0.0, log_every=100,
        sample_every=5000, checkpoint_every=5000, workers=8,
        stages={"coarse": StageConfig(betas=ADAM, steps=100_000)},
    )  # fmt: skip


def cofi(
    scale: Scale,
    data: DataSpec,
    *,
    stages: tuple[str, ...] = ("autoencoder", "fine"),
    prior_options: Mapping[str, Any] | None = None,
    coarse_options: Mapping[str, Any] | None = None,
    fine_options: Mapping[str, Any] | None = None,
    pretrained: PretrainedConfig | None = None,
) -> tuple[str, CoFiConfig, TrainConfig]:
    """The coarse stage, and those that `stages` names of "diffusion", "autoencoder" and "fine".

    A `pretrained` autoencoder stands in for the stage that would train one.
    """
    if data.size == 1:
        raise ValueError("these are points and not pictures; the recipe for points is cofi-ring")
    options: dict[str, Any] = {}
    if scale == "cpu":  # few steps: what bits mean has to come from the views, and early
        options = {"patience": 150, "projector": 0, "contrast": 3.0, "pull": 1.0, "ramp": 400}
    coarse = CoarseConfig(**options | dict(coarse_options or {}))
    latents: AutoencoderConfig | PretrainedConfig | None = None
    if "autoencoder" in stages:
        latents = pretrained or autoencoder(scale, data)
        if data.size < 8 * latents.factor:
            raise ValueError(
                f"the autoencoder makes pictures {latents.factor} times smaller, and theirs have {data.size} a side; "
                f"the fine stage works on 8 and more: take pictures of {8 * latents.factor} or more"
            )
    diffusion = FineConfig(unet=unet(scale, data.channels, data.size), predicts=predicts(scale))
    config = CoFiConfig(
        size=data.size,
        channels=data.channels,
        prior=prior(scale, **prior_options or {}),
        gan=gan(scale, data),
        coarse=coarse,
        diffusion=diffusion if "diffusion" in stages else None,
        autoencoder=latents,
        fine=replace(fine(scale, data, latents), **fine_options or {}) if "fine" in stages else None,
    )
    there = {"coarse", *stages} - ({"autoencoder"} if pretrained else set())
    train = training(scale)
    return "cofi", config, replace(train, stages={k: v for k, v in train.stages.items() if k in there})


def ring(
    scale: Scale, data: DataSpec, *, prior_options: Mapping[str, Any] | None = None, **options: Any
) -> tuple[str, CoFiConfig, TrainConfig]:
    """Points: the coarse stage alone, with networks of four layers, and no views to contrast."""
    if data.size != 1:
        raise ValueError(
            f"cofi-ring takes points, of size 1, and these are pictures of {data.size}; use cofi"
        )
    config = CoFiConfig(
        size=1,
        channels=data.channels,
        prior=PriorConfig(**{"dim": 32, "bits": 2} | dict(prior_options or {})),
        gan=GANConfig(kind="mlp", size=1, channels=data.channels, base=64, smooth=True),
        coarse=CoarseConfig(
            **{"contrast": 0.0, "along": 0.0, "reciprocal": 4.0, "huber": 0.1, "read_noise": 0.03} | options
        ),
    )
    # clipped: now and then a critic that has grown steep throws the generator off the circle
    return "cofi", config, replace(ring_training(scale), stages={"coarse": StageConfig(grad_clip=20.0)})


def ring_training(scale: Scale) -> TrainConfig:
    """The same for every method on the ring; ours is clipped besides."""
    steps = {"tiny": 30, "cpu": 4000, "gpu": 8000, "paper": 8000}[scale]
    return TrainConfig(
        steps=steps, batch_size=512, lr=2e-4, betas=ADAM, ema_decay=0.999, decay=0.6, grad_clip=0.0, flip=False,
        log_every=200, checkpoint_every=max(15, steps // 4),
    )  # fmt: skip


TO_THE_END: Mapping[str, Any] = {"patience": 10**9}
"""An ablation that collapses is a finding, and is scored as it is."""

RECIPES: Mapping[str, Maker] = {
    "cofi": cofi,
    "cofi-other-encoder": partial(cofi, coarse_options={"adversarial": False, "projector": 128, "pull": 0.0}),
    "cofi-coarse": partial(cofi, stages=("diffusion",)),
    "cofi-gan": partial(cofi, stages=()),
    "cofi-gan-no-reciprocal": partial(cofi, stages=(), coarse_options={"reciprocal": 0.0} | dict(TO_THE_END)),
    "cofi-gan-no-contrast": partial(cofi, stages=(), coarse_options={"contrast": 0.0} | dict(TO_THE_END)),
    "cofi-gan-isotropic": partial(cofi, stages=(), coarse_options={"along": 0.0} | dict(TO_THE_END)),
    "cofi-gan-mixture": partial(
        cofi, stages=(), prior_options={"kind": "mixture"}, coarse_options=TO_THE_END
    ),
    "cofi-gan-onehot": partial(cofi, stages=(), prior_options={"kind": "onehot"}, coarse_options=TO_THE_END),
    "cofi-contrast": partial(
        cofi, stages=(), coarse_options={"adversarial": False, "projector": 128, "pull": 0.0}
    ),
    "cofi-ring": ring,
    "cofi-ring-mixture": partial(ring, prior_options={"kind": "mixture"}),
    "cofi-ring-onehot": partial(ring, prior_options={"kind": "onehot"}),
}
