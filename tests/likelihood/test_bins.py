"""The log-probability of a bin: a distribution, exact in the tails, with exact gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import log_ndtr
from scipy.stats import norm

from diffusion_jax.likelihood import bins


def test_log_bin_is_a_distribution_and_exact_in_the_tails():
    x = jnp.linspace(-1, 1, 256)
    for mean, std in ((0.1, 0.02), (0.97, 0.1), (-1.0, 0.003)):
        log_p = bins.log_bin(x, mean, 2 * jnp.log(std))
        assert_allclose(np.exp(log_p).sum(), 1.0, rtol=1e-4)
    # forty standard deviations away: log of the nearer edge's tail, norm.logsf(40), up to the bin's
    # other edge (e^-31 of it)
    far = bins.log_bin(x[128], x[128] - 40 * 0.01 - 1 / 255, jnp.log(1e-4))
    assert_allclose(far, norm.logsf(40.0), rtol=1e-4)
    slope = jax.grad(lambda m: bins.log_bin(x[128], m, jnp.log(1e-4)))(x[128] - 0.4)
    assert np.isfinite(slope) and slope > 0


@pytest.mark.parametrize("x64", [False, True])
def test_log_bin_has_a_finite_and_exact_slope_at_every_distance(x64):
    """The slope of the logarithm of an outer bin is scipy's phi / Phi, 0 to 60 deviations away.

    A coarse grid of distances would miss that erfcx is 0 from 13.0 to 13.3 deviations in float32,
    and from 37.5 to 37.6 in float64.
    """
    with jax.enable_x64(x64):
        mean = -jnp.linspace(0, 60, 6001)
        slope = jax.jit(jax.vmap(jax.grad(lambda m: bins.log_bin(1.0, m - 1 / 255 + 1, 0.0))))(mean)
        inner = jax.jit(jax.vmap(jax.grad(lambda p: bins.log_bin(1 / 255, p[0], p[1]))))
        spread = jnp.stack(
            [jnp.tile(mean, 4), jnp.repeat(jnp.asarray([-14.0, -9.0, -3.0, 0.0]), 6001)], 1
        )
        assert np.all(np.isfinite(inner(spread)))
    mean = np.asarray(mean, float)
    assert_allclose(slope, np.exp(norm.logpdf(mean) - log_ndtr(mean)), rtol=1e-10 if x64 else 1e-5)


@pytest.mark.parametrize("levels", [2, 17, 256, 65536])
def test_log_bin_and_its_gradients_in_every_tail(levels):
    """Against differences of scipy's log Phi in float64 and their slopes: bins from 1e-5 to 1e2
    deviations wide, means from inside the bin to far outside of [-1, 1], both outer bins and an
    inner one.
    """
    half = 1 / (levels - 1)
    x, offset, log_variance = np.meshgrid(
        [-1.0, -1 + 2 * half * (levels // 3), 1.0],
        [-40.0, -0.7, -0.02, 0.0, 0.3 * half, 5.0],
        [-18.0, -11.0, -5.0, 0.0, 7.0],
    )
    x, mean, log_variance = (
        np.float32(v).ravel().astype("float64") for v in (x, x + offset, log_variance)
    )

    def exact(mean, log_variance):
        near, far = (
            (np.abs(x - mean) + side) * np.exp(-0.5 * log_variance) for side in (-half, half)
        )
        sign = np.where(x > 0, 1.0, -1.0)
        outer = log_ndtr(-(sign * (x - mean) - half) * np.exp(-0.5 * log_variance))
        difference = log_ndtr(-near) + np.log(
            -np.expm1(np.minimum(log_ndtr(-far) - log_ndtr(-near), -1e-300))
        )
        return np.where(np.abs(x) > 1 - half, outer, difference)

    found = jax.jit(
        jax.vmap(jax.value_and_grad(lambda x, m, v: bins.log_bin(x, m, v, levels), argnums=(1, 2)))
    )
    value, (by_mean, by_log_variance) = found(*map(jnp.float32, (x, mean, log_variance)))
    std, h = np.exp(0.5 * log_variance), 1e-5
    # float64 keeps the difference's digits where the bin is no thinner than 1e-3 deviations, or the
    # tails are not too far
    by_tails = (half / std > 1e-3) | (np.abs(x) > 1 - half)
    slopes = (
        (exact(mean + h * std, log_variance) - exact(mean - h * std, log_variance)) / (2 * h * std),
        (exact(mean, log_variance + h) - exact(mean, log_variance - h)) / (2 * h),
    )
    for got, want, scale in (
        (value, exact(mean, log_variance), 1.0),
        (by_mean, slopes[0], 1 / std),
        (by_log_variance, slopes[1], 1.0),
    ):
        assert np.all(np.isfinite(got))
        error = np.abs(got - want) / (np.abs(want) + scale)
        assert error[by_tails].max() < 2e-3, (
            x[by_tails][error[by_tails].argmax()],
            mean[by_tails][error[by_tails].argmax()],
            error[by_tails].max(),
        )
    thin = ~by_tails  # there the bin is a piece of the density
    if thin.any():
        z = (mean - x) / std
        assert_allclose(value[thin], (norm.logpdf(z) + np.log(2 * half / std))[thin], rtol=2e-3)
        assert_allclose(by_mean[thin], (-z / std)[thin], rtol=2e-3, atol=1e-3)
        assert_allclose(by_log_variance[thin], (0.5 * (z**2 - 1))[thin], rtol=2e-3, atol=1e-3)
