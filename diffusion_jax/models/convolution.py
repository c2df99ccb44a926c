"""Convolutions whose gradients are fast inside loops on CPUs.

    y = x * w,        <dy, y> = <dx, x>  with  dx = dy * flipped(w),
                                dw = x * dy,  a convolution whose kernel is dy and whose channels
                                              are the examples

XLA's CPU runs a convolution fast if its arrays are stored as (B, H, W, C), (H, W, in, out) and
(B, H, W, C). Outside of loops its compiler transposes the arrays of other convolutions. Inside of a
loop it does not, and they take 20 to 200 times as long (jax 0.10 to 0.12). The two derivatives are
such convolutions. Here the transposes are written out, behind barriers that keep the compiler from
putting them back. The same is done along one and three axes.

The rule states the tangent, dx * w + x * dw, as convolutions of transposed arrays. For reverse mode
JAX transposes these again, which gives the two products above in the fast order of axes. In forward
mode they would be slow in loops; within `forward_mode` the rule is that of JAX.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero

from diffusion_jax.core import arrays, forward_mode
from diffusion_jax.core.types import Array

AXES = "DHW"  # the last d of them name the axes of series, images and volumes


def layout(axes: int) -> tuple[str, str, str]:
    """The order of the axes of x, kernel and result, as jax.lax.conv_general_dilated names them.

    Args:
      axes: number of axes between examples and channels, 1 to 3.
    """
    own = AXES[-axes:]
    return f"N{own}C", f"{own}IO", f"N{own}C"


def convolve(
    x: Array,
    kernel: Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Array:
    """jax.lax.conv_general_dilated of series, images or volumes, with its results and derivatives.

    It is that function itself for other platforms than CPUs, within `forward_mode`, and for grouped
    or dilated convolutions.

    Args:
      x: (B, N_1, ..., N_d, C) with d = 1 to 3.
      kernel: (K_1, ..., K_d, C, channels).
      strides: along each axis.
      padding: 'SAME', 'VALID', or (before, after) for each axis.
      **options: of jax.lax.conv_general_dilated.

    Returns:
      (B, N_1', ..., N_d', channels).
    """
    axes = x.ndim - 2
    ones = (1,) * axes
    plain = {"feature_group_count": 1, "lhs_dilation": ones, "rhs_dilation": ones}
    special = any(options.get(name) not in (None, value) for name, value in plain.items())
    if special or forward_mode.active() or arrays.platform() != "cpu":
        return jax.lax.conv_general_dilated(
            x, kernel, strides, padding, **{"dimension_numbers": layout(axes)} | options
        )
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:-1], kernel.shape[:axes], strides, padding)
    return _convolve(x, kernel, tuple(strides), tuple(map(tuple, padding)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _convolve(x: Array, kernel: Array, strides: tuple, padding: tuple) -> Array:
    numbers = layout(len(strides))
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)


@functools.partial(_convolve.defjvp, symbolic_zeros=True)
def _tangent(strides: tuple, padding: tuple, primals: tuple, tangents: tuple) -> tuple:
    (x, kernel), (dx, d_kernel) = primals, tangents
    tangent = 0.0
    if not isinstance(dx, SymbolicZero):
        tangent += _by_image(dx, kernel, strides, padding)
    if not isinstance(d_kernel, SymbolicZero):
        tangent += _by_kernel(x, d_kernel, strides, padding)
    return _convolve(x, kernel, strides, padding), tangent


def _by_image(dx: Array, kernel: Array, strides: tuple, padding: tuple) -> Array:
    """dx * kernel. Its transpose has a kernel (..., in, out), where in and out change places."""
    axes = len(strides)
    kernel = _transposed(kernel, (*range(axes), axes + 1, axes))
    given, _, made = layout(axes)
    numbers = (given, f"{AXES[-axes:]}OI", made)
    return jax.lax.conv_general_dilated(dx, kernel, strides, padding, dimension_numbers=numbers)


def _by_kernel(x: Array, d_kernel: Array, strides: tuple, padding: tuple) -> Array:
    """x * d_kernel. In its transpose the channels of x are the examples."""
    axes = len(strides)
    own, last = AXES[-axes:], axes + 1
    x = _transposed(x, (last, *range(1, last), 0))
    d_kernel = _transposed(d_kernel, (axes, *range(axes), last))
    numbers = (f"C{own}N", f"I{own}O", f"{own}NC")
    dy = jax.lax.conv_general_dilated(x, d_kernel, strides, padding, dimension_numbers=numbers)
    return _transposed(dy, (axes, *range(axes), last))


def _transposed(x: Array, axes: tuple[int, ...]) -> Array:
    """The transpose alone: neither folded into a convolution nor fused with what makes x."""
    return jax.lax.optimization_barrier(x.transpose(axes))
