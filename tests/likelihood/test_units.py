"""The likelihood of normalized data is that of a density in the units of the data."""

from __future__ import annotations

import types

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.types import Prediction
from diffusion_jax.data.normalization import Normalization
from diffusion_jax.processes import schedules
from diffusion_jax.studies import likelihood_measures


def test_bits_of_normal_data_are_the_closed_form_in_its_own_units():
    """-log2 N(v; shift, scale^2) per dimension, by the exact denoiser of N(0, 1), d = 1."""
    known = Normalization((3.0, -1.0), (0.5, 8.0), (0.0, 0.0), (1.0, 1.0), "float32")
    process = schedules.VP()

    def denoise(x_t, t, cond=None):
        alpha, sigma = (f(t).reshape(-1, 1, 1) for f in (process.alpha, process.sigma))
        return Prediction(alpha * x_t, sigma * x_t)  # alpha^2 + sigma^2 = 1

    x = np.random.default_rng(0).standard_normal((3, 2, 2)).astype(np.float32)
    model = types.SimpleNamespace(process=process, normalization=known)
    settings = dict(trace="exact", solver="rk4", rtol=1e-3, steps=20, levels=256, iw=1)
    measure = likelihood_measures._flow(model, settings, "none")
    keys = jax.random.split(jax.random.key(0), 3)
    found = jax.jit(lambda x, keys: measure(denoise, x, keys, None)["total"])(jnp.asarray(x), keys)
    scale = np.array(known.scale)
    density = -0.5 * x**2 - np.log(np.sqrt(2 * np.pi) * scale)
    np.testing.assert_allclose(found, -density.mean((1, 2)) / np.log(2), atol=2e-3)
