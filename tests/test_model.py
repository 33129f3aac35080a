"""The Python interface, on pictures as people have them."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import pellucid
from pellucid.cameras import angles_of
from pellucid.data.decode import BadImage


@pytest.fixture(scope="module")
def model(tiny_run):
    return pellucid.load(tiny_run, device="cpu")


MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16", "F"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(7, 5), (64, 16), (33, 47)])
def test_a_picture_of_any_mode_and_size_is_read_at_its_own_size(model, mode, size):
    ramp = np.linspace(0, 255, size[0] * size[1]).reshape(size[::-1]).astype(np.uint8)
    picture = Image.fromarray(ramp)
    if mode == "I;16":
        picture = Image.fromarray(ramp.astype(np.uint16) * 257)
    elif mode == "LAB":
        from PIL import ImageCms

        to = ImageCms.buildTransform(
            ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
        )
        picture = ImageCms.applyTransform(picture.convert("RGB"), to)
    elif mode == "PA":
        picture = picture.convert("P").convert("PA")
    elif mode == "F":
        picture = Image.fromarray(ramp.astype(np.float32) / 255)
    else:
        picture = picture.convert(mode) if mode == "I" else picture.convert("RGB").convert(mode)
    reading = model.read(picture)
    assert reading.image.size == size
    assert reading.masks.shape == (3, size[1], size[0])
    torch.testing.assert_close(reading.masks.sum(0), torch.ones(size[::-1]))
    assert reading.labels.shape == size[::-1]


def test_the_same_picture_in_any_dress_is_read_the_same(model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    dresses = [
        path,
        str(path),
        Image.open(path),
        pixels,
        torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1,
    ]
    readings = [model.read(d).masks for d in dresses]
    for other in readings[1:]:
        torch.testing.assert_close(other, readings[0])


def test_a_turned_photograph_is_read_upright(model, tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20), "red").save(path, exif=exif)
    assert model.read(path).image.size == (20, 40)
    assert model.read(Image.open(path)).image.size == (20, 40)


def test_one_seed_gives_one_reading_and_one_sample(model):
    picture = np.zeros((16, 16, 3), np.uint8)
    assert torch.equal(model.read(picture, seed=3).masks, model.read(picture, seed=3).masks)
    one, other = (model.sample(3, seed=4, num_steps=2).images for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.equal(one, model.sample(3, seed=5, num_steps=2).images)


def test_many_samples_come_in_parts_with_all_their_readouts(model):
    sample = model.sample(5, batch=2, num_steps=2)
    assert sample.images.shape == (5, 3, 16, 16)
    assert sample.readouts["masks"].shape == (5, 3, 16, 16)


def test_parts_are_the_sample_and_are_checked_before_the_first(model):
    whole = model.sample(5, seed=2, batch=2, num_steps=2)
    parts = list(model.parts(5, seed=2, batch=2, num_steps=2))
    assert [len(p.images) for p in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([p.images for p in parts]), whole.images)
    with pytest.raises(ValueError, match="num_steps"):
        model.parts(5, steps=2)


def test_regions_that_are_kept_are_kept_exactly(model):
    picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    made = model.edit(picture, n=2, regions=(0,), num_steps=4)
    labels = torch.from_numpy(model.read(picture).labels)
    kept = model._square(picture)[0][:, labels != 0]
    for image in made.images:
        torch.testing.assert_close(image[:, labels != 0], kept, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: m.sample(0), "at least one"),
        (lambda m: m.sample(1, steps=3), "num_steps"),
        (lambda m: m.sample(1, regions=(0,)), "image"),
        (lambda m: m.edit(np.zeros((8, 8, 3), np.uint8), regions=(7,)), "7"),
        (lambda m: m.sample(1, seed=-1), "-1"),
        (lambda m: m.read(np.zeros((8, 8, 3), np.uint8), seed=2**63), "2\\^63"),
        (lambda m: m.read(np.zeros((8, 8, 3))), "uint8"),
        (lambda m: m.read(np.zeros((8, 8, 2), np.uint8)), "1, 3 or 4 channels"),
        (lambda m: m.read(torch.zeros(8, 8, 3)), "C 1 or 3"),
        (lambda m: m.sample(1, num_steps=2.7), "2.7"),
        (lambda m: m.read(torch.zeros(1, 1, 8, 8)), r"\(C, H, W\)"),
        (lambda m: m.read("nowhere.png"), "nowhere.png"),
    ],
)
def test_mistakes_are_named(model, call, says):
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        call(model)


def test_what_is_no_run_is_refused(tmp_path, tiny_run):
    with pytest.raises(ValueError, match=r"no config\.json"):
        pellucid.load(tmp_path)
    with pytest.raises(ValueError, match="last or best"):
        pellucid.load(tiny_run, which="first")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="no config of pellucid"):
        pellucid.load(tmp_path)


def test_a_config_of_another_version_is_refused_by_name(tmp_path, tiny_run):
    data = json.loads((tiny_run / "config.json").read_text())
    data["recipe"]["config"]["colour"] = "blue"
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="unknown key 'colour'"):
        pellucid.load(tmp_path)


def test_weights_that_do_not_fit_are_refused(tmp_path, tiny_run):
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_text((tiny_run / "config.json").read_text())
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="do not fit its config"):
        pellucid.load(tmp_path)


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (700, 1), (40, 180), (5, 64)])
def test_a_picture_of_any_shape_is_read_at_its_own_size(model, shape):
    rng = np.random.default_rng(0)
    reading = model.read(rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
    assert reading.labels.shape == shape
    torch.testing.assert_close(reading.masks.sum(0), torch.ones(shape))


def test_pictures_are_shared_out_over_the_parts_of_a_large_sample(model):
    size = model.method.image_shape[-1]
    pictures = torch.rand(5, 3, size, size) * 2 - 1
    together = model.sample(5, image=pictures, strength=0.01, num_steps=1, batch=2)
    assert len(together.images) == 5
    apart = (together.images[:, None] - pictures[None]).abs().mean((2, 3, 4))
    assert apart.argmin(1).tolist() == [0, 1, 2, 3, 4]


def test_regions_are_pasted_where_the_edit_read_them(model, monkeypatch):
    read, given = model.method.read, []
    monkeypatch.setattr(model.method, "read", lambda x, rng, **c: (given.append(c), read(x, rng, **c))[1])
    photo = Image.new("RGB", (20, 20), "red")
    sample = model.sample(1, num_steps=2)
    model.paste(photo, sample, (0,), refine=0, num_steps=3)
    assert given[-1] == {"refine": 0}


def test_outside_the_edited_regions_not_one_pixel_changes(model):
    rng = np.random.default_rng(1)
    photo = Image.fromarray(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8))
    sample = model.edit(photo, n=2, regions=(0,), num_steps=3)
    square = photo.crop((15, 0, 105, 90))
    kept = model.read(square).labels != 0
    for edited in model.paste(photo, sample, (0,)):
        assert edited.size == (90, 90)
        same = (np.asarray(edited) == np.asarray(square)).all(-1)
        assert same[kept].all()
        assert not same[~kept].all()


# ---- bits, and methods that read pictures of one size


def test_bits_are_read_as_text_as_a_number_and_with_how_sure_they_are(switches_run):
    x = -torch.ones(3, 8, 8)
    x[:, 0, :5] = torch.tensor([-0.01, 0.9, -0.5, 0.1, 1.0])  # probabilities (x + 1) / 2
    reading = pellucid.load(switches_run, device="cpu").read(x)
    assert reading.bits == "01011"
    assert reading.code == 2 + 8 + 16
    level = 1 / 255  # pictures are read as they would be from files
    assert reading.sureness.tolist() == pytest.approx([0.505, 0.95, 0.75, 0.55, 1], abs=level)
    assert reading.values["bits"].tolist() == pytest.approx([0.495, 0.95, 0.25, 0.55, 1], abs=level)
    assert reading.masks is None
    with pytest.raises(ValueError, match="no masks"):
        reading.labels  # noqa: B018


def test_a_model_without_bits_says_so(model):
    reading = model.read(np.zeros((8, 8, 3), np.uint8))
    for name in ("bits", "code", "sureness"):
        with pytest.raises(ValueError, match="reads no bits"):
            getattr(reading, name)


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (33, 20), (20, 20), (5, 9)])
def test_where_one_size_is_read_it_is_the_centre_square(model, monkeypatch, size):
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    given, read = [], model.method.read
    monkeypatch.setattr(type(model.method), "reads_any_size", False)
    monkeypatch.setattr(model.method, "read", lambda x, rng, **c: (given.append(x), read(x, rng, **c))[1])
    reading = model.read(photo)
    side = min(size)
    assert given[0].shape == (1, 3, 16, 16)
    assert torch.equal(given[0], model._square(photo))
    assert reading.image.size == (side, side)
    assert reading.masks.shape == (3, side, side)
    left, top = ((v - side) // 2 for v in size)
    assert np.array_equal(reading.image, photo.crop((left, top, left + side, top + side)))
    torch.testing.assert_close(reading.masks.sum(0), torch.ones(side, side))


def test_an_edit_flips_what_is_in_the_picture(switches_run):
    model = pellucid.load(switches_run, device="cpu")
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[0, [1, 3]] = 255
    sample = model.edit(picture, n=2, flip="2,5")
    assert (sample.readouts["bits"] > 0.5).int().tolist() == [[0, 0, 0, 1, 1]] * 2


# ---- controls that are several pictures


@pytest.fixture(scope="module")
def gae(gae_run):
    return pellucid.load(gae_run, device="cpu")


@pytest.fixture
def files(tmp_path):
    """a.png, "b=1.png" and "c,2.png" in a folder, of three sizes and modes; -> the folder."""
    rng = np.random.default_rng(0)
    for name, mode, size in (("a", "RGBA", (20, 30)), ("b=1", "L", (16, 16)), ("c,2", "RGB", (40, 21))):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(tmp_path / f"{name}.png")
    return tmp_path


def pixels_of(model, path):
    return model._square(path)


def test_pictures_for_parts_come_as_text_as_a_mapping_and_as_tensors(gae, files):
    text = f"identity={files / 'a.png'},pose={files / 'b=1.png'},background={files / 'c,2.png'}"
    places = {"identity": "a.png", "pose": "b=1.png", "background": "c,2.png"}
    mapping = {part: files / name for part, name in places.items()}
    tensors = {part: pixels_of(gae, path) for part, path in mapping.items()}
    for given in (text, mapping, {k: Image.open(v) for k, v in mapping.items()}, tensors):
        found = gae.opened({"replace": given, "num_steps": 2})
        assert found["num_steps"] == 2
        assert found["replace"].keys() == mapping.keys()
        for part, x in found["replace"].items():
            assert x.shape == (1, 3, 16, 16)
            assert torch.equal(x, tensors[part])
    common = {"num_steps": 2, "inversion_steps": 2, "seed": 1}
    one, other = (gae.edit(files / "a.png", replace=g, **common).images for g in (text, tensors))
    assert torch.equal(one, other)


def test_pictures_for_parts_are_shared_out_and_examples_are_not(gae, monkeypatch):
    given, n = [], 5
    monkeypatch.setattr(gae.method, "sample", lambda n, rng, **controls: given.append(controls))
    rng = torch.Generator().manual_seed(0)
    many = torch.rand(n, 3, 16, 16, generator=rng) * 2 - 1
    controls = {"image": many, "replace": {"pose": many.flip(0), "identity": many[:1]}, "towards": many}
    list(gae.parts(n, batch=2, **controls))
    assert [len(g["image"]) for g in given] == [2, 2, 1]
    assert torch.equal(torch.cat([g["replace"]["pose"] for g in given]), many.flip(0))
    for g in given:
        assert torch.equal(g["replace"]["identity"], many[:1])
        assert torch.equal(g["towards"], many)


def test_examples_are_a_folder_a_list_or_a_tensor(gae, files):
    (files / "more").mkdir()
    Image.new("RGB", (9, 9), "red").save(files / "more" / "d.jpg")
    (files / "notes.txt").touch()
    paths = [files / "a.png", files / "b=1.png", files / "c,2.png", files / "more" / "d.jpg"]
    wanted = torch.cat([pixels_of(gae, path) for path in paths])
    for given in (files, str(files), paths, tuple(Image.open(p) for p in paths), wanted):
        assert torch.equal(gae.opened({"towards": given})["towards"], wanted)
    common = {"num_steps": 2, "inversion_steps": 2}
    one, other = (gae.edit(paths[0], towards=g, **common).images for g in (files, wanted))
    assert torch.equal(one, other)
    assert not torch.equal(one, gae.edit(paths[0], **common).images)


@pytest.mark.parametrize(
    ("controls", "says"),
    [
        ({"replace": "pose"}, "replace is 'pose'; write identity=PICTURE, of identity, background, pose"),
        ({"replace": "pose="}, "replace.pose has no picture; write pose=PICTURE"),
        ({"replace": {}}, "replace is {}; write identity=PICTURE"),
        ({"replace": "pse=a.png"}, "replace has no 'pse'; there are .* Did you mean 'pose'"),
        ({"replace": {"pose": "a.png", "sky": "a.png"}}, "replace has no 'sky'"),
        ({"replace": "pose=no.png"}, "no.png: no such file"),
        ({"replace": "pose=a.png,pose=b.png"}, "replace.pose is given twice, as a.png and as b.png"),
        ({"replace": {"pose": torch.zeros(2, 3, 16, 16)}}, "expected .*one of them or n = 3"),
        ({"towards": "nowhere"}, "towards is 'nowhere', which is not there; give a folder"),
        ({"towards": "a.png"}, "towards is 'a.png', which is a file; give a folder"),
        ({"towards": "empty"}, "towards: empty holds no pictures"),
        ({"towards": "broken"}, "cut.png: "),
        ({"towards": []}, r"towards is a list; it is one picture or more"),
        ({"towards": torch.zeros(3, 16, 16)}, r"towards is \(3, 16, 16\); it is one picture or more"),
        ({"towards": torch.zeros(2, 3, 8, 8)}, r"towards is \(2, 3, 8, 8\); it is \(N, C, H, W\)"),
    ],
)
def test_mistakes_with_several_pictures_are_named(gae, files, monkeypatch, controls, says):
    monkeypatch.chdir(files)
    (files / "empty").mkdir()
    (files / "broken").mkdir()
    (files / "broken" / "cut.png").write_bytes((files / "a.png").read_bytes()[:200])
    with pytest.raises(ValueError, match=says):
        gae.sample(3, num_steps=1, **controls)


def test_a_file_that_is_no_picture_is_named(gae, files):
    (files / "text.png").write_text("404")
    with pytest.raises(BadImage, match=re.escape(str(files / "text.png"))):
        gae.parts(1, replace={"pose": files / "text.png"})


# ---- cameras as a control -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scene(scene_run):
    return pellucid.load(scene_run, device="cpu")


def cameras_of(sample):
    return sample.readouts["camera"].view(-1, 4, 4)


def test_a_path_is_one_path_however_it_is_batched(scene):
    whole, parts = (scene.sample(7, cameras="orbit:elevation=20", batch=b) for b in (7, 3))
    assert torch.equal(whole.images, parts.images)
    azimuth, elevation = angles_of(cameras_of(parts))
    assert elevation.rad2deg().tolist() == pytest.approx([20] * 7, abs=1e-4)
    steps = azimuth.diff().remainder(2 * math.pi)
    torch.testing.assert_close(steps, torch.full((6,), 2 * math.pi / 7))
    assert whole.controls["cameras"] == "orbit:elevation=20"


def test_a_spiral_climbs_between_its_elevations(scene):
    azimuth, elevation = angles_of(
        scene.opened({"cameras": "spiral:low=5,high=50,turns=0.25"}, n=10)["cameras"]
    )
    torch.testing.assert_close(elevation.rad2deg(), torch.linspace(5, 50, 10))
    assert (azimuth[-1] - azimuth[0]).item() == pytest.approx(math.pi / 2, abs=1e-5)


def test_cameras_between_two_photographs_begin_and_end_where_those_were_taken(scene, tmp_path):
    rng = np.random.default_rng(0)
    places = [tmp_path / "a.png", tmp_path / "b,c.png"]
    for place in places:
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(place)
    found = cameras_of(scene.sample(5, cameras=f"{places[0]},{places[1]}", seed=3, batch=2))
    for i, place in ((0, places[0]), (4, places[1])):
        wanted = scene.read(place, seed=3).values["camera"].view(4, 4)
        torch.testing.assert_close(found[i], wanted, atol=1e-5, rtol=0)


def test_cameras_of_a_tensor_are_one_for_all_or_one_for_each(scene):
    some = scene.method.around(4)
    assert torch.equal(cameras_of(scene.sample(4, cameras=some, batch=3)), some)
    assert torch.equal(cameras_of(scene.sample(4, cameras=some[1])), some[1:2].expand(4, 4, 4))
    with pytest.raises(ValueError, match="4 cameras for 3 images"):
        scene.sample(3, cameras=some)
    assert "cameras" not in scene.sample(4, cameras=some).controls


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("orbt", "Did you mean 'orbit'"),
        ("orbit:elevaton=3", "Did you mean 'elevation'"),
        ("orbit:elevation", "orbit:elevation=30,start=0"),
        ("orbit:elevation=100", "between -90 and 90"),
        ("orbit:elevation=nan", "between -90 and 90"),
        ("spiral:low=a", "low of spiral is 'a'"),
        ("spiral:low=1,low=2", "low twice"),
        ("orbit:", "no option of orbit"),
        ("a.png", "image=a.png"),
        ("a.png,b.png", "a.png: no such file"),
        ("nothing.json", "no such file"),
    ],
)
def test_a_path_that_is_none_is_told_with_what_is_possible(scene, text, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        scene.sample(2, cameras=text)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "no JSON"),
        ('{"frames": []}', "no frames"),
        ('{"frames": [{"file_path": "a.png"}]}', "frame 0: transform_matrix is not 4 rows"),
        (json.dumps({"frames": [{"transform_matrix": (2 * np.eye(4)).tolist()}]}), "frame 0: .*rigid"),
        (json.dumps({"frames": [{"transform_matrix": (np.nan * np.eye(4)).tolist()}]}), "frame 0: .*NaN"),
    ],
)
def test_a_file_of_cameras_that_is_none_is_told_with_its_name(scene, tmp_path, content, told):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"bad.json.*{told}"):
        scene.sample(2, cameras=path)


def test_a_scene_that_cameras_look_into_is_passed_on_small_circles(scene, monkeypatch):
    monkeypatch.setattr(scene.method, "view", replace(scene.method.view, forward=True, background="none"))
    near = scene.method.view.near
    for text, first, last in (("orbit:sway=0.2", 0.2, 0.2), ("spiral:sway=0.2", 0.0, 0.2)):
        cameras = scene.opened({"cameras": text}, n=9)["cameras"]
        assert torch.equal(cameras[:, :3, :3], torch.eye(3).expand(9, 3, 3))
        aside = cameras[:, :3, 3].norm(dim=1) / near
        assert (aside[0].item(), aside[-1].item()) == pytest.approx((first, last))
    with pytest.raises(ValueError, match=r"orbit:sway=0\.15,start=0"):
        scene.opened({"cameras": "orbit:elevation=30"})


def test_a_view_is_rendered_at_any_size(scene):
    small, large = (scene.sample(2, cameras="orbit", render_size=s) for s in (16, 48))
    assert large.images.shape == (2, 3, 48, 48)
    assert large.readouts["depth"].shape == (2, 48, 48)
    torch.testing.assert_close(
        torch.nn.functional.avg_pool2d(large.images, 3), small.images, atol=0.05, rtol=0
    )
    assert torch.equal(scene.sample(2, cameras="orbit").images, small.images)
