"""The probability-flow ODE with steps chosen by an error estimate, inside jit: diffrax's
Runge-Kutta pairs, and DPM-Solver's.

In the frame y = x / alpha with lam = log(sigma / alpha) as clock, dy/dlam = (sigma / alpha)
eps-hat, where even a table of betas has no kink. Every image has its own steps, so it is the same
whatever its neighbours; the batch runs until the last image is done. The grid is its two ends (more
times are stops on the way); rtol and atol decide the NFE, which `sample(..., count=True)` reports
for each image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from diffusion_jax.arrays import expand, mean_per_example
from diffusion_jax.errors import UserError, need_range
from diffusion_jax.processes import gaussian
from diffusion_jax.samplers.base import Sampler
from diffusion_jax.samplers.exponential import log_ratio, phi
from diffusion_jax.types import Array

MAX_STEPS = 4096


def _field(denoise, process, x: Array):
    """(dy/dlam of one image, the arrays that it closes over): under vmap it is one call of denoise
    on the whole batch.

    The denoiser holds conditions of the whole batch, so it cannot be mapped over; and arrays that a
    loop's body closes over must be handed to it.
    """

    def slope(y, lam):
        t = gaussian.time_of_logsnr(process, -2 * lam)
        scale = jnp.reshape(process.alpha(t), (-1, *(1,) * (y.ndim - 1)))
        return jnp.exp(lam).reshape(scale.shape) * denoise(scale * y, t).eps

    traced = jax.make_jaxpr(slope)(x, jnp.zeros(len(x), x.dtype))

    @custom_vmap
    def one(y, lam, held):
        return jnp.zeros_like(y)  # never computed: this is only ever mapped

    @one.def_vmap
    def batch(size, mapped, y, lam, held):
        return jax.core.eval_jaxpr(traced.jaxpr, held, y, jnp.broadcast_to(lam, (size,)))[0], True

    return one, traced.consts


def _tolerances(name: str, **values: float) -> None:
    for key, value in values.items():
        need_range(
            f"adaptive.{name}: {key}", value, 1e-14, 100
        )  # smaller tolerances are below the rounding even of float64


def _adaptive(solver: str, stages: int, rtol: float, atol: float) -> Sampler:
    _tolerances(solver.lower(), rtol=rtol, atol=atol)

    def step(noise, x, spent, t, s, denoise, process):

        field, held = _field(denoise, process, x)
        low, high = -log_ratio(process, t), -log_ratio(process, s)

        def solve(y):
            found = diffrax.diffeqsolve(
                diffrax.ODETerm(lambda lam, y, held: field(y, lam, held)),
                getattr(diffrax, solver)(),
                low,
                high,
                None,
                y,
                held,
                stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
                max_steps=MAX_STEPS,
                throw=False,
            )
            done = found.result == diffrax.RESULTS.successful
            return jnp.where(done, found.ys[-1], jnp.nan), found.stats["num_steps"]

        y, steps = jax.vmap(solve)(x / process.alpha(t))
        return process.alpha(s) * y, spent + stages * steps + 1  # and the first slope

    return Sampler(
        lambda x, ts: jnp.zeros(len(x), jnp.int32),
        step,
        nfe=0,
        spent=lambda spent: spent,
        grid="uniform()",
    )


def tsit5(rtol: float = 1e-3, atol: float = 1e-3) -> Sampler:
    """Tsitouras's 5(4) pair (Tsitouras 2011): six evaluations a step."""
    return _adaptive("Tsit5", 6, rtol, atol)


def dopri5(rtol: float = 1e-3, atol: float = 1e-3) -> Sampler:
    """Dormand and Prince's 5(4) pair (1980), the RK45 of Song et al. 2021: six evaluations a step."""
    return _adaptive("Dopri5", 6, rtol, atol)


def dopri8(rtol: float = 1e-5, atol: float = 1e-5) -> Sampler:
    """Dormand and Prince's 8(7) pair: thirteen evaluations a step, for tight tolerances."""
    return _adaptive("Dopri8", 13, rtol, atol)


# ---- DPM-Solver-12 and 23
class _Solve(NamedTuple):
    """The state of dpm_adaptive: y and the lower-order result of the last accepted step, (B, ...);
    the rest (B,), count a scalar.
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
    """DPM-Solver-12 or 23 (Lu et al. 2022a, appendix C; k-diffusion's dpm_adaptive): `order`
    evaluations a step.

    A step of `order` in noise prediction holds one of order - 1 at no further cost; E, the root
    mean square of their difference over max(atol, rtol max(|y_low|, |y_previous|)), decides as in
    k-diffusion: with f = 1 + arctan(E^(-1 / order) - 1) the step is accepted where f >= 0.81, and
    the next is f times as long, on the clock log(alpha / sigma).

    Args:
      order: 2 or 3.
      rtol: relative tolerance, above 0; 0.05 is the paper's for images.
      atol: absolute tolerance in the frame y = x / alpha, above 0; 0.0078 is the step of 8-bit
        images in [-1, 1].
      h_init: length of the first step in log(alpha / sigma), above 0.

    Raises:
      UserError: for an argument out of its range.
    """
    if order not in (2, 3):
        raise UserError(f"adaptive.dpm_adaptive(order={order}): the order is 2 or 3")
    _tolerances("dpm_adaptive", rtol=rtol, atol=atol, h_init=h_init)

    def step(noise, x, spent, t, s, denoise, process):
        start, end = (jnp.broadcast_to(log_ratio(process, time), x.shape[:1]) for time in (t, s))
        sign = jnp.sign(end - start)  # -1 where an encoder goes back to the noise

        def eps(y, time):
            return denoise(expand(process.alpha(time), y) * y, time).eps

        def times(lams):
            return gaussian.time_of_logsnr(process, 2 * lams)

        def active(now):
            return (jnp.abs(end - now.lam) > 1e-5) & jnp.isfinite(now.h) & (now.count < MAX_STEPS)

        def attempt(now):
            h = sign * jnp.minimum(now.h, jnp.abs(end - now.lam))
            low, high = _pair(order, eps, times, now.y, now.lam, h)
            allowed = jnp.maximum(atol, rtol * jnp.maximum(jnp.abs(low), jnp.abs(now.previous)))
            error = jnp.sqrt(mean_per_example(((low - high) / allowed) ** 2))
            factor = 1 + jnp.arctan((error + 1e-8) ** (-1 / order) - 1)
            busy = active(now)
            accepted = busy & (factor >= 0.81)
            y, previous = (
                jnp.where(expand(accepted, a), a, b)
                for a, b in ((high, now.y), (low, now.previous))
            )
            lam = jnp.where(
                accepted, jnp.where(now.h < jnp.abs(end - now.lam), now.lam + h, end), now.lam
            )
            return _Solve(
                y,
                previous,
                lam,
                jnp.where(busy, now.h * factor, now.h),
                now.tries + busy,
                now.count + 1,
            )

        y, none = x / process.alpha(t), jnp.zeros(len(x), jnp.int32)
        found = jax.lax.while_loop(
            lambda now: jnp.any(active(now)),
            attempt,
            _Solve(y, y, start, jnp.full_like(start, h_init), none, jnp.int32(0)),
        )
        done = expand(jnp.abs(end - found.lam) <= 1e-5, y)
        return process.alpha(s) * jnp.where(done, found.y, jnp.nan), spent + order * found.tries

    return Sampler(
        lambda x, ts: jnp.zeros(len(x), jnp.int32),
        step,
        nfe=0,
        spent=lambda spent: spent,
        grid="uniform()",
    )


def _pair(
    order: int, eps: Callable, times: Callable, y: Array, lam: Array, h: Array
) -> tuple[Array, Array]:
    """DPM-Solver steps of `order` - 1 and of `order` from y at lam (B,) to lam + h, which share
    their evaluations eps(y, time).
    """

    def move(r, first, second=None, weight=None):
        """y at lam + r h by the first slope held, with `weight` of its difference to the second."""
        u = jnp.exp(-(lam + r * h))
        moved = y - expand(u * jnp.expm1(r * h), y) * first
        return moved if second is None else moved - expand(u * weight, y) * (second - first)

    ratios = (1 / 2,) if order == 2 else (1 / 3, 2 / 3)
    start, *looks = times(jnp.stack([lam, *(lam + r * h for r in ratios)]))
    first = eps(y, start)
    second = eps(move(ratios[0], first), looks[0])
    middle = move(1.0, first, second, jnp.expm1(h) / (2 * ratios[0]))
    if order == 2:
        return move(1.0, first), middle
    r1, r2 = ratios
    third = eps(move(r2, first, second, r2 / r1 * r2 * h * phi(2, r2 * h)), looks[1])
    return middle, move(1.0, first, third, h * phi(2, h) / r2)
