"""Self-guided diffusion (Hu et al., CVPR 2023): a DDPM told the cluster of each picture, found without labels.

`contrast` learns features of pictures, k-means of them makes K clusters, and `denoise` trains a U-Net that is told each
picture's cluster as if it were a class, and for some pictures nothing, so that it can be guided by clusters. A picture
is read by the nearest centroid.

Differs from the paper: the features are learned here (see `selfsupervised`), and guidance is by pictures' clusters
only, not by those of their parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from pellucid.methods.base import Pictures, Stage, resolve
from pellucid.methods.baselines.segmenters import kmeans
from pellucid.methods.baselines.selfsupervised import Contrast, ContrastConfig, Features
from pellucid.methods.denoising import NOTHING, DenoisingMethod, Prediction, Predicts, standard_controls
from pellucid.nets.modulation import TimeModulator
from pellucid.nets.unet import UNet, UNetConfig
from pellucid.process.loss import denoising_loss
from pellucid.process.schedule import ScheduleName
from pellucid.types import Batch, Control, Readout, Sample

CLUSTERED = 8192
"""How many training pictures the centroids are found on."""


@dataclass(frozen=True, kw_only=True)
class SelfGuidedConfig:
    size: int = 32
    bits: int = 5
    """n; there are K = 2^n clusters, as many as other methods have codes."""
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    dropout: float = 0.1
    """Share of the pictures whose cluster is not told."""
    schedule: ScheduleName = "linear_betas"
    predicts: Predicts = "eps"

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 16:
            raise ValueError(f"bits is {self.bits}; from 1 to 16")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; at least 0 and below 1")
        shape = self.contrast.encoder.channels, self.contrast.encoder.size
        if shape != (self.unet.channels, self.size):
            raise ValueError(
                f"contrast.encoder is for {shape[0]} channels at size {shape[1]}; the pictures have "
                f"{self.unet.channels} at {self.size}"
            )

    @property
    def codes(self) -> int:
        """K."""
        return 2**self.bits


class Denoise(Stage):
    """Denoise pictures that are told by their clusters."""

    name = "denoise"
    derives = True

    def __init__(self, method: SelfGuided) -> None:
        self.method = method
        self.players = {"model": [*method.unet.parameters(), *method.time.parameters()]}

    def prepare(self, pictures: Pictures) -> None:
        method, k = self.method, self.method.config.codes
        method.fit(pictures)
        found = method.features.of(pictures, CLUSTERED, k, "clusters").cpu()
        rng = torch.Generator().manual_seed(0)  # centroids are a function of the features
        method.centroids.copy_(kmeans(found[None], k, rng)[1][0])

    @torch.no_grad()
    def derive(self, x0: Tensor) -> dict[str, Tensor]:
        return {"cluster": self.method.nearness(x0).argmax(1)}

    def losses(self, batch: Batch, rng: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        method, x0 = self.method, batch.x0
        x_t, t, logsnr, eps = method.diffused(x0, rng)
        untold = torch.rand(len(x0), generator=rng, device=rng.device) < method.config.dropout
        cluster = batch.derived["cluster"].masked_fill(untold.to(x0.device), method.config.codes)
        found = method.predict(x_t, t, cluster).eps
        yield "model", {"denoise": denoising_loss(found, x_t, eps, logsnr).mean()}


class SelfGuided(DenoisingMethod):
    """Codes are clusters of self-supervised features, and classes to a DDPM."""

    name: ClassVar[str] = "selfguided"
    reads_any_size = False
    centroids: Tensor
    """(K, D)."""

    def __init__(self, config: SelfGuidedConfig) -> None:
        super().__init__((config.unet.channels, config.size, config.size), config.schedule, config.predicts)
        self.config, codes = config, config.codes
        self.features = Features(config.contrast)
        self.register_buffer("centroids", torch.zeros(codes, config.contrast.dim))
        self.unet = UNet(config.unet)
        self.time = TimeModulator(self.unet.widths, config.unet.base, num_classes=codes)
        self.controls = standard_controls(()) | {
            "code": Control(
                kind="int", low=0, high=codes - 1,
                help="one of the clusters; where not set it is random, or that of a given picture",
            ),
            "guidance_scale": Control(
                kind="float", default=1.0, low=0.0, high=20.0,
                help="classifier-free guidance by the cluster; 1 is none",
            ),
        }  # fmt: skip
        self.readouts = {"code": Readout(kind="shares", shape=(codes,), help="how likely each cluster is")}

    @property
    def stride(self) -> int:
        return self.config.unet.stride

    def stages(self) -> tuple[Stage, ...]:
        return (Contrast(self.features), Denoise(self))

    def predict(
        self, x: Tensor, t: Tensor, label: Tensor | None = None, use: Mapping[str, Any] = NOTHING
    ) -> Prediction:
        return Prediction(self.noise_said(self.unet(x, self.time(t, label)).float(), x, t))

    def nearness(self, x: Tensor) -> Tensor:
        """How near pictures (B, C, H, W) are to each centroid: (B, K), the highest the nearest.

        Minus the squared distance of features of length 1, over the temperature that they were learned with.
        """
        return -torch.cdist(self.features(x), self.centroids).square() / self.config.contrast.temperature

    @torch.no_grad()
    def read(self, x: Tensor, rng: torch.Generator, **controls: Any) -> dict[str, Tensor]:
        """Which cluster pictures (B, C, H, W) of this model's size are of."""
        resolve(self.controls, controls, reading=True)
        return {"code": self.nearness(x).softmax(1)}

    def labels(self, n: int, use: Mapping[str, Any], rng: torch.Generator) -> Tensor:
        # drawn whatever is set, so that setting it changes nothing else
        code = torch.randint(self.config.codes, (n,), generator=rng, device=rng.device).to(self.device)
        if use["code"] is not None:
            return torch.full_like(code, use["code"])
        if use["image"] is not None:
            return self.nearness(self.given(use["image"], n)).argmax(1)
        return code

    @torch.no_grad()
    def sample(self, n: int, rng: torch.Generator, **controls: Any) -> Sample:
        """As every denoising method's; the readout is the cluster that each picture is read as."""
        made = super().sample(n, rng, **controls)
        return replace(made, readouts=self.read(made.images, rng))
