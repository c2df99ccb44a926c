"""Convolutions whose gradients are fast inside loops on CPUs.

    y = x * w,        <dy, y> = <dx, x>  with  dx = dy * flipped(w),
                                dw = x * dy,  a convolution whose kernel is dy and whose channels
                                              are the examples

XLA's CPU runs a convolution fast if its arrays are stored as (B, H, W, C), (H, W, in, out) and
(B, H, W, C). Outside of loops its compiler transposes the arrays of other convolutions. Inside of a
loop it does not, and they take 20 to 200 times as long (jax 0.10 to 0.12). The two derivatives are
such convolutions. Here the transposes are written out, behind barriers that keep the compiler from
putting them back.

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

LAYOUT = ("NHWC", "HWIO", "NHWC")


def convolve(
    x: Array,
    kernel: Array,
    strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    **options: Any,
) -> Array:
    """jax.lax.conv_general_dilated of images, with its results and derivatives.

    It is that function itself for other platforms than CPUs, within `forward_mode`, and for grouped
    or dilated convolutions.

    Args:
      x: (B, H, W, C).
      kernel: (height, width, C, channels).
      strides: of both dimensions.
      padding: 'SAME', 'VALID', or (before, after) for both dimensions.
      **options: of jax.lax.conv_general_dilated.

    Returns:
      (B, H', W', channels).
    """
    plain = {"feature_group_count": 1, "lhs_dilation": (1, 1), "rhs_dilation": (1, 1)}
    special = any(options.get(name) not in (None, value) for name, value in plain.items())
    if special or forward_mode.active() or arrays.platform() != "cpu":
        return jax.lax.conv_general_dilated(
            x, kernel, strides, padding, **{"dimension_numbers": LAYOUT} | options
        )
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    return _convolve(x, kernel, tuple(strides), tuple(map(tuple, padding)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _convolve(x: Array, kernel: Array, strides: tuple, padding: tuple) -> Array:
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=LAYOUT)


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
    """dx * kernel. Its transpose has a kernel (H, W, in, out), where in and out change places."""
    kernel = _transposed(kernel, (0, 1, 3, 2))
    layout = ("NHWC", "HWOI", "NHWC")
    return jax.lax.conv_general_dilated(dx, kernel, strides, padding, dimension_numbers=layout)


def _by_kernel(x: Array, d_kernel: Array, strides: tuple, padding: tuple) -> Array:
    """x * d_kernel. In its transpose the channels of x are the examples."""
    x, d_kernel = _transposed(x, (3, 1, 2, 0)), _transposed(d_kernel, (2, 0, 1, 3))
    layout = ("CHWN", "IHWO", "HWNC")
    dy = jax.lax.conv_general_dilated(x, d_kernel, strides, padding, dimension_numbers=layout)
    return _transposed(dy, (2, 0, 1, 3))


def _transposed(x: Array, axes: tuple[int, ...]) -> Array:
    """The transpose alone: neither folded into a convolution nor fused with what makes x."""
    return jax.lax.optimization_barrier(x.transpose(axes))
