"""The likelihood of normalized data is that of a density in the units of the data."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core import arrays
from diffusion_jax.core.types import Prediction
from diffusion_jax.data.columns import Column
from diffusion_jax.data.normalization import Normalization
from diffusion_jax.processes import schedules
from diffusion_jax.studies.likelihood import measures


@pytest.mark.parametrize("shape", [(2, 2), (2, 1, 2, 2)], ids=str)
def test_bits_of_normal_data_are_the_closed_form_in_its_own_units(shape):
    """-log2 N(v; shift, scale^2) per dimension, by the exact denoiser of N(0, 1)."""
    known = Normalization((3.0, -1.0), (0.5, 8.0), (0.0, 0.0), (1.0, 1.0), "float32")
    process = schedules.VP()

    def denoise(x_t, t, cond=None):
        alpha, sigma = (arrays.expand(f(t), x_t) for f in (process.alpha, process.sigma))
        return Prediction(alpha * x_t, sigma * x_t)  # alpha^2 + sigma^2 = 1

    x = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)
    model = types.SimpleNamespace(process=process, normalization=known)
    settings = dict(trace="exact", solver="rk4", rtol=1e-3, steps=20, levels=256, iw=1)
    measure = measures._flow(model, settings, "none")
    keys = jax.random.split(jax.random.key(0), 3)
    found = jax.jit(lambda x, keys: measure(denoise, x, keys, None)["total"])(jnp.asarray(x), keys)
    scale = np.array(known.scale)
    density = -0.5 * x**2 - np.log(np.sqrt(2 * np.pi) * scale)
    np.testing.assert_allclose(found, -density.reshape(3, -1).mean(1) / np.log(2), atol=2e-3)


def test_bits_of_a_gaussian_table_are_the_closed_form_in_the_units_of_its_columns():
    """-log2 N(v; m, C) / D for columns of numbers, by the exact denoiser of x ~ N(0, R), d = 0."""
    rng = np.random.default_rng(0)
    factor = np.tril(rng.normal(size=(3, 3))) + 2 * np.eye(3)
    scale, shift = np.array([0.1, 5.0, 300.0]), np.array([2.0, -7.0, 1000.0])
    columns = tuple(Column(name, "number") for name in "abc")
    known = Normalization(tuple(shift), tuple(scale), (0.0,) * 3, (1.0,) * 3, "float32", columns)
    covariance, process = factor @ factor.T, schedules.VP()

    def denoise(x_t, t, cond=None):
        alpha, sigma = process.alpha(t), process.sigma(t)
        marginal = alpha**2 * covariance + sigma**2 * jnp.eye(3)
        eps = sigma * jnp.linalg.solve(marginal, x_t.T).T
        return Prediction((x_t - sigma * eps) / alpha, eps)

    x = (rng.standard_normal((3, 3)) @ factor.T).astype(np.float32)
    model = types.SimpleNamespace(process=process, normalization=known)
    settings = dict(trace="exact", solver="rk4", rtol=1e-3, steps=20, levels=256, iw=1)
    measure = measures._flow(model, settings, "none")
    keys = jax.random.split(jax.random.key(0), 3)
    found = jax.jit(lambda x, keys: measure(denoise, x, keys, None)["total"])(jnp.asarray(x), keys)
    off = known.decode(x) - shift
    of_units = scale[:, None] * covariance * scale
    square = np.einsum("ni,ij,nj->n", off, np.linalg.inv(of_units), off)
    nats = 0.5 * (square + np.linalg.slogdet(2 * np.pi * of_units)[1])
    np.testing.assert_allclose(found, nats / 3 / np.log(2), atol=3e-3)
