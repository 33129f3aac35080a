"""How far the default form is guided by its masks: chosen here, on seeds that no other table uses."""

from __future__ import annotations

import math
from dataclasses import replace

from pellucid.methods.factorized import REGION_GUIDANCE
from pellucid.reproduce.generate import (
    COUNTS,
    SAMPLED_BY,
    RealPictures,
    distance_columns,
    extractor,
    picture,
)
from pellucid.reproduce.harness import Report, Setting, file_name, read_masks, sampled, train_all, trained

GUIDANCE = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0)
"""1 is none; the default has to be among them."""
assert REGION_GUIDANCE in GUIDANCE
FIRST_SEED = 100
"""Other tables count their seeds from 0."""


def run(setting: Setting) -> Report:
    """Distance and agreement at every guidance, and which is of the least distance, relative to none, over all data.

    The distance alone is no rule to follow: it falls for as long as objects are pulled out of their grounds, and does
    not mind that textures go and colours saturate. So pictures are written at every guidance, to be looked at.
    """
    report = Report(
        name="factorized-guidance",
        title="How far to guide by regions (ours; the thesis has nothing of the kind)",
        columns=(),
    )
    see = extractor(report, small=setting.scale == "tiny")
    report.columns = distance_columns(see)
    # one model and the same noise at every guidance: half as many images tell as much
    fd, n = f"fd_{see.name}", COUNTS[setting.scale] // 2
    setting = replace(setting, seeds=tuple(FIRST_SEED + seed for seed in setting.seeds))
    train_all(setting, [("segmenter", {}), ("factorized", {})])
    for spec in setting.data:
        real = RealPictures.of(setting, spec, see)
        for seed in setting.seeds:
            judge, _ = trained(setting, "segmenter", spec, seed)
            method, _ = trained(setting, "factorized", spec, seed)
            of_val = read_masks(method, real.val, len(real.val))
            for guidance in GUIDANCE:
                images, found = sampled(method, n, seed, region_guidance=guidance)
                masks = found["masks"]
                report.add(spec, row(guidance), real.figures(images, masks, of_val, judge))
                if seed == setting.seeds[0]:
                    path = setting.pictures / f"factorized-guidance-{file_name(spec)}-{guidance:g}.png"
                    report.pictures.append(picture(path, images, masks, {"region_guidance": guidance}))

    def relative(guidance: float) -> float:
        ratios = [report.mean(d, row(guidance), fd) / report.mean(d, row(1.0), fd) for d in setting.data]
        return math.prod(ratios) ** (1 / len(ratios))

    best = min(GUIDANCE, key=relative)
    report.notes.append(
        f"least {fd} relative to no guidance, geometric mean over {', '.join(setting.data)}: {best:g} "
        f"({relative(best):.3f}); the default of a painter of its own is {REGION_GUIDANCE:g} "
        f"({relative(REGION_GUIDANCE):.3f})"
    )
    report.conditions |= setting.conditions(images=n, sampler=SAMPLED_BY)
    return report


def row(guidance: float) -> str:
    return f"{guidance:g}" + (" (none)" if guidance == 1 else "")
