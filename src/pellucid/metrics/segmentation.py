"""How well unnamed regions agree with true masks.

A method that was never told what an object is returns K regions without names. To score them against
a true foreground, somebody must say which of the K regions *are* the foreground, and there are two
ways of saying it that must not be confused:

    oracle    the best subset of regions for each image, chosen with that image's truth in hand.
              An upper bound; what ReDO (Chen et al. 2019) reports.
    dataset   one subset for every image, chosen on some images (validation) and applied to others.
              What a user would get.

Each protocol has its own assignment type and its own score type, whose `summary` prefixes its keys, so
that a figure of one cannot end in a column of the other.

Every subset competes, the empty one and the full one included: a method whose masks have collapsed into
one region therefore scores what "all is foreground" scores, which is the floor, and not zero.

Shapes: N images, K regions, C true classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, TypeVar, overload

import torch
from torch import Tensor

S = TypeVar("S", bound="Scores")

MAX_REGIONS = 12
"""2**K subsets are tried, one by one."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Agreement of a predicted foreground with the true one, per image: (N,) float64 in [0, 1].

    Dice is 2|P∩G| / (|P| + |G|). Where prediction and truth are both empty, IoU and Dice are 1.
    """

    iou: Tensor
    dice: Tensor
    accuracy: Tensor
    """Share of pixels on the right side."""
    mean_iou: Tensor
    """Mean of the foreground's and the ground's IoU."""
    protocol: ClassVar[str] = "fixed"

    def __len__(self) -> int:
        return len(self.iou)

    def summary(self) -> dict[str, float]:
        """Means over the images, the keys prefixed by the protocol: `oracle_iou`, `dataset_dice`, ..."""
        names = ("iou", "dice", "accuracy", "mean_iou")
        return {f"{self.protocol}_{name}": getattr(self, name).mean().item() for name in names}


@dataclass(frozen=True, kw_only=True)
class OracleScores(Scores):
    """Scores under the best subset of regions for each image."""

    protocol: ClassVar[str] = "oracle"


@dataclass(frozen=True, kw_only=True)
class DatasetScores(Scores):
    """Scores under one subset of regions for all images."""

    protocol: ClassVar[str] = "dataset"


@dataclass(frozen=True, kw_only=True)
class OracleAssignment:
    """Which regions are foreground in each image: good for those very images and no others."""

    foreground: Tensor
    """(N, K) bool."""


@dataclass(frozen=True, kw_only=True)
class DatasetAssignment:
    """Which regions are foreground in every image."""

    regions: frozenset[int]
    k: int

    def __post_init__(self) -> None:
        outside = sorted(r for r in self.regions if not 0 <= r < self.k)
        if outside:
            raise ValueError(
                f"regions {outside} do not exist: with k={self.k} they run from 0 to {self.k - 1}"
            )


def as_labels(regions: Tensor, k: int | None = None) -> tuple[Tensor, int]:
    """Masks (N, K, H, W), hard or soft, or labels (N, H, W) with `k` -> labels (N, H, W) int64, and K.

    Soft masks go to their most probable region.

    Raises:
        ValueError: for another shape, labels without `k`, or labels outside 0..k-1.
    """
    if regions.ndim == 4:
        if k is not None and k != regions.shape[1]:
            raise ValueError(
                f"masks {tuple(regions.shape)} have {regions.shape[1]} regions, but k={k} was given"
            )
        return regions.argmax(1), regions.shape[1]
    if regions.ndim != 3:
        raise ValueError(f"expected masks (N, K, H, W) or labels (N, H, W), got shape {tuple(regions.shape)}")
    if k is None:
        raise ValueError("labels (N, H, W) do not tell how many regions there are: pass k")
    labels = regions.long()
    if labels.numel() and (labels.min() < 0 or labels.max() >= k):
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}; with k={k} expected 0 to {k - 1}"
        )
    return labels, k


def foreground_scores(predicted: Tensor, truth: Tensor) -> Scores:
    """A predicted foreground (N, H, W) bool against the true one (N, H, W) bool.

    For predictions whose meaning is known: a supervised network, a box, GrabCut.
    """
    counts = _counts(predicted.bool().long(), truth, 2)
    return _score(counts, torch.tensor([[False, True]], device=counts.device), Scores)


def oracle_assignment(regions: Tensor, truth: Tensor, k: int | None = None) -> OracleAssignment:
    """The subset of regions that has the highest foreground IoU in each image.

    Args:
        regions: masks (N, K, H, W) or labels (N, H, W).
        truth: (N, H, W) bool, true where there is an object.
        k: number of regions, where `regions` are labels.
    """
    counts = _counts(regions, truth, k)
    subsets = _subsets(counts.shape[1], counts.device)
    return OracleAssignment(foreground=subsets[_all_ious(counts, subsets).argmax(1)])


def choose_assignment(regions: Tensor, truth: Tensor, k: int | None = None) -> DatasetAssignment:
    """The one subset of regions that has the highest mean foreground IoU over all these images.

    Choose it on images (validation) that are not the ones it is then scored on. Of equal subsets the
    smallest wins. Arguments as for `oracle_assignment`.
    """
    counts = _counts(regions, truth, k)
    subsets = _subsets(counts.shape[1], counts.device)
    best = _all_ious(counts, subsets).mean(0).argmax()  # argmax gives the first, thus smallest, of equals
    chosen = subsets[best].nonzero().flatten().tolist()
    return DatasetAssignment(regions=frozenset(chosen), k=counts.shape[1])


@overload
def score(
    regions: Tensor, truth: Tensor, assignment: OracleAssignment, k: int | None = None
) -> OracleScores: ...
@overload
def score(
    regions: Tensor, truth: Tensor, assignment: DatasetAssignment, k: int | None = None
) -> DatasetScores: ...
def score(
    regions: Tensor, truth: Tensor, assignment: OracleAssignment | DatasetAssignment, k: int | None = None
) -> OracleScores | DatasetScores:
    """Foreground scores of every image under an assignment; its type decides the type of the scores.

    Args:
        regions: masks (N, K, H, W) or labels (N, H, W); K is then the assignment's.
        truth: (N, H, W) bool.

    Raises:
        ValueError: where the assignment is for another number of regions or (oracle) of images.
    """
    if isinstance(assignment, OracleAssignment):
        n, assigned = assignment.foreground.shape
        counts = _counts(regions, truth, k or (assigned if regions.ndim == 3 else None))
        if counts.shape[:2] != (n, assigned):
            raise ValueError(
                f"this oracle assignment is for {n} images of {assigned} regions, got {counts.shape[0]} of "
                f"{counts.shape[1]}: an oracle assignment holds only for the images it was made from"
            )
        return _score(counts, assignment.foreground, OracleScores)
    counts = _counts(regions, truth, k or (assignment.k if regions.ndim == 3 else None))
    if counts.shape[1] != assignment.k:
        raise ValueError(f"the assignment is for {assignment.k} regions, got {counts.shape[1]}")
    chosen = torch.tensor([[r in assignment.regions for r in range(assignment.k)]], device=counts.device)
    return _score(counts, chosen, DatasetScores)


def concatenate(parts: Iterable[S]) -> S:
    """The scores of several batches as one.

    Raises:
        ValueError: where the parts come from different protocols, or there is none.
    """
    parts = list(parts)
    kinds = {type(p) for p in parts}
    if len(kinds) != 1:
        found = ", ".join(sorted(kind.__name__ for kind in kinds)) or "nothing"
        raise ValueError(f"can join only scores of one protocol, got {found}")
    join = lambda name: torch.cat([getattr(p, name) for p in parts])
    return kinds.pop()(
        iou=join("iou"), dice=join("dice"), accuracy=join("accuracy"), mean_iou=join("mean_iou")
    )


def region_shares(regions: Tensor, k: int | None = None) -> Tensor:
    """Share of each image's pixels that each region holds, (N, K) float64; rows sum to 1.

    Hard: a pixel counts for its most probable region.
    """
    labels, k = as_labels(regions, k)
    return confusion(labels, torch.zeros_like(labels), k, 1)[..., 0].double() / labels[0].numel()


def smallest_share(regions: Tensor, k: int | None = None) -> float:
    """The smallest region's share of all pixels of all images: near 0 when masks have collapsed."""
    return region_shares(regions, k).mean(0).min().item()


def confusion(labels: Tensor, truth: Tensor, k: int, classes: int) -> Tensor:
    """Pixels of each region in each true class, per image: labels, truth (N, H, W) -> (N, K, C) int64."""
    if labels.shape != truth.shape:
        raise ValueError(f"labels {tuple(labels.shape)} and truth {tuple(truth.shape)} differ in shape")
    labels, k = as_labels(labels, k)
    truth, classes = as_labels(truth, classes)
    n = len(labels)
    image = torch.arange(n, device=labels.device).view(n, 1, 1)
    cell = (image * k + labels) * classes + truth
    return torch.bincount(cell.flatten(), minlength=n * k * classes).view(n, k, classes)


@dataclass(frozen=True, kw_only=True)
class MatchedScores:
    """Agreement with more than two true classes, after one matching of regions to classes."""

    classes: dict[int, int]
    """Region -> true class, one to one; regions without a class are wrong wherever they are."""
    accuracy: float
    """Share of all pixels whose region is matched to their class."""
    iou: Tensor
    """(C,) float64 over all pixels; a class that no region got, or that never occurs, has 0."""


def matched_scores(labels: Tensor, truth: Tensor, k: int, classes: int) -> MatchedScores:
    """Match regions to true classes one to one so that most pixels are right, once for all images.

    The matching (Kuhn 1955) uses the truth, as is usual for unsupervised semantic segmentation: it is
    one for the data set, but chosen on the images that it scores.

    Args:
        labels: (N, H, W) in 0..k-1.
        truth: (N, H, W) in 0..classes-1.

    Raises:
        ImportError: where scipy is missing.
    """
    try:
        from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
    except ImportError as e:
        raise ImportError("matching regions to classes needs scipy: pip install 'pellucid[metrics]'") from e
    table = confusion(labels, truth, k, classes).sum(0)
    rows, columns = linear_sum_assignment(table.cpu().numpy(), maximize=True)
    matched = dict(zip(rows.tolist(), columns.tolist(), strict=True))
    iou = torch.zeros(classes, dtype=torch.float64)
    for region, name in matched.items():
        hit = table[region, name]
        iou[name] = hit / (table[region].sum() + table[:, name].sum() - hit).clamp(min=1)
    correct = sum(table[r, c].item() for r, c in matched.items())
    return MatchedScores(classes=matched, accuracy=correct / table.sum().item(), iou=iou)


def adjusted_rand_index(
    labels: Tensor, truth: Tensor, k: int, classes: int, *, objects_only: bool = False
) -> Tensor:
    """Adjusted Rand index (Hubert & Arabie 1985) of each image, (N,) float64: 1 for equal partitions,
    0 by chance.

    Args:
        labels: (N, H, W) in 0..k-1.
        truth: (N, H, W) in 0..classes-1, each object its own number, 0 the ground.
        objects_only: leave the ground's pixels out, as the literature on object discovery does.
            Where fewer than two pixels are left, the index is 1.
    """
    table = confusion(labels, truth, k, classes).double()
    if objects_only:
        table = table[..., 1:]
    pairs = lambda counts: counts * (counts - 1) / 2
    together = pairs(table).sum((1, 2))
    in_labels, in_truth = pairs(table.sum(2)).sum(1), pairs(table.sum(1)).sum(1)
    expected = in_labels * in_truth / pairs(table.sum((1, 2))).clamp(min=1)
    span = (in_labels + in_truth) / 2 - expected
    # span is 0 only where both put everything together or both put everything apart: equal partitions.
    return torch.where(span == 0, 1.0, (together - expected) / torch.where(span == 0, 1.0, span))


def _counts(regions: Tensor, truth: Tensor, k: int | None) -> Tensor:
    """(N, K, 2) pixels of each region in the true ground and foreground."""
    labels, k = as_labels(regions, k)
    if labels.numel() == 0:
        raise ValueError("no images to score")
    if truth.dtype != torch.bool:
        raise ValueError(f"truth must be bool, true where there is an object (masks > 0), got {truth.dtype}")
    return confusion(labels, truth.long(), k, 2)


def _subsets(k: int, device: torch.device) -> Tensor:
    """All subsets of k regions, (2**k, k) bool, small ones first."""
    if k > MAX_REGIONS:
        raise ValueError(
            f"{k} regions have 2**{k} subsets; at most {MAX_REGIONS} regions can be assigned: merge some"
        )
    bits = sorted(range(2**k), key=lambda b: (b.bit_count(), b))
    return torch.tensor([[bool(b >> r & 1) for r in range(k)] for b in bits], device=device)


def _all_ious(counts: Tensor, subsets: Tensor) -> Tensor:
    """counts (N, K, 2), subsets (M, K) -> foreground IoU of each image under each subset, (N, M)."""
    fp, tp = (counts.double().transpose(1, 2) @ subsets.double().T).unbind(1)
    return _iou(tp, fp, counts[..., 1].sum(1, keepdim=True) - tp)


def _iou(tp: Tensor, fp: Tensor, fn: Tensor) -> Tensor:
    union = tp + fp + fn
    return torch.where(union > 0, tp / union.clamp(min=1), 1.0)


def _score(counts: Tensor, chosen: Tensor, kind: type[S]) -> S:
    """counts (N, K, 2), chosen (N or 1, K) bool -> the scores of each image."""
    picked = counts.double() * chosen.to(counts.device)[..., None]
    fp, tp = picked.sum(1).unbind(-1)
    ground, objects = counts.double().sum(1).unbind(-1)
    fn, tn = objects - tp, ground - fp
    iou = _iou(tp, fp, fn)
    return kind(
        iou=iou,
        dice=2 * iou / (1 + iou),
        accuracy=(tp + tn) / (ground + objects),
        mean_iou=(iou + _iou(tn, fn, fp)) / 2,
    )
