"""An exponential moving average of weights, with warm-up."""

from __future__ import annotations

from collections.abc import Set

import torch
from torch import Tensor, nn

from pellucid.train.distributed import placed


class EMA:
    """Averages of a module's parameters; buffers are copied.

    The decay at update n is min(decay, (1 + n) / (10 + n)), so that early averages are not the initial
    weights for thousands of steps.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.shadow = {k: v.detach().clone() for k, v in module.state_dict().items()}
        self.follow({k for k, _ in module.named_parameters()}, set(), decay, updates=0)

    def follow(self, averaged: Set[str], kept: Set[str], decay: float, *, updates: int) -> None:
        """From now on average some parameters, by name, keep others as they are, and copy everything else.

        `updates` is how often `averaged` have been averaged before.
        """
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay is {decay}; it lies in [0, 1)")
        self.decay, self.updates = decay, updates
        self._averaged = [k for k in self.shadow if k in averaged]
        self._copied = [k for k in self.shadow if k not in averaged | kept]
        self._own: dict[str, Tensor] | None = (
            None  # the module's tensors, which keep their place while it trains
        )

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        own = self._own = module.state_dict() if self._own is None else self._own
        torch._foreach_lerp_(
            [self.shadow[k] for k in self._averaged], [own[k] for k in self._averaged], 1 - decay
        )
        for key in self._copied:
            self.shadow[key].copy_(own[key])

    @torch.no_grad()
    def take(self, module: nn.Module) -> None:
        """Begin anew at the module's own weights."""
        for key, value in module.state_dict().items():
            self.shadow[key].copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        return self.shadow

    def load_state_dict(self, state: dict[str, Tensor], updates: int) -> None:
        for key, value in self.shadow.items():
            value.copy_(placed(state[key], value))
        self.updates = updates
