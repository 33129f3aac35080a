"""The stage that self-guided diffusion and instance-conditioned GANs begin with: an encoder that learns by contrast.

Two random views of a picture are to be alike and unlike those of others (SimCLR, Chen et al., 2020). The papers take
encoders that others have trained on ImageNet (SimSiam, SwAV, DINO); here each learns from the pictures at hand, as
CoFi-UCGen does, from views of the same strength.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.methods.base import Pictures, Stage
from pellucid.methods.contrast import ViewConfig, nt_xent, view
from pellucid.nets.gan import Encoder, GANConfig
from pellucid.types import Batch


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    encoder: GANConfig = field(default_factory=GANConfig)
    dim: int = 128
    """D, entries of the feature."""
    projector: int = 128
    """Units and outputs of the projector, which the loss sees and nothing else does."""
    temperature: float = 0.5
    views: ViewConfig = field(default_factory=ViewConfig)

    def __post_init__(self) -> None:
        if self.dim < 2 or self.projector < 2 or self.temperature <= 0:
            raise ValueError(
                f"dim is {self.dim}, projector {self.projector}, temperature {self.temperature}; at least 2, at least "
                f"2, above 0"
            )
        if self.encoder.kind == "mlp":
            raise ValueError("points have no views, and nothing to contrast; this method takes pictures")


class Features(nn.Module):
    """An encoder whose features have length 1, and the projector by which it learns."""

    def __init__(self, config: ContrastConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder, config.dim)
        self.projector = nn.Sequential(
            nn.ReLU(),
            nn.Linear(config.dim, config.projector),
            nn.ReLU(),
            nn.Linear(config.projector, config.projector),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (B, C, H, W) -> (B, D), unit vectors."""
        return F.normalize(self.encoder(x).float(), dim=1)

    @torch.no_grad()
    def of(self, pictures: Pictures, n: int, least: int, what: str) -> Tensor:
        """Those of n training pictures, (n, D). Raises ValueError where there are fewer than `least`."""
        device = next(self.parameters()).device
        found = torch.cat([self(part.to(device)) for part in pictures(n)])[:n]
        if len(found) < least:
            raise ValueError(
                f"there are {len(found)} pictures for {least} {what}; set fewer bits, or add pictures"
            )
        return found


class Contrast(Stage):
    """Two views of every picture, told apart from those of all others."""

    name = "contrast"
    shows: Any = None

    def __init__(self, features: Features) -> None:
        self.features = features
        self.players = {"encoder": list(features.parameters())}

    def losses(self, batch: Batch, rng: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        net, cfg = self.features, self.features.config
        both = torch.cat([view(batch.x0, cfg.views, rng), view(batch.x0, cfg.views, rng)])
        one, two = net.projector(net.encoder(both)).chunk(2)
        yield "encoder", {"contrast": nt_xent(one, two, cfg.temperature)}
