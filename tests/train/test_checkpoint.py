"""Whatever lies in a checkpoint folder, reading it gives the whole thing or nothing, and runs no code."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pellucid
from pellucid.train.checkpoint import (
    CheckpointError,
    best,
    latest,
    load_weights,
    mark_best,
    prune,
    read_checkpoint,
    read_safetensors,
    save_checkpoint,
    steps_of,
)

TENSORS = {"model": {"w": torch.arange(6.0).reshape(2, 3)}, "ema": {"w": torch.ones(2, 3)}}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("run"), 3, TENSORS, {"seen": 96}).folder


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_what_was_saved_is_read(tmp_path):
    save_checkpoint(tmp_path, 7, TENSORS, {"seen": 224, "score": 0.5})
    found = latest(tmp_path)
    assert (found.step, found.state) == (7, {"seen": 224, "score": 0.5})
    assert torch.equal(found.tensors("model")["w"], TENSORS["model"]["w"])
    assert torch.equal(load_weights(tmp_path)["w"], TENSORS["ema"]["w"])
    assert torch.equal(load_weights(tmp_path, ema=False)["w"], TENSORS["model"]["w"])


@given(st.binary(max_size=200) | json_values.map(lambda v: json.dumps(v).encode()))
def test_any_manifest_reads_as_nothing(folder, data):
    manifest = folder / "manifest.json"
    kept = manifest.read_bytes()
    try:
        manifest.write_bytes(data)
        assert read_checkpoint(folder) is None
    finally:
        manifest.write_bytes(kept)


@given(
    st.sampled_from(["format", "step", "files", "state", "model.safetensors"]),
    json_values.filter(lambda v: v not in (1, 3, {"seen": 96})),
)
def test_a_manifest_with_one_thing_wrong_is_none_or_makes_no_claim(folder, key, value):
    """A changed field is refused; `files` and `step` may only be replaced by what is just as checkable."""
    manifest = folder / "manifest.json"
    kept = manifest.read_bytes()
    data = json.loads(kept)
    if key in data:
        data[key] = value
    else:
        data["files"][key] = value
    try:
        manifest.write_text(json.dumps(data))
        found = read_checkpoint(folder)
        if found is not None:
            assert isinstance(found.step, int)
            assert isinstance(found.state, dict)
            assert key not in ("format", "model.safetensors")
    finally:
        manifest.write_bytes(kept)


def test_a_manifest_cannot_point_out_of_its_folder(tmp_path):
    folder = save_checkpoint(tmp_path, 1, TENSORS, {}).folder
    data = json.loads((folder / "manifest.json").read_text())
    data["files"]["../outside.safetensors"] = data["files"]["model.safetensors"]
    (tmp_path / "checkpoints" / "outside.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()
    )
    (folder / "manifest.json").write_text(json.dumps(data))
    assert read_checkpoint(folder) is None


@pytest.mark.parametrize("name", ["model.safetensors", "weights.pt", "weights.ckpt"])
def test_a_malicious_pickle_is_refused_and_not_run(tmp_path, name):
    trap = tmp_path / "ran"
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Evil(trap)))
    with pytest.raises(CheckpointError, match="not read, as they can run code"):
        read_safetensors(path)
    assert not trap.exists()


def test_a_malicious_pickle_in_a_run_is_passed_over(tmp_path):
    save_checkpoint(tmp_path, 1, TENSORS, {})
    newest = save_checkpoint(tmp_path, 2, TENSORS, {}).folder
    trap = tmp_path / "ran"
    (newest / "model.safetensors").write_bytes(pickle.dumps(Evil(trap)))
    heard = []
    assert latest(tmp_path, say=heard.append).step == 1
    assert "damaged" in heard[0]
    assert not trap.exists()


def test_nothing_in_the_package_unpickles_what_a_user_brings():
    """One file is opened by torch's restricted loader, tensors alone: ImageNet weights whose hash is in the code."""
    loaders = []
    for path in Path(pellucid.__path__[0]).rglob("*.py"):
        text = path.read_text()
        for word in ("import pickle", "import joblib", "allow_pickle=True", "pickle.load"):
            assert word not in text, f"{path} reads pickles: {word}"
        if "torch.load(" in text:
            loaders.append(path.name)
            assert text.count("torch.load(") == text.count("weights_only=True")
    assert loaders == ["distribution.py"]


def test_a_checkpoint_written_again_replaces_the_one_before(tmp_path):
    save_checkpoint(tmp_path, 1, TENSORS, {"try": 1})
    save_checkpoint(tmp_path, 1, TENSORS, {"try": 2})
    assert latest(tmp_path).state == {"try": 2}
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["00000001"]


def test_pruning_keeps_the_newest_the_best_and_what_is_not_ours(tmp_path):
    made = [save_checkpoint(tmp_path, step, TENSORS, {}) for step in (1, 2, 3, 4)]
    mark_best(tmp_path, made[0], 0.1)
    (tmp_path / "checkpoints" / "notes.txt").write_text("mine")
    prune(tmp_path, keep_last=2)
    assert [int(p.name) for p in steps_of(tmp_path)] == [1, 3, 4]
    assert best(tmp_path).step == 1
    assert (tmp_path / "checkpoints" / "notes.txt").read_text() == "mine"


def test_a_run_without_checkpoints_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="holds no whole checkpoint"):
        load_weights(tmp_path)
    with pytest.raises(CheckpointError, match="is not there"):
        read_safetensors(tmp_path / "nowhere.safetensors")
