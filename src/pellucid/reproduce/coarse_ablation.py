"""Table IV of CoFi-UCGen: what each part of the coarse stage is worth."""

from __future__ import annotations

from pellucid.reproduce.coarse import Row, columns, fill
from pellucid.reproduce.generate import extractor
from pellucid.reproduce.harness import Report, Setting

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
    report.columns = columns(see)
    fill(report, setting, ROWS, see)
    report.notes.append(
        "pictures are the generator's own. Which of its first two rows the paper leaves which loss out of cannot be "
        "told from its table; the order above is that of its text. Isotropic frequencies: ours beside the paper's"
    )
    return report
