"""Section 4.2 of DiffuseGAE: pictures of combinations that nobody trained on, put together from parts of others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pellucid.methods.base import Method
from pellucid.metrics.attributes import EditMatrix, edit_matrix
from pellucid.reproduce.attributes import (
    HELD_OUT,
    AttributeJudge,
    Pictures,
    held_and_seen,
    opened,
    sources,
    without_held_out,
)
from pellucid.reproduce.harness import (
    Column,
    Report,
    Setting,
    file_name,
    sampled,
    train_all,
    trained,
)
from pellucid.train.preview import grid, save_png
from pellucid.types import Attribute

COUNTS = {"tiny": 12, "cpu": 300, "gpu": 1000, "paper": 1000}
"""Pictures recombined; of each attribute half as many are edited."""
INVERSION = {"tiny": 3, "cpu": 50, "gpu": 100, "paper": 100}
"""Steps from a picture to its noise, where an edit keeps that."""
SHOWN = 8
ROWS = {"DiffuseGAE": "gae", "GZS-Net": "gzsnet", "AE + DS": "ae-ds"}
NOISES = ("random", "inferred")
"""Whose noise an edit starts from: drawn anew, or that of the picture."""


def recombined(method: Method, pictures: Pictures, rows: list[Tensor], seed: int) -> Tensor:
    """Pictures whose every part is another picture's: rows (N,) of `pictures` for each part -> (N, C, H, W)."""
    names = method.controls["replace"].choices
    made = []
    for chunk in torch.arange(len(rows[0])).split(100):
        given = {name: pictures.x[row[chunk]] for name, row in zip(names, rows, strict=True)}
        made.append(sampled(method, len(chunk), seed + int(chunk[0]), replace=given)[0])
    return torch.cat(made)


def edited(method: Method, x: Tensor, name: str, others: Tensor, seed: int, **controls: Any) -> Tensor:
    """Pictures (N, C, H, W) with one part taken from others, (N, C, H, W)."""
    made = []
    for chunk in torch.arange(len(x)).split(100):
        given: dict[str, Any] = {"image": x[chunk], "replace": {name: others[chunk]}, **controls}
        made.append(sampled(method, len(chunk), seed + int(chunk[0]), **given)[0])
    return torch.cat(made)


def one_by_one(
    method: Method, judge: AttributeJudge, pictures: Pictures, n: int, seed: int, **controls: Any
) -> EditMatrix:
    """Each attribute alone is taken from a picture of another value: what a judge sees change, and what not."""
    rng = torch.Generator().manual_seed(seed)
    x, own = pictures.x[:n], pictures.values[:n]
    after, wanted = [], []
    for i, name in enumerate(method.controls["replace"].choices):
        other = torch.stack(
            [_another(pictures.values[:, i], value, rng) for value in own[:, i].tolist()]
        )  # (n,) rows of pictures
        after.append(judge.values(edited(method, x, name, pictures.x[other], seed, **controls)))
        wanted.append(pictures.values[other, i])
    return edit_matrix(judge.values(x), torch.stack(after), torch.stack(wanted))


def _another(values: Tensor, value: int, rng: torch.Generator) -> Tensor:
    there = (values != value).nonzero()[:, 0]
    return there[torch.randint(len(there), (1,), generator=rng)][0]


def run(setting: Setting) -> Report:
    setting = without_held_out(setting)
    report = Report(
        name="gae-zeroshot",
        title="Combinations that were held out of training, put together from parts (DiffuseGAE, section 4.2)",
        columns=(),
    )
    rows, n = setting.chosen(ROWS), COUNTS[setting.scale]
    attributes: dict[str, tuple[Attribute, ...]] = {}
    named: dict[str, Column] = {}
    for spec in setting.data:
        attributes[spec] = opened(setting, spec)
        named |= {a.name: Column(f"is_{a.name}", a.name) for a in attributes[spec]}
    report.columns = (*named.values(), Column("mean", "mean"), Column("all", "all at once"))
    train_all(setting, [(recipe, {}) for recipe in rows.values()])
    for spec in setting.data:
        held, seen = held_and_seen(setting, spec, 4 * n)
        held = Pictures(x=held.x[:n], values=held.values[:n])
        for seed in setting.seeds:
            judge = AttributeJudge.taught(setting, spec, seed=seed)
            real = judge.accuracy(held.x, held.values)
            report.add(spec, "real pictures", real)
            chosen = sources(seen, held.values, torch.Generator().manual_seed(seed))
            for row, recipe in rows.items():
                method, _ = trained(setting, recipe, spec, seed)
                images = recombined(method, seen, chosen, seed)
                report.add(spec, row, judge.accuracy(images, held.values))
                noises = NOISES if "noise" in method.controls else ("",)
                for noise in noises:
                    controls: dict[str, Any] = {"noise": noise} if noise else {}
                    if noise == "inferred":
                        controls["inversion_steps"] = INVERSION[setting.scale]
                    found = one_by_one(method, judge, seen, max(1, n // 2), seed, **controls)
                    told = f"{row}, {noise} noise" if noise else row
                    for a, cells in zip(attributes[spec], found.matrix.tolist(), strict=True):
                        figures = {f"is_{b.name}": v for b, v in zip(attributes[spec], cells, strict=True)}
                        report.add(spec, f"  edit {a.name} ({told})", figures)
                    if seed == setting.seeds[0]:
                        dominant = "is" if found.diagonal_dominant else "is not"
                        report.notes.append(
                            f"{spec}, {told}: the matrix of edits {dominant} diagonally dominant"
                        )
                if seed == setting.seeds[0]:
                    report.pictures += sheets(setting, spec, recipe, method, seen, held, chosen, images)
        if "DiffuseGAE" in rows:
            report.notes += verdicts(report, spec, list(rows))
    report.notes.append(
        "first rows: the share of recombined pictures, each part from a test picture of a combination that was trained "
        "on, that a classifier of real pictures reads as the combination wanted; all of those were held out. Edits: "
        "one part is taken from a picture of another value; on the diagonal the share that is read as that value, "
        "elsewhere the share whose reading changed, which should be none"
    )
    report.conditions |= setting.conditions(size=setting.size, pictures=n, held_out=HELD_OUT)
    return report


def verdicts(report: Report, spec: str, rows: list[str]) -> list[str]:
    """Ours against real pictures and against the other methods."""
    ours, real = (report.mean(spec, row, "mean") for row in ("DiffuseGAE", "real pictures"))
    others = {row: report.mean(spec, row, "mean") for row in rows if row != "DiffuseGAE"}
    said = ", ".join(f"{row} {value:.3f}" for row, value in others.items())
    return [f"{spec}: DiffuseGAE {ours:.3f}, {ours / real:.0%} of the {real:.3f} of real pictures; {said}"]


def sheets(
    setting: Setting,
    spec: str,
    recipe: str,
    method: Method,
    seen: Pictures,
    held: Pictures,
    chosen: list[Tensor],
    images: Tensor,
) -> list[str]:
    """Figure 7: the pictures that lend each part, a real picture of the combination, and what came of them. Figure 6:
    pictures across, pictures that lend one part down."""
    names = method.controls["replace"].choices
    lent = [seen.x[rows[:SHOWN]] for rows in chosen]
    path = setting.pictures / f"gae-zeroshot-{file_name(spec)}-{recipe}.png"
    rows = [*(f"gives {name}" for name in names), "a real picture", "recombined"]
    save_png(path, grid(torch.cat([*lent, held.x[:SHOWN], images[:SHOWN]]), columns=SHOWN), {"rows": rows})
    found = [path.name]
    for name in names:
        x, others = seen.x[:SHOWN], seen.x[SHOWN : SHOWN + 4]
        more = {"noise": "random"} if "noise" in method.controls else {}
        lines = [edited(method, x, name, other[None].expand_as(x), 0, **more) for other in others]
        path = setting.pictures / f"gae-zeroshot-{file_name(spec)}-{recipe}-{name}.png"
        blank = torch.ones_like(x[:1])
        body = torch.cat([torch.cat([other[None], line]) for other, line in zip(others, lines, strict=True)])
        about = {"first row": "pictures", "first column": f"gives {name}"}
        save_png(path, grid(torch.cat([blank, x, body]), columns=SHOWN + 1), about)
        found.append(path.name)
    return found
