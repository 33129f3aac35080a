"""How much memory a step takes: growth of the resident set at its highest, in a process of its own. Linux only."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def measurable() -> bool:
    return Path("/proc/self/clear_refs").exists()


def peak(start_up: Callable[[], None], make: Callable[[], Callable[[], None]]) -> float:
    """MiB by which two steps of what `make` makes raise the resident set, over where `start_up` has left it.

    `start_up` loads what the side loads, and builds none of it: freed weights would hide in the baseline. Both are
    functions of a module, or partials of such.
    """
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    process = context.Process(target=_measure, args=(start_up, make, torch.get_num_threads(), answer))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"measuring the memory of {make} ended with exit code {process.exitcode}")
    return answer.get()


def _measure(
    start_up: Callable[[], None], make: Callable[[], Callable[[], None]], threads: int, answer: Any
) -> None:
    torch.set_num_threads(threads)
    start_up()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    step = make()
    for _ in range(2):
        step()
    answer.put(_status("VmHWM") - before)


def _status(key: str) -> float:
    """MiB of this process, from Linux' own books."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {key}")
