"""Every command as a user types it: what it writes, what it keeps, and how it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import pellucid
from pellucid.cli.commands import free, pairs, slug
from pellucid.nets.vae import PretrainedConfig
from pellucid.recipes import DataSpec, recipe
from pellucid.train.log import read_log
from typed import refused, run


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.jpg"
    pixels = np.random.default_rng(0).integers(0, 255, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


COMMANDS = [
    "doctor",
    "data",
    "train",
    "sample",
    "read",
    "edit",
    "sweep",
    "evaluate",
    "reproduce",
    "bench",
    "export",
    "view",
    "demo",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches_by_an_example(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(command, "--help")
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert f"pellucid {command}" in out.replace("Example:", "")
    assert "Example:" in out
    assert "--json" in out


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit):
        run()
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)


def test_version(capsys):
    import pellucid

    run("--version")
    assert capsys.readouterr().out == f"pellucid {pellucid.__version__}\n"


# ---- train


def test_training_leaves_a_run_that_continues(tiny_run, capsys):
    names = {p.name for p in tiny_run.iterdir()}
    assert {"config.json", "checkpoints", "log.jsonl"} <= names
    before = sorted((p.name, p.stat().st_mtime_ns) for p in (tiny_run / "checkpoints").iterdir())
    run("train", "factorized", "--data", "scenes", "--scale", "tiny", "--size", 16, "--steps", 6,
        "--batch-size", 4, "--device", "cpu", "--out", tiny_run)  # fmt: skip
    assert "done: 6 steps" in capsys.readouterr().out
    assert sorted((p.name, p.stat().st_mtime_ns) for p in (tiny_run / "checkpoints").iterdir()) == before


def test_no_resume_refuses_a_folder_that_holds_a_run(tiny_run, capsys):
    said = refused(
        capsys, "train", "factorized", "--data", "scenes", "--scale", "tiny", "--size", 16, "--steps", 6,
        "--batch-size", 4, "--device", "cpu", "--out", tiny_run, "--no-resume",
    )  # fmt: skip
    assert str(tiny_run) in said


def test_training_on_a_folder_of_photographs(tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 255, (30, 20 + 5 * i, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    report = tmp_path / "report.json"
    run("train", "factorized", "--data", folder, "--scale", "tiny", "--steps", 2, "--batch-size", 2,
        "--device", "cpu", "--out", tmp_path / "run", "--json", report)  # fmt: skip
    assert json.loads(report.read_text())["state"] == "done"
    assert "pellucid sample" in capsys.readouterr().out


def test_an_autoencoder_of_others_takes_the_place_of_the_one_that_would_be_trained(tmp_path, capsys):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    theirs.save_pretrained(tmp_path / "kl")
    where = ["--scale", "tiny", "--data", "scenes", "--limit", 16, "--steps", 2, "--out", tmp_path / "run"]
    run("train", "cofi", *where, "--autoencoder", tmp_path / "kl")
    done = {line["stage"] for line in read_log(tmp_path / "run")}
    assert "fine" in done
    assert "autoencoder" not in done
    shutil.rmtree(tmp_path / "kl")  # the run has the weights
    made = pellucid.load(tmp_path / "run").method
    assert made.latents.autoencoder.has_weights
    run("sample", tmp_path / "run", "-n", 2, "--num-steps", 2, "--out", tmp_path / "out")
    capsys.readouterr()
    says = refused(capsys, "train", "factorized", *where, "--autoencoder", tmp_path / "kl2")
    assert "kl2" in says


@pytest.mark.parametrize("name", ["factorized", "cofi-gan", "cofi-coarse"])
def test_a_recipe_without_latents_takes_no_autoencoder(name):
    kl = PretrainedConfig(
        source="kl", architecture='{"in_channels": 3, "latent_channels": 4, "block_out_channels": [8]}'
    )
    with pytest.raises(ValueError, match=f"{name} has no stage on latents, and takes no autoencoder"):
        recipe(name, "tiny", DataSpec(spec="scenes", size=16, channels=3), pretrained=kl)
    deep = replace(kl, architecture=kl.architecture.replace("[8]", "[8, 8, 8]"))
    with pytest.raises(
        ValueError, match=r"4 times smaller, and theirs have 16 a side.*take pictures of 32 or more"
    ):
        recipe("cofi", "tiny", DataSpec(spec="scenes", size=16, channels=3), pretrained=deep)


def test_recipes_are_listed(capsys):
    run("train", "list")
    assert {"factorized", "factorized-shared", "ddpm"} <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "factorised"], "Did you mean 'factorized'"),
        (["train", "factorized", "--data", "/nowhere/at/all"], "/nowhere/at/all"),
        (["train", "factorized", "--device", "gpu9"], "gpu9"),
        (["train", "factorized", "--scale", "tiny", "--size", "17"], "17"),
        (["train", "factorized", "--scale", "tiny", "--steps", "0"], "steps"),
        (["sample", "/nowhere"], "no config.json"),
        (["read", "/nowhere", "photo.jpg"], "no config.json"),
        (["reproduce", "everything"], "there are cofi-ring"),
        (["data", "get", "imagenet"], "imagenet"),
        (["data", "get"], "name a set"),
        (["data", "show"], "name what to show"),
        (["doctor", "/nowhere/at/all"], "/nowhere/at/all"),
        (["bench", "--folder", "/nowhere"], "checkout"),
    ],
)
def test_mistakes_are_one_paragraph_and_exit_2(words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert says in refused(capsys, *words)


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match="Did you mean"):
        run("train", "factorised", "--debug")


def test_ctrl_c_pauses_and_the_same_command_continues(tmp_path):
    words = [sys.executable, "-m", "pellucid", "train", "factorized", "--scale", "tiny", "--size", "16",
             "--steps", "100000", "--batch-size", "2", "--device", "cpu", "--out", str(tmp_path / "run")]  # fmt: skip
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "log.jsonl"
    deadline = time.monotonic() + 90
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    assert "the same command continues it" in out
    assert any((tmp_path / "run" / "checkpoints").iterdir())


# ---- sample


def test_sampling_writes_pictures_masks_a_sheet_and_keeps_what_is_there(tiny_run, tmp_path):
    out, report = tmp_path / "out", tmp_path / "report.json"
    for _ in range(2):
        run(
            "sample", tiny_run, "-n", 2, "--out", out, "--set", "num_steps=3", "snapshots=3", "--json", report
        )
    names = {p.name for p in out.iterdir()}
    assert {"sample-0000.png", "sample-0000-regions.png", "sheet.png", "process.png"} <= names
    assert {"sample-0000-2.png", "sheet-2.png"} <= names
    assert np.array_equal(Image.open(out / "sample-0000.png"), Image.open(out / "sample-0000-2.png"))
    assert json.loads(report.read_text())["controls"]["num_steps"] == 3
    regions = np.asarray(Image.open(out / "sample-0001-regions.png"))
    assert regions.shape == (16, 16)
    assert regions.max() <= 2


def test_a_picture_says_how_it_was_made(tiny_run, tmp_path):
    run("sample", tiny_run, "-n", 1, "--out", tmp_path, "--seed", 9, "--set", "num_steps=2")
    about = json.loads(Image.open(tmp_path / "sample-0000.png").text["pellucid"])
    assert about["seed"] == 9
    assert about["controls"]["num_steps"] == 2


def test_controls_are_listed(tiny_run, capsys):
    run("sample", tiny_run, "--controls")
    out = capsys.readouterr().out
    assert "num_steps" in out
    assert "sampler" in out


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("steps=5", "num_steps"),
        ("num_steps=0", "num_steps"),
        ("num_steps=many", "many"),
        ("sampler=euler", "euler"),
        ("num_steps", "NAME=VALUE"),
        ("regions=first", "numbers from 0 to 2"),
    ],
)
def test_settings_that_are_wrong_say_what_is_right(tiny_run, tmp_path, setting, says, capsys):
    assert says in refused(capsys, "sample", tiny_run, "--out", tmp_path, "--set", setting)


@pytest.fixture
def sampled(monkeypatch):
    """How many pictures each call of a method's `sample` was asked for; the second one is refused memory."""
    from pellucid.methods.denoising import DenoisingMethod

    asked, sample = [], DenoisingMethod.sample

    def counted(self, n, rng, **controls):
        asked.append(n)
        if len(asked) == 2:
            raise ValueError("no memory left")
        return sample(self, n, rng, **controls)

    monkeypatch.setattr(DenoisingMethod, "sample", counted)
    return asked


def test_a_file_in_the_place_of_the_folder_is_told_before_anything_is_sampled(
    tiny_run, photo, capsys, sampled, monkeypatch
):
    for words in (("sample", tiny_run), ("edit", tiny_run, photo), ("read", tiny_run, photo)):
        for out in (photo, photo / "out"):
            assert f"{out} cannot be a folder" in refused(capsys, *words, "--out", out)
    monkeypatch.setattr("os.access", lambda *_: False)  # chmod does not stop root
    assert "no permission" in refused(capsys, "sample", tiny_run, "--out", photo.parent / "new" / "out")
    assert sampled == []


def test_what_is_sampled_is_written_as_it_comes(tiny_run, tmp_path, capsys, sampled):
    assert "no memory left" in refused(
        capsys, "sample", tiny_run, "-n", 70, "--out", tmp_path, "--set", "num_steps=1"
    )
    assert len(list(tmp_path.glob("sample-*-regions.png"))) == 64


def test_many_samples_are_those_of_python_and_one_sheet_shows_them(tiny_run, tmp_path, capsys, monkeypatch):
    import pellucid
    from pellucid.cli import commands
    from pellucid.data.images import to_uint8

    words = ("sample", tiny_run, "-n", 70, "--seed", 3, "--set", "num_steps=1", "--out")
    run(*words, tmp_path)
    assert f"70 images in {tmp_path}, all of them on" in capsys.readouterr().out
    whole = to_uint8(pellucid.load(tiny_run, device="cpu").sample(70, seed=3, num_steps=1).images)
    for i in (0, 63, 64, 69):
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"sample-{i:04d}.png")), whole[i])
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))[
        ::4, ::4
    ]  # 8 a row, 16 pixels, shown 4 times as large
    assert sheet.shape == (18 * 17 + 1, 8 * 17 + 1, 3)  # 9 rows and their regions, of which the last hold 6
    assert np.array_equal(sheet[16 * 17 + 1 :][:16, 1:17], whole[64])
    monkeypatch.setattr(commands, "ON_SHEET", 64)
    run(*words, tmp_path / "some")
    assert "the first 64 on" in capsys.readouterr().out


def test_a_terminal_sees_how_many_pictures_are_done(capsys, monkeypatch):
    from types import SimpleNamespace

    from pellucid.cli import console

    parts = [SimpleNamespace(images=[0] * n) for n in (2, 1)]
    assert list(console.counted(parts, 3)) == parts
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr(console.os, "get_terminal_size", lambda _: os.terminal_size((80, 24)))
    assert list(console.counted(parts, 3)) == parts
    shown = capsys.readouterr().err
    assert all(f"{n}/3 pictures" in shown for n in (0, 2, 3))
    assert shown.endswith("\n")


# ---- read, edit


def test_reading_writes_masks_at_the_photographs_own_size(tiny_run, photo, tmp_path):
    out = tmp_path / "out"
    run("read", tiny_run, photo, "--out", out)
    assert Image.open(out / "photo-overlay.png").size == (56, 40)
    regions = np.asarray(Image.open(out / "photo-regions.png"))
    assert regions.shape == (40, 56)
    found = json.loads((out / "photo.json").read_text())["readouts"]
    assert sum(found["region_pixels"]) == 40 * 56
    assert sum(found["shares"]) == pytest.approx(1, abs=1e-4)


def test_reading_a_broken_picture_says_which(tiny_run, tmp_path, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    assert "broken.png" in refused(capsys, "read", tiny_run, broken, "--out", tmp_path)
    assert "missing.png" in refused(capsys, "read", tiny_run, tmp_path / "missing.png", "--out", tmp_path)


def test_a_picture_that_cannot_be_read_does_not_keep_the_others_from_it(tiny_run, photo, tmp_path, capsys):
    cut, last = tmp_path / "cut.jpg", tmp_path / "last.png"
    cut.write_bytes(photo.read_bytes()[:-900])
    Image.new("RGB", (20, 20), "red").save(last)
    out, report = tmp_path / "out", tmp_path / "all.json"
    words = ("read", tiny_run, photo, cut, tmp_path / "missing.png", last, "--out", out, "--json", report)
    said = refused(capsys, *words)
    assert f"2 read; 2 could not be: {cut}: damaged" in said
    assert "missing.png: no such file" in said
    assert set(json.loads(report.read_text())) == {str(photo), str(last)}
    assert (out / "last-regions.png").exists()


def test_a_folder_is_read_by_the_rules_of_data(tiny_run, photo, tmp_path, capsys):
    folder, report = tmp_path / "some", tmp_path / "all.json"
    places = [folder / "a.png", folder / "more" / "a.png"]
    for place in (*places, folder / ".hidden.png"):
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.open(photo).save(place)
    (folder / "notes.txt").touch()
    run("read", tiny_run, folder, "--out", tmp_path / "out", "--json", report)
    assert set(json.loads(report.read_text())) == {str(p) for p in places}
    assert (tmp_path / "out" / "a-2-regions.png").exists()
    (tmp_path / "empty").mkdir()
    assert "holds no pictures" in refused(capsys, "read", tiny_run, tmp_path / "empty")


def test_editing_repaints_a_region(tiny_run, photo, tmp_path, capsys):
    run("edit", tiny_run, photo, "-n", 2, "--set", "regions=0,1", "num_steps=2", "--out", tmp_path / "out")
    assert (tmp_path / "out" / "sample-0001.png").exists()
    assert (tmp_path / "out" / "photo-edited-0001.png").exists()
    said = capsys.readouterr().out
    assert f"2 edits on the photograph's centre square at its own size in {tmp_path / 'out'}" in said
    assert "photo-edited-0000.png to photo-edited-0001.png" in said


def test_editing_needs_a_model_that_edits(tmp_path, photo, capsys, trained_run):
    folder = trained_run(tmp_path / "seg", "segmenter", steps=1)
    capsys.readouterr()
    assert "edits no pictures" in refused(capsys, "edit", folder, photo)


@pytest.mark.parametrize(
    ("recipe", "can", "cannot"), [("ddpm", "sample", "read"), ("segmenter", "read", "sample")]
)
def test_only_what_a_model_can_do_is_offered(recipe, can, cannot, tmp_path, photo, capsys, trained_run):
    folder = trained_run(tmp_path / "run", recipe, steps=1)
    said = capsys.readouterr().out
    assert f"pellucid {can} {folder}" in said
    assert f"pellucid {cannot} " not in said
    run("export", folder, "--out", tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"model.{can}(" in card
    assert f"model.{cannot}(" not in card
    out = tmp_path / "out"
    told = refused(capsys, cannot, folder, *([photo] if cannot == "read" else []), "--out", out)
    assert recipe in told
    assert not out.exists()


# ---- evaluate, export, data, doctor


def test_evaluating_prints_both_protocols_beside_baselines(tiny_run, tmp_path, capsys):
    report = tmp_path / "scores.json"
    run("evaluate", tiny_run, "--data", "scenes", "--limit", 8, "--json", report)
    out = capsys.readouterr().out
    assert "IoU, one assignment" in out
    assert "IoU, oracle" in out
    scores = json.loads(report.read_text())["scores"]
    assert {"factorized", "Otsu", "centre box"} <= set(scores)
    assert all(f["oracle_iou"] >= f["dataset_iou"] - 1e-9 for f in scores.values())


def test_evaluating_on_ones_own_labelled_folder(tiny_run, tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "own" / kind).mkdir(parents=True)
    for i in range(5):
        mask = np.zeros((24, 24), np.uint8)
        mask[4:14, 6:20] = 1
        picture = np.where(mask[..., None], rng.integers(150, 250, 3), rng.integers(0, 90, 3)).astype(
            np.uint8
        )
        Image.fromarray(picture).save(tmp_path / "own" / "images" / f"{i}.png")
        Image.fromarray(mask).save(tmp_path / "own" / "masks" / f"{i}.png")
    report = tmp_path / "scores.json"
    run("evaluate", tiny_run, "--data", tmp_path / "own", "--json", report)
    found = json.loads(report.read_text())
    assert found["pictures_scored"] + found["pictures_to_choose_on"] == 5
    assert found["scores"]["k-means, colour + place"]["oracle_iou"] > 0.9


def test_evaluating_pictures_without_masks_says_what_is_needed(tiny_run, tmp_path, photo, capsys):
    folder = tmp_path / "plain"
    folder.mkdir()
    shutil.copy(photo, folder)
    assert "images/ and masks/" in refused(capsys, "evaluate", tiny_run, "--data", folder)


def test_an_export_loads_and_is_never_written_over(tiny_run, tmp_path, capsys):
    import pellucid

    folder = tmp_path / "model"
    run("export", tiny_run, "--out", folder)
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    one, other = (pellucid.load(p, device="cpu").sample(2, num_steps=2).images for p in (tiny_run, folder))
    assert (one == other).all()
    assert "nothing is overwritten" in refused(capsys, "export", tiny_run, "--out", folder)


def test_data_is_listed_and_shown(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path / "cache"))
    run("data", "list", "--json", tmp_path / "listed.json")
    assert "licence" in capsys.readouterr().out
    listed = json.loads((tmp_path / "listed.json").read_text())
    assert listed["scenes"]["state"] == "ready"
    for plain in ("emoji-plain", "clipart-plain"):  # as fetched as the set itself, and under its licence
        same = listed[plain.removesuffix("-plain")]
        assert {k: listed[plain][k] for k in ("state", "licence")} == {
            k: same[k] for k in ("state", "licence")
        }
    run("data", "show", "scenes", "--size", 16, "--out", tmp_path / "shown.png")
    assert Image.open(tmp_path / "shown.png").width > 16


def test_the_doctor_reports_and_writes_json(tmp_path, photo, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    shutil.copy(photo, folder)
    (folder / "empty.jpg").touch()
    run("doctor", folder, "--size", 32, "--json", tmp_path / "found.json")
    assert "empty.jpg" in capsys.readouterr().out
    assert json.loads((tmp_path / "found.json").read_text())


# ---- the pieces


def test_nothing_is_overwritten(tmp_path):
    first = free(tmp_path / "a.png")
    first.touch()
    second = free(tmp_path / "a.png")
    second.touch()
    assert [first.name, second.name, free(tmp_path / "a.png").name] == ["a.png", "a-2.png", "a-3.png"]


def test_settings_are_names_and_texts_that_the_model_reads():
    given = pairs(("num-steps=5", "eta=0.5", "regions=0,2", "label=cat", "blend_with=b.jpg"))
    assert given == {"num_steps": "5", "eta": "0.5", "regions": "0,2", "label": "cat", "blend_with": "b.jpg"}


@pytest.mark.parametrize(
    ("spec", "name"), [("./my photos", "my-photos"), ("/a/b/", "b"), ("hf:owner/name", "name"), ("/", "data")]
)
def test_a_run_folder_has_a_plain_name(spec, name):
    assert slug(spec) == name


def test_fields_of_a_recipe_can_be_set(capsys, tmp_path):
    out = tmp_path / "run"
    common = ("train", "factorized", "--data", "scenes", "--scale", "tiny", "--limit", "16", "--steps")
    run(*common, 2, "--out", out, "--set", "regions=5", "unet.base=12", "lr=3e-4", "recompute=true")
    capsys.readouterr()
    made = json.loads((out / "config.json").read_text())["recipe"]
    assert (made["config"]["regions"], made["config"]["unet"]["base"], made["train"]["lr"]) == (5, 12, 3e-4)
    for wrong, said in (("region=5", "regions"), ("regions=many", "regions"), ("unet.width=3", "unet.width")):
        assert said in refused(capsys, *common, 2, "--out", tmp_path / "no", "--set", wrong)
    assert "trained for 2 steps" in refused(capsys, *common, 1, "--out", out, "--set", "regions=5")


def test_a_folder_with_the_name_of_a_built_in_set_is_asked_about(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert "./photos" in refused(capsys, "train", "factorized", "--data", "photos", "--scale", "tiny")
