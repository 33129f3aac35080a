"""The procedural world: every number of it is a function of (seed, split, index), and the picture agrees with it."""

import numpy as np
import pytest
import torch

from pellucid.data.scenes import COLOURS, SHAPES, TEXTURES, Scenes

AT = np.arange(24)


@pytest.fixture(scope="module")
def scenes():
    return Scenes(size=32, length=1000)


@pytest.fixture(scope="module")
def batch(scenes):
    return scenes.batch(AT)


def test_a_batch_has_what_the_class_says(batch):
    assert batch.x0.shape == (24, 3, 32, 32)
    assert batch.x0.dtype == torch.float32
    assert batch.x0.abs().max() <= 1
    assert batch.masks.shape == (24, 32, 32)
    assert {
        "count",
        "shape",
        "colour",
        "texture",
        "position",
        "share",
        "pose",
        "light",
        "depth",
        "shadow",
    } <= set(batch.truth)
    assert all(len(v) == 24 for v in batch.truth.values())


def test_a_scene_is_a_function_of_its_index(scenes, batch):
    alone = scenes.batch(np.array([7]))
    assert torch.equal(alone.x0[0], batch.x0[7])
    assert torch.equal(alone.masks[0], batch.masks[7])
    turned = scenes.batch(AT[::-1].copy())
    assert torch.equal(turned.x0.flip(0), batch.x0)


def test_seeds_and_splits_are_other_worlds(batch):
    for options in ({"seed": 1}, {"split": "val"}, {"split": "test"}):
        other = Scenes(size=32, length=1000, **options).batch(AT)
        assert (other.x0 - batch.x0).abs().mean((1, 2, 3)).min() > 0.02


def test_a_scene_is_the_same_at_every_size(batch):
    large = Scenes(size=128, length=1000).batch(AT)
    smaller = torch.nn.functional.avg_pool2d(large.x0, 4)
    assert (smaller - batch.x0).abs().mean() < 0.06
    agree = (large.masks[:, 2::4, 2::4] > 0) == (batch.masks > 0)
    assert agree.float().mean() > 0.98
    for key in ("shape", "colour", "position", "pose"):
        assert torch.equal(large.truth[key], batch.truth[key])


def test_masks_count_the_objects(batch):
    seen = [set(m.unique().tolist()) - {0} for m in batch.masks]
    for objects, count in zip(seen, batch.truth["count"].tolist(), strict=True):
        assert objects <= set(range(1, count + 1))
    assert np.mean([len(o) == c for o, c in zip(seen, batch.truth["count"].tolist(), strict=True)]) > 0.9


def test_shares_are_those_of_the_masks_where_nothing_hides(batch):
    single = batch.truth["count"] == 1
    assert single.any()
    area = (batch.masks[single] == 1).float().mean((1, 2))
    torch.testing.assert_close(area, batch.truth["share"][single, 0].float(), atol=0.03, rtol=0.1)


def test_positions_are_where_the_objects_are(batch):
    single = (batch.truth["count"] == 1).nonzero()[:, 0]
    axis = (torch.arange(32) + 0.5) / 16 - 1
    for i in single:
        mask = (batch.masks[i] == 1).float()
        if mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any():
            continue  # cut by the frame: its centre of mass is not its centre
        centre = torch.stack([(mask.sum(0) * axis).sum(), (mask.sum(1) * axis).sum()]) / mask.sum()
        assert (centre - batch.truth["position"][i, 0]).abs().max() < 0.25


def test_the_label_is_the_shape_of_the_largest_object(batch):
    largest = batch.truth["share"].argmax(1)
    assert torch.equal(batch.labels, batch.truth["shape"].gather(1, largest[:, None])[:, 0])


def test_objects_are_nearer_than_the_ground(batch):
    depth, on = batch.truth["depth"], batch.masks > 0
    for d, m in zip(depth, on, strict=True):
        if m.any() and not m.all():
            assert d[m].max() < d[~m].min() + 1e-5


def test_shadows_fall_on_the_ground_and_take_light(batch):
    assert (batch.truth["shadow"] >= 0).all()
    assert (batch.truth["shadow"] <= 1).all()
    assert (batch.truth["shadow"].flatten(1).amax(1) > 0.1).float().mean() > 0.8


def test_nothing_simple_gives_the_objects_away(scenes):
    """Objects and grounds have the same brightness and contrast on average."""
    many = scenes.batch(np.arange(300))
    grey, on = many.x0.mean(1), many.masks > 0
    assert abs(grey[on].mean() - grey[~on].mean()) < 0.12
    assert abs(grey[on].std() - grey[~on].std()) < 0.12


def test_the_first_frame_is_the_picture_and_the_next_move(scenes, batch):
    frames = scenes.frames(3, 5)
    assert torch.equal(frames.x0[0], batch.x0[3])
    steps = (frames.x0[1:] - frames.x0[:-1]).abs().mean((1, 2, 3))
    assert (steps > 0.005).all()
    assert torch.equal(frames.truth["colour"], frames.truth["colour"][:1].expand(5, -1))


def test_what_is_nearer_shifts_more_between_views(scenes, batch):
    i = int((batch.truth["count"] == 1).nonzero()[0, 0])
    pose = batch.truth["pose"][i].numpy()
    moved = scenes.views(i, np.stack([pose, pose + np.array([0.15, 0, 0])]))
    torch.testing.assert_close(moved.x0[0], batch.x0[i], atol=1e-4, rtol=0)
    shift = (moved.truth["position"][1] - moved.truth["position"][0])[0, 0].abs()
    ground = 0.15 * pose[2]
    assert shift > ground * 1.01
    assert (moved.truth["depth"][0] - batch.truth["depth"][i]).abs().max() < 1e-4


def test_captions_tell_what_is_there(scenes, batch):
    for text, count, colour in zip(
        scenes.captions(AT), batch.truth["count"].tolist(), batch.truth["colour"], strict=True
    ):
        assert sum(text.count(s) for s in SHAPES) >= count
        assert all(COLOURS[c] in text for c in colour[:count].tolist())
        assert any(t in text for t in TEXTURES)
        assert text.endswith("ground")


def test_grey_is_luminance(scenes, batch):
    grey = Scenes(size=32, length=1000, channels=1).batch(AT)
    assert grey.x0.shape == (24, 1, 32, 32)
    assert torch.equal(grey.masks, batch.masks)
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    both = torch.stack([grey.x0.flatten(), (batch.x0 * luma).sum(1).flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.97


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size": 4}, "at least 8"),
        ({"length": 0}, "at least 1"),
        ({"objects": (0, 3)}, "1 to 8"),
        ({"objects": (3, 2)}, "1 to 8"),
        ({"channels": 2}, "3 for colour"),
        ({"split": "dev"}, "dev"),
    ],
)
def test_what_makes_no_scene_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        Scenes(**{"size": 16, "length": 10} | options)


def test_indices_and_poses_are_checked(scenes):
    with pytest.raises(IndexError, match="1000"):
        scenes.batch(np.array([1000]))
    with pytest.raises(ValueError, match="zoom over 0"):
        scenes.views(0, np.zeros((1, 3)))
    with pytest.raises(ValueError, match="at least 1 frame"):
        scenes.frames(0, 0)
