"""The weights of UniPC (Zhao et al. 2023), which multistep.unipc combines predictions with."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.types import Array, Process
from diffusion_jax.samplers import exponential
from diffusion_jax.samplers.exponential import log_ratio, phi
from diffusion_jax.samplers.history import History, allowed


class Corrected(NamedTuple):
    """The memory of a solver that corrects its moves.

    Attributes:
      history: the predictions.
      x: x where the last move began, (B, ...).
    """

    history: History
    x: Array


def weights(process: Process, variant: str, t: Array, others: Array, s: Array) -> Array:
    """Returns the weights of the predictions in the move from t to s (Zhao et al. 2023, sec. 3).

    Args:
      process: the process of x.
      variant: B(h) of the paper, -h ('bh1') or expm1(-h) ('bh2').
      t: where the move begins, a scalar, and the time of the first prediction.
      others: the times of the other predictions, (p - 1,); for the corrector the last of them is s.
      s: where the move ends, a scalar.

    Returns:
      The weights, (p,), that of the prediction at t first.
    """
    h = log_ratio(process, s) - log_ratio(process, t)
    first = -process.alpha(s) * jnp.expm1(-h)
    if not len(others):
        return first[None]
    r = (log_ratio(process, others) - log_ratio(process, t)) / h
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


def corrected(
    process: Process, variant: str, order: int, x: Array, past: Corrected, m: Array, t: Array
) -> Array:
    """Returns x at t by the last move made again, with the prediction at its end as well.

    Args:
      process: the process of x.
      variant: 'bh1' or 'bh2', see `weights`.
      order: the highest order of the predictor; the corrector's is one more.
      x: x at t by the predictor, (B, ...), which is returned where there was no move before.
      past: the predictions before t, and x where the last move began.
      m: the prediction of x0 at x and t, (B, ...).
      t: where the last move ended, a scalar.

    Returns:
      The corrected x, (B, ...).
    """
    times = past.history.times
    table = []
    for p in range(1, order + 1):
        ends = jnp.concatenate([times[1:p], t[None]])
        w = weights(process, variant, times[0], ends, t)
        table.append(jnp.concatenate([w[:p], jnp.zeros(order - p, w.dtype), w[p:]]))
    chosen = jnp.stack(table)[allowed(process, past.history, order) - 1].astype(x.dtype)
    again = (
        exponential.carry(process, times[0], t) * past.x
        + jnp.tensordot(chosen[:-1], past.history.values, 1)
        + chosen[-1] * m
    )
    return jnp.where(past.history.count > 0, again, x)
