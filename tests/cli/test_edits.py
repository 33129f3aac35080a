"""`pellucid edit` into one file and of a whole folder: what it writes, what it leaves, how it goes on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pellucid
from pellucid.cli.commands import pairs
from pellucid.data.images import to_uint8
from pellucid.methods.gae.method import GAE
from pellucid.methods.registry import METHODS
from typed import about, refused, run

FEW = ("--num-steps", 3, "--inversion-steps", 3)


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def pngs(folder) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*.png"))


def blocks(seed: int, size=(24, 20), mode: str = "RGB") -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture
def photos(tmp_path):
    """Seven pictures of several kinds and sizes, some in a sub-folder."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for i, (name, mode) in enumerate(
        (("a.jpg", "RGB"), ("b.png", "RGBA"), ("c.png", "L"), ("d.webp", "RGB"), ("e.png", "RGB"))
    ):
        blocks(i, (20 + 9 * i, 30), mode).save(folder / name)
    for i, name in enumerate(("a.png", "f.jpg")):
        blocks(10 + i, (16, 16)).save(folder / "more" / name)
    return folder


NAMES = ["a.png", "b.png", "c.png", "d.png", "e.png", "more/a.png", "more/f.png"]


@pytest.fixture
def calls(monkeypatch):
    """How many pictures each call of the method's `sample` was asked for."""
    asked, sample = [], GAE.sample
    monkeypatch.setattr(
        GAE, "sample", lambda self, n, rng, **c: (asked.append(n), sample(self, n, rng, **c))[1]
    )
    return asked


# ---- one picture into one file


def test_one_picture_goes_into_the_file_that_is_named(gae_run, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--replace", "background=photos/b.png", *FEW, "--seed", 5)
    run("edit", gae_run, "photos/a.jpg", *words, "--out", "new/o.png", "--json", "made.json")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["o.png"]
    made = about("new/o.png")
    assert (made["run"], made["seed"], made["picture"]) == (str(gae_run), 5, "a.jpg")
    assert made["set"] == ["replace=background=photos/b.png", "num-steps=3", "inversion-steps=3"]
    assert made["controls"]["num_steps"] == 3
    assert sum(made["readouts"]["background"].values()) == pytest.approx(1, abs=1e-4)
    report = json.loads(Path("made.json").read_text())
    assert report["files"] == ["new/o.png"]
    assert report["readouts"] == [made["readouts"]]
    run("edit", gae_run, "photos/a.jpg", *words, "--out", "plain")  # the same as in a folder
    assert np.array_equal(pixels("new/o.png"), pixels("plain/sample-0000.png"))


def test_a_file_that_is_there_is_not_written_over(gae_run, photos, tmp_path, capsys, calls):
    out = tmp_path / "o.png"
    out.write_bytes(b"mine")
    said = refused(capsys, "edit", gae_run, photos / "a.jpg", "--out", out)
    assert f"{out} is there already and is not written over: give another --out" in said
    assert out.read_bytes() == b"mine"
    assert calls == []


def test_one_file_is_one_version_also_where_edits_vary(switches_run, tmp_path):
    blocks(0).save(tmp_path / "a.png")
    run("edit", switches_run, tmp_path / "a.png", "--out", tmp_path / "o.PNG")
    assert pixels(tmp_path / "o.PNG").shape == (8, 8, 3)


def test_a_folder_may_be_called_like_a_picture(gae_run, photos, tmp_path):
    (tmp_path / "o.png").mkdir()
    run("edit", gae_run, photos / "a.jpg", *FEW, "--out", tmp_path / "o.png")
    assert (tmp_path / "o.png" / "sample-0000.png").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["photos/a.jpg", "--out", "o.png", "-n", "2"],
            "n is 2, and --out o.png is one picture: leave n out",
        ),
        (["photos/a.jpg", "--out", "o.jpg"], "written as PNG"),
        (["photos/a.jpg", "--out", "photos/b.png/o.png"], "cannot be a folder, as photos/b.png is a file"),
        (["photos", "--out", "o.png"], "photos is a folder, and --out o.png names one picture"),
        (["photos", "-n", "2"], "n is 2, and each picture of photos is edited once"),
        (["photos", "--batch", "0"], "batch is 0"),
        (["photos", "--out", "photos"], "--out photos lies in photos"),
        (["photos", "--out", "photos/out"], "give a folder outside"),
        (["photos", "--set", "steps=3"], "num_steps"),
        (["photos", "--replace", "sky=photos/a.jpg"], "replace has no 'sky'"),
        (["empty"], "holds no pictures"),
    ],
)
def test_what_cannot_be_written_is_told_before_any_work(
    gae_run, photos, tmp_path, monkeypatch, capsys, calls, words, says
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert says in refused(capsys, "edit", gae_run, *words)
    assert calls == []
    assert sorted(tmp_path.rglob("*")) == before


# ---- every picture of a folder


def test_a_folder_is_edited_with_every_picture_as_it_would_be_alone(gae_run, photos, tmp_path, calls, capsys):
    out, report = tmp_path / "out", tmp_path / "made.json"
    words = ("--replace", f"background={photos / 'e.png'}", *FEW, "--seed", 2)
    run("edit", gae_run, photos, *words, "--batch", 3, "--out", out, "--json", report)
    assert calls == [3, 3, 1]
    assert "7 pictures of 7 edited into" in capsys.readouterr().out
    assert pngs(out) == NAMES
    assert not list(out.rglob(".*"))
    model = pellucid.load(gae_run, device="cpu")
    for name in ("a.jpg", "b.png", "c.png", "more/f.jpg"):
        alone = model.edit(
            photos / name, seed=2, num_steps=3, inversion_steps=3, replace={"background": photos / "e.png"}
        )
        place = (out / name).with_suffix(".png")
        apart = pixels(place).astype(int) - to_uint8(alone.images)[0]
        assert abs(apart).max() <= 1  # in levels: batches are equal to rounding
        made = about(place)
        assert (made["run"], made["seed"], made["picture"], made["recipe"]) == (str(gae_run), 2, name, "gae")
        assert made["set"][0] == words[0][2:] + "=" + words[1]
        assert made["readouts"]["code"] == pytest.approx(alone.readouts["code"][0].tolist(), abs=1e-4)
    found = json.loads(report.read_text())
    assert list(found["readouts"]) == [
        "a.jpg",
        "b.png",
        "c.png",
        "d.webp",
        "e.png",
        "more/a.png",
        "more/f.jpg",
    ]
    assert found["there_already"] == found["failed"] == []


def test_edits_in_a_batch_are_those_alone_to_rounding(gae_run, photos):
    model = pellucid.load(gae_run, device="cpu")
    paths = sorted(photos.glob("*.*"))
    controls = {"num_steps": 4, "inversion_steps": 4, "slide": "pose=0.7", "blend_with": photos / "a.jpg"}
    together = model.sample(len(paths), image=torch.cat([model._square(p) for p in paths]), **controls).images
    for path, one in zip(paths, together, strict=True):
        torch.testing.assert_close(one, model.edit(path, **controls).images[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("settings", [("--noise", "random"), ("--noise=random", "--sampler", "ddpm")])
def test_what_is_drawn_at_random_is_what_it_is_alone_to_the_bit(gae_run, photos, tmp_path, calls, settings):
    run("edit", gae_run, photos, *FEW, *settings, "--seed", 4, "--out", tmp_path / "out")
    assert calls == [1] * 7
    run("edit", gae_run, photos / "more" / "f.jpg", *FEW, *settings, "--seed", 4, "--out", tmp_path / "o.png")
    assert np.array_equal(pixels(tmp_path / "o.png"), pixels(tmp_path / "out" / "more" / "f.png"))


@pytest.mark.parametrize("noise", ["inferred", "random"])
def test_a_folder_that_was_stopped_goes_on_and_is_the_same_to_the_bit(
    gae_run, photos, tmp_path, capsys, monkeypatch, noise
):
    words = ("edit", gae_run, photos, *FEW, "--noise", noise, "--batch", 3, "--out")
    run(*words, tmp_path / "whole")
    from pellucid.cli import edits

    save, written = edits._save, []

    def stopping(path, *rest):
        if len(written) == 4:
            raise ValueError("the power is gone")
        written.append(path)
        return save(path, *rest)

    with monkeypatch.context() as broken:
        broken.setattr(edits, "_save", stopping)
        assert "the power is gone" in refused(capsys, *words, tmp_path / "parts")
    assert pngs(tmp_path / "parts") == NAMES[:4]
    times = {p: p.stat().st_mtime_ns for p in written}
    report = tmp_path / "made.json"
    run(*words, tmp_path / "parts", "--json", report)
    said = capsys.readouterr().out
    assert "3 pictures of 7 edited into" in said
    assert "4 were there already" in said
    assert json.loads(report.read_text())["there_already"] == ["a.jpg", "b.png", "c.png", "d.webp"]
    assert {p: p.stat().st_mtime_ns for p in written} == times
    for name in NAMES:
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_folder_that_is_finished_is_left_alone(gae_run, photos, tmp_path, calls, capsys):
    words = ("edit", gae_run, photos, "--out", tmp_path / "out", "--num-steps", 3)
    run(*words, "--set", "inversion_steps=3")
    calls.clear()
    run("edit", f"{gae_run}/", photos, "--inversion-steps", 3, *words[3:])  # said in another order
    assert calls == []
    assert "0 pictures of 7 edited" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--seed", "1"), "was made with seed 1, not 0"),
        (("--num-steps", "2"), "was made with num-steps=2, not none"),
        (None, "does not say that an edit made it"),
    ],
)
def test_what_was_made_otherwise_is_named_before_any_work(
    gae_run, photos, tmp_path, capsys, calls, words, says
):
    out = tmp_path / "out"
    (out / "more").mkdir(parents=True)
    if words is None:
        blocks(0).save(out / "more" / "f.png")
    else:
        run("edit", gae_run, photos / "more", *words, "--inversion-steps", 3, "--out", out / "more")
        for name in ("a.png", "f.png"):  # as if the folder had been the larger one
            made = about(out / "more" / name) | {
                "set": [f"{words[0][2:]}={words[1]}"] * (words[0] != "--seed")
            }
            from pellucid.train.preview import save_png

            save_png(out / "more" / name, Image.open(out / "more" / name).copy(), made)
    before = {p: p.read_bytes() for p in out.rglob("*.png")}
    calls.clear()
    said = refused(capsys, "edit", gae_run, photos, "--out", out)
    assert str(out / "more") in said
    assert says in said
    assert "give another --out" in said
    assert calls == []
    assert {p: p.read_bytes() for p in out.rglob("*.png")} == before


def test_a_picture_of_another_run_or_name_is_made_otherwise(gae_run, photos, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    run("edit", gae_run, photos / "more", *FEW, "--out", out)
    monkeypatch.chdir(gae_run.parent)
    said = refused(capsys, "edit", gae_run.name, photos / "more", *FEW, "--out", out)
    assert f"was made by {gae_run}, not {gae_run.name}" in said
    (photos / "more" / "f.jpg").rename(photos / "more" / "f.jpeg")
    said = refused(capsys, "edit", gae_run, photos / "more", *FEW, "--out", out)
    assert "f.png is there and was made of f.jpg, not f.jpeg" in said


def test_two_pictures_of_one_name_are_refused(gae_run, photos, tmp_path, capsys, calls):
    blocks(0).save(photos / "a.bmp")
    said = refused(capsys, "edit", gae_run, photos, "--out", tmp_path / "out")
    assert f"{photos / 'a.bmp'} and {photos / 'a.jpg'} would both be edited into" in said
    assert calls == []


def test_pictures_that_cannot_be_read_are_left_out_and_named(gae_run, photos, tmp_path, capsys, calls):
    (photos / "b.png").write_bytes((photos / "b.png").read_bytes()[:-200])
    (photos / "more" / "a.png").write_text("404")
    out, report = tmp_path / "out", tmp_path / "made.json"
    words = ("edit", gae_run, photos, *FEW, "--batch", 2, "--out", out, "--json", report)
    said = refused(capsys, *words)
    assert "5 edited; 2 could not be: " in said
    assert str(photos / "b.png") in said
    assert str(photos / "more" / "a.png") in said
    assert calls == [1, 2, 1, 1]
    assert pngs(out) == [n for n in NAMES if n not in ("b.png", "more/a.png")]
    assert len(json.loads(report.read_text())["failed"]) == 2


def test_edits_of_a_model_that_varies_are_made_one_by_one(switches_run, tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        blocks(i, (8, 8)).save(folder / f"{i}.png")
    run("edit", switches_run, folder, "--flip", "3", "--out", tmp_path / "out", "--seed", 3)
    model = pellucid.load(switches_run, device="cpu")
    for i in range(3):
        alone = to_uint8(model.edit(folder / f"{i}.png", flip="3", seed=3).images)[0]
        assert np.array_equal(pixels(tmp_path / "out" / f"{i}.png"), alone)


def test_one_that_cannot_be_edited_does_not_keep_the_others_from_it(
    switches_run, tmp_path, capsys, monkeypatch
):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, level in enumerate((200, 10, 220)):
        Image.new("L", (8, 8), level).save(folder / f"{i}.png")
    method = METHODS["switches"][1]
    sample = method.sample

    def picky(self, n, rng, **controls):
        if controls["image"].mean() < 0:
            raise ValueError("too dark")
        return sample(self, n, rng, **controls)

    monkeypatch.setattr(method, "sample", picky)
    said = refused(capsys, "edit", switches_run, folder, "--out", tmp_path / "out")
    assert f"2 edited; 1 could not be: {folder / '1.png'}: too dark" in said
    assert pngs(tmp_path / "out") == ["0.png", "2.png"]


def test_a_terminal_sees_how_many_pictures_of_a_folder_are_done(
    gae_run, photos, tmp_path, capsys, monkeypatch
):
    from os import terminal_size

    from pellucid.cli import console

    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr(console.os, "get_terminal_size", lambda _: terminal_size((80, 24)))
    run("edit", gae_run, photos, *FEW, "--batch", 4, "--out", tmp_path / "out")
    shown = capsys.readouterr().err
    assert all(f"{n}/7 pictures" in shown for n in (0, 4, 7))


# ---- an option for each part


def test_an_option_of_pictures_may_be_repeated(gae_run, photos, tmp_path):
    a, b = photos / "a.jpg", photos / "b.png"
    ways = (
        ("--replace", f"background={a}", "--replace", f"pose={b}"),
        (f"--replace=background={a},pose={b}",),
        ("--set", f"replace=background={a}", "--replace", f"pose={b}"),
    )
    for i, way in enumerate(ways):
        run("edit", gae_run, photos / "e.png", *way, *FEW, "--out", tmp_path / f"{i}.png")
    for i in (1, 2):
        assert np.array_equal(pixels(tmp_path / "0.png"), pixels(tmp_path / f"{i}.png"))
    run("edit", gae_run, photos / "e.png", *FEW, "--out", tmp_path / "none.png")
    code = lambda name: about(tmp_path / name)["readouts"][
        "code"
    ]  # a net trained for six steps hardly hears it
    assert code("0.png") == code("1.png") != code("none.png")
    run("sample", gae_run, "-n", 1, "--num-steps", 2, *ways[0], "--out", tmp_path / "sampled")
    assert about(tmp_path / "sampled" / "sample-0000.png")["set"] == [
        "num-steps=2", f"replace=background={a}", f"replace=pose={b}",
    ]  # fmt: skip


def test_a_path_with_a_comma_is_one_path(gae_run, photos, tmp_path):
    made = []
    for i, name in enumerate(("x,y.png", "x=y.png", "plain.png")):
        blocks(7).save(photos / name)
        words = ("--replace", f"pose={photos / name},background={photos / 'b.png'}")
        run("edit", gae_run, photos / "e.png", *words, *FEW, "--out", tmp_path / f"{i}.png")
        made.append(pixels(tmp_path / f"{i}.png"))
    assert np.array_equal(made[0], made[2])
    assert np.array_equal(made[1], made[2])


def test_other_settings_and_single_parts_are_given_once(gae_run, photos, tmp_path, capsys):
    words = ("edit", gae_run, photos / "a.jpg", "--out", tmp_path / "o.png")
    assert "num_steps is given twice" in refused(capsys, *words, "--num-steps", 2, "--num-steps", 3)
    assert "slide is given twice" in refused(capsys, *words, "--slide", "pose=1", "--slide", "pose=0")
    twice = ("--replace", f"pose={photos / 'a.jpg'}", "--replace", f"pose={photos / 'b.png'}")
    assert "replace.pose is given twice" in refused(capsys, *words, *twice)
    with pytest.raises(ValueError, match="a is given twice"):
        pairs(("a=1", "a=2"))
    assert pairs(("a=x=1", "b=2", "a=y=2"), {"a"}) == {"a": "x=1,y=2", "b": "2"}


def test_a_sweep_holds_pictures_for_parts_and_goes_through_folders(gae_run, photos, tmp_path):
    words = (
        "--image",
        photos / "e.png",
        "--replace",
        f"background={photos / 'a.jpg'}",
        "--replace",
        f"pose={photos / 'b.png'}",
    )
    folder = photos / "more"
    run("sweep", gae_run, "--across", "amount=0;1", *words, "--towards", folder, *FEW, "--out", tmp_path)
    run("sweep", gae_run, "--across", f"towards={folder};{photos}", *words, *FEW, "--out", tmp_path)
    assert (tmp_path / "sweep-2.png").exists()
    assert about(tmp_path / "sweep.png")["set"][1:3] == [
        f"replace=background={photos / 'a.jpg'}", f"replace=pose={photos / 'b.png'}",
    ]  # fmt: skip


def test_an_edit_of_what_has_changed_since_is_not_taken_for_done(gae_run, photos, tmp_path, capsys, calls):
    lent, out = tmp_path / "lent.png", tmp_path / "out"
    blocks(3).save(lent)
    words = ("edit", gae_run, photos / "more", *FEW, "--replace", f"pose={lent}", "--out", out)
    run(*words)
    assert about(out / "a.png")["controls"]["replace"] == ["pose"]
    calls.clear()
    run(*words)
    assert calls == []
    blocks(9).save(lent)
    assert "was made by other weights of the run, or with other pictures" in refused(capsys, *words)
    blocks(3).save(lent)
    blocks(9).save(photos / "more" / "a.png")
    assert "was made of a.png when that was another picture" in refused(capsys, *words)
