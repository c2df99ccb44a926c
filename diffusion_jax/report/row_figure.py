"""Edited rows of a table, or vectors, column by column in the units of the data."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from diffusion_jax.data import columns as of_table
from diffusion_jax.data.columns import NUMBER, Column
from diffusion_jax.data.normalization import Normalization
from diffusion_jax.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACROSS = 3  # panels in a row
PANELS = 12  # columns that are shown, at most
ALL = (*style.COLORS, *style.MORE_COLORS)
LONGEST = 26  # letters of the name of a column
LETTERS = 10  # of the name of a category
CATEGORIES = 8  # whose names are shown, at most
MEASURED = "measured"
TRUTH = "truth"  # the part that is drawn as a ring
APART = 0.5  # between the first and the last part of a row


def figure(
    known: Normalization,
    parts: Mapping[str, np.ndarray],
    path: str | os.PathLike,
    hidden: np.ndarray | None = None,
) -> None:
    """Draw a panel for each column: the rows from left to right, and a mark for each part of them.

    Args:
      known: the normalization of the data, which has the columns of a table.
      parts: (N, D) each, normalized, by name: such as what was measured, the results, the truth.
        Several draws, 'restored 1', 'restored 2', ..., share a color and a name.
      path: the file to write.
      hidden: (D,), the channels that were not measured. Those panels come first; the others show
        'measured' alone.
    """
    values = {name: known.values(np.asarray(x)) for name, x in parts.items()}
    panels = list(_panels(known, next(iter(values.values())).shape[1]))
    if hidden is not None:
        panels.sort(key=lambda panel: not hidden[panel[1].start])
    panels = panels[:PANELS]
    rows = math.ceil(len(panels) / ACROSS)
    with style.figure(path, len(panels), (2.9, 1.8), rows) as axes:
        for axis, (column, place) in zip(axes, panels):
            own = {name: x[:, place] for name, x in values.items()}
            if hidden is not None:  # what was measured is known, and nothing else is shown of it
                own = {k: x for k, x in own.items() if (k != MEASURED) == hidden[place.start]}
            _panel(axis, column, own, list(values))
        handles = {}
        for axis in axes:
            handles |= dict(zip(*reversed(axis.get_legend_handles_labels())))
        axes[0].figure.legend(
            handles.values(), handles, loc="outside upper left", ncols=len(handles), fontsize=8
        )


def _panels(known: Normalization, width: int) -> list[tuple[Column, slice]]:
    """The columns with their channels; those of vectors have numbers for names."""
    if known.columns:
        return list(of_table.channels(known.columns))
    return [(Column(f"x{i + 1}", NUMBER), slice(i, i + 1)) for i in range(width)]


def _panel(
    axis: Axes, column: Column, shown: Mapping[str, np.ndarray], names: Sequence[str]
) -> None:
    """One column: its cells from left to right."""
    kinds = list(dict.fromkeys(map(_kind, names)))
    colors = dict(zip((kind for kind in kinds if kind != TRUTH), itertools.cycle(ALL)))
    labeled = set()
    for name, cells in shown.items():
        kind = _kind(name)
        own = cells[:, 0] if column.kind == NUMBER else cells.argmax(1)
        at = 1 + np.arange(len(own)) + APART * (names.index(name) / max(len(names) - 1, 1) - 0.5)
        if kind == TRUTH:
            look = {"facecolors": "none", "edgecolors": style.INK, "s": 26, "zorder": 3}
            at = 1 + np.arange(len(own))
        else:
            look = {"color": colors[kind], "s": 12, "alpha": 0.8, "linewidths": 0}
        axis.scatter(at, own, label=None if kind in labeled else kind, **look)
        labeled.add(kind)
    title = column.name if len(column.name) <= LONGEST else f"{column.name[: LONGEST - 1]}…"
    axis.set(title=title, xlabel="row")
    axis.locator_params(axis="x", integer=True, nbins=6)
    if column.kind == NUMBER:
        axis.locator_params(axis="y", nbins=4)
        return
    names = [name[:LETTERS] for name in column.categories]
    axis.set(ylim=(-0.5, len(names) - 0.5))
    if len(names) <= CATEGORIES:
        axis.set_yticks(range(len(names)), names)


def _kind(name: str) -> str:
    """The name of a part without the number of the draw: 'restored' of 'restored 2'."""
    return "restored" if name.startswith("restored ") else name
