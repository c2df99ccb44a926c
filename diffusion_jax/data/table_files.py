"""Reading tables: a CSV or Parquet file as columns of numbers and of text, checked cell by cell.

csv_files.py says which separators and decimal marks a CSV file may have.

A column in which every cell is a number is a column of numbers; any other is one of categories.
Nothing is guessed beyond that: a cell without a value, a column of both numbers and text, a date
and a text that names single rows are refused, each in one line that says what to do.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.core.deferred import deferred
from diffusion_jax.core.errors import UserError, printable
from diffusion_jax.data import csv_files

pa = deferred("pyarrow")
compute = deferred("pyarrow.compute")
parquet = deferred("pyarrow.parquet")

ENDINGS = (".csv", ".tsv", ".parquet")
MOST_CATEGORIES = 1000  # of a column
INDEX = re.compile(r"__index_level_\d+__")  # a column in which pandas stores the index of rows
LONGEST = 1000  # characters of the name of a category
DISTINCT = 0.5  # a column of text with more different cells than this share of the rows is an id,
FEW = 20  # in tables of at least so many rows


def find(path: str) -> tuple[Path, Path | None]:
    """Find the file of a table, and that of its test rows: STEM_test with the same ending.

    Args:
      path: data.path.

    Returns:
      (file, file of the test rows or None).

    Raises:
      UserError: where there is no such file.
    """
    file = Path(os.path.expanduser(path))
    if file.suffix.lower() not in ENDINGS:
        raise UserError(f"data.path={path} must be a .csv, .tsv or .parquet file")
    if not file.is_file():
        raise UserError(
            f"data.path={path}: there is no such file; name a .csv, .tsv or .parquet file"
        )
    held_out = file.with_name(f"{file.stem}_test{file.suffix}")
    return file, held_out if held_out.is_file() else None


def read(
    file: Path, text: Collection[str] = (), exclude: Collection[str] = ()
) -> tuple[Any, tuple[str, ...]]:
    """Read a file as a table of Arrow.

    Args:
      file: a .csv or .tsv file with a heading, see csv_files.py; or a .parquet file.
      text: columns whose cells are text even if they look like numbers.
      exclude: columns that are not used.

    Returns:
      (the table, in which missing cells are null; how the file is written, in words).

    Raises:
      UserError: for a file that is no such table, and for headings that are missing or repeated.
    """
    what = f"data.path={file}"
    try:
        is_parquet = file.suffix.lower() == ".parquet"
        found, how = (
            _read_parquet(file) if is_parquet else csv_files.read(file, text, exclude, what)
        )
        names = found.column_names
    except UserError:
        raise
    except (pa.ArrowException, ValueError, OSError) as error:
        reason = printable(str(error).split("\n")[0])
        raise UserError(
            f"{what} cannot be read as a table ({reason:.200}); a .csv has a heading and cells "
            "separated by commas, semicolons or tabs, in UTF-8"
        ) from error
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UserError(
            f"{what}: {names.count(repeated)} columns are called '{printable(repeated)}'; give "
            "every column a name of its own"
        )
    if "" in names:
        raise UserError(f"{what}: column {names.index('') + 1} has no name; write one in its head")
    if found.num_rows < 2:
        raise UserError(f"{what} has {found.num_rows} rows below its head; at least two are needed")
    return found, how


def _read_parquet(file: Path) -> tuple[Any, tuple[str, ...]]:
    """A Parquet file without the index of its rows, as pandas stores one that is not 0, 1, ..."""
    found = parquet.read_table(file)
    names = found.column_names
    return found.drop_columns([name for name in names if INDEX.fullmatch(name)]), ()


def column(
    table: Any, name: str, what: str, *, declared: bool = False, excluded: Sequence[str] = ()
) -> np.ndarray:
    """Read a column, and refuse what is neither numbers nor categories.

    Args:
      table: the table of Arrow.
      name: the heading of the column.
      what: the data, for messages.
      declared: whether the user has said that it is one of categories.
      excluded: columns that are left out already, which messages name again.

    Returns:
      (N,), float64 or str.

    Raises:
      UserError: naming the column, the row below the heading and what to do.
    """
    found, where = table[name], f"{what}: column '{printable(name)}'"
    leave = f"leave the column out: {option('exclude', *excluded, name)}"
    if found.null_count == len(found):
        raise UserError(f"{where} is empty; {leave}")
    if pa.types.is_dictionary(found.type):
        found = found.cast(found.type.value_type)
    missing = np.asarray(found.is_null(nan_is_null=True))
    if missing.any():
        rows = np.flatnonzero(missing)
        raise UserError(
            f"{where} has {len(rows)} missing value{'s' * (len(rows) > 1)} (row {rows[0] + 1} is "
            f"the first); fill them in, remove these rows, or {leave}"
        )
    kind = pa.types
    numeric = kind.is_integer(found.type) or kind.is_floating(found.type)
    numeric = numeric or kind.is_decimal(found.type)
    if numeric and not declared:
        numbers = np.asarray(found.cast(pa.float64(), safe=False), np.float64)
        if not np.isfinite(numbers).all():
            row = int(np.flatnonzero(~np.isfinite(numbers))[0])
            raise UserError(
                f"{where} has {numbers[row]} in row {row + 1}, which is no finite number; correct "
                f"it, remove the row, or {leave}"
            )
        return numbers
    cells = _names(found, where, leave)
    if not declared:
        _check_mixed(cells, where, option("categories", name))
    return cells


def _names(found: Any, where: str, leave: str) -> np.ndarray:
    """The cells of a column of Arrow as names of categories, (N,) str."""
    kind, own = pa.types, found.type
    if kind.is_binary(own):
        raise UserError(
            f"{where} has bytes that are no text in UTF-8; save it in UTF-8, or {leave}"
        )
    is_number = kind.is_integer(own) or kind.is_floating(own) or kind.is_decimal(own)
    is_text = kind.is_string(own) or kind.is_large_string(own)
    if not (is_number or is_text or kind.is_boolean(own)):
        raise UserError(
            f"{where} is of type {own}; numbers and text are read: store it as numbers, or {leave}"
        )
    found = found.cast(pa.string())
    # an array of numpy has the width of the longest text in every row
    if (longest := compute.max(compute.utf8_length(found)).as_py()) > LONGEST:
        raise UserError(
            f"{where} has a text of {longest:,} characters, and names of categories have at most "
            f"{LONGEST:,}; {leave}"
        )
    cells = np.array(found.to_pylist(), str)
    return np.char.capitalize(cells) if kind.is_boolean(own) else cells


def option(key: str, *names: str) -> str:
    """What to type to name columns: --config.data.exclude=id,age, or ='"b, c"' in quotation marks.

    Args:
      key: of config.data, whose value is a list of columns: 'exclude' or 'categories'.
      *names: the headings of the columns.
    """
    shown = [printable(name) for name in names]
    if all(re.fullmatch(r"[\w.+-]+", text) for text in shown):
        return f"--config.data.{key}={','.join(shown)}"
    quoted = [f'"{text}"' if not {*text} & {*'"\\'} else repr(text) for text in shown]
    return f"--config.data.{key}={shlex.quote(','.join(quoted))}"


def _check_mixed(cells: np.ndarray, where: str, remedy: str) -> None:
    """Refuse a column of both numbers and text."""
    distinct, counts = np.unique(cells, return_counts=True)
    numbers = np.array([is_number(cell) for cell in distinct])
    if not numbers.any() or numbers.all():
        return
    row = int(np.flatnonzero(np.isin(cells, distinct[~numbers]))[0])
    raise UserError(
        f"{where} has numbers and text: '{printable(cells[row]):.40}' in row {row + 1} is no "
        f"number, and {counts[numbers].sum()} of {len(cells)} cells are; correct them, or say that "
        f"all are names of categories: {remedy}"
    )


def is_number(cell: str) -> bool:
    """Whether a text is a number.

    Args:
      cell: of a table.
    """
    try:
        float(cell)
    except ValueError:
        return False
    return True


def is_fraction(cell: str) -> bool:
    """Whether a text is a finite number with a fraction, unlike a year or a number of a column.

    Args:
      cell: of a table.
    """
    return is_number(cell) and np.isfinite(float(cell)) and float(cell) % 1 != 0


def categories(
    cells: np.ndarray, name: str, what: str, excluded: Sequence[str] = ()
) -> tuple[str, ...]:
    """List the categories of a column, in the order of numbers if they are, else of text.

    Args:
      cells: (N,) of str, those of the training split.
      name: the heading of the column.
      what: the data, for messages.
      excluded: columns that are left out already, which messages name again.

    Raises:
      UserError: for a column whose cells name single rows.
    """
    found = np.unique(cells).tolist()
    measured = all(map(is_number, found))
    single = len(cells) >= FEW and len(found) > DISTINCT * len(cells)
    if single or len(found) > MOST_CATEGORIES:
        raise UserError(
            f"{what}: column '{printable(name)}' has {len(found):,} different values in "
            f"{len(cells):,} rows: it holds {'measurements' if measured else 'ids or free text'}, "
            f"not categories; leave it out: {option('exclude', *excluded, name)}"
            + ", or make another column the label or the category"
            * measured
        )
    if measured:
        found.sort(key=float)
    return tuple(found)
