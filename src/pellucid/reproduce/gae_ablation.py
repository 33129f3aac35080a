"""What each part of DiffuseGAE is for: the swap, the reassembly, the fine-tuning and the skips, each left out."""

from __future__ import annotations

import torch

from pellucid.metrics.attributes import chance
from pellucid.metrics.image import mse
from pellucid.recipes.gae import parts
from pellucid.reproduce.attributes import (
    HELD_OUT,
    AttributeJudge,
    Pictures,
    codes_of,
    held_and_seen,
    opened,
    parts_of,
    sources,
    without_held_out,
)
from pellucid.reproduce.disentangle import READ, of_parts, spread
from pellucid.reproduce.harness import Column, Report, Setting, data_for, sampled, train_all, trained
from pellucid.reproduce.zeroshot import COUNTS, recombined

ROWS = {
    "DiffuseGAE": "gae",
    "  no swap": "gae-no-swap",
    "  no reassembly": "gae-no-reassembly",
    "  no joint fine-tuning": "gae-no-joint",
    "  MLP without skip": "gae-no-skip",
}
COLUMNS = (
    Column("own", "own, least"),
    Column("leak", "others over 1/|A|, most", "lower"),
    Column("mse", "MSE, random x_T", "lower"),
    Column("mean", "recombined, mean"),
    Column("all", "recombined, all at once"),
)


def run(setting: Setting) -> Report:
    setting = without_held_out(setting)
    report = Report(name="gae-ablation", title="The parts of DiffuseGAE, each left out", columns=COLUMNS)
    rows, n = setting.chosen(ROWS), COUNTS[setting.scale]
    tables = {spec: opened(setting, spec) for spec in setting.data}
    train_all(setting, [(recipe, {}) for recipe in rows.values()])
    for spec in setting.data:
        pictures = Pictures.of(data_for(setting, spec, "test"), READ[setting.scale])
        attributes = tables[spec]
        floor = chance(pictures.values, [len(a.values) for a in attributes]).uniform
        held, seen = held_and_seen(setting, spec, 4 * n)
        held = Pictures(x=held.x[:n], values=held.values[:n])
        for seed in setting.seeds:
            judge = AttributeJudge.taught(setting, spec, seed=seed)
            chosen = sources(seen, held.values, torch.Generator().manual_seed(seed))
            for row, recipe in rows.items():
                method, _ = trained(setting, recipe, spec, seed)
                cut = parts_of(method, codes_of(method, pictures.x), parts(setting.scale, len(attributes)))
                figures = spread(of_parts(cut, pictures.values, attributes), floor)
                x = pictures.x[:n]
                back = sampled(method, len(x), seed, batch=len(x), image=x, noise="random")[0]
                figures["mse"] = mse(x, back).mean().item() / 4
                judged = judge.accuracy(recombined(method, seen, chosen, seed), held.values)
                report.add(spec, row, figures | {k: judged[k] for k in ("mean", "all")})
    report.notes.append(
        "own: the least accuracy with which a part's own attribute is read from it; others: the most, beyond 1/|A|, "
        "that is read of another's. Recombined: combinations held out of training, by a classifier of real pictures"
    )
    report.conditions |= setting.conditions(size=setting.size, pictures=n, held_out=HELD_OUT)
    return report
