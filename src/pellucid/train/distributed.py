"""One process or many: what the training loop needs to know of torch.distributed, and no more.

`torchrun` launches; without it everything here is the identity. Weights are held whole by each process,
or split over all of them (`shard`, FSDP2); the loop tells the two apart only through `whole` and `placed`.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


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


def world(device: torch.device) -> World:
    """The process group that torchrun announced in the environment.

    It is joined once and left when the process ends: a group that is left and joined again meets the keys of its
    former self in torchrun's store, and processes that come early wait for ever.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return World()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # what nccl and `.cuda()` use
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(_leave)
    return World(dist.get_rank(), dist.get_world_size())


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def shard(module: nn.Module, device: torch.device, ranks: World) -> None:
    """Split every weight of a module over the processes, in place; nothing happens to a process alone.

    Each layer that owns weights is gathered when its own forward is called and let go after it, so a method
    may call its parts in any order and by any name, and no layer may use the weights of another. The price is
    a message a layer.
    """
    if ranks.size == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # FSDP2 takes no other
    mesh = init_device_mesh(device.type, (ranks.size,))
    for part in list(module.modules()):
        if next(part.parameters(recurse=False), None) is not None:
            fully_shard(part, mesh=mesh)


def whole(value: Tensor) -> Tensor:
    """A tensor with the shares of all processes; all of them must ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def all_whole(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: whole(v) for k, v in state.items()}


def placed(value: Tensor, like: Tensor) -> Tensor:
    """A copy of a whole tensor that lives as `like` does: its device, its memory format, its share."""
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return torch.empty_like(like).copy_(value)
