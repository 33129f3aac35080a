"""How well a scene was found: views that were held out, and the cameras that methods give photographs.

N  views held out   M  training views
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pellucid.data.images import Dataset
from pellucid.methods.baselines.nerf import NeRF
from pellucid.methods.lift3d.method import Lift3D
from pellucid.methods.radiance import Radiance
from pellucid.metrics.cameras import Similarity, aligned, camera_errors
from pellucid.metrics.distribution import Extractor, perceptual
from pellucid.metrics.image import psnr, ssim
from pellucid.types import Batch

AT_ONCE = 64
"""Pictures that an encoder reads at a time."""
NEAR = 15.0
"""Degrees within which a camera counts as found: a median does not see that two fifths lie the wrong way."""
LOOKS = "perceptual_"
"""Before an extractor's name, the key of the distance by what it sees."""
TITLES = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "depth": "inverse depth, correlation",
    "rotation": "rotation, degrees",
    "near": f"within {NEAR:g}",
    "translation": "translation / spread",
    "rotation_train": "rotation, training views",
    "used": "candidates used",
    "accuracy": "classifier",
}
"""What the figures of `scored` are called in a table, in their order."""


@dataclass(frozen=True, kw_only=True)
class Photographs:
    """Views of a scene, with their true cameras where those are known."""

    x: Tensor
    """(N, C, H, W)."""
    cameras: Tensor | None
    """(N, 4, 4)."""
    focal: Tensor | None
    """(N,)."""
    depth: Tensor | None = None
    """(N, H, W), along rays; 0 where nothing is met."""

    @classmethod
    def of(cls, *parts: Dataset, limit: int | None = None) -> Photographs:
        """All pictures of some data sets, or the first `limit`; cameras where every one of them has its own."""
        batches: list[Batch] = []
        left = sum(map(len, parts)) if limit is None else limit
        for data in parts:
            if batches and not left:
                break
            batches.append(data.batch(np.arange(min(left, len(data)))))
            left -= len(batches[-1])
        known = lambda *keys: all(key in b.truth for b in batches for key in keys)
        of = lambda key: torch.cat([b.truth[key] for b in batches])
        there = known("camera", "focal")
        return cls(
            x=torch.cat([b.x0 for b in batches]),
            cameras=of("camera") if there else None,
            focal=of("focal") if there else None,
            depth=of("depth") if known("depth") else None,
        )


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a method makes of held-out views, and the cameras that it gives those and the training views."""

    views: Tensor
    """(N, C, H, W), as the field shows them."""
    depth: Tensor | None = None
    """(N, H, W), where it shows something, along rays."""
    held: Tensor | None = None
    """(N, 4, 4) in the method's world; None where true cameras had a part in them."""
    trained: Tensor | None = None
    """(M, 4, 4), of training views; None where none were found, or these are not at hand."""
    chosen: Tensor | None = None
    """(M,) which candidate those are."""
    candidates: int = 1
    accuracy: float = math.nan
    """How often that is the one that sees its view best."""


def found(
    method: Radiance,
    train: Photographs | None,
    held: Photographs,
    seed: int,
    *,
    refine: int,
    judge: bool = True,
) -> Found:
    """Of a method of any kind; `refine`: by so many steps the cameras of held-out views are moved to where they see
    them better, and `judge`: whether its classifier is judged, which takes a picture from every candidate."""
    if isinstance(method, NeRF):
        return found_by_nerf(method, train, held, seed, refine=refine)
    assert isinstance(method, Lift3D)
    return found_by_lift(method, train, held, seed, refine=refine, judge=judge)


@torch.no_grad()
def found_by_lift(
    method: Lift3D,
    train: Photographs | None,
    held: Photographs,
    seed: int,
    *,
    refine: int = 0,
    judge: bool = True,
) -> Found:
    """One pass over each view under a little noise, the classifier's choice (section 3.3.4)."""
    rng, x = torch.Generator().manual_seed(seed), held.x.to(method.device)
    read = lambda pictures: [method.poses_of(part, rng) for part in pictures.split(AT_ONCE)]
    cameras = method.refined(torch.cat([method.best(poses) for poses in read(x)]), x, refine, rng)
    views, depth, _ = method.pictures(cameras)
    own = Found(views=views.cpu(), depth=depth.cpu(), held=cameras.cpu(), candidates=method.candidates)
    if train is None:
        return own
    seen = train.x.to(method.device)
    poses = read(seen)
    chosen, accuracy = torch.cat([part.scores.argmax(1) for part in poses]), math.nan
    if judge and method.candidates > 1:
        error = lambda candidates, there: (method.pictures(candidates)[0] - there).square().mean((1, 2, 3))
        all_cameras = torch.cat([part.cameras for part in poses])
        best = torch.stack([error(c, there).argmin() for c, there in zip(all_cameras, seen, strict=True)])
        accuracy = (chosen == best).double().mean().item()
    trained = torch.cat([method.best(part) for part in poses])
    return replace(own, trained=trained.cpu(), chosen=chosen.cpu(), accuracy=accuracy)


def found_by_nerf(
    method: NeRF, train: Photographs | None, held: Photographs, seed: int, *, refine: int
) -> Found:
    """Views from given cameras; of learned poses, from cameras optimised for each held-out view (Wang et al., 2021).

    Those begin at the true cameras, taken to the method's world by the similarity that fits the training cameras: more
    help than Lift3D has, and so they are not scored. Raises ValueError where true cameras are missing.
    """
    device = method.device
    if held.cameras is None or held.focal is None:
        raise ValueError(
            "a field that is told its cameras shows a photograph only from a known one, and these come without: give "
            "a folder with a transforms.json"
        )
    if method.moves is None:
        views, depth, _ = method.pictures(held.cameras.to(device), focal=held.focal.to(device))
        return Found(views=views.cpu(), depth=depth.cpu())
    if train is None or train.cameras is None:
        raise ValueError(
            "where learned poses stand in the world of true ones, true ones of training views say"
        )
    with torch.no_grad():
        trained = method.cameras(torch.arange(len(train.x), device=device)).cpu()
    first = aligned(trained, train.cameras).inverse().cameras(held.cameras).float()
    rng = torch.Generator().manual_seed(seed)
    cameras = method.refined(first.to(device), held.x.to(device), refine, rng)
    views, depth, _ = method.pictures(cameras)
    return Found(views=views.cpu(), depth=depth.cpu(), trained=trained)


def scored(
    found: Found, train: Photographs | None, held: Photographs, looks: Sequence[Extractor] = ()
) -> dict[str, float]:
    """The figures of what was found, by the keys of `TITLES`, and the distance by what each extractor sees.

    Cameras are scored where true ones are known: aligned by those of training views, or where these are unknown by
    the held-out ones themselves, of which there have to be three.
    """
    figures = {"psnr": psnr(found.views, held.x).mean().item()}
    if held.x.shape[-1] >= 11:
        figures["ssim"] = ssim(found.views, held.x).mean().item()
    figures |= {f"{LOOKS}{see.name}": perceptual(see, found.views, held.x).mean().item() for see in looks}
    if found.depth is not None and held.depth is not None:
        met = held.depth > 0
        near = torch.stack([1 / found.depth[met], 1 / held.depth[met]]).double()
        figures["depth"] = (
            torch.corrcoef(near)[0, 1].nan_to_num().item()
        )  # of fog alone, which is equally far, none
    by = None
    if found.trained is not None and train is not None and train.cameras is not None:
        by = similarity(found, train)
        own = camera_errors(found.trained, train.cameras, by)
        figures["rotation_train"] = own.rotation.median().item()
    elif found.held is not None and held.cameras is not None and len(held.cameras) >= 3:
        by = aligned(found.held, held.cameras)
    if by is not None and found.held is not None and held.cameras is not None:
        errors = camera_errors(found.held, held.cameras, by)
        figures |= {
            "rotation": errors.rotation.median().item(),
            "near": (errors.rotation < NEAR).double().mean().item(),
            "translation": errors.translation.median().item(),
        }
    if found.chosen is not None and found.candidates > 1:
        counts = torch.bincount(found.chosen, minlength=found.candidates)
        figures["used"] = float((counts >= len(found.chosen) / (2 * found.candidates)).sum())
        if not math.isnan(found.accuracy):
            figures["accuracy"] = found.accuracy
    return figures


def similarity(found: Found, train: Photographs) -> Similarity:
    """From the method's world to the true one, by training cameras alone."""
    assert found.trained is not None
    assert train.cameras is not None
    return aligned(found.trained, train.cameras)
