"""Tensors in Hugging Face's safetensors format: 8 bytes, the length N of a text (little-endian); N
bytes of JSON; raw numbers.

    {"NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ..., "__metadata__":
    {...}}

Offsets count from the end of the JSON. Nothing in such a file can run.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping

import ml_dtypes
import numpy as np

from diffusion_jax import reading
from diffusion_jax.errors import UserError
from diffusion_jax.files import atomic_path

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

NAMES = {np.dtype(kind): name for name, kind in DTYPES.items()}
HEADER = 2**24  # bytes of the JSON: 100,000 tensors have 10 MB


def load(data) -> dict[str, np.ndarray]:
    """The contents of a file -> {name: array}, views of `data`, which is bytes or another buffer
    (an mmap).

    As the format demands, the tensors fill the file without holes, and none overlaps another.

    Raises:
      UserError: for a file that is none or is damaged.
    """
    try:
        start, entries = _header(data)
        views = {name: _view(data, start, **entry) for name, entry in entries.items()}
        _filled([tuple(entry["data_offsets"]) for entry in entries.values()], len(data) - start)
        return views
    except Exception as error:  # a damaged header can raise nearly anything
        raise UserError(
            f"not a safetensors file that can be read ({type(error).__name__}: {error}); fetch it again"
        ) from error


def _header(data) -> tuple[int, dict[str, dict]]:
    """(where the numbers begin, the entry of each tensor)."""
    (length,) = struct.unpack_from("<Q", data)
    if length > min(len(data) - 8, HEADER):
        raise ValueError(f"a header of {length} bytes")
    header = json.loads(bytes(data[8 : 8 + length]), object_pairs_hook=reading.once)
    if not isinstance(header, dict):
        raise ValueError("the header is no object")
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"'{name:.100}' has not dtype, shape and data_offsets")
    return 8 + length, header


def _view(data, start: int, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    kind, (begin, end) = np.dtype(DTYPES[dtype]), data_offsets
    if not isinstance(shape, list) or not all(
        type(n) is int and 0 <= n < 2**62 for n in [*shape, begin, end]
    ):
        raise ValueError(f"shape {shape} and offsets {data_offsets} are not sizes")
    if begin > end or end - begin != math.prod(shape) * kind.itemsize:
        raise ValueError(f"bytes {begin} to {end} are not {dtype}{shape}")
    found = np.frombuffer(data, kind, math.prod(shape), start + begin).reshape(shape)
    if kind == np.bool_ and found.size and found.view(np.uint8).max() > 1:
        raise ValueError("a tensor of truth values holds other bytes than 0 and 1")
    return found


def _filled(spans: list[tuple[int, int]], size: int) -> None:
    """ValueError unless these (begin, end) follow each other from 0 to `size`."""
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            whose = "no" if begin > at else "more than one"
            raise ValueError(f"bytes {min(begin, at)} to {max(begin, at)} belong to {whose} tensor")
        at = end
    if at != size:
        raise ValueError(f"the tensors end at byte {at} of {size}")


def save(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Write {name: array}, atomically. UserError where the folder cannot be written."""
    header, end = (
        {"__metadata__": {"format": "pt"}},
        0,
    )  # which libraries ask for that read them into torch
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.tobytes())
