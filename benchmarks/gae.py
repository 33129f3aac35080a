"""DiffuseGAE's stages against what they are measured by: a DDPM's step, three seconds an epoch, one picture at a time.

    python benchmarks/gae.py [--quick] [--json FILE]

Step: the diffusion autoencoder's against that of the DDPM of the same U-Net, both as the trainer takes them, in turns;
the median over rounds. What it has more is the encoder.

Epoch: every one of 10,000 cached codes once as the sample of a group, with its three partners, losses, backward pass
and optimiser: 10,000 groups, 40,000 codes. The peer is a bound, 3 s. A second row counts an epoch in codes seen,
10,000 of them, which is 2,500 groups.

Editing: a part of 32 pictures replaced in one batch, against one at a time; pictures a second.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _main import Row, main, row

Step = Callable[[], None]
SIZE = 32
CODES = 10_000
BOUND = 3.0
"""Seconds of an epoch."""


def made(name: str) -> Any:
    """A recipe at the scale of two cores, for pictures with the toys' table."""
    from pellucid.data.scenes import Toys
    from pellucid.recipes import DataSpec, recipe

    return recipe(name, "cpu", DataSpec(spec="toys", size=SIZE, attributes=Toys.attributes))


def stage_of(name: str, stage: str, batch: Any) -> Step:
    """One training step of a stage of a recipe, as the trainer takes it."""
    from pellucid.recipes import build

    recipe = made(name)
    method, own = build(recipe).to(memory_format=torch.channels_last), recipe.train.of(stage)
    (part,) = [s for s in method.stages() if s.name == stage]
    part.prepare(lambda n: iter([torch.randn(64, 3, SIZE, SIZE).clamp(-1, 1)]))
    optimizers = {
        player: torch.optim.AdamW(owned, lr=own.lr, betas=own.betas, weight_decay=0.0, fused=True)
        for player, owned in part.players.items()
    }
    rng = torch.Generator().manual_seed(1)

    def step() -> None:
        seen = batch() if callable(batch) else batch
        for player, terms in part.losses(seen, rng):
            sum(v for k, v in terms.items() if not k.startswith("_")).backward()
            optimizers[player].step()
            method.zero_grad()

    return step


def autoencoding(quick: bool) -> Row:
    from pellucid.types import Batch

    n = made("diffae").train.of("autoencoder").batch_size
    x0 = torch.randn(n, 3, SIZE, SIZE).clamp(-1, 1).contiguous(memory_format=torch.channels_last)
    sides = [stage_of("diffae", "autoencoder", Batch(x0=x0)), stage_of("gae-ddpm", "denoise", Batch(x0=x0))]
    times: list[list[float]] = [[], []]
    for step in sides:
        step()
    for _ in range(4 if quick else 15):
        for seen, step in zip(times, sides, strict=True):
            begun = time.perf_counter()
            step()
            seen.append(time.perf_counter() - begun)
    ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
    ours, peer = (1e3 * statistics.median(t) for t in times)
    return row("diffusion autoencoder step, DDPM of its U-Net", ours, peer, ratio, 1.35, "lower", "ms")


def epoch(quick: bool) -> list[Row]:
    """The loader draws groups while the step computes, as in training; the codes are those of the cache."""
    from pellucid.data.groups import Groups
    from pellucid.data.order import Loader, Order
    from pellucid.data.scenes import Toys

    data = Toys(size=SIZE, length=CODES)
    assert data.table is not None
    recipe = made("gae")
    codes = torch.randn(CODES, recipe.config.diffusion.dim)
    n = recipe.train.of("groups").batch_size
    loader = iter(
        Loader(
            data, Order(CODES, n, 0), groups=Groups(data.attributes, data.table), pictures=False,
            derived=lambda rows, mirrored: {"z": codes[torch.from_numpy(np.asarray(rows))]},
        )
    )  # fmt: skip
    step = stage_of("gae", "groups", lambda: next(loader))
    step()
    steps = 20 if quick else -(-CODES // n)
    begun = time.perf_counter()
    for _ in range(steps):
        step()
    whole = (time.perf_counter() - begun) / (steps * n) * CODES
    return [
        row("epoch of 10,000 codes, each with its group", whole, BOUND, whole / BOUND, None, "lower", "s"),
        row(
            "epoch of 10,000 codes, in groups of four", whole / 4, BOUND, whole / 4 / BOUND, 1.0, "lower", "s"
        ),
    ]


def editing(quick: bool) -> Row:
    from pellucid.recipes import build

    method = build(made("gae")).eval()
    x = torch.randn(32, 3, SIZE, SIZE).clamp(-1, 1)
    use: dict[str, Any] = {"inversion_steps": 10, "num_steps": 10}
    other = x.flip(0)

    def edited(rows: slice) -> None:
        n = len(x[rows])
        given = {"image": x[rows], "replace": {"background": other[rows]}}
        method.sample(n, torch.Generator().manual_seed(0), **given, **use)

    def rate(size: int) -> float:
        total = 32 if size > 1 or not quick else 8
        begun = time.perf_counter()
        for i in range(0, total, size):
            edited(slice(i, i + size))
        return total / (time.perf_counter() - begun)

    edited(slice(0, 2))
    ours, peer = rate(32), rate(1)
    return row(
        "pictures edited, batches of 32 / one at a time", ours, peer, ours / peer, 1.0, "higher", "images/s"
    )


def run(quick: bool) -> list[Row]:
    return [autoencoding(quick), *epoch(quick), editing(quick)]


if __name__ == "__main__":
    main(__doc__, run)
