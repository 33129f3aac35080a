"""Kill a training run with SIGKILL at random moments, continue it, and compare it with one left alone.

    python scripts/kill_resume.py --rounds 20

Each round starts or continues a run, waits until it has trained for a step, and kills it after a random time
that is shorter than the rest of the run. Whenever a run gets to its end in
spite of that, its weights, averaged weights, optimiser state and next samples must equal, bit for bit,
those of the run that was left alone, and another is begun. Exits with 1 on any mismatch.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from pellucid.model import load
from pellucid.train.checkpoint import latest, steps_of


def command(run: Path, recipe: str, steps: int) -> list[str]:
    return [
        sys.executable, "-m", "pellucid", "train", recipe, "--data", "scenes", "--scale", "tiny",
        "--steps", str(steps), "--out", str(run), "--device", "cpu", "--limit", "64",
    ]  # fmt: skip


def launched(run: Path, options: argparse.Namespace) -> subprocess.Popen:
    return subprocess.Popen(
        command(run, options.recipe, options.steps), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def started(process: subprocess.Popen, run: Path) -> None:
    """Wait until the process has logged a step of its own, or ended."""
    log = run / "log.jsonl"
    size = lambda: log.stat().st_size if log.exists() else 0
    least = size()  # on continuing, lines after the last checkpoint are dropped first
    while process.poll() is None and size() <= least:
        least = min(least, size())
        time.sleep(0.02)


def compare(a: Path, b: Path) -> list[str]:
    """Names of what differs between the last checkpoints of two runs, and between their next samples."""
    one, two = latest(a), latest(b)
    if one is None or two is None or one.step != two.step:
        return ["the last step"]
    wrong = []
    for group in ("model", "ema", "optim"):
        x, y = one.tensors(group), two.tensors(group)
        same = {k for k in x.keys() & y.keys() if torch.equal(x[k], y[k])}
        wrong += [f"{group}.{k}" for k in (x.keys() | y.keys()) - same]
    x, y = (load(run, device="cpu").sample(4, seed=0, num_steps=5).images for run in (a, b))
    return wrong + ([] if torch.equal(x, y) else ["samples"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--recipe", default="factorized")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder, "alone")
        process = launched(alone, options)
        started(process, alone)
        start = time.monotonic()
        if process.wait():
            sys.exit("the run that was left alone failed")
        whole = time.monotonic() - start
        print(f"the run left alone trained for {whole:.1f} s", flush=True)
        kills, runs, wrong = 0, 0, []
        while kills < options.rounds:
            killed = Path(folder, f"killed-{runs}")
            process = launched(killed, options)
            started(process, killed)
            wait = rng.uniform(0, 0.7) * whole
            try:
                process.wait(wait)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
                there = [p.name for p in steps_of(killed)] if killed.exists() else []
                print(
                    f"round {kills:2}: killed {wait:.2f} s into training, checkpoints {there or 'none'}",
                    flush=True,
                )
            else:
                wrong += compare(alone, killed)
                runs += 1
                print(f"run {runs} got to its end; differing: {wrong or 'nothing'}", flush=True)
        subprocess.run(command(killed, options.recipe, options.steps), check=True, capture_output=True)
        wrong += compare(alone, killed)
    print(f"{kills} kills over {runs + 1} runs; differing: {', '.join(wrong[:8]) if wrong else 'nothing'}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
