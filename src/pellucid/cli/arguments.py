"""What is done to the words of a command before the parser sees them.

Controls of a model are options: `--num-steps 100` for `--set num_steps=100`. Which there are is known only once the
model is loaded, and the parser takes declared options alone. So what a command does not declare is given to it as
settings.

An option of several values may be given several times: the parser would keep the last and drop the others in silence.
"""

from __future__ import annotations

import re
from itertools import takewhile
from typing import get_args, get_origin, get_type_hints

import tyro

NUMBER = re.compile(r"-\.?\d")
"""How a word begins that has a dash in front and is a value all the same: -1, -1.5, -.5."""

POSITIONAL = tyro.conf.Positional[str].__metadata__[0]  # type: ignore[attr-defined]
"""By which a field is known that is a word of its own, not an option."""


def declared(command: type) -> dict[str, type]:
    """Every option of a command's class as it is typed, and the kind of its value: {"--out": Path, "-n": int, ...}."""
    found: dict[str, type] = {}
    for field, hint in get_type_hints(command, include_extras=True).items():
        extras = getattr(hint, "__metadata__", ())
        if POSITIONAL in extras:
            continue
        kind = get_args(hint)[0] if extras else hint
        name = next((e.name for e in extras if getattr(e, "name", None)), field)
        names = [
            f"--{name.replace('_', '-')}",
            *(a for e in extras for a in getattr(e, "aliases", None) or ()),
        ]
        if hint is bool:
            names.append(f"--no-{name.replace('_', '-')}")
        found |= dict.fromkeys(names, kind)
    return found


def options_of(command: type) -> set[str]:
    """The names of `declared`, and those by which every command gives help."""
    return {"--help", "-h", *declared(command)}


def taken(rest: list[str]) -> list[str]:
    """The words up to the next option, which are taken out of `rest`."""
    found = list(takewhile(lambda word: not word.startswith("-"), rest))
    del rest[: len(found)]
    return found


def gathered(command: type, words: list[str]) -> list[str]:
    """The words of a command, its name left out, with the values of an option that takes several put together.

    Such an option takes every word up to the next option, as the parser does, also behind --opt=value.

    ["RUN", "--set", "a=1", "--out", "o", "--set", "b=2"] -> ["RUN", "--out", "o", "--set", "a=1", "b=2"].
    """
    values: dict[str, list[str]] = {}
    several = {name for name, kind in declared(command).items() if get_origin(kind) is tuple}
    kept: list[str] = []
    rest = list(words)
    while rest and rest[0] != "--":
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        if name not in several:
            kept.append(word)
            continue
        values.setdefault(name, []).extend([value] * bool(equals) + taken(rest))
    return [*kept, *(word for name, mine in values.items() for word in (name, *mine)), *rest]


def with_settings(command: type, words: list[str]) -> list[str]:
    """The words of a command, its name left out, with every option that it does not declare made a setting.

    ["RUN", "--bits", "01", "--out", "o"] -> ["RUN", "--out", "o", "--set", "bits=01"]. Settings come last, those of
    --set among them and all in the order given, so that none takes the word behind it. Raises ValueError for an
    option without a value.
    """
    own = options_of(command)
    if {"--help", "-h"} & set(words):
        return ["--help"]
    kept: list[str] = []
    settings: list[str] = []
    rest = list(words)
    while rest and rest[0] != "--":
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        option = name.replace("_", "-")
        if option == "--set":
            settings += [value] if equals else taken(rest)
        elif not option.startswith("--") or option in own:
            kept.append(word)
        else:
            if not equals and rest and (NUMBER.match(rest[0]) or not rest[0].startswith("-")):
                value = rest.pop(0)
            if not value:
                raise ValueError(f"{name} has no value; write {name} VALUE or {name}=VALUE")
            settings.append(f"{name.removeprefix('--')}={value}")
    return [*kept, *(["--set", *settings] if settings else []), *rest]
