"""From pictures to the noise that they are made of, and how much of them comes back from there."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from pellucid.cli.commands import described, drawable, free, listed, writable
from pellucid.cli.console import say, written

STEPS = (10, 25, 50, 100, 250)


@dataclass
class Invert:
    """Turn pictures into their code and noise, and tell how closely they come back, by the steps taken.

    Writes NAME-noise.safetensors (x_T, and the code under it), NAME-noise.png (that noise, to look at), NAME-back.png
    (the picture, and what comes back by each number of steps, from left to right) and NAME.json with the errors.

    Example:  pellucid invert runs/NAME photo.jpg --out out/ --steps 25 100 250
    """

    run_folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(name="run")]
    """A run folder, an exported folder, or hf:OWNER/NAME."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """One or more pictures; a folder stands for every picture below it."""
    out: Path = Path("out")
    """Folder to write into; files that are there are kept."""
    steps: tuple[int, ...] = STEPS
    """Network passes from a picture to its noise, and as many back; the noise written is that of the most."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    json: Path | None = None
    """Also write all errors here."""

    def run(self) -> None:
        import torch
        from safetensors.torch import save_file

        from pellucid.data.decode import BadImage
        from pellucid.metrics.image import psnr
        from pellucid.model import load
        from pellucid.train.preview import grid, save_png

        if not self.images:
            raise ValueError("name one or more pictures to invert, or a folder of them")
        model = load(self.run_folder, device=self.device)
        drawable(model)
        control = model.controls.get("inversion_steps")
        if control is None:
            raise ValueError(
                f"{model.recipe.method} does not know a picture by its noise: gae, diffae and pdae do"
            )
        steps = sorted(set(self.steps))
        if not steps or steps[0] < 1 or steps[-1] > (control.high or 0):
            raise ValueError(
                f"steps are {' '.join(map(str, self.steps)) or 'none'}; from 1 to {control.high:g}, such as "
                f"{' '.join(map(str, STEPS))}"
            )
        paths, failed = listed(self.images)
        writable(self.out)
        found: dict[str, Any] = {}
        for path in paths:
            try:
                x = model.opened({"image": path})["image"]
            except BadImage as error:
                failed.append(str(error))
                continue
            back, errors = [], []
            for n in steps:
                begun = time.perf_counter()
                sample = model.edit(x, num_steps=n, inversion_steps=n)
                back.append(sample.images.cpu())
                off = (sample.images - x).square().mean().item() / 4  # of [0, 1], as the tables have it
                took = time.perf_counter() - begun
                errors.append(
                    {"steps": n, "mse": off, "psnr": psnr(x, sample.images).item(), "seconds": took}
                )
            x_T = model.method.noise_of(x, steps[-1])[0].cpu()
            code = model.read(path).values["code"]
            about = {"run": self.run_folder, "picture": path.name, "steps": steps}
            name = free(self.out / f"{path.stem}.json", "-noise.safetensors", "-noise.png", "-back.png").stem
            place = self.out / f"{name}-noise.safetensors"
            place.parent.mkdir(parents=True, exist_ok=True)
            save_file({"x_T": x_T.contiguous(), "code": code.contiguous()}, place)
            save_png(self.out / f"{name}-noise.png", grid((x_T / 3).clamp(-1, 1)[None], columns=1), about)
            sheet = torch.cat([x.cpu(), *back]).expand(-1, 3, -1, -1)
            save_png(self.out / f"{name}-back.png", grid(sheet, columns=len(sheet)), about)
            noise = {"mean": x_T.mean().item(), "std": x_T.std().item()}
            found[str(path)] = {
                "errors": errors,
                "noise": noise,
                "readouts": described(model, {"code": code}),
            }
            written(self.out / f"{name}.json", about | found[str(path)])
            say(f"{path}: {place}, of mean {noise['mean']:.3f} and deviation {noise['std']:.3f}")
            say(f"  {'steps':>6} {'MSE':>10} {'PSNR':>7} {'seconds':>8}")
            for e in errors:
                say(f"  {e['steps']:>6} {e['mse']:>10.2e} {e['psnr']:>7.2f} {e['seconds']:>8.1f}")
        written(self.json, found)
        if failed:
            raise ValueError(f"{len(found)} inverted; {len(failed)} could not be: {'; '.join(failed)}")
