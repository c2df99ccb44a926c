"""Pillow's bicubic resize of 8-bit images, bit for bit, in JAX.

The preprocessing of published networks is `Image.resize(..., BICUBIC)`: Keys' cubic kernel
(a = -1/2), widened by the scale where an image shrinks (antialiasing), along the rows and then
along the columns, with 8-bit pixels between the two. The weights are fixed-point numbers of 22
fractional bits, so that integers give exactly the same pixels on every device.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.types import Array

BITS = 22  # of the fractions of the weights
SUPPORT = 2.0  # the kernel is zero beyond


def bicubic(images: Array, size: int) -> Array:
    """Resize images as Pillow does.

    Args:
      images: uint8 (B, H, W, C).
      size: height and width of the result in pixels.

    Returns:
      uint8 (B, size, size, C).
    """
    height, width = images.shape[1:3]
    x = images.astype(jnp.int32)
    x = _to_pixels(jnp.einsum("qw,bhwc->bhqc", _fixed_point(width, size), x))
    x = _to_pixels(jnp.einsum("ph,bhqc->bpqc", _fixed_point(height, size), x))
    return x.astype(jnp.uint8)


def center_square(images: Array) -> Array:
    """Cut the largest square out of the center of images.

    Args:
      images: (B, H, W, C).

    Returns:
      (B, S, S, C), S = min(H, W); where the margins differ, the one above or to the left is the
      smaller one.
    """
    height, width = images.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, top : top + side, left : left + side]


def weights(size: int, target: int) -> np.ndarray:
    """Return the weights of the source pixels in each target pixel, before they are rounded.

    Args:
      size: the number of source pixels.
      target: the number of target pixels.

    Returns:
      (target, size), float64; every row sums to 1.
    """
    scale = size / target
    widening = max(scale, 1.0)
    center = (np.arange(target) + 0.5) * scale
    first = np.maximum((center - SUPPORT * widening + 0.5).astype(int), 0)
    end = np.minimum((center + SUPPORT * widening + 0.5).astype(int), size)
    source = np.arange(size)
    found = _keys((source - center[:, None] + 0.5) / widening)
    found *= (source >= first[:, None]) & (source < end[:, None])
    return found / found.sum(1, keepdims=True)


def _fixed_point(size: int, target: int) -> np.ndarray:
    """Return `weights` times 2^BITS, rounded half away from zero, int32."""
    scaled = weights(size, target) * 2**BITS
    return np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int32)


def _to_pixels(sums: Array) -> Array:
    """Round sums in units of 2^-BITS to pixels from 0 to 255."""
    return jnp.clip((sums + (1 << (BITS - 1))) >> BITS, 0, 255)


def _keys(x: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel with a = -1/2 (Keys 1981)."""
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
