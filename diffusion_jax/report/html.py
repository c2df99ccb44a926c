"""One HTML page that holds all it shows: text, sortable tables, and pictures as data URIs.

It opens anywhere and can be sent by mail. A page is put together from pieces of HTML, which the
functions of this module make from the templates next to it. Whatever comes from outside is escaped:
the templates escape every text, and only a `Markup`, such as these functions return, is inserted as
it is. Markup + Markup is Markup.

    pieces = [("Verdict", html.items(lines)), ("All numbers", html.table(rows, columns))]
    html.save(path, html.page("Title", pieces))
"""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from diffusion_jax.core.files import plain, save_text

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("diffusion_jax.report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
)
_PIECES = _TEMPLATES.get_template("pieces.html").module


class _Cell(NamedTuple):
    """A cell of a sortable table: its CSS classes, the value to sort by, and its text."""

    kind: str
    value: Any
    text: Any


def page(title: str, sections: Sequence[tuple[str, Markup]], *, lead: str = "") -> str:
    """A whole page.

    Args:
      title: its title.
      sections: (heading, content) of each section.
      lead: a line of plain text under the title.
    """
    return _TEMPLATES.get_template("page.html").render(title=title, sections=sections, lead=lead)


def save(path: str | os.PathLike, content: str) -> None:
    """Write a page, atomically.

    Args:
      path: the file; it is replaced if it exists.
      content: the whole page, as `page` returns it.
    """
    save_text(path, content)


def paragraph(content: str, *, faint: bool = False) -> Markup:
    """Make a paragraph of plain text.

    Args:
      content: the text, which is escaped.
      faint: whether it is gray.
    """
    return _PIECES.paragraph(content, faint)


def items(lines: Sequence[str]) -> Markup:
    """Make a bulleted list of plain text.

    Args:
      lines: an item each, which is escaped.
    """
    return _PIECES.items(lines)


def facts(values: Mapping[str, Any]) -> Markup:
    """Make a list of names and values, one pair a line.

    Args:
      values: {name: value}; both are escaped.
    """
    return _PIECES.facts(values)


def folded(summary: str, content: Markup) -> Markup:
    """Make content that opens when its summary is clicked.

    Args:
      summary: the line that is always visible; it is escaped.
      content: pieces of this module.
    """
    return _PIECES.folded(summary, content)


def code(content: str) -> Markup:
    """Show text in a fixed width, with its spaces and line breaks.

    Args:
      content: the text, which is escaped.
    """
    return _PIECES.code(content)


def picture(
    source: Image.Image | np.ndarray | str | os.PathLike, alt: str = "", *, width: int | None = None
) -> Markup:
    """An <img> that carries its pixels.

    Args:
      source: an image, uint8 (H, W, 3), or the path of a PNG file.
      alt: a text that stands for the image.
      width: in CSS pixels; None is the width of the image.
    """
    if isinstance(source, (str, os.PathLike)):
        content = Path(source).read_bytes()
    else:
        image = source if isinstance(source, Image.Image) else Image.fromarray(source)
        image.save(buffer := io.BytesIO(), "PNG", optimize=True)
        content = buffer.getvalue()
    return _PIECES.picture(alt, width, base64.b64encode(content).decode())


def player(content: bytes) -> Markup:
    """An <audio> element that carries its sound.

    Args:
      content: a WAV file.
    """
    return _PIECES.player(base64.b64encode(content).decode())


def side_by_side(figures: Mapping[str, Markup]) -> Markup:
    """Show pictures side by side with their captions.

    Args:
      figures: {caption: picture, as `picture` returns it}.
    """
    return _PIECES.side_by_side(figures)


def table(
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str],
    *,
    formats: Mapping[str, Callable[[Any], str]] | None = None,
    best: Callable[[Mapping[str, Any], str], bool] = lambda row, key: False,
    wrong: str = "note",
    spread: Callable[[Mapping[str, Any], str], float | None] | None = None,
) -> Markup:
    """A table that is sorted by a click on a heading.

    Args:
      rows: the values of each row by key.
      columns: the heading of each column by key.
      formats: functions from a value to its text, by key; floats have four digits otherwise.
      best: best(row, key) says which cells are marked.
      wrong: the key of a column that is written in red and may wrap.
      spread: spread(row, key) is half the width of the interval of a value, which its format takes
        as a second argument; None for none.
    """
    numeric = {key: any(_is_number(row.get(key)) for row in rows) for key in columns}

    def cell(row: Mapping[str, Any], key: str) -> _Cell:
        value = plain(row.get(key))
        default = f"{value:.4g}" if isinstance(value, float) else value
        write = (formats or {}).get(key)
        half = spread and spread(row, key)
        text = write and value is not None and (write(value, half) if half else write(value))
        shown = "" if value is None else text or default
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            value = ""
        kinds = ["number"] * numeric[key] + ["best"] * bool(best(row, key))
        return _Cell(" ".join(kinds + ["wrong", "text"] * (key == wrong)), value, shown)

    headings = [(heading, numeric[key]) for key, heading in columns.items()]
    return _PIECES.table(headings, [[cell(row, key) for key in columns] for row in rows])


def gallery(
    cells: Mapping[tuple[Hashable, Hashable], tuple[Markup, str]],
    rows: Mapping[Hashable, str],
    columns: Mapping[Hashable, str],
) -> Markup:
    """Pictures in rows and columns.

    Args:
      cells: (row, column) -> (picture, caption), by the keys of rows and columns.
      rows: the name of each row by key.
      columns: the name of each column by key.
    """
    table = [
        (name, [cells.get((row, column), ("", "")) for column in columns])
        for row, name in rows.items()
    ]
    return _PIECES.gallery(list(columns.values()), table)


def _is_number(value: Any) -> bool:
    return isinstance(plain(value), (int, float)) and not isinstance(value, bool)
