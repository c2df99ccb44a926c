"""Rows of a table next to its data: the marginal of every column, and pairs of columns."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from diffusion_jax.data import columns as of_table
from diffusion_jax.data.columns import Column
from diffusion_jax.data.normalization import Normalization
from diffusion_jax.report import scatter, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACROSS = 4  # panels in a row
MARGINALS, PAIRS = 12, 4  # panels, at most
BARS = 8  # categories of a panel, at most
FIT = 20  # characters of all their names, which then stand upright
POINTS = 1000  # of a set in a panel, at most


def figure(
    known: Normalization,
    data: np.ndarray | None,
    samples: Mapping[str, np.ndarray],
    path: str | os.PathLike,
) -> None:
    """Draw the marginals of the first columns, and the pairs of numbers that correlate most.

    Numbers are in the units of the table: histograms, and points for pairs. Categories are bars of
    the share of each.

    Args:
      known: the normalization of the table, with its columns.
      data: (M, D), rows of the training split, normalized; None for a picture of samples alone.
      samples: (N, D) samples by name, normalized.
      path: the file to write.
    """
    sets = {name: known.values(x) for name, x in scatter.with_data(data, samples).items()}
    places = list(of_table.channels(known.columns))
    shown = places[:MARGINALS]
    numbers = [(c.name, place.start) for c, place in places if c.kind == of_table.NUMBER]
    rows = math.ceil(len(shown) / ACROSS)
    across = math.ceil(len(shown) / rows)
    pairs = _strongest(_reference(sets), numbers)[:across]
    below = rows + bool(pairs)
    with style.figure(path, below * across, (2.3, 1.8), below) as axes:
        for axis, (column, place) in zip(axes, shown):
            draw = _histogram if column.kind == of_table.NUMBER else _bars
            draw(axis, column, {name: x[:, place] for name, x in sets.items()})
        for axis in (*axes[len(shown) : rows * across], *axes[rows * across + len(pairs) :]):
            axis.set_axis_off()
        for axis, pair in zip(axes[rows * across :], pairs):
            _scatter(axis, pair, sets)
        axes[0].legend(
            fontsize=7, frameon=False, ncols=len(sets), loc="lower left", bbox_to_anchor=(0, 1)
        )


def _reference(sets: Mapping[str, np.ndarray]) -> np.ndarray:
    """The set that chooses limits and pairs: the data, or else the samples."""
    return next(iter(sets.values()))


def _color(sets: Mapping[str, np.ndarray], i: int) -> str:
    """The color of a set, which samples also have where the data are not shown."""
    return style.COLORS[i + ("data" not in sets)]


def _strongest(data: np.ndarray, numbers: list[tuple[str, int]]) -> list[tuple]:
    """The pairs of columns of numbers by correlation; first those that share no column."""
    strength = {
        pair: abs(_correlation(data[:, pair[0][1]], data[:, pair[1][1]]))
        for pair in itertools.combinations(numbers, 2)
    }
    chosen, used, order = [], set(), sorted(strength, key=strength.get, reverse=True)
    for pair in order:
        if not used & {*pair}:
            chosen.append(pair)
            used |= {*pair}
    return (chosen + [pair for pair in order if pair not in chosen])[:PAIRS]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    spread = a.std() * b.std()
    return float(np.mean((a - a.mean()) * (b - b.mean())) / spread) if spread else 0.0


def _limits(x: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(x, (0.002, 0.998))
    margin = 0.08 * (high - low) or 1.0
    return float(low - margin), float(high + margin)


def _histogram(axis: Axes, column: Column, sets: Mapping[str, np.ndarray]) -> None:
    low, high = _limits(_reference(sets))
    fewest = min(map(len, sets.values()))
    bins = int(np.clip(fewest**0.5, 6, 30))
    edges = np.linspace(low, high, bins + 1)
    if column.is_whole:  # every bin has as many whole numbers
        step = math.ceil((high - low) / bins)
        edges = np.arange(math.floor(low), high + step, step) - 0.5
    for i, (name, x) in enumerate(sets.items()):
        look = {"color": _color(sets, i), "label": name}
        weights = np.full(len(x), 1 / len(x))
        axis.hist(x[:, 0], edges, weights=weights, histtype="step", **look)
    axis.set(xlabel=column.name, yticks=[], xlim=(edges[0], edges[-1]))
    axis.locator_params(axis="x", nbins=3)


def _bars(axis: Axes, column: Column, sets: Mapping[str, np.ndarray]) -> None:
    order = np.argsort(-_reference(sets).mean(0), kind="stable")[:BARS]
    width = 0.8 / len(sets)
    for i, (name, x) in enumerate(sets.items()):
        at = np.arange(len(order)) + (i - (len(sets) - 1) / 2) * width
        axis.bar(at, x.mean(0)[order], width, color=_color(sets, i), label=name)
    names = [column.categories[i][:10] for i in order]
    axis.set(xlabel=column.name, yticks=[])
    long = sum(map(len, names)) > FIT
    look = {"rotation": 30, "ha": "right", "fontsize": 6} if long else {"fontsize": 8}
    axis.set_xticks(np.arange(len(order)), names, **look)


def _scatter(axis: Axes, pair: tuple, sets: Mapping[str, np.ndarray]) -> None:
    (x_name, x), (y_name, y) = pair
    for i, values in enumerate(sets.values()):
        some = values[:: math.ceil(len(values) / POINTS)]
        size = 2 if len(some) > 200 else 8
        axis.scatter(some[:, x], some[:, y], s=size, alpha=0.4, linewidths=0, color=_color(sets, i))
    axis.set(xlabel=x_name, ylabel=y_name, xlim=_limits(_reference(sets)[:, x]))
    axis.set(ylim=_limits(_reference(sets)[:, y]))
    axis.locator_params(nbins=3)
