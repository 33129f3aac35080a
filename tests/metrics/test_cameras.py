"""Against scipy's alignment, and against similarities and perturbations that are known."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from pellucid.cameras import on_sphere, rigid, rotation
from pellucid.metrics.cameras import Similarity, aligned, camera_errors, umeyama


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_similarity(seed: int = 0, scale: float = 2.3) -> Similarity:
    turn = Rotation.random(rng=np.random.default_rng(seed)).as_matrix()
    return Similarity(scale=scale, rotation=torch.from_numpy(turn), move=random(3, seed=seed))


def some_cameras(n: int = 12) -> torch.Tensor:
    turned = torch.linspace(0, 5, n, dtype=torch.float64)
    return on_sphere(turned, 0.5 + 0.4 * (3 * turned).sin(), 3.0 + 0.2 * turned.cos())


def misfit(by: Similarity, a: torch.Tensor, b: torch.Tensor) -> float:
    return float((by.points(a) - b).square().sum())


# ---- points


@pytest.mark.parametrize("seed", range(8))
def test_a_similarity_is_found_again(seed):
    true = some_similarity(seed, scale=0.1 + seed)
    a = random(5, 3, seed=seed + 20)
    found = umeyama(a, true.points(a))
    assert found.scale == pytest.approx(true.scale)
    torch.testing.assert_close(found.rotation, true.rotation)
    torch.testing.assert_close(found.move, true.move)
    back = found.inverse()
    torch.testing.assert_close(back.points(found.points(a)), a)


@pytest.mark.parametrize("seed", range(8))
def test_noisy_points_are_aligned_as_scipy_aligns_them(seed):
    a = random(20, 3, seed=seed)
    b = some_similarity(seed).points(a) + 0.7 * random(20, 3, seed=seed + 50)
    found = umeyama(a, b)
    centred = (a - a.mean(0)).numpy(), (b - b.mean(0)).numpy()
    turn, _ = Rotation.align_vectors(centred[1], centred[0])
    torch.testing.assert_close(found.rotation, torch.from_numpy(turn.as_matrix()), atol=1e-8, rtol=0)
    scale = (centred[1] * turn.apply(centred[0])).sum() / (
        centred[0] ** 2
    ).sum()  # least squares, given the turn
    assert found.scale == pytest.approx(scale)
    torch.testing.assert_close(
        found.move, b.mean(0) - scale * torch.from_numpy(turn.apply(a.mean(0).numpy()))
    )


def test_no_other_similarity_fits_better():
    a, b = random(9, 3), random(9, 3, seed=1)
    found = umeyama(a, b)
    least = misfit(found, a, b)
    for seed in range(200):
        turn = rotation(0.1 * random(1, 3, seed=seed))[0] @ found.rotation
        other = Similarity(
            scale=found.scale * float(torch.exp(0.1 * random(1, seed=seed + 1))),
            rotation=turn,
            move=found.move + 0.1 * random(3, seed=seed + 2),
        )
        assert misfit(other, a, b) >= least


@pytest.mark.parametrize("seed", range(5))
def test_what_only_a_mirror_would_fit_is_turned_and_not_mirrored(seed):
    a = random(8, 3, seed=seed)
    found = umeyama(a, a * torch.tensor([1.0, 1.0, -1.0]))
    assert torch.linalg.det(found.rotation) == pytest.approx(1.0)
    assert found.scale > 0
    flat = a * torch.tensor([1.0, 1.0, 0.0])  # a plane's mirror image is a turn of it
    assert (
        misfit(
            umeyama(flat, flat * torch.tensor([-1.0, 1.0, 1.0])), flat, flat * torch.tensor([-1.0, 1.0, 1.0])
        )
        < 1e-18
    )


def test_points_on_a_line_are_aligned_and_leave_a_turn_open():
    a = torch.linspace(-1, 2, 7, dtype=torch.float64)[:, None] * torch.tensor([[1.0, 2.0, -1.0]])
    true = some_similarity(3)
    found = umeyama(a, true.points(a))
    assert found.rotation.isfinite().all()
    assert torch.linalg.det(found.rotation) == pytest.approx(1.0)
    torch.testing.assert_close(found.points(a), true.points(a))


@pytest.mark.parametrize(
    ("a", "said"), [((2, 3), "at least three"), ((5, 2), "at least three"), ("one", "stand at one point")]
)
def test_points_that_say_nothing_are_refused(a, said):
    points = torch.ones(5, 3) if a == "one" else random(*a)
    with pytest.raises(ValueError, match=said):
        umeyama(points, random(*points.shape))


# ---- cameras


@pytest.mark.parametrize("seed", range(5))
def test_cameras_in_another_world_have_no_error(seed):
    true, by = some_cameras(), some_similarity(seed, scale=0.3 + seed)
    found = by.cameras(true)
    torch.testing.assert_close(aligned(found, true).scale, 1 / by.scale)
    errors = camera_errors(found, true, aligned(found, true))
    assert errors.rotation.max() < 1e-6
    assert errors.translation.max() < 1e-9


def test_a_camera_that_is_wrong_has_its_own_error():
    """With the alignment of the others, to which it adds nothing."""
    true, by = some_cameras(), some_similarity(1)
    wrong = true.clone()
    wrong[4, :3, :3] = (
        wrong[4, :3, :3] @ rotation(torch.tensor([[0.0, math.radians(20), 0.0]], dtype=torch.float64))[0]
    )
    radius = (true[:, :3, 3] - true[:, :3, 3].mean(0)).norm(dim=1).median()
    wrong[7, :3, 3] += radius * torch.tensor([0.0, 0.6, 0.8])
    found = by.cameras(wrong)
    others = [i for i in range(12) if i not in (4, 7)]
    errors = camera_errors(found, true, aligned(found[others], true[others]))
    assert errors.rotation[4] == pytest.approx(20)
    assert errors.translation[7] == pytest.approx(1.0)
    rest = [i for i in range(12) if i != 4]
    assert errors.rotation[rest].max() < 1e-6
    assert errors.translation[[i for i in range(12) if i != 7]].max() < 1e-9
    whole = camera_errors(
        found, true, aligned(found, true)
    )  # and it moves an alignment that it is part of a little
    assert 10 < whole.rotation[4] < 25
    assert whole.rotation[rest].median() < 6


def test_cameras_at_random_are_far_off():
    true = some_cameras(100)
    turn = torch.from_numpy(Rotation.random(100, rng=np.random.default_rng(0)).as_matrix())
    errors = camera_errors(rigid(turn, random(100, 3)), true, aligned(rigid(turn, random(100, 3)), true))
    assert errors.rotation.median() > 60
    assert errors.translation.median() > 0.5


def test_float32_cameras_are_enough():
    true, by = some_cameras(), some_similarity(2)
    found = by.cameras(true).float()
    errors = camera_errors(found, true.float(), aligned(found, true.float()))
    assert errors.rotation.max() < 1e-3
    assert errors.translation.max() < 1e-5


def test_cameras_on_a_line_are_aligned_by_the_way_they_look():
    true = some_cameras(6)
    true[:, :3, 3] = torch.linspace(0, 1, 6, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.5, 2.0])
    found = some_similarity(4).cameras(true)
    errors = camera_errors(found, true, aligned(found, true))
    assert errors.rotation.max() < 1e-6
    assert errors.translation.max() < 1e-9


def in_one_place(n: int = 5) -> torch.Tensor:
    turn = torch.from_numpy(Rotation.random(n, rng=np.random.default_rng(1)).as_matrix())
    return rigid(turn, torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).expand(n, 3))


def test_cameras_in_one_place_are_aligned_by_the_way_they_look():
    true = in_one_place()
    turn = some_similarity(5, scale=1.0)
    errors = camera_errors(turn.cameras(true), true, aligned(turn.cameras(true), true))
    assert errors.rotation.max() < 1e-6


@pytest.mark.parametrize("which", ["found", "true"])
def test_cameras_in_one_place_against_others_have_finite_errors(which):
    spread = some_cameras(5)
    found, true = (in_one_place(), spread) if which == "found" else (spread, in_one_place())
    by = aligned(found, true)
    errors = camera_errors(found, true, by)
    assert math.isfinite(by.scale)
    assert by.scale >= 0
    assert errors.rotation.isfinite().all()
    if which == "found":
        assert errors.translation.isfinite().all()
        assert errors.translation.median() == pytest.approx(1, abs=0.4)  # all in the middle
