"""Thresholding: functions of a denoiser that keep x0-hat within the range of the data.

It comes after guidance (guidance.py), because it is not affine.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from diffusion_jax.core.arrays import expand
from diffusion_jax.core.types import Array, Cond, Denoise, Prediction, Process
from diffusion_jax.denoisers.parameterization import END_TIME, has_end_time
from diffusion_jax.processes.gaussian import with_x0


def clip_x0(denoise: Denoise, process: Process, low: float = -1.0, high: float = 1.0) -> Denoise:
    """Clips x0-hat to the range of the data and recomputes eps-hat (Ho et al. 2020's code).

    This is DDIM's `clip_denoised`. A prediction for which the end of the move is given, cond['to'],
    is not clipped. It is the average velocity of MeanFlow as a pair (x0, eps), whose x0 is an
    average over the move and leaves the data's range where guidance is part of what the network
    learned. The last move has no end time; its x0-hat is clipped.

    Args:
      denoise: the denoiser to threshold.
      process: the process of x_t.
      low: lower end of the data's range.
      high: upper end of the data's range.

    Returns:
      The thresholded denoiser.
    """
    return _map_x0(denoise, process, lambda x0: jnp.clip(x0, low, high))


def dynamic_threshold(denoise: Denoise, process: Process, percentile: float = 99.5) -> Denoise:
    """Imagen's dynamic thresholding (Saharia et al. 2022, sec. 2.3): clip(x0-hat, -s, s) / s.

    s is a percentile of each image's |x0-hat|, and at least 1. As in `clip_x0`, a prediction for
    which the end of the move is given is not changed.

    Args:
      denoise: the denoiser to threshold.
      process: the process of x_t.
      percentile: the percentile of |x0-hat|, in [0, 100].

    Returns:
      The thresholded denoiser.
    """

    def squeeze(x0: Array) -> Array:
        s = jnp.percentile(jnp.abs(x0).reshape(x0.shape[0], -1), percentile, axis=1)
        s = expand(jnp.maximum(s, 1.0), x0)
        return jnp.clip(x0, -s, s) / s

    return _map_x0(denoise, process, squeeze)


def _map_x0(denoise: Denoise, process: Process, change: Callable[[Array], Array]) -> Denoise:
    """The denoiser with x0-hat replaced by change(x0-hat); average velocities are not changed."""

    def changed(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        prediction = denoise(x_t, t, cond)
        if has_end_time(cond):
            return prediction
        return with_x0(process, prediction, x_t, change(prediction.x0), t)

    return changed


def without_end_time(denoise: Denoise) -> Denoise:
    """Removes cond['to'] from the condition, for networks that have no second time.

    Under few_step.jump such a denoiser, thresholded or not, gives DDIM.

    Args:
      denoise: a denoiser of a network with a single time.

    Returns:
      The same denoiser, which ignores cond['to'].
    """

    def with_one_time(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        if has_end_time(cond):
            cond = {name: value for name, value in cond.items() if name != END_TIME} or None
        return denoise(x_t, t, cond)

    return with_one_time
