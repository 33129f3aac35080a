"""A run as a folder to share: safetensors, config and a model card."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from safetensors.torch import save_file

from pellucid.model import Model, load
from pellucid.recipes import recipe_to_json
from pellucid.train.trainer import provenance


def export(run: str | Path, out: Path, *, which: str = "last") -> Path:
    """Write model.safetensors (averaged weights), config.json and README.md into a new folder.

    The folder loads with `pellucid.load` and can be uploaded to the hub as it is. Raises ValueError
    where `out` exists.
    """
    if out.exists():
        raise ValueError(f"{out} exists; nothing is overwritten. Name a folder that is not there")
    model = load(run, device="cpu", which=which)
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        weights = {k: v.contiguous() for k, v in model.method.state_dict().items()}
        save_file(weights, work / "model.safetensors", metadata={"format": "pt"})
        config = {
            "recipe": recipe_to_json(model.recipe),
            "made_by": provenance(),
            "data": {k: v for k, v in model.trained_on.items() if k != "place"},
        }
        (work / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        (work / "README.md").write_text(card(model, Path(run)))
        for file in work.iterdir():
            file.chmod(0o644)
        work.chmod(0o755)
        os.replace(work, out)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return out


def card(model: Model, run: Path) -> str:
    """The model card: what it is, what it was trained on, how it is used, what is not known of it."""
    made = model.recipe
    parameters = sum(p.numel() for p in model.method.parameters())
    stages = [(stage.name, made.train.of(stage.name)) for stage in model.method.stages()]
    lengths = ", then ".join(
        f"{own.steps} steps of {own.batch_size} pictures" + f" ({name})" * (len(stages) > 1)
        for name, own in stages
    )
    controls = (
        "\n".join(
            f"- `{k}` ({c.takes}): {c.help}{f'; needs {c.needs}' if c.needs else ''}"
            for k, c in model.controls.items()
        )
        or "none"
    )
    readouts = "\n".join(f"- `{k}`: {r.help}" for k, r in model.readouts.items()) or "none"
    uses = ["sample = model.sample(16, seed=0)"] * bool(model.controls)
    uses += ['reading = model.read("photo.jpg")'] * bool(model.readouts)
    use = "\n".join(uses)
    scores = "No evaluation was recorded; `pellucid evaluate` makes one on labelled pictures."
    if (run / "metrics.json").is_file():
        scores = "```json\n" + (run / "metrics.json").read_text().strip() + "\n```"
    return f"""---
library_name: pellucid
tags: [{made.method}, diffusion, unsupervised]
---
# {made.method}, {made.data.size} px, trained on {made.data.spec}

{parameters:,} parameters; recipe scale `{made.scale}`, {lengths},
seed {made.train.seed}. Trained from pictures alone; `config.json` holds every setting and version.

```python
import pellucid
model = pellucid.load("PATH_OR_hf:OWNER/NAME")
{use}
```

## Controls
{controls}

## Readouts
{readouts}

## Scores
{scores}

## Limits
It knows what its training pictures showed and nothing else. Regions have no names until someone looks at them.
Whether the training pictures may be used, and the generated ones shown, is for whoever trained it to say.
"""
