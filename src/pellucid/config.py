"""Frozen dataclasses <-> JSON, strict in both directions: nothing unknown is accepted and nothing missing guessed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal, TypeVar

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """A config as plain JSON values, every field written out. Raises ValueError for what JSON cannot hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} cannot be written to a config: numbers must be finite")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"a config cannot hold a {type(value).__name__}: {value!r}")


def from_json(cls: type[T], data: Any, where: str = "config") -> T:
    """The inverse of `to_json` for a dataclass.

    Raises ValueError that names the place: an unknown key (with what was probably meant), a missing
    one, a value of another type or outside its choices.
    """
    return _read(cls, data, where)


def fingerprint(value: Any) -> str:
    """A hash of a config's canonical JSON, 16 hex digits: equal configs, equal fingerprints."""
    text = json.dumps(to_json(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read(kind: Any, data: Any, where: str) -> Any:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, data, where)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in args:
            return None
        errors = []
        for option in (a for a in args if a is not type(None)):
            try:
                return _read(option, data, where)
            except ValueError as error:
                errors.append(str(error))
        raise ValueError("; or ".join(errors))
    if origin is Literal:
        for choice in args:
            if data == choice and type(data) is type(choice):
                return choice
        raise ValueError(f"{where} is {data!r}; it is one of {', '.join(map(repr, args))}")
    if origin is tuple:
        if not isinstance(data, list):
            raise ValueError(f"{where} is {data!r}; expected a list")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_read(args[0], v, f"{where}[{i}]") for i, v in enumerate(data))
        if len(data) != len(args):
            raise ValueError(f"{where} has {len(data)} entries; expected {len(args)}")
        return tuple(_read(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(args, data, strict=True)))
    if origin in (dict, Mapping) or origin is typing.get_origin(Mapping[str, Any]):
        if not isinstance(data, dict):
            raise ValueError(f"{where} is {data!r}; expected an object")
        return {k: _read(args[1], v, f"{where}.{k}") for k, v in data.items()}
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if kind in (int, float, str, bool) and type(data) is kind:
        if kind is float and not math.isfinite(data):
            raise ValueError(f"{where} is {data}; it must be finite")
        return data
    name = getattr(kind, "__name__", str(kind))
    raise ValueError(f"{where} is {data!r}; expected {name}")


def _read_dataclass(cls: type[T], data: Any, where: str) -> T:
    if not isinstance(data, dict):
        raise ValueError(f"{where} is {data!r}; expected an object with the fields of {cls.__name__}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            near = get_close_matches(str(key), fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{where} has an unknown key {key!r}{hint} It knows {', '.join(fields)}")
    missing = [name for name in fields if name not in data]
    if missing:
        raise ValueError(
            f"{where} lacks {', '.join(map(repr, missing))}, which every {cls.__name__} has: it was written by another "
            f"version of pellucid, or changed since; use that version, or train anew"
        )
    hints = typing.get_type_hints(cls)
    values = {name: _read(hints[name], data[name], f"{where}.{name}") for name in fields}
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
