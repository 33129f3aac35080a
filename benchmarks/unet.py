"""The U-Net and its samplers against diffusers' UNet2DModel with its schedulers, as ratios from one run.

    python benchmarks/unet.py [--quick] [--json FILE]

Both sides have the same widths, parameters, batch, optimiser, schedule and number of threads. Rounds
alternate between the sides, and a ratio is the median over rounds of peer / ours: over 1 is faster,
or smaller, than the peer. Ours runs in channels_last, as it is trained; "as documented" is the peer as
its documentation builds it (fp32, contiguous), "same setting" is the peer in our precision and format.
bf16 is measured only where the processor computes in it: elsewhere it is emulated, many times slower.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from _main import main
from _memory import measurable, peak
from torch import Tensor, nn

Side = Literal["ours", "documented", "same"]
Row = dict[str, Any]
Step = Callable[[], None]

MULTIPLIERS = (1, 2, 3, 4)
BLOCKS = 2
SIZE = 32


class Ours(nn.Module):
    """The U-Net with its time modulator, called as a peer's is: (x_t, t) -> eps."""

    def __init__(self, base: int) -> None:
        from pellucid.nets.modulation import TimeModulator
        from pellucid.nets.unet import UNet, UNetConfig

        super().__init__()
        self.unet = UNet(UNetConfig(base=base, multipliers=MULTIPLIERS, blocks=BLOCKS))
        self.time = TimeModulator(self.unet.widths, base)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.unet(x, self.time(t))


def peer_net(base: int) -> nn.Module:
    """UNet2DModel of the same widths; scale_shift is the modulation with as many parameters as ours."""
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=SIZE,
        block_out_channels=tuple(base * m for m in MULTIPLIERS),
        layers_per_block=BLOCKS,
        down_block_types=("DownBlock2D",) * len(MULTIPLIERS),
        up_block_types=("UpBlock2D",) * len(MULTIPLIERS),
        attention_head_dim=32,
        resnet_time_scale_shift="scale_shift",
    )


def prepare(side: Side, base: int) -> tuple[nn.Module, torch.memory_format]:
    torch.manual_seed(0)
    net = Ours(base) if side == "ours" else peer_net(base)
    memory_format = torch.contiguous_format if side == "documented" else torch.channels_last
    return net.to(memory_format=memory_format), memory_format


def trainer(side: Side, base: int, batch: int, bf16: bool) -> Step:
    """One training step: noise, forward, loss, backward, AdamW."""
    from pellucid.process.loss import denoising_loss, diffuse
    from pellucid.process.schedule import TabulatedSchedule

    net, memory_format = prepare(side, base)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4)
    rng = torch.Generator().manual_seed(0)
    x0 = torch.randn(batch, 3, SIZE, SIZE, generator=rng).to(memory_format=memory_format)
    if side == "ours":
        schedule = TabulatedSchedule.linear()
    else:
        from diffusers import DDPMScheduler

        scheduler = DDPMScheduler()

    def step() -> None:
        eps = torch.randn(x0.shape, generator=rng).to(memory_format=memory_format)
        k = torch.randint(0, 1000, (batch,), generator=rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            if side == "ours":
                t = schedule.time_of(k).float()
                logsnr = schedule.logsnr(t)
                x_t = diffuse(x0, eps, logsnr)
                loss = denoising_loss(net(x_t, t).float(), x_t, eps, logsnr).mean()
            else:
                pred = net(scheduler.add_noise(x0, eps, k), k).sample
                loss = nn.functional.mse_loss(pred.float(), eps)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def sampler(side: Side, base: int, batch: int, bf16: bool, *, kind: str, num_steps: int) -> Step:
    """`num_steps` of DDIM or DDPM sampling, from noise to images."""
    from pellucid.process import samplers
    from pellucid.process.predict import to_x0
    from pellucid.process.schedule import TabulatedSchedule, levels

    net, memory_format = prepare(side, base)
    net.eval()
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(batch, 3, SIZE, SIZE, generator=rng).to(memory_format=memory_format)
    schedule = TabulatedSchedule.linear()
    times = levels(num_steps, table=1000)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        return to_x0(net(x, t).float(), x, schedule.logsnr(t), "eps")

    @torch.no_grad()
    def ours() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            if kind == "ddim":
                samplers.ddim(denoise, noise, times, schedule)
            else:
                samplers.ddpm(denoise, noise, times, schedule, rng=rng)

    @torch.no_grad()
    def peer() -> None:
        from diffusers import DDIMScheduler, DDPMScheduler

        made = (DDIMScheduler if kind == "ddim" else DDPMScheduler)(
            clip_sample=False, timestep_spacing="trailing"
        )
        made.set_timesteps(num_steps)
        x = noise
        more = {} if kind == "ddim" else {"generator": rng}
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            for t in made.timesteps:
                x = made.step(net(x, t).sample.float(), t, x, **more).prev_sample

    return ours if side == "ours" else peer


def compare(name: str, make: Callable[[Side], Step], targets: dict[Side, float], rounds: int) -> list[Row]:
    """Time all sides in turns; one row for each side that ours is compared with."""
    steps = {side: make(side) for side in ("ours", *targets)}
    for step in steps.values():
        step()
    seconds: dict[str, list[float]] = {side: [] for side in steps}
    for _ in range(rounds):
        for side, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[side].append(time.perf_counter() - start)
    return [
        {
            "name": f"{name}, peer {'as documented' if side == 'documented' else 'in the same setting'}",
            "ours": statistics.median(seconds["ours"]),
            "peer": statistics.median(seconds[side]),
            "ratio": statistics.median(p / o for p, o in zip(seconds[side], seconds["ours"], strict=True)),
            "target": target,
            "better": "higher",
            "unit": "s",
        }
        for side, target in targets.items()
    ]


def _start_up(side: Side) -> None:
    """Load what a side loads, without building its network: freed weights would hide in the baseline."""
    if side == "ours":
        importlib.import_module("pellucid.nets.unet")
        importlib.import_module("pellucid.process.samplers")
    else:
        from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

        del DDIMScheduler, DDPMScheduler, UNet2DModel  # diffusers loads each at its first mention
    tiny = nn.Conv2d(3, 4, 3)
    optimiser = torch.optim.AdamW(tiny.parameters())
    tiny(torch.zeros(1, 3, 8, 8)).sum().backward()
    optimiser.step()


def peak_memory(name: str, base: int, batch: int, *, train: bool) -> list[Row]:
    """Growth of the resident set at its highest, each side in a process of its own. Linux only."""
    if not measurable():
        return []
    peaks: dict[str, float] = {}
    sides: tuple[Side, ...] = ("ours", "documented", "same")
    for side in sides:
        if train:
            make = partial(trainer, side, base, batch, False)
        else:
            make = partial(sampler, side, base, batch, False, kind="ddim", num_steps=2)
        peaks[side] = peak(partial(_start_up, side), make)
        tensors = 4 if train else 1  # weights; gradients and AdamW's two moments
        least = tensors * 4 * sum(p.numel() for p in prepare(side, base)[0].parameters()) / 2**20
        if peaks[side] < least:
            raise RuntimeError(
                f"{side!r} measured {peaks[side]:.0f} MiB, under the {least:.0f} of its weights alone"
            )
    return [
        {
            "name": f"{name}, peer {'as documented' if side == 'documented' else 'in the same setting'}",
            "ours": peaks["ours"],
            "peer": peaks[side],
            "ratio": peaks[side] / peaks["ours"],
            "target": 1.0,
            "better": "higher",
            "unit": "MiB",
        }
        for side in ("documented", "same")
    ]


def run(quick: bool) -> list[Row]:
    """Rows of name, ours, peer, ratio (peer / ours), target (the least ratio wanted, or None) and unit."""
    base, batch, rounds, num_steps = (32, 8, 3, 3) if quick else (64, 16, 7, 10)
    count = [sum(p.numel() for p in prepare(side, base)[0].parameters()) for side in ("ours", "documented")]
    if abs(count[0] / count[1] - 1) > 0.02:
        raise RuntimeError(
            f"the sides differ in size, {count[0]} and {count[1]} parameters: no ratio is fair"
        )
    rows: list[Row] = [
        {
            "name": "parameters",
            "ours": count[0],
            "peer": count[1],
            "ratio": count[1] / count[0],
            "target": None,
            "better": "higher",
            "unit": "1",
        }
    ]
    goals: dict[Side, float] = {"documented": 1.3, "same": 1.0}
    precisions = [False] + [True] * torch.ops.mkldnn._is_mkldnn_bf16_supported()
    for bf16 in precisions:
        suffix = f"base {base}, batch {batch}, {'bf16' if bf16 else 'fp32'}"

        def train(side: Side, bf16: bool = bf16) -> Step:
            return trainer(side, base, batch, bf16 and side != "documented")

        rows += compare(f"training step, {suffix}", train, goals, rounds)
        for kind in ("ddim", "ddpm"):

            def sample(side: Side, kind: str = kind, bf16: bool = bf16) -> Step:
                return sampler(
                    side, base, batch, bf16 and side != "documented", kind=kind, num_steps=num_steps
                )

            rows += compare(f"{num_steps} {kind} steps, {suffix}", sample, goals, rounds)
    suffix = f"base {base}, batch {batch}, fp32"
    rows += peak_memory(f"peak memory of training, {suffix}", base, batch, train=True)
    rows += peak_memory(f"peak memory of sampling, {suffix}", base, batch, train=False)
    return rows


if __name__ == "__main__":
    main(__doc__, run)
