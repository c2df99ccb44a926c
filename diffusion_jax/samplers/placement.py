"""Grids whose times are placed by optimization, for one model and one sampler."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core import forward_mode
from diffusion_jax.core.deferred import deferred
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Cond, Denoise, Key, Process
from diffusion_jax.processes.gaussian import logsnr, time_of_logsnr
from diffusion_jax.samplers import base

scipy_optimize = deferred("scipy.optimize")

Report = Callable[[int, float], None]  # (iteration, error), called after every iteration


class Placement(NamedTuple):
    """Times placed by optimization.

    Attributes:
      ts: (n,) decreasing times.
      error: RMS error to the reference at these times, or the score of `polish`.
      history: the error after every iteration.
    """

    ts: Array
    error: float
    history: tuple[float, ...]


def optimize(
    sampler: base.Sampler,
    denoise: Denoise,
    process: Process,
    key: Key,
    x: Array,
    reference: Array,
    ts: Array,
    cond: Cond = None,
    *,
    iterations: int = 30,
    report: Report | None = None,
) -> Placement:
    """Moves the times ts so that the sampler, started at x, comes close to the exact solutions.

    The sum of squared errors over a few trajectories is minimized by Levenberg-Marquardt on the
    logarithms of the log-SNR increments, with the derivative taken through the sampler in forward
    mode: there are few times, so it costs n tangents, keeps no activations and passes any loop. The
    first time stays; the last may end early, since the last move is x0-hat.

    Args:
      sampler: a deterministic sampler.
      denoise: (x_t, t, cond) -> Prediction.
      process: the process of the times.
      key: key of the samples; a deterministic sampler draws nothing from it.
      x: (B, ...) at time ts[0].
      reference: (B, ...), the exact solutions.
      ts: (n,) decreasing times to start from, n >= 2.
      cond: the condition, with leading axis B.
      iterations: the most iterations that are made.
      report: called as report(iteration, error) after every iteration.

    Returns:
      The times and the errors on the way.

    Raises:
      UserError: for a stochastic sampler, fewer than two times, or a start whose images are not
        finite.
    """
    if len(ts) < 2 or base.draws_noise(sampler, process):
        raise UserError("times can be placed for a deterministic sampler and at least 2 of them")
    theta, times = _increments(process, jnp.asarray(ts, x.dtype))

    def residual(theta):
        found = base.sample(sampler, denoise, process, key, x, times(theta), cond)
        return jnp.ravel(found.x0 - reference) / math.sqrt(reference.size)

    theta, error, history = _levenberg_marquardt(residual, theta, iterations, report)
    return Placement(times(theta), error, history)


def _levenberg_marquardt(
    residual: Callable[[Array], Array], theta: Array, iterations: int, report: Report | None
) -> tuple[Array, float, tuple[float, ...]]:
    """Minimizes |residual(theta)|^2; returns theta (n,), |residual|, and |residual| on the way."""

    @jax.jit
    def normal_equations(theta):
        r, jacobian = residual(theta), forward_mode.jacfwd(residual)(theta)
        return jnp.sum(r**2), jacobian.T @ jacobian, jacobian.T @ r

    @jax.jit
    def loss(theta):
        return jnp.sum(residual(theta) ** 2)

    damping, history = 1e-2, []
    now, matrix, gradient = normal_equations(theta)
    if not np.isfinite(now):
        raise UserError(
            "the sampler's images are not finite on the grid to start from; "
            "choose another --start or sampler"
        )
    for i in range(iterations):
        accepted = False
        for _ in range(6):
            damped = matrix + damping * jnp.diag(jnp.diag(matrix) + 1e-6 * jnp.trace(matrix))
            trial = theta - jnp.clip(jnp.linalg.solve(damped, gradient), -1.0, 1.0)
            if loss(trial) < now:
                theta, damping, accepted = trial, max(damping / 4, 1e-7), True
                break
            damping *= 4
        before = now
        if accepted:
            now, matrix, gradient = normal_equations(theta)
        history.append(float(jnp.sqrt(now)))
        if report:
            report(i + 1, history[-1])
        if not accepted or now > (1 - 1e-4) * before:
            break
    return theta, float(jnp.sqrt(now)), tuple(history)


def polish(
    score: Callable[[Array], float],
    process: Process,
    ts: Array,
    *,
    evaluations: int = 80,
    report: Report | None = None,
) -> Placement:
    """Moves the times ts toward the least score(times), whatever the score measures.

    It is Nelder & Mead's simplex (1965; scipy) in the coordinates of `optimize`, for scores without
    a derivative worth taking, such as the Fréchet distance of many images. The result is never
    worse than ts.

    Args:
      score: the function of the times (n,) to minimize.
      process: the process of the times.
      ts: (n,) decreasing times to start from.
      evaluations: the most evaluations of the score.
      report: called as report(evaluation, least score so far) after every evaluation.

    Returns:
      The times and the least scores on the way.
    """
    theta, times = _increments(process, jnp.asarray(ts))
    times, history = jax.jit(times), []

    def measured(theta) -> float:
        found = score(times(jnp.asarray(theta, ts.dtype)))
        history.append(min([found, *history[-1:]]))
        if report:
            report(len(history), history[-1])
        return found

    theta = np.asarray(theta, np.float64)
    # each vertex lengthens one increment by about a third
    simplex = np.vstack([theta, theta + 0.3 * np.eye(len(theta))])
    found = scipy_optimize.minimize(
        measured,
        theta,
        method="Nelder-Mead",
        options={"maxfev": evaluations, "initial_simplex": simplex, "fatol": 1e-4, "xatol": 1e-3},
    )
    before = score(ts)
    if before <= found.fun:  # the coordinates keep every increment above 1/1000 of the span
        return Placement(ts, float(before), (*history, float(before)))
    return Placement(times(jnp.asarray(found.x, ts.dtype)), float(found.fun), tuple(history))


def _increments(process: Process, ts: Array) -> tuple[Array, Callable[[Array], Array]]:
    """Returns (theta (n,), times): free coordinates of decreasing times, and the way back.

    The coordinates are the logarithms of the log-SNR increments. The first time stays; the last
    increment is what is left between the last time and t_min.
    """
    lam = logsnr(process, jnp.append(ts, process.t_min).astype(ts.dtype))
    span = lam[-1] - lam[0]
    rise = jnp.maximum(jnp.diff(lam) / span, 1e-3)

    def times(theta: Array) -> Array:
        later = time_of_logsnr(process, lam[0] + span * jnp.cumsum(jax.nn.softmax(theta))[:-1])
        return jnp.concatenate([ts[:1], later])

    return jnp.log(rise / rise.sum()), times
