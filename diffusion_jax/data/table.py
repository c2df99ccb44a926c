"""Tables of numbers and categories as a data set of vectors (data.name=table).

    FILE.csv or FILE.parquet    a heading, and a row for each sample
    FILE_test.csv               the rows that are held out; without it a tenth of FILE is

table_files.py says how columns are read, columns.py what channels they become. One column may be
the label, the condition of the model; it is then no part of the sample.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from diffusion_jax.core.errors import UserError, printable, unknown
from diffusion_jax.data import array_files, columns, normalization, table_files
from diffusion_jax.data.any_shape import StoredArrays
from diffusion_jax.data.columns import CATEGORY, LABEL, NUMBER, Column
from diffusion_jax.data.normalization import Normalization
from diffusion_jax.data.sources import Source, Splits

QUANTILE = "quantile"  # besides normalization.RULES: numbers by their normal scores

Cells = dict[str, np.ndarray]  # of each column, (N,)


class Roles(NamedTuple):
    """What the user says of columns; the names of config.data.

    Attributes:
      label: the column that is the condition; '' for none.
      categories: columns of numbers that are codes of categories.
      exclude: columns that are not read.
    """

    label: str = ""
    categories: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


def load(path: str, rule: str, roles: Roles) -> Splits:
    """Read a table.

    Args:
      path: data.path, a .csv, .tsv or .parquet file.
      rule: config.data.normalization: one of normalization.RULES, or QUANTILE.
      roles: what the user says of columns.

    Raises:
      UserError: for a file that is no table, and for columns that are neither numbers nor
        categories.
    """
    what = f"data.path={path}"
    parts, how = _parts(path, roles, what)
    _check_cells(parts[0], roles, what)
    label = parts[0][roles.label] if roles.label else None
    of_rows = parts if len(parts) == 2 else _held_out(parts[0], label, what)
    train, test = of_rows
    known = tuple(_column(name, own, roles, rule, what) for name, own in train.items())
    _check_known(test, known, what)
    values = [_values(known, own) for own in of_rows]
    normalized = _normalization(known, values[0], rule, what)
    splits = [_source(known, own, numbers, normalized) for own, numbers in zip(of_rows, values)]
    classes = next((column.categories for column in known if column.kind == LABEL), ())
    split = "split by its files" if len(parts) == 2 else "a tenth is held out by row"
    rule = "; ".join([", ".join(how), split] if how else [split])
    return Splits(
        *splits, values[0].shape[1:], len(classes), classes, rule=rule, normalization=normalized
    )


def columns_of(source: Source) -> tuple[Column, ...]:
    """Return the columns of a table; () for a split of other data.

    Args:
      source: a split of any kind.
    """
    known = getattr(source, "normalized", None)
    return known.columns if known else ()


def _parts(path: str, roles: Roles, what: str) -> tuple[list[Cells], list[str]]:
    """The cells of the file and of that of test rows, if there is one; how they are written."""
    text = {*roles.categories, *filter(None, [roles.label])}
    files = [file for file in table_files.find(path) if file]
    tables, forms = zip(*[table_files.read(file, text, roles.exclude) for file in files])
    names = tables[0].column_names
    for key, given in (
        ("label", [roles.label] if roles.label else []),
        ("categories", roles.categories),
        ("exclude", roles.exclude),
    ):
        for name in given:
            if name not in names:
                raise unknown(f"column of config.data.{key}", name, names)
    if both := {roles.label, *roles.categories} & {*roles.exclude}:
        raise UserError(
            f"config.data.exclude leaves out '{printable(min(both))}', which config.data.label or "
            "config.data.categories names; take it out of one of them"
        )
    if tables[1:] and tables[1].column_names != names:
        differ = sorted({*names} ^ {*tables[1].column_names}) or ["their order"]
        raise UserError(
            f"{what}: {files[1].name} has other columns ({printable(differ[0])} differs); give "
            "both files the same columns in one order"
        )
    kept = [name for name in names if name not in roles.exclude]
    if not {*kept} - {roles.label}:
        raise UserError(f"{what} has no column besides the label; a sample needs one at least")
    parts = [
        {
            name: table_files.column(
                table, name, f"data.path={file}", declared=name in text, excluded=roles.exclude
            )
            for name in kept
        }
        for file, table in zip(files, tables)
    ]
    return parts, list(dict.fromkeys(itertools.chain(*forms)))


def _held_out(cells: Cells, label: np.ndarray | None, what: str) -> tuple[Cells, Cells]:
    """Hold out a tenth of the rows, without the last of a category."""
    count = len(next(iter(cells.values())))
    codes = None if label is None else np.unique(label, return_inverse=True)[1]
    train, test = array_files.held_out(count, codes, what)
    stays = np.ones(len(test), bool)
    for own in cells.values():
        if own.dtype.kind == "U":
            stays &= np.isin(own[test], own[train])
    train, test = np.sort(np.append(train, test[~stays])), test[stays]
    if not len(test):
        raise UserError(
            f"{what}: no row can be held out, as each has a category of its own; add rows"
        )
    return tuple({name: own[rows] for name, own in cells.items()} for rows in (train, test))


def _column(name: str, cells: np.ndarray, roles: Roles, rule: str, what: str) -> Column:
    """What a column is, by its training split."""
    if cells.dtype.kind == "U":
        found = table_files.categories(cells, name, what)
        return Column(name, LABEL if name == roles.label else CATEGORY, found)
    knots = columns.quantiles(cells) if rule == QUANTILE else ()
    return Column(name, NUMBER, decimals=columns.decimals(cells), knots=knots)


def _check_cells(cells: Cells, roles: Roles, what: str) -> None:
    """Refuse text that names single rows, and warn of numbers that do and of a missing heading."""
    number = next((name for name in cells if table_files.is_fraction(name)), None)
    if number and not all(map(table_files.is_number, cells)):
        logging.warning(
            "%s: column '%s' has a number as its name; is the first row a row of data? Then write "
            "the names of the columns above it",
            what,
            printable(number),
        )
    for name, own in cells.items():
        if own.dtype.kind == "U":
            table_files.categories(own, name, what, roles.exclude)
        elif len(own) >= table_files.FEW and (np.diff(own) == 1).all():
            logging.warning(
                "%s: column '%s' counts the rows; leave it out if it is no measurement: %s",
                what,
                printable(name),
                table_files.option("exclude", *roles.exclude, name),
            )


def _check_known(test: Mapping[str, np.ndarray], known: Sequence[Column], what: str) -> None:
    """Refuse test rows whose columns are of another kind, or with categories of their own."""
    for column in known:
        own, name = test[column.name], printable(column.name)
        if (own.dtype.kind == "U") != (column.kind != NUMBER):
            raise UserError(
                f"{what}: column '{name}' is of {'numbers' if column.kind == NUMBER else 'text'} "
                "in the training rows and not in the test rows; correct one of the files"
            )
        if column.kind == NUMBER:
            continue
        new = np.flatnonzero(~np.isin(own, column.categories))
        if new.size:
            raise UserError(
                f"{what}: column '{name}' has '{printable(own[new[0]]):.40}' in test row "
                f"{new[0] + 1}, which no training row has; move such rows ({new.size}) to the "
                "training rows, or remove them"
            )


def _values(known: Sequence[Column], cells: Mapping[str, np.ndarray]) -> np.ndarray:
    """The rows of a split as values, (N, D) float64."""
    parts = []
    for column, _ in columns.channels(known):
        own = cells[column.name]
        if column.kind == CATEGORY:
            own = own[:, None] == np.array(column.categories)
        parts.append(own.reshape(len(own), -1).astype(np.float64))
    return np.concatenate(parts, axis=1)


def _normalization(
    known: tuple[Column, ...], values: np.ndarray, rule: str, what: str
) -> Normalization:
    """The normalization of the channels, as measured on the training split."""
    if rule not in (rules := (*normalization.RULES, QUANTILE)):
        raise unknown("config.data.normalization", rule, rules)
    names = columns.names(known)
    normalization.check_sizes(values.min(0), values.max(0), what, names)
    measured = normalization.measure(
        [columns.scores(known, values)],
        "standard" if rule == QUANTILE else rule,
        "float32",
        what,
        names=names,
    )
    extremes: dict[str, Any] = {
        "low": tuple(values.min(0).tolist()),
        "high": tuple(values.max(0).tolist()),
    }
    return measured._replace(columns=known, **extremes)


def _source(
    known: Sequence[Column], cells: Cells, values: np.ndarray, normalized: Normalization
) -> StoredArrays:
    """A split that is normalized as it is read."""
    column = next((column for column in known if column.kind == LABEL), None)
    label = None
    if column:
        numbers = {category: i for i, category in enumerate(column.categories)}
        label = np.array([numbers[cell] for cell in cells[column.name].tolist()])
    return StoredArrays(values, np.arange(len(values)), label, normalized)
