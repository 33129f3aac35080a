"""Kill a training run with SIGKILL at random moments, continue it, and compare it with one left alone.

    python scripts/kill_resume.py --rounds 20
    python scripts/kill_resume.py --rounds 20 --recipe cofi

Each round starts or continues a run and kills it a moment after a step that is drawn from those of one stage;
the stages take turns, so that kills land in every one, and now and then between two. Whenever each stage has had
its kill the run is left to get to its end. Its weights, averaged weights, optimiser state and next samples must then
equal, bit for bit, those of the run that was left alone, and another is begun. Exits with 1 on any mismatch.
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
from pellucid.train.log import read_log


def command(run: Path, options: argparse.Namespace) -> list[str]:
    return [
        sys.executable, "-m", "pellucid", "train", options.recipe, "--data", options.data, "--scale", "tiny",
        "--steps", str(options.steps), "--out", str(run), "--device", "cpu", "--limit", "64",
    ]  # fmt: skip


def launched(run: Path, options: argparse.Namespace) -> subprocess.Popen:
    return subprocess.Popen(command(run, options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def got_to(step: int, process: subprocess.Popen, run: Path) -> None:
    """Wait until the process has logged a line of its own and a step as late as this, or ended."""
    log = run / "log.jsonl"
    size = lambda: log.stat().st_size if log.exists() else 0
    least = size()  # on continuing, lines after the last checkpoint are dropped first
    while process.poll() is None:
        least = min(least, size())
        if size() > least and read_log(run)[-1]["step"] >= step:
            return
        time.sleep(0.01)


def stages_of(run: Path) -> dict[str, tuple[int, int]]:
    """Stage -> the first and the last step that it logged, in their order."""
    found: dict[str, tuple[int, int]] = {}
    for line in read_log(run):
        first, _ = found.get(line["stage"], (line["step"], 0))
        found[line["stage"]] = (first, line["step"])
    return found


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
    first, second = (load(run, device="cpu") for run in (a, b))
    few = {"num_steps": 5} if "num_steps" in first.controls else {}
    x, y = (model.sample(4, seed=0, **few).images for model in (first, second))
    return wrong + ([] if torch.equal(x, y) else ["samples"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--recipe", default="factorized")
    parser.add_argument("--data", default="scenes")
    parser.add_argument("--steps", type=int, default=300, help="of each stage")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder, "alone")
        process = launched(alone, options)
        got_to(0, process, alone)
        start = time.monotonic()
        if process.wait():
            sys.exit("the run that was left alone failed")
        whole = time.monotonic() - start
        stages = stages_of(alone)
        last = max(step for _, step in stages.values())
        print(f"the run left alone trained {', '.join(stages)} for {whole:.1f} s", flush=True)
        kills, runs, wrong = 0, 0, []
        hit = dict.fromkeys(stages, 0)
        while kills < options.rounds:
            killed = Path(folder, f"killed-{runs}")
            each = max(1, 3 // len(stages))
            drawn = [rng.randrange(a, b + 1) for a, b in stages.values() for _ in range(each)]
            for step in sorted(drawn)[: options.rounds - kills]:
                process = launched(killed, options)
                got_to(min(step, last - 1), process, killed)
                time.sleep(rng.uniform(0, 0.05) * whole)
                process.send_signal(signal.SIGKILL)
                if process.wait() != -signal.SIGKILL:
                    print("a run got to its end before its kill", flush=True)
                    break
                kills += 1
                lines = read_log(killed)
                stage, step = lines[-1]["stage"], lines[-1]["step"]
                hit[stage] += 1
                there = [p.name for p in steps_of(killed)]
                print(
                    f"round {kills:2}: killed in {stage} after step {step}, checkpoints {there or 'none'}",
                    flush=True,
                )
            subprocess.run(command(killed, options), check=True, capture_output=True)
            wrong += compare(alone, killed)
            runs += 1
            print(f"run {runs} got to its end; differing: {wrong or 'nothing'}", flush=True)
    where = ", ".join(f"{n} in {stage}" for stage, n in hit.items())
    print(
        f"{kills} kills over {runs} runs, {where}; differing: {', '.join(wrong[:8]) if wrong else 'nothing'}"
    )
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
