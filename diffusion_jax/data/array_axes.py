"""Which axis of an array of samples holds the channels: config.data.channel_axis.

    'last'     (N, N_1, ..., N_d, C)
    'first'    (N, C, N_1, ..., N_d)
    'none'     (N, N_1, ..., N_d), which gets an axis of one channel
    ''         the last, where nothing speaks against it

An array (N, 24, 24, 24) may hold images of 24 channels or volumes of one. Without the key it is
refused where the last axis is longer than MOST and another reading is possible; a shorter one is
read as channels. An array (N, D) holds vectors of D numbers. The line about the data names the
reading.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffusion_jax.core.errors import UserError

MOST = 16  # channels that need no key, as of .npz files of images (array_files.py)
CHOICES = ("", "last", "first", "none")
PLURALS = ("vectors", "series", "images", "volumes")  # by the number of axes, d = 0 to 3
LETTERS = (("C",), ("L", "C"), ("H", "W", "C"), ("D", "H", "W", "C"))


def moved(shape: Sequence[int], choice: str, what: str) -> tuple[int, ...]:
    """Return the shape of samples with their channels last.

    Args:
      shape: of a sample as it is stored, without the axis of examples.
      choice: config.data.channel_axis.
      what: the data, for messages: 'data.path=FILE'.

    Raises:
      UserError: for a shape that has two readings, and for one that the choice does not allow.
    """
    shape = tuple(shape)
    if choice == "" and (other := _others(shape)):
        readings = [_reading(shape, each) for each in ("last", *other)]
        raise UserError(
            f"{what} has samples {shape}, which can be read as {', or as '.join(readings)}; choose "
            "one"
        )
    if choice == "none" and len(shape) == len(PLURALS):
        raise UserError(
            f"data.channel_axis=none: {what} has samples {shape}, and at most {len(PLURALS) - 1} "
            "axes besides the channels are read; choose last or first"
        )
    if choice == "first":
        return (*shape[1:], shape[0])
    return (*shape, 1) if choice == "none" else shape


def channels_last(values: np.ndarray, choice: str) -> np.ndarray:
    """Return a view of an array of samples whose last axis is the channels.

    Args:
      values: (N, ...), as they are stored.
      choice: config.data.channel_axis.
    """
    if choice == "first":
        return np.moveaxis(values, 1, -1)
    return values[..., None] if choice == "none" else values


def described(stored: int, choice: str) -> str:
    """Say how the axes of an array were read: 'read as (N, H, W, C)'.

    Args:
      stored: the number of axes of a sample as it is stored.
      choice: config.data.channel_axis.
    """
    letters = LETTERS[stored if choice == "none" else stored - 1]
    if choice == "first":
        letters = ("C", *letters[:-1])
    return f"read as ({', '.join(('N', *(letters[:-1] if choice == 'none' else letters)))})"


def _others(shape: tuple[int, ...]) -> list[str]:
    """The choices besides 'last' that a shape allows, where it has more than MOST channels."""
    if len(shape) == 1 or shape[-1] <= MOST:
        return []
    possible = {"none": len(shape) < len(PLURALS), "first": shape[0] <= MOST}
    return [choice for choice, can in possible.items() if can]


def _reading(shape: tuple[int, ...], choice: str) -> str:
    *sizes, channels = {"last": shape, "first": (*shape[1:], shape[0])}.get(choice, (*shape, 1))
    extents = "x".join(map(str, sizes))
    which = (
        f"of {channels} channel{'s' * (channels > 1)}" if choice != "none" else "without channels"
    )
    return f"{PLURALS[len(sizes)]} {extents} {which} (--config.data.channel_axis={choice})"
