"""Tables of attributes: from a CSV file, from folders, and what is wrong with them."""

import numpy as np
import pytest
from PIL import Image

from pellucid.data.attributes import indexed, read_table
from pellucid.data.catalog import open_data
from pellucid.data.images import ImageFolder


def pictures(root, *names, value=100):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 12), (value, 10, 20)).save(path)


def table(root, text):
    root.mkdir(exist_ok=True)
    (root / "attributes.csv").write_text(text, encoding="utf-8")
    return root / "attributes.csv"


def by_name(data: ImageFolder) -> dict[str, tuple[str | None, ...]]:
    """What the data set says of each picture, in words."""
    words = [
        tuple(a.values[v] if v >= 0 else None for a, v in zip(data.attributes, row, strict=True))
        for row in data.table
    ]
    return dict(zip(data.keys, words, strict=True))


def test_a_table_says_what_it_says_and_empty_cells_are_unknown(tmp_path):
    pictures(tmp_path, "a.png", "b.png", "sub/c.png", "d.png")
    table(tmp_path, "colour,file,size\nred,a.png,10\n blue ,b.png,\n,sub/c.png,2\n")
    data = ImageFolder(tmp_path, 8)
    assert [a.name for a in data.attributes] == ["colour", "size"]
    assert data.attributes[1].values == ("2", "10")  # as people count
    assert by_name(data) == {
        "a.png": ("red", "10"),
        "b.png": ("blue", None),
        "d.png": (None, None),
        "sub/c.png": (None, "2"),
    }
    batch = data.batch(np.array([1, 0]))
    assert batch.attributes.tolist() == data.table[[1, 0]].tolist()


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_and_a_mark_at_the_beginning(tmp_path, separator):
    path = table(tmp_path, f"\ufefffile{separator}side\na.png{separator}left\n")
    assert read_table(path) == (("side",), {"a.png": ("left",)})


def test_folders_are_attributes_where_all_lie_equally_deep(tmp_path):
    pictures(tmp_path / "levels", "red/left/1.png", "red/right/2.png", "blue/left/3.png")
    data = ImageFolder(tmp_path / "levels", 8)
    assert [(a.name, a.values) for a in data.attributes] == [
        ("level1", ("blue", "red")),
        ("level2", ("left", "right")),
    ]
    assert by_name(data)["red/right/2.png"] == ("red", "right")
    pictures(tmp_path / "named", "colour=red/side=left/1.png", "colour=blue/side=left/2.png")
    assert [a.name for a in ImageFolder(tmp_path / "named", 8).attributes] == ["colour", "side"]
    pictures(tmp_path / "classes", "cat/1.png", "dog/2.png")
    classes = ImageFolder(tmp_path / "classes", 8)
    assert [(a.name, a.values) for a in classes.attributes] == [("class", classes.class_names)]
    pictures(tmp_path / "mixed", "cat/1.png", "2.png")
    assert ImageFolder(tmp_path / "mixed", 8).attributes == ()


def test_a_split_keeps_the_values_of_the_whole(tmp_path):
    pictures(tmp_path, *(f"{i:02d}.png" for i in range(40)))
    table(tmp_path, "file,kind\n" + "".join(f"{i:02d}.png,k{i}\n" for i in range(40)))
    parts = [ImageFolder(tmp_path, 8, split=split) for split in ("train", "val", "test")]
    assert {p.attributes for p in parts} == {parts[0].attributes}
    assert sum(len(p) for p in parts) == 40
    for part in parts:
        assert {name: (f"k{int(name[:2])}",) for name in part.keys} == by_name(part)


def test_the_fingerprint_follows_the_table(tmp_path):
    pictures(tmp_path, "a.png", "b.png")
    table(tmp_path, "file,side\na.png,left\nb.png,right\n")
    before = ImageFolder(tmp_path, 8).fingerprint
    table(tmp_path, "file,side\na.png,right\nb.png,left\n")
    assert ImageFolder(tmp_path, 8).fingerprint != before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,side\na.png,left\nlost.png,left\n", r"names 1 file that is no picture below .*: lost\.png"),
        ("file,side\na.png,left,3\n", r"line 2: 3 cells under 2 columns"),
        ("file,side\na.png,left\n./a.png,right\n", r"line 3: '\./a\.png' is there twice"),
        ("file,side,side\na.png,left,x\n", r"the column 'side' twice"),
        ("file,side,\na.png,left,x\n", r"a column without a name"),
        ("file\na.png\n", r"has one column"),
        ("\n\n", r"is empty"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, text, said):
    pictures(tmp_path, "a.png")
    table(tmp_path, text)
    with pytest.raises(ValueError, match=said):
        open_data(str(tmp_path), size=8)


def test_a_table_that_is_no_text_is_said(tmp_path):
    pictures(tmp_path, "a.png")
    (tmp_path / "attributes.csv").write_bytes(b"file,side\na.png,\xff\xfe\n")
    with pytest.raises(ValueError, match="cannot be read as a table in UTF-8"):
        open_data(str(tmp_path), size=8)


def test_words_are_counted_once_each():
    attributes, found = indexed(("a", "b"), [("x", None), ("y", "k10"), ("x", "k9")])
    assert [a.values for a in attributes] == [("x", "y"), ("k9", "k10")]
    assert found.tolist() == [[0, -1], [1, 1], [0, 0]]
