"""Section 2.5.1 of Yuan's thesis: two levels of regions, against as many regions in one level."""

from __future__ import annotations

import torch
from torch import Tensor

from pellucid.metrics.segmentation import adjusted_rand_index, oracle_assignment, score, smallest_share
from pellucid.reproduce.harness import (
    Column,
    Report,
    Setting,
    batches,
    both_protocols,
    data_for,
    file_name,
    read,
    train_all,
    trained,
    truth_of,
)
from pellucid.reproduce.segment import LIMITS
from pellucid.train.preview import grid, overlay, save_png

ROWS = {
    "two levels, 3 x 3 (thesis' decoder)": "factorized-hierarchy",
    "two levels, 3 x 3 (region codes)": "factorized-hierarchy-code",
    "one level, 9 (region codes)": "factorized-nine-code",
}


def run(setting: Setting) -> Report:
    report = Report(
        name="factorized-hierarchy",
        title="Two levels of regions (Yuan's thesis, section 2.5.1, figures 2.15 to 2.17; it prints no figure)",
        columns=(
            Column("coarse_iou", "IoU, first level, one assignment"),
            Column("fine_ari", "ARI of the finest regions, objects told apart"),
            Column("fine_oracle_iou", "IoU, finest, oracle"),
            Column("smallest_region", "smallest fine region"),
        ),
    )
    n_val, n_test = LIMITS[setting.scale]
    train_all(setting, [(name, {}) for name in setting.chosen(ROWS).values()])
    for spec in setting.data:
        val, test = (data_for(setting, spec, split) for split in ("val", "test"))
        yv, yt = truth_of(val, n_val), truth_of(test, n_test)
        objects = torch.cat([b.masks for b in batches(test, n_test)])
        for seed in setting.seeds:
            for row, name in setting.chosen(ROWS).items():
                method, _ = trained(setting, name, spec, seed)
                cv, _ = _read(method, val, n_val)
                ct, ft = _read(method, test, n_test)
                fine = score(ft, yt, oracle_assignment(ft, yt)).summary()
                ari = adjusted_rand_index(ft.argmax(1), objects, ft.shape[1], int(objects.max()) + 1)
                report.add(
                    spec,
                    row,
                    {
                        "coarse_iou": both_protocols((cv, yv), (ct, yt))["dataset_iou"],
                        "fine_ari": ari.mean().item(),
                        "fine_oracle_iou": fine["oracle_iou"],
                        "smallest_region": smallest_share(ft),
                    },
                )
                if seed == setting.seeds[0]:
                    x = next(iter(batches(test, 12))).x0[:12]
                    show = torch.cat([x, overlay(x, ct[:12].argmax(1)), overlay(x, ft[:12].argmax(1))])
                    path = setting.pictures / f"factorized-hierarchy-{file_name(spec)}-{name}.png"
                    save_png(path, grid(show, columns=12), {"rows": "picture, first level, finest"})
                    report.pictures.append(path.name)
    report.conditions |= setting.conditions()
    return report


def _read(method, data, limit: int) -> tuple[Tensor, Tensor]:
    """(coarsest, finest) masks of the first pictures."""
    rng = torch.Generator().manual_seed(0)
    found = [read(method, b.x0, rng) for b in batches(data, limit)]
    coarse = torch.cat([f["masks"] for f in found])
    fine = torch.cat([f.get("fine_masks", f["masks"]) for f in found])
    return coarse, fine
