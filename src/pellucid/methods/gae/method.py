"""DiffuseGAE as a user meets it: pictures whose attributes are taken apart, exchanged, slid and put together again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pellucid.methods.base import Method, Pictures, Stage, resolve
from pellucid.methods.denoising import inversion_controls, keeps_noise
from pellucid.methods.gae.autoencoder import (
    CodeDiffusion,
    CodedUNet,
    DiffusionAutoencoding,
    DiffusionConfig,
    LatentConfig,
    UnitCodes,
)
from pellucid.methods.parts import Parts, checked, measured
from pellucid.methods.swaps import grouped
from pellucid.nets.mlp import chain
from pellucid.process.loss import denoising_loss
from pellucid.process.samplers import ddim
from pellucid.types import Attribute, Batch, Control, Readout, Sample

LATENT_STEPS = 50
"""Steps by which a code is drawn from the diffusion of codes."""


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """The group-supervised autoencoder of codes: its parts, its networks, and the weights of its losses."""

    parts: tuple[int, ...]
    """Entries of each attribute's part of z_dis, in the order of the attributes."""
    code: int = 100
    """Entries of z_dis; what `parts` add up to."""
    hidden: int = 256
    """Between z_sem and z_dis: the encoder's two bottlenecks lead there and on, the decoder's back."""
    blocks: int = 4
    """MLP blocks, as wide as z_sem."""
    skip: bool = True
    """Residual blocks; without (the paper's ablation) only the encoder's last block and the decoder's are."""
    shared: int = 1
    """s of GROUP(C, s): how many attributes a partner shares."""
    swap: float = 1.0
    """Weight of the supervised swap beside the reconstruction, on cached codes."""
    reassembly: float = 0.5
    """Weight of the unsupervised reassembly, on cached codes."""
    joint: bool = True
    """Fine-tune everything together in the end, by the denoising loss too."""
    joint_weight: float = 1.0
    """gamma, the weight of the groups' losses there (eq. 12)."""
    joint_swap: float = 0.5
    joint_reassembly: float = 0.5

    def __post_init__(self) -> None:
        if self.hidden < 4 or self.blocks < 1:
            raise ValueError(f"hidden is {self.hidden} and blocks {self.blocks}; at least 4 and 1")
        for name in ("swap", "reassembly", "joint_weight", "joint_swap", "joint_reassembly"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; a weight, 0 or more")


@dataclass(frozen=True, kw_only=True)
class GAEConfig:
    size: int = 64
    channels: int = 3
    diffusion: DiffusionConfig
    latent: LatentConfig = field(default_factory=LatentConfig)
    attributes: tuple[Attribute, ...] = ()
    """What the table says of every picture; none for the diffusion autoencoder alone."""
    group: GroupConfig | None = None
    """None leaves the codes as the diffusion autoencoder has them."""

    def __post_init__(self) -> None:
        if self.diffusion.unet.channels != self.channels:
            raise ValueError(
                f"diffusion is for {self.diffusion.unet.channels} channels; the pictures have {self.channels}"
            )
        for what, stride in (
            ("unet", self.diffusion.unet.stride),
            ("encoder", self.diffusion.encoder.stride),
        ):
            if self.size % stride:
                raise ValueError(
                    f"size is {self.size}, and diffusion.{what} halves it until it is {stride} times smaller: use a "
                    f"multiple of {stride}"
                )
        if self.group is None:
            if self.attributes:
                raise ValueError("attributes are for group, which is not there: set both, or neither")
            return
        checked(self.attributes, self.group.parts, self.group.code)


class GroupAutoencoder(nn.Module):
    """z_sem (B, D) in units of its spread <-> z_dis (B, code), whose parts are the attributes (section 3.4)."""

    def __init__(self, config: GroupConfig, dim: int) -> None:
        super().__init__()
        inward = (dim, config.hidden, config.code)
        self.encoder = chain(inward, config.blocks, "layer", skip=config.skip)
        self.decoder = chain(inward[::-1], config.blocks, "group", skip=config.skip)

    def encode(self, z: Tensor) -> Tensor:
        return self.encoder(z)

    def decode(self, w: Tensor) -> Tensor:
        return self.decoder(w)


class GAE(Method):
    """A diffusion autoencoder whose codes fall into parts, one an attribute; without attributes, that alone."""

    name: ClassVar[str] = "gae"
    reads_any_size: ClassVar[bool] = False
    edits_vary: ClassVar[bool] = False

    def __init__(self, config: GAEConfig) -> None:
        super().__init__()
        self.config = config
        self.image_shape = (config.channels, config.size, config.size)
        dim = config.diffusion.dim
        self.codes = UnitCodes(config.diffusion.encoder, dim)
        self.denoiser = CodedUNet(config.diffusion, self.image_shape)
        group = config.group
        self.gae = None if group is None else GroupAutoencoder(group, dim)
        self.parts = None if group is None else Parts(group.parts, config.attributes)
        self.latent = CodeDiffusion(config.latent, dim)
        self.controls, self.readouts = self._declared()

    # ---- what a user may set and read --------------------------------------------------------

    def _declared(self) -> tuple[dict[str, Control], dict[str, Readout]]:
        controls = {
            **inversion_controls(),
            "blend_with": Control(
                kind="image", needs="image", help="a second picture, whose code and noise are blended with the first's"
            ),
            "blend": Control(
                kind="float", default=0.5, low=0.0, high=1.0, needs="blend_with", help="share of the second picture"
            ),
            "towards": Control(
                kind="pictures", help="pictures that show something: codes are moved that way; a folder"
            ),
            "away_from": Control(
                kind="pictures", needs="towards", help="pictures that lack it, instead of typical ones; a folder"
            ),
            "amount": Control(
                kind="float", default=1.0, low=-5.0, high=5.0, needs="towards",
                help="how far: 1 is the way from the mean code of the ones to that of the others",
            ),
        }  # fmt: skip
        if self.parts is None:
            dim = self.config.diffusion.dim
            return controls, {"code": Readout(kind="vector", shape=(dim,), help="the semantic code z_sem")}
        assert self.config.group is not None
        controls["slide"] = Control(
            kind="sliders", choices=self.parts.names, low=0.0, high=1.0, needs="blend_with",
            help="share of the second picture in single parts, in place of blend; the noise stays the first's",
        )  # fmt: skip
        self.parts.add_controls(controls)
        code = Readout(kind="vector", shape=(self.config.group.code,), help="the code z_dis, part by part")
        return controls, self.parts.readouts | {"code": code}

    def stages(self) -> tuple[Stage, ...]:
        found: list[Stage] = [DiffusionAutoencoding(self.codes, self.denoiser)]
        if self.config.group is not None:
            found.append(GroupsOfCodes(self))
            if self.config.group.joint:
                found.append(Joint(self))
        return (*found, Latents(self))

    # ---- pictures and codes ------------------------------------------------------------------

    def parts_of(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> z_dis (B, code), or without attributes z_sem (B, D) in units of its spread."""
        return self.taken_apart(self.codes.unit(self.codes(x)))

    def taken_apart(self, unit: Tensor) -> Tensor:
        """z_sem (B, D) in units of its spread -> z_dis (B, code), or without attributes the same."""
        return unit if self.gae is None else self.gae.encode(unit).float()

    def told(self, w: Tensor) -> Tensor:
        """What the U-Net is told of a code as `parts_of` gives it: (B, D)."""
        return self.codes.back(w if self.gae is None else self.gae.decode(w).float())

    def describe(self, w: Tensor) -> dict[str, Tensor]:
        """The readouts of codes as `parts_of` gives them."""
        return ({} if self.parts is None else self.parts.shares(w)) | {"code": w}

    @torch.no_grad()
    def read(self, x: Tensor, rng: torch.Generator, **controls: Any) -> dict[str, Tensor]:
        """The code of pictures (B, C, H, W), and what each of its parts says, see `readouts`."""
        resolve(self.controls, controls, reading=True)
        return self.describe(self.parts_of(x))

    # ---- sampling ----------------------------------------------------------------------------

    def edit_varies(self, **controls: Any) -> bool:
        """Only where the noise is drawn anew: a sampler that draws its own is refused with a picture's."""
        return bool(resolve(self.controls, controls)["noise"])

    @torch.no_grad()
    def sample(self, n: int, rng: torch.Generator, **controls: Any) -> Sample:
        """n pictures of drawn codes, or of a given picture's, with what the controls change; see `controls`.

        With `image` the noise is that which DDIM turns into the picture under its own code (eq. 7), so that what no
        control changes stays. Readouts are of the codes that the pictures were made of.
        """
        if n < 1:
            raise ValueError(f"n is {n}; ask for at least one image")
        use = resolve(self.controls, controls)
        # drawn in one order whatever is set, so that a control changes what it says and nothing else
        drawn = lambda *shape: torch.randn(n, *shape, generator=rng, device=rng.device).to(self.device)
        x_T, latent = drawn(*self.image_shape), drawn(self.config.diffusion.dim)
        if use["image"] is None:
            unit = ddim(self.latent.denoise, latent, self.latent.levels(LATENT_STEPS), self.latent.schedule)
            w = self.taken_apart(unit)
        else:
            w, x_T = self._of_pictures(n, use, x_T)
        w = self._set(w, use)
        denoise = self.denoiser.denoiser(self.told(w))
        images = self.denoiser.rendered(denoise, x_T, use, rng)
        return Sample(images=images, readouts=self.describe(w), controls=self.said(use))

    def _of_pictures(self, n: int, use: Mapping[str, Any], x_T: Tensor) -> tuple[Tensor, Tensor]:
        """Code and noise of the given picture, or of two blended."""
        found = []
        for picture in [use["image"]] if use["blend_with"] is None else [use["image"], use["blend_with"]]:
            x = self.given(picture, n)
            w = self.parts_of(x)
            found.append((w, self.noise_of(x, use["inversion_steps"]) if keeps_noise(use) else x_T))
        if len(found) == 1:
            return found[0]
        (wa, na), (wb, nb) = found
        if use.get("slide"):
            if use["blend"] != self.controls["blend"].default:
                raise ValueError(
                    f"blend is {use['blend']:g}, and slide says how far each part goes: give one of them"
                )
            w = wa.clone()
            for name, share in use["slide"].items():
                assert self.parts is not None
                part = self.parts.column(name)
                w[:, part] = torch.lerp(wa[:, part], wb[:, part], share)
            return w, na
        return torch.lerp(wa, wb, use["blend"]), slerp(na, nb, use["blend"])

    @torch.no_grad()
    def noise_of(self, x: Tensor, num_steps: int) -> Tensor:
        return self.denoiser.inverted(self.denoiser.denoiser(self.told(self.parts_of(x))), x, num_steps)

    def _set(self, w: Tensor, use: Mapping[str, Any]) -> Tensor:
        """Codes with what the controls set."""
        if self.parts is not None:
            w = self.parts.changed(w, use, lambda picture: self.parts_of(self.given(picture, len(w))))
        if use["towards"] is not None:
            away = use["away_from"]
            mean = lambda pictures: self.parts_of(pictures.to(self.device, torch.float32)).mean(0)
            typical = self.typical if away is None else mean(away)
            w = w + use["amount"] * (mean(use["towards"]) - typical)
        return w

    @property
    def typical(self) -> Tensor:
        """The mean code of training pictures, (D,) as `parts_of` gives codes."""
        return (
            torch.zeros(self.config.diffusion.dim, device=self.device)
            if self.parts is None
            else self.parts.mean
        )


def slerp(a: Tensor, b: Tensor, share: float | Tensor) -> Tensor:
    """From a to b (B, *S) along the arc between them, sample by sample: share 0 is a, 1 is b (Shoemake, 1985).

    Lengths go evenly from one to the other. Noise lies close to a sphere, and a straight line would leave it.
    `share` may be (B,).
    """
    shape = (-1, *(1,) * (a.ndim - 1))
    t = torch.as_tensor(share, dtype=torch.float64, device=a.device).reshape(shape)
    long_a, long_b = (v.double().flatten(1).norm(dim=1).view(shape) for v in (a, b))
    unit_a, unit_b = a / long_a, b / long_b
    cosine = (unit_a * unit_b).flatten(1).sum(1).clamp(-1, 1).view(shape)
    angle = cosine.arccos()
    sine = angle.sin()
    straight = sine < 1e-6  # one direction, or opposite ones, between which there is no shortest arc
    safe = torch.where(straight, torch.ones_like(sine), sine)
    wa = torch.where(straight, 1 - t, ((1 - t) * angle).sin() / safe)
    wb = torch.where(straight, t, (t * angle).sin() / safe)
    return ((wa * unit_a + wb * unit_b) * torch.lerp(long_a, long_b, t)).to(a.dtype)


class GroupsOfCodes(Stage):
    """Refinement: the group-supervised autoencoder on codes of the frozen encoder (section 3.3, eq. 11)."""

    name = "groups"
    shows = None
    derives = True
    looks = False

    def __init__(self, method: GAE) -> None:
        assert method.config.group is not None
        assert method.gae is not None
        self.method, self.config, self.gae = method, method.config.group, method.gae
        self.shared = self.config.shared
        self.players = {"gae": list(self.gae.parameters())}

    def prepare(self, pictures: Pictures) -> None:
        self.method.codes.fit(pictures)

    @torch.no_grad()
    def derive(self, x0: Tensor) -> dict[str, Tensor]:
        return {"z": self.method.codes.unit(self.method.codes(x0))}

    def losses(self, batch: Batch, rng: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        assert batch.partners is not None
        assert batch.attributes is not None
        found = grouped(
            self.gae.encode, self.gae.decode, batch.derived["z"], batch.partners.derived["z"], self.config.parts, rng,
            shared=self.shared, known=(batch.attributes >= 0).all(1), reassemble=self.config.reassembly > 0,
        )  # fmt: skip
        terms = {"reconstruction": found.reconstruction, "swap": self.config.swap * found.swap}
        if found.reassembly is not None:
            terms["reassembly"] = self.config.reassembly * found.reassembly
        yield "gae", terms


class Joint(Stage):
    """Fine-tuning: the diffusion autoencoder hears what the group autoencoder makes of its codes (eq. 12)."""

    name = "joint"
    shows = None

    def __init__(self, method: GAE) -> None:
        assert method.config.group is not None
        assert method.gae is not None
        self.method, self.config, self.gae = method, method.config.group, method.gae
        self.shared = self.config.shared
        parts = (method.codes, method.denoiser, method.gae)
        self.players = {"all": [p for part in parts for p in part.parameters()]}

    def losses(self, batch: Batch, rng: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        method, config = self.method, self.config
        assert batch.partners is not None
        assert batch.attributes is not None
        b, p = batch.partners.x0.shape[:2]
        everyone = torch.cat([batch.x0, batch.partners.x0.flatten(0, 1)])
        unit = method.codes.unit(method.codes(everyone))
        found = grouped(
            self.gae.encode, self.gae.decode, unit[:b], unit[b:].unflatten(0, (b, p)), config.parts, rng,
            shared=self.shared, known=(batch.attributes >= 0).all(1), reassemble=config.joint_reassembly > 0,
        )  # fmt: skip
        weight = config.joint_weight
        terms = {
            "denoise": method.denoiser.loss(batch.x0, method.codes.back(found.made.float()), rng),
            "reconstruction": weight * found.reconstruction,
            "swap": weight * config.joint_swap * found.swap,
        }
        if found.reassembly is not None:
            terms["reassembly"] = weight * config.joint_reassembly * found.reassembly
        yield "all", terms


class Latents(Stage):
    """What is learned of finished codes: their distribution, to draw from, and which value each part holds."""

    name = "latents"
    derives = True
    looks = False

    def __init__(self, method: GAE) -> None:
        self.method = method
        self.players = {"prior": list(method.latent.parameters())}
        if method.parts is not None:
            self.players["parts"] = list(method.parts.parameters())

    def prepare(self, pictures: Pictures) -> None:
        method = self.method
        if method.gae is None:  # otherwise the parts were learned in the units of an earlier stage
            method.codes.fit(pictures)
        if method.parts is not None:
            method.parts.fit(measured(pictures, method.parts_of, method.device))

    @torch.no_grad()
    def derive(self, x0: Tensor) -> dict[str, Tensor]:
        unit = self.method.codes.unit(self.method.codes(x0))
        parts = {} if self.method.gae is None else {"w": self.method.taken_apart(unit)}
        return {"z": unit} | parts

    def losses(self, batch: Batch, rng: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        latent, z = self.method.latent, batch.derived["z"]
        z_t, t, logsnr, eps = latent.diffused(z, rng)
        error = denoising_loss(latent.eps(z_t, t), z_t, eps, logsnr, weighting="v")
        yield "prior", {"denoise": error.mean()}
        parts = self.method.parts
        if parts is not None:
            assert batch.attributes is not None
            w = batch.derived["w"]
            read = parts.reading_loss(w, batch.attributes)
            yield "parts", {"read": read, "lie": parts.lying_loss(w, batch.attributes)}
