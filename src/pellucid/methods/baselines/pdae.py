"""PDAE (Zhang, Zhao and Lin, NeurIPS 2022): codes that tell a finished DDPM what it cannot know of a picture.

    B  batch; D  entries of the code z; L  ResBlocks

`denoiser` trains a plain DDPM, eps_theta, which is never changed again. `representation` trains an encoder E and an
estimator G of the gradient of log p(z | x_t), by which the DDPM's mean is shifted: mu + Sigma G(x_t, z, t), as in
guidance by a classifier (section 3.2, "filling the gap").

The mean of a step is (x_t - beta / sigma_t eps) / sqrt(1 - beta), so that shifting it by Sigma G is to take
sqrt(1 - beta) sigma_t Sigma / beta G from eps. As steps get finer, Sigma -> beta and beta -> 0, and what is left has no
steps in it:

    eps_hat(x_t, z, t) = eps_theta(x_t, t) - sigma_t G(x_t, z, t),        sigma_t^2 = sigmoid(-logsnr_t)

which is the score -eps / sigma_t and G in one sum, Bayes' rule. x0_hat moves by sigma_t^2 / alpha_t G: where a picture
is all but noise, that is a hundred times and more what the network says, and it takes long to learn to say it well.

Differs from the paper: training shifts by sigma_t too, as the paper's DDIM does when it samples, and not by the factor
of a table of a thousand posterior variances, which is nearly the same but for the first few steps. The encoder is
DiffuseGAE's, and so is the form of AdaGN, for comparison's sake. There is no diffusion of codes: samples from nothing
are the DDPM's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.methods.base import Stage, resolve
from pellucid.methods.baselines.ddpm import DDPM, DDPMConfig, Denoising
from pellucid.methods.denoising import inversion_controls, keeps_noise
from pellucid.nets.modulation import VectorModulator
from pellucid.nets.resnet import AlterResNet, ResNetConfig
from pellucid.nets.unet import Decoder, Middle, UNetConfig
from pellucid.process.loss import denoising_loss
from pellucid.process.predict import to_x0
from pellucid.process.schedule import alpha_sigma, expand
from pellucid.types import Batch, Control, Denoise, Readout, Sample


def shift_weight(logsnr: Tensor, gamma: float) -> Tensor:
    """Of the squared error of the noise, any shape -> that shape (section 3.4, "weighting scheme redesign").

        lambda_t = (1 / (1 + SNR))^(1 - gamma) (SNR / (1 + SNR))^gamma = sigma^(2 - 2 gamma) alpha^(2 gamma)

    It falls to 0 towards both ends, most slowly towards the noise, and is largest where alpha^2 = gamma.
    """
    return torch.exp((1 - gamma) * F.logsigmoid(-logsnr) + gamma * F.logsigmoid(logsnr))


@dataclass(frozen=True, kw_only=True)
class PDAEConfig(DDPMConfig):
    """Those fields that a DDPM has are the frozen denoiser's."""

    encoder: ResNetConfig
    dim: int = 512
    """D, entries of z."""
    gamma: float = 0.1
    """How the loss weighs times: see `shift_weight`; 0 is all towards the noise, 1 towards the clean picture."""

    def __post_init__(self) -> None:
        if self.dim < 2:
            raise ValueError(f"dim is {self.dim}; a code has 2 entries at least")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma is {self.gamma}; from 0 to 1")
        if self.unet.channels != self.encoder.channels:
            raise ValueError(
                f"unet is for {self.unet.channels} channels and encoder for {self.encoder.channels}: they see the same"
            )
        for what, stride in (("unet", self.unet.stride), ("encoder", self.encoder.stride)):
            if self.size % stride:
                raise ValueError(
                    f"size is {self.size}, and {what} halves it until it is {stride} times smaller: use a multiple of "
                    f"{stride}"
                )


class Estimator(nn.Module):
    """G: a second way up from where the frozen U-Net's way down ends, told time and then the code (section 3.3).

    It says 0 at first.
    """

    def __init__(self, config: UNetConfig, *, time_dim: int, dim: int) -> None:
        super().__init__()
        self.middle, self.decoder = Middle(config), Decoder(config)
        widths = self.middle.widths + self.decoder.widths
        self.time, self.code = VectorModulator(widths, time_dim), VectorModulator(widths, dim)

    def forward(self, h: Tensor, skips: Sequence[Tensor], time: Tensor, z: Tensor) -> Tensor:
        """h and skips as the U-Net's encoder gave them, embedded times (B, time_dim), z (B, D) -> (B, C, H, W)."""
        mods = self.time(time), self.code(z)
        split = len(self.middle.widths)
        h = self.middle(h, *(m[:split] for m in mods))
        return self.decoder(h, skips, *(m[split:] for m in mods))


class Denoiser(Denoising):
    """A DDPM's only stage is the first one here."""

    name = "denoiser"


class Representation(Stage):
    """Encoder and estimator together, by the denoising loss of the shifted noise."""

    name = "representation"
    shows = None

    def __init__(self, method: PDAE) -> None:
        self.method = method
        self.players = {"codes": [*method.encoder.parameters(), *method.estimator.parameters()]}

    def losses(self, batch: Batch, rng: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        method = self.method
        method.unet.eval()  # what is frozen drops nothing out
        x_t, t, logsnr, eps = method.diffused(batch.x0, rng)
        z = method.code(batch.x0)
        error = denoising_loss(method.shifted(x_t, t, z), x_t, eps, logsnr)
        loss = (shift_weight(logsnr, method.config.gamma) * error).mean()
        # codes that are alike for all pictures say nothing, however low the loss
        yield "codes", {"denoise": loss, "_spread": z.detach().std(0, correction=0).mean()}


class PDAE(DDPM):
    """A DDPM, and beside it an encoder whose codes shift what it says. Its denoiser's weights are named as a DDPM's."""

    name: ClassVar[str] = "pdae"
    reads_any_size: ClassVar[bool] = False
    edits_vary: ClassVar[bool] = False
    config: PDAEConfig

    def __init__(self, config: PDAEConfig) -> None:
        super().__init__(config)  # first, so that a seed gives it the weights of that DDPM
        self.config = config
        self.encoder = AlterResNet(config.encoder, config.dim)
        self.estimator = Estimator(config.unet, time_dim=self.time.width, dim=config.dim)
        self.controls = inversion_controls() | {
            "image": Control(
                kind="image",
                help="read this picture's code and noise, and start from them; without one the denoiser alone draws a "
                "picture, told no code",
            )
        }
        self.readouts = {
            "code": Readout(kind="vector", shape=(config.dim,), help="the code z of the picture")
        }

    def stages(self) -> tuple[Stage, ...]:
        return (Denoiser(self), Representation(self))

    def code(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> z (B, D)."""
        return self.encoder(x).float()

    def shifted(self, x_t: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """The noise in x_t (B, C, H, W) at t (B,), told z (B, D). Only the shift has gradients."""
        with torch.no_grad():
            time = self.time.embedded(t)
            down, middle, up = self.unet.split(self.time.to_affine(time))
            h, skips = self.unet.encoder(x_t, down)
            said = self.unet.decoder(self.unet.middle(h, middle), skips, up)
            eps = self.noise_said(said.float(), x_t, t)
            _, sigma = alpha_sigma(self.schedule.logsnr(t))
        return eps - expand(sigma, x_t) * self.estimator(h, skips, time, z).float()

    def told(self, z: Tensor) -> Denoise:
        """What samplers take, told z (B, D)."""
        return lambda x, t: to_x0(self.shifted(x, t, z), x, self.schedule.logsnr(t), "eps")

    @torch.no_grad()
    def read(self, x: Tensor, rng: torch.Generator, **controls: Any) -> dict[str, Tensor]:
        """The code of pictures (B, C, H, W) of this model's size."""
        resolve(self.controls, controls, reading=True)
        return {"code": self.code(x)}

    @torch.no_grad()
    def noise_of(self, x: Tensor, num_steps: int) -> Tensor:
        return self.inverted(self.told(self.code(x)), x, num_steps)

    @torch.no_grad()
    def sample(self, n: int, rng: torch.Generator, **controls: Any) -> Sample:
        """n pictures of a given picture's code, or, where none is given, n that the frozen denoiser draws; see
        `controls`.

        The readout is the code that the pictures were made of; of those that were made of none, it is read from them.
        """
        if n < 1:
            raise ValueError(f"n is {n}; ask for at least one image")
        use = resolve(self.controls, controls)
        x_T = self.noise((n, *self.image_shape), rng)  # drawn whatever is set, so that nothing else changes
        z = None if use["image"] is None else self.code(self.given(use["image"], n))
        denoise = self.denoiser(None, {}) if z is None else self.told(z)
        if keeps_noise(use):
            x_T = self.noise_of(self.given(use["image"], n), use["inversion_steps"])
        images = self.rendered(denoise, x_T, use, rng)
        z = self.code(images) if z is None else z
        return Sample(images=images, readouts={"code": z}, controls=self.said(use))
