"""One process or many: what the training loop needs to know of torch.distributed, and no more.

`torchrun` launches; without it everything here is the identity.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag, true where it is true on any rank: how ranks agree to stop at the same step."""
        if self.size == 1:
            return flags
        state = torch.tensor([float(f) for f in flags])
        if dist.get_backend() == "nccl":
            state = state.cuda()
        dist.all_reduce(state, op=dist.ReduceOp.MAX)
        return tuple(v > 0 for v in state.tolist())

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextmanager
def world(device: torch.device) -> Iterator[World]:
    """Join the process group that torchrun announced in the environment; leave it at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        yield World()
        return
    joined = not dist.is_initialized()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # what nccl and `.cuda()` use
    if joined:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size())
    finally:
        if joined:
            dist.destroy_process_group()
