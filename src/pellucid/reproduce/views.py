"""What the tables of 3-D scenes share: views that were held out, the cameras that methods find, and plots of those.

N  views
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pellucid.cameras import angles_of
from pellucid.data.views import Views
from pellucid.methods.baselines.nerf import NeRF
from pellucid.methods.lift3d.method import Lift3D
from pellucid.metrics.cameras import Similarity, aligned, camera_errors
from pellucid.metrics.distribution import Extractor
from pellucid.metrics.image import psnr, ssim
from pellucid.reproduce.harness import Column, Setting, blank, data_for, drawn
from pellucid.reproduce.reconstruct import perceptual
from pellucid.train.preview import grid, save_png

REFINED = {"tiny": 2, "cpu": 100, "gpu": 200, "paper": 200}
"""Steps in which the camera of a held-out view is refined, in the rows that say so."""
SHOWN = 8
NEAR = 15.0
"""Degrees within which a camera counts as found: a median does not see that two fifths lie the wrong way."""


@dataclass(frozen=True, kw_only=True)
class Photographs:
    """Views of one split with their true cameras."""

    x: Tensor
    """(N, C, H, W)."""
    cameras: Tensor
    """(N, 4, 4)."""
    focal: Tensor
    """(N,)."""

    @classmethod
    def of(cls, setting: Setting, spec: str, split: str) -> Photographs:
        """Raises ValueError where the data set does not know its cameras: nothing could be scored."""
        data = data_for(setting, spec, split)
        if not isinstance(data, Views):
            raise ValueError(
                f"{spec} has no cameras to score against: give views-boxes, views-forward, or a folder with a "
                f"transforms.json"
            )
        batch = data.batch(np.arange(len(data)))
        return cls(x=batch.x0, cameras=batch.truth["camera"], focal=batch.truth["focal"])


def changed_for(recipe: str) -> dict[str, Any]:
    """What a table changes of a recipe: runs whose cameras collapse go on, as their figures belong to the table."""
    return {} if recipe.startswith("nerf") else {"patience": 0}


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a method makes of held-out views, and the cameras that it gives those and the training views."""

    views: Tensor
    """(N, C, H, W), as the field shows them."""
    held: Tensor | None
    """(N, 4, 4) in the method's world; None where true cameras had a part in them."""
    trained: Tensor | None
    """(M, 4, 4), of training views."""
    chosen: Tensor | None = None
    """(M,) which candidate those are."""
    candidates: int = 1
    accuracy: float = math.nan
    """How often that is the one that sees its view best."""


@torch.no_grad()
def found_by_lift(
    method: Lift3D, train: Photographs, held: Photographs, seed: int, *, refine: int = 0
) -> Found:
    """One pass over each view under a little noise, the classifier's choice (section 3.3.4)."""
    rng = torch.Generator().manual_seed(seed)
    x, seen = held.x.to(method.device), train.x.to(method.device)
    cameras = method.refined(method.best(method.poses_of(x, rng)), x, refine, rng)
    poses = method.poses_of(seen, rng)
    chosen = poses.scores.argmax(1)
    whole = torch.stack([method.pictures(c)[0] for c in poses.cameras])  # (M, candidates, C, H, W)
    best = (whole - seen[:, None]).square().mean((2, 3, 4)).argmin(1)
    return Found(
        views=method.pictures(cameras)[0].cpu(),
        held=cameras.cpu(),
        trained=method.best(poses).cpu(),
        chosen=chosen.cpu(),
        candidates=poses.scores.shape[1],
        accuracy=(chosen == best).double().mean().item(),
    )


def found_by_nerf(method: NeRF, train: Photographs, held: Photographs, seed: int, *, refine: int) -> Found:
    """Views from given cameras; of learned poses, from cameras optimised for each held-out view (Wang et al., 2021).

    Those begin at the true cameras, taken to the method's world by the similarity that fits the training cameras: more
    help than Lift3D has, and so they are not scored.
    """
    device = method.device
    if method.moves is None:
        views, _, _ = method.pictures(held.cameras.to(device), focal=held.focal.to(device))
        return Found(views=views.cpu(), held=None, trained=None)
    with torch.no_grad():
        trained = method.cameras(torch.arange(len(train.x), device=device)).cpu()
    first = aligned(trained, train.cameras).inverse().cameras(held.cameras).float()
    rng = torch.Generator().manual_seed(seed)
    cameras = method.refined(first.to(device), held.x.to(device), refine, rng)
    return Found(views=method.pictures(cameras)[0].cpu(), held=None, trained=trained)


def scored(found: Found, train: Photographs, held: Photographs, see: Extractor | None) -> dict[str, float]:
    """The figures of a row, by the keys of `columns`."""
    figures = {"psnr": psnr(found.views, held.x).mean().item()}
    if held.x.shape[-1] >= 11:
        figures["ssim"] = ssim(found.views, held.x).mean().item()
    if see is not None:
        figures[f"perceptual_{see.name}"] = perceptual(see, found.views, held.x).mean().item()
    if found.trained is not None:
        by = similarity(found, train)
        own = camera_errors(found.trained, train.cameras, by)
        figures["rotation_train"] = own.rotation.median().item()
        if found.held is not None:
            errors = camera_errors(found.held, held.cameras, by)
            figures |= {
                "rotation": errors.rotation.median().item(),
                "near": (errors.rotation < NEAR).double().mean().item(),
                "translation": errors.translation.median().item(),
            }
    if found.chosen is not None and found.candidates > 1:
        counts = torch.bincount(found.chosen, minlength=found.candidates)
        figures["used"] = float((counts >= len(found.chosen) / (2 * found.candidates)).sum())
        figures["accuracy"] = found.accuracy
    return figures


def similarity(found: Found, train: Photographs) -> Similarity:
    """From the method's world to the true one, by training cameras alone."""
    assert found.trained is not None
    return aligned(found.trained, train.cameras)


def columns(see: Extractor | None) -> tuple[Column, ...]:
    looks = () if see is None else (Column(f"perceptual_{see.name}", f"perceptual_{see.name}", "lower"),)
    return (
        Column("psnr", "PSNR"),
        Column("ssim", "SSIM"),
        *looks,
        Column("rotation", "rotation, degrees", "lower"),
        Column("near", f"within {NEAR:g}"),
        Column("translation", "translation / spread", "lower"),
        Column("rotation_train", "rotation, training views", "lower"),
        Column("used", "candidates used"),
        Column("accuracy", "classifier"),
    )


# ---- pictures ----------------------------------------------------------------------------------------------------


def sheet(setting: Setting, name: str, held: Photographs, rows: dict[str, Tensor]) -> str:
    """Held-out photographs, and below them what each method makes of them."""
    path = setting.pictures / f"{name}.png"
    n = min(SHOWN, len(held.x))
    lines = torch.cat([held.x[:n], *(v[:n] for v in rows.values())])
    save_png(path, grid(lines, columns=n), {"rows": ["photographs", *rows]})
    return path.name


def sphere_plot(axes: Any, cameras: Tensor, title: str, *, true: Tensor | None = None) -> None:
    """Where cameras (N, 4, 4) stand, by azimuth and elevation, joined to the true ones."""
    a, e = (v.rad2deg() for v in angles_of(cameras.double()))
    if true is not None:
        ta, te = (v.rad2deg() for v in angles_of(true.double()))
        for i in range(len(a)):
            if abs(a[i] - ta[i]) < 180:  # a line round the back would cross the whole plot
                axes.plot([a[i], ta[i]], [e[i], te[i]], color="0.7", lw=0.6, zorder=0)
        axes.scatter(ta, te, s=14, facecolors="none", edgecolors="tab:orange", label="true")
    axes.scatter(a, e, s=8, color="tab:blue", label="found")
    axes.set(xlim=(-180, 180), ylim=(-90, 90), xlabel="azimuth", ylabel="elevation", title=title)


def camera_figure(setting: Setting, name: str, found: dict[str, Found], train: Photographs) -> str:
    """Figures 3.6 and 3.11: cameras of training views, aligned, beside the true ones; a panel for each method."""
    there = {row: f for row, f in found.items() if f.trained is not None}
    figure = blank(4.0 * len(there), 3.2)
    for i, (row, f) in enumerate(there.items()):
        assert f.trained is not None
        axes = figure.add_subplot(1, len(there), i + 1)
        sphere_plot(axes, similarity(f, train).cameras(f.trained), row, true=train.cameras)
    figure.axes[0].legend(loc="lower left", fontsize=7)
    return drawn(figure, setting.pictures / f"{name}.png")
