"""Distances between two tables: of the laws of single columns, and of their correlations.

Rows are normalized samples (N, D) whose channels `columns` describes. The distances do not depend
on the normalization: a monotone function of a column changes neither its Kolmogorov-Smirnov
distance nor its categories, and a linear one no correlation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffusion_jax.data import columns as of_table
from diffusion_jax.data.columns import Column


def kolmogorov_smirnov(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference of two distribution functions, sup |F_a(v) - F_b(v)|.

    Args:
      a: (N,), numbers of one set.
      b: (M,), numbers of the other set.

    Returns:
      A number in [0, 1].
    """
    a, b = np.sort(a), np.sort(b)
    every = np.concatenate([a, b])
    shares = (np.searchsorted(x, every, side="right") / len(x) for x in (a, b))
    return float(np.abs(np.subtract(*shares)).max())


def total_variation(a: np.ndarray, b: np.ndarray) -> float:
    """The total variation distance of categories, sum |p - q| / 2.

    Args:
      a: (N, K), the categories of one set; the largest number of a row names its category.
      b: (M, K), those of the other set.

    Returns:
      A number in [0, 1].
    """
    shares = (np.bincount(x.argmax(1), minlength=x.shape[1]) / len(x) for x in (a, b))
    return float(np.abs(np.subtract(*shares)).sum() / 2)


def distances(a: np.ndarray, b: np.ndarray, columns: Sequence[Column]) -> dict[str, float]:
    """Average the distances of the marginals over the columns of each kind.

    Args:
      a: (N, D), rows of one set.
      b: (M, D), rows of the other set.
      columns: the columns of the table.

    Returns:
      {'ks': of numbers, 'total_variation': of categories}, without a kind that the table lacks.
    """
    numbers, categories = [], []
    for column, place in of_table.channels(columns):
        if column.kind == of_table.NUMBER:
            numbers.append(kolmogorov_smirnov(a[:, place.start], b[:, place.start]))
        else:
            categories.append(total_variation(a[:, place], b[:, place]))
    found = {"ks": numbers, "total_variation": categories}
    return {name: float(np.mean(each)) for name, each in found.items() if each}


def correlation_distance(a: np.ndarray, b: np.ndarray, columns: Sequence[Column]) -> float:
    """The mean |r_a - r_b| over pairs of channels of different columns, with Pearson's r.

    The channels of categories are 0 and 1. A channel that is constant has no correlation, r = 0.

    Args:
      a: (N, D), rows of one set.
      b: (M, D), rows of the other set.
      columns: the columns of the table.

    Returns:
      A number in [0, 2]; 0 for a table of one column.
    """
    owner = np.concatenate(
        [np.full(column.width, i) for i, (column, _) in enumerate(of_table.channels(columns))]
    )
    pairs = owner[:, None] < owner
    if not pairs.any():
        return 0.0
    return float(np.abs(_correlations(a) - _correlations(b))[pairs].mean())


def _correlations(x: np.ndarray) -> np.ndarray:
    """Pearson's r of all pairs of channels, (D, D)."""
    x = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    spread = x.std(0)
    x = x / np.where(spread > 1e-9, spread, np.inf)
    return x.T @ x / len(x)
