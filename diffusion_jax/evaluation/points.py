"""Distances between sets of points of a known distribution, without a feature extractor."""

from __future__ import annotations

import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.evaluation.mmd import squared_mmd

MEDIAN_OF = 1000  # points from which the kernel's width is found


def sliced_wasserstein(
    a: np.ndarray, b: np.ndarray, *, projections: int = 128, seed: int = 0
) -> float:
    """Sliced 2-Wasserstein distance (Bonneel et al. 2015), in the unit of the points.

        SW_2^2 = mean over unit directions u of W_2^2(u.a, u.b)
        W_2^2 = integral over q of (F_a^-1(q) - F_b^-1(q))^2

    W_2 is exact in one dimension for any N and M. For two distributions that differ by a shift m
    alone the distance tends to |m| / sqrt(D).

    Args:
      a: (N, D).
      b: (M, D).
      projections: the number of random directions.
      seed: the seed of the directions, which are the same for the same seed and D.

    Raises:
      UserError: for sets of different dimensions, and for points that are not finite.
    """
    a, b = _points(a, b)
    directions = np.random.default_rng(seed).normal(size=(a.shape[1], projections))
    directions /= np.linalg.norm(directions, axis=0)
    quantile_a, quantile_b = np.sort(a @ directions, 0), np.sort(b @ directions, 0)
    # both quantile functions are constant between neighboring ranks i/N, j/M
    ranks = np.union1d(np.arange(len(a) + 1) / len(a), np.arange(len(b) + 1) / len(b))
    width, middle = np.diff(ranks), (ranks[1:] + ranks[:-1]) / 2
    gap = quantile_a[(middle * len(a)).astype(int)] - quantile_b[(middle * len(b)).astype(int)]
    return float(np.sqrt(np.mean(width @ gap**2)))


def median_distance(b: np.ndarray) -> float:
    """Return the median distance of pairs of points, from 1,000 of them; 1 where it is 0.

    Args:
      b: (M, D), the points.
    """
    some = np.asarray(b, np.float64).reshape(len(b), -1)
    some = some[np.random.default_rng(0).permutation(len(some))[:MEDIAN_OF]]
    distances = np.linalg.norm(some - np.roll(some, 1, 0), axis=1)  # of random pairs
    return float(np.median(distances)) or 1.0


def mmd(a: np.ndarray, b: np.ndarray, *, sigma: float | None = None) -> float:
    """MMD to a reference, with a Gaussian kernel as wide as the reference's median distance.

    Args:
      a: (N, D), the points.
      b: (M, D), the reference.
      sigma: the width of the kernel; None is `median_distance(b)`.

    Returns:
      A number in [0, sqrt 2]; two samples of one distribution score up to about sqrt(1/N + 1/M).

    Raises:
      UserError: for sets of different dimensions, and for points that are not finite.
    """
    a, b = _points(a, b)
    sigma = median_distance(b) if sigma is None else sigma
    return float(np.sqrt(squared_mmd(a, b, sigma=sigma)))


def mode_weights(x: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Return the fraction of points that lie nearest to each mean.

    Args:
      x: (N, D), the points.
      means: (K, D).

    Returns:
      (K,), with sum 1.
    """
    x, means = _points(x, means)
    squares = np.sum(means**2, 1) - 2 * x @ means.T  # |x - m|^2 but for |x|^2
    return np.bincount(np.argmin(squares, 1), minlength=len(means)) / len(x)


def _points(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (a, b))
    if a.shape[1] != b.shape[1] or not len(a) or not len(b):
        raise UserError(
            f"two sets of points of one dimension are needed; got shapes {a.shape} and {b.shape}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise UserError("some points are not finite; take more steps, or another sampler")
    return a, b
