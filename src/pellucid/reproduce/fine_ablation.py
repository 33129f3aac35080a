"""Table V of CoFi-UCGen: what each part of the fine stage is worth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pellucid.methods.cofi.fine import FineConfig
from pellucid.recipes import DataSpec, recipe
from pellucid.reproduce.coarse import Judge
from pellucid.reproduce.fine import CONDITIONS, columns, tightness, under_conditions
from pellucid.reproduce.generate import SAMPLED_BY, extractor
from pellucid.reproduce.harness import Report, Setting, data_for, train_all, trained

ROWS: dict[str, dict[str, Any]] = {
    "no reciprocal loss": {"reciprocal": 0.0},
    "no KL divergence": {"kl": 0.0},
    "no hierarchy": {"hierarchy": False},
    "full": {},
}
PAPER = {
    "no reciprocal loss": {"FID": "15.58", "recall": ".6456", "aligned": ".6133 (CUB)"},
    "no KL divergence": {"FID": "137.21", "recall": ".3325", "aligned": ".1042 (CUB)"},
    "no hierarchy": {"FID": "25.58", "recall": ".6926", "aligned": ".7330 (CUB)"},
    "other encoder": {"FID": "12.37", "recall": ".6977", "aligned": ".6138 (CUB; DINO)"},
    "full": {"FID": "12.24", "recall": ".7666", "aligned": ".6051 (CUB)"},
}
OTHER = "other encoder"
"""Coarse codes of an encoder that has learned by contrast alone."""


def run(setting: Setting) -> Report:
    report = Report(
        name="cofi-ablation-fine",
        title="The parts of the fine stage (CoFi-UCGen, table V)",
        columns=(),
        paper=PAPER,
    )
    see = extractor(report, small=setting.scale == "tiny")
    report.columns = columns(see)
    conditions, each = CONDITIONS[setting.scale]
    full = _fine(setting)
    rows = {row: ("cofi", {"fine": replace(full, **change)}) for row, change in ROWS.items()}
    rows = setting.chosen({**rows, OTHER: ("cofi-other-encoder", {})})
    train_all(setting, rows.values())
    for spec in setting.data:
        judge = Judge.of(setting, spec, see)
        for seed in setting.seeds:
            for row, (name, changed) in rows.items():
                method, made = trained(setting, name, spec, seed, changed=changed)
                held = ("bits", "fine") if "bits" in method.controls else ("fine",)
                images, whose = under_conditions(method, conditions, each, seed, held)
                report.add(spec, row, judge.pictures(images) | tightness(see, judge, images, whose))
                report.conditions |= {"steps": made.train.of("fine").steps}
    report.notes.append(
        "every row trains all stages anew; a condition is a row of bits and a fine code, but for the other encoder, "
        "which has no bits to set"
    )
    report.conditions |= setting.conditions(
        size=setting.size, conditions=conditions, each=each, sampler=SAMPLED_BY
    )
    return report


def _fine(setting: Setting) -> FineConfig:
    """The fine stage's config of the recipe at this scale."""
    channels, _, side = data_for(setting, setting.data[0], "train").shape
    made = recipe("cofi", setting.scale, DataSpec(spec=setting.data[0], size=side, channels=channels))
    assert made.config.fine is not None
    return made.config.fine
