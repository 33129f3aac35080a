"""One class a command: its fields are its options, its docstring its help, `run` what it does."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from pellucid.cli.arguments import options_of
from pellucid.cli.console import Progress, counted, say, written

if TYPE_CHECKING:
    from pellucid.model import Model

Scale = Literal["tiny", "cpu", "gpu", "paper"]
Settings = Annotated[tuple[str, ...], tyro.conf.arg(name="set", metavar="NAME=VALUE ...")]
Short = tyro.conf.arg
ON_SHEET = 1024
"""Pictures that a sheet shows; more are not held for it."""
CODES_SHOWN, PICTURES_OF_A_CODE = 32, 12
"""Rows of codes.png, the most frequent codes first, and how many pictures of each are in its row."""


@dataclass
class Doctor:
    """Look through a collection of pictures before training starts.

    Example:  pellucid doctor ./photos --size 64
    """

    path: tyro.conf.Positional[str]
    """A folder, a parquet or tar file, or hf:NAME."""
    size: int = 64
    """The size you mean to train at, in pixels."""
    views: bool = False
    """The pictures are views of one scene; those of a folder with transforms.json always are."""
    json: Path | None = None
    """Also write the findings here."""

    def run(self) -> None:
        from pellucid.data.doctor import examine

        report = examine(self.path, self.size, views=self.views)
        for line in report.lines():
            say(line)
        written(self.json, report.to_dict())


@dataclass
class DataCommand:
    """List the built-in data sets, fetch one, or show what a data set looks like.

    Example:  pellucid data get emoji
    """

    action: tyro.conf.Positional[Literal["list", "get", "show"]]
    """list: what there is; get: fetch a set; show: write a picture of some samples."""
    name: tyro.conf.Positional[str] = ""
    """A set for `get`; anything that --data takes for `show`."""
    size: int = 64
    """Size of the samples that `show` draws."""
    out: Path = Path("data.png")
    """Where `show` writes."""
    json: Path | None = None
    """Also write what is listed here."""

    def run(self) -> None:
        from pellucid.data import fetch

        if self.action == "list":
            self._list()
        elif self.action == "get":
            if not self.name:
                raise ValueError(f"name a set to fetch: {', '.join(fetch.COLLECTIONS)}")
            fetch.get(self.name, say=say)
        else:
            self._show()

    def _list(self) -> None:
        from pellucid.data import fetch
        from pellucid.data.catalog import BUILT_IN

        listed = {}
        for name, about in BUILT_IN.items():
            files = fetch.of(name)
            spec = fetch.COLLECTIONS.get(files)
            state = (
                "ready" if spec is None or fetch.have(files) else f"`pellucid data get {files}` fetches it"
            )
            listed[name] = {
                "about": about,
                "state": state,
                "licence": spec.licence if spec else "Apache-2.0, made here",
            }
            say(f"{name:13} {about}\n{'':13} {state}; licence: {listed[name]['licence']}")
        say(
            "and yours: a folder, a parquet or tar file, hf:NAME, or mesh:FILE, which is seen as views-duck is"
        )
        written(self.json, listed)

    def _show(self) -> None:
        import numpy as np
        import torch

        from pellucid.data.catalog import open_data
        from pellucid.train.preview import grid, overlay, save_png

        if not self.name:
            raise ValueError(
                "name what to show: a built-in set, a folder, a parquet or tar file, hf:NAME, or mesh:FILE"
            )
        data = open_data(self.name, size=self.size)
        batch = data.batch(np.arange(min(32, len(data))))
        rows = [batch.x0] if batch.masks is None else [batch.x0, overlay(batch.x0, batch.masks)]
        out = free(self.out)
        save_png(
            out,
            grid(torch.cat([r.expand(-1, 3, -1, -1) for r in rows])),
            {"data": self.name, "size": self.size},
        )
        say(f"{len(data)} pictures in the training split; some of them in {out}")


@dataclass
class Train:
    """Train a recipe on a folder of pictures. Started again, it continues.

    Example:  pellucid train factorized --data ./photos --size 64 --set regions=4
    """

    recipe: tyro.conf.Positional[str]
    """What to train; `pellucid train list` names them all."""
    data: str | None = None
    """A folder, a parquet or tar file, hf:NAME, mesh:FILE for views of a 3-D model, or a set of `pellucid data list`;
    by default the recipe's own."""
    size: int | None = None
    """Pixels of a side; pictures are scaled and cropped to it. By default what the scale is made for."""
    scale: Scale = "cpu"
    """How large the network is and how long it trains."""
    steps: int | None = None
    """Optimiser steps, where not the recipe's."""
    batch_size: int | None = None
    """Pictures a step."""
    micro_batches: int | None = None
    """Compute each batch in so many parts, where memory is short; the result is the same kind of step."""
    seed: int = 0
    """Decides the weights, the order and every noise."""
    out: Path | None = None
    """The run folder; by default runs/RECIPE-DATA-SIZE-SCALE-SEED."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    precision: Literal["fp32", "bf16"] | None = None
    """bf16 is fast where the processor has it, and very slow where it has to be emulated."""
    compile: bool = False
    """Compile the network first: minutes at the start, faster after."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Under torchrun: all weights in every process, or a share of them in each."""
    channels: Literal[1, 3] = 3
    """1 for grey pictures."""
    limit: int | None = None
    """Use at most so many pictures."""
    settings: Settings = ()
    """Fields of the recipe, e.g. regions=5, lr=3e-4, unet.base=32; config.json of a run shows them all."""
    autoencoder: str | None = None
    """For recipes that work on latents: an AutoencoderKL of diffusers, as a folder, hf:NAME or hf:NAME:FOLDER, in
    place of the one that would be trained. It is frozen and kept in the run; give it again to continue one."""
    begin_from: Path | None = None
    """A run whose stages this recipe has too, such as one of diffae for gae: they are taken over, not trained again."""
    flip: bool | None = None
    """Mirror every other picture; False where left and right mean something, as in text. Recipes that learn by a table
    do not unless told to, as a value may be a side. Those of views never do, as a mirrored view is of another scene.
    All others of pictures do."""
    resume: bool = True
    """Continue the run where the folder holds one; --no-resume refuses instead."""
    json: Path | None = None
    """Also write the outcome here."""

    def run(self) -> None:
        from pellucid.recipes import recipes

        if self.recipe == "list":
            for name in recipes():
                say(name)
            return
        from pellucid.data.catalog import open_data
        from pellucid.recipes import DataSpec, build, changed, data_of, recipe, recipe_to_json
        from pellucid.train.preview import samples_of
        from pellucid.train.trainer import device_of, train

        if self.recipe not in recipes():
            recipe(self.recipe, self.scale, DataSpec(spec="", size=32))  # raises with what is near
        spec = data_of(self.recipe) if self.data is None else self.data
        size = {"tiny": 16, "cpu": 32, "gpu": 64, "paper": 64}[self.scale] if self.size is None else self.size
        device_of(self.device)
        data = open_data(spec, size=size, channels=self.channels, limit=self.limit)
        pretrained = None
        if self.autoencoder is not None:
            from pellucid.nets.vae import pretrained_config

            pretrained = pretrained_config(self.autoencoder)
        made = recipe(
            self.recipe,
            self.scale,
            DataSpec.of(self.recipe, spec, data, limit=self.limit),
            seed=self.seed,
            device=self.device,
            compile=self.compile,
            parallel=self.parallel,
            flip=self.flip,
            pretrained=pretrained,
            steps=self.steps,
            batch_size=self.batch_size,
            micro_batches=self.micro_batches,
            precision=self.precision,
        )
        made = changed(made, pairs(self.settings))
        where = self.out or Path("runs", f"{self.recipe}-{slug(spec)}-{size}-{self.scale}-{self.seed}")
        if made.train.precision == "bf16" and device_of(self.device).type == "cpu" and not _cpu_has_bf16():
            say("note: this processor has no bf16 arithmetic and emulates it, many times slower than fp32")
        say(f"{self.recipe} at scale {self.scale} on {spec}: {len(data)} pictures, run folder {where}")
        method = build(made)
        with Progress() as progress:
            result = train(
                method, data, made.train, where, meta=recipe_to_json(made),
                preview=samples_of(made.method, made.train.seed), resume=self.resume, on_event=progress.on_event,
                begin_from=self.begin_from,
            )  # fmt: skip
        if result.state == "paused":
            say(f"paused at step {result.step}; the same command continues it")
        else:
            pictures = data.shape[-1] > 1
            say(f"done: {result.step} steps, {result.images_per_second:.0f} images/s.{' Next:' * pictures}")
            if pictures and method.controls:
                film = "cameras" in method.controls
                say(
                    f"  pellucid sample {where} {'--path orbit --out orbit.mp4' if film else '-n 64 --out out/'}"
                )
            if pictures and method.readouts:
                say(f"  pellucid read {where} photo.jpg --out out/")
        written(
            self.json,
            {
                "run": str(where), "state": result.state, "step": result.step, "seconds": result.seconds,
                "images_per_second": result.images_per_second,
            },
        )  # fmt: skip


def _cpu_has_bf16() -> bool:
    import torch

    return bool(torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported())


@dataclass
class Sample:
    """Generate pictures, with whatever the model reads in them.

    With --out NAME.mp4, NAME.gif or NAME.webp a film is written, there, and nothing else: of a model that takes
    cameras, along a path of them. Small frames are shown in whole pixels, at least 256 wide.

    With --snapshots K, of a model that has them, process.png shows how the first pictures come out of the noise, and
    process.json says what was read on the way, such as cameras.

    Controls of the model are options too: `--num-steps 100` is `--set num_steps=100`.

    Example:  pellucid sample runs/NAME -n 64 --out out/ --num-steps 100
    """

    run_folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(name="run")]
    """A run folder, an exported folder, or hf:OWNER/NAME."""
    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """How many; by default 16, and 120 frames of a film."""
    out: Path = Path("out")
    """Folder to write into, or NAME.mp4, .gif or .webp for a film; files that are there are kept."""
    path: str | None = None
    """Of a model that takes cameras, where they go: orbit, orbit:elevation=45, spiral:low=10,high=60,turns=2, two
    photographs as a.png,b.png, or a transforms.json; the same as --cameras. A film orbits unless told otherwise."""
    fps: float | None = None
    """Frames of a film in each second; 30 by default."""
    show: tuple[str, ...] = ()
    """What a film shows, side by side: colour, and maps that the model reads, such as depth; colour by default."""
    seed: int = 0
    """The same seed gives the same pictures."""
    settings: Settings = ()
    """Controls, as the model declares them, each of them also as --NAME VALUE; --controls lists them."""
    controls: bool = False
    """List the model's controls and stop."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    json: Path | None = None
    """Also write what was made here."""

    def run(self) -> None:
        from pellucid.cli.films import film, is_film
        from pellucid.model import load

        model = load(self.run_folder, device=self.device)
        if self.controls:
            list_controls(model)
            return
        if self.path is not None:
            self.settings = (*self.settings, f"cameras={self.path}")
        chosen = controls_set(self, model)
        drawable(model)
        about = {"run": self.run_folder, "seed": self.seed, "set": list(self.settings)}
        if is_film(self):
            film(self, model, chosen, about)
            return
        n = 16 if self.n is None else self.n
        parts = model.parts(n, seed=self.seed, **chosen)
        write_samples(model, counted(parts, n), writable(self.out), about, self.json)


@dataclass
class Read:
    """Read pictures: region masks at each picture's own size, bits, and every other readout.

    Writes NAME.json and, of a model that reads masks, NAME-overlay.png and NAME-regions.png (pixel values are region
    numbers). Of one that reads cameras NAME.json says from where the picture was taken, and maps of numbers, such as
    depth, are NAME-depth.png, 16 bits deep. Of a model that reads bits, several pictures are also sorted by them:
    codes.csv has each picture's code, the number that its bits make, and codes.png shows some pictures of each. A file
    that cannot be read is left out, and named at the end.

    Controls that reading takes are options too: `--label cat` is `--set label=cat`.

    Example:  pellucid read runs/NAME photo.jpg --out out/
    """

    run_folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(name="run")]
    """A run folder, an exported folder, or hf:OWNER/NAME."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """One or more pictures, of any mode and size; a folder stands for every picture below it, as in --data."""
    out: Path = Path("out")
    """Folder to write into; files that are there are kept."""
    seed: int = 0
    """Of the little noise that reading adds."""
    settings: Settings = ()
    """Controls that reading takes, such as label=NAME for a class-conditional model; also as --NAME VALUE."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    json: Path | None = None
    """Also write all readings here."""

    def run(self) -> None:
        import numpy as np
        import torch

        from pellucid.data.images import BadImage, to_uint8, to_unit
        from pellucid.model import load
        from pellucid.train.preview import indexed, overlay, save_png

        if not self.images:
            raise ValueError("name one or more pictures to read, or a folder of them")
        model = load(self.run_folder, device=self.device)
        chosen = controls_set(self, model, reading=True)
        drawable(model)
        paths, failed = listed(self.images)
        writable(self.out)
        readings = {}
        coded: list[tuple[Path, int, str, float]] = []
        for path in paths:
            try:
                reading = model.read(path, seed=self.seed, **chosen)
            except BadImage as error:
                failed.append(str(error))
                continue
            about = {"run": self.run_folder, "seed": self.seed, "picture": path.name, "controls": chosen}
            beside = ["-overlay.png", "-regions.png", *(f"-{m}.png" for m in map_names(model))]
            name = free(self.out / f"{path.stem}.json", *beside).stem
            found = described(model, reading.values, probabilities=True)
            found |= save_maps(
                model, reading.values, self.out / f"{name}.json", about | {"readouts": dict(found)}
            )
            seen = [_whence(found[k]) for k, r in model.readouts.items() if r.kind == "camera"]
            if reading.masks is not None:
                labels = reading.labels
                found["region_pixels"] = np.bincount(labels.flatten(), minlength=len(reading.masks)).tolist()
                found["size"] = list(reading.image.size)
                x = to_unit(np.asarray(reading.image)[None])
                tinted = to_uint8(overlay(x, torch.from_numpy(labels)[None]))[0]
                from PIL import Image

                first = self.out / f"{name}-overlay.png"
                save_png(first, Image.fromarray(tinted), about)
                save_png(self.out / f"{name}-regions.png", indexed(labels), about)
                seen.append(str(first))
            if "shares" in found:
                seen.append(f"shares {', '.join(f'{s:.0%}' for s in found['shares'])}")
            if reading.switches is not None:
                sure = reading.sureness.tolist()
                seen.append(
                    f"bits {reading.bits} (sure to {' '.join(f'{p:.2f}'.removeprefix('0') for p in sure)})"
                )
                coded.append((path, reading.code, reading.bits, min(sure)))
            say(f"{path}: {'; '.join(seen) or self.out / f'{name}.json'}")
            written(self.out / f"{name}.json", about | {"readouts": found})
            readings[str(path)] = found
        if coded and (len(self.images) > 1 or self.images[0].is_dir()):
            write_codes(
                coded, model, self.out, {"run": self.run_folder, "seed": self.seed, "controls": chosen}
            )
        if readings:
            written(self.json, readings)
        if failed:
            raise ValueError(f"{len(readings)} read; {len(failed)} could not be: {'; '.join(failed)}")


@dataclass
class Edit:
    """Read a picture, change some controls, sample: regenerate a region, flip a switch, vary, or blend two pictures.

    Works at the model's size; regenerated regions are also put, enlarged, on the picture's centre square.

    With --out NAME.png one version is written, there and at the model's size, and nothing else. Of a folder every
    picture below it is edited so, each with the same seed, into the same names in --out. What is there already is kept:
    the same command goes on where it was stopped. A file that cannot be read is left out, and named at the end.

    Controls of the model are options too: `--regions 1` is `--set regions=1`.

    Example:  pellucid edit runs/NAME photo.jpg --regions 1 -n 4 --out out/
    """

    run_folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(name="run")]
    """A run folder, an exported folder, or hf:OWNER/NAME."""
    image: tyro.conf.Positional[Path]
    """The picture to start from, or a folder of them."""
    n: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None
    """How many versions; by default 4, or 1 where nothing in an edit is drawn at random, for NAME.png and of a folder's
    pictures."""
    settings: Settings = ()
    """Controls, e.g. regions=1 keeps all but region 1; flip=3 turns switch 3 over; blend_with=other.jpg blend=0.3."""
    out: Path = Path("out")
    """Folder to write into, or NAME.png for one picture; files that are there are kept."""
    batch: int = 32
    """How many pictures of a folder are edited together, where nothing in their edits is drawn at random."""
    seed: int = 0
    """The same seed gives the same versions."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    json: Path | None = None
    """Also write what was made here."""

    def run(self) -> None:
        from pellucid.cli.edits import edit_folder, edit_into, form
        from pellucid.model import load

        how = form(self)
        model = load(self.run_folder, device=self.device)
        if "image" not in model.controls:
            raise ValueError(f"{model.recipe.method} edits no pictures: it declares no `image` control")
        chosen = controls_set(self, model)
        drawable(model)
        if how != "versions":
            (edit_folder if how == "folder" else edit_into)(self, model, chosen)
            return
        writable(self.out)
        n = (4 if model.method.edits_vary else 1) if self.n is None else self.n
        sample = model.edit(self.image, n=n, seed=self.seed, **chosen)
        about = {
            "run": self.run_folder,
            "seed": self.seed,
            "picture": self.image.name,
            "set": list(self.settings),
        }
        write_samples(model, [sample], self.out, about, self.json)
        if sample.controls.get("regions"):
            chosen |= {"regions": sample.controls["regions"]}
            from pellucid.train.preview import save_png

            files = []
            for i, picture in enumerate(model.paste(self.image, sample, seed=self.seed, **chosen)):
                files.append(free(self.out / f"{self.image.stem}-edited-{i:04d}.png"))
                save_png(files[-1], picture, about | {"number": i})
            names = " to ".join(dict.fromkeys((files[0].name, files[-1].name)))
            say(
                f"{len(files)} edits on the photograph's centre square at its own size in {self.out}: {names}"
            )


@dataclass
class Sweep:
    """Draw a grid: one control goes across, another down, and everything else is held, the noise too.

    An axis is NAME=VALUE;VALUE;... of a control or of the seed, and NAME.SLIDER=VALUE;... of one slider. Alone, the
    name of a control of switches stands for none of them and then each, that of a choice for all it has, and
    NAME.SLIDER for its way from -2 to 2.

    Controls of the model are options too: `--num-steps 100` is `--set num_steps=100`, and `--image photo.jpg` edits.

    Example:  pellucid sweep runs/NAME --across "num_steps=5;20;50" --down "seed=0;1;2"
    """

    run_folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(name="run")]
    """A run folder, an exported folder, or hf:OWNER/NAME."""
    across: str
    """What changes from left to right."""
    down: str = ""
    """What changes from top to bottom; nothing makes one row."""
    settings: Settings = ()
    """Controls that are held, each of them also as --NAME VALUE; `pellucid sample RUN --controls` lists them."""
    out: Path = Path("out")
    """Folder to write sweep.png into; files that are there are kept."""
    seed: int = 0
    """The same noise for every picture, where no axis is the seed."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    json: Path | None = None
    """Also write what was made here."""

    def run(self) -> None:
        from itertools import chain

        import torch

        from pellucid.cli.axes import Axis, at, axis
        from pellucid.cli.sheet import lettered
        from pellucid.model import load
        from pellucid.train.preview import save_png

        model = load(self.run_folder, device=self.device)
        held = controls_set(self, model)
        across = axis(model, self.across)
        down = axis(model, self.down) if self.down else Axis(name="", part="", values=("",))
        if across.title == down.title:
            raise ValueError(f"both axes are {across.title}: name another for --down, or leave it out")
        drawable(model)
        writable(self.out)
        opened = model.opened(held)  # also with what a file of cameras says, unless an axis has it
        held = {k: v for k, v in opened.items() if k in held or k not in (across.name, down.name)}
        # each of them is checked here, before the first is sampled
        cells = [
            model.parts(1, **{"seed": self.seed} | seeded(at(model, held, {across: right} | below)))
            for below in ({down: v} if self.down else {} for v in down.values)
            for right in across.values
        ]
        made = list(counted(chain.from_iterable(cells), len(cells)))
        images = torch.cat([part.images.cpu().expand(-1, 3, -1, -1) for part in made])
        corner = f"across: {across.title}" + (f"\ndown: {down.title}" if self.down else "")
        sheet = lettered(images.split(len(across.values)), down.values, across.values, corner)
        about = {
            "run": self.run_folder, "recipe": model.recipe.method, "seed": self.seed, "set": list(self.settings),
            "controls": {k: v for k, v in made[0].controls.items() if k not in (across.name, down.name)},
            "across": {"name": across.title, "values": across.values},
        }  # fmt: skip
        if self.down:
            about["down"] = {"name": down.title, "values": down.values}
        path = free(self.out / "sweep.png")
        save_png(path, sheet, about)
        say(f"{len(down.values)} x {len(across.values)} pictures on {path}")
        cell_readouts = [described(model, {k: v[0] for k, v in p.readouts.items()}, p.controls) for p in made]
        written(self.json, about | {"sheet": path.name, "readouts": cell_readouts})


@dataclass
class Evaluate:
    """Score a model on pictures that it has not seen: its masks, beside simple baselines, or its views and cameras.

    A folder holds images/ and masks/ with pictures of the same names (0 is ground); of a scene, photographs, with a
    transforms.json where cameras are known.

    Example:  pellucid evaluate runs/NAME --data ./labelled
    """

    run_folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(name="run")]
    """A run folder, an exported folder, or hf:OWNER/NAME."""
    data: str | None = None
    """A folder, or a built-in set: by default scenes for masks, and for views the model's own data."""
    limit: int = 1000
    """At most so many pictures."""
    seed: int = 0
    """Of the little noise that reading adds."""
    settings: Settings = ()
    """Controls that reading takes, such as label=NAME, each of them also as --NAME VALUE."""
    label_map: Path | None = None
    """A JSON file {class of the data: class of the model}, for a class-conditional model on another data set."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    json: Path | None = None
    """Also write the scores here."""

    def run(self) -> None:
        from pellucid.evaluate import evaluate, evaluate_mapped, how_scored, record, table
        from pellucid.model import load

        model = load(self.run_folder, device=self.device)
        chosen = controls_set(self, model, reading=True)
        if self.label_map is not None:
            if chosen:
                raise ValueError(
                    f"{', '.join(chosen)}: with a label map, each picture's class says how it is read"
                )
            try:
                mapping = json.loads(self.label_map.read_text())
            except ValueError as error:
                raise ValueError(f"{self.label_map} is no JSON: {error}") from None
            if not isinstance(mapping, dict):
                raise ValueError(
                    f"{self.label_map} holds no JSON object {{class of the data: class of the model}}"
                )
            result = evaluate_mapped(model, self.data or "scenes", mapping, limit=self.limit, seed=self.seed)
        else:
            result = evaluate(model, self.data, limit=self.limit, seed=self.seed, **chosen)
        for line in table(result):
            say(line)
        say(f"{result['pictures_scored']} pictures of {result['data']}; {how_scored(result)}")
        if (Path(self.run_folder) / "checkpoints").is_dir():
            record(Path(self.run_folder), result)
        written(self.json, result)


@dataclass
class Reproduce:
    """Make a table of the papers again: ours and the baselines on the same data, budget and seeds.

    Example:  pellucid reproduce factorized-segment --scale cpu --seeds 3
    """

    table: tyro.conf.Positional[str]
    """Which; `pellucid reproduce list` names them all."""
    scale: Scale = "cpu"
    """How large the networks are and how long they train."""
    seeds: int | None = None
    """Train everything so many times, from different seeds, and print the spread; 3 by default (1 for some tables, and
    at scale tiny)."""
    data: tuple[str, ...] = ()
    """Instead of the table's own data sets."""
    size: int | None = None
    """Pixels of a side, where not the scale's."""
    steps: int | None = None
    """Optimiser steps of every method, where not the recipes'."""
    rows: tuple[str, ...] = ()
    """Names of the rows to make, as the table prints them, where not all; tables whose rows need one another
    refuse."""
    jobs: int | None = None
    """Networks trained side by side, each on its share of the cores; on a CPU one a core (8 at most), else 1."""
    out: Path | None = None
    """Folder for the table, its pictures, and the runs, which later tables use again; reproduced/SCALE."""
    json: Path | None = None
    """Also write the table here."""

    def run(self) -> None:
        from pellucid.reproduce import TABLES

        if self.table == "list":
            for name, table in TABLES.items():
                say(f"{name:24} {table.about}")
            return
        if self.table not in TABLES:
            raise ValueError(f"no table named {self.table!r}; there are {', '.join(TABLES)}")
        from pellucid.reproduce.harness import side_by_side

        report = TABLES[self.table].run(
            scale=self.scale,
            seeds=self.seeds,
            out=self.out or Path("reproduced", self.scale),
            data=self.data,
            size=self.size,
            steps=self.steps,
            rows=self.rows,
            jobs=side_by_side(self.scale) if self.jobs is None else self.jobs,
            say=say,
        )
        for line in report.lines():
            say(line)
        say(f"written to {report.written} and .txt, pictures beside them")
        written(self.json, report.to_json())


@dataclass
class Bench:
    """Measure speed and memory against peers, as ratios in one run (from a checkout of the project).

    Example:  pellucid bench --quick
    """

    quick: bool = False
    """Fewer repetitions."""
    only: str = ""
    """One benchmark by name."""
    folder: Path = Path("benchmarks")
    """Where the benchmarks are."""
    json: Path | None = None
    """Also write the figures here."""

    def run(self) -> None:
        import subprocess
        import sys
        import tempfile

        files = sorted(self.folder.glob("[!_]*.py"))
        if self.only:
            files = [f for f in files if f.stem == self.only]
        if not files:
            raise ValueError(
                f"no benchmark {self.only or ''} in {self.folder}; run this from a checkout of pellucid"
            )
        rows: list[dict[str, Any]] = []
        for file in files:
            with tempfile.TemporaryDirectory() as folder:
                found = Path(folder, "rows.json")
                command = [
                    sys.executable,
                    str(file),
                    "--json",
                    str(found),
                    *(["--quick"] if self.quick else []),
                ]
                say(f"running {file}")
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise ValueError(f"{file} failed: {' '.join(done.stderr.strip().splitlines()[-1:])}")
                rows += json.loads(found.read_text())
        say(f"{'':44} {'ours':>10} {'peer':>10} {'ratio':>7}  target")
        for row in rows:
            say(
                f"{row['name']:44} {row['ours']:>10.4g} {row['peer']:>10.4g} {row['ratio']:>7.2f}  "
                f"{_verdict(row)} ({row['unit']})"
            )
        written(self.json, rows)


@dataclass
class Export:
    """Write a run as a folder to share: safetensors, config and a model card; or the scene that it has learned.

    Of a model of a scene: --cameras says from where its training photographs were taken, as nerfstudio reads it;
    --points are where rays of those cameras end, coloured; --mesh is where the field is dense. Controls that reading
    takes are options too, for the cameras.

    Example:  pellucid export runs/NAME --out my-model
              pellucid export runs/NAME --cameras transforms.json --points cloud.ply --mesh mesh.obj
    """

    run_folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(name="run")]
    """A run folder."""
    out: Path | None = None
    """A folder that is not there yet."""
    cameras: Path | None = None
    """FILE.json. A photograph that is no file of its own, or lies turned in its file, is written beside it."""
    points: Path | None = None
    """FILE.ply."""
    mesh: Path | None = None
    """FILE.ply or FILE.obj."""
    data: str | None = None
    """The training photographs, where they are no longer where they were, or other ones of the scene."""
    density: float | None = None
    """Of the mesh's surface, per unit of length; by default that of which a tenth stops half of the light."""
    cells: int = 128
    """Along each side of the grid in which the mesh's surface is looked for."""
    view_size: int | None = None
    """Pixels of a side of the views that points are taken from; by default those of the training pictures."""
    settings: Settings = ()
    """Controls that reading takes, each of them also as --NAME VALUE."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    which: Literal["last", "best"] = "last"
    """Which checkpoint."""
    json: Path | None = None
    """Also write what was exported here."""

    def run(self) -> None:
        from pellucid.cli.exports import export_scene, places
        from pellucid.export import export
        from pellucid.model import load

        scene = places(self)
        if self.out is None and not scene:
            raise ValueError(
                "nothing to write: give --out FOLDER for the model, or of a scene --cameras FILE.json, --points "
                "FILE.ply, --mesh FILE.obj"
            )
        told: dict[str, Any] = {}
        if self.out is not None:
            folder = export(self.run_folder, self.out, which=self.which)
            files = sorted(p.name for p in folder.iterdir())
            say(
                f"{folder}: {', '.join(files)}. `pellucid.load({str(folder)!r})` takes it, and so does the hub"
            )
            told = {"folder": str(folder), "files": files}
        if scene:
            model = load(self.run_folder, device=self.device, which=self.which)
            told |= export_scene(self, model, controls_set(self, model, reading=True))
        written(self.json, told)


@dataclass
class View:
    """Look at the scene of a model in a browser, with the cameras found for its photographs.

    The picture follows the mouse, small at first and then sharp; a photograph that is clicked is looked at from where
    it was taken. Ends with Ctrl-C.

    Example:  pellucid view runs/NAME --port 8080
    """

    run_folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(name="run")]
    """A run folder, or an exported folder."""
    port: int = 8080
    """Where the browser finds it, or the next one that is free."""
    host: str = "127.0.0.1"
    """0.0.0.0 lets other machines look, too."""
    size: int = 256
    """Height of the sharp picture, in pixels."""
    data: str | None = None
    """The training photographs, where they are no longer where they were."""
    photographs: int = 64
    """At most so many of them are shown, spread over all; 0 shows none."""
    settings: Settings = ()
    """Controls that reading takes, each of them also as --NAME VALUE."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    json: Path | None = None
    """Also write the address, and the cameras shown, here."""

    def run(self) -> None:
        from pellucid.cli.viewer import Viewer
        from pellucid.model import load

        model = load(self.run_folder, device=self.device)
        chosen = controls_set(self, model, reading=True)
        viewer = Viewer(model, host=self.host, port=self.port, size=self.size)
        try:
            shown = viewer.show_photographs(self.data, self.photographs, **chosen) if self.photographs else {}
            say(f"{viewer.address} shows {self.run_folder}, with {len(shown)} photographs; Ctrl-C ends it")
            written(self.json, {"address": viewer.address, "photographs": shown})
            viewer.wait()
        finally:
            viewer.stop()


@dataclass
class Demo:
    """Learn from pictures alone, in minutes: generate, segment, score, and write a page that shows it.

    Example:  pellucid demo --data emoji
    """

    data: str = "scenes"
    """scenes, emoji, clipart, photos, fashion, or any folder of pictures."""
    out: Path = Path("demo")
    """Folder for the run and the page; started again, it continues."""
    size: int = 32
    """Pixels of a side."""
    steps: int | None = None
    """Optimiser steps, where not the recipe's."""
    json: Path | None = None
    """Also write the scores here."""

    def run(self) -> None:
        from pellucid.cli.demo import demo

        start = time.perf_counter()
        with Progress() as progress:
            page, scores = demo(
                self.data, self.out, size=self.size, steps=self.steps, say=say, on_event=progress.on_event
            )
        say(f"{page} shows it all ({time.perf_counter() - start:.0f} s)")
        written(self.json, scores)


def _verdict(row: dict[str, Any]) -> str:
    """A benchmark's target and whether it is met; ratios are peer / ours, or where less is better ours / peer."""
    if row["target"] is None:
        return "no target"
    least = row["better"] == "higher"
    met = row["ratio"] >= row["target"] if least else row["ratio"] <= row["target"]
    return f"{'at least' if least else 'at most'} {row['target']:g}, {'met' if met else 'MISSED'}"


# ---- what several commands share -----------------------------------------------------------------


def slug(text: str) -> str:
    """A name for a folder."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", Path(text).name if "/" in text else text).strip("-") or "data"


def writable(out: Path) -> Path:
    """The folder that results go into, there or not yet. Raises ValueError, before any work, where it cannot be."""
    there = next(p for p in (out, *out.parents) if p.exists())
    if not there.is_dir():
        raise ValueError(f"{out} cannot be a folder, as {there} is a file: give another --out")
    if not os.access(there, os.W_OK):
        raise ValueError(f"no permission to write in {there}: give another --out")
    return out


def free(path: Path, *beside: str) -> Path:
    """The path, or the first NAME-2, NAME-3, ... that is not there: nothing is overwritten.

    `beside` are endings, such as "-regions.png", of files that go by the same NAME and are not there either.
    """
    candidate, number = path, 2
    while any(p.exists() for p in (candidate, *(candidate.with_name(candidate.stem + b) for b in beside))):
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return candidate


def listed(paths: tuple[Path, ...]) -> tuple[list[Path], list[str]]:
    """The files among the paths and the pictures below the folders; and what of those could not be looked into.

    Raises ValueError for a folder without pictures.
    """
    from pellucid.data.sources import FolderSource

    files: list[Path] = []
    failed = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        source = FolderSource(path)
        if not source.records:
            raise ValueError(
                f"{path} holds no pictures that can be read; `pellucid doctor {path}` says what it holds"
            )
        files += [path / record.where[0].relative_to(source.root) for record in source.records]
        failed += [f"{folder}: {why}" for folder, why in source.unreadable]
    return files, failed


def pairs(settings: tuple[str, ...], several: Collection[str] = ()) -> dict[str, Any]:
    """("num-steps=50", "regions=0,2") -> {"num_steps": "50", "regions": "0,2"}; the model reads the values.

    The values of a name in `several` that is there twice are put together with a comma. Raises ValueError for what is
    not NAME=VALUE, and for any other name that is there twice.
    """
    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name:
            raise ValueError(f"{setting!r} is no setting; write NAME=VALUE")
        name = name.replace("-", "_")
        if name in found and name not in several:
            raise ValueError(f"{name} is given twice, as {found[name]} and as {text}: leave one of them out")
        found[name] = f"{found[name]},{text}" if name in found else text
    return found


def in_parts(model: Model) -> set[str]:
    """The controls that may be given once for each of their parts: `--replace pose=a.png --replace ground=b.png`."""
    return {name for name, control in model.controls.items() if control.kind == "images"}


def controls_set(command: Any, model: Model, *, reading: bool = False) -> dict[str, Any]:
    """The controls that a command's settings name, with their values as text; the model checks those.

    Raises ValueError for a name that is the command's own, and for one that is no control, with what is near it
    among the model's controls and the command's options.
    """
    from pellucid.methods.base import resolve

    chosen = pairs(command.settings, in_parts(model))
    word = type(command).__name__.lower()
    for name, text in chosen.items():
        if name in {f.name for f in fields(command)}:
            raise ValueError(
                f"{name}={text} is no setting, as `pellucid {word}` takes {name} itself: see `pellucid {word} --help`"
            )
        if name not in model.controls or (reading and not model.controls[name].reads):
            near = get_close_matches(f"--{name.replace('_', '-')}", sorted(options_of(type(command))), n=1)
            hint = f" Or did you mean {near[0]}, an option of `pellucid {word}`?" if near else ""
            try:
                resolve(model.controls, {name: text}, reading=reading)
            except ValueError as error:
                raise ValueError(f"{error}{hint}") from None
    return chosen


def drawable(model: Model) -> None:
    """Raise ValueError where what a model is of is no pictures, but points."""
    channels = model.method.image_shape[0]
    if channels not in (1, 3):
        raise ValueError(
            f"{model.origin} is a model of points of {channels} numbers, and this command's files are pictures: "
            f"use it from Python, as `pellucid.load({model.origin!r})`"
        )


def seeded(chosen: dict[str, Any]) -> dict[str, Any]:
    """Controls with the seed, where it is among them, as the number it is."""
    return chosen | {"seed": int(chosen["seed"])} if "seed" in chosen else chosen


def described(
    model: Model,
    values: Mapping[str, Any],
    controls: Mapping[str, Any] | None = None,
    *,
    probabilities: bool = False,
) -> dict[str, Any]:
    """Readouts of one picture, made with some controls, without those of a size that follows it (masks), as JSON takes
    them.

    Bits are text ("01011"); vectors with names are {name: value}; a camera is its matrix, where that stands, and the
    focal length that a control gives it, or else the model's. With `probabilities` there are also those of bits, as
    NAME_probabilities, and which share is the largest, NAME_largest.
    """
    from pellucid.model import digits

    found: dict[str, Any] = {}
    own = getattr(model.method, "focal", None)
    focal = (controls or {}).get("render_focal") or (None if own is None else own.item())
    for key, value in values.items():
        if value.ndim > 1:
            continue
        readout = model.readouts[key]
        if readout.kind == "bits":
            found[key] = digits(value)
            if probabilities:
                found[f"{key}_probabilities"] = value.tolist()
        elif readout.kind == "camera":
            into = getattr(getattr(model.method, "view", None), "forward", False)
            found[key] = posed(value.view(4, 4), into=into) | ({} if focal is None else {"focal": focal})
        elif readout.kind == "shares" and probabilities:
            found |= {key: value.tolist(), f"{key}_largest": int(value.argmax())}
        elif readout.names:
            found[key] = dict(zip(readout.names, value.tolist(), strict=True))
        else:
            found[key] = value.tolist()
    return found


def _whence(camera: Mapping[str, Any]) -> str:
    if "turned" in camera:
        right, up, back = camera["place"]
        return f"{right:+.2f} right, {up:+.2f} up, {back:+.2f} back, turned by {camera['turned']:.1f} degrees"
    return f"azimuth {camera['azimuth']:.0f}, elevation {camera['elevation']:.0f} degrees, {camera['radius']:.2f} away"


def posed(camera: Any, *, into: bool = False) -> dict[str, Any]:
    """A camera (4, 4) as JSON takes it: the matrix, what it is, and where it stands as seen from the origin, or of one
    that looks into a scene where it was moved and by how much it was turned."""
    import math

    import torch

    from pellucid.cameras import angle_between, angles_of

    told: dict[str, Any] = {
        "matrix": camera.tolist(),
        "convention": "camera to world (x right, y up, looks along -z); focal in heights of the picture, and of a "
        "photograph in sides of its centre square",
    }
    if into:
        turned = angle_between(torch.eye(3).to(camera), camera[:3, :3]).item()
        return told | {"place": camera[:3, 3].tolist(), "turned": turned}
    azimuth, elevation = (math.degrees(angle) for angle in angles_of(camera))
    return told | {"azimuth": azimuth, "elevation": elevation, "radius": camera[:3, 3].norm().item()}


def map_names(model: Model) -> tuple[str, ...]:
    """The readouts that are a number at each pixel."""
    return tuple(name for name, readout in model.readouts.items() if readout.kind == "map")


def save_maps(
    model: Model, values: Mapping[str, Any], path: Path, about: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Write each map (H, W) of one picture as NAME-MAP.png, 16 bits deep, beside `path`; -> how JSON names them."""
    from pellucid.train.preview import save_png, sixteen_bits

    told: dict[str, dict[str, Any]] = {}
    for name in map_names(model):
        low, high = model.readouts[name].span
        place = path.with_name(f"{path.stem}-{name}.png")
        told[name] = {
            "file": place.name,
            "low": low,
            "high": high,
            "number": "low + (high - low) * pixel / 65535",
        }
        save_png(place, sixteen_bits(values[name], (low, high)), dict(about) | {name: told[name]})
    return told


def write_codes(
    coded: list[tuple[Path, int, str, float]], model: Model, out: Path, about: dict[str, Any]
) -> None:
    """Pictures sorted by what their bits say: codes.csv, one row a picture, and codes.png, one row a code.

    `coded` holds (picture, code, bits, how sure the least sure bit is).
    """
    import csv
    from collections import Counter

    import numpy as np

    from pellucid.cli.sheet import lettered
    from pellucid.data.decode import decode, prepare
    from pellucid.data.images import to_unit
    from pellucid.train.preview import save_png

    table = free(out / "codes.csv", ".png")
    with table.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(("path", "code", "bits", "least_sureness"))
        lines.writerows((str(path), code, bits, f"{sure:.4f}") for path, code, bits, sure in coded)
    counts = Counter(bits for _, _, bits, _ in coded)
    rows, words = [], []
    for bits, count in counts.most_common(CODES_SHOWN):
        paths = [path for path, _, b, _ in coded if b == bits][:PICTURES_OF_A_CODE]
        squares = [prepare(decode(path), model.method.image_shape[-1]) for path in paths]
        rows.append(to_unit(np.stack(squares)))
        words.append(f"{bits}\n{count} of {len(coded)}")
    sheet = table.with_suffix(".png")
    save_png(sheet, lettered(rows, words), about)
    say(f"{len(coded)} pictures have {len(counts)} different codes: {table}, some of each on {sheet}")


def list_controls(model: Model) -> None:
    for name, control in model.controls.items():
        default = "" if control.default is None else f" (default {control.default})"
        needs = f"; needs {control.needs}" if control.needs else ""
        say(f"{name:16} {control.takes}{default}: {control.help}{needs}")


def write_samples(
    model: Model, parts: Iterable[Any], out: Path, about: dict[str, Any], report: Path | None
) -> None:
    """Every image with its readouts, part by part; a sheet; the first part's process, where its states were kept."""
    import torch
    from PIL import Image

    from pellucid.data.images import to_uint8
    from pellucid.train.preview import grid, indexed, overlay, save_png

    about = about | {"recipe": model.recipe.method}
    files: list[str] = []
    readouts: list[dict[str, Any]] = []
    sheet: list[torch.Tensor] = []
    first, shown = None, 0
    beside = [f"-{name}.png" for name in map_names(model)]
    for part in parts:
        first = first or part
        about = about | {"controls": dict(part.controls)}
        images = part.images.cpu()
        colour = images.expand(-1, 3, -1, -1)
        masks = part.readouts.get("masks")
        labels = None if masks is None else masks.argmax(1).cpu()
        if shown < ON_SHEET:
            shown += len(images)
            rows = (colour,) if labels is None else (colour, overlay(images, labels))
            sheet += [t for row in zip(*(r.split(8) for r in rows), strict=True) for t in row]
        for i, pixels in enumerate(to_uint8(colour)):
            found = {k: v[i] for k, v in part.readouts.items()}
            readouts.append(described(model, found, part.controls))
            number = about | {"number": len(files), "readouts": readouts[-1]}
            path = free(out / f"sample-{len(files):04d}.png", "-regions.png", *beside)
            save_png(path, Image.fromarray(pixels), number)
            readouts[-1] |= save_maps(model, found, path, number)
            files.append(path.name)
            if labels is not None:
                save_png(path.with_name(f"{path.stem}-regions.png"), indexed(labels[i].numpy()), number)
    assert first is not None
    path = free(out / "sheet.png")
    save_png(path, grid(torch.cat(sheet)), about)
    told = about | {"files": files, "readouts": readouts, "sheet": path.name}
    if first.trace:
        process = free(out / "process.png", ".json")
        _write_trace(model, first, process, about)
        told["process"] = process.name
    which = "all of them" if shown == len(files) else f"the first {shown}"
    say(f"{len(files)} image{'s' * (len(files) != 1)} in {out}, {which} on {path}")
    written(report, told)


def _write_trace(model: Model, sample: Any, path: Path, about: dict[str, Any]) -> None:
    """How the first images and their masks come out of the noise, left to right; and beside the picture a JSON file of
    what was read of every image of this part at each of these times."""
    import torch

    from pellucid.train.preview import grid, overlay, save_png

    rows = []
    for i in range(min(4, len(sample.images))):
        states = [s for _, s in sample.trace]
        pictures = torch.stack([s.images[i] for s in states]).cpu()
        rows.append(pictures.expand(-1, 3, -1, -1))
        if "masks" in states[0].readouts:
            labels = torch.stack([s.readouts["masks"][i].argmax(0) for s in states]).cpu()
            rows.append(overlay(pictures, labels))
    save_png(
        path,
        grid(torch.cat(rows), columns=len(sample.trace)),
        about | {"times": [t for t, _ in sample.trace]},
    )
    steps = [
        {
            "time": t,
            "readouts": [
                described(model, {k: v[i] for k, v in state.readouts.items()}, sample.controls)
                for i in range(len(state.images))
            ],
        }
        for t, state in sample.trace
    ]
    written(path.with_suffix(".json"), about | {"picture": path.name, "steps": steps})
