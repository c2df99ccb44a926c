"""CSV files: which character separates the cells, and which mark begins the decimals.

The heading says the first: it is the character of SEPARATORS that stands in it outside of quotation
marks. Where several do, it is the one by which every row has as many cells as the heading.

A column in which every cell is a number with a point or a whole number has decimal points. One in
which every cell is a number with a comma or a whole number has decimal commas. A file with two
readings is refused, in one line that names both: 1,234 may be a number with decimals or a whole
number with its thousands apart.
"""

from __future__ import annotations

import csv as plain
import io
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from diffusion_jax.core.deferred import deferred
from diffusion_jax.core.errors import UserError, printable

pa = deferred("pyarrow")
compute = deferred("pyarrow.compute")
csv = deferred("pyarrow.csv")

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
EXAMINED = 2**20  # characters that are examined where a heading has several separators

WITH_COMMA = r"^[+-]?\d*,?\d+([eE][+-]?\d+)?$"  # a number whose decimals begin with a comma
THOUSANDS = r"^[+-]?[1-9]\d{0,2},\d{3}$"  # a number with a comma that may separate thousands
GROUPED = (  # a number whose thousands are apart without doubt
    r"^[+-]?\d{1,3}((\.\d{3})+,\d+|(,\d{3})+\.\d+|(,\d{3}){2,}|(\.\d{3}){2,})$"
)
ANY_MARKS = r"^[+-]?[\d.,]+$"


def read(
    file: Path, text: Collection[str], exclude: Collection[str], what: str
) -> tuple[Any, tuple[str, ...]]:
    """Read a CSV file as a table of Arrow; missing cells are null in every column, True is text.

    Args:
      file: the file, in UTF-8.
      text: columns whose cells are text even if they look like numbers.
      exclude: columns that are not used, whose numbers may be written in any way.
      what: the data, for messages.

    Returns:
      (the table, how the file is written, in words: () for commas and decimal points).

    Raises:
      UserError: for a file that can be read in two ways.
      pyarrow.ArrowException: for one that cannot be read.
    """
    by = separator(file, what)
    found = _read(file, by, text)
    shown = (f"{SEPARATORS[by]} between cells",) if by != "," else ()
    skipped = {*text, *exclude}
    columns = [name for name in dict.fromkeys(found.column_names) if name not in skipped]
    columns = [name for name in columns if found.column_names.count(name) == 1]
    words = {name: _trimmed(found[name]) for name in columns if _is_text(found[name])}
    _check_grouped(words, what)
    with_commas = [name for name, cells in words.items() if _has_decimal_commas(cells)]
    if not with_commas:
        return found, shown
    _check_marks(words, with_commas, what)
    points = [name for name in columns if pa.types.is_floating(found[name].type)]
    _check_points(_read(file, by, points, points), words[with_commas[0]], with_commas[0], what)
    for name in with_commas:
        numbers = compute.replace_substring(words[name], ",", ".").cast(pa.float64())
        found = found.set_column(found.column_names.index(name), name, numbers)
    return found, (*shown, "decimal commas")


def separator(file: Path, what: str) -> str:
    """Return the character that separates the cells of a CSV file.

    Args:
      file: the file.
      what: the data, for messages.

    Returns:
      One of SEPARATORS; a comma for a file of one column.

    Raises:
      UserError: where several characters of the heading do.
    """
    with open(file, encoding="utf-8-sig", errors="replace", newline="") as opened:
        text = opened.read(EXAMINED)
    rows = {by: _rows(text, by) for by in SEPARATORS}
    possible = [by for by, own in rows.items() if own and len(own[0]) > 1]
    if len(possible) < 2:
        return next(iter(possible), ",")
    even = [by for by in possible if len({*map(len, rows[by])}) == 1]
    if len(even) < 2:
        return next(iter(even), possible[0])
    readings = " or ".join(f"{len(rows[by][0])} columns by {SEPARATORS[by]}" for by in even)
    raise UserError(
        f"{what} can be read in two ways, as {readings}; write the names of columns that have such "
        "a character in quotation marks"
    )


def _rows(text: str, by: str) -> list[list[str]]:
    """The rows of a text that are not empty; the last one may be cut, and is left out then."""
    try:
        rows = [row for row in plain.reader(io.StringIO(text), delimiter=by) if row]
    except plain.Error:
        return []
    return rows[:-1] if len(text) == EXAMINED else rows


def _read(file: Path, by: str, text: Collection[str], only: Sequence[str] | None = None) -> Any:
    if only is not None and not only:
        return pa.table({})
    convert = csv.ConvertOptions(
        column_types=dict.fromkeys(text, pa.string()),
        strings_can_be_null=True,
        true_values=[],
        false_values=[],
        include_columns=only,
    )
    parse = csv.ParseOptions(delimiter=by)
    return csv.read_csv(file, parse_options=parse, convert_options=convert)


def _is_text(cells: Any) -> bool:
    return pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type)


def _trimmed(cells: Any) -> Any:
    return compute.utf8_trim_whitespace(cells)


def _matches(cells: Any, pattern: str) -> Any:
    return compute.match_substring_regex(cells, pattern)


def _every(cells: Any, pattern: str) -> bool:
    return bool(compute.all(_matches(cells, pattern)).as_py())


def _first(cells: Any, pattern: str) -> str:
    """The first cell that matches a pattern; '' for none."""
    found = cells.filter(_matches(cells, pattern))
    return found[0].as_py() if len(found) else ""


def _has_decimal_commas(cells: Any) -> bool:
    return _every(cells, WITH_COMMA) and bool(_first(cells, ","))


def _check_grouped(words: dict[str, Any], what: str) -> None:
    """Refuse a column of numbers whose thousands are apart."""
    for name, cells in words.items():
        grouped = _first(cells, GROUPED)
        if grouped and _every(cells, ANY_MARKS):
            raise UserError(
                f"{what}: column '{printable(name)}' has {grouped:.40}, a number whose thousands "
                "are apart; write numbers without a mark between thousands"
            )


def _check_marks(words: dict[str, Any], with_commas: Sequence[str], what: str) -> None:
    """Refuse commas all of which may also stand between thousands."""
    for name in with_commas:
        cells = words[name]
        commas = cells.filter(_matches(cells, ","))
        if not _every(commas, THOUSANDS):
            return
    name, cell = with_commas[0], _first(words[with_commas[0]], ",")
    raise UserError(
        f"{what}: column '{printable(name)}' has {cell:.40}, which can be read in two ways: as "
        f"{cell.replace(',', '.'):.40}, or as {cell.replace(',', ''):.40} with its thousands "
        "apart; write it in one of these two ways"
    )


def _check_points(numbers: Any, commas: Any, name: str, what: str) -> None:
    """Refuse a file that has both decimal commas and numbers with points."""
    for other in numbers.column_names:
        if cell := _first(numbers[other], r"\."):
            raise UserError(
                f"{what}: column '{printable(name)}' has {_first(commas, ','):.40} and column "
                f"'{printable(other)}' {cell:.40}; the comma may begin decimals, or the point: "
                "write all numbers with one of them"
            )
