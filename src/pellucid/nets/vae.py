"""KL-autoencoders: pictures <-> a smaller picture of latents, as latent diffusion needs (Rombach et al., 2022).

    B  batch; C, H, W  a picture; f  how many times smaller the latents are; z  channels of the latents

q(latents | picture) is Gaussian, each of its z H/f W/f numbers for itself. `Autoencoder` is trained here;
`Pretrained` is one that others have trained.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.nets.blocks import NormSiLU, Padding, ResBlock, Up, conv3
from pellucid.nets.unet import Encoder, Middle, UNetConfig

START_LOGVAR = -6.0
"""Log-variance of the latents of an untrained Autoencoder: a standard deviation of a twentieth. From 0 on, training
first has to learn to outweigh the noise (20.2 dB against 20.9 after half a minute)."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """A convolutional autoencoder, by its numbers.

    The defaults are for 32 x 32 pictures and one core: three minutes (a thousand steps of 16 pictures, Adam at 2e-3)
    reconstruct those it has not seen at 30 dB. Wider ones (24, 32) take fewer
    steps in a given time, and after half a minute were behind.
    """

    channels: int = 3
    """Channels of the picture."""
    base: int = 16
    """Channels of the first stage."""
    multipliers: tuple[int, ...] = (1, 2)
    """Each stage's channels as a multiple of `base`; one halving of the size between two stages."""
    blocks: int = 1
    """ResBlocks a stage on the way down (one more on the way up)."""
    latent_channels: int = 4
    middle_attention: bool = False
    """Self-attention at the smallest size."""
    head_width: int = 32
    """Channels an attention head; the heads follow from it."""
    padding_mode: Padding = "zeros"

    def __post_init__(self) -> None:
        if min(self.channels, self.latent_channels, self.blocks) < 1 or self.base < 4 or not self.multipliers:
            raise ValueError(
                f"an autoencoder needs channels, latent_channels and blocks >= 1, base >= 4 and a multiplier; got "
                f"channels={self.channels}, latent_channels={self.latent_channels}, blocks={self.blocks}, "
                f"base={self.base}, multipliers={self.multipliers}"
            )

    @property
    def unet(self) -> UNetConfig:
        """The U-Net whose way down and middle are the encoder's."""
        return UNetConfig(
            channels=self.channels,
            base=self.base,
            multipliers=self.multipliers,
            blocks=self.blocks,
            middle_attention=self.middle_attention,
            head_width=self.head_width,
            padding_mode=self.padding_mode,
        )

    @property
    def factor(self) -> int:
        """f: what height and width are divided by."""
        return 2 ** (len(self.multipliers) - 1)


class LatentSpace(nn.Module):
    """What every KL-autoencoder offers. Subclasses give `_moments` and `decode`."""

    channels: int
    """C."""
    latent_channels: int
    """z."""
    factor: int
    """f."""

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As `moments`, before anything is checked or clamped."""
        raise NotImplementedError

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W) -> mean and log-variance of q, each (B, z, H/f, W/f), float32; log-variances in [-30, 20].

        Raises ValueError where f does not divide both sides.
        """
        if x.shape[-1] % self.factor or x.shape[-2] % self.factor:
            raise ValueError(
                f"the picture is {x.shape[-2]}x{x.shape[-1]}; latents are {self.factor} times smaller, so both sides "
                f"must be multiples of {self.factor}"
            )
        mean, logvar = self._moments(x)
        return mean.float(), logvar.float().clamp(-30, 20)

    def encode(self, x: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """x (B, C, H, W) -> (B, z, H/f, W/f): the mean of q, or with a generator a draw from it.

        A draw carries gradients to both moments (Kingma and Welling, 2014). Its noise is drawn where the generator
        lives.
        """
        mean, logvar = self.moments(x)
        return mean if rng is None else draw(mean, logvar, rng)

    def decode(self, z: Tensor) -> Tensor:
        """z (B, z, h, w) -> (B, C, f h, f w), about [-1, 1] and not clipped to it."""
        raise NotImplementedError


def draw(mean: Tensor, logvar: Tensor, rng: torch.Generator) -> Tensor:
    """mean + exp(logvar / 2) * noise, in the shape of both."""
    noise = torch.randn(mean.shape, generator=rng, device=rng.device, dtype=mean.dtype).to(mean.device)
    return torch.addcmul(mean, (0.5 * logvar).exp(), noise)


def kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats, summed over everything but the batch: (B, *S) twice -> (B,)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)


class Autoencoder(LatentSpace):
    """The autoencoder of latent diffusion (Rombach et al., 2022, appendix G): a U-Net's way down and middle to the
    moments of q, and a middle and the way up back to the picture, with no skip between the two.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.channels, self.latent_channels, self.factor = (
            config.channels,
            config.latent_channels,
            config.factor,
        )
        unet, padding = config.unet, config.padding_mode
        widths = unet.stage_widths
        self.encoder, self.encoder_middle = Encoder(unet), Middle(unet)
        tail = conv3(widths[-1], 2 * config.latent_channels, padding_mode=padding)
        assert tail.bias is not None
        with torch.no_grad():
            tail.bias[config.latent_channels :] += START_LOGVAR
        self.to_moments = nn.Sequential(NormSiLU(widths[-1]), tail)
        self.from_latents = conv3(config.latent_channels, widths[-1], padding_mode=padding)
        self.decoder_middle = Middle(unet)
        self.decoder = nn.ModuleList()
        c = widths[-1]
        for s, width in reversed(list(enumerate(widths))):
            for _ in range(config.blocks + 1):
                self.decoder.append(ResBlock(c, width, padding_mode=padding))
                c = width
            if s:
                self.decoder.append(Up(c, padding_mode=padding))
        self.to_picture = nn.Sequential(NormSiLU(c), conv3(c, config.channels, padding_mode=padding))

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, _ = self.encoder(x)
        mean, logvar = self.to_moments(self.encoder_middle(h)).chunk(2, dim=1)
        return mean, logvar

    def decode(self, z: Tensor) -> Tensor:
        h = self.decoder_middle(self.from_latents(z))
        for layer in self.decoder:
            h = layer(h, ()) if isinstance(layer, ResBlock) else layer(h)
        return self.to_picture(h)


@dataclass(frozen=True, kw_only=True)
class PretrainedConfig:
    """An AutoencoderKL of diffusers: where its weights are, and what it looks like inside.

    A config that only named a place could not be built once the place is gone, and a run has to load from its own
    folder. So `pretrained_config` writes the architecture down when a recipe is made, as JSON in diffusers' own
    words (a field for each would drop what a newer diffusers adds); the weights come with the checkpoints. It stands
    where an AutoencoderConfig stands: `AutoencoderConfig | PretrainedConfig`.
    """

    source: str
    """A folder that `AutoencoderKL.save_pretrained` made, or a pipeline with one in `vae`; or hf:NAME (hf:NAME:FOLDER)
    of the Hugging Face hub. It is read by `Pretrained.fetch` alone."""
    architecture: str
    """The arguments of AutoencoderKL, as JSON."""

    def __post_init__(self) -> None:
        try:
            whole = min(self.channels, self.latent_channels, self.factor) >= 1
        except (json.JSONDecodeError, KeyError, TypeError):
            whole = False
        if not whole:
            raise ValueError(
                f"architecture is {self.architecture[:60]!r}; it is the config of an AutoencoderKL as JSON: make it by "
                f"pretrained_config({self.source!r})"
            )

    @property
    def values(self) -> dict[str, Any]:
        """The arguments of AutoencoderKL."""
        return json.loads(self.architecture)

    @property
    def channels(self) -> int:
        return self.values["in_channels"]

    @property
    def latent_channels(self) -> int:
        return self.values["latent_channels"]

    @property
    def factor(self) -> int:
        """f: what height and width are divided by."""
        return 2 ** (len(self.values["block_out_channels"]) - 1)


class Pretrained(LatentSpace):
    """A frozen AutoencoderKL of diffusers.

    Made from its config alone, it has no weights yet: they come by `fetch`, when a training begins, or by
    `load_state_dict`, when a run is loaded; until then it refuses to work. Its latents are as they are, without the
    model's own `scaling_factor`: what makes them unit-variance is measured on the pictures at hand
    (`methods.autoencoding.latent_statistics`).
    """

    fetched: Tensor

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        self.config = config
        self.channels, self.latent_channels, self.factor = (
            config.channels,
            config.latent_channels,
            config.factor,
        )
        kind = _diffusers()
        try:
            self.net = kind.from_config(config.values).requires_grad_(False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"diffusers makes no AutoencoderKL of {config.architecture}: {error}") from None
        # kept with the weights: a checkpoint from before they were fetched holds random ones
        self.register_buffer("fetched", torch.zeros((), dtype=torch.bool))

    def fetch(self) -> None:
        """Take the weights from `config.source`. Raises ValueError as `load_pretrained`, and where what lies there now
        is another network than the config says.
        """
        now = pretrained_config(self.config.source)
        if now.values != self.config.values:
            raise ValueError(
                f"the autoencoder in {self.config.source} is another than when this recipe was made; make the recipe "
                f"anew, or put the old one back"
            )
        where, folder = _place(self.config.source)
        kind = _diffusers()
        try:
            found, said = kind.from_pretrained(
                where,
                subfolder=folder,
                use_safetensors=True,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            pickles = (
                []
                if self.config.source.startswith("hf:")
                else sorted(Path(where, folder or "").glob("*.bin"))
            )
            why = f"only {pickles[0].name}, a pickle, which is never read" if pickles else _first_line(error)
            raise ValueError(
                f"no weights could be read from {self.config.source}: {why}. Weights are safetensors: "
                f"`save_pretrained` of diffusers writes them"
            ) from None
        if said["missing_keys"]:
            raise ValueError(
                f"the weights in {self.config.source} lack {len(said['missing_keys'])} tensors, "
                f"{said['missing_keys'][0]} among them; fetch or save them anew"
            )
        with torch.no_grad():
            own = self.net.state_dict()
            for name, value in found.state_dict().items():
                own[name].copy_(value)
        self.fetched.fill_(True)

    @property
    def has_weights(self) -> bool:
        """Whether its weights are the source's, by `fetch` or from a checkpoint of after it."""
        return bool(self.fetched)

    def _with_weights(self) -> Any:
        if not self.has_weights:
            raise RuntimeError(
                f"the autoencoder of {self.config.source} has no weights yet; call fetch() before it is used"
            )
        return self.net

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q = self._with_weights().encode(x).latent_dist
        return q.mean, q.logvar

    def decode(self, z: Tensor) -> Tensor:
        return self._with_weights().decode(z).sample


def pretrained_config(name: str | Path) -> PretrainedConfig:
    """The config of an AutoencoderKL in a folder or on the hub (see `PretrainedConfig.source`), without its weights.

    Raises ValueError: diffusers is not installed, nothing is there, or it is not an AutoencoderKL.
    """
    where, folder = _place(str(name))
    try:
        found = _diffusers().load_config(where, subfolder=folder)
    except (OSError, ValueError) as error:
        raise ValueError(f"no autoencoder could be read from {name}: {_first_line(error)}") from None
    if found.get("_class_name") != "AutoencoderKL":
        raise ValueError(
            f"{name} holds a {found.get('_class_name', 'model of no name')}; an AutoencoderKL of diffusers is needed"
        )
    values = {k: v for k, v in found.items() if not k.startswith("_")}
    return PretrainedConfig(source=str(name), architecture=json.dumps(values, sort_keys=True))


def load_pretrained(name: str | Path) -> Pretrained:
    """A frozen AutoencoderKL with its weights; `name` as in `PretrainedConfig.source`. Needs diffusers.

    Raises ValueError: diffusers is not installed, nothing is there, it is not an AutoencoderKL, or its weights are no
    safetensors.
    """
    made = Pretrained(pretrained_config(name))
    made.fetch()
    return made


def make_autoencoder(config: AutoencoderConfig | PretrainedConfig) -> LatentSpace:
    """Fresh weights to train for the one kind; a frozen network that awaits its weights for the other."""
    return Autoencoder(config) if isinstance(config, AutoencoderConfig) else Pretrained(config)


def _diffusers() -> Any:
    try:
        from diffusers import AutoencoderKL
    except ImportError:
        raise ValueError(
            "an autoencoder that others have trained needs diffusers: pip install 'pellucid[latent]'"
        ) from None
    return AutoencoderKL


def _place(name: str) -> tuple[str, str | None]:
    """A source -> the folder or repository, and the folder within it. Raises ValueError where no folder is there."""
    if name.startswith("hf:"):
        repository, _, folder = name.removeprefix("hf:").partition(":")
        return repository, folder or None
    path = Path(name).expanduser()
    if not path.is_dir():
        raise ValueError(
            f"there is no folder {name}: give one that `save_pretrained` of diffusers made, or hf:NAME for an "
            f"autoencoder of the Hugging Face hub"
        )
    if not (path / "config.json").exists() and (path / "vae" / "config.json").exists():
        return str(path), "vae"  # a whole pipeline
    return str(path), None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
