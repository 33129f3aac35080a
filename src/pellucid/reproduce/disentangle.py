"""Table 1 of DiffuseGAE: which attribute can be read from which part of a code, and figures 2 and 5 beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pellucid.methods.base import Method
from pellucid.metrics.attributes import chance, dci, mig, perplexity_matrix, sap
from pellucid.recipes.gae import parts
from pellucid.reproduce.attributes import (
    HELD_OUT,
    Pictures,
    codes_of,
    opened,
    parts_of,
    without_held_out,
)
from pellucid.reproduce.harness import (
    Column,
    Report,
    Setting,
    blank,
    data_for,
    drawn,
    file_name,
    train_all,
    trained,
)
from pellucid.types import Attribute

READ = {"tiny": 100, "cpu": 2000, "gpu": 5000, "paper": 5000}
"""Test pictures whose codes are read: four fifths fit the linear classifiers, one fifth scores them."""
ROWS = {"DiffuseGAE": "gae", "Diff-AE": "diffae", "GZS-Net": "gzsnet", "AE + DS": "ae-ds"}
PAPER = {
    "DiffuseGAE": {"diagonal": ".96, 1.0, .99", "others": ".019 to .168 (iLab-20M)"},
    "Diff-AE": {"diagonal": ".90, .91, .93"},
    "GZS-Net": {"diagonal": ".93, 1.0, .97"},
    "AE + DS": {"diagonal": ".97, 1.0, .99"},
}
OF_CODES = (
    Column("own", "own, least"),
    Column("leak", "others over 1/|A|, most", "lower"),
    Column("mig", "MIG"),
    Column("dci_disentanglement", "DCI D"),
    Column("dci_completeness", "DCI C"),
    Column("dci_informativeness", "DCI I"),
    Column("sap", "SAP"),
)


def of_parts(held: list[Tensor], values: Tensor, attributes: tuple[Attribute, ...]) -> Tensor:
    """(parts, attributes), the accuracy with which each is read from each."""
    return perplexity_matrix(held, values, [len(a.values) for a in attributes])


def spread(matrix: Tensor, floor: Tensor) -> dict[str, float]:
    """The least of what is read from its own part, and the most, above 1/|A|, of what is read from another's."""
    others = (matrix - floor)[~torch.eye(len(matrix), dtype=torch.bool)]
    return {"own": matrix.diagonal().min().item(), "leak": others.abs().max().item() if len(others) else 0.0}


def figures(
    method: Method, pictures: Pictures, attributes: tuple[Attribute, ...], scale: Any
) -> tuple[Tensor, dict]:
    """The matrix, and the figures of the whole code."""
    codes = codes_of(method, pictures.x)
    matrix = of_parts(parts_of(method, codes, parts(scale, len(attributes))), pictures.values, attributes)
    floor = chance(pictures.values, [len(a.values) for a in attributes]).uniform
    found = dci(codes, pictures.values)
    of_codes = {
        "mig": mig(codes, pictures.values).mean,
        "dci_disentanglement": found.disentanglement,
        "dci_completeness": found.completeness,
        "dci_informativeness": found.informativeness.mean().item(),
        "sap": sap(codes, pictures.values).mean,
    }
    return matrix, spread(matrix, floor) | of_codes


def maps(
    method: Method, pictures: Pictures, attributes: tuple[Attribute, ...], scale: Any, title: str
) -> Any:
    """t-SNE of the whole code and of each part, coloured by each attribute (figures 2 and 5)."""
    from sklearn.manifold import TSNE

    n = min(600, len(pictures.x))
    codes = codes_of(method, pictures.x[:n])
    rows = [codes, *parts_of(method, codes, parts(scale, len(attributes)))]
    figure = blank(2.2 * len(attributes), 2.2 * len(rows))
    axes = figure.subplots(len(rows), len(attributes), squeeze=False)
    for row, part in enumerate(rows):
        flat = TSNE(perplexity=min(30, n // 4), init="pca", random_state=0).fit_transform(part.numpy())
        for column, attribute in enumerate(attributes):
            place = axes[row, column]
            place.scatter(*flat.T, c=pictures.values[:n, column].numpy(), s=3, cmap="tab20")
            place.set_xticks([])
            place.set_yticks([])
            name = "whole code" if row == 0 else f"part {attributes[row - 1].name}"
            place.set_title(f"{name}, by {attribute.name}", fontsize=7)
    figure.suptitle(title, fontsize=9)
    return figure


def run(setting: Setting) -> Report:
    setting = without_held_out(setting)
    report = Report(
        name="gae-disentangle",
        title="Which attribute each part of a code holds (DiffuseGAE, table 1)",
        columns=(),
        paper=PAPER,
    )
    rows = setting.chosen(ROWS)
    named: dict[str, Column] = {}
    found = {}
    for spec in setting.data:  # what is wrong with the data is said before anything is trained
        attributes = opened(setting, spec)
        found[spec] = data_for(setting, spec, "test"), attributes
        named |= {a.name: Column(f"reads_{a.name}", a.name) for a in attributes}
    report.columns = (*named.values(), *OF_CODES)
    train_all(setting, [(recipe, {}) for recipe in rows.values()])
    for spec in setting.data:
        test, attributes = found[spec]
        pictures = Pictures.of(test, READ[setting.scale])
        floor = chance(pictures.values, [len(a.values) for a in attributes]).uniform
        matrices: dict[str, list[np.ndarray]] = {}
        for seed in setting.seeds:
            for row, recipe in rows.items():
                method, made = trained(setting, recipe, spec, seed)
                matrix, more = figures(method, pictures, attributes, setting.scale)
                matrices.setdefault(row, []).append(matrix.numpy())
                for part, cells in zip(attributes, matrix.tolist(), strict=True):
                    read = {f"reads_{a.name}": v for a, v in zip(attributes, cells, strict=True)}
                    report.add(spec, f"{row}: part {part.name}", read)
                report.add(spec, row, more)
                if seed == setting.seeds[0] and row in ("DiffuseGAE", "Diff-AE") and setting.scale != "tiny":
                    path = setting.pictures / f"gae-disentangle-{file_name(spec)}-{recipe}.png"
                    title = f"{row} on {spec}"
                    report.pictures.append(
                        drawn(maps(method, pictures, attributes, setting.scale, title), path)
                    )
                if recipe == "gae":
                    steps = {s.name: made.train.of(s.name).steps for s in method.stages()}
                    report.conditions |= {"steps": steps}
        report.add(
            spec,
            "by chance, 1/|A|",
            {f"reads_{a.name}": v.item() for a, v in zip(attributes, floor, strict=True)},
        )
        report.notes += verdicts(spec, {k: np.mean(v, 0) for k, v in matrices.items()}, floor.numpy())
    report.notes.append(
        "accuracy of a linear classifier that reads an attribute (column) from a part (row); 1 on the diagonal and "
        "1/|A| elsewhere would be best. Diff-AE's code has no parts and is cut in the proportions of ours. A share of "
        f"{HELD_OUT:g} of the combinations of values is in no training picture, and among the test pictures"
    )
    report.conditions |= setting.conditions(size=setting.size, read=READ[setting.scale], held_out=HELD_OUT)
    return report


def verdicts(spec: str, matrices: dict[str, np.ndarray], floor: np.ndarray) -> list[str]:
    """How ours compares with each of the others, cell by cell, of the means over seeds."""
    if "DiffuseGAE" not in matrices:
        return []
    own = np.eye(len(floor), dtype=bool)
    error = {row: np.where(own, 1 - m, np.abs(m - floor)) for row, m in matrices.items()}
    ours = error["DiffuseGAE"]
    leak = f", others within {ours[~own].max():.3f} of 1/|A|" if (~own).any() else ""
    said = [f"{spec}: DiffuseGAE's diagonal is at least {1 - ours[own].max():.3f}{leak}"]
    for row, theirs in error.items():
        if row != "DiffuseGAE":
            better, equal = int((ours < theirs).sum()), int((ours == theirs).sum())
            said.append(
                f"{spec}: nearer the best than {row} in {better} of {ours.size} cells, equal in {equal}; mean diagonal "
                f"{1 - ours[own].mean():.3f} against {1 - theirs[own].mean():.3f}"
            )
    return said
