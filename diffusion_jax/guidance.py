"""Guidance and thresholding: functions from denoisers to a denoiser, so that they work under every sampler and compose by calling."""

from __future__ import annotations

from typing import Callable

import jax
import jax.numpy as jnp

from diffusion_jax.arrays import expand, tree_lerp
from diffusion_jax.processes.gaussian import from_x0
from diffusion_jax.types import Array, Cond, Denoise, Prediction, Process


def cfg(denoise: Denoise, scale: float | Array, null: Callable[[Cond], Cond]) -> Denoise:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6): unconditional + scale (conditional - unconditional).

    scale 0 is unconditional, 1 conditional, above 1 exaggerates the condition. null(cond) -> the condition that says nothing, of
    cond's structure. Both passes are one batched call of twice the batch; scale may be traced. A learned variance is interpolated
    but never extrapolated, as nu outside [-1, 1] is no variance between beta-tilde and beta.
    """

    def guided(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        t = jnp.broadcast_to(t, x_t.shape[:1])
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), cond, null(cond))
        prediction = denoise(jnp.concatenate([x_t, x_t]), jnp.concatenate([t, t]), both)
        conditional, unconditional = (jax.tree.map(lambda p: p[half], prediction) for half in _halves(x_t.shape[0]))
        mixed = tree_lerp(unconditional, conditional, scale)
        if mixed.nu is None:
            return mixed
        return mixed._replace(nu=tree_lerp(unconditional.nu, conditional.nu, jnp.clip(scale, 0.0, 1.0)))

    return guided


def _halves(batch: int) -> tuple[slice, slice]:
    return slice(0, batch), slice(batch, None)


def clip_x0(denoise: Denoise, process: Process, low: float = -1.0, high: float = 1.0) -> Denoise:
    """x0-hat clipped to the data's range, eps-hat to match (Ho et al. 2020's code; DDIM's 'clip_denoised')."""
    return _with_x0(denoise, process, lambda x0: jnp.clip(x0, low, high))


def dynamic_threshold(denoise: Denoise, process: Process, percentile: float = 99.5) -> Denoise:
    """Imagen's dynamic thresholding (Saharia et al. 2022, sec. 2.3): clip x0-hat to [-s, s] and divide by s, where s is this
    percentile of each image's |x0-hat|, at least 1."""

    def squeeze(x0: Array) -> Array:
        s = jnp.percentile(jnp.abs(x0).reshape(x0.shape[0], -1), percentile, axis=1)
        s = expand(jnp.maximum(s, 1.0), x0)
        return jnp.clip(x0, -s, s) / s

    return _with_x0(denoise, process, squeeze)


def _with_x0(denoise: Denoise, process: Process, change) -> Denoise:
    """The denoiser whose x0-hat is change(x0-hat), with the eps that x_t then implies; a learned variance is kept."""

    def changed(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        prediction = denoise(x_t, t, cond)
        return from_x0(process, x_t, change(prediction.x0), t)._replace(nu=prediction.nu)

    return changed
