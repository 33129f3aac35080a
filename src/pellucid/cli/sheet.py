"""A grid of pictures with words in its margins: what each row and column is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from pellucid.train.preview import grid

TEXT = 12
"""Height of the words, in pixels."""
PAD = 4
"""Pixels around words."""


def lettered(
    rows: Sequence[Tensor], down: Sequence[str], across: Sequence[str] = (), corner: str = ""
) -> Image.Image:
    """Rows of images (n_i, C, H, W) in [-1, 1] with a word left of each row and, where given, above each column.

    The pictures are `preview.grid`'s and fill the right lower corner; shorter rows end in white. Words above that are
    wider than a column are turned upright. Raises ValueError where rows and words differ in number.
    """
    columns = max(map(len, rows), default=0)
    if len(rows) != len(down) or (across and len(across) != columns):
        raise ValueError(
            f"{len(rows)} rows of up to {columns} pictures have {len(down)} words left of them and {len(across)} above"
        )
    full = [F.pad(r, (0, 0, 0, 0, 0, 0, 0, columns - len(r)), value=1.0) for r in rows]
    body = grid(torch.cat(full), columns=columns)
    step_x, step_y = body.width / columns, body.height / len(rows)
    left_words, above_words = [_word(w) for w in down], [_word(w) for w in across]
    if any(w.width > step_x for w in above_words):
        above_words = [w.rotate(90, expand=True) for w in above_words]
    named = _word(corner)
    left = max(w.width for w in (*left_words, named)) + 2 * PAD
    top = max((w.height for w in (*above_words, named)), default=0) + 2 * PAD if across or corner else 0
    sheet = Image.new("RGB", (left + body.width, top + body.height), "white")
    sheet.paste(body, (left, top))
    for i, word in enumerate(left_words):
        sheet.paste(word, (left - PAD - word.width, top + round((i + 0.5) * step_y - word.height / 2)))
    for i, word in enumerate(above_words):
        sheet.paste(word, (left + round((i + 0.5) * step_x - word.width / 2), top - PAD - word.height))
    sheet.paste(named, (PAD, top - PAD - named.height))
    return sheet


def _word(text: str) -> Image.Image:
    """Black on white, as large as the text is."""
    font = ImageFont.load_default(TEXT)
    _, _, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font=font)
    word = Image.new("L", (max(1, round(right)), max(1, round(bottom))), 255)
    ImageDraw.Draw(word).multiline_text((0, 0), text, font=font, fill=0)
    return word
