"""What every method offers, and nothing more: the trainer, the command line and the reports use only this."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pellucid.types import Batch, Control, Readout, Sample

Pictures = Callable[[int], Iterator[Tensor]]
"""n -> n of the training pictures, spread over the whole set, or all there are, as they lie there and on the CPU, in
batches (b, C, H, W)."""


class Stage:
    """A part of a method's training, with its own data, losses and optimisers. Subclasses set the first two."""

    name: str
    players: Mapping[str, list[nn.Parameter]]
    """Who owns which parameters; a player's optimiser is stepped when its losses are yielded."""
    rates: Mapping[str, float] = {}
    """Of players: factors on the learning rate where the settings (`lr_of`) name none."""
    shows: Mapping[str, Any] | None = {}
    """The controls by which a sample shows what this stage has learned so far; None where no sample can."""
    derives: bool = False
    """Whether its losses need `batch.derived`."""
    shared: int = 0
    """How many attributes each sample's partners share with it, where its losses need `batch.partners`; 0 where not."""
    looks: bool = True
    """Whether its losses look at pictures; where not, none is decoded and `batch.x0` is empty."""

    def prepare(self, pictures: Pictures) -> None:
        """Called once, before the stage's first step: what is computed from pictures and not trained.

        What comes of them belongs into buffers, which checkpoints keep.
        """

    def derive(self, x0: Tensor) -> dict[str, Tensor]:
        """What frozen parts say of pictures (B, C, H, W), sample axis first: computed once for every picture and its
        mirror image, kept on disk, and handed to `losses` as `batch.derived`."""
        raise NotImplementedError

    def losses(
        self, batch: Batch, rng: torch.Generator
    ) -> Iterator[tuple[str | tuple[str, ...], dict[str, Tensor]]]:
        """Yield (player, weighted loss terms); that player is stepped before the next is asked for.

        Several players, each with an optimiser of its own, that one loss is for are yielded together, as a tuple.
        Entries whose name starts with "_" are logged and not added to the loss.
        """
        raise NotImplementedError

    def after_step(self, step: int) -> None:
        """Called once the optimisers of a step have run: target networks, queues.

        Raises CollapseError where training has failed for good.
        """

    def ailing(self) -> bool:
        """Whether the stage shows signs of a collapse now: no checkpoint then takes the place of a sound one."""
        return False


class CollapseError(ValueError):
    """A stage has stopped learning for good; the message says by what sign, and the way out."""


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
        # a picture that is read is there, whatever a sample would need
        if control.needs and not idle and (not reading or control.needs.partition("=")[0] in usable):
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
    if control.kind == "indices":
        return _indices(name, control, value)
    if control.kind == "bits":
        return _bits(name, control, value)
    if control.kind == "sliders":
        return _sliders(name, control, value)
    if control.kind == "images":
        return _images(name, control, value)
    if control.kind == "pictures":
        if not isinstance(value, Tensor) or value.ndim != 4 or not len(value):
            told = f"a {type(value).__name__}" if not isinstance(value, Tensor) else f"{tuple(value.shape)}"
            raise ValueError(
                f"{name} is {told}; it is one picture or more, an (N, C, H, W) tensor in [-1, 1]"
            )
        return value
    if control.kind == "cameras":
        return _cameras(name, value)
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{name} is a {type(value).__name__}; it is an image, a (B, C, H, W) tensor in [-1, 1]"
        )
    return value


def _cameras(name: str, value: Any) -> Tensor:
    """(4, 4) or (N, 4, 4) -> (N, 4, 4); only what turns and moves, finite, with unit axes at right angles."""
    told = f"a {type(value).__name__}" if not isinstance(value, Tensor) else f"{tuple(value.shape)}"
    if not isinstance(value, Tensor) or value.shape[-2:] != (4, 4) or value.ndim not in (2, 3):
        raise ValueError(
            f"{name} is {told}; it is one (4, 4) matrix from camera to world, or one for each image"
        )
    found = value.float().view(-1, 4, 4)
    turn = found[:, :3, :3]
    rigid = torch.allclose(turn @ turn.transpose(1, 2), torch.eye(3).to(turn), atol=1e-3)
    if not (found.isfinite().all() and rigid and (turn.det() > 0).all()):
        raise ValueError(
            f"{name} holds a matrix that does more than turn and move, or is not finite: no camera is so"
        )
    return found


def _indices(name: str, control: Control, value: Any) -> tuple[int, ...]:
    """1, (0, 2) or "0,2" -> a tuple of indices."""
    first, last = int(control.low or 0), int(control.high or 0)
    wanted = f"{name} is {value!r}; write numbers from {first} to {last}, such as {last} or {first},{last}"
    if isinstance(value, str):
        try:
            value = tuple(int(v) for v in value.split(","))
        except ValueError:
            raise ValueError(wanted) from None
    found = (value,) if isinstance(value, int) else tuple(value)
    if not found or any(not isinstance(v, int) or not first <= v <= last for v in found):
        raise ValueError(wanted)
    return found


def _bits(name: str, control: Control, value: Any) -> tuple[int, ...]:
    """ "01011", or a sequence of 0 and 1 -> a tuple of bits."""
    n = int(control.high or 0)
    found = tuple(value) if isinstance(value, str | tuple | list) else (value,)
    if len(found) != n or any(str(v) not in ("0", "1") for v in found):
        raise ValueError(f"{name} is {value!r}; write {n} digits, each 0 or 1, such as {'01' * n:.{n}}")
    return tuple(int(v) for v in found)


def _sliders(name: str, control: Control, value: Any) -> dict[str, float]:
    """{"a": 1.5}, or "a=1.5,b=-1", or one number for each name in order -> {name: number}."""
    if isinstance(value, str):
        items = [part.partition("=") for part in value.split(",") if part.strip()]
        if items and not any(equals for _, equals, _ in items):
            value = [number for number, _, _ in items]
        else:
            value = {key.strip(): number for key, _, number in items}
    if isinstance(value, tuple | list):
        if len(value) != len(control.choices):
            raise ValueError(
                f"{name} has {len(value)} numbers; it takes {len(control.choices)}, one for each of "
                f"{', '.join(control.choices)}, or some of them as name=number"
            )
        value = dict(zip(control.choices, value, strict=True))
    if not isinstance(value, Mapping) or not value:
        raise ValueError(f"{name} is {value!r}; write name=number,name=number")
    found = {}
    for key, number in value.items():
        _check_part(name, key, control)
        one = Control(kind="float", help="", low=control.low, high=control.high)
        found[key] = _checked(f"{name}.{key}", one, number)
        if found[key] is None:
            raise ValueError(f"{name}.{key} has no value; write {key}=NUMBER")
    return found


def _check_part(name: str, key: Any, control: Control) -> None:
    """A ValueError where a control of several has none of this name, with what is near it."""
    if key not in control.choices:
        near = get_close_matches(str(key), control.choices, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name} has no {key!r}; there are {', '.join(control.choices)}.{hint}")


def _images(name: str, control: Control, value: Any) -> dict[str, Tensor]:
    """{name of a part: picture} -> the same, checked."""
    if not isinstance(value, Mapping) or not value:
        raise ValueError(
            f"{name} is {value!r}; write {control.choices[0]}=PICTURE, of {', '.join(control.choices)}"
        )
    for key, picture in value.items():
        _check_part(name, key, control)
        _checked(f"{name}.{key}", Control(kind="image", help=""), picture)
    return dict(value)


class Method(nn.Module):
    """One system of the papers: its networks, its losses, how it samples and how it reads."""

    name: ClassVar[str]
    controls: Mapping[str, Control]
    readouts: Mapping[str, Readout]
    image_shape: tuple[int, int, int]
    """(C, H, W) of what it generates."""
    reads_any_size: ClassVar[bool] = True
    """Whether `read` takes pictures of other sizes than it generates; otherwise their centre square is read."""
    shardable: ClassVar[bool] = True
    """Whether its weights may be split among processes: each is then whole only where its module is called."""
    edits_vary: ClassVar[bool] = True
    """Whether an edit of one picture, nothing else changed, comes out otherwise under another seed."""

    def edit_varies(self, **controls: Any) -> bool:
        """Whether an edit with these controls, `image` among them, comes out otherwise under another seed.

        Where it does not, pictures may be edited together: each comes out, to rounding, as it does alone.
        """
        return self.edits_vary

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def stages(self) -> tuple[Stage, ...]:
        raise NotImplementedError

    def read(self, x: Tensor, rng: torch.Generator, **controls: Any) -> dict[str, Tensor]:
        """x (B, C, H, W) in [-1, 1] -> every declared readout, batch axis first.

        Takes the controls that are declared with `reads`.
        """
        raise NotImplementedError

    def sample(self, n: int, rng: torch.Generator, **controls: Any) -> Sample:
        """n images with their readouts; an unknown control or one out of its range is a ValueError."""
        raise NotImplementedError

    def noise_of(self, x: Tensor, num_steps: int) -> Tensor:
        """The noise (B, C, H, W) that pictures of that shape come back from under their own code, found in so many
        steps; of methods that declare `inversion_steps`."""
        raise NotImplementedError

    def said(self, use: Mapping[str, Any]) -> dict[str, Any]:
        """Resolved controls as a user would give them again: choices by name, and for pictures what they are of."""
        named = {k: c.choices for k, c in self.controls.items() if c.kind == "choice"}
        pictures = {
            k for k, c in self.controls.items() if c.kind in ("image", "images", "pictures", "cameras")
        }
        said: dict[str, Any] = {}
        for k, v in use.items():
            if v is None or k not in pictures:
                said[k] = named[k][v] if k in named and v is not None else v
            elif isinstance(v, dict):
                said[k] = tuple(v)
        return said

    def given(self, image: Tensor, n: int) -> Tensor:
        """A picture control's value, (C, H, W) or (1 or n, C, H, W), as n pictures where the weights live."""
        image = image.to(self.device, torch.float32)
        if image.ndim == 3:
            image = image[None]
        if image.shape[1:] != self.image_shape or len(image) not in (1, n):
            raise ValueError(
                f"the picture is {tuple(image.shape)}; expected {self.image_shape}, one of them or n = {n}"
            )
        return image.expand(n, -1, -1, -1)
