"""What the tables of 3-D scenes share: views that were held out, the cameras that methods find, and plots of those.

N  views
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pellucid.cameras import angles_of
from pellucid.metrics.distribution import Extractor
from pellucid.reproduce.harness import Column, Setting, blank, data_for, drawn
from pellucid.train.preview import grid, save_png
from pellucid.view_scores import LOOKS, TITLES, Found, Photographs, similarity

REFINED = {"tiny": 2, "cpu": 100, "gpu": 200, "paper": 200}
"""Steps in which the camera of a held-out view is refined, in the rows that say so."""
SHOWN = 8
_LOWER = ("rotation", "translation", "rotation_train")


def photographs(setting: Setting, spec: str, split: str) -> Photographs:
    """The pictures of one split. Raises ValueError where the data set does not know its cameras: nothing could be
    scored."""
    found = Photographs.of(data_for(setting, spec, split))
    if found.cameras is None:
        raise ValueError(
            f"{spec} has no cameras to score against: give views-boxes, views-forward, mesh:FILE, or a folder with a "
            f"transforms.json"
        )
    return found


def changed_for(recipe: str) -> dict[str, Any]:
    """What a table changes of a recipe: runs whose cameras collapse go on, as their figures belong to the table."""
    return {} if recipe.startswith("nerf") else {"patience": 0}


def columns(see: Extractor | None) -> tuple[Column, ...]:
    found = [Column(key, title, "lower" if key in _LOWER else "higher") for key, title in TITLES.items()]
    looks = () if see is None else (Column(f"{LOOKS}{see.name}", f"{LOOKS}{see.name}", "lower"),)
    return (*found[:2], *looks, *found[2:])


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
