"""How well clusters that nobody named agree with true classes.

Clusters come first and classes second in every call: purity is not symmetric, and its arguments swapped
give inverse purity, which is 1 where one cluster holds everything.

Purity grows with the number of clusters and shrinks with the number of classes, whatever the clusters are
worth: K clusters of few samples score by chance, and K clusters cannot name more than K classes. It means
something only beside `chance_purity`. NMI has the same weakness, less of it; the adjusted Rand index is 0
by chance.

Shapes: N samples, K clusters, C classes, n bits, D features. Clusters and classes are whole numbers of any
values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pellucid.metrics.segmentation import adjusted_rand_index

MAX_BITS = 16
"""Each class is held against each of 2**n codes."""


def contingency(clusters: Tensor, classes: Tensor) -> Tensor:
    """Samples of each cluster in each class: clusters, classes (N,) -> (K, C) int64, on the CPU.

    Rows and columns are the values that occur, in ascending order.

    Raises:
        ValueError: for other shapes, different lengths, values that are not whole numbers, or no samples.
    """
    if clusters.ndim != 1 or clusters.shape != classes.shape:
        raise ValueError(
            f"expected one cluster and one class for each sample, (N,) and (N,), got {tuple(clusters.shape)} "
            f"and {tuple(classes.shape)}"
        )
    if clusters.is_floating_point() or classes.is_floating_point():
        raise ValueError(
            f"clusters and classes are whole numbers, got {clusters.dtype} and {classes.dtype}: "
            "take the argmax of probabilities first"
        )
    if not len(clusters):
        raise ValueError("no samples to score")
    rows, row = clusters.cpu().unique(return_inverse=True)
    columns, column = classes.cpu().unique(return_inverse=True)
    k, c = len(rows), len(columns)
    return torch.bincount(row * c + column, minlength=k * c).view(k, c)


def purity(clusters: Tensor, classes: Tensor) -> float:
    """Share of samples that are in the largest class of their cluster: sum_k max_j n_kj / N, in (0, 1].

    Args:
        clusters: (N,).
        classes: (N,).
    """
    table = contingency(clusters, classes)
    return table.max(1).values.sum().item() / len(classes)


def chance_purity(clusters: Tensor, classes: Tensor, rng: torch.Generator, *, shuffles: int = 20) -> float:
    """Purity of the same clusters when they know nothing: the mean over random shuffles of the classes.

    Arguments as for `purity`. A table prints it beside purity.
    """
    if shuffles < 1:
        raise ValueError(f"shuffles={shuffles}: a mean needs at least 1")
    orders = [torch.randperm(len(classes), generator=rng, device=rng.device) for _ in range(shuffles)]
    return sum(purity(clusters, classes[order.to(classes.device)]) for order in orders) / shuffles


def nmi(clusters: Tensor, classes: Tensor) -> float:
    """Normalised mutual information, I(clusters; classes) over the mean of their entropies, in [0, 1].

    By scikit-learn, with the arithmetic mean (NMI_sum in Vinh et al. 2010). Where both put all samples
    together it is 1.

    Args:
        clusters: (N,).
        classes: (N,).

    Raises:
        ImportError: where scikit-learn is missing.
    """
    try:
        from sklearn.metrics import normalized_mutual_info_score
    except ImportError as e:
        raise ImportError("mutual information needs scikit-learn: pip install 'pellucid[metrics]'") from e
    contingency(clusters, classes)  # names what is wrong with the arguments in our words
    return float(
        normalized_mutual_info_score(
            classes.cpu().numpy(), clusters.cpu().numpy(), average_method="arithmetic"
        )
    )


def adjusted_rand(clusters: Tensor, classes: Tensor) -> float:
    """Adjusted Rand index (Hubert & Arabie 1985): 1 for equal partitions, 0 by chance, below 0 for worse.

    Args:
        clusters: (N,).
        classes: (N,).
    """
    k, c = contingency(clusters, classes).shape
    row, column = (x.cpu().unique(return_inverse=True)[1].view(1, 1, -1) for x in (clusters, classes))
    return adjusted_rand_index(row, column, k, c).item()


@dataclass(frozen=True, kw_only=True)
class MatchedBits:
    """Agreement of bits that were read with the codes that classes were given."""

    accuracy: float
    """Mean over samples and bits, in [0, 1]."""
    codes: dict[int, str]
    """Class -> its code, one to one, first bit first ("01011")."""


def matched_bit_accuracy(read_bits: Tensor, classes: Tensor) -> MatchedBits:
    """How often the bits that were read from a sample are those of its class.

    Nobody told which code a class has, so classes are given distinct codes, one to one, such that most bits
    agree (Kuhn 1955, exact). The matching is chosen on the samples that it scores: with few samples of many
    classes chance is above 0.5, and shuffled classes tell how far.

    Args:
        read_bits: (N, n) of 0 and 1, or bool.
        classes: (N,) whole numbers, at most 2**n different ones.

    Raises:
        ImportError: where scipy is missing.
        ValueError: for other shapes or values, or more classes than codes.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as e:
        raise ImportError("matching codes to classes needs scipy: pip install 'pellucid[metrics]'") from e
    if read_bits.ndim != 2 or classes.shape != read_bits.shape[:1] or not read_bits.numel():
        raise ValueError(
            f"expected bits (N, n) and classes (N,), got {tuple(read_bits.shape)} and {tuple(classes.shape)}"
        )
    bits = read_bits.cpu().double()
    if not ((bits == 0) | (bits == 1)).all():
        raise ValueError("bits are 0 or 1: compare probabilities with 0.5 first")
    n = bits.shape[1]
    if n > MAX_BITS:
        raise ValueError(f"{n} bits make 2**{n} codes; at most {MAX_BITS} bits can be matched to classes")
    names, member = classes.cpu().unique(return_inverse=True)
    if len(names) > 2**n:
        raise ValueError(
            f"{len(names)} classes cannot have distinct codes of {n} bits: there are {2**n} codes"
        )
    codes = (torch.arange(2**n)[:, None] >> torch.arange(n) & 1).double()
    ones = torch.zeros(len(names), n, dtype=torch.float64).index_add_(0, member, bits)
    zeros = member.bincount()[:, None] - ones
    agreement = ones @ codes.T + zeros @ (1 - codes).T  # (classes, codes), bits that agree
    row, column = linear_sum_assignment(agreement.numpy(), maximize=True)
    text = lambda code: "".join(str(int(bit)) for bit in codes[code])
    return MatchedBits(
        accuracy=agreement[row, column].sum().item() / bits.numel(),
        codes={int(names[r]): text(c) for r, c in zip(row, column, strict=True)},
    )


@dataclass(frozen=True, kw_only=True)
class Clustering:
    """Samples in k groups around their centroids."""

    labels: Tensor
    """(N,) int64 in 0..k-1, of the samples that were clustered."""
    centroids: Tensor
    """(k, D) float64."""

    def predict(self, features: Tensor) -> Tensor:
        """The nearest centroid of other samples, (M, D) -> (M,) int64 on the CPU."""
        if features.ndim != 2 or features.shape[1] != self.centroids.shape[1]:
            raise ValueError(f"expected features (M, {self.centroids.shape[1]}), got {tuple(features.shape)}")
        return torch.cdist(features.cpu().double(), self.centroids).argmin(1)


def kmeans(features: Tensor, k: int, rng: torch.Generator, *, n_init: int = 10) -> Clustering:
    """k-means (Lloyd 1982, begun as Arthur & Vassilvitskii 2007 say), by scikit-learn.

    Distances are Euclidean: normalise the features first where angles are meant.

    Args:
        features: (N, D), N >= k.
        rng: seeds scikit-learn.
        n_init: times it begins anew; the tightest clustering is kept.

    Raises:
        ImportError: where scikit-learn is missing.
        ValueError: for another shape, a k that is not in 1..N, or features that hold nan or inf.
    """
    try:
        from sklearn.cluster import KMeans
    except ImportError as e:
        raise ImportError("k-means needs scikit-learn: pip install 'pellucid[metrics]'") from e
    if features.ndim != 2 or not 1 <= k <= len(features):
        raise ValueError(
            f"expected features (N, D) of at least k={k} samples, got {tuple(features.shape)}, and k from 1"
        )
    if not features.isfinite().all():
        raise ValueError("features hold nan or inf: the images they come from probably do too")
    seed = int(torch.randint(2**31 - 1, (1,), generator=rng, device=rng.device))
    found = KMeans(k, n_init=n_init, random_state=seed).fit(features.cpu().double().numpy())
    return Clustering(
        labels=torch.from_numpy(found.labels_).long(), centroids=torch.from_numpy(found.cluster_centers_)
    )
