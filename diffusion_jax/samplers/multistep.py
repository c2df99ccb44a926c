"""Multistep solvers: one network evaluation per step, high order from earlier predictions.

DPM-Solver and DPM-Solver++ in multistep form, DEIS, linear multistep, iPNDM and PNDM, and UniPC.
history.py explains how they start, and how their order falls at the end of a grid.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.errors import UserError, need_ranges, unknown
from diffusion_jax.core.types import Array, Prediction, Process
from diffusion_jax.processes import gaussian
from diffusion_jax.samplers import exponential, unipc_weights
from diffusion_jax.samplers.base import Sampler
from diffusion_jax.samplers.exponential import log_ratio
from diffusion_jax.samplers.history import THIRD_ORDER, combine, empty, remember, solver


def _x0(prediction: Prediction) -> Array:
    return prediction.x0


def _eps(prediction: Prediction) -> Array:
    return prediction.eps


_carry_x0, _carry_eps = exponential.carry, functools.partial(exponential.carry, data=False)


# ---- DPM-Solver and DPM-Solver++
def _exponential_weights(data: bool, second: str = "exact", curvature: float = 1.0) -> Callable:
    """Returns the weights of an exponential integrator, as `history.solver` takes them."""

    def weights(process, p, times, s):
        return exponential.weights(
            process, times, times[0], s, data=data, second=second, curvature=curvature
        )

    return weights


def dpmpp_2m(second: str = "midpoint", lower_order_final: bool = True) -> Sampler:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2): order 2, data prediction.

    x_s = (sigma_s / sigma_t) x - alpha_s expm1(-h) [x0 + (x0 - x0_prev) / (2 r)], r = h_prev / h.

    Args:
      second: weight of the difference: 'midpoint' is the paper's; 'exact' (diffusers' 'heun')
        integrates the line through both values exactly.
      lower_order_final: whether the order falls at the end of the grid (history.py).

    Raises:
      UserError: for another name of `second`.
    """
    return solver(
        2,
        _x0,
        _carry_x0,
        _exponential_weights(True, _checked_second(second)),
        lower_order_final=lower_order_final,
    )


def dpmpp_3m(curvature: float = 1.0, lower_order_final: bool = True) -> Sampler:
    """DPM-Solver++(3M) (Lu et al. 2022b): order 3, data prediction.

    The parabola through the last three x0-hat is integrated exactly, x_s = (sigma_s / sigma_t) x +
    alpha_s h [phi_1(-h) x0 + phi_2(-h) D1 + 2 phi_3(-h) D2], with D1 and D2 the first two
    coefficients of the parabola in units of the step.

    Args:
      curvature: factor of the last term, in [0, 10]. The authors' code, diffusers and k-diffusion
        have 0.5, whose order is 2.
      lower_order_final: whether the order falls at the end of the grid (history.py).

    Raises:
      UserError: for a curvature out of its range.
    """
    need_ranges("multistep.dpmpp_3m", curvature=(curvature, 0, 10))
    return solver(
        3,
        _x0,
        _carry_x0,
        _exponential_weights(True, "midpoint", curvature),
        lower_order_final=lower_order_final,
        grid=THIRD_ORDER,
    )


def dpm_2m(second: str = "midpoint", lower_order_final: bool = True) -> Sampler:
    """DPM-Solver(2M) (Lu et al. 2022a in multistep form): order 2, noise prediction.

    x_s = (alpha_s / alpha_t) x - sigma_s expm1(h) [eps + (eps - eps_prev) / (2 r)], r = h_prev / h.

    Args:
      second: weight of the difference, 'midpoint' or 'exact'; see `dpmpp_2m`.
      lower_order_final: whether the order falls at the end of the grid (history.py).

    Raises:
      UserError: for another name of `second`.
    """
    return solver(
        2,
        _eps,
        _carry_eps,
        _exponential_weights(False, _checked_second(second)),
        lower_order_final=lower_order_final,
    )


def dpm_3m(curvature: float = 1.0, lower_order_final: bool = True) -> Sampler:
    """DPM-Solver(3M): order 3, as `dpmpp_3m`, but in noise prediction.

    Args:
      curvature: factor of the quadratic term, in [0, 10].
      lower_order_final: whether the order falls at the end of the grid (history.py).

    Raises:
      UserError: for a curvature out of its range.
    """
    need_ranges("multistep.dpm_3m", curvature=(curvature, 0, 10))
    return solver(
        3,
        _eps,
        _carry_eps,
        _exponential_weights(False, "midpoint", curvature),
        lower_order_final=lower_order_final,
    )


def _checked_second(name: str) -> str:
    if name not in ("midpoint", "exact"):
        raise unknown("second of a DPM-Solver", name, ("midpoint", "exact"))
    return name


# ---- DEIS, Adams-Bashforth, iPNDM
def _checked_order(order: int, highest: int, name: str) -> int:
    if not 1 <= order <= highest:
        raise UserError(f"multistep.{name}(order={order}): the order must be 1 to {highest}")
    return order


def _lagrange(nodes: Array, u: Array) -> Array:
    """Returns the p Lagrange polynomials of the nodes (p,) at the points u (Q,): (p, Q)."""
    rows = []
    for j in range(len(nodes)):
        others = [k for k in range(len(nodes)) if k != j]
        row = jnp.ones_like(u)
        for k in others:
            row = row * (u - nodes[k]) / (nodes[j] - nodes[k])
        rows.append(row)
    return jnp.stack(rows)


_GAUSS = np.polynomial.legendre.leggauss(8)


def deis(order: int = 3, clock: str = "t", lower_order_final: bool = True) -> Sampler:
    """DEIS (Zhang & Chen 2023, eq. 14-15): exponential Adams-Bashforth in noise prediction.

    x_s = (alpha_s / alpha_t) x + alpha_s sum_j eps_j int_t^s l_j(tau) (d (sigma / alpha) / d tau)
    d tau, with l_j the Lagrange polynomials of the last times.

    Args:
      order: 1 to 4; the paper has 1 to 3.
      clock: 't' is the paper's tAB, by an eight-point Gauss quadrature of a smooth integrand;
        'logsnr' is rho-AB in log(sigma / alpha), diffusers' 'logrho'.
      lower_order_final: whether the order falls at the end of the grid (history.py).

    Raises:
      UserError: for another order or clock.
    """
    _checked_order(order, 4, "deis")
    if clock not in ("t", "logsnr"):
        raise unknown("clock of multistep.deis", clock, ("t", "logsnr"))

    def in_time(process, p, times, s):
        t = times[0]
        points, quadrature = (jnp.asarray(v, t.dtype) for v in _GAUSS)
        # the nodes of the rule lie evenly in log(sigma / alpha), where the integrand is smooth for
        # any process
        low, high = log_ratio(process, t), log_ratio(process, s)
        lam = low + (high - low) * 0.5 * (points + 1)
        tau = gaussian.time_of_logsnr(process, 2 * lam)
        density = -0.5 * (high - low) * quadrature * jnp.exp(-lam)
        return process.alpha(s) * _lagrange(times, tau) @ density

    return solver(
        order,
        _eps,
        _carry_eps,
        in_time if clock == "t" else _exponential_weights(False),
        lower_order_final=lower_order_final,
    )


def lms(order: int = 4, lower_order_final: bool = True) -> Sampler:
    """Linear multistep (Katherine Crowson's LMS): Adams-Bashforth of dy/du = eps on an uneven grid.

    y = x / alpha and u = sigma / alpha.

    Args:
      order: highest order, 1 to 4, and number of remembered values.
      lower_order_final: whether the order falls at the end of the grid (history.py).

    Raises:
      UserError: for another order.
    """

    def weights(process, p, times, s):
        u, end = (process.sigma(v) / process.alpha(v) for v in (times, s))
        # exact: the integrand is a polynomial of degree p - 1
        points, quadrature = (jnp.asarray(v, u.dtype) for v in _GAUSS)
        half = 0.5 * (end - u[0])
        scaled = (u - u[0]) / half
        return process.alpha(s) * half * _lagrange(scaled, points + 1) @ quadrature

    return solver(
        _checked_order(order, 4, "lms"),
        _eps,
        _carry_eps,
        weights,
        lower_order_final=lower_order_final,
    )


_ADAMS_BASHFORTH = (
    [1.0],
    [3 / 2, -1 / 2],
    [23 / 12, -16 / 12, 5 / 12],
    [55 / 24, -59 / 24, 37 / 24, -9 / 24],
)


def _adams_bashforth(order: int, times: Array) -> list[Array]:
    """Returns the weights of the last 1 .. order values for even steps, newest first."""
    return [jnp.asarray(w, times.dtype) for w in _ADAMS_BASHFORTH[:order]]


def _straight(process: Process, x: Array, eps: Array, t: Array, s: Array) -> Array:
    """Returns DDIM's move from t to s along eps."""
    ratio = process.alpha(s) / process.alpha(t)
    return ratio * x + (process.sigma(s) - ratio * process.sigma(t)) * eps


def ipndm(order: int = 4, lower_order_final: bool = True) -> Sampler:
    """iPNDM (Zhang & Chen 2023, sec. 4; Liu et al. 2022): DDIM along an Adams-Bashforth mixture.

    eps is replaced by the mixture of its last values that would be right for even steps. The order
    of convergence is 4 on grids even in sigma / alpha, and 2 on others whose steps change smoothly.

    Args:
      order: 1 to 4, the number of values in the mixture.
      lower_order_final: whether the order falls at the end of the grid (history.py).

    Raises:
      UserError: for another order.
    """
    _checked_order(order, 4, "ipndm")

    def step(noise, x, history, t, s, denoise, process, cond):
        history = remember(history, denoise(x, t, cond).eps, t)
        eps = combine(process, _adams_bashforth(order, history.times), history)
        return _straight(process, x, eps, t, s), history

    return Sampler(lambda x, ts: empty(order, x, ts, lower_order_final), step)


# start: (places of the stages in the step, their weights in the slope, number of steps)
_STARTS = {
    "runge_kutta": ((0.0, 0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 3),
    "heun": ((0.0, 1.0), (1 / 2, 1 / 2), 1),
}


def pndm(start: str = "runge_kutta", lower_order_final: bool = True) -> Sampler:
    """PNDM (Liu et al. 2022, algorithm 2, F-PNDM): iPNDM after a pseudo Runge-Kutta start.

    Every move is DDIM's. The order of convergence is that of `ipndm`.

    Args:
      start: 'runge_kutta' is the paper's, four evaluations in each of the first three steps; 'heun'
        is PLMS of latent diffusion (Rombach et al. 2022), two in the first step, then mixtures of
        rising order.
      lower_order_final: whether the order falls at the end of the grid (history.py).

    Raises:
      UserError: for another name of `start`.
    """
    if start not in _STARTS:
        raise unknown("start of multistep.pndm", start, _STARTS)
    places, shares, steps = _STARTS[start]

    def step(noise, x, history, t, s, denoise, process, cond):
        starting = history.count < steps
        stages = jnp.asarray([t + place * (s - t) for place in places])

        def stage(j, carry):
            y, first, slope = carry
            eps = denoise(y, stages[j], cond).eps
            first = jnp.where(j == 0, eps, first)
            ahead = _straight(process, x, eps, t, stages[jnp.minimum(j + 1, len(places) - 1)])
            return ahead, first, slope + jnp.asarray(shares, x.dtype)[j] * eps

        nothing = jnp.zeros_like(x)
        _, eps, slope = jax.lax.fori_loop(
            0, jnp.where(starting, len(places), 1), stage, (x, nothing, nothing)
        )
        history = remember(history, eps, t)
        mixture = combine(process, _adams_bashforth(4, history.times), history)
        return _straight(process, x, jnp.where(starting, slope, mixture), t, s), history

    return Sampler(
        lambda x, ts: empty(4, x, ts, lower_order_final),
        step,
        warmup=(len(places) - 1,) * steps,
        grid="logistic(scale=3.0)",
    )


# ---- UniPC
def unipc(
    order: int = 3, variant: str = "bh2", corrector: bool = True, lower_order_final: bool = True
) -> Sampler:
    """UniPC-p in data prediction (Zhao et al. 2023, algorithms 1-2).

    x_s = (sigma_s / sigma_t) x - alpha_s [expm1(-h) m_0 + B(h) sum_k rho_k (m_k - m_0) / r_k], with
    rho from the order conditions. The evaluation that starts a step first corrects the move that
    led to it.

    Args:
      order: p, 1 to 3. The corrector raises it by one, except after the last step.
      variant: B(h) = -h ('bh1') or expm1(-h) ('bh2').
      corrector: whether moves are corrected.
      lower_order_final: whether the order falls at the end of the grid (history.py).

    Raises:
      UserError: for another order or variant.
    """
    _checked_order(order, 3, "unipc")
    if variant not in ("bh1", "bh2"):
        raise unknown("variant of multistep.unipc", variant, ("bh1", "bh2"))

    def step(noise, x, past, t, s, denoise, process, cond):
        m = denoise(x, t, cond).x0
        if corrector:
            x = unipc_weights.corrected(process, variant, order, x, past, m, t)
        history = remember(past.history, m, t)
        w = [
            unipc_weights.weights(process, variant, t, history.times[1:p], s)
            for p in range(1, order + 1)
        ]
        return _carry_x0(process, t, s) * x + combine(process, w, history), unipc_weights.Corrected(
            history, x
        )

    return Sampler(
        lambda x, ts: unipc_weights.Corrected(empty(order, x, ts, lower_order_final), x),
        step,
        grid=THIRD_ORDER,
    )


# The members of the family, which a config may name.
SAMPLERS = (dpmpp_2m, dpmpp_3m, dpm_2m, dpm_3m, deis, lms, ipndm, pndm, unipc)
