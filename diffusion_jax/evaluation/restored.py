"""Errors of restored arrays in the units of the data."""

from __future__ import annotations

import numpy as np


def rmse(values: np.ndarray, truth: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Root mean squared error of every sample, for each channel.

    Args:
      values: (N, ..., C), restored.
      truth: likewise, the true values.
      where: (..., C), nonzero at the values that count.

    Returns:
      (N, C) float64; NaN for a channel of which no value counts.
    """
    error = np.square(np.asarray(values, np.float64) - np.asarray(truth, np.float64))
    return np.sqrt(_mean(error, where))


def crps(draws: np.ndarray, truth: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Continuous ranked probability score of every sample, for each channel.

        E|X - y| - E|X - X'| / 2,

    where X and X' are independent draws and y is the truth (Gneiting & Raftery 2007, eq. 21), by
    the estimator that is unbiased for any number of draws. One draw has the mean absolute error.

    Args:
      draws: (K, N, ..., C), K restorations of each sample.
      truth: (N, ..., C), the true values.
      where: (..., C), nonzero at the values that count.

    Returns:
      (N, C) float64, in the unit of the values; NaN for a channel of which no value counts.
    """
    draws, count = np.asarray(draws, np.float64), len(draws)
    score = np.abs(draws - np.asarray(truth, np.float64)).mean(0)
    if count > 1:  # the sum of |X - X'| over pairs, from the sorted draws
        weights = 2 * np.arange(1, count + 1) - count - 1
        apart = np.tensordot(weights, np.sort(draws, 0), 1)
        score = score - apart / (count * (count - 1))
    return _mean(score, where)


def _mean(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The mean over all axes but the first and the last: (N, ..., C) -> (N, C)."""
    counted = np.broadcast_to(np.asarray(where, bool), values.shape[1:])
    flat = values.reshape(len(values), -1, values.shape[-1])
    counted = counted.reshape(-1, values.shape[-1])
    total = np.where(counted, flat, 0.0).sum(1)
    return np.where(counted.any(0), total / np.maximum(counted.sum(0), 1), np.nan)
