"""One tiny trained run, shared by the tests that need a model and do not care how good it is; and one of switches."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pellucid.cli import main
from pellucid.methods.base import Method, resolve
from pellucid.methods.registry import METHODS
from pellucid.recipes import DataSpec, Recipe, recipe_to_json
from pellucid.train.trainer import TrainConfig
from pellucid.types import Control, Readout, Sample


def train_tiny(out: Path, recipe: str = "factorized", **options: object) -> Path:
    """Train through the command line, in a second or so; -> the run folder."""
    given = {
        "data": "scenes",
        "scale": "tiny",
        "size": 16,
        "steps": 6,
        "batch-size": 4,
        "device": "cpu",
    } | options
    main(["train", recipe, "--out", str(out), *(w for k, v in given.items() for w in (f"--{k}", str(v)))])
    return out


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="session")
def gae_run(tmp_path_factory) -> Path:
    """A model of pictures and three parts, which takes controls of pictures of every kind."""
    return train_tiny(tmp_path_factory.mktemp("runs") / "gae", "gae", data="toys")


@pytest.fixture(scope="session")
def scene_run(tmp_path_factory) -> Path:
    """A model of a scene, which reads cameras of photographs and takes cameras to look from."""
    return train_tiny(tmp_path_factory.mktemp("runs") / "lift3d", "lift3d", data="views-boxes")


@pytest.fixture(scope="session")
def trained_run():
    """The function that trains one, for tests that need their own."""
    return train_tiny


@dataclass(frozen=True, kw_only=True)
class SwitchesConfig:
    size: int = 8


class Switches(Method):
    """Five bits, three sliders, a guidance and the noise, each in a part of the picture of its own: nothing is learned.

    Row 0 shows bit k in column k, dark or bright; row 1 the sliders, a tenth of each; row 2 the guidance, a tenth;
    the last row is noise. Reading says of a bit: the brightness of its pixel, as a probability.
    """

    name = "switches"
    reads_any_size = False

    def stages(self):
        return ()

    def __init__(self, config: SwitchesConfig) -> None:
        super().__init__()
        self.image_shape = (3, config.size, config.size)
        self.place = torch.nn.Parameter(torch.zeros(1))
        self.controls = {
            "bits": Control(kind="bits", high=5, help="which switches are on"),
            "fine": Control(
                kind="sliders", choices=("down0.0", "middle.1", "up1.0"), low=-3, high=1.5, help="details"
            ),
            "flip": Control(kind="indices", low=1, high=5, needs="image", help="switches of it to turn over"),
            "image": Control(kind="image", help="the picture to start from"),
            "guidance": Control(kind="float", default=0.0, low=-1, high=4, help="strength"),
            "mode": Control(
                kind="choice", choices=("plain", "odd"), default="plain", reads=True, help="how to read"
            ),
        }
        self.readouts = {
            "bits": Readout(kind="bits", help="switches", shape=(5,)),
            "details": Readout(
                kind="vector", help="sliders", shape=(3,), names=("down0.0", "middle.1", "up1.0")
            ),
        }

    def sample(self, n, rng, **controls):
        use = resolve(self.controls, controls)
        x = torch.zeros(n, *self.image_shape)
        x[:, :, -1] = torch.rand(n, 3, x.shape[-1], generator=rng) * 2 - 1
        bits = torch.tensor(use["bits"] or (0,) * 5)
        if use["image"] is not None:
            bits = (use["image"][0, 0, 0, :5] > 0).long()
            for k in use["flip"] or ():
                bits[k - 1] = 1 - bits[k - 1]
        x[:, :, 0, :5] = bits * 2.0 - 1
        for i, name in enumerate(self.controls["fine"].choices):
            x[:, :, 1, i] = (use["fine"] or {}).get(name, 0.0) / 10
        x[:, :, 2] = use["guidance"] / 10
        said = {k: v for k, v in use.items() if not isinstance(v, torch.Tensor)}
        return Sample(images=x, readouts=self.read(x, rng), controls=said)

    def read(self, x, rng, **controls):
        use = resolve(self.controls, controls, reading=True)
        assert x.shape[1:] == self.image_shape
        bits = (x[:, 0, 0, :5] + 1) / 2
        return {"bits": 1 - bits if use["mode"] else bits, "details": x[:, 0, 1, :3] * 10}


@pytest.fixture
def switches_run(tmp_path_factory, monkeypatch) -> Path:
    """An exported folder of a model of bits and sliders whose pictures are known in closed form."""
    monkeypatch.setitem(METHODS, "switches", (SwitchesConfig, Switches))
    folder = tmp_path_factory.mktemp("runs") / "switches"
    folder.mkdir()
    made = Recipe(
        method="switches",
        scale="tiny",
        config=SwitchesConfig(),
        data=DataSpec(spec="scenes", size=8),
        train=TrainConfig(steps=1, batch_size=1),
    )
    (folder / "config.json").write_text(json.dumps({"recipe": recipe_to_json(made)}))
    save_file(Switches(made.config).state_dict(), folder / "model.safetensors")
    return folder
