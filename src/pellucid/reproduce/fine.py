"""Tables I and II of CoFi-UCGen, fine part, and what each grain of control holds fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pellucid.methods.base import Method
from pellucid.methods.cofi.method import CoFi
from pellucid.metrics.disentangle import change_map, traversal
from pellucid.metrics.distribution import (
    Extractor,
    aligned,
    features,
    precision_recall_density_coverage,
)
from pellucid.reproduce.coarse import Judge
from pellucid.reproduce.generate import SAMPLED_BY, extractor
from pellucid.reproduce.harness import Column, Report, Setting, file_name, sampled, train_all, trained
from pellucid.train.preview import grid, save_png

CONDITIONS = {"tiny": (4, 4), "cpu": (50, 10), "gpu": (256, 20), "paper": (256, 20)}
"""Conditions, and pictures of each: those that "aligned" is measured on."""


@dataclass(frozen=True, kw_only=True)
class Row:
    recipe: str = "cofi"
    held: tuple[str, ...] | None = ()
    """What a condition fixes; None for one row a slider."""
    controls: Mapping[str, Any] | None = None
    """How it is sampled."""
    against_real: bool = False
    """Whether its pictures are compared with real ones as a set."""


FREE = "  nothing held"
ROWS = {
    "CoFi-UCGen (Noise)": Row(held=("bits", "fine"), controls={"codes_from": "noise"}, against_real=True),
    "CoFi-UCGen (Repar.)": Row(held=("bits", "fine"), controls={"codes_from": "pictures"}, against_real=True),
    FREE: Row(against_real=True),
    "  bits held": Row(held=("bits",)),
    "  fine code held": Row(held=("fine",)),
    "  both held": Row(held=("bits", "fine")),
    "sliders": Row(held=None),
    "SG-DM, own SimCLR": Row(recipe="selfguided", held=("code",), against_real=True),
}
SWEPT = {"tiny": 2, "cpu": 12, "gpu": 64, "paper": 64}
"""Pictures in which each slider is moved."""
PAPER = {
    "CoFi-UCGen (Noise)": {
        "FID": "15.41",
        "precision": ".5198",
        "recall": ".6601",
        "aligned": ".5144 (Flowers)",
    },
    "CoFi-UCGen (Repar.)": {
        "FID": "12.60",
        "precision": ".5091",
        "recall": ".7624",
        "aligned": ".5157 (Flowers)",
    },
    "SG-DM, own SimCLR": {
        "FID": "19.11",
        "precision": ".5026",
        "recall": ".4368",
        "aligned": ".8044 (Flowers)",
    },
}


def columns(see: Extractor) -> tuple[Column, ...]:
    return (
        Column(f"fd_{see.name}", f"fd_{see.name}", "lower"),
        Column(f"kid_{see.name}", f"kid_{see.name}", "lower"),
        Column(f"is_{see.name}", f"is_{see.name}"),
        Column(f"precision_{see.name}", "precision"),
        Column(f"recall_{see.name}", "recall"),
        Column(f"aligned_{see.name}", "aligned", "lower"),
    )


OF_SLIDERS = (
    Column("coarse_share", "long waves"),
    Column("fine_share", "short waves"),
    Column("movement", "movement"),
    Column("monotonicity", "monotone"),
    Column("smoothness", "largest step", "lower"),
)


def under_conditions(
    method: Method, conditions: int, each: int, seed: int, held: tuple[str, ...], **controls: Any
) -> tuple[Tensor, Tensor]:
    """Pictures of so many conditions, `each` of every one, and which is whose.

    `held` names what a condition fixes: "bits" or "code", and "fine", each drawn anew for every condition; what is
    not held is drawn anew for every picture, and so is the noise.
    """
    rng = torch.Generator().manual_seed(seed)
    images = []
    for _ in range(conditions):
        given: dict[str, Any] = {}
        for name in held:
            control = method.controls[name]
            if control.kind == "bits":
                given[name] = tuple(torch.randint(2, (int(control.high or 0),), generator=rng).tolist())
            elif control.kind == "int":
                given[name] = int(torch.randint(int(control.high or 0) + 1, (1,), generator=rng))
            else:
                given[name] = fine_code(method, rng)
        part = int(torch.randint(2**31, (1,), generator=rng))
        images.append(sampled(method, each, part, **controls | given)[0])
    return torch.cat(images), torch.arange(conditions).repeat_interleave(each)


def fine_code(method: Method, rng: torch.Generator) -> dict[str, float]:
    """Sliders as the prior has them: projections of one s ~ N(0, I), and so not independent of each other."""
    assert isinstance(method, CoFi)
    assert method.fine is not None
    s = torch.randn(1, method.fine.config.dim, generator=rng).to(method.device)
    with torch.no_grad():
        scalars = method.fine.codes.scalars(s)[0].clamp(-5, 5).tolist()
    return dict(zip(method.fine.depths, scalars, strict=True))


def slid(method: Method, see: Extractor, depth: str, n: int, seed: int) -> dict[str, float]:
    """What moving one slider from -2 to 2 does to n pictures, their bits and noise kept: where, and how evenly."""
    places = torch.linspace(-2, 2, 5).tolist()
    # what no control sets is drawn alike in every call
    images = torch.stack([sampled(method, n, seed, fine={depth: place})[0] for place in places], 1)
    if not images.diff(dim=1).any():
        return {"movement": 0.0}
    where = change_map(images)
    way = traversal(features(see, images.flatten(0, 1)).unflatten(0, (n, len(places))))
    return {
        "coarse_share": where.shares[0].item(),
        "fine_share": where.shares[-1].item(),
        "movement": way.movement.mean().item(),
        "monotonicity": way.monotonicity.mean().item(),
        "smoothness": way.smoothness.nanmean().item(),
    }


def tightness(see: Extractor, judge: Judge, images: Tensor, conditions: Tensor) -> dict[str, float]:
    """ "Aligned", and beside it the recall of the same pictures: tight and diverse at once, or not worth having."""
    seen = features(see, images)
    n = min(len(seen), len(judge.real))
    spread = precision_recall_density_coverage(judge.real[:n], seen[:n], 3)
    return {
        f"aligned_{see.name}": aligned(seen, conditions).distance,
        f"recall_{see.name}": spread["recall"],
        f"precision_{see.name}": spread["precision"],
    }


def run(setting: Setting) -> Report:
    report = Report(
        name="cofi-fine",
        title="Two grains of control (CoFi-UCGen, tables I and II, fine)",
        columns=(),
        paper=PAPER,
    )
    see = extractor(report, small=setting.scale == "tiny")
    report.columns = (*columns(see), *OF_SLIDERS)
    conditions, each = CONDITIONS[setting.scale]
    n = conditions * each
    rows = setting.chosen(ROWS)
    train_all(setting, [(recipe, {}) for recipe in dict.fromkeys(how.recipe for how in rows.values())])
    for spec in setting.data:
        judge = Judge.of(setting, spec, see)
        judge.floor(report, spec, min(n, len(judge.real) // 2))
        for seed in setting.seeds:
            for row, how in rows.items():
                method, made = trained(setting, how.recipe, spec, seed)
                if how.held is None:
                    for depth in method.controls["fine"].choices:
                        report.add(spec, f"  {depth}", slid(method, see, depth, SWEPT[setting.scale], seed))
                    continue
                images, whose = under_conditions(
                    method, conditions, each, seed, how.held, **how.controls or {}
                )
                whole = judge.pictures(images) if how.against_real else {}
                report.add(spec, row, whole | tightness(see, judge, images, whose))
            if seed == setting.seeds[0] and any(how.recipe == "cofi" for how in rows.values()):
                method, made = trained(setting, "cofi", spec, seed)
                report.pictures.append(sheet(setting, spec, method))
                report.conditions |= {"steps": made.train.of("fine").steps}
        key, recall = f"aligned_{see.name}", f"recall_{see.name}"
        if FREE not in rows:
            continue
        free = {k: report.mean(spec, FREE, k) for k in (key, recall)}
        for row in (
            row for row, how in rows.items() if how.held and len(how.held) == 1 and how.recipe == "cofi"
        ):
            report.notes.append(
                f"{spec}, {row.strip()}: aligned {report.mean(spec, row, key):.3f} against {free[key]:.3f} of free "
                f"sampling, recall {report.mean(spec, row, recall):.3f} against {free[recall]:.3f}"
            )
    report.notes.append(
        "aligned: mean cosine distance between the features of pictures of one condition; the rows that hold less are "
        "the same model with less of the condition fixed"
    )
    side = setting.size
    noise = change_map(torch.randn(1, 2, 1, side, side, generator=torch.Generator().manual_seed(0))).areas
    report.notes.append(
        "sliders: one is moved from -2 to 2 standard deviations in five places, bits and noise kept. Long waves: the "
        f"share of the change's power in waves longer than 16 pixels (white noise has {noise[0]:.2f}); short: of 4 and "
        f"less ({noise[-1]:.2f}). Movement: the length of the way in features; monotone: the share of its steps that "
        "lead further from the start (by chance about half); largest step: over the mean one, 1 where all are equal, 4 "
        "where there is but one"
    )
    report.conditions |= setting.conditions(
        size=setting.size, images=n, conditions=conditions, sampler=SAMPLED_BY
    )
    return report


def sheet(setting: Setting, spec: str, method: Method) -> str:
    """Eight codes across, six fine codes down, the same noise everywhere; returns the file's name."""
    n = int(method.controls["bits"].high or 0)
    codes = ["0" * n, *("0" * k + "1" + "0" * (n - k - 1) for k in range(n)), "1" * n][:8]
    rows = []
    for down in range(6):
        sliders = fine_code(method, torch.Generator().manual_seed(down))
        rows += [sampled(method, 1, 0, bits=code, fine=sliders)[0] for code in codes]
    path = setting.pictures / f"cofi-fine-{file_name(spec)}.png"
    save_png(path, grid(torch.cat(rows), columns=len(codes)), {"columns": codes, "rows": "fine codes"})
    return path.name
