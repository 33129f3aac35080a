"""Lift3D's step against a step with one camera and one with all cameras; its rays against nerfacc's; its memory.

    python benchmarks/lift3d.py [--quick] [--json FILE]

Scene: 64 views of textured boxes at 32 pixels, the recipe of the scale of two cores, twelve candidates. It is trained
for some hundred steps first, as before that all candidates see the same fog; every row is of that state.

Step: with twelve candidates against with one, both as the trainer takes them before anything is imagined, in turns; the
median over rounds. And against the plain way: all candidates rendered with gradients, the least error of each picture
taken. And one that imagines against one that does not: what the recipe takes once half of the detail is there.

Choice: how often the candidate that is chosen on some rays is the best of all over whole pictures, the field itself
asked at twice as many places along each ray, under noise of training's own times. A second row forgives those whose
error is within 2 % of the best; a third holds it against the choice of the plain way, which sees the rays of a step.

Rays: a network of Fourier features, forward and backward through 2,048 rays, against nerfacc's functions for samples in
rows (`rendering`, its dense path) around the same network. Once on the scene, where ours leaves out what lies outside
the unit ball; once with a ball so large that both ask the same places.

Memory: the most that a picture of 128 pixels takes against sixteen of 32, with one budget of samples.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from _main import Row, main, row
from _memory import measurable, peak

Step = Callable[[], None]
SIZE = 32


def data() -> Any:
    from pellucid.data.catalog import open_data

    return open_data("views-boxes", size=SIZE)


def made(name: str, *, imagined: bool = False) -> Any:
    """A recipe at the scale of two cores, for the boxes."""
    from pellucid.recipes import DataSpec, recipe

    usual = recipe(name, "cpu", DataSpec.of(name, "views-boxes", data()))
    return usual if imagined else replace(usual, config=replace(usual.config, imagined=0.0))


def stepping(method: Any, recipe: Any, x0: torch.Tensor, *, rate: float = 1.0) -> Step:
    """Steps on batches of pictures (N, C, H, W), as the trainer takes them; the learning rate times `rate`."""
    from pellucid.types import Batch

    (stage,) = method.stages()
    own = recipe.train.of(stage.name)
    factors = recipe.train.stages["lift"].lr_of
    optimizers = {
        player: torch.optim.AdamW(
            owned, lr=rate * own.lr * factors.get(player, 1.0), betas=own.betas, weight_decay=0.0, fused=True
        )
        for player, owned in stage.players.items()
    }
    rng, taken = torch.Generator().manual_seed(1), 0

    def step() -> None:
        nonlocal taken
        rows = torch.randint(len(x0), (own.batch_size,), generator=rng)
        for players, terms in stage.losses(Batch(x0=x0[rows]), rng):
            sum(v for k, v in terms.items() if not k.startswith("_")).backward()
            for player in (players,) if isinstance(players, str) else players:
                torch.nn.utils.clip_grad_norm_(stage.players[player], own.grad_clip)
                optimizers[player].step()
            method.zero_grad()
        stage.after_step(taken)
        taken += 1

    return step


def trained(quick: bool) -> tuple[Any, torch.Tensor]:
    """The scene after some steps, and its pictures."""
    import numpy as np

    from pellucid.recipes import build

    views, steps = data(), 400 if quick else 1500
    x0, recipe = views.batch(np.arange(len(views))).x0, made("lift3d")
    opening = replace(recipe.config, view=replace(recipe.config.view, opens=steps // 2))
    method = build(replace(recipe, config=opening)).to(memory_format=torch.channels_last)
    step = stepping(method, recipe, x0)
    for _ in range(steps):
        step()
    return method, x0


def in_turns(sides: list[Step], rounds: int) -> list[list[float]]:
    """Seconds of each side's steps, one of each at a time."""
    times: list[list[float]] = [[] for _ in sides]
    for side in sides:
        side()
    for _ in range(rounds):
        for seen, side in zip(times, sides, strict=True):
            begun = time.perf_counter()
            side()
            seen.append(time.perf_counter() - begun)
    return times


def noisy_poses(method: Any, x: torch.Tensor, rng: torch.Generator) -> Any:
    """What a training step asks of pictures (B, C, H, W): poses under noise of its own times."""
    from pellucid.process.schedule import training_times

    t = training_times(method.schedule, len(x), rng, low_share=method.config.low_share)
    return method.posed(method.noised(x, t, rng), t)


def all_with_gradients(method: Any, recipe: Any, x0: torch.Tensor) -> Step:
    """The plain way: every candidate's rays with gradients, and the least error."""
    from pellucid.methods.radiance import chosen_rays

    (stage,) = method.stages()
    parameters = [p for owned in stage.players.values() for p in owned]
    optimizer = torch.optim.AdamW(parameters, lr=1e-8, weight_decay=0.0, fused=True)
    rng = torch.Generator().manual_seed(1)

    def step() -> None:
        x = x0[torch.randint(len(x0), (recipe.train.batch_size,), generator=rng)]
        poses = noisy_poses(method, x, rng)
        many = poses.cameras.shape[1]
        at, there = chosen_rays(x, method.view.rays, rng)
        seen = method.seen(
            poses.cameras.flatten(0, 1), at.repeat_interleave(many, 0), method.view.samples, rng
        )
        errors = (seen.colour.view(len(x), many, *there.shape[1:]) - there[:, None]).square().mean((2, 3))
        least, won = errors.min(1)
        (least.mean() + 0.1 * torch.nn.functional.cross_entropy(poses.scores, won)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        method.zero_grad()

    return step


def steps(quick: bool, method: Any, x0: torch.Tensor) -> list[Row]:
    from pellucid.recipes import build

    recipe, alone, whole = made("lift3d"), made("lift3d-single"), made("lift3d", imagined=True)
    single = build(alone).to(memory_format=torch.channels_last)
    imagining = build(whole).to(memory_format=torch.channels_last)
    imagining.load_state_dict(method.state_dict())
    single.field.load_state_dict(method.field.state_dict())  # one that renders as much as the other's
    # hardly learning: one camera for all would make fog of the scene, which is slower
    sides = [
        stepping(method, recipe, x0, rate=1e-6),
        stepping(single, alone, x0, rate=1e-6),
        all_with_gradients(method, recipe, x0),
        stepping(imagining, whole, x0, rate=1e-6),
    ]
    opened = method.field.opened.clone()
    single.after_views = method.after_views = imagining.after_views = lambda step: (
        None
    )  # as much detail as there is now, for all of them
    many, one, plain, more = in_turns(sides, 5 if quick else 20)
    assert torch.equal(opened, method.field.opened)
    against = lambda a, b: statistics.median(x / y for x, y in zip(a, b, strict=True))
    ours = 1e3 * statistics.median(many)
    return [
        row(
            "step of 12 candidates, of one camera", ours, 1e3 * statistics.median(one), against(many, one), 1.5,
            "lower", "ms",
        ),
        row(
            "all 12 rendered with gradients, step of 12 candidates", 1e3 * statistics.median(plain), ours,
            against(plain, many), 4.0, "higher", "ms",
        ),
        row(
            "step that imagines, step of 12 candidates", 1e3 * statistics.median(more), ours,
            against(more, many), 2.0, "lower", "ms",
        ),
    ]  # fmt: skip


def choice(quick: bool, method: Any, x0: torch.Tensor) -> list[Row]:
    from pellucid.cameras import pixels
    from pellucid.methods.radiance import chosen_rays

    at, told = pixels(SIZE), method.config.poses
    agree, close, plain, cases = 0, 0, 0, 0
    for round_ in range(1 if quick else 6):
        rng = torch.Generator().manual_seed(round_)
        with torch.no_grad():
            cameras = noisy_poses(method, x0, rng).cameras
            won = torch.cat(
                [method.winners(c, x, rng) for c, x in zip(cameras.split(16), x0.split(16), strict=True)]
            )
            errors = torch.stack(
                [
                    (
                        method.seen(c, at, 2 * told.pick_samples, None).colour.view(len(c), -1, 3)
                        - x.flatten(1).T
                    ).square().mean((1, 2))
                    for c, x in zip(cameras, x0, strict=True)
                ]
            )  # fmt: skip
            places, there = chosen_rays(x0, method.view.rays, rng)
            by_few = torch.stack(
                [
                    (
                        method.seen(c, a[None].expand(len(c), -1, -1), method.view.samples, rng).colour.view(
                            len(c), *x.shape
                        )
                        - x
                    ).square().mean((1, 2))
                    for c, a, x in zip(cameras, places, there, strict=True)
                ]
            )  # fmt: skip
        best = errors.min(1)
        plain += int((by_few.argmin(1) == best.indices).sum())
        agree += int((won == best.indices).sum())
        close += int((errors.gather(1, won[:, None])[:, 0] <= 1.02 * best.values).sum())
        cases += len(x0)
    return [
        row("winner is the best over whole pictures", agree, cases, agree / cases, 0.95, "higher", "cases"),
        row("... or within 2 % of its error", close, cases, close / cases, 0.95, "higher", "cases"),
        row(
            "ours, by all with gradients on a step's rays",
            agree,
            plain,
            agree / plain,
            1.0,
            "higher",
            "cases",
        ),
    ]


def along_rays(quick: bool) -> list[Row]:
    import nerfacc

    from pellucid.cameras import orbit, pixels, rays
    from pellucid.nets.nerf import FieldConfig, Space, make_field, render

    torch.manual_seed(0)
    field = make_field(FieldConfig(kind="mlp", width=64, depth=4, frequencies=6))
    origins, directions = (
        v.flatten(0, 1) for v in rays(orbit(2, elevation=0.4, radius=3.0), 1.4, pixels(SIZE))
    )
    samples, found = 32, []
    for name, bound in (("on the scene", 1.0), ("the same places", 10.0)):
        space = Space(near=2.0, far=4.0, bound=bound)

        def ours(space: Space = space) -> None:
            rng = torch.Generator().manual_seed(0)
            seen = render(field, space, origins, directions, samples, background="white", rng=rng)
            seen.colour.square().mean().backward()
            field.zero_grad()

        def theirs(space: Space = space) -> None:
            rng = torch.Generator().manual_seed(0)
            ends = space.distances(len(origins), samples, rng=rng, device=origins.device)

            def asked(starts: Any, stops: Any, ray: Any) -> Any:
                middle = (starts + stops) / 2
                points = (origins[:, None] + middle[..., None] * directions[:, None]) / space.bound
                density, colour = field(points.flatten(0, 1), points.flatten(0, 1))
                return colour.view(*middle.shape, 3), density.view(middle.shape)

            colour, _, _, _ = nerfacc.rendering(
                ends[:, :-1], ends[:, 1:], rgb_sigma_fn=asked, render_bkgd=torch.ones(3)
            )
            colour.square().mean().backward()
            field.zero_grad()

        mine, peer = in_turns([ours, theirs], 4 if quick else 15)
        rate = lambda t: len(origins) / statistics.median(t)
        ratio = statistics.median(b / a for a, b in zip(mine, peer, strict=True))
        found.append(
            row(f"rays of the MLP field, nerfacc's, {name}", rate(mine), rate(peer), ratio, 1.0, "higher", "rays/s")
        )  # fmt: skip
    return found


def loaded() -> None:
    import pellucid.methods.registry
    import pellucid.recipes  # noqa: F401


def a_picture(size: int) -> Step:
    """A picture of so many pixels, 2^15 samples at once."""
    from pellucid.methods.radiance import Radiance, ViewConfig

    # so near that all rays meet the ball, and as many parts, one after another: what grows is the picture alone
    method = Radiance(ViewConfig(budget=2**15, focal=4.0), SIZE, 3)
    cameras = method.around((128 // size) ** 2)

    def step() -> None:
        method.pictures(cameras, size=size)

    return step


def memory() -> list[Row]:
    if not measurable():
        return []
    large, small = (peak(loaded, partial(a_picture, size)) for size in (128, 32))
    return [
        row(
            "memory of a picture of 128 pixels, of 16 of 32",
            large,
            small,
            large / small,
            1.25,
            "lower",
            "MiB",
        )
    ]


def run(quick: bool) -> list[Row]:
    found = [*along_rays(quick), *memory()]
    method, x0 = trained(quick)
    return [*steps(quick, method, x0), *choice(quick, method, x0), *found]


if __name__ == "__main__":
    main(__doc__, run)
