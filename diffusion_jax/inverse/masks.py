"""Masks for inpainting: which values of a sample are measured.

A mask is a function of the shape of a sample (N_1, ..., N_d, C), such as an image's (H, W, C). It
returns one value for all channels of a place, (N_1, ..., N_d, 1), or `channels` one for all places
of a channel. The values of a vector (D,) are its columns.
"""

from __future__ import annotations

import math

import numpy as np

from diffusion_jax.core.errors import UserError, need_ranges

Mask = np.ndarray  # float32 that broadcasts to a sample: 1 is measured, 0 is to be painted


def half(shape: tuple[int, ...], axis: int = 0) -> Mask:
    """The first half along an axis is measured: the upper half of an image, the past of a series.

    Args:
      shape: shape of a sample, such as (H, W, C).
      axis: the axis that is halved; 1 is the width of an image.

    Returns:
      The mask, such as (H, W, 1).

    Raises:
      UserError: for an axis that samples do not have.
    """
    extents = _extents(shape)
    _check_axes(f"half(axis={axis})", extents, (axis,))
    mask = np.zeros(extents, np.float32)
    np.moveaxis(mask, axis, 0)[: extents[axis] // 2] = 1
    return mask.reshape(_mask_shape(shape))


def box(shape: tuple[int, ...], side: float = 0.5, axes: tuple[int, ...] = ()) -> Mask:
    """Everything but a box in the middle is measured.

    Args:
      shape: shape of a sample, such as (H, W, C).
      side: extents of the box, as a share of the sample's, between 0 and 1.
      axes: axes along which the box is bounded; () for all. It spans the others.

    Returns:
      The mask, such as (H, W, 1).

    Raises:
      UserError: if `side` is out of range, and for axes that samples do not have.
    """
    if not 0 < side < 1:
        raise UserError(f"box(side={side}): the side is a share of the image's, between 0 and 1")
    extents = _extents(shape)
    _check_axes(f"box(axes={axes})", extents, axes)
    bounded = [
        slice(round(n * (1 - side) / 2), round(n * (1 + side) / 2))
        if not axes or i in axes
        else slice(None)
        for i, n in enumerate(extents)
    ]
    mask = np.ones(extents, np.float32)
    mask[tuple(bounded)] = 0
    return mask.reshape(_mask_shape(shape))


def random(
    shape: tuple[int, ...], keep: float = 0.3, seed: int = 0, axes: tuple[int, ...] = ()
) -> Mask:
    """Random places are measured.

    Args:
      shape: shape of a sample, such as (H, W, C).
      keep: the share of places that are measured, between 0 and 1.
      seed: seed of the choice of places, from 0 to 2^32 - 1.
      axes: axes along which it is random; () for all. With (0,) whole rows of an image, or slices
        of a volume, are measured.

    Returns:
      The mask, such as (H, W, 1).

    Raises:
      UserError: if `keep` or `seed` is out of range, and for axes that samples do not have.
    """
    need_ranges("random", seed=(seed, 0, 2**32 - 1))
    if not 0 < keep < 1:
        raise UserError(f"random(keep={keep}): the share of known pixels is between 0 and 1")
    extents = _extents(shape)
    _check_axes(f"random(axes={axes})", extents, axes)
    drawn = [n if not axes or i in axes else 1 for i, n in enumerate(extents)]
    order = np.random.Generator(np.random.Philox(seed)).permutation(math.prod(drawn))
    mask = (order < round(keep * order.size)).astype(np.float32).reshape(drawn)
    return np.ascontiguousarray(np.broadcast_to(mask, extents)).reshape(_mask_shape(shape))


def channels(shape: tuple[int, ...], known: tuple[int, ...] = (0,)) -> Mask:
    """Some channels are measured, or some columns of a vector.

    Args:
      shape: shape of a sample, such as (L, C).
      known: the numbers of the channels that are measured, from 0.

    Returns:
      The mask, (1, ..., 1, C).

    Raises:
      UserError: for channels that samples do not have, and where nothing or everything is known.
    """
    count = shape[-1]
    if not known or len(set(known)) == count or not all(0 <= c < count for c in known):
        raise UserError(
            f"channels(known={known}): samples have {count} channels, numbered from 0; name at "
            "least one, and not all of them"
        )
    mask = np.zeros((1,) * (len(shape) - 1) + (count,), np.float32)
    mask[..., list(known)] = 1
    return mask


def _extents(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The extents of the axes that a mask varies along: all but channels, or those of a vector."""
    return tuple(shape[:-1] or shape)


def _mask_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape) if len(shape) == 1 else (*shape[:-1], 1)


def _check_axes(what: str, extents: tuple[int, ...], axes: tuple[int, ...]) -> None:
    if not all(0 <= axis < len(extents) for axis in axes):
        raise UserError(
            f"{what}: samples have {len(extents)} "
            f"{'axis' if len(extents) == 1 else 'axes'} besides channels, numbered from 0 to "
            f"{len(extents) - 1}"
        )


# The members of the family, which a config may name.
MASKS = (half, box, random, channels)
