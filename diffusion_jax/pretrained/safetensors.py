"""Tensors in Hugging Face's safetensors format, by its own library.

A file is the length of a JSON header, the header, and the raw numbers of the tensors. Nothing in it
can run. The library checks that the tensors fill the file without holes and that none overlaps
another; `load` also refuses what the library reads in silence.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from diffusion_jax.core import reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import atomic_path

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
HEADER = 2**24  # bytes of the header: that of 100,000 tensors has 10 MB
LARGEST = 2**38  # bytes of a file


def load(data: bytes) -> dict[str, np.ndarray]:
    """Read the tensors of a safetensors file.

    Args:
      data: the bytes of the whole file.

    Returns:
      {name: array}.

    Raises:
      UserError: for bytes that are not such a file, or are damaged.
    """
    try:
        _check_header(data)
        found = {name: _array(**entry) for name, entry in safetensors.deserialize(data)}
    except (safetensors.SafetensorError, ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"not a safetensors file that can be read ({type(error).__name__}: {error}); "
            "download it again"
        ) from error
    return found


def load_file(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read the tensors of a safetensors file at a path; see `load`.

    Args:
      path: the file, of at most LARGEST bytes.

    Returns:
      {name: array}.
    """
    return load(reading.content(path, LARGEST))


def _check_header(data: bytes) -> None:
    """Raise ValueError for a header that is too long, names a tensor twice or says more of one."""
    length = int.from_bytes(data[:8], "little")
    if not 0 < length <= min(len(data) - 8, HEADER):
        raise ValueError(f"a header of {length} bytes")
    header = json.loads(data[8 : 8 + length], object_pairs_hook=reading.once)
    if not isinstance(header, dict):
        raise ValueError("the header is not an object")
    for name, entry in header.items():
        keys = entry.keys() if isinstance(entry, dict) else ()
        if name != "__metadata__" and set(keys) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"'{name:.100}' does not have exactly dtype, shape and data_offsets")


def _array(dtype: str, shape: list[int], data: bytearray) -> np.ndarray:
    if dtype not in DTYPES:
        raise ValueError(f"tensors of {dtype} are not supported")
    found = np.frombuffer(data, DTYPES[dtype]).reshape(shape)
    if found.dtype == np.bool_ and found.size and found.view(np.uint8).max() > 1:
        raise ValueError("a tensor of truth values holds other bytes than 0 and 1")
    return found


def save(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Write tensors to a safetensors file, atomically.

    Args:
      path: the file; it is replaced if it exists.
      tensors: {name: array}.

    Raises:
      UserError: where the folder cannot be written.
      OSError: for a refusal of the system, such as a full disk.
    """
    tensors = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:  # (libraries that read into torch ask for the format)
        try:
            safetensors.numpy.save_file(tensors, temporary, metadata={"format": "pt"})
        except safetensors.SafetensorError as error:
            if not (number := re.search(r"os error (\d+)", str(error))):
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
