"""What is known of every picture beside its pixels: tables of attributes, from a CSV file or from the names of folders.

    n  pictures; m  attributes

A table holds words. What the rest of pellucid sees are `Attribute`s, each with its values in order, and (n, m)
indices into them, -1 where a cell is empty.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from pellucid.types import Attribute

TABLE = "attributes.csv"
"""The file of a folder of pictures that holds its table."""
FILE_COLUMNS = ("file", "file_name", "filename", "image", "path")
"""What the column that names the pictures may be called; where none is called so it is the first."""
Words = tuple[str | None, ...]
"""The cells of one picture; None where there is nothing in one."""


def indexed(names: Sequence[str], rows: Sequence[Words]) -> tuple[tuple[Attribute, ...], np.ndarray]:
    """Rows of words -> the attributes with the values that occur, and the table of indices (n, m) int64.

    Values are in the order in which people count: 2 before 10.
    """
    attributes = []
    table = np.full((len(rows), len(names)), -1, dtype=np.int64)
    for column, name in enumerate(names):
        words = {row[column] for row in rows} - {None}
        values = tuple(sorted((w for w in words if w is not None), key=_counted))
        index = {value: i for i, value in enumerate(values)}
        table[:, column] = [index.get(row[column] or "", -1) for row in rows]
        attributes.append(Attribute(name=name, values=values))
    return tuple(attributes), table


def of_folder(root: Path, inside: Mapping[Path, Sequence[str]]) -> tuple[tuple[Attribute, ...], np.ndarray]:
    """The attributes of the pictures below a folder, and their table in the order of `inside`.

    Args:
        root: the folder; where it holds `TABLE`, that says everything.
        inside: each picture with the names of the sub-folders that it lies in. Without a table these are its values,
            one attribute for each level, where all pictures lie equally deep: "class", or "level1" and so on, unless
            all folders of a level say otherwise, as colour=red and colour=blue do.

    Raises:
        ValueError: the table cannot be read, or names files that are not there.
    """
    path = root / TABLE
    if path.is_file():
        names, cells = read_table(path)
        keys = {_key(file.relative_to(root).as_posix()): file for file in inside}
        keys |= {key.removeprefix("images/"): file for key, file in keys.items()}
        lost = [name for name in cells if name not in keys]
        if lost:
            shown = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
            raise ValueError(
                f"{path} names {len(lost)} file{'s' * (len(lost) > 1)} that {'are' if len(lost) > 1 else 'is'} no "
                f"picture below {root}: {shown}. Names are paths from that folder, such as "
                f"{next(iter(keys), 'red/1.png')}; mend them, take the rows out, or call the file "
                f"otherwise if it is no table of attributes"
            )
        of_file = {keys[name]: row for name, row in cells.items()}
        return indexed(names, [of_file.get(file, (None,) * len(names)) for file in inside])
    depths = {len(folders) for folders in inside.values()}
    if len(depths) != 1 or not depths - {0}:
        return (), np.zeros((len(inside), 0), dtype=np.int64)
    split = [[_named(folder) for folder in folders] for folders in inside.values()]
    found = []
    depth = depths.pop()
    for level in range(depth):
        called = {row[level][0] for row in split}
        name = called.pop() if len(called) == 1 else None
        found.append(name or (f"level{level + 1}" if depth > 1 else "class"))
    rows = [
        tuple(word if name else folder for (name, word), folder in zip(row, folders, strict=True))
        for row, folders in zip(split, inside.values(), strict=True)
    ]
    return indexed(found, rows)


def read_table(path: Path) -> tuple[tuple[str, ...], dict[str, Words]]:
    """The names of the attributes in a CSV file, and the cells of each picture by its name there.

    One column names the pictures (see `FILE_COLUMNS`); each other column is an attribute. Cells are taken without
    blanks around them, and an empty one means that the value is not known. Separators may be commas, semicolons or
    tabs.

    Raises ValueError where it is no table: not text, without attributes, a column without a name or there twice, a row
    of another length, a picture that is there twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise ValueError(f"{path} cannot be read as a table in UTF-8: {error}") from None
    head = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count))
    numbered = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    rows = [row for _, row in numbered]
    if not rows:
        raise ValueError(f"{path} is empty; its first row names the columns, as in file,colour,side")
    columns = [column.strip() for column in rows[0]]
    if len(columns) < 2:
        raise ValueError(
            f"{path} has one column, {columns[0]!r}; it takes one of file names and one for each attribute"
        )
    twice = sorted({c for c in columns if columns.count(c) > 1})
    if "" in columns or twice:
        what = f"the column {twice[0]!r} twice" if twice and twice[0] else "a column without a name"
        raise ValueError(f"{path} has {what}; give every column a name of its own")
    at = next((i for i, c in enumerate(columns) if c.lower() in FILE_COLUMNS), 0)
    cells: dict[str, Words] = {}
    for number, row in numbered[1:]:
        if len(row) != len(columns):
            raise ValueError(f"{path}, line {number}: {len(row)} cells under {len(columns)} columns")
        name = _key(row[at].strip())
        if name in cells:
            raise ValueError(f"{path}, line {number}: {row[at]!r} is there twice; a picture has one row")
        cells[name] = tuple(cell.strip() or None for i, cell in enumerate(row) if i != at)
    return tuple(c for i, c in enumerate(columns) if i != at), cells


def _key(name: str) -> str:
    """A file's name as it is compared: composed characters, forward slashes, no "./"."""
    return PurePosixPath(unicodedata.normalize("NFC", name.replace("\\", "/"))).as_posix()


def _named(folder: str) -> tuple[str | None, str]:
    """ "side=left" -> ("side", "left"); "left" -> (None, "left")."""
    name, equals, word = folder.partition("=")
    return (name, word) if equals and name and word else (None, folder)


def _counted(word: str) -> tuple[tuple[int, int | str], ...]:
    parts = re.split(r"(\d+)", word)
    return tuple((0, int(p)) if p.isdecimal() else (1, p) for p in parts if p)
