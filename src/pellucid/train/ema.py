"""An exponential moving average of weights, with warm-up."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pellucid.train.distributed import placed


class EMA:
    """Averages of a module's parameters; buffers are copied.

    The decay at update n is min(decay, (1 + n) / (10 + n)), so that early averages are not the initial
    weights for thousands of steps.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema_decay is {decay}; it lies in [0, 1)")
        self.decay = decay
        self.updates = 0
        self.shadow = {k: v.detach().clone() for k, v in module.state_dict().items()}
        self._names = [k for k, _ in module.named_parameters()]

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        parameters = dict(module.named_parameters())
        torch._foreach_lerp_(
            [self.shadow[k] for k in self._names], [parameters[k].detach() for k in self._names], 1 - decay
        )
        for key, value in module.state_dict().items():
            if key not in parameters:
                self.shadow[key].copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        return self.shadow

    def load_state_dict(self, state: dict[str, Tensor], updates: int) -> None:
        for key, value in self.shadow.items():
            value.copy_(placed(state[key], value))
        self.updates = updates
