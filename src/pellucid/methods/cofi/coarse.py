"""The coarse stage: a reciprocal GAN whose noise is a bit-code (CoFi-UCGen, section III-B).

The critic is an encoder into the space of codes, and compares distributions there by their characteristic functions.
Read literally, the paper's eq. 9 (the encoder moves E(x) and E(G(z)) apart, and nothing else) is unstable. Played here
is the game of RCF-GAN (Li et al., 2022), on which the paper builds:

    critic      C(z, E(x)) - C(z, E(G(z))) + reciprocal |E(G(z)) - z|^2 + contrast NT-Xent(two views of x)
    generator   C(E(G(z)), E(x))

The weight of the reciprocal term may rise at first (`ramp`), and E may see G(z) under noise in it (`read_noise`): the
logged term is weighted and of what was seen, `reciprocal_error` and `information` are of clean pictures.

C(z, E(x)) + C(z, E(G(z))) bounds C(E(x), E(G(z))) from above (the triangle inequality): the paper's L_E.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pellucid.methods.base import CollapseError, Pictures, Stage
from pellucid.methods.contrast import ViewConfig, nt_xent, view
from pellucid.methods.priors import BitCodes, bits_of
from pellucid.nets.blocks import frozen
from pellucid.types import Batch

if TYPE_CHECKING:
    from pellucid.methods.cofi.method import CoFi


@dataclass(frozen=True, kw_only=True)
class CoarseConfig:
    reciprocal: float = 6.0
    """Weight of the mean square of E(G(z)) - z. RCF-GAN takes 6 for networks of BigGAN's size, and 0.6 to 1 for small
    ones; on the ring the game drifts below 4."""
    ramp: int = 0
    """Steps, and no share of the stage's, over which that weight rises from 0. G's first pictures are noise whose every
    code can be read back, and an encoder paid for that in full at once gives each bit a meaning before it has seen
    what real pictures differ in."""
    contrast: float = 1.0
    """Weight of the contrastive loss on real pictures; 0 for points, which have no views."""
    temperature: float = 0.5
    projector: int = 128
    """Units and outputs of the contrastive projector; 0 contrasts the codes themselves, so that pictures that look
    alike lie near each other in them and share their bits. On a small budget bits follow classes sooner without."""
    pull: float = 0.0
    """Weight, relative to `contrast`, of the same loss on the evidence alone, all that z says of its code, beside the
    loss on all of z, of which the bits are n directions in d. 0 is the paper's."""
    views: ViewConfig = field(default_factory=ViewConfig)
    amplitude: float = 0.5
    """Share of the amplitudes in the discrepancy; the rest is the phases'."""
    huber: float = 0.0
    """Where the discrepancy is rounded off; 0 is the paper's root. A root pulls as hard when next to nothing is wrong
    as from afar, and the game does not come to rest; B points cannot tell less than B^(-1/2) apart anyway."""
    read_noise: float = 0.0
    """Standard deviation of noise, in units of the pictures, under which codes have to be read back. Without, the
    reciprocal loss also pays for what G hides in differences too small to see, and G is held to keep hiding it."""
    frequencies: int = 64
    """Frequencies drawn at each step."""
    learned: bool = True
    """The critic learns where to look; otherwise frequencies are standard normal, as in RCF-GAN's large networks."""
    along: float = 0.5
    """Share of the frequencies that lie in the span of the prior's own directions; 0 is RCF-GAN's critic."""
    adversarial: bool = True
    """Without, the encoder learns by contrast alone, there is no generator, and codes are whatever comes."""
    patience: int = 2000
    """Steps with codes read back at chance, or with a constant encoder, after which training has collapsed."""

    def __post_init__(self) -> None:
        for name in ("reciprocal", "ramp", "contrast", "projector", "pull", "huber", "read_noise"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; 0 or more")
        for name in ("amplitude", "along"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; a share, 0 to 1")
        if self.frequencies < 2 or self.patience < 1 or self.temperature <= 0:
            raise ValueError(
                f"frequencies is {self.frequencies}, patience {self.patience}, temperature {self.temperature}; at "
                f"least 2, at least 1, above 0"
            )
        if not self.adversarial and not self.contrast:
            raise ValueError("neither adversarial nor contrast: nothing would train the encoder")


def characteristic(y: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Phi(w) = mean exp(i w.y) of a sample: y (B, d), w (M, d) -> its real and imaginary part, (M,) each."""
    with torch.autocast(
        y.device.type, enabled=False
    ):  # angles of tens of radians: half precision has no digits left
        angle = y.float() @ w.float().T
        return angle.cos().mean(0), angle.sin().mean(0)


def discrepancy(
    a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], amplitude: float = 0.5, huber: float = 0.0
) -> Tensor:
    """How far apart two characteristic functions lie at the same frequencies (eq. 10) -> scalar.

    The mean over frequencies of the square root of

        amplitude (|Phi_a| - |Phi_b|)^2 + (1 - amplitude) 2 |Phi_a| |Phi_b| (1 - cos(phase difference))

    which at 1/2 is |Phi_a - Phi_b| / sqrt(2). Samples of one distribution are a distance of order B^(-1/2) apart: set
    any value beside that of the prior with itself. With h = `huber`, sqrt(square + h^2) - h in place of the root: a
    square near 0, and the root less h far from it.
    """
    (real_a, imag_a), (real_b, imag_b) = a, b
    if amplitude == 0.5:
        square = 0.5 * ((real_a - real_b).square() + (imag_a - imag_b).square())
    else:
        size_a = (real_a.square() + imag_a.square()).clamp_min(1e-12).sqrt()
        size_b = (real_b.square() + imag_b.square()).clamp_min(1e-12).sqrt()
        phase = 2 * (size_a * size_b - (real_a * real_b + imag_a * imag_b))
        square = amplitude * (size_a - size_b).square() + (1 - amplitude) * phase
    return ((square + huber**2).clamp_min(1e-12).sqrt() - huber).mean()


class Frequencies(nn.Module):
    """Where the critic looks: learned draws, as in RCF-GAN (section 3.3), and draws among the prior's own directions.

    In d dimensions only a share n / d of an isotropic draw lies along the n directions that carry the bits (theorem
    1), so that matching isotropic draws says next to nothing of the modes. A share of the frequencies is therefore
    drawn in the span of these directions: a standard normal coefficient for each, half of them left out at random, so
    that single modes are looked at as well as their independence.
    """

    axes: Tensor

    def __init__(self, axes: Tensor, number: int, *, learned: bool, along: float) -> None:
        super().__init__()
        self.dim = axes.shape[1]
        self.along = round(number * along)
        self.isotropic = number - self.along
        self.register_buffer("axes", axes, persistent=False)
        parts: list[nn.Module] = []
        for last in (False, False, True):
            norm = nn.BatchNorm1d(self.dim, track_running_stats=False)
            parts += [nn.Linear(self.dim, self.dim), norm, nn.Tanh() if last else nn.LeakyReLU(0.2)]
        self.net = nn.Sequential(*parts) if learned and self.isotropic else None

    def forward(self, rng: torch.Generator) -> Tensor:
        """(M, d)."""
        normal = lambda *shape: torch.randn(*shape, generator=rng, device=rng.device).to(self.axes)
        draws = normal(self.isotropic, self.dim)
        if self.net is not None:
            draws = self.net(draws / self.dim**0.5)
        along = normal(self.along, len(self.axes)) * (normal(self.along, len(self.axes)) > 0)
        return torch.cat([draws, along @ self.axes])


class Coarse(Stage):
    """Players: the critic (encoder, frequencies, projector), then the generator."""

    name = "coarse"

    def __init__(self, method: CoFi) -> None:
        self.method, self.config = method, method.config.coarse
        self.entropy = method.prior.entropy
        self.noisy = int((method.prior.noise > 0).sum())  # entries that have a density
        self.watched: list[Tensor] = []  # of this step's micro-batches
        parts = [method.encoder, method.frequencies, method.projector]
        critic = [p for part in parts if part is not None for p in part.parameters()]
        self.players = {"critic": critic}
        if method.generator is not None:
            self.players["generator"] = list(method.generator.parameters())
        self.shows = {"grain": "coarse"} if "grain" in method.controls else {} if method.controls else None

    def prepare(self, pictures: Pictures) -> None:
        codes, method = self.method.prior.codes, self.method
        if method.latents is not None:
            method.latents.fetch()
        count, first, alike = 0, None, True
        for part in pictures(max(codes, 64)):
            first = part[:1] if first is None else first
            count, alike = count + len(part), alike and bool((part == first).all())
        if count < codes:
            fewer = f"set prior.bits to {count.bit_length() - 1} or less, or " if count > 1 else ""
            raise ValueError(
                f"bits is {method.prior.bits}, which makes {codes} codes, and the pictures to train on are {count}: a "
                f"code needs one at least; {fewer}add pictures"
            )
        if alike:
            raise ValueError(
                f"{count} pictures were looked at and all are the same: there is nothing that a code could tell apart; "
                f"`pellucid doctor` shows what the folder holds"
            )

    def losses(self, batch: Batch, rng: torch.Generator) -> Iterator[tuple[str, dict[str, Tensor]]]:
        method, cfg, x = self.method, self.config, batch.x0
        if not cfg.adversarial:
            with torch.no_grad():
                coded = method.encode(x)
            yield "critic", {"contrast": self.contrast(x, rng), **self.watch(coded, None, None)}
            return
        assert method.generator is not None
        assert method.frequencies is not None
        z, code = method.prior.sample(len(x), rng)
        with torch.no_grad():
            fake = method.generator(z)
        seen = [x, fake]
        if cfg.read_noise:
            noise = torch.randn(fake.shape, generator=rng, device=rng.device).to(fake)
            seen.append(fake + cfg.read_noise * noise)
        codes = method.encode(torch.cat(seen)).chunk(len(seen))
        real_code, fake_code, again = codes[0], codes[1], codes[-1]
        risen = min(1.0, (1 + int(method.coarse_steps)) / cfg.ramp) if cfg.ramp else 1.0
        w = method.frequencies(rng)
        of_prior = characteristic(z, w)
        apart = partial(discrepancy, amplitude=cfg.amplitude, huber=cfg.huber)
        terms = {
            "real": apart(of_prior, characteristic(real_code, w)),
            "fake": -apart(of_prior, characteristic(fake_code, w)),
            "reciprocal": risen * cfg.reciprocal * (again - z).square().mean(),
        }
        if cfg.contrast:
            terms["contrast"] = self.contrast(x, rng)
        yield "critic", terms | self.watch(real_code, fake_code, (z, code))

        z, code = method.prior.sample(len(x), rng)
        with torch.no_grad():
            w = method.frequencies(rng)
            of_real = characteristic(method.encode(x), w)
        fake = method.generator(z)
        with frozen(method.encoder):
            of_fake = characteristic(method.encode(fake), w)
        yield "generator", {"match": apart(of_fake, of_real)}

    def contrast(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """The weighted contrastive loss of two views of each picture (eqs. 11 to 13)."""
        method, cfg = self.method, self.config
        codes = method.encode(torch.cat([view(x, cfg.views, rng), view(x, cfg.views, rng)]))
        one, two = (codes if method.projector is None else method.projector(codes)).chunk(2)
        loss = nt_xent(one, two, cfg.temperature)
        if cfg.pull:
            one, two = method.prior.evidence(codes).chunk(2)
            loss = loss + cfg.pull * nt_xent(one, two, cfg.temperature)
        return cfg.contrast * loss

    @torch.no_grad()
    def watch(
        self, real_code: Tensor, fake_code: Tensor | None, put_in: tuple[Tensor, Tensor] | None
    ) -> dict[str, Tensor]:
        """What is logged beside the losses, and what tells a collapse and how sure a reading may be."""
        method = self.method
        spread = real_code.float().std(0).mean()
        said = {"_spread": spread}
        agree = torch.ones_like(spread)  # where nothing is made, nothing is lost
        moments: list[Tensor] = []
        if fake_code is not None and put_in is not None:
            z, code = put_in
            prior, fake_code = method.prior, fake_code.float()
            read = prior.read(fake_code)
            if isinstance(prior, BitCodes):
                agree = (bits_of(read, prior.bits) == bits_of(code, prior.bits)).float().mean()
                signed = prior.evidence(fake_code) * (1 - 2 * bits_of(code, prior.bits).float())
                moments = [signed.mean(0), signed.square().mean(0)]
            else:
                agree = (read == code).float().mean()
            errors = (fake_code - z).square().mean(0)
            # lemma 1 with the sigma that makes the bound tightest: H(z) - d/2 log(2 pi e r / d), in nats
            within = (errors * (prior.noise > 0)).sum() / self.noisy
            bound = self.entropy - 0.5 * self.noisy * torch.log(2 * torch.pi * torch.e * within)
            said |= {"_read_back": agree, "_reciprocal_error": errors.sum(), "_information": bound}
        self.watched.append(torch.cat([spread[None], agree[None], *moments]))
        return said

    def ailing(self) -> bool:
        # at the start codes mean nothing yet: only a state that lasts is a sign
        return int(self.method.chance_steps) >= max(1, self.config.patience // 4)

    def after_step(self, step: int) -> None:
        method, counter = self.method, self.method.chance_steps
        method.coarse_steps.add_(1)
        # of the whole batch, whoever computed its parts: all processes have to come to one conclusion
        watched = torch.stack(self.watched).mean(0)
        self.watched.clear()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(watched)
            watched /= torch.distributed.get_world_size()
        spread, agree, moments = watched[0], watched[1], watched[2:]
        if len(moments):
            first, second = moments.chunk(2)
            method.evidence_mean.lerp_(first, 0.01)
            about = second - 2 * method.evidence_mean * first + method.evidence_mean.square()
            method.evidence_var.lerp_(about, 0.01)
        # one batch is read back better than chance by luck now and then, and would set the count back
        method.read_back.lerp_(agree, min(1.0, 10 / self.config.patience))
        chance = 0.5 if isinstance(method.prior, BitCodes) else 1 / method.prior.codes
        asked = int(method.coarse_steps) > self.config.ramp // 2  # before, little is asked of the codes
        lost = asked & (method.read_back < chance + 0.1 * (1 - chance))
        counter.copy_(torch.where((spread < 1e-3) | lost, counter + 1, 0))
        if int(counter) >= self.config.patience:
            raise CollapseError(
                f"the coarse stage has collapsed: for {self.config.patience} steps its codes could not be read back "
                f"from its own pictures better than by chance, or its encoder said the same of every picture. Begin "
                f"anew with more coarse.reciprocal (now {self.config.reciprocal:g}), a lower lr, fewer prior.bits (now "
                f"{self.method.prior.bits}), or more pictures"
            )
