"""Time laws: the distribution of the noise levels that training sees.

A law is a function (process, keys (B,)) -> t (B,) in which each example has its own key. A new one
is a function that returns such a law.
"""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp

from diffusion_jax.core import arrays
from diffusion_jax.core.errors import UserError, need_ranges
from diffusion_jax.core.types import Array, Key, Process
from diffusion_jax.processes.gaussian import time_of_logsnr


class TimeLaw(Protocol):
    """The law of training times: draws t (B,) in [t_min, t_max] from keys (B,)."""

    def __call__(self, process: Process, keys: Key) -> Array:
        """Draws the times of training examples.

        Args:
          process: the process whose t_min and t_max bound the times.
          keys: one key per example, (B,).

        Returns:
          The times, (B,), the i-th from the i-th key alone except where a law says otherwise.
        """


def _between(process: Process, u: Array) -> Array:
    """Maps u in [0, 1] to [t_min, t_max]."""
    return process.t_min + u * (process.t_max - process.t_min)


def uniform() -> TimeLaw:
    """Uniform times, t ~ U[t_min, t_max] (Song et al. 2021)."""
    return lambda process, keys: _between(process, arrays.uniform(keys))


def grid(steps: int = 1000) -> TimeLaw:
    """Equally spaced times, each as likely, with both ends included.

    These are DDPM's i / N on its chain, and NCSN's geometric levels on VE.

    Args:
      steps: number of times, at least 2.

    Returns:
      The law.

    Raises:
      UserError: if `steps` is below 2.
    """
    need_ranges("times.grid", steps=(steps, 1, 10**6))
    if steps < 2:
        raise UserError(f"a grid of times needs at least 2 steps; got {steps}")

    def law(process: Process, keys: Key) -> Array:
        index = jnp.floor(arrays.uniform(keys) * steps)
        return _between(process, index / (steps - 1))

    return law


def stratified() -> TimeLaw:
    """Stratified uniform times: t_i = (u + i / B) mod 1 (Kingma et al. 2021, appendix I.1).

    One u is drawn for the batch. Each t_i is uniform, and the loss has less variance. The strata
    are those of the batch as the train step sees it; under pmap, those of each device's part.
    """

    def law(process: Process, keys: Key) -> Array:
        batch = keys.shape[0]
        offset = jax.random.uniform(keys[0])
        return _between(process, (offset + jnp.arange(batch) / batch) % 1.0)

    return law


def lognormal(mean: float = -1.2, std: float = 1.2) -> TimeLaw:
    """Log-normal noise levels: log(sigma / alpha) ~ N(mean, std^2) (Karras et al. 2022, table 1).

    Levels beyond the ends of the process are clipped to them.

    Args:
      mean: mean of log(sigma / alpha).
      std: standard deviation of log(sigma / alpha).

    Returns:
      The law.

    Raises:
      UserError: for an argument out of its range.
    """
    need_ranges("times.lognormal", mean=(mean, -20, 20), std=(std, 1e-6, 20))

    def law(process: Process, keys: Key) -> Array:
        log_ratio = mean + std * jax.vmap(jax.random.normal)(keys)
        return time_of_logsnr(process, -2 * log_ratio)

    return law


def logit_normal(mean: float = 0.0, std: float = 1.0) -> TimeLaw:
    """Logit-normal times: logit(t) ~ N(mean, std^2) (Esser et al. 2024, eq. 19).

    The unit interval is mapped to [t_min, t_max].

    Args:
      mean: mean of logit(t).
      std: standard deviation of logit(t).

    Returns:
      The law.

    Raises:
      UserError: for an argument out of its range.
    """
    need_ranges("times.logit_normal", mean=(mean, -20, 20), std=(std, 1e-6, 20))
    return lambda process, keys: _between(
        process, jax.nn.sigmoid(mean + std * jax.vmap(jax.random.normal)(keys))
    )


# The members of the family, which a config may name.
TIME_LAWS = (uniform, grid, stratified, lognormal, logit_normal)
