"""Arrays that condition a model, stored with the samples of a set: vectors and dense arrays.

    vector   NAME (N, K) or (N,)             numbers; each column is normalized
    dense    'dense' (N, N_1, ..., N_d, K)   of the extents of the samples; each channel is
             normalized, or the one channel holds the numbers of classes and stays as it is

They are arrays of the same .npz, in which those of the test split begin with 'test_', or .npy files
next to that of the samples, FILE_NAME.npy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from diffusion_jax.core import npz
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import normalization
from diffusion_jax.data.normalization import Normalization

DENSE = "dense"  # the name of the array, and of its column in a batch
TEST_DENSE = f"test_{DENSE}"
VECTOR = "condition"  # the name of the column in a batch; data.condition names the array
DENSE_KINDS = ("", "numbers", "classes")  # none, normalized, or left as they are
CHUNK = 2**24  # numbers that are examined at once

Halves = tuple[np.ndarray, np.ndarray]  # of the training and of the test split


class StoredColumn(NamedTuple):
    """An array of which a split has some rows.

    Attributes:
      values: (M, ...), in memory or mapped from a file.
      normalized: how it is normalized as it is read; None leaves values as they are.
    """

    values: np.ndarray
    normalized: Normalization | None = None

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return some rows, normalized.

        Args:
          rows: (K,), rows of the array.
        """
        values = npz.native(np.asarray(self.values[rows]))
        return values if self.normalized is None else self.normalized.encode(values)


def vector_columns(
    what: str, name: str, found: Mapping[str, Halves], rows: Halves
) -> tuple[StoredColumn, StoredColumn]:
    """Check and normalize the vectors that condition a model.

    Args:
      what: the data, for messages: 'data.path=FILE'.
      name: data.condition, the name of the array.
      found: the arrays of the file by name.
      rows: the rows of each split.

    Returns:
      The columns of the two splits, (M, K) with one normalization.

    Raises:
      UserError: for an array that is missing, of another shape, or not of finite numbers.
    """
    if name not in found:
        raise UserError(
            f"data.condition={name}: {what} has no array '{name}' (N, K), numbers that condition "
            "the model; save it there, or set data.condition=''"
        )
    # small, and so read whole: a mapped array travels to data workers by its name alone
    arrays = [np.array(x[:, None] if x.ndim == 1 else x) for x in found[name]]
    if any(values.ndim != 2 or not values.shape[1] for values in arrays):
        raise UserError(
            f"{what}: '{name}' has shape {found[name][0].shape}; (N, K) or (N,) is needed, K "
            "numbers for each sample"
        )
    return _normalized(f"{what}: '{name}'", arrays, rows)


def dense_columns(
    what: str, kind: str, found: Mapping[str, Halves], rows: Halves, shape: tuple[int, ...]
) -> tuple[StoredColumn, StoredColumn]:
    """Check and normalize the dense arrays that condition a model.

    Args:
      what: the data, for messages: 'data.path=FILE'.
      kind: 'numbers', which are normalized, or 'classes', which stay as they are.
      found: the arrays of the file by name.
      rows: the rows of each split.
      shape: (N_1, ..., N_d, C) of a sample.

    Returns:
      The columns of the two splits.

    Raises:
      UserError: for an array that is missing or of other extents than the samples.
    """
    if DENSE not in found:
        raise UserError(
            f"data.dense: {what} has no array '{DENSE}' (N, N_1, ..., N_d, K); save it there, or "
            "take a condition that is made of the samples, such as --config.data.dense='lowres(4)'"
        )
    label = f"{what}: '{DENSE}'"
    for values in found[DENSE]:
        if values.ndim != len(shape) + 1 or values.shape[1:-1] != shape[:-1]:
            extents = ", ".join(map(str, shape[:-1]))
            raise UserError(
                f"{label} has shape {values.shape}; for samples {tuple(shape)} it must be (N, "
                f"{extents}{', ' if extents else ''}K), of the same extents"
            )
        if kind == "classes" and (values.dtype.kind not in "iu" or values.shape[-1] != 1):
            raise UserError(
                f"{label} is {values.dtype} {values.shape}; classes are whole numbers in one "
                "channel, (N, ..., 1)"
            )
    if kind == "classes":
        return tuple(map(StoredColumn, found[DENSE]))
    return _normalized(label, found[DENSE], rows)


def check_counts(what: str, name: str, halves: Halves, samples: Halves) -> None:
    """Check that an array has a row for each sample.

    Args:
      what: the data, for messages.
      name: the name of the array.
      halves: the array, of the training and of the test split.
      samples: the samples of both splits.

    Raises:
      UserError: for other numbers of rows.
    """
    for values, own in zip(halves, samples):
        if len(values) != len(own):
            raise UserError(
                f"{what}: '{name}' has {len(values)} rows for {len(own)} samples; give one for each"
            )


def chunks(values: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of an array in parts of about CHUNK numbers.

    Args:
      values: (M, ...).
      rows: those that are read.
    """
    at_once = max(1, CHUNK // max(1, int(np.prod(values.shape[1:]))))
    for start in range(0, len(rows), at_once):
        yield np.asarray(values[rows[start : start + at_once]])


def _normalized(
    what: str, arrays: Sequence[np.ndarray], rows: Halves
) -> tuple[StoredColumn, StoredColumn]:
    """The columns of both splits under the normalization of the training split."""
    for values in arrays:
        if values.dtype.kind not in "fiu":
            raise UserError(f"{what} is {values.dtype}; real numbers are needed")
    if arrays[0].shape[1:] != arrays[1].shape[1:]:
        raise UserError(
            f"{what} has {arrays[0].shape[-1]} columns for training and {arrays[1].shape[-1]} for "
            "the test split; give both the same"
        )
    own = normalization.measure(chunks(arrays[0], rows[0]), "standard", "float32", what)
    for part in chunks(arrays[1], rows[1]):
        normalization.check_finite(part, what)
    return StoredColumn(arrays[0], own), StoredColumn(arrays[1], own)
