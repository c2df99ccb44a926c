"""The denoising objective: the exact denoiser minimizes every preset; draws and losses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

from diffusion_jax.core.arrays import example_keys, expand
from diffusion_jax.denoisers.parameterization import target
from diffusion_jax.objectives import denoising, learned_variance, weighting
from diffusion_jax.processes import gaussian, schedules
from diffusion_jax.targets import laws
from tests.families import OBJECTIVES, PARAMETERIZATIONS, WEIGHTINGS, interior
from tests.likelihood.chains import COUNT, DATA, batch, every_process


def gradient(objective, process, exact, noised, shift=0.0):
    """Mean and standard error of d loss / d(c, d); (2,) each. eps-hat = exact + alpha/r (shift + c
    + d x_t/r), r^2 = alpha^2 + sigma^2:

    in x0 that is -sigma/r (shift + ...), so the change is of order one or less in both, and no end
    of the path drowns the mean.
    """
    alpha, r = (
        process.alpha(noised.t)[:, None],
        jnp.hypot(process.alpha(noised.t), process.sigma(noised.t))[:, None],
    )

    def losses(c, d):
        def denoise(x_t, t, cond):
            eps = exact(x_t, t).eps + alpha / r * (shift + c[:, None] + d[:, None] * x_t / r)
            return gaussian.from_eps(process, x_t, eps, t)

        return objective.loss(denoise, noised, None).sum()

    zero = jnp.zeros(len(noised.t))
    per_example = np.stack(jax.grad(losses, argnums=(0, 1))(zero, zero))
    return per_example.mean(1), per_example.std(1) / np.sqrt(per_example.shape[1])


@every_process
def test_the_exact_denoiser_minimizes_every_preset(process):
    keys, x0 = batch()
    exact = laws.denoise_mixture(DATA, process)
    for name, preset in OBJECTIVES.items():
        objective = preset(process)
        noised = objective.draw(keys, x0)
        mean, error = gradient(objective, process, exact, noised)
        assert np.all(np.abs(mean) < 4 * error), (name, mean, error)
        if process in (
            schedules.VP(),
            schedules.EDM(),
            schedules.RectifiedFlow(),
        ):  # the control: errors are seen
            wrong, _ = gradient(objective, process, exact, noised, shift=3.0)
            assert wrong[0] > 4 * error[0] > 0, (name, wrong, error)


@every_process
def test_draw_is_the_forward_process(process):
    keys, x0 = batch()
    for name, preset in OBJECTIVES.items():
        noised = preset(process).draw(keys, x0)
        again = gaussian.corrupt(process, x0, noised.eps, noised.t)
        assert_allclose(noised.x_t, again.x_t, rtol=1e-6, err_msg=name)
        assert np.all(
            (noised.t >= np.float32(process.t_min)) & (noised.t <= np.float32(process.t_max))
        ), name
        assert len(np.unique(noised.eps[:, 0])) > 0.99 * COUNT, (
            name
        )  # nobody shares noise; floats collide


def test_an_example_depends_on_its_own_key():
    """The same (t, eps) comes out at another place and, for one preset, in a smaller batch;
    stratified times alone are the batch's.
    """
    keys, x0 = batch()
    order = np.random.default_rng(0).permutation(COUNT)
    for name, preset in OBJECTIVES.items():
        objective = preset(schedules.VP())
        for a, b in zip(objective.draw(keys, x0), objective.draw(keys[order], x0[order])):
            assert_allclose(a[order], b, rtol=1e-6, err_msg=name)
    whole, part = objective.draw(keys, x0), objective.draw(keys[order[:3]], x0[order[:3]])
    assert_allclose(whole.x_t[order[:3]], part.x_t, rtol=1e-6)


def test_draw_takes_one_key_for_the_batch():
    """Example i draws from the key folded with i, as in base.sample."""
    keys, x0 = batch()
    assert_array_equal(
        jax.random.key_data(keys), jax.random.key_data(example_keys(jax.random.key(0), COUNT))
    )
    for name, preset in {**OBJECTIVES, "hybrid": learned_variance.hybrid}.items():
        draw = preset(schedules.VP()).draw
        for one, each in zip(draw(jax.random.key(0), x0), draw(keys, x0)):
            assert_array_equal(one, each, err_msg=name)


def test_loss_is_per_example_and_uses_the_condition():
    process = schedules.VP()
    keys, x0 = batch()
    noised = denoising.denoising(process).draw(keys, x0)
    label = jnp.arange(COUNT) / COUNT

    def denoise(x_t, t, cond):
        return gaussian.from_eps(process, x_t, noised.eps + cond[:, None], t)

    assert_allclose(
        denoising.denoising(process).loss(denoise, noised, label), label**2, rtol=1e-4, atol=1e-9
    )


def test_a_prediction_of_x0_is_trained_by_the_error_of_the_velocity():
    """JiT's loss (Li & He 2025, appendix A), mean |(x_t - x0-hat) / max(t, 0.05) - (x_t - x0) /
    max(t, 0.05)|^2, with noise of scale 2.
    """
    process = schedules.RectifiedFlow(noise_scale=2.0)
    t = jnp.asarray([0.01, 0.05, 0.4, 0.9])
    x0, eps, guess = np.float32(np.random.default_rng(0).standard_normal((3, 4, 6)))
    noised = gaussian.corrupt(process, x0, eps, t)
    assert_allclose(noised.x_t, (1 - t[:, None]) * x0 + 2 * t[:, None] * eps, rtol=1e-6)

    def denoise(x_t, t, cond):
        return gaussian.from_x0(process, x_t, jnp.asarray(guess), t)

    objective = denoising.denoising(process, weight=weighting.velocity(floor=0.05))
    expected = np.mean(((guess - x0) / np.maximum(t, 0.05)[:, None]) ** 2, axis=1)
    assert_allclose(objective.loss(denoise, noised, None), expected, rtol=1e-4)


@every_process
def test_weightings_are_errors_in_other_spaces(process):
    with jax.enable_x64(True):
        t = jnp.asarray(interior(process))
        rng = np.random.default_rng(0)
        x_t, eps, wrong = (jnp.asarray(v) for v in rng.standard_normal((3, 8, 2)))
        truth, guess = (gaussian.from_eps(process, x_t, e, t) for e in (eps, wrong))
        error = np.sum((np.asarray(wrong) - np.asarray(eps)) ** 2, 1)

        def error_of(space):
            return np.sum((np.asarray(space(guess)) - np.asarray(space(truth))) ** 2, 1)

        spaces = {
            "x0": lambda p: p.x0,
            "unit": lambda p: gaussian.score(process, p, t) * expand(process.sigma(t), x_t),
            "v": lambda p: target(PARAMETERIZATIONS["v"], process, p, t),
            "velocity": lambda p: gaussian.velocity(process, p, t),
            "edm": lambda p: target(PARAMETERIZATIONS["edm"], process, p, t),
        }
        for name, space in spaces.items():
            assert_allclose(
                WEIGHTINGS[name](process, t) * error, error_of(space), rtol=1e-9, err_msg=name
            )
        # dsm's likelihood weighting: lambda = g^2 on the score is g^2 / sigma^2 on eps
        g2 = gaussian.drift_diffusion(process, t)[1]
        score_error = error_of(lambda p: gaussian.score(process, p, t))
        assert_allclose(WEIGHTINGS["likelihood"](process, t) * error, g2 * score_error, rtol=1e-9)
        # the SNR family, from each paper's own statement
        snr, x0_error = (
            np.asarray(process.alpha(t) / process.sigma(t)) ** 2,
            error_of(lambda p: p.x0),
        )
        assert_allclose(WEIGHTINGS["snr"](process, t) * error, snr**2 * x0_error, rtol=1e-9)
        assert_allclose(
            weighting.min_snr(5.0)(process, t) * error, np.minimum(snr, 5.0) * x0_error, rtol=1e-9
        )
        assert_allclose(weighting.p2(0.5, 2.0)(process, t), 1 / np.sqrt(2 + snr), rtol=1e-9)
        elbo_rate = (
            g2 / process.sigma(t) ** 2
        )  # -dlam/dt, which a weight on the ELBO of a noise level multiplies
        assert_allclose(
            weighting.sigmoid(2.0)(process, t), elbo_rate / (1 + np.exp(-2.0) * snr), rtol=1e-9
        )


@every_process
def test_edm_loss_is_one_when_the_network_says_nothing(process):
    """White data of standard deviation sigma_data and F = 0: the loss is the variance of the
    target, 1 at every noise level.
    """
    keys = example_keys(jax.random.key(0), COUNT)
    x0 = 0.5 * jax.random.normal(jax.random.key(1), (COUNT, 2))
    objective = denoising.edm(process)
    noised = objective.draw(keys, x0)
    pair = PARAMETERIZATIONS["edm"]

    def silent(x_t, t, cond):
        a, b = (expand(c, x_t) for c in pair.coefficients(process, t))
        x0 = (
            b * x_t / (expand(process.alpha(t), x_t) * b - expand(process.sigma(t), x_t) * a)
        )  # F = 0
        return gaussian.from_x0(process, x_t, x0, t)

    loss = np.asarray(objective.loss(silent, noised, None))
    for part in np.array_split(loss[np.argsort(noised.t)], 4):  # four bands of noise
        assert abs(part.mean() - 1) < 4 * part.std() / np.sqrt(len(part))
