"""Table 2 of DiffuseGAE: what comes back of a picture from its code, from its noise, and from both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pellucid.methods.base import Method
from pellucid.methods.denoising import DenoisingMethod
from pellucid.metrics.attributes import perplexity_matrix
from pellucid.metrics.distribution import Extractor, features, frechet_distance, kernel_distance, perceptual
from pellucid.metrics.image import mse, ssim
from pellucid.process.samplers import ddim
from pellucid.reproduce.attributes import (
    HELD_OUT,
    Pictures,
    codes_of,
    opened,
    sources,
    without_held_out,
)
from pellucid.reproduce.generate import extractor
from pellucid.reproduce.harness import Column, Report, Setting, data_for, file_name, train_all, trained
from pellucid.reproduce.zeroshot import recombined
from pellucid.train.preview import grid, save_png

COUNTS = {"tiny": 8, "cpu": 128, "gpu": 2000, "paper": 50_000}
CODED = {"tiny": 60, "cpu": 600, "gpu": 5000, "paper": 5000}
"""Test pictures whose codes a linear classifier reads."""
STEPS = {"tiny": 4, "cpu": 100, "gpu": 100, "paper": 100}
"""The paper's T, from a picture to its noise and back."""
TRADED = {
    "tiny": (2, 4),
    "cpu": (10, 25, 50, 100, 250),
    "gpu": (10, 25, 50, 100, 250),
    "paper": (10, 25, 50, 100, 250),
}
"""Steps of which the error is shown."""
CODE_ONLY = "DiffuseGAE, random x_T"
BOTH = "DiffuseGAE, inferred x_T"
OF_OTHERS = "DiffuseGAE, parts of others"
NOISE_ONLY = "DDIM, inferred x_T"


@dataclass(frozen=True, kw_only=True)
class Row:
    recipe: str
    controls: Mapping[str, Any]
    reads: bool = True
    """Whether it has a code, and not only noise."""
    of_others: bool = False
    """Whether each part is that of another picture of the same value, and the picture itself is not seen."""


ROWS = {
    "GZS-Net": Row(recipe="gzsnet", controls={}),
    "Diff-AE, random x_T": Row(recipe="diffae", controls={"noise": "random"}),
    "Diff-AE, inferred x_T": Row(recipe="diffae", controls={"noise": "inferred"}),
    "PDAE, random x_T": Row(recipe="pdae", controls={"noise": "random"}),
    "PDAE, inferred x_T": Row(recipe="pdae", controls={"noise": "inferred"}),
    NOISE_ONLY: Row(recipe="gae-ddpm", controls={}, reads=False),
    CODE_ONLY: Row(recipe="gae", controls={"noise": "random"}),
    OF_OTHERS: Row(recipe="gae", controls={"noise": "random"}, of_others=True),
    BOTH: Row(recipe="gae", controls={"noise": "inferred"}),
}
PAPER = {
    "GZS-Net": {"FID": "100.85", "SSIM": ".345", "LPIPS": ".205", "MSE": ".124 (iLab-20M)"},
    "Diff-AE, random x_T": {"FID": "8.07", "SSIM": ".539", "LPIPS": ".073", "MSE": ".011"},
    CODE_ONLY: {"FID": "8.06", "SSIM": ".549", "LPIPS": ".073", "MSE": ".011"},
    NOISE_ONLY: {"FID": "10.37", "SSIM": ".912", "LPIPS": ".063", "MSE": ".002"},
    BOTH: {"FID": "4.03", "SSIM": ".989", "LPIPS": ".012", "MSE": "8.6e-5"},
}


def columns(see: Extractor) -> tuple[Column, ...]:
    return (
        Column("mse", "MSE", "lower"),
        Column("ssim", "SSIM"),
        Column(f"perceptual_{see.name}", f"perceptual_{see.name}", "lower"),
        Column(f"fd_{see.name}", f"fd_{see.name}", "lower"),
        Column(f"kid_{see.name}", f"kid_{see.name}", "lower"),
        Column("read", "attributes read"),
    )


@torch.no_grad()
def by_noise_alone(method: DenoisingMethod, x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Pictures (N, C, H, W) inverted and decoded by a diffusion without a code: what comes back, and the noise."""
    denoise = method.denoiser(None, {})
    noise = method.inverted(denoise, x, steps)
    return ddim(denoise, noise, method.levels(steps), method.schedule).clamp(-1, 1), noise


def come_back(method: Method, row: Row, x: Tensor, steps: int, seed: int) -> Tensor:
    """What a method makes of pictures (N, C, H, W) again."""
    made = []
    for chunk in x.split(100):
        if not row.reads:
            assert isinstance(method, DenoisingMethod)
            made.append(by_noise_alone(method, chunk, steps)[0])
            continue
        use: dict[str, Any] = dict(row.controls)
        if "num_steps" in method.controls:
            use["num_steps"] = steps
        if use.get("noise") == "inferred":
            use["inversion_steps"] = steps
        rng = torch.Generator().manual_seed(seed)
        made.append(method.sample(len(chunk), rng, image=chunk, **use).images.cpu())
    return torch.cat(made)


def likeness(see: Extractor, x: Tensor, made: Tensor) -> dict[str, float]:
    """How close pictures come back, one by one and as a set; errors on the scale from 0 to 1."""
    real, fake = features(see, x), features(see, made)
    found = {
        "mse": mse(x, made).mean().item()
        / 4,  # of [0, 1], where the paper's are: a quarter of that of [-1, 1]
        f"perceptual_{see.name}": perceptual(see, x, made).mean().item(),
        f"fd_{see.name}": frechet_distance(real, fake),
        f"kid_{see.name}": kernel_distance(real, fake)[0],
    }
    return found | ({"ssim": ssim(x, made).mean().item()} if min(x.shape[2:]) >= 11 else {})


def run(setting: Setting) -> Report:
    setting = without_held_out(setting)
    report = Report(
        name="gae-reconstruct",
        title="What comes back of a picture from its code and its noise (DiffuseGAE, table 2)",
        columns=(),
        paper=PAPER,
    )
    see = extractor(report, small=setting.scale == "tiny")
    traded = TRADED[setting.scale]
    report.columns = (
        *columns(see),
        *(Column(f"mse_{steps}", f"MSE, {steps} steps", "lower") for steps in traded),
    )
    rows, steps, n = setting.chosen(ROWS), STEPS[setting.scale], COUNTS[setting.scale]
    values = {spec: [len(a.values) for a in opened(setting, spec)] for spec in setting.data}
    train_all(setting, [(recipe, {}) for recipe in dict.fromkeys(row.recipe for row in rows.values())])
    for spec in setting.data:
        pictures = Pictures.of(data_for(setting, spec, "test"), CODED[setting.scale])
        x = pictures.x[:n]
        for seed in setting.seeds:
            shown = [x[:8]]
            for name, row in rows.items():
                method, _ = trained(setting, row.recipe, spec, seed)
                if row.of_others:
                    lenders = sources(pictures, pictures.values[:n], torch.Generator().manual_seed(seed))
                    made = recombined(method, pictures, lenders, seed)
                else:
                    made = come_back(method, row, x, steps, seed)
                shown.append(made[:8])
                if row.reads:
                    codes = codes_of(method, pictures.x)
                else:
                    assert isinstance(method, DenoisingMethod)
                    noises = [by_noise_alone(method, chunk, steps)[1] for chunk in pictures.x.split(100)]
                    codes = torch.cat(noises).flatten(1)
                read = perplexity_matrix([codes], pictures.values, values[spec]).mean().item()
                report.add(spec, name, likeness(see, x, made) | {"read": read})
                if row.controls.get("noise") == "inferred" or not row.reads:
                    few = x[: max(1, n // 5)]
                    errors = {
                        f"mse_{k}": mse(few, come_back(method, row, few, k, seed)).mean().item() / 4
                        for k in traded
                    }
                    report.add(spec, name, errors)
            if seed == setting.seeds[0]:
                path = setting.pictures / f"gae-reconstruct-{file_name(spec)}.png"
                save_png(path, grid(torch.cat(shown), columns=8), {"rows": ["pictures", *rows]})
                report.pictures.append(path.name)
        report.notes += verdicts(report, spec, rows)
    report.notes.append(
        f"{steps} steps of DDIM either way; x_T is inferred by DDIM backwards, or drawn. Perceptual: cosine distance "
        f"of features ({see.name}), in place of LPIPS. Attributes read: mean accuracy of linear classifiers on the "
        "code, or, where there is none, on x_T. Errors by steps: as many there as back. The paper's FID is of pictures "
        "put together from their partners' parts, as is the row of others' parts here"
    )
    report.conditions |= setting.conditions(size=setting.size, pictures=n, steps=steps, held_out=HELD_OUT)
    return report


def verdicts(report: Report, spec: str, rows: Mapping[str, Row]) -> list[str]:
    said = []
    if {CODE_ONLY, BOTH} <= rows.keys():
        random, inferred = (report.mean(spec, row, "mse") for row in (CODE_ONLY, BOTH))
        said.append(
            f"{spec}: MSE with inferred x_T {inferred:.2e}, with random {random:.2e}: {random / inferred:.0f} times"
        )
    if {CODE_ONLY, NOISE_ONLY} <= rows.keys():
        code, noise = (report.mean(spec, row, "read") for row in (CODE_ONLY, NOISE_ONLY))
        said.append(
            f"{spec}: attributes read from z alone {code:.3f}, from the noise of DDIM alone {noise:.3f}"
        )
    return said
