"""Random numbers that are a function of where they are used, not of what was drawn before.

Made data needs sample i to be the same alone, in any batch and in any process. So each number is a
hash of (seed, split, index, its own position), by the finalizer of SplitMix64 (Steele, Lea, Flood,
"Fast splittable pseudorandom number generators", 2014), whole batches at a time.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

SPLITS: Mapping[str, int] = {"train": 1, "val": 2, "test": 3}
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Draws:
    """Uniform numbers for a batch of indices: row i depends on (seed, split, indices[i]) alone.

    Each call takes the next columns, so the order of calls is part of what a data set is.
    """

    def __init__(self, seed: int, split: str, indices: np.ndarray) -> None:
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}: use {', '.join(SPLITS)}")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed is {seed}: use a whole number from 0 to 2**63 - 1")
        stream = _finalized(np.array([seed], np.uint64) * _GOLDEN + np.uint64(SPLITS[split]))
        self._keys = _finalized(np.asarray(indices).astype(np.uint64) * _GOLDEN + stream)
        self._taken = 0

    def uniform(self, *shape: int) -> np.ndarray:
        """(B, *shape) float32 in [0, 1)."""
        count = int(np.prod(shape, dtype=np.int64))
        steps = np.arange(self._taken + 1, self._taken + 1 + count, dtype=np.uint64) * _GOLDEN
        self._taken += count
        bits = _finalized(self._keys[:, None] + steps) >> np.uint64(40)
        return (bits.astype(np.float32) * np.float32(2.0**-24)).reshape(len(self._keys), *shape)

    def between(self, low: float, high: float, *shape: int) -> np.ndarray:
        """(B, *shape) float32, uniform from `low` to `high`."""
        return self.uniform(*shape) * np.float32(high - low) + np.float32(low)

    def choice(self, count: int, *shape: int) -> np.ndarray:
        """(B, *shape) int64, uniform on 0..count-1."""
        return (self.uniform(*shape) * np.float32(count)).astype(np.int64).clip(0, count - 1)


def splitmix(x: np.ndarray) -> np.ndarray:
    """One step of SplitMix64 from each state, uint64 -> uint64: the increment, then the finalizer."""
    return _finalized(x * _GOLDEN + _GOLDEN)


def _finalized(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
