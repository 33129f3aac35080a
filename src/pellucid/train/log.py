"""What training writes down: one JSON line a moment, and TensorBoard beside it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Log:
    """RUN/log.jsonl and RUN/tensorboard.

    Opened at a step, it forgets lines of later steps, which a killed process may have written beyond
    its last checkpoint: a resumed run logs each step once.
    """

    def __init__(self, run: Path, *, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = run / "log.jsonl"
        kept = [line for line in read_log(run) if line["step"] <= start]
        part = path.with_suffix(".part")
        part.write_text("".join(json.dumps(line) + "\n" for line in kept))
        os.replace(part, path)
        self.handle = path.open("a", buffering=1)
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=start or None)

    def write(self, step: int, values: dict[str, Any]) -> None:
        self.handle.write(json.dumps({"step": step, **values}) + "\n")
        for key, value in values.items():
            if isinstance(value, int | float):
                self.board.add_scalar(key, value, step)

    def picture(self, step: int, name: str, pixels: Any) -> None:
        """pixels (H, W, 3) uint8."""
        self.board.add_image(name, pixels, step, dataformats="HWC")

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.close()
        self.board.close()


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log; a last line that was cut off is left out."""
    try:
        text = (run / "log.jsonl").read_text()
    except FileNotFoundError:
        return []
    lines = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            lines.append(entry)
    return lines
