"""Processes against calculus: everything derived from alpha and sigma is checked by finite
differences, Bayes' rule or the papers' tables.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from diffusion_jax.core import arrays
from diffusion_jax.core.errors import UserError
from diffusion_jax.processes import discrete, gaussian, schedules
from tests.families import BETAS, PROCESSES, interior, smooth

FIXTURES = Path(__file__).parents[1] / "fixtures"
every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)


def derived(process, t):
    f, g2 = gaussian.drift_diffusion(process, t)
    return {
        "alpha": process.alpha(t),
        "sigma": process.sigma(t),
        "logsnr": gaussian.logsnr(process, t),
        "f": f,
        "g2": g2,
    }


def slope(function, t, h=1e-6):
    """Central difference, O(h^2)."""
    return (np.asarray(function(t + h)) - np.asarray(function(t - h))) / (2 * h)


@every_process
def test_float32_is_accurate_from_the_data_end_up(process):
    t = np.float32([1e-6, 1e-5, 1e-4, process.t_min, 2e-3, 1e-2, 0.1, 0.5])
    if not smooth(process):
        t = t + np.float32(0.25 / process.steps) * (
            t >= process.t_min
        )  # off the nodes, where f jumps
    single = derived(process, jnp.asarray(t))
    assert {v.dtype for v in single.values()} == {jnp.dtype("float32")}
    with jax.enable_x64(True):
        double = derived(process, jnp.asarray(t, jnp.float64))
    for name, value in single.items():
        crossing = 1e-6 * (name == "logsnr")  # it passes through 0
        assert_allclose(value, double[name], rtol=1e-5, atol=crossing, err_msg=name)


@every_process
def test_float32_keeps_the_noise_end(process):
    """At t_max alpha may be 1e-3 of a difference of numbers near 1, so rounding of t alone costs up
    to 1e-4 of it.
    """
    t = np.linspace(0.999, 1, 8, dtype="float32") * np.float32(process.t_max)
    single = derived(process, jnp.asarray(t))
    with jax.enable_x64(True):
        double = derived(process, jnp.asarray(t, jnp.float64))
    for name, value in single.items():
        assert_allclose(value, double[name], rtol=2e-4, err_msg=name)


@every_process
def test_derivatives_equal_finite_differences(process):
    with jax.enable_x64(True):
        t = jnp.asarray(interior(process))
        for function in (process.alpha, process.sigma):
            assert_allclose(
                gaussian.derivative(function, t), slope(function, t), rtol=1e-6, atol=1e-8
            )


@every_process
def test_the_sde_moves_the_moments_of_the_path(process):
    """dx = f x dt + g dw makes d log(alpha) / dt = f and d sigma^2 / dt = 2 f sigma^2 + g^2."""
    with jax.enable_x64(True):
        t = jnp.asarray(interior(process))
        f, g2 = gaussian.drift_diffusion(process, t)
        variance = process.sigma(t) ** 2
        assert_allclose(f, slope(lambda u: np.log(process.alpha(u)), t), rtol=1e-6, atol=1e-8)
        assert_allclose(
            2 * f * variance + g2,
            slope(lambda u: np.asarray(process.sigma(u)) ** 2, t),
            rtol=1e-6,
            atol=1e-8,
        )
        assert np.all(g2 > 0)


@every_process
def test_velocity_and_score_are_the_paths_own(process):
    """x' along a fixed (x0, eps) is the velocity; and velocity = f x - g^2 score / 2 (Song et al.
    2021, eq. 13).
    """
    with jax.enable_x64(True):
        t, rng = jnp.asarray(interior(process)), np.random.default_rng(0)
        x0, eps = (jnp.asarray(v) for v in rng.standard_normal((2, len(t), 3)))
        prediction = gaussian.Prediction(x0, eps)
        x_t = gaussian.corrupt(process, x0, eps, t).x_t
        velocity = gaussian.velocity(process, prediction, t)
        assert_allclose(
            velocity,
            slope(lambda u: gaussian.corrupt(process, x0, eps, u).x_t, t),
            rtol=1e-5,
            atol=1e-7,
        )
        f, g2 = (arrays.expand(c, x_t) for c in gaussian.drift_diffusion(process, t))
        assert_allclose(
            velocity,
            f * x_t - 0.5 * g2 * gaussian.score(process, prediction, t),
            rtol=1e-9,
            atol=1e-9,
        )


@every_process
def test_logsnr_decreases_strictly(process):
    t = jnp.linspace(process.t_min, process.t_max, 1001)
    assert np.all(np.diff(gaussian.logsnr(process, t)) < 0)


@every_process
def test_time_of_logsnr_inverts_it(process):
    with jax.enable_x64(True):
        t = jnp.asarray(np.concatenate([interior(process, 6), [process.t_min, process.t_max]]))
        lam = gaussian.logsnr(process, t)
        back, tangent = jax.jit(
            lambda lam: jax.jvp(
                lambda v: gaussian.time_of_logsnr(process, v), (lam,), (jnp.ones_like(lam),)
            )
        )(lam)
        assert_allclose(back, t, rtol=1e-9, atol=1e-15)
        middle = slice(0, -2)  # at the two ends the answer is clamped
        assert_allclose(
            tangent[middle], 1 / slope(lambda u: gaussian.logsnr(process, u), t[middle]), rtol=1e-5
        )


@pytest.mark.parametrize("name", ["VE", "VP"])
def test_time_of_logsnr_clamps(name):
    process = PROCESSES[name]
    beyond = jnp.array([1.0, -1.0]) + gaussian.logsnr(
        process, jnp.array([process.t_min, process.t_max])
    )
    assert_allclose(
        gaussian.time_of_logsnr(process, beyond),
        [process.t_min, process.t_max],
        rtol=1e-6,
        atol=1e-12,
    )


def moments_of_posterior(process, t, s):
    """(coefficient of x_t, coefficient of x0, variance) of q(x_s | x_t, x0), by probing."""
    one, zero = jnp.ones((len(t), 1)), jnp.zeros((len(t), 1))
    keep, variance = gaussian.posterior(process, one, zero, t, s)
    return np.array([keep[:, 0], gaussian.posterior(process, zero, one, t, s)[0][:, 0], variance])


def triples(process):
    """Times r < s < t, (8,) each."""
    times = jnp.asarray(interior(process, 14))
    return times[:8], times[2:10], times[6:]


@every_process
def test_posterior_is_bayes_rule_and_composes(process):
    with jax.enable_x64(True):
        r, s, t = triples(process)
        keep, pull, variance = moments_of_posterior(process, t, s)
        # Bayes: N(x_s; alpha_s x0, sigma_s^2) times N(x_t; ratio x_s, noise), both from the path
        # alone
        (alpha_s, sigma_s), (alpha_t, sigma_t) = (
            (np.asarray(process.alpha(u)), np.asarray(process.sigma(u))) for u in (s, t)
        )
        ratio = alpha_t / alpha_s
        noise = sigma_t**2 - ratio**2 * sigma_s**2
        precision = 1 / sigma_s**2 + ratio**2 / noise
        assert_allclose(variance, 1 / precision, rtol=1e-9)
        assert_allclose(keep, ratio / noise / precision, rtol=1e-9)
        assert_allclose(pull, alpha_s / sigma_s**2 / precision, rtol=1e-9)
        # Chapman-Kolmogorov: t -> s -> r is t -> r
        keep2, pull2, variance2 = moments_of_posterior(process, s, r)
        composed = keep2 * keep, keep2 * pull + pull2, keep2**2 * variance + variance2
        assert_allclose(composed, moments_of_posterior(process, t, r), rtol=1e-9)


@every_process
def test_transition_carries_the_marginals_and_composes(process):
    with jax.enable_x64(True):
        r, s, t = triples(process)
        ratio, variance = gaussian.transition(process, t, s)
        assert_allclose(ratio * process.alpha(s), process.alpha(t), rtol=1e-12)
        assert_allclose(
            ratio**2 * process.sigma(s) ** 2 + variance, process.sigma(t) ** 2, rtol=1e-12
        )
        ratio2, variance2 = gaussian.transition(process, s, r)
        whole = gaussian.transition(process, t, r)
        assert_allclose([ratio * ratio2, variance + ratio**2 * variance2], whole, rtol=1e-12)


@every_process
def test_transition_between_neighbors_keeps_its_digits_in_float32(process):
    """The variance of one of a thousand moves, four or more digits smaller than sigma^2: a
    difference of squares would lose it.
    """
    s = np.float32(interior(process))
    t = s + np.float32(1e-3)
    single = gaussian.transition(process, jnp.asarray(t), jnp.asarray(s))[1]
    with jax.enable_x64(True):
        double = gaussian.transition(
            process, jnp.asarray(t, jnp.float64), jnp.asarray(s, jnp.float64)
        )[1]
    assert_allclose(single, double, rtol=1e-3)


@every_process
def test_prior_is_the_end_of_the_path(process):
    """For data of unit variance corrupt(x0, t_max) has the prior's scale, up to the data that is
    left there; its own, not 1, for VE.
    """
    x0, eps = np.random.default_rng(1).standard_normal((2, 8, 2500)).astype("float32")
    x_T = gaussian.corrupt(process, x0, eps, jnp.full(8, process.t_max)).x_t
    data_left = float(process.alpha(jnp.float32(process.t_max)) / gaussian.prior_scale(process))
    assert data_left < 0.08  # DDPM's scaled_linear table with DDPM's own ends keeps most of it
    scale = np.std(np.asarray(x_T))
    assert_allclose(gaussian.prior_scale(process), scale, rtol=0.02)
    assert_allclose(gaussian.prior(process, eps), scale * eps, rtol=0.02)
    density = -0.5 * (3 * 0.7**2 + 3 * np.log(2 * np.pi)) - 3 * np.log(
        float(gaussian.prior_scale(process))
    )
    assert_allclose(
        gaussian.prior_logp(process, gaussian.prior(process, jnp.full((1, 3), 0.7))),
        density,
        rtol=1e-5,
    )


def test_prior_scales_by_hand():
    scales = {"VE": 50.0, "EDM": 80.0, "VP": 1.0, "RectifiedFlow": 0.999}
    for name, scale in scales.items():
        assert_allclose(gaussian.prior_scale(PROCESSES[name]), scale, rtol=1e-4)


# ---- the tables of betas
def test_ddpm_is_the_papers_chain():
    """mu-tilde and beta-tilde of Ho et al. 2020, eq. 6-7, from betas alone, at every step of the
    linear chain.
    """
    betas = np.linspace(1e-4, 0.02, 1000)
    alpha_bar = np.cumprod(1 - betas)
    before = np.concatenate([[1.0], alpha_bar[:-1]])
    process = discrete.ddpm("linear")
    with jax.enable_x64(True):
        t = jnp.arange(1, 1001) / 1000
        s = t - 1e-3
        assert_allclose(process.alpha(t) ** 2, alpha_bar, rtol=1e-12)
        one, zero = jnp.ones((1000, 1)), jnp.zeros((1000, 1))
        keep, variance = gaussian.posterior(process, one, zero, t, s)
        pull, _ = gaussian.posterior(process, zero, one, t, s)
        # the first move, to s = 0, included: there mu-tilde is x0 and beta-tilde 0
        assert_allclose(
            keep[:, 0], np.sqrt(1 - betas) * (1 - before) / (1 - alpha_bar), rtol=1e-7, atol=1e-12
        )
        assert_allclose(pull[:, 0], np.sqrt(before) * betas / (1 - alpha_bar), rtol=1e-7)
        assert_allclose(variance, betas * (1 - before) / (1 - alpha_bar), rtol=1e-7, atol=1e-15)
    alpha = process.alpha(jnp.arange(1, 1001, dtype=jnp.float32) / 1000)
    assert_allclose(alpha**2, alpha_bar, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("betas", BETAS)
def test_ddpm_tables_equal_diffusers(betas):
    """Their table is shipped in float32: a cumulative product of a thousand factors, a few 1e-6
    off.
    """
    name = {"cosine": "squaredcos_cap_v2"}.get(betas, betas)
    theirs = np.load(FIXTURES / "diffusers_ddpm.npz")[f"alphas_cumprod/{name}"]
    with jax.enable_x64(True):
        ours = discrete.ddpm(betas).alpha(jnp.arange(1, 1001) / 1000) ** 2
    assert_allclose(theirs, ours, rtol=2e-5)


def test_ddpm_rejects_bad_tables():
    with pytest.raises(UserError, match="did you mean 'linear'"):
        discrete.ddpm("linaer")
    with pytest.raises(UserError, match="strictly between 0 and 1"):
        discrete.DDPM((0.1, 1.0))
    with pytest.raises(UserError, match="strictly between 0 and 1"):
        discrete.ddpm("linear", steps=10)  # scaled by 1000 / 10, the last beta is 2
    with pytest.raises(UserError, match="steps=1: it must be at least 2"):
        discrete.ddpm("cosine", steps=1)


def test_ddpm_names_are_all_listed():
    with pytest.raises(UserError) as error:
        discrete.ddpm("?")
    assert set(str(error.value).split("There are: ")[1].split(", ")) == set(BETAS)


# ---- shifted
@pytest.mark.parametrize("base", [schedules.Cosine(), schedules.VP()])
def test_shift_moves_the_logsnr_and_keeps_the_norm(base):
    moved = schedules.Shifted(base, shift=3.0)
    with jax.enable_x64(True):
        t = jnp.linspace(base.t_min, base.t_max, 8)
        assert_allclose(
            gaussian.logsnr(moved, t), gaussian.logsnr(base, t) - 2 * np.log(3.0), rtol=1e-12
        )
        assert_allclose(moved.alpha(t) ** 2 + moved.sigma(t) ** 2, 1.0, rtol=1e-12)


def test_shifted_flow_is_stable_diffusion_3s():
    """Esser et al. 2024, eq. 23: t' = shift t / (1 + (shift - 1) t) on the straight path."""
    t = jnp.linspace(0.01, 0.99, 7)
    shifted = 3 * t / (1 + 2 * t)
    process = schedules.Shifted(schedules.RectifiedFlow(), shift=3.0, norm=1.0)
    assert_allclose(process.sigma(t), shifted, rtol=1e-6)
    assert_allclose(process.alpha(t), 1 - shifted, rtol=1e-5)
