"""Thresholding: x0-hat clipped, statically and dynamically, with eps-hat to match."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.denoisers import thresholding
from diffusion_jax.processes import gaussian, schedules
from tests.denoisers.mixture_by_class import every_process, points


def tenfold(process):
    """A denoiser far outside the data's range, with a learned variance to be kept."""

    def denoise(x_t, t, cond=None):
        nu = None if cond is None else jnp.full_like(x_t, 0.25)
        return gaussian.from_x0(process, x_t, 10 * x_t, t)._replace(nu=nu)

    return denoise


@every_process
@pytest.mark.parametrize("change", [thresholding.clip_x0, thresholding.dynamic_threshold])
def test_thresholding_keeps_what_x_t_is_made_of(process, change):
    x, t = points()[0], jnp.linspace(0.3, 0.9, 6)
    x0, eps, nu = change(tenfold(process), process)(x, t, "with variance")[:3]
    assert np.abs(x0).max() <= 1
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    assert_allclose(alpha * x0 + sigma * eps, x, rtol=1e-4, atol=1e-5)
    assert_allclose(nu, 0.25)
    assert change(tenfold(process), process)(x, t).nu is None


def test_clip_by_hand():
    process = schedules.EDM()
    x = jnp.array([[0.05, -0.02], [0.3, -0.4]])
    assert_allclose(
        thresholding.clip_x0(tenfold(process), process)(x, 0.5).x0,
        [[0.5, -0.2], [1.0, -1.0]],
        rtol=1e-6,
    )
    assert_allclose(
        thresholding.clip_x0(tenfold(process), process, 0.0, 2.0)(x, 0.5).x0,
        [[0.5, 0.0], [2.0, 0.0]],
        rtol=1e-6,
    )


def test_dynamic_threshold_by_hand():
    """Eleven values |0|, |1|, ..., |10|: their 80th percentile is 8, so [-8, 8] is kept and divided
    by 8; an image within 1 is kept.
    """
    process = schedules.EDM()
    wide = jnp.arange(11.0) * jnp.array([1, -1] * 5 + [1]) / 10
    x = jnp.stack([wide, wide / 20])
    x0 = thresholding.dynamic_threshold(tenfold(process), process, 80.0)(x, 0.5).x0
    expected = np.clip(10 * np.asarray(wide), -8, 8) / 8
    assert_allclose(x0[0], expected, rtol=1e-6)
    assert_allclose(x0[1], wide / 2, rtol=1e-6)
