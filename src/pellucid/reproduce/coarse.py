"""Tables I and II of CoFi-UCGen, coarse part: pictures under a code, and the code as an unsupervised class."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pellucid.methods.base import Method
from pellucid.metrics.clustering import chance_purity, kmeans, nmi, purity
from pellucid.metrics.distribution import Extractor, compare, features, inception_score, real_floor
from pellucid.reproduce.generate import SAMPLED_BY, extractor
from pellucid.reproduce.harness import (
    Column,
    Report,
    Setting,
    codes_read,
    data_for,
    file_name,
    images_of,
    labels_of,
    read,
    sampled,
    train_all,
    trained,
)
from pellucid.train.preview import grid, save_png

COUNTS = {"tiny": 16, "cpu": 500, "gpu": 5000, "paper": 5000}
"""Pictures generated, and real ones on the other side; the paper takes 5,000."""
READ = {"tiny": 40, "cpu": 2000, "gpu": 5000, "paper": 5000}
"""Test pictures whose codes are held against their classes."""
K = 32
"""Codes of the recipes at every scale but tiny; clusters of k-means."""


@dataclass(frozen=True, kw_only=True)
class Row:
    recipe: str
    changed: Mapping[str, Any] | None = None
    """Fields of its config that are not the recipe's."""
    controls: Mapping[str, Any] | None = None
    """How it is sampled."""


GAN = "  its GAN alone"
"""Its codes are those of the rows with a diffusion, which is trained after them."""
ROWS = {
    "CoFi-UCGen (Noise)": Row(recipe="cofi-coarse", controls={"codes_from": "noise"}),
    "CoFi-UCGen (Repar.)": Row(recipe="cofi-coarse", controls={"codes_from": "pictures"}),
    GAN: Row(recipe="cofi-gan"),
    "  with a mixture for bits": Row(recipe="cofi-gan-mixture"),
    "  with one-hot for bits": Row(recipe="cofi-gan-onehot"),
    "ClusterGAN": Row(recipe="clustergan"),
    "Self-Cond GAN": Row(recipe="selfcond"),
    "MIC-GANs": Row(recipe="mic"),
    "InfoGAN (one-hot)": Row(recipe="infogan"),
    "IC-GAN": Row(recipe="icgan"),
    "SG-DM, own SimCLR": Row(recipe="selfguided"),
}
PAPER = {
    "CoFi-UCGen (Noise)": {"FID": "16.17", "purity": ".3045", "NMI": ".5147 (Flowers)"},
    "CoFi-UCGen (Repar.)": {"FID": "14.63 (Flowers)"},
    "  with a mixture for bits": {"FID": "95.42", "purity": ".0258", "NMI": ".1381 (CUB)"},
    "  with one-hot for bits": {"FID": "17.52", "purity": ".0065", "NMI": ".0232 (CUB)"},
    "ClusterGAN": {"FID": "39.81", "purity": ".0902", "NMI": ".3606 (Flowers)"},
    "Self-Cond GAN": {"FID": "45.88", "purity": ".1409", "NMI": ".3228 (Flowers)"},
    "MIC-GANs": {"FID": "65.84", "purity": ".0564", "NMI": ".2587 (Flowers)"},
    "IC-GAN": {"FID": "72.48 (Flowers)"},
    "SG-DM, own SimCLR": {"FID": "33.86", "purity": ".0761", "NMI": ".1282 (Flowers)"},
}


@dataclass(frozen=True, kw_only=True)
class Judge:
    """What the pictures and the codes of one data set are held against."""

    see: Extractor
    real: Tensor
    """Features of training pictures, twice as many as are generated: one half is for the floor."""
    test: Tensor
    labels: Tensor
    """Test pictures and their classes."""

    @classmethod
    def of(cls, setting: Setting, spec: str, see: Extractor) -> Judge:
        n, test = COUNTS[setting.scale], data_for(setting, spec, "test")
        return cls(
            see=see,
            real=features(see, images_of(data_for(setting, spec, "train"), 2 * n)),
            test=images_of(test, READ[setting.scale]),
            labels=labels_of(test, READ[setting.scale]),
        )

    def pictures(self, images: Tensor) -> dict[str, float]:
        """Distances of generated pictures from real ones, and their inception score where there are classes."""
        seen = features(self.see, images)
        scores = compare(self.real[: len(images)], seen, self.see, nearest=3).summary()
        found = {k: v for k, v in scores.items() if isinstance(v, float) and math.isfinite(v)}
        probabilities = getattr(self.see, "probabilities", None)
        if probabilities is not None:
            # in no particular order: the score is of parts, and pictures of one condition come together
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
            found[f"is_{self.see.name}"] = inception_score(features(probabilities, images[order]))[0]
        return found

    def codes(self, codes: Tensor) -> dict[str, float]:
        """How codes read in the test pictures go with their classes."""
        rng = torch.Generator().manual_seed(0)
        return {
            "purity": purity(codes, self.labels),
            "chance_purity": chance_purity(codes, self.labels, rng),
            "nmi": nmi(codes, self.labels),
            "codes_used": float(len(codes.unique())),
        }

    def read_by(self, method: Method) -> dict[str, float]:
        """The same for a method that reads codes; nothing for one that does not."""
        if not {"bits", "code"} & set(method.readouts):
            return {}
        rng = torch.Generator().manual_seed(0)
        parts = [codes_read(read(method, part, rng)) for part in self.test.split(250)]
        return self.codes(torch.cat(parts))

    def floor(self, report: Report, spec: str, n: int) -> None:
        fd, kid = f"fd_{self.see.name}", f"kid_{self.see.name}"
        scores = real_floor(self.real, self.see, torch.Generator().manual_seed(0), n=n).summary()
        report.notes.append(
            f"{spec}: real against real scores {fd} {scores[fd]:.1f}, {kid} {scores[kid]:.5f} at {n} a side"
        )


def columns(see: Extractor) -> tuple[Column, ...]:
    return (
        Column(f"fd_{see.name}", f"fd_{see.name}", "lower"),
        Column(f"kid_{see.name}", f"kid_{see.name}", "lower"),
        Column(f"is_{see.name}", f"is_{see.name}"),
        Column("purity", "purity"),
        Column("chance_purity", "by chance"),
        Column("nmi", "NMI"),
        Column("codes_used", "codes used"),
    )


def pixel_kmeans(setting: Setting, spec: str, judge: Judge, seed: int, k: int) -> dict[str, float]:
    """k-means of pixels, fitted on training pictures."""
    pixels = images_of(data_for(setting, spec, "train"), 2 * READ[setting.scale]).flatten(1)
    found = kmeans(pixels, k, torch.Generator().manual_seed(seed))
    return judge.codes(found.predict(judge.test.flatten(1)))


def fill(
    report: Report,
    setting: Setting,
    rows: Mapping[str, Row],
    see: Extractor,
    more: Callable[[str, str, int, Method], dict[str, float]] = lambda spec, row, seed, method: {},
) -> None:
    """Train and score every row that is wanted on every data set; `more` are figures beyond those of `columns`."""
    n, rows = COUNTS[setting.scale], setting.chosen(rows)
    train_all(setting, list({r.recipe: (r.recipe, dict(r.changed or {})) for r in rows.values()}.values()))
    for spec in setting.data:
        judge = Judge.of(setting, spec, see)
        judge.floor(report, spec, n)
        for seed in setting.seeds:
            for row, how in rows.items():
                method, made = trained(setting, how.recipe, spec, seed, changed=dict(how.changed or {}))
                images, _ = sampled(method, n, seed, **how.controls or {})
                scores = judge.pictures(images) | judge.read_by(method)
                report.add(spec, row, scores | more(spec, row, seed, method))
                if seed == setting.seeds[0]:
                    report.pictures.append(sheet(report.name, setting, spec, row, method, how))
                    first = made.train.of(method.stages()[0].name)
                    report.conditions |= {"steps": first.steps, "batch_size": first.batch_size}
            k = K if setting.scale != "tiny" else 4
            report.add(spec, f"k-means of pixels, {k}", pixel_kmeans(setting, spec, judge, seed, k))
    report.conditions |= setting.conditions(
        size=setting.size, images=n, read=READ[setting.scale], sampler=SAMPLED_BY
    )


def sheet(table: str, setting: Setting, spec: str, row: str, method: Method, how: Row) -> str:
    """Eight codes across, eight pictures of each down, of the same noise in a row; returns the file's name."""
    controls, parts = dict(how.controls or {}), []
    for code in range(8):
        if "bits" in method.controls:
            n = int(method.controls["bits"].high or 0)
            given: dict[str, Any] = {"bits": "".join(str(code >> k & 1) for k in range(n))}
        elif "code" in method.controls:
            given = {"code": code % (1 + int(method.controls["code"].high or 0))}
        else:
            given = {}
        parts.append(sampled(method, 8, 0, **controls | given)[0])
    name = re.sub(r"[^a-z0-9]+", "-", row.lower()).strip("-")
    path = setting.pictures / f"{table}-{file_name(spec)}-{name}.png"
    save_png(
        path, grid(torch.stack(parts, 1).flatten(0, 1), columns=8), {"columns": "codes 0 to 7", "row": row}
    )
    return path.name


def run(setting: Setting) -> Report:
    report = Report(
        name="cofi-coarse",
        title="Pictures under a code, and codes as classes (CoFi-UCGen, tables I and II, coarse)",
        columns=(),
        paper=PAPER,
    )
    see = extractor(report, small=setting.scale == "tiny")
    report.columns = columns(see)
    fill(report, setting, ROWS, see)
    bits = next((row for row in ("CoFi-UCGen (Noise)", GAN) if row in setting.chosen(ROWS)), "")
    rivals = ["ClusterGAN", "  with a mixture for bits", "  with one-hot for bits"]
    for spec in setting.data if bits else ():
        pixels = next(row for d, row in report.rows if d == spec and row.startswith("k-means"))
        for key, title in (("purity", "purity"), ("nmi", "NMI")):
            there = [row for row in (pixels, *rivals) if (spec, row) in report.rows]
            theirs = {row.strip(): report.mean(spec, row, key) for row in there}
            ours = report.mean(spec, bits, key)
            above = "above all of" if all(ours > v for v in theirs.values()) else "not above all of"
            said = ", ".join(f"{row} {value:.3f}" for row, value in theirs.items())
            report.notes.append(f"{spec}, {title}: ours {ours:.3f}, {above} {said}")
    report.notes.append(
        "purity: the share of test pictures whose code's most frequent class is theirs; by chance: the same with the "
        "classes shuffled. Every method is trained for the same steps on batches of the same size, and no class is "
        "used but for scoring; the diffusions of CoFi-UCGen and SG-DM have their own steps beyond"
    )
    return report
