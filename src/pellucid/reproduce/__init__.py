"""The papers' tables, made again: ours and the baselines on the same data, budget and seeds, side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pellucid.recipes import Scale
    from pellucid.reproduce.harness import Report


NEEDED = ("matplotlib", "scipy", "sklearn")
"""Packages that tables are made with, beyond those that training needs."""


@dataclass(frozen=True, kw_only=True)
class Table:
    module: str
    """Below this package; it has `run(setting) -> Report`."""
    about: str
    data: tuple[str, ...]
    """What it runs on unless told otherwise."""
    seeds: int = 3
    """From how many seeds everything is trained unless told otherwise; at scale tiny from one."""
    whole: bool = True
    """Its rows need one another; otherwise some of them may be asked for alone."""

    def run(
        self,
        *,
        scale: Scale,
        seeds: int | None = None,
        out: Path,
        data: tuple[str, ...] = (),
        size: int | None = None,
        steps: int | None = None,
        jobs: int = 1,
        rows: tuple[str, ...] = (),
        say: Callable[[str], None] = lambda text: None,
    ) -> Report:
        """Train what has to be trained, score, and write NAME.json, NAME.txt and pictures into `out`.

        `rows` are the names of those wanted, all by default; rows that train nothing come with the others. `jobs`
        networks are trained side by side, in processes that import the main module anew (so a script that asks for
        more than one needs `if __name__ == "__main__"`).

        Raises ValueError where `seeds` or `jobs` is below 1, a row is unknown or cannot be made alone, a data set
        cannot be opened or a package is missing.
        """
        from importlib import import_module
        from importlib.util import find_spec

        from pellucid.reproduce.harness import Setting

        if missing := [
            name for name in NEEDED if find_spec(name) is None
        ]:  # before hours of training, not after
            raise ValueError(f"tables need {', '.join(missing)}: pip install 'pellucid[metrics]'")
        if seeds is None:
            seeds = 1 if scale == "tiny" else self.seeds
        if seeds < 1:
            raise ValueError(f"seeds is {seeds}; a table needs one at least, and three to show a spread")
        if rows and self.whole:
            raise ValueError("the rows of this table need one another: leave --rows out")
        if jobs < 1:
            raise ValueError(f"jobs is {jobs}; at least one network is trained at a time")
        setting = Setting(
            scale=scale,
            seeds=tuple(range(seeds)),
            out=out,
            data=data or self.data,
            say=say,
            size={"tiny": 16, "cpu": 32, "gpu": 64, "paper": 64}[scale] if size is None else size,
            steps=steps,
            jobs=jobs,
            rows=rows,
        )
        report: Report = import_module(f"pellucid.reproduce.{self.module}").run(setting)
        report.written = report.write(setting)
        return report


VIEWED = ("views-boxes",)
"""Views of a thing from all around, with cameras to be scored against."""
TABLED = ("toys", "hands")
"""Pictures with a table of attributes."""
CLASSED = ("emoji-plain", "clipart-plain", "fashion")
"""Real pictures with classes."""
TABLES: dict[str, Table] = {
    "cofi-ring": Table(
        module="ring", whole=False, about="bit-codes on points whose clusters are known", data=("ring",)
    ),
    "cofi-coarse": Table(
        module="coarse",
        whole=False,
        about="pictures under a code, codes as classes, against seven rivals",
        data=CLASSED,
    ),
    "cofi-representation": Table(
        module="representation", about="encoders as unsupervised classifiers", data=CLASSED
    ),
    "cofi-ablation-coarse": Table(
        module="coarse_ablation", whole=False, about="the parts of the coarse stage", data=CLASSED
    ),
    "cofi-fine": Table(module="fine", whole=False, about="two grains of control", data=("emoji-plain",)),
    "cofi-ablation-fine": Table(
        module="fine_ablation", whole=False, about="the parts of the fine stage", data=("emoji-plain",)
    ),
    "gae-disentangle": Table(
        module="disentangle",
        whole=False,
        about="which attribute each part of a code holds",
        data=TABLED,
        seeds=1,
    ),
    "gae-zeroshot": Table(
        module="zeroshot", whole=False, about="combinations held out of training", data=TABLED, seeds=1
    ),
    "gae-reconstruct": Table(
        module="reconstruct", whole=False, about="pictures from their code and noise", data=TABLED, seeds=1
    ),
    "gae-interpolate": Table(
        module="interpolate", whole=False, about="from one picture to another", data=TABLED, seeds=1
    ),
    "gae-ablation": Table(
        module="gae_ablation", whole=False, about="the parts of DiffuseGAE", data=("toys",), seeds=1
    ),
    "lift3d-360": Table(
        module="around", whole=False, about="a scene from views of unknown pose, all around", data=VIEWED
    ),
    "lift3d-forward": Table(
        module="forward", whole=False, about="a scene that cameras look into", data=("views-forward",)
    ),
    "lift3d-ablation": Table(
        module="lift_ablation",
        whole=False,
        about="candidates, and the weight of their classifier",
        data=VIEWED,
        seeds=1,
    ),
    "factorized-segment": Table(
        module="segment", about="segmentation against label-free baselines", data=("emoji", "scenes")
    ),
    "factorized-generate": Table(
        module="generate", about="images and masks against the DDPM", data=("emoji", "scenes")
    ),
    "factorized-guidance": Table(
        module="guidance", about="how far to guide by regions, on seeds of its own", data=("emoji", "scenes")
    ),
    "factorized-ablation": Table(module="ablation", about="how masks meet the decoder", data=("emoji",)),
    "factorized-codes": Table(
        module="codes", whole=False, about="what a region code's painter may know", data=("emoji",)
    ),
    "factorized-hierarchy": Table(
        module="hierarchy", whole=False, about="two levels of regions", data=("scenes",)
    ),
}
