"""Table III of CoFi-UCGen: what an encoder's words are worth as an unsupervised classification."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid.methods.base import Method
from pellucid.metrics.clustering import kmeans
from pellucid.metrics.distribution import features
from pellucid.reproduce.coarse import READ, Judge, K
from pellucid.reproduce.generate import extractor
from pellucid.reproduce.harness import (
    Column,
    Report,
    Setting,
    data_for,
    images_of,
    read,
    train_all,
    trained,
)

PAPER = {
    "CoFi-UCGen, its bits": {"purity": ".3045 Flowers, .0517 CUB", "NMI": ".5147, .2516"},
    "ImageNet features": {"purity": ".2071 Flowers (ResNet-50)", "NMI": ".3296"},
    "SimCLR, trained here": {"purity": ".0761 Flowers (ResNet-50)", "NMI": ".1282"},
}


def run(setting: Setting) -> Report:
    report = Report(
        name="cofi-representation",
        title="Encoders as unsupervised classifiers (CoFi-UCGen, table III)",
        columns=(
            Column("purity", "purity"),
            Column("chance_purity", "by chance"),
            Column("nmi", "NMI"),
            Column("dimensions", "dimensions"),
        ),
        paper=PAPER,
    )
    see = extractor(report, small=setting.scale == "tiny")
    k, n = (4, 40) if setting.scale == "tiny" else (K, 2 * READ[setting.scale])
    train_all(setting, [("cofi-gan", {}), ("cofi-contrast", {})])
    for spec in setting.data:
        judge = Judge.of(setting, spec, see)
        seen = images_of(data_for(setting, spec, "train"), n)
        for seed in setting.seeds:
            words: dict[str, Callable[[Tensor], Tensor]] = {"pixels": lambda x: x.flatten(1)}
            if setting.scale != "tiny":
                words["ImageNet features"] = lambda x: F.normalize(features(see, x))
            for row, name in (("SimCLR, trained here", "cofi-contrast"), ("CoFi-UCGen, k-means", "cofi-gan")):
                method, made = trained(setting, name, spec, seed)
                words[row] = partial(coarse_words, method)
            for row, say in words.items():
                fitted, tested = (torch.cat([say(part) for part in x.split(250)]) for x in (seen, judge.test))
                found = kmeans(fitted, k, torch.Generator().manual_seed(seed)).predict(tested)
                report.add(spec, row, judge.codes(found) | {"dimensions": float(fitted.shape[1])})
            report.add(
                spec, "CoFi-UCGen, its bits", judge.read_by(method) | {"dimensions": float(tested.shape[1])}
            )
            report.conditions |= {"steps": made.train.of("coarse").steps}
    report.notes.append(
        f"k-means with {k} clusters, as many as there are codes, fitted on {n} training pictures; all features but "
        f"pixels have length 1. ImageNet features are learned from labels, of other pictures"
    )
    report.conditions |= setting.conditions(size=setting.size, read=READ[setting.scale])
    return report


def coarse_words(method: Method, x: Tensor) -> Tensor:
    """What a coarse encoder says of pictures, (B, d), of length 1: it was contrasted by angles."""
    return F.normalize(read(method, x, torch.Generator().manual_seed(0))["coarse"])
