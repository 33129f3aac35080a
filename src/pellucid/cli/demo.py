"""`make demo`: from pictures alone to generated pictures with masks, segmented unseen ones, scores and a page."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pellucid.data.catalog import open_data
from pellucid.evaluate import evaluate, record, table
from pellucid.model import Model, load
from pellucid.recipes import DataSpec, build, recipe, recipe_to_json
from pellucid.train.preview import grid, overlay, samples_of, save_png
from pellucid.train.trainer import Event, train


def demo(
    spec: str,
    out: Path,
    *,
    size: int,
    steps: int | None,
    say: Callable[[str], None],
    on_event: Event,
) -> tuple[Path, dict[str, Any]]:
    """Train (or continue), sample, segment, score; write out/index.html. Returns the page and the scores."""
    data = open_data(spec, size=size)
    made = recipe(
        "factorized", "cpu",
        DataSpec.of("factorized", spec, data),
        steps=steps,
    )  # fmt: skip
    run = out / f"run-{Path(spec).name}-{size}"
    say(f"learning from {len(data)} pictures of {spec}, without labels; run folder {run}")
    result = train(
        build(made),
        data,
        made.train,
        run,
        meta=recipe_to_json(made),
        preview=samples_of(made.method, made.train.seed),
        on_event=on_event,
    )
    if result.state == "paused":
        raise ValueError(f"paused at step {result.step}; the same command continues")
    model = load(run)

    sample = model.sample(24, seed=1, num_steps=50, snapshots=8)
    save_png(
        out / "generated.png", _pairs(sample.images, sample.readouts["masks"]), {"run": str(run), "seed": 1}
    )
    states = [s for _, s in sample.trace]
    rows = [t for i in range(3) for t in _process(states, i)]
    save_png(out / "process.png", grid(torch.cat(rows), columns=len(states)), {"run": str(run), "seed": 1})

    unseen = open_data(spec, size=size, split="test", limit=24)
    batch = unseen.batch(np.arange(min(24, len(unseen))))
    masks = model.method.read(batch.x0.to(model.device), torch.Generator().manual_seed(0))["masks"]
    save_png(out / "segmented.png", _pairs(batch.x0, masks), {"run": str(run), "data": spec})

    scores: dict[str, Any] = {}
    lines = ["No true masks come with these pictures, so there is nothing to score against."]
    if batch.masks is not None:
        try:
            scores = evaluate(model, spec, limit=400)
        except ValueError as error:  # too few pictures to hold any out, or masks that hold nothing
            lines = [str(error)]
        else:
            record(run, scores)
            lines = table(scores)
    for line in lines:
        say(line)
    page = out / "index.html"
    page.write_text(_page(spec, run, model, lines))
    return page, scores


def _pairs(images: Tensor, masks: Tensor, columns: int = 12) -> Any:
    """Rows of pictures, each with its regions in a row below."""
    images, labels = images.cpu().expand(-1, 3, -1, -1), masks.argmax(1).cpu()
    tinted = overlay(images, labels)
    rows = [t for pair in zip(images.split(columns), tinted.split(columns), strict=True) for t in pair]
    return grid(torch.cat(rows), columns=columns)


def _process(states: list[Any], i: int) -> tuple[Tensor, Tensor]:
    pictures = torch.stack([s.images[i] for s in states]).cpu().expand(-1, 3, -1, -1)
    return pictures, overlay(pictures, torch.stack([s.readouts["masks"][i].argmax(0) for s in states]).cpu())


def _page(spec: str, run: Path, model: Model, lines: list[str]) -> str:
    k = model.method.readouts["masks"].shape[0]
    made = model.recipe
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>pellucid: {html.escape(spec)}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
img {{ max-width: 100%; image-rendering: pixelated; border: 1px solid #ddd }}
pre {{ background: #f6f6f6; padding: 1rem; overflow-x: auto }}
</style>
<h1>What a model learned from {html.escape(spec)}, with no labels</h1>
<p>{made.train.steps} steps of {made.train.batch_size} pictures at {made.data.size} pixels. It was shown pictures and
nothing else. Of its {k} regions the first is what the frame of a picture can explain; the others share what it cannot,
from dark to bright.</p>
<h2>Generated pictures, and the regions that came with them</h2>
<img src="generated.png" alt="generated pictures, each with its regions below">
<h2>Pictures it has never seen, segmented in one pass</h2>
<img src="segmented.png" alt="unseen pictures, each with its regions below">
<h2>How pictures and regions come out of the noise</h2>
<img src="process.png" alt="states of three samples from noise on the left to the picture on the right">
<h2>Scores on unseen pictures</h2>
<pre>{html.escape(chr(10).join(lines))}</pre>
<p>One assignment: which regions are the object was decided once, on other pictures. Oracle: decided for each picture
with its true mask in hand. The two answer different questions and are not to be mixed.</p>
<h2>Your own pictures</h2>
<pre>.venv/bin/pellucid doctor ./photos
.venv/bin/pellucid train factorized --data ./photos --size 64
.venv/bin/pellucid sample {html.escape(str(run))} -n 64 --out out/
.venv/bin/pellucid read {html.escape(str(run))} photo.jpg --out out/
.venv/bin/pellucid edit {html.escape(str(run))} photo.jpg --set regions=1 --out out/</pre>
</html>
"""
