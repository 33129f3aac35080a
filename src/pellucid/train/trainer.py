"""The training loop: one, for every method, on one process or many.

It knows a method only through its stages. A step asks a stage for its losses, player by player; each
player's gradients are averaged over the micro-batches and the ranks, checked, clipped and stepped
before the next player's losses are asked for.

Everything random in step s is drawn from a generator seeded by (seed, stage, s, micro-batch), and the
data order by (seed, position), so that a run continued from a checkpoint is, bit for bit, the run that
was never stopped; and W processes with one micro-batch each are one process with W micro-batches.

A method of several stages is trained stage after stage. Each counts its own steps and sees the data
from its first position on; the averaged weights of the stages before are what it builds on.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import platform
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from pellucid.data.groups import Groups
from pellucid.data.images import Dataset
from pellucid.data.latents import PART, Derived, asked_for, pictures, place_for, write
from pellucid.data.order import Loader, Order
from pellucid.methods.base import CollapseError, Method, Stage
from pellucid.train.checkpoint import (
    Checkpoint,
    best,
    digest,
    latest,
    load_weights,
    mark_best,
    prune,
    read_checkpoint,
    save_checkpoint,
    steps_of,
)
from pellucid.train.distributed import World, all_whole, placed, shard, whole, world
from pellucid.train.ema import EMA
from pellucid.train.log import Log
from pellucid.train.preview import Preview, save_png
from pellucid.types import Batch

Event = Callable[[str, dict[str, Any]], None]
"""Called with a kind ("start", "step", "saved", "note", "end") and its figures; the command line draws from it."""


class TrainingError(ValueError):
    """Training cannot go on; the message says why and what to do."""


class _StopError(Exception):
    """A stop was asked for where there is nothing to save."""


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """What one stage does otherwise than the rest of its run; None is as everywhere."""

    steps: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    betas: tuple[float, float] | None = None
    weight_decay: float | None = None
    warmup: int | None = None
    decay: float | None = None
    grad_clip: float | None = None
    ema_decay: float | None = None
    flip: bool | None = None
    lr_of: Mapping[str, float] = field(default_factory=dict)
    """Player -> factor on the stage's lr; 1 for those that are not named."""

    def __post_init__(self) -> None:
        for player, factor in self.lr_of.items():
            if not factor > 0:
                raise ValueError(f"lr_of.{player} is {factor}; a factor on lr is above 0")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    steps: int
    """Optimiser steps of each stage."""
    batch_size: int
    """Samples a step, over all processes and micro-batches."""
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    warmup: int = 0
    """Steps over which the learning rate rises from 0."""
    decay: float = 0.0
    """Share of the steps, at the end, over which the learning rate falls to a twentieth."""
    grad_clip: float = 1.0
    """Largest norm of a player's gradient; 0 leaves it alone."""
    ema_decay: float = 0.999
    micro_batches: int = 1
    """Parts that a batch is computed in; raised to the number of processes where there are more."""
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = True
    compile: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: every process holds all weights, or a share of them, of their averages and of the optimiser."""
    device: str = "auto"
    """auto takes a GPU where there is one."""
    seed: int = 0
    flip: bool = True
    """Mirror pictures at random."""
    workers: int = 1
    """Threads that prepare batches."""
    log_every: int = 20
    sample_every: int = 0
    """Steps between pictures of what the model makes; 0 makes none."""
    checkpoint_every: int = 500
    keep_last: int = 2
    """Checkpoints kept besides the best."""
    stages: Mapping[str, StageConfig] = field(default_factory=dict)
    """Stage -> what it does otherwise, where a method has several."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "micro_batches", "log_every", "checkpoint_every", "keep_last"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is at least 1")
        check_seed(self.seed)
        if self.lr <= 0:
            raise ValueError(f"lr is {self.lr}; it is above 0")
        for name in ("weight_decay", "warmup", "grad_clip", "sample_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it is at least 0")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay is {self.decay}; it is a share of the steps, 0 to 1")
        for name, values in (("ema_decay", (self.ema_decay,)), ("betas", self.betas)):
            if not all(0 <= v < 1 for v in values):
                raise ValueError(f"{name} is {getattr(self, name)}; at least 0 and below 1")
        if self.parallel == "fsdp" and self.compile:
            raise ValueError(
                "compile works with parallel 'ddp' only: layers that are gathered break its graphs"
            )
        if self.batch_size % self.micro_batches:
            raise ValueError(
                f"micro_batches is {self.micro_batches}; it must divide batch_size, {self.batch_size}"
            )
        for name in self.stages:
            try:
                self.of(name)
            except ValueError as error:
                raise ValueError(f"stages.{name}: {error}") from None

    def of(self, stage: str) -> TrainConfig:
        """What holds in one stage: its own settings where it has any, and no more `stages`."""
        own = self.stages.get(stage, StageConfig())
        given = {k: v for k, v in vars(own).items() if v is not None and k != "lr_of"}
        return replace(self, stages={}, **given)


def check_seed(seed: int) -> None:
    """Raise ValueError for what no generator takes."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed is {seed}; it is at least 0 and below 2^63")


FREE = (
    "steps",
    "device",
    "parallel",
    "workers",
    "log_every",
    "sample_every",
    "checkpoint_every",
    "keep_last",
    "micro_batches",
)
"""What may differ when a run is continued; the rest decides its weights."""


@dataclass(frozen=True)
class TrainResult:
    state: Literal["done", "paused"]
    step: int
    seconds: float
    """Spent in this process."""
    images_per_second: float


def device_of(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps` -> a device that is there. Raises ValueError otherwise."""
    if name == "auto":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if torch.cuda.is_available():
            return torch.device("cuda", local)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device is {name!r}; it is auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device.type == "cuda" and there["cuda"]:
        there["cuda"] = (device.index or 0) < torch.cuda.device_count()
    if not there.get(device.type, False):
        raise ValueError(
            f"device is {name!r}, which this machine does not have; use cpu, or auto to take what there is"
        )
    return device


def seeded(*key: int) -> torch.Generator:
    """A CPU generator for one use, named by integers."""
    state = np.random.SeedSequence(key).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Factor on `lr` at a step: linear warm-up, then flat, then a linear fall to 0.05."""
    factor = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    tail = config.steps * config.decay
    if tail and step >= config.steps - tail:
        factor *= max(0.05, (config.steps - step) / tail)
    return factor


class Player:
    """One owner of parameters: its optimiser, and its gradients' way to a step."""

    def __init__(
        self,
        name: str,
        parameters: list[nn.Parameter],
        config: TrainConfig,
        device: torch.device,
        *,
        lr_factor: float = 1.0,
    ) -> None:
        self.name, self.parameters = name, [p for p in parameters if p.requires_grad]
        self.config, self.lr = config, config.lr * lr_factor
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=self.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=device.type in ("cpu", "cuda") and config.parallel == "ddp",
        )

    def gather(self, ranks: World) -> float:
        """Average the gradient over ranks and clip it; returns its norm from before, which may not be finite."""
        grads = [p.grad for p in self.parameters if p.grad is not None]
        if ranks.size > 1 and self.config.parallel == "ddp":  # FSDP has averaged them in the backward pass
            flat = torch.cat([g.flatten() for g in grads])
            torch.distributed.all_reduce(flat)
            flat /= ranks.size
            for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                g.copy_(part.view_as(g))
        norm = whole(torch.nn.utils.get_total_norm(grads)) if grads else torch.zeros(())
        size = norm.item()
        if math.isfinite(size) and self.config.grad_clip and grads:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.grad_clip, norm)
        return size

    def step(self, factor: float) -> None:
        """Step on the gradient that is there; `factor` is the schedule's, on the learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor
        self.optimizer.step()

    def state(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for i, parameter in enumerate(self.parameters):
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"{self.name}.{i}.{key}"] = whole(torch.as_tensor(value))
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        for i, parameter in enumerate(self.parameters):
            prefix = f"{self.name}.{i}."
            state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if state:
                # moments take the parameter's memory format: in another, the same sums round differently
                self.optimizer.state[parameter] = {
                    k: v.to(parameter.device, copy=True) if k == "step" else placed(v, parameter)
                    for k, v in state.items()
                }


@contextlib.contextmanager
def averaged(method: Method, ema: EMA) -> Iterator[Method]:
    """The method with its averaged weights, in evaluation mode, for as long as the block lasts."""
    training = method.training
    own = {k: v.detach().clone() for k, v in method.state_dict().items()}
    method.load_state_dict(ema.state_dict())
    method.eval()
    try:
        yield method
    finally:
        method.load_state_dict(own)
        method.train(training)


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """SIGINT and SIGTERM set an event instead of ending the process; a second SIGINT interrupts at once."""
    wanted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield wanted
        return

    def on_signal(number: int, frame: Any) -> None:
        if wanted.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        wanted.set()

    before = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield wanted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def provenance() -> dict[str, Any]:
    """What made this run: versions, and the commit where the package runs from a checkout."""
    commit = None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
        commit = done.stdout.strip() or None
    return {
        "pellucid": version("pellucid"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit,
    }


def place_of(spec: str) -> str | None:
    """Stands for the folder or file where a user's pictures lie, wherever it is named from; None if not on disk."""
    path = Path(spec).expanduser()
    return hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16] if path.exists() else None


@contextlib.contextmanager
def _alone(run: Path) -> Iterator[None]:
    """The run folder, made where it is not there, for one process at a time; a lock that ends with the process."""
    lock = FileLock(run / ".lock")
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise TrainingError(
            f"{run} is being trained by another process; wait for its end, or name another folder with --out"
        ) from None
    except NotImplementedError:  # a file system without locks
        pass
    except OSError as error:
        raise TrainingError(f"the run folder {run} cannot be written: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def _claim(
    run: Path,
    recipe: Mapping[str, Any],
    data: str,
    lengths: Mapping[str, int],
    resume: bool,
    begin_from: Path | None,
) -> None:
    """Make the run folder ours: write config.json, or find that the one there is of the same run.

    `data` is the fingerprint of the pictures, `lengths` the steps of each stage, in order. A folder in which
    nothing has been trained yet is anybody's.
    """
    path = run / "config.json"
    seen = {"fingerprint": data, "place": place_of(str(recipe.get("data", {}).get("spec", "")))}
    try:
        began = json.loads(path.read_text()) if path.exists() else None
        if began is not None and "recipe" not in began:
            raise KeyError("recipe")
        if began is not None and (run / "model.safetensors").exists():
            raise TrainingError(f"{run} is an exported model, which cannot be continued; name another --out")
        if not steps_of(run):
            began = None
        if began is not None:
            if not resume:
                raise TrainingError(
                    f"{run} already holds a run, and --no-resume was asked for; name another folder with --out, "
                    f"or remove this one yourself"
                )
            reached = max((int(p.name) for p in steps_of(run)), default=0)
            _check_lengths(run, began["recipe"].get("train", {}), lengths, reached)
            differing = set(_differences(began["recipe"], dict(recipe)))
            before = began.get("data", {})
            if any(v and v == before.get(k) for k, v in seen.items()):
                differing -= {"data.spec"}  # the same pictures by another name
            if differing:
                raise TrainingError(
                    f"{run} holds a run with other settings ({', '.join(sorted(differing)[:6])}); continue it with its "
                    f"own settings, or name another folder with --out"
                )
        ours = provenance()
        known: dict[str, Any] = {"made_by": ours, "data": seen}
        if begin_from is not None:
            known["began_from"] = str(begin_from)
        if began is not None:  # what began the run is kept beside what continues it
            known |= {k: v for k, v in began.items() if k != "recipe"}
            if known.get("made_by") != ours:
                known["continued_by"] = ours
        part = path.with_suffix(".part")
        part.write_text(json.dumps({"recipe": recipe, **known}, indent=1) + "\n")
        os.replace(part, path)
    except OSError as error:
        raise TrainingError(f"the run folder {run} cannot be written: {error.strerror or error}") from error
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError):
        raise TrainingError(f"{path} is no config of a run; name another folder with --out") from None


def _check_lengths(run: Path, began: Mapping[str, Any], lengths: Mapping[str, int], reached: int) -> None:
    """A TrainingError where a stage is to have fewer steps than it had, or others than the next stage built on.

    `began` is the training that the run was last started with, `reached` the step it got to.
    """
    left, last = reached, list(lengths)[-1]
    for name, now in lengths.items():
        if left <= 0:
            return
        own = (began.get("stages") or {}).get(name) or {}
        was = own.get("steps") or began.get("steps") or now
        if name != last and left > was and now != was:
            raise TrainingError(
                f"{run} has trained its stage {name} for {was} steps, and later stages on what came of them; {now} "
                f"steps of it are another run. Ask for {was}, or name another folder with --out"
            )
        if left > now and (name == last or left <= was):
            of_stage = "" if len(lengths) == 1 else f" of its stage {name}"
            raise TrainingError(
                f"{run} has been trained for {left} steps{of_stage}, more than the {now} that were asked for; ask for "
                f"as many or more, or name another folder with --out"
            )
        left -= was


def _differences(a: Any, b: Any, at: str = "") -> Iterator[str]:
    if isinstance(a, dict) or isinstance(b, dict):  # none is as good as empty
        a, b = ({} if v is None else v for v in (a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        for key in a.keys() | b.keys():
            place = f"{at}.{key}" if at else key
            free = (at == "train" and key in FREE) or (at.startswith("train.stages.") and key == "steps")
            if not free:
                yield from _differences(a.get(key), b.get(key), place)
    elif a != b:
        yield at


def train(
    method: Method,
    dataset: Dataset,
    config: TrainConfig,
    run: Path,
    *,
    meta: Mapping[str, Any],
    preview: Preview | None = None,
    resume: bool = True,
    on_event: Event = lambda kind, figures: None,
    stop_after: int | None = None,
    begin_from: Path | None = None,
) -> TrainResult:
    """Train a method; continue where the run folder holds a checkpoint of the same recipe.

    SIGINT or SIGTERM saves and returns "paused". `stop_after` does the same after so many steps of
    this process. `meta` is the recipe as JSON; it goes into config.json and decides whether a folder
    holds this run. Of a run at `begin_from`, which trained the first stages of this method and perhaps others, those
    stages are taken over with its averaged weights, where nothing has been trained here yet.

    Raises TrainingError: the folder is of another run or cannot be written, a loss or gradient is not
    finite (the batch is saved, no optimiser has stepped), a stage has collapsed, memory does not suffice for one
    sample, `config.stages` names what the method does not have; CheckpointError where a checkpoint cannot be written.
    """
    _check_names(method, config)
    groups = _groups(method, dataset)
    device = device_of(config.device)
    ranks = world(device)
    with stop_signals() as wanted, _alone(run) if ranks.main else contextlib.nullcontext():
        if ranks.main:
            lengths = {stage.name: config.of(stage.name).steps for stage in method.stages()}
            _claim(run, meta, dataset.fingerprint, lengths, resume, begin_from)
        ranks.wait()
        return _Run(
            method, dataset, config, run, device, ranks, on_event, preview, meta, groups, begin_from
        ).go(wanted, stop_after)


def _check_names(method: Method, config: TrainConfig) -> None:
    """A TrainingError where settings are for a stage, a player or a way of sharing that the method does not have."""
    if config.parallel == "fsdp" and not method.shardable:
        raise TrainingError(
            f"{method.name} has weights that are asked for whole: train it with --parallel ddp, where every process "
            f"has them all"
        )
    stages = {stage.name: stage for stage in method.stages()}
    for name, own in config.stages.items():
        if name not in stages:
            raise TrainingError(f"the settings name a stage {name!r}; there are {', '.join(stages)}")
        for player in own.lr_of:
            if player not in stages[name].players:
                known = ", ".join(stages[name].players)
                raise TrainingError(f"stages.{name}.lr_of names a player {player!r}; the stage has {known}")


def _groups(method: Method, dataset: Dataset) -> dict[int, Groups]:
    """What draws partners, by how many attributes they share, for the stages that want some."""
    wanted = {stage.shared for stage in method.stages()} - {0}
    try:
        return {shared: Groups.of(dataset, shared=shared) for shared in wanted}
    except ValueError as error:
        raise TrainingError(str(error)) from None


class _Run:
    def __init__(
        self,
        method: Method,
        dataset: Dataset,
        config: TrainConfig,
        run: Path,
        device: torch.device,
        ranks: World,
        on_event: Event,
        preview: Preview | None,
        meta: Mapping[str, Any],
        groups: Mapping[int, Groups],
        begin_from: Path | None,
    ) -> None:
        self.groups, self.begin_from = groups, begin_from
        self.config, self.run, self.device, self.ranks = config, run, device, ranks
        self.identity = [
            meta.get("method"),
            meta.get("config"),
        ]  # what, besides weights, says what a part does
        self.say: Event = on_event if ranks.main else lambda kind, figures: None
        self.preview = preview
        self.format = torch.channels_last if config.channels_last else torch.contiguous_format
        self.method = method.to(device).to(memory_format=self.format).train()  # type: ignore[call-overload]
        if config.parallel == "fsdp":
            shard(self.method, device, ranks)
        self.stages = method.stages()
        self.configs = [config.of(stage.name) for stage in self.stages]
        self.total = sum(own.steps for own in self.configs)
        names = {id(p): name for name, p in method.named_parameters()}
        self.owned = [
            {names[id(p)] for ps in stage.players.values() for p in ps if id(p) in names}
            for stage in self.stages
        ]
        self.players: dict[str, Player] = {}  # of the stage that is trained
        self.optim: Mapping[str, Tensor] = {}  # of a checkpoint, until the stage begins whose it is
        self.ema = EMA(method, config.ema_decay)
        self.micro = max(config.micro_batches, ranks.size)
        if self.micro % ranks.size:
            raise TrainingError(
                f"micro_batches is {config.micro_batches}; {ranks.size} processes must divide it"
            )
        self.dataset = dataset
        self.step = 0  # over all stages
        self.seen = 0  # samples, over all stages
        self.derived_from: str | None = None  # the weights by which the stage's derived values are known
        self.best = math.inf
        self.loss = math.nan  # a running mean, which decides what is best

    # ---- state -------------------------------------------------------------------------------

    def restore(self) -> None:
        found: Checkpoint | None = latest(self.run, say=lambda text: self.say("note", {"text": text}))
        if found is None:
            if self.begin_from is not None:
                self.take_over(self.begin_from)
            return
        own = self.method.state_dict()
        weights = found.tensors("model")
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in weights.items()}:
            raise TrainingError(
                f"the checkpoint in {found.folder} is of another network; name another folder with --out"
            )
        self.method.load_state_dict({k: placed(v, own[k]) for k, v in weights.items()})
        self.ema.load_state_dict(found.tensors("ema"), int(found.state["ema_updates"]))
        self.optim = found.tensors("optim")
        self.step, self.seen = found.step, int(found.state["samples_seen"])
        self.derived_from = found.state.get("derived_from")
        self.best, self.loss = (_float(found.state[k]) for k in ("best", "loss"))
        if self.ranks.main and self.loss <= self.best and not found.state.get("ailing"):
            marked = best(self.run)
            if marked is None or marked.step < found.step:  # a kill came between the checkpoint and its mark
                mark_best(self.run, found, self.loss)
        if found.state.get("data") != self.dataset.fingerprint:
            text = "the pictures are not those that the run began with; it continues on what is there now"
            self.say("note", {"text": text})

    def take_over(self, other: Path) -> None:
        """Begin after the stages that another run has trained: those of which it holds every parameter."""
        try:
            weights = load_weights(other)
            began = json.loads((other / "config.json").read_text())
            config, data = began["recipe"]["config"], began.get("data", {})
        except (ValueError, OSError, LookupError, TypeError) as error:
            raise TrainingError(f"cannot begin from {other}: {error}") from None
        ours = self.identity[1] or {}
        # what either has not is no difference: another method has other fields, and one without attributes no parts
        both = {k for k in config.keys() & ours.keys() if config[k] and ours[k]}
        if differing := sorted(_differences({k: config[k] for k in both}, {k: ours[k] for k in both})):
            raise TrainingError(
                f"{other} was trained with other settings ({', '.join(differing[:6])}), and what is begun from it "
                f"would take its weights for something else: give the same settings, or train without it"
            )
        if data.get("fingerprint") not in (None, self.dataset.fingerprint):
            self.say("note", {"text": f"{other} was trained on other pictures than these"})
        own = self.method.state_dict()
        taken = {k: v for k, v in weights.items() if k in own and v.shape == own[k].shape}
        covered = 0
        while covered < len(self.owned) and self.owned[covered] <= taken.keys():
            covered += 1
        if not covered:
            lost = sorted(self.owned[0] - taken.keys())
            raise TrainingError(
                f"{other} holds no stage of this method, or one of another size: it lacks {len(lost)} weights of the "
                f"stage {self.stages[0].name}, such as {lost[0]}. Train with the settings of that run, or without it"
            )
        # of a stage that is trained here, nothing: parts of the same name may have been trained there too
        here = set().union(*self.owned[covered:]) - set().union(*self.owned[:covered])
        begun = {k: placed(v, own[k]) for k, v in taken.items() if k not in here}
        self.method.load_state_dict(begun, strict=False)
        self.ema.take(self.method)
        self.step = sum(c.steps for c in self.configs[:covered])
        names = ", ".join(stage.name for stage in self.stages[:covered])
        self.say("note", {"text": f"{names} taken over from {other}"})

    def save(self, *, ailing: bool) -> None:
        # the step is the same on all ranks, and what is written is gathered by all: rank 0 writes for them
        optim: dict[str, Tensor] = {}
        for player in self.players.values():  # those of finished stages have nothing left to do
            optim |= player.state()
        tensors = {
            "model": all_whole(self.method.state_dict()),
            "ema": all_whole(self.ema.state_dict()),
            "optim": optim,
        }
        if self.ranks.main:
            improved = self.loss < self.best and not ailing
            self.best = self.loss if improved else self.best
            state = {
                "ema_updates": self.ema.updates,
                "samples_seen": self.seen,
                "best": _text(self.best),
                "loss": _text(self.loss),
                "data": self.dataset.fingerprint,
                "derived_from": self.derived_from,
                "ailing": ailing,
                "finished": self.step == self.total,
            }
            made = save_checkpoint(self.run, self.step, tensors, state)
            if improved:
                mark_best(self.run, made, self.loss)
            if not ailing:  # or the last sound one would go
                prune(self.run, self.config.keep_last)
            self.say("saved", {"step": self.step, "folder": str(made.folder)})
        self.ranks.wait()

    # ---- one step ----------------------------------------------------------------------------

    def autocast(self) -> contextlib.AbstractContextManager:
        if self.config.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def parts(self, batch: Batch) -> list[tuple[int, Batch]]:
        """This rank's micro-batches, each with its number among all ranks'."""
        mine = self.micro // self.ranks.size
        share = len(batch) // mine
        first = self.ranks.rank * mine
        return [(first + i, _rows(batch, slice(i * share, (i + 1) * share))) for i in range(mine)]

    def one_step(self, index: int, stage: Stage, batch: Batch, local: int) -> dict[str, float]:
        """Every player's turn, the micro-batches in lockstep; returns the logged figures."""
        own, players = self.configs[index], self.players
        parts = self.parts(batch)
        factor = learning_rate(own, local)
        turns = [
            iter(stage.losses(part, seeded(self.config.seed, index, local, number))) for number, part in parts
        ]
        figures: dict[str, float] = {}
        summed = 0.0  # of what is trained; terms that are only logged have no part in it
        while True:
            total: dict[str, Tensor] = {}
            names: tuple[str, ...] = ()
            for turn in turns:
                with self.autocast():
                    item = next(turn, None)
                if item is None:
                    break
                who, terms = item
                names = (who,) if isinstance(who, str) else who
                loss = sum(v for k, v in terms.items() if not k.startswith("_"))
                assert isinstance(loss, Tensor)
                (loss / len(turns)).backward()
                for key, value in terms.items():
                    total[key] = total.get(key, 0.0) + value.detach() / len(turns)
            if not names:
                break
            values = {k.lstrip("_"): float(v) for k, v in total.items()}
            summed += sum(float(v) for k, v in total.items() if not k.startswith("_"))
            finite = all(map(math.isfinite, values.values()))
            (broken,) = self.ranks.any(not finite)
            norms = {} if broken else {name: players[name].gather(self.ranks) for name in names}
            if broken or not all(map(math.isfinite, norms.values())):
                self.refuse(values, sum(norms.values()), batch, own)
            for name in names:
                players[name].step(factor)
            # one player's loss reaches another's parameters: those gradients are nobody's
            self.method.zero_grad(set_to_none=True)
            alone = len(names) == len(players)  # terms of all players at once need no name before them
            figures |= {k if alone else f"{'+'.join(names)}.{k}": v for k, v in values.items()}
            figures |= {f"{n}.grad_norm" if len(players) > 1 else "grad_norm": v for n, v in norms.items()}
        stage.after_step(local)
        self.ema.update(self.method)
        figures["lr"] = own.lr * factor
        figures["loss"] = summed
        return figures

    def refuse(self, values: Mapping[str, float], norm: float, batch: Batch, own: TrainConfig) -> None:
        """Stop on NaN or infinity, with what is needed to look into it."""
        from safetensors.torch import save_file

        path = self.run / f"not-finite-{self.step:08d}-rank{self.ranks.rank}.safetensors"
        with contextlib.suppress(OSError):
            save_file({"x0": batch.x0.cpu().contiguous()}, path)
        bad = [k for k, v in values.items() if not math.isfinite(v)]
        whole = "the last checkpoint is whole" if steps_of(self.run) else "there is no checkpoint yet"
        what = f"the loss term {', '.join(bad)}" if bad else "the gradient"
        raise TrainingError(
            f"{what} is not finite at step {self.step}; no optimiser has stepped on it. Its batch is in {path}; "
            f"{whole}. Lower lr (now {own.lr}) with another --out, or use fp32 if this was bf16"
        )

    def collapsed(self, stage: Stage, error: CollapseError) -> TrainingError:
        """What to say of a stage that has failed for good. Nothing is saved: the weights are worth nothing."""
        sound = None
        for folder in steps_of(self.run):
            found = read_checkpoint(folder)
            if found is not None and not found.state.get("ailing"):
                sound = found
        kept = "there is no sound checkpoint yet"
        if sound is not None:
            kept = f"the last sound checkpoint is that of step {sound.step}, {sound.folder}"
        return TrainingError(f"stage {stage.name} has collapsed at step {self.step}: {error}; {kept}")

    # ---- the run -----------------------------------------------------------------------------

    def some_pictures(self, n: int) -> Iterator[Tensor]:
        """n pictures spread over the data set, or all of them; the same on every rank and in every run."""
        spread = np.unique(np.linspace(0, len(self.dataset) - 1, n).round().astype(int))
        for start in range(0, len(spread), 32):
            yield self.dataset.batch(spread[start : start + 32]).x0

    def go(self, wanted: threading.Event, stop_after: int | None) -> TrainResult:
        self.restore()
        first, seen, began = self.step, self.seen, time.perf_counter()
        self.say("start", {"step": self.step, "steps": self.total, "device": str(self.device)})
        until = stop_after and first + stop_after
        paused = False
        try:
            with contextlib.ExitStack() as stack:
                log = stack.enter_context(Log(self.run, start=self.step)) if self.ranks.main else None
                before = 0
                for index, own in enumerate(self.configs):
                    local = self.step - before
                    before += own.steps
                    if local >= own.steps or paused:
                        continue
                    paused = self.run_stage(index, local, log, wanted, until) and self.step < self.total
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise TrainingError(
                f"the disk of {self.run} is full; make room and start again: the last checkpoint is whole, and the "
                f"run continues from it"
            ) from error
        seconds = time.perf_counter() - began
        rate = (self.seen - seen) / max(seconds, 1e-9)
        result = TrainResult("paused" if paused else "done", self.step, seconds, rate)
        self.say("end", {"state": result.state, "step": self.step, "seconds": seconds})
        return result

    def begin_stage(self, index: int, local: int) -> None:
        """Its optimisers, and at its first step the weights, buffers and figures that it begins with."""
        stage, own = self.stages[index], self.configs[index]
        factors = {**stage.rates, **self.config.stages.get(stage.name, StageConfig()).lr_of}
        self.players = {
            n: Player(f"{index}.{n}", list(ps), own, self.device, lr_factor=factors.get(n, 1.0))
            for n, ps in stage.players.items()
        }
        for player in self.players.values():
            player.load(self.optim)
        self.optim = {}
        self.micro = max(self.config.micro_batches, self.ranks.size)
        if local == 0:
            before = set().union(*self.owned[:index])
            averages = self.ema.state_dict()
            self.method.load_state_dict({k: averages[k] for k in before}, strict=False)
            stage.prepare(self.some_pictures)
            self.ema.take(self.method)
            self.best, self.loss = math.inf, math.nan
            self.derived_from = None
        if stage.derives and self.derived_from is None:
            self.derived_from = digest(all_whole(self.method.state_dict()))
        others = set().union(*self.owned) - self.owned[index]
        self.ema.follow(self.owned[index], others, own.ema_decay, updates=local)

    def derived(self, index: int, order: Order, wanted: threading.Event) -> Derived:
        """What the stage derives of the samples that it will see: as it is kept on disk, or computed now.

        The first process writes. Where weights are split all have to compute; otherwise the others wait, at every
        part, as no process group lets a process wait for long. Raises _StopError where a stop was asked for.
        """
        stage, own, ranks = self.stages[index], self.configs[index], self.ranks
        assert self.derived_from is not None
        rows = asked_for(order, own.steps, flip=own.flip, all_of_them=stage.shared > 0)
        key = [self.dataset.fingerprint, *self.dataset.shape, stage.name, self.derived_from, self.identity]
        place = place_for(key, rows)
        kept = Derived.open(place, rows, check=True) if ranks.main else None
        (there,) = ranks.any(kept is not None)
        if there:
            ranks.wait()
            return kept or _opened(place, rows)

        told, begun = time.monotonic(), time.monotonic()

        def meet(done: int) -> None:
            nonlocal told
            (stop,) = ranks.any(wanted.is_set())
            if stop:
                raise _StopError
            if time.monotonic() - told > 10 or done == len(rows):
                told = time.monotonic()
                text = f"stage {stage.name} has seen {done} of {len(rows)} pictures beforehand, in {told - begun:.0f} s"
                self.say(
                    "note",
                    {"text": text if done < len(rows) else f"{text}; what it needs is kept in {place}"},
                )

        @torch.no_grad()
        def derive(x0: Tensor) -> Mapping[str, Tensor]:
            return stage.derive(x0.to(self.device).contiguous(memory_format=self.format))

        self.method.eval()
        try:
            if ranks.main:
                write(place, rows, self.dataset, derive, each=meet)
            else:
                for start in range(0, len(rows), PART):
                    if self.config.parallel == "fsdp":
                        derive(pictures(self.dataset, rows[start : start + PART]))
                    meet(start)
        finally:
            self.method.train()
        ranks.wait()
        return _opened(place, rows)

    def run_stage(
        self, index: int, local: int, log: Log | None, wanted: threading.Event, until: int | None
    ) -> bool:
        """Train one stage to its end; True where it was asked to stop, at its end or before."""
        config, stage, own = self.config, self.stages[index], self.configs[index]
        self.begin_stage(index, local)
        order = Order(
            len(self.dataset), own.batch_size, config.seed,
            rank=self.ranks.rank, world_size=self.ranks.size,
        )  # fmt: skip
        derived = None
        if stage.derives:
            try:
                derived = self.derived(index, order, wanted)
            except _StopError:
                return True
        if config.compile:  # the losses call the parts, not the method
            for part in self.method.children():
                part.compile()
        loader = iter(
            Loader(
                self.dataset, order, start_step=local, workers=config.workers, flip=own.flip,
                derived=None if derived is None else derived.of, groups=self.groups.get(stage.shared),
                pictures=stage.looks,
            )
        )  # fmt: skip
        mark, mark_step = time.perf_counter(), self.step
        while local < own.steps:
            batch = next(loader).to(self.device)
            batch = _formatted(batch, self.format)
            try:
                figures = self.with_memory(partial(self.one_step, index, stage, batch, local), own)
            except CollapseError as error:
                raise self.collapsed(stage, error) from error
            local += 1
            self.step += 1
            self.seen += own.batch_size
            self.loss = (
                figures["loss"] if math.isnan(self.loss) else 0.98 * self.loss + 0.02 * figures["loss"]
            )
            last = local == own.steps
            (stop,) = self.ranks.any(wanted.is_set() or self.step == until)
            if self.step % config.log_every == 0 or last:
                now = time.perf_counter()
                rate = (self.step - mark_step) * own.batch_size / max(now - mark, 1e-9)
                mark, mark_step = now, self.step
                if log is not None:
                    log.write(self.step, {"stage": stage.name} | figures | {"images_per_second": rate})
                counts = {
                    "step": self.step,
                    "stage": stage.name,
                    "stage_step": local,
                    "stage_steps": own.steps,
                }
                self.say("step", counts | {"images_per_second": rate} | figures)
            if self.step % config.checkpoint_every == 0 or last or stop:
                (ailing,) = self.ranks.any(stage.ailing())
                written = last or stop or not ailing
                if written:
                    self.save(ailing=ailing)
                if ailing:
                    what = "what is built on it may mean nothing" if written else "no checkpoint is written"
                    self.say(
                        "note",
                        {"text": f"stage {stage.name} shows signs of a collapse at step {self.step}: {what}"},
                    )
            if config.sample_every and (self.step % config.sample_every == 0 or last):
                self.show(stage, log)
                mark, mark_step = time.perf_counter(), self.step
            if stop:
                return True
        return False

    def with_memory(self, attempt: Callable[[], dict[str, float]], own: TrainConfig) -> dict[str, float]:
        """Run a step; where memory does not suffice, in twice as many micro-batches, to the end of the stage."""
        while True:
            try:
                return attempt()
            except (torch.OutOfMemoryError, RuntimeError) as error:
                # on a CPU it is a plain RuntimeError, told apart by its words
                if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
                    raise
                most = own.batch_size
                if self.micro >= most or self.ranks.size > 1 or most % (2 * self.micro):
                    raise TrainingError(
                        f"out of memory with {most // self.micro} pictures at a time; use a smaller --batch-size, "
                        f"--size or --scale, with another --out"
                    ) from None
            self.method.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.micro *= 2
            self.say("note", {"text": f"out of memory: the batch is now computed in {self.micro} parts"})

    def show(self, stage: Stage, log: Log | None) -> None:
        """Write a picture of what the averaged weights make; where weights are split, all ranks have to make it."""
        if self.preview is None or not (self.ranks.main or self.config.parallel == "fsdp"):
            return
        with averaged(self.method, self.ema) as method:
            made = self.preview(method, stage)
        if log is not None and made is not None:
            picture, about = made
            save_png(self.run / "samples" / f"{self.step:08d}.png", picture, {"step": self.step, **about})
            log.picture(self.step, "samples", np.asarray(picture.convert("RGB")))


def _opened(place: Path, rows: np.ndarray) -> Derived:
    """Derived values that have just been found whole, or written."""
    found = Derived.open(place, rows, check=False)
    if found is None:
        raise TrainingError(
            f"{place} was written and cannot be opened: was the cache emptied, or is it not the same for all "
            f"processes? Set PELLUCID_CACHE to a folder that all of them see, and start again"
        )
    return found


def _rows(batch: Batch, rows: slice) -> Batch:
    return batch.map(lambda value: value[rows])


def _formatted(batch: Batch, memory_format: torch.memory_format) -> Batch:
    derived = {
        k: v.contiguous(memory_format=memory_format) if v.ndim == 4 else v for k, v in batch.derived.items()
    }
    return replace(batch, x0=batch.x0.contiguous(memory_format=memory_format), derived=derived)


def _text(value: float) -> float | str:
    """JSON has no infinity and no NaN."""
    return value if math.isfinite(value) else str(value)


def _float(value: float | str) -> float:
    return float(value)
