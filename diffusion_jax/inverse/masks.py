"""Masks for inpainting: which pixels of an image are observed."""

from __future__ import annotations

import math

import numpy as np

from diffusion_jax.errors import UserError, need_ranges

Mask = np.ndarray  # (H, W, 1) float32: 1 is measured, 0 is to be painted


# ---- masks: functions of the shape of an image
def half(shape: tuple[int, ...]) -> Mask:
    """The upper half is known."""
    mask = np.zeros((*shape[:2], 1), np.float32)
    mask[: shape[0] // 2] = 1
    return mask


def box(shape: tuple[int, ...], side: float = 0.5) -> Mask:
    """All is known but a box in the middle, `side` of the height and of the width."""
    if not 0 < side < 1:
        raise UserError(f"box(side={side}): the side is a share of the image's, between 0 and 1")
    mask = np.ones((*shape[:2], 1), np.float32)
    low, high = zip(*[(round(n * (1 - side) / 2), round(n * (1 + side) / 2)) for n in shape[:2]])
    mask[low[0] : high[0], low[1] : high[1]] = 0
    return mask


def random(shape: tuple[int, ...], keep: float = 0.3, seed: int = 0) -> Mask:
    """A share `keep` of the pixels is known, anywhere."""
    need_ranges("random", seed=(seed, 0, 2**32 - 1))
    if not 0 < keep < 1:
        raise UserError(f"random(keep={keep}): the share of known pixels is between 0 and 1")
    order = np.random.Generator(np.random.Philox(seed)).permutation(math.prod(shape[:2]))
    return (order < round(keep * order.size)).astype(np.float32).reshape(*shape[:2], 1)


# The members of the family, which a config may name.
MASKS = (half, box, random)
