"""Two guidances at once: away from the unconditional prediction, and from a worse network's.

    unconditional + w (conditional - unconditional) + s (conditional - worse)

(Ahn et al. 2024, perturbed-attention with classifier-free guidance; Stability AI 2024, skip-layer
guidance of Stable Diffusion 3.5, whose second term is limited to some noise levels). These are
three evaluations, of which the first two are one batch.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_jax.core.arrays import expand
from diffusion_jax.core.types import Array, Cond, Denoise, Prediction, Process
from diffusion_jax.denoisers import guidance

# (better prediction, x_t, t, cond) -> (x0, eps) of the better minus those of a worse prediction.
Difference = Callable[..., tuple[Array, Array]]


def with_second(
    pair: guidance.PredictionPair, scale: float | Array, away: Difference, second: float | Array
) -> Denoise:
    """Leads away from two worse predictions (Ahn et al. 2024, PAG with classifier-free guidance).

        worse + scale (better - worse) + second (better - other)

    Args:
      pair: a function (x_t, t, cond) -> (better, worse).
      scale: scale of the pair, as in `guidance.extrapolate`.
      away: the difference of the better prediction to another.
      second: factor of it.

    Returns:
      The guided denoiser.
    """

    def guided(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        better, worse = pair(x_t, t, cond)
        plain, (x0, eps) = guidance.mixed(better, worse, scale), away(better, x_t, t, cond)
        return plain._replace(x0=plain.x0 + second * x0, eps=plain.eps + second * eps)

    return guided


def difference(worse: Denoise) -> Difference:
    """The difference of a prediction to that of a worse denoiser.

    Args:
      worse: the denoiser to lead away from.
    """

    def away(better: Prediction, x_t: Array, t: Array, cond: Cond = None) -> tuple[Array, Array]:
        other = worse(x_t, t, cond)
        return better.x0 - other.x0, better.eps - other.eps

    return away


def difference_inside(
    away: Difference, process: Process, low: float | Array, high: float | Array
) -> Difference:
    """The difference at some noise levels, and 0 at the others, where it costs nothing.

    Args:
      away: the difference.
      process: the process of x_t.
      low: lower end of the interval of sigma / alpha, excluded.
      high: upper end of the interval, included.
    """

    def limited(better: Prediction, x_t: Array, t: Array, cond: Cond = None) -> tuple:
        t = jnp.asarray(t)
        if t.ndim == 0:

            def none(*_: object) -> tuple[Array, Array]:
                return jnp.zeros_like(better.x0), jnp.zeros_like(better.eps)

            return jax.lax.cond(
                guidance.inside(process, t, low, high), away, none, better, x_t, t, cond
            )
        here = expand(guidance.inside(process, t, low, high), x_t)
        return jax.tree.map(lambda d: jnp.where(here, d, 0), away(better, x_t, t, cond))

    return limited
