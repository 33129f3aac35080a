"""Which sample comes when.

The samples of a run form one endless sequence: epoch after epoch, each a permutation that is a
function of (seed, epoch) alone. A sample's place in that sequence, its *position*, is the only state
there is. Step s takes positions s*B .. s*B + B - 1 whatever the number of workers, ranks or restarts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch

from pellucid.data.draws import splitmix
from pellucid.data.groups import Groups
from pellucid.data.images import Dataset
from pellucid.types import Batch


@dataclass(frozen=True)
class Order:
    """The order of a run over `length` samples, as one of `world_size` ranks sees it.

    `batch_size` counts the samples of a step over all ranks; each rank takes an equal, contiguous
    share, so that the ranks' batches joined in rank order are the batch of a single process.
    """

    length: int
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError("length is 0: there is nothing to put in order")
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}: at least 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}: a seed is 0 or more")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank is {self.rank}, world_size {self.world_size}: rank must be below it")
        if self.batch_size % self.world_size:
            raise ValueError(
                f"batch_size {self.batch_size} does not divide over {self.world_size} processes: "
                f"try {max(1, round(self.batch_size / self.world_size)) * self.world_size}"
            )

    def positions(self, step: int) -> np.ndarray:
        """Positions of this rank's samples of a step. (B / world_size,) int64."""
        share = self.batch_size // self.world_size
        return step * self.batch_size + self.rank * share + np.arange(share, dtype=np.int64)

    def indices(self, step: int) -> np.ndarray:
        """Data set indices of this rank's samples of a step. (B / world_size,) int64."""
        epochs, offsets = np.divmod(self.positions(step), self.length)
        out = np.empty_like(offsets)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            out[here] = permutation(self.length, self.seed, int(epoch))[offsets[here]]
        return out

    def coins(self, step: int, salt: int) -> np.ndarray:
        """A fair coin for each of `indices(step)`, a function of (seed, position, salt). Bool."""
        return (
            splitmix(self.positions(step).astype(np.uint64) ^ _key(self.seed, salt, 1)) >> np.uint64(63) == 1
        )

    def uniform(self, step: int, salt: int, count: int) -> np.ndarray:
        """`count` numbers for each of `indices(step)`, a function of (seed, position, salt): (B, count) in [0, 1)."""
        own = splitmix(self.positions(step).astype(np.uint64) ^ _key(self.seed, salt, 2))
        bits = splitmix(own[:, None] + np.arange(count, dtype=np.uint64))
        return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


@lru_cache(maxsize=4)
def permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch, (length,) int64, read-only.

    Sorting by a keyed 64-bit hash rather than asking numpy to shuffle: numpy does not promise the
    same stream in its next release, and a run must resume with any.
    """
    order = np.argsort(splitmix(np.arange(length, dtype=np.uint64) ^ _key(seed, epoch, 0)), kind="stable")
    order.flags.writeable = False
    return order


class Loader:
    """An endless iterator of batches in an order, made ahead of time by threads.

    Threads suffice: decoded images are a copy out of one array, and numpy and Pillow release the
    interpreter while they work. With `workers=0` each batch is made when it is asked for. The
    batches are the same for any number of workers.

    `flip` mirrors each picture, with its masks, left to right with probability 1/2, decided by the
    sample's position. Other truth (positions, poses) is dropped then: it would no longer be true.

    `derived` is asked for what is to be handed out with the samples of (B,) indices, of which those where
    (B,) bool are mirrored. `groups` draws partners for each sample. Without `pictures` none is decoded.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: Order,
        start_step: int = 0,
        workers: int = 1,
        *,
        flip: bool = False,
        derived: Callable[[np.ndarray, np.ndarray], Mapping[str, torch.Tensor]] | None = None,
        groups: Groups | None = None,
        pictures: bool = True,
    ) -> None:
        if order.length != len(dataset):
            raise ValueError(f"the order is over {order.length} samples and the data set has {len(dataset)}")
        if workers < 0:
            raise ValueError(f"workers is {workers}: 0 or more")
        self.dataset, self.order, self.start_step = dataset, order, start_step
        self.workers, self.flip, self.derived = workers, flip, derived
        self.groups, self.pictures = groups, pictures

    def batch(self, step: int) -> Batch:
        """This rank's batch of one step."""
        indices = self.order.indices(step)
        still = np.zeros(len(indices), dtype=bool)
        batch = self._of(indices, self.order.coins(step, salt=0) if self.flip else still)
        if self.groups is None:
            return batch
        each = self.groups.partners_each
        found = self.groups.partners(indices, self.order.uniform(step, 1, each)).reshape(-1)
        coins = self.order.uniform(step, 2, each) < 0.5 if self.flip else still.repeat(each)
        partners = self._of(found, coins.reshape(-1))
        return replace(batch, partners=partners.map(lambda v: v.unflatten(0, (len(indices), each))))

    def _of(self, indices: np.ndarray, coins: np.ndarray) -> Batch:
        """The samples of indices (B,), those where `coins` (B,) is true mirrored."""
        if self.pictures:
            batch = self.dataset.batch(indices)
        else:
            table = self.dataset.table
            batch = Batch(
                x0=torch.empty(len(indices), self.dataset.shape[0], 0, 0),
                attributes=None if table is None else torch.from_numpy(table[indices]),
            )
        if self.flip:
            turned = torch.from_numpy(coins)
            masks = None if batch.masks is None else mirror(batch.masks, turned)
            batch = replace(batch, x0=mirror(batch.x0, turned), masks=masks, truth={})
        derived = batch.derived if self.derived is None else self.derived(indices, coins)
        return replace(batch, index=torch.from_numpy(np.asarray(indices, np.int64)), derived=derived)

    def __iter__(self) -> Iterator[Batch]:
        step = self.start_step
        if self.workers == 0:
            while True:
                yield self.batch(step)
                step += 1
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="pellucid-data")
        ahead: deque[Future[Batch]] = deque()
        try:
            while True:
                while len(ahead) < 2 * self.workers:
                    ahead.append(pool.submit(self.batch, step))
                    step += 1
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def mirror(value: torch.Tensor, turned: torch.Tensor) -> torch.Tensor:
    """Left becomes right in the samples where `turned` (B,) is true."""
    return torch.where(turned.view(-1, *(1,) * (value.ndim - 1)), value.flip(-1), value)


def _key(*words: int) -> np.ndarray:
    """One hash of several integers. (1,) uint64."""
    key = np.zeros(1, dtype=np.uint64)
    for word in words:
        key = splitmix(key ^ np.uint64(word & 0xFFFF_FFFF_FFFF_FFFF))
    return key
