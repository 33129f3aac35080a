"""Recipes of DiffuseGAE, of its ablations, and of what it is compared with.

`paper` holds the paper's numbers where it gives them (sections 3.3, 3.4 and 4): z_sem of 512 entries, z_dis of 100,
four MLP blocks and two bottlenecks, Adam at 4e-5 for the groups and 1e-5 for the fine-tuning; those of the diffusion
autoencoder are Preechakul et al.'s (2022): 1e-4, batches of 128, averages of 0.9999. `cpu` is for two cores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pellucid.methods.baselines.ddpm import DDPMConfig
from pellucid.methods.baselines.gzsnet import GZSNetConfig
from pellucid.methods.baselines.pdae import PDAEConfig
from pellucid.methods.gae.autoencoder import DiffusionConfig, LatentConfig
from pellucid.methods.gae.method import GAEConfig, GroupConfig
from pellucid.nets.resnet import ResNetConfig
from pellucid.nets.unet import UNetConfig
from pellucid.recipes.cofi import gan
from pellucid.recipes.cofi import unet as plain_unet
from pellucid.recipes.factorized import predicts
from pellucid.train.trainer import StageConfig, TrainConfig

if TYPE_CHECKING:
    from pellucid.recipes import DataSpec, Maker, Scale


def unet(scale: Scale, data: DataSpec) -> UNetConfig:
    """The U-Net of a scale; the same for our method and every baseline that diffuses."""
    if scale == "cpu" and data.size >= 32:  # two pixels of a side at once: less than half of the time a step
        return UNetConfig(
            channels=data.channels, stem=2, base=32, multipliers=(1, 2, 3)[: data.size // 16], blocks=1
        )
    return plain_unet(scale, data.channels, data.size)


def encoder(scale: Scale, data: DataSpec) -> ResNetConfig:
    """The Alter-ResNet of a scale."""
    if scale == "tiny":
        return ResNetConfig(
            channels=data.channels, base=8, multipliers=(1, 2), blocks=(1, 2), attention=(0, 1)
        )
    if scale == "cpu":
        return ResNetConfig(
            channels=data.channels,
            base=24,
            multipliers=(1, 2, 4),
            blocks=(1, 1, 2),
            attention=(0, 0, 1),
            places=4,
        )
    stages = 3 if data.size < 64 else 4
    small = ResNetConfig(channels=data.channels, base=32 if scale == "gpu" else 64)
    return replace(
        small,
        multipliers=small.multipliers[:stages],
        blocks=small.blocks[:stages],
        attention=small.attention[:stages],
    )


def diffusion(scale: Scale, data: DataSpec) -> DiffusionConfig:
    few: dict[str, Any] = {"weighting": "v"} if scale in ("tiny", "cpu") else {}
    return DiffusionConfig(
        unet=unet(scale, data),
        encoder=encoder(scale, data),
        dim={"tiny": 16, "cpu": 128, "gpu": 512, "paper": 512}[scale],
        predicts=predicts(scale),
        **few,
    )


def parts(scale: Scale, attributes: int) -> tuple[int, ...]:
    """Sizes of the parts of z_dis, all equal: which attribute of a table needs more is its owner's to say.

    The paper has 60, 20 and 20 for identity, background and pose; of three attributes each gets 33 here. At the small
    scales they are narrow, with less room for what is not theirs.
    """
    if scale in ("tiny", "cpu"):
        return (4 if scale == "tiny" else 12,) * attributes
    return (max(20, 100 // max(1, attributes)),) * attributes


def training(scale: Scale) -> TrainConfig:
    if scale == "tiny":
        return TrainConfig(
            steps=30, batch_size=8, lr=1e-3, ema_decay=0.9, flip=False, log_every=5, checkpoint_every=15,
        )  # fmt: skip
    if scale == "cpu":
        return TrainConfig(
            steps=4000, batch_size=32, lr=2e-3, ema_decay=0.995, warmup=50, decay=0.3, flip=False, log_every=20,
            sample_every=0, checkpoint_every=500,
            stages={
                "groups": StageConfig(steps=5000, batch_size=128, lr=1e-3),
                "joint": StageConfig(steps=400, batch_size=16, lr=2e-4),
                "latents": StageConfig(steps=1000, batch_size=256, lr=1e-3, lr_of={"parts": 10.0}),
            },
        )  # fmt: skip
    if scale == "gpu":
        return TrainConfig(
            steps=40_000, batch_size=128, lr=2e-4, ema_decay=0.999, warmup=500, decay=0.2, precision="bf16",
            flip=False, log_every=50, sample_every=0, checkpoint_every=2000, workers=4,
            stages={
                "groups": StageConfig(steps=20_000, batch_size=512, lr=2e-4),
                "joint": StageConfig(steps=4_000, batch_size=64, lr=5e-5),
                "latents": StageConfig(steps=10_000, batch_size=512, lr=2e-4, lr_of={"parts": 10.0}),
            },
        )  # fmt: skip
    return TrainConfig(
        steps=200_000, batch_size=128, lr=1e-4, ema_decay=0.9999, flip=False, log_every=100, sample_every=0,
        checkpoint_every=5000, workers=8,
        stages={
            "groups": StageConfig(steps=100_000, batch_size=256, lr=4e-5),
            "joint": StageConfig(steps=20_000, batch_size=64, lr=1e-5),
            "latents": StageConfig(steps=50_000, batch_size=256, lr_of={"parts": 10.0}),
        },
    )  # fmt: skip


def needs_table(name: str, data: DataSpec) -> None:
    """A ValueError where the pictures have no attributes to learn by."""
    if not data.attributes:
        raise ValueError(
            f"{name} learns by a table of attributes and these pictures have none: put an attributes.csv beside them, "
            f"or sort them into folders (docs/data.md); diffae needs none"
        )


def gae(
    scale: Scale, data: DataSpec, *, group: bool = True, **options: Any
) -> tuple[str, GAEConfig, TrainConfig]:
    """DiffuseGAE; without `group` the diffusion autoencoder alone. `options` are fields of the group's config."""
    train = training(scale)
    latent = {"tiny": (16, 2), "cpu": (256, 4), "gpu": (1024, 10), "paper": (2048, 10)}[scale]
    config = GAEConfig(
        size=data.size,
        channels=data.channels,
        diffusion=diffusion(scale, data),
        latent=LatentConfig(width=latent[0], depth=latent[1]),
    )
    if group:
        needs_table("gae", data)
        sizes = parts(scale, len(data.attributes))
        hidden = {"tiny": 16, "cpu": 128, "gpu": 256, "paper": 256}[scale]
        own: dict[str, Any] = {"parts": sizes, "code": sum(sizes), "hidden": hidden}
        if scale == "cpu":  # few steps: what is not a part's own has to leave it soon
            own |= {"swap": 2.0, "reassembly": 8.0, "joint_swap": 2.0, "joint_reassembly": 8.0}
        grouped = GroupConfig(**own | options)
        config = replace(config, attributes=data.attributes, group=grouped)
    stages = {"autoencoder", "latents"} | ({"groups"} if group else set())
    stages |= {"joint"} if config.group is not None and config.group.joint else set()
    own_stages = {k: v if group else replace(v, lr_of={}) for k, v in train.stages.items() if k in stages}
    return "gae", config, replace(train, stages=own_stages)


def gzsnet(
    scale: Scale, data: DataSpec, *, supervision: Literal["swaps", "labels"] = "swaps"
) -> tuple[str, GZSNetConfig, TrainConfig]:
    """GZS-Net, or by labels AE + DS: autoencoders of pixels with parts of the sizes that DiffuseGAE has."""
    needs_table("gzsnet" if supervision == "swaps" else "ae-ds", data)
    sizes = parts(scale, len(data.attributes))
    train = training(scale)
    if scale == "cpu" and supervision == "labels":
        train = replace(train, steps=1000)
    elif scale == "cpu":
        # a step decodes some fifteen pictures for each of its own
        train = replace(train, steps=2000, batch_size=8, lr=1e-3)
    config = GZSNetConfig(
        size=data.size,
        channels=data.channels,
        net=gan(scale, data),
        attributes=data.attributes,
        parts=sizes,
        code=sum(sizes),
        supervision=supervision,
    )
    latents = training(scale).of("latents")
    own = StageConfig(steps=latents.steps, batch_size=latents.batch_size, lr=10 * latents.lr)
    return "gzsnet", config, replace(train, stages={"parts": own})


def ddpm(scale: Scale, data: DataSpec) -> tuple[str, DDPMConfig, TrainConfig]:
    """The DDPM of the same U-Net, on the batches that the diffusion autoencoder has, by the plain loss.

    It is PDAE's first stage, to begin that from.
    """
    config = DDPMConfig(size=data.size, unet=unet(scale, data), predicts=predicts(scale))
    return "ddpm", config, replace(training(scale), stages={})


def pdae(scale: Scale, data: DataSpec) -> tuple[str, PDAEConfig, TrainConfig]:
    """PDAE with U-Net, encoder and code of the diffusion autoencoder's; each stage is trained as long as that is."""
    same = diffusion(scale, data)
    config = PDAEConfig(
        size=data.size, unet=same.unet, predicts=same.predicts, encoder=same.encoder, dim=same.dim
    )
    return "pdae", config, replace(training(scale), stages={})


BEGINS_FROM: Mapping[str, str] = dict.fromkeys(
    ("gae", "gae-no-swap", "gae-no-reassembly", "gae-no-joint", "gae-no-skip"), "diffae"
) | {"pdae": "gae-ddpm"}
"""Recipes whose first stage is all that another trains, so that several may begin from one run of that."""

RECIPES: Mapping[str, Maker] = {
    "gae": gae,
    "diffae": partial(gae, group=False),
    "gae-no-swap": partial(gae, swap=0.0, joint_swap=0.0),
    "gae-no-reassembly": partial(gae, reassembly=0.0, joint_reassembly=0.0),
    "gae-no-joint": partial(gae, joint=False),
    "gae-no-skip": partial(gae, skip=False),
    "gzsnet": gzsnet,
    "ae-ds": partial(gzsnet, supervision="labels"),
    "gae-ddpm": ddpm,
    "pdae": pdae,
}
