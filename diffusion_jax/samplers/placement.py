"""Times of a grid placed by optimization, for one model and sampler."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from diffusion_jax.errors import UserError
from diffusion_jax.processes.gaussian import logsnr, time_of_logsnr
from diffusion_jax.samplers import base
from diffusion_jax.types import Array, Cond, Denoise, Key, Process


# ---- times placed by gradient
class Placement(NamedTuple):
    """ts: (n,) decreasing times; error: the RMS error to the reference that they leave; history:
    that error after every iteration.
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
    tell: Callable[[int, float], None] | None = None,
) -> Placement:
    """Move the times ts (n,) so that the sampler, started at x (B, ...), comes as close as it can
    to `reference` (B, ...), the exact solutions.

    The sum of squared errors over a few trajectories, minimised by Levenberg-Marquardt on the
    logarithms of the log-SNR increments, with the derivative taken THROUGH the sampler in forward
    mode: there are few times, so it costs n tangents, keeps no activations and passes any loop. The
    first time stays; the last may end early, since the last move is x0-hat. The sampler must be
    deterministic; tell(iteration, error) is called after each iteration. Raises UserError for fewer
    than two times or a start that is not finite.
    """
    if len(ts) < 2 or base.draws_noise(sampler, process):
        raise UserError("times can be placed for a deterministic sampler and at least 2 of them")
    theta, times = _increments(process, jnp.asarray(ts, x.dtype))

    def residual(theta):
        found = base.sample(sampler, denoise, process, key, x, times(theta), cond)
        return jnp.ravel(found.x0 - reference) / math.sqrt(reference.size)

    @jax.jit
    def normal_equations(theta):
        r, jacobian = residual(theta), jax.jacfwd(residual)(theta)
        return jnp.sum(r**2), jacobian.T @ jacobian, jacobian.T @ r

    loss = jax.jit(lambda theta: jnp.sum(residual(theta) ** 2))
    damping, history = 1e-2, []
    now, matrix, gradient = normal_equations(theta)
    if not np.isfinite(now):
        raise UserError(
            "the sampler's images are not finite on the grid to start from; choose another --start or sampler"
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
        if tell:
            tell(i + 1, history[-1])
        if not accepted or now > (1 - 1e-4) * before:
            break
    return Placement(times(theta), float(jnp.sqrt(now)), tuple(history))


def polish(
    score: Callable[[Array], float],
    process: Process,
    ts: Array,
    *,
    evaluations: int = 80,
    tell: Callable[[int, float], None] | None = None,
) -> Placement:
    """Move the times ts (n,) towards the least score(times), whatever it measures, in at most so
    many evaluations of it.

    Nelder & Mead's simplex (1965; scipy) in the coordinates of `optimize`: for scores without a
    derivative worth taking, such as the Frechet distance of many images. The result is never worse
    than ts. tell(evaluation, least score so far) follows it.
    """
    theta, times = _increments(process, jnp.asarray(ts))
    times, history = jax.jit(times), []

    def measured(theta) -> float:
        found = score(times(jnp.asarray(theta, ts.dtype)))
        history.append(min([found, *history[-1:]]))
        if tell:
            tell(len(history), history[-1])
        return found

    theta = np.asarray(theta, np.float64)
    simplex = np.vstack(
        [theta, theta + 0.3 * np.eye(len(theta))]
    )  # by which an increment grows by a third, about
    found = scipy.optimize.minimize(
        measured,
        theta,
        method="Nelder-Mead",
        options={"maxfev": evaluations, "initial_simplex": simplex, "fatol": 1e-4, "xatol": 1e-3},
    )
    if (
        before := score(ts)
    ) <= found.fun:  # the coordinates keep a thousandth of the span for every increment
        return Placement(ts, float(before), (*history, float(before)))
    return Placement(times(jnp.asarray(found.x, ts.dtype)), float(found.fun), tuple(history))


def _increments(process: Process, ts: Array) -> tuple[Array, Callable[[Array], Array]]:
    """(theta (n,), times): free coordinates of decreasing times, the logarithms of their log-SNR
    increments, and the way back.

    The first time stays; the last increment is what is left between the last time and t_min.
    """
    lam = logsnr(process, jnp.append(ts, process.t_min).astype(ts.dtype))
    span = lam[-1] - lam[0]
    rise = jnp.maximum(jnp.diff(lam) / span, 1e-3)

    def times(theta: Array) -> Array:
        later = time_of_logsnr(process, lam[0] + span * jnp.cumsum(jax.nn.softmax(theta))[:-1])
        return jnp.concatenate([ts[:1], later])

    return jnp.log(rise / rise.sum()), times
