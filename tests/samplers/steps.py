"""One step, and one small run, that several test files share."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core import arrays
from diffusion_jax.processes import schedules
from diffusion_jax.samplers import base, grids, step_noise
from diffusion_jax.targets import laws

MIXTURE = laws.mixture([0.6, 0.4], [[0.8, -0.3], [-0.5, 0.6]], [[0.3, 0.2], [0.15, 0.4]])


def one_step(sampler, process, denoise=None, t=0.6, s=0.45):
    """x_s from a fixed x_t and fixed keys, float64 (8, 2)."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 2)))
    keys = arrays.example_keys(jax.random.key(0), 8)
    t, s = (jnp.asarray(process.t_min + u * (process.t_max - process.t_min)) for u in (t, s))
    denoise = denoise or laws.denoise_mixture(MIXTURE, process)
    return sampler.step(
        step_noise.independent(process, keys, x)(0),
        x,
        sampler.init(x, jnp.stack([t, s])),
        t,
        s,
        denoise,
        process,
        None,
    )[0]


@functools.cache
def setting(count=6, n=5):
    process = schedules.VP()
    ts = grids.uniform(process, n)
    keys = arrays.example_keys(jax.random.key(1), count)
    return (
        process,
        laws.denoise_mixture(MIXTURE, process),
        keys,
        base.start(process, keys, (count, 2)),
        ts,
    )
