"""Factorized diffusion: a denoiser cut in pieces, one of which divides the picture into regions.

In the thesis denoising alone teaches that piece. In the default form, `kernel`, closed-form densities of the
picture's own colours do, and what paints under the masks teaches them nothing.

After Xin Yuan's thesis, chapter 2 (eqs. 2.2 to 2.8):

    h_enc = enc(x_t, t)                      features of every resolution, the skips
    h_mid = mid(h_enc, t)
    m     = softmax_K(mask(h_mid, h_enc, t))
    eps_k = painter_k(...)                   what each region is painted by: the form, below
    eps   = sum_k m_k eps_k                  loss: mean ||eps - eps_true||^2

Forms (`FactorizedConfig.form`):

    shared      the thesis: one weight-shared decoder, run once a region on skips masked by m_k
    unshared    a decoder of its own for each region                    (table 2.6, w/o weight sharing)
    concat      one decoder that sees the masks as further channels     (table 2.6, concat; eq. 2.5)
    masked_mid  the shared decoder with h_mid masked, not the skips     (table 2.6, masking h_mid)
    code        ours: a region is painted from a code of itself, the mean of features under m_k, and
                a few pixels around each place; nothing else can reach it, so splitting a picture
                into coherent regions is the cheapest way to denoise it
    hybrid      ours: `code` decides the masks, the thesis' decoder paints under them (its gradient
                does not reach the masks), so that images lose nothing to the small painter
    kernel      ours, the default: what a region can say of a pixel is computed in closed form (see
                `kernels`) and needs no painter that first has to be trained; the pictures that these
                densities divide surely teach the masks of the others, and `painter` says what paints

B  batch; K  regions; J  subregions of each region; C, H, W  an image; D  a code
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pellucid.methods.base import Pictures, Stage, resolve
from pellucid.methods.denoising import NOTHING, DenoisingMethod, Prediction, Predicts, standard_controls
from pellucid.methods.kernels import KernelConfig, confidence, evidence, explain, refine
from pellucid.nets.blocks import Padding, conv3, zeroed
from pellucid.nets.modulation import Modulation, TimeModulator, VectorModulator, repeat
from pellucid.nets.unet import Decoder, Encoder, Middle, UNet, UNetConfig
from pellucid.process.loss import denoising_loss
from pellucid.process.schedule import ScheduleName, alpha_sigma, make_schedule
from pellucid.types import Batch, Control, Readout

OWN_TEACHER = ("hybrid", "kernel")
"""Forms whose masks learn from something else than the decoder that paints under them."""
REGION_GUIDANCE = 8.0
"""How far beyond its word a painter that is given the masks is followed, where it is one of its own: what it says under
the masks, further away from what it says when all pixels are in all regions alike. Guidance by a weakened pass of the
same network, as in autoguidance (Karras et al., 2024) and perturbed-attention guidance (Ahn et al., 2024); there is no
label in it, and nothing is trained for it. For other painters it has not been measured, and is 1, which is none."""
Painter = Literal["shared", "concat", "own"]
Form = Literal["shared", "unshared", "concat", "masked_mid", "code", "hybrid", "kernel"]


@dataclass(frozen=True, kw_only=True)
class FactorizedConfig:
    size: int = 32
    """Height and width of the images, in pixels."""
    unet: UNetConfig = field(default_factory=UNetConfig)
    form: Form = "kernel"
    regions: int = 3
    """K."""
    subregions: int = 0
    """J, the regions of each region in a second level (section 2.5.1); 0 has one level."""
    class_names: tuple[str, ...] = ()
    """Classes to condition on; empty for none."""
    label_dropout: float = 0.1
    """How often training hides the class, so that guidance has something to guide from."""
    schedule: ScheduleName = "linear_betas"
    predicts: Predicts = "eps"
    """What the network's output stands for; the loss is that of the noise whatever it is."""
    low_noise_share: float = 0.0
    """Share of training times drawn from [0, 0.2] on top of the uniform ones, where masks can be seen."""
    read_time: float = 0.03
    """The noise at which a picture is read, as a time: 30 of 1,000 steps in the thesis."""
    painter: Painter = "shared"
    """`kernel`, `hybrid`: the thesis' decoder, once a region on masked skips; or once on all of them with the masks
    beside them; or a U-Net of its own that sees the picture and the masks and shares no feature with what divides
    the picture. Nothing but the masks' own teacher reaches the masks either way."""
    recompute: bool = False
    """Forget what the painter computed and compute it again for its gradient: less memory, more time."""
    code_dim: int = 32
    """D."""
    code_width: int = 32
    """Channels of the painter of `code` and `hybrid`."""
    code_layers: int = 3
    """Its convolutions after the first; all but the last are 3x3, so it sees 2 * layers + 1 pixels across."""
    code_padding: Padding = "replicate"
    """What it sees beyond the border; zeros would tell every layer where it is."""
    code_mixture: bool = False
    """`code`: each pixel is painted by one region or another, a mixture, not by the weighted sum of all."""
    sure_share: float = 0.4
    """`kernel`: the share of a batch, the most surely divided, that teaches the masks."""
    explain_weight: float = 0.03
    """`kernel`: how much the masks' cross-entropy counts beside the denoising loss. The mask generator learns as
    fast at any weight (Adam); it decides whom the encoder that both share works for."""
    kernel: KernelConfig = field(default_factory=KernelConfig)
    """`kernel`: what the closed-form densities assume."""
    min_share: float = 0.0
    """A region whose share of a picture falls below this is pulled back up; 0 leaves it alone."""

    def __post_init__(self) -> None:
        if not 1 <= self.regions <= 255 or not 0 <= self.regions * self.subregions <= 255:
            raise ValueError(
                f"regions is {self.regions}, subregions {self.subregions}; a picture has at least one region and, at "
                f"the finest level, 255 at most"
            )
        for name in ("read_time", "low_noise_share", "label_dropout", "min_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it lies between 0 and 1")
        if self.explain_weight < 0:
            raise ValueError(f"explain_weight is {self.explain_weight}; it is at least 0")
        if self.unet.stem != 1:
            raise ValueError(
                f"unet.stem is {self.unet.stem}; masks are as fine as the pixels, so that it is 1 here"
            )
        if self.size % self.unet.stride:
            raise ValueError(
                f"size is {self.size}; {len(self.unet.multipliers)} stages need a multiple of {self.unet.stride}"
            )
        if not 0 < self.sure_share <= 1:
            raise ValueError(f"sure_share is {self.sure_share}; it is a share, above 0 and at most 1")
        if self.code_mixture and (self.form != "code" or self.subregions):
            raise ValueError("code_mixture is for the form 'code' with one level")
        if self.subregions and self.form not in ("shared", "code"):
            raise ValueError(f"two levels are built of the forms 'shared' and 'code', not {self.form!r}")


def masked(features: Tensor, masks: Tensor) -> Tensor:
    """(B, C, h, w) under each of K masks -> (B K, C, h, w), regions folded into the batch.

    Masks are average-pooled to the size of the features, which keeps them a partition.
    """
    b, k = masks.shape[:2]
    if masks.shape[-2:] != features.shape[-2:]:
        masks = F.adaptive_avg_pool2d(masks, (features.shape[-2], features.shape[-1]))
    c, h, w = features.shape[1:]
    folded = (features[:, None] * masks[:, :, None]).reshape(b * k, c, h, w)
    return folded.contiguous(memory_format=torch.channels_last)


class SharedPainter(nn.Module):
    """The thesis' decoder (eq. 2.6), its K passes folded into one batch."""

    def __init__(self, cfg: FactorizedConfig, *, mask_skips: bool = True) -> None:
        super().__init__()
        self.decoder = Decoder(cfg.unet)
        self.mask_skips = mask_skips

    def forward(self, x: Tensor, h: Tensor, skips: list[Tensor], masks: Tensor, mod: Modulation) -> Tensor:
        """-> eps_k (B, K, C, H, W)."""
        k = masks.shape[1]
        if self.mask_skips:
            h, skips = h.repeat_interleave(k, 0), [masked(s, masks) for s in skips]
        else:
            h, skips = masked(h, masks), [s.repeat_interleave(k, 0) for s in skips]
        return self.decoder(h, skips, repeat(mod, k)).unflatten(0, (-1, k))


class UnsharedPainter(nn.Module):
    """K decoders, one a region."""

    def __init__(self, cfg: FactorizedConfig) -> None:
        super().__init__()
        self.decoders = nn.ModuleList(Decoder(cfg.unet) for _ in range(cfg.regions))

    def forward(self, x: Tensor, h: Tensor, skips: list[Tensor], masks: Tensor, mod: Modulation) -> Tensor:
        own = masks.split(1, dim=1)
        parts = [d(h, [masked(s, m) for s in skips], mod) for d, m in zip(self.decoders, own, strict=True)]
        return torch.stack(parts, dim=1)


class ConcatPainter(nn.Module):
    """One decoder that sees h and the masks side by side (eq. 2.5); one part, which every region shares."""

    def __init__(self, cfg: FactorizedConfig) -> None:
        super().__init__()
        self.decoder = Decoder(cfg.unet, skip_extra=cfg.regions, in_extra=cfg.regions)

    def forward(self, x: Tensor, h: Tensor, skips: list[Tensor], masks: Tensor, mod: Modulation) -> Tensor:
        def beside(f: Tensor) -> Tensor:
            return torch.cat([f, F.adaptive_avg_pool2d(masks, (f.shape[-2], f.shape[-1]))], dim=1)

        return self.decoder(beside(h), [beside(s) for s in skips], mod)[:, None]


class OwnPainter(nn.Module):
    """A U-Net of its own, which sees the picture and the masks; one part, which every region shares."""

    def __init__(self, cfg: FactorizedConfig) -> None:
        super().__init__()
        self.unet = UNet(cfg.unet, in_extra=cfg.regions)
        self.widths = self.unet.widths

    def forward(self, x: Tensor, h: Tensor, skips: list[Tensor], masks: Tensor, mod: Modulation) -> Tensor:
        return self.unet(torch.cat([x, masks.to(x.dtype)], 1), mod)[:, None]


class CodePainter(nn.Module):
    """Paints a region from its code and a small neighbourhood of x_t, and from nothing else."""

    def __init__(self, cfg: FactorizedConfig) -> None:
        super().__init__()
        width = cfg.code_width
        pad = cfg.code_padding
        self.head = conv3(cfg.unet.channels, width, padding_mode=pad)
        self.convs = nn.ModuleList(
            conv3(width, width, padding_mode=pad) if i < cfg.code_layers - 1 else nn.Conv2d(width, width, 1)
            for i in range(cfg.code_layers)
        )
        widths = [width] * (cfg.code_layers + 1)
        self.time = TimeModulator(widths, 32)
        self.code = VectorModulator(widths, cfg.code_dim)
        self.tail = nn.Conv2d(width, cfg.unet.channels, 1)
        zeroed(self.tail)

    def forward(self, x: Tensor, t: Tensor, codes: Tensor) -> Tensor:
        """x (B, C, H, W), t (B,), codes (B, K, D) -> eps_k (B, K, C, H, W)."""
        k = codes.shape[1]
        when, what = repeat(self.time(t), k), self.code(codes.flatten(0, 1))

        def modulate(h: Tensor, i: int) -> Tensor:
            for scale, shift in (when[i], what[i]):
                h = shift + h * (1 + scale)
            return h

        h = modulate(self.head(x).repeat_interleave(k, 0), 0)
        for i, conv in enumerate(self.convs, start=1):
            h = h + 0.5 * modulate(conv(F.silu(h)), i)
        return self.tail(F.silu(h)).unflatten(0, (-1, k))


def region_codes(features: Tensor, masks: Tensor) -> Tensor:
    """The mean of features (B, D, H, W) under each mask (B, K, H, W) -> (B, K, D).

    One pixel's worth of zeros is averaged in, so that an empty region has the code zero.
    """
    with torch.autocast(features.device.type, enabled=False):
        total = torch.einsum("bkhw,bdhw->bkd", masks.float(), features.float())
    return total / (masks.sum((2, 3))[..., None] + 1)


def mixture_loss(parts: Tensor, masks: Tensor, eps: Tensor) -> Tensor:
    """How badly the best-placed region paints each pixel, as a squared error: (B,).

    The negative log-likelihood of eps (B, C, H, W) under sum_k m_k N(eps_k, s^2), times 2 s^2 / C, where s^2 is
    the mean squared error of a sample's regions. With one region it is the mean squared error itself.
    parts (B, K, C, H, W), masks (B, K, H, W).
    """
    error = (parts - eps[:, None]).square().mean(2)
    spread = error.detach().mean((1, 2, 3))[:, None, None] + 1e-8
    channels = eps.shape[1]
    fit = torch.log(masks + 1e-6) - error * channels / (2 * spread[:, None])
    return (-2 * spread / channels * fit.logsumexp(1)).mean((1, 2))


@dataclass(frozen=True)
class Factors:
    """What one level finds: masks (B, K, H, W) and what each region is painted with (B, K, C, H, W)."""

    masks: Tensor
    parts: Tensor
    code_parts: Tensor | None = None
    """`hybrid` alone: what the small painter says, which teaches the masks."""
    blind: Tensor | None = None
    """(B, C, H, W), where asked for: the same painter's picture if every pixel were in each region alike."""

    def combine(self, parts: Tensor, *, teach_masks: bool = True) -> Tensor:
        """sum_k m_k part_k (eq. 2.7); without `teach_masks` no gradient reaches the masks."""
        masks = self.masks if teach_masks else self.masks.detach()
        return (masks[:, :, None] * parts).sum(1)


class Level(nn.Module):
    """Encoder, middle, mask generator and painter: one factorized denoiser."""

    def __init__(self, cfg: FactorizedConfig, regions: int) -> None:
        super().__init__()
        self.form, self.recompute = cfg.form, cfg.recompute
        self.schedule, self.kernel = make_schedule(cfg.schedule), cfg.kernel
        self.encoder = Encoder(cfg.unet, in_extra=2 if cfg.form == "kernel" else 0)
        self.middle = Middle(cfg.unet)
        # a zero-initialised tail would make all regions equal, and their gradients too, forever
        self.masker = Decoder(cfg.unet, regions, zero_tail=False)
        widths = self.encoder.widths + self.middle.widths + self.masker.widths
        under_given_masks = {"shared": SharedPainter, "concat": ConcatPainter, "own": OwnPainter}[cfg.painter]
        painters = {
            "shared": lambda: SharedPainter(cfg),
            "hybrid": lambda: under_given_masks(cfg),
            "kernel": lambda: under_given_masks(cfg),
            "masked_mid": lambda: SharedPainter(cfg, mask_skips=False),
            "unshared": lambda: UnsharedPainter(cfg),
            "concat": lambda: ConcatPainter(cfg),
            "code": lambda: None,
        }
        self.painter = painters[cfg.form]()
        if self.painter is not None:
            # a painter's decoder is built like the mask generator
            widths += getattr(self.painter, "widths", self.masker.widths)
        if cfg.form in ("code", "hybrid"):
            self.to_code = nn.Conv2d(self.masker.feature_width, cfg.code_dim, 1)
            self.code_painter = CodePainter(cfg)
        self.time = TimeModulator(widths, cfg.unet.base, num_classes=len(cfg.class_names) or None)

    def find(
        self, x: Tensor, t: Tensor, label: Tensor | None
    ) -> tuple[Tensor, Tensor, list[Tensor], Tensor, Modulation]:
        """The masks and everything they were made of: encoder, middle and mask generator, no painter."""
        mod = self.time(t, label)
        e, m, d = len(self.encoder.widths), len(self.middle.widths), len(self.masker.widths)
        seen = x
        if self.form == "kernel":
            _, sigma = alpha_sigma(self.schedule.logsnr(t))
            seen = torch.cat([x, evidence(x, sigma, self.kernel).to(x.dtype)], 1)
        h, skips = self.encoder(seen, mod[:e])
        h = self.middle(h, mod[e : e + m])
        features = self.masker.features(h, skips, mod[e + m : e + m + d])
        masks = self.masker.tail(features).float().softmax(1)
        return masks, h, skips, features, mod[e + m + d :]

    def forward(
        self, x: Tensor, t: Tensor, label: Tensor | None = None, *, teach: bool = False, blind: bool = False
    ) -> Factors:
        """`teach` asks for what only training needs: the small painter's parts in the hybrid form.

        `blind` asks for a painting that does not know the regions as well, for `region_guidance`.
        """
        masks, h, skips, features, mod = self.find(x, t, label)
        code_parts = None
        if self.form == "code" or (self.form == "hybrid" and teach):
            codes = region_codes(self.to_code(features).float(), masks)
            code_parts = self.code_painter(x, t, codes).float()
        if self.painter is None:
            assert code_parts is not None
            return Factors(masks, code_parts)
        under = masks.detach() if self.form in OWN_TEACHER else masks
        seen = (x, h, skips, under, mod)
        again = self.recompute and torch.is_grad_enabled()
        parts = checkpoint(self.painter, *seen, use_reentrant=False) if again else self.painter(*seen)
        unguided = None
        if blind:
            alike = masks.mean((2, 3), keepdim=True).expand_as(masks)
            unguided = (alike[:, :, None] * self.painter(x, h, skips, alike, mod).float()).sum(1)
        return Factors(masks, parts.float(), code_parts, unguided)


class Denoising(Stage):
    """The one stage: denoise. Only a form with a teacher is asked for its masks as well, never by a label."""

    name = "denoise"

    def __init__(self, method: Factorized) -> None:
        self.method = method
        self.players = {"model": list(method.parameters())}

    def prepare(self, pictures: Pictures) -> None:
        self.method.fit(pictures)

    def losses(self, batch: Batch, rng: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        method, cfg = self.method, self.method.config
        x0 = batch.x0
        x_t, t, logsnr, eps = method.diffused(x0, rng, low_share=cfg.low_noise_share)
        label = method.hidden_labels(batch.labels, rng)

        if cfg.code_mixture:
            level = method.level(x_t, t, label)
            masks, teacher = level.masks, None
            parts = method.noise_said(level.parts, x_t, t)
            terms = {"denoise": mixture_loss(parts, masks, eps).mean()}
        else:
            found, masks, teacher = method.factor(x_t, t, label, teach=True)
            terms = {"denoise": denoising_loss(found, x_t, eps, logsnr).mean()}
        if teacher is not None:
            terms["code"] = denoising_loss(teacher, x_t, eps, logsnr).mean()
        if cfg.form == "kernel":
            target = explain(x0, cfg.regions, cfg.kernel)
            sure = confidence(target)
            teaches = (sure >= sure.quantile(1 - cfg.sure_share)).float()
            entropy = -(target * torch.log(masks + 1e-6)).sum(1).mean((1, 2))
            terms["explain"] = cfg.explain_weight * (entropy * teaches).sum() / teaches.sum()
        shares = masks.mean((2, 3))  # (B, K)
        if cfg.min_share:
            terms["floor"] = F.relu(cfg.min_share - shares).sum(1).mean()
        with torch.no_grad():
            terms["_smallest_region"] = shares.mean(0).min()
        yield "model", terms


class Factorized(DenoisingMethod):
    """Generates images with their region masks, and segments pictures in one pass, without a label."""

    name: ClassVar[str] = "factorized"

    def __init__(self, config: FactorizedConfig) -> None:
        super().__init__((config.unet.channels, config.size, config.size), config.schedule, config.predicts)
        self.config = config
        self.level = Level(config, config.regions)
        self.fine = Level(config, config.subregions) if config.subregions else None
        k = config.regions
        self.controls = standard_controls(config.class_names, regions=k)
        if config.form in OWN_TEACHER and k > 1:
            self.controls["region_guidance"] = Control(
                kind="float", default=REGION_GUIDANCE if config.painter == "own" else 1.0, low=0.0, high=20.0,
                help="how much more pictures follow their own masks than a painter does; 1 is not at all",
            )  # fmt: skip
        if config.form == "kernel":
            self.controls["refine"] = Control(
                kind="int", default=1, low=0, high=1, reads=True,
                help="1 weighs the network's masks with the picture's own colours; 0 takes them as they are",
            )  # fmt: skip
        self.readouts = {
            "masks": Readout(
                kind="masks", shape=(k, "H", "W"), help="how likely each pixel is in each region"
            ),
            "shares": Readout(kind="shares", shape=(k,), help="each region's share of the picture"),
        }
        if self.fine is not None:
            kj = k * config.subregions
            self.readouts["fine_masks"] = Readout(
                kind="masks", shape=(kj, "H", "W"), help="the same for the regions of each region, in order"
            )

    @property
    def stride(self) -> int:
        """What the sides of a picture must be multiples of to be read."""
        return self.config.unet.stride

    def stages(self) -> tuple[Stage, ...]:
        return (Denoising(self),)

    def hidden_labels(self, labels: Tensor | None, rng: torch.Generator) -> Tensor | None:
        """The batch's labels, some replaced by the null class."""
        names = self.config.class_names
        if not names:
            return None
        if labels is None:
            raise ValueError(
                "this recipe is class-conditional and the data has no classes; train without classes"
            )
        drop = torch.rand(len(labels), generator=rng, device=rng.device) < self.config.label_dropout
        return labels.masked_fill(drop.to(labels.device), len(names))

    def factor(
        self, x: Tensor, t: Tensor, label: Tensor | None, *, teach: bool = False, guidance: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """eps (B, C, H, W), the masks of the finest level, and the small painter's eps where it is asked for.

        `guidance` is the share of what the painter knows by the masks; see `region_guidance`.
        """
        # masks sum to 1, so that converting their sum of parts converts each part
        noise = lambda out: self.noise_said(out, x, t)
        f = self.level(x, t, label, teach=teach, blind=guidance != 1.0)
        out = f.combine(f.parts, teach_masks=self.config.form not in OWN_TEACHER)
        if f.blind is not None:
            out = torch.lerp(f.blind, out, guidance)
        small = None if f.code_parts is None or self.config.form == "code" else f.combine(f.code_parts)
        if self.fine is None:
            return noise(out), f.masks, None if small is None else noise(small)
        # level 2 sees the noisy input under each level-1 mask; its weights are shared by the K branches
        k = f.masks.shape[1]
        label = None if label is None else label.repeat_interleave(k, 0)
        g = self.fine(masked(x, f.masks), t.repeat_interleave(k, 0), label)
        fine = g.combine(g.parts).unflatten(0, (-1, k))  # (B, K, C, H, W)
        out = f.combine((f.parts + fine) / 2)
        fine_masks = (f.masks[:, :, None] * g.masks.unflatten(0, (-1, k))).flatten(1, 2)  # (B, K J, H, W)
        return noise(out), fine_masks, None

    def predict(
        self, x: Tensor, t: Tensor, label: Tensor | None = None, use: Mapping[str, Any] = NOTHING
    ) -> Prediction:
        eps, masks, _ = self.factor(x, t, label, guidance=use.get("region_guidance", 1.0))
        return Prediction(eps, masks)

    def settle(self, found: Prediction, images: Tensor, use: Mapping[str, Any]) -> Prediction:
        assert found.masks is not None
        return (
            replace(found, masks=refine(images, found.masks, self.config.kernel))
            if use.get("refine")
            else found
        )

    def describe(self, found: Prediction) -> dict[str, Tensor]:
        assert found.masks is not None
        fine = found.masks
        masks = fine if self.fine is None else fine.unflatten(1, (self.config.regions, -1)).sum(2)
        readouts = {"masks": masks, "shares": masks.mean((2, 3))}
        if self.fine is not None:
            readouts["fine_masks"] = fine
        return readouts

    @torch.no_grad()
    def read(self, x: Tensor, rng: torch.Generator, **controls: Any) -> dict[str, Tensor]:
        """Segment: noise x a little, one pass through the mask generator (no painter is run).

        x (B, C, H, W) in [-1, 1], any H and W that are multiples of `stride`.
        """
        use = resolve(self.controls, controls, reading=True)
        label = use.get("label")
        labels = None if label is None else torch.full((len(x),), label, device=x.device)
        x_t, t = self.noised(x, self.config.read_time, rng)
        masks = self.level.find(x_t, t, labels)[0]
        if self.fine is not None:
            k = masks.shape[1]
            labels = None if labels is None else labels.repeat_interleave(k, 0)
            inner = self.fine.find(masked(x_t, masks), t.repeat_interleave(k, 0), labels)[0]
            masks = (masks[:, :, None] * inner.unflatten(0, (-1, k))).flatten(1, 2)
        if use.get("refine"):
            masks = refine(x, masks, self.config.kernel)
        return self.describe(Prediction(x_t, masks))
