"""Table IV and figure 5 of CoFi-UCGen: what each part of the coarse stage is worth."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import torch

from pellucid.methods.base import Method
from pellucid.methods.cofi.method import CoFi
from pellucid.methods.priors import BitCodes
from pellucid.metrics.disentangle import direction_orthogonality, segment_movement
from pellucid.metrics.distribution import Extractor, features
from pellucid.metrics.information import information_bound
from pellucid.reproduce.coarse import Row, columns, fill
from pellucid.reproduce.generate import extractor
from pellucid.reproduce.harness import Column, Report, Setting, blank, drawn, file_name, run_folder
from pellucid.train.log import read_log

FLIPPED = {"tiny": 8, "cpu": 200, "gpu": 1000, "paper": 1000}
"""Pictures in which every bit is flipped in turn."""

ROWS = {
    "no reciprocal loss": Row(recipe="cofi-gan-no-reciprocal"),
    "no contrastive loss": Row(recipe="cofi-gan-no-contrast"),
    "mixture for bits": Row(recipe="cofi-gan-mixture"),
    "one-hot for bits": Row(recipe="cofi-gan-onehot"),
    "isotropic frequencies alone": Row(recipe="cofi-gan-isotropic"),
    "full": Row(recipe="cofi-gan"),
}
PAPER = {
    "no reciprocal loss": {"FID": "76.23", "purity": ".0295", "NMI": ".1585 (CUB)"},
    "no contrastive loss": {"FID": "51.48", "purity": ".0434", "NMI": ".2281 (CUB)"},
    "mixture for bits": {"FID": "95.42", "purity": ".0258", "NMI": ".1381 (CUB)"},
    "one-hot for bits": {"FID": "17.52", "purity": ".0065", "NMI": ".0232 (CUB)"},
    "full": {"FID": "15.94", "purity": ".0507", "NMI": ".2516 (CUB)"},
}


def run(setting: Setting) -> Report:
    report = Report(
        name="cofi-ablation-coarse",
        title="The parts of the coarse stage (CoFi-UCGen, table IV)",
        columns=(),
        paper=PAPER,
    )
    see = extractor(report, small=setting.scale == "tiny")
    report.columns = (
        *columns(see),
        Column("angle", "angle of bits, abs. cosine", "lower"),
        Column("own_segment", "moved in own segment"),
        Column("information", "information, nats"),
    )
    by_chance = math.nan
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {spec: {} for spec in setting.data}

    def more(spec: str, row: str, seed: int, method: Method) -> dict[str, float]:
        nonlocal by_chance
        assert isinstance(method, CoFi)
        figures, chance = flips(method, see, FLIPPED[setting.scale])
        by_chance = by_chance if math.isnan(chance) else chance
        if seed == setting.seeds[0]:
            curves[spec][row] = course(run_folder(setting, ROWS[row].recipe, spec, seed))
        return figures

    fill(report, setting, ROWS, see, more)
    for spec, drawn_here in curves.items():
        path = setting.pictures / f"{report.name}-{file_name(spec)}-information.png"
        report.pictures.append(plot(path, drawn_here))
    report.notes.append(
        "pictures are the generator's own. Which of its first two rows the paper leaves which loss out of cannot be "
        "told from its table; the order above is that of its text. Isotropic frequencies: ours beside the paper's"
    )
    report.notes.append(
        f"angle: between the changes of a picture's features when one bit of its code is flipped and when another is; "
        f"for changes of random direction it is {by_chance:.3f}. A mixture's and a one-hot code's bits are those of "
        f"its number. Moved in own segment: share of the movement of E(G(z)) that lies in the segment whose bit was "
        f"flipped; 1 / n for a movement that knows no segments. Information: the bound of lemma 1 on I(z; G(z)) (of "
        f"the noise alone for one-hot codes, whose own entries have no density); figure 5 is its course, of single "
        f"batches"
    )
    return report


@torch.no_grad()
def flips(method: CoFi, see: Extractor, n: int) -> tuple[dict[str, float], float]:
    """What flipping each bit of n codes does, the noise kept; and the angle that random changes would have."""
    assert method.generator is not None
    prior, rng = method.prior, torch.Generator().manual_seed(0)
    z, code = prior.sample(n, rng)
    noise = z - prior.means(code)
    every = [z, *(prior.means(code ^ (1 << k)) + noise for k in range(prior.bits))]
    images = [torch.cat([method.generator(part) for part in moved.split(100)]) for moved in every]
    seen = [features(see, part) for part in images]
    coded = torch.cat([method.encode(part) for part in images[0].split(100)])
    noisy = prior.noise > 0
    error = (coded - z)[:, noisy].square().sum(1).mean().item()
    found = {"information": information_bound(prior.entropy, error, int(noisy.sum()))}
    changes = torch.stack([part - seen[0] for part in seen[1:]])
    if (changes.any(dim=2).sum(0) < 2).all():  # a generator that has collapsed: there is no angle
        return found, math.nan
    apart = direction_orthogonality(changes)
    found["angle"] = apart.cosine
    if isinstance(prior, BitCodes):
        read = [torch.cat([method.encode(part) for part in moved.split(100)]) for moved in images[1:]]
        own = [
            segment_movement(coded, after, prior.bits)[k].item()
            for k, after in enumerate(read)
            if not torch.equal(coded, after)
        ]
        if own:  # an encoder that has collapsed says the same of all
            found["own_segment"] = statistics.mean(own)
    return found, apart.chance


def course(run: Path) -> list[tuple[int, float]]:
    """(step, bound on I(z; G(z)) in nats) over a run, from its log: of single batches, by the weights as they are."""
    key = "critic.information"
    return [(line["step"], line[key]) for line in read_log(run) if key in line]


def plot(path: Path, curves: dict[str, list[tuple[int, float]]]) -> str:
    """Figure 5: information about the code in the pictures, over training; returns the file's name."""
    figure = blank(7, 4)
    axes = figure.add_subplot()
    for row, curve in curves.items():
        axes.plot(*zip(*curve, strict=True), label=row)
    axes.set(xlabel="step", ylabel="bound on I(z; G(z)), nats")
    axes.legend()
    return drawn(figure, path)
