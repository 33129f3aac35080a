"""Table 2.5 of Yuan's thesis: images with their masks, against the DDPM of the same U-Net."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid.data.images import Dataset
from pellucid.methods.base import Method
from pellucid.methods.baselines.ddpm import DDPM
from pellucid.metrics.distribution import EfficientNetLite0, Extractor, Pixels, compare, features, real_floor
from pellucid.metrics.segmentation import choose_assignment
from pellucid.reproduce.harness import (
    Column,
    Report,
    Setting,
    data_for,
    file_name,
    images_of,
    read,
    read_masks,
    sampled,
    train_all,
    trained,
    truth_of,
)
from pellucid.reproduce.segment import LIMITS, ddpm_masks
from pellucid.train.preview import grid, overlay, save_png

SAMPLED_BY = "ddim, 25 steps"
"""What `sampled` does, as the tables' conditions name it."""
COUNTS = {"tiny": 16, "cpu": 300, "gpu": 5000, "paper": 50_000}
PAPER = {
    "factorized (default)": {},
    "factorized-shared (thesis)": {
        "FID": "10.28 CUB-128, 11.50 Flower-128",
        "mask accuracy": "84.1 to 92.7 over seven sets",
    },
    "DDPM": {"FID": "14.01 CUB-128, 14.62 Flower-128", "mask accuracy": "71.2 to 84.2 over seven sets"},
}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "factorized (default)": ("factorized", {}),
    "  without region guidance": ("factorized", {"region_guidance": 1.0}),
    "factorized-shared (thesis)": ("factorized-shared", {}),
    "DDPM": ("ddpm", {}),
}


def extractor(report: Report, *, small: bool) -> Extractor:
    """ImageNet features where their packages are installed; pixels otherwise, and said so."""
    if small:
        return Pixels()
    try:
        return EfficientNetLite0()
    except ImportError as error:
        report.notes.append(f"distances are in pixels, which see no semantics: {error}")
        return Pixels()


@dataclass(frozen=True, kw_only=True)
class RealPictures:
    """What generated pictures of one data set are held against."""

    see: Extractor
    features: Tensor
    """Of training pictures, twice as many as are generated: one half for the floor of the distance."""
    val: Dataset
    truth: Tensor
    """Validation pictures and, (N, H, W), their objects; they say which regions are foreground."""

    @classmethod
    def of(cls, setting: Setting, spec: str, see: Extractor) -> RealPictures:
        val = data_for(setting, spec, "val", limit=LIMITS[setting.scale][0])
        train = images_of(data_for(setting, spec, "train"), 2 * COUNTS[setting.scale])
        return cls(see=see, features=features(see, train), val=val, truth=truth_of(val, len(val)))

    def figures(self, images: Tensor, masks: Tensor, of_val: Tensor, judge: Method) -> dict[str, float]:
        """Distances from the real, and the share of pixels on which masks agree with a supervised segmenter.

        `of_val` are the masks that the method finds in `val`.
        """
        distances = compare(self.features[: len(images)], features(self.see, images), self.see).summary()
        figures = {k: v for k, v in distances.items() if isinstance(v, float) and math.isfinite(v)}
        chosen = choose_assignment(of_val, self.truth)
        found = torch.isin(masks.argmax(1), torch.tensor(sorted(chosen.regions)))
        judged = read(judge, images, torch.Generator())["masks"].argmax(1) == 1
        return figures | {"mask_accuracy": (found == judged).float().mean().item()}


def distance_columns(see: Extractor) -> tuple[Column, ...]:
    return (
        Column(f"fd_{see.name}", f"fd_{see.name}", "lower"),
        Column(f"kid_{see.name}", f"kid_{see.name}", "lower"),
        Column(f"recall_{see.name}", "recall"),
        Column("mask_accuracy", "mask accuracy"),
    )


def picture(path: Path, images: Tensor, masks: Tensor, about: dict[str, Any]) -> str:
    """Two rows of twelve images, the same with their masks below; returns the file's name."""
    show = torch.cat([images[:24], overlay(images[:24], masks[:24].argmax(1))])
    save_png(path, grid(show, columns=12), about)
    return path.name


def run(setting: Setting) -> Report:
    report = Report(
        name="factorized-generate",
        title="Images and masks from noise (Yuan's thesis, table 2.5)",
        columns=(),
        paper=PAPER,
    )
    see = extractor(report, small=setting.scale == "tiny")
    fd, kid = f"fd_{see.name}", f"kid_{see.name}"
    report.columns = distance_columns(see)
    n = COUNTS[setting.scale]
    train_all(
        setting, [(name, {}) for name in ("segmenter", *dict.fromkeys(name for name, _ in ROWS.values()))]
    )
    for spec in setting.data:
        real = RealPictures.of(setting, spec, see)
        floor = real_floor(real.features, see, torch.Generator().manual_seed(0), n=n).summary()
        report.notes.append(
            f"{spec}: real against real scores {fd} {floor[fd]:.1f}, {kid} {floor[kid]:.5f} at {n} a side"
        )
        for seed in setting.seeds:
            judge, _ = trained(setting, "segmenter", spec, seed)
            for row, (name, controls) in ROWS.items():
                method, _ = trained(setting, name, spec, seed)
                if "region_guidance" in method.controls and not controls:
                    report.conditions["region_guidance"] = method.controls["region_guidance"].default
                if controls and method.controls["region_guidance"].default == 1:
                    continue  # the row above is that already
                images, found = sampled(method, n, seed, **controls)
                masks = found.get("masks")
                if masks is None:
                    assert isinstance(method, DDPM)
                    both = torch.cat([images_of(real.val, len(real.val)), images])
                    pool = ddpm_masks(method, both, 3, seed, scope="dataset")
                    of_val, masks = pool[: len(real.val)], pool[len(real.val) :]
                else:
                    of_val = read_masks(method, real.val, len(real.val))
                report.add(spec, row, real.figures(images, masks, of_val, judge))
                if seed == setting.seeds[0]:
                    unguided = "-unguided" if controls else ""
                    path = setting.pictures / f"factorized-generate-{file_name(spec)}-{name}{unguided}.png"
                    report.pictures.append(picture(path, images, masks, {"recipe": name, "seed": seed}))
        for row in [row for row in list(ROWS)[:2] if (spec, row) in report.rows]:
            ratios = {k: report.mean(spec, row, k) / report.mean(spec, "DDPM", k) for k in (fd, kid)}
            report.notes.append(
                f"{spec}, {row.strip()}: {ratios[fd]:.2f} of the DDPM's {fd} and {ratios[kid]:.2f} of its {kid} at "
                f"the same images seen (thesis, FID: 0.74 to 0.84)"
            )
    report.notes.append(
        "mask accuracy: share of pixels on which the masks that came with an image agree with a supervised "
        "segmenter run on it; foreground is assigned once, on real validation pictures"
    )
    if report.conditions.get("region_guidance", 1) != 1:
        report.notes.append("with region guidance the painter runs twice at each of the 25 steps")
    report.conditions |= setting.conditions(images=n, sampler=SAMPLED_BY)
    return report
