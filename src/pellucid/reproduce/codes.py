"""What the painter of the region-code form may know, one thing changed at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pellucid.reproduce.harness import (
    Column,
    Report,
    Setting,
    both_protocols,
    data_for,
    read_masks,
    train_all,
    trained,
    truth_of,
)
from pellucid.reproduce.segment import LIMITS

ROWS: Mapping[str, Mapping[str, Any]] = {
    "as in the recipe": {},
    "sees 3 pixels across": {"code_layers": 1},
    "sees 13 pixels across": {"code_layers": 6},
    "codes of 4 numbers": {"code_dim": 4},
    "codes of 128 numbers": {"code_dim": 128},
    "zero padding": {"code_padding": "zeros"},
    "two regions": {"regions": 2},
    "five regions": {"regions": 5},
    "no region under 5%": {"min_share": 0.05},
    "mixture of regions": {"code_mixture": True},
}


def run(setting: Setting) -> Report:
    report = Report(
        name="factorized-codes",
        title="Region codes, one thing changed at a time (the recipe sees 7 pixels, codes of 32 numbers, K = 3)",
        columns=(
            Column("dataset_iou", "IoU, one assignment"),
            Column("oracle_iou", "IoU, oracle"),
            Column("smallest_region", "smallest region"),
        ),
    )
    n_val, n_test = LIMITS[setting.scale]
    train_all(setting, [("factorized-code", changed) for changed in setting.chosen(ROWS).values()])
    for spec in setting.data:
        val, test = (data_for(setting, spec, split) for split in ("val", "test"))
        yv, yt = truth_of(val, n_val), truth_of(test, n_test)
        for seed in setting.seeds:
            for row, changed in setting.chosen(ROWS).items():
                method, _ = trained(setting, "factorized-code", spec, seed, changed=changed)
                masks = read_masks(method, val, n_val), read_masks(method, test, n_test)
                report.add(spec, row, both_protocols((masks[0], yv), (masks[1], yt)))
    report.conditions |= setting.conditions()
    report.notes.append("more regions give the oracle more to choose from: compare K under one assignment")
    return report
