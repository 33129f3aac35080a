"""Autoencoders of pixels whose code falls into attributes: GZS-Net, which learns it by swaps, and AE + DS, by labels.

GZS-Net is Ge, Abu-El-Haija, Xin and Itti, "Zero-shot Synthesis with Group-Supervised Learning" (2021). AE + DS ("direct
supervision") is what it is compared with there, and DiffuseGAE with both: the same autoencoder, each of whose parts a
linear classifier of its own attribute has to read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from pellucid.methods.base import Method, Stage, resolve
from pellucid.methods.parts import Parts, ReadParts, checked
from pellucid.methods.swaps import cycle, grouped
from pellucid.nets.gan import Encoder, GANConfig, Generator
from pellucid.types import Attribute, Batch, Control, Readout, Sample


@dataclass(frozen=True, kw_only=True)
class GZSNetConfig:
    size: int = 64
    channels: int = 3
    net: GANConfig = field(default_factory=GANConfig)
    """Of the encoder and of the decoder, its mirror."""
    attributes: tuple[Attribute, ...]
    parts: tuple[int, ...]
    """Entries of each attribute's part of the code."""
    code: int = 100
    """Entries of the code."""
    supervision: Literal["swaps", "labels"] = "swaps"
    """swaps: GZS-Net. labels: AE + DS."""
    shared: int = 1
    """How many attributes a partner shares."""
    swap: float = 1.0
    """Weight of the swaps beside the reconstruction."""
    cycle: float = 1.0
    """Weight of swaps that are undone again."""
    reading: float = 0.1
    """Weight of the labels' cross-entropy, summed over attributes, where it is by labels."""

    def __post_init__(self) -> None:
        if (self.net.size, self.net.channels) != (self.size, self.channels):
            raise ValueError(
                f"net is for {self.net.channels} channels at size {self.net.size}; the pictures have "
                f"{self.channels} at {self.size}"
            )
        checked(self.attributes, self.parts, self.code)
        for name in ("swap", "cycle", "reading"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; a weight, 0 or more")


class GZSNet(Method):
    """Pictures into parts and back, with no noise anywhere: as sharp as an autoencoder's are."""

    name: ClassVar[str] = "gzsnet"
    reads_any_size: ClassVar[bool] = False
    edits_vary: ClassVar[bool] = False

    def __init__(self, config: GZSNetConfig) -> None:
        super().__init__()
        self.config = config
        self.image_shape = (config.channels, config.size, config.size)
        self.encoder, self.decoder = Encoder(config.net, config.code), Generator(config.net, config.code)
        self.parts = Parts(config.parts, config.attributes)
        self.controls: dict[str, Control] = {
            "image": Control(kind="image", help="read this picture's code and start from it"),
            "blend_with": Control(
                kind="image", needs="image", help="a second picture, whose code is blended with the first's"
            ),
            "blend": Control(
                kind="float", default=0.5, low=0.0, high=1.0, needs="blend_with", help="share of the second"
            ),
        }
        self.parts.add_controls(self.controls)
        code = Readout(kind="vector", shape=(config.code,), help="the code, part by part")
        self.readouts = self.parts.readouts | {"code": code}

    def stages(self) -> tuple[Stage, ...]:
        first: Stage = Swapping(self) if self.config.supervision == "swaps" else Supervised(self)
        return first, ReadParts(self.parts, self.parts_of)

    def parts_of(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> the code (B, D)."""
        return self.encoder(x).float()

    @torch.no_grad()
    def read(self, x: Tensor, rng: torch.Generator, **controls: Any) -> dict[str, Tensor]:
        """The code of pictures (B, C, H, W) of this model's size, and what each of its parts says."""
        resolve(self.controls, controls, reading=True)
        return self.described(self.parts_of(x))

    def described(self, w: Tensor) -> dict[str, Tensor]:
        return self.parts.shares(w) | {"code": w}

    @torch.no_grad()
    def sample(self, n: int, rng: torch.Generator, **controls: Any) -> Sample:
        """n pictures of parts as drawn values have them, or of a given picture's, changed; see `controls`."""
        if n < 1:
            raise ValueError(f"n is {n}; ask for at least one image")
        use: Mapping[str, Any] = resolve(self.controls, controls)
        w = self.parts.drawn(n, rng)
        if use["image"] is not None:
            w = self.parts_of(self.given(use["image"], n))
        if use["blend_with"] is not None:
            w = torch.lerp(w, self.parts_of(self.given(use["blend_with"], n)), use["blend"])
        w = self.parts.changed(w, use, lambda picture: self.parts_of(self.given(picture, n)))
        images = self.decoder(w).clamp(-1, 1)
        return Sample(images=images, readouts=self.described(w), controls=self.said(use))


class Swapping(Stage):
    """GZS-Net's training: reconstruction, swaps, and swaps undone, of pictures."""

    name = "swaps"

    def __init__(self, method: GZSNet) -> None:
        self.method, self.shared = method, method.config.shared
        parts = (method.encoder, method.decoder)
        self.players = {"autoencoder": [p for part in parts for p in part.parameters()]}

    def losses(self, batch: Batch, rng: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        assert batch.partners is not None
        assert batch.attributes is not None
        config = self.method.config
        found = grouped(
            self.method.parts_of, self.method.decoder, batch.x0, batch.partners.x0, config.parts, rng,
            shared=self.shared, known=(batch.attributes >= 0).all(1), reassemble=False,
        )  # fmt: skip
        terms = {"reconstruction": found.reconstruction, "swap": config.swap * found.swap}
        if config.cycle:
            undone = cycle(self.method.parts_of, self.method.decoder, batch.x0, config.parts, rng)
            terms["cycle"] = config.cycle * undone
        # codes that are alike for all pictures say nothing
        yield "autoencoder", terms | {"_spread": found.codes.detach().std(0, correction=0).mean()}


class Supervised(Stage):
    """AE + DS: reconstruction, and a linear classifier on each part."""

    name = "labels"

    def __init__(self, method: GZSNet) -> None:
        self.method = method
        heads = [*method.parts.heads.parameters()]
        parts = (method.encoder, method.decoder)
        self.players = {"autoencoder": [p for part in parts for p in part.parameters()] + heads}

    def losses(self, batch: Batch, rng: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        assert batch.attributes is not None
        w = self.method.parts_of(batch.x0)
        read = self.method.parts.reading_loss(w, batch.attributes)
        error = (self.method.decoder(w) - batch.x0).abs().mean()
        yield "autoencoder", {"reconstruction": error, "read": self.method.config.reading * read}
