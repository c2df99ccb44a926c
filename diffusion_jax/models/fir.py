"""Halving and doubling of feature maps by a separable filter (Zhang 2019; Karras et al. 2019).

    down:  y_i = sum_k f_k x_(2i + k - p)              up:  y_q = 2 sum_i f_(q + p - 2i) x_i

along each axis, with f of an even number n of taps that sum to one, p = n / 2 - 1, and zeros
outside of x. (1, 1) averages blocks of pixels and repeats pixels; (1, 3, 3, 1) is the filter of
NCSN++ (Song et al. 2021, appendix H).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array


def filtered(
    x: Array, direction: str, taps: Sequence[int | float] = (1, 3, 3, 1), pad: bool = True
) -> Array:
    """Halves or doubles the axes between the first and the last.

    Args:
      x: features, (B, ..., C), whose axes are even where they are halved.
      direction: 'down' or 'up'.
      taps: the filter, an even number of values with a sum that is not 0.
      pad: False for a map that already has its p zeros, or other values, on each side ('down').

    Returns:
      (B, ..., C), of half or twice the length along each axis.

    Raises:
      UserError: for an odd number of taps.
    """
    if len(taps) % 2 or not taps or not sum(taps):
        raise UserError(
            f"resample_filter={tuple(taps)} must have an even number of taps whose sum is not 0, "
            "such as (1, 1) or (1, 3, 3, 1)"
        )
    total = sum(taps)
    for axis in range(1, x.ndim - 1):
        if direction == "down":
            x = _halved(x, axis, [tap / total for tap in taps], pad)
        else:
            x = _doubled(x, axis, [2 * tap / total for tap in taps])
    return x


def _halved(x: Array, axis: int, taps: list[float], pad: bool) -> Array:
    """The filter and every second of its results, as sums of the even and the odd elements."""
    half = len(taps) // 2
    if pad:
        x = _padded(x, axis, half - 1)
    pairs = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
    parts = [jax.lax.index_in_dim(pairs, r, axis + 1, keepdims=False) for r in (0, 1)]
    length = pairs.shape[axis] - (half - 1)
    return sum(
        taps[2 * j + r] * jax.lax.slice_in_dim(parts[r], j, j + length, axis=axis)
        for j in range(half)
        for r in (0, 1)
    )


def _doubled(x: Array, axis: int, taps: list[float]) -> Array:
    """The even and the odd results, each a filter of half as many taps, interleaved."""
    half, length = len(taps) // 2, x.shape[axis]
    x = _padded(x, axis, half)
    phases = []
    for phase in (0, 1):
        shift, r = divmod(phase + half - 1, 2)
        starts = [half + shift - j for j in range(half)]
        phases.append(
            sum(
                taps[2 * j + r] * jax.lax.slice_in_dim(x, start, start + length, axis=axis)
                for j, start in enumerate(starts)
            )
        )
    doubled = jnp.stack(phases, axis + 1)
    return doubled.reshape(*x.shape[:axis], 2 * length, *x.shape[axis + 1 :])


def _padded(x: Array, axis: int, count: int) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (count, count)
    return jnp.pad(x, widths)
