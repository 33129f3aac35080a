"""What the command line prints: lines, a live progress line, and JSON files."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def _first() -> bool:
    """Whether this process speaks and writes: of those that torchrun starts, the first alone."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    if not _first():
        return
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def written(path: Path | None, value: Any) -> None:
    """Write JSON, complete or not at all; nothing where no path was given."""
    if path is None or not _first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        sys.stderr.write(f"note: {path} was there before and is replaced\n")
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(part, path)


class Progress:
    """Training on one live line: step, loss terms, images/s, time left. Plain lines where there is no terminal.

    Where there are several stages each is named and counts its own steps; the time left is that of the stage.
    """

    def __init__(self, every: float = 10.0) -> None:
        self.live = sys.stderr.isatty()
        self.every, self.last = every, 0.0
        self.steps, self.begun, self.first = 0, 0.0, 0
        self.stage: str | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            sys.stderr.write("\n")

    def on_event(self, kind: str, figures: dict[str, Any]) -> None:
        if kind == "start":
            self.steps, self.begun, self.first = figures["steps"], time.perf_counter(), figures["step"]
            if self.first:
                self._line(f"continuing at step {self.first} of {self.steps}", end=True)
        elif kind == "note":
            self._line(f"note: {figures['text']}", end=True)
        elif kind == "step":
            now = time.perf_counter()
            if not self.live and now - self.last < self.every and figures["step"] < self.steps:
                return
            self.last = now
            step, steps = figures["step"], self.steps
            several = figures.get("stage_steps", steps) < steps
            if several:
                step, steps = figures["stage_step"], figures["stage_steps"]
            if several and figures["stage"] != self.stage:  # its pace is known from the next line on
                self.stage, self.begun, self.first = figures["stage"], now, step
            left = (now - self.begun) / max(1, step - self.first) * (steps - step)
            clock = f"  {_clock(left)} left" if step > self.first else ""
            terms = " ".join(
                f"{k} {v:.4f}"
                for k, v in figures.items()
                if isinstance(v, float) and k not in ("images_per_second", "lr")
            )
            rate = figures["images_per_second"]
            of = f"{figures['stage']}: " if several else ""
            self._line(f"{of}step {step}/{steps}  {terms}  {rate:.0f} images/s{clock}")

    def _line(self, text: str, *, end: bool = False) -> None:
        if self.live:
            sys.stderr.write(
                "\r\x1b[2K" + text[: os.get_terminal_size(2).columns - 1] + ("\n" if end else "")
            )
        else:
            sys.stderr.write(text + "\n")
        sys.stderr.flush()


def counted(parts: Iterable[Any], total: int) -> Iterator[Any]:
    """Samples as they come, and on a terminal a live line that says how many of `total` pictures are done."""
    done, begun = 0, time.perf_counter()
    with Progress() as progress:
        if progress.live:
            progress._line(f"0/{total} pictures")
        for part in parts:
            yield part
            done += len(part.images)
            if progress.live:
                left = (time.perf_counter() - begun) / done * (total - done)
                progress._line(f"{done}/{total} pictures  {_clock(left)} left")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
