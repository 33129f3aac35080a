"""A scene in the browser: the field from where the browser looks, the photographs where they were taken, points.

Cameras of viser look along z with y down; ours look along -z with y up: the same places, turned by half about x.
"""

from __future__ import annotations

import contextlib
import math
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pellucid.cameras import pixels
from pellucid.cli.commands import posed
from pellucid.data.images import to_uint8
from pellucid.geometry import densities, found_cameras, radiance, training_pictures

if TYPE_CHECKING:
    from pellucid.model import Model

COARSE = 4
"""How many times smaller the first picture is, which follows the mouse."""
GRID = 64
"""Points of a side among which those are shown that are dense enough."""
FLIP = np.diag([1.0, -1.0, -1.0])
"""Between our axes of a camera and viser's."""


def _viser() -> Any:
    try:
        import viser
    except ImportError as error:
        raise ValueError(f"the viewer needs viser: pip install 'pellucid[viewer]' ({error})") from None
    return viser


class Viewer:
    """A server of one model's scene, running from when it is made until `stop`.

    Args:
        size: height of the sharp picture, pixels.

    Raises ValueError where viser is missing, or the model has no scene.
    """

    def __init__(self, model: Model, *, host: str = "127.0.0.1", port: int = 8080, size: int = 256) -> None:
        if not 8 <= size <= 4096:
            raise ValueError(f"size is {size}; pictures are 8 to 4096 pixels high")
        self.model, self.method, self.size = model, radiance(model), size
        self._ended = threading.Event()
        self._busy = threading.Lock()  # one picture at a time, whoever asks
        viser = _viser()
        self.server = viser.ViserServer(host=host, port=port, label="pellucid", verbose=False)
        self.server.scene.set_up_direction("+y" if self.method.view.forward else "+z")
        self.address = f"http://{'localhost' if host == '0.0.0.0' else host}:{self.server.get_port()}"
        self._points()
        self.server.on_client_connect(self._greet)

    def frame(
        self, camera: Tensor, *, height: int, width: int, angle: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """The field from a camera (4, 4) whose angle of view is so high, radians: (H, W, 3) uint8, and the depth
        (H, W) float32 along the way it looks."""
        focal = torch.tensor(0.5 / math.tan(angle / 2))
        where = camera.to(self.method.device, torch.float32)[None]
        with self._busy:
            colour, distance, _ = self.method.pictures(
                where, size=height, width=width, focal=focal.to(where.device)
            )
        at = (pixels(height, width) - 0.5) / focal
        ahead = (1 + at.square().sum(1)).rsqrt().view(height, width)  # the share of a ray that leads ahead
        return to_uint8(colour.cpu().expand(-1, 3, -1, -1))[0], (distance[0].cpu() * ahead).numpy()

    def show_photographs(
        self, data: str | None, most: int, *, seed: int = 0, **controls: Any
    ) -> dict[str, Any]:
        """Put some training photographs where they were taken; -> their cameras as JSON takes them."""
        pictures = training_pictures(self.model, data)
        rows = np.unique(np.linspace(0, len(pictures) - 1, min(most, len(pictures))).astype(int))
        cameras, focal = found_cameras(self.model, pictures, rows=rows, seed=seed, **controls)
        for row, camera, f in zip(rows.tolist(), cameras, focal.tolist(), strict=True):
            thumbnail = to_uint8(pictures.batch(np.array([row])).x0.expand(-1, 3, -1, -1))[0]
            turn, place = _theirs(camera)
            frustum = self.server.scene.add_camera_frustum(
                f"/photographs/{row:04d}", fov=2 * math.atan(0.5 / f), aspect=1.0, scale=0.2, image=thumbnail,
                wxyz=turn, position=place,
            )  # fmt: skip
            frustum.on_click(lambda event, turn=turn, place=place: _go(event.client, turn, place))
        shown = self.server.gui.add_checkbox("photographs", True)
        parts, into = self.server.scene.add_frame("/photographs", show_axes=False), self.method.view.forward

        @shown.on_update
        def _(_event: Any) -> None:
            parts.visible = shown.value

        return {
            str(row): posed(camera, into=into) for row, camera in zip(rows.tolist(), cameras, strict=True)
        }

    def wait(self) -> None:
        """Until `stop`."""
        while not self._ended.wait(0.5):
            pass

    def stop(self) -> None:
        """End the server; once is enough."""
        if not self._ended.is_set():
            self._ended.set()
            self.server.stop()

    # ---- what is shown -----------------------------------------------------------------------

    def _points(self) -> None:
        """Those of a grid at which the field is dense, above what a slider says."""
        density = densities(self.method, GRID)
        ends = torch.linspace(-1, 1, GRID)
        cube = torch.stack(torch.meshgrid(ends, ends, ends, indexing="ij"), -1)[density > 0]
        with torch.no_grad():
            _, colour = self.method.field(*(v.to(self.method.device) for v in (cube, torch.zeros_like(cube))))
        world = self.method.space.outside(cube).numpy()
        tint = to_uint8(colour.cpu().expand(-1, 3)[:, :, None, None])[:, 0, 0]
        density = density[density > 0]
        most = max(float(density.max()) if len(density) else 0.0, 1e-3)
        slider = self.server.gui.add_slider(
            "density", min=0.0, max=most, step=most / 100, initial_value=most / 4, hint="of the points"
        )
        shown = self.server.gui.add_checkbox("points", False)

        def draw(_event: Any = None) -> None:
            dense = (density > slider.value).numpy()
            self.server.scene.add_point_cloud(
                "/points",
                world[dense].astype(np.float32),
                tint[dense],
                point_size=1.0 / GRID,
                visible=shown.value,
            )

        slider.on_update(draw)
        shown.on_update(draw)
        draw()

    def _greet(self, client: Any) -> None:
        """A browser is there: it looks from the path's first place, and is followed until it leaves."""
        turn, place = _theirs(self.method.around(1)[0].cpu())
        _go(client, turn, place)
        moved = threading.Event()
        moved.set()
        client.camera.on_update(lambda _event: moved.set())
        threading.Thread(target=self._follow, args=(client, moved), daemon=True).start()

    def _follow(self, client: Any, moved: threading.Event) -> None:
        """A small picture wherever the camera went, and a sharp one where it stays."""
        while not self._ended.is_set() and client.client_id in self.server.get_clients():
            if not moved.wait(0.5):
                continue
            moved.clear()
            for height in (max(8, self.size // COARSE), self.size):
                if moved.is_set() and height == self.size:
                    break
                with contextlib.suppress(AssertionError):  # nothing is known yet of where it looks
                    camera = client.camera
                    image, depth = self.frame(
                        _ours(camera.wxyz, camera.position), height=height,
                        width=max(1, round(height * camera.aspect)), angle=camera.fov,
                    )  # fmt: skip
                    client.scene.set_background_image(image, format="jpeg", depth=depth[..., None])


def _theirs(camera: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """A camera (4, 4) -> quaternion (w, x, y, z) and place, in viser's axes."""
    matrix = camera.double().numpy()
    turn = _viser().transforms.SO3.from_matrix(matrix[:3, :3] @ FLIP)
    return turn.wxyz, matrix[:3, 3]


def _ours(wxyz: Any, position: Any) -> Tensor:
    """`_theirs`, backwards."""
    camera = np.eye(4)
    camera[:3, :3] = _viser().transforms.SO3(np.asarray(wxyz)).as_matrix() @ FLIP
    camera[:3, 3] = np.asarray(position)
    return torch.from_numpy(camera).float()


def _go(client: Any, wxyz: np.ndarray, position: np.ndarray) -> None:
    with client.atomic():
        client.camera.wxyz = wxyz
        client.camera.position = position
