"""`pellucid invert`: the noise of a picture, and what comes back of it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import pellucid
from pellucid.process.samplers import ddim
from typed import about, refused, run


@pytest.fixture
def photo(tmp_path):
    coarse = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    path = tmp_path / "a.jpg"
    Image.fromarray(coarse).resize((30, 40), Image.Resampling.BICUBIC).save(path)
    return path


def test_the_noise_in_the_file_decodes_to_what_came_back(gae_run, photo, tmp_path):
    run("invert", gae_run, photo, "--steps", 3, 6, "--out", tmp_path / "o", "--json", tmp_path / "all.json")
    names = sorted(p.name for p in (tmp_path / "o").iterdir())
    assert names == ["a-back.png", "a-noise.png", "a-noise.safetensors", "a.json"]
    kept = load_file(tmp_path / "o" / "a-noise.safetensors")
    model = pellucid.load(gae_run)
    x, method = model.opened({"image": photo})["image"], model.method
    denoise = method.denoiser.denoiser(method.told(kept["code"][None]))
    back = ddim(denoise, kept["x_T"][None], method.denoiser.levels(6), method.denoiser.schedule).clamp(-1, 1)
    told = json.loads((tmp_path / "o" / "a.json").read_text())
    assert [e["steps"] for e in told["errors"]] == [3, 6]
    assert told["errors"][1]["mse"] == pytest.approx((back - x).square().mean().item() / 4, rel=1e-3)
    assert told["errors"][1]["psnr"] == pytest.approx(-10 * np.log10(told["errors"][1]["mse"]), abs=1e-3)
    assert told["noise"]["std"] == pytest.approx(kept["x_T"].std().item(), rel=1e-5)
    assert json.loads((tmp_path / "all.json").read_text())[str(photo)]["errors"] == told["errors"]
    assert about(tmp_path / "o" / "a-noise.png")["picture"] == "a.jpg"


def test_nothing_that_is_there_is_written_over(gae_run, photo, tmp_path):
    for _ in range(2):
        run("invert", gae_run, photo, "--steps", 2, "--out", tmp_path / "o")
    assert {"a.json", "a-2.json", "a-2-noise.safetensors"} <= {p.name for p in (tmp_path / "o").iterdir()}


def test_more_steps_come_back_closer(gae_run, photo):
    """For a network of any weights: both ways follow one equation, the better the smaller the steps."""
    model = pellucid.load(gae_run)
    torch.manual_seed(0)
    for p in model.method.parameters():
        p.data += 0.02 * torch.randn_like(p)
    x = model.opened({"image": photo})["image"]
    few, many = (
        (model.edit(x, num_steps=n, inversion_steps=n).images - x).square().mean().item() for n in (5, 200)
    )
    assert many < few / 4


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--steps", 0), "steps are 0; from 1 to 1000"),
        (("--steps", 2000), "steps are 2000; from 1 to 1000"),
    ],
)
def test_steps_that_cannot_be_taken_are_refused(gae_run, photo, tmp_path, capsys, words, told):
    said = refused(capsys, "invert", gae_run, photo, "--out", tmp_path / "o", *words)
    assert told in said
    assert not (tmp_path / "o").exists()


def test_a_method_without_noise_of_a_picture_says_who_has_it(tiny_run, photo, capsys):
    assert "gae, diffae and pdae do" in refused(capsys, "invert", tiny_run, photo)


def test_what_is_no_picture_is_named(gae_run, photo, tmp_path, capsys):
    bad = tmp_path / "b.png"
    bad.write_text("no picture")
    said = refused(capsys, "invert", gae_run, bad, photo, "--steps", 2, "--out", tmp_path / "o")
    assert "1 inverted; 1 could not be" in said
    assert "b.png" in said
