"""Grids: grid(process, n) -> the n strictly decreasing times that a sampler visits, (n,) float32.

A grid begins at the process's t_max and ends at its t_min, unless it leaves the last interval to
x0-hat. To add one, write a function of (process, n, **options). placement.optimize makes a grid for
one model and sampler; experiments.optimize_grid keeps it in a file, which `stored` reads. Every
grid raises UserError for an option out of its range, and for times that float32 cannot tell apart.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.errors import UserError, need_ranges, unknown
from diffusion_jax.core.types import Array, Process
from diffusion_jax.processes import learned as schedule
from diffusion_jax.processes.gaussian import angle, logsnr, time_of_logsnr
from diffusion_jax.samplers import grid_files


def _checked(ts: Array, name: str) -> Array:
    """Returns ts; raises UserError unless it decreases strictly."""
    if not np.all(np.diff(np.asarray(ts)) < 0):
        raise UserError(
            f"grid '{name}' with n={len(ts)} is not strictly decreasing: ask for fewer points"
        )
    return ts


_ramp = functools.partial(jnp.linspace, 0.0, 1.0)  # n even points from 0 to 1; [0] for n = 1


def _with_ends(process: Process, ts: Array, name: str) -> Array:
    """Returns the times with both ends exactly the process's own.

    In float32 the rounding of t_max would otherwise displace t_min.
    """
    ts = ts.at[0].set(process.t_max)
    return _checked(ts.at[-1].set(process.t_min) if len(ts) > 1 else ts, name)


def _ends(process: Process) -> tuple[float, float]:
    """Returns log(sigma / alpha) at t_max and at t_min."""
    high, low = (-0.5 * logsnr(process, jnp.asarray(t)) for t in (process.t_max, process.t_min))
    return high, low


def uniform(process: Process, n: int) -> Array:
    """Equal steps of t.

    Args:
      process: its t_max and t_min are the ends of the grid.
      n: number of times, at least 1; one time is t_max.
    """
    return _with_ends(
        process, process.t_max + _ramp(n) * (process.t_min - process.t_max), "uniform"
    )


def uniform_logsnr(process: Process, n: int) -> Array:
    """Equal steps of the log-SNR (Lu et al. 2022, sec. 4).

    Args:
      process: its t_max and t_min are the ends of the grid.
      n: number of times, at least 1; one time is t_max.
    """
    high, low = _ends(process)
    return _with_ends(
        process, time_of_logsnr(process, -2 * (high + _ramp(n) * (low - high))), "uniform_logsnr"
    )


def karras(process: Process, n: int, rho: float = 7.0) -> Array:
    """Equal steps of (sigma / alpha)^(1 / rho) (Karras et al. 2022, eq. 5).

    Args:
      process: its t_max and t_min are the ends of the grid.
      n: number of times, at least 1; one time is t_max.
      rho: the exponent, in [0.01, 1000]; a larger one puts more times near the data.
    """
    need_ranges("karras", rho=(rho, 1e-2, 1e3))
    high, low = (jnp.exp(end / rho) for end in _ends(process))
    return _with_ends(
        process,
        time_of_logsnr(process, -2 * rho * jnp.log(high + _ramp(n) * (low - high))),
        "karras",
    )


def quadratic(process: Process, n: int) -> Array:
    """Equal steps of sqrt(t), dense near the data (Song, Meng & Ermon 2021, appendix D.2).

    Args:
      process: its t_max and t_min are the ends of the grid.
      n: number of times, at least 1; one time is t_max.
    """
    high, low = math.sqrt(process.t_max), math.sqrt(process.t_min)
    return _with_ends(process, (high + _ramp(n) * (low - high)) ** 2, "quadratic")


def cosine(process: Process, n: int) -> Array:
    """Equal steps of arctan(sigma / alpha), the angle of the cosine path (Nichol & Dhariwal 2021).

    On the cosine path it is `uniform`, and on data of standard deviation 1 the angle is TrigFlow's.

    Args:
      process: its t_max and t_min are the ends of the grid.
      n: number of times, at least 1; one time is t_max.
    """
    high, low = (jnp.arctan(jnp.exp(end)) for end in _ends(process))
    return _with_ends(
        process,
        time_of_logsnr(process, -2 * jnp.log(jnp.tan(high + _ramp(n) * (low - high)))),
        "cosine",
    )


def flow_shift(process: Process, n: int, shift: float = 3.0) -> Array:
    """Equal steps of u with sigma / alpha = shift u / (1 - u), the shifted time of a flow.

    (Esser et al. 2024, eq. 23.) With shift=1 it is uniform in the time of rectified flow.

    Args:
      process: its t_max and t_min are the ends of the grid.
      n: number of times, at least 1; one time is t_max.
      shift: factor of the noise levels; above 1 there are more times near the noise.
    """
    need_ranges("flow_shift", shift=(shift, 1e-6, 1e6))
    high, low = (1 / (1 + shift * jnp.exp(-end)) for end in _ends(process))
    u = high + _ramp(n) * (low - high)
    return _with_ends(
        process,
        time_of_logsnr(process, -2 * (math.log(shift) + jnp.log(u) - jnp.log1p(-u))),
        "flow_shift",
    )


def logistic(process: Process, n: int, mean: float = -1.0, scale: float = 2.0) -> Array:
    """The first n of n + 1 even quantiles of a logistic distribution of log(sigma / alpha).

    It is the grid of most samplers under 'auto'. u = 1 / (1 + exp(-(log(sigma / alpha) - mean) /
    scale)) has equal steps, which are short in log(sigma / alpha) around `mean`, where data take
    shape, and long at both ends, where x0-hat hardly changes. The last interval is left to x0-hat.
    With mean -1.2 and scale about 0.7 it is EDM's distribution of training noise (Karras et al.
    2022, table 1); scale 1 with both ends kept is `flow_shift`, with exp(mean) as its shift.

    Args:
      process: its t_max and t_min are the ends of the range.
      n: number of times.
      mean: mean of the logistic distribution.
      scale: scale of the logistic distribution, above 0.

    Raises:
      UserError: for a scale that is not positive.
    """
    if scale <= 0:
        raise UserError(f"grid 'logistic' needs a scale above 0; got {scale}")
    high, low = (jax.nn.sigmoid((end - mean) / scale) for end in _ends(process))
    u = (high + _ramp(n + 1) * (low - high))[:-1]
    ts = time_of_logsnr(process, -2 * (mean + scale * (jnp.log(u) - jnp.log1p(-u))))
    return _checked(ts.at[0].set(process.t_max), "logistic")


def runge_kutta(
    process: Process,
    n: int,
    mean: float = 0.2,
    scale: float = 1.6,
    growth: float = 0.01,
    in_time: bool = False,
) -> Array:
    """The first n of n + 1 times between which F rises equally, for Runge-Kutta methods.

    Their steps evaluate the slope at both ends, as Heun's do. F = 1 / (1 + exp(-(log(sigma / alpha)
    - mean) / scale)) + growth |log c|, where |log c| is the total change of log c from t_min on.
    The first term is that of `logistic`; the second shortens the steps where the size c of the
    integrated variable changes. For data of standard deviation sigma_data = 0.5, c^2 = sigma_data^2
    + (sigma / alpha)^2 for x / alpha, and alpha^2 sigma_data^2 + sigma^2 for x_t itself, which
    changes little on variance-preserving paths.

    Args:
      process: its t_max and t_min are the ends of the range.
      n: number of times.
      mean: mean of the logistic distribution of log(sigma / alpha).
      scale: scale of the logistic distribution of log(sigma / alpha).
      growth: weight of the change of log c.
      in_time: whether the variable is x_t (ode.heun, ode.rk4) and not x / alpha (ode.edm_heun,
        ode.edm_rk4).

    Raises:
      UserError: for values out of range.
    """
    need_ranges(
        "runge_kutta", mean=(mean, -20, 20), scale=(scale, 1e-2, 1e3), growth=(growth, 1e-6, 1e3)
    )
    high, low = map(float, _ends(process))
    level = np.linspace(low, high, 1000)
    c = 0.5 * np.log(0.25 + np.exp(2 * level))
    if in_time:
        c = c + np.log(
            np.asarray(process.alpha(time_of_logsnr(process, jnp.asarray(-2 * level))), np.float64)
        )
    change = np.append(0, np.cumsum(np.abs(np.diff(c))))
    rise = 1 / (1 + np.exp(-(level - mean) / scale)) + growth * change
    chosen = np.interp(np.linspace(rise[-1], rise[0], n + 1)[:-1], rise, level)
    return _checked(
        time_of_logsnr(process, jnp.asarray(-2 * chosen)).at[0].set(process.t_max), "runge_kutta"
    )


# Noise levels sigma / alpha (Sabour et al. 2024, table 3).
STEPS = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "deepfloyd": (160.41, 8.081, 3.315, 1.885, 1.207, 0.785, 0.553, 0.293, 0.186, 0.030, 0.006),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


def align_your_steps(process: Process, n: int, table: str = "sd15") -> Array:
    """Align Your Steps (Sabour et al. 2024): eleven noise levels, log-linear between them.

    The levels are stretched in log(sigma / alpha) to the process's own ends. For times that are
    fitted to your own model see experiments.optimize_grid.

    Args:
      process: its t_max and t_min are the ends of the grid.
      n: number of times.
      table: 'sd15', 'sdxl', 'deepfloyd' or 'svd', the model that the levels were fitted to.

    Raises:
      UserError: for another table.
    """
    if table not in STEPS:
        raise unknown("table of align_your_steps", table, STEPS)
    levels = np.log(STEPS[table])
    known = (levels - levels[0]) / (levels[-1] - levels[0])
    places = np.interp(np.linspace(0, 1, n), np.linspace(0, 1, len(levels)), known)
    high, low = _ends(process)
    ts = time_of_logsnr(process, -2 * (high + jnp.asarray(places) * (low - high)))
    return _with_ends(process, ts, "align_your_steps")


# ---- few-step models: the grid does not include the data end
def few_step(process: Process, n: int, sigma_data: float = 0.5) -> Array:
    """The first n of n + 1 equal steps of TrigFlow's angle, arctan(sigma / (alpha sigma_data)).

    From each of the times a few-step model moves to the data. For n = 2 the second time is where
    noise and data have equal size. If so many steps of [0, pi / 2] would leave [t_min, t_max], the
    steps are of the process's own range of angles.

    Args:
      process: its t_max is the first time.
      n: number of times, at least 1, which is also the number of evaluations of a few-step model.
      sigma_data: standard deviation of the data.
    """
    need_ranges("few_step", sigma_data=(sigma_data, 1e-6, 1e4))
    share = jnp.arange(1, n) / n
    phi = math.pi / 2 * (1 - share)
    first, last = (
        angle(process, jnp.float32(t), sigma_data) for t in (process.t_max, process.t_min)
    )
    if n > 1 and not last < phi[-1] <= phi[0] < first:
        phi = first + (last - first) * share
    return levels(process, n, tuple((sigma_data * jnp.tan(phi)).tolist()))


def levels(process: Process, n: int, levels: tuple[float, ...] = (0.8, 0.3, 0.1)) -> Array:
    """The first n of t_max and these noise levels sigma / alpha (0.8: Song et al. 2023, sec. 6.1).

    Args:
      process: its t_max is the first time.
      n: number of times, at most len(levels) + 1.
      levels: decreasing noise levels sigma / alpha.

    Raises:
      UserError: for more times than there are.
    """
    if n > len(levels) + 1:
        raise UserError(
            f"grid 'levels' has {len(levels) + 1} times, t_max and levels={tuple(levels)}; "
            f"got n={n}"
        )
    later = time_of_logsnr(process, -2 * jnp.log(jnp.asarray(levels[: n - 1], jnp.float32)))
    return _checked(jnp.append(jnp.float32(process.t_max), later), "levels")


# ---- strided: subsequences of a chain of `steps` times t = (j + 1) / steps, by diffusers' names
def _strided(j: np.ndarray, n: int, steps: int, name: str) -> Array:
    """Returns the times of the steps j (n,) of the chain."""
    if not 1 <= n <= steps:
        raise UserError(f"grid '{name}' takes between 1 and steps={steps} points; got n={n}")
    if not 0 <= j.min() <= j.max() < steps:
        raise UserError(
            f"grid '{name}' leaves the chain of steps={steps}: lower the offset or n={n}"
        )
    return _checked(jnp.asarray((j + 1) / steps, jnp.float32), name)


def leading(process: Process, n: int, steps: int = 1000, offset: int = 0) -> Array:
    """The steps j = 0, k, 2k, ... of a chain with k = steps // n (DDIM; diffusers' 'leading').

    The grid ends at the chain's first time and starts below its last.

    Args:
      process: not used; every grid has the same arguments.
      n: number of times, from 2 to `steps`.
      steps: number of steps of the chain, such as 1000 for DDPM; step j is t = (j + 1) / steps.
      offset: added to every j, 0 or above; diffusers' steps_offset.

    Raises:
      UserError: for n = 1, whose only time is the chain's first, where the data is; and for steps
        outside the chain.
    """
    need_ranges("leading", steps=(steps, 1, 10**6), offset=(offset, 0, 10**6))
    if n == 1:
        raise UserError(
            "grid 'leading' of one time has only the chain's first, where the data is; "
            "use 'trailing', or 2 evaluations or more"
        )
    return _strided(np.arange(n)[::-1] * (steps // max(n, 1)) + offset, n, steps, "leading")


def linspace(process: Process, n: int, steps: int = 1000) -> Array:
    """Even times from a chain's last to its first, rounded (improved DDPM; diffusers' 'linspace').

    Args:
      process: not used; every grid has the same arguments.
      n: number of times, from 1 to `steps`.
      steps: number of steps of the chain, such as 1000 for DDPM; step j is t = (j + 1) / steps.
    """
    need_ranges("linspace", steps=(steps, 1, 10**6))
    return _strided(np.linspace(steps - 1, 0, n).round(), n, steps, "linspace")


def trailing(process: Process, n: int, steps: int = 1000) -> Array:
    """From a chain's last time down in steps of steps / n, rounded (Lin et al. 2024, table 2).

    Args:
      process: not used; every grid has the same arguments.
      n: number of times, from 1 to `steps`.
      steps: number of steps of the chain, such as 1000 for DDPM; step j is t = (j + 1) / steps.
    """
    need_ranges("trailing", steps=(steps, 1, 10**6))
    return _strided(np.round(np.arange(n, 0, -1) * steps / max(n, 1)) - 1, n, steps, "trailing")


def stored(process: Process, n: int, path: str) -> Array:
    """The grid of n times in a file that experiments.optimize_grid wrote.

    Args:
      process: the process; the file holds log-SNRs.
      n: number of times.
      path: a file that experiments.optimize_grid wrote; a leading ~ is expanded.

    Raises:
      UserError: if the file does not exist, is of another format, or has no grid of n times.
    """
    found = grid_files.load(path, n)
    if n == 1:
        return uniform(process, 1)
    return _checked(time_of_logsnr(process, jnp.asarray(found)).at[0].set(process.t_max), "stored")


def learned(process: Process, n: int) -> Array:
    """Equal steps of u, the time of Kingma et al. 2021, in t(u) = t_0 + (t_1 - t_0) s(u).

    Args:
      process: a processes.learned.Scheduled, as that of a trained model.
      n: number of times, at least 1; one time is t_max.

    Raises:
      UserError: for a process without a learned shape.
    """
    return _with_ends(process, schedule.times(process, 1.0 - _ramp(n)), "learned")


# The members of the family, which a config may name.
GRIDS = (
    uniform,
    uniform_logsnr,
    karras,
    quadratic,
    cosine,
    flow_shift,
    logistic,
    runge_kutta,
    align_your_steps,
    few_step,
    levels,
    leading,
    linspace,
    trailing,
    stored,
    learned,
)
