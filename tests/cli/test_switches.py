"""The commands on a model of bits and sliders whose pictures are known in closed form (`switches_run`)."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import pellucid
from pellucid.cli.axes import axis
from pellucid.cli.sheet import lettered
from pellucid.data.images import to_uint8
from pellucid.methods.registry import METHODS
from pellucid.train.preview import grid
from typed import about, refused, run


def picture(bits: str, width: int = 8) -> Image.Image:
    """8 high; its centre square is read as these bits."""
    pixels = np.zeros((8, width, 3), np.uint8)
    left = (width - 8) // 2
    pixels[:, :left] = pixels[:, left + 8 :] = 128
    for k, bit in enumerate(bits):
        pixels[0, left + k] = 255 * int(bit)
    return Image.fromarray(pixels)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    picture("01011").save(path)
    return path


# ---- sample, edit


def shown_bits(path) -> str:
    return "".join("1" if v > 127 else "0" for v in np.asarray(Image.open(path))[0, :5, 0])


def test_controls_given_as_options_reach_the_sample(switches_run, tmp_path):
    words = ("--bits", "01011", "--fine", "down0.0=1.5,middle.1=-2", "--guidance", "-1")
    run("sample", switches_run, "-n", 2, *words, "--out", tmp_path / "a", "--json", tmp_path / "all.json")
    same = ("--set", "bits=01011", "fine=down0.0=1.5,middle.1=-2", "guidance=-1")
    run("sample", switches_run, "-n", 2, *same, "--out", tmp_path / "b")
    mixed = ("--bits=01011", "--set", "guidance=-1", "--fine=down0.0=1.5,middle.1=-2")
    run("sample", switches_run, "-n", 2, *mixed, "--out", tmp_path / "c")
    one = np.asarray(Image.open(tmp_path / "a" / "sample-0001.png"))
    assert shown_bits(tmp_path / "a" / "sample-0001.png") == "01011"
    levels = [round(127.5 * (1 + v / 10)) for v in (1.5, -2.0, 0.0, -1.0)]
    assert [one[1, 0, 0], one[1, 1, 0], one[1, 2, 0], one[2, 0, 0]] == levels
    for other in ("b", "c"):
        assert np.array_equal(one, Image.open(tmp_path / other / "sample-0001.png"))
    made = about(tmp_path / "a" / "sample-0000.png")
    assert made["readouts"]["bits"] == "01011"
    assert made["readouts"]["details"] == pytest.approx({"down0.0": 1.5, "middle.1": -2, "up1.0": 0})
    report = json.loads((tmp_path / "all.json").read_text())
    assert [r["bits"] for r in report["readouts"]] == ["01011"] * 2


def test_an_edit_flips_a_switch_of_the_photograph(switches_run, photo, tmp_path):
    run("edit", switches_run, photo, "--flip", "3,5", "-n", 1, "--out", tmp_path)
    assert shown_bits(tmp_path / "sample-0000.png") == "01110"


def test_an_edit_makes_one_version_where_nothing_in_it_is_random(switches_run, photo, tmp_path, monkeypatch):
    run("edit", switches_run, photo, "--flip", 3, "--out", tmp_path / "four")
    assert len(list((tmp_path / "four").glob("sample-*.png"))) == 4
    monkeypatch.setattr(METHODS["switches"][1], "edits_vary", False)
    run("edit", switches_run, photo, "--flip", 3, "--out", tmp_path / "one")
    assert len(list((tmp_path / "one").glob("sample-*.png"))) == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--bits", "01012"], "bits is '01012'; write 5 digits"),
        (["--bits"], "--bits has no value; write --bits VALUE"),
        (["--bits", "00000", "--set", "bits=00001"], "bits is given twice, as 00000 and as 00001"),
        (["--guidance", "1", "--guidance=2"], "guidance is given twice"),
        (["--bit", "00000"], "'bit' is no control that this model can sample with; it has bits, fine"),
        (["--bit", "00000"], "Did you mean 'bits'?"),
        (["--sede", "3"], "Or did you mean --seed, an option of `pellucid sample`?"),
        (["--set", "seed=3"], "seed=3 is no setting, as `pellucid sample` takes seed itself"),
        (["--fine", "down0.0=2"], "fine.down0.0 is 2; it lies between -3 and 1.5"),
        (["--fine", "down=1"], "Did you mean 'down0.0'?"),
        (["--flip", "1"], "flip does nothing alone: give 'image' as well"),
    ],
)
def test_mistakes_in_options_are_named(switches_run, tmp_path, words, says, capsys):
    assert says in refused(capsys, "sample", switches_run, "--out", tmp_path / "no", *words)
    assert not (tmp_path / "no").exists()


def test_mistakes_of_reading_and_editing_are_theirs(switches_run, photo, capsys):
    said = refused(capsys, "read", switches_run, photo, "--bits", "01011")
    assert "'bits' is no control that this model can read with; it has mode" in said
    assert "`pellucid edit` takes image itself" in refused(
        capsys, "edit", switches_run, photo, "--image", photo
    )


def test_evaluating_ignores_no_option(switches_run, tmp_path, capsys):
    assert "'limits' is no control" in refused(capsys, "evaluate", switches_run, "--limits", "3")
    words = ("--label-map", tmp_path / "map.json", "--mode", "odd")
    assert "mode: with a label map" in refused(capsys, "evaluate", switches_run, *words)
    assert "reads no masks" in refused(capsys, "evaluate", switches_run, "--limit", 4, "--mode", "odd")


def test_the_controls_are_listed_with_what_they_take(switches_run, capsys, tmp_path):
    run("sample", switches_run, "--controls")
    out = capsys.readouterr().out
    card_at = tmp_path / "model"
    run("export", switches_run, "--out", card_at)
    for shown in (out, (card_at / "README.md").read_text()):
        assert "bits: 5 switches, e.g. 01010" in shown
        assert "sliders [-3 to 1.5]: down0.0, middle.1, up1.0; e.g. down0.0=1.5" in shown
        assert "indices [1 to 5]" in shown
        assert "choice of plain, odd" in shown


# ---- read


def test_reading_says_the_bits_and_how_sure_they_are(switches_run, tmp_path, capsys):
    path = tmp_path / "wide.png"
    wide = picture("01011", width=20)
    wide.putpixel((6 + 4, 0), (230, 0, 0))  # b_5 is 1 at 230 / 255
    wide.save(path)
    run("read", switches_run, path, "--out", tmp_path / "out")
    assert f"{path}: bits 01011 (sure to 1.00 1.00 1.00 1.00 .90)" in capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "wide.json").read_text())["readouts"]
    assert found["bits"] == "01011"
    assert found["bits_probabilities"] == pytest.approx([0, 1, 0, 1, 230 / 255], abs=1e-6)
    assert set(found["details"]) == {"down0.0", "middle.1", "up1.0"}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["wide.json"]
    run("read", switches_run, path, "--mode", "odd", "--out", tmp_path / "out")
    assert "bits 10100" in capsys.readouterr().out


def test_a_folder_is_sorted_by_code(switches_run, tmp_path, capsys):
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    codes = {"a": "00000", "b": "10000", "c": "01011", "d": "10000", "e": "11111", "f": "10000", "g": "01011"}
    for name, bits in codes.items():
        picture(bits).save(folder / f"{name}.png")
    faint = picture("00000")
    faint.putpixel((2, 0), (51, 0, 0))
    faint.save(folder / "a.png")
    for _ in range(2):
        run("read", switches_run, folder, "--out", out)
    assert "7 pictures have 4 different codes" in capsys.readouterr().out
    with (out / "codes.csv").open(newline="") as file:
        rows = {r["path"]: r for r in csv.DictReader(file)}
    assert list(rows) == [str(folder / f"{name}.png") for name in codes]
    for name, bits in codes.items():
        row = rows[str(folder / f"{name}.png")]
        assert row["bits"] == bits
        assert int(row["code"]) == int(bits[::-1], 2)  # the first digit is the smallest
        assert float(row["least_sureness"]) == pytest.approx(0.8 if name == "a" else 1, abs=1e-4)
    sheet = np.asarray(Image.open(out / "codes.png"))
    rows_of = [["b", "d", "f"], ["c", "g"], ["a"], ["e"]]  # the most frequent first
    white = np.full((8, 8, 3), 255, np.uint8)
    cells = [
        np.asarray(Image.open(folder / f"{row[i]}.png")) if i < len(row) else white
        for row in rows_of
        for i in range(3)
    ]
    tensor = torch.from_numpy(np.stack(cells)).permute(0, 3, 1, 2) / 127.5 - 1
    body = np.asarray(grid(tensor, columns=3))
    assert np.array_equal(sheet[-body.shape[0] :, -body.shape[1] :], body)
    assert (out / "codes-2.csv").read_text() == (out / "codes.csv").read_text()
    assert (out / "codes-2.png").exists()


def test_codes_are_written_of_several_pictures_and_not_of_one(switches_run, photo, tmp_path, capsys):
    other = tmp_path / "other.png"
    shutil.copy(photo, other)
    run("read", switches_run, photo, "--out", tmp_path / "one")
    assert not (tmp_path / "one" / "codes.csv").exists()
    refused(capsys, "read", switches_run, photo, other, tmp_path / "none.png", "--out", tmp_path / "two")
    assert len((tmp_path / "two" / "codes.csv").read_text().splitlines()) == 3


def test_the_sheet_of_codes_shows_so_many(switches_run, tmp_path, monkeypatch):
    from pellucid.cli import commands

    monkeypatch.setattr(commands, "CODES_SHOWN", 2)
    monkeypatch.setattr(commands, "PICTURES_OF_A_CODE", 3)
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, bits in enumerate(["00000"] * 5 + ["11111"] * 2 + ["01010"]):
        picture(bits).save(folder / f"{i}.png")
    run("read", switches_run, folder, "--out", tmp_path)
    body = grid(torch.zeros(6, 3, 8, 8), columns=3)
    sheet = Image.open(tmp_path / "codes.png")
    assert sheet.height == body.height
    assert 0 < sheet.width - body.width < 200


# ---- sweep


def cells_of(path, across: int, down: int) -> np.ndarray:
    """(down, across, 8, 8, 3): the pictures of a grid of 8-pixel images, which are shown 8 times as large."""
    sheet = np.asarray(Image.open(path))
    height, width = (8 * (n * 9 + 1) for n in (down, across))
    body = sheet[-height:, -width:][::8, ::8]
    return np.stack([[body[1 + 9 * i :, 1 + 9 * j :][:8, :8] for j in range(across)] for i in range(down)])


def test_the_cells_of_a_sweep_are_the_samples_themselves(switches_run, tmp_path):
    report = tmp_path / "sweep.json"
    run("sweep", switches_run, "--across", "bits=00000;10000;01000", "--down", "seed=0;1", "--guidance=2.5",
        "--set", "fine=middle.1=-1", "--out", tmp_path, "--json", report)  # fmt: skip
    cells = cells_of(tmp_path / "sweep.png", 3, 2)
    model = pellucid.load(switches_run, device="cpu")
    for i, seed in enumerate((0, 1)):
        for j, bits in enumerate(("00000", "10000", "01000")):
            direct = model.sample(1, seed=seed, bits=bits, guidance=2.5, fine="middle.1=-1").images
            assert np.array_equal(cells[i, j], to_uint8(direct)[0])
    made = about(tmp_path / "sweep.png")
    assert made["across"] == {"name": "bits", "values": ["00000", "10000", "01000"]}
    assert made["down"] == {"name": "seed", "values": ["0", "1"]}
    assert made["set"] == ["guidance=2.5", "fine=middle.1=-1"]
    assert made["controls"]["guidance"] == 2.5
    assert "bits" not in made["controls"]
    found = json.loads(report.read_text())
    assert [r["bits"] for r in found["readouts"]] == ["00000", "10000", "01000"] * 2
    run("sweep", switches_run, "--across", "mode", "--out", tmp_path)
    assert (tmp_path / "sweep-2.png").exists()


def test_two_sliders_are_swept_beside_one_that_is_held(switches_run, tmp_path):
    run("sweep", switches_run, "--across", "fine.down0.0=-2;1", "--down", "fine.up1.0", "--fine", "middle.1=-1",
        "--seed", 4, "--out", tmp_path)  # fmt: skip
    cells = cells_of(tmp_path / "sweep.png", 2, 5)
    model = pellucid.load(switches_run, device="cpu")
    for i, up in enumerate((-2, -1.125, -0.25, 0.625, 1.5)):  # five steps to what the range allows
        for j, down in enumerate((-2, 1)):
            direct = model.sample(1, seed=4, fine={"down0.0": down, "middle.1": -1, "up1.0": up}).images
            assert np.array_equal(cells[i, j], to_uint8(direct)[0])


def test_a_photograph_is_edited_across_flips(switches_run, photo, tmp_path):
    run("sweep", switches_run, "--across", "flip=1;2;5", "--image", photo, "--out", tmp_path)
    cells = cells_of(tmp_path / "sweep.png", 3, 1)[0]
    shown = ["".join("1" if v > 127 else "0" for v in c[0, :5, 0]) for c in cells]
    assert shown == ["11011", "00011", "01010"]


def test_a_name_alone_stands_for_its_usual_values(switches_run):
    model = pellucid.load(switches_run, device="cpu")
    assert axis(model, "bits").values == ("00000", "10000", "01000", "00100", "00010", "00001")
    assert axis(model, "mode").values == ("plain", "odd")
    assert axis(model, "fine.up1.0").values == ("-2", "-1.125", "-0.25", "0.625", "1.5")
    wide = model.controls["fine"].__class__(kind="sliders", choices=("a",), low=-5, high=5, help="")
    model.method.controls["fine"] = wide
    assert axis(model, "fine.a").values == ("-2", "-1", "0", "1", "2")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--across", "bit=0;1"], "Did you mean 'bits'?"),
        (["--across", "guidance"], "guidance has no values to go through: write guidance=VALUE;VALUE"),
        (["--across", "seed="], "seed has no values to go through"),
        (["--across", "fine"], "or fine.down0.0 for one slider"),
        (["--across", "guidance=1;9"], "guidance is 9; it lies between -1 and 4"),
        (["--across", "bits", "--down", "seed=0;one"], "seed is 'one'"),
        (["--across", "seed=-1"], "seed is '-1'"),
        (["--across", "seed=9223372036854775808"], "below 2^63"),
        (["--across", "fine.down0.0=1;2"], "fine.down0.0 is 2; it lies between -3 and 1.5"),
        (["--across", "fine.down=1;2"], "Did you mean 'down0.0'?"),
        (["--across", "bits.1=0;1"], "bits has no '1'"),
        (["--across", "bits", "--down", "bits=00000"], "both axes are bits"),
        (["--across", "bits", "--bits", "00000"], "bits is given twice"),
        (["--across", "fine.up1.0", "--down", "fine=up1.0=1"], "fine.up1.0 is given twice"),
        (["--across", "bits", "--acros", "3"], "Or did you mean --across"),
        (["--across", "bits", "--image", "nowhere.png"], "nowhere.png"),
    ],
)
def test_a_sweep_that_cannot_be_says_why_and_writes_nothing(switches_run, tmp_path, words, says, capsys):
    assert says in refused(capsys, "sweep", switches_run, *words, "--out", tmp_path / "no")
    assert not (tmp_path / "no").exists()


# ---- points, and the words of a sheet


def test_a_model_of_points_is_no_model_of_pictures(switches_run, photo, capsys, monkeypatch):
    from pellucid.methods.registry import METHODS

    _, kind = METHODS["switches"]
    monkeypatch.setattr(
        kind, "image_shape", property(lambda self: (2, 1, 1), lambda self, v: None), raising=False
    )
    for words in (["sample"], ["read"], ["edit"], ["sweep", "--across", "seed=0"]):
        command, *rest = words
        photos = [photo] if command in ("read", "edit") else []
        assert "points of 2 numbers" in refused(capsys, command, switches_run, *photos, *rest)


def ink(area) -> bool:
    return bool((np.asarray(area.convert("L")) < 128).any())


def test_words_stand_beside_their_row_and_above_their_column():
    rows = torch.zeros(2, 3, 3, 8, 8)
    sheet = lettered(list(rows), ["first", ""], ["", "second", ""], "corner")
    body = grid(rows.flatten(0, 1), columns=3)
    left, top = sheet.width - body.width, sheet.height - body.height
    assert np.array_equal(sheet.crop((left, top, sheet.width, sheet.height)), body)
    half = top + body.height // 2
    assert ink(sheet.crop((0, top, left, half)))
    assert not ink(sheet.crop((0, half, left, sheet.height)))
    third = body.width // 3
    assert [ink(sheet.crop((left + i * third, 0, left + (i + 1) * third, top))) for i in range(3)] == [
        0,
        1,
        0,
    ]
    assert ink(sheet.crop((0, 0, left, top)))


def test_words_wider_than_a_column_are_turned():
    rows = torch.zeros(1, 2, 3, 8, 8)
    flat = lettered(list(rows), [""], ["a", "b"])
    tall = lettered(list(rows), [""], ["a", "a name that is much wider than its column"])
    assert tall.width == flat.width
    assert tall.height > flat.height + 100


def test_words_and_rows_agree_in_number():
    with pytest.raises(ValueError, match="1 rows of up to 2 pictures have 1 words left of them and 3 above"):
        lettered([torch.zeros(2, 3, 8, 8)], [""], ["a", "b", "c"])
