"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from diffusion_jax.core import files
from diffusion_jax.core.errors import printable


def markdown_table(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | Mapping[str, str]
) -> str:
    """A Markdown table, as GitHub reads it, whose columns are aligned as plain text too.

    Args:
      rows: the values of each row by key. Floats are written with four digits; a value that is
        missing or None is '-'.
      columns: the keys of the columns, or their headings by key. A column with a number is aligned
        to the right.
    """
    headings = columns if isinstance(columns, Mapping) else {key: key for key in columns}
    numeric = [
        any(isinstance(files.plain(row.get(key)), (int, float)) for row in rows) for key in headings
    ]
    table = tabulate(
        [[_cell(row.get(key)) for key in headings] for row in rows],
        headers=[_cell(heading) for heading in headings.values()],
        tablefmt="pipe",
        colalign=["right" if number else "left" for number in numeric],
        disable_numparse=True,
    )
    return f"{table}\n"


def _cell(value: Any) -> str:
    """A value as text on one line, with what would end a cell or control a terminal escaped."""
    value = files.plain(value)
    text = "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return printable(text.replace("|", "\\|").replace("\n", " "))
