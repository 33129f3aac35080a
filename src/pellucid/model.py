"""A trained model, as a user holds it: `pellucid.load(...)`, then `sample`, `read`, `edit`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pellucid.data.decode import decode, upright_rgb
from pellucid.data.images import to_uint8, to_unit
from pellucid.data.sources import FolderSource
from pellucid.methods.base import Method, resolve
from pellucid.methods.radiance import Radiance
from pellucid.paths import cameras_of, focal_of
from pellucid.recipes import Recipe, build, recipe_from_json
from pellucid.train.checkpoint import load_weights, read_safetensors
from pellucid.train.trainer import check_seed, device_of
from pellucid.types import Control, Sample

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

        Controls are those of `model.controls`; those that are pictures also take paths and PIL pictures, see `opened`.
        Raises ValueError for an unknown control or a value out of its range, and BadImage for what is no picture.
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
        given = self.opened(controls, n=n, seed=seed)
        resolve(self.controls, given)
        for name in self._of_kind("cameras", given):
            if len(given[name]) not in (1, n):
                raise ValueError(
                    f"{name} is {len(given[name])} cameras for {n} images: give one, or one for each"
                )
        texts = {
            k: str(controls[k]) for k in self._of_kind("cameras", given) if not hasattr(controls[k], "shape")
        }
        rng = torch.Generator().manual_seed(seed)

        def of(name: str, value: Any, start: int) -> Any:
            """A part's share of what there is one of for each image; one for all is every part's, as are examples."""
            share = lambda x: x[start : start + batch] if len(x) == n else x
            if value is None or self.controls[name].kind not in ("image", "images", "cameras"):
                return value
            return {k: share(v) for k, v in value.items()} if isinstance(value, Mapping) else share(value)

        made = (
            self.method.sample(min(batch, n - i), rng, **{k: of(k, v, i) for k, v in given.items()})
            for i in range(0, n, batch)
        )
        return (replace(s, controls=dict(s.controls) | texts) if texts else s for s in made)

    def opened(self, controls: Mapping[str, Any], *, n: int = 1, seed: int = 0) -> dict[str, Any]:
        """Controls with the pictures among them as the tensors that methods take; opened once, they can be used often.

        A picture is a path, a PIL picture, an array or a tensor (C, H, W), and becomes (1, C, H, W) at the model's
        size; a tensor (n, C, H, W), one for each image, stays. Of the kinds of controls (`types.Control`)

            image     takes one
            images    takes {part: picture}, or the text "background=b.png,pose=c.png". A comma begins another part
                      where an "=" follows before the next comma: a path with a comma and then an "=" needs the mapping
            pictures  takes a folder, which stands for every picture below it as in training, a list of pictures, or a
                      tensor (N, C, H, W)
            cameras   takes what `pellucid.paths` says, and becomes (n, 4, 4): one path for all n images; photographs
                      are read with `seed`, and the focal length of a file is `render_focal`, where that is not given

        All others stay as they are. Raises BadImage, a ValueError, for what is no picture, and ValueError for a folder
        without any and a part that is given twice; `methods.base.resolve` refuses what else is wrong.
        """
        found = dict(controls)
        for name, value in controls.items():
            control = self.controls.get(name)
            if control is None or value is None:
                continue
            if control.kind == "image":
                found[name] = self._square(value)
            elif control.kind == "images":
                found[name] = self._each(name, control, value)
            elif control.kind == "pictures":
                found[name] = self._all(name, value)
            elif control.kind == "cameras":
                found[name] = self._cameras(name, value, n, seed)
                if "render_focal" in self.controls and controls.get("render_focal") is None:
                    found["render_focal"] = self._focal(value, controls)
        return found

    def _of_kind(self, kind: str, given: Mapping[str, Any]) -> list[str]:
        """The controls of a kind that are set."""
        return [k for k, v in given.items() if v is not None and self.controls[k].kind == kind]

    def _cameras(self, name: str, value: Any, n: int, seed: int) -> Any:
        """A text or a tensor (4, 4) -> (n or 1, 4, 4); what is neither passes."""
        if isinstance(value, Tensor) and value.shape == (4, 4):
            return value[None]
        if not isinstance(value, str | Path):
            return value
        assert isinstance(self.method, Radiance)

        def posed(photograph: Path) -> Tensor:
            camera = next((k for k, r in self.readouts.items() if r.kind == "camera"), None)
            if camera is None:
                raise ValueError(
                    f"{name} is {str(value)!r}, and {self.recipe.method} does not read from where a photograph was "
                    f"taken: give a path such as orbit, or a transforms.json"
                )
            square = self._square(photograph)
            return self.method.read(square, torch.Generator().manual_seed(seed))[camera].view(4, 4)

        return cameras_of(name, str(value), n, self.method, posed)

    def _focal(self, path: Any, controls: Mapping[str, Any]) -> float | None:
        """The focal length of a path, in heights of what is rendered: the squares in the middles are alike. None where
        the path says none."""
        focal = focal_of(str(path)) if isinstance(path, str | Path) else None
        if focal is None:
            return None
        sides = ("render_size", "render_width")
        use = resolve({k: self.controls[k] for k in sides}, {k: controls[k] for k in sides if k in controls})
        height = use["render_size"] or self.method.image_shape[-2]
        return focal * min(1.0, (use["render_width"] or height) / height)

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
            picture = centre(picture)
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
        `edit("a.png", flip=(3,))` turns switch 3 of what was read over, where the model declares such controls.

        n pictures at once are one tensor (n, C, H, W) of the model's size, see `opened`.
        """
        return self.sample(n, seed=seed, image=image, **controls)

    def paste(
        self, image: Picture, sample: Sample, regions: tuple[int, ...], *, seed: int = 0, **controls: Any
    ) -> list[Image.Image]:
        """The regenerated regions of an edit, enlarged, on the centre square of the picture at its own size.

        Regions are read again at that size, with those of the controls given that reading takes; outside them not
        one pixel changes. Raises ValueError where the model reads no masks.
        """
        square = centre(_open(image))
        reading = {k: v for k, v in controls.items() if k in self.controls and self.controls[k].reads}
        change = Image.fromarray(np.isin(self.read(square, seed=seed, **reading).labels, regions))
        pasted = []
        for pixels in to_uint8(sample.images.cpu().expand(-1, 3, -1, -1)):
            new = square.copy()
            new.paste(Image.fromarray(pixels).resize(square.size, Image.Resampling.BICUBIC), mask=change)
            pasted.append(new)
        return pasted

    def _each(self, name: str, control: Control, value: Any) -> Any:
        """{part: picture}, or its text -> {part: (1 or n, C, H, W)}; what is neither passes, and so does an unknown
        part, alone, for `resolve` to name it."""
        if isinstance(value, str):
            value = _by_part(name, value)
        if not isinstance(value, Mapping):
            return value
        unknown = {k: v for k, v in value.items() if k not in control.choices}
        return unknown or {k: self._square(v) for k, v in value.items()}

    def _all(self, name: str, value: Any) -> Any:
        """A folder, a list of pictures or a tensor -> (N, C, H, W); what is none of them passes."""
        if isinstance(value, str | Path):
            value = _below(name, Path(value))
        if isinstance(value, Tensor):
            found = [value.to(self.device)]
        elif isinstance(value, list | tuple) and value:
            found = [self._square(picture) for picture in value]
        else:
            return value
        wrong = [tuple(x.shape) for x in found if x.ndim == 4 and x.shape[1:] != self.method.image_shape]
        if wrong:
            raise ValueError(
                f"{name} is {wrong[0]}; it is (N, C, H, W) with (C, H, W) = {self.method.image_shape}"
            )
        return torch.cat(found)

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


def _by_part(name: str, text: str) -> Any:
    """ "sky=b.png,pose=c,1.png" -> {"sky": "b.png", "pose": "c,1.png"}; the text itself where it names no part."""
    pieces: list[str] = []
    for piece in text.split(","):
        if "=" in piece or not pieces:
            pieces.append(piece)
        else:
            pieces[-1] += f",{piece}"
    found: dict[str, str] = {}
    for piece in pieces:
        part, equals, path = piece.partition("=")
        part = part.strip()
        if not equals or not part:
            return text
        if not path:
            raise ValueError(f"{name}.{part} has no picture; write {part}=PICTURE")
        if part in found:
            raise ValueError(
                f"{name}.{part} is given twice, as {found[part]} and as {path}: leave one of them out"
            )
        found[part] = path
    return found


def _below(name: str, folder: Path) -> list[Path]:
    """Every picture below a folder, as training lists them."""
    if not folder.is_dir():
        what = "a file" if folder.exists() else "not there"
        raise ValueError(f"{name} is {str(folder)!r}, which is {what}; give a folder of pictures")
    source = FolderSource(folder)
    if source.unreadable:
        inside, why = source.unreadable[0]
        raise ValueError(f"{name}: {inside} cannot be looked into: {why}")
    if not source.records:
        raise ValueError(
            f"{name}: {folder} holds no pictures that can be read; `pellucid doctor {folder}` says what it holds"
        )
    return [record.where[0] for record in source.records]


def centre(picture: Image.Image) -> Image.Image:
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
