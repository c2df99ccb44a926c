"""Two-dimensional samples as figures."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

import numpy as np

from diffusion_jax.report import style


def points(
    data: np.ndarray,
    samples: Mapping[str, np.ndarray],
    path: str | os.PathLike,
    *,
    shown: int = 4000,
) -> None:
    """Two-dimensional samples next to their data, on the same axes.

    Args:
      data: (M, 2) draws of the data.
      samples: (N, 2) samples by name, a panel for each.
      path: the file to write.
      shown: the number of points of a panel, at most.
    """
    sets = {"data": data, **samples}
    low, high = np.quantile(data, 0.001, axis=0), np.quantile(data, 0.999, axis=0)
    center, half = (low + high) / 2, 0.6 * float(max(high - low))
    (left, bottom), (right, top) = center - half, center + half
    with style.figure(path, panels=len(sets), size=(3.2, 3.4)) as axes:
        for i, (axis, (name, xy)) in enumerate(zip(axes, sets.items())):
            some = np.asarray(xy)[:: math.ceil(len(xy) / shown)]
            axis.scatter(*some.T, s=3, alpha=0.4, linewidths=0, color=style.COLORS[min(i, 1)])
            axis.set(title=name, xlim=(left, right), ylim=(bottom, top), aspect="equal")
            axis.set(xlabel="x₁", ylabel="x₂" if i == 0 else "")
