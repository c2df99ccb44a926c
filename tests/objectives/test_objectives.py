"""Objectives: the exact denoiser minimises every one of them; weightings, time laws and the
variational bound equal closed forms.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import log_ndtr
from scipy.stats import norm

from diffusion_jax.arrays import example_keys, expand
from diffusion_jax.denoisers.parameterization import target
from diffusion_jax.errors import UserError
from diffusion_jax.likelihood import bins, bounds
from diffusion_jax.objectives import denoising, learned_variance, times, weighting
from diffusion_jax.processes import discrete, gaussian, schedules
from diffusion_jax.samplers import grids
from diffusion_jax.targets import laws
from tests.families import (
    OBJECTIVES,
    PARAMETERIZATIONS,
    PROCESSES,
    TIMES,
    WEIGHTINGS,
    AnyOf,
    interior,
)

every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
DATA = laws.mixture([0.6, 0.4], [[0.8, -0.3], [-0.5, 0.6]], [[0.3, 0.2], [0.15, 0.4]])
# examples in every test of this file up to the bound: JAX compiles each operation once per shape
COUNT = 1024


@functools.cache
def batch():
    return example_keys(jax.random.key(0), COUNT), laws.draw_mixture(DATA, jax.random.key(1), COUNT)


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
def test_the_exact_denoiser_minimises_every_preset(process):
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
    """As base.sample does: example i then draws from the key folded with i."""
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


# ---- weightings: the docstring's table, by computing the errors
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


# ---- time laws
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


# ---- the variational bound
MEAN, STD = 0.1, 0.3  # of the data's pixels, which take 256 values

CHAIN = schedules.VP(
    t_min=6e-3
)  # sigma(t_min) = 0.031, four bins wide, so that data on 256 values looks continuous


@functools.cache
def pixels(count, seed=0):
    x = MEAN + STD * jax.random.normal(jax.random.key(seed), (count, 4))
    return jnp.clip(jnp.round((x + 1) * 127.5), 0, 255) / 127.5 - 1


def exact_variance(process, ts):
    """nu at each of the times that makes p(x_s | x_t) have the data's own conditional variance, in
    numpy from moments; (n,).
    """
    with jax.enable_x64(True):
        alpha, sigma = (
            np.asarray(f(jnp.asarray(ts, "float64"))) for f in (process.alpha, process.sigma)
        )
    variance_x0 = STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2)  # of x0 given x_t
    ratio = alpha[:-1] / alpha[1:]
    beta = sigma[:-1] ** 2 - ratio**2 * sigma[1:] ** 2
    low = np.log(beta * sigma[1:] ** 2 / sigma[:-1] ** 2)
    true = np.exp(low) + (alpha[1:] * beta / sigma[:-1] ** 2) ** 2 * variance_x0[:-1]
    nu = 2 * (np.log(true) - low) / (np.log(beta) - low) - 1
    last = 2 * (np.log(variance_x0[-1]) - low[-1]) / (np.log(sigma[-1] ** 2) - low[-1]) - 1
    return np.append(nu, last)


def exact_denoiser(process, ts):
    """The exact denoiser of the pixels with the exact reverse variance as its nu; t scalar or (B,),
    on the grid ts.
    """
    mean = laws.denoise_gaussian(laws.gaussian(jnp.full(4, MEAN), STD**2 * jnp.eye(4)), process)
    nus, ts = jnp.asarray(exact_variance(process, ts), "float32"), jnp.asarray(ts)

    def denoise(x_t, t, cond=None):
        t = jnp.broadcast_to(t, x_t.shape[:1])
        nu = nus[jnp.argmin(jnp.abs(ts - t[:, None]), axis=1)]
        return mean(x_t, t)._replace(nu=jnp.broadcast_to(nu[:, None], x_t.shape))

    return denoise


@functools.cache
def bound_of(n, variance):
    """elbo.vlb of 8192 examples on n times of the CHAIN."""
    ts = grids.uniform(CHAIN, n)
    denoise = exact_denoiser(CHAIN, ts)
    return jax.jit(lambda x, key: bounds.vlb(CHAIN, denoise, x, key, ts, variance=variance))(
        pixels(8192), jax.random.key(1)
    )


def gap_to_likelihood(n, variance):
    """Bits per dimension of the bound minus the data's exact -log2 p, discretised: mean and
    standard error over images.
    """
    edges = np.asarray(pixels(8192), "float64")[..., None] + np.array([-1, 1]) / 255
    edges = np.where(np.abs(edges) > 1, np.inf * np.sign(edges), edges)
    exact = -np.log2(np.diff(norm.cdf(edges, MEAN, STD)))[..., 0].mean(1)
    difference = np.asarray(bound_of(n, variance)["total"]) - exact
    return difference.mean(), difference.std() / np.sqrt(8192)


def test_vlb_with_the_exact_reverse_variance_is_the_likelihood():
    """For Gaussian data p(x_s | x_t) is Gaussian, so with its true variance the bound is tight on
    any grid, however coarse.
    """
    mean, error = gap_to_likelihood(8, "learned")
    assert abs(mean) < 4 * error < 0.05, (mean, error)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_vlb_with_fixed_variance_tightens_from_above(variance):
    """By more than two thirds from 8 moves to 64, and never below the likelihood."""
    (coarse, error), (fine, _) = (gap_to_likelihood(n, variance) for n in (9, 65))
    assert -4 * error < fine < 0.3 * coarse and coarse > 4 * error, (coarse, fine, error)


def test_vlb_terms_are_closed_form_kls():
    """For a denoiser that says x0-hat = 0 the gaps are known, and each KL follows from the
    posterior's coefficients on Ho's chain.
    """
    process, x0 = discrete.ddpm("linear", steps=50), pixels(64)[:, :1]
    x0 = x0[jnp.abs(x0[:, 0]) < 0.3][
        :8
    ]  # within seven deviations the reference's difference of cdfs is exact
    betas = np.linspace(2e-3, 0.4, 50)
    bar = np.cumprod(1 - betas)

    def denoise(x_t, t, cond):
        return gaussian.from_x0(process, x_t, jnp.zeros_like(x_t), t)

    bound = jax.jit(
        lambda x: bounds.vlb(
            process, denoise, x, jax.random.key(0), jnp.arange(50, 0, -1) / 50, variance="large"
        )
    )(x0)
    tilde = betas[1:] * (1 - bar[:-1]) / (1 - bar[1:])
    gap = (np.sqrt(bar[:-1]) * betas[1:] / (1 - bar[1:]))[:, None, None] * np.asarray(x0)
    beta, tilde = betas[1:, None, None], tilde[:, None, None]
    kl = 0.5 * (np.log(beta / tilde) + (tilde + gap**2) / beta - 1)
    assert_allclose(bound["terms"].T[::-1], kl.mean(2) / np.log(2), rtol=1e-4)
    assert_allclose(bound["diffusion"], bound["terms"].sum(1), rtol=1e-6)
    prior = 0.5 * (bar[-1] * np.asarray(x0) ** 2 / (1 - bar[-1])).mean(1) / np.log(2)
    assert_allclose(bound["prior"], prior, rtol=1e-4)
    edges = np.asarray(x0, "float64")[..., None] + np.array([-1, 1]) / 255
    decoder = -np.log2(np.diff(norm.cdf(edges, 0, np.sqrt(betas[0]))))[..., 0].mean(1)
    assert_allclose(bound["reconstruction"], decoder, rtol=1e-4)
    assert_allclose(
        bound["total"], bound["prior"] + bound["diffusion"] + bound["reconstruction"], rtol=1e-6
    )


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
    """Of an outer bin, whose slope is scipy's phi / Phi: 0 to 60 deviations away, without the gaps
    that a coarse grid of distances leaves (erfcx is 0 from 13.0 to 13.3 deviations in float32 and
    from 37.5 to 37.6 in float64).
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
    told = (half / std > 1e-3) | (np.abs(x) > 1 - half)
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
        assert error[told].max() < 2e-3, (
            x[told][error[told].argmax()],
            mean[told][error[told].argmax()],
            error[told].max(),
        )
    thin = ~told  # there the bin is a piece of the density
    if thin.any():
        z = (mean - x) / std
        assert_allclose(value[thin], (norm.logpdf(z) + np.log(2 * half / std))[thin], rtol=2e-3)
        assert_allclose(by_mean[thin], (-z / std)[thin], rtol=2e-3, atol=1e-3)
        assert_allclose(by_log_variance[thin], (0.5 * (z**2 - 1))[thin], rtol=2e-3, atol=1e-3)


def test_hybrid_moves_the_mean_as_l_simple_and_rests_at_the_true_variance():
    """With c added to eps-hat and e to nu: d/dc is L_simple's own to the last bit; E d/de is 0 at
    the true variance, not elsewhere.
    """
    steps, count = 20, 4096
    ts = grids.uniform(CHAIN, steps)
    exact, objective = (
        exact_denoiser(CHAIN, ts),
        learned_variance.hybrid(CHAIN, steps, vlb_weight=1.0),
    )
    noised = jax.jit(objective.draw)(example_keys(jax.random.key(0), count), pixels(count, seed=7))

    def losses(c, e, loss):
        def denoise(x_t, t, cond):
            prediction = exact(x_t, t)
            moved = gaussian.from_eps(CHAIN, x_t, prediction.eps + c[:, None], t)
            return moved._replace(nu=prediction.nu + e[:, None])

        return loss(denoise, noised, None).sum()

    gradients = jax.jit(jax.grad(losses, argnums=(0, 1)), static_argnums=2)
    start = jnp.full(count, 0.3), jnp.zeros(count)
    simple = gradients(*start, denoising.ddpm(CHAIN, steps).loss)[0]
    assert np.array_equal(gradients(*start, objective.loss)[0], simple) and np.abs(simple).max() > 0
    for e, rests in ((0.0, True), (0.5, False)):
        g = np.asarray(gradients(jnp.zeros(count), jnp.full(count, e), objective.loss)[1])
        assert (abs(g.mean()) < 4 * g.std() / np.sqrt(count)) == rests, (
            e,
            g.mean(),
            g.std() / np.sqrt(count),
        )


def test_the_gradients_of_the_hybrid_objective_are_finite():
    """Of images at both ends of [-1, 1] and of denoisers that are far off, under every process.

    Each example counts one term, a move or the reconstruction, and the other must not reach its
    gradient (0 times infinity).
    """
    x0 = jnp.asarray(np.random.default_rng(0).choice([-1.0, 1 / 255, 1.0], (512, 2)), "float32")

    @jax.jit
    def gradients(index, scale):
        process = AnyOf(index)
        objective = learned_variance.hybrid(process, steps=20)
        noised = objective.draw(jax.random.key(0), x0)

        def losses(scale, nu):
            def denoise(x_t, t, cond):
                return gaussian.from_eps(process, x_t, scale * x_t, t)._replace(
                    nu=nu * jnp.ones_like(x_t)
                )

            return objective.loss(denoise, noised, None).sum()

        return jax.grad(losses, argnums=(0, 1))(scale, 0.5)

    for index, name in enumerate(PROCESSES):
        for scale in (0.0, 0.3, 30.0):
            assert np.all(np.isfinite(gradients(index, scale))), (name, scale)


def test_hybrid_estimates_the_whole_bound():
    """vlb_weight times (diffusion + reconstruction) of elbo.vlb, in bits per dimension, on top of
    L_simple.
    """
    ts, x0, weight = grids.uniform(CHAIN, 8), pixels(8192), 0.5  # a bound that is compiled already
    denoise, objective = (
        exact_denoiser(CHAIN, ts),
        learned_variance.hybrid(CHAIN, 8, vlb_weight=weight),
    )

    @jax.jit
    def extra(keys):
        noised = objective.draw(keys, x0)
        return (
            objective.loss(denoise, noised, None)
            - denoising.ddpm(CHAIN, 8).loss(denoise, noised, None)
        ) / weight

    sampled, bound = (
        np.asarray(extra(example_keys(jax.random.key(2), 8192))),
        bound_of(8, "learned"),
    )
    whole = float(np.mean(bound["diffusion"] + bound["reconstruction"]))
    assert abs(sampled.mean() - whole) < 4 * sampled.std() / np.sqrt(8192)


def test_importance_weights_of_the_exact_reverse_chain_are_all_the_likelihood():
    """p(chain, x0) / q(chain | x0) is p(x0) for every chain of Gaussian data with the true
    variance: no spread is left.
    """
    ts, x0 = grids.uniform(CHAIN, 8), pixels(64)
    denoise = exact_denoiser(CHAIN, ts)
    found = jax.jit(
        lambda x: bounds.importance_vlb(
            CHAIN, denoise, x, jax.random.key(3), ts, draws=16, variance="learned"
        )
    )(x0)
    edges = np.asarray(x0, "float64")[..., None] + np.array([-1, 1]) / 255
    exact = np.log(
        np.diff(norm.cdf(np.where(np.abs(edges) > 1, np.inf * np.sign(edges), edges), MEAN, STD))
    )[..., 0].sum(1)
    assert found["log_weights"].shape == (64, 16)
    error = (
        np.asarray(found["log_weights"]) - exact[:, None]
    )  # a bin is no point: within it the density is not quite flat
    assert abs(error.mean()) < 0.02 and error.std() < 0.2
    assert_allclose(found["total"], -exact / 4 / np.log(2), atol=0.03)


def test_importance_weighting_tends_to_the_models_own_likelihood():
    """A wrong denoiser in one dimension: p(x0) of its chain by quadrature; many chains reach it,
    the plain bound does not.
    """
    process, ts, x0 = (
        schedules.VP(t_min=0.02),
        np.array([1.0, 0.4, 0.02], "float32"),
        pixels(64)[:1, :1],
    )
    slope = 0.6  # x0-hat = 0.2 + 0.6 alpha x_t, whatever the data

    def denoise(x_t, t, cond=None):
        return gaussian.from_x0(process, x_t, 0.2 + slope * process.alpha(t) * x_t, t)

    run = jax.jit(
        lambda key: bounds.importance_vlb(
            process, denoise, x0, key, ts, draws=4096, variance="large"
        )
    )
    bound = run(jax.random.key(0))
    grid = np.linspace(-6, 6, 3001)
    alpha, sigma = (
        np.asarray(f(jnp.asarray(ts)), "float64") for f in (process.alpha, process.sigma)
    )
    mass = norm.pdf(grid, 0, sigma[0]) * (grid[1] - grid[0])
    for i in (0, 1):  # p(x_s | x_t): mu-tilde at x0-hat, variance beta
        ratio = alpha[i] / alpha[i + 1]
        beta = sigma[i] ** 2 - ratio**2 * sigma[i + 1] ** 2
        x0_hat = 0.2 + slope * alpha[i] * grid
        mean = (
            ratio * sigma[i + 1] ** 2 / sigma[i] ** 2 * grid
            + alpha[i + 1] * beta / sigma[i] ** 2 * x0_hat
        )
        mass = norm.pdf(grid[:, None], mean, np.sqrt(beta)) @ mass * (grid[1] - grid[0])
    last = 0.2 + slope * alpha[2] * grid
    x = float(x0[0, 0])
    exact = -np.log2(
        np.sum(
            mass * (norm.cdf(x + 1 / 255, last, sigma[2]) - norm.cdf(x - 1 / 255, last, sigma[2]))
        )
    )
    weights = np.exp(np.asarray(bound["log_weights"][0], "float64"))
    error = weights.std() / weights.mean() / np.sqrt(4096) / np.log(2)
    assert abs(bound["total"][0] - exact) < 4 * error < 0.3, (bound["total"], exact, error)
    assert bound["plain"][0] > exact + 8 * error  # so the bound was not tight
    parts = sum(bound[name] for name in ("prior", "diffusion", "reconstruction"))
    assert_allclose(bound["plain"], parts, rtol=1e-6)


def test_importance_weighting_only_tightens():
    """Never above the mean over the same chains; and that mean estimates `vlb`, whose terms are its
    expectations.
    """
    ts = grids.uniform(CHAIN, 9)
    denoise = exact_denoiser(CHAIN, ts)
    found = jax.jit(lambda x, key: bounds.importance_vlb(CHAIN, denoise, x, key, ts, draws=8))(
        pixels(1024), jax.random.key(5)
    )
    assert np.all(found["total"] <= found["plain"] + 1e-6)
    gap = np.asarray(found["plain"]) - np.asarray(bound_of(9, "small")["total"])[:1024]
    assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(1024)
    assert np.mean(found["plain"] - found["total"]) > 0.01


def test_log_mean_exp_is_the_mean_of_weights():
    weights = np.random.default_rng(0).uniform(0.1, 1.0, (3, 5))
    assert_allclose(
        bounds.log_mean_exp(jnp.log(weights) - 500.0, axis=1),
        np.log(weights.mean(1)) - 500,
        rtol=1e-6,
    )


@pytest.mark.parametrize("name", ["VP", "EDM", "RectifiedFlow"])
def test_continuous_bound_of_gaussian_data_is_its_closed_form(name):
    """E|eps - eps-hat|^2 = s^2 SNR / (1 + s^2 SNR) integrates to log(1 + s^2 SNR) over the log-SNR."""
    process, count = PROCESSES[name], 2048
    denoise = laws.denoise_gaussian(laws.gaussian(jnp.full(4, MEAN), STD**2 * jnp.eye(4)), process)
    found = jax.jit(lambda x, key: bounds.continuous_vlb(process, denoise, x, key, draws=16))(
        pixels(count), jax.random.key(2)
    )
    snr = np.exp(
        [float(gaussian.logsnr(process, jnp.float32(t))) for t in (process.t_min, process.t_max)]
    )
    exact = 0.5 * np.diff(np.log1p(STD**2 * snr[::-1]))[0] / np.log(2)
    mean, error = np.mean(found["diffusion"]), np.std(found["diffusion"]) / np.sqrt(count)
    assert abs(mean - exact) < 4 * error < 0.05 * exact, (mean, exact, error)
    assert_allclose(found["diffusion"], found["terms"].mean(1), rtol=1e-5)
    assert_allclose(
        found["total"], found["prior"] + found["diffusion"] + found["reconstruction"], rtol=1e-6
    )
    spread = np.asarray(
        found["diffusion"]
    ).std()  # here images differ by their draws alone, but for x0's part of the loss
    assert 0.7 * spread < np.sqrt(np.mean(np.asarray(found["error"]) ** 2)) < 1.5 * spread


def test_continuous_bound_with_the_exact_denoiser_is_the_likelihood_of_gaussian_data():
    denoise = laws.denoise_gaussian(laws.gaussian(jnp.full(4, MEAN), STD**2 * jnp.eye(4)), CHAIN)
    found = jax.jit(lambda x, key: bounds.continuous_vlb(CHAIN, denoise, x, key, draws=16))(
        pixels(8192), jax.random.key(1)
    )
    edges = np.asarray(pixels(8192), "float64")[..., None] + np.array([-1, 1]) / 255
    edges = np.where(np.abs(edges) > 1, np.inf * np.sign(edges), edges)
    gap = np.asarray(found["total"]) + np.log2(np.diff(norm.cdf(edges, MEAN, STD)))[..., 0].mean(1)
    assert (
        abs(gap.mean()) < 4 * gap.std() / np.sqrt(8192) < 0.06
    )  # P(x0 | x) has variance sigma^2, 1 % too much: 1e-4 bits


def test_elbo_errors():
    process, x0 = CHAIN, pixels(2)
    plain = laws.denoise_gaussian(laws.gaussian(jnp.zeros(4), jnp.eye(4)), process)
    objective = learned_variance.hybrid(process, 10)
    with pytest.raises(UserError, match="learn_variance"):
        objective.loss(plain, objective.draw(example_keys(jax.random.key(0), 2), x0), None)
    with pytest.raises(UserError, match="learn_variance"):
        bounds.vlb(
            process, plain, x0, jax.random.key(0), grids.uniform(process, 3), variance="learned"
        )
    with pytest.raises(UserError, match="did you mean 'small'"):
        bounds.vlb(
            process, plain, x0, jax.random.key(0), grids.uniform(process, 3), variance="smal"
        )
    with pytest.raises(UserError, match="at least 2 times"):
        bounds.vlb(process, plain, x0, jax.random.key(0), grids.uniform(process, 1))
    with pytest.raises(UserError, match="at least 2 draws"):
        bounds.continuous_vlb(process, plain, x0, jax.random.key(0), draws=1)
    with pytest.raises(UserError, match="did you mean 'large'"):
        bounds.importance_vlb(
            process, plain, x0, jax.random.key(0), grids.uniform(process, 3), variance="larg"
        )
    with pytest.raises(UserError, match="steps=1: it must be at least 2"):
        learned_variance.hybrid(process, steps=1)
