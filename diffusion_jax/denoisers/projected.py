"""Guidance that projects one prediction onto another: APG and CFG-Zero*.

    apg(pair, scale, process)         leads away orthogonally to the better prediction
    cfg_zero(pair, scale, process)    leads away from the best multiple of the worse velocity

A pair is guidance.conditional_pair or guidance.model_pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp

from diffusion_jax.core.arrays import expand, sum_per_example
from diffusion_jax.core.types import Array, Cond, Denoise, Prediction, Process
from diffusion_jax.denoisers import parameterization
from diffusion_jax.denoisers.guidance import PredictionPair, mixed
from diffusion_jax.processes.gaussian import velocity, with_x0

SMALLEST = 1e-24  # the least square of a norm that is divided by


def apg(
    pair: PredictionPair,
    scale: float | Array,
    process: Process,
    eta: float = 0.0,
    norm_threshold: float = math.inf,
) -> Denoise:
    """Adaptive projected guidance (Sadat et al. 2024) against oversaturation.

        d = x0-better - x0-worse,    d <- d min(1, norm_threshold / |d|)
        x0 = x0-better + (scale - 1) (d_orthogonal + eta d_parallel)

    d_parallel is the part of d along x0-better, and d_orthogonal the rest. The parallel part mostly
    increases saturation. The momentum of the paper is left out: it needs a memory of earlier steps,
    which a denoiser does not have. eta = 1 without a limit is `extrapolate`.

    Args:
      pair: a function (x_t, t, cond) -> (better, worse).
      scale: guidance scale, as in `extrapolate`; 1 is the better prediction.
      process: the process of x_t.
      eta: factor of the parallel part, in [0, 1].
      norm_threshold: the largest Euclidean norm of d, over all values of an image.

    Returns:
      The guided denoiser.
    """

    def guided(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        better, worse = pair(x_t, t, cond)
        difference = better.x0 - worse.x0
        norm = jnp.sqrt(jnp.maximum(sum_per_example(difference**2), SMALLEST))
        difference = difference * expand(jnp.minimum(1.0, norm_threshold / norm), x_t)
        parallel = projection(difference, better.x0)
        x0 = better.x0 + (scale - 1) * (difference + (eta - 1) * parallel)
        return with_x0(process, mixed(better, worse, scale), x_t, x0, t)

    return guided


def cfg_zero(
    pair: PredictionPair, scale: float | Array, process: Process, zero_init: float = 0.0
) -> Denoise:
    """CFG-Zero* (Fan et al. 2025): rescales the worse velocity.

        v = s* v_worse + scale (v_better - s* v_worse),    s* = <v_better, v_worse> / |v_worse|^2
        v = 0  for  t > t_max - zero_init (t_max - t_min)

    v is the probability-flow velocity, as which the network of rectified flow is trained; s* is the
    least-squares coefficient, the minimum of |v_better - s v_worse|^2, of each image. A velocity of
    0 leaves x_t where it is.

    Args:
      pair: a function (x_t, t, cond) -> (better, worse).
      scale: guidance scale, as in `extrapolate`; 1 is the better prediction.
      process: the process of x_t.
      zero_init: fraction of the time of the process, at its noise end, in which v is 0. On equal
        times it is the fraction of the steps, rounded up.

    Returns:
      The guided denoiser.
    """
    flow = parameterization.velocity()

    def guided(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        better, worse = pair(x_t, t, cond)
        v_better, v_worse = velocity(process, better, t), velocity(process, worse, t)
        v_worse = projection(v_better, v_worse)
        v = v_worse + scale * (v_better - v_worse)
        x0, eps = parameterization.decode(flow, process, v, x_t, t)[:2]
        return mixed(better, worse, scale)._replace(x0=x0, eps=eps)

    if not zero_init:
        return guided
    return still(guided, process, in_first_part(process, zero_init))


def in_first_part(process: Process, fraction: float) -> Callable[[Array], Array]:
    """Whether times are in the first part of the way from noise to data.

        t > t_max - f (t_max - t_min)

    Args:
      process: the process, whose times these are.
      fraction: the fraction f of all times.

    Returns:
      A function t -> bool, of the shape of t.
    """
    least = process.t_max - fraction * (process.t_max - process.t_min)
    return lambda t: jnp.asarray(t) > least


def still(denoise: Denoise, process: Process, when: Callable[[Array], Array]) -> Denoise:
    """Leaves x_t where it is at some times: the velocity of the prediction is 0 there.

    It comes after thresholding, which would change the velocity.

    Args:
      denoise: the denoiser at all other times.
      process: the process of x_t.
      when: a function t -> bool, of the shape of t.

    Returns:
      The denoiser.
    """
    flow = parameterization.velocity()

    def held(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        prediction = denoise(x_t, t, cond)
        x0, eps = parameterization.decode(flow, process, jnp.zeros_like(x_t), x_t, t)[:2]
        there = expand(when(t), x_t)
        return prediction._replace(
            x0=jnp.where(there, x0, prediction.x0), eps=jnp.where(there, eps, prediction.eps)
        )

    return held


def projection(x: Array, onto: Array) -> Array:
    """The orthogonal projection of x onto the line of `onto`: <x, onto> / |onto|^2 onto.

    It is the least-squares fit of x by a multiple of `onto`, for each example.

    Args:
      x: what is projected, (B, ...).
      onto: directions, of x's shape; the projection onto 0 is 0.

    Returns:
      The projections, of x's shape.
    """
    square = jnp.maximum(sum_per_example(onto**2), SMALLEST)
    return expand(sum_per_example(x * onto) / square, x) * onto
