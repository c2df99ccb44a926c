"""The probability-flow ODE with steps chosen by an error estimate, inside one compiled program.

The solvers are diffrax's Runge-Kutta pairs, and DPM-Solver's pairs of orders 1-2 and 2-3. In the
frame y = x / alpha with lam = log(sigma / alpha) as the clock the ODE is dy/dlam = (sigma / alpha)
eps-hat, where even a table of betas has no kink. Every image has its own steps, so it is the same
whatever else is in the batch; the batch runs until its last image is done. The grid is its two
ends, and further times are stops on the way. The tolerances rtol and atol decide the NFE, which
`base.sample` returns for each image.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from diffusion_jax.core.arrays import expand, mean_per_example
from diffusion_jax.core.deferred import deferred
from diffusion_jax.core.errors import UserError, need_range
from diffusion_jax.core.types import Array, Cond, Denoise, Process
from diffusion_jax.processes import gaussian
from diffusion_jax.samplers.base import Sampler
from diffusion_jax.samplers.exponential import log_ratio, phi

diffrax = deferred("diffrax")
equinox = deferred("equinox")

MAX_STEPS = 4096
ARRIVED = 1e-5  # distance to the end in log(alpha / sigma) at which dpm_adaptive has arrived


def _need_tolerances(name: str, **values: float) -> None:
    """Raises UserError for a tolerance that is not positive, or below the rounding of float64."""
    for key, value in values.items():
        need_range(f"adaptive.{name}: {key}", value, 1e-14, 100)


def _counting(step: Callable) -> Sampler:
    """Returns the adaptive sampler whose memory is the evaluations so far of each image, (B,)."""
    return Sampler(
        lambda x, ts: jnp.zeros(len(x), jnp.int32),
        step,
        nfe=0,
        spent=lambda spent: spent,
        grid="uniform()",
    )


# ---- Runge-Kutta pairs
def _field(
    denoise: Denoise, process: Process, x: Array, cond: Cond
) -> tuple[Callable[..., Array], Any]:
    """Returns (slope, held): slope(y, lam, cond, held) is dy/dlam of one image y.

    Under vmap, slope is one evaluation of the denoiser on the whole batch: a denoiser may hold
    arrays of the whole batch, such as a measurement, so it cannot be mapped over single images.
    held are the arrays that the denoiser holds, such as the parameters of a network; the loop of a
    solver must receive them as arguments.
    """

    def slopes(y, lam, cond):
        t = gaussian.time_of_logsnr(process, -2 * lam)
        scale = jnp.reshape(process.alpha(t), (-1, *(1,) * (y.ndim - 1)))
        return jnp.exp(lam).reshape(scale.shape) * denoise(scale * y, t, cond).eps

    closed = equinox.filter_closure_convert(slopes, x, jnp.zeros(len(x), x.dtype), cond)
    held, rest = equinox.partition(closed, equinox.is_array)

    @custom_vmap
    def slope(y, lam, cond, held):
        return jnp.zeros_like(y)  # never computed: the function is only used under vmap

    @slope.def_vmap
    def batch(size, mapped, y, lam, cond, held):
        return equinox.combine(held, rest)(y, jnp.broadcast_to(lam, (size,)), cond), True

    return slope, held


def _runge_kutta(solver: diffrax.AbstractSolver, stages: int, rtol: float, atol: float) -> Sampler:
    """Returns the adaptive sampler of a diffrax solver with `stages` evaluations per step."""
    _need_tolerances(type(solver).__name__.lower(), rtol=rtol, atol=atol)

    def step(noise, x, spent, t, s, denoise, process, cond):
        slope, held = _field(denoise, process, x, cond)
        low, high = -log_ratio(process, t), -log_ratio(process, s)

        def solve(y):
            found = diffrax.diffeqsolve(
                diffrax.ODETerm(lambda lam, y, args: slope(y, lam, *args)),
                solver,
                low,
                high,
                None,
                y,
                (cond, held),
                stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
                max_steps=MAX_STEPS,
                throw=False,
            )
            done = found.result == diffrax.RESULTS.successful
            return jnp.where(done, found.ys[-1], jnp.nan), found.stats["num_steps"]

        y, steps = jax.vmap(solve)(x / process.alpha(t))
        return process.alpha(s) * y, spent + stages * steps + 1  # 1: the first slope

    return _counting(step)


def tsit5(rtol: float = 1e-3, atol: float = 1e-3) -> Sampler:
    """Tsitouras's 5(4) pair (Tsitouras 2011): six evaluations per step.

    Args:
      rtol: relative tolerance of the error of a step, above 0.
      atol: absolute tolerance in the frame y = x / alpha, above 0.

    Raises:
      UserError: for a tolerance out of its range.
    """
    return _runge_kutta(diffrax.Tsit5(), 6, rtol, atol)


def dopri5(rtol: float = 1e-3, atol: float = 1e-3) -> Sampler:
    """Dormand and Prince's 5(4) pair (1980), RK45 of Song et al. 2021: six evaluations per step.

    Args:
      rtol: relative tolerance of the error of a step, above 0.
      atol: absolute tolerance in the frame y = x / alpha, above 0.

    Raises:
      UserError: for a tolerance out of its range.
    """
    return _runge_kutta(diffrax.Dopri5(), 6, rtol, atol)


def dopri8(rtol: float = 1e-5, atol: float = 1e-5) -> Sampler:
    """Dormand and Prince's 8(7) pair: thirteen evaluations per step, for tight tolerances.

    Args:
      rtol: relative tolerance of the error of a step, above 0.
      atol: absolute tolerance in the frame y = x / alpha, above 0.

    Raises:
      UserError: for a tolerance out of its range.
    """
    return _runge_kutta(diffrax.Dopri8(), 13, rtol, atol)


# ---- DPM-Solver-12 and 23
class _Solve(NamedTuple):
    """The state of dpm_adaptive's loop.

    Attributes:
      y: x / alpha, (B, ...).
      previous: the lower-order result of the last accepted step, (B, ...).
      lam: where each image is on the clock log(alpha / sigma), (B,).
      h: length of the next step, (B,).
      tries: steps attempted by each image, (B,).
      count: iterations of the loop, a scalar.
    """

    y: Array
    previous: Array
    lam: Array
    h: Array
    tries: Array
    count: Array


def dpm_adaptive(
    order: int = 3, rtol: float = 0.05, atol: float = 0.0078, h_init: float = 0.05
) -> Sampler:
    """DPM-Solver-12 or 23 (Lu et al. 2022a, appendix C): `order` evaluations per step.

    A step of `order` in noise prediction contains one of order - 1 at no further cost. E, the root
    mean square of their difference over max(atol, rtol max(|y_low|, |y_previous|)), decides as in
    k-diffusion's dpm_adaptive: with f = 1 + arctan(E^(-1 / order) - 1) the step is accepted where
    f >= 0.81, and the next step is f times as long, on the clock log(alpha / sigma).

    Args:
      order: 2 is DPM-Solver-12, 3 is DPM-Solver-23.
      rtol: relative tolerance, above 0; 0.05 is the paper's for images.
      atol: absolute tolerance in the frame y = x / alpha, above 0; 0.0078 is one level of 8-bit
        images in [-1, 1].
      h_init: length of the first step in log(alpha / sigma), above 0.

    Raises:
      UserError: for an argument out of its range.
    """
    if order not in (2, 3):
        raise UserError(f"adaptive.dpm_adaptive(order={order}): the order must be 2 or 3")
    _need_tolerances("dpm_adaptive", rtol=rtol, atol=atol, h_init=h_init)

    def step(noise, x, spent, t, s, denoise, process, cond):
        start, end = (jnp.broadcast_to(log_ratio(process, time), x.shape[:1]) for time in (t, s))

        def eps(y, time):
            return denoise(expand(process.alpha(time), y) * y, time, cond).eps

        def times(lams):
            return gaussian.time_of_logsnr(process, 2 * lams)

        def pair(y, lam, h):
            return _pair(order, eps, times, y, lam, h)

        y, none = x / process.alpha(t), jnp.zeros(len(x), jnp.int32)
        found = jax.lax.while_loop(
            lambda now: jnp.any(_active(now, end)),
            functools.partial(_attempt, order, pair, start, end, rtol, atol),
            _Solve(y, y, start, jnp.full_like(start, h_init), none, jnp.int32(0)),
        )
        done = expand(jnp.abs(end - found.lam) <= ARRIVED, y)
        return process.alpha(s) * jnp.where(done, found.y, jnp.nan), spent + order * found.tries

    return _counting(step)


def _active(now: _Solve, end: Array) -> Array:
    """Returns which images still have a way to go and may go it, (B,)."""
    return (jnp.abs(end - now.lam) > ARRIVED) & jnp.isfinite(now.h) & (now.count < MAX_STEPS)


def _attempt(
    order: int, pair: Callable, start: Array, end: Array, rtol: float, atol: float, now: _Solve
) -> _Solve:
    """Tries one step of every active image and accepts it where its error estimate allows."""
    sign = jnp.sign(end - start)  # -1 where `encode` goes up to the noise
    h = sign * jnp.minimum(now.h, jnp.abs(end - now.lam))
    low, high = pair(now.y, now.lam, h)
    allowed = jnp.maximum(atol, rtol * jnp.maximum(jnp.abs(low), jnp.abs(now.previous)))
    error = jnp.sqrt(mean_per_example(((low - high) / allowed) ** 2))
    factor = 1 + jnp.arctan((error + 1e-8) ** (-1 / order) - 1)
    busy = _active(now, end)
    accepted = busy & (factor >= 0.81)
    y, previous = (
        jnp.where(expand(accepted, a), a, b) for a, b in ((high, now.y), (low, now.previous))
    )
    arrival = jnp.where(now.h < jnp.abs(end - now.lam), now.lam + h, end)
    return _Solve(
        y,
        previous,
        jnp.where(accepted, arrival, now.lam),
        jnp.where(busy, now.h * factor, now.h),
        now.tries + busy,
        now.count + 1,
    )


def _pair(
    order: int, eps: Callable, times: Callable, y: Array, lam: Array, h: Array
) -> tuple[Array, Array]:
    """Returns the DPM-Solver steps of `order` - 1 and of `order` from y at lam (B,) to lam + h.

    They share their evaluations eps(y, time), whose times are times(lam).
    """

    def move(r, first, second=None, weight=None):
        """Returns y at lam + r h by the first slope and `weight` of its difference to another."""
        u = jnp.exp(-(lam + r * h))
        moved = y - expand(u * jnp.expm1(r * h), y) * first
        return moved if second is None else moved - expand(u * weight, y) * (second - first)

    ratios = (1 / 2,) if order == 2 else (1 / 3, 2 / 3)
    start, *inner = times(jnp.stack([lam, *(lam + r * h for r in ratios)]))
    first = eps(y, start)
    second = eps(move(ratios[0], first), inner[0])
    middle = move(1.0, first, second, jnp.expm1(h) / (2 * ratios[0]))
    if order == 2:
        return move(1.0, first), middle
    r1, r2 = ratios
    third = eps(move(r2, first, second, r2 / r1 * r2 * h * phi(2, r2 * h)), inner[1])
    return middle, move(1.0, first, third, h * phi(2, h) / r2)


# The members of the family, which a config may name.
SAMPLERS = (tsit5, dopri5, dopri8, dpm_adaptive)
