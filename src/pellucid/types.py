"""The words every part of pellucid shares: what a batch is, what a sample is, what can be set and read.

Shapes, everywhere in the package:

    B  batch              C, H, W  channels, height, width
    K  regions            L        ResBlocks of a U-Net
    m  attributes         P        partners of a sample in its group
    S  the shape of one sample without its batch axis, here (C, H, W)

Images are float32 in [-1, 1] from the data package inwards; 0..255 exists only in files.
Times `t` run from 0 (clean) to 1 (noise).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""x_t (B, *S), t (B,) in [0, 1] -> x0_hat (B, *S): the only thing a sampler ever sees."""

Affine = tuple[Tensor, Tensor]
"""(scale, shift), each broadcastable to the (B, C_i, H_i, W_i) of ResBlock i."""


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """Something that a table says of every picture, and the values it takes there, in the order they are counted."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some samples of a data set, with whatever ground truth the data happens to carry.

    Methods train on `x0` (and `labels` where they are class-conditional, `attributes` where they are supervised by
    groups). `masks` and `truth` are there to be scored against and no loss may read them, supervised baselines apart.
    """

    x0: Tensor
    """(B, C, H, W) float32 in [-1, 1]; (B, C, 0, 0) for a stage that does not look at pictures (`Stage.looks`)."""
    labels: Tensor | None = None
    """(B,) int64 class indices."""
    masks: Tensor | None = None
    """(B, H, W) int64; 0 is ground, 1.. are objects."""
    attributes: Tensor | None = None
    """(B, m) int64 indices into the values of each attribute, -1 where the table has none."""
    index: Tensor | None = None
    """(B,) int64, which samples of the data set these are."""
    partners: Batch | None = None
    """The samples that form a group with each of these (`data.groups`): axes (B, P, ...). See `Stage.shared`."""
    truth: Mapping[str, Tensor] = field(default_factory=dict)
    """Further ground truth by name (attributes, depth, pose), batch axis first."""
    derived: Mapping[str, Tensor] = field(default_factory=dict)
    """What frozen parts of the method say of each sample (`Stage.derive`), computed before the stage and kept."""

    def __len__(self) -> int:
        return len(self.x0)

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with every tensor changed in one way, those of partners too."""
        some = lambda value: None if value is None else change(value)
        return Batch(
            x0=change(self.x0),
            labels=some(self.labels),
            masks=some(self.masks),
            attributes=some(self.attributes),
            index=some(self.index),
            partners=None if self.partners is None else self.partners.map(change),
            truth={k: change(v) for k, v in self.truth.items()},
            derived={k: change(v) for k, v in self.derived.items()},
        )

    def to(self, device: Any) -> Batch:
        """The same batch on another device."""
        return self.map(lambda value: value.to(device, non_blocking=True))


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What a method generated, and what it can say about it."""

    images: Tensor
    """(B, C, H, W) float32 in [-1, 1]."""
    readouts: Mapping[str, Tensor] = field(default_factory=dict)
    """One entry for each readout the method declares."""
    controls: Mapping[str, Any] = field(default_factory=dict)
    """Every control as it was used, defaults included."""
    trace: tuple[tuple[float, Sample], ...] = ()
    """(t, state at t) along the process, noise first, where snapshots were asked for."""


@dataclass(frozen=True, kw_only=True)
class Control:
    """Something a user may set when a method samples or edits.

    `int` and `float` lie in [low, high]; `choice` is one of `choices` (or an index into them);
    `image` is a (B, C, H, W) tensor in [-1, 1]; `indices` is a set of whole numbers in [low, high], as text "0,2";
    `bits` is a row of `high` switches, as text "01011"; `sliders` sets some of the numbers that `choices` names, each
    in [low, high], as text "name=1.5,other=-1"; `images` gives some of what `choices` names a picture each, as
    {name: (B, C, H, W)}, in files "name=a.png,other=b.png"; `pictures` are examples, (N, C, H, W), in files a folder;
    `cameras` is where each image is seen from, (1 or n, 4, 4) as `pellucid.cameras` has them.
    """

    kind: Literal[
        "int", "float", "choice", "image", "indices", "bits", "sliders", "images", "pictures", "cameras"
    ]
    help: str
    default: Any = None
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    reads: bool = False
    """Whether reading an image takes it too, not only sampling."""
    needs: str = ""
    """What has to be set as well for this one to do anything: a control's name, or "name=choice"."""

    @property
    def takes(self) -> str:
        """Its kind and the values it takes, in words: "float [0 to 1]", "bits: 5 switches, e.g. 01010"."""
        if self.kind == "bits":
            n = int(self.high or 0)
            return f"bits: {n} switches, e.g. {'01' * n:.{n}}"
        low = 0 if self.kind == "indices" and self.low is None else self.low
        span = "" if low is None or self.high is None else f" [{low:g} to {self.high:g}]"
        if self.kind == "sliders":
            example = 1.5 if self.high is None else min(1.5, self.high)
            return f"sliders{span}: {', '.join(self.choices)}; e.g. {self.choices[0]}={example:g}"
        if self.kind == "images":
            return f"pictures: {', '.join(self.choices)}; e.g. {self.choices[0]}=a.png"
        if self.kind == "pictures":
            return "a folder of pictures"
        if self.kind == "cameras":
            return "cameras: orbit, spiral:low=10,high=60, a.png,b.png (two photographs) or a transforms.json"
        if self.kind == "choice":
            return f"choice of {', '.join(self.choices)}"
        return self.kind + span


@dataclass(frozen=True, kw_only=True)
class Readout:
    """Something a method finds inside an image.

    `masks` are probabilities over K regions, (K, H, W), that sum to 1 at each pixel; `shares` are
    K numbers that sum to 1; `bits` are the probabilities that each of n switches is on; a `map` is a number at each
    pixel; a `camera` is 16 numbers, a matrix from camera to world row by row, as `pellucid.cameras` has them; `vector`
    is anything else of fixed length, its entries named by `names` where they have names.
    """

    kind: Literal["masks", "shares", "bits", "map", "camera", "vector"]
    help: str
    shape: tuple[int | str, ...]
    """Without the batch axis; a letter stands for a size that follows the image ("H", "W")."""
    names: tuple[str, ...] = ()
    span: tuple[float, float] = (0.0, 1.0)
    """Between which the numbers of a map lie."""
