"""The Frechet distance between two sets of features as if each were Gaussian (Heusel et al. 2017, eq. 6).

    d^2 = |mu_1 - mu_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))

With Inception features this is FID. Moments stream: a data set of any size goes through in batches, in float64.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.features import Features


class Moments(NamedTuple):
    """count; mean (D,); cov (D, D) with divisor count - 1; float64."""

    count: int
    mean: np.ndarray
    cov: np.ndarray


def moments(features: np.ndarray) -> Moments:
    """The moments of one batch of features (N, D), N >= 1."""
    features = np.asarray(features, np.float64)
    mean = features.mean(0)
    centred = features - mean
    return Moments(len(features), mean, centred.T @ centred / max(len(features) - 1, 1))


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of two sets together (Chan, Golub & LeVeque 1983): exact, in any order and grouping."""
    count = a.count + b.count
    delta = b.mean - a.mean
    scatter = a.cov * (a.count - 1) + b.cov * (b.count - 1) + np.outer(delta, delta) * (a.count * b.count / count)
    return Moments(count, a.mean + delta * (b.count / count), scatter / (count - 1))


def stream(batches: Iterable[np.ndarray]) -> Moments:
    """The moments of features that come in batches (N_i, D)."""
    return functools.reduce(merge, map(moments, batches))


def moments_of(features: Features, images: np.ndarray, *, batch_size: int = 1000) -> Moments:
    """The moments of an extractor's features over images uint8 (N, H, W, C), a batch at a time."""
    return stream(features(images[i : i + batch_size]) for i in range(0, len(images), batch_size))


def frechet_distance(a: Moments, b: Moments) -> float:
    """d^2 between two Gaussians, the number that the field reports as FID (it is a squared distance).

    tr (C_1 C_2)^(1/2) is the sum of the singular values of C_1^(1/2) C_2^(1/2): the square root of an unsymmetric,
    perhaps singular product never has to be taken, so fewer images than features are no numerical trouble (they still
    are a statistical one). Raises UserError for different widths and for sets of fewer than two.
    """
    if a.mean.shape != b.mean.shape:
        raise UserError(f"features of width {a.mean.size} and {b.mean.size} cannot be compared; use one extractor")
    if min(a.count, b.count) < 2:
        raise UserError(f"a Frechet distance needs at least two images in each set; got {a.count} and {b.count}")
    root = np.linalg.svd(_sqrt(a.cov) @ _sqrt(b.cov), compute_uv=False).sum()
    squared = np.sum((a.mean - b.mean) ** 2) + np.trace(a.cov) + np.trace(b.cov) - 2 * root
    return float(max(squared, 0.0))  # rounding may leave -1e-15 for equal sets


class Extrapolation(NamedTuple):
    """The distance an infinite sample would have, and the standard error of the straight line it is read from."""

    value: float
    standard_error: float


def infinity(features: np.ndarray, reference: Moments, *, sizes: int = 15, smallest: int = 0, seed: int = 0) -> Extrapolation:
    """FID-infinity (Chong & Forsyth 2020): the distance of N images is biased by about c / N; a line in 1/N leads to 1/N = 0.

    features: (N, D). `sizes` random subsets, evenly spaced from `smallest` (0: half of N) to N images. A bias of higher order
    remains where N is below a few times D.
    """
    count, rng = len(features), np.random.default_rng(seed)
    chosen = np.unique(np.linspace(smallest or count // 2, count, sizes).astype(int))
    if chosen[0] < 2 or len(chosen) < 3:
        raise UserError(f"an extrapolation needs three sizes of two images or more; got {count} images, smallest {smallest}")
    root = _sqrt(reference.cov)
    distances = [_quick(features[rng.permutation(count)[:size]], reference, root) for size in chosen]
    design = np.stack([np.ones(len(chosen)), 1 / chosen], 1)
    solution, *_ = np.linalg.lstsq(design, np.array(distances))
    residual = np.sum((design @ solution - distances) ** 2) / (len(chosen) - 2)
    return Extrapolation(float(solution[0]), float(np.sqrt(residual * np.linalg.inv(design.T @ design)[0, 0])))


def interval(
    features: np.ndarray, reference: Moments, *, level: float = 0.95, resamples: int = 100, seed: int = 0
) -> tuple[float, float]:
    """A bootstrap interval of the distance over the choice of images (N, D); the reference counts as exact.

    Resampled sets repeat images, which raises their distance as fewer images would; so the interval is the resamples' spread
    about their own mean, moved to the estimate. It says nothing of the bias of N images; `infinity` does.
    """
    rng, root, count = np.random.default_rng(seed), _sqrt(reference.cov), len(features)
    drawn = [_quick(features[rng.integers(0, count, count)], reference, root) for _ in range(resamples)]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]) - np.mean(drawn)
    estimate = _quick(features, reference, root)
    return float(max(estimate + low, 0.0)), float(estimate + high)


def _quick(features: np.ndarray, reference: Moments, root: np.ndarray) -> float:
    """frechet_distance for many sets against one: the reference's root is given, the rest is one symmetric eigenvalue problem.

    tr (C_1 C_2)^(1/2) = tr (R C_1 R)^(1/2), R = C_2^(1/2); of at most N eigenvalues, if N < D from the (N, N) side.
    """
    features = np.asarray(features, np.float64)
    mean = features.mean(0)
    half = (features - mean) / np.sqrt(len(features) - 1)
    turned = half @ root
    values = np.linalg.eigvalsh(turned @ turned.T if len(half) < half.shape[1] else turned.T @ turned)
    trace = np.sum(half**2) + np.trace(reference.cov) - 2 * np.sqrt(np.maximum(values, 0)).sum()
    return float(np.sum((mean - reference.mean) ** 2) + trace)


def _sqrt(cov: np.ndarray) -> np.ndarray:
    """The symmetric square root of a covariance; eigenvalues that rounding left below zero are zero."""
    values, vectors = np.linalg.eigh(cov)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
