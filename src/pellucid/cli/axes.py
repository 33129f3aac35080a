"""An axis of a sweep: which control takes which values from one picture to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pellucid.methods.base import resolve
from pellucid.model import Model
from pellucid.types import Control

SIZES = ("render_size", "render_width")
"""Controls by which pictures come in other sizes, which one grid cannot show."""
REACH = 2.0
"""How far a slider that is named alone goes to either side, where its range allows it."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A control or the seed, and the values it takes."""

    name: str
    """A control of the model, or "seed"."""
    part: str
    """One slider of a control of kind sliders; "" for a whole control."""
    values: tuple[str, ...]
    """As a user would write them."""

    @property
    def title(self) -> str:
        return f"{self.name}.{self.part}" if self.part else self.name


def axis(model: Model, text: str) -> Axis:
    """ "bits=00000;10000", "fine.down0.0=-2;2" or "seed=0;1"; a control named alone takes its usual values.

    Raises ValueError for an unknown control or slider, an axis without values, or a value that is no seed. Values of
    controls are checked where they are sampled with.
    """
    title, _, listed = text.partition("=")
    whole, _, part = title.strip().partition(".")
    name = whole.replace("-", "_")
    values = tuple(v.strip() for v in listed.split(";") if v.strip())
    control = model.controls.get(name)
    if control is None:
        if name != "seed":
            resolve(model.controls, {name: ""})  # raises with what is near
        if part:
            raise ValueError(f"seed has no {part!r}; write seed=0;1")
        wrong = [v for v in values if not v.isdecimal()]
        if wrong:
            raise ValueError(f"seed is {wrong[0]!r}; it is a whole number, 0 or more")
    elif part:
        if control.kind != "sliders":
            raise ValueError(f"{name} has no {part!r}, as it is one value: write {name}=VALUE;VALUE")
        resolve({name: replace(control, needs="")}, {name: {part: 0.0}})  # raises with what is near
    if name in SIZES:
        raise ValueError(
            f"{name} is no axis, as the pictures of a grid are of one size: give it one value, "
            f"--{name.replace('_', '-')} VALUE"
        )
    values = values or _usual(control, part)
    if not values:
        one = (
            f", or {name}.{control.choices[0]} for one slider"
            if control and control.kind == "sliders"
            else ""
        )
        raise ValueError(f"{title} has no values to go through: write {title}=VALUE;VALUE{one}")
    return Axis(name=name, part=part, values=values)


def _usual(control: Control | None, part: str) -> tuple[str, ...]:
    """What a control goes through that is named alone; () where that is not clear."""
    if control is None:
        return ()
    if control.kind == "bits":  # none on, then each one alone
        n = int(control.high or 0)
        return ("0" * n, *("".join("1" if i == k else "0" for i in range(n)) for k in range(n)))
    if control.kind == "choice":
        return control.choices
    if control.kind == "sliders" and part:
        low = -REACH if control.low is None else max(-REACH, control.low)
        high = REACH if control.high is None else min(REACH, control.high)
        return tuple(f"{low + i * (high - low) / 4:g}" for i in range(5))
    return ()


def at(model: Model, held: Mapping[str, Any], places: Mapping[Axis, str]) -> dict[str, Any]:
    """The controls of one picture: those that are held, and each axis at its value; "seed" among them where swept.

    Sliders are set beside each other, on both axes and held. Raises ValueError for what is set twice, and for
    sliders out of their range.
    """
    chosen: dict[str, Any] = {}
    sliders = {k: c for k, c in model.controls.items() if c.kind == "sliders"}
    for name, part, value in (
        *((k, "", v) for k, v in held.items()),
        *((a.name, a.part, v) for a, v in places.items()),
    ):
        if name in sliders:
            text = {part: value} if part else value
            found = resolve({name: replace(sliders[name], needs="")}, {name: text})[name]
            there = chosen.setdefault(name, {})
            twice = [f"{name}.{key}" for key in found if key in there]
            chosen[name] = there | found
        else:
            twice = [name] * (name in chosen)
            chosen[name] = value
        if twice:
            raise ValueError(f"{twice[0]} is given twice: leave it out of one axis, or of what is held")
    return chosen
