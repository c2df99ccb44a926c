"""Masks for inpainting: which pixels of an image are measured.

A mask is a function of the shape of an image (H, W, C), and returns (H, W, 1).
"""

from __future__ import annotations

import math

import numpy as np

from diffusion_jax.core.errors import UserError, need_ranges

Mask = np.ndarray  # (H, W, 1) float32: 1 is measured, 0 is to be painted


def half(shape: tuple[int, ...]) -> Mask:
    """The upper half is measured.

    Args:
      shape: shape of an image, (H, W, C).

    Returns:
      The mask, (H, W, 1).
    """
    mask = np.zeros((*shape[:2], 1), np.float32)
    mask[: shape[0] // 2] = 1
    return mask


def box(shape: tuple[int, ...], side: float = 0.5) -> Mask:
    """Everything but a box in the middle is measured.

    Args:
      shape: shape of an image, (H, W, C).
      side: height and width of the box, as a share of the image's, between 0 and 1.

    Returns:
      The mask, (H, W, 1).

    Raises:
      UserError: if `side` is out of range.
    """
    if not 0 < side < 1:
        raise UserError(f"box(side={side}): the side is a share of the image's, between 0 and 1")
    mask = np.ones((*shape[:2], 1), np.float32)
    low, high = zip(*[(round(n * (1 - side) / 2), round(n * (1 + side) / 2)) for n in shape[:2]])
    mask[low[0] : high[0], low[1] : high[1]] = 0
    return mask


def random(shape: tuple[int, ...], keep: float = 0.3, seed: int = 0) -> Mask:
    """Random pixels are measured.

    Args:
      shape: shape of an image, (H, W, C).
      keep: the share of pixels that are measured, between 0 and 1.
      seed: seed of the choice of pixels, from 0 to 2^32 - 1.

    Returns:
      The mask, (H, W, 1).

    Raises:
      UserError: if `keep` or `seed` is out of range.
    """
    need_ranges("random", seed=(seed, 0, 2**32 - 1))
    if not 0 < keep < 1:
        raise UserError(f"random(keep={keep}): the share of known pixels is between 0 and 1")
    order = np.random.Generator(np.random.Philox(seed)).permutation(math.prod(shape[:2]))
    return (order < round(keep * order.size)).astype(np.float32).reshape(*shape[:2], 1)


# The members of the family, which a config may name.
MASKS = (half, box, random)
