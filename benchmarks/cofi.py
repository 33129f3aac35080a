"""The steps of CoFi's two stages against plain peers of the same size, as ratios from one run.

    python benchmarks/cofi.py [--quick] [--json FILE]

Coarse: the peer is a non-saturating GAN of the same generator and encoder, with an MLP head on the encoder for a
critic, the same batch and optimiser; it computes no gradient that nobody uses. The contrastive term is work that such
a GAN does not do, so there are rows without it on either side, with it on ours alone, and with it on both, where the
peer draws the same views: in passes of their own (GAN + SimCLR), or judged by the critic as well, which saves one
(as in ContraD: Jeong and Shin, 2021).

Fine: the peer is diffusers' UNet2DModel of the same widths in a plain denoising step on the same latents.

Both sides run in channels_last, as ours is trained, and in turns; a ratio is the median over rounds of ours / peer.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from _main import Row, main
from _memory import measurable, peak
from torch import Tensor, nn
from torch.nn import functional as F

Step = Callable[[], None]
Contrast = Literal["none", "apart", "shared"]

SIZE = 32
HEAD = 128
"""Units of the plain critic's head and of its projector. Ours contrasts its codes as they are, and their evidence."""
WIDE = (256, 300)
"""Batch and entries of the code at which the discrepancy's share is measured."""


def made(**coarse: Any) -> Any:
    """The recipe at the scale of two cores, some options of its coarse stage changed."""
    from pellucid.recipes import DataSpec, recipe

    found = recipe("cofi", "cpu", DataSpec(spec="scenes", size=SIZE))
    return replace(found, config=replace(found.config, coarse=replace(found.config.coarse, **coarse)))


def widened(recipe: Any) -> Any:
    batch, dim = WIDE
    train = replace(
        recipe.train, stages={k: replace(s, batch_size=batch) for k, s in recipe.train.stages.items()}
    )
    return replace(
        recipe,
        config=replace(recipe.config, prior=replace(recipe.config.prior, dim=dim), fine=None),
        train=train,
    )


def drawn(*shape: int) -> Tensor:
    """Pictures or latents, standard normal, in channels_last."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x


def adam(parameters: Any, own: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=own.lr, betas=own.betas, weight_decay=0.0, fused=True)


def ours(recipe: Any, stage: str) -> Step:
    """One training step of a stage, as the trainer takes it."""
    from pellucid.recipes import build
    from pellucid.types import Batch

    method, own = build(recipe).to(memory_format=torch.channels_last), recipe.train.of(stage)
    (part,) = [s for s in method.stages() if s.name == stage]
    optimizers = {name: adam(owned, own) for name, owned in part.players.items()}
    n, derived = own.batch_size, {}
    if stage == "fine":
        clean = drawn(n, *method.config.latent_shape)
        derived = {"clean": clean, "coarse": drawn(n, method.prior.dim).tanh()}
        part.denoiser.fit(lambda _: iter([clean]))
    batch = Batch(x0=drawn(n, 3, SIZE, SIZE).clamp(-1, 1), derived=derived)
    rng = torch.Generator().manual_seed(1)

    def step() -> None:
        for player, terms in part.losses(batch, rng):
            sum(v for k, v in terms.items() if not k.startswith("_")).backward()
            optimizers[player].step()
            method.zero_grad()
        part.after_step(0)

    return step


class PlainGAN(nn.Module):
    """Our generator and encoder, the latter with an MLP head that judges and, where asked for, one that contrasts."""

    def __init__(self, config: Any, *, contrast: bool) -> None:
        from pellucid.nets.gan import Encoder, Generator

        super().__init__()
        d = config.prior.dim
        self.generator = Generator(config.gan, d)
        self.encoder = Encoder(config.gan, d)
        head = lambda outputs: nn.Sequential(nn.Linear(d, HEAD), nn.LeakyReLU(0.2), nn.Linear(HEAD, outputs))
        self.judge, self.projector = head(1), head(HEAD) if contrast else None


def plain_gan(recipe: Any, contrast: Contrast) -> Step:
    """A turn of the critic and one of the generator, the loss of Goodfellow et al. (2014)."""
    from pellucid.methods.contrast import nt_xent, view

    config, own = recipe.config, recipe.train.of("coarse")
    gan = PlainGAN(config, contrast=contrast != "none").to(memory_format=torch.channels_last)
    critic = [p for k, p in gan.named_parameters() if not k.startswith("generator")]
    of_critic, of_generator = adam(critic, own), adam(gan.generator.parameters(), own)
    n, dim, views = own.batch_size, config.prior.dim, config.coarse.views
    x = drawn(n, 3, SIZE, SIZE).clamp(-1, 1)
    rng = torch.Generator().manual_seed(1)

    def step() -> None:
        with torch.no_grad():
            fake = gan.generator(torch.randn(n, dim, generator=rng))
        if contrast == "shared":
            seen = gan.encoder(torch.cat([view(x, views, rng), view(x, views, rng), view(fake, views, rng)]))
            real, fake_said = gan.judge(seen).split([2 * n, n])
            loss = F.softplus(-real).mean() + F.softplus(fake_said).mean()
            loss = loss + nt_xent(*gan.projector(seen[: 2 * n]).chunk(2))
        else:
            real, fake_said = gan.judge(gan.encoder(torch.cat([x, fake]))).chunk(2)
            loss = F.softplus(-real).mean() + F.softplus(fake_said).mean()
        if contrast == "apart":
            both = gan.encoder(torch.cat([view(x, views, rng), view(x, views, rng)]))
            loss = loss + nt_xent(*gan.projector(both).chunk(2))
        loss.backward()
        of_critic.step()
        gan.zero_grad()

        for p in critic:
            p.requires_grad_(False)
        fake = gan.generator(torch.randn(n, dim, generator=rng))
        if contrast == "shared":
            fake = view(fake, views, rng)
        F.softplus(-gan.judge(gan.encoder(fake))).mean().backward()
        of_generator.step()
        gan.zero_grad()
        for p in critic:
            p.requires_grad_(True)

    return step


def peer_unet(recipe: Any) -> nn.Module:
    """UNet2DModel of the fine U-Net's widths."""
    from diffusers import UNet2DModel

    unet, (channels, side, _) = recipe.config.fine.unet, recipe.config.latent_shape
    stages = len(unet.multipliers)
    return UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=unet.stage_widths,
        layers_per_block=unet.blocks,
        down_block_types=("DownBlock2D",) * stages,
        up_block_types=("UpBlock2D",) * stages,
        attention_head_dim=unet.stage_widths[-1] // unet.heads(unet.stage_widths[-1]),
        norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
    )


def plain_denoising(recipe: Any) -> Step:
    """Noise, forward, loss, backward, AdamW, on latents of the fine stage's shape."""
    from diffusers import DDPMScheduler

    own = recipe.train.of("fine")
    net, scheduler = peer_unet(recipe).to(memory_format=torch.channels_last), DDPMScheduler()
    optimizer = adam(net.parameters(), own)
    clean = drawn(own.batch_size, *recipe.config.latent_shape)
    rng = torch.Generator().manual_seed(1)

    def step() -> None:
        eps = torch.randn(clean.shape, generator=rng).to(memory_format=torch.channels_last)
        k = torch.randint(0, 1000, (len(clean),), generator=rng)
        F.mse_loss(net(scheduler.add_noise(clean, eps, k), k).sample, eps).backward()
        optimizer.step()
        net.zero_grad()

    return step


def comparing(recipe: Any) -> Step:
    """What a coarse step spends on characteristic functions: frequencies and discrepancies, there and back."""
    from pellucid.methods.cofi.coarse import characteristic, discrepancy
    from pellucid.recipes import build

    method, n = build(recipe), recipe.train.of("coarse").batch_size
    rng = torch.Generator().manual_seed(1)
    z, _ = method.prior.sample(n, rng)
    real, fake = (drawn(n, recipe.config.prior.dim).tanh().requires_grad_() for _ in range(2))

    def step() -> None:
        w = method.frequencies(rng)
        of_prior = characteristic(z, w)
        apart = discrepancy(of_prior, characteristic(real, w)) - discrepancy(
            of_prior, characteristic(fake, w)
        )
        apart.backward()
        with torch.no_grad():
            w = method.frequencies(rng)
            of_real = characteristic(real, w)
        discrepancy(characteristic(fake, w), of_real).backward()

    return step


def compare(
    name: str, our_step: Step, peers: Mapping[str, tuple[Step, float | None]], rounds: int
) -> list[Row]:
    """Time all in turns; one row for each peer."""
    steps = {"ours": our_step, **{title: step for title, (step, _) in peers.items()}}
    seconds: dict[str, list[float]] = {title: [] for title in steps}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for title, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[title].append(time.perf_counter() - start)
    return [
        {
            "name": f"{name}, {title}",
            "ours": statistics.median(seconds["ours"]),
            "peer": statistics.median(seconds[title]),
            "ratio": statistics.median(o / p for o, p in zip(seconds["ours"], seconds[title], strict=True)),
            "target": target,
            "better": "lower",
            "unit": "s",
        }
        for title, (_, target) in peers.items()
    ]


def _start_up() -> None:
    """Load what any side loads, and take a step of something small."""
    from diffusers import DDPMScheduler, UNet2DModel

    del DDPMScheduler, UNet2DModel  # diffusers loads each at its first mention
    from pellucid.methods.contrast import ViewConfig, view

    made()
    tiny = nn.Conv2d(3, 4, 3)
    optimizer = torch.optim.AdamW(tiny.parameters(), fused=True)
    tiny(view(torch.zeros(2, 3, 32, 32), ViewConfig(), torch.Generator())).sum().backward()
    optimizer.step()


def memory(name: str, our_step: Step, peers: Mapping[str, Callable[[], Step]]) -> list[Row]:
    """The same rows of peak memory; all arguments make a step, in a process of their own."""
    if not measurable():
        return []
    taken = peak(_start_up, our_step)
    rows = []
    for title, make in peers.items():
        others = peak(_start_up, make)
        rows.append(
            {
                "name": f"peak memory of {name}, {title}", "ours": taken, "peer": others, "ratio": taken / others,
                "target": None, "better": "lower", "unit": "MiB",
            }
        )  # fmt: skip
    return rows


def run(quick: bool) -> list[Row]:
    """Rows of name, ours, peer, ratio (ours / peer), target (the most wanted, or None) and unit."""
    rounds = 5 if quick else 21
    plain, full = made(contrast=0.0), made()
    rows: list[Row] = []
    rows += compare(
        "coarse step without contrast",
        ours(plain, "coarse"),
        {"peer a plain GAN": (plain_gan(plain, "none"), 1.3)},
        rounds,
    )
    rows += compare(
        "coarse step with contrast",
        ours(full, "coarse"),
        {
            "peer a plain GAN, which does not contrast": (plain_gan(full, "none"), None),
            "peer GAN + SimCLR": (plain_gan(full, "apart"), 1.3),
            "peer as in ContraD": (plain_gan(full, "shared"), None),
        },
        rounds,
    )
    rows += compare(
        "fine step on cached latents",
        ours(full, "fine"),
        {"peer UNet2DModel, plain denoising": (plain_denoising(full), 1.3)},
        rounds,
    )
    wide = widened(full)
    rows += compare(
        f"discrepancies of a coarse step, B = {WIDE[0]}, d = {WIDE[1]}",
        comparing(wide),
        {"share of the whole step": (ours(wide, "coarse"), 0.03)},
        3 if quick else 7,
    )
    rows += memory(
        "coarse step without contrast",
        partial(ours, plain, "coarse"),
        {"peer a plain GAN": partial(plain_gan, plain, "none")},
    )
    rows += memory(
        "coarse step with contrast",
        partial(ours, full, "coarse"),
        {
            "peer a plain GAN, which does not contrast": partial(plain_gan, full, "none"),
            "peer GAN + SimCLR": partial(plain_gan, full, "apart"),
        },
    )
    rows += memory(
        "fine step on cached latents",
        partial(ours, full, "fine"),
        {"peer UNet2DModel, plain denoising": partial(plain_denoising, full)},
    )
    return rows


if __name__ == "__main__":
    main(__doc__, run)
