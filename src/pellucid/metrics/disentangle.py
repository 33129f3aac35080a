"""Whether each control of a model moves one thing, and moves it evenly.

Every figure stands beside what would be found by chance: directions at random are nearly orthogonal in many
dimensions, white noise fills each band of frequencies by its area, and the largest of many correlations is
never 0.

Features are those of any extractor (`pellucid.metrics.distribution`). Distances between them are Euclidean:
normalise them first where angles are meant.

Shapes: B or N samples, D features, T positions of a control, d entries of z in n segments of m = d / n.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def segment_movement(z_before: Tensor, z_after: Tensor, n: int) -> Tensor:
    """Share of the squared movement from z_before to z_after that lies in each of n segments.

    Where flipping bit k moves z in segment k only, entry k is 1; a movement that knows no segments has 1 / n.

    Args:
        z_before: (B, d).
        z_after: (B, d), the same samples after one change.
        n: segments, equal parts of d.

    Returns:
        (n,) float64 that sums to 1; long movements count for more than short ones.
    """
    if z_before.ndim != 2 or z_before.shape != z_after.shape:
        raise ValueError(
            f"expected two equal (B, d) shapes, got {tuple(z_before.shape)} and {tuple(z_after.shape)}"
        )
    d = z_before.shape[1]
    if n < 1 or d % n:
        raise ValueError(f"z of {d} entries does not fall into n={n} equal segments")
    moved = (z_after.double() - z_before.double()).square().sum(0).view(n, d // n).sum(1)
    if not moved.sum() > 0:
        raise ValueError("nothing moved, or z holds nan: no segment has a share")
    return moved / moved.sum()


@dataclass(frozen=True, kw_only=True)
class Orthogonality:
    """Angles between the changes that different controls cause in the same samples."""

    cosine: float
    """Mean |cosine| over samples and pairs of controls: 0 orthogonal, 1 one and the same direction."""
    chance: float
    """What it is for random directions in as many dimensions."""
    pairs: int
    """Pairs of changes that the mean is over."""
    left_out: int
    """Pairs in which a control changed nothing."""


def direction_orthogonality(changes: Tensor) -> Orthogonality:
    """How far the changes of different controls point the same way, sample by sample.

    For a random direction E |cos| = Gamma(D / 2) / (sqrt(pi) Gamma((D + 1) / 2)), about sqrt(2 / (pi D)).
    Changes in the features of real networks lie in far fewer directions than D, so `chance` is the floor and
    another prior's figure the one to compare with.

    Args:
        changes: (n, B, D) change of the features of B samples when each of n controls is moved, n >= 2.
    """
    if changes.ndim != 3 or len(changes) < 2 or not changes.numel():
        raise ValueError(f"expected changes (n, B, D) of at least 2 controls, got {tuple(changes.shape)}")
    if not changes.isfinite().all():
        raise ValueError("changes hold nan or inf")
    n, _, d = changes.shape
    length = changes.double().norm(dim=2, keepdim=True)
    unit = (changes.double() / length).transpose(0, 1)  # (B, n, D), nan where nothing changed
    upper = torch.ones(n, n, dtype=torch.bool, device=changes.device).triu(1)
    cosines = (unit @ unit.transpose(1, 2)).abs()[:, upper]  # (B, n (n - 1) / 2)
    kept = cosines[~cosines.isnan()]
    if not len(kept):
        raise ValueError("no sample was changed by two controls: there is no angle to measure")
    return Orthogonality(
        cosine=kept.mean().item(),
        chance=math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2)) / math.pi**0.5,
        pairs=len(kept),
        left_out=cosines.numel() - len(kept),
    )


@dataclass(frozen=True, kw_only=True)
class Traversal:
    """The way of each sample's features while a control moves from one end to the other; all (B,) float64."""

    monotonicity: Tensor
    """Share of steps after the first that lead further from the start: 1 always, about 0.5 by chance."""
    smoothness: Tensor
    """Largest step over the mean step: 1 even, T - 1 one jump; nan where nothing moved."""
    movement: Tensor
    """Length of the way, all steps summed."""


def traversal(features: Tensor) -> Traversal:
    """Whether moving a control in even steps moves the features evenly and away from where they began.

    Args:
        features: (B, T, D), T >= 3.
    """
    if features.ndim != 3 or features.shape[1] < 3:
        raise ValueError(f"expected features (B, T, D) of at least T=3 steps, got {tuple(features.shape)}")
    x = features.double()
    step = x.diff(dim=1).norm(dim=2)  # (B, T - 1)
    away = (x[:, 1:] - x[:, :1]).norm(
        dim=2
    )  # (B, T - 1); the first step always leads away, and tells nothing
    return Traversal(
        monotonicity=(away.diff(dim=1) > 0).double().mean(1),
        smoothness=step.amax(1) / step.mean(1),
        movement=step.sum(1),
    )


@dataclass(frozen=True, kw_only=True)
class ChangeMap:
    """Where in the image, and at what scale, a control acts."""

    pixels: Tensor
    """(H, W) float64, mean absolute change between neighbouring positions of the control."""
    shares: Tensor
    """(bands,) float64, share of the change's power in each band, coarse first; sums to 1."""
    areas: Tensor
    """(bands,) float64, share of all frequencies in each band: what a change of white noise would have."""


def change_map(images: Tensor, bands: int = 4) -> ChangeMap:
    """Which pixels and which spatial frequencies change when a control moves.

    Bands are octaves of radial frequency in cycles a pixel: [1/4, ...), [1/8, 1/4), ..., the lowest of them
    down to 0, so that a change of overall brightness is in the first band. The highest reaches into the
    corners, past 1/2. Power is that of the change between neighbouring positions, over samples and channels.

    Args:
        images: (B, T, C, H, W), T >= 2 positions of one control with all else fixed.
        bands: how many; the first of 4 is below 1/16, waves longer than 16 pixels.
    """
    if images.ndim != 5 or images.shape[1] < 2 or bands < 1:
        raise ValueError(
            f"expected images (B, T, C, H, W) of at least T=2 positions and bands >= 1, "
            f"got {tuple(images.shape)} and bands={bands}"
        )
    change = images.double().diff(dim=1)
    power = torch.fft.fft2(change).abs().square().sum((0, 1, 2))  # (H, W)
    if not power.sum() > 0:
        raise ValueError("nothing changed, or images hold nan: no frequency has a share")
    vertical, horizontal = (
        torch.fft.fftfreq(size, dtype=torch.float64, device=images.device) for size in images.shape[3:]
    )
    radius = torch.hypot(vertical[:, None], horizontal)
    edges = 0.5 ** torch.arange(bands, 1, -1, dtype=torch.float64, device=images.device)
    band = torch.bucketize(radius, edges, right=True).flatten()
    shares, areas = (
        torch.zeros(bands, dtype=torch.float64, device=images.device).index_add_(0, band, weight.flatten())
        for weight in (power / power.sum(), torch.full_like(power, 1 / power.numel()))
    )
    return ChangeMap(pixels=change.abs().mean((0, 1, 2)), shares=shares, areas=areas)


@dataclass(frozen=True, kw_only=True)
class Independence:
    """Whether segments of z tell of one another."""

    correlation: float
    """The largest |correlation| of two entries in different segments."""
    correlation_limit: float
    """What 95 of 100 sets of independent segments stay below."""
    p_values: Tensor
    """(n, n) float64, symmetric, nan on the diagonal: of each pair of segments, were they independent, the
    probability to look as dependent as they do. With n (n - 1) / 2 pairs the smallest is compared with 0.05
    over as many."""


def independence(
    segments: Tensor, rng: torch.Generator, *, subsample: int = 300, permutations: int = 500
) -> Independence:
    """Two tests of independence between segments: of correlation, and of any dependence.

    Correlations use all samples. The limit is Fisher's (1915): atanh r has deviation 1 / sqrt(N - 3); the
    largest of M independent ones stays below the ((1 + 0.95^(1/M)) / 2)-quantile. Entries of a segment that
    go together make it cautious. Dependence that correlation misses is sought by HSIC (Gretton et al. 2005)
    with Gaussian kernels exp(-|x - y|^2 / 2 s^2), s the median distance of different points, against the
    permutations of one segment's samples.

    Args:
        segments: (N, n, m), N >= 4, n >= 2.
        rng: picks the subsample and the permutations.
        subsample: at most so many samples for HSIC, whose cost grows with the square.
        permutations: how many; no p-value is below 1 / (permutations + 1).

    Raises:
        ValueError: for another shape, or entries that are nan, inf or the same for all samples.
    """
    if segments.ndim != 3 or segments.shape[0] < 4 or segments.shape[1] < 2 or not segments.numel():
        raise ValueError(
            f"expected segments (N, n, m) of N >= 4 samples and n >= 2 segments, got {tuple(segments.shape)}"
        )
    if subsample < 4 or permutations < 1:
        raise ValueError(f"expected subsample >= 4 and permutations >= 1, got {subsample} and {permutations}")
    total, n, m = segments.shape
    x = segments.double()
    flat = x.flatten(1) - x.flatten(1).mean(0)
    scale = flat.norm(dim=0)
    if not (scale.isfinite().all() and (scale > 0).all()):
        raise ValueError("an entry is nan, inf or the same for all samples: it has no correlation")
    owner = torch.arange(n, device=x.device).repeat_interleave(m)
    between = (flat / scale).T @ (flat / scale)
    largest = between[owner[:, None] != owner].abs().max().item()
    compared = n * (n - 1) // 2 * m**2
    quantile = torch.special.ndtri(torch.tensor((1 + 0.95 ** (1 / compared)) / 2, dtype=torch.float64)).item()

    picked = torch.randperm(total, generator=rng, device=rng.device)[:subsample].to(x.device)
    grams = torch.stack([_gram(part) for part in x[picked].unbind(1)])  # (n, S, S)
    centred = (
        grams - grams.mean(1, keepdim=True) - grams.mean(2, keepdim=True) + grams.mean((1, 2), keepdim=True)
    )
    hsic = lambda order: (
        centred.flatten(1) @ grams[:, order][:, :, order].flatten(1).T
    )  # (n, n), times (S - 1)^2
    size = len(picked)
    observed = hsic(torch.arange(size, device=x.device))
    as_high = torch.ones(n, n, dtype=torch.float64, device=x.device)  # the order as found is one of them
    for _ in range(permutations):
        order = torch.randperm(size, generator=rng, device=rng.device).to(x.device)
        as_high += hsic(order) >= observed
    # Of a pair, the first segment stands and the second is shuffled.
    p = (as_high / (permutations + 1)).triu(1)
    p = (p + p.T).fill_diagonal_(torch.nan)
    return Independence(
        correlation=largest, correlation_limit=math.tanh(quantile / (total - 3) ** 0.5), p_values=p
    )


def _gram(x: Tensor) -> Tensor:
    """(S, m) -> (S, S) Gaussian kernels, as wide as the median distance of points that differ."""
    # By differences: by matrix products equal points would be a rounding error apart, and count as different.
    squared = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square()
    apart = squared[squared > 0]
    return torch.exp(-squared / (2 * apart.median())) if len(apart) else torch.ones_like(squared)
