"""Checkpoints that survive a kill at any moment.

    RUN/checkpoints/00000250/manifest.json       step, hashes of the files, what else must be restored
                             model.safetensors   the weights
                             ema.safetensors     their average
                             optim.safetensors   every player's optimiser

A checkpoint is written beside its place, flushed to disk, and moved there in one step; it is valid
when every file has the hash that the manifest states. Loading takes the newest valid one and says
when that is not the newest. Tensors are safetensors, the rest is JSON: nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, load_file, save
from torch import Tensor

FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read, with the way out."""


@dataclass(frozen=True)
class Checkpoint:
    folder: Path
    step: int
    state: Mapping[str, Any]
    """What the manifest carries besides the hashes: EMA updates, best score, data position."""

    def tensors(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"{name}.safetensors")


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(path: Path, data: bytes) -> str:
    with path.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    return hashlib.sha256(data).hexdigest()


def save_checkpoint(
    run: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Checkpoint:
    """Write a checkpoint; either all of it is there afterwards, or nothing has changed.

    Raises CheckpointError where the disk is full or the folder cannot be written.
    """
    root = run / "checkpoints"
    target = root / f"{step:08d}"
    work: Path | None = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        blobs = {
            f"{name}.safetensors": save({k: v.detach().contiguous().cpu() for k, v in group.items()})
            for name, group in tensors.items()
        }
        need, free = sum(map(len, blobs.values())) + (1 << 16), shutil.disk_usage(root).free
        if free < need:
            raise CheckpointError(
                f"the disk of {root} has {free >> 20} MiB left and a checkpoint takes {(need >> 20) + 1}; the last "
                f"checkpoint is untouched. Free some space and start the same command again: it continues"
            )
        work = Path(tempfile.mkdtemp(dir=root, prefix=f".{step:08d}-"))
        work.chmod(0o777 & ~_umask())
        hashes = {name: _write(work / name, data) for name, data in blobs.items()}
        manifest = {"format": FORMAT, "step": step, "files": hashes, "state": dict(state)}
        _write(work / "manifest.json", json.dumps(manifest, indent=1, allow_nan=False).encode())
        _sync_folder(work)
        if target.exists():
            stale = Path(tempfile.mkdtemp(dir=root, prefix=".stale-"))
            os.replace(target, stale / target.name)
            os.replace(work, target)
            shutil.rmtree(stale)
        else:
            os.replace(work, target)
        _sync_folder(root)
    except OSError as error:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
        raise CheckpointError(
            f"the checkpoint of step {step} could not be written to {root}: {error.strerror or error}. Earlier "
            f"checkpoints are untouched; mend the cause and start the same command again: it continues"
        ) from error
    found = read_checkpoint(target)
    if found is None:
        raise CheckpointError(
            f"{target} was written and does not read back as written: the disk may be failing"
        )
    return found


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint in a folder, or None where it is not whole: a file missing, cut short or changed."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        if manifest["format"] != FORMAT:
            return None
        for name, expected in manifest["files"].items():
            if "/" in name or not name.endswith(".safetensors"):
                return None
            with (folder / name).open("rb") as handle:
                if hashlib.file_digest(handle, "sha256").hexdigest() != expected:
                    return None
        step, state = manifest["step"], manifest["state"]
        if not isinstance(step, int) or isinstance(step, bool) or not isinstance(state, dict):
            return None
        return Checkpoint(folder, step, state)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def steps_of(run: Path) -> list[Path]:
    """Checkpoint folders, oldest first, valid or not."""
    root = run / "checkpoints"
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if p.name.isdigit() and p.is_dir())


def latest(run: Path, *, say: Callable[[str], None] = lambda text: None) -> Checkpoint | None:
    """The newest whole checkpoint of a run; `say` hears of damaged ones passed over."""
    for folder in reversed(steps_of(run)):
        found = read_checkpoint(folder)
        if found is not None:
            return found
        say(f"{folder} is damaged and passed over; the checkpoint before it is used")
    return None


def best(run: Path) -> Checkpoint | None:
    """The checkpoint with the lowest score so far, where the run keeps one."""
    try:
        name = json.loads((run / "checkpoints" / "best.json").read_text())["folder"]
        return read_checkpoint(run / "checkpoints" / str(int(name)).zfill(8))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def mark_best(run: Path, checkpoint: Checkpoint, score: float) -> None:
    path = run / "checkpoints" / "best.json"
    part = path.with_suffix(".part")
    try:
        _write(part, json.dumps({"folder": checkpoint.folder.name, "score": score}).encode())
        os.replace(part, path)
    except OSError as error:
        raise CheckpointError(f"{path} could not be written: {error.strerror or error}") from error


def prune(run: Path, keep_last: int) -> None:
    """Remove all but the newest `keep_last` whole checkpoints and the best; leftovers of cut-off writes go too."""
    root = run / "checkpoints"
    kept = best(run)
    whole = [f for f in steps_of(run) if read_checkpoint(f) is not None]
    keep = {f.name for f in whole[-max(1, keep_last) :]} | ({kept.folder.name} if kept else set())
    for folder in whole:
        if folder.name not in keep:
            shutil.rmtree(folder, ignore_errors=True)
    for leftover in root.glob(".*"):
        shutil.rmtree(leftover, ignore_errors=True)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A hash of weights, 64 hex digits: equal names, shapes, types and values, equal digests."""
    found = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key].detach().cpu().contiguous()
        found.update(f"{key}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def load_weights(run: Path, *, ema: bool = True, which: str = "last") -> dict[str, Tensor]:
    """Weights to sample with, of the newest (`last`) or the `best` checkpoint; averaged unless `ema` is off.

    Raises CheckpointError where the run holds no whole checkpoint.
    """
    found = best(run) if which == "best" else latest(run)
    if found is None:
        raise CheckpointError(f"{run} holds no whole checkpoint; was it trained? `pellucid train` makes one")
    return found.tensors("ema" if ema else "model")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """A weights file from elsewhere. Refuses anything but safetensors, pickles above all."""
    try:
        return load(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is not there") from None
    except Exception as error:
        raise CheckpointError(
            f"{path} is no whole safetensors file ({error}). Pickled weights (.pt, .ckpt, .bin) are not read, as "
            f"they can run code; convert them to safetensors where you trust them"
        ) from None
