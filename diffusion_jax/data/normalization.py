"""Normalization of arrays: from the units of the data to those of the networks, and back.

    x = (value - shift) / scale,        value = shift + scale x,        for each channel

Both are measured on the training split and recorded in data.json, so that samples come back in the
units of the data and a resumed run normalizes as it began. Images of 8 bits have none: their levels
are known, and `transforms.to_float` maps them to [-1, 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from diffusion_jax.core.errors import UserError, printable, unknown
from diffusion_jax.data import columns as of_table
from diffusion_jax.data.columns import Column
from diffusion_jax.data.sound import Sound

RULES = ("standard", "range")  # mean 0 and variance 1, or the smallest and largest value to -1, 1
DTYPES = ("uint8", "int16", "float16", "float32")  # in which values are stored
LARGEST, NEAREST = 1e100, 1e-30  # of values, and of their scale, which data.json allows
NAMED = 5  # constant channels that are named, at most


class Normalization(NamedTuple):
    """What brings the values of each channel to about unit size, and back.

    Attributes:
      shift: (C,), subtracted from a value.
      scale: (C,), which it is then divided by.
      low: (C,), the smallest values of the training split, for pictures.
      high: (C,), the largest ones.
      dtype: the type in which values are stored, one of DTYPES.
      sound: what the values are, if they stand for sounds.
      columns: of a table, what its channels are (columns.py); shift and scale are then those of its
        scores.
    """

    shift: tuple[float, ...]
    scale: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    dtype: str
    sound: Sound | None = None
    columns: tuple[Column, ...] = ()

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Normalize values.

        Args:
          values: (..., C), in the units of the data.

        Returns:
          x, float32 of the same shape.
        """
        if self.columns:
            values = of_table.scores(self.columns, values)
        shift, scale = (np.asarray(part, np.float64) for part in (self.shift, self.scale))
        return ((values - shift) / scale).astype(np.float32)

    def decode(self, x: np.ndarray) -> np.ndarray:
        """Return to the units and the type of the data; integers are rounded and clipped.

        Args:
          x: (..., C), normalized.

        Returns:
          Values of the same shape, of `dtype`.
        """
        values, dtype = self.values(x), np.dtype(self.dtype)
        if dtype.kind == "f":
            return values.astype(dtype)
        limits = np.iinfo(dtype)
        return np.rint(np.clip(values, limits.min, limits.max)).astype(dtype)

    def values(self, x: np.ndarray) -> np.ndarray:
        """Return to the units of the data in float64; those of a table are cells that it can have.

        Args:
          x: (..., C), normalized.
        """
        scale = np.asarray(self.scale, np.float64)
        values = np.asarray(self.shift, np.float64) + scale * np.asarray(x, np.float64)
        return of_table.cells(self.columns, values) if self.columns else values

    def possible(self, x: np.ndarray) -> np.ndarray:
        """Move samples of a table to the nearest rows that it can have; others stay as they are.

        Args:
          x: (..., C), normalized.

        Returns:
          float32 of the same shape.
        """
        return self.encode(self.values(x)) if self.columns else np.asarray(x, np.float32)

    def unit(self, x: np.ndarray) -> np.ndarray:
        """Place normalized values between the extremes of the training split, for pictures.

        Args:
          x: (..., C), normalized.

        Returns:
          Numbers of the same shape: 0 for the smallest value of a channel, 1 for the largest;
          others are clipped.
        """
        low, high = self.encode(np.array([self.low, self.high]))
        span = np.where(high > low, high - low, 1.0)
        return np.clip((np.asarray(x, np.float32) - low) / span, 0.0, 1.0)

    @property
    def bits(self) -> float:
        """Bits per dimension that a density gains from x to the units of the data: E log2 scale."""
        return float(np.mean(np.log2(self.scale)))

    @property
    def bins(self) -> tuple[float, ...] | None:
        """Distances of the values that each channel can have, normalized, (C,).

        They are 1 / scale for stored integers, and 10^-decimals / scale for a table all of whose
        columns are rounded numbers; None for other values, which are continuous.
        """
        scale = np.asarray(self.scale, np.float64)
        if self.columns:
            decimals = [column.decimals for column, _ in of_table.channels(self.columns)]
            return None if None in decimals else tuple(10.0 ** -np.array(decimals, float) / scale)
        return tuple(1 / scale) if np.dtype(self.dtype).kind in "iu" else None


class ConditionUnits(NamedTuple):
    """How the arrays are normalized that condition a model, besides labels and captions.

    Attributes:
      vector: of the columns of a vector; None where there are no vectors.
      dense: of the channels of stored dense arrays; None where there are none, or where they hold
        the numbers of classes.
    """

    vector: Normalization | None = None
    dense: Normalization | None = None


def measure(
    chunks: Iterable[np.ndarray], rule: str, dtype: str, what: str, names: Sequence[str] = ()
) -> Normalization:
    """Measure the normalization of a training split, which is read once.

    Args:
      chunks: parts of the split, (n, ..., C) each.
      rule: config.data.normalization, one of RULES.
      dtype: the type of the stored values, one of DTYPES.
      what: the data, for messages.
      names: of the channels, for messages; () numbers them.

    Raises:
      UserError: for an unknown rule, and for values that are not finite, too large or too near to
        each other.
    """
    if rule not in RULES:
        raise unknown("config.data.normalization", rule, RULES)
    count, mean, square, low, high = 0, 0.0, 0.0, np.inf, -np.inf
    for chunk in chunks:
        rows = chunk.reshape(-1, chunk.shape[-1]).astype(np.float64)
        check_finite(rows, what)
        low, high = np.minimum(low, rows.min(0)), np.maximum(high, rows.max(0))
        check_sizes(low, high, what, names)
        own, new = rows.mean(0), count + len(rows)
        # the sums of squares around the means of two parts, merged (Chan et al. 1979)
        square = square + np.square(rows - own).sum(0)
        square = square + np.square(own - mean) * (count * len(rows) / new)
        mean = mean + (own - mean) * (len(rows) / new)
        count = new
    shift, scale = (mean, np.sqrt(square / count))
    if rule == "range":
        shift, scale = (low + high) / 2, (high - low) / 2
    for i in np.flatnonzero(high == low)[:NAMED]:
        logging.warning(
            "%s: channel %s is constant in the training split (%g)",
            what,
            names[i] if names else i,
            low[i],
        )
    if (near := np.flatnonzero((high > low) & (scale < NEAREST))).size:
        raise _out_of_range(near[0], low, high, what, names)
    # where all values are one value the mean may round, by more than 1 if they are large
    shift, scale = np.where(high > low, shift, low), np.where(high > low, scale, 1.0)
    parts = (tuple(map(float, part)) for part in (shift, scale, low, high))
    return Normalization(*parts, dtype)


def check_sizes(low: np.ndarray, high: np.ndarray, what: str, names: Sequence[str] = ()) -> None:
    """Check that values are not so large that their squares overflow in float64.

    Args:
      low: (C,), the smallest value of each channel.
      high: (C,), the largest one.
      what: the data, for messages.
      names: of the channels, for messages; () numbers them.

    Raises:
      UserError: naming the first channel that has such values.
    """
    if (large := np.flatnonzero(np.maximum(np.abs(low), np.abs(high)) > LARGEST)).size:
        raise _out_of_range(large[0], low, high, what, names)


def _out_of_range(
    i: int, low: np.ndarray, high: np.ndarray, what: str, names: Sequence[str]
) -> UserError:
    return UserError(
        f"{what}: channel {printable(str(names[i] if names else i))} has values from {low[i]:g} to "
        f"{high[i]:g}; values up to {LARGEST:g} with deviations of at least {NEAREST:g} are "
        "normalized: use other units"
    )


def changed(x: np.ndarray, old: Normalization, new: Normalization) -> np.ndarray:
    """Bring normalized values under another normalization.

    Args:
      x: (..., C), normalized by `old`.
      old: the normalization that they have.
      new: the one that they get.

    Returns:
      float32 of the same shape.
    """
    return new.encode(np.asarray(old.shift) + np.asarray(old.scale) * x.astype(np.float64))


def check_finite(values: np.ndarray, what: str) -> None:
    """Check that values are finite numbers.

    Args:
      values: of any shape.
      what: the data, for the message.

    Raises:
      UserError: with the number of values that are not finite.
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise UserError(
            f"{what} has NaN or infinite values ({bad} of {values.size} examined); remove the "
            "examples or fill them in"
        )
