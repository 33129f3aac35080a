"""The doctor names what is wrong, and only that."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from pellucid.data import doctor
from pellucid.data.catalog import open_data
from pellucid.data.doctor import examine
from pellucid.data.images import ImageFolder


@pytest.fixture(autouse=True)
def _no_torchvision(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)


def noise(seed: int, size: tuple[int, int] = (48, 48)) -> Image.Image:
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def sick(tmp_path):
    """A folder with one of each ailment, and nine healthy pictures in two classes."""
    for name, count, seed in (("cats", 6, 0), ("dogs", 3, 100)):
        (tmp_path / name).mkdir()
        for i in range(count):
            noise(seed + i).save(tmp_path / name / f"{i}.png")
    cats = tmp_path / "cats"
    (cats / "empty.jpg").touch()
    (cats / "text.jpg").write_text("404")
    noise(10).save(cats / "cut.png")
    (cats / "cut.png").write_bytes((cats / "cut.png").read_bytes()[:-200])
    noise(11).save(cats / "really_png.jpg", "PNG")
    (cats / "copy.png").write_bytes((cats / "0.png").read_bytes())
    noise(1).resize((96, 96)).save(cats / "bigger.jpg", quality=90)
    noise(12, (20, 30)).save(cats / "small.png")
    noise(13, (200, 50)).save(cats / "banner.png")
    noise(14).convert("RGBA").save(cats / "alpha.png")
    noise(15).save(cats / "moving.gif", save_all=True, append_images=[noise(16)])
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(17, (60, 50)).save(cats / "turned.jpg", exif=exif)
    (cats / "phone.heic").write_bytes(b"x")
    (cats / "notes.txt").write_text("x")
    return tmp_path


def test_each_ailment_is_named(sick):
    report = examine(sick, 32)
    assert (report.images, report.usable) == (20, 17)
    assert dict(report.bad).keys() == {"cats/empty.jpg", "cats/text.jpg", "cats/cut.png"}
    assert dict(report.bad)["cats/empty.jpg"] == "empty file"
    assert report.mislabelled == [("cats/really_png.jpg", "PNG")]
    assert report.duplicates == [["cats/0.png", "cats/copy.png"]]
    assert report.alike == [["cats/1.png", "cats/bigger.jpg"]]
    assert report.tiny == ["cats/small.png"]
    assert (report.cropped, report.transparent, report.animated, report.rotated) == (1, 1, 1, 1)
    assert report.classes == {"cats": 14, "dogs": 3}
    assert sum(report.splits.values()) == 17
    assert report.width == (20, 48, 200)
    assert report.height == (30, 48, 96)  # the turned one stands 60 high
    assert report.others == {".heic": 1, ".txt": 1}
    assert not report.ok
    advice = "\n".join(report.suggestions)
    for word in ("3 bad files", ".heic 1", "2 images repeat", "few"):
        assert word in advice


def test_the_report_is_json_and_text(sick):
    report = examine(sick, 32)
    assert json.loads(json.dumps(report.to_dict()))["usable"] == 17
    text = "\n".join(report.lines())
    assert "cats/text.jpg: not an image" in text
    assert "-> " in text


def test_it_agrees_with_training(tmp_path):
    """What the doctor calls usable is what training takes."""
    for i in range(150):
        noise(i).save(tmp_path / f"{i}.png")
    (tmp_path / "7.png").write_bytes(b"x")
    report, data = examine(tmp_path, 16), ImageFolder(tmp_path, 16)
    assert report.ok
    assert report.usable == len(data) == 149
    assert report.bad == list(data.bad)
    assert report.splits["val"] == len(ImageFolder(tmp_path, 16, split="val"))


def test_a_run_within_the_folder_is_no_data(tmp_path):
    """Its previews are a model's; the same files without checkpoints beside them are somebody's pictures."""
    for i in range(4):
        noise(i).save(tmp_path / f"{i}.png")
    for folder in ("runs/one/samples", "runs/one/checkpoints", "plain/samples"):
        (tmp_path / folder).mkdir(parents=True)
    for i, folder in enumerate(("runs/one", "plain")):
        (tmp_path / folder / "config.json").touch()
        noise(10 + i).save(tmp_path / folder / "samples/1.png")
    report, data = examine(tmp_path, 16), ImageFolder(tmp_path, 16)
    assert (report.images, report.runs) == (5, 1)
    assert "  1 run folders passed over" in report.lines()
    assert data.keys == ("0.png", "1.png", "2.png", "3.png", "plain/samples/1.png")
    assert examine(tmp_path / "runs/one", 16).images == 1  # named itself, it is what was asked for


def test_nothing_wrong(tmp_path):
    for i in range(500):
        noise(i, (16, 16)).save(tmp_path / f"{i}.png", compress_level=0)
    report = examine(tmp_path, 16)
    assert report.suggestions == ["nothing stands in the way"]
    assert not report.alike


def test_flat_pictures_are_not_called_alike(tmp_path):
    for level in (0, 90, 180, 250):
        Image.new("L", (16, 16), level).save(tmp_path / f"{level}.png")
    assert examine(tmp_path, 16).alike == []


def test_copies_across_splits_are_told(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        noise(3).save(tmp_path / part / "a.png")
    report = examine(tmp_path, 16)
    assert report.leaks == 1
    assert "across splits" in "\n".join(report.suggestions)


def test_masks_are_examined(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    regions = np.zeros((48, 48), dtype=np.uint8)
    for i in range(3):
        noise(i).save(tmp_path / "images" / f"{i}.jpg")
        Image.fromarray(regions).save(tmp_path / "masks" / f"{i}.png")
    assert any("all ground" in s for s in examine(tmp_path, 16).suggestions)
    regions[:20] = 2
    Image.fromarray(regions).save(tmp_path / "masks/1.png")
    Image.fromarray(regions[:30]).save(tmp_path / "masks/2.png")
    report = examine(tmp_path, 16)
    assert report.regions == {0: 2, 2: 1}
    assert report.bad == [("images/2.jpg", "image is 48x48 and mask 48x30")]


def test_pictures_of_kinds_that_are_not_read_are_told_from_other_files(tmp_path):
    for name in ("a.jp2", "b.JP2", "c.avif", "d.psd", "notes.pdf", "table.h5", "film.mpg"):
        (tmp_path / name).touch()
    advice = "\n".join(examine(tmp_path, 16).suggestions)
    assert "not read (.jp2 2, .avif 1, .psd 1): convert" in advice


def test_an_empty_folder(tmp_path):
    (tmp_path / "a.heic").touch()
    report = examine(tmp_path, 16)
    assert not report.ok
    assert report.images == 0
    assert any("no images found" in line for line in report.lines())
    with pytest.raises(ValueError, match="no data"):
        examine(tmp_path / "missing", 16)
    with pytest.raises(ValueError, match="built in"):
        examine("scenes", 16)


@pytest.mark.parametrize(("code", "told"), [(0, False), (1, True)])
def test_a_broken_torchvision_is_told_without_importing_it(tmp_path, monkeypatch, code, told):
    noise(0).save(tmp_path / "a.png")
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object())
    answer = subprocess.CompletedProcess(
        [], code, "", "RuntimeError: operator torchvision::nms does not exist\n"
    )
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: answer)
    text = "\n".join(examine(tmp_path, 16).lines())
    assert ("pip uninstall torchvision" in text) == told
    assert ("torchvision::nms" in text) == told


def test_a_table_of_attributes_is_counted(tmp_path):
    for i in range(6):
        noise(i).save(tmp_path / f"{i}.png")
    (tmp_path / "5.png").write_bytes(b"x")  # what cannot be used is not counted
    rows = (
        "0.png,red,left,old",
        "1.png,red,right,old",
        "2.png,blue,,old",
        "5.png,green,left,old",
        "3.png,,,",
    )
    (tmp_path / "attributes.csv").write_text("\n".join(("file,colour,side,age", *rows)))
    report = examine(tmp_path, 16)
    assert report.attributes == {
        "colour": {"blue": 1, "green": 0, "red": 2, "": 2},
        "side": {"left": 1, "right": 1, "": 3},
        "age": {"old": 3, "": 2},
    }
    assert report.rowless == ["3.png", "4.png"]
    assert json.loads(json.dumps(report.to_dict()))["attributes"] == report.attributes
    text = "\n".join(report.lines())
    assert "  attribute colour: 3 values, the rarest green 0, blue 1, red 2; 2 pictures without" in text
    assert "  2 have no attributes: no row in the table, or an empty one:" in text
    assert "    4.png" in text
    advice = "\n".join(report.suggestions)
    assert "'age' has one value alone" in advice
    assert "'colour' 2 values have one picture or none (blue, green)" in advice
    assert "'side' 2 values" in advice


def test_folders_that_are_attributes_are_counted_and_one_folder_around_all_is_none(tmp_path):
    for colour in ("red", "blue"):
        for side in ("left", "right"):
            folder = tmp_path / "sorted" / colour / side
            folder.mkdir(parents=True)
            for i in range(2):
                noise(len(colour + side) + 10 * i).save(folder / f"{i}.png")
    report = examine(tmp_path / "sorted", 16)
    assert report.attributes == {"level1": {"blue": 4, "red": 4}, "level2": {"left": 4, "right": 4}}
    assert not report.rowless
    assert not any("attribute" in s for s in report.suggestions)
    (tmp_path / "kept" / "pictures").mkdir(parents=True)
    noise(0).save(tmp_path / "kept" / "pictures" / "a.png")
    assert not any("attribute" in s for s in examine(tmp_path / "kept", 16).suggestions)


@pytest.mark.parametrize(
    ("table", "says"), [("file", "one column"), ("file,colour\ngone.png,red", "gone.png"), ("", "is empty")]
)
def test_a_broken_table_is_an_error(tmp_path, table, says):
    noise(0).save(tmp_path / "a.png")
    (tmp_path / "attributes.csv").write_text(table)
    with pytest.raises(ValueError, match=says):
        examine(tmp_path, 16)


def scenery(root, count: int = 24, **frames) -> dict:
    """A folder of views with their cameras; `frames` are put into the last frame of the table."""
    from pellucid.data.renders import AROUND, cameras_of
    from pellucid.data.views import to_transforms

    names = [f"{i:02}.png" for i in range(count)]
    for i, name in enumerate(names):
        noise(i, (40, 40)).save(root / name)
    cameras = cameras_of(AROUND, seed=0, split="train", count=count)
    table = to_transforms(names, cameras, np.full(count, 1.4), 40)
    table["frames"][-1] |= frames
    (root / "transforms.json").write_text(json.dumps(table))
    return table


def test_a_folder_of_views_with_nothing_wrong(tmp_path):
    scenery(tmp_path)
    report = examine(tmp_path, 16)
    assert report.ok
    assert report.views is not None
    assert report.views.cameras == 24
    assert report.suggestions == ["nothing stands in the way"]
    assert "  24 views with their cameras" in report.lines()
    assert examine(tmp_path, 16).splits == {
        part: len(open_data(str(tmp_path), size=16, split=part)) for part in ("train", "val", "test")
    }


def test_faults_of_cameras_are_named_and_stop_training_as_told(tmp_path):
    table = scenery(tmp_path, file_path="gone.png")
    table["frames"][2]["transform_matrix"][0][3] = float("nan")
    table["frames"][4] = dict(table["frames"][3])
    table["frames"][6]["k1"] = float("nan")
    (tmp_path / "transforms.json").write_text(json.dumps(table))
    report = examine(tmp_path, 16, views=True)
    assert not report.ok
    assert dict(report.views.faults) == {
        "gone.png": "transforms.json, frame 23: no such file",
        "02.png": "transforms.json, frame 2: transform_matrix holds NaN or infinity",
        "03.png": "transforms.json, frame 4: named before, by transforms.json, frame 3",
        "06.png": "transforms.json, frame 6: k1 is nan: expected a number",
    }
    assert report.views.unnamed == ["02.png", "04.png", "06.png", "23.png"]
    text = "\n".join(report.lines())
    assert "    gone.png: transforms.json, frame 23: no such file" in text
    assert "4 pictures have no camera" in text
    assert "4 frames of transforms.json cannot be used, and training refuses" in text
    assert json.loads(json.dumps(report.to_dict()))["views"]["cameras"] == 20
    with pytest.raises(ValueError, match="4 frames of"):
        open_data(str(tmp_path), size=16)


def test_a_table_without_a_sound_frame_is_still_examined(tmp_path):
    scenery(tmp_path, 1, file_path="gone.png")
    report = examine(tmp_path, 16)
    assert not report.ok
    assert report.views.faults == [("gone.png", "transforms.json, frame 0: no such file")]
    assert not any("no images found" in s for s in report.suggestions)
    (tmp_path / "transforms.json").write_text("{")
    with pytest.raises(ValueError, match=r"transforms.json is no JSON"):
        examine(tmp_path, 16)


@pytest.mark.parametrize(("count", "says"), [(1, "two photographs or more"), (5, "5 views are few")])
def test_few_views_are_told(tmp_path, count, says):
    scenery(tmp_path, count)
    report = examine(tmp_path, 16)
    assert report.ok == (count > 1)
    assert any(says in s for s in report.suggestions)


def test_one_photograph_is_no_scene(tmp_path):
    noise(0).save(tmp_path / "a.jpg")
    advice = "\n".join(examine(tmp_path, 16, views=True).suggestions)
    assert "one photograph shows no depth" in advice
    assert "memorise" not in advice
    assert "--views" in "\n".join(examine(tmp_path, 16).suggestions)
    assert examine(tmp_path, 16).views is None


def test_what_spoils_views_is_named(tmp_path):
    """One of each: another size, a phone held upright, a cut-out, a blurred frame, a frame taken twice."""
    from PIL import ImageFilter

    for i in range(25):
        noise(i, (60, 40)).save(tmp_path / f"{i:02}.png")
    noise(30, (90, 40)).save(tmp_path / "wide.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(31, (60, 40)).save(tmp_path / "phone.jpg", exif=exif)
    cut = noise(32, (60, 40)).convert("RGBA")
    cut.putalpha(Image.new("L", (60, 40), 200))
    cut.save(tmp_path / "cut.png")
    noise(33, (60, 40)).filter(ImageFilter.GaussianBlur(6)).save(tmp_path / "shaken.png")
    noise(3, (60, 40)).resize((120, 80)).resize((60, 40)).save(tmp_path / "again.png")
    views = examine(tmp_path, 32, views=True).views
    assert list(views.sizes) == ["60x40", "40x60", "90x40"]
    assert (views.sizes["40x60"], views.sizes["90x40"]) == (["phone.jpg"], ["wide.png"])
    assert views.turned == ["phone.jpg"]
    assert views.clear == ["cut.png"]
    assert views.blurred == ["shaken.png"]
    assert views.cameras is None
    report = examine(tmp_path, 32, views=True)
    assert report.alike == [["03.png", "again.png"]]
    assert report.ok  # none of these stops anything
    text = "\n".join(report.lines())
    for line in (
        "  2 are not 60x40, as the others are:",
        "    phone.jpg: 40x60",
        "    wide.png: 90x40",
        "  1 are turned upright by EXIF:",
        "  1 have transparency, which the others have not:",
        "  1 are blurred, against the others:",
        "    shaken.png",
    ):
        assert line in text
    advice = "\n".join(report.suggestions)
    for word in (
        "3 sizes",
        "turned upright by EXIF",
        "cut out all",
        "1 views are blurred",
        "1 images repeat another",
    ):
        assert word in advice


def test_neighbouring_views_are_not_called_copies(tmp_path):
    """Twenty views of one thing, 18 degrees apart, and one of them a second time, a little brighter."""
    from pellucid.cameras import look_at
    from pellucid.data.renders import AROUND, THING, Boxes, render

    angle = np.radians(np.arange(0, 360, 18))
    eye = np.stack([2.6 * np.cos(angle), 2.6 * np.sin(angle), np.full(20, 1.5)], 1)
    pixels, _ = render(Boxes(THING), look_at(torch.from_numpy(eye)).numpy(), AROUND.focal, 48, samples=2)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"{i:02}.png")
    brighter = Image.fromarray(np.minimum(pixels[7] + 1.0, 255).astype(np.uint8))
    brighter.save(tmp_path / "again.jpg", quality=95, subsampling=0)
    report = examine(tmp_path, 32, views=True)
    assert report.alike == [["07.png", "again.jpg"]]
    assert report.views.blurred == []


def test_views_that_differ_a_little_in_sharpness_are_not_called_blurred(tmp_path):
    for i in range(25):
        noise(i, (60 + i, 60 + i)).save(tmp_path / f"{i}.png")
    assert examine(tmp_path, 16, views=True).views.blurred == []
