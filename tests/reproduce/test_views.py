"""What the tables of 3-D scenes say of a method that finds every camera, and of one that finds none."""

import math
from dataclasses import replace

import pytest
import torch

from pellucid.cameras import on_sphere, rotation
from pellucid.data.catalog import open_data
from pellucid.methods.lift3d.poses import Poses
from pellucid.metrics.cameras import Similarity
from pellucid.recipes import DataSpec, build, recipe
from pellucid.reproduce.harness import Setting
from pellucid.reproduce.lift_ablation import changed_to
from pellucid.reproduce.views import photographs
from pellucid.view_scores import found_by_lift, found_by_nerf, scored


@pytest.fixture
def setting(tmp_path):
    return Setting(scale="tiny", seeds=(0,), data=("views-boxes",), out=tmp_path, say=print, size=16, steps=1)


@pytest.fixture
def views(setting):
    return photographs(setting, "views-boxes", "train"), photographs(setting, "views-boxes", "test")


def built(name: str):
    data = open_data("views-boxes", size=16)
    return build(recipe(name, "tiny", DataSpec.of(name, "views-boxes", data))).eval()


def knowing(method, views, turn: Similarity, *, right: int = 2):
    """The method, whose candidate `right` stands where each view was taken, in a world turned by a similarity."""
    known = torch.cat([v.x for v in views]).flatten(1)
    cameras = torch.cat([turn.cameras(v.cameras) for v in views]).float()

    def poses_of(x, rng):
        which = torch.cdist(x.flatten(1), known).argmin(1)
        wrong = on_sphere(torch.linspace(0, 6, 4), torch.full((4,), 0.3), 3.0)
        all_of_them = wrong.expand(len(x), 4, 4, 4).clone()
        all_of_them[:, right] = cameras[which]
        scores = torch.zeros(len(x), 4)
        scores[:, right] = 5
        return Poses(cameras=all_of_them, scores=scores)

    method.poses_of = poses_of
    return method


def test_cameras_that_are_right_in_another_world_have_no_error(views):
    turn = Similarity(
        scale=0.7, rotation=rotation(torch.tensor([0.4, -1.0, 2.0])).double(), move=torch.ones(3).double()
    )
    found = found_by_lift(knowing(built("lift3d-4"), views, turn), *views, 0)
    figures = scored(found, *views)
    assert figures["rotation"] < 0.05
    assert figures["translation"] < 1e-4
    assert figures["rotation_train"] < 0.05
    assert figures["used"] == 1
    assert figures["near"] == 1


def test_a_mirrored_world_is_not_aligned_away(views):
    """What sees every view in a mirror has found no scene, and no similarity without a mirror makes it one."""
    mirrored = [
        replace(v, cameras=on_sphere(-torch.atan2(v.cameras[:, 1, 3], v.cameras[:, 0, 3]),
                                     torch.asin(v.cameras[:, 2, 3] / 3), 3.0))
        for v in views
    ]  # fmt: skip
    still = Similarity(scale=1.0, rotation=torch.eye(3).double(), move=torch.zeros(3).double())
    found = found_by_lift(knowing(built("lift3d-4"), mirrored, still), *mirrored, 0)
    assert scored(found, *views)["rotation"] > 20


def test_views_are_scored_from_the_cameras_that_were_found(views):
    """A field that is empty shows its background alone, whatever the camera: PSNR is that of white."""
    method = built("lift3d-4")
    torch.nn.init.constant_(method.field.density.bias, -100.0)
    torch.nn.init.zeros_(method.field.density.weight)
    still = Similarity(scale=1.0, rotation=torch.eye(3).double(), move=torch.zeros(3).double())
    figures = scored(found_by_lift(knowing(method, views, still), *views, 0), *views)
    error = (1 - views[1].x).square().mean((1, 2, 3))
    assert figures["psnr"] == pytest.approx((10 * (4 / error).log10()).mean().item(), abs=1e-3)


def test_given_cameras_are_not_scored(views):
    figures = scored(found_by_nerf(built("nerf"), *views, 0, refine=2), *views)
    assert set(figures) == {"psnr", "ssim", "depth"}
    learned = scored(found_by_nerf(built("nerf--"), *views, 0, refine=2), *views)
    assert set(learned) == {
        "psnr",
        "ssim",
        "depth",
        "rotation_train",
    }  # true cameras had a part in the held-out ones


def test_views_without_cameras_are_refused(setting):
    with pytest.raises(ValueError, match="scenes has no cameras to score against"):
        photographs(setting, "scenes", "test")


def test_the_ablation_changes_what_it_says_and_nothing_else(setting):
    assert changed_to(setting, 12, 0.1) == {"imagined": 0}
    usual = recipe(
        "lift3d", "tiny", DataSpec.of("lift3d", "views-boxes", open_data("views-boxes", size=16))
    ).config.poses
    other = changed_to(setting, 4, 0.5)["poses"]
    assert (other.candidates, other.score_weight) == (4, 0.5)
    assert replace(other, candidates=12, score_weight=0.1) == usual
    assert math.isclose(usual.score_weight, 0.1)
