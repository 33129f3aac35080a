"""The tables at the smallest scale: what they write, that they use a run again, and that they add up."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from PIL import Image

import pellucid
from pellucid.methods.base import Method
from pellucid.metrics.distribution import Pixels
from pellucid.reproduce import TABLES
from pellucid.reproduce.attributes import AttributeJudge, Pictures
from pellucid.reproduce.coarse import Judge
from pellucid.reproduce.disentangle import verdicts
from pellucid.reproduce.harness import Column, Report, Setting, data_for, trained


def make(name, out, **options):
    said = []
    given = {"scale": "tiny", "seeds": 1, "data": ("scenes",), "steps": 2} | options
    return TABLES[name].run(out=out, say=said.append, **given), said


@pytest.mark.parametrize("name", list(TABLES))
def test_a_table_has_every_row_and_writes_what_it_prints(name, tmp_path):
    own = ("ring", "toys", "views-boxes", "views-forward")
    data = next((d for d in own if d in TABLES[name].data), "scenes")
    report, _ = make(name, tmp_path, data=(data,))
    assert len(report.rows) >= 3
    assert {of for of, _ in report.rows} == {data}
    keys = {c.key for c in report.columns}
    assert all(set(cells) & keys for cells in report.rows.values())
    written = json.loads((tmp_path / f"{name}.json").read_text())
    assert len(written["rows"]) == len(report.rows)
    first = 100 if name == "factorized-guidance" else 0  # what is chosen there is reported on other seeds
    assert written["conditions"]["seeds"] == [first]
    assert (tmp_path / f"{name}.txt").read_text().strip() == "\n".join(report.lines()).strip()
    for picture in report.pictures:
        assert Image.open(tmp_path / picture).width > 32


def test_tables_of_attributes_share_their_runs_and_refuse_data_without_a_table(tmp_path):
    make("gae-disentangle", tmp_path, data=("toys",))
    runs = {p.name for p in (tmp_path / "runs").iterdir()}
    make("gae-interpolate", tmp_path, data=("toys",))
    assert {p.name for p in (tmp_path / "runs").iterdir()} == runs
    with pytest.raises(ValueError, match="pictures have none: give data with a table"):
        make("gae-zeroshot", tmp_path, data=("scenes",))


def test_parts_are_judged_on_every_cell(tmp_path):
    report, _ = make("gae-disentangle", tmp_path, data=("toys",), rows=("DiffuseGAE", "Diff-AE"))
    for part in ("identity", "background", "pose"):
        for row in ("DiffuseGAE", "Diff-AE"):
            cells = report.rows["toys", f"{row}: part {part}"]
            assert set(cells) == {"reads_identity", "reads_background", "reads_pose"}
    assert report.rows["toys", "by chance, 1/|A|"]["reads_pose"] == [0.1]
    ours = np.array(
        [
            [
                report.rows["toys", f"DiffuseGAE: part {p}"][f"reads_{a}"][0]
                for a in ("identity", "background", "pose")
            ]
            for p in ("identity", "background", "pose")
        ]
    )
    assert report.rows["toys", "DiffuseGAE"]["own"] == [pytest.approx(ours.diagonal().min())]
    assert any("nearer the best than Diff-AE in" in note for note in report.notes)


def test_verdicts_count_the_cells_in_which_ours_is_nearer_the_best():
    floor = np.array([0.5, 0.25])
    ours = np.array([[0.9, 0.3], [0.5, 1.0]])
    theirs = np.array([[0.8, 0.2], [0.7, 1.0]])
    said = verdicts("d", {"DiffuseGAE": ours, "Other": theirs}, floor)
    assert "at least 0.900, others within 0.050" in said[0]
    assert "nearer the best than Other in 2 of 4 cells, equal in 2" in said[1]


def test_a_judge_of_pictures_learns_what_the_table_says(tmp_path):
    setting = Setting(scale="cpu", seeds=(0,), data=("toys",), out=tmp_path, say=print, size=16, steps=60)
    judge = AttributeJudge.taught(setting, "toys")
    pictures = Pictures.of(data_for(setting, "toys", "test"), 200)
    found = judge.accuracy(pictures.x, pictures.values)
    assert found["is_background"] > 0.5  # an eighth by chance
    assert found["all"] <= min(found[f"is_{a.name}"] for a in judge.attributes)


def test_segmentation_keeps_the_protocols_apart(tmp_path):
    report, _ = make("factorized-segment", tmp_path, seeds=2)
    for (_, row), cells in report.rows.items():
        if "oracle_iou" not in cells:
            assert row in ("supervised U-Net (ceiling)", "GrabCut (told a box)")
            continue
        pairs = zip(cells["oracle_iou"], cells["dataset_iou"], strict=True)
        assert all(oracle >= fixed - 1e-6 for oracle, fixed in pairs)
    assert len(report.rows["scenes", "factorized (default)"]["dataset_iou"]) == 2
    assert any("best label-free baseline" in note for note in report.notes)


def test_a_run_is_used_again_by_its_own_settings_alone(tmp_path):
    first, _ = make("factorized-generate", tmp_path)
    changed = lambda: {p.name: (p / "checkpoints").stat().st_mtime_ns for p in (tmp_path / "runs").iterdir()}
    folders = changed()
    again, _ = make("factorized-generate", tmp_path)
    assert changed() == folders
    assert again.rows == first.rows
    make("factorized-generate", tmp_path, steps=3)
    assert len(list((tmp_path / "runs").iterdir())) == 2 * len(folders)


def test_networks_trained_side_by_side_are_those_trained_one_by_one(tmp_path):
    one, said = make("factorized-guidance", tmp_path / "one")
    two, said_by_two = make("factorized-guidance", tmp_path / "two", jobs=2)
    assert "training 2 networks, 2 at a time" in said_by_two
    assert sorted(line for line in said_by_two if " seed " in line)[0].startswith(
        "  factorized on scenes, seed 100"
    )
    assert not any("at a time" in line for line in said)
    for row, cells in one.rows.items():
        for key, values in cells.items():
            assert two.rows[row][key] == pytest.approx(values, rel=1e-3)
    with pytest.raises(ValueError, match="jobs is 0"):
        make("factorized-guidance", tmp_path, jobs=0)


def test_a_network_that_fails_beside_others_says_why_and_none_is_begun_after_it(tmp_path):
    from pellucid.reproduce.harness import _planned, train_all

    setting = Setting(
        scale="tiny", seeds=(0, 1, 2), data=("scenes",), out=tmp_path, say=print, size=16, steps=2, jobs=2
    )
    _, _, first = _planned(setting, "ddpm", "scenes", 0, {})
    first.parent.mkdir(parents=True)
    first.write_text("in the way")
    with pytest.raises(ValueError, match="cannot be written"):
        train_all(setting, [("ddpm", {}), ("segmenter", {})])
    assert len([p for p in first.parent.iterdir() if p.is_dir()]) <= 2


def test_a_run_that_was_stopped_is_no_result(tmp_path, monkeypatch):
    from pellucid.reproduce import harness
    from pellucid.train.trainer import TrainResult

    stopped = TrainResult(state="paused", step=1, seconds=0.0, images_per_second=0.0)
    monkeypatch.setattr(harness, "train", lambda *args, **options: stopped)
    setting = Setting(scale="tiny", seeds=(0,), data=("scenes",), out=tmp_path, say=print, size=16)
    with pytest.raises(ValueError, match="stopped at step 1"):
        trained(setting, "ddpm", "scenes", 0)


def test_a_seed_changes_the_weights_and_nothing_else_does(tmp_path):
    setting = Setting(scale="tiny", seeds=(0,), data=("scenes",), out=tmp_path, say=print, size=16, steps=2)

    def weights(method: Method):
        return method.state_dict()

    one, other = (weights(trained(setting, "ddpm", "scenes", seed)[0]) for seed in (0, 1))
    again = weights(trained(setting, "ddpm", "scenes", 0)[0])
    assert all((one[k] == again[k]).all() for k in one)
    assert not all((one[k] == other[k]).all() for k in one)


def test_a_cell_is_the_mean_and_its_spread():
    report = Report(name="t", title="T", columns=(Column("iou", "IoU"), Column("fd", "FD", "lower")))
    for iou, fd in ((0.5, 100.0), (0.7, 120.0)):
        report.add("d", "ours", {"iou": iou, "fd": fd})
    report.add("d", "fixed", {"iou": 0.25})
    text = "\n".join(report.lines())
    assert "0.600 ±0.141" in text
    assert "110.0 ±14.1" in text
    assert "0.250" in text
    assert report.mean("d", "ours", "iou") == pytest.approx(0.6)


def test_a_table_whose_packages_are_missing_is_refused_before_it_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else name)
    with pytest.raises(ValueError, match=r"tables need sklearn: pip install 'pellucid\[metrics\]'"):
        TABLES["cofi-ring"].run(scale="tiny", out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_rows_are_made_alone_where_they_do_not_need_one_another(tmp_path):
    chosen = {"scale": "tiny", "out": tmp_path, "data": ("scenes",), "steps": 2}
    rows = ("with a mixture for bits", "its GAN alone")
    report = TABLES["cofi-coarse"].run(rows=rows, **chosen)
    assert [row.strip() for _, row in report.rows] == ["its GAN alone", rows[0], "k-means of pixels, 4"]
    assert report.conditions["rows"] == sorted(rows)
    with pytest.raises(ValueError, match="no row named 'GAN'; there are CoFi"):
        TABLES["cofi-coarse"].run(rows=("GAN",), **chosen)
    with pytest.raises(ValueError, match="need one another"):
        TABLES["factorized-segment"].run(rows=("centre box",), **chosen)


def test_the_gan_alone_has_the_codes_of_the_rows_with_a_diffusion(tmp_path):
    rows = ("CoFi-UCGen (Noise)", "its GAN alone")
    report = TABLES["cofi-coarse"].run(rows=rows, scale="tiny", out=tmp_path, data=("scenes",), steps=2)
    assert any(note.startswith("scenes, NMI: ours") for note in report.notes)
    whole, alone = (
        pellucid.load(next((tmp_path / "runs").glob(f"{name}-scenes-0-*"))).method.encoder.state_dict()
        for name in ("cofi-coarse", "cofi-gan")
    )
    assert all(torch.equal(whole[key], alone[key]) for key in whole)


def test_a_table_without_seeds_is_refused(tmp_path):
    with pytest.raises(ValueError, match="seeds is 0"):
        make("factorized-segment", tmp_path, seeds=0)


def test_a_table_of_other_conditions_is_kept(tmp_path):
    one, _ = make("factorized-codes", tmp_path)
    again, _ = make("factorized-codes", tmp_path)
    assert one.written == again.written
    other, _ = make("factorized-codes", tmp_path, seeds=2)
    assert other.written.name == "factorized-codes-2.json"
    assert json.loads(one.written.read_text())["conditions"]["seeds"] == [0]


def test_a_table_of_other_conditions_keeps_its_pictures(tmp_path):
    one, _ = make("cofi-ring", tmp_path, data=("ring",))
    before = (tmp_path / "cofi-ring.png").read_bytes()
    again, _ = make("cofi-ring", tmp_path, data=("ring",))
    assert again.pictures == one.pictures == ["cofi-ring.png"]
    other, _ = make("cofi-ring", tmp_path, data=("ring",), steps=3)
    assert other.written.name == "cofi-ring-2.json"
    assert json.loads(other.written.read_text())["pictures"] == ["cofi-ring-2.png"]
    assert (tmp_path / "cofi-ring-2.png").exists()
    assert (tmp_path / "cofi-ring.png").read_bytes() == before
    assert "CoFi-UCGen" in Image.open(tmp_path / "cofi-ring.png").text["pellucid"]
    assert not list(tmp_path.glob(".drawn*"))


def test_the_inception_score_does_not_depend_on_the_order_of_conditions():
    """Ten pictures each of fifty conditions that all look different, together or mixed."""

    class Sees(Pixels):
        def probabilities(self, images):
            return images.flatten(1)[:, :50]

    see = Sees(channels=1)
    sharp = torch.eye(50).repeat_interleave(10, 0) * 0.9 + 0.002
    images = torch.zeros(500, 1, 8, 8)
    images.view(500, -1)[:, :50] = sharp
    judge = Judge(see=see, real=see(images), test=images, labels=torch.zeros(500))
    together = judge.pictures(images)[f"is_{see.name}"]
    mixed = judge.pictures(images[torch.randperm(500, generator=torch.Generator().manual_seed(1))])
    assert together == pytest.approx(mixed[f"is_{see.name}"], rel=0.1)
    assert together > 15


def test_a_baselines_constants_are_those_that_are_best_on_validation_pictures():
    """A box of the objects' own size: validation pictures say which side, and test pictures are scored with it."""
    from pellucid.reproduce.segment import chosen_on_validation

    truth = torch.zeros(4, 20, 20, dtype=torch.bool)
    truth[:, 5:15, 5:15] = True  # half the side
    pictures = torch.zeros(4, 3, 20, 20)
    figures, words = chosen_on_validation("centre box", (pictures, truth), (pictures, truth), seed=0)
    assert words == "side=0.5"
    assert figures["dataset_iou"] == figures["oracle_iou"] == 1
    larger = torch.zeros(4, 20, 20, dtype=torch.bool)
    larger[:, 3:17, 3:17] = True
    figures, words = chosen_on_validation("centre box", (pictures, truth), (pictures, larger), seed=0)
    assert words == "side=0.5"  # not the one that would be best here
    assert figures["dataset_iou"] == pytest.approx(100 / 196)
