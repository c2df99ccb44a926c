"""The Fréchet distance: extrapolation, intervals, few images of many features."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from sklearn.datasets import load_digits

from diffusion_jax.data.sources import Arrays
from diffusion_jax.evaluation import (
    frechet,
    judge,
)


def test_the_extrapolation_removes_most_of_the_bias_and_the_interval_holds_the_estimate():
    """Two laws |m|^2 = 1 apart, of equal covariance: the distance is exactly 1."""
    rng = np.random.default_rng(8)
    reference = frechet.root_of_moments(moments := frechet.Moments(10**6, np.zeros(20), np.eye(20)))
    draws = rng.normal(size=(60, 400, 20)) + np.sqrt(1 / 20)
    plain = np.array([frechet.frechet_distance(frechet.moments(x), moments) for x in draws])
    found = np.array([frechet.infinity(x, reference) for x in draws[:30]])
    assert plain.mean() > 1.12 and abs(found[:, 0].mean() - 1) < 0.03 and found[:, 1].max() < 0.2
    low, high = frechet.interval(draws[0], reference, resamples=60)
    assert low < plain[0] < high and 0.6 < (high - low) / (2 * 1.96 * plain.std()) < 1.6


@pytest.mark.parametrize("count, others", [(10, 50), (90, 50), (10, 20), (90, 20)])
def test_the_distance_to_a_root_is_the_exact_one(count, others):
    """On both sides: fewer images than features, and more.

    An eigenvalue that is zero is known to the rounding of the largest, and enters by its root: the
    exact side is accurate to about sqrt(2e-16) of itself, differently for every BLAS.
    """
    rng = np.random.default_rng(9)
    features, other = (
        rng.normal(size=(count, 30)) @ rng.normal(size=(30, 30)),
        rng.normal(size=(others, 30)),
    )
    exact = frechet.frechet_distance(frechet.moments(features), frechet.moments(other))
    for root in (frechet.root_of(other), frechet.root_of_moments(frechet.moments(other))):
        np.testing.assert_allclose(frechet.distance_to(features, root), exact, rtol=1e-8)
        np.testing.assert_allclose(
            frechet.distance(frechet.root_of(features), root), exact, rtol=1e-8
        )


def test_the_frechet_distance_of_2000_images_equals_scipys():
    """Random features of real digits: 2,000 vectors of width 128, correlated as a network's are,
    against scipy's sqrtm.
    """

    pixels = load_digits().images.reshape(-1, 64) / 16
    rng = np.random.default_rng(10)
    hidden = np.maximum(
        np.concatenate([pixels, pixels[:203, ::-1]]) @ rng.normal(size=(64, 128)), 0
    )  # (2000, 128)
    hidden += 0.01 * rng.normal(size=hidden.shape)  # scipy's root wants full rank
    a, b = hidden[::2], hidden[1::2] * 1.1
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * root)
    np.testing.assert_allclose(
        frechet.frechet_distance(frechet.moments(a), frechet.moments(b)), expected, rtol=1e-4
    )


def test_the_distance_of_constant_features_is_that_of_their_means():
    flat, other = np.full((5, 3), 2.0), np.random.default_rng(0).normal(size=(9, 3))
    expected = np.sum((other.mean(0) - 2) ** 2) + np.trace(np.cov(other, rowvar=False))
    assert frechet.distance_to(flat, frechet.root_of(other)) == pytest.approx(expected)
    assert frechet.distance_to(other, frechet.root_of(flat)) == pytest.approx(expected)
    assert frechet.frechet_distance(frechet.moments(flat), frechet.moments(other)) == pytest.approx(
        expected
    )


@pytest.fixture
def decomposed(monkeypatch):
    """The widths of all matrices that are decomposed, by the name of the decomposition."""
    widths = {"eigh": [], "eigvalsh": [], "svd": []}
    for name, seen in widths.items():
        original = getattr(np.linalg, name)
        monkeypatch.setattr(
            np.linalg,
            name,
            lambda a, *args, seen=seen, original=original, **kwargs: (
                seen.append(min(a.shape)) or original(a, *args, **kwargs)
            ),
        )
    return widths


def test_few_images_of_many_features_need_no_decomposition_of_their_width(decomposed):
    """If the reference needs a root, it is computed once for all scores of all sets."""
    rng = np.random.default_rng(14)
    metrics = ("frechet", "frechet_infinity", "frechet_interval")
    wide = Arrays(rng.integers(0, 256, (20, 20, 20, 3), np.uint8))
    judged = judge.against(wide, None, features=("pixels",), metrics=metrics)
    for _ in range(3):
        judged(rng.integers(0, 256, (12, 20, 20, 3), np.uint8))
    assert max(decomposed["eigvalsh"]) <= 12 and decomposed["eigh"] == decomposed["svd"] == []
    many = Arrays(rng.integers(0, 256, (50, 3, 3, 1), np.uint8))
    judged = judge.against(many, None, metrics=metrics)
    for _ in range(3):
        judged(rng.integers(0, 256, (12, 3, 3, 1), np.uint8))
    assert decomposed["eigh"] == [9] and decomposed["svd"] == []
