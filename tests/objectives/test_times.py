"""Time laws: the distributions of the noise levels equal closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core.arrays import example_keys
from diffusion_jax.objectives import denoising, times
from diffusion_jax.processes import discrete, gaussian, schedules
from tests.families import PROCESSES, TIMES
from tests.likelihood.chains import COUNT, batch, every_process


@every_process
def test_time_laws_stay_on_the_path(process):
    keys = example_keys(jax.random.key(3), COUNT)
    for name, law in TIMES.items():
        t = np.asarray(law()(process, keys))
        assert t.shape == (COUNT,) and t.dtype == np.float32, name
        assert t.min() >= np.float32(process.t_min) and t.max() <= np.float32(process.t_max), name
        assert len(np.unique(t)) > 150, name  # all of it is used


def test_uniform_and_logit_normal_means():
    process, keys = schedules.VP(), example_keys(jax.random.key(4), COUNT)
    t = np.asarray(times.uniform()(process, keys))
    assert abs(t.mean() - 0.5005) < 4 * (0.999 / np.sqrt(12)) / 32
    assert abs(t.std() - 0.999 / np.sqrt(12)) < 0.02
    u = (np.asarray(times.logit_normal(0.5, 0.8)(process, keys)) - 1e-3) / 0.999
    logit = np.log(u / (1 - u))
    assert abs(logit.mean() - 0.5) < 4 * 0.8 / 32 and abs(logit.std() - 0.8) < 4 * 0.8 / np.sqrt(
        2 * COUNT
    )


@pytest.mark.parametrize("name", ["EDM", "VP", "RectifiedFlow"])
def test_lognormal_is_lognormal_in_sigma_over_alpha(name):
    """Under every process, away from its ends: 1.2 standard deviations keep sigma / alpha in [0.07,
    1.3].
    """
    process, keys = PROCESSES[name], example_keys(jax.random.key(5), COUNT)
    t = times.lognormal(-1.2, 0.5)(process, keys)
    log_sigma = -0.5 * np.asarray(gaussian.logsnr(process, t))
    assert abs(log_sigma.mean() + 1.2) < 4 * 0.5 / 32
    assert abs(log_sigma.std() - 0.5) < 4 * 0.5 / np.sqrt(2 * COUNT)


def test_grid_law_is_the_chain():
    """t = i / N for i = 1..N, every one of them, to float32's rounding."""
    process = discrete.ddpm("linear", steps=50)
    t = np.asarray(times.grid(50)(process, example_keys(jax.random.key(6), COUNT))) * 50
    assert_allclose(t, np.round(t), atol=5e-6)
    assert set(np.round(t)) == set(range(1, 51))


def test_ncsn_levels_are_geometric():
    process = schedules.VE(0.01, 50.0)
    noised = denoising.ncsn(process, levels=10).draw(*batch())
    assert_allclose(
        np.unique(process.sigma(jnp.asarray(np.unique(noised.t)))),
        np.geomspace(0.01, 50, 10),
        rtol=1e-5,
    )


def test_stratified_puts_one_time_in_every_stratum():
    process = schedules.VP(t_min=1e-9)
    starts = []
    for seed in range(3):
        t = np.sort(
            np.asarray(times.stratified()(process, example_keys(jax.random.key(seed), COUNT)))
        )
        assert_allclose(np.diff(t), 1 / COUNT, atol=1e-6)
        assert 0 <= t[0] < 1 / COUNT + 1e-6
        starts.append(t[0])
    assert len(set(starts)) == 3  # and the offset is random
