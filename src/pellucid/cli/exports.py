"""A scene that a model has learned, as files of other programs: cameras, points, a mesh."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pellucid.cli.commands import writable
from pellucid.cli.console import say, written

if TYPE_CHECKING:
    from torch import Tensor

    from pellucid.cli.commands import Export
    from pellucid.data.images import Dataset
    from pellucid.model import Model

FORMS = {"cameras": (".json",), "points": (".ply",), "mesh": (".ply", ".obj")}


def places(command: Export) -> dict[str, Path]:
    """What of a scene is to be written, and where. Raises ValueError, before any work, where it cannot be."""
    found: dict[str, Path] = {}
    for what, endings in FORMS.items():
        path: Path | None = getattr(command, what)
        if path is None:
            continue
        if path.suffix.lower() not in endings:
            raise ValueError(
                f"--{what} is {path}; it is written as {' or '.join(endings)}: give {path.stem}{endings[0]}"
            )
        if path.exists():
            raise ValueError(
                f"{path} is there already and is not written over: give another name, or move it"
            )
        if path in found.values():
            raise ValueError(f"--{what} is {path}, and another file has that name: give two")
        writable(path.parent)
        found[what] = path
    if "cameras" in found and _squares(found["cameras"]).exists():
        raise ValueError(
            f"{_squares(found['cameras'])} is there already, where squares would go: give another name"
        )
    return found


def export_scene(command: Export, model: Model, chosen: dict[str, Any]) -> dict[str, Any]:
    """Write the cameras, points and mesh that a command asks for; -> what JSON says of them."""
    from pellucid.geometry import every_picture, found_cameras, points, radiance, surface

    radiance(model)
    where = places(command)
    geometry: dict[str, tuple[str, dict[str, np.ndarray]]] = {}
    if "mesh" in where:
        at, faces, tint = surface(model, density=command.density, cells=command.cells)
        geometry["mesh"] = "Trimesh", {"vertices": at, "faces": faces, "vertex_colors": tint}
    if "cameras" in where or "points" in where:
        data = every_picture(model, command.data)
        photographs = _photographs(command.data or model.recipe.data.spec, data)
        if "cameras" in where and command.data is None:
            _apart(where["cameras"], model.recipe.data.spec, photographs)
        cameras, focal = found_cameras(model, data, **chosen)
    elif chosen:
        raise ValueError(f"{', '.join(chosen)}: a mesh needs no photograph to be read; leave it out")
    if "points" in where:
        at, tint = points(model, cameras, size=command.view_size)
        geometry["points"] = "PointCloud", {"vertices": at, "colors": tint}
    # all that can go wrong has: from here on files are written
    told: dict[str, Any] = {}
    if "cameras" in where:
        told["cameras"] = _save_cameras(command, model, data, photographs, cameras, focal)
    for what, (kind, parts) in geometry.items():
        _save(where[what], kind, parts)
        counts = {"points" if what == "points" else "vertices": len(parts["vertices"])}
        counts |= {"triangles": len(parts["faces"])} if "faces" in parts else {}
        say(f"{', '.join(f'{n} {name}' for name, n in counts.items())}: {where[what]}")
        told[what] = {"file": str(where[what])} | counts
    return told


def _apart(path: Path, spec: str, photographs: Sequence[Path | None]) -> None:
    """Raise ValueError where files with cameras would make the folder of photographs another data set."""
    from pellucid.data.decode import inspect
    from pellucid.data.views import TABLES, has_cameras

    home = Path(spec)
    if not any(photographs) or not path.resolve().is_relative_to(home.resolve()) or has_cameras(home):
        return
    table = path.name in {name for name, _ in TABLES} and path.resolve().parent == home.resolve()
    squares = any(p is not None and inspect(p).rotated for p in photographs)
    if table or squares:
        what = f"a {path.name}" if table else "squares of the photographs that lie turned"
        raise ValueError(
            f"{what} in {home} would make of it another data set than the one that the model was trained on: give "
            f"--cameras {'another name, or one in ' * (table and not squares)}another folder"
        )


def _save(path: Path, kind: str, parts: dict[str, np.ndarray]) -> None:
    """Write geometry by trimesh, complete or not at all."""
    from pellucid.data.meshes import needed

    hidden = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        getattr(needed("trimesh"), kind)(**parts, process=False).export(
            str(hidden), file_type=path.suffix[1:].lower()
        )
        os.replace(hidden, path)
    finally:
        hidden.unlink(missing_ok=True)


def _squares(path: Path) -> Path:
    return path.with_name(f"{path.stem}-images")


def _save_cameras(
    command: Export,
    model: Model,
    data: Dataset,
    photographs: Sequence[Path | None],
    cameras: Tensor,
    focal: Tensor,
) -> dict[str, Any]:
    """The `transforms.json` of training pictures: each by its file where it has one that lies upright."""
    from pellucid.data.decode import decode, inspect
    from pellucid.data.images import to_uint8
    from pellucid.data.views import to_transforms
    from pellucid.model import centre
    from pellucid.train.preview import save_png

    path = command.cameras
    assert path is not None
    folder, squares = Path(os.path.abspath(path.parent)), _squares(path)
    files: list[str] = []
    sizes: list[tuple[int, int]] = []
    written_out = 0
    for i, photograph in enumerate(photographs):
        header = None if photograph is None else inspect(photograph)
        if photograph is not None and header is not None and not header.rotated:
            real = Path(os.path.abspath(photograph))
            files.append(Path(os.path.relpath(real, folder)).as_posix())
            sizes.append((header.width, header.height))
            continue
        if photograph is None:
            channels = to_uint8(data.batch(np.array([i])).x0.expand(-1, 3, -1, -1))
            square = Image.fromarray(channels[0])
        else:
            square = centre(decode(photograph))
        name = squares / f"{i:04d}.png"
        save_png(
            name, square, {"run": command.run_folder, "number": i, "of": str(photograph or data.fingerprint)}
        )
        written_out += 1
        files.append(name.relative_to(path.parent).as_posix())
        sizes.append(square.size)
    made = to_transforms(files, cameras.numpy(), focal.numpy(), sizes)
    made["made_by"] = {
        "run": command.run_folder,
        "recipe": model.recipe.method,
        "set": list(command.settings),
        "world": "the model's own; cameras were found for the centre squares of the pictures, "
        f"at {model.recipe.data.size} pixels",
    }
    cloud = None if command.points is None else Path(os.path.abspath(command.points))
    if cloud is not None and cloud.is_relative_to(folder):
        made["ply_file_path"] = cloud.relative_to(folder).as_posix()
    written(path, made)
    beside = f", {written_out} squares in {squares}" * bool(written_out)
    say(f"{len(files)} cameras: {path}{beside}")
    return {"file": str(path), "cameras": len(files), "squares": written_out}


def _photographs(spec: str, data: Dataset) -> Sequence[Path | None]:
    """The file of each picture, None where it has none of its own."""
    from pellucid.data.catalog import BUILT_IN, open_source
    from pellucid.data.sources import FolderSource
    from pellucid.data.views import ViewsSource

    keys: tuple[str, ...] = getattr(data, "keys", None) or ()
    source = None if spec in BUILT_IN or not keys else open_source(spec)
    if not isinstance(source, FolderSource | ViewsSource):
        return [None] * len(data)
    where = {r.key: r.where if isinstance(r.where, Path) else r.where[0] for r in source.records}
    return [where[key] for key in keys]
