"""What every table needs: training under a budget, scoring, spread over seeds, and a page to read."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pellucid.config import fingerprint
from pellucid.data.catalog import open_data
from pellucid.data.groups import Subset
from pellucid.data.images import Dataset, StoredImages
from pellucid.data.order import permutation
from pellucid.methods.base import Method
from pellucid.methods.priors import bits_of, code_of
from pellucid.metrics.segmentation import choose_assignment, oracle_assignment, score, smallest_share
from pellucid.recipes import DataSpec, Recipe, Scale, build, recipe, recipe_to_json
from pellucid.recipes.gae import BEGINS_FROM
from pellucid.train.checkpoint import latest, load_weights
from pellucid.train.preview import save_png
from pellucid.train.trainer import device_of, provenance, train

Say = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What one run of a table is asked to do."""

    scale: Scale
    seeds: tuple[int, ...]
    data: tuple[str, ...]
    out: Path
    say: Say
    size: int = 32
    steps: int | None = None
    """Overrides the recipe's number of steps, for all methods and all their stages alike."""
    jobs: int = 1
    """Networks trained side by side."""
    rows: tuple[str, ...] = ()
    """Which rows of the table are wanted; all, where none is named."""
    held_out: float = 0.0
    """Share of the combinations of attributes that no network is trained on."""

    @property
    def pictures(self) -> Path:
        """Where this process draws; the report puts pictures beside its table once it is known under which name."""
        return self.out / f".drawn-{os.getpid()}"

    def conditions(self, **more: Any) -> dict[str, Any]:
        """What a table says it was made under."""
        part = {"rows": sorted(row.strip() for row in self.rows)} if self.rows else {}
        return {"scale": self.scale, "seeds": list(self.seeds), **part, **more}

    def chosen(self, rows: Mapping[str, T]) -> dict[str, T]:
        """Those of a table's rows that are wanted. Raises ValueError for one that the table has not."""
        known = [row.strip() for row in rows]
        wanted = [name.strip() for name in self.rows] or known
        if unknown := [name for name in wanted if name not in known]:
            raise ValueError(f"no row named {unknown[0]!r}; there are {', '.join(known)}")
        return {row: how for row, how in rows.items() if row.strip() in wanted}


@dataclass(frozen=True)
class Column:
    key: str
    title: str
    better: str = "higher"


@dataclass(kw_only=True)
class Report:
    """A table: rows of figures, each a list over seeds; and what the paper printed in the same place."""

    name: str
    title: str
    columns: Sequence[Column]
    rows: dict[tuple[str, str], dict[str, list[float]]] = field(default_factory=dict)
    """(data, row) -> key -> one figure a seed."""
    paper: dict[str, dict[str, str]] = field(default_factory=dict)
    """row -> key -> the paper's figure, with the data it is for."""
    notes: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    conditions: dict[str, Any] = field(default_factory=dict)
    written: Path | None = None
    """Where its JSON is, once it is."""

    def add(self, data: str, row: str, figures: dict[str, float]) -> None:
        cells = self.rows.setdefault((data, row), {})
        for key, value in figures.items():
            cells.setdefault(key, []).append(float(value))

    def mean(self, data: str, row: str, key: str) -> float:
        return statistics.fmean(self.rows[data, row][key])

    def lines(self) -> list[str]:
        """The table as text: mean and, over several seeds, standard deviation."""
        out = [self.title, ""]
        for data in dict.fromkeys(d for d, _ in self.rows):
            there = {key for (d, _), cells in self.rows.items() if d == data for key in cells}
            columns = [c for c in self.columns if c.key in there]
            table = [["" if data == "" else f"on {data}", *(c.title for c in columns), "paper"]]
            for (d, row), cells in self.rows.items():
                if d != data:
                    continue
                printed = [cell(cells.get(c.key, [])) for c in columns]
                theirs = ", ".join(f"{k} {v}" for k, v in self.paper.get(row, {}).items())
                table.append([row, *printed, theirs])
            widths = [max(len(r[i]) for r in table) for i in range(len(table[0]))]
            for i, r in enumerate(table):
                out.append("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip())
                if i == 0:
                    out.append("  ".join("-" * w for w in widths))
            out.append("")
        return out + self.notes

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "conditions": self.conditions,
            "rows": [{"data": d, "row": r, "figures": cells} for (d, r), cells in self.rows.items()],
            "paper": self.paper,
            "notes": self.notes,
            "pictures": self.pictures,
            "made_by": provenance(),
        }

    def write(self, setting: Setting) -> Path:
        """NAME.json, NAME.txt and pictures; a table of other data or conditions is kept, and this one numbered."""
        out = setting.out
        out.mkdir(parents=True, exist_ok=True)
        path, number = out / f"{self.name}.json", 1
        while path.exists() and not self._like(path):
            number += 1
            path = out / f"{self.name}-{number}.json"
        end = f"-{number}" if number > 1 else ""
        made = [setting.pictures / name for name in dict.fromkeys(self.pictures)]
        self.pictures = [f"{picture.stem}{end}{picture.suffix}" for picture in made]
        for picture, name in zip(made, self.pictures, strict=True):
            picture.replace(out / name)
        shutil.rmtree(setting.pictures, ignore_errors=True)  # a table may have none
        path.write_text(json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n")
        path.with_suffix(".txt").write_text("\n".join(self.lines()) + "\n")
        return path

    def _like(self, path: Path) -> bool:
        """Whether the table at a path is this one, made before."""
        try:
            there = json.loads(path.read_text())
            same_data = {r["data"] for r in there["rows"]} == {d for d, _ in self.rows}
        except (ValueError, KeyError, TypeError):
            return False
        return same_data and there.get("conditions") == json.loads(json.dumps(self.conditions))


def cell(values: Sequence[float]) -> str:
    """Figures over seeds as one cell of a table: their mean and, of several, their standard deviation."""
    if not values:
        return ""
    mean = statistics.fmean(values)
    digits = ".2g" if 0 < abs(mean) < 0.01 else ".3f" if abs(mean) < 10 else ".1f"
    spread = f" ±{statistics.stdev(values):{digits}}" if len(values) > 1 else ""
    return f"{mean:{digits}}{spread}"


def data_for(setting: Setting, spec: str, split: str, limit: int | None = None) -> Dataset:
    data = open_data(spec, size=setting.size, split=split, limit=limit)  # type: ignore[arg-type]
    return Subset(data, setting.held_out, held=False) if setting.held_out and split == "train" else data


def train_all(setting: Setting, networks: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Train every (recipe, changed fields) on all data and seeds, `setting.jobs` at a time, for `trained` to find.

    What others begin from comes first. Each job is a process with an equal share of the cores. Where there is one job,
    or one network is missing at most, nothing is done: `trained` trains here. An interrupt pauses them all; the same
    command continues.
    """
    if setting.jobs < 2:
        return
    networks = list(networks)
    if begun := [pair for pair in networks if pair[0] in BEGINS_FROM]:
        first = dict.fromkeys(BEGINS_FROM[name] for name, _ in begun)
        others = [pair for pair in networks if pair not in begun and pair[0] not in first]
        train_all(setting, [*((name, {}) for name in first), *others])
        networks = begun
    wanted = [(n, d, s, dict(c)) for s in setting.seeds for d in setting.data for n, c in networks]
    missing = [w for w in wanted if not _is_trained(setting, *w)]
    jobs = min(setting.jobs, len(missing))
    if jobs < 2:
        return
    setting.say(f"training {len(missing)} networks, {jobs} at a time")
    pool = ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_job_begins, initargs=(max(1, cores() // jobs),)
    )
    quiet, rest = replace(setting, say=_silent), iter(missing)
    begin = lambda n: {pool.submit(_job, quiet, *w) for w in islice(rest, n)}
    try:
        running = begin(
            jobs
        )  # no more than run: what a pool has queued for its processes cannot be called back
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for line in chain.from_iterable(future.result() for future in done):
                setting.say(line)
            running |= begin(len(done))
    except BrokenProcessPool:
        raise ValueError(
            f"a process was ended from outside, as a rule for lack of memory; fewer networks side by side need less "
            f"(--jobs, now {jobs}), and the same command continues"
        ) from None
    finally:
        pool.shutdown()


def side_by_side(scale: Scale) -> int:
    """How many networks are trained at a time unless the user says: small ones waste cores on each other's waiting."""
    return 1 if scale == "tiny" or device_of("auto").type != "cpu" else min(cores(), 8)


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _silent(text: str) -> None:
    pass


def _job_begins(threads: int) -> None:
    """In a process of `train_all`: its share of the cores, and no longer life than its parent's."""
    torch.set_num_threads(threads)

    def end_with(parent: BaseProcess) -> None:
        parent.join()
        while True:  # who is training saves and pauses at the first, and ends at the next
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)

    if parent := parent_process():
        threading.Thread(target=end_with, args=(parent,), daemon=True).start()


def _job(setting: Setting, name: str, spec: str, seed: int, changed: Mapping[str, Any]) -> list[str]:
    said: list[str] = []
    trained(replace(setting, say=said.append), name, spec, seed, changed=changed)
    return said


def _is_trained(setting: Setting, name: str, spec: str, seed: int, changed: Mapping[str, Any]) -> bool:
    """Whether there is a checkpoint of the last step of the last stage."""
    _, _, run = _planned(setting, name, spec, seed, changed)
    found = latest(run)
    return found is not None and bool(found.state.get("finished"))


def _planned(
    setting: Setting, name: str, spec: str, seed: int, changed: Mapping[str, Any]
) -> tuple[Dataset, Recipe, Path]:
    """-> (data, recipe, run folder). The folder's key holds all settings and the data: no run is taken for another."""
    data = data_for(setting, spec, "train")
    made = recipe(
        name,
        setting.scale,
        DataSpec.of(name, spec, data),
        seed=seed,
        steps=setting.steps,
    )
    if changed:
        made = replace(made, config=replace(made.config, **changed))
    key = fingerprint([made, data.fingerprint])[:10]
    return data, made, setting.out / "runs" / f"{name}-{file_name(spec)}-{seed}-{key}"


def run_folder(
    setting: Setting, name: str, spec: str, seed: int, *, changed: Mapping[str, Any] = MappingProxyType({})
) -> Path:
    """Where `trained` keeps the run of a recipe."""
    return _planned(setting, name, spec, seed, changed)[2]


def trained(
    setting: Setting, name: str, spec: str, seed: int, *, changed: Mapping[str, Any] = MappingProxyType({})
) -> tuple[Method, Recipe]:
    """The method of a recipe, trained on the train split of `spec`; one already trained alike is used again.

    A recipe whose first stage is all of another begins from a run of that. `changed` are fields of its config that are
    not the recipe's. Returns the method with its averaged (EMA) weights, in evaluation mode.
    """
    data, made, run = _planned(setting, name, spec, seed, changed)
    method = build(made)
    first = None
    if name in BEGINS_FROM and not _is_trained(setting, name, spec, seed, changed):
        trained(setting, BEGINS_FROM[name], spec, seed)
        first = run_folder(setting, BEGINS_FROM[name], spec, seed)
    result = train(method, data, made.train, run, meta=recipe_to_json(made), begin_from=first)
    if result.state == "paused":  # half-trained weights are no result
        raise ValueError(f"stopped at step {result.step} of {run}; the same command continues there")
    if result.images_per_second:
        setting.say(f"  {name} on {spec}, seed {seed}: {result.step} steps in {result.seconds:.0f} s")
    method.load_state_dict(load_weights(run, ema=True))
    return method.eval(), made


def batches(data: Dataset, limit: int, size: int = 100) -> Iterable[Any]:
    """The first samples of made data, which come in random order; a random choice of stored pictures."""
    order = permutation(len(data), 0, 0) if isinstance(data, StoredImages) else np.arange(len(data))
    for start in range(0, min(limit, len(data)), size):
        yield data.batch(order[start : min(start + size, limit)])


def file_name(spec: str) -> str:
    """A data set's name as part of a file's."""
    return spec.replace("/", "_").strip("_.") or "data"


def read(method: Method, x: Tensor, rng: torch.Generator, **controls: Any) -> dict[str, Tensor]:
    """`method.read` wherever its weights live, its findings on the CPU."""
    found = method.read(x.to(next(method.parameters()).device), rng, **controls)
    return {k: v.cpu() for k, v in found.items()}


def read_masks(method: Method, data: Dataset, limit: int, *, seed: int = 0, **controls: Any) -> Tensor:
    """Soft masks (N, K, H, W) that a method reads in the first pictures of a data set."""
    rng = torch.Generator().manual_seed(seed)
    return torch.cat([read(method, b.x0, rng, **controls)["masks"] for b in batches(data, limit)])


def truth_of(data: Dataset, limit: int) -> Tensor:
    """(N, H, W) bool: where an object is."""
    found = [b.masks for b in batches(data, limit)]
    if any(m is None for m in found):
        raise ValueError(
            "these pictures have no masks to score against; see docs/data.md for how to lay them out"
        )
    truth = torch.cat([m > 0 for m in found])
    if not truth.any():
        raise ValueError("every mask of these pictures is all ground (0): nothing can be scored against them")
    return truth


def sampled(
    method: Method, n: int, seed: int, *, batch: int = 100, **controls: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """n images, by 25 steps where there are steps, and the readouts that came with them, all on the CPU."""
    rng = torch.Generator().manual_seed(seed)
    steps = {"num_steps": 25} if "num_steps" in method.controls else {}
    parts = [method.sample(min(batch, n - start), rng, **steps | controls) for start in range(0, n, batch)]
    readouts = {k: torch.cat([p.readouts[k].cpu() for p in parts]) for k in parts[0].readouts}
    return torch.cat([p.images.cpu() for p in parts]), readouts


def labels_of(data: Dataset, limit: int) -> Tensor:
    """(N,) the class of each picture, for scoring alone."""
    found = [b.labels for b in batches(data, limit)]
    if any(label is None for label in found):
        raise ValueError(
            "these pictures have no classes to score against; sort them into a folder for each class"
        )
    return torch.cat(found)


def codes_read(readouts: Mapping[str, Tensor]) -> Tensor:
    """Readout "bits" or "code" -> the most likely code of each picture, (N,)."""
    if "bits" in readouts:
        return code_of(readouts["bits"] > 0.5)
    return readouts["code"].argmax(1)


def bits_read(readouts: Mapping[str, Tensor], codes: int) -> Tensor:
    """The same as bits, (N, n), for 2^n codes."""
    return bits_of(codes_read(readouts), (codes - 1).bit_length())


def images_of(data: Dataset, limit: int) -> Tensor:
    return torch.cat([b.x0 for b in batches(data, limit)])


def both_protocols(
    val: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], k: int | None = None
) -> dict[str, float]:
    """(regions, truth) of validation and test -> every figure of both assignment protocols.

    The data set's one assignment is chosen on validation pictures and scored on test pictures; the
    oracle chooses for each test picture with its truth in hand.
    """
    fixed = choose_assignment(*val, k)
    figures = score(*test, fixed, k).summary() | score(*test, oracle_assignment(*test, k), k).summary()
    return figures | {"smallest_region": smallest_share(test[0], k)}


def blank(width: float, height: float) -> Any:
    """A matplotlib figure to draw on, of so many inches; no window opens."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def drawn(figure: Any, path: Path) -> str:
    """The figure written as a PNG that says what it shows; returns the file's name."""
    figure.canvas.draw()
    panels = [axes.get_title() for axes in figure.axes]
    save_png(path, Image.fromarray(np.asarray(figure.canvas.buffer_rgba())), {"panels": panels})
    return path.name
