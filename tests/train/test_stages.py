"""Methods of several stages: settings of their own, averages of those before, and what they derive from disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pellucid.data import latents
from pellucid.data.latents import Derived, asked_for, place_for, write
from pellucid.data.order import Loader, Order
from pellucid.methods.base import CollapseError, Method, Stage
from pellucid.recipes import DataSpec, changed, recipe, recipe_from_json, recipe_to_json
from pellucid.train.checkpoint import best, latest, load_weights, steps_of
from pellucid.train.log import read_log
from pellucid.train.preview import samples_of
from pellucid.train.trainer import StageConfig, TrainConfig, TrainingError, learning_rate, train
from pellucid.types import Batch, Control, Sample


class Noise:
    """29 fixed pictures, no one of which is its own mirror image."""

    shape = (3, 4, 4)
    class_names: tuple[str, ...] = ()
    fingerprint = "noise"

    def __len__(self) -> int:
        return 29

    def batch(self, indices: np.ndarray) -> Batch:
        pictures = [torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(int(i))) for i in indices]
        return Batch(x0=torch.stack(pictures).clamp(-1, 1))


class Chain(Method):
    """A linear map that compresses, and one that says from its codes what the pictures are."""

    name = "chain"

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(48, 5), nn.Linear(5, 48)
        self.guess = nn.Linear(5, 48)
        self.register_buffer("scale", torch.ones(()))
        self.controls = {"way": Control(kind="int", help="", default=0, low=0, high=1)}
        self.readouts, self.image_shape = {}, (3, 4, 4)
        self.seen: list[tuple[Batch, dict[str, torch.Tensor]]] = []
        self.made = 0
        self.collapses_at: int | None = None
        self.ails_from: int | None = None

    def stages(self):
        return Codes(self), Guesses(self)

    def sample(self, n, rng, **controls):
        images = self.decode(torch.randn(n, 5, generator=rng)).view(n, 3, 4, 4)
        return Sample(images=images.clamp(-1, 1), controls=controls)


class Codes(Stage):
    name = "codes"
    shows = None

    def __init__(self, method: Chain) -> None:
        self.method = method
        self.players = {"code": [*method.encode.parameters(), *method.decode.parameters()]}

    def losses(self, batch, rng):
        assert not batch.derived
        x = batch.x0.flatten(1)
        noisy = x + 0.1 * torch.randn(x.shape, generator=rng)
        yield "code", {"back": (self.method.decode(self.method.encode(noisy)) - x).square().mean()}


class Guesses(Stage):
    name = "guesses"
    shows = {"way": 1}  # noqa: RUF012
    derives = True

    def __init__(self, method: Chain) -> None:
        self.method = method
        self.players = {"guess": list(method.guess.parameters())}
        self.steps = 0

    def prepare(self, pictures):
        codes = torch.cat([self.method.encode(x.flatten(1)) for x in pictures(20)])
        self.method.scale.copy_(codes.std().detach())

    def derive(self, x0):
        assert not self.method.training
        self.method.made += len(x0)
        return {"z": self.method.encode(x0.flatten(1)) / self.method.scale, "whole": (x0 > 0).sum((1, 2, 3))}

    def losses(self, batch, rng):
        self.method.seen.append((batch, {"z": self.method.encode(batch.x0.flatten(1)) / self.method.scale}))
        z = batch.derived["z"]
        z = z + 0.1 * torch.randn(z.shape, generator=rng)
        yield "guess", {"far": (self.method.guess(z) - batch.x0.flatten(1)).square().mean()}

    def after_step(self, step: int) -> None:
        self.steps = step
        if step == self.method.collapses_at:
            raise CollapseError("all codes are one; lower lr")

    def ailing(self) -> bool:
        return self.method.ails_from is not None and self.steps >= self.method.ails_from


CONFIG = TrainConfig(
    steps=8, batch_size=4, lr=1e-2, checkpoint_every=3, log_every=1, stages={
        "guesses": StageConfig(steps=11, batch_size=6, lr=3e-3, betas=(0.5, 0.9), ema_decay=0.5, warmup=4),
    },
)  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "derived"


def fresh() -> Chain:
    torch.manual_seed(7)
    return Chain()


def go(run: Path, config: TrainConfig = CONFIG, method: Method | None = None, **options):
    own = {name: {"steps": config.stages[name].steps} for name in config.stages}
    meta = {"method": "chain", "train": {"steps": config.steps, "lr": config.lr, "stages": own}}
    return train(method or fresh(), Noise(), config, run, meta=meta, **options)


def everything(run: Path) -> dict[str, torch.Tensor]:
    found = latest(run)
    assert found is not None
    return {f"{g}.{k}": v for g in ("model", "ema", "optim") for k, v in found.tensors(g).items()}


def assert_same(a: Path, b: Path) -> None:
    one, two = everything(a), everything(b)
    assert one.keys() == two.keys()
    assert [k for k in one if not torch.equal(one[k], two[k])] == []


# ---- resuming


@pytest.mark.parametrize("stop", [3, 8, 9, 13])
def test_a_run_stopped_in_any_stage_and_between_them_continues_bit_for_bit(tmp_path, stop):
    assert go(tmp_path / "alone").step == 19
    assert go(tmp_path / "stopped", stop_after=stop).state == "paused"
    assert latest(tmp_path / "stopped").step == stop
    assert go(tmp_path / "stopped").state == "done"
    assert_same(tmp_path / "alone", tmp_path / "stopped")


def test_kill_9_in_each_stage(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        "import sys, time\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "import test_stages as t\n"
        "tell = lambda kind, figures: kind == 'step' and print(figures['stage'], figures['step'], flush=True)\n"
        "slow = lambda kind, figures: (tell(kind, figures), time.sleep(0.05))\n"
        f"t.go(Path({str(tmp_path / 'killed')!r}), on_event=slow)\n"
    )
    go(tmp_path / "alone")
    reached = []
    for more, delay in ((4, 0.03), (5, 0.0), (4, 0.03)):  # lines to wait for, and how long after
        process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
        reached.append([process.stdout.readline() for _ in range(more)][-1].split())
        time.sleep(delay)
        process.kill()
        process.wait()
    assert [stage for stage, _ in reached] == ["codes", "codes", "guesses"]
    assert subprocess.run([sys.executable, str(script)], check=False).returncode == 0
    assert_same(tmp_path / "alone", tmp_path / "killed")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_are_one_with_two_micro_batches(tmp_path, parallel):
    script = tmp_path / "job.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "import test_stages as t\n"
        f"config = t.replace(t.CONFIG, parallel={parallel!r})\n"
        f"t.go(Path({str(tmp_path / 'two')!r}), config, stop_after=10)\n"
        f"t.go(Path({str(tmp_path / 'two')!r}), config)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    go(tmp_path / "one", replace(CONFIG, micro_batches=2))
    one, two = everything(tmp_path / "one"), everything(tmp_path / "two")
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=1e-5, rtol=1e-4)


# ---- what a stage leaves behind


def test_later_stages_build_on_the_averages_of_those_before(tmp_path):
    method = fresh()
    go(tmp_path / "run", method=method, stop_after=8)
    averages, raw = load_weights(tmp_path / "run"), load_weights(tmp_path / "run", ema=False)
    assert not torch.equal(averages["encode.weight"], raw["encode.weight"])
    assert torch.equal(averages["guess.weight"], raw["guess.weight"])  # nothing has trained it yet
    go(tmp_path / "run", method=(then := fresh()))
    for ema in (True, False):
        kept = load_weights(tmp_path / "run", ema=ema)
        for name in ("encode.weight", "encode.bias", "decode.weight", "decode.bias"):
            assert torch.equal(kept[name], averages[name])
    assert torch.equal(then.encode.weight, averages["encode.weight"])
    codes = torch.cat([nn.functional.linear(Noise().batch(_spread()).x0.flatten(1), then.encode.weight)])
    torch.testing.assert_close(kept["scale"], (codes + then.encode.bias).std())


def _spread() -> np.ndarray:
    return np.unique(np.linspace(0, 28, 20).round().astype(int))


def test_averages_warm_up_anew_in_each_stage(tmp_path, monkeypatch):
    """By hand: decays 1/10, 2/11, ... up to the stage's own largest, of the weights after each step."""
    after = []
    monkeypatch.setattr(
        Guesses, "after_step", lambda self, step: after.append(self.method.guess.weight.detach().clone())
    )
    method = fresh()
    expected = method.guess.weight.detach().clone()
    go(tmp_path / "run", method=method)
    assert len(after) == 11
    for n, weight in enumerate(after):
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(load_weights(tmp_path / "run")["guess.weight"], expected)


def test_checkpoints_hold_the_optimisers_of_their_own_stage_alone(tmp_path):
    go(tmp_path / "run", stop_after=8)
    assert {k[0] for k in latest(tmp_path / "run").tensors("optim")} == {"0"}
    go(tmp_path / "run")
    assert {k[0] for k in latest(tmp_path / "run").tensors("optim")} == {"1"}


def test_the_best_is_of_the_last_stage_begun(tmp_path, monkeypatch):
    """Though its losses are far above those of the stage before."""
    losses = Guesses.losses

    def large(self, batch, rng):
        for player, terms in losses(self, batch, rng):
            yield player, {k: 1000 + v for k, v in terms.items()}

    monkeypatch.setattr(Guesses, "losses", large)
    go(tmp_path / "run", stop_after=8)
    assert best(tmp_path / "run").step <= 8
    go(tmp_path / "run")
    assert best(tmp_path / "run").step > 8


# ---- settings


def test_each_stage_has_its_own_settings(tmp_path):
    method = fresh()
    go(tmp_path / "run", method=method)
    lines = read_log(tmp_path / "run")
    assert [line["stage"] for line in lines] == ["codes"] * 8 + ["guesses"] * 11
    own = CONFIG.of("guesses")
    assert (own.lr, own.batch_size, own.betas, own.decay) == (3e-3, 6, (0.5, 0.9), CONFIG.decay)
    expected = [1e-2] * 8 + [3e-3 * learning_rate(own, step) for step in range(11)]
    assert [line["lr"] for line in lines] == pytest.approx(expected)
    assert {len(batch) for batch, _ in method.seen} == {6}
    assert latest(tmp_path / "run").state["samples_seen"] == 8 * 4 + 11 * 6


def test_a_stage_sees_the_data_from_the_first_position_on(tmp_path):
    method = fresh()
    go(tmp_path / "run", method=method)
    order = Order(29, 6, CONFIG.seed)
    loader = Loader(Noise(), order, flip=True)
    for step, (batch, _) in enumerate(method.seen):
        assert torch.equal(batch.x0, loader.batch(step).x0)


def test_a_players_rate_is_a_factor_on_that_of_its_stage(tmp_path):
    """Adam's first step is lr in every entry with a gradient, whatever the gradient."""
    stages = {"codes": StageConfig(steps=1, lr_of={"code": 0.25})}
    method, before = fresh(), fresh()
    go(tmp_path / "run", replace(CONFIG, stages=stages, grad_clip=0.0), method, stop_after=1)
    moved = (method.decode.bias - before.decode.bias).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.25e-2), rtol=1e-3, atol=0)


def test_settings_for_what_is_not_there_name_what_is(tmp_path):
    with pytest.raises(TrainingError, match=r"stage 'guess'; there are codes, guesses"):
        go(tmp_path / "run", replace(CONFIG, stages={"guess": StageConfig(steps=1)}))
    with pytest.raises(
        TrainingError, match=r"stages.codes.lr_of names a player 'critic'; the stage has code"
    ):
        go(tmp_path / "run", replace(CONFIG, stages={"codes": StageConfig(lr_of={"critic": 2.0})}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("own", "match"),
    [({"steps": 0}, r"stages.a: steps is 0"), ({"batch_size": 5}, r"stages.a: micro_batches is 2; it must divide")],
)  # fmt: skip
def test_a_stages_settings_are_checked_as_those_of_all(own, match):
    with pytest.raises(ValueError, match=match):
        TrainConfig(steps=1, batch_size=4, micro_batches=2, stages={"a": StageConfig(**own)})
    with pytest.raises(ValueError, match=r"lr_of.critic is 0"):
        StageConfig(lr_of={"critic": 0.0})


def test_only_the_last_stage_begun_may_get_more_steps(tmp_path):
    longer = lambda codes, guesses: replace(
        CONFIG, steps=codes, stages={"guesses": replace(CONFIG.stages["guesses"], steps=guesses)}
    )
    run = tmp_path / "run"
    go(run, longer(6, 5), stop_after=3)
    go(run, longer(8, 11), stop_after=5)  # neither has ended
    assert latest(run).step == 8
    go(run, longer(8, 9), stop_after=2)
    with pytest.raises(
        TrainingError, match=r"trained its stage codes for 8 steps.*9 steps of it are another"
    ):
        go(run, longer(9, 11))
    with pytest.raises(TrainingError, match=r"for 2 steps of its stage guesses, more than the 1"):
        go(run, longer(8, 1))
    assert go(run, longer(8, 11)).step == 19
    go(tmp_path / "alone")
    one, other = (load_weights(r)["encode.weight"] for r in (run, tmp_path / "alone"))
    assert torch.equal(one, other)


def test_a_recipe_with_stages_reads_back_equal_and_is_changed_by_name(monkeypatch):
    from pellucid.recipes import factorized

    maker = lambda scale, data: (*factorized.ddpm(scale, data)[:2], CONFIG)
    monkeypatch.setitem(factorized.RECIPES, "chain", maker)
    data = DataSpec(spec="scenes", size=16)
    made = recipe("chain", "tiny", data)
    assert made.train == CONFIG
    assert recipe_from_json(json.loads(json.dumps(recipe_to_json(made)))) == made
    settings = {"stages.guesses.steps": "50", "stages.codes.lr": "1e-3", "stages.codes.lr_of.code": "2"}
    other = changed(made, settings | {"stages.guesses.betas": "[0.1, 0.2]"}).train
    assert other.of("guesses") == replace(CONFIG.of("guesses"), steps=50, betas=(0.1, 0.2))
    assert other.of("codes") == replace(CONFIG.of("codes"), lr=1e-3)
    assert other.stages["codes"].lr_of == {"code": 2.0}
    with pytest.raises(ValueError, match=r"no field 'stages.guesses.step'"):
        changed(made, {"stages.guesses.step": "5"})
    with pytest.raises(ValueError, match=r"train.stages.guesses.steps is 'many'"):
        changed(made, {"stages.guesses.steps": "many"})


def test_steps_and_batch_size_that_are_asked_for_hold_in_every_stage(monkeypatch):
    from pellucid.recipes import factorized

    turned = replace(CONFIG.stages["guesses"], flip=True)
    config = replace(CONFIG, stages={"guesses": turned})
    maker = lambda scale, data: (*factorized.ddpm(scale, data)[:2], config)
    monkeypatch.setitem(factorized.RECIPES, "chain", maker)
    data = DataSpec(spec="scenes", size=16)
    own = recipe("chain", "tiny", data, steps=3, batch_size=2, flip=False).train.of("guesses")
    assert (own.steps, own.batch_size, own.flip, own.lr) == (3, 2, False, 3e-3)
    assert recipe("chain", "tiny", data, flip=True).train.of("guesses") == CONFIG.of("guesses")


def test_the_config_of_a_run_from_before_stages_had_settings_is_read():
    made = recipe("ddpm", "tiny", DataSpec(spec="scenes", size=16))
    data = recipe_to_json(made)
    del data["train"]["stages"]
    assert recipe_from_json(data) == made


# ---- what is derived


def test_derived_values_are_those_computed_directly_mirror_images_too(tmp_path):
    method = fresh()
    go(tmp_path / "run", method=method)
    assert len(method.seen) == 11
    mirrored = 0
    for batch, direct in method.seen:
        torch.testing.assert_close(batch.derived["z"], direct["z"])
        assert torch.equal(batch.derived["whole"], (batch.x0 > 0).sum((1, 2, 3)))
        mirrored += sum(
            any(torch.equal(x.flip(-1), y) for y in Noise().batch(np.arange(29)).x0) for x in batch.x0
        )
    assert 0 < mirrored < 66


def test_without_flips_nothing_is_mirrored(tmp_path, cache):
    method = fresh()
    go(tmp_path / "run", replace(CONFIG, flip=False), method)
    for batch, direct in method.seen:
        torch.testing.assert_close(batch.derived["z"], direct["z"])
    (place,) = cache.iterdir()
    assert (np.load(place / "rows.npy") % 2 == 0).all()


def test_values_of_other_weights_are_never_used(tmp_path, cache):
    """Everything the same but one of the weights before: another place, and the values of the other weights."""
    for lr in (1e-2, 2e-2):
        method = fresh()
        go(tmp_path / f"run-{lr}", replace(CONFIG, lr=lr), method)
        for batch, direct in method.seen:
            torch.testing.assert_close(batch.derived["z"], direct["z"])
    assert len(list(cache.iterdir())) == 2


def test_values_are_computed_once(tmp_path, cache):
    first, then, again = fresh(), fresh(), fresh()
    go(tmp_path / "run", method=first, stop_after=12)
    go(tmp_path / "run", method=then)
    go(tmp_path / "same", method=again)
    rows = np.load(next(cache.iterdir()) / "rows.npy")
    assert (first.made, then.made, again.made) == (len(rows), 0, 0)


@pytest.mark.parametrize("damage", ["truncate", "flip", "missing", "about", "rows", "gone"])
def test_damaged_values_are_made_anew(tmp_path, cache, damage):
    go(tmp_path / "alone")
    go(tmp_path / "run", stop_after=12)
    (place,) = cache.iterdir()
    file = place / ("rows.npy" if damage == "rows" else "0.npy")
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-8])
    elif damage in ("flip", "rows"):
        data = bytearray(file.read_bytes())
        data[-3] ^= 1
        file.write_bytes(data)
    elif damage == "missing":
        file.unlink()
    elif damage == "about":
        (place / "about.json").write_text('{"columns"')
    else:
        shutil.rmtree(place)
    method = fresh()
    go(tmp_path / "run", method=method)
    assert method.made > 0
    assert_same(tmp_path / "alone", tmp_path / "run")
    assert list(cache.iterdir()) == [place]


def test_no_room_for_them_says_how_much_is_needed_and_the_way_out(tmp_path, monkeypatch, cache):
    go(tmp_path / "run", stop_after=8)
    usage = shutil.disk_usage
    tight = lambda path: (
        shutil._ntuple_diskusage(100 << 20, 70 << 20, 30 << 20) if "cache" in str(path) else usage(path)
    )
    monkeypatch.setattr(shutil, "disk_usage", tight)
    with pytest.raises(ValueError, match=r"it takes 65 MiB, and 30 are left.*PELLUCID_CACHE"):
        go(tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setenv("PELLUCID_CACHE", str(cache.parent))
    assert list(cache.iterdir()) == []
    go(tmp_path / "run")
    go(tmp_path / "alone")
    assert_same(tmp_path / "alone", tmp_path / "run")


def test_a_stop_that_is_asked_for_meanwhile_is_heard(tmp_path, monkeypatch, cache):
    derive = Guesses.derive

    def interrupted(self, x0):
        os.kill(os.getpid(), 15)
        return derive(self, x0)

    with monkeypatch.context() as patch:
        patch.setattr(Guesses, "derive", interrupted)
        result = go(tmp_path / "run")
    assert (result.state, result.step) == ("paused", 8)
    assert list(cache.iterdir()) == []
    go(tmp_path / "run")
    go(tmp_path / "alone")
    assert_same(tmp_path / "alone", tmp_path / "run")


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize(
    ("length", "batch_size", "steps"), [(29, 6, 3), (29, 6, 9), (5, 2, 40), (1000, 8, 4)]
)
def test_what_will_be_asked_for_is_known_beforehand(length, batch_size, steps, flip):
    order = Order(length, batch_size, 3)
    asked = set()
    for step in range(steps):
        coins = order.coins(step, salt=0) if flip else np.zeros(batch_size, bool)
        asked |= {(int(i), bool(c)) for i, c in zip(order.indices(step), coins, strict=True)}
    found = asked_for(order, steps, flip=flip)
    named = {(int(r) // 2, bool(r % 2)) for r in found}
    assert asked == named if steps * batch_size < 4 * length else asked <= named
    assert (np.diff(found) > 0).all()
    halves = Order(length, batch_size, 3, rank=1, world_size=2)
    assert np.array_equal(asked_for(halves, steps, flip=flip), found)


def test_a_table_knows_its_rows_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "PART", 4)
    rows = np.array([0, 1, 4, 7, 9, 20, 33])
    place = place_for(["a"], rows)
    assert place != place_for(["b"], rows)
    assert place != place_for(["a"], rows[:-1])
    done = []
    write(
        place,
        rows,
        Noise(),
        lambda x: {"top": x[:, 0, 0], "sum": x.double().sum((1, 2, 3))},
        each=done.append,
    )
    assert done == [4, 7]
    for budget in (0, 1 << 20):  # mapped, and in memory
        table = Derived.open(place, rows, check=True, budget=budget)
        assert isinstance(table.columns["top"], np.memmap) == (budget == 0)
        found = table.of(np.array([16, 2, 0]), np.array([True, False, True]))
        x = Noise().batch(np.array([16, 2, 0])).x0
        assert torch.equal(found["top"], torch.stack([x[0, 0, 0].flip(-1), x[1, 0, 0], x[2, 0, 0].flip(-1)]))
        torch.testing.assert_close(found["sum"], x.sum((1, 2, 3)))
        assert found["sum"].dtype == torch.float32
    with pytest.raises(IndexError, match="of sample 2, mirrored"):
        table.of(np.array([2]), np.array([True]))
    assert Derived.open(place, rows[:-1], check=True) is None


def test_values_that_do_not_fit_the_pictures_are_refused(tmp_path):
    rows = np.arange(10)
    with pytest.raises(ValueError, match="of 10 pictures"):
        write(place_for(["a"], rows), rows, Noise(), lambda x: {"z": x[:3]})


# ---- collapse


def test_while_a_stage_ails_the_last_sound_checkpoint_is_kept(tmp_path):
    method = fresh()
    method.ails_from, method.collapses_at = 5, 9
    notes = []
    hear = lambda kind, figures: notes.append(figures["text"]) if kind == "note" else None
    config = replace(CONFIG, checkpoint_every=2, keep_last=1)
    with pytest.raises(TrainingError, match=r"guesses has collapsed at step 17: all codes are one; lower lr; the last "
                                            r"sound checkpoint is that of step 12, .*00000012"):  # fmt: skip
        go(tmp_path / "run", config, method, on_event=hear)
    assert latest(tmp_path / "run").step == 12
    assert sum("signs of a collapse" in text for text in notes) == 2  # steps 14 and 16


def test_a_stage_that_ends_ailing_is_saved_and_said(tmp_path):
    method = fresh()
    method.ails_from = 5
    notes = []
    hear = lambda kind, figures: notes.append(figures["text"]) if kind == "note" else None
    assert go(tmp_path / "run", replace(CONFIG, checkpoint_every=1000), method, on_event=hear).state == "done"
    assert sum("signs of a collapse" in text and "may mean nothing" in text for text in notes) == 1


def test_a_pause_saves_an_ailing_stage_and_leaves_the_sound_one(tmp_path):
    method = fresh()
    method.ails_from = 5
    config = replace(CONFIG, checkpoint_every=2, keep_last=1)
    assert go(tmp_path / "run", config, method, stop_after=15).state == "paused"
    assert {"00000012", "00000015"} <= {p.name for p in steps_of(tmp_path / "run")}
    assert best(tmp_path / "run").step <= 12
    method = fresh()
    method.collapses_at = 9
    with pytest.raises(TrainingError, match=r"sound checkpoint is that of step 1[26]"):
        go(tmp_path / "run", config, method)
    alone = fresh()
    alone.ails_from = 0
    assert go(tmp_path / "ill", config, alone).step == latest(tmp_path / "ill").step == 19  # the end is saved


def test_a_collapse_before_any_checkpoint_says_so(tmp_path, monkeypatch):
    def fails(self, batch, rng):
        raise CollapseError("nothing moves; raise lr")
        yield

    monkeypatch.setattr(Codes, "losses", fails)
    with pytest.raises(
        TrainingError, match=r"codes has collapsed at step 0: .*there is no sound checkpoint yet"
    ):
        go(tmp_path / "run")
    assert steps_of(tmp_path / "run") == []


# ---- pictures, and what is said


def test_previews_show_what_the_stage_has_learned(tmp_path):
    go(tmp_path / "run", replace(CONFIG, sample_every=4), preview=samples_of("chain", 0))
    shown = sorted((tmp_path / "run" / "samples").iterdir())
    assert [p.stem for p in shown] == ["00000012", "00000016", "00000019"]  # the first stage shows nothing
    from PIL import Image

    made_by = json.loads(Image.open(shown[0]).text["pellucid"])
    assert (made_by["stage"], made_by["controls"]) == ("guesses", {"way": 1})


@pytest.mark.parametrize("shape", [(2, 1, 1), (3, 1, 4), (4, 8, 8)])
def test_what_is_no_picture_has_no_preview(shape):
    method = fresh()
    method.image_shape = shape
    assert samples_of("chain", 0)(method, method.stages()[1]) is None


def test_progress_names_the_stage_and_counts_its_own_steps(tmp_path, capsys):
    from pellucid.cli.console import Progress

    progress = Progress(every=0)
    go(tmp_path / "run", on_event=progress.on_event)
    lines = [line for line in capsys.readouterr().err.splitlines() if "step" in line]
    assert lines[0].startswith("codes: step 1/8 ")
    assert lines[-1].startswith("guesses: step 11/11 ")


def test_a_network_is_trained_at_the_last_step_of_its_last_stage(tmp_path, monkeypatch):
    from pellucid.reproduce import harness

    monkeypatch.setattr(harness, "_planned", lambda *_: (None, None, tmp_path / "run"))
    trained = lambda: harness._is_trained(None, "chain", "noise", 0, {})
    assert not trained()
    go(tmp_path / "run", stop_after=8)
    assert not trained()
    go(tmp_path / "run", stop_after=10)
    assert not trained()
    go(tmp_path / "run")
    assert trained()
