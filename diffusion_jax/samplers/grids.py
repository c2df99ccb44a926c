"""Where the sampler stops on the way: grid(process, n) -> n strictly decreasing times, from t_max to t_min, (n,) float32.

To add one, write a function of (process, n, **options).
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.processes.gaussian import logsnr, time_of_logsnr
from diffusion_jax.types import Array, Process


def _checked(ts: Array, name: str) -> Array:
    if not np.all(np.diff(np.asarray(ts)) < 0):
        raise UserError(f"grid '{name}' with n={len(ts)} is not strictly decreasing: ask for fewer points")
    return ts


def _ramp(n: int) -> Array:
    """0 .. 1 in n points; [0] for n = 1."""
    return jnp.linspace(0.0, 1.0, n)


def _with_ends(process: Process, ts: Array, name: str) -> Array:
    """These times with both ends exactly the process's own: float32 would leave t_min off by t_max's rounding."""
    ts = ts.at[0].set(process.t_max)
    return _checked(ts.at[-1].set(process.t_min) if len(ts) > 1 else ts, name)


def _ends(process: Process) -> tuple[float, float]:
    """log(sigma / alpha) at t_max and at t_min."""
    high, low = (-0.5 * logsnr(process, jnp.asarray(t)) for t in (process.t_max, process.t_min))
    return high, low


def uniform(process: Process, n: int) -> Array:
    """Equal steps of t."""
    return _with_ends(process, process.t_max + _ramp(n) * (process.t_min - process.t_max), "uniform")


def uniform_logsnr(process: Process, n: int) -> Array:
    """Equal steps of the log-SNR (Lu et al. 2022, sec. 4)."""
    high, low = _ends(process)
    return _with_ends(process, time_of_logsnr(process, -2 * (high + _ramp(n) * (low - high))), "uniform_logsnr")


def karras(process: Process, n: int, rho: float = 7.0) -> Array:
    """(sigma / alpha)^(1 / rho) in equal steps (Karras et al. 2022, eq. 5)."""
    high, low = (jnp.exp(end / rho) for end in _ends(process))
    return _with_ends(process, time_of_logsnr(process, -2 * rho * jnp.log(high + _ramp(n) * (low - high))), "karras")


def quadratic(process: Process, n: int) -> Array:
    """sqrt(t) in equal steps (Song et al. 2021, DDIM, app. D.2): dense near the data."""
    high, low = math.sqrt(process.t_max), math.sqrt(process.t_min)
    return _with_ends(process, (high + _ramp(n) * (low - high)) ** 2, "quadratic")


# ---- strided: sub-sequences of a chain of `steps` times t = (j + 1) / steps, as diffusers names them ------------------------


def _strided(j: np.ndarray, n: int, steps: int, name: str) -> Array:
    if not 1 <= n <= steps:
        raise UserError(f"grid '{name}' takes between 1 and steps={steps} points; got n={n}")
    if not 0 <= j.min() <= j.max() < steps:
        raise UserError(f"grid '{name}' leaves the chain of steps={steps}: lower the offset or n={n}")
    return _checked(jnp.asarray((j + 1) / steps, jnp.float32), name)


def leading(process: Process, n: int, steps: int = 1000, offset: int = 0) -> Array:
    """j = 0, k, 2k, ... with k = steps // n (DDIM's and diffusers' 'leading'): ends at the chain's first time, starts below its last."""
    return _strided(np.arange(n)[::-1] * (steps // max(n, 1)) + offset, n, steps, "leading")


def linspace(process: Process, n: int, steps: int = 1000) -> Array:
    """n rounded times from the chain's last to its first (improved DDPM's respacing; diffusers' 'linspace')."""
    return _strided(np.linspace(0, steps - 1, n).round()[::-1], n, steps, "linspace")


def trailing(process: Process, n: int, steps: int = 1000) -> Array:
    """From the chain's last time down in steps of steps / n, rounded (Lin et al. 2024, table 2; diffusers' 'trailing')."""
    return _strided(np.round(np.arange(n, 0, -1) * steps / max(n, 1)) - 1, n, steps, "trailing")
