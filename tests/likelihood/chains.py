"""A chain whose exact reverse process is known: Gaussian pixels of 256 values."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.arrays import example_keys
from diffusion_jax.likelihood import bounds
from diffusion_jax.processes import schedules
from diffusion_jax.samplers import grids
from diffusion_jax.targets import laws
from tests.families import PROCESSES

every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)


DATA = laws.mixture([0.6, 0.4], [[0.8, -0.3], [-0.5, 0.6]], [[0.3, 0.2], [0.15, 0.4]])


# examples in every test of this file up to the bound: JAX compiles each operation once per shape
COUNT = 1024


@functools.cache
def batch():
    return example_keys(jax.random.key(0), COUNT), laws.draw_mixture(DATA, jax.random.key(1), COUNT)


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
