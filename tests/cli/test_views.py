"""What a user does with the scene of a model: films along cameras, poses of photographs, files, the viewer."""

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pellucid
from pellucid.cameras import angle_between, angles_of, rotation
from pellucid.cli.commands import _whence, posed
from pellucid.data.catalog import open_data
from pellucid.data.images import to_uint8
from pellucid.data.views import ViewsSource, cameras_in
from pellucid.geometry import SOLID, densities, found_cameras, points, surface, training_pictures
from pellucid.nets.nerf import Space
from typed import about, refused, run


@pytest.fixture(scope="module")
def model(scene_run):
    return pellucid.load(scene_run, device="cpu")


@pytest.fixture
def photographs(tmp_path):
    """A folder of wide photographs, one of which lies turned in its file."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, pixels in enumerate(to_uint8(open_data("views-boxes", size=24).batch(np.arange(6)).x0)):
        wide = Image.new("RGB", (40, 24), "white")
        wide.paste(Image.fromarray(pixels), (8, 0))
        exif = Image.Exif()
        if i == 4:  # which training sees
            exif[0x0112] = 6
            wide = wide.rotate(90, expand=True)
        wide.save(folder / f"{i}.png", exif=exif)
    return folder


def ball(points, directions):
    """A field that is a ball of radius 0.6, red where x is above 0 and blue where not."""
    density = 200 * (0.6 - points.norm(dim=1)).clamp(min=0)
    right = points[:, 0] > 0
    return density, torch.stack([right * 2.0 - 1, -torch.ones_like(density), 1 - right * 2.0], 1)


class Ball(torch.nn.Module):
    opened = torch.ones(())
    forward = staticmethod(ball)


@pytest.fixture
def solid(scene_run, monkeypatch):
    """The model with a scene that is known in closed form, finely sampled."""
    from dataclasses import replace

    model = pellucid.load(scene_run, device="cpu")
    monkeypatch.setattr(model.method, "field", Ball())
    monkeypatch.setattr(model.method, "view", replace(model.method.view, fine_samples=256))
    return model


@pytest.fixture
def ball_run(scene_run, monkeypatch):
    """The run, whose field is a ball whoever loads it."""
    from pellucid.nets.nerf import GridField

    monkeypatch.setattr(GridField, "forward", lambda self, points, directions: ball(points, directions))
    return scene_run


def empty(points, directions):
    return torch.zeros(len(points)), torch.zeros(len(points), 3)


# ---- films ---------------------------------------------------------------------------------------


def decoded(path):
    av = pytest.importorskip("av")
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        frames = [f.to_ndarray(format="rgb24") for f in film.decode(video=0)]
        return frames, float(stream.average_rate), stream.pix_fmt, film.metadata


def test_a_film_has_the_frames_the_size_and_the_pace_that_were_asked_for(scene_run, tmp_path):
    out = tmp_path / "new" / "a.mp4"
    run("sample", scene_run, "--path", "orbit:elevation=20", "-n", 7, "--fps", 12.5, "--render-size", 24,
        "--out", out, "--json", tmp_path / "a.json")  # fmt: skip
    frames, rate, form, metadata = decoded(out)
    assert (len(frames), frames[0].shape, rate, form) == (7, (264, 264, 3), 12.5, "yuv420p")
    told, said = json.loads(metadata["comment"]), json.loads((tmp_path / "a.json").read_text())
    assert told["controls"]["cameras"] == said["controls"]["cameras"] == "orbit:elevation=20"
    places = [r["camera"] for r in said["readouts"]]
    assert [p["elevation"] for p in places] == pytest.approx([20] * 7, abs=1e-3)
    assert sorted(p["azimuth"] % 360 for p in places) == pytest.approx(
        [k * 360 / 7 for k in range(7)], abs=1e-3
    )
    assert [p.name for p in out.parent.iterdir()] == ["a.mp4"]


def test_a_film_of_several_parts_is_the_samples_of_one_path(scene_run, model, tmp_path):
    run("sample", scene_run, "-n", 9, "--render-size", 256, "--out", tmp_path / "a.mp4")
    frames, *_ = decoded(tmp_path / "a.mp4")
    wanted = to_uint8(model.sample(9, cameras="orbit", render_size=256).images)
    assert np.abs(np.stack(frames).astype(int) - wanted).mean() < 4  # colours of H.264 are half as fine


@pytest.mark.parametrize(
    ("height", "width", "shape"), [(32, 256, (32, 256)), (36, 64, (144, 256)), (15, 258, (30, 516))]
)
def test_a_film_may_be_wide_and_its_sides_are_even(scene_run, model, tmp_path, height, width, shape):
    size = {"render_size": height, "render_width": width, "render_focal": 2.5}
    words = [w for k, v in size.items() for w in (f"--{k.replace('_', '-')}", v)]
    run("sample", scene_run, "--path", "orbit", "-n", 2, *words, "--out", tmp_path / "a.mp4",
        "--json", tmp_path / "a.json")  # fmt: skip
    said = json.loads((tmp_path / "a.json").read_text())
    assert said["size"] == [*shape[::-1]]
    assert [r["camera"]["focal"] for r in said["readouts"]] == [2.5] * 2
    frames, *_ = decoded(tmp_path / "a.mp4")
    zoom = shape[0] // height
    wanted = to_uint8(model.sample(2, cameras="orbit", **size).images).repeat(zoom, 1).repeat(zoom, 2)
    assert np.stack(frames).shape == wanted.shape == (2, *shape, 3)
    assert np.abs(np.stack(frames).astype(int) - wanted).mean() < 4  # colours of H.264 are half as fine


@pytest.mark.parametrize("ending", [".gif", ".webp"])
def test_films_without_any_extra(ball_run, tmp_path, ending):
    out = tmp_path / f"a{ending}"
    field = ("--render-size", 32, "--path", "spiral")
    run("sample", ball_run, "-n", 5, *field, "--fps", 30, "--show", "colour", "depth", "--out", out)
    with Image.open(out) as film:
        assert (film.n_frames, film.size) == (5, (512, 256))
        kept = film.info["comment"].decode() if ending == ".gif" else film.getexif()[0x010E]
    assert json.loads(kept)["show"] == ["colour", "depth"]


def test_a_film_is_120_frames_unless_told_otherwise_and_orbits(scene_run, tmp_path):
    run("sample", scene_run, "--render-size", 8, "--out", tmp_path / "a.mp4")
    frames, rate, *_ = decoded(tmp_path / "a.mp4")
    assert (len(frames), rate) == (120, 30)


def test_what_cannot_be_a_film_is_told_at_once(scene_run, tiny_run, tmp_path, capsys, monkeypatch):
    there = tmp_path / "there.mp4"
    there.write_bytes(b"mine")
    sample = ("sample", scene_run, "--out")
    assert "not written over" in refused(capsys, *sample, there)
    assert there.read_bytes() == b"mine"
    assert "a.mp4" in refused(capsys, *sample, "a.mov")
    assert "a.mp4" in refused(capsys, *sample, "a.png")
    assert "fps is 0" in refused(capsys, *sample, tmp_path / "a.mp4", "--fps", 0)
    assert "at most 50" in refused(capsys, *sample, tmp_path / "a.gif", "--fps", 60)
    assert "--fps is of films" in refused(capsys, *sample, tmp_path / "out", "--fps", 10)
    assert "colour, depth, opacity" in refused(capsys, *sample, tmp_path / "a.mp4", "--show", "normals")
    assert "takes none" in refused(capsys, "sample", tiny_run, "--out", tmp_path / "a.mp4")
    assert "given twice" in refused(
        capsys, *sample, tmp_path / "a.mp4", "--path", "orbit", "--cameras", "spiral"
    )
    assert "one view" in refused(capsys, *sample, tmp_path / "a.mp4", "--image", "a.png")
    assert "n is 0" in refused(capsys, *sample, tmp_path / "a.mp4", "-n", 0)
    monkeypatch.setitem(sys.modules, "av", None)
    assert "pip install 'pellucid[views]'" in refused(capsys, *sample, tmp_path / "a.mp4")
    assert [p.name for p in tmp_path.iterdir()] == ["there.mp4"]


def test_a_film_that_is_stopped_leaves_nothing(scene_run, tmp_path, monkeypatch, capsys):
    import pellucid.cli.films as films

    def stops(*_):
        raise ValueError("no more")
        yield

    monkeypatch.setattr(films, "_frames", stops)
    for name in ("a.mp4", "a.gif"):
        assert "no more" in refused(capsys, "sample", scene_run, "--out", tmp_path / name)
    assert not list(tmp_path.iterdir())


# ---- pictures, and what is read of them -----------------------------------------------------------


def test_samples_say_the_path_and_each_its_camera_and_bring_their_maps(scene_run, model, tmp_path):
    run(
        "sample",
        scene_run,
        "-n",
        3,
        "--path",
        "spiral:turns=1",
        "--out",
        tmp_path,
        "--json",
        tmp_path / "a.json",
    )
    wanted = model.sample(3, cameras="spiral:turns=1")
    said = json.loads((tmp_path / "a.json").read_text())
    assert said["controls"]["cameras"] == "spiral:turns=1"
    for i, found in enumerate(said["readouts"]):
        made = about(tmp_path / f"sample-{i:04d}.png")
        assert made["controls"]["cameras"] == "spiral:turns=1"
        assert made["readouts"]["camera"] == found["camera"]
        torch.testing.assert_close(
            torch.tensor(found["camera"]["matrix"]), wanted.readouts["camera"][i].view(4, 4)
        )
        for name in ("depth", "opacity"):
            told = found[name]
            levels = np.asarray(Image.open(tmp_path / told["file"])).astype(float)
            number = told["low"] + (told["high"] - told["low"]) * levels / 65535
            assert (
                np.abs(number - wanted.readouts[name][i].numpy()).max()
                <= (told["high"] - told["low"]) / 65535
            )
    run("sample", scene_run, "-n", 1, "--path", "orbit", "--out", tmp_path)
    assert (tmp_path / "sample-0000-2-depth.png").exists()


def test_wide_samples_are_pictures_maps_and_sheets_as_wide(scene_run, tmp_path, capsys):
    size = ("--render-size", 12, "--render-width", 20)
    run("sample", scene_run, "-n", 3, *size, "--num-steps", 4, "--snapshots", 2, "--out", tmp_path)
    sizes = {p.name: Image.open(p).size for p in tmp_path.glob("*.png")}
    assert {sizes[f"sample-000{i}{m}.png"] for i in range(3) for m in ("", "-depth", "-opacity")} == {
        (20, 12)
    }
    assert sizes["sheet.png"] == (5 * (3 * 21 + 1), 5 * 14)
    assert sizes["process.png"] == (5 * (2 * 21 + 1), 5 * (3 * 13 + 1))
    run("sweep", scene_run, "--across", "render_focal=1;2", "--cameras", "orbit", *size, "--out", tmp_path / "o",
        "--json", tmp_path / "a.json")  # fmt: skip
    found = json.loads((tmp_path / "a.json").read_text())["readouts"]
    assert [r["camera"]["focal"] for r in found] == [1.0, 2.0]
    for name in ("render_size", "render_width"):
        said = refused(capsys, "sweep", scene_run, "--across", f"{name}=8;16", "--out", tmp_path)
        assert f"{name} is no axis" in said


def test_the_way_from_noise_is_a_picture_and_its_cameras_are_told(scene_run, model, tmp_path):
    words = ("sample", scene_run, "-n", 2, "--num-steps", 6, "--snapshots", 3, "--out", tmp_path / "o")
    for name in ("process", "process-2"):
        run(*words, "--json", tmp_path / "a.json")
        said = json.loads((tmp_path / "a.json").read_text())
        assert said["process"] == f"{name}.png"
    told = json.loads((tmp_path / "o" / "process.json").read_text())
    wanted = model.sample(2, num_steps=6, snapshots=3)
    assert told["picture"] == "process.png"
    assert [step["time"] for step in told["steps"]] == [t for t, _ in wanted.trace]
    for step, (_, state) in zip(told["steps"], wanted.trace, strict=True):
        for i, found in enumerate(step["readouts"]):
            camera, scores = (state.readouts[k][i] for k in ("camera", "scores"))
            torch.testing.assert_close(torch.tensor(found["camera"]["matrix"]), camera.view(4, 4))
            torch.testing.assert_close(torch.tensor(found["scores"]), scores)
    assert told["steps"][-1]["readouts"][1]["camera"] == said["readouts"][1]["camera"]
    sheet = np.asarray(Image.open(tmp_path / "o" / "process.png"))[::4, ::4]  # of 16 pixels, shown four times
    for k, (_, state) in enumerate(wanted.trace):
        for i, pixels in enumerate(to_uint8(state.images)):
            assert np.array_equal(sheet[1 + 17 * i : 17 + 17 * i, 1 + 17 * k : 17 + 17 * k], pixels)
    assert about(tmp_path / "o" / "process.png")["times"] == [t for t, _ in wanted.trace]


def test_reading_a_photograph_says_from_where_it_was_taken(scene_run, model, photographs, tmp_path):
    run("read", scene_run, photographs / "1.png", "--out", tmp_path / "o", "--json", tmp_path / "a.json")
    found = json.loads((tmp_path / "o" / "1.json").read_text())["readouts"]
    camera = found["camera"]
    matrix = torch.tensor(camera["matrix"])
    torch.testing.assert_close(
        matrix, model.read(photographs / "1.png").values["camera"].view(4, 4), atol=1e-6, rtol=0
    )
    azimuth, elevation = (math.degrees(v) for v in angles_of(matrix))
    assert (camera["azimuth"], camera["elevation"]) == pytest.approx((azimuth, elevation), abs=1e-4)
    assert camera["radius"] == pytest.approx(matrix[:3, 3].norm().item())
    assert camera["focal"] == pytest.approx(model.method.focal.item())
    assert "looks along -z" in camera["convention"]
    assert found["scores_largest"] == int(np.argmax(found["scores"]))
    assert Image.open(tmp_path / "o" / found["depth"]["file"]).mode == "I;16"
    assert json.loads((tmp_path / "a.json").read_text())[str(photographs / "1.png")] == found
    shutil.copy(tmp_path / "o" / "1-depth.png", tmp_path / "o" / "2-depth.png")
    run("read", scene_run, photographs / "2.png", "--out", tmp_path / "o")
    assert (tmp_path / "o" / "2-2-depth.png").exists()


def test_an_edit_with_a_photograph_shows_the_view_from_there_with_its_maps(scene_run, photographs, tmp_path):
    run("edit", scene_run, photographs / "1.png", "-n", 1, "--out", tmp_path / "o")
    assert {"sample-0000.png", "sample-0000-depth.png"} <= {p.name for p in (tmp_path / "o").iterdir()}
    run("edit", scene_run, photographs / "1.png", "--render-size", 40, "--out", tmp_path / "one.png")
    assert Image.open(tmp_path / "one.png").size == (40, 40)


# ---- cameras as a file ---------------------------------------------------------------------------

NUMBER = {"type": "number"}
SIZES = {
    "w": {"type": "integer", "minimum": 1},
    "h": {"type": "integer", "minimum": 1},
    "cx": NUMBER,
    "cy": NUMBER,
}
ROW = {"type": "array", "items": NUMBER, "minItems": 4, "maxItems": 4}
SCHEMA = {
    "type": "object",
    "required": ["camera_model", "frames"],
    "properties": {
        "camera_model": {"const": "OPENCV"},
        **SIZES,
        "frames": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["file_path", "transform_matrix", "fl_x", "fl_y"],
                "properties": {
                    **SIZES,
                    "file_path": {"type": "string", "minLength": 1},
                    "fl_x": {"type": "number", "exclusiveMinimum": 0},
                    "fl_y": {"type": "number", "exclusiveMinimum": 0},
                    "transform_matrix": {"type": "array", "items": ROW, "minItems": 4, "maxItems": 4},
                },
            },
        },
    },
    # nerfstudio takes each of these from the file or from every frame
    "anyOf": [
        {"required": list(SIZES)},
        {"properties": {"frames": {"items": {"required": list(SIZES)}}}},
    ],
}


def checked(path) -> dict:
    made = json.loads(path.read_text())
    pytest.importorskip("jsonschema").validate(made, SCHEMA)
    return made


def test_exported_cameras_are_those_found_and_are_read_again(scene_run, model, tmp_path):
    out = tmp_path / "transforms.json"
    run("export", scene_run, "--cameras", out, "--json", tmp_path / "told.json")
    made = checked(out)
    data = training_pictures(model)
    cameras, focal = found_cameras(model, data)
    assert len(made["frames"]) == len(data) == 64
    assert made["w"] == made["h"] == 16
    np.testing.assert_allclose(cameras_in(out), cameras, atol=1e-6)
    torch.testing.assert_close(
        cameras[5], model.read(data.batch(np.array([5])).x0[0]).values["camera"].view(4, 4)
    )
    source = ViewsSource(tmp_path)  # as `--data FOLDER` reads it, pictures included
    assert not source.faults
    assert [f.focal for f in source.frames] == pytest.approx(focal.tolist())
    square = np.asarray(Image.open(tmp_path / made["frames"][3]["file_path"]))
    assert np.array_equal(square, to_uint8(data.batch(np.array([3])).x0)[0])
    assert json.loads((tmp_path / "told.json").read_text())["cameras"]["squares"] == 64


def test_a_path_along_exported_cameras_looks_from_each_of_them(scene_run, model, tmp_path):
    out = tmp_path / "t.json"
    run("export", scene_run, "--cameras", out)
    own = torch.from_numpy(cameras_in(out)).float()
    sample = model.sample(64, cameras=out, batch=20)
    torch.testing.assert_close(sample.readouts["camera"].view(-1, 4, 4), own)
    assert sample.controls["cameras"] == str(out)
    between = model.opened({"cameras": str(out)}, n=127)["cameras"]
    torch.testing.assert_close(between[::2], own, atol=1e-5, rtol=0)


def test_a_path_has_the_focal_length_of_its_file(scene_run, model, tmp_path):
    out = tmp_path / "t.json"
    run("export", scene_run, "--cameras", out)
    table = json.loads(out.read_text())

    def rendered(change, **controls):
        made = json.loads(json.dumps(table))
        change(made)
        (tmp_path / "c.json").write_text(json.dumps(made))
        return model.sample(2, cameras=tmp_path / "c.json", **controls)

    def lengths(*values, **sizes):
        def change(made):
            made.update(sizes)
            for i, frame in enumerate(made["frames"]):
                frame.update(fl_x=values[i % len(values)], fl_y=values[i % len(values)])

        return change

    def angles(made):
        for frame in made["frames"]:
            del frame["fl_x"], frame["fl_y"]
        for key in ("w", "h", "cx", "cy"):
            del made[key]
        made["camera_angle_x"] = 2 * math.atan(0.5 / 2.5)

    wide = {"w": 64, "h": 32, "cx": 32, "cy": 16}
    for change in (lengths(2.5 * 16), lengths(80.5, 79.5, **wide), angles):
        made = rendered(change)
        assert made.controls["render_focal"] == pytest.approx(2.5)
        other = model.sample(2, cameras=made.readouts["camera"].view(2, 4, 4), render_focal=2.5)
        torch.testing.assert_close(made.images, other.images, atol=1e-4, rtol=0)
    own = model.method.focal.item()
    assert rendered(lambda made: None).controls["render_focal"] == pytest.approx(own)
    assert rendered(lengths(40), render_focal=1.5).controls["render_focal"] == 1.5
    assert rendered(lengths(40), render_width=8).controls["render_focal"] == 1.25
    assert rendered(lambda made: made.pop("w")).controls["render_focal"] is None
    with pytest.raises(ValueError, match=r"from 2\.5 to 3\.125 sides.*render_focal"):
        rendered(lengths(40, 50))
    sweep = ("sweep", scene_run, "--across", "render_focal=1;2", "--cameras", out, "--out", tmp_path / "o")
    run(*sweep, "--json", tmp_path / "a.json")
    found = json.loads((tmp_path / "a.json").read_text())["readouts"]
    assert [r["camera"]["focal"] for r in found] == [1.0, 2.0]


def test_photographs_are_named_by_their_files_with_the_sizes_that_they_have(
    trained_run, photographs, tmp_path
):
    made_run = trained_run(tmp_path / "run", "lift3d", data=photographs)
    model = pellucid.load(made_run, device="cpu")
    out = tmp_path / "elsewhere" / "transforms.json"
    run("export", made_run, "--cameras", out)
    shutil.copytree(photographs, tmp_path / "copy")
    inside = tmp_path / "copy" / "transforms.json"
    run("export", made_run, "--cameras", inside, "--data", tmp_path / "copy")
    for file, home in ((out, photographs), (inside, tmp_path / "copy")):
        squares = f"{file.stem}-images"
        assert [p.name for p in (file.parent / squares).iterdir()] == ["0003.png"]
        for frame in (made := checked(file))["frames"]:
            assert not Path(frame["file_path"]).is_absolute()
            where = Path(os.path.normpath(file.parent / frame["file_path"]))
            assert where.parent in (home, file.parent / squares)
            with Image.open(where) as picture:
                assert (frame.get("w", made.get("w")), frame.get("h", made.get("h"))) == picture.size
                assert not picture.getexif().get(0x0112)
            assert frame["fl_x"] == pytest.approx(24 * model.method.focal.item())
    for folder in (out.parent, inside.parent):  # both are read again, wherever the photographs lie
        source = ViewsSource(folder)
        assert len(source.frames) == len(made["frames"])
        assert not source.faults
        assert not any(key.startswith((".", "/")) for key in (f.key for f in source.frames))


def test_cameras_do_not_change_what_the_training_folder_is(trained_run, photographs, tmp_path, capsys):
    first = [p for p in sorted(photographs.iterdir()) if p.stem != "4"]  # those that lie upright
    upright = tmp_path / "upright"
    upright.mkdir()
    for path in first:
        shutil.copy(path, upright)
    made_run = trained_run(tmp_path / "run", "lift3d", data=upright)
    words = ("export", made_run, "--points", tmp_path / "c.ply", "--density", 1, "--cameras")
    capsys.readouterr()
    assert "another name" in refused(capsys, *words, upright / "transforms.json")
    assert sorted(upright.iterdir()) == [upright / p.name for p in first]
    assert not (tmp_path / "c.ply").exists()
    for name in ("one.json", "two.json"):
        run("export", made_run, "--cameras", upright / name)
        assert not checked(upright / name)["frames"][0]["file_path"].startswith("/")
    turned = trained_run(tmp_path / "other", "lift3d", data=photographs)
    capsys.readouterr()
    assert "another folder" in refused(capsys, "export", turned, "--cameras", photographs / "a.json")


def test_pictures_that_have_changed_are_not_taken_for_those_trained_on(
    trained_run, photographs, tmp_path, capsys
):
    made_run = trained_run(tmp_path / "run", "lift3d", data=photographs)
    first = next(photographs.glob("*.png"))
    moved = shutil.copytree(photographs, tmp_path / "moved")
    for path in photographs.glob("*.png"):
        if path != first:
            path.unlink()
    capsys.readouterr()
    assert "--data" in refused(capsys, "export", made_run, "--cameras", tmp_path / "t.json")
    shutil.rmtree(photographs)
    assert "--data" in refused(capsys, "export", made_run, "--points", tmp_path / "c.ply")
    run("export", made_run, "--cameras", tmp_path / "t.json", "--data", moved)
    assert checked(tmp_path / "t.json")


@pytest.mark.parametrize("recipe", ["nerf", "nerf--"])
def test_a_field_that_is_told_its_cameras_or_learned_them_exports_those(trained_run, tmp_path, recipe):
    made_run = trained_run(tmp_path / "run", recipe, data="views-boxes")
    run("export", made_run, "--cameras", tmp_path / "t.json")
    found = torch.from_numpy(cameras_in(tmp_path / "t.json")).float()
    if recipe == "nerf":
        wanted = open_data("views-boxes", size=16).batch(np.arange(64)).truth["camera"]
    else:
        wanted = pellucid.load(made_run, device="cpu").method.cameras(torch.arange(64)).detach()
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    run("sample", made_run, "-n", 3, "--path", "orbit", "--render-size", 20, "--out", tmp_path / "a.mp4")
    assert len(decoded(tmp_path / "a.mp4")[0]) == 3


# ---- points and meshes ---------------------------------------------------------------------------


def test_points_lie_where_rays_end_and_have_the_colour_that_is_there(solid):
    at, colours = points(solid, solid.method.around(4), size=24)
    assert np.abs(np.linalg.norm(at, axis=1) - 0.6).max() < 0.15
    # straight in light goes sqrt(pi / 400) = 0.09 deep on average
    assert np.median(np.linalg.norm(at, axis=1)) == pytest.approx(0.6 - 0.09, abs=0.03)
    clear = np.abs(at[:, 0]) > 0.1
    assert np.array_equal(colours[clear, 0] > 128, at[clear, 0] > 0)
    assert (colours[:, 1] < 5).all()  # nothing of the white behind it


def test_a_mesh_is_the_surface_of_that_density_and_turns_outwards(solid):
    trimesh = pytest.importorskip("trimesh")
    pytest.importorskip("skimage")
    at, faces, colours = surface(solid, cells=48)
    mesh = trimesh.Trimesh(at, faces, process=False)
    radius = 0.6 - SOLID / 200
    assert np.abs(np.linalg.norm(at, axis=1) - radius).max() < 2e-3
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * math.pi * radius**3, rel=0.01)
    clear = np.abs(at[:, 0]) > 0.05
    assert np.array_equal(colours[clear, 0] > 128, at[clear, 0] > 0)


def test_a_mesh_before_cameras_that_look_into_a_scene_turns_outwards_too(solid, monkeypatch):
    trimesh = pytest.importorskip("trimesh")
    pytest.importorskip("skimage")
    from dataclasses import replace

    space = Space(near=1.0, far=32.0, forward=True, focal=1.4)
    monkeypatch.setattr(solid.method, "space", space)
    monkeypatch.setattr(
        solid.method, "view", replace(solid.method.view, forward=True, near=1.0, far=32.0, background="none")
    )
    at, faces, _ = surface(solid, cells=32)
    assert trimesh.Trimesh(at, faces, process=False).volume > 0
    assert (at[:, 2] < -1).all()  # ahead of the cameras


@pytest.mark.parametrize("cells", [16, 31])
def test_a_mesh_with_surroundings_ends_where_rays_do(solid, monkeypatch, cells):
    """A field that is dense wherever nothing was learned: in all of the shell that no ray goes to."""
    pytest.importorskip("skimage")
    from dataclasses import replace

    view = replace(
        solid.method.view, radius=3.0, near=0.3, far=12.0, surroundings=True, background="none", budget=1000
    )
    space = view.space()
    asked = []

    def shell(points, directions):
        asked.append(len(points))
        far = space.outside(points).norm(dim=1)
        return torch.where((far > 8) | (far < 0.5), 200.0, 0.0), torch.zeros(len(points), 3)

    monkeypatch.setattr(solid.method, "view", view)
    monkeypatch.setattr(solid.method, "space", space)
    monkeypatch.setattr(solid.method.field, "forward", shell)
    at, _, _ = surface(solid, cells=cells)
    distance = np.linalg.norm(at, axis=1)
    assert distance.max() <= 15 * (1 + 1e-5)
    assert (distance > 6).any()  # what rays do reach is there, inside and out
    assert (distance < 1).any()
    assert max(asked) <= 1000
    found = densities(solid.method, cells + 1)
    line = torch.linspace(-1, 1, cells + 1)
    cube = torch.stack(torch.meshgrid(line, line, line, indexing="ij"), -1)
    wanted, _ = shell(cube.view(-1, 3), None)
    beyond = cube.norm(dim=-1) > 1 - 1 / 30  # Mip-NeRF 360, eq. 10, at half its size: (2 - 1 / 15) / 2
    torch.testing.assert_close(found, wanted.view_as(found) * ~beyond)


def test_space_is_left_as_it_was_entered():
    cube = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for space in (Space(near=2, far=4, bound=1.5), Space(near=1, far=32, forward=True, focal=1.2)):
        torch.testing.assert_close(space.inside(space.outside(cube)), cube, atol=1e-4, rtol=0)


def test_points_and_meshes_are_files_that_trimesh_reads(scene_run, tmp_path):
    trimesh = pytest.importorskip("trimesh")
    pytest.importorskip("skimage")
    low = ("--density", 0.05, "--cells", 16)
    for name in ("m.obj", "m.ply"):
        run("export", scene_run, "--mesh", tmp_path / name, *low, "--json", tmp_path / "a.json")
        told = json.loads((tmp_path / "a.json").read_text())["mesh"]
        mesh = trimesh.load(tmp_path / name, process=False)
        assert (len(mesh.vertices), len(mesh.faces)) == (told["vertices"], told["triangles"])
        assert mesh.visual.vertex_colors.shape == (told["vertices"], 4)


def test_cameras_points_and_the_model_are_exported_together(ball_run, tmp_path):
    trimesh = pytest.importorskip("trimesh")
    run("export", ball_run, "--out", tmp_path / "model", "--cameras", tmp_path / "t.json",
        "--points", tmp_path / "c.ply", "--view-size", 12, "--json", tmp_path / "a.json")  # fmt: skip
    cloud = trimesh.load(tmp_path / "c.ply")
    told = json.loads((tmp_path / "a.json").read_text())
    assert len(cloud.vertices) == told["points"]["points"] > 100
    assert cloud.colors.shape == (len(cloud.vertices), 4)
    assert json.loads((tmp_path / "t.json").read_text())["ply_file_path"] == "c.ply"
    assert (tmp_path / "model" / "model.safetensors").exists()
    run("export", tmp_path / "model", "--mesh", tmp_path / "m.obj", "--cells", 16)


def test_what_cannot_be_exported_is_told_in_a_line(scene_run, tiny_run, tmp_path, capsys, monkeypatch):
    from pellucid.nets.nerf import GridField

    there = tmp_path / "there.ply"
    there.write_bytes(b"mine")
    export = ("export", scene_run)
    assert "--cameras FILE.json" in refused(capsys, *export)
    assert "give m.ply" in refused(capsys, *export, "--mesh", tmp_path / "m.stl")
    assert "give c.ply" in refused(capsys, *export, "--points", tmp_path / "c.obj")
    assert "not written over" in refused(capsys, *export, "--points", there)
    assert there.read_bytes() == b"mine"
    both = tmp_path / "x.ply"
    assert "give two" in refused(capsys, *export, "--points", both, "--mesh", both)
    assert "no scene" in refused(capsys, "export", tiny_run, "--cameras", tmp_path / "t.json")
    assert "above 0" in refused(capsys, *export, "--mesh", tmp_path / "m.obj", "--density", 0)
    assert "8 to 1024" in refused(capsys, *export, "--mesh", tmp_path / "m.obj", "--cells", 2)
    assert "no control" in refused(capsys, *export, "--mesh", tmp_path / "m.obj", "--densiti", 2)
    monkeypatch.setattr(GridField, "forward", lambda self, points, directions: empty(points, directions))
    assert "lower --density" in refused(capsys, *export, "--mesh", tmp_path / "m.obj")
    assert "nothing solid" in refused(capsys, *export, "--points", tmp_path / "c.ply")
    for module, what in (("trimesh", "--points"), ("skimage.measure", "--mesh")):
        monkeypatch.setattr(GridField, "forward", lambda self, points, directions: ball(points, directions))
        monkeypatch.setitem(sys.modules, module, None)
        assert "pip install 'pellucid[views]'" in refused(capsys, *export, what, tmp_path / "m.ply")
    assert [p.name for p in tmp_path.iterdir()] == ["there.ply"]


# ---- a model of one's own, and flags of views ------------------------------------------------------


def test_a_model_of_ones_own_goes_wherever_data_does(trained_run, tmp_path, capsys):
    trimesh = pytest.importorskip("trimesh")
    pytest.importorskip("embreex")
    spec = f"mesh:{tmp_path / 'thing.ply'}"
    trimesh.creation.box((1, 2, 3)).export(tmp_path / "thing.ply")
    made_run = trained_run(tmp_path / "run", "nerf", data=spec)
    kept = json.loads((made_run / "config.json").read_text())["recipe"]["data"]
    assert (kept["spec"], kept["scene"]["background"]) == (spec, "white")
    run("evaluate", made_run, "--json", tmp_path / "scores.json")
    told = json.loads((tmp_path / "scores.json").read_text())
    assert (told["data"], told["pictures_scored"]) == (spec, 16)
    run("export", made_run, "--cameras", tmp_path / "t.json")
    found = torch.from_numpy(cameras_in(tmp_path / "t.json")).float()
    torch.testing.assert_close(
        found, open_data(spec, size=16).batch(np.arange(64)).truth["camera"], atol=1e-5, rtol=0
    )
    run("data", "show", spec, "--size", 8, "--out", tmp_path / "shown.png")
    assert (tmp_path / "shown.png").is_file()
    capsys.readouterr()
    assert "is rendered" in refused(capsys, "doctor", spec)
    assert "not there" in refused(capsys, "train", "nerf", "--scale", "tiny", "--data", "mesh:gone.obj")
    run("data", "list")
    assert "mesh:FILE" in capsys.readouterr().out


@pytest.mark.parametrize("recipe", ["nerf", "lift3d"])
def test_views_are_not_mirrored(recipe, tmp_path, capsys):
    train = ("train", recipe, "--scale", "tiny", "--size", 8, "--out", tmp_path / "run")
    stage = "fit" if recipe == "nerf" else "lift"
    for flags in (("--flip", True), ("--set", "flip=true"), ("--set", f"stages.{stage}.flip=true")):
        assert "a mirrored view is of another scene" in refused(capsys, *train, *flags)
    assert not (tmp_path / "run").exists()
    run(*train, "--flip", False, "--steps", 1)
    assert json.loads((tmp_path / "run/config.json").read_text())["recipe"]["train"]["flip"] is False


# ---- the viewer ----------------------------------------------------------------------------------


@pytest.fixture
def viewer(solid):
    pytest.importorskip("viser")
    from pellucid.cli.viewer import Viewer

    viewer = Viewer(solid, port=18480, size=32)
    yield viewer
    viewer.stop()


def test_the_viewer_shows_the_field_from_where_a_browser_looks(viewer, solid):
    from pellucid.cli.viewer import _ours, _theirs

    camera = solid.method.around(5)[2]
    torch.testing.assert_close(_ours(*_theirs(camera)), camera, atol=1e-5, rtol=0)
    angle = 2 * math.atan(0.5 / solid.method.focal.item())
    image, depth = viewer.frame(camera, height=16, width=24, angle=angle)
    wanted, distance, _ = solid.method.pictures(camera[None])
    assert (image.shape, depth.shape) == ((16, 24, 3), (16, 24))
    assert np.array_equal(image[:, 4:20], to_uint8(wanted)[0])
    ahead = depth[7:9, 11:13] / distance[0, 7:9, 7:9].numpy()
    assert ((ahead > 0.99) & (ahead < 1)).all()


def test_the_viewer_follows_a_browser_first_small_then_sharp(viewer, solid):
    from pellucid.cli.viewer import _theirs

    turn, place = _theirs(solid.method.around(1)[0])
    shown, done = [], threading.Event()

    def background(image, **options):
        assert options["depth"].shape == (*image.shape[:2], 1)
        shown.append(image.shape)
        if len(shown) == 2:
            viewer._ended.set()
            done.set()

    camera = types.SimpleNamespace(wxyz=turn, position=place, fov=0.7, aspect=1.5)
    scene = types.SimpleNamespace(set_background_image=background)
    client = types.SimpleNamespace(client_id=0, camera=camera, scene=scene)
    viewer.server.get_clients = lambda: {0: client}
    moved = threading.Event()
    moved.set()
    viewer._follow(client, moved)
    viewer._ended.clear()
    assert done.is_set()
    assert shown == [(8, 12, 3), (32, 48, 3)]


def test_the_viewer_puts_photographs_where_they_were_taken(viewer, solid):
    shown = viewer.show_photographs(None, 4)
    cameras, _ = found_cameras(solid, training_pictures(solid), rows=map(int, shown))
    matrices = torch.tensor([told["matrix"] for told in shown.values()])
    assert len(shown) == 4
    assert angle_between(matrices[:, :3, :3], cameras[:, :3, :3]).max() < 0.1


def test_the_viewer_starts_says_where_and_ends(scene_run, tmp_path):
    if importlib.util.find_spec("viser") is None:
        pytest.skip("viser is not installed")
    import signal
    import urllib.request

    words = ["view", scene_run, "--port", "18490", "--photographs", "2", "--json", tmp_path / "a.json"]
    running = subprocess.Popen(
        [sys.executable, "-m", "pellucid", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells' background jobs ignore it
    )
    try:
        for line in running.stdout:
            if "Ctrl-C" in line:
                break
        told = json.loads((tmp_path / "a.json").read_text()) if (tmp_path / "a.json").exists() else None
        address = line.split()[0]
        assert urllib.request.urlopen(address, timeout=20).status == 200
        assert told is None or told["address"] == address
    finally:
        running.send_signal(signal.SIGINT)
        try:
            _, errors = running.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            running.kill()
            raise
    assert running.returncode == 130
    assert "Traceback" not in errors


def test_a_viewer_that_cannot_be_is_told_in_a_line(scene_run, tiny_run, capsys, monkeypatch):
    assert "no scene" in refused(capsys, "view", tiny_run)
    assert "8 to 4096" in refused(capsys, "view", scene_run, "--size", 2)
    monkeypatch.setitem(sys.modules, "viser", None)
    assert "pip install 'pellucid[viewer]'" in refused(capsys, "view", scene_run)


def test_a_camera_before_a_scene_is_told_by_where_it_was_moved():
    """Seen from the origin, near which it stands, its azimuth would say nothing."""
    camera = torch.eye(4)
    camera[:3, :3] = rotation(torch.tensor([0.0, math.radians(12), 0.0]))
    camera[:3, 3] = torch.tensor([0.25, -0.5, 0.125])
    told = posed(camera, into=True)
    assert told["place"] == [0.25, -0.5, 0.125]
    assert told["turned"] == pytest.approx(12, abs=1e-4)
    assert "azimuth" not in told
    assert _whence(told) == "+0.25 right, -0.50 up, +0.12 back, turned by 12.0 degrees"
