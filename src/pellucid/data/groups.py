"""Groups: with each sample, others that share some of its attributes and differ in the rest.

    n  samples; m  attributes; s  attributes that a partner shares; P = m choose s  partners

GROUP(C, s) of DiffuseGAE (Leng et al., definition 1): for every subset of s attributes one sample that agrees with C
on exactly that subset. The paper takes s = 1. It draws partners at random; that the other attributes differ is what the
swaps need: of two samples that share two attributes, no swap shows which part holds which.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations
from math import comb

import numpy as np

from pellucid.data.images import Dataset
from pellucid.types import Attribute, Batch


class Groups:
    """Draws partners for samples from a table of attributes.

    Samples of which a value is not known are in nobody's group: whether they differ cannot be said. They have none
    of their own, and are given themselves as partners.

    Args:
        attributes: what the columns of the table are.
        table: (n, m) int64, -1 where not known.
        shared: s, how many attributes a partner shares; 1 to m - 1, or 1 where there is but one attribute.
        names: of the samples, for messages.

    Raises:
        ValueError: an attribute with one value, an s that is not there, or a sample for which a group cannot be formed.
    """

    def __init__(
        self,
        attributes: Sequence[Attribute],
        table: np.ndarray,
        *,
        shared: int = 1,
        names: Sequence[str] | None = None,
    ) -> None:
        m = len(attributes)
        if m < 1:
            raise ValueError(
                "these pictures have no attributes to form groups by: put an attributes.csv beside them, or sort them "
                "into folders; see docs/data.md"
            )
        if not 1 <= shared <= max(1, m - 1):
            raise ValueError(
                f"shared is {shared}; partners share from 1 to {max(1, m - 1)} of {m} attributes"
            )
        self.attributes, self.shared = tuple(attributes), shared
        self.subsets = tuple(combinations(range(m), shared))
        self._names = names
        known = (table >= 0).all(1)
        if not known.any():
            raise ValueError("no sample has a value of every attribute, and groups are made of such samples")
        for column, attribute in enumerate(attributes):
            if len(np.unique(table[known, column])) < 2:
                raise ValueError(
                    f"the attribute {attribute.name!r} has one value alone, "
                    f"{attribute.values[table[known, column][0]]!r}, in all samples with a full row; nothing can be "
                    f"learned of it: take the column out"
                )
        self._members = np.flatnonzero(known)
        self._combinations, place = np.unique(table[known], axis=0, return_inverse=True)
        self._combination_of = np.full(len(table), -1)
        self._combination_of[known] = place.reshape(-1)
        order = np.argsort(place.reshape(-1), kind="stable")
        self._by_combination = self._members[order]  # samples, those of one combination side by side
        counts = np.bincount(place.reshape(-1), minlength=len(self._combinations))
        self._first = np.concatenate([[0], np.cumsum(counts)])
        self._marks = np.array([sum(1 << column for column in subset) for subset in self.subsets])
        self._agreeing = lru_cache(maxsize=4096)(self._candidates)
        if m > len(self.subsets[0]):
            self._check()

    @classmethod
    def of(cls, dataset: Dataset, *, shared: int = 1) -> Groups:
        """Those of a data set's own table, its samples named in messages where they have names."""
        table = np.zeros((len(dataset), 0), dtype=np.int64) if dataset.table is None else dataset.table
        return cls(dataset.attributes, table, shared=shared, names=getattr(dataset, "keys", None))

    @property
    def partners_each(self) -> int:
        """P."""
        return comb(len(self.attributes), self.shared)

    def partners(self, indices: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """A partner for every subset: samples (B,), numbers in [0, 1) (B, P) -> samples (B, P).

        All samples that agree on exactly a subset are equally likely. Raises ValueError where there is none.
        """
        found = np.repeat(indices[:, None], self.partners_each, axis=1)
        for row, combination in enumerate(self._combination_of[indices]):
            if combination >= 0:
                for column, (combos, ends) in enumerate(self._agreeing(int(combination))):
                    place = int(uniform[row, column] * ends[-1])
                    which = int(np.searchsorted(ends, place, side="right"))
                    before = 0 if which == 0 else int(ends[which - 1])
                    found[row, column] = self._by_combination[self._first[combos[which]] + place - before]
        return found

    def _candidates(self, combination: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each subset the combinations that agree with this one on exactly it, and their samples, counted up."""
        same = self._combinations == self._combinations[combination]
        mark = same @ (1 << np.arange(same.shape[1]))
        found = []
        for subset, wanted in zip(self.subsets, self._marks, strict=True):
            alone = len(self.attributes) == len(subset)  # of one attribute: those of the same value
            combos = np.array([combination]) if alone else np.flatnonzero(mark == wanted)
            found.append((combos, np.cumsum(self._first[combos + 1] - self._first[combos])))
        return found

    def _check(self) -> None:
        """Raise ValueError where a combination has no partner for a subset: one that agrees on exactly that."""
        lone = np.zeros((len(self._combinations), len(self.subsets)), dtype=bool)
        for column, subset in enumerate(self.subsets):
            rest = [c for c in range(len(self.attributes)) if c not in subset]
            # agreeing on exactly S, by inclusion and exclusion: sum over T of S + T, signs by the size of T
            exactly = sum(
                (-1) ** size * self._alike([*subset, *more])
                for size in range(len(rest) + 1)
                for more in combinations(rest, size)
            )
            lone[:, column] = exactly == 0
        if lone.any():
            pictures = int((self._first[1:] - self._first[:-1])[lone.any(1)].sum())
            combination, column = (int(v) for v in np.argwhere(lone)[0])
            raise ValueError(self._unformed(combination, self.subsets[column], pictures))

    def _alike(self, columns: Sequence[int]) -> np.ndarray:
        """How many combinations have each combination's values in these columns, itself among them: (combinations,)."""
        _, place, counts = np.unique(
            self._combinations[:, columns], axis=0, return_inverse=True, return_counts=True
        )
        return counts[place.reshape(-1)]

    def _unformed(self, combination: int, subset: tuple[int, ...], pictures: int) -> str:
        sample = int(self._by_combination[self._first[combination]])
        name = f"sample {sample}" if self._names is None else self._names[sample]
        told = lambda columns: ", ".join(
            f"{self.attributes[c].name} {self.attributes[c].values[self._combinations[combination, c]]!r}"
            for c in columns
        )
        rest = [c for c in range(len(self.attributes)) if c not in subset]
        many = f"{pictures} of {len(self._members)} samples, such as {name}" if pictures > 1 else name
        return (
            f"no group can be formed for {many}: nothing else has {told(subset)} and differs in all the rest "
            f"({told(rest)}). Add such pictures, take out a column or join values that are rare, leave pictures out, "
            f"or empty one of their cells: then they are learned from without a group"
        )


def is_held_out(combination: Sequence[int], share: float) -> bool:
    """Whether a combination of values is among the share that training leaves out: by a hash of the indices alone."""
    from pellucid.data.draws import splitmix

    key = np.zeros(1, np.uint64)
    for value in combination:
        key = splitmix(key ^ np.uint64(value))
    return bool(splitmix(key)[0] >> np.uint64(11) < np.uint64(int(share * 2**53)))


class Subset:
    """Some samples of a data set, as a data set: those of the combinations that are held out, or all others.

    Args:
        dataset: one with a table of attributes.
        share: of the combinations that are held out.
        held: keep those, instead of the others.
    """

    def __init__(self, dataset: Dataset, share: float, *, held: bool) -> None:
        if dataset.table is None:
            raise ValueError("combinations can be held out only where there is a table of attributes")
        if not 0 < share < 1:
            raise ValueError(f"share is {share}; of the combinations, above 0 and below 1")
        combos, place = np.unique(dataset.table, axis=0, return_inverse=True)
        out = np.array([is_held_out(row, share) and (row >= 0).all() for row in combos])
        self.rows = np.flatnonzero(out[place.reshape(-1)] == held)
        if not len(self.rows):
            raise ValueError(
                f"a share of {share:g} of {len(combos)} combinations leaves no picture {'in' if held else 'out of'} "
                f"the part that is held out; choose another share"
            )
        self.whole = dataset
        self.shape, self.class_names, self.attributes = dataset.shape, dataset.class_names, dataset.attributes
        self.table: np.ndarray | None = dataset.table[self.rows]
        names = getattr(dataset, "keys", None)
        self.keys = None if names is None else tuple(names[row] for row in self.rows)
        self.fingerprint = f"{dataset.fingerprint}-{'held' if held else 'seen'}-{share:g}"

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: np.ndarray) -> Batch:
        """The samples of (B,) int64 indices, in that order."""
        return self.whole.batch(self.rows[indices])
