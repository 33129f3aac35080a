"""Table 2.6 of Yuan's thesis: how the masks meet the decoder; with the forms that are ours beside it."""

from __future__ import annotations

from typing import Any

from pellucid.metrics.distribution import compare, features
from pellucid.reproduce.generate import COUNTS, extractor
from pellucid.reproduce.harness import (
    Column,
    Report,
    Setting,
    both_protocols,
    data_for,
    images_of,
    read_masks,
    sampled,
    train_all,
    trained,
    truth_of,
)
from pellucid.reproduce.segment import LIMITS

FORMS = {
    "kernel (ours, default)": "factorized",
    "code (ours)": "factorized-code",
    "full (thesis)": "factorized-shared",
    "w/o weight sharing": "factorized-unshared",
    "concat": "factorized-concat",
    "masking h_mid": "factorized-masked-mid",
}
PAPER = {
    "full (thesis)": {"IoU": "56.1", "FID": "10.28"},
    "w/o weight sharing": {"IoU": "50.5", "FID": "17.21"},
    "concat": {"IoU": "20.7", "FID": "14.21"},
    "masking h_mid": {"IoU": "20.2", "FID": "14.33"},
}


def run(setting: Setting) -> Report:
    report = Report(
        name="factorized-ablation",
        title="Forms of the decoder (Yuan's thesis, table 2.6, on CUB)",
        columns=(),
        paper=PAPER,
    )
    see = extractor(report, small=setting.scale == "tiny")
    report.columns = (
        Column("dataset_iou", "IoU, one assignment"),
        Column("oracle_iou", "IoU, oracle"),
        Column("smallest_region", "smallest region"),
        Column(f"fd_{see.name}", f"fd_{see.name}", "lower"),
    )
    n_val, n_test = LIMITS[setting.scale]
    n = COUNTS[setting.scale]
    train_all(setting, [(name, {}) for name in FORMS.values()])
    for spec in setting.data:
        val, test = (data_for(setting, spec, split) for split in ("val", "test"))
        yv, yt = truth_of(val, n_val), truth_of(test, n_test)
        real = features(see, images_of(data_for(setting, spec, "train"), n))
        for seed in setting.seeds:
            for row, name in FORMS.items():
                method, _ = trained(setting, name, spec, seed)
                figures = both_protocols(
                    (read_masks(method, val, n_val), yv), (read_masks(method, test, n_test), yt)
                )
                # a table of decoders: none is guided
                plain: dict[str, Any] = (
                    {"region_guidance": 1.0} if "region_guidance" in method.controls else {}
                )
                images, _ = sampled(method, n, seed, **plain)
                distance = compare(real, features(see, images), see)
                report.add(spec, row, figures | {f"fd_{see.name}": distance.frechet})
        order = sorted(PAPER, key=lambda row: -report.mean(spec, row, "dataset_iou"))
        report.notes.append(
            f"{spec}: by IoU under one assignment, {' > '.join(order)} (thesis: {' > '.join(PAPER)})"
        )
    report.conditions |= setting.conditions(images=n)
    return report
