"""Table 3.1 of Yuan's thesis, the 360-degree rows: a scene from views of unknown pose, beside one told its poses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pellucid.methods.baselines.nerf import NeRF
from pellucid.methods.lift3d.method import Lift3D
from pellucid.methods.radiance import Radiance
from pellucid.process.schedule import levels
from pellucid.recipes import Recipe, build
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
from pellucid.train.log import read_log
from pellucid.train.preview import grid, save_png
from pellucid.view_scores import Found, Photographs, found, scored, similarity

OURS = "Lift3D"
PLAIN = {"imagined": 0.0}
"""As in the paper: nothing teaches poses but pictures."""
AUTOENCODER = "autoencoder (no noise, nothing imagined)"
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "NeRF, poses given": ("nerf", {}),
    OURS: ("lift3d", {}),
    AUTOENCODER: ("lift3d-clean", PLAIN),
    "Lift3D, one camera (algorithm 3)": ("lift3d-single", {}),
    "NeRF-- (poses as parameters)": ("nerf--", {}),
}
PAPER = {
    "NeRF, poses given": {"PSNR": "28.98 car, 25.44 Lego, 22.12 drums"},
    OURS: {"PSNR": "26.43 car, 21.38 Lego, 18.65 drums"},
    "NeRF-- (poses as parameters)": {"PSNR": "fails on all three"},
}
GOALS = {
    "NeRF, poses given": -5.0,
    AUTOENCODER: 4.0,
    "Lift3D, one camera (algorithm 3)": 4.0,
}
"""By how many dB ours should lie above a row, at the least."""
NEAR_ENOUGH = 15.0
"""Degrees by which half of the held-out cameras may be off."""
SMOOTHED = 9
MOMENTS = 5
"""Checkpoints that the picture of poses over training shows, at most."""


def run(setting: Setting) -> Report:
    return compared(
        setting,
        name="lift3d-360",
        title="A scene from photographs of unknown pose (Yuan's thesis, table 3.1, 360 degrees)",
        rows=ROWS,
        paper=PAPER,
        goals=GOALS,
    )


def compared(
    setting: Setting,
    *,
    name: str,
    title: str,
    rows: Mapping[str, tuple[str, dict[str, Any]]],
    paper: dict[str, dict[str, str]],
    goals: dict[str, float] | None = None,
) -> Report:
    """Train the rows' recipes, with the fields of their configs that are others, on every data set; score held-out
    views and cameras, and draw them."""
    report = Report(name=name, title=title, columns=(), paper=paper)
    chosen = {
        row: (recipe, changed_for(recipe) | more) for row, (recipe, more) in setting.chosen(rows).items()
    }
    held_of = {spec: photographs(setting, spec, "test") for spec in setting.data}
    see = extractor(report, small=setting.scale == "tiny")
    report.columns = columns(see)
    train_all(setting, chosen.values())
    refine = REFINED[setting.scale]
    for spec in setting.data:
        train, held = photographs(setting, spec, "train"), held_of[spec]
        for seed in setting.seeds:
            by_row: dict[str, Found] = {}
            for row, (recipe, changed) in chosen.items():
                method, _ = trained(setting, recipe, spec, seed, changed=changed)
                assert isinstance(method, Radiance)
                own = refine if isinstance(method, NeRF) else 0
                by_row[row] = found(method, train, held, seed, refine=own)
                report.add(spec, row, scored(by_row[row], train, held, (see,)))
                if row == OURS:
                    better = found(method, train, held, seed, refine=refine, judge=False)
                    figures = scored(replace(better, chosen=None), train, held, (see,))
                    report.add(spec, f"  {row}, cameras refined", figures)
            stem = f"{name}-{file_name(spec)}"
            report.pictures.append(
                sheet(setting, f"{stem}-{seed}", held, {row: f.views for row, f in by_row.items()})
            )
            if any(f.trained is not None for f in by_row.values()):
                report.pictures.append(camera_figure(setting, f"{stem}-cameras-{seed}", by_row, train))
            if classified := {row: f.candidates for row, f in by_row.items() if f.candidates > 1}:
                runs = {
                    row: (run_folder(setting, chosen[row][0], spec, seed, changed=chosen[row][1]), of)
                    for row, of in classified.items()
                }
                report.pictures.append(course(setting, f"{stem}-course-{seed}", runs))
            if seed == setting.seeds[0] and OURS in chosen:
                recipe, changed = chosen[OURS]
                method, made = trained(setting, recipe, spec, seed, changed=changed)
                assert isinstance(method, Lift3D)
                report.pictures.append(from_noise(setting, f"{stem}-noise", method))
                run = run_folder(setting, recipe, spec, seed, changed=changed)
                report.pictures.append(over_training(setting, f"{stem}-training", run, made, seed, train))
        if OURS in chosen:
            report.notes += verdicts(report, spec, setting, goals or {}, by_row[OURS].candidates)
    report.notes.append(
        "held-out views are seen from the camera that one pass reads of each (for given poses, from its own); 'cameras "
        f"refined': moved by {refine} steps of gradients through the field, as NeRF--'s are, which begin at the true "
        "ones. Camera errors are medians, after the similarity that fits training cameras best. Classifier: how often, "
        "of a training view under a little noise, it names the candidate that sees it best. The autoencoder and the "
        "one camera imagine no views, as in the paper and unlike ours; lift3d-ablation has ours without them, and an "
        "autoencoder with them"
    )
    report.conditions |= setting.conditions(size=setting.size)
    return report


def verdicts(
    report: Report, spec: str, setting: Setting, goals: dict[str, float], candidates: int
) -> list[str]:
    """Every seed's figures, failures included: ours against the others, and whether goals are met."""
    ours = report.rows[spec, OURS]
    others = [row for of, row in report.rows if of == spec and row != OURS and not row.startswith(" ")]
    met = lambda yes: " (met)" if yes else " (missed)"
    found = []
    for i, seed in enumerate(setting.seeds):
        told = [f"seed {seed}: PSNR {ours['psnr'][i]:.2f}"]
        for row in others:
            lead = ours["psnr"][i] - report.rows[spec, row]["psnr"][i]
            told.append(f"{lead:+.2f} dB to {row}" + (met(lead >= goals[row]) if row in goals else ""))
        if "used" in ours:
            used = ours["used"][i]
            told.append(f"{used:.0f} candidates used" + (met(used >= candidates / 2) if goals else ""))
        if "rotation" in ours:
            off = ours["rotation"][i]
            told.append(
                f"rotation off by {off:.1f} degrees in the middle" + (met(off < NEAR_ENOUGH) if goals else "")
            )
        found.append(f"{spec}, " + ", ".join(told))
    if goals:
        wanted = ", ".join(f"{least:+g} dB to {row}" for row, least in goals.items())
        found.append(
            f"goals: {wanted}, half of {candidates} candidates used, and half of the cameras within "
            f"{NEAR_ENOUGH:g} degrees"
        )
    return found


def course(setting: Setting, name: str, runs: dict[str, tuple[Path, int]]) -> str:
    """Whether the classifier grows sure after the field shows something, or before: figures of training rays by step,
    as medians of `SMOOTHED` log lines; a panel for each run, which come with how many candidates they have."""
    figure = blank(4.5 * len(runs), 3.2)
    for i, (row, (run, candidates)) in enumerate(runs.items()):
        lines = [line for line in read_log(run) if "accuracy" in line]
        steps = [line["step"] for line in lines]
        smooth = lambda values: [
            float(np.median(values[max(0, k - SMOOTHED + 1) : k + 1])) for k in range(len(values))
        ]
        axes = figure.add_subplot(1, len(runs), i + 1)
        axes.plot(steps, smooth([10 * math.log10(4 / line["denoise"]) for line in lines]), color="tab:blue")
        axes.set(xlabel="step", ylabel="PSNR of training rays, dB (blue)", title=row)
        share = axes.twinx()
        share.plot(steps, smooth([line["accuracy"] for line in lines]), color="tab:orange")
        share.plot(steps, [line["used"] / candidates for line in lines], color="tab:green", lw=0.8)
        share.set(ylim=(0, 1.05), ylabel="classifier (orange), used (green)")
    return drawn(figure, setting.pictures / f"{name}.png")


@torch.no_grad()
def from_noise(setting: Setting, name: str, method: Lift3D) -> str:
    """Figure 3.9: what the denoiser takes noise for, from the first step to the last; a row for each draw."""
    steps = min(method.config.steps, {"tiny": 4}.get(setting.scale, 100))
    rng = torch.Generator().manual_seed(0)
    x_T = torch.randn(4, *method.image_shape, generator=rng).to(method.device)
    _, passes = method.drawn(x_T, levels(steps, table=method.config.steps), snapshots=6)
    shown = [
        torch.stack([x_t.clamp(-1, 1), method.pictures(method.best(poses))[0]], 1).cpu()
        for _, x_t, poses in passes
    ]
    lines = torch.stack(shown, 1).flatten(0, 2)  # (draws x moments x 2, C, H, W)
    path = setting.pictures / f"{name}.png"
    save_png(
        path, grid(lines, columns=2 * len(shown)), {"pairs": "noisy view, and the view that it is taken for"}
    )
    return path.name


def over_training(setting: Setting, name: str, run: Path, made: Recipe, seed: int, train: Photographs) -> str:
    """Figure 3.7: cameras of training views, candidates and those chosen, at some checkpoints of a recipe's run."""
    folders = sorted(steps_of(run))
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
