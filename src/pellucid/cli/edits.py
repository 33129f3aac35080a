"""Edits that get a name of their own: one picture into one file, or every picture of a folder into another.

Each picture of a folder is edited as it would be alone, with the seed that was given: nothing depends on which others
are there, or on where an earlier run was stopped. Where an edit draws at random the pictures are therefore edited one
at a time. Where it does not they are edited in batches, which are cut from the whole list, finished pictures included:
a batch that lacks some of its edits is computed as it was the first time, so that a folder that was stopped and
continued is the same to the last bit. Batches of other sizes differ from that by rounding alone.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from pellucid.cli.commands import described, in_parts, listed, pairs, writable
from pellucid.cli.console import counted, say, written
from pellucid.data.decode import EXTENSIONS, BadImage
from pellucid.train.checkpoint import digest

if TYPE_CHECKING:
    from torch import Tensor

    from pellucid.cli.commands import Edit
    from pellucid.model import Model
    from pellucid.types import Sample

NAMED = 10
"""How many of the pictures that could not be edited are named."""


def form(command: Edit) -> Literal["versions", "file", "folder"]:
    """What is asked for: versions of a picture in a folder, one picture in a file, or every picture of a folder.

    Raises ValueError, before any work, where it cannot be written.
    """
    picture, out, n = command.image, command.out, command.n
    many = picture.is_dir()
    named = out.suffix.lower() in EXTENSIONS and not out.is_dir()
    if not many and not named:
        return "versions"
    if many and named:
        raise ValueError(f"{picture} is a folder, and --out {out} names one picture: give a folder as --out")
    if named and out.suffix.lower() != ".png":
        writable(out)  # a file that is there is the first thing in the way
        raise ValueError(
            f"--out is {out}, and pictures are written as PNG, which keeps every pixel and what made it: "
            f"give {out.with_suffix('.png')}, or a folder"
        )
    if n not in (None, 1):
        one = f"each picture of {picture} is edited once" if many else f"--out {out} is one picture"
        instead = "a picture for its versions" if many else "a folder as --out for several"
        raise ValueError(f"n is {n}, and {one}: leave n out, or give {instead}")
    if named:
        if out.exists():
            raise ValueError(
                f"{out} is there already and is not written over: give another --out, or move it"
            )
        writable(out.parent)
        return "file"
    if command.batch < 1:
        raise ValueError(f"batch is {command.batch}; edit at least one picture at a time")
    if out.resolve().is_relative_to(picture.resolve()):
        raise ValueError(
            f"--out {out} lies in {picture}, where the next run would take edits for pictures to edit: "
            f"give a folder outside as --out"
        )
    writable(out)
    return "folder"


def edit_into(command: Edit, model: Model, chosen: dict[str, Any]) -> None:
    """One version of one picture, into the file that --out names."""
    given = model.opened(chosen)
    sample = model.edit(command.image, n=1, seed=command.seed, **given)
    about = _asked(command, model, given) | {
        "picture": command.image.name,
        "contents": _contents(command.image),
    }
    readouts = _save(command.out, model, sample, 0, about)
    say(f"{command.out}")
    written(
        command.json,
        about | {"controls": dict(sample.controls), "files": [str(command.out)], "readouts": [readouts]},
    )


def edit_folder(command: Edit, model: Model, chosen: dict[str, Any]) -> None:
    """Every picture below a folder, into the same places below another."""
    import torch

    given = model.opened(chosen)
    blank = torch.zeros(1, *model.method.image_shape)
    model.parts(1, seed=command.seed, image=blank, **given)  # raises for what is wrong with the settings
    paths, failed = listed((command.image,))
    places = _places(command, paths)
    about = _asked(command, model, given)
    names = {path: path.relative_to(command.image).as_posix() for path in paths}
    told = {path: about | {"picture": names[path], "contents": _contents(path)} for path in paths}
    done = _finished(model, places, told)

    size = 1 if model.method.edit_varies(image=blank, **given) else command.batch
    batches = [paths[i : i + size] for i in range(0, len(paths), size)]
    batches = [batch for batch in batches if not done.issuperset(batch)]
    found: dict[str, Any] = {}
    begun = time.perf_counter()
    for part in counted(_edited(command, model, given, batches, failed), sum(map(len, batches))):
        for i, path in enumerate(part.paths):
            if path not in done:
                found[names[path]] = _save(places[path], model, part.sample, i, told[path])
    took = time.perf_counter() - begun

    there = f"; {len(done)} were there already" * bool(done)
    rate = f", {len(found) / took:.1f} a second" * bool(found)
    say(
        f"{len(found)} picture{'s' * (len(found) != 1)} of {len(paths)} edited into {command.out}{rate}{there}"
    )
    written(
        command.json,
        about
        | {"readouts": found, "there_already": [names[p] for p in paths if p in done], "failed": failed},
    )
    if failed:
        more = f"; and {len(failed) - NAMED} more" * (len(failed) > NAMED)
        raise ValueError(
            f"{len(found)} edited; {len(failed)} could not be: {'; '.join(failed[:NAMED])}{more}"
        )


@dataclass(frozen=True)
class _Part:
    """Some pictures and what became of them, in one order."""

    paths: list[Path]
    sample: Sample

    @property
    def images(self) -> Tensor:
        return self.sample.images


def _edited(
    command: Edit, model: Model, given: dict[str, Any], batches: list[list[Path]], failed: list[str]
) -> Iterator[_Part]:
    """Batch by batch; what is no picture goes to `failed`, and so does one that alone cannot be edited."""
    import torch

    for batch in batches:
        paths, squares = [], []
        for path in batch:
            try:
                squares.append(model.opened({"image": path})["image"])
                paths.append(path)
            except BadImage as error:
                failed.append(str(error))
        if not paths:
            continue
        images, n = torch.cat(squares), len(paths)
        try:
            sample = model.sample(n, seed=command.seed, batch=n, image=images, **given)
        except ValueError as error:
            if n > 1:
                raise
            failed.append(f"{paths[0]}: {error}")
            continue
        yield _Part(paths, sample)


def _contents(path: Path) -> str:
    """Stands for what is in a file; "" where it cannot be read, which editing will say."""
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()[:16]
    except OSError:
        return ""


def _asked(command: Edit, model: Model, given: dict[str, Any]) -> dict[str, Any]:
    """What every picture of one command says of how it was made.

    `made_of` stands for the weights and for the pictures that controls give: a run that was trained further, or
    another picture under the same name, makes other edits.
    """
    tensors = {f"weights.{key}": value for key, value in model.method.state_dict().items()}
    for name, value in given.items():
        parts = value if isinstance(value, dict) else {"": value}
        tensors |= {f"given.{name}.{part}": v for part, v in parts.items() if hasattr(v, "detach")}
    return {
        "made_of": digest(tensors)[:16],
        "run": command.run_folder,
        "seed": command.seed,
        "set": list(command.settings),
        "recipe": model.recipe.method,
    }


def _save(path: Path, model: Model, sample: Sample, i: int, about: dict[str, Any]) -> dict[str, Any]:
    """Write image i of a sample with what made it; -> its readouts."""
    from pellucid.data.images import to_uint8
    from pellucid.train.preview import save_png

    readouts = described(model, {k: v[i] for k, v in sample.readouts.items()}, sample.controls)
    pixels = to_uint8(sample.images[i : i + 1].cpu().expand(-1, 3, -1, -1))[0]
    about = about | {"controls": dict(sample.controls), "readouts": readouts}
    save_png(path, Image.fromarray(pixels), about)
    return readouts


def _places(command: Edit, paths: list[Path]) -> dict[Path, Path]:
    """Where each picture's edit goes. Raises ValueError where two would go to one place."""
    places: dict[Path, Path] = {}
    first: dict[Path, Path] = {}
    for path in paths:
        place = command.out / path.relative_to(command.image).with_suffix(".png")
        if place in first:
            raise ValueError(
                f"{first[place]} and {path} would both be edited into {place}: rename one of them"
            )
        first[place], places[path] = path, place
    return places


def _finished(model: Model, places: dict[Path, Path], wanted: dict[Path, dict[str, Any]]) -> set[Path]:
    """The pictures whose edits are there. Raises ValueError where what is there was made otherwise."""
    done = set()
    for path, place in places.items():
        if not place.exists():
            continue
        otherwise = _difference(model, place, wanted[path])
        if otherwise:
            raise ValueError(
                f"{place} is there and {otherwise}; it is not written over: give another --out, or move it"
            )
        done.add(path)
    return done


def _difference(model: Model, place: Path, wanted: dict[str, Any]) -> str:
    """What a file says of how it was made that is not what is wanted; "" where it was made so."""
    try:
        with Image.open(place) as image:
            made = json.loads(image.info["pellucid"])
        settings = lambda about: pairs(tuple(about["set"]), in_parts(model))
        if settings(made) != settings(wanted):
            return f"was made with {' '.join(made['set']) or 'no settings'}, not {' '.join(wanted['set']) or 'none'}"
        if Path(made["run"]) != Path(wanted["run"]):
            return f"was made by {made['run']}, not {wanted['run']}"
        for key, what in (("seed", "with seed"), ("picture", "of")):
            if made[key] != wanted[key]:
                return f"was made {what} {made[key]}, not {wanted[key]}"
        if made["contents"] != wanted["contents"]:
            return f"was made of {wanted['picture']} when that was another picture"
        if made["made_of"] != wanted["made_of"]:
            return "was made by other weights of the run, or with other pictures for its settings"
    except (OSError, ValueError, LookupError, TypeError):
        return "does not say that an edit made it"
    return ""
