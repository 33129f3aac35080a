"""A trained model, as a user holds it: `pellucid.load(...)`, then `sample`, `read`, `edit`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pellucid.data.decode import decode, upright_rgb
from pellucid.data.images import to_uint8, to_unit
from pellucid.methods.base import Method, resolve
from pellucid.recipes import Recipe, build, recipe_from_json
from pellucid.train.checkpoint import load_weights, read_safetensors
from pellucid.train.trainer import check_seed, device_of
from pellucid.types import Sample

Picture = str | Path | Image.Image | np.ndarray | Tensor
MAX_READ_ASPECT = 8
"""A picture longer than this many times its width is read squeezed to it: memory would go out of proportion."""


@dataclass(frozen=True)
class Reading:
    """What a model found in one picture."""

    image: Image.Image
    """What was read of the picture, at its own size: all of it, or its centre square."""
    masks: Tensor | None
    """(K, H, W) float at the picture's own size, where the model reads masks."""
    values: Mapping[str, Tensor]
    """Every other readout, without a batch axis."""
    switches: Tensor | None = None
    """(n,) probabilities that each bit is 1, where the model reads bits; `values` has them too, by their name."""

    @property
    def labels(self) -> np.ndarray:
        """(H, W) uint8: each pixel's most likely region. Raises ValueError where there are no masks."""
        if self.masks is None:
            raise ValueError("this model reads no masks")
        return self.masks.argmax(0).to(torch.uint8).numpy()

    @property
    def bits(self) -> str:
        """The likelier value of every bit, b_1 first: "01011". Raises ValueError where the model reads no bits."""
        return digits(self._switches)

    @property
    def code(self) -> int:
        """The bits as a number: sum over k of b_k 2^(k-1), b_1 first. Raises ValueError where there are no bits."""
        return sum(2**k for k, bit in enumerate(self.bits) if bit == "1")

    @property
    def sureness(self) -> Tensor:
        """(n,) in [0.5, 1]: how probable the value is that `bits` gives each bit. Raises ValueError as `bits` does."""
        return torch.maximum(self._switches, 1 - self._switches)

    @property
    def _switches(self) -> Tensor:
        if self.switches is None:
            raise ValueError("this model reads no bits")
        return self.switches


def digits(probabilities: Tensor) -> str:
    """(n,) probabilities that a bit is 1 -> the likelier values as text, 0 where both are as likely."""
    return "".join("1" if p > 0.5 else "0" for p in probabilities.tolist())


class Model:
    """A method with its trained weights and everything that its run knows of it."""

    def __init__(
        self, method: Method, recipe: Recipe, origin: str, trained_on: Mapping[str, Any] | None = None
    ) -> None:
        self.method, self.recipe, self.origin = method.eval(), recipe, origin
        self.trained_on = dict(trained_on or {})
        """`fingerprint` and, for pictures on disk, `place` of what it was trained on."""

    @property
    def controls(self) -> Mapping[str, Any]:
        return self.method.controls

    @property
    def readouts(self) -> Mapping[str, Any]:
        return self.method.readouts

    @property
    def device(self) -> torch.device:
        return next(self.method.parameters()).device

    def sample(self, n: int = 16, *, seed: int = 0, batch: int = 64, **controls: Any) -> Sample:
        """n images with their readouts; the same seed gives the same images.

        Controls are those of `model.controls`; picture controls also take paths and PIL pictures.
        Raises ValueError for an unknown control or a value out of its range.
        """
        parts = list(self.parts(n, seed=seed, batch=batch, **controls))
        if len(parts) == 1:
            return parts[0]
        return Sample(
            images=torch.cat([p.images for p in parts]),
            readouts={k: torch.cat([p.readouts[k] for p in parts]) for k in parts[0].readouts},
            controls=parts[0].controls,
            trace=parts[0].trace,
        )

    def parts(self, n: int = 16, *, seed: int = 0, batch: int = 64, **controls: Any) -> Iterator[Sample]:
        """The images of `sample`, `batch` at a time as they are made: for more of them than memory holds.

        What was given is checked at once, and raises as in `sample`.
        """
        if n < 1:
            raise ValueError(f"n is {n}; ask for at least one image")
        check_seed(seed)
        given = {
            k: self._square(v)
            if k in self.controls and self.controls[k].kind == "image" and v is not None
            else v
            for k, v in controls.items()
        }
        resolve(self.controls, given)
        rng = torch.Generator().manual_seed(seed)

        def of(value: Any, start: int) -> Any:
            """A part's share of a picture for each image; one picture for all is every part's."""
            return value[start : start + batch] if isinstance(value, Tensor) and len(value) == n else value

        return (
            self.method.sample(min(batch, n - i), rng, **{k: of(v, i) for k, v in given.items()})
            for i in range(0, n, batch)
        )

    def read(self, image: Picture, *, seed: int = 0, **controls: Any) -> Reading:
        """What the model finds in one picture of any mode and size; masks come at its own size.

        The picture is read whole, its shorter side scaled to the model's size and both sides to
        multiples of what the network needs; masks are scaled back softly and then compared. A method that reads
        pictures of its own size alone gets the centre square at that size, and masks are that square's.
        Raises BadImage, a ValueError, for what is no picture, and ValueError where the model declares no readouts.
        """
        check_seed(seed)
        if not self.readouts:
            raise ValueError(f"{self.recipe.method} reads nothing in pictures: it declares no readouts")
        picture = _open(image)
        if self.method.reads_any_size:
            width, height = picture.size
            size, stride = self.method.image_shape[-1], getattr(self.method, "stride", 1)
            scale = size / min(width, height)
            fitted_h, fitted_w = (
                min(max(size, round(v * scale / stride) * stride), MAX_READ_ASPECT * size)
                for v in (height, width)
            )
            x = self._tensor(picture.resize((fitted_w, fitted_h), Image.Resampling.LANCZOS))
        else:
            x = self._square(picture)
            picture = _centre(picture)
            width, height = picture.size
        rng = torch.Generator().manual_seed(seed)
        found = self.method.read(x, rng, **controls)
        masks = None
        if "masks" in found:
            masks = F.interpolate(
                found["masks"].float(), (height, width), mode="bilinear", align_corners=False
            )[0]
            masks = masks.clamp(0, 1).cpu()
            masks = masks / masks.sum(0)
        rest = {k: v[0].cpu() for k, v in found.items() if k != "masks"}
        switches = next((rest[k] for k, r in self.readouts.items() if r.kind == "bits"), None)
        return Reading(picture, masks, rest, switches)

    def edit(self, image: Picture, *, n: int = 1, seed: int = 0, **controls: Any) -> Sample:
        """Read a picture, change some controls, sample: `edit("a.png", regions=(1,))` repaints region 1, and
        `edit("a.png", flip=(3,))` turns switch 3 of what was read over, where the model declares such controls."""
        return self.sample(n, seed=seed, image=image, **controls)

    def paste(
        self, image: Picture, sample: Sample, regions: tuple[int, ...], *, seed: int = 0, **controls: Any
    ) -> list[Image.Image]:
        """The regenerated regions of an edit, enlarged, on the centre square of the picture at its own size.

        Regions are read again at that size, with those of the controls given that reading takes; outside them not
        one pixel changes. Raises ValueError where the model reads no masks.
        """
        square = _centre(_open(image))
        reading = {k: v for k, v in controls.items() if k in self.controls and self.controls[k].reads}
        change = Image.fromarray(np.isin(self.read(square, seed=seed, **reading).labels, regions))
        pasted = []
        for pixels in to_uint8(sample.images.cpu().expand(-1, 3, -1, -1)):
            new = square.copy()
            new.paste(Image.fromarray(pixels).resize(square.size, Image.Resampling.BICUBIC), mask=change)
            pasted.append(new)
        return pasted

    def _square(self, image: Picture) -> Tensor:
        """A picture as the model generates it: shorter side to size, centre crop; (B, C, H, W) tensors pass."""
        if isinstance(image, Tensor) and image.ndim == 4:
            return image.to(self.device)
        from pellucid.data.decode import prepare

        channels, size, _ = self.method.image_shape
        return to_unit(prepare(_open(image), size, channels)[None]).to(self.device)

    def _tensor(self, picture: Image.Image) -> Tensor:
        if self.method.image_shape[0] == 1:
            picture = picture.convert("L")
        pixels = np.asarray(picture)
        return to_unit(pixels[None, ..., None] if pixels.ndim == 2 else pixels[None]).to(self.device)


def _centre(picture: Image.Image) -> Image.Image:
    """The centre square, at its own size."""
    side = min(picture.size)
    left, top = ((v - side) // 2 for v in picture.size)
    return picture.crop((left, top, left + side, top + side))


def _open(image: Picture) -> Image.Image:
    """Any picture -> RGB. Arrays are uint8 (H, W[, C]); tensors (C, H, W) in [-1, 1]."""
    if isinstance(image, str | Path):
        return decode(Path(image))
    if isinstance(image, Image.Image):
        return upright_rgb(image)
    if isinstance(image, Tensor):
        if image.ndim != 3 or len(image) not in (1, 3):
            raise ValueError(f"a picture tensor is (C, H, W) in [-1, 1], C 1 or 3; got {tuple(image.shape)}")
        return Image.fromarray(
            to_uint8(image[None].expand(-1, 3, -1, -1) if len(image) == 1 else image[None])[0]
        )
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,), (4,)):
        raise ValueError(
            f"a picture array is uint8 (H, W), or (H, W, C) of 1, 3 or 4 channels; got {array.dtype} {array.shape}"
        )
    return upright_rgb(Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array))


def load(origin: str | Path, *, device: str = "auto", which: str = "last") -> Model:
    """A trained model from a run folder, an exported folder, or `hf:OWNER/NAME`.

    which: "last" or "best" checkpoint of a run. Weights are the averaged ones. Raises ValueError where
    there is nothing to load, or its config is not one this version knows; nothing is ever unpickled.
    """
    if which not in ("last", "best"):
        raise ValueError(f"which is {which!r}; it is last or best")
    name = str(origin)
    folder = _from_hub(name.removeprefix("hf:")) if name.startswith("hf:") else Path(origin)
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} is no run and no exported model: it has no config.json. `pellucid train` makes runs "
            f"(in runs/ unless told otherwise)"
        )
    try:
        data = json.loads(path.read_text())
        made = recipe_from_json(data["recipe"], str(path))
        trained_on = dict(data.get("data", {}))
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no config of pellucid: {error}") from None
    exported = folder / "model.safetensors"
    if exported.is_file() and which != "last":
        raise ValueError(
            f"{folder} is an exported model and holds one set of weights; there is no {which!r} of it"
        )
    weights = read_safetensors(exported) if exported.is_file() else load_weights(folder, which=which)
    method = build(made)
    try:
        method.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"the weights in {folder} do not fit its config: {str(error).splitlines()[0]}"
        ) from None
    return Model(method.to(device_of(device)), made, name, trained_on)


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ValueError(f"loading hf:{name} needs huggingface_hub: pip install 'pellucid[data]'") from None
    try:
        return Path(snapshot_download(name, allow_patterns=["config.json", "model.safetensors", "README.md"]))
    except Exception as error:
        raise ValueError(f"hf:{name} could not be fetched: {error}") from None
