"""The columns of a table: what the numbers of a sample mean, and how they become cells again.

A sample of a table is a vector. A column of numbers is one of its channels; a column of K
categories is K channels, of which one is 1 and the others are 0 (one-hot). The column of the labels
has none: it is the condition of the model.

    values    (..., D), numbers in the units of the table, and one-hot categories
    scores    the same, but numbers of a column with `knots` by their normal score

The normal score of a number v is Phi^-1(F(v)), where F is the distribution function of the training
split, linear between its quantiles. It is normal with mean 0 and variance 1 whatever the column.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.core import reading
from diffusion_jax.core.deferred import deferred
from diffusion_jax.core.errors import printable

special = deferred("scipy.special")

KNOTS = 512  # quantiles that are kept of a column, at most
DECIMALS = (-9, 6)  # digits after the point of a column that is rounded; -2 is hundreds
LISTED = 8  # categories that are named in a message

NUMBER, CATEGORY, LABEL = "number", "category", "label"


class Column(NamedTuple):
    """A column of a table.

    Attributes:
      name: its heading.
      kind: 'number', 'category' or 'label' (categories that are the condition).
      categories: their names, in the order of the channels or of the labels.
      decimals: digits after the point to which numbers are rounded, 0 for whole numbers, -2 for
        hundreds; None for no rounding.
      knots: quantiles of the training split at even levels from 0 to 1; () where numbers have no
        normal score.
    """

    name: str
    kind: str
    categories: tuple[str, ...] = ()
    decimals: int | None = None
    knots: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """The number of its channels."""
        return {NUMBER: 1, CATEGORY: len(self.categories), LABEL: 0}[self.kind]

    @property
    def is_whole(self) -> bool:
        """Whether its numbers are whole."""
        return self.decimals is not None and self.decimals <= 0


RULE = reading.record(
    {"name": reading.text(), "kind": reading.one_of(NUMBER, CATEGORY, LABEL)},
    {
        "categories": reading.items(reading.text()),
        "decimals": reading.optional(reading.integer(*DECIMALS)),
        "knots": reading.items(reading.number(), most=KNOTS),
    },
)


def recorded(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Describe columns for data.json, without what has its default.

    Args:
      columns: the columns of a table.
    """
    default = Column("", NUMBER)._asdict()
    return [
        {key: value for key, value in column._asdict().items() if value != default.get(key)}
        | {"name": column.name, "kind": column.kind}
        for column in columns
    ]


def read(recorded: Sequence[Mapping[str, Any]]) -> tuple[Column, ...]:
    """Return the columns that `recorded` described.

    Args:
      recorded: what data.json holds, which meets RULE.
    """
    known = [{key: own[key] for key in Column._fields if key in own} for own in recorded]
    lists = ({k: tuple(v) if isinstance(v, list) else v for k, v in own.items()} for own in known)
    return tuple(Column(**own) for own in lists)


def difference(old: Sequence[Column], new: Sequence[Column]) -> str:
    """Describe the first difference in names, kinds and categories of the columns of two tables.

    Args:
      old: the columns that there were.
      new: the columns that there are.

    Returns:
      A part of a sentence; '' if there is no difference.
    """
    if [column.name for column in old] != [column.name for column in new]:
        differ = {c.name for c in old} ^ {c.name for c in new}
        return f"column {printable(min(differ))} is new or gone" if differ else "columns are moved"
    name = next((a.name for a, b in zip(old, new) if a[:3] != b[:3]), None)
    if name is None:
        return ""
    return f"column {printable(name)} is of another kind or has other categories"


def channels(columns: Sequence[Column]) -> Iterator[tuple[Column, slice]]:
    """Iterate over the columns that have channels, with their places in a sample.

    Args:
      columns: the columns of a table.
    """
    start = 0
    for column in columns:
        if column.width:
            yield column, slice(start, start + column.width)
        start += column.width


def names(columns: Sequence[Column]) -> list[str]:
    """Name the channels of a sample: 'age', 'color=red', 'color=blue', ...

    Args:
      columns: the columns of a table.
    """
    found = []
    for column, _ in channels(columns):
        own = [f"{column.name}={category}" for category in column.categories]
        found += own or [column.name]
    return found


# ---- numbers
def decimals(numbers: np.ndarray) -> int | None:
    """Count the digits after the point that a column has, within DECIMALS; None for more.

    Args:
      numbers: (N,), the cells of the column.
    """
    exact = (
        d
        for d in range(DECIMALS[0], DECIMALS[1] + 1)
        if np.array_equal(np.round(numbers, d), numbers)
    )
    return next(exact, None)


def quantiles(numbers: np.ndarray) -> tuple[float, ...]:
    """Return the knots of a column: its quantiles at even levels, at most KNOTS.

    Args:
      numbers: (N,), the cells of the training split.
    """
    levels = np.linspace(0, 1, min(len(numbers), KNOTS))
    return tuple(np.quantile(numbers, levels).tolist())


def _levels(knots: Sequence[float]) -> np.ndarray:
    """The levels of knots; those of the extremes are not 0 and 1, whose scores are infinite."""
    edge = 1 / (2 * len(knots))
    return np.clip(np.linspace(0, 1, len(knots)), edge, 1 - edge)


def scores(columns: Sequence[Column], values: np.ndarray) -> np.ndarray:
    """Replace the numbers of columns with knots by their normal scores.

    Args:
      columns: the columns of the table.
      values: (..., D).

    Returns:
      (..., D) float64. A value that is several quantiles has the middle of their levels; one beyond
      the extremes of the training split has the score of the extreme.
    """
    result = np.array(values, np.float64)
    for column, place in channels(columns):
        if column.knots:
            knots, levels, v = np.array(column.knots), _levels(column.knots), values[..., place]
            from_left = np.interp(v, knots, levels)
            from_right = np.interp(-v, -knots[::-1], levels[::-1])
            result[..., place] = special.ndtri((from_left + from_right) / 2)
    return result


def cells(columns: Sequence[Column], scores: np.ndarray) -> np.ndarray:
    """Return the values that a table can hold for scores of any size: the inverse of `scores`.

    Numbers are rounded to the decimals of their column, and of the channels of a column of
    categories the largest becomes 1.

    Args:
      columns: the columns of the table.
      scores: (..., D).

    Returns:
      (..., D) float64, in the units of the table.
    """
    result = np.array(scores, np.float64)
    for column, place in channels(columns):
        own = result[..., place]
        if column.kind == CATEGORY:
            own = np.eye(column.width)[np.argmax(own, -1)]
        elif column.knots:
            own = np.interp(special.ndtr(own), _levels(column.knots), column.knots)
        if column.decimals is not None:
            own = np.round(own, column.decimals) + 0.0  # which has no -0
        result[..., place] = own
    return result


# ---- text
def text(
    columns: Sequence[Column], values: np.ndarray, labels: np.ndarray | None = None
) -> list[str]:
    """Write rows of a table as the lines of a CSV file, with its heading.

    Args:
      columns: the columns of the table.
      values: (N, D), as `cells` returns them.
      labels: (N,), the labels of the rows; a label that is no class is an empty cell. None leaves
        the column out.
    """
    shown = [column for column in columns if column.width or labels is not None]
    places = {column.name: place for column, place in channels(columns)}
    cells = [
        _label_cells(column, labels)
        if column.kind == LABEL
        else _cells(column, values[:, places[column.name]])
        for column in shown
    ]
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow([column.name for column in shown])
    writer.writerows(zip(*cells))
    return lines.getvalue().removesuffix("\n").split("\n")


def _label_cells(column: Column, labels: np.ndarray) -> list[str]:
    known = dict(enumerate(column.categories))
    return [known.get(int(label), "") for label in labels]


def _cells(column: Column, own: np.ndarray) -> list[str]:
    """The text of the cells of one column, whose channels are (N, width)."""
    if column.kind == CATEGORY:
        return [column.categories[i] for i in own.argmax(1)]
    spec = ".8g" if column.decimals is None else f".{max(column.decimals, 0)}f"
    return [format(number, spec) for number in own[:, 0].tolist()]


def describe(columns: Sequence[Column], low: Sequence[float], high: Sequence[float]) -> str:
    """Say in one line of what kind each column is.

    Args:
      columns: the columns of the table.
      low: (D,), the smallest value of each channel.
      high: (D,), the largest one.
    """
    found, places = [], dict((c.name, place.start) for c, place in channels(columns))
    for column in columns:
        name = printable(column.name)
        if column.kind != NUMBER:
            first = ", ".join(map(printable, column.categories[:LISTED]))
            more = ", ..." * (len(column.categories) > LISTED)
            found.append(f"{name} ({column.kind}: {first}{more})")
            continue
        kind = "whole number" if column.is_whole else "number"
        at = places[column.name]
        found.append(f"{name} ({kind} {low[at]:g} to {high[at]:g})")
    return f"columns: {'; '.join(found)}"
