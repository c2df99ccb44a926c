"""Variational bounds, discrete, importance-weighted and continuous, against closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.stats import norm

from diffusion_jax.core.arrays import example_keys
from diffusion_jax.core.errors import UserError
from diffusion_jax.likelihood import bounds
from diffusion_jax.objectives import learned_variance
from diffusion_jax.processes import discrete, gaussian, schedules
from diffusion_jax.samplers import grids
from diffusion_jax.targets import laws
from tests.families import PROCESSES
from tests.likelihood.chains import CHAIN, MEAN, STD, bound_of, exact_denoiser, pixels


def gap_to_likelihood(n, variance):
    """Bits per dimension of the bound minus the data's exact -log2 p, discretized: mean and
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
    """From 8 moves to 64 the gap shrinks by more than two thirds, and it is never negative."""
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
    """E|eps - eps-hat|^2 = s^2 SNR / (1 + s^2 SNR) has the integral log(1 + s^2 SNR) over lam."""
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
