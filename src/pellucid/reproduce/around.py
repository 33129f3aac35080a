"""Table 3.1 of Yuan's thesis, the 360-degree rows: a scene from views of unknown pose, beside one told its poses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pellucid.methods.baselines.nerf import NeRF
from pellucid.methods.lift3d.method import Lift3D
from pellucid.methods.radiance import Radiance
from pellucid.process.schedule import levels
from pellucid.recipes import build
from pellucid.reproduce.generate import extractor
from pellucid.reproduce.harness import (
    Report,
    Setting,
    blank,
    drawn,
    file_name,
    run_folder,
    train_all,
    trained,
)
from pellucid.reproduce.views import (
    REFINED,
    camera_figure,
    changed_for,
    columns,
    photographs,
    sheet,
    sphere_plot,
)
from pellucid.train.checkpoint import read_checkpoint, steps_of
from pellucid.train.preview import grid, save_png
from pellucid.view_scores import Found, Photographs, found, scored, similarity

ROWS = {
    "NeRF, poses given": "nerf",
    "Lift3D": "lift3d",
    "Lift3D without noise (autoencoder)": "lift3d-clean",
    "Lift3D, one camera (algorithm 3)": "lift3d-single",
    "NeRF-- (poses as parameters)": "nerf--",
}
PAPER = {
    "NeRF, poses given": {"PSNR": "28.98 car, 25.44 Lego, 22.12 drums"},
    "Lift3D": {"PSNR": "26.43 car, 21.38 Lego, 18.65 drums"},
    "NeRF-- (poses as parameters)": {"PSNR": "fails on all three"},
}
MOMENTS = 5
"""Checkpoints that the picture of poses over training shows, at most."""


def run(setting: Setting) -> Report:
    return compared(
        setting,
        name="lift3d-360",
        title="A scene from photographs of unknown pose (Yuan's thesis, table 3.1, 360 degrees)",
        rows=ROWS,
        paper=PAPER,
    )


def compared(
    setting: Setting, *, name: str, title: str, rows: dict[str, str], paper: dict[str, dict[str, str]]
) -> Report:
    """Train the rows' recipes on every data set, score held-out views and cameras, and draw them."""
    report = Report(name=name, title=title, columns=(), paper=paper)
    chosen = setting.chosen(rows)
    held_of = {spec: photographs(setting, spec, "test") for spec in setting.data}
    see = extractor(report, small=setting.scale == "tiny")
    report.columns = columns(see)
    train_all(setting, [(recipe, changed_for(recipe)) for recipe in chosen.values()])
    refine = REFINED[setting.scale]
    for spec in setting.data:
        train, held = photographs(setting, spec, "train"), held_of[spec]
        for seed in setting.seeds:
            by_row: dict[str, Found] = {}
            for row, recipe in chosen.items():
                method, _ = trained(setting, recipe, spec, seed, changed=changed_for(recipe))
                assert isinstance(method, Radiance)
                own = refine if isinstance(method, NeRF) else 0
                by_row[row] = found(method, train, held, seed, refine=own)
                report.add(spec, row, scored(by_row[row], train, held, (see,)))
                if recipe == "lift3d":
                    better = found(method, train, held, seed, refine=refine, judge=False)
                    figures = scored(replace(better, chosen=None), train, held, (see,))
                    report.add(spec, f"  {row}, cameras refined", figures)
            stem = f"{name}-{file_name(spec)}"
            report.pictures.append(
                sheet(setting, f"{stem}-{seed}", held, {row: f.views for row, f in by_row.items()})
            )
            if any(f.trained is not None for f in by_row.values()):
                report.pictures.append(camera_figure(setting, f"{stem}-cameras-{seed}", by_row, train))
            if seed == setting.seeds[0] and "Lift3D" in chosen:
                recipe = chosen["Lift3D"]
                method, _ = trained(setting, recipe, spec, seed, changed=changed_for(recipe))
                assert isinstance(method, Lift3D)
                report.pictures.append(from_noise(setting, f"{stem}-noise", method))
                report.pictures.append(
                    over_training(setting, f"{stem}-training", chosen["Lift3D"], spec, seed, train)
                )
        report.notes += verdicts(report, spec, setting)
    report.notes.append(
        "held-out views are seen from the camera that one pass reads of each (for given poses, from its own); 'cameras "
        f"refined': moved by {refine} steps of gradients through the field, as NeRF--'s are, which begin at the true "
        "ones. Camera errors are medians, after the similarity that fits training cameras best. Classifier: how often, "
        "of a training view under a little noise, it names the candidate that sees it best"
    )
    report.conditions |= setting.conditions(size=setting.size)
    return report


def verdicts(report: Report, spec: str, setting: Setting) -> list[str]:
    """Every seed's figures, failures included, and ours against the others."""
    found: list[str] = []
    ours = report.rows.get((spec, "Lift3D"))
    if ours is None:
        return found
    for i, seed in enumerate(setting.seeds):
        told = [f"seed {seed}: PSNR {ours['psnr'][i]:.2f}"]
        for row in (
            "NeRF, poses given",
            "Lift3D without noise (autoencoder)",
            "Lift3D, one camera (algorithm 3)",
        ):
            other = report.rows.get((spec, row))
            if other:
                told.append(f"{ours['psnr'][i] - other['psnr'][i]:+.2f} dB to {row}")
        if "used" in ours:
            told.append(f"{ours['used'][i]:.0f} candidates used")
        if "rotation" in ours:
            told.append(f"rotation off by {ours['rotation'][i]:.1f} degrees in the middle")
        found.append(f"{spec}, " + ", ".join(told))
    return found


@torch.no_grad()
def from_noise(setting: Setting, name: str, method: Lift3D) -> str:
    """Figure 3.9: what the denoiser takes noise for, from the first step to the last; a row for each draw."""
    steps = min(method.config.steps, {"tiny": 4}.get(setting.scale, 100))
    rng = torch.Generator().manual_seed(0)
    x_T = torch.randn(4, *method.image_shape, generator=rng).to(method.device)
    shown: list[Tensor] = []

    def on_step(i: int, t: float, x_t: Tensor, x0: Tensor) -> None:
        if i in {round(j * (steps - 1) / 5) for j in range(6)}:
            shown.append(torch.stack([x_t.clamp(-1, 1), x0], 1).cpu())

    method.drawn(x_T, levels(steps, table=method.config.steps), on_step=on_step)
    lines = torch.stack(shown, 1).flatten(0, 2)  # (draws x moments x 2, C, H, W)
    path = setting.pictures / f"{name}.png"
    save_png(
        path, grid(lines, columns=2 * len(shown)), {"pairs": "noisy view, and the view that it is taken for"}
    )
    return path.name


def over_training(setting: Setting, name: str, recipe: str, spec: str, seed: int, train: Photographs) -> str:
    """Figure 3.7: cameras of training views, candidates and those chosen, at some checkpoints of the run."""
    changed = changed_for(recipe)
    _, made = trained(setting, recipe, spec, seed, changed=changed)
    folders = sorted(steps_of(run_folder(setting, recipe, spec, seed, changed=changed)))
    spread = np.unique(np.linspace(0, len(folders) - 1, MOMENTS).round().astype(int))
    figure = blank(3.2 * len(spread), 6.0)
    for i, which in enumerate(spread):
        kept = read_checkpoint(folders[which])
        assert kept is not None
        then = build(made)
        assert isinstance(then, Lift3D)
        then.load_state_dict(kept.tensors("ema"))
        with torch.no_grad():
            poses = then.eval().poses_of(train.x, torch.Generator().manual_seed(seed))
        sphere_plot(
            figure.add_subplot(2, len(spread), i + 1),
            poses.cameras.flatten(0, 1),
            f"step {kept.step}: candidates",
        )
        chosen = then.best(poses)
        own = similarity(Found(views=train.x, held=None, trained=chosen), train)
        axes = figure.add_subplot(2, len(spread), len(spread) + i + 1)
        sphere_plot(axes, own.cameras(chosen), "chosen, aligned", true=train.cameras)
    return drawn(figure, setting.pictures / f"{name}.png")
