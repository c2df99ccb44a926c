"""Gaussian data given a vector: the denoisers with, without and beyond the condition are known.

v ~ N(0, 1),   x0 = A v + S n      E[x0 | x_t, v] = (S^2 x_t + sigma^2 A v) / (S^2 + sigma^2)
                                   E[x0 | x_t]    = V x_t / (V + sigma^2),  V = A^2 + S^2
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from configs import arrays
from configs.base import network
from diffusion_jax.assembly import denoiser
from diffusion_jax.assembly.experiment import assemble
from diffusion_jax.data import normalization
from diffusion_jax.data.normalization import ConditionUnits
from diffusion_jax.processes import gaussian
from diffusion_jax.training import step

A, S, SIGMA, COUNT = 0.8, 0.6, 1.0, 20_000
UNITS = normalization.measure([np.array([[-1.0], [1.0]])], "standard", "float32", "")


class Linear(nn.Module):
    """A network that is linear in x, and in the vector where it is known."""

    @nn.compact
    def __call__(self, x, c_noise, cond=None, train=False):
        weights = self.param("weights", nn.initializers.zeros_init(), (5,), jnp.float32)
        value, known = cond["vector"][:, :1], cond["vector"][:, 1:]
        return jnp.stack([x, known * x, value, known, jnp.ones_like(x)], -1) @ weights


def test_training_with_dropped_vectors_has_the_exact_denoisers_as_its_minimum():
    """The loss is quadratic, so that one Newton step finds its minimum; guidance extrapolates."""
    config = arrays.get_config("edm")
    config.model = network("mlp.MLP", width=8)
    config.data.condition, config.label_dropout = "condition", 0.5
    config.objective = "denoising.denoising(time=times.lognormal(mean=0.0, std=0.001))"
    config.parameterization = "x0()"
    model = assemble(config, (1,), units=ConditionUnits(UNITS))._replace(model=Linear())
    rng = np.random.default_rng(0)
    v = rng.standard_normal((COUNT, 1)).astype("f")
    x0 = (A * v + S * rng.standard_normal((COUNT, 1))).astype("f")
    keys, now = jax.random.split(jax.random.key(0), COUNT), step.Now(jnp.int32(0), {})
    loss = model.kind.loss(model)

    def total(weights):
        batch = {"image": jnp.asarray(x0), "condition": jnp.asarray(v)}
        return loss({"weights": weights}, batch, keys, now)[0].mean()

    zero = jnp.zeros(5)
    slope, curvature = jax.jit(lambda w: (jax.grad(total)(w), jax.hessian(total)(w)))(zero)
    params = {"weights": -jnp.linalg.solve(curvature, slope)}
    x_t, value = jnp.linspace(-3, 3, 7)[:, None], jnp.linspace(2, -1, 7)[:, None]
    cond = {"vector": jnp.concatenate([value, jnp.ones((7, 1))], 1)}
    own = (S**2 * x_t + SIGMA**2 * A * value) / (S**2 + SIGMA**2)
    none = (A**2 + S**2) * x_t / (A**2 + S**2 + SIGMA**2)
    t = gaussian.time_of_logsnr(model.process, jnp.float32(-2 * np.log(SIGMA)))
    for scale, wanted in ((None, own), (0.0, none), (3.0, none + 3 * (own - none))):
        denoise = denoiser.denoiser(model, params, scale=scale, clip="none")
        tolerance = 0.05 * (1 if scale is None else 1 + scale)  # of COUNT draws
        np.testing.assert_allclose(denoise(x_t, t, cond).x0, wanted, atol=tolerance)
    assert np.abs(own - none).max() > 0.8
