"""Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_jax import files
from diffusion_jax.errors import printable


def markdown_table(
    rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | Mapping[str, str]
) -> str:
    """A GitHub table of the named columns (key, or key -> heading); floats to four digits; '-'
    where a row has none.
    """
    headings = columns if isinstance(columns, Mapping) else {key: key for key in columns}
    right = [
        any(isinstance(files.plain(row.get(key)), (int, float)) for row in rows) for key in headings
    ]
    lines = [
        [str(heading) for heading in headings.values()],
        ["---:" if r else "---" for r in right],
    ]
    lines += [[_cell(row.get(key)) for key in headings] for row in rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _cell(value: Any) -> str:
    value = files.plain(value)
    text = "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return printable(text.replace("|", "\\|").replace("\n", " "))
