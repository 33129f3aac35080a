"""Samples as a film: frames are made some at a time and written as they come."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pellucid.cli.commands import described, map_names, writable
from pellucid.cli.console import counted, say, written
from pellucid.data.decode import EXTENSIONS

if TYPE_CHECKING:
    from pellucid.cli.commands import Sample
    from pellucid.model import Model

ENDINGS = (".mp4", ".gif", ".webp")
OTHERS = {".avi", ".flv", ".m4v", ".mkv", ".mov", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv", *EXTENSIONS}
"""Of films and pictures that are not written."""
FRAMES, RATE = 120, 30.0
LEAST = 256
"""Pixels across of what a film shows, at least."""
RENDERED = 128
"""Pixels of a side of frames, at least, where a model renders at any size: at twice that a film takes four times as
long, and of small training pictures shows hardly more."""
TOGETHER = 4
"""Frames that are made at once, between two looks at how far it is."""


def is_film(command: Sample) -> bool:
    """Whether --out names a film. Raises ValueError for other files, and for a film's options without one."""
    ending = command.out.suffix.lower()
    if command.out.is_dir() or ending not in (*ENDINGS, *OTHERS):
        for name, value in (("fps", command.fps), ("show", command.show)):
            if value:
                raise ValueError(
                    f"--{name} is of films, and --out {command.out} is a folder of pictures: give --out NAME.mp4"
                )
        return False
    if ending not in ENDINGS:
        writable(command.out)  # a file that is there is the first thing in the way
        raise ValueError(
            f"--out is {command.out}: films are written as {', '.join(ENDINGS)}, and pictures into a folder: "
            f"give {command.out.with_suffix('.mp4')}, or {command.out.with_suffix('')}"
        )
    return True


def film(command: Sample, model: Model, chosen: dict[str, Any], about: dict[str, Any]) -> None:
    """Write the film that a command asks for; what is wrong is said before the first frame is made."""
    out, n = command.out, FRAMES if command.n is None else command.n
    fps = RATE if command.fps is None else command.fps
    if out.exists():
        raise ValueError(f"{out} is there already and is not written over: give another --out, or move it")
    writable(out.parent)
    most = 50 if out.suffix.lower() == ".gif" else 1000
    if not 0 < fps <= most:
        raise ValueError(f"fps is {fps:g}; it is above 0 and at most {most} in {out.suffix.lower()}")
    write = _mp4 if out.suffix.lower() == ".mp4" else _pillow
    if write is _mp4:
        _av()
    shown = command.show or ("colour",)
    known = ("colour", *map_names(model))
    for name in shown:
        if name not in known:
            raise ValueError(f"{name!r} cannot be shown; {model.recipe.method} has {', '.join(known)}")
    cameras = next((k for k, c in model.controls.items() if c.kind == "cameras"), None)
    if cameras is None:
        raise ValueError(
            f"a film goes along a path of cameras, and {model.recipe.method} takes none: give a folder as --out"
        )
    for name, value in chosen.items():
        if model.controls[name].kind == "image":
            raise ValueError(
                f"{name} is {value}, one view, and a film goes along a path: leave one of them out"
            )
    chosen = {cameras: "orbit"} | chosen
    if "render_size" in model.controls:
        chosen = {"render_size": max(RENDERED, model.method.image_shape[-1])} | chosen
    about = about | {"recipe": model.recipe.method, "fps": fps, "frames": n, "show": list(shown)}
    about["controls"] = chosen  # as they were given: a path, not its cameras
    readouts: list[dict[str, Any]] = []
    parts = counted(model.parts(n, seed=command.seed, batch=TOGETHER, **chosen), n)
    hidden = out.with_name(f".{out.stem}.part{out.suffix}")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        size = write(hidden, _frames(model, parts, shown, readouts), fps, n, json.dumps(about))
        os.replace(hidden, out)
    finally:
        hidden.unlink(missing_ok=True)
    say(f"{n} frames of {size[0]} x {size[1]}, {fps:g} a second: {out}")
    written(command.json, about | {"file": str(out), "size": list(size), "readouts": readouts})


def _frames(
    model: Model, parts: Iterable[Any], shown: tuple[str, ...], readouts: list[dict[str, Any]]
) -> Iterator[np.ndarray]:
    """(H, W, 3) uint8 of even sides; what is read of each goes to `readouts`."""
    import torch

    from pellucid.data.images import to_uint8
    from pellucid.train.preview import heat

    for part in parts:
        maps = {
            name: heat(part.readouts[name], model.readouts[name].span) for name in shown if name != "colour"
        }
        panels = [({"colour": part.images.expand(-1, 3, -1, -1)} | maps)[name] for name in shown]
        height, width = panels[0].shape[-2:]
        zoom = math.ceil(LEAST / width)
        if height % 2 or width % 2:
            zoom += zoom % 2  # H.264 halves the sides of its colours
        pixels = to_uint8(torch.cat(panels, -1).cpu()).repeat(zoom, 1).repeat(zoom, 2)
        for i, frame in enumerate(pixels):
            readouts.append(described(model, {k: v[i] for k, v in part.readouts.items()}, part.controls))
            yield frame


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise ValueError(
            "MP4 needs PyAV: pip install 'pellucid[views]'. GIF and WebP do not: give --out NAME.webp"
        ) from None
    return av


def _mp4(path: Path, frames: Iterator[np.ndarray], fps: float, n: int, comment: str) -> tuple[int, int]:
    """H.264 in the form that every player takes; -> width and height."""
    av = _av()
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        container.metadata["comment"] = comment
        stream = container.add_stream("libx264", rate=rate, options={"crf": "16"})
        for i, pixels in enumerate(frames):
            if not i:
                stream.height, stream.width, stream.pix_fmt = *pixels.shape[:2], "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
        return stream.width, stream.height


def _pillow(path: Path, frames: Iterator[np.ndarray], fps: float, n: int, comment: str) -> tuple[int, int]:
    """GIF or WebP that begins again at its end; -> width and height."""
    pictures = map(Image.fromarray, frames)
    first = next(pictures)
    unit = 10 if path.suffix.lower() == ".gif" else 1  # milliseconds that the format counts in
    ends = [round(i * 1000 / fps / unit) * unit for i in range(n + 1)]
    lengths = [b - a for a, b in pairwise(ends)]
    if unit == 10:
        first.save(
            path, "GIF", save_all=True, append_images=pictures, duration=lengths, loop=0, comment=comment.encode(),
        )  # fmt: skip
    else:
        exif = Image.Exif()
        exif[0x010E] = comment  # ImageDescription
        first.save(
            path, "WEBP", save_all=True, append_images=pictures, duration=lengths, loop=0, quality=90, exif=exif,
        )  # fmt: skip
    return first.size
