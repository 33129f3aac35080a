"""Cameras as people write them: a named path, a way between two photographs, a file.

orbit                        orbit:elevation=45,start=90
spiral                       spiral:low=10,high=60,turns=2
a.png,b.png                  from where one photograph was taken to where the other was
cameras.json                 along the frames of a transforms.json, matrices in the model's own world, and with their
                             focal length, where they say one
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor

from pellucid.cameras import along, between
from pellucid.data.decode import EXTENSIONS
from pellucid.data.views import cameras_in, focal_in
from pellucid.methods.radiance import Options, Radiance

Posed = Callable[[Path], Tensor]
"""A photograph -> the camera (4, 4) that it was taken from."""


def cameras_of(name: str, text: str, n: int, method: Radiance, posed: Posed) -> Tensor:
    """The cameras (n, 4, 4) that the text of a control `name` says.

    n cameras go evenly once around an orbit, and from the first to the last of a spiral, of two photographs, and of the
    frames of a file, between which they are interpolated where n is not their number. Raises ValueError, BadImage among
    them, for a text that is none of these, and for options that a path does not have.
    """
    path, colon, options = text.partition(":")
    if path in method.paths:
        return method.along(path, n, **_options(name, path, options, method.paths[path], said=bool(colon)))
    if text.lower().endswith(".json"):
        if not Path(text).is_file():
            raise ValueError(f"{name} is {text!r}, and there is no such file")
        return along(torch.from_numpy(cameras_in(Path(text))).float(), n)
    photographs = _two(text)
    if photographs:
        a, b = (posed(photograph) for photograph in photographs)
        return between(a, b, n)
    if Path(text).suffix.lower() in EXTENSIONS:
        raise ValueError(
            f"{name} is {text!r}, one photograph; a path goes between two, as a.png,b.png. What one shows from where "
            f"it was taken, image={text} shows"
        )
    near = get_close_matches(path, method.paths, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"{name} is {text!r}; it is {', '.join(_example(k, v) for k, v in method.paths.items())}, two photographs as "
        f"a.png,b.png, or a transforms.json.{hint}"
    )


def focal_of(text: str) -> float | None:
    """The focal length that goes with such a text, in sides of the centre square: the one of a file, where it says one.

    Raises ValueError as `data.views.focal_in`.
    """
    return focal_in(Path(text)) if text.lower().endswith(".json") else None


def _options(name: str, path: str, text: str, known: Options, *, said: bool) -> dict[str, float]:
    """ "elevation=45,start=90" -> numbers by name."""
    found: dict[str, float] = {}
    for piece in text.split(",") if said else ():
        key, equals, number = (part.strip() for part in piece.partition("="))
        if key not in known or not equals:
            near = get_close_matches(key, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near and key not in known else ""
            raise ValueError(
                f"{name} is '{path}:{text}', where {piece!r} is no option of {path}: write {_example(path, known)}, or "
                f"some of it.{hint}"
            )
        if key in found:
            raise ValueError(f"{name}: {path} has {key} twice; leave one of them out")
        _, low, high = known[key]
        try:
            found[key] = float(number)
        except ValueError:
            usual = f"{key}={known[key][0]:g}"
            raise ValueError(
                f"{name}: {key} of {path} is {number!r}; it is a number, as in {usual}"
            ) from None
        if not low <= found[key] <= high:
            raise ValueError(f"{name}: {key} of {path} is {number}; it lies between {low:g} and {high:g}")
    return found


def _example(path: str, options: Options) -> str:
    return f"{path}:{','.join(f'{k}={default:g}' for k, (default, _, _) in options.items())}"


def _two(text: str) -> tuple[Path, Path] | None:
    """The two photographs that a text names, where their names have commas too."""
    commas = [i for i, letter in enumerate(text) if letter == ","]
    pairs = [
        (Path(text[:i].strip()), Path(text[i + 1 :].strip())) for i in commas if text[:i] and text[i + 1 :]
    ]
    there = [pair for pair in pairs if all(p.is_file() for p in pair)]
    # where neither is there, reading the first says so
    named = [pair for pair in pairs if all(p.suffix.lower() in EXTENSIONS for p in pair)]
    return next(iter(there or named), None)
