"""The loop: exact on resume, refusing what is not finite, leaving the last good checkpoint whatever happens."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import nn

from pellucid.methods.base import Method, Stage
from pellucid.recipes import DataSpec, build, recipe, recipe_to_json
from pellucid.train.checkpoint import CheckpointError, best, latest, load_weights, steps_of
from pellucid.train.ema import EMA
from pellucid.train.log import read_log
from pellucid.train.preview import grid
from pellucid.train.trainer import TrainConfig, TrainingError, learning_rate, seeded, train
from pellucid.types import Batch


class Noise:
    """29 fixed pictures."""

    shape = (3, 8, 8)
    class_names: tuple[str, ...] = ()
    fingerprint = "noise"

    def __len__(self) -> int:
        return 29

    def batch(self, indices: np.ndarray) -> Batch:
        pictures = [torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(int(i))) for i in indices]
        return Batch(x0=torch.stack(pictures).clamp(-1, 1))


class TwoPlayers(Method):
    """A denoiser and a critic of it, stepped in turn, so that the loop's every path is walked."""

    name = "two"

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, 3, 3, padding=1)
        self.critic = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 1, 1))
        self.register_buffer("mean", torch.zeros(3, 8, 8))
        self.controls, self.readouts, self.image_shape = {}, {}, (3, 8, 8)
        self.prepared: list[int] = []
        self.poison: int | None = None
        self.seen: list[tuple[int, ...]] = []

    def stages(self):
        return (TwoPlayersStage(self),)


class TwoPlayersStage(Stage):
    name = "game"

    def prepare(self, pictures):
        self.method.prepared.append(sum(len(part) for part in pictures(100)))
        self.method.mean.copy_(torch.cat(list(pictures(5))).mean(0))

    def __init__(self, method: TwoPlayers) -> None:
        self.method = method
        self.players = {"critic": list(method.critic.parameters()), "net": list(method.net.parameters())}
        self.after: list[int] = []

    def losses(self, batch, rng):
        x = batch.x0
        noisy = x + 0.5 * torch.randn(x.shape, generator=rng)
        clean = self.method.net(noisy)
        yield "critic", {"gap": (self.method.critic(clean.detach()) - self.method.critic(x)).mean().square()}
        loss = (clean - x).square().mean()
        if self.method.poison is not None and len(self.after) == self.method.poison:
            loss = loss * float("nan")
        yield (
            "net",
            {
                "denoise": loss,
                "fool": 0.01 * self.method.critic(clean).square().mean(),
                "_watched": torch.tensor(1000.0),
            },
        )

    def after_step(self, step: int) -> None:
        self.after.append(step)


CONFIG = TrainConfig(steps=12, batch_size=4, lr=1e-2, warmup=3, decay=0.3, checkpoint_every=4, log_every=2)


def fresh() -> TwoPlayers:
    torch.manual_seed(7)
    return TwoPlayers()


def poisoned(step: int) -> TwoPlayers:
    method = fresh()
    method.poison = step
    return method


def go(run: Path, config: TrainConfig = CONFIG, method: Method | None = None, **options):
    meta = {"method": "two", "train": {"steps": config.steps, "lr": config.lr}}
    return train(method or fresh(), Noise(), config, run, meta=meta, **options)


def sheet(method: Method, stage: Stage):
    """A preview, which where weights are split all processes have to make together."""
    with torch.no_grad():
        return grid(method.net(torch.zeros(2, 3, 8, 8))), {}


def everything(run: Path) -> dict[str, torch.Tensor]:
    found = latest(run)
    assert found is not None
    return {f"{g}.{k}": v for g in ("model", "ema", "optim") for k, v in found.tensors(g).items()}


def assert_same(a: Path, b: Path) -> None:
    one, two = everything(a), everything(b)
    assert one.keys() == two.keys()
    assert [k for k in one if not torch.equal(one[k], two[k])] == []


@pytest.mark.parametrize("stop", [1, 4, 7, 11])
def test_a_stopped_run_continues_bit_for_bit(tmp_path, stop):
    assert go(tmp_path / "alone").state == "done"
    assert go(tmp_path / "stopped", stop_after=stop).state == "paused"
    assert go(tmp_path / "stopped").state == "done"
    assert_same(tmp_path / "alone", tmp_path / "stopped")
    alone, stopped = (read_log(tmp_path / n) for n in ("alone", "stopped"))
    strip = lambda lines: [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]
    assert strip(alone) == strip(stopped)


def test_a_method_is_prepared_once_in_the_life_of_a_run(tmp_path):
    first, then = fresh(), fresh()
    go(tmp_path / "run", method=first, stop_after=4)
    go(tmp_path / "run", method=then)
    assert (first.prepared, then.prepared) == ([29], [])  # asked for 100, and 29 is all there are
    spread = Noise().batch(np.array([0, 7, 14, 21, 28])).x0.mean(0)
    for ema in (True, False):
        torch.testing.assert_close(load_weights(tmp_path / "run", ema=ema)["mean"], spread, atol=0, rtol=0)


def test_workers_do_not_change_the_run(tmp_path):
    go(tmp_path / "a", replace(CONFIG, workers=0))
    go(tmp_path / "b", replace(CONFIG, workers=3))
    assert_same(tmp_path / "a", tmp_path / "b")


def test_a_finished_run_is_left_as_it_is(tmp_path):
    go(tmp_path / "run")
    before = everything(tmp_path / "run")
    assert go(tmp_path / "run").step == 12
    after = everything(tmp_path / "run")
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_kill_9_at_any_moment(tmp_path):
    """A few kills here; scripts/kill_resume.py does twenty on a real recipe."""
    script = tmp_path / "job.py"
    script.write_text(
        "import sys, time\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "import test_trainer as t\n"
        "tell = lambda kind, figures: kind == 'step' and print(figures['step'], flush=True)\n"
        "slow = lambda kind, figures: (tell(kind, figures), time.sleep(0.05))\n"
        f"t.go(Path({str(tmp_path / 'killed')!r}), t.replace(t.CONFIG, log_every=1), on_event=slow)\n"
    )
    go(tmp_path / "alone", replace(CONFIG, log_every=1))
    reached = []
    for more, delay in ((3, 0.0), (4, 0.03), (2, 0.06)):  # steps to wait for, and how long after
        process = subprocess.Popen(
            [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        reached.append(int([process.stdout.readline() for _ in range(more)][-1]))
        time.sleep(delay)
        process.kill()
        process.wait()
    assert all(0 < step < 12 for step in reached), "a kill came too late to hit training"
    assert subprocess.run([sys.executable, str(script)], check=False).returncode == 0
    assert_same(tmp_path / "alone", tmp_path / "killed")


def test_sigterm_saves_and_returns(tmp_path):
    def on_event(kind, figures):
        if kind == "step" and figures["step"] == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    assert threading.current_thread() is threading.main_thread()
    result = go(tmp_path / "run", replace(CONFIG, log_every=1), on_event=on_event)
    assert result.state == "paused"
    assert result.step == latest(tmp_path / "run").step == 7  # the step in flight is finished
    go(tmp_path / "alone", replace(CONFIG, log_every=1))
    go(tmp_path / "run", replace(CONFIG, log_every=1))
    assert_same(tmp_path / "alone", tmp_path / "run")


def test_nan_stops_before_the_optimiser_and_keeps_the_batch(tmp_path):
    method = fresh()
    method.poison = 5
    with pytest.raises(TrainingError, match=r"loss term denoise is not finite at step 5"):
        go(tmp_path / "run", method=method)
    assert latest(tmp_path / "run").step == 4
    (saved,) = (tmp_path / "run").glob("not-finite-*.safetensors")
    assert saved.stat().st_size > 4 * 3 * 64
    assert all(torch.isfinite(p).all() for p in method.parameters())
    assert go(tmp_path / "run").state == "done"
    go(tmp_path / "alone")
    assert_same(tmp_path / "alone", tmp_path / "run")


@pytest.mark.parametrize("damage", ["truncate", "flip", "manifest", "missing"])
def test_a_damaged_newest_checkpoint_falls_back(tmp_path, damage):
    go(tmp_path / "run")
    go(tmp_path / "alone")
    newest = steps_of(tmp_path / "run")[-1]
    file = newest / "model.safetensors"
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-10])
    elif damage == "flip":
        data = bytearray(file.read_bytes())
        data[-3] ^= 1
        file.write_bytes(data)
    elif damage == "manifest":
        (newest / "manifest.json").write_text('{"format": 1, "step"')
    else:
        file.unlink()
    notes = []
    assert latest(tmp_path / "run", say=notes.append).step == 8
    assert "damaged" in notes[0]
    go(tmp_path / "run")
    assert_same(tmp_path / "alone", tmp_path / "run")


def test_the_last_k_and_the_best_are_kept(tmp_path):
    go(tmp_path / "run", replace(CONFIG, steps=24, checkpoint_every=2, keep_last=2))
    names = {p.name for p in steps_of(tmp_path / "run")}
    assert {"00000022", "00000024"} <= names
    assert best(tmp_path / "run") is not None
    assert len(names) <= 3
    assert not [p for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.startswith(".")]


def test_a_folder_of_another_run_is_not_touched(tmp_path):
    go(tmp_path / "run")
    with pytest.raises(TrainingError, match=r"other settings.*train\.lr"):
        go(tmp_path / "run", replace(CONFIG, lr=0.5))
    with pytest.raises(TrainingError, match="already holds a run"):
        go(tmp_path / "run", resume=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("hello")
    with pytest.raises(TrainingError, match="no config of a run"):
        go(tmp_path / "other")


def test_a_first_attempt_that_failed_does_not_hold_the_folder(tmp_path):
    with pytest.raises(TrainingError, match=r"no checkpoint yet.*another --out"):
        go(tmp_path / "run", replace(CONFIG, lr=1e-3), poisoned(0))
    go(tmp_path / "run")
    go(tmp_path / "alone")
    assert_same(tmp_path / "alone", tmp_path / "run")


def test_the_best_is_marked_where_a_kill_came_before_its_mark(tmp_path):
    config = replace(CONFIG, checkpoint_every=2)
    go(tmp_path / "run", config, stop_after=2)
    mark = tmp_path / "run" / "checkpoints" / "best.json"
    before = mark.read_text()
    go(tmp_path / "run", config, stop_after=2)
    marked = mark.read_text()
    assert marked != before
    mark.write_text(before)
    at_start = []
    go(
        tmp_path / "run",
        config,
        on_event=lambda kind, _: at_start.append(mark.read_text()) if kind == "start" else None,
    )
    assert at_start == [marked]


def test_a_folder_that_is_being_trained_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"), pytest.raises(TrainingError, match="by another process"):
        go(tmp_path / "run")
    go(tmp_path / "run")


def test_the_same_pictures_by_another_name_continue_a_run(tmp_path):
    def on(pictures, spec):
        meta = {"data": {"spec": spec}}
        train(fresh(), pictures, CONFIG, tmp_path / "run", meta=meta, stop_after=2)

    on(Noise(), "pictures")
    on(Noise(), "./pictures")
    other = Noise()
    other.fingerprint = "others"
    with pytest.raises(TrainingError, match=r"data\.spec"):
        on(other, "elsewhere")


def test_an_unwritable_folder_is_said(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingError, match="cannot be written"):
        go(tmp_path / "file" / "run")


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    go(tmp_path / "run", stop_after=4)
    full = lambda path: shutil._ntuple_diskusage(100, 100, 0)
    monkeypatch.setattr(shutil, "disk_usage", full)
    with pytest.raises(CheckpointError, match="MiB left"):
        go(tmp_path / "run")
    monkeypatch.undo()
    assert latest(tmp_path / "run").step == 4
    go(tmp_path / "run")
    go(tmp_path / "alone")
    assert_same(tmp_path / "alone", tmp_path / "run")


def test_a_disk_that_fills_up_while_writing(tmp_path, monkeypatch):
    from pellucid.train import checkpoint

    go(tmp_path / "run", stop_after=4)
    write = checkpoint._write

    def fails(path, data):
        if path.name == "optim.safetensors":
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(checkpoint, "_write", fails)
    with pytest.raises(CheckpointError, match="No space left on device"):
        go(tmp_path / "run")
    monkeypatch.undo()
    root = tmp_path / "run" / "checkpoints"
    assert [p.name for p in root.iterdir() if p.is_dir()] == ["00000004"]


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("mount"), reason="mounting a small tmpfs needs root"
)
def test_a_really_full_disk(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(small)], check=False)
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        go(small / "run", stop_after=4)
        (small / "filler").write_bytes(
            b"x" * (os.statvfs(small).f_bavail * os.statvfs(small).f_frsize - 4096)
        )
        with pytest.raises((CheckpointError, TrainingError), match=r"full|MiB left|No space"):
            go(small / "run")
        assert latest(small / "run").step == 4
        (small / "filler").unlink()
        assert go(small / "run").state == "done"
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)


def test_a_log_that_finds_no_room_is_said_with_the_way_out(tmp_path, monkeypatch):
    from pellucid.train.log import Log

    def full(*_):
        raise OSError(28, "No space left on device")

    go(tmp_path / "run", stop_after=4)
    monkeypatch.setattr(Log, "write", full)
    with pytest.raises(TrainingError, match="is full; make room and start again"):
        go(tmp_path / "run")
    assert latest(tmp_path / "run").step == 4


def test_running_out_of_memory_halves_the_part_and_keeps_the_batch(tmp_path):
    class Hungry(TwoPlayersStage):
        def losses(self, batch, rng):
            if len(batch) > 2:
                raise torch.OutOfMemoryError("pretend")
            yield from super().losses(batch, rng)

    method = fresh()
    method.stages = lambda: (Hungry(method),)
    notes = []
    go(tmp_path / "run", method=method, on_event=lambda k, f: notes.append(f) if k == "note" else None)
    assert "2 parts" in notes[0]["text"]
    go(tmp_path / "two", replace(CONFIG, micro_batches=2))
    assert_same(tmp_path / "run", tmp_path / "two")


def launched(tmp_path: Path, *calls: str) -> None:
    """Run calls of `go` in two gloo processes."""
    script = tmp_path / "job.py"
    lines = [
        "import sys",
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})",
        "from dataclasses import replace",
    ]
    script.write_text(
        "\n".join([*lines, "from pathlib import Path", "import test_trainer as t", *calls]) + "\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(("first", "then"), [("ddp", "ddp"), ("fsdp", "fsdp"), ("fsdp", "ddp")])
def test_two_processes_are_one_with_two_micro_batches(tmp_path, first, then):
    two = tmp_path / "two"
    with_ = "config=replace(t.CONFIG, parallel={!r}, sample_every=3), preview=t.sheet"
    # stopped and continued, so that split weights are written and read as well
    launched(
        tmp_path,
        f"t.go(Path({str(two)!r}), {with_.format(first)}, stop_after=4)",
        f"t.go(Path({str(two)!r}), {with_.format(then)})",
    )
    assert len(list((two / "samples").iterdir())) == 4
    go(tmp_path / "one", replace(CONFIG, micro_batches=2))
    one, found = everything(tmp_path / "one"), everything(two)
    assert one.keys() == found.keys()
    for key, value in one.items():
        torch.testing.assert_close(found[key], value, atol=1e-5, rtol=1e-4)


def test_a_real_network_can_be_split(tmp_path):
    """Every layer that owns weights has to use them in its own forward, and nowhere else."""
    made = recipe(
        "factorized", "tiny", DataSpec(spec="noise", size=8), steps=4, batch_size=4, micro_batches=2
    )
    unet = replace(made.config.unet, attention=(1,), middle_attention=True)
    made = replace(made, config=replace(made.config, unet=unet))
    meta = recipe_to_json(made)
    train(build(made), Noise(), made.train, tmp_path / "one", meta=meta)
    (tmp_path / "recipe.json").write_text(json.dumps(meta))
    launched(
        tmp_path,
        "import json; from pellucid.recipes import build, recipe_from_json",
        f"meta = json.loads(Path({str(tmp_path / 'recipe.json')!r}).read_text())",
        "made = recipe_from_json(meta)",
        "config = replace(made.train, parallel='fsdp')",
        f"t.train(build(made), t.Noise(), config, Path({str(tmp_path / 'two')!r}), meta=meta)",
    )
    one, two = (load_weights(tmp_path / name, ema=False) for name in ("one", "two"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=2e-4, rtol=1e-2)


def test_ema_is_its_recurrence_with_warm_up():
    net = nn.Linear(2, 1)
    ema = EMA(net, 0.9)
    expected = net.weight.detach().clone()
    for n in range(30):
        with torch.no_grad():
            net.weight += 1
        ema.update(net)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * net.weight.detach()
    torch.testing.assert_close(ema.shadow["weight"], expected)


def test_the_learning_rate_rises_holds_and_falls():
    config = replace(CONFIG, steps=100, warmup=10, decay=0.2)
    rates = [learning_rate(config, s) for s in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[79] == 1.0
    assert rates[90] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.05)
    assert all(b >= a for a, b in pairwise(rates[:11]))


def test_generators_differ_by_every_part_of_their_name():
    draws = {
        seeded(*key).initial_seed()
        for key in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    }
    assert len(draws) == 5


def test_weights_to_sample_with_are_the_averaged_ones(tmp_path):
    go(tmp_path / "run")
    ema, own = load_weights(tmp_path / "run"), load_weights(tmp_path / "run", ema=False)
    assert not torch.equal(ema["net.weight"], own["net.weight"])
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        load_weights(tmp_path / "nothing")


def test_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        go(tmp_path / "run")
    finally:
        os.umask(before)
    for file in steps_of(tmp_path / "run")[-1].iterdir():
        assert file.stat().st_mode & 0o777 == 0o640


def test_config_json_says_what_made_the_run(tmp_path):
    go(tmp_path / "run")
    data = json.loads((tmp_path / "run" / "config.json").read_text())
    assert data["recipe"]["train"]["steps"] == 12
    assert data["made_by"]["torch"] == torch.__version__


def test_what_is_only_watched_is_no_part_of_the_loss(tmp_path):
    """It is logged, and neither the loss on the line nor the choice of the best checkpoint hears of it."""
    go(tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    steps = [r for r in rows if "loss" in r]
    assert steps
    for row in steps:
        assert row["net.watched"] == 1000.0
        assert row["loss"] == pytest.approx(row["critic.gap"] + row["net.denoise"] + row["net.fool"])


def test_compiling_reaches_the_parts_that_losses_call(tmp_path, monkeypatch):
    reached = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: reached.append(type(self).__name__))
    go(tmp_path / "plain")
    assert reached == []
    go(tmp_path / "run", replace(CONFIG, compile=True))
    assert sorted(reached) == ["Conv2d", "Sequential"]


def test_other_pictures_than_before_are_noted(tmp_path):
    notes = []
    hear = lambda kind, figures: notes.append(figures["text"]) if kind == "note" else None
    go(tmp_path / "run", stop_after=4)
    go(tmp_path / "run", on_event=hear)
    assert notes == []
    go(tmp_path / "other", stop_after=4)
    monkey = Noise()
    monkey.fingerprint = "others"
    meta = {"method": "two", "train": {"steps": CONFIG.steps, "lr": CONFIG.lr}}
    train(fresh(), monkey, CONFIG, tmp_path / "other", meta=meta, on_event=hear)
    assert "not those that the run began with" in notes[0]
