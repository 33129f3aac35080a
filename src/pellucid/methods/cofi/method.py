"""CoFi-UCGen as a user meets it: bits as switches, fine codes as sliders, both read in any picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pellucid.methods.autoencoding import Autoencoding, UnitLatents
from pellucid.methods.base import Method, Pictures, Stage, resolve
from pellucid.methods.cofi.coarse import Coarse, CoarseConfig, Frequencies
from pellucid.methods.cofi.fine import CodedDiffusion, CodedStage, FineConfig
from pellucid.methods.denoising import standard_controls
from pellucid.methods.priors import BitCodes, PriorConfig, make_prior
from pellucid.nets.gan import Encoder, GANConfig, Generator
from pellucid.nets.vae import Autoencoder, AutoencoderConfig, PretrainedConfig, make_autoencoder
from pellucid.process.guidance import clipped, guided
from pellucid.process.predict import to_x0
from pellucid.process.samplers import SAMPLERS, invert
from pellucid.types import Control, Denoise, Readout, Sample

Grain = Literal["coarse", "diffusion", "fine"]
BANK = 2048
"""How many training pictures' codes are kept, for sampling `codes_from` "pictures"."""
REDRAWN = 0.5
"""Share of a kept code's variance within its mode that is drawn anew when one is sampled."""


@dataclass(frozen=True, kw_only=True)
class CoFiConfig:
    size: int = 32
    channels: int = 3
    prior: PriorConfig = field(default_factory=PriorConfig)
    gan: GANConfig = field(default_factory=GANConfig)
    """Of the generator and of the encoder."""
    coarse: CoarseConfig = field(default_factory=CoarseConfig)
    diffusion: FineConfig | None = None
    """The coarse diffusion of pixels under the coarse code; None leaves the stage out."""
    autoencoder: AutoencoderConfig | PretrainedConfig | None = None
    """None: the fine stage diffuses pixels."""
    autoencoder_kl: float = 1e-6
    """Weight of the KL divergence where the autoencoder is trained here."""
    fine: FineConfig | None = None
    """None leaves the fine stage out."""

    def __post_init__(self) -> None:
        if (self.gan.size, self.gan.channels) != (self.size, self.channels):
            raise ValueError(
                f"gan is for {self.gan.channels} channels at size {self.gan.size}; the pictures have {self.channels} "
                f"at {self.size}"
            )
        if self.autoencoder is not None and self.autoencoder.channels != self.channels:
            raise ValueError(
                f"autoencoder is for {self.autoencoder.channels} channels; the pictures have {self.channels}"
            )
        if self.autoencoder is not None and self.size % self.autoencoder.factor:
            raise ValueError(
                f"autoencoder makes pictures {self.autoencoder.factor} times smaller, and theirs have {self.size} a "
                f"side; use one that divides it"
            )
        if self.fine is not None and self.fine.encoder is None:
            raise ValueError("fine has no encoder; without a fine code it is the stage `diffusion`")
        if self.diffusion is not None and self.diffusion.encoder is not None:
            raise ValueError("diffusion has an encoder; with a fine code it is the stage `fine`")
        for name, stage, shape in (
            ("diffusion", self.diffusion, (self.channels, self.size, self.size)),
            ("fine", self.fine, self.latent_shape),
        ):
            if stage is not None and stage.unet.channels != shape[0]:
                raise ValueError(
                    f"{name}.unet.channels is {stage.unet.channels}; what it diffuses has {shape[0]}"
                )
            if stage is not None and shape[1] % stage.unet.stride:
                raise ValueError(
                    f"{name}.unet halves the size {len(stage.unet.multipliers) - 1} times, and what it diffuses is "
                    f"{shape[1]} a side; use fewer multipliers"
                )

        seen = None if self.fine is None else self.fine.encoder
        if seen is not None and (seen.channels, seen.size) != self.latent_shape[:2]:
            raise ValueError(
                f"fine.encoder is for {seen.channels} channels at size {seen.size}; what it sees has "
                f"{self.latent_shape[0]} at {self.latent_shape[1]}"
            )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Of what the fine stage diffuses."""
        if self.autoencoder is None:
            return self.channels, self.size, self.size
        side = self.size // self.autoencoder.factor
        return self.autoencoder.latent_channels, side, side


class CoFi(Method):
    """Bits of coarse meaning and a fine code, learned from pictures alone; generation, reading and editing by both."""

    name: ClassVar[str] = "cofi"
    reads_any_size: ClassVar[bool] = False
    edits_vary: ClassVar[bool] = False
    evidence_mean: Tensor
    evidence_var: Tensor
    read_back: Tensor
    chance_steps: Tensor
    coarse_steps: Tensor
    bank: Tensor
    banked: Tensor

    def __init__(self, config: CoFiConfig) -> None:
        super().__init__()
        self.config, c = config, config.coarse
        self.image_shape = (config.channels, config.size, config.size)
        self.prior = make_prior(config.prior)
        d, n = config.prior.dim, config.prior.bits
        self.encoder = Encoder(config.gan, d)
        self.generator = Generator(config.gan, d) if c.adversarial else None
        self.frequencies = (
            Frequencies(self.prior.axes(), c.frequencies, learned=c.learned, along=c.along)
            if c.adversarial
            else None
        )
        units = c.projector if c.contrast else 0
        self.projector = (
            nn.Sequential(nn.Linear(d, units), nn.ReLU(), nn.Linear(units, units)) if units else None
        )
        # what a reading of generated pictures says of its own noise, and for how long codes have meant nothing
        self.register_buffer("evidence_mean", torch.full((n,), config.prior.mean))
        self.register_buffer("evidence_var", torch.full((n,), config.prior.sigma**2 * n / d))
        self.register_buffer("read_back", torch.zeros(()))
        self.register_buffer("chance_steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("coarse_steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("bank", torch.zeros(BANK, d))
        self.register_buffer("banked", torch.zeros((), dtype=torch.int64))

        self.diffusion = (
            None if config.diffusion is None else CodedDiffusion(config.diffusion, self.image_shape, d)
        )
        self.latents = (
            None if config.autoencoder is None else UnitLatents(make_autoencoder(config.autoencoder))
        )
        self.fine = None if config.fine is None else CodedDiffusion(config.fine, config.latent_shape, d)
        self.controls, self.readouts = self._declared()

    # ---- what a user may set and read --------------------------------------------------------

    @property
    def grains(self) -> tuple[Grain, ...]:
        """What can make pictures, the most detailed last."""
        there: tuple[tuple[Grain, nn.Module | None], ...] = (
            ("coarse", self.generator),
            ("diffusion", self.diffusion),
            ("fine", self.fine),
        )
        return tuple(name for name, part in there if part is not None)

    def _declared(self) -> tuple[dict[str, Control], dict[str, Readout]]:
        prior, grains = self.prior, self.grains
        controls: dict[str, Control] = {}
        readouts: dict[str, Readout] = {}
        if not grains:
            return controls, {
                "coarse": Readout(kind="vector", shape=(prior.dim,), help="the encoder's words")
            }
        if self.generator is None:  # an encoder that no prior has shaped: its words have no modes
            pass
        elif isinstance(prior, BitCodes):
            controls["bits"] = Control(
                kind="bits", high=prior.bits, help="switches of coarse meaning; where not set they are random"
            )
            readouts["bits"] = Readout(
                kind="bits",
                shape=(prior.bits,),
                help="how likely each switch is on, by how pictures of ours are read",
            )
        else:
            controls["code"] = Control(
                kind="int", low=0, high=prior.codes - 1, help="one of the codes; where not set it is random"
            )
            readouts["code"] = Readout(kind="shares", shape=(prior.codes,), help="how likely each code is")
        readouts["coarse"] = Readout(kind="vector", shape=(prior.dim,), help="the coarse code z_c")
        if self.fine is not None:
            depths = self.fine.depths
            controls["fine"] = Control(
                kind="sliders", choices=depths, low=-5.0, high=5.0,
                help="how far along its own direction each depth of the network goes, in standard deviations; those "
                "not set are random",
            )  # fmt: skip
            readouts["fine"] = Readout(
                kind="vector", shape=(len(depths),), names=depths, help="the same, as found in a picture"
            )
        if len(grains) > 1:
            controls["grain"] = Control(
                kind="choice", default=grains[-1], choices=grains, help="the stage that makes the pictures"
            )
        diffused = [g for g in grains if g != "coarse"]
        if diffused:
            standard = standard_controls(())
            controls |= {
                "num_steps": standard["num_steps"],
                "sampler": standard["sampler"],
                "guidance_scale": Control(
                    kind="float", default=1.0, low=0.0, high=20.0,
                    help="how much more than trained the codes count, or what was changed in a picture's; 1 is none",
                ),
                "codes_from": Control(
                    kind="choice", default="pictures", choices=("pictures", "noise"),
                    help="coarse codes are those of training pictures, resampled within their modes, or the prior's "
                    "(the paper's Repar. and Noise)",
                ),
            }  # fmt: skip
        controls["image"] = Control(kind="image", help="read this picture's codes and start from them")
        if "bits" in controls:
            controls["flip"] = Control(
                kind="indices",
                low=1,
                high=prior.bits,
                needs="image",
                help="switches to turn over, 1 is the first",
            )
        controls["blend_with"] = Control(
            kind="image", needs="image", help="a second picture, whose codes are blended with the first's"
        )
        controls["blend"] = Control(
            kind="float",
            default=0.5,
            low=0.0,
            high=1.0,
            needs="blend_with",
            help="share of the second picture",
        )
        return controls, readouts

    def stages(self) -> tuple[Stage, ...]:
        found: list[Stage] = [Coarse(self)]
        if self.diffusion is not None:
            found.append(CodedStage(self, "diffusion", self.diffusion))
        if self.latents is not None and isinstance(self.latents.autoencoder, Autoencoder):
            found.append(Autoencoding(self.latents.autoencoder, kl_weight=self.config.autoencoder_kl))
        if self.fine is not None:
            found.append(CodedStage(self, "fine", self.fine))
        return tuple(found)

    # ---- pictures and codes ------------------------------------------------------------------

    def encode(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> z_c (B, d), in (-1, 1): a critic that could move codes away without bound would."""
        return torch.tanh(self.encoder(x).float())

    def to_latent(self, x: Tensor) -> Tensor:
        """What the fine stage diffuses: the picture's latents with mean 0 and variance 1, or the picture itself."""
        return x if self.latents is None else self.latents.encode(x)

    def to_picture(self, latent: Tensor) -> Tensor:
        """The inverse of `to_latent`, in [-1, 1]."""
        return (latent if self.latents is None else self.latents.decode(latent)).clamp(-1, 1)

    @torch.no_grad()
    def fill_bank(self, pictures: Pictures) -> None:
        """Keep the coarse codes of some training pictures."""
        codes = torch.cat([self.encode(part.to(self.device)) for part in pictures(BANK)])[:BANK]
        self.bank[: len(codes)] = codes
        self.banked.fill_(len(codes))

    def probabilities(self, z: Tensor) -> dict[str, Tensor]:
        """z (B, d) -> readout "bits" (B, n), or "code" (B, K); or none, where no prior has shaped the codes.

        A bit's log-odds are those of two Gaussians fitted to how generated pictures, whose bits are known, are read.
        """
        if self.generator is None:
            return {}
        if isinstance(self.prior, BitCodes):
            # a bit that is read against its own sense tells next to nothing, and its sign stays the prior's
            odds = 2 * self.prior.evidence(z) * self.evidence_mean.clamp(min=1e-6) / self.evidence_var
            return {"bits": torch.sigmoid(-odds)}
        return {"code": self.prior.log_likelihoods(z).softmax(1)}

    @torch.no_grad()
    def read(self, x: Tensor, rng: torch.Generator, **controls: Any) -> dict[str, Tensor]:
        """Both codes of pictures (B, C, H, W) of this model's size, see `readouts`."""
        resolve(self.controls, controls, reading=True)
        z = self.encode(x)
        if not self.grains:
            return {"coarse": z}
        found = self.probabilities(z) | {"coarse": z}
        if self.fine is not None:
            found["fine"] = self.fine.codes.scalars(self.fine.posterior(self.to_latent(x))[0])
        return found

    # ---- sampling ----------------------------------------------------------------------------

    @torch.no_grad()
    def sample(self, n: int, rng: torch.Generator, **controls: Any) -> Sample:
        """n pictures of random codes, of set ones, or of a given picture's codes, changed; see `controls`.

        With `image` the noise is that which DDIM turns into the picture (Song et al., 2021, section 4.3), so that what
        no control changes stays. Readouts are the codes that the pictures were made of.
        """
        if n < 1:
            raise ValueError(f"n is {n}; ask for at least one image")
        if not self.grains:
            raise ValueError(
                "this model is an encoder alone and generates none; train it with coarse.adversarial"
            )
        use = resolve(self.controls, controls)
        grain = self.grains[use["grain"]] if "grain" in use else self.grains[-1]
        net = {"coarse": None, "diffusion": self.diffusion, "fine": self.fine}[grain]
        fine = self.fine if grain == "fine" else None

        if net is None and use.get("guidance_scale", 1.0) != 1.0:
            raise ValueError(
                f"guidance_scale is {use['guidance_scale']:g}, and grain coarse has no steps to guide; leave it out, "
                f"or sample with grain={self.grains[-1]}"
            )
        if use["image"] is not None and controls.get("codes_from") is not None:
            raise ValueError(
                "codes_from says where codes come from, and here they are those of image; leave one of them out"
            )

        # drawn in one order whatever is set, so that a control changes what it says and nothing else
        noise = torch.randn(
            n, *(net.shape if net is not None else (1, 1, 1)), generator=rng, device=rng.device
        )
        noise = noise.to(self.device)
        z = self._coarse_codes(n, rng, use)
        s = torch.randn(n, fine.config.dim if fine else 1, generator=rng, device=rng.device).to(self.device)
        scalars = None if fine is None else fine.codes.scalars(s)
        was = None
        if use["image"] is not None:
            if net is not None and tuple(SAMPLERS)[use["sampler"]] == "ddpm":
                raise ValueError(
                    "sampler is ddpm, which draws new noise at each step, so that nothing of the picture would stay; "
                    "use ddim, heun or dpmpp_2m"
                )
            z, scalars, noise = self._of_pictures(n, use, net, noise)
            was = z, scalars
        z, scalars = self._set(z, scalars, use)

        if net is None:
            assert self.generator is not None
            images = self.generator(z)
            images = images if self.config.gan.kind == "mlp" else images.clamp(-1, 1)
        else:
            # of a picture guidance strengthens what was changed and nothing else
            denoise = self._denoiser(net, z, scalars, use["guidance_scale"], was)
            if grain == "diffusion":
                denoise = clipped(denoise)
            sampler = SAMPLERS[tuple(SAMPLERS)[use["sampler"]]]
            clean = sampler(denoise, noise, net.levels(use["num_steps"]), net.schedule, rng=rng)
            images = self.to_picture(clean) if grain == "fine" else clean.clamp(-1, 1)
        readouts = self.probabilities(z) | {"coarse": z}
        if self.fine is not None:
            none = torch.full((n, len(self.fine.depths)), torch.nan, device=self.device)
            readouts["fine"] = none if scalars is None else scalars
        return Sample(images=images, readouts=readouts, controls=self.said(use))

    def _coarse_codes(self, n: int, rng: torch.Generator, use: Mapping[str, Any]) -> Tensor:
        """(n, d): of the prior; or of kept training codes, part of their place within their modes drawn anew."""
        z, _ = self.prior.sample(n, rng)
        chosen = torch.randint(max(1, int(self.banked)), (n,), generator=rng, device=rng.device).to(
            self.device
        )
        if use.get("codes_from", 1) == 1 or not int(self.banked):
            return z
        return self.redrawn(self.bank[chosen], z, REDRAWN)

    def redrawn(self, kept: Tensor, fresh: Tensor, share: float) -> Tensor:
        """Codes in their own modes, `share` of the variance of their places there taken from `fresh`: (B, d) each."""
        if self.generator is None or not share:  # no prior has shaped the codes, and they have no modes
            return kept
        mode = self.prior.means(self.prior.read(kept))
        place = fresh - self.prior.means(self.prior.read(fresh))
        return mode + (1 - share) ** 0.5 * (kept - mode) + share**0.5 * place

    def _of_pictures(
        self, n: int, use: Mapping[str, Any], net: CodedDiffusion | None, noise: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Codes of the given picture, or of two blended, and the noise that DDIM turns into it under them."""
        found = []
        given = [use["image"]] if use["blend_with"] is None else [use["image"], use["blend_with"]]
        for picture in given:
            x = self.given(picture, n)
            z, scalars, start = self.encode(x), None, noise
            if net is not None:
                clean = self.to_latent(x) if net is self.fine else x
                scalars = None if net.encoder is None else net.codes.scalars(net.posterior(clean)[0])
                denoise = self._denoiser(net, z, scalars, 1.0)
                start = invert(
                    denoise, clean, net.levels(use["num_steps"]).flip(0), net.schedule, iterations=2
                )
            found.append((z, scalars, start))
        if len(found) == 1:
            return found[0]
        (za, sa, na), (zb, sb, nb) = found
        share = use["blend"]
        scalars = None if sa is None or sb is None else torch.lerp(sa, sb, share)
        # independent noises: their blend is brought back to variance 1
        mixed = torch.lerp(na, nb, share) / ((1 - share) ** 2 + share**2) ** 0.5
        return torch.lerp(za, zb, share), scalars, mixed

    def _set(self, z: Tensor, scalars: Tensor | None, use: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Codes with what the controls set."""
        prior = self.prior
        if "bits" in use:
            assert isinstance(prior, BitCodes)
            bits = (prior.evidence(z) < 0).long()
            if use["bits"] is not None:
                bits = torch.tensor(use["bits"], device=z.device).expand_as(bits).clone()
            for k in use["flip"] or ():
                bits[:, k - 1] = 1 - bits[:, k - 1]
            z = prior.moved(z, bits)
        elif use.get("code") is not None:
            code = torch.full((len(z),), use["code"], device=z.device)
            z = z + prior.means(code) - prior.means(prior.read(z))
        if use.get("fine") is not None:
            if scalars is None:
                raise ValueError(
                    "fine moves the sliders of grain fine; leave it out, or sample with grain=fine"
                )
            assert self.fine is not None
            scalars = scalars.clone()
            for name, value in use["fine"].items():
                scalars[:, self.fine.depths.index(name)] = value
        return z, scalars

    def _denoiser(
        self,
        net: CodedDiffusion,
        z: Tensor,
        scalars: Tensor | None,
        scale: float,
        weaker: tuple[Tensor, Tensor | None] | None = None,
    ) -> Denoise:
        """Denoise under codes, guided away from weaker ones, by default from none."""

        def under(z: Tensor, scalars: Tensor | None) -> Denoise:
            return lambda x, t: to_x0(net.eps(x, t, z, scalars), x, net.schedule.logsnr(t), "eps")

        told = under(z, scalars)
        if scale == 1.0:
            return told
        none = torch.zeros_like(z), None if scalars is None else torch.zeros_like(scalars)
        return guided(told, under(*(weaker or none)), scale)
