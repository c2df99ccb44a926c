"""Distances of points, and work over rows on one and on eight devices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.stats

from diffusion_jax.core.errors import UserError
from diffusion_jax.evaluation import (
    mmd,
    points,
    rows,
)


def test_sliced_wasserstein_of_shifted_and_scaled_gaussians():
    """In one dimension W_2^2 = m^2 + (s - 1)^2; a shift by m in D dimensions has mean square m^2 /
    D over directions.
    """
    quantiles = scipy.stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)[:, None]
    assert points.sliced_wasserstein(quantiles, 3 * quantiles + 1) == pytest.approx(
        np.sqrt(1 + 4), rel=1e-3
    )
    x = np.random.default_rng(0).normal(size=(500, 5))
    shift = np.array([2.0, 0, 0, 1, 0])
    assert points.sliced_wasserstein(x, x + shift, projections=4000) == pytest.approx(
        np.sqrt(5 / 5), rel=0.03
    )
    assert points.sliced_wasserstein(x, x[::-1]) == 0


def test_sliced_wasserstein_of_sets_of_unequal_size_is_the_optimal_transport():
    """Every point copied until the sizes agree is the same law, and there sorting is optimal."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(6, 3)), rng.normal(size=(4, 3)) + 1
    expected = points.sliced_wasserstein(np.repeat(a, 2, 0), np.repeat(b, 3, 0))
    assert points.sliced_wasserstein(a, b) == pytest.approx(expected, rel=1e-12)
    one = scipy.stats.wasserstein_distance(a[:, 0], b[:, 0])  # W_1, below W_2
    assert points.sliced_wasserstein(a[:, :1], b[:, :1]) > one > 0


def test_mmd_equals_the_double_sum_and_sees_a_shift():
    rng = np.random.default_rng(2)
    a, b = (
        rng.normal(size=(40, 7)) + 50,
        rng.normal(size=(30, 7)) + 50.5,
    )  # far from zero: the sets are centered first

    def kernel(x, y):
        return np.exp(-((x[:, None] - y[None]) ** 2).sum(-1) / (2 * 3**2)).mean()

    expected = kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)
    np.testing.assert_allclose(mmd.squared_mmd(a, b, sigma=3.0), expected, rtol=1e-4)
    x, y, z = rng.normal(size=(3, 2000, 2))
    assert (
        points.mmd(x, x[::-1]) < 1e-3 < points.mmd(x, y) < 2 / np.sqrt(1000) < points.mmd(x, z + 1)
    )


def test_mode_weights_are_the_fractions_nearest():
    means = np.array([[0.0, 0], [4, 0], [0, 4]])
    x = np.concatenate([means[[0, 0, 0, 2]] + 0.5, [[9.0, 1]]])
    assert points.mode_weights(x, means).tolist() == [0.6, 0.2, 0.2]


def test_points_that_cannot_be_compared_are_refused():
    with pytest.raises(UserError, match=r"one dimension.*\(4, 2\) and \(4, 3\)"):
        points.sliced_wasserstein(np.zeros((4, 2)), np.zeros((4, 3)))
    with pytest.raises(UserError, match="not finite"):
        points.mmd(np.full((3, 2), np.nan), np.zeros((3, 2)))


def test_work_over_rows_compiles_once_and_drops_the_filling():

    traced = []

    @jax.jit
    def double(x, offset):
        traced.append(x.shape)
        return {"twice": 2 * x + offset}

    x = np.arange(11.0, dtype=np.float32)
    out = rows.over_rows(double, x, np.float32(1), block=4)
    np.testing.assert_array_equal(out["twice"], 2 * x + 1)
    assert traced == [(4,)]


EIGHT = """
import numpy as np
from diffusion_jax.evaluation import classifier, kid, mmd, prdc, rows
rng = np.random.default_rng(0)
a, b = rng.normal(size=(45, 6)), rng.normal(size=(37, 6)) + 0.4
images = rng.integers(0, 256, (19, 5, 5, 1), np.uint8)
hidden, _ = rows.over_rows(classifier.forward, images, classifier.init((5, 5, 1), 3), block=8)
numbers = [*kid.kid(a, kid.reference(b)), mmd.squared_mmd(a, b, sigma=2.0)]
numbers += [*prdc.prdc(a, prdc.support(b, k=3))]
numbers.append(float(np.abs(hidden).sum()))
print(rows.devices(), *numbers)
"""


def test_eight_devices_give_the_numbers_of_one():
    root, lines = Path(__file__).parents[2], []
    for count in (1, 8):
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"
        env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", EIGHT],
            cwd=root,
            env=env,
            capture_output=True,
            text=True,
        )
        lines.append(np.array(done.stdout.split(), float)) if done.stdout else pytest.fail(
            done.stderr
        )
    assert lines[0][0] == 1 and lines[1][0] == 8
    np.testing.assert_allclose(lines[1][1:], lines[0][1:], rtol=1e-4)
