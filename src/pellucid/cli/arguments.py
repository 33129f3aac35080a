"""Controls of a model as options of a command: `--num-steps 100` for `--set num_steps=100`.

Which controls there are is known only once the model is loaded, and the parser takes declared options alone. So what
a command does not declare is taken out of its words before they are parsed, and given to it as settings.
"""

from __future__ import annotations

import re
from typing import get_type_hints

import tyro

NUMBER = re.compile(r"-\.?\d")
"""How a word begins that has a dash in front and is a value all the same: -1, -1.5, -.5."""

POSITIONAL = tyro.conf.Positional[str].__metadata__[0]  # type: ignore[attr-defined]
"""By which a field is known that is a word of its own, not an option."""


def options_of(command: type) -> set[str]:
    """Every option that a command's class declares, as it is typed: {"--out", "-n", "--no-flip", "--help", ...}."""
    found = {"--help", "-h"}
    for field, hint in get_type_hints(command, include_extras=True).items():
        extras = getattr(hint, "__metadata__", ())
        if POSITIONAL in extras:
            continue
        name = next((e.name for e in extras if getattr(e, "name", None)), field)
        found.add(f"--{name.replace('_', '-')}")
        found |= {alias for e in extras for alias in getattr(e, "aliases", None) or ()}
        if hint is bool:
            found.add(f"--no-{name.replace('_', '-')}")
    return found


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
            settings += [value] * bool(equals)
            while not equals and rest and not rest[0].startswith("-"):
                settings.append(rest.pop(0))
        elif not option.startswith("--") or option in own:
            kept.append(word)
        else:
            if not equals and rest and (NUMBER.match(rest[0]) or not rest[0].startswith("-")):
                value = rest.pop(0)
            if not value:
                raise ValueError(f"{name} has no value; write {name} VALUE or {name}=VALUE")
            settings.append(f"{name.removeprefix('--')}={value}")
    return [*kept, *(["--set", *settings] if settings else []), *rest]
