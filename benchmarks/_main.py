"""What every benchmark does when it is run: measure, print a line a row, write JSON where it is asked to."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
"""What one line of a benchmark says, see `row`."""


def row(
    name: str, ours: float, peer: float, ratio: float, target: float | None, better: str, unit: str
) -> Row:
    return {
        "name": name, "ours": ours, "peer": peer, "ratio": ratio, "target": target, "better": better, "unit": unit,
    }  # fmt: skip


def main(about: str | None, run: Callable[[bool], Sequence[Any]]) -> None:
    """`run(quick)` gives rows of name, ours, peer, ratio, target, better and unit."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, smaller where it can be")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    options = parser.parse_args()
    rows = run(options.quick)
    for row in rows:
        goal = "" if row["target"] is None else f"(target {row['target']:.2f})"
        print(
            f"{row['ratio']:6.2f} {goal:14} {row['name']}: ours {row['ours']:.4g} {row['unit']}, "
            f"peer {row['peer']:.4g} {row['unit']}"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
