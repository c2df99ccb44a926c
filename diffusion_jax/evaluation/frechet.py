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


def _sqrt(cov: np.ndarray) -> np.ndarray:
    """The symmetric square root of a covariance; eigenvalues that rounding left below zero are zero."""
    values, vectors = np.linalg.eigh(cov)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
