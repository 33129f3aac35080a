"""Table 3.2 and figure 3.11 of Yuan's thesis, how many candidates there are and how much their classifier weighs; and
what each of the things does that the thesis has not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pellucid.methods.lift3d.method import Lift3D, Lift3DConfig
from pellucid.recipes import DataSpec, recipe
from pellucid.reproduce.around import AUTOENCODER, PLAIN
from pellucid.reproduce.harness import Report, Setting, data_for, file_name, train_all, trained
from pellucid.reproduce.views import camera_figure, changed_for, columns, photographs
from pellucid.view_scores import Found, found_by_lift, scored

CANDIDATES = (4, 8, 12)
WEIGHTS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
USUAL = (12, 0.1)
"""The candidates, and the weight, that the recipe has."""
ALSO: dict[str, tuple[str, dict[str, Any]]] = {
    "all views teach the field": ("lift3d", PLAIN | {"field_until": 1.0}),
    "noise of all times alike": ("lift3d", PLAIN | {"field_until": 1.0, "low_share": 0.0}),
    AUTOENCODER: ("lift3d-clean", PLAIN),
    "no noise, views imagined": ("lift3d-clean", {}),
    "views imagined (the recipe)": ("lift3d", {}),
}
"""Rows that take away what is ours beside, or noise, or add imagined views."""
PAPER = {
    "4 candidates": {"poses": "do not converge (Lego, drums)"},
    "8 candidates": {"poses": "do not converge (Lego, drums)"},
    "lambda 1": {"classifier": "certain from the start, poses are not found (car)"},
}


def run(setting: Setting) -> Report:
    report = Report(
        name="lift3d-ablation",
        title="Candidates, lambda (Yuan's thesis, table 3.2 and figure 3.11), and what is ours",
        columns=columns(None),
        paper=PAPER,
    )
    heads: dict[str, tuple[int, float]] = {f"{n} candidates": (n, USUAL[1]) for n in CANDIDATES}
    heads |= {f"lambda {weight:g}": (USUAL[0], weight) for weight in WEIGHTS if weight != USUAL[1]}
    chosen = setting.chosen(dict.fromkeys([*heads, *ALSO]))
    held_of = {spec: photographs(setting, spec, "test") for spec in setting.data}
    for spec in setting.data:
        if config_of(setting, spec).poses.kind != "candidates":
            raise ValueError(
                f"{spec} is a scene that cameras look into: it has one camera a picture, no candidates"
            )
    networks = {
        row: ALSO[row] if row in ALSO else ("lift3d", changed_to(setting, *heads[row])) for row in chosen
    }
    # what collapses belongs to the table
    networks = {row: (name, changed_for(name) | changed) for row, (name, changed) in networks.items()}
    train_all(setting, networks.values())
    for spec in setting.data:
        train, held = photographs(setting, spec, "train"), held_of[spec]
        for seed in setting.seeds:
            found: dict[str, Found] = {}
            for row, (name, changed) in networks.items():
                method, _ = trained(setting, name, spec, seed, changed=changed)
                assert isinstance(method, Lift3D)
                found[row] = found_by_lift(method, train, held, seed)
                report.add(spec, row, scored(found[row], train, held))
            if seed == setting.seeds[0]:
                few = {row: f for row, f in found.items() if row.endswith("candidates")}
                if few:
                    report.pictures.append(
                        camera_figure(setting, f"lift3d-ablation-{file_name(spec)}", few, train)
                    )
    report.notes.append(
        f"all rows have {USUAL[0]} candidates, lambda {USUAL[1]} and nothing imagined, but for what they say"
    )
    report.conditions |= setting.conditions(size=setting.size)
    return report


def changed_to(setting: Setting, candidates: int, weight: float) -> dict[str, Any]:
    """Fields of the recipe's config that are others. Nothing is imagined: that has a classifier of its own."""
    if (candidates, weight) == USUAL:
        return dict(PLAIN)
    config = config_of(setting, setting.data[0])
    return PLAIN | {"poses": replace(config.poses, candidates=candidates, score_weight=weight)}


def config_of(setting: Setting, spec: str) -> Lift3DConfig:
    """That of the recipe as it stands, for some data."""
    data = DataSpec.of("lift3d", spec, data_for(setting, spec, "train"))
    config = recipe("lift3d", setting.scale, data).config
    assert isinstance(config, Lift3DConfig)
    return config
