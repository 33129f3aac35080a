"""What every image-space denoising method shares: how it is sampled, whatever its network looks like inside.

A method says what its network predicts at one (x_t, t); sampling, guidance, starting from a picture,
blending two pictures and keeping part of one are the same for all of them, and live here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pellucid.methods.base import Method, Pictures, resolve
from pellucid.process.gaussian import Gaussian
from pellucid.process.guidance import clipped, guided, keep_known
from pellucid.process.loss import diffuse
from pellucid.process.predict import to_eps, to_x0
from pellucid.process.samplers import SAMPLERS, invert
from pellucid.process.schedule import (
    ScheduleName,
    TabulatedSchedule,
    levels,
    make_schedule,
    moments,
    revisit,
    training_times,
)
from pellucid.types import Control, Denoise, Sample

Predicts = Literal["eps", "v", "beyond"]
"""What a network's output stands for: the noise, as in the papers; v (see `process.predict`); or what v is beyond
that of a Gaussian with the mean and covariance of the training pictures (see `process.gaussian`)."""
NOTHING: Mapping[str, Any] = {}
"""No controls."""
FITTED_ON = 512
"""How many training pictures that Gaussian is fitted on."""


@dataclass(frozen=True)
class Prediction:
    """What a network says about (x_t, t)."""

    eps: Tensor
    """(B, C, H, W), the noise."""
    masks: Tensor | None = None
    """(B, K, H, W), probabilities that sum to 1 at each pixel."""


def standard_controls(class_names: tuple[str, ...], *, regions: int = 0) -> dict[str, Control]:
    """The controls of image-space diffusion; `label` and guidance only where there are classes."""
    controls = {
        "num_steps": Control(
            kind="int", default=50, low=1, high=1000, help="network passes from noise to image"
        ),
        "sampler": Control(
            kind="choice", default="ddim", choices=tuple(SAMPLERS), help="how the passes are combined"
        ),
        "eta": Control(
            kind="float",
            default=0.0,
            low=0.0,
            high=1.0,
            needs="sampler=ddim",
            help="noise that DDIM adds back, 0 to 1",
        ),
        "snapshots": Control(
            kind="int", default=0, low=0, high=64, help="states along the process to keep, as a picture"
        ),
        "image": Control(kind="image", help="start from this picture instead of noise"),
        "strength": Control(
            kind="float",
            low=0.01,
            high=1.0,
            needs="image",
            help="how much noise a given picture gets, as a time (default 0.25)",
        ),
        "blend_with": Control(
            kind="image", needs="image", help="a second picture, blended with the first in noise space"
        ),
        "blend": Control(
            kind="float",
            default=0.5,
            low=0.0,
            high=1.0,
            needs="blend_with",
            help="share of the second picture",
        ),
    }
    if regions:
        controls["regions"] = Control(
            kind="indices",
            high=regions - 1,
            needs="image",
            help="regions of the given picture to regenerate; the rest is kept",
        )
        controls["walks"] = Control(
            kind="int", default=1, low=1, high=20, needs="regions",
            help="how often each tenth of the way is walked, so that what is new fits what is kept; ddim or ddpm",
        )  # fmt: skip
    if class_names:
        controls["label"] = Control(
            kind="choice", choices=class_names, reads=True, help="the class to generate"
        )
        controls["guidance_scale"] = Control(
            kind="float", default=1.0, low=0.0, high=20.0, needs="label",
            help="classifier-free guidance; 1 is none",
        )  # fmt: skip
    return controls


def inversion_controls() -> dict[str, Control]:
    """The controls of methods that know a picture by a code and its noise: those of `Diffusion.rendered`."""
    standard = standard_controls(())
    return {
        "num_steps": standard["num_steps"],
        "sampler": standard["sampler"],
        "image": Control(kind="image", help="read this picture's code and noise, and start from them"),
        "inversion_steps": Control(
            kind="int", default=100, low=1, high=1000, needs="image",
            help="network passes from a given picture to its noise; more come back closer to it",
        ),
        "noise": Control(
            kind="choice", default="inferred", choices=("inferred", "random"), needs="image",
            help="whether the picture's own noise is kept, and so all that its code does not say, or drawn anew",
        ),
    }  # fmt: skip


def keeps_noise(use: Mapping[str, Any]) -> bool:
    """Whether `inversion_controls` ask for the given picture's own noise.

    Raises ValueError where the sampler would lose it on the way.
    """
    keeps = use["image"] is not None and use["noise"] == 0
    if keeps and tuple(SAMPLERS)[use["sampler"]] == "ddpm":
        raise ValueError(
            "sampler is ddpm, which draws new noise at each step, so that nothing of the picture would stay; "
            "use ddim, heun or dpmpp_2m, or noise=random"
        )
    return keeps


def _spread(x: Tensor, like: Tensor) -> Tensor:
    """x (B, C, H, W) with axes of one put in after the first, as many as `like` has more."""
    return x[(slice(None), *[None] * (like.ndim - x.ndim))]


class Diffusion(nn.Module):
    """A diffusion process with a network yet to come: its times, its noise, and what a network's words stand for."""

    def __init__(self, shape: tuple[int, int, int], schedule: ScheduleName, predicts: Predicts) -> None:
        super().__init__()
        self.predicts = predicts
        self.schedule = make_schedule(schedule)
        self.gaussian = Gaussian(shape) if predicts == "beyond" else None

    def fit(self, pictures: Pictures) -> None:
        """What has to be known before training: the Gaussian that the network's words are beyond, where they are."""
        if self.gaussian is not None:
            self.gaussian.fit(pictures(FITTED_ON))

    def noise_said(self, said: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise (B, ..., C, H, W) that the network's words (of that shape) stand for; x_t (B, C, H, W), t (B,).

        Words of several regions, (B, K, C, H, W), are each taken for a whole.
        """
        logsnr = self.schedule.logsnr(t)
        if self.gaussian is not None:
            said = said + _spread(self.gaussian.v(x_t, logsnr), said)
        return to_eps(said, _spread(x_t, said), logsnr, "eps" if self.predicts == "eps" else "v")

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def noise(self, shape: torch.Size | tuple[int, ...], rng: torch.Generator) -> Tensor:
        """Standard normal noise: drawn where the generator lives, handed to where the weights live."""
        return torch.randn(shape, generator=rng, device=rng.device).to(self.device)

    def training_times(
        self, n: int, rng: torch.Generator, *, low_share: float = 0.0, low_end: float = 0.2
    ) -> Tensor:
        """n times: uniform (over the table's steps, where there is one), or a share of them from [0, low_end]."""
        times = training_times(self.schedule, n, rng, low_share=low_share, low_end=low_end)
        return times.to(self.device)

    def levels(self, num_steps: int, *, start: float = 1.0) -> Tensor:
        """The times of so many steps from `start` to 0, or of as many as there are: a table's, or a thousand."""
        table = self.schedule.steps if isinstance(self.schedule, TabulatedSchedule) else None
        most = round(start * (table or 1000))
        return levels(max(1, min(num_steps, most)), start=start, table=table)

    def diffused(
        self, x0: Tensor, rng: torch.Generator, *, low_share: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What a training step is shown and asked for: x_t (B, *S), times (B,), log-SNRs (B,), and the noise in x_t."""
        t = self.training_times(len(x0), rng, low_share=low_share)
        logsnr = self.schedule.logsnr(t)
        eps = self.noise(x0.shape, rng)
        return diffuse(x0, eps, logsnr), t, logsnr, eps

    def noised(self, x0: Tensor, t: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """x_t and its times (B,) for one time t."""
        times = torch.full((len(x0),), t, device=x0.device)
        return diffuse(x0, self.noise(x0.shape, rng), self.schedule.logsnr(times)), times

    def inverted(self, denoise: Denoise, x: Tensor, num_steps: int) -> Tensor:
        """The noise (B, C, H, W) that DDIM turns into pictures x (DiffuseGAE, eq. 7)."""
        return invert(denoise, x, self.levels(num_steps).flip(0), self.schedule)

    def rendered(self, denoise: Denoise, x_T: Tensor, use: Mapping[str, Any], rng: torch.Generator) -> Tensor:
        """Noise (B, C, H, W) -> pictures in [-1, 1], by `inversion_controls`."""
        # the way back to a picture is the way there, where nothing was clipped
        denoise = denoise if keeps_noise(use) else clipped(denoise)
        sampler = SAMPLERS[tuple(SAMPLERS)[use["sampler"]]]
        return sampler(denoise, x_T, self.levels(use["num_steps"]), self.schedule, rng=rng).clamp(-1, 1)


class DenoisingMethod(Diffusion, Method):
    """A method whose network denoises images. Subclasses give `predict`."""

    def __init__(self, image_shape: tuple[int, int, int], schedule: ScheduleName, predicts: Predicts) -> None:
        super().__init__(image_shape, schedule, predicts)
        self.image_shape = image_shape

    def predict(
        self, x: Tensor, t: Tensor, label: Tensor | None = None, use: Mapping[str, Any] = NOTHING
    ) -> Prediction:
        """x (B, C, H, W) at times t (B,), label (B,) or None -> the noise and whatever else is found.

        `use` are the controls of a sample; training has none.
        """
        raise NotImplementedError

    def denoiser(
        self, label: Tensor | None, seen: dict[str, Prediction], use: Mapping[str, Any] = NOTHING
    ) -> Denoise:
        """The closure that samplers take; it leaves its last prediction in `seen`."""

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            seen["last"] = found = self.predict(x, t, None if label is None else label[: len(x)], use)
            return to_x0(found.eps, x, self.schedule.logsnr(t), "eps")

        return denoise

    def describe(self, found: Prediction) -> dict[str, Tensor]:
        """A prediction -> the declared readouts."""
        return {}

    def labels(self, n: int, use: Mapping[str, Any], rng: torch.Generator) -> Tensor | None:
        """The class (n,) of each picture of a sample, by its controls `use`; None where there is none."""
        label = use.get("label")
        return None if label is None else torch.full((n,), label, device=self.device)

    def settle(self, found: Prediction, images: Tensor, use: Mapping[str, Any]) -> Prediction:
        """The last prediction, now that the images it led to are there; `use` are the controls."""
        return found

    def regions_of(
        self, image: Tensor, rng: torch.Generator, regions: tuple[int, ...], **reading: Any
    ) -> Tensor:
        """(B, 1, H, W): 1 inside the regions named: those that `read` shows of each image at rng's own seed."""
        seed = rng.initial_seed()
        again = lambda: torch.Generator(rng.device).manual_seed(seed)
        masks = [self.read(one, again(), **reading)["masks"] for one in image.split(1)]
        labels = torch.cat(masks).argmax(1, keepdim=True)
        return torch.isin(labels, torch.tensor(regions, device=labels.device)).float()

    @torch.no_grad()
    def sample(self, n: int, rng: torch.Generator, **controls: Any) -> Sample:
        """n images from noise, or from given pictures; see `controls`.

        `image` alone is noised to `strength` and denoised again; with `blend_with`, both are noised
        with the same noise and their noisy states mixed (Ho et al., 2020, figure 8); with `regions`,
        only those regions of it are generated anew, each stretch of the process `walks` times (Lugmayr et al.,
        2022).
        """
        if n < 1:
            raise ValueError(f"n is {n}; ask for at least one image")
        use = resolve(self.controls, controls)
        labels = self.labels(n, use, rng)
        seen: dict[str, Prediction] = {}
        if labels is not None and use["guidance_scale"] != 1.0:
            plain: dict[str, Prediction] = {}
            both = self.denoiser(labels, seen, use), self.denoiser(None, plain, use)
            denoise = guided(*both, use["guidance_scale"])
        else:
            denoise = self.denoiser(labels, seen, use)
        denoise = clipped(denoise)

        x = self.noise((n, *self.image_shape), rng)
        start = 1.0
        if use["image"] is not None:
            image = self.given(use["image"], n)
            if use.get("regions"):
                if use["blend_with"] is not None:
                    raise ValueError(
                        "blend_with blends whole pictures and regions changes a part: give one of them"
                    )
                reading = {k: use[k] for k, c in self.controls.items() if c.reads and use[k] is not None}
                change = self.regions_of(image, rng, use["regions"], **reading)
                if not change.flatten(1).any(1).all():
                    raise ValueError(
                        f"the picture has no pixel in regions {', '.join(map(str, use['regions']))}, so that nothing "
                        f"of it would change; `read` shows which regions it has"
                    )
                denoise = keep_known(denoise, image, 1 - change, self.schedule, rng, fresh=use["walks"] > 1)
                start = use["strength"] or 1.0
            else:
                start = use["strength"] or 0.25
            mixed = image
            at_start = self.schedule.logsnr(torch.full((n,), start, device=self.device))
            if use["blend_with"] is not None:
                other = self.given(use["blend_with"], n)
                mixed = torch.lerp(image, other, use["blend"])
            if start < 1.0:
                x = diffuse(mixed, x, at_start)

        times = self.levels(use["num_steps"], start=start)
        sampler = tuple(SAMPLERS)[use["sampler"]]
        if use.get("walks", 1) > 1:
            if sampler not in ("ddim", "ddpm"):
                raise ValueError(f"walks is {use['walks']}, and {sampler} walks only once; use ddim or ddpm")
            times = revisit(times, jump=math.ceil((len(times) - 1) / 10), times=use["walks"])
        trace: list[tuple[float, Sample]] = []
        kept = moments(times, use["snapshots"])

        def on_step(i: int, t: float, x_t: Tensor, x0: Tensor) -> None:
            if i in kept:
                trace.append((t, Sample(images=x0.clamp(-1, 1), readouts=self.describe(seen["last"]))))

        options = {"eta": use["eta"]} if sampler == "ddim" else {}
        images = SAMPLERS[sampler](denoise, x, times, self.schedule, rng=rng, on_step=on_step, **options)
        images = images.clamp(-1, 1)
        return Sample(
            images=images,
            readouts=self.describe(self.settle(seen["last"], images, use)),
            controls=self.said(use),
            trace=tuple(trace),
        )
