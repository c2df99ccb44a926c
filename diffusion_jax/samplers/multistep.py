"""Multistep solvers: one network evaluation a step, high order from the predictions of earlier
steps.

The prediction is replaced by a polynomial through its last values, integrated against the
exponential of the linear part (exponential.py) or as it is; so a step is carry * x + sum_j weight_j
value_j, and a solver is no more than its weights. Order p is reached after p - 1 steps of rising
order.

At the end of a grid the order falls again (lower_order_final, as in diffusers): the last step has
order 1, the one before it at most 2, and so on, where the last step is LONG, more than 1.5 times
the one before it in log(alpha / sigma). On grids in t it is several times as long, and a polynomial
through earlier values says nothing so far from them. Where steps change smoothly the lengths become
equal as the grid is refined, so the order of convergence is kept. The move to x0-hat that
`base.sample` makes after the last step is not counted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import UserError, need_ranges, unknown
from diffusion_jax.processes import gaussian
from diffusion_jax.samplers import exponential
from diffusion_jax.samplers.base import Sampler
from diffusion_jax.samplers.exponential import log_ratio, phi
from diffusion_jax.types import Array, Process

LONG = 1.5

THIRD_ORDER = (
    "logistic(scale=1.5)"  # the grid of solvers in data prediction whose order is 3 or more
)


class History(NamedTuple):
    """The last predictions, newest first.

    values: (K, B, ...); times: (K,); count: how many there have been; steps: the number of steps of
    the grid, and final (3,) its last three times, by which `allowed` lowers the order at its end.
    """

    values: Array
    times: Array
    count: Array
    steps: Array
    final: Array


def empty(size: int, x: Array, ts: Array, lower_order_final: bool = True) -> History:
    """No predictions yet. lower_order_final: whether the order falls at the end of the grid ts
    (n,), which may be padded.
    """
    steps = jnp.sum(ts[1:] != ts[:-1])
    final = ts[jnp.maximum(steps - jnp.array([2, 1, 0]), 0)]
    steps = jnp.asarray(steps if lower_order_final else 2**30, jnp.int32)
    return History(
        jnp.zeros((size, *x.shape), x.dtype), jnp.full(size, ts[0]), jnp.int32(0), steps, final
    )


def remember(history: History, value: Array, t: Array) -> History:
    """The newest first, the oldest dropped."""
    values = jnp.concatenate([value[None], history.values])[: len(history.values)]
    times = jnp.concatenate([t[None], history.times])[: len(history.times)]
    return history._replace(values=values, times=times, count=history.count + 1)


def allowed(process: Process, history: History, order: int, more: int = 0) -> Array:
    """How many predictions the step from the newest one uses, 1 to `order`.

    As many as there are; and where the grid's last step is LONG, no more than there are steps left,
    this one included, plus `more`.
    """
    before, last = jnp.abs(jnp.diff(log_ratio(process, history.final)))
    left = jnp.where(last > LONG * before, history.steps - history.count + 1 + more, order)
    return jnp.clip(jnp.minimum(history.count, left), 1, order)


def combine(process: Process, weights: list[Array], history: History, more: int = 0) -> Array:
    """sum_j weight_j value_j with the weights (p,) of the order that is `allowed`; weights[p - 1]
    are those of order p.
    """
    size = len(history.values)
    table = jnp.stack([jnp.concatenate([w, jnp.zeros(size - len(w), w.dtype)]) for w in weights])
    chosen = table[allowed(process, history, len(weights), more) - 1]
    return jnp.tensordot(chosen.astype(history.values.dtype), history.values, 1)


def solver(
    order: int,
    predict: Callable,
    carry: Callable,
    weights: Callable,
    level: Callable | None = None,
    *,
    lower_order_final: bool = True,
    grid: str = "logistic()",
) -> Sampler:
    """The solver x_s = carry(process, t, s) x + sum_j weights(process, p, times, s)_j
    predict(Prediction)_j, p = 1 .. order.

    level(process, t, s): the standard deviation of the noise that a stochastic solver adds. grid:
      see Sampler.
    """

    def step(noise, x, history, t, s, denoise, process, cond):
        history = remember(history, predict(denoise(x, t, cond)), t)
        w = [weights(process, p, history.times[:p], s) for p in range(1, order + 1)]
        x = carry(process, t, s) * x + combine(process, w, history)
        return x + level(process, t, s) * noise.path(t, s) if level else x, history

    return Sampler(lambda x, ts: empty(order, x, ts, lower_order_final), step, grid=grid)


def _x0(prediction):
    return prediction.x0


def _eps(prediction):
    return prediction.eps


_carry_x0, _carry_eps = exponential.carry, functools.partial(exponential.carry, data=False)


# ---- DPM-Solver and DPM-Solver++
def _dpm(data: bool, second: str = "exact", curvature: float = 1.0) -> Callable:
    def weights(process, p, times, s):
        return exponential.weights(
            process, times, times[0], s, data=data, second=second, curvature=curvature
        )

    return weights


def dpmpp_2m(second: str = "midpoint", lower_order_final: bool = True) -> Sampler:
    """DPM-Solver++(2M), order 2 (Lu et al. 2022b, algorithm 2).

    x_s = (sigma_s / sigma_t) x - alpha_s expm1(-h) [x0 + (x0 - x0_prev) / (2 r)], r = h_prev / h.
    second: 'midpoint' is the paper's weight of the difference; 'exact' (diffusers' 'heun')
      integrates the line through both values exactly.
    """
    return solver(
        2, _x0, _carry_x0, _dpm(True, _second(second)), lower_order_final=lower_order_final
    )


def dpmpp_3m(curvature: float = 1.0, lower_order_final: bool = True) -> Sampler:
    """DPM-Solver++(3M), order 3: the parabola through the last three x0-hat, integrated exactly (Lu
    et al. 2022b, third order).

    x_s = (sigma_s / sigma_t) x + alpha_s h [phi_1(-h) x0 + phi_2(-h) D1 + 2 phi_3(-h) D2], D1 and
    D2 the first two coefficients of the parabola in units of the step. curvature multiplies the
    last term: the authors' code, and with it diffusers and k-diffusion, has 0.5, whose order is 2.
    """
    need_ranges("multistep.dpmpp_3m", curvature=(curvature, 0, 10))
    return solver(
        3,
        _x0,
        _carry_x0,
        _dpm(True, "midpoint", curvature),
        lower_order_final=lower_order_final,
        grid=THIRD_ORDER,
    )


def dpm_2m(second: str = "midpoint", lower_order_final: bool = True) -> Sampler:
    """DPM-Solver(2M), order 2, in noise prediction (Lu et al. 2022a in multistep form; diffusers'
    'dpmsolver').

    x_s = (alpha_s / alpha_t) x - sigma_s expm1(h) [eps + (eps - eps_prev) / (2 r)].
    """
    return solver(
        2, _eps, _carry_eps, _dpm(False, _second(second)), lower_order_final=lower_order_final
    )


def dpm_3m(curvature: float = 1.0, lower_order_final: bool = True) -> Sampler:
    """DPM-Solver(3M), order 3: as dpmpp_3m, in noise prediction."""
    need_ranges("multistep.dpm_3m", curvature=(curvature, 0, 10))
    return solver(
        3, _eps, _carry_eps, _dpm(False, "midpoint", curvature), lower_order_final=lower_order_final
    )


def _second(name: str) -> str:
    if name not in ("midpoint", "exact"):
        raise unknown("second of a DPM-Solver", name, ("midpoint", "exact"))
    return name


# ---- DEIS, Adams-Bashforth, iPNDM
def _order(order: int, highest: int, name: str) -> int:
    if not 1 <= order <= highest:
        raise UserError(f"multistep.{name}(order={order}): the order is 1 to {highest}")
    return order


def _lagrange(nodes: Array, u: Array) -> Array:
    """The p Lagrange polynomials of these nodes at the points u (Q,): (p, Q)."""
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
    """DEIS, exponential Adams-Bashforth in noise prediction (Zhang & Chen 2023, eq. 14-15), order 1
    to 3 (4 allowed).

    x_s = (alpha_s / alpha_t) x + alpha_s sum_j eps_j int_t^s l_j(tau) (d (sigma / alpha) / d tau) d
    tau, l_j the Lagrange polynomials.
    clock: 't' is the paper's tAB (eight-point Gauss quadrature of a smooth integrand), 'logsnr' its
      rho-AB cousin in log(sigma / alpha), diffusers' 'logrho'.
    """
    _order(order, 4, "deis")
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
        in_time if clock == "t" else _dpm(False),
        lower_order_final=lower_order_final,
    )


def lms(order: int = 4, lower_order_final: bool = True) -> Sampler:
    """Linear multistep, Adams-Bashforth of dy/du = eps on an uneven grid, y = x / alpha, u = sigma
    / alpha (Katherine Crowson's LMS). Order 1 to 4.
    """

    def weights(process, p, times, s):
        u, end = (process.sigma(v) / process.alpha(v) for v in (times, s))
        points, quadrature = (
            jnp.asarray(v, u.dtype) for v in _GAUSS
        )  # exact: the integrand is a polynomial of degree p - 1
        half = 0.5 * (end - u[0])
        scaled = (u - u[0]) / half
        return process.alpha(s) * half * _lagrange(scaled, points + 1) @ quadrature

    return solver(
        _order(order, 4, "lms"), _eps, _carry_eps, weights, lower_order_final=lower_order_final
    )


_ADAMS_BASHFORTH = (
    [1.0],
    [3 / 2, -1 / 2],
    [23 / 12, -16 / 12, 5 / 12],
    [55 / 24, -59 / 24, 37 / 24, -9 / 24],
)


def _adams_bashforth(order: int, times: Array) -> list[Array]:
    """The mixtures of the last 1 .. order values for even steps, newest first."""
    return [jnp.asarray(w, times.dtype) for w in _ADAMS_BASHFORTH[:order]]


def _straight(process: Process, x: Array, eps: Array, t: Array, s: Array) -> Array:
    """DDIM's move along eps, from t to s."""
    ratio = process.alpha(s) / process.alpha(t)
    return ratio * x + (process.sigma(s) - ratio * process.sigma(t)) * eps


def ipndm(order: int = 4, lower_order_final: bool = True) -> Sampler:
    """iPNDM: DDIM with eps replaced by its Adams-Bashforth mixture, as if steps were even (Zhang &
    Chen 2023, sec. 4; Liu et al. 2022).

    Order 1 to 4. Its order of convergence is 4 on grids even in sigma / alpha, and 2 on others
    whose steps change smoothly.
    """
    _order(order, 4, "ipndm")

    def step(noise, x, history, t, s, denoise, process, cond):
        history = remember(history, denoise(x, t, cond).eps, t)
        return _straight(
            process, x, combine(process, _adams_bashforth(order, history.times), history), t, s
        ), history

    return Sampler(lambda x, ts: empty(order, x, ts, lower_order_final), step)


# start: (stages' places in the step, their weights in the slope, how many steps)
_STARTS = {
    "runge_kutta": ((0.0, 0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 3),
    "heun": ((0.0, 1.0), (1 / 2, 1 / 2), 1),
}


def pndm(start: str = "runge_kutta", lower_order_final: bool = True) -> Sampler:
    """PNDM: iPNDM's four-step mixture after a pseudo Runge-Kutta start, every move DDIM's (Liu et
    al. 2022, algorithm 2, F-PNDM).

    start: 'runge_kutta' is the paper's, four evaluations in each of the first three steps; 'heun'
    is PLMS of latent diffusion (Rombach et al. 2022), two in the first step, then mixtures of
    rising order. Order of convergence as ipndm.
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
        slope = jnp.where(
            starting, slope, combine(process, _adams_bashforth(4, history.times), history)
        )
        return _straight(process, x, slope, t, s), history

    return Sampler(
        lambda x, ts: empty(4, x, ts, lower_order_final),
        step,
        warmup=(len(places) - 1,) * steps,
        grid="logistic(scale=3.0)",
    )


# ---- UniPC
class _Corrected(NamedTuple):
    """UniPC's memory: the predictions, and x where the last move began."""

    history: History
    x: Array


def unipc(
    order: int = 3, variant: str = "bh2", corrector: bool = True, lower_order_final: bool = True
) -> Sampler:
    """UniPC-p, data prediction (Zhao et al. 2023, algorithms 1-2): the evaluation that starts a
    step first corrects the move that led to it.

    x_s = (sigma_s / sigma_t) x - alpha_s [expm1(-h) m_0 + B(h) sum_k rho_k (m_k - m_0) / r_k]; rho
    solves the order conditions.
    variant: B(h) = -h ('bh1') or expm1(-h) ('bh2'). order 1 to 3; the corrector raises it by one,
      except after the last step.
    """
    _order(order, 3, "unipc")
    if variant not in ("bh1", "bh2"):
        raise unknown("variant of multistep.unipc", variant, ("bh1", "bh2"))

    def weights(process, times, others, s):
        """Of the predictions at times[0] and at `others`, for the move from times[0] to s. The
        corrector's others contain s.
        """
        h = log_ratio(process, s) - log_ratio(process, times)
        first = -process.alpha(s) * jnp.expm1(-h)
        if not len(others):
            return first[None]
        r = (log_ratio(process, others) - log_ratio(process, times)) / h
        b_h = -h if variant == "bh1" else jnp.expm1(-h)
        if len(others) == 1:
            rho = jnp.full(1, 0.5, r.dtype)  # the paper's shortcut, exact enough for order 2
        else:
            rows = jnp.stack([r**k for k in range(len(others))])
            target = jnp.stack(
                [
                    phi(k + 1, -h) * float(np.prod(np.arange(1, k + 1), dtype=float)) * (-h)
                    for k in range(1, len(others) + 1)
                ]
            )
            rho = jnp.linalg.solve(rows, target / b_h)
        rest = -process.alpha(s) * b_h * rho / r
        return jnp.concatenate([(first - jnp.sum(rest))[None], rest])

    def correct(x, past, m, t, process):
        """The move that led to x at t, made again from past.x with the prediction there."""
        times = past.history.times
        table = []
        for p in range(1, order + 1):
            w = weights(process, times[0], jnp.concatenate([times[1:p], t[None]]), t)
            table.append(jnp.concatenate([w[:p], jnp.zeros(order - p, w.dtype), w[p:]]))
        chosen = jnp.stack(table)[allowed(process, past.history, order) - 1].astype(x.dtype)
        again = (
            _carry_x0(process, times[0], t) * past.x
            + jnp.tensordot(chosen[:-1], past.history.values, 1)
            + chosen[-1] * m
        )
        return jnp.where(past.history.count > 0, again, x)

    def step(noise, x, past, t, s, denoise, process, cond):
        m = denoise(x, t, cond).x0
        if corrector:
            x = correct(x, past, m, t, process)
        history = remember(past.history, m, t)
        w = [weights(process, t, history.times[1:p], s) for p in range(1, order + 1)]
        return _carry_x0(process, t, s) * x + combine(process, w, history), _Corrected(history, x)

    return Sampler(
        lambda x, ts: _Corrected(empty(order, x, ts, lower_order_final), x), step, grid=THIRD_ORDER
    )


# The members of the family, which a config may name.
SAMPLERS = (solver, dpmpp_2m, dpmpp_3m, dpm_2m, dpm_3m, deis, lms, ipndm, pndm, unipc)
