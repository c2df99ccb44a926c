"""Time laws: which noise levels training sees. law(process, keys (B,)) -> t (B,), each example from
its own key.

To add one, write a function that returns such a law.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_jax import arrays
from diffusion_jax.errors import UserError, need_ranges
from diffusion_jax.processes.gaussian import time_of_logsnr
from diffusion_jax.types import Array, Key, Process

TimeLaw = Callable[[Process, Key], Array]


def _between(process: Process, u: Array) -> Array:
    """u in [0, 1] to [t_min, t_max]."""
    return process.t_min + u * (process.t_max - process.t_min)


def uniform() -> TimeLaw:
    """t ~ U[t_min, t_max] (Song et al. 2021)."""
    return lambda process, keys: _between(process, arrays.uniform(keys))


def grid(steps: int = 1000) -> TimeLaw:
    """One of `steps` equally spaced times, ends included: DDPM's i / N on its chain, NCSN's
    geometric levels on VE. UserError below 2.
    """
    need_ranges("times.grid", steps=(steps, 1, 10**6))
    if steps < 2:
        raise UserError(f"a grid of times needs at least 2 steps; got {steps}")

    def law(process, keys):
        index = jnp.floor(arrays.uniform(keys) * steps)
        return _between(process, index / (steps - 1))

    return law


def stratified() -> TimeLaw:
    """t_i = (u + i / B) mod 1, one u for the batch (Kingma et al. 2021, app. I.1): the same law, a
    loss with less variance.

    The strata are those of the batch as the step sees it: under pmap, of each device's part.
    """

    def law(process, keys):
        batch = keys.shape[0]
        offset = jax.random.uniform(keys[0])
        return _between(process, (offset + jnp.arange(batch) / batch) % 1.0)

    return law


def lognormal(mean: float = -1.2, std: float = 1.2) -> TimeLaw:
    """log(sigma / alpha) ~ N(mean, std^2) (Karras et al. 2022, table 1), cut at the process's ends."""
    need_ranges("times.lognormal", mean=(mean, -20, 20), std=(std, 1e-6, 20))

    def law(process, keys):
        log_ratio = mean + std * jax.vmap(jax.random.normal)(keys)
        return time_of_logsnr(process, -2 * log_ratio)

    return law


def logit_normal(mean: float = 0.0, std: float = 1.0) -> TimeLaw:
    """logit(t) ~ N(mean, std^2) (Esser et al. 2024, eq. 19), on [t_min, t_max]."""
    need_ranges("times.logit_normal", mean=(mean, -20, 20), std=(std, 1e-6, 20))
    return lambda process, keys: _between(
        process, jax.nn.sigmoid(mean + std * jax.vmap(jax.random.normal)(keys))
    )
