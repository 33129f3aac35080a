"""What every method offers, and nothing more: the trainer, the command line and the reports use only this."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from pellucid.types import Batch, Control, Readout, Sample


class Stage(Protocol):
    """A part of a method's training, with its own losses and optimisers."""

    @property
    def name(self) -> str: ...

    @property
    def players(self) -> Mapping[str, list[nn.Parameter]]:
        """Who owns which parameters; a player's optimiser is stepped when its losses are yielded."""
        ...

    def losses(self, batch: Batch, rng: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield (player, weighted loss terms); that player is stepped before the next is asked for.

        Entries whose name starts with "_" are logged and not added to the loss.
        """
        ...

    def after_step(self, step: int) -> None:
        """Called once the optimisers of a step have run: target networks, queues."""
        ...


def resolve(
    declared: Mapping[str, Control], given: Mapping[str, Any], *, reading: bool = False
) -> dict[str, Any]:
    """Every declared control with the value given or its default; a ValueError that names what is wrong."""
    usable = {k: c for k, c in declared.items() if c.reads or not reading}
    for name in given:
        if name not in usable:
            what = "read" if reading else "sample"
            near = get_close_matches(name, usable, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{name!r} is no control that this model can {what} with; it has {', '.join(usable) or 'none'}.{hint}"
            )
    use = {name: _checked(name, c, given.get(name, c.default)) for name, c in usable.items()}
    for name, control in usable.items():
        unset = _checked(name, control, control.default)
        idle = use[name] is None or (unset is not None and use[name] == unset)
        if control.needs and not idle:
            _require(name, control.needs, usable, use)
    return use


def _require(name: str, needs: str, declared: Mapping[str, Control], use: Mapping[str, Any]) -> None:
    """A ValueError where a control was set that does nothing without another."""
    other, _, choice = needs.partition("=")
    if choice and use[other] != declared[other].choices.index(choice):
        raise ValueError(
            f"{name} does something only where {other} is {choice}; leave it out, or set {needs}"
        )
    if use[other] is None:
        raise ValueError(f"{name} does nothing alone: give {other!r} as well")


def _checked(name: str, control: Control, value: Any) -> Any:
    if value is None:
        return None
    if control.kind == "choice":
        if str(value) in control.choices:
            return control.choices.index(str(value))
        if isinstance(value, int | str) and str(value).isdigit() and int(value) < len(control.choices):
            return int(value)
        raise ValueError(f"{name} is {value!r}; it is one of {', '.join(control.choices)}")
    if control.kind in ("int", "float"):
        number = int if control.kind == "int" else float
        try:
            cast = number(value)
            if isinstance(value, float) and cast != value and value == value:
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{name} is {value!r}; it is a number ({control.kind})") from None
        low, high = control.low, control.high
        if (low is not None and cast < low) or (high is not None and cast > high) or cast != cast:
            raise ValueError(f"{name} is {value}; it lies between {low} and {high}")
        return cast
    if control.kind == "regions":
        regions = (value,) if isinstance(value, int) else tuple(value)
        last = int(control.high or 0)
        if not regions or any(not isinstance(r, int) or not 0 <= r <= last for r in regions):
            raise ValueError(f"{name} is {value!r}; regions are numbers from 0 to {last}")
        return regions
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{name} is a {type(value).__name__}; it is an image, a (B, C, H, W) tensor in [-1, 1]"
        )
    return value


class Method(nn.Module):
    """One system of the papers: its networks, its losses, how it samples and how it reads."""

    name: ClassVar[str]
    controls: Mapping[str, Control]
    readouts: Mapping[str, Readout]
    image_shape: tuple[int, int, int]
    """(C, H, W) of what it generates."""

    def stages(self) -> tuple[Stage, ...]:
        raise NotImplementedError

    def prepare(self, pictures: Callable[[int], Iterator[Tensor]]) -> None:
        """Called once, before the first step of a run: what is computed from pictures and not trained.

        `pictures(n)` are n of the training pictures, spread over the whole set, or all there are, as they lie there
        and on the CPU, in batches (b, C, H, W). What comes of them belongs into buffers, which checkpoints keep.
        """

    def read(self, x: Tensor, rng: torch.Generator, **controls: Any) -> dict[str, Tensor]:
        """x (B, C, H, W) in [-1, 1] -> every declared readout, batch axis first.

        Takes the controls that are declared with `reads`.
        """
        raise NotImplementedError

    def sample(self, n: int, rng: torch.Generator, **controls: Any) -> Sample:
        """n images with their readouts; an unknown control or one out of its range is a ValueError."""
        raise NotImplementedError
