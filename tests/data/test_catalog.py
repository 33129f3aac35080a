"""Every kind of `--data` opens as the same pictures."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pellucid.data import fetch
from pellucid.data.catalog import open_data, open_source
from pellucid.data.images import StoredImages, to_uint8

COUNT = 24


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def files() -> list[bytes]:
    rng = np.random.default_rng(0)
    out = []
    for _ in range(COUNT):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(stream, "PNG")
        out.append(stream.getvalue())
    return out


def everything(data) -> np.ndarray:
    return to_uint8(data.batch(np.arange(len(data))).x0)


def pixels(files: list[bytes]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(io.BytesIO(f))) for f in files])


def whole(spec) -> StoredImages:
    return StoredImages(open_source(str(spec)), 9)


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_tar(path: Path, files: list[bytes], first: int = 0) -> None:
    with tarfile.open(path, "w") as tar:
        for i, data in enumerate(files, first):
            add(tar, f"set/{i:04}.png", data)
            add(tar, f"set/{i:04}.cls", str(i % 3).encode())
            add(tar, f"set/{i:04}.json", b"{}")


def test_folder_splits_join_to_the_whole(tmp_path, files):
    for i, data in enumerate(files):
        (tmp_path / f"{i:04}.png").write_bytes(data)
    np.testing.assert_array_equal(everything(whole(tmp_path)), pixels(files))
    parts = [open_data(str(tmp_path), size=9, split=s) for s in ("train", "val", "test")]
    assert sorted(key for part in parts for key in part.keys) == sorted(whole(tmp_path).keys)
    assert len(open_data(str(tmp_path), size=9, limit=4)) == 4
    assert open_data(str(tmp_path), size=9, channels=1).shape == (1, 9, 9)


def test_tar_shards(tmp_path, files):
    write_tar(tmp_path / "a-0.tar", files[:10])
    write_tar(tmp_path / "a-1.tar", files[10:], first=10)
    for spec in (tmp_path, tmp_path / "a-*.tar"):
        data = whole(spec)
        np.testing.assert_array_equal(everything(data), pixels(files))
        assert data.batch(np.arange(COUNT)).labels.tolist() == [i % 3 for i in range(COUNT)]
        assert data.class_names == ("0", "1", "2")
    assert len(whole(tmp_path / "a-0.tar")) == 10


def test_tar_shards_with_masks(tmp_path, files):
    mask = io.BytesIO()
    Image.fromarray(np.eye(9, dtype=np.uint8) * 255).save(mask, "PNG")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i, data in enumerate(files):
            add(tar, f"{i:04}.mask.png", mask.getvalue())
            add(tar, f"{i:04}.png", data)
    batch = whole(tmp_path / "a.tar").batch(np.arange(3))
    np.testing.assert_array_equal(batch.masks[2], np.eye(9))


@pytest.mark.parametrize("extension", ["pyd", "pickle", "pkl", "pth", "PYD", "extra.pickle"])
def test_shards_with_pickles_are_refused(tmp_path, files, extension):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "0.png", files[0])
        add(tar, f"0.{extension}", pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="pickle"):
        whole(tmp_path / "a.tar")
    assert not (tmp_path / "sprung").exists()


def test_shards_that_lie(tmp_path, files):
    with tarfile.open(tmp_path / "links.tar", "w") as tar:
        link = tarfile.TarInfo("0.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(ValueError, match="no images"):
        whole(tmp_path / "links.tar")
    with tarfile.open(tmp_path / "z.tar", "w:gz") as tar:
        add(tar, "0.png", files[0])
    (tmp_path / "noise.tar").write_bytes(b"noise" * 500)
    for name in ("z.tar", "noise.tar"):
        with pytest.raises(ValueError, match="not readable as an uncompressed tar"):
            whole(tmp_path / name)
    write_tar(tmp_path / "whole.tar", files)
    for end in (-20_480, -20_000, 1536, 1100, 700):  # between members, in a header, in the data
        (tmp_path / "cut.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[:end])
        with pytest.raises(ValueError, match="not readable"):
            whole(tmp_path / "cut.tar")
    with tarfile.open(tmp_path / "cls.tar", "w") as tar:
        add(tar, "0.png", files[0])
        add(tar, "0.cls", b"cat")
    with pytest.raises(ValueError, match="not a class number"):
        whole(tmp_path / "cls.tar")


def test_parquet(tmp_path, files):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    as_struct = pa.table(
        {
            "id": list(range(COUNT)),
            "image": [{"bytes": f, "path": None} for f in files],
            "label": ["b", "a"] * 12,
        }
    )
    as_bytes = pa.table({"picture": pa.array(files, pa.binary()), "label": [i % 4 for i in range(COUNT)]})
    pq.write_table(as_struct, tmp_path / "struct.parquet", row_group_size=5)
    pq.write_table(as_bytes, tmp_path / "bytes.parquet", row_group_size=7)
    struct, plain = whole(tmp_path / "struct.parquet"), whole(tmp_path / "bytes.parquet")
    for data in (struct, plain):
        np.testing.assert_array_equal(everything(data), pixels(files))
    assert struct.class_names == ("a", "b")
    assert struct.batch(np.arange(4)).labels.tolist() == [1, 0, 1, 0]
    assert len(plain.class_names) == 4
    some = open_data(str(tmp_path / "struct.parquet"), size=9, limit=6)
    rows = [int(key.rpartition(":")[2]) for key in some.keys]
    np.testing.assert_array_equal(everything(some), pixels(files)[rows])


def test_parquet_without_images(tmp_path, files):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "text.parquet")
    with pytest.raises(ValueError, match="0 columns that may hold images"):
        whole(tmp_path / "text.parquet")
    pq.write_table(
        pa.table({"a": pa.array(files, pa.binary()), "b": pa.array(files, pa.binary())}),
        tmp_path / "two.parquet",
    )
    with pytest.raises(ValueError, match="2 columns"):
        whole(tmp_path / "two.parquet")
    (tmp_path / "no.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match="not readable as parquet"):
        whole(tmp_path / "no.parquet")
    pq.write_table(
        pa.table({"image": pa.array([pickle.dumps({}), *files], pa.binary())}), tmp_path / "p.parquet"
    )
    with pytest.raises(ValueError, match="1 of 25 files"):
        whole(tmp_path / "p.parquet")


def test_hub_layout_in_a_local_folder(tmp_path, files, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "eel"])}
    )
    for name, part in (("train", slice(0, 18)), ("test", slice(18, None))):
        rows = {"image": [{"bytes": f, "path": None} for f in files[part]]}
        rows["label"] = [i % 3 for i in range(len(files[part]))]
        table = datasets.Dataset.from_dict(rows, features=features)
        (tmp_path / "set/data").mkdir(parents=True, exist_ok=True)
        table.to_parquet(tmp_path / f"set/data/{name}-00000-of-00001.parquet")
    spec = f"hf:{tmp_path / 'set'}"
    test = open_data(spec, size=9, split="test")
    np.testing.assert_array_equal(everything(test), pixels(files[18:]))
    assert test.class_names == ("cat", "dog", "eel")
    assert test.batch(np.arange(4)).labels.tolist() == [0, 1, 2, 0]
    assert len(open_data(spec, size=9)) + len(open_data(spec, size=9, split="val")) == 18
    assert whole(tmp_path / "set/data").class_names == ("cat", "dog", "eel")  # and as plain parquet
    with pytest.raises(ValueError, match="could not be loaded"):
        open_data(f"hf:{tmp_path / 'nothing'}", size=9)


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    import importlib

    def absent(name, *_):
        raise ImportError(f"no {name}")

    (tmp_path / "a.parquet").touch()
    monkeypatch.setattr(importlib, "import_module", absent)
    for spec in ("hf:some/thing", str(tmp_path / "a.parquet")):
        with pytest.raises(ValueError, match=r"pip install 'pellucid\[data\]'"):
            open_source(spec)


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="or one of scenes"):
        open_data("scnes", size=8)
    (tmp_path / "a.jpg").touch()
    with pytest.raises(ValueError, match="single file"):
        open_data(str(tmp_path / "a.jpg"), size=8)
    with pytest.raises(ValueError, match="split"):
        open_data("scenes", size=8, split="valid")
    with pytest.raises(ValueError, match="limit"):
        open_data("scenes", size=8, limit=0)
    with pytest.raises(ValueError, match="size"):
        open_data(str(tmp_path), size=0)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_scenes_open_by_name(split):
    pytest.importorskip("pellucid.data.scenes")
    data = open_data("scenes", size=16, split=split, seed=3, limit=40)
    batch = data.batch(np.array([39, 0]))
    assert (len(data), data.shape) == (40, (3, 16, 16))
    assert batch.x0.shape == (2, 3, 16, 16)
    assert batch.x0.abs().max() <= 1
    assert batch.masks.shape == (2, 16, 16)
    again = open_data("scenes", size=16, split=split, seed=3, limit=40)
    assert again.fingerprint == data.fingerprint
    assert (again.batch(np.array([0])).x0 == batch.x0[1:]).all()


def test_fashion(tmp_path, monkeypatch):
    """Idx files of the publisher's layout, drawn here: 60 pictures stand for 60,000."""
    rng = np.random.default_rng(0)
    made = {}
    for part, count in (("train", 60_000), ("t10k", 12)):
        made[part] = rng.integers(0, 256, (count, 2, 2), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for kind, array in (("images-idx3", made[part]), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            (tmp_path / f"{part}-{kind}-ubyte").write_bytes(header + array.tobytes())
    monkeypatch.setattr(fetch, "get", lambda name: tmp_path)
    test = open_data("fashion", size=2, channels=1, split="test")
    np.testing.assert_array_equal(everything(test)[..., 0], made["t10k"])
    assert len(test.class_names) == 10
    assert test.batch(np.array([11, 3])).labels.tolist() == [1, 3]
    val = open_data("fashion", size=2, channels=1, split="val", limit=50)
    np.testing.assert_array_equal(everything(val)[..., 0], made["train"][55_000::100])
    grey = open_data("fashion", size=2, channels=3, split="test").batch(np.arange(3)).x0
    assert (grey == grey[:, :1]).all()
