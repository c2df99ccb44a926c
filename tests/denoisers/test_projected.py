"""APG and CFG-Zero*, against their closed forms and on exact denoisers of a labeled mixture."""

from __future__ import annotations

import chex
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose

from diffusion_jax.core.types import Prediction
from diffusion_jax.denoisers import guidance, projected
from diffusion_jax.processes import gaussian, schedules
from diffusion_jax.targets import laws
from tests.denoisers.mixture_by_class import CENTERS, STD, WEIGHTS, every_process, null, points


def pair_of(process):
    law = laws.mixture(WEIGHTS, CENTERS, STD)
    return guidance.conditional_pair(laws.denoise_mixture(law, process, labels=[0, 1]), null)


def is_split_of_x(prediction, process, x, t):
    alpha, sigma = process.alpha(jnp.float32(t)), process.sigma(jnp.float32(t))
    assert_allclose(alpha * prediction.x0 + sigma * prediction.eps, x, rtol=1e-4, atol=1e-5)


def test_the_projection_leaves_what_is_orthogonal():
    rng = np.random.default_rng(0)
    x, onto = (jnp.asarray(rng.standard_normal((3, 4, 2)), "float32") for _ in range(2))
    along = projected.projection(x, onto)
    assert_allclose(jnp.sum((x - along) * onto, (1, 2)), 0, atol=1e-5)
    factor = [np.linalg.lstsq(b.reshape(-1, 1), a.ravel())[0] for a, b in zip(x, onto)]
    assert_allclose(along, np.reshape(factor, (3, 1, 1)) * onto, rtol=1e-4, atol=1e-6)
    assert_allclose(projected.projection(along, onto), along, rtol=1e-4, atol=1e-6)
    assert_allclose(projected.projection(x, 0 * onto), 0)


@every_process
def test_apg_with_the_whole_difference_is_cfg(process):
    (x, cond), pair, t = points(), pair_of(process), 0.4
    plain = guidance.extrapolate(pair, 3.0)(x, t, cond)
    whole = projected.apg(pair, 3.0, process, eta=1.0)(x, t, cond)
    chex.assert_trees_all_close(whole, plain, rtol=1e-3, atol=1e-4)
    model = projected.apg(pair, 1.0, process)(x, t, cond)
    chex.assert_trees_all_close(model, pair(x, t, cond)[0], rtol=1e-3, atol=1e-4)


def test_apg_adds_a_limited_difference_that_is_orthogonal_to_the_conditional_prediction():
    process, (x, cond), t = schedules.VP(), points(), 0.4
    pair = pair_of(process)
    better, worse = pair(x, t, cond)
    difference = np.asarray(better.x0 - worse.x0)
    free = projected.apg(pair, 2.0, process)(x, t, cond)
    added = free.x0 - better.x0
    assert_allclose(jnp.sum(added * better.x0, 1), 0, atol=1e-5)
    assert_allclose(jnp.sum(added * difference, 1), jnp.sum(added**2, 1), rtol=1e-4, atol=1e-6)
    assert np.abs(added).max() > 0.01
    is_split_of_x(free, process, x, t)
    norms = np.linalg.norm(difference, axis=1)
    limit = float(np.median(norms))
    limited = projected.apg(pair, 2.0, process, eta=1.0, norm_threshold=limit)(x, t, cond)
    found = np.linalg.norm(limited.x0 - better.x0, axis=1)
    assert_allclose(found, np.minimum(norms, limit), rtol=1e-4, atol=1e-6)


@every_process
def test_cfg_zero_leads_away_from_the_best_multiple_of_the_unconditional_velocity(process):
    (x, cond), pair, t = points(), pair_of(process), jnp.float32(0.4)
    better, worse = (gaussian.velocity(process, p, t) for p in pair(x, t, cond))
    best = jnp.sum(better * worse, 1, keepdims=True) / jnp.sum(worse**2, 1, keepdims=True)
    guided = projected.cfg_zero(pair, 3.0, process)(x, t, cond)
    expected = best * worse + 3 * (better - best * worse)
    assert_allclose(gaussian.velocity(process, guided, t), expected, rtol=2e-3, atol=2e-3)
    is_split_of_x(guided, process, x, t)
    model = projected.cfg_zero(pair, 1.0, process)(x, t, cond)
    chex.assert_trees_all_close(model, pair(x, t, cond)[0], rtol=1e-3, atol=1e-4)


def test_cfg_zero_of_two_equal_predictions_is_that_prediction():
    process, (x, _) = schedules.VP(), points()

    def alike(x_t, t, cond=None):
        found = gaussian.from_x0(process, x_t, jnp.tanh(x_t), t)
        return found, found

    guided = projected.cfg_zero(alike, 5.0, process)(x, jnp.float32(0.4))
    chex.assert_trees_all_close(guided, alike(x, 0.4)[0], rtol=1e-3, atol=1e-4)


def test_zero_init_leaves_x_where_it_is_for_its_share_of_the_steps():
    process, (x, cond) = schedules.RectifiedFlow(), points()
    guided = projected.cfg_zero(pair_of(process), 2.0, process, zero_init=0.04)
    ts, seen = jnp.linspace(process.t_max, 0, 51), []
    for t, s in zip(ts[:4], ts[1:]):
        x_next = x + (s - t) * gaussian.velocity(process, guided(x, t, cond), t)
        seen.append(np.abs(x_next - x).max() > 1e-3)
    assert seen == [False, False, True, True]
    times = jnp.full(6, 0.5).at[0].set(process.t_max)  # one time for each example
    still = gaussian.velocity(process, guided(x, times, cond), times)
    assert_allclose(still[0], 0, atol=1e-4)
    assert np.abs(still[1:]).min(0).max() > 1e-3


def test_the_variance_of_the_better_prediction_is_kept():
    def pair(x_t, t, cond=None):
        return Prediction(x_t, x_t, 0.3 * x_t), Prediction(0 * x_t, x_t)

    x, process = points()[0], schedules.VP()
    for guide in (projected.apg, projected.cfg_zero):
        assert_allclose(guide(pair, 2.0, process)(x, jnp.float32(0.5)).nu, 0.3 * x)
