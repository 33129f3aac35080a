"""Tables 2.1 to 2.4 of Yuan's thesis: segmentation of pictures never seen, with no labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pellucid.methods.baselines import segmenters
from pellucid.methods.baselines.ddpm import DDPM
from pellucid.methods.kernels import explain
from pellucid.metrics.segmentation import foreground_scores, oracle_assignment, score
from pellucid.reproduce.harness import (
    Column,
    Report,
    Setting,
    both_protocols,
    data_for,
    file_name,
    images_of,
    read_masks,
    train_all,
    trained,
    truth_of,
)
from pellucid.train.preview import grid, overlay, save_png

LIMITS = {"tiny": (16, 16), "cpu": (200, 400), "gpu": (1000, 2000), "paper": (1000, 5000)}
"""(validation, test) pictures."""

COLUMNS = (
    Column("dataset_iou", "IoU, one assignment"),
    Column("dataset_dice", "Dice"),
    Column("dataset_accuracy", "accuracy"),
    Column("oracle_iou", "IoU, oracle"),
    Column("smallest_region", "smallest region"),
)
PAPER = {
    "factorized (default)": {},
    "factorized-shared (thesis)": {"IoU": "56.1 CUB, 79.7 Flower", "accuracy": "89.6, 90.1"},
    "GrabCut (told a box)": {"IoU": "36.0 CUB, 69.2 Flower"},
    "DDPM features, k-means": {"mean IoU": "69.3 CelebA"},
    "supervised U-Net (ceiling)": {"mean IoU": "90.2 CelebA"},
}
FORMS = {
    "factorized (default)": "factorized",
    "factorized-shared (thesis)": "factorized-shared",
    "factorized-code (region codes)": "factorized-code",
}
LABEL_FREE = ("Otsu", "k-means, colour + place", "border rule", "centre box", "DDPM features, k-means")


_PLACE = (0.125, 0.25, 0.5, 1.0)
BASELINES: dict[str, tuple[Callable[..., Tensor], list[dict[str, float]]]] = {
    "Otsu": (lambda x, rng, **c: segmenters.otsu(x, **c), [{"k": k} for k in (2, 3)]),
    "k-means, colour + place": (
        lambda x, rng, **c: segmenters.colour_position_kmeans(x, 3, rng, **c),
        [{"position_weight": w} for w in _PLACE],
    ),
    "border rule": (
        segmenters.border_rule,
        [{"k": k, "position_weight": w} for k in (2, 3, 5) for w in _PLACE],
    ),
    "centre box": (
        lambda x, rng, **c: segmenters.centre_box(x, **c),
        [{"side": side} for side in (0.4, 0.5, 0.6, 0.7, 0.8)],
    ),
}
"""What learns nothing, (images, rng, **constants) -> masks, and the constants that it may have."""


def chosen_on_validation(
    row: str, val: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], seed: int
) -> tuple[dict[str, float], str]:
    """(pictures, truth) -> a baseline's figures by both protocols on the test pictures, and its constants in words.

    Each protocol gets the constants that are best by it on the validation pictures, where ours were chosen too.
    """
    segment, constants = BASELINES[row]

    def found(i: int, pictures: Tensor) -> Tensor:
        return segment(pictures, rng=torch.Generator().manual_seed(seed), **constants[i])

    on_val = [(found(i, val[0]), val[1]) for i in range(len(constants))]
    tried = [both_protocols(masks, masks) for masks in on_val]
    fixed, oracle = (
        max(range(len(tried)), key=lambda i: tried[i][key]) for key in ("dataset_iou", "oracle_iou")
    )
    on_test = {i: both_protocols(on_val[i], (found(i, test[0]), test[1])) for i in {fixed, oracle}}
    best = {key: value for key, value in on_test[oracle].items() if key.startswith("oracle")}
    words = [" ".join(f"{k}={v:g}" for k, v in constants[i].items()) for i in dict.fromkeys((fixed, oracle))]
    return on_test[fixed] | best, ", by the oracle ".join(words)


def ddpm_masks(method: DDPM, images: Tensor, k: int, seed: int, *, scope: str) -> Tensor:
    """k-means of a DDPM's decoder features at steps 50, 150 and 250 (the thesis' DatasetDDPM-unsup)."""
    rng = torch.Generator().manual_seed(seed)
    device = next(method.parameters()).device
    features = torch.cat([method.features(part.to(device), rng).cpu() for part in images.split(50)])
    return segmenters.feature_kmeans(features, k, rng, scope=scope)  # type: ignore[arg-type]


def run(setting: Setting) -> Report:
    report = Report(
        name="factorized-segment",
        title="Segmentation without labels (Yuan's thesis, tables 2.1 to 2.4)",
        columns=COLUMNS,
        paper=PAPER,
    )
    n_val, n_test = LIMITS[setting.scale]
    train_all(setting, [(name, {}) for name in ("ddpm", *FORMS.values(), "segmenter")])
    for spec in setting.data:
        val, test = (data_for(setting, spec, split) for split in ("val", "test"))
        xv, yv = images_of(val, n_val), truth_of(val, n_val)
        xt, yt = images_of(test, n_test), truth_of(test, n_test)
        shown: dict[str, Tensor] = {}
        choices: list[str] = []
        for seed in setting.seeds:
            for row in BASELINES:
                figures, constants = chosen_on_validation(row, (xv, yv), (xt, yt), seed)
                report.add(spec, row, figures)
                choices.append(f"{row} {constants} (seed {seed})")

            ddpm, _ = trained(setting, "ddpm", spec, seed)
            assert isinstance(ddpm, DDPM)
            # one k-means over the data set for its one assignment, one an image for the oracle: its best of each
            together = ddpm_masks(ddpm, torch.cat([xv, xt]), 3, seed, scope="dataset")
            figures = both_protocols((together[: len(xv)], yv), (together[len(xv) :], yt))
            single = ddpm_masks(ddpm, xt, 3, seed, scope="image")
            best = score(single, yt, oracle_assignment(single, yt)).summary()
            figures |= {k: max(v, figures[k]) for k, v in best.items()}
            report.add(spec, "DDPM features, k-means", figures)

            for row, recipe in FORMS.items():
                method, made = trained(setting, recipe, spec, seed)
                mv, mt = read_masks(method, val, n_val), read_masks(method, test, n_test)
                report.add(spec, row, both_protocols((mv, yv), (mt, yt)))
                if recipe == "factorized":
                    plain = [read_masks(method, d, n, refine=0) for d, n in ((val, n_val), (test, n_test))]
                    report.add(spec, "  its network alone", both_protocols((plain[0], yv), (plain[1], yt)))
                    alone = explain(xv, 3), explain(xt, 3)
                    report.add(
                        spec, "  its colour kernels alone", both_protocols((alone[0], yv), (alone[1], yt))
                    )
                if seed == setting.seeds[0]:
                    shown[row] = mt
                    report.conditions.setdefault("steps", made.train.steps)
                    report.conditions.setdefault("batch_size", made.train.batch_size)

            segmenter, _ = trained(setting, "segmenter", spec, seed)
            ceiling = foreground_scores(read_masks(segmenter, test, n_test).argmax(1) == 1, yt)
            report.add(spec, "supervised U-Net (ceiling)", _fixed(ceiling))
        try:
            report.add(
                spec,
                "GrabCut (told a box)",
                _fixed(foreground_scores(segmenters.grabcut(xt)[:, 1] > 0.5, yt)),
            )
        except ImportError as error:
            report.notes.append(f"GrabCut left out: {error}")
        report.pictures.append(_picture(setting.pictures, spec, xt, yt, shown))
        _compare(report, spec)
        report.notes.append(f"{spec}, constants chosen on validation pictures: {'; '.join(choices)}")
    report.conditions |= setting.conditions(size=setting.size)
    report.notes.append(
        "IoU, Dice and accuracy under one assignment: which regions are foreground is chosen once, on validation "
        "pictures, and used for all test pictures. Oracle: chosen for each test picture with its truth. The "
        "supervised ceiling and GrabCut need no assignment; GrabCut is told a box of 80% of the frame. The DDPM's "
        "features are clustered over validation and test pictures together, and for the oracle also one by one."
    )
    return report


def _fixed(scores) -> dict[str, float]:
    """Scores that need no assignment use no picture's truth, so they stand in the data set's columns."""
    return {key.replace("fixed_", "dataset_"): value for key, value in scores.summary().items()}


def _compare(report: Report, spec: str) -> None:
    """State plainly how the default fares against the best label-free baseline under each protocol."""
    for key, title in (("dataset_iou", "one assignment"), ("oracle_iou", "oracle")):
        best = max(LABEL_FREE, key=lambda row: report.mean(spec, row, key))
        theirs, ours = report.mean(spec, best, key), report.mean(spec, "factorized (default)", key)
        teacher = report.mean(spec, "  its colour kernels alone", key)
        report.notes.append(
            f"{spec}, {title}: default {ours:.3f}, best label-free baseline {theirs:.3f} ({best}): "
            f"{ours / max(theirs, 1e-9):.2f}x, and {ours / max(teacher, 1e-9):.2f}x its own teacher, the colour kernels"
        )


def _picture(
    out: Path, spec: str, images: Tensor, truth: Tensor, shown: dict[str, Tensor], n: int = 12
) -> str:
    """Rows: test pictures, the truth, then each method's regions."""
    rows = [images[:n], overlay(images[:n], truth[:n].long())]
    rows += [overlay(images[:n], masks[:n].argmax(1)) for masks in shown.values()]
    path = out / f"factorized-segment-{file_name(spec)}.png"
    save_png(path, grid(torch.cat(rows), columns=n), {"rows": "picture, truth, " + ", ".join(shown)})
    return path.name
