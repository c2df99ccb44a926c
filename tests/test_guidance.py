"""Guidance and thresholding on mixtures, where the conditional and the unconditional denoiser are both known."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import PROCESSES
from numpy.testing import assert_allclose

from diffusion_jax import guidance, targets
from diffusion_jax.processes import gaussian, schedules
from diffusion_jax.types import Prediction

KINDS = ("VP", "EDM", "RectifiedFlow", "DDPM_cosine")  # guidance sees no more of a process than alpha and sigma
every_process = pytest.mark.parametrize("process", [PROCESSES[name] for name in KINDS], ids=KINDS)
WEIGHTS, CENTRES, STD = np.array([0.7, 0.3]), np.array([[0.8, -0.3], [-0.5, 0.6]]), 0.3
NULL = -1


def null(cond):
    return {"label": jnp.full_like(cond["label"], NULL)}


def by_class(process, calls=None):
    """The exact denoiser of one class, or of the whole mixture where the label is NULL; appends each call's batch size
    to `calls`.
    """
    whole = targets.denoise_mixture(targets.mixture(WEIGHTS, CENTRES, STD), process)
    single = [
        targets.denoise_gaussian(targets.gaussian(centre, STD**2 * jnp.eye(2)), process)
        for centre in jnp.asarray(CENTRES)
    ]

    def denoise(x_t, t, cond):
        if calls is not None:
            calls.append(len(x_t))
        label = cond["label"][:, None]
        return jax.tree.map(lambda u, a, b: jnp.where(label == NULL, u, jnp.where(label == 0, a, b)), whole(x_t, t),
                            *(one(x_t, t) for one in single))

    return denoise


def points():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((6, 2)), "float32")
    return x, {"label": jnp.array([0, 1, 0, 1, 1, 0])}


@every_process
def test_cfg_spans_unconditional_to_conditional(process):
    (x, cond), denoise, t = points(), by_class(process), 0.4
    conditional, unconditional = denoise(x, t, cond), denoise(x, t, null(cond))
    assert np.abs(conditional.x0 - unconditional.x0).max() > 0.01
    for scale, expected in ((0.0, unconditional), (1.0, conditional)):
        chex.assert_trees_all_close(guidance.cfg(denoise, scale, null)(x, t, cond), expected, rtol=1e-4, atol=1e-5)
    guided = guidance.cfg(denoise, 3.0, null)(x, t, cond)
    assert_allclose(guided.x0, unconditional.x0 + 3 * (conditional.x0 - unconditional.x0), rtol=1e-4, atol=1e-5)
    alpha, sigma = process.alpha(jnp.float32(t)), process.sigma(jnp.float32(t))
    assert_allclose(alpha * guided.x0 + sigma * guided.eps, x, rtol=1e-4, atol=1e-5)  # still what x_t is made of


def test_cfg_is_one_call_and_one_compile():
    calls, process, (x, cond) = [], schedules.VP(), points()
    denoise = by_class(process, calls)
    run = jax.jit(chex.assert_max_traces(lambda scale, t: guidance.cfg(denoise, scale, null)(x, t, cond).x0, n=1))
    images = [run(scale, jnp.full(6, t)) for scale, t in ((0.0, 0.3), (2.0, 0.3), (7.5, 0.6))]
    assert calls == [12]  # both halves in one batch, traced once for all scales
    assert not np.allclose(images[0], images[1])


def test_cfg_keeps_the_learned_variance_between_its_bounds():
    """nu is interpolated up to the conditional one and never extrapolated."""

    def denoise(x_t, t, cond):
        nu = jnp.where(cond["label"][:, None] == NULL, -0.5, 0.9) * jnp.ones_like(x_t)
        return Prediction(x_t, x_t, nu)

    x, cond = points()
    for scale, nu in ((0.0, -0.5), (0.5, 0.2), (1.0, 0.9), (4.0, 0.9)):
        assert_allclose(guidance.cfg(denoise, scale, null)(x, 0.5, cond).nu, nu, rtol=1e-6)


def tenfold(process):
    """A denoiser far outside the data's range, with a learned variance to be kept."""

    def denoise(x_t, t, cond=None):
        nu = None if cond is None else jnp.full_like(x_t, 0.25)
        return gaussian.from_x0(process, x_t, 10 * x_t, t)._replace(nu=nu)

    return denoise


@every_process
@pytest.mark.parametrize("change", [guidance.clip_x0, guidance.dynamic_threshold])
def test_thresholding_keeps_what_x_t_is_made_of(process, change):
    x, t = points()[0], jnp.linspace(0.3, 0.9, 6)
    x0, eps, nu = change(tenfold(process), process)(x, t, "with variance")
    assert np.abs(x0).max() <= 1
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    assert_allclose(alpha * x0 + sigma * eps, x, rtol=1e-4, atol=1e-5)
    assert_allclose(nu, 0.25)
    assert change(tenfold(process), process)(x, t).nu is None


def test_clip_by_hand():
    process = schedules.EDM()
    x = jnp.array([[0.05, -0.02], [0.3, -0.4]])
    assert_allclose(guidance.clip_x0(tenfold(process), process)(x, 0.5).x0, [[0.5, -0.2], [1.0, -1.0]], rtol=1e-6)
    assert_allclose(
        guidance.clip_x0(tenfold(process), process, 0.0, 2.0)(x, 0.5).x0, [[0.5, 0.0], [2.0, 0.0]], rtol=1e-6
    )


def test_dynamic_threshold_by_hand():
    """Eleven values |0|, |1|, ..., |10|: their 80th percentile is 8, so [-8, 8] is kept and divided by 8; an image
    within 1 is kept.
    """
    process = schedules.EDM()
    wide = jnp.arange(11.0) * jnp.array([1, -1] * 5 + [1]) / 10
    x = jnp.stack([wide, wide / 20])
    x0 = guidance.dynamic_threshold(tenfold(process), process, 80.0)(x, 0.5).x0
    expected = np.clip(10 * np.asarray(wide), -8, 8) / 8
    assert_allclose(x0[0], expected, rtol=1e-6)
    assert_allclose(x0[1], wide / 2, rtol=1e-6)
