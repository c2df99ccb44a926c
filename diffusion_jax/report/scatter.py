"""Sets of points and vectors as figures."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

import numpy as np

from diffusion_jax.report import style


def points(
    data: np.ndarray | None,
    samples: Mapping[str, np.ndarray],
    path: str | os.PathLike,
    *,
    shown: int = 4000,
) -> None:
    """Two-dimensional samples next to their data, on the same axes.

    Args:
      data: (M, 2) draws of the data, or None for a picture of samples alone.
      samples: (N, 2) samples by name, a panel for each.
      path: the file to write.
      shown: the number of points of a panel, at most.
    """
    sets, first = with_data(data, samples), data is None
    low, high = np.quantile(next(iter(sets.values())), (0.001, 0.999), axis=0)
    center, half = (low + high) / 2, 0.6 * float(max(high - low))
    (left, bottom), (right, top) = center - half, center + half
    with style.figure(path, panels=len(sets), size=(3.2, 3.4)) as axes:
        for i, (axis, (name, xy)) in enumerate(zip(axes, sets.items())):
            some = np.asarray(xy)[:: math.ceil(len(xy) / shown)]
            axis.scatter(
                *some.T, s=3, alpha=0.4, linewidths=0, color=style.COLORS[min(i + first, 1)]
            )
            axis.set(title=name, xlim=(left, right), ylim=(bottom, top), aspect="equal")
            axis.set(xlabel="x₁", ylabel="x₂" if i == 0 else "")


def with_data(data: np.ndarray | None, samples: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The sets of a picture by name: the data, where they are known, and samples.

    Args:
      data: (M, D), or None.
      samples: (N, D) by name.
    """
    return {**samples} if data is None else {"data": data, **samples}


def sets(
    data: np.ndarray | None,
    samples: Mapping[str, np.ndarray],
    path: str | os.PathLike,
    *,
    columns: int = 4,
) -> None:
    """Samples of vectors and their data: points in a plane, or a plot of pairs of columns.

    Args:
      data: (M, D) draws of the data, or None for a picture of samples alone.
      samples: (N, D) samples by name.
      path: the file to write.
      columns: the number of columns that are shown, at most.
    """
    drawn, first = with_data(data, samples), data is None
    reference = next(iter(drawn.values()))
    if reference.shape[1] == 2:
        points(data, samples, path)
        return
    shown, fewest = min(reference.shape[1], columns), min(map(len, drawn.values()))
    bins, size = int(np.clip(fewest**0.5, 6, 30)), 2 if fewest > 200 else 8
    with style.figure(path, panels=shown**2, size=(1.9, 1.8), rows=shown) as axes:
        for place, axis in enumerate(axes):
            row, column = divmod(place, shown)
            low, high = np.quantile(reference[:, column], (0.001, 0.999))
            margin = 0.15 * (high - low) or 1.0
            axis.set(xlim=(low - margin, high + margin), xticks=[], yticks=[])
            axis.set(xlabel=f"x{column + 1}" if row == shown - 1 else "")
            axis.set(ylabel=f"x{row + 1}" if column == 0 else "")
            for i, (name, x) in enumerate(drawn.items(), first):
                look = {"color": style.COLORS[i], "label": name}
                some = np.asarray(x)[:: math.ceil(len(x) / 1000)]
                if row == column:
                    edges = np.linspace(low - margin, high + margin, bins)
                    axis.hist(x[:, column], edges, density=True, histtype="step", **look)
                else:
                    axis.scatter(
                        some[:, column], some[:, row], s=size, alpha=0.4, linewidths=0, **look
                    )
        axes[0].legend(fontsize=7, frameon=False)
