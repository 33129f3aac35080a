"""Table 3.1 of Yuan's thesis, the forward-facing rows: a scene that cameras side by side look into, poses unknown."""

from __future__ import annotations

from pellucid.reproduce import around
from pellucid.reproduce.harness import Report, Setting

# facing forward, ours has one camera for each picture anyhow
ROWS = {row: how for row, how in around.ROWS.items() if how[0] != "lift3d-single"} | {
    "Lift3D, one way round": ("lift3d", {"both_until": 0.0})
}
PAPER = {
    "NeRF, poses given": {"PSNR": "18.81 to 27.77 on eight scenes of LLFF"},
    around.OURS: {"PSNR": "14.34 to 22.42"},
    "NeRF-- (poses as parameters)": {"PSNR": "16.73 to 26.20"},
}


def run(setting: Setting) -> Report:
    return around.compared(
        setting,
        name="lift3d-forward",
        title="A scene that cameras look into, from photographs of unknown pose (Yuan's thesis, table 3.1)",
        rows=ROWS,
        paper=PAPER,
    )
