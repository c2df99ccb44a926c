"""Guidance by a worse prediction and by gradients, against closed forms of a labeled mixture."""

from __future__ import annotations

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Prediction
from diffusion_jax.denoisers import guidance, thresholding
from diffusion_jax.processes import gaussian, schedules
from diffusion_jax.samplers import ancestral, base, corrector
from diffusion_jax.samplers.step_noise import silence
from diffusion_jax.targets import laws
from tests.denoisers.mixture_by_class import (
    CENTERS,
    NULL,
    STD,
    WEIGHTS,
    every_process,
    exact_logits,
    null,
    points,
)


def by_class(process, calls=None):
    """The exact denoiser of one class, or of the whole mixture where the label is NULL; appends
    each call's batch size to `calls`.
    """
    whole = laws.denoise_mixture(laws.mixture(WEIGHTS, CENTERS, STD), process)
    single = [
        laws.denoise_gaussian(laws.gaussian(center, STD**2 * jnp.eye(2)), process)
        for center in jnp.asarray(CENTERS)
    ]

    def denoise(x_t, t, cond):
        if calls is not None:
            calls.append(len(x_t))
        label = cond["label"][:, None]
        return jax.tree.map(
            lambda u, a, b: jnp.where(label == NULL, u, jnp.where(label == 0, a, b)),
            whole(x_t, t),
            *(one(x_t, t) for one in single),
        )

    return denoise


@every_process
def test_cfg_spans_unconditional_to_conditional(process):
    (x, cond), denoise, t = points(), by_class(process), 0.4
    conditional, unconditional = denoise(x, t, cond), denoise(x, t, null(cond))
    assert np.abs(conditional.x0 - unconditional.x0).max() > 0.01
    for scale, expected in ((0.0, unconditional), (1.0, conditional)):
        chex.assert_trees_all_close(
            guidance.cfg(denoise, scale, null)(x, t, cond), expected, rtol=1e-4, atol=1e-5
        )
    guided = guidance.cfg(denoise, 3.0, null)(x, t, cond)
    assert_allclose(
        guided.x0, unconditional.x0 + 3 * (conditional.x0 - unconditional.x0), rtol=1e-4, atol=1e-5
    )
    alpha, sigma = process.alpha(jnp.float32(t)), process.sigma(jnp.float32(t))
    assert_allclose(
        alpha * guided.x0 + sigma * guided.eps, x, rtol=1e-4, atol=1e-5
    )  # still what x_t is made of


def test_cfg_is_one_call_and_one_compile():
    calls, process, (x, cond) = [], schedules.VP(), points()
    denoise = by_class(process, calls)
    run = jax.jit(
        chex.assert_max_traces(
            lambda scale, t: guidance.cfg(denoise, scale, null)(x, t, cond).x0, n=1
        )
    )
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


@every_process
def test_labeled_mixture_is_its_classes(process):
    """The mixture's own labels, against the denoisers of its parts."""
    (x, cond), law = points(), laws.mixture(WEIGHTS, CENTERS, STD)
    ours, parts = laws.denoise_mixture(law, process, labels=[0, 1]), by_class(process)
    for label in (cond, null(cond)):
        chex.assert_trees_all_close(ours(x, 0.4, label), parts(x, 0.4, label), rtol=1e-4, atol=1e-5)


def test_autoguidance_spans_worse_to_better():
    process, (x, cond) = schedules.VP(), points()
    better, worse = (
        by_class(process),
        laws.denoise_mixture(laws.mixture(WEIGHTS, CENTERS, 0.8), process),
    )
    for scale, expected in ((0.0, worse), (1.0, better)):
        guided = guidance.autoguidance(better, worse, scale)(x, 0.4, cond)
        chex.assert_trees_all_close(guided, expected(x, 0.4, cond), rtol=1e-4, atol=1e-5)
    itself = guidance.autoguidance(better, better, 5.0)(x, 0.4, cond)
    chex.assert_trees_all_close(itself, better(x, 0.4, cond), rtol=1e-5, atol=1e-6)


def test_a_learned_variance_survives_a_guide_that_learned_none():
    def better(x, t, cond=None):
        return Prediction(x, x, 0.3 * x)

    def worse(x, t, cond=None):
        return Prediction(2 * x, 0 * x)

    x = points()[0]
    assert_allclose(guidance.autoguidance(better, worse, 3.0)(x, 0.5).nu, 0.3 * x)
    assert guidance.autoguidance(worse, better, 3.0)(x, 0.5).nu is None


@every_process
def test_rescale_keeps_the_contrast(process):
    (x, cond), denoise, t = points(), by_class(process), 0.4
    pair = guidance.conditional_pair(denoise, null)
    conditional, plain = denoise(x, t, cond), guidance.extrapolate(pair, 4.0)(x, t, cond)
    chex.assert_trees_all_close(
        guidance.rescale(pair, 4.0, process, 0.0)(x, t, cond), plain, rtol=1e-4, atol=1e-5
    )
    chex.assert_trees_all_close(
        guidance.rescale(pair, 1.0, process, 0.7)(x, t, cond), conditional, rtol=1e-4, atol=1e-5
    )
    half, whole = (
        guidance.rescale(pair, 4.0, process, strength)(x, t, cond) for strength in (0.5, 1.0)
    )
    assert np.all(
        np.isfinite(jax.grad(lambda x: guidance._std(x).sum())(jnp.zeros((2, 3, 1))))
    )  # a constant image
    assert_allclose(np.std(whole.x0, 1), np.std(conditional.x0, 1), rtol=1e-4)
    assert_allclose(half.x0, (whole.x0 + plain.x0) / 2, rtol=1e-4, atol=1e-5)
    alpha, sigma = process.alpha(jnp.float32(t)), process.sigma(jnp.float32(t))
    assert_allclose(alpha * half.x0 + sigma * half.eps, x, rtol=1e-4, atol=1e-5)


@every_process
def test_interval_is_of_noise_levels(process):
    (x, cond), denoise = points(), by_class(process)
    guided, t = guidance.cfg(denoise, 3.0, null), jnp.linspace(0.2, 0.8, 6)
    level = process.sigma(t) / process.alpha(t)
    low, high = (float(jnp.sqrt(level[i] * level[i + 1])) for i in (1, 3))
    found = guidance.interval(guided, denoise, process, low, high)
    expected = [(guided if i in (2, 3) else denoise)(x, t, cond) for i in range(6)]

    def row(prediction, i):
        return jax.tree.map(lambda p: p[i], prediction)

    together = found(x, t, cond)
    for i in range(6):
        own, alone = row(expected[i], i), row(found(x, t[i], cond), i)  # a scalar time
        chex.assert_trees_all_close(row(together, i), own, rtol=1e-4, atol=1e-5)
        chex.assert_trees_all_close(alone, own, rtol=1e-4, atol=1e-5)
    for high, expected in ((math.inf, guided), (0.0, denoise)):
        found = guidance.interval(guided, denoise, process, 0.0, high)(x, t, cond)
        chex.assert_trees_all_close(found, expected(x, t, cond), rtol=1e-4, atol=1e-5)


def test_outside_its_interval_guidance_costs_nothing():
    ran, process, (x, cond) = [], schedules.EDM(), points()

    def counted(x_t, t, cond):
        jax.debug.callback(lambda: ran.append(len(x_t)))
        return by_class(process)(x_t, t, cond)

    found = guidance.interval(guidance.cfg(counted, 2.0, null), counted, process, 1.0, 10.0)
    run = jax.jit(
        lambda level: found(x, gaussian.time_of_logsnr(process, -2 * jnp.log(level)), cond).x0
    )
    for level in (0.5, 5.0):
        run(jnp.float32(level)).block_until_ready()
        jax.effects_barrier()
    assert ran == [6, 12]


@every_process
def test_classifier_guidance_is_bayes_rule(process):
    (x, cond), denoise, t = points(), by_class(process), 0.4

    def unconditional(x_t, t, cond=None):
        return denoise(x_t, t, null(cond))

    log_prob = guidance.class_log_prob(exact_logits(process))
    assert_allclose(
        jnp.exp(log_prob(x, t, cond)) + jnp.exp(log_prob(x, t, {"label": 1 - cond["label"]})),
        1,
        rtol=1e-5,
    )
    anything = {"label": 0 * cond["label"] + 2}
    for scale, label, expected in (
        (0.0, cond, unconditional),
        (1.0, cond, denoise),
        (2.0, anything, unconditional),
    ):
        guided = guidance.classifier(unconditional, process, log_prob, scale)(x, t, label)
        chex.assert_trees_all_close(guided, expected(x, t, cond), rtol=1e-3, atol=1e-4)
    half = guidance.classifier(unconditional, process, log_prob, 0.5)(x, t, cond)
    chex.assert_trees_all_close(
        half, guidance.cfg(denoise, 0.5, null)(x, t, cond), rtol=1e-3, atol=1e-4
    )  # the same, if exact


def test_log_ratio_makes_one_class_of_another():
    process, (x, cond) = schedules.VP(), points()
    denoise, zero = by_class(process), lambda cond: {"label": 0 * cond["label"]}
    log_prob = guidance.class_log_prob(exact_logits(process), against=0)
    guided = guidance.classifier(
        lambda x, t, c=None: denoise(x, t, zero(c)), process, log_prob, 1.0
    )
    chex.assert_trees_all_close(guided(x, 0.4, cond), denoise(x, 0.4, cond), rtol=1e-3, atol=1e-4)


MEAN, COVARIANCE = np.array([0.3, -0.2]), np.array([[0.5, 0.2], [0.2, 0.3]])


@every_process
def test_linear_energy_tilts_a_gaussian(process):
    """p(x0) exp(-scale c.x0) of N(m, C) is N(m - scale C c, C)."""
    x, c, scale, t = points()[0], np.array([0.7, -1.1]), 1.5, jnp.linspace(0.2, 0.8, 6)
    denoise = laws.denoise_gaussian(laws.gaussian(MEAN, COVARIANCE), process)
    tilted = laws.denoise_gaussian(
        laws.gaussian(MEAN - scale * COVARIANCE @ c, COVARIANCE), process
    )
    guided = guidance.energy(denoise, process, lambda x0, t, cond: x0 @ c, scale)
    chex.assert_trees_all_close(guided(x, t), tilted(x, t), rtol=1e-3, atol=1e-4)


@every_process
def test_gaussian_energy_with_the_posterior_variance_is_exact(process):
    """y = a.x0 + r n on N(m, C): exact if E has r^2 + a'C_t a, C_t the covariance of x0 given x_t;
    with r^2 alone it is not.
    """
    a, y, r, t = np.array([1.0, 0.5]), 0.9, 0.4, 0.5
    gain = COVARIANCE @ a / (a @ COVARIANCE @ a + r**2)
    posterior = laws.gaussian(
        MEAN + gain * (y - a @ MEAN), COVARIANCE - np.outer(gain, a @ COVARIANCE)
    )
    denoise = laws.denoise_gaussian(laws.gaussian(MEAN, COVARIANCE), process)
    exact, x = laws.denoise_gaussian(posterior, process), points()[0]

    def misfit(x0, t, cond, known=True):
        snr = (process.alpha(t) / process.sigma(t)) ** 2
        spread = a @ jnp.linalg.inv(jnp.linalg.inv(COVARIANCE) + snr * jnp.eye(2)) @ a
        return 0.5 * (y - x0 @ a) ** 2 / (r**2 + known * spread)

    guided = guidance.energy(denoise, process, misfit)(x, jnp.float32(t))
    chex.assert_trees_all_close(guided, exact(x, t), rtol=1e-3, atol=1e-4)
    naive = guidance.energy(denoise, process, lambda x0, t, cond: misfit(x0, t, cond, known=False))(
        x, jnp.float32(t)
    )
    assert np.abs(naive.x0 - exact(x, t).x0).max() > 0.05


@every_process
def test_a_shift_of_the_mean_by_a_gaussian_classifier_is_that_of_the_posterior(process):
    """y = a.x0 + r n on N(m, C), whose p(y | x_t) is Gaussian: under the variance beta, algorithm 1
    has alpha_t / alpha_s of the exact shift of E[x_s | x_t], all of it where alpha is 1 (EDM).
    """
    a, y, r, t, s = np.array([1.0, 0.5]), 0.9, 0.4, jnp.float32(0.5), jnp.float32(0.3)
    gain = COVARIANCE @ a / (a @ COVARIANCE @ a + r**2)
    posterior = laws.gaussian(
        MEAN + gain * (y - a @ MEAN), COVARIANCE - np.outer(gain, a @ COVARIANCE)
    )
    denoise = laws.denoise_gaussian(laws.gaussian(MEAN, COVARIANCE), process)
    exact, x = laws.denoise_gaussian(posterior, process)(points()[0], t), points()[0]

    def log_prob(x_t, t, cond):
        snr = (process.alpha(t) / process.sigma(t)) ** 2
        spread = a @ jnp.linalg.inv(jnp.linalg.inv(COVARIANCE) + snr * jnp.eye(2)) @ a
        return -0.5 * (y - denoise(x_t, t).x0 @ a) ** 2 / (r**2 + spread)

    def moved(denoise, variance):
        sampler = ancestral.ddpm(variance)
        return sampler.step(silence(x), x, (), t, s, denoise, process, None)[0]

    guided = thresholding.clip_x0(guidance.mean_shift(denoise, log_prob, 1.0), process, -9.0, 9.0)
    shift = moved(guided, "large") - moved(denoise, "large")
    mean, beta_tilde = gaussian.posterior(process, x, exact.x0, t, s)
    ratio, beta = gaussian.transition(process, t, s)
    assert np.abs(shift).max() > 1e-3
    assert_allclose(shift, ratio * (mean - moved(denoise, "large")), rtol=2e-3, atol=1e-4)
    small = moved(guided, "small") - moved(denoise, "small")
    assert_allclose(small, beta_tilde / beta * shift, rtol=2e-3, atol=1e-4)


def test_a_sampler_without_a_mean_refuses_to_shift_it():
    process, x = schedules.VP(), points()[0]
    denoise = laws.denoise_gaussian(laws.gaussian(MEAN, COVARIANCE), process)
    guided = guidance.mean_shift(denoise, lambda x, t, cond: x.sum(1), 2.0)
    ts = jnp.array([0.5, 0.1])
    for sampler in (
        ancestral.ddim(),
        corrector.with_corrector(ancestral.ddpm(), corrector.langevin()),
    ):
        with pytest.raises(UserError, match="this sampler has none: choose .*ancestral.ddpm"):
            base.sample(sampler, guided, process, jax.random.key(0), x, ts)
    found = base.sample(ancestral.ddpm(), guided, process, jax.random.key(0), x, ts).x0
    plain = base.sample(ancestral.ddpm(), denoise, process, jax.random.key(0), x, ts).x0
    assert np.all(found > plain)


def test_composition_is_by_calling():
    """Affine guidances commute; thresholding does not commute with them: what is called last has
    the last word.
    """
    process, (x, cond) = schedules.VP(), points()
    better, worse = (
        by_class(process),
        laws.denoise_mixture(laws.mixture(WEIGHTS, CENTERS, 0.8), process, [0, 1]),
    )
    inner = guidance.cfg(guidance.autoguidance(better, worse, 2.0), 3.0, null)
    outer = guidance.autoguidance(
        guidance.cfg(better, 3.0, null), guidance.cfg(worse, 3.0, null), 2.0
    )
    chex.assert_trees_all_close(inner(x, 0.3, cond), outer(x, 0.3, cond), rtol=1e-3, atol=1e-4)
    last = thresholding.clip_x0(guidance.cfg(better, 8.0, null), process)
    first = guidance.cfg(thresholding.clip_x0(better, process), 8.0, null)
    assert np.abs(last(x, 0.5, cond).x0).max() <= 1 < np.abs(first(x, 0.5, cond).x0).max()
