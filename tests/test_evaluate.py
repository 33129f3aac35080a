import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import pellucid
from pellucid.cameras import rotation
from pellucid.data.catalog import open_data
from pellucid.data.images import to_uint8
from pellucid.evaluate import evaluate, evaluate_mapped, how_scored, record, table
from pellucid.recipes import DataSpec, build, recipe, recipe_to_json
from pellucid.train.trainer import train
from pellucid.view_scores import TITLES, Photographs, found_by_lift, scored


def labelled(root, classes=("circle", "square"), n=4):
    """A folder of pictures with masks, in a sub-folder for each class."""
    rng = np.random.default_rng(0)
    for name in classes:
        for kind in ("images", "masks"):
            (root / kind / name).mkdir(parents=True)
        for i in range(n):
            mask = np.zeros((16, 16), np.uint8)
            mask[4:12, 3 + i : 11 + i] = 1
            colours = rng.integers(0, 256, (2, 3))
            Image.fromarray(colours[mask].astype(np.uint8)).save(root / "images" / name / f"{i}.png")
            Image.fromarray(mask).save(root / "masks" / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory, trained_run):
    """Class-conditional on the shapes of scenes."""
    return pellucid.load(
        trained_run(tmp_path_factory.mktemp("runs") / "class", "factorized-class"), device="cpu"
    )


def test_a_label_map_reads_each_class_as_another(model, tmp_path):
    known = model.recipe.data.class_names
    result = evaluate_mapped(model, str(labelled(tmp_path)), {"circle": known[0], "square": known[1]})
    assert set(result["scores"]) == {f"circle as {known[0]}", f"square as {known[1]}", "all classes"}
    assert result["pictures_scored"] == 8


def test_a_label_map_must_name_classes_that_are_there(model, tmp_path):
    folder = str(labelled(tmp_path))
    with pytest.raises(ValueError, match="hexagon"):
        evaluate_mapped(model, folder, {"hexagon": model.recipe.data.class_names[0]})
    with pytest.raises(ValueError, match="label is 'nothing'"):
        evaluate_mapped(model, folder, {"circle": "nothing"})


def test_a_data_sets_assignment_is_not_chosen_on_what_is_scored(model, tmp_path):
    result = evaluate(model, str(labelled(tmp_path)))
    assert result["pictures_scored"] == result["pictures_to_choose_on"] == 4


def test_scores_are_kept_by_data(tmp_path):
    record(tmp_path, {"data": "a", "scores": {}})
    record(tmp_path, {"data": "b", "scores": {}})
    record(tmp_path, {"data": "a", "scores": {"x": 1}})
    kept = json.loads((tmp_path / "metrics.json").read_text())
    assert set(kept) == {"a", "b"}
    assert kept["a"]["scores"] == {"x": 1}


def test_a_data_sets_assignment_is_chosen_on_every_class(model, tmp_path):
    folder = labelled(tmp_path, classes=("a", "b"), n=8)
    scored = evaluate(model, str(folder), limit=8)
    assert scored["pictures_scored"] == scored["pictures_to_choose_on"] == 4
    assert scored["scores"] == evaluate(model, str(folder), limit=8)["scores"]
    assert scored["scores"] != evaluate(model, str(folder), limit=8, seed=1)["scores"]


def test_masks_that_are_all_ground_score_nothing(model, tmp_path):
    folder = labelled(tmp_path)
    for path in (folder / "masks").rglob("*.png"):
        Image.fromarray(np.zeros((16, 16), np.uint8)).save(path)
    with pytest.raises(ValueError, match="all ground"):
        evaluate(model, str(folder))


def test_pictures_that_were_trained_on_are_not_scored(tmp_path, monkeypatch):
    folder, few = labelled(tmp_path, n=40), labelled(tmp_path / "few", n=1)

    def trained_on(spec):
        made = recipe("factorized", "tiny", DataSpec(spec=str(spec), size=16), steps=1)
        run = tmp_path / f"run-{spec.name}"
        train(build(made), open_data(str(spec), size=16), made.train, run, meta=recipe_to_json(made))
        return pellucid.load(run, device="cpu")

    monkeypatch.chdir(tmp_path)
    same = trained_on(folder.relative_to(tmp_path))
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    monkeypatch.chdir("/")
    held_out = 80 - len(open_data(str(folder), size=16, split="train"))
    for spec in (folder, moved):  # from anywhere, by any name
        result = evaluate(same, str(spec))
        assert result["pictures_scored"] + result["pictures_to_choose_on"] == held_out
    result = evaluate(same, str(labelled(tmp_path / "other", n=41)))
    assert result["pictures_scored"] + result["pictures_to_choose_on"] == 82
    with pytest.raises(ValueError, match="trained on all"):
        evaluate(trained_on(few), str(few))


def test_a_label_map_says_something(model, tmp_path):
    with pytest.raises(ValueError, match="at least one class"):
        evaluate_mapped(model, str(labelled(tmp_path)), {})


@pytest.fixture
def scene(scene_run):
    return pellucid.load(scene_run, device="cpu")


def test_a_scene_is_scored_on_views_that_it_has_not_seen(scene):
    result = evaluate(scene)
    figures = result["scores"]["lift3d"]
    assert result["pictures_scored"] == 16
    assert set(TITLES) <= set(figures)
    assert how_scored(result) == "cameras aligned by training views"
    assert table(result)[0].split()[0] == "PSNR"
    assert evaluate(scene, refine=2)["scores"] != result["scores"]


def test_photographs_without_cameras_are_scored_as_pictures(scene, tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    views = open_data("views-boxes", size=16, split="val")
    for i, x in enumerate(views.batch(np.arange(4)).x0):
        Image.fromarray(to_uint8(x[None])[0]).save(folder / f"{i}.png")
    figures = evaluate(scene, str(folder))["scores"]["lift3d"]
    assert {"psnr", "ssim", "used", "accuracy"} <= set(figures)
    assert "rotation" not in figures


def test_cameras_of_another_folder_are_aligned_by_themselves(scene, tmp_path):
    """Its true cameras lie in a world of its own, which training views say nothing of."""
    views = open_data("views-boxes", size=16, split="val")
    other = tmp_path / "other"
    other.mkdir()
    turn = rotation(torch.tensor([0.3, -0.2, 1.0])).numpy()
    frames = []
    for i, x in enumerate(views.batch(np.arange(8)).x0):
        Image.fromarray(to_uint8(x[None])[0]).save(other / f"{i}.png")
        camera = views.cameras[i].copy()
        camera[:3] = turn @ (camera[:3] * [1, 1, 1, 5]) + [[0, 0, 0, 7]]
        frames.append({"file_path": f"{i}.png", "transform_matrix": camera.tolist()})
    table = {"fl_x": 16 * views.focal[0], "w": 16, "h": 16, "test_filenames": [f"{i}.png" for i in range(8)]}
    (other / "transforms.json").write_text(json.dumps(table | {"frames": frames}))
    by_themselves = evaluate(scene, str(other))
    assert how_scored(by_themselves) == "cameras aligned by the views scored"
    figures = by_themselves["scores"]["lift3d"]
    assert "rotation_train" not in figures
    held = Photographs.of(views)
    here = scored(found_by_lift(scene.method, None, held, 0), None, held)
    for key in ("psnr", "rotation", "translation"):  # whatever world the file has
        assert figures[key] == pytest.approx(here[key], rel=2e-2), key


def test_without_training_views_cameras_are_aligned_by_those_scored(scene, monkeypatch):
    def gone(model):
        raise ValueError("not here")

    monkeypatch.setattr("pellucid.evaluate.training_pictures", gone)
    result = evaluate(scene, "views-boxes")
    assert how_scored(result) == "cameras aligned by the views scored"
    assert {"rotation", "translation"} <= set(result["scores"]["lift3d"])
    assert "accuracy" not in result["scores"]["lift3d"]
