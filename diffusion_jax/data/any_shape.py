"""Sets of arrays of any shape: vectors, series, images and volumes of numbers.

A sample is an array (N_1, ..., N_d, C) with d = 0 to 3, stored as uint8, int16, float16 or float32:

    FILE.npz   'data' (N, N_1, ..., N_d, C) and, optionally, 'labels' (N,); 'test_data' and
               'test_labels' where it is split already
    FILE.npy   the same 'data' alone, which is mapped into memory and never read whole;
               FILE_labels.npy next to it holds the labels

array_axes.py says which axis is the channels. A sample of two axes in 8 bits is an image. All
others are normalized (normalization.py). Further arrays may condition a model
(condition_arrays.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.core import npz
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import array_axes, array_files, condition_arrays, normalization
from diffusion_jax.data.condition_arrays import StoredColumn
from diffusion_jax.data.normalization import DTYPES, ConditionUnits, Normalization
from diffusion_jax.data.sources import Example

AXES = 3  # between examples and channels, at most
NAMES = ("data", "labels")  # those of the test split begin with 'test_'


class StoredArrays:
    """Rows of an array, in memory or mapped from a file, normalized as they are read.

    Args:
      values: (M, ..., C), the array.
      rows: (N,), those of its rows that belong to the split.
      label: (N,), or None.
      normalized: None leaves values as they are.
      more: further columns of the examples by name, which condition a model.
    """

    def __init__(
        self,
        values: np.ndarray,
        rows: np.ndarray,
        label: np.ndarray | None = None,
        normalized: Normalization | None = None,
        more: Mapping[str, StoredColumn] = MappingProxyType({}),
    ) -> None:
        self.values, self.index, self.normalized, self.more = values, rows, normalized, dict(more)
        self.labels = None if label is None else np.asarray(label, np.int32)

    def __getstate__(self) -> dict[str, Any]:
        # a data worker maps the files itself
        more = {name: (npz.sent(c.values), c.normalized) for name, c in self.more.items()}
        return {**self.__dict__, "values": npz.sent(self.values), "more": more}

    def __setstate__(self, state: dict[str, Any]) -> None:
        more = {name: StoredColumn(npz.received(v), n) for name, (v, n) in state["more"].items()}
        self.__dict__ = {**state, "values": npz.received(state["values"]), "more": more}

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> Example:
        return {name: column[0] for name, column in self.rows(np.array([i])).items()}

    def rows(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return several examples, stacked.

        Args:
          indices: (K,), in any order and with repetitions.
        """
        columns = {"image": StoredColumn(self.values, self.normalized), **self.more}
        found = {name: column.read(self.index[indices]) for name, column in columns.items()}
        return found | ({} if self.labels is None else {"label": self.labels[indices]})

    def normalized_by(self, normalized: Normalization) -> StoredArrays:
        """Return the same rows under another normalization, such as that of a trained model.

        Args:
          normalized: the normalization.
        """
        return StoredArrays(self.values, self.index, self.labels, normalized, self.more)


class FileSplits(NamedTuple):
    """The two splits of a file, before normalization.

    Attributes:
      arrays: the values of the training and of the test split; one array where it is not split.
      rows: the rows of each split in its array.
      labels: the labels of each split, or None.
      rule: how the file was split, in words.
      more: further arrays by name, of both splits as in `arrays`.
    """

    arrays: tuple[np.ndarray, np.ndarray]
    rows: tuple[np.ndarray, np.ndarray]
    labels: tuple[np.ndarray | None, np.ndarray | None]
    rule: str
    more: dict[str, tuple[np.ndarray, np.ndarray]]


class Loaded(NamedTuple):
    """A set of arrays: its splits, the shape of a sample, and how all of it is normalized."""

    train: StoredArrays
    test: StoredArrays
    shape: tuple[int, ...]
    normalization: Normalization | None
    labels: tuple[np.ndarray | None, np.ndarray | None]
    rule: str
    units: ConditionUnits


def load(
    path: str, rule: str, condition: str = "", dense: str = "", channel_axis: str = ""
) -> Loaded:
    """Read a set of arrays of any shape.

    Args:
      path: data.path, an .npz or .npy file.
      rule: config.data.normalization.
      condition: config.data.condition, the name of the array of vectors; '' for none.
      dense: what the array 'dense' holds, one of condition_arrays.DENSE_KINDS; '' for none.
      channel_axis: config.data.channel_axis, one of array_axes.CHOICES.

    Raises:
      UserError: for a file that is not one of arrays, and for values that are not finite.
    """
    names = {condition, condition_arrays.DENSE if dense else ""} - {""}
    what, found = f"data.path={path}", read(path, names, channel_axis)
    shape, dtype = found.arrays[0].shape[1:], found.arrays[0].dtype
    if found.arrays[1].shape[1:] != shape or found.arrays[1].dtype != dtype:
        raise UserError(
            f"{what}: 'data' is {dtype} {shape} and 'test_data' {found.arrays[1].dtype} "
            f"{found.arrays[1].shape[1:]}; give both splits one type and shape"
        )
    normalized = None
    if not is_image(shape, dtype):
        chunks = condition_arrays.chunks(found.arrays[0], found.rows[0])
        normalized = normalization.measure(chunks, rule, dtype.name, what)
        for chunk in condition_arrays.chunks(found.arrays[1], found.rows[1]):
            normalization.check_finite(chunk, what)
    more = _conditions(what, found, condition, dense)
    train, test = (
        StoredArrays(values, rows, labels, normalized, {n: both[k] for n, both in more.items()})
        for k, (values, rows, labels) in enumerate(zip(found.arrays, found.rows, found.labels))
    )
    units = {n: more[n][0].normalized for n in more}
    units = ConditionUnits(units.get(condition_arrays.VECTOR), units.get(condition_arrays.DENSE))
    return Loaded(train, test, shape, normalized, found.labels, found.rule, units)


def _conditions(
    what: str, found: FileSplits, condition: str, dense: str
) -> dict[str, tuple[StoredColumn, StoredColumn]]:
    """The columns that condition a model, of both splits."""
    for name, halves in found.more.items():
        condition_arrays.check_counts(what, name, halves, found.arrays)
    columns = {}
    if condition:
        args = condition, found.more, found.rows
        columns[condition_arrays.VECTOR] = condition_arrays.vector_columns(what, *args)
    if dense:
        args = dense, found.more, found.rows, found.arrays[0].shape[1:]
        columns[condition_arrays.DENSE] = condition_arrays.dense_columns(what, *args)
    return columns


def is_image(shape: tuple[int, ...], dtype: Any) -> bool:
    """Whether samples are images of 8 bits, which are not normalized.

    Args:
      shape: of a sample, with its channels.
      dtype: in which it is stored.
    """
    return len(shape) == 3 and np.dtype(dtype) == np.uint8


def described(path: str, channel_axis: str = "") -> tuple[tuple[int, ...], np.dtype]:
    """Return the shape of a sample and its type, of which the header of the file tells.

    Args:
      path: data.path, an .npz or .npy file.
      channel_axis: config.data.channel_axis, one of array_axes.CHOICES.

    Raises:
      UserError: for a file that is not one of arrays.
    """
    file = _file(path)
    try:
        shape, dtype = npz.described(file, "data" if file.suffix.lower() == ".npz" else "")
    except UserError as error:
        raise _unreadable(path, error) from error
    _check(path, "data", shape, dtype)
    return array_axes.moved(shape[1:], channel_axis, f"data.path={path}"), dtype


def read(path: str, names: Iterable[str] = (), channel_axis: str = "") -> FileSplits:
    """Read the arrays of a file; one that is not split holds out a tenth of its rows.

    Args:
      path: data.path, an .npz or .npy file.
      names: further arrays that are read where the file has them.
      channel_axis: config.data.channel_axis, one of array_axes.CHOICES.

    Raises:
      UserError: for a file that is not one of arrays.
    """
    names = [name for name in names if name not in NAMES]
    found, what = _arrays(path, (*NAMES, *names)), f"data.path={path}"
    for name in ("data", "test_data"):
        if name in found:
            _check(path, name, found[name].shape, found[name].dtype)
            labels = {"data": "labels", "test_data": "test_labels"}[name]
            _check_labels(what, labels, found.get(labels), len(found[name]))
    stored = found["data"].ndim - 1
    found = _channels_last(found, channel_axis, what)
    axes = array_axes.described(stored, channel_axis)
    data, labels = found["data"], found.get("labels")
    if "test_data" in found:
        arrays = data, found["test_data"]
        rows = tuple(np.arange(len(values)) for values in arrays)
        labels, more = (labels, found.get("test_labels")), {}
        for name in [name for name in names if name in found]:
            if f"test_{name}" not in found:
                raise UserError(f"{what}: '{name}' has no 'test_{name}' for 'test_data'; save both")
            more[name] = found[name], found[f"test_{name}"]
        return FileSplits(arrays, rows, labels, f"{axes}; split by its arrays", more)
    if lone := sorted(name for name in found if name.startswith("test_")):
        raise UserError(f"{what} has '{lone[0]}' and no 'test_data'; save both, or neither")
    rows = array_files.held_out(len(data), labels, what)
    split_labels = tuple(None if labels is None else labels[r] for r in rows)
    more = {name: (found[name], found[name]) for name in names if name in found}
    rule = f"{axes}; a tenth is held out by row"
    return FileSplits((data, data), rows, split_labels, rule, more)


def _channels_last(
    found: dict[str, np.ndarray], channel_axis: str, what: str
) -> dict[str, np.ndarray]:
    """The arrays of a file, of which those of the samples' extents have their channels last."""
    array_axes.moved(found["data"].shape[1:], channel_axis, what)
    result, axes = dict(found), found["data"].ndim
    for name in {"data", "test_data", condition_arrays.DENSE, condition_arrays.TEST_DENSE} & {
        *found
    }:
        if channel_axis != "none" or found[name].ndim == axes:
            result[name] = array_axes.channels_last(found[name], channel_axis)
    return result


def _arrays(path: str, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays of the file by these names, and by 'test_NAME'; 'data' is one of them."""
    file = _file(path)
    anything, every = (
        npz.ArraySpec("fiubcmMSUV", finite=False),
        (*names, *map("test_{}".format, names)),
    )
    try:
        if file.suffix.lower() == ".npz":
            return npz.load(file, {"data": anything}, lambda n: anything if n in every else None)
        found = {"data": npz.mapped(file)}
        for name in names[1:]:
            beside = file.with_name(f"{file.stem}_{name}.npy")
            if beside.is_file():
                found[name] = npz.mapped(beside)
        if "labels" in found:
            found["labels"] = np.asarray(found["labels"])
        return found
    except UserError as error:
        raise _unreadable(path, error) from error


def _file(path: str) -> Path:
    file = Path(os.path.expanduser(path))
    if file.suffix.lower() not in (".npz", ".npy") or not file.exists():
        wrong = "is not an .npz or .npy file" if file.exists() else "does not exist"
        raise UserError(
            f"data.path={path} {wrong}; name an .npz file with 'data' (N, ..., C), or an .npy file"
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
