"""Kernel Inception distance (Binkowski et al. 2018).

The squared MMD of features with the kernel k(x, y) = (x.y / D + 1)^3:

    KID = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

It is unbiased at any number of images, so it may be negative; the Fréchet distance is not. The
field averages it over random subsets of 1000 images. The average over all subsets, of any size, is
the estimate from the whole sets, which is computed here. Two sets that are both balanced by class
agree better than independent draws would, and score clearly below zero.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array
from diffusion_jax.evaluation import rows


class Kid(NamedTuple):
    """The distance and its standard error; published numbers are often 1000 times the distance."""

    value: float
    standard_error: float


class ReferenceFeatures(NamedTuple):
    """A set of features with its sums of k(x_i, x_j) over j != i, computed once."""

    features: np.ndarray
    within: np.ndarray


def reference(features: np.ndarray) -> ReferenceFeatures:
    """Compute the sums within a set once.

    Args:
      features: (N, D), N >= 3.

    Raises:
      UserError: for fewer than three images.
    """
    if len(features) < 3:
        raise UserError(f"KID needs at least three images in each set; got {len(features)}")
    features = np.asarray(features, np.float32)
    return ReferenceFeatures(
        features, _sums(features, features) - _polynomial(np.square(features).mean(1))
    )


def kid(fake: np.ndarray, real: ReferenceFeatures) -> Kid:
    """Estimate KID between two sets, with the jackknife's standard error over the images of both.

    The standard error is right where the distributions differ, and too large where they are equal.

    Args:
      fake: (N, D), features of one set.
      real: the other set.

    Raises:
      UserError: for fewer than three images in a set.
    """
    a, b = reference(fake), real
    between_a, between_b = _sums(a.features, b.features), _sums(b.features, a.features)
    n, m = len(a.features), len(b.features)
    means = (a.within.sum() / (n * (n - 1)), b.within.sum() / (m * (m - 1)))
    value = means[0] + means[1] - 2 * between_a.sum() / (n * m)
    variance = _jackknife(a.within, between_a, m) + _jackknife(b.within, between_b, n)
    return Kid(float(value), float(np.sqrt(variance)))


def _jackknife(within: np.ndarray, between: np.ndarray, others: int) -> float:
    """Return the variance of the estimate from leaving out each image of one set in turn."""
    n = len(within)
    without = (within.sum() - 2 * within) / ((n - 1) * (n - 2)) - 2 * (between.sum() - between) / (
        (n - 1) * others
    )
    return (n - 1) * np.var(without)


def _polynomial(product: Array) -> Array:
    """Return (z + 1)^3 - 1 for z = x.y / D.

    The constant cancels in KID; it is left out here, before rounding.
    """
    return product * (product * (product + 3) + 3)


def _sums(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return rows.over_pairs(_row_means, a, b).astype(np.float64) * len(b)


@jax.jit
def _row_means(a: Array, b: Array) -> Array:
    return jnp.mean(
        _polynomial(jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST) / a.shape[1]), 1
    )
