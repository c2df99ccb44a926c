"""The exact posterior and the conditional denoiser of mixtures, against quadrature."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from numpy.testing import assert_allclose

from diffusion_jax.processes import schedules
from diffusion_jax.targets import laws, posterior


def test_posterior_and_conditional_denoiser_against_quadrature():
    with jax.enable_x64(True):
        process, t, std = schedules.VP(), 0.3, 0.4
        matrix, y, x_t = np.array([[1.0, 0.5]]), np.array([[0.3]]), np.array([[0.1, -0.3]])
        law = laws.mixture(
            np.array([0.5, 0.3, 0.2]),
            np.array([[0.8, -0.3], [-0.5, 0.6], [0.2, 0.9]]),
            np.array([[0.3, 0.2], [0.4, 0.25], [0.2, 0.5]]),
        )
        axis = np.linspace(-3, 3, 401)
        x0 = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
        prior = sum(
            w * np.exp(-0.5 * ((x0 - m) ** 2 / v).sum(1)) / np.sqrt(v.prod())
            for w, m, v in zip(*map(np.asarray, law))
        )
        weight = prior * np.exp(-0.5 * ((y - x0 @ matrix.T) ** 2).sum(1) / std**2)
        mean = weight @ x0 / weight.sum()
        exact = posterior.posterior(law, jnp.asarray(matrix), std**2, jnp.asarray(y))
        found, variance = posterior.posterior_moments(exact)
        assert_allclose(found[0], mean, atol=1e-6)
        assert_allclose(variance[0], weight @ (x0 - mean) ** 2 / weight.sum(), atol=1e-6)
        alpha, sigma = (float(f(jnp.float64(t))) for f in (process.alpha, process.sigma))
        both = weight * np.exp(-0.5 * ((x_t - alpha * x0) ** 2).sum(1) / sigma**2)
        conditional = posterior.conditional(law, process, jnp.asarray(matrix), std, jnp.asarray(y))(
            jnp.asarray(x_t), jnp.float64(t)
        )
        assert_allclose(conditional.x0[0], both @ x0 / both.sum(), atol=1e-6)
        repeated = exact._replace(
            weights=jnp.repeat(exact.weights, 4000, 0), means=jnp.repeat(exact.means, 4000, 0)
        )
        draws = np.asarray(posterior.draw_posterior(repeated, jax.random.key(0)))
        assert_allclose(draws.mean(0), mean, atol=5 * np.sqrt(np.max(variance) / 4000))
        assert_allclose(draws.var(0), variance[0], rtol=0.15)
