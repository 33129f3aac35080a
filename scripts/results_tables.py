"""Write the tables of the docs from the JSON files in docs/results.

    python scripts/results_tables.py            # writes them
    python scripts/results_tables.py --check    # exits 1 and names the tables that are not those of the files

A table stands between two comments, `<!-- table FILE -->` and `<!-- end -->`; its figures are those of
docs/results/FILE.json, which is what `pellucid reproduce` wrote: NAME-DATA.json of one data set, NAME.json of several.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from pellucid.reproduce.harness import cell

RESULTS = Path(__file__).parents[1] / "docs" / "results"
PAGES = tuple(RESULTS.parent / name for name in ("results.md", "factorized.md"))
DISTANCES = {
    "fd_efflite0": "FD",
    "kid_efflite0": "KID",
    "recall_efflite0": "recall",
    "mask_accuracy": "mask accuracy",
}
SCORES = {
    "dataset_iou": "IoU, one assignment",
    "oracle_iou": "IoU, oracle",
    "smallest_region": "smallest region",
}
CODES = {
    "purity": "purity",
    "chance_purity": "by chance",
    "nmi": "NMI",
    "fd_efflite0": "FD",
    "kid_efflite0": "KID",
}
VIEWS = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "perceptual_efflite0": "perceptual",
    "depth": "inverse depth, correlation",
    "rotation": "rotation, degrees",
    "near": "within 15",
    "translation": "translation",
    "rotation_train": "rotation, training views",
    "used": "candidates used",
    "accuracy": "classifier",
}
ATTRIBUTES = ("identity", "background", "pose", "sign", "tone", "vendor")
COLUMNS = {
    "gae-disentangle": {f"reads_{name}": name for name in ATTRIBUTES}
    | {
        "own": "own, least",
        "leak": "others over 1/A, most",
        "mig": "MIG",
        "dci_disentanglement": "DCI D",
        "dci_completeness": "DCI C",
        "dci_informativeness": "DCI I",
        "sap": "SAP",
    },
    "gae-zeroshot": {f"is_{name}": name for name in ATTRIBUTES} | {"mean": "mean", "all": "all at once"},
    "gae-reconstruct": {
        "mse": "MSE",
        "ssim": "SSIM",
        "perceptual_efflite0": "perceptual",
        "depth": "inverse depth, correlation",
        "fd_efflite0": "FD",
        "kid_efflite0": "KID",
        "read": "attributes read",
    }
    | {f"mse_{steps}": f"MSE, {steps} steps" for steps in (10, 25, 50, 100, 250)},
    "gae-interpolate": {f"ppl_{steps}": f"PPL, T = {steps}" for steps in (10, 20, 50, 100)},
    "gae-ablation": {
        "own": "own, least",
        "leak": "others over 1/A, most",
        "mse": "MSE, random x_T",
        "mean": "recombined, mean",
        "all": "recombined, all at once",
    },
    "lift3d-360": VIEWS,
    "lift3d-forward": VIEWS,
    "lift3d-ablation": VIEWS,
    "cofi-coarse": CODES,
    "cofi-ablation-coarse": CODES
    | {
        "angle": "angle of bits, abs. cosine",
        "own_segment": "in own segment",
        "information": "information, nats",
    },
    "cofi-fine": {
        "aligned_efflite0": "aligned",
        "recall_efflite0": "recall",
        "precision_efflite0": "precision",
        "fd_efflite0": "FD",
        "kid_efflite0": "KID",
        "coarse_share": "long waves",
        "fine_share": "short waves",
        "movement": "movement",
        "monotonicity": "monotone",
    },
    "factorized-segment": {
        "dataset_iou": "IoU, one assignment",
        "dataset_dice": "Dice",
        "dataset_accuracy": "accuracy",
        "oracle_iou": "IoU, oracle",
        "smallest_region": "smallest region",
    },
    "factorized-generate": DISTANCES,
    "factorized-guidance": DISTANCES,
    "cofi-ring": {
        "coverage_few": "coverage, 1,000 points",
        "coverage_many": "10,000 points",
        "purity": "purity",
        "nmi": "NMI",
        "bit_accuracy": "bit accuracy",
        "read_back": "read back",
        "radial_spread": "distance from the circle, rms",
    },
    "factorized-ablation": SCORES | {"fd_efflite0": "FD"},
}
BLOCK = re.compile(r"<!-- table (\S+) -->\s*(.*?)\s*<!-- end -->", re.DOTALL)


def table(report: dict[str, Any]) -> str:
    """A report's rows in Markdown: mean ± standard deviation over seeds; the default's name is bold.

    Columns of rows that were not made, and of attributes that a data set has not, are left out.
    """
    known = COLUMNS[report["name"]]
    lines: list[str] = []
    for data in dict.fromkeys(row["data"] for row in report["rows"]):
        there = {key for row in report["rows"] if row["data"] == data for key in row["figures"]}
        columns = {k: v for k, v in known.items() if k in there}
        lines += [""] * bool(lines) + [
            f"| on {data} | " + " | ".join(columns.values()) + " |",
            "|---|" + "---|" * len(columns),
        ]
        for row in report["rows"]:
            if row["data"] == data:
                name = row["row"].strip()
                name = f"**{name}**" if "default" in name else name
                lines.append(
                    f"| {name} | " + " | ".join(cell(row["figures"].get(k, [])) for k in columns) + " |"
                )
    return "\n".join(lines)


def filled(page: str) -> tuple[str, list[str]]:
    """-> the page with every table as its file has it, and the names of those that were otherwise."""
    other = []

    def block(found: re.Match[str]) -> str:
        name = found[1]
        rows = table(json.loads((RESULTS / f"{name}.json").read_text()))
        if rows != found[2]:
            other.append(name)
        return f"<!-- table {name} -->\n\n{rows}\n\n<!-- end -->"

    return BLOCK.sub(block, page), other


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing; say which tables differ")
    check = parser.parse_args().check
    differing = False
    for path in PAGES:
        page, other = filled(path.read_text())
        if other:
            differing = True
            print(f"{path}: {', '.join(other)} {'differ from' if check else 'written anew from'} {RESULTS}")
        if not check:
            path.write_text(page)
    return int(check and differing)


if __name__ == "__main__":
    sys.exit(main())
