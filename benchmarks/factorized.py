"""A training step of factorized diffusion against its arithmetic floor.

    python benchmarks/factorized.py [--quick]

The floor is what a step would take if each of its floating-point operations cost what one costs in a step of
the DDPM of the same U-Net: the DDPM's time, times the operations of one over those of the other, counted by
torch. Rounds alternate; the figures are medians. The default form also computes densities, which are no
operations of the network and count as time over its floor.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from _main import main
from torch.utils.flop_counter import FlopCounterMode

from pellucid.recipes import DataSpec, build, recipe
from pellucid.types import Batch

FORMS = {"thesis' form": "factorized-shared", "default form": "factorized"}


class Step:
    """One training step of a recipe, again and again on the same batch."""

    def __init__(self, name: str) -> None:
        made = recipe(name, "cpu", DataSpec(spec="scenes", size=32))
        self.method = build(made).to(memory_format=torch.channels_last)
        self.stage = self.method.stages()[0]
        self.optimizer = torch.optim.AdamW(self.method.parameters(), lr=1e-4, fused=True)
        rng = torch.Generator().manual_seed(0)
        size = (made.train.batch_size, 3, 32, 32)
        self.batch = Batch(x0=torch.rand(size, generator=rng) * 2 - 1)

    def __call__(self) -> None:
        for _, terms in self.stage.losses(self.batch, torch.Generator().manual_seed(1)):
            self.optimizer.zero_grad()
            sum(v for k, v in terms.items() if not k.startswith("_")).backward()
            self.optimizer.step()

    def seconds(self) -> float:
        start = time.perf_counter()
        self()
        return time.perf_counter() - start

    def operations(self) -> int:
        with FlopCounterMode(display=False) as counter:
            self()
        return counter.get_total_flops()


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows of name, ours and peer (DDPM steps that one step takes), ratio, target and unit."""
    ddpm, forms = Step("ddpm"), {title: Step(name) for title, name in FORMS.items()}
    base = ddpm.operations()
    floors = {title: step.operations() / base for title, step in forms.items()}
    taken: dict[str, list[float]] = {title: [] for title in forms}
    for _ in range(3 if quick else 12):
        peer = ddpm.seconds()
        for title, step in forms.items():
            taken[title].append(step.seconds() / peer)
    rows = []
    for title, floor in floors.items():
        ours = statistics.median(taken[title])
        rows.append(
            {
                "name": f"factorized step, {title}, over its floor",
                "ours": ours,
                "peer": floor,
                "ratio": ours / floor,
                "target": 1.10,
                "better": "lower",
                "unit": "DDPM steps",
            }
        )
    return rows


if __name__ == "__main__":
    main(__doc__, run)
