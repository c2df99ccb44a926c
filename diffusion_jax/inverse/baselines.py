"""Restorations without a model, which every method for inverse problems must beat."""

from __future__ import annotations

import numpy as np


def interpolated(values: np.ndarray, known: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """Fills in unknown values by linear interpolation between known ones.

    Along every axis on which a line has a known value, the line is interpolated, and beyond its
    last known value it stays constant. An unknown value is the mean over these axes.

    Args:
      values: (B, N_1, ..., N_d, C); what they are at unknown places has no effect.
      known: (N_1, ..., N_d, C), 1 where they are known, else 0.
      otherwise: (N_1, ..., N_d, C), what stands where no axis has a known value.

    Returns:
      An array of the shape of `values`; known values are unchanged.
    """
    known = np.asarray(known, bool)
    total, axes = np.zeros(values.shape, np.float64), np.zeros(known.shape, int)
    for axis in range(known.ndim - 1):
        lines, filled = np.moveaxis(values, axis + 1, -1), np.moveaxis(total, axis + 1, -1)
        there, counted = np.moveaxis(known, axis, -1), np.moveaxis(axes, axis, -1)
        for line in np.ndindex(there.shape[:-1]):
            if there[line].any():
                left, right, weight = _neighbors(there[line])
                own = lines[:, *line]
                filled[:, *line] += (1 - weight) * own[:, left] + weight * own[:, right]
                counted[line] += 1
    inner = np.where(axes > 0, total / np.maximum(axes, 1), otherwise)
    return np.where(known, values, inner).astype(values.dtype)


def _neighbors(known: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nearest known places on both sides of each place, and the weight of the right one."""
    places, at = np.flatnonzero(known), np.arange(len(known))
    last = len(places) - 1
    left = places[np.clip(np.searchsorted(places, at, "right") - 1, 0, last)]
    right = places[np.clip(np.searchsorted(places, at), 0, last)]
    return left, right, np.clip((at - left) / np.maximum(right - left, 1), 0.0, 1.0)
