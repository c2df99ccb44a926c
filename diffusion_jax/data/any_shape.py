"""Sets of arrays of any shape: vectors, series, images and volumes of numbers.

A sample is an array (N_1, ..., N_d, C) with d = 0 to 3, stored as uint8, int16, float16 or float32:

    FILE.npz   'data' (N, N_1, ..., N_d, C) and, optionally, 'labels' (N,); 'test_data' and
               'test_labels' where it is split already
    FILE.npy   the same 'data' alone, which is mapped into memory and never read whole;
               FILE_labels.npy next to it holds the labels

A sample of two axes in 8 bits is an image. All others are normalized (normalization.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.core import npz
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import array_files, normalization
from diffusion_jax.data.normalization import DTYPES, Normalization
from diffusion_jax.data.sources import Example

AXES = 3  # between examples and channels, at most
CHUNK = 2**24  # numbers that are examined at once
NAMES = ("data", "labels", "test_data", "test_labels")


class StoredArrays:
    """Rows of an array, in memory or mapped from a file, normalized as they are read.

    Args:
      values: (M, ..., C), the array.
      rows: (N,), those of its rows that belong to the split.
      label: (N,), or None.
      normalized: None leaves values as they are.
    """

    def __init__(
        self,
        values: np.ndarray,
        rows: np.ndarray,
        label: np.ndarray | None = None,
        normalized: Normalization | None = None,
    ) -> None:
        self.values, self.index, self.normalized = values, rows, normalized
        self.labels = None if label is None else np.asarray(label, np.int32)

    def __getstate__(self) -> dict[str, Any]:
        # a data worker maps the file itself
        state = dict(self.__dict__)
        if isinstance(self.values, np.memmap):
            state["values"] = self.values.filename
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        if not isinstance(self.values, np.ndarray):
            self.values = npz.mapped(self.values)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Example:
        return {name: column[0] for name, column in self.rows(np.array([i])).items()}

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return several examples, stacked.

        Args:
          indices: (K,), in any order and with repetitions.
        """
        values = np.asarray(self.values[self.index[indices]])
        image = values if self.normalized is None else self.normalized.encode(values)
        return {"image": image} | ({} if self.labels is None else {"label": self.labels[indices]})

    def normalized_by(self, normalized: Normalization) -> StoredArrays:
        """Return the same rows under another normalization, such as that of a trained model.

        Args:
          normalized: the normalization.
        """
        return StoredArrays(self.values, self.index, self.labels, normalized)


class FileSplits(NamedTuple):
    """The two splits of a file, before normalization.

    Attributes:
      arrays: the values of the training and of the test split; one array where it is not split.
      rows: the rows of each split in its array.
      labels: the labels of each split, or None.
      rule: how the file was split, in words.
    """

    arrays: tuple[np.ndarray, np.ndarray]
    rows: tuple[np.ndarray, np.ndarray]
    labels: tuple[np.ndarray | None, np.ndarray | None]
    rule: str


class Loaded(NamedTuple):
    """A set of arrays: its splits, the shape of a sample, and how it is normalized."""

    train: StoredArrays
    test: StoredArrays
    shape: tuple[int, ...]
    normalization: Normalization | None
    labels: tuple[np.ndarray | None, np.ndarray | None]
    rule: str


def load(path: str, rule: str) -> Loaded:
    """Read a set of arrays of any shape.

    Args:
      path: data.path, an .npz or .npy file.
      rule: config.data.normalization.

    Raises:
      UserError: for a file that is not one of arrays, and for values that are not finite.
    """
    what, found = f"data.path={path}", read(path)
    shape, dtype = found.arrays[0].shape[1:], found.arrays[0].dtype
    if found.arrays[1].shape[1:] != shape or found.arrays[1].dtype != dtype:
        raise UserError(
            f"{what}: 'data' is {dtype} {shape} and 'test_data' {found.arrays[1].dtype} "
            f"{found.arrays[1].shape[1:]}; give both splits one type and shape"
        )
    normalized = None
    if not is_image(shape, dtype):
        chunks = _chunks(found.arrays[0], found.rows[0])
        normalized = normalization.measure(chunks, rule, dtype.name, what)
        for chunk in _chunks(found.arrays[1], found.rows[1]):
            normalization.check_finite(chunk, what)
    train, test = (
        StoredArrays(values, rows, labels, normalized)
        for values, rows, labels in zip(found.arrays, found.rows, found.labels)
    )
    return Loaded(train, test, shape, normalized, found.labels, found.rule)


def is_image(shape: tuple[int, ...], dtype: Any) -> bool:
    """Whether samples are images of 8 bits, which are not normalized.

    Args:
      shape: of a sample, with its channels.
      dtype: in which it is stored.
    """
    return len(shape) == 3 and np.dtype(dtype) == np.uint8


def described(path: str) -> tuple[tuple[int, ...], np.dtype]:
    """Return the shape of a sample and its type, of which the header of the file tells.

    Args:
      path: data.path, an .npz or .npy file.

    Raises:
      UserError: for a file that is not one of arrays.
    """
    file = _file(path)
    try:
        shape, dtype = npz.described(file, "data" if file.suffix == ".npz" else "")
    except UserError as error:
        raise _unreadable(path, error) from error
    _check(path, "data", shape, dtype)
    return shape[1:], dtype


def read(path: str) -> FileSplits:
    """Read the arrays of a file; one that is not split holds out a tenth of its rows.

    Args:
      path: data.path, an .npz or .npy file.

    Raises:
      UserError: for a file that is not one of arrays.
    """
    found, what = _arrays(path), f"data.path={path}"
    for name in ("data", "test_data"):
        if name in found:
            _check(path, name, found[name].shape, found[name].dtype)
            labels = {"data": "labels", "test_data": "test_labels"}[name]
            _check_labels(what, labels, found.get(labels), len(found[name]))
    data, labels = found["data"], found.get("labels")
    if "test_data" in found:
        arrays = data, found["test_data"]
        rows = tuple(np.arange(len(values)) for values in arrays)
        return FileSplits(arrays, rows, (labels, found.get("test_labels")), "split by its arrays")
    rows = array_files.held_out(len(data), labels, what)
    split_labels = tuple(None if labels is None else labels[r] for r in rows)
    return FileSplits((data, data), rows, split_labels, "a tenth is held out by row")


def _arrays(path: str) -> dict[str, np.ndarray]:
    """The arrays of the file by the names of NAMES; 'data' is one of them."""
    file = _file(path)
    anything = npz.ArraySpec("fiubcmMSUV", finite=False)
    try:
        if file.suffix == ".npz":
            return npz.load(file, {"data": anything}, lambda n: anything if n in NAMES else None)
        found = {"data": npz.mapped(file)}
        beside = file.with_name(f"{file.stem}_labels.npy")
        if beside.is_file():
            found["labels"] = np.asarray(npz.mapped(beside))
        return found
    except UserError as error:
        raise _unreadable(path, error) from error


def _file(path: str) -> Path:
    file = Path(os.path.expanduser(path))
    if file.suffix not in (".npz", ".npy") or not file.exists():
        raise UserError(
            f"data.path={path} must be an .npz file with 'data' (N, ..., C) or an .npy file; there "
            "is none"
        )
    return file


def _unreadable(path: str, error: Exception) -> UserError:
    return UserError(
        f"data.path={path} cannot be read as plain arrays ({error!s:.200}); an .npz needs 'data' "
        "(N, ..., C) and, optionally, 'labels' (N,)"
    )


def _check(path: str, name: str, shape: tuple[int, ...], dtype: Any) -> None:
    """Check the shape and the type of an array of samples."""
    what = f"data.path={path}: '{name}'"
    if np.dtype(dtype).name not in DTYPES:
        raise UserError(
            f"{what} is {np.dtype(dtype).name}; {', '.join(DTYPES)} are read: save it with "
            "data.astype('float32')"
        )
    if not 2 <= len(shape) <= AXES + 2 or 0 in shape:
        raise UserError(
            f"{what} has shape {tuple(shape)}; (N, N_1, ..., N_d, C) with d = 0 to {AXES} and at "
            "least one sample is needed: series of one channel are data[..., None]"
        )


def _check_labels(what: str, name: str, labels: np.ndarray | None, count: int) -> None:
    if labels is not None and not (labels.dtype.kind in "iu" and labels.shape == (count,)):
        raise UserError(
            f"{what}: '{name}' is {labels.dtype} {labels.shape}; {count} integers, one a sample, "
            "are needed (np.unique(labels, return_inverse=True)[1] makes them)"
        )


def _chunks(values: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of an array in parts of about CHUNK numbers."""
    at_once = max(1, CHUNK // max(1, int(np.prod(values.shape[1:]))))
    for start in range(0, len(rows), at_once):
        yield np.asarray(values[rows[start : start + at_once]])
