"""How long it takes to begin: importing the package and asking for help, each in a fresh process.

python benchmarks/start.py [--quick]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

from _main import main

CASES = {
    "import pellucid": (["-c", "import pellucid"], 0.3),
    "pellucid --help": (["-m", "pellucid", "--help"], 0.6),
}
"""What is run, and the most seconds it may take."""


def seconds(arguments: list[str], repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def run(quick: bool) -> list[dict[str, Any]]:
    """Rows whose ratio is the time over the most that was asked for; Python's own start is part of it."""
    repeats = 3 if quick else 11
    rows = []
    for name, (arguments, most) in CASES.items():
        ours = seconds(arguments, repeats)
        rows.append(
            {
                "name": f"{name}, against the most it may take", "ours": ours, "peer": most, "ratio": ours / most,
                "target": 1.0, "better": "lower", "unit": "s",
            }
        )  # fmt: skip
    return rows


if __name__ == "__main__":
    main(__doc__, run)
