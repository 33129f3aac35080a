"""What the data path costs: per image made or decoded, and as a share of a training step.

python benchmarks/data.py [--quick]
"""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _main import main
from factorized import Step
from PIL import Image

from pellucid.data.decode import decode, prepare
from pellucid.data.images import CACHE_FROM, Dataset, ImageFolder, Squares
from pellucid.data.order import Loader, Order, permutation
from pellucid.data.scenes import Scenes

BATCH = 16
"""Of the recipes at scale cpu."""


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows of name, ours, peer, ratio, target and unit."""
    repeats = 3 if quick else 15
    rng = np.random.default_rng(0)
    step = Step("factorized")
    step()
    seconds = statistics.median(step.seconds() for _ in range(2 * repeats))
    stored = Squares(rng.integers(0, 256, (20_000, 32, 32, 3), dtype=np.uint8), fingerprint="bench")
    scenes = Scenes(size=32, length=50_000, seed=0, split="train")
    rows = [
        _share(
            "a batch of stored images at 32^2, of a training step", _batch_seconds(stored, repeats), seconds
        ),
        _share("a batch of scenes at 32^2, of a training step", _batch_seconds(scenes, repeats), seconds),
        _share(
            "time that a training step waits for scenes",
            _waiting_seconds(scenes, 8 if quick else 20, seconds),
            seconds,
        ),
        _scenes_rate(_batch_seconds(scenes, repeats)),
        _shuffle(repeats),
        _phone_jpeg(repeats),
        _folder(CACHE_FROM if quick else 4 * CACHE_FROM),
    ]
    return rows


def _share(name: str, seconds: float, step: float) -> dict[str, Any]:
    return _row(name, seconds, step, 0.05, "s")


def _scenes_rate(seconds: float) -> dict[str, Any]:
    """Scenes made in one thread, against the 2,000 a second that were asked for."""
    return _row("scenes at 32^2, in one thread", BATCH / seconds, 2000, 1.0, "images/s", better="higher")


def _row(
    name: str, ours: float, peer: float, target: float | None, unit: str, *, better: str = "lower"
) -> dict[str, Any]:
    return {
        "name": name, "ours": ours, "peer": peer, "ratio": ours / peer, "target": target, "better": better,
        "unit": unit,
    }  # fmt: skip


def _batch_seconds(data: Dataset, repeats: int) -> float:
    """Time to make one batch in the caller's thread, the best of several."""
    loader = Loader(data, Order(len(data), BATCH, 0), workers=0, flip=True)
    loader.batch(0)
    steps = iter(range(1, 1 << 30))

    def ten() -> None:
        for _ in range(10):
            loader.batch(next(steps))

    return _best(ten, repeats) / 10


def _waiting_seconds(data: Dataset, steps: int, step: float) -> float:
    """How long a loop of `step` seconds of real work waits for each batch, one worker ahead of it."""
    batches = iter(Loader(data, Order(len(data), BATCH, 0), workers=1, flip=True))
    next(batches)
    left = right = torch.randn(1024, 1024)
    waited = 0.0
    for _ in range(steps):
        until = time.perf_counter() + step
        while time.perf_counter() < until:
            torch.mm(left, right)
        start = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - start
    batches.close()  # type: ignore[attr-defined]
    return waited / steps


def _shuffle(repeats: int) -> dict[str, Any]:
    length = 1_000_000
    numpy = np.random.default_rng(0)
    ours = _best(lambda: permutation.__wrapped__(length, 0, 0), repeats)
    return _row(
        "order of an epoch of 1,000,000, numpy's shuffle as peer",
        ours,
        _best(lambda: numpy.permutation(length), repeats),
        None,
        "s",
    )


def _phone_jpeg(repeats: int) -> dict[str, Any]:
    """A 12-megapixel JPEG to 64^2, the full decode as peer."""
    data = _photograph(4000, 3000)
    ours = _best(lambda: prepare(decode(data, at_least=128), 64), repeats)
    peer = _best(lambda: prepare(decode(data), 64), max(2, repeats // 3))
    return _row("12-megapixel JPEG to 64^2, full decode as peer", ours, peer, 0.5, "s")


def _folder(count: int) -> dict[str, Any]:
    """Opening a folder of JPEGs the second time, the first time as peer."""
    with tempfile.TemporaryDirectory() as work:
        root = Path(work, "in")
        root.mkdir()
        data = _photograph(320, 240)
        for i in range(count):
            (root / f"{i}.jpg").write_bytes(data)
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            ImageFolder(root, 64, cache=Path(work))
            seconds.append(time.perf_counter() - start)
    return _row(
        f"opening {count} JPEGs of 320x240 again, the first time as peer", seconds[1], seconds[0], 0.2, "s"
    )


def _photograph(width: int, height: int) -> bytes:
    y, x = np.mgrid[0:height, 0:width] / 40
    waves = np.stack([np.sin(x + y), np.cos(1.7 * x), np.sin(3 * y)], -1) * 90 + 128
    waves += np.random.default_rng(0).normal(0, 8, waves.shape)
    stream = io.BytesIO()
    Image.fromarray(waves.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=92)
    return stream.getvalue()


def _best(work: Callable[[], Any], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    main(__doc__, run)
