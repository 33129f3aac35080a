"""What every method offers, and nothing more: the trainer, the command line and the reports use only this."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from pellucid.types import Batch, Control, Readout, Sample


class Stage(Protocol):
    """A part of a method's training, with its own losses and optimisers."""

    name: str
    players: Mapping[str, list[nn.Parameter]]
    """Who owns which parameters; a player's optimiser is stepped when its losses are yielded."""

    def losses(self, batch: Batch, rng: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield (player, weighted loss terms); that player is stepped before the next is asked for.

        Entries whose name starts with "_" are logged and not added to the loss.
        """
        ...

    def after_step(self, step: int) -> None:
        """Called once the optimisers of a step have run: target networks, queues."""
        ...


class Method(nn.Module):
    """One system of the papers: its networks, its losses, how it samples and how it reads."""

    name: ClassVar[str]
    controls: Mapping[str, Control]
    readouts: Mapping[str, Readout]
    image_shape: tuple[int, int, int]
    """(C, H, W) of what it generates."""

    def stages(self) -> tuple[Stage, ...]:
        raise NotImplementedError

    def read(self, x: Tensor, rng: torch.Generator) -> dict[str, Tensor]:
        """x (B, C, H, W) in [-1, 1] -> every declared readout, batch axis first."""
        raise NotImplementedError

    def sample(self, n: int, rng: torch.Generator, **controls: Any) -> Sample:
        """n images with their readouts; an unknown control or one out of its range is a ValueError."""
        raise NotImplementedError
