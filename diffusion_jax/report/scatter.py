"""Sets of points and vectors as figures."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

import numpy as np

from diffusion_jax.data.normalization import Normalization
from diffusion_jax.report import style

ALIKE = 2.0  # columns whose ranges differ by less are drawn on one scale


def points(
    data: np.ndarray | None,
    samples: Mapping[str, np.ndarray],
    path: str | os.PathLike,
    *,
    shown: int = 4000,
    one_unit: bool = True,
) -> None:
    """Two-dimensional samples next to their data, on the same axes.

    Args:
      data: (M, 2) draws of the data, or None for a picture of samples alone.
      samples: (N, 2) samples by name, a panel for each.
      path: the file to write.
      shown: the number of points of a panel, at most.
      one_unit: whether both axes have one unit, and therefore one scale.
    """
    sets, first = with_data(data, samples), data is None
    low, high = np.quantile(next(iter(sets.values())), (0.001, 0.999), axis=0)
    center, half = (low + high) / 2, 0.6 * (np.max(high - low) if one_unit else high - low)
    (left, bottom), (right, top) = center - half, center + half
    aspect = "equal" if one_unit else "auto"
    with style.figure(path, panels=len(sets), size=(3.2, 3.4)) as axes:
        for i, (axis, (name, xy)) in enumerate(zip(axes, sets.items())):
            some = np.asarray(xy)[:: math.ceil(len(xy) / shown)]
            axis.scatter(
                *some.T, s=3, alpha=0.4, linewidths=0, color=style.COLORS[min(i + first, 1)]
            )
            axis.set(title=name, xlim=(left, right), ylim=(bottom, top), aspect=aspect)
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
    one_unit: bool = True,
) -> None:
    """Samples of vectors and their data: points in a plane, or a plot of pairs of columns.

    Args:
      data: (M, D) draws of the data, or None for a picture of samples alone.
      samples: (N, D) samples by name.
      path: the file to write.
      columns: the number of columns that are shown, at most.
      one_unit: whether all columns have one unit.
    """
    drawn, first = with_data(data, samples), data is None
    reference = next(iter(drawn.values()))
    if reference.shape[1] == 2:
        points(data, samples, path, one_unit=one_unit)
        return
    shown, fewest = min(reference.shape[1], columns), min(map(len, drawn.values()))
    bins, size = int(np.clip(fewest**0.5, 6, 30)), 2 if fewest > 200 else 8
    low, high = np.quantile(reference[:, :shown], (0.001, 0.999), axis=0)
    margin = np.where(high > low, 0.15 * (high - low), 1.0)
    limits = np.stack([low - margin, high + margin], 1)
    with style.figure(path, panels=shown**2, size=(1.9, 1.8), rows=shown) as axes:
        for place, axis in enumerate(axes):
            row, column = divmod(place, shown)
            axis.set(xlim=limits[column], **({} if row == column else {"ylim": limits[row]}))
            axis.locator_params(axis="x", nbins=3)
            axis.locator_params(axis="y", nbins=3)
            axis.tick_params(labelbottom=row == shown - 1, labelleft=0 == column < row)
            axis.set(xlabel=f"x{column + 1}" if row == shown - 1 else "")
            axis.set(ylabel=f"x{row + 1}" if column == 0 else "")
            for i, (name, x) in enumerate(drawn.items(), first):
                look = {"color": style.COLORS[i], "label": name}
                some = np.asarray(x)[:: math.ceil(len(x) / 1000)]
                if row == column:
                    edges = np.linspace(*limits[column], bins)
                    axis.hist(x[:, column], edges, density=True, histtype="step", **look)
                else:
                    axis.scatter(
                        some[:, column], some[:, row], s=size, alpha=0.4, linewidths=0, **look
                    )
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": len(drawn)}
        axes[0].legend(fontsize=7, frameon=False, **place)


def in_units(
    known: Normalization,
    data: np.ndarray | None,
    samples: Mapping[str, np.ndarray],
    path: str | os.PathLike,
) -> None:
    """Draw `sets` of normalized vectors in the units of the data.

    Args:
      known: the normalization of the data.
      data: (M, D), normalized, or None for a picture of samples alone.
      samples: (N, D) samples by name, normalized.
      path: the file to write.
    """
    values = {name: known.values(x) for name, x in samples.items()}
    spans = np.subtract(known.high, known.low)
    alike = bool(spans.max() < ALIKE * spans.min())
    sets(None if data is None else known.values(data), values, path, one_unit=alike)
