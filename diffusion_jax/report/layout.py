"""The layout of a table of images on white paper, with all its margins and texts."""

from __future__ import annotations

import functools
import itertools
import math
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffusion_jax.core.deferred import deferred
from diffusion_jax.core.errors import UserError
from diffusion_jax.report import style

matplotlib = deferred("matplotlib")

TEXT_SIZE = 13  # pixels
LABEL_LENGTH = 40  # characters of a line in a label to the left of a row
MARGIN = 10  # pixels around the table
GROUP_GAP = 10  # pixels between groups of rows, in addition to the gap between rows


class Tile(NamedTuple):
    """An image with the text beneath it.

    Attributes:
      tile: (h, w, 3) uint8.
      caption: the text, in one or several lines; '' for none.
    """

    tile: np.ndarray
    caption: str = ""


class _Layout(NamedTuple):
    """The positions of all parts of a figure, in pixels.

    Attributes:
      left: where the first column begins.
      top: where the first row begins.
      above: where the cells above the headings begin, vertically.
      step_x: from one column to the next.
      step_y: from one row to the next.
      width: the width of a column.
      tile_height: the height of the highest tile.
      page: (width, height) of the whole picture.
    """

    left: int
    top: int
    above: int
    step_x: int
    step_y: int
    width: int
    tile_height: int
    page: tuple[int, int]


def lay_out(
    rows: Sequence[Sequence[Tile | None]],
    *,
    row_labels: Sequence[Any] | None = None,
    column_labels: Sequence[Any] | None = None,
    title: str | None = None,
    note: str = "",
    gap: int = 3,
    rows_in_group: int | None = None,
    above: Sequence[Tile] = (),
) -> Image.Image:
    """A table of images on white paper.

    Args:
      rows: the cells of each row; None leaves a place empty.
      row_labels: texts to the left of the rows.
      column_labels: texts above the columns.
      title: stands at the top.
      note: stands at the foot.
      gap: pixels between rows and between columns.
      rows_in_group: a wider gap follows after so many rows.
      above: cells that stand in a row of their own, above the labels of the columns.

    Raises:
      UserError: if there is no cell.
    """
    labels = ["\n".join(textwrap.wrap(str(label), LABEL_LENGTH)) for label in row_labels or []]
    headings = [str(label) for label in column_labels or []]
    groups = (len(rows) - 1) // rows_in_group if rows_in_group else 0
    layout = _measure(rows, labels, headings, title, note, gap, groups, above)
    canvas = Image.new("RGB", layout.page, style.PAPER)
    draw = ImageDraw.Draw(canvas)
    foot = (layout.page[0] - MARGIN, layout.page[1] - MARGIN)
    draw.text(foot, note, font=_font(), fill=style.FAINT, anchor="rs")
    if title:
        draw.text((MARGIN, MARGIN), title, font=_font(bold=True), fill=style.INK)
    for x, cell in zip(_places(layout.left, above, gap), above):
        _draw_cell(canvas, draw, cell, x, layout.above, _cell_width(cell))
    count = max(len(row) for row in rows)
    for c, text in enumerate(headings[:count]):
        center = (layout.left + c * layout.step_x + layout.width / 2, layout.top - 6)
        draw.text(center, text, font=_font(), fill=style.INK, anchor="ms")
    for r, (row, label) in enumerate(itertools.zip_longest(rows, labels[: len(rows)])):
        extra = r // rows_in_group * GROUP_GAP if rows_in_group else 0
        y = layout.top + r * layout.step_y + extra
        if label is not None:
            middle = (layout.left - 10, y + layout.tile_height / 2)
            look = {"font": _font(), "fill": style.INK, "anchor": "rm", "align": "right"}
            draw.text(middle, label, **look)
        for c, cell in enumerate(row):
            if cell is not None:
                _draw_cell(canvas, draw, cell, layout.left + c * layout.step_x, y, layout.width)
    return canvas


def _measure(
    rows: Sequence[Sequence[Tile | None]],
    labels: Sequence[str],
    headings: Sequence[str],
    title: str | None,
    note: str,
    gap: int,
    groups: int,
    above: Sequence[Tile],
) -> _Layout:
    cells = [cell for row in rows for cell in row if cell is not None]
    if not cells:
        raise UserError("there is no image to show; request at least one")
    width = max(_cell_width(cell) for cell in cells)
    width = max([width] + [_text_width(text) + 6 for text in headings])
    tile_height = max(cell.tile.shape[0] for cell in cells)
    height = tile_height + max(caption_height(cell.caption) for cell in cells)
    height = max([height] + [(text.count("\n") + 1) * (TEXT_SIZE + 5) for text in labels])

    left = MARGIN + (max(map(_text_width, labels)) + 10 if labels else 0)
    first = MARGIN + (TEXT_SIZE + 16 if title else 0)
    heights = [cell.tile.shape[0] + caption_height(cell.caption) + 10 for cell in above]
    top = first + max(heights, default=0) + (TEXT_SIZE + 8 if headings else 0)
    step_x, step_y = width + gap, height + gap
    right = max(
        left + max(len(row) for row in rows) * step_x - gap,
        MARGIN + _text_width(title or "", bold=True),
        MARGIN + _text_width(note),
        _places(left, above, gap)[-1] - gap,
    )
    bottom = top + len(rows) * step_y - gap + groups * GROUP_GAP + (TEXT_SIZE + 12 if note else 0)
    page = (right + MARGIN, bottom + MARGIN)
    return _Layout(left, top, first, step_x, step_y, width, tile_height, page)


def _places(left: int, cells: Sequence[Tile], gap: int) -> list[int]:
    """The left edges of several cells in a row, and of the cell that would follow."""
    return list(itertools.accumulate((_cell_width(cell) + gap for cell in cells), initial=left))


def _draw_cell(
    canvas: Image.Image, draw: ImageDraw.ImageDraw, cell: Tile, x: int, y: int, width: int
) -> None:
    """Draw a tile in the middle of `width` pixels from x, with its caption beneath."""
    canvas.paste(Image.fromarray(cell.tile), (x + (width - cell.tile.shape[1]) // 2, y))
    for i, line in enumerate(cell.caption.split("\n")):
        beneath = (x + width / 2, y + cell.tile.shape[0] + TEXT_SIZE + 3 + i * (TEXT_SIZE + 4))
        draw.text(beneath, line, font=_font(), fill=style.INK, anchor="ms")


def caption_height(caption: str) -> int:
    """Return the height of a caption beneath a tile, in pixels.

    Args:
      caption: its lines, separated by line breaks; '' has no height.
    """
    return (caption.count("\n") + 1) * (TEXT_SIZE + 4) + 4 if caption else 0


def _cell_width(cell: Tile) -> int:
    return max(cell.tile.shape[1], _text_width(cell.caption))


@functools.cache
def _font(bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it: one font for images and figures.

    Pillow's own font has no subscripts.
    """
    name = f"DejaVuSans{'-Bold' if bold else ''}.ttf"
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{name}", TEXT_SIZE)


def _text_width(text: str, bold: bool = False) -> int:
    return math.ceil(max(_font(bold).getlength(line) for line in text.split("\n")))
