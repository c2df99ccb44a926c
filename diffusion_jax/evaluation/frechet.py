"""The Fréchet distance between two sets of features as if each were Gaussian (Heusel et al. 2017).

    d^2 = |mu_1 - mu_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))    (eq. 6)

With Inception features this is FID. Moments are merged in float64, so that a data set of any size
is processed in batches.

With a root R of each covariance, C = R^T R, the trace of (C_1 C_2)^(1/2) is the sum of the singular
values of R_1 R_2^T. The centered features of N images, divided by sqrt(N - 1), are such a root of N
rows, so that fewer images than features need no eigendecomposition of width D, and lose no
precision.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.progress import progress


class Moments(NamedTuple):
    """The moments of a set, in float64.

    Attributes:
      count: the number of images.
      mean: (D,).
      cov: (D, D), with divisor count - 1.
    """

    count: int
    mean: np.ndarray
    cov: np.ndarray


def moments(features: np.ndarray) -> Moments:
    """Compute the moments of one batch of features.

    Args:
      features: (N, D), N >= 1, of any floating type; the sums are in float64.
    """
    features = np.asarray(features, np.float64)
    mean = features.mean(0)
    centered = features - mean
    return Moments(len(features), mean, centered.T @ centered / max(len(features) - 1, 1))


def merge(a: Moments, b: Moments) -> Moments:
    """Merge the moments of two sets (Chan, Golub & LeVeque 1983), exactly and in any order.

    Args:
      a: the moments of one set.
      b: those of another set of the same features; together they must have two images or more.
    """
    count = a.count + b.count
    delta = b.mean - a.mean
    scatter = (
        a.cov * (a.count - 1)
        + b.cov * (b.count - 1)
        + np.outer(delta, delta) * (a.count * b.count / count)
    )
    return Moments(count, a.mean + delta * (b.count / count), scatter / (count - 1))


def stream(batches: Iterable[np.ndarray]) -> Moments:
    """Compute the moments of features that come in batches.

    Args:
      batches: features (N_i, D), N_i >= 1, of which only one batch is held at a time.
    """
    return functools.reduce(merge, map(moments, batches))


class Root(NamedTuple):
    """A Gaussian by a root of its covariance, in float64.

    Attributes:
      count: the number of images.
      mean: (D,).
      root: (R, D), R <= D, with cov = root^T root.
    """

    count: int
    mean: np.ndarray
    root: np.ndarray


def root_of(features: np.ndarray) -> Root:
    """Return a root of the covariance of features: the centered features where N <= D.

    Args:
      features: (N, D).

    Raises:
      UserError: for fewer than two images.
    """
    features = np.asarray(features, np.float64)
    _need_two(len(features))
    if len(features) > features.shape[1]:
        return root_of_moments(moments(features))
    mean = features.mean(0)
    return Root(len(features), mean, (features - mean) / np.sqrt(len(features) - 1))


def root_of_moments(found: Moments) -> Root:
    """Return a root of a covariance matrix (D, D) from its eigenvectors, in about D^3 operations.

    Args:
      found: the moments of two images or more, with a covariance matrix (D, D).

    Raises:
      UserError: for fewer than two images.
    """
    _need_two(found.count)
    values, vectors = np.linalg.eigh(found.cov)
    # smaller eigenvalues are zeros up to rounding
    kept = values > max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
    return Root(found.count, found.mean, np.sqrt(values[kept])[:, None] * vectors.T[kept])


def distance(a: Root, b: Root) -> float:
    """Return d^2 between two Gaussians, by a singular value decomposition.

    Args:
      a: one Gaussian, with a root (R_a, D) of its covariance.
      b: the other one, with a root (R_b, D).

    Returns:
      At least 0; what is reported as FID is this squared distance.

    Raises:
      UserError: for features of different widths.
    """
    _need_one_width(a.mean.size, b.mean.size)
    overlap = np.linalg.svd(a.root @ b.root.T, compute_uv=False).sum()
    squared = np.sum((a.mean - b.mean) ** 2) + np.sum(a.root**2) + np.sum(b.root**2) - 2 * overlap
    return float(max(squared, 0.0))  # rounding may leave -1e-15 for equal sets


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return `distance` between two sets by their moments.

    Args:
      a: the moments of one set.
      b: the moments of the other set, of the same extractor.

    Raises:
      UserError: for features of different widths and for sets of fewer than two images.
    """
    _need_one_width(a.mean.size, b.mean.size)
    return distance(root_of_moments(a), root_of_moments(b))


def distance_to(features: np.ndarray, reference: Root) -> float:
    """Return `distance` of features to a reference, by one eigenproblem of width min(N, R).

    Args:
      features: (N, D), N >= 2.
      reference: the other Gaussian, with a root (R, D) of its covariance.

    Raises:
      UserError: for features of another width than the reference, and for fewer than two images.
    """
    features = np.asarray(features, np.float64)
    _need_one_width(features.shape[1], reference.mean.size)
    _need_two(len(features))
    mean = features.mean(0)
    half = (features - mean) / np.sqrt(len(features) - 1)
    product = half @ reference.root.T
    values = np.linalg.eigvalsh(
        product @ product.T if len(product) < product.shape[1] else product.T @ product
    )
    trace = np.sum(half**2) + np.sum(reference.root**2) - 2 * np.sqrt(np.maximum(values, 0)).sum()
    return float(max(np.sum((mean - reference.mean) ** 2) + trace, 0.0))


def distance_of_moments(found: Moments, reference: Root) -> float:
    """Return `distance` of a set to a reference by its moments, in an eigenproblem of width R.

    It is that of `distance_to`, without the features: sets of more images than features need no
    more memory than their covariance.

    Args:
      found: the moments of two images or more, of width D.
      reference: the other Gaussian, with a root (R, D) of its covariance.

    Raises:
      UserError: for moments of another width than the reference, and for fewer than two images.
    """
    _need_one_width(found.mean.size, reference.mean.size)
    _need_two(found.count)
    values = np.linalg.eigvalsh(reference.root @ found.cov @ reference.root.T)
    trace = np.trace(found.cov) + np.sum(reference.root**2)
    trace -= 2 * np.sqrt(np.maximum(values, 0)).sum()
    return float(max(np.sum((found.mean - reference.mean) ** 2) + trace, 0.0))


class Extrapolation(NamedTuple):
    """A Fréchet distance extrapolated to infinitely many images.

    Attributes:
      value: the distance.
      standard_error: the standard error of the straight line that it is read from.
    """

    value: float
    standard_error: float


def infinity(
    features: np.ndarray,
    reference: Root,
    *,
    sizes: int = 15,
    smallest: int = 0,
    seed: int = 0,
    description: str = "",
) -> Extrapolation:
    """FID-infinity (Chong & Forsyth 2020): a straight line in 1/N, extrapolated to 1/N = 0.

    The distance of N images is biased by about c / N. A bias of higher order remains where N is
    below a few times D.

    Args:
      features: (N, D).
      reference: what they are compared with.
      sizes: the number of random subsets, whose sizes are spaced evenly from `smallest` to N.
      smallest: the number of images in the smallest subset; 0 means half of N.
      seed: the seed of the subsets.
      description: names the progress shown on stderr; '' shows none.

    Raises:
      UserError: if the sizes are fewer than three or below two images.
    """
    count, rng = len(features), np.random.default_rng(seed)
    chosen = np.unique(np.linspace(smallest or count // 2, count, sizes).astype(int))
    if chosen[0] < 2 or len(chosen) < 3:
        raise UserError(
            f"an extrapolation needs three sizes of two images or more; got {count} images, "
            f"smallest {smallest}"
        )
    subsets = (features[rng.permutation(count)[:size]] for size in chosen)
    distances = _distances(subsets, len(chosen), reference, description)
    design = np.stack([np.ones(len(chosen)), 1 / chosen], 1)
    solution, *_ = np.linalg.lstsq(design, distances)
    residual = np.sum((design @ solution - distances) ** 2) / (len(chosen) - 2)
    return Extrapolation(
        float(solution[0]), float(np.sqrt(residual * np.linalg.inv(design.T @ design)[0, 0]))
    )


def interval(
    features: np.ndarray,
    reference: Root,
    *,
    level: float = 0.95,
    resamples: int = 100,
    seed: int = 0,
    description: str = "",
) -> tuple[float, float]:
    """Bootstrap interval of the distance over the choice of images; the reference counts as exact.

    Resampled sets repeat images, which raises their distance as fewer images would. The interval is
    therefore the spread of the resamples about their own mean, moved to the estimate. It does not
    include the bias of N images, which `infinity` estimates.

    Args:
      features: (N, D).
      reference: what they are compared with.
      level: the confidence level.
      resamples: the number of resampled sets.
      seed: the seed of the resampling.
      description: names the progress shown on stderr; '' shows none.

    Returns:
      (low, high).
    """
    rng, count = np.random.default_rng(seed), len(features)
    sets = (features[rng.integers(0, count, count)] for _ in range(resamples))
    drawn = _distances(sets, resamples, reference, description)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]) - np.mean(drawn)
    estimate = distance_to(features, reference)
    return float(max(estimate + low, 0.0)), float(estimate + high)


def _distances(
    sets: Iterable[np.ndarray], count: int, reference: Root, description: str
) -> np.ndarray:
    found = []
    with progress(count, description, enabled=bool(description), unit="distances") as advance:
        for features in sets:
            found.append(distance_to(features, reference))
            advance(1)
    return np.array(found)


def _need_two(count: int) -> None:
    if count < 2:
        raise UserError(f"a Fréchet distance needs at least two images in each set; got {count}")


def _need_one_width(a: int, b: int) -> None:
    if a != b:
        raise UserError(f"features of width {a} and {b} cannot be compared; use one extractor")
