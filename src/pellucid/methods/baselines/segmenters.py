"""Segmenters that learn nothing: what a trained method has to beat.

Each takes images (B, C, H, W) in [-1, 1], C = 1 or 3, and returns hard masks (B, K, H, W) float32 that
sum to 1 at each pixel. None sees a label. The regions of one image have to mean the same as those of
the next, or one assignment for a whole data set would be meaningless; so they are numbered by a rule
that needs no label either:

    "brightness"   from the darkest region to the brightest
    "border"       from the region with the most pixels on the image's border to the one with the fewest:
                   region 0 is then what is most likely ground, the last one what is most likely an object

Ties keep the lower number, regions without pixels come last. `grabcut` alone is given something: a box.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Rule = Literal["brightness", "border"]


def otsu(images: Tensor, k: int = 2, *, order: Rule = "border") -> Tensor:
    """Split the grey levels into k classes with the largest variance between classes.

    Otsu 1979, for any k: the best k intervals of a 256-bin histogram of the image's luma, found exactly
    by dynamic programming over their upper ends. Chance of each level and its first moment are summed
    up once, so that the variance of an interval [i, j) is (S_j - S_i)^2 / (P_j - P_i).

    Returns:
        (B, k, H, W) masks numbered by `order`.
    """
    if not 2 <= k <= 255:
        raise ValueError(f"k={k}: Otsu's method needs from 2 to 255 classes")
    levels = ((_luma(images) + 1) * 127.5).round().clamp(0, 255).long()  # (B, H, W)
    thresholds = torch.cat([_otsu_thresholds(part, k) for part in levels.flatten(1).split(128)])  # (B, k-1)
    labels = (levels[:, None] >= thresholds[:, :, None, None]).sum(1)
    return _masks(number_regions(labels, images, k, order), k)


def colour_position_kmeans(
    images: Tensor,
    k: int,
    rng: torch.Generator,
    *,
    position_weight: float = 0.25,
    order: Rule = "border",
) -> Tensor:
    """k-means of each image's pixels by colour and place.

    A pixel is (its channels in [-1, 1], position_weight * (y, x)), y and x running over [-1, 1].

    Returns:
        (B, k, H, W) masks numbered by `order`.
    """
    b, _, h, w = _check(images).shape
    y, x = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
    place = (position_weight * torch.stack([y, x])).to(images).expand(b, -1, -1, -1)
    points = torch.cat([images, place], 1).flatten(2).transpose(1, 2)  # (B, HW, C + 2)
    labels, _ = kmeans(points, k, rng)
    return _masks(number_regions(labels.view(b, h, w), images, k, order), k)


def feature_kmeans(
    features: Tensor,
    k: int,
    rng: torch.Generator,
    *,
    scope: Literal["image", "dataset"] = "image",
    fit_points: int = 20_000,
) -> Tensor:
    """k-means of the pixels of feature maps (B, D, H, W), each channel scaled to unit variance.

    Args:
        scope: "image" finds k centres in each image and numbers the regions by the border rule;
            "dataset" finds k centres once, so that a region means the same in every image, and
            numbers them by the border rule over all images together.
        fit_points: with "dataset", how many random pixels the centres are found from.

    Returns:
        (B, k, H, W) masks.
    """
    b, d, h, w = features.shape
    points = features.float().flatten(2).transpose(1, 2)  # (B, HW, D)
    points = points / points.reshape(-1, d).std(0).clamp(min=1e-12)
    if scope == "image":
        labels, _ = kmeans(points, k, rng)
        return _masks(number_regions(labels.view(b, h, w), None, k, "border"), k)
    pool = points.reshape(1, b * h * w, d)
    picked = torch.randperm(b * h * w, generator=rng, device=rng.device)[:fit_points].to(pool.device)
    _, centres = kmeans(pool[:, picked], k, rng)
    labels = _nearest(pool, centres).view(b, h * w)
    border = _border(h, w, labels.device).flatten()
    contact = torch.bincount(labels[:, border].flatten(), minlength=k)
    rank = contact.argsort(descending=True, stable=True).argsort()
    return _masks(rank[labels].view(b, h, w), k)


def border_rule(images: Tensor, rng: torch.Generator, *, k: int = 3, position_weight: float = 0.25) -> Tensor:
    """Ground is whatever reaches the border: k-means by colour and place, then two regions.

    A cluster is ground where it holds a larger share of the border's pixels than of all pixels.

    Returns:
        (B, 2, H, W) masks: ground, objects.
    """
    masks = colour_position_kmeans(images, k, rng, position_weight=position_weight)  # (B, k, H, W)
    h, w = masks.shape[2:]
    border = _border(h, w, masks.device)
    ground = masks[..., border].mean(-1) > masks.mean((2, 3))  # (B, k)
    return _masks(1 - (masks * ground[..., None, None]).sum(1).long(), 2)


def centre_box(images: Tensor, *, side: float = 0.6) -> Tensor:
    """A box in the middle, `side` of the height and width, whatever the image shows.

    Returns:
        (B, 2, H, W) masks: outside, inside.
    """
    b, _, h, w = _check(images).shape
    y0, x0, y1, x1 = _centre(h, w, side)
    labels = torch.zeros(b, h, w, dtype=torch.int64, device=images.device)
    labels[:, y0:y1, x0:x1] = 1
    return _masks(labels, 2)


def grabcut(images: Tensor, boxes: Tensor | None = None, *, iterations: int = 5, seed: int = 0) -> Tensor:
    """GrabCut (Rother et al. 2004, OpenCV's), told that the object lies inside a box.

    Not label-free where the boxes come from labels; report it apart.

    Args:
        boxes: (B, 4) int, (y0, x0, y1, x1) with y1 and x1 outside; by default the middle 80% of each axis.
        seed: OpenCV's own random state is set to it before every image.

    Returns:
        (B, 2, H, W) masks: ground, object. An image of a single colour, which OpenCV refuses, gives its box.

    Raises:
        ImportError: where OpenCV is missing.
    """
    try:
        import cv2
    except ImportError as e:
        raise ImportError("grabcut needs OpenCV: pip install 'pellucid[metrics]'") from e
    import numpy as np

    b, _, h, w = _check(images).shape
    if boxes is None:
        boxes = torch.tensor([_centre(h, w, 0.8)]).expand(b, 4)
    bad = (boxes[:, :2] < 0).any(1) | (boxes[:, 2:] > torch.tensor([h, w])).any(1)
    bad |= (boxes[:, 2:] - boxes[:, :2] < 1).any(1)
    if bad.any():
        i = int(bad.nonzero()[0])
        raise ValueError(
            f"box {i} is {boxes[i].tolist()}: expected (y0, x0, y1, x1) inside {h} x {w}, not empty"
        )
    pixels = ((images.expand(b, 3, h, w) + 1) * 127.5).round().clamp(0, 255).byte()
    labels = torch.zeros(b, h, w, dtype=torch.int64)
    for i, (image, (y0, x0, y1, x1)) in enumerate(zip(pixels.cpu(), boxes.tolist(), strict=True)):
        labels[i, y0:y1, x0:x1] = 1
        if image.flatten(1).amax(1).equal(image.flatten(1).amin(1)) or (y1 - y0, x1 - x0) == (h, w):
            continue  # nothing to model the ground or its colours from
        mask = np.zeros((h, w), np.uint8)
        bgr = np.ascontiguousarray(image.flip(0).permute(1, 2, 0).numpy())
        cv2.setRNGSeed(seed)
        ground, front = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(bgr, mask, (x0, y0, x1 - x0, y1 - y0), ground, front, iterations, cv2.GC_INIT_WITH_RECT)
        labels[i] = torch.from_numpy((mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD)).long()
    return _masks(labels.to(images.device), 2)


def kmeans(
    points: Tensor, k: int, rng: torch.Generator, *, restarts: int = 4, iterations: int = 50
) -> tuple[Tensor, Tensor]:
    """Lloyd's k-means with k-means++ seeding (Arthur & Vassilvitskii 2007), many problems at once.

    Args:
        points: (N, P, D), N problems of P points each.
        restarts: seedings per problem, of which the one with the smallest inertia is kept.
        iterations: at most this many; it stops earlier when no point of any problem changes sides.

    Returns:
        labels (N, P) int64 and centres (N, k, D). A centre that loses all points moves to the point
        that is farthest from its own centre, so that regions are only empty where P or the number of
        distinct points is below k.
    """
    n, p, d = points.shape
    if not 1 <= k <= p:
        raise ValueError(f"k={k} clusters from {p} points: k must lie between 1 and the number of points")
    points = points.float()
    best_inertia = torch.full((n,), float("inf"), device=points.device)
    best_labels = torch.zeros(n, p, dtype=torch.int64, device=points.device)
    best_centres = torch.zeros(n, k, d, device=points.device)
    for _ in range(restarts):
        centres = _seed_centres(points, k, rng)
        labels = _nearest(points, centres)
        for _ in range(iterations):
            centres = _means(points, labels, centres)
            moved = _nearest(points, centres)
            if moved.equal(labels):
                break
            labels = moved
        inertia = (points - centres.gather(1, labels[..., None].expand(-1, -1, d))).square().sum((1, 2))
        better = inertia < best_inertia
        best_inertia = torch.where(better, inertia, best_inertia)
        best_labels = torch.where(better[:, None], labels, best_labels)
        best_centres = torch.where(better[:, None, None], centres, best_centres)
    return best_labels, best_centres


def number_regions(labels: Tensor, images: Tensor | None, k: int, order: Rule) -> Tensor:
    """Renumber the regions of each image, labels (B, H, W) in 0..k-1, by a label-free rule (see above)."""
    _, h, w = labels.shape
    masks = _masks(labels, k)
    if order == "brightness":
        if images is None:
            raise ValueError('order="brightness" needs the images')
        size = masks.sum((2, 3))
        key = -(masks * _luma(images)[:, None]).sum((2, 3)) / size.clamp(min=1)
        key = torch.where(size > 0, key, -torch.inf)
    elif order == "border":
        key = masks[..., _border(h, w, labels.device)].sum(-1)
        key = torch.where(masks.sum((2, 3)) > 0, key, -1.0)
    else:
        raise ValueError(f'order={order!r}: expected "brightness" or "border"')
    rank = key.argsort(dim=1, descending=True, stable=True).argsort(1)  # (B, k): old number -> new number
    return rank.gather(1, labels.flatten(1)).view_as(labels)


def _seed_centres(points: Tensor, k: int, rng: torch.Generator) -> Tensor:
    """k-means++: each further centre is a point drawn by its squared distance to those already there."""
    n, p, d = points.shape
    nearest = torch.ones(n, p, device=points.device)
    chosen: list[Tensor] = []
    for _ in range(k):
        # Drawn on the generator's device by inverting the cumulative sum; all-zero weights take point 0.
        mass = nearest.cumsum(1)
        u = torch.rand(n, 1, generator=rng, device=rng.device).to(points.device) * mass[:, -1:]
        index = torch.searchsorted(mass, u, right=True).clamp(max=p - 1)
        centre = points.gather(1, index[..., None].expand(-1, -1, d))
        distance = (points - centre).square().sum(-1)
        nearest = torch.minimum(nearest, distance) if chosen else distance
        chosen.append(centre)
    return torch.cat(chosen, 1)


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    """(N, P, D), (N, k, D) -> (N, P) index of the nearest centre, without the (N, P, k, D) differences."""
    # |p - c|^2 = |p|^2 - 2 p.c + |c|^2, and |p|^2 does not decide.
    return (centres.square().sum(-1)[:, None] - 2 * points @ centres.transpose(1, 2)).argmin(-1)


def _means(points: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    k = centres.shape[1]
    member = F.one_hot(labels, k).to(points)  # (N, P, k)
    size = member.sum(1)[..., None]  # (N, k, 1)
    means = member.transpose(1, 2) @ points / size.clamp(min=1)
    empty = size == 0
    if empty.any():
        own = means.gather(1, labels[..., None].expand(-1, -1, points.shape[2]))
        far = (points - own).square().sum(-1).topk(k, 1).indices  # (N, k), a different point for each centre
        means = torch.where(empty, points.gather(1, far[..., None].expand(-1, -1, points.shape[2])), means)
    return means


def _otsu_thresholds(levels: Tensor, k: int) -> Tensor:
    """levels (B, P) int64 in 0..255 -> (B, k-1): class c holds the levels from threshold c on."""
    b, _ = levels.shape
    hist = torch.zeros(b, 256, dtype=torch.float64, device=levels.device)
    hist.scatter_add_(1, levels, torch.ones_like(levels, dtype=torch.float64))
    chance = F.pad(hist.cumsum(1), (1, 0))  # (B, 257)
    moment = F.pad((hist * torch.arange(256, device=levels.device)).cumsum(1), (1, 0))
    weight = chance[:, None, :] - chance[:, :, None]  # (B, i, j): pixels in [i, j)
    between = (moment[:, None, :] - moment[:, :, None]).square() / weight.clamp(min=1)
    span = torch.arange(257, device=levels.device)
    between = torch.where(span[:, None] < span, between, -torch.inf)
    best, back = between[:, 0], []  # best[j]: [0, j) in one interval
    for _ in range(k - 1):
        best, cut = (best[:, :, None] + between).max(1)
        back.append(cut)
    end = torch.full((b, 1), 256, device=levels.device)
    ends = []
    for cut in reversed(back):
        end = cut.gather(1, end)
        ends.append(end)
    return torch.cat(ends[::-1], 1)


def _luma(images: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W) in [-1, 1], Rec. 601 weights."""
    weights = (1.0,) if _check(images).shape[1] == 1 else (0.299, 0.587, 0.114)
    return (images * torch.tensor(weights).to(images).view(-1, 1, 1)).sum(1)


def _check(images: Tensor) -> Tensor:
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"expected images (B, 1 or 3, H, W), got shape {tuple(images.shape)}")
    return images


def _masks(labels: Tensor, k: int) -> Tensor:
    return F.one_hot(labels, k).movedim(-1, 1).float()


def _border(h: int, w: int, device: torch.device) -> Tensor:
    """(H, W) bool, true on the outermost ring of pixels."""
    ring = torch.ones(h, w, dtype=torch.bool, device=device)
    ring[1:-1, 1:-1] = False
    return ring


def _centre(h: int, w: int, side: float) -> tuple[int, int, int, int]:
    if not 0 < side <= 1:
        raise ValueError(f"side={side}: expected a share of the image's side, above 0 and at most 1")
    bh, bw = max(1, round(side * h)), max(1, round(side * w))
    y0, x0 = (h - bh) // 2, (w - bw) // 2
    return y0, x0, y0 + bh, x0 + bw
