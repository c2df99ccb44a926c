"""What multistep solvers share: the memory of earlier predictions, and the loop over orders.

A multistep solver replaces the prediction by a polynomial through its last values, which is
integrated against the exponential of the linear part (exponential.py) or as it is. A step is then
carry * x + sum_j weight_j value_j, and a solver is no more than its weights. Order p is reached
after p - 1 steps of rising order.

At the end of a grid the order falls again (lower_order_final, as in diffusers): the last step has
order 1, the one before it at most 2, and so on, if the last step is long, that is, more than LONG
times the step before it in log(alpha / sigma). On grids in t it is several times as long, and a
polynomial through earlier values says nothing so far from them. Where the lengths of steps change
smoothly they become equal as the grid is refined, so the order of convergence is kept. The move to
x0-hat that `base.sample` makes after the last step is not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from diffusion_jax.core.types import Array, Prediction, Process
from diffusion_jax.samplers.base import Sampler
from diffusion_jax.samplers.exponential import log_ratio

LONG = 1.5
THIRD_ORDER = "logistic(scale=1.5)"  # the grid of data-prediction solvers of order 3 or more


class History(NamedTuple):
    """The last K predictions of a run, newest first.

    Attributes:
      values: (K, B, ...).
      times: the times that they were made at, (K,).
      count: number of predictions so far, a scalar.
      steps: number of steps of the grid, a scalar; very large if the order must not fall.
      final: the last three times of the grid, (3,).
    """

    values: Array
    times: Array
    count: Array
    steps: Array
    final: Array


def empty(size: int, x: Array, ts: Array, lower_order_final: bool = True) -> History:
    """Returns a history without predictions.

    Args:
      size: K, the number of predictions to remember.
      x: (B, ...), which the predictions are like.
      ts: the grid, (n,), which may be padded.
      lower_order_final: whether the order falls at the end of the grid.

    Returns:
      The history, with zeros as values and count 0.
    """
    steps = jnp.sum(ts[1:] != ts[:-1])
    final = ts[jnp.maximum(steps - jnp.array([2, 1, 0]), 0)]
    steps = jnp.asarray(steps if lower_order_final else 2**30, jnp.int32)
    return History(
        jnp.zeros((size, *x.shape), x.dtype), jnp.full(size, ts[0]), jnp.int32(0), steps, final
    )


def remember(history: History, value: Array, t: Array) -> History:
    """Returns a history with one more prediction in front, without its oldest one.

    Args:
      history: the last K predictions.
      value: the new prediction, (B, ...).
      t: the time that it was made at, a scalar.
    """
    values = jnp.concatenate([value[None], history.values])[: len(history.values)]
    times = jnp.concatenate([t[None], history.times])[: len(history.times)]
    return history._replace(values=values, times=times, count=history.count + 1)


def allowed(process: Process, history: History, order: int, more: int = 0) -> Array:
    """Returns how many predictions the step from the newest one uses.

    It uses as many as there are; if the grid's last step is long, no more than there are steps
    left, this one included, plus `more`.

    Args:
      process: the process, whose log-SNR measures the steps.
      history: the predictions, of which the newest is at the beginning of the step.
      order: the highest order of the solver, at least 1.
      more: added to the number of steps left; 0 for a predictor, 2 for a corrector, whose move is
        made already and has a prediction at its end.

    Returns:
      A number from 1 to `order`, a scalar int32.
    """
    before, last = jnp.abs(jnp.diff(log_ratio(process, history.final)))
    left = jnp.where(last > LONG * before, history.steps - history.count + 1 + more, order)
    return jnp.clip(jnp.minimum(history.count, left), 1, order)


def combine(process: Process, weights: list[Array], history: History, more: int = 0) -> Array:
    """Returns sum_j weight_j value_j, with the weights of the order that is `allowed`.

    Args:
      process: the process, whose log-SNR measures the steps.
      weights: the weights of every order; weights[p - 1], (p,), are those of order p.
      history: the values, newest first.
      more: see `allowed`.

    Returns:
      The sum, (B, ...).
    """
    size = len(history.values)
    table = jnp.stack([jnp.concatenate([w, jnp.zeros(size - len(w), w.dtype)]) for w in weights])
    chosen = table[allowed(process, history, len(weights), more) - 1]
    return jnp.tensordot(chosen.astype(history.values.dtype), history.values, 1)


def solver(
    order: int,
    predict: Callable[[Prediction], Array],
    carry: Callable[[Process, Array, Array], Array],
    weights: Callable[[Process, int, Array, Array], Array],
    level: Callable[[Process, Array, Array], Array] | None = None,
    *,
    lower_order_final: bool = True,
    grid: str = "logistic()",
) -> Sampler:
    """Makes the solver x_s = carry x_t + sum_j weight_j value_j + level z.

    Args:
      order: the highest order, and the number of predictions that are remembered.
      predict: the value that is remembered of a Prediction, (B, ...).
      carry: carry(process, t, s), the factor of x.
      weights: weights(process, p, times, s), (p,), for the values at times (p,).
      level: level(process, t, s), the standard deviation of the noise of a stochastic solver.
      lower_order_final: whether the order falls at the end of the grid.
      grid: spec of the grid that suits the solver.

    Returns:
      The sampler, with one network evaluation per step.
    """

    def step(noise, x, history, t, s, denoise, process, cond):
        history = remember(history, predict(denoise(x, t, cond)), t)
        w = [weights(process, p, history.times[:p], s) for p in range(1, order + 1)]
        x = carry(process, t, s) * x + combine(process, w, history)
        return x + level(process, t, s) * noise.path(t, s) if level else x, history

    return Sampler(lambda x, ts: empty(order, x, ts, lower_order_final), step, grid=grid)
