"""Figure 8 of CoFi-UCGen: four clusters on half a ring, ours and what learns from scratch."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pellucid.data.ring import CLUSTERS, ceiling
from pellucid.methods.base import Method
from pellucid.metrics.clustering import matched_bit_accuracy, nmi, purity
from pellucid.metrics.distribution import precision_recall_density_coverage
from pellucid.reproduce.harness import (
    Column,
    Report,
    Setting,
    bits_read,
    blank,
    codes_read,
    data_for,
    drawn,
    images_of,
    labels_of,
    sampled,
    train_all,
    trained,
)

ROWS = {
    "CoFi-UCGen": "cofi-ring",
    "ClusterGAN": "clustergan-ring",
    "Self-Cond GAN": "selfcond-ring",
    "MIC-GANs": "mic-ring",
    "InfoGAN (one-hot)": "infogan-ring",
}
NEAREST = 5
"""Neighbours of coverage, as in Naeem et al. (2020)."""
COUNTS = {"tiny": (100, 200), "cpu": (1000, 10_000), "gpu": (1000, 10_000), "paper": (1000, 10_000)}
"""Points on each side, real and generated; the more, the smaller the balls that have to be hit."""


def run(setting: Setting) -> Report:
    few, many = COUNTS[setting.scale]
    report = Report(
        name="cofi-ring",
        title="Points on half a ring (CoFi-UCGen, figure 8)",
        columns=(
            Column("coverage_few", f"coverage, {few:,}"),
            Column("coverage_many", f"coverage, {many:,}"),
            Column("purity", "purity"),
            Column("nmi", "NMI"),
            Column("bit_accuracy", "bit accuracy"),
            Column("read_back", "read back"),
            Column("radial_spread", "radial spread", "lower"),
        ),
    )
    rows = setting.chosen(ROWS)
    train_all(setting, [(name, {}) for name in rows.values()])
    for spec in setting.data:
        test = data_for(setting, spec, "test")
        points, clusters = images_of(test, many), labels_of(test, many)
        shown: dict[str, tuple[Tensor, Tensor]] = {"data": (points[:1000], clusters[:1000])}
        for seed in setting.seeds:
            for row, name in rows.items():
                method, made = trained(setting, name, spec, seed)
                generated, found = sampled(method, many, seed, batch=many)
                codes = codes_read(found)
                report.add(spec, row, figures(method, (points, clusters), (generated, codes), few))
                report.conditions |= {"steps": made.train.steps, "batch_size": made.train.batch_size}
                if seed == setting.seeds[0]:
                    shown[row] = generated[:1000], codes[:1000]
        report.pictures.append(plot(setting.pictures / "cofi-ring.png", shown))
        ours, *others = ROWS
        others = [row for row in others if row in rows]
        if ours not in rows or not others:
            continue
        best = max(others, key=lambda row: report.mean(spec, row, "coverage_few"))
        report.notes.append(
            f"coverage of {few:,} at the end of training: ours {report.mean(spec, ours, 'coverage_few'):.3f}, "
            f"best baseline {report.mean(spec, best, 'coverage_few'):.3f} ({best})"
        )
    report.notes.append(
        f"no reading can have a purity above {ceiling():.4f}: the clusters overlap (the integral over the circle of "
        f"the largest of the four densities). Coverage: share of the real points whose ball, which reaches to the "
        f"{NEAREST}th nearest real point, holds a generated one. All figures are of the averaged weights at the last "
        f"step. Bit accuracy: clusters get the codes that suit the reading best, one each"
    )
    report.conditions |= setting.conditions(nearest=NEAREST, points=many)
    return report


def figures(
    method: Method, real: tuple[Tensor, Tensor], made: tuple[Tensor, Tensor], few: int
) -> dict[str, float]:
    """Every column, of real points with their clusters and generated points with their codes."""
    (points, clusters), (generated, codes) = real, made
    rng = torch.Generator().manual_seed(0)
    read = method.read(points, rng)
    found = codes_read(read)
    again = codes_read(method.read(generated, rng))
    flat = lambda x: x.flatten(1)
    covered = [
        precision_recall_density_coverage(flat(points[:n]), flat(generated[:n]), NEAREST)["coverage"]
        for n in (few, len(points))
    ]
    return {
        "coverage_few": covered[0],
        "coverage_many": covered[1],
        "purity": purity(found, clusters),
        "nmi": nmi(found, clusters),
        "bit_accuracy": matched_bit_accuracy(bits_read(read, CLUSTERS), clusters).accuracy,
        "read_back": (again == codes).float().mean().item(),
        "radial_spread": (flat(generated).norm(dim=1) - 1).square().mean().sqrt().item(),
    }


def plot(path: Path, shown: dict[str, tuple[Tensor, Tensor]]) -> str:
    """A panel for the data and for each method, points coloured by cluster or code; returns the file's name."""
    figure = blank(3 * len(shown), 2.4)
    for i, (name, (points, codes)) in enumerate(shown.items()):
        axes = figure.add_subplot(1, len(shown), i + 1)
        x, y = points.flatten(1).T
        axes.scatter(x, y, c=codes, s=3, cmap="tab10", vmin=0, vmax=9)
        axes.set(title=name, xlim=(-1.4, 1.4), ylim=(-0.8, 1.4), xticks=[], yticks=[], aspect="equal")
    return drawn(figure, path)
