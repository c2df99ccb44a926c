"""The exact targets against each other, against autodiff and against a tight numerical solve: every other test leans on
them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from families import PROCESSES, interior, smooth
from numpy.testing import assert_allclose

from diffusion_jax import integrators, targets
from diffusion_jax.processes import gaussian

every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
MEAN = np.array([0.5, -1.0, 0.2])
ROOT = np.array([[0.9, 0.0, 0.0], [0.4, 0.5, 0.0], [-0.3, 0.2, 0.1]])
COVARIANCE = ROOT @ ROOT.T


def normal(dtype=None):
    return targets.gaussian(jnp.asarray(MEAN, dtype), jnp.asarray(COVARIANCE, dtype))


def mixture():
    means = jnp.array([[0.8, -0.3, 0.1], [-0.5, 0.6, 0.0]])
    return targets.mixture([0.6, 0.4], means, [[0.3, 0.2, 0.5], [0.15, 0.4, 0.1]])


def some(process, count=8):
    return jnp.asarray(np.random.default_rng(0).standard_normal((count, 3))), jnp.asarray(interior(process, count))


@every_process
def test_score_is_the_gradient_of_the_log_density(process):
    with jax.enable_x64(True):
        x, t = some(process)
        cases = ((normal(), targets.denoise_gaussian, targets.log_density_gaussian),
                 (mixture(), targets.denoise_mixture, targets.log_density_mixture))
        for target, denoise, log_density in cases:
            slope = jax.grad(lambda y: log_density(target, process, y, t).sum())(x)
            assert_allclose(gaussian.score(process, denoise(target, process)(x, t), t), slope, rtol=1e-8, atol=1e-8)


@every_process
def test_one_component_is_a_gaussian(process):
    with jax.enable_x64(True):
        x, t = some(process)
        stds = jnp.array([0.9, 0.4, 0.1])
        one = targets.mixture([2.0], [MEAN], stds)
        same = targets.gaussian(jnp.asarray(MEAN), jnp.diag(stds**2))
        for a, b in zip(
            targets.denoise_mixture(one, process)(x, t)[:2], targets.denoise_gaussian(same, process)(x, t)[:2]
        ):
            assert_allclose(a, b, rtol=1e-10, atol=1e-10)
        densities = targets.log_density_mixture(one, process, x, t), targets.log_density_gaussian(same, process, x, t)
        assert_allclose(*densities, rtol=1e-10)


def test_density_by_hand():
    """At alpha = 1 and sigma = 3 (EDM, t = 3/80): N(mean, C + 9 I) by numpy's determinant and inverse."""
    with jax.enable_x64(True):
        process, x = PROCESSES["EDM"], np.random.default_rng(1).standard_normal((4, 3))
        total = COVARIANCE + 9 * np.eye(3)
        offset = x - MEAN
        expected = -0.5 * (
            np.einsum("bi,ij,bj->b", offset, np.linalg.inv(total), offset) + np.log(np.linalg.det(2 * np.pi * total))
        )
        assert_allclose(targets.log_density_gaussian(normal(), process, jnp.asarray(x), 3 / 80), expected, rtol=1e-10)


@every_process
def test_gaussian_denoiser_solves_the_regression(process):
    """E[x0 | x_t] is the linear map Cov(x0, x_t) Cov(x_t)^-1, from the joint moments by numpy."""
    with jax.enable_x64(True):
        x, t = some(process)
        found = targets.denoise_gaussian(normal(), process)(x, t)
        for i in range(len(t)):
            alpha, sigma = float(process.alpha(t[i])), float(process.sigma(t[i]))
            gain = alpha * COVARIANCE @ np.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * np.eye(3))
            assert_allclose(found.x0[i], MEAN + gain @ (np.asarray(x[i]) - alpha * MEAN), rtol=1e-9, atol=1e-10)
            assert_allclose(alpha * found.x0[i] + sigma * found.eps[i], x[i], rtol=1e-10, atol=1e-12)


@every_process
def test_flow_pushes_the_law_along(process):
    """The law at t goes to the law at s (moments by probing the affine map), and there and back again is the identity.
    """
    with jax.enable_x64(True):
        target, (s, t) = normal(), interior(process, 8)[jnp.array([2, 6])]
        alphas, sigmas = zip(
            *((float(process.alpha(jnp.asarray(u))), float(process.sigma(jnp.asarray(u)))) for u in (s, t))
        )
        probes = jnp.concatenate([jnp.zeros((1, 3)), jnp.eye(3)])
        moved = np.asarray(targets.flow(target, process, probes, t, s))
        matrix = (moved[1:] - moved[0]).T
        laws = [(a * MEAN, a**2 * COVARIANCE + b**2 * np.eye(3)) for a, b in zip(alphas, sigmas)]
        assert_allclose(matrix @ laws[1][0] + moved[0], laws[0][0], rtol=1e-9)
        assert_allclose(matrix @ laws[1][1] @ matrix.T, laws[0][1], rtol=1e-8, atol=1e-9)
        assert_allclose(targets.flow(target, process, jnp.asarray(moved), s, t), probes, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in ("VP", "VE", "RectifiedFlow", "Shifted") if smooth(PROCESSES[n])])
def test_flow_solves_the_probability_flow_ode(name):
    process = PROCESSES[name]
    with jax.enable_x64(True):
        target, x = normal(), some(process)[0]
        denoise, ts = targets.denoise_gaussian(target, process), jnp.linspace(0.8, 0.2, 401)

        def step(y, ends):
            return integrators.rk4(lambda u, z: gaussian.velocity(process, denoise(z, u), u), y, *ends), None

        solved = jax.lax.scan(step, x, (ts[:-1], ts[1:]))[0]
        assert_allclose(targets.flow(target, process, x, 0.8, 0.2), solved, rtol=1e-7, atol=1e-8)


def test_draws_have_the_laws_moments():
    x = np.asarray(targets.draw_gaussian(normal("float32"), jax.random.key(0), 8192))
    assert np.all(np.abs(x.mean(0) - MEAN) < 4 * np.sqrt(np.diag(COVARIANCE) / 8192))
    scale = np.sqrt(np.outer(np.diag(COVARIANCE), np.diag(COVARIANCE)))
    assert np.all(np.abs(np.cov(x.T) - COVARIANCE) < 4 * np.sqrt(2 / 8192) * scale)
    law = mixture()
    y = np.asarray(targets.draw_mixture(law, jax.random.key(1), 8192))
    weights, means, variances = (np.asarray(v) for v in law)
    mean = weights @ means
    spread = weights @ (variances + means**2) - mean**2
    assert np.all(np.abs(y.mean(0) - mean) < 4 * np.sqrt(spread / 8192))
    assert_allclose(y.var(0), spread, rtol=0.06)


def test_any_shape_is_taken_and_given_back():
    target = targets.gaussian(jnp.zeros(12), jnp.eye(12))
    x = jnp.ones((2, 2, 2, 3))
    process = PROCESSES["VP"]
    assert targets.denoise_gaussian(target, process)(x, 0.5).x0.shape == x.shape
    assert targets.flow(target, process, x, 0.5, 0.2).shape == x.shape
    assert (
        targets.denoise_mixture(targets.mixture([1.0], jnp.zeros((1, 12)), 1.0), process)(x, 0.5).eps.shape == x.shape
    )


def test_ring_of_gaussians():
    ring = targets.ring_of_gaussians(8, 2.0, 0.1)
    assert_allclose(np.hypot(*np.asarray(ring.means).T), 2.0, rtol=1e-6)
    assert_allclose(ring.weights, 1 / 8)
    assert_allclose(ring.variances, 0.01, rtol=1e-6)
