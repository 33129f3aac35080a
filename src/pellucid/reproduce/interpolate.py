"""Figures 8 to 10 of DiffuseGAE: from one picture to another, all at once and one attribute at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pellucid.methods.gae.method import GAE, slerp
from pellucid.metrics.attributes import perceptual_path_length
from pellucid.metrics.distribution import Extractor, features
from pellucid.process.samplers import ddim
from pellucid.reproduce.attributes import HELD_OUT, Pictures, opened, without_held_out
from pellucid.reproduce.generate import extractor
from pellucid.reproduce.harness import Column, Report, Setting, data_for, file_name, train_all, trained
from pellucid.train.preview import grid, save_png

ROWS = {"DiffuseGAE": "gae", "Diff-AE": "diffae"}
PAIRS = {"tiny": 4, "cpu": 100, "gpu": 1000, "paper": 1000}
STEPS = {"tiny": (2, 3), "cpu": (10, 20, 50), "gpu": (10, 20, 50, 100), "paper": (10, 20, 50, 100)}
"""T, steps from noise to picture."""
EPSILON = 1e-4
ACROSS = 8
"""Places along the way that pictures show, ends included."""


@torch.no_grad()
def path_length(
    method: GAE, see: Extractor, a: Tensor, b: Tensor, steps: int, seed: int, *, part: slice | None = None
) -> float:
    """PPL between pictures a and b (N, C, H, W), codes by lerp and noises, drawn anew, by slerp (eq. 13).

    With `part`, only those entries of the code go over, under one noise.
    """
    rng = torch.Generator().manual_seed(seed)
    wa, wb = (torch.cat([method.parts_of(part) for part in x.split(100)]) for x in (a, b))
    na, nb = (torch.randn(a.shape, generator=rng) for _ in range(2))
    alphas = torch.rand(len(a), generator=rng)
    if part is not None:
        there, wb, nb = wb[:, part], wa.clone(), na
        wb[:, part] = there

    def render(rows: slice, alpha: Tensor) -> Tensor:
        share = alpha.to(wa)
        w = torch.lerp(wa[rows], wb[rows], share[:, None])
        noise = slerp(na[rows], nb[rows], share)
        denoise = method.denoiser.denoiser(method.told(w))
        return ddim(denoise, noise, method.denoiser.levels(steps), method.denoiser.schedule)

    def apart(one: Tensor, other: Tensor) -> Tensor:
        seen_a, seen_b = features(see, one).double(), features(see, other).double()
        return (seen_a - seen_b).square().sum(1) / seen_a.square().sum(1)

    return perceptual_path_length(render, apart, alphas, epsilon=EPSILON, batch=50)


def ways(setting: Setting, spec: str, row: str, method: GAE, pictures: Pictures) -> list[str]:
    """Figure 8, all attributes at once; and figure 9, one at a time: the ends are given pictures."""
    found = []
    steps = (
        {"num_steps": 50, "inversion_steps": 50}
        if setting.scale != "tiny"
        else {"num_steps": 2, "inversion_steps": 2}
    )
    shares = torch.linspace(0, 1, ACROSS).tolist()
    a, b = pictures.x[:4], pictures.x[4:8]

    def sheet(name: str, controls: list[dict[str, Any]]) -> None:
        between = [
            method.sample(4, torch.Generator().manual_seed(0), image=a, blend_with=b, **steps, **use).images
            for use in controls
        ]
        lines = torch.stack([a, *between, b], 1).flatten(0, 1)
        path = setting.pictures / f"gae-interpolate-{file_name(spec)}-{name}.png"
        about = {"row": row, "ends": "given pictures", "between": name}
        save_png(path, grid(lines, columns=len(between) + 2), about)
        found.append(path.name)

    sheet(f"{ROWS[row]}-all", [{"blend": share} for share in shares])
    if method.parts is not None:
        for part in method.parts.names:
            sheet(f"{ROWS[row]}-{part}", [{"slide": {part: share}} for share in shares])
    return found


def run(setting: Setting) -> Report:
    setting = without_held_out(setting)
    report = Report(
        name="gae-interpolate",
        title="From one picture to another (DiffuseGAE, figures 8 to 10)",
        columns=(),
        paper={"DiffuseGAE": {"PPL": "below Diff-AE's at every T (figure 10, iLab-20M)"}},
    )
    see = extractor(report, small=setting.scale == "tiny")
    report.columns = tuple(
        Column(f"ppl_{steps}", f"PPL, T = {steps}", "lower") for steps in STEPS[setting.scale]
    )
    rows, n = setting.chosen(ROWS), PAIRS[setting.scale]
    for spec in setting.data:
        opened(setting, spec)
    train_all(setting, [(recipe, {}) for recipe in rows.values()])
    for spec in setting.data:
        pictures = Pictures.of(data_for(setting, spec, "test"), 2 * n)
        for seed in setting.seeds:
            for row, recipe in rows.items():
                method, _ = trained(setting, recipe, spec, seed)
                assert isinstance(method, GAE)
                a, b = pictures.x[:n], pictures.x[n : 2 * n]
                lengths = {
                    f"ppl_{steps}": path_length(method, see, a, b, steps, seed)
                    for steps in STEPS[setting.scale]
                }
                report.add(spec, row, lengths)
                for name, part in (
                    () if method.parts is None else zip(method.parts.names, method.parts.columns, strict=True)
                ):
                    single = {
                        f"ppl_{steps}": path_length(method, see, a, b, steps, seed, part=part)
                        for steps in STEPS[setting.scale]
                    }
                    report.add(spec, f"  {name} alone", single)
                if seed == setting.seeds[0]:
                    report.pictures += ways(setting, spec, row, method, pictures)
    report.notes.append(
        f"PPL: mean over pairs of d(G(a), G(a + e)) / e^2, e = {EPSILON:g}, between the 1st and the 99th percentile; "
        f"d is the squared distance of {see.name} features over their squared length, in place of VGG16's. Codes go "
        "straight, noises, which are drawn, along the arc; of one attribute alone, the noise stays"
    )
    report.conditions |= setting.conditions(size=setting.size, pairs=n, held_out=HELD_OUT)
    return report
