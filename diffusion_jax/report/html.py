"""One HTML page that holds all it shows: text, sortable tables, pictures as data URIs. It opens
anywhere and can be mailed.

A page is put together from pieces of HTML; every function here returns one, and whatever comes from
outside is escaped.

    report.save(path, report.page("Title", [("Verdict", report.items(lines)), ("All numbers",
    report.table(rows, columns))]))
"""

from __future__ import annotations

import base64
import html
import io
import math
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from diffusion_jax.files import plain, save_text

STYLE = """
:root { color-scheme: light; --ink: #222; --faint: #6b6b6b; --rule: #e2e2e2; --mark: #eaf4ec; --wrong: #a33 }
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: var(--ink); background: #fff; margin: 0 }
main { max-width: 1280px; margin: 0 auto; padding: 28px 28px 64px }
h1 { font-size: 25px; margin: 0 0 4px }
h2 { font-size: 18px; margin: 38px 0 10px; padding-top: 10px; border-top: 1px solid var(--rule) }
p { margin: 6px 0; max-width: 78em } .faint, figcaption, .lead { color: var(--faint) }
ul { padding-left: 1.3em } li { margin: 5px 0 }
img { max-width: 100%; height: auto; vertical-align: middle } figure { margin: 12px 0 }
code, pre { font: 13px/1.45 ui-monospace, monospace }
pre { background: #f7f7f7; padding: 12px; overflow-x: auto } details { margin: 10px 0 } summary { cursor: pointer }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: 4px 11px 4px 0; border-bottom: 1px solid var(--rule); white-space: nowrap }
td.text { white-space: normal; min-width: 14em } td.number, th.number { text-align: right }
td.best { background: var(--mark); font-weight: 600 }
td.wrong { color: var(--wrong) }
table.sortable th { cursor: pointer; user-select: none; position: sticky; top: 0; background: #fff }
table.sortable th::after { content: " \\2195"; color: #bbb }
th[data-order="1"]::after { content: " \\2191" !important; color: var(--ink) !important }
th[data-order="-1"]::after { content: " \\2193" !important; color: var(--ink) !important }
table.gallery td, table.gallery th { border: 0; padding: 4px 14px 12px 0; vertical-align: top; font-size: 13px }
table.gallery th.row { padding-top: 14px; font-weight: 600; position: sticky; left: 0; background: #fff }
table.gallery img { max-width: none }
table.gallery .caption, figcaption { color: var(--faint); margin-top: 3px; white-space: pre-line }
.beside { display: flex; flex-wrap: wrap; gap: 16px } .beside figure { margin: 0; font-size: 13px }
dl { display: grid; grid-template-columns: max-content auto; gap: 3px 20px }
dt { color: var(--faint) } dd { margin: 0 }
"""

SORT = """
const tables = document.querySelectorAll("table.sortable");
tables.forEach(table => table.querySelectorAll("th").forEach((th, column) => th.onclick = () => {
  const order = th.dataset.order === "1" ? -1 : 1, body = table.tBodies[0];
  table.querySelectorAll("th").forEach(other => delete other.dataset.order); th.dataset.order = order;
  const key = row => { const v = row.cells[column].dataset.v; return v === "" ? null : isNaN(v) ? v : Number(v); };
  const compare = (a, b) => a === b ? 0 : a === null ? 1 : b === null ? -1 : (a < b ? -1 : 1) * order;
  [...body.rows].sort((a, b) => compare(key(a), key(b))).forEach(row => body.append(row));
}));
"""


def page(title: str, sections: Sequence[tuple[str, str]], *, lead: str = "") -> str:
    """A whole page. sections: (heading, HTML); lead: a line of plain text under the title."""
    body = "".join(
        f"<section><h2>{text(heading)}</h2>\n{content}\n</section>\n"
        for heading, content in sections
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,"><style>{STYLE}</style></head>\n'
        f'<body><main><h1>{text(title)}</h1>\n<p class="lead">{text(lead)}</p>\n{body}</main>\n'
        f"<script>{SORT}</script></body></html>\n"
    )


def save(path: str | os.PathLike, content: str) -> None:
    """Write a page, atomically."""
    save_text(path, content)


def text(value: Any) -> str:
    """Any value as text that HTML takes literally."""
    return html.escape(str(value))


def paragraph(content: str, *, faint: bool = False) -> str:
    return f"<p{' class=faint' if faint else ''}>{text(content)}</p>"


def items(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{text(line)}</li>" for line in lines) + "</ul>"


def facts(values: Mapping[str, Any]) -> str:
    """Names and values, one a line."""
    return (
        "<dl>"
        + "".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in values.items())
        + "</dl>"
    )


def folded(summary: str, content: str) -> str:
    """Content that opens when its summary is clicked."""
    return f"<details><summary>{text(summary)}</summary>{content}</details>"


def code(content: str) -> str:
    return f"<pre>{text(content)}</pre>"


def picture(
    source: Image.Image | np.ndarray | str | os.PathLike, alt: str = "", *, width: int | None = None
) -> str:
    """An <img> that carries its pixels. source: a PIL image, uint8 (H, W, 3), or the path of a PNG.
    width: in CSS pixels.
    """
    if isinstance(source, (str, os.PathLike)):
        with open(source, "rb") as file:
            content = file.read()
    else:
        image = source if isinstance(source, Image.Image) else Image.fromarray(source)
        image.save(buffer := io.BytesIO(), "PNG", optimize=True)
        content = buffer.getvalue()
    size = f' width="{width}"' if width else ""
    return f'<img alt="{text(alt)}"{size} src="data:image/png;base64,{base64.b64encode(content).decode()}">'


def beside(figures: Mapping[str, str]) -> str:
    """Pictures side by side. figures: caption -> HTML of the picture."""
    shown = (
        f"<figure>{shown}<figcaption>{text(caption)}</figcaption></figure>"
        for caption, shown in figures.items()
    )
    return f'<div class="beside">{"".join(shown)}</div>'


def table(
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str],
    *,
    formats: Mapping[str, Callable[[Any], str]] | None = None,
    best: Callable[[Mapping[str, Any], str], bool] = lambda row, key: False,
    wrong: str = "note",
) -> str:
    """A table sorted by a click on a heading. columns: key -> heading; formats: key -> value to
    text (floats: four digits).

    best(row, key): which cells are marked; the column `wrong` is written in red and may wrap.
    """
    formats = formats or {}
    numeric = {key: any(_number(row.get(key)) for row in rows) for key in columns}

    def cell(row, key):
        value = plain(row.get(key))
        written = formats.get(key, lambda v: f"{v:.4g}" if isinstance(v, float) else v)
        shown = "" if value is None else written(value)
        if isinstance(value, float) and not math.isfinite(value):
            value = None
        kind = " ".join(
            ["number"] * numeric[key]
            + ["best"] * bool(best(row, key))
            + ["wrong", "text"] * (key == wrong)
        )
        return (
            f'<td class="{kind}" data-v="{text("" if value is None else value)}">{text(shown)}</td>'
        )

    head = "".join(
        f'<th class="{"number" * numeric[key]}">{text(heading)}</th>'
        for key, heading in columns.items()
    )
    body = "\n".join("<tr>" + "".join(cell(row, key) for key in columns) + "</tr>" for row in rows)
    return f'<div class="wide"><table class="sortable"><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def gallery(
    cells: Mapping[tuple[Hashable, Hashable], tuple[str, str]],
    rows: Mapping[Hashable, str],
    columns: Mapping[Hashable, str],
) -> str:
    """Pictures in rows and columns. cells: (row, column) -> (HTML of the picture, caption); rows
    and columns: key -> name.
    """

    def cell(row, column):
        shown, caption = cells.get((row, column), ("", ""))
        return f'<td>{shown}<div class="caption">{text(caption)}</div></td>'

    head = "".join(f"<th>{text(name)}</th>" for name in columns.values())
    body = "\n".join(
        f'<tr><th class="row">{text(name)}</th>' + "".join(cell(row, c) for c in columns) + "</tr>"
        for row, name in rows.items()
    )
    head = f"<thead><tr><th></th>{head}</tr></thead>"
    return f'<div class="wide"><table class="gallery">{head}<tbody>\n{body}\n</tbody></table></div>'


def _number(value: Any) -> bool:
    return isinstance(plain(value), (int, float)) and not isinstance(value, bool)
