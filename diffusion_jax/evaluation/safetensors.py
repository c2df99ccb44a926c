"""Tensors in Hugging Face's safetensors format: 8 bytes, the length N of a text (little-endian); N bytes of JSON; raw numbers.

    {"NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ..., "__metadata__": {...}}

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

from diffusion_jax.errors import UserError
from diffusion_jax.provenance import atomic_path

DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
NAMES = {np.dtype(kind): name for name, kind in DTYPES.items()}


def load(data) -> dict[str, np.ndarray]:
    """The contents of a file -> {name: array}, views of `data`, which is bytes or another buffer (an mmap).

    UserError for a file that is none or is damaged.
    """
    try:
        (length,) = struct.unpack_from("<Q", data)
        header = json.loads(bytes(data[8 : 8 + length]))
        header.pop("__metadata__", None)
        return {name: _view(data, 8 + length, **entry) for name, entry in header.items()}
    except Exception as error:  # a damaged header can raise nearly anything
        raise UserError(f"not a safetensors file that can be read ({type(error).__name__}: {error}); fetch it again") from error


def _view(data, start: int, dtype: str, shape: list[int], data_offsets: list[int]) -> np.ndarray:
    kind, (begin, end) = np.dtype(DTYPES[dtype]), data_offsets
    if not 0 <= begin <= end or end - begin != math.prod(shape) * kind.itemsize:
        raise ValueError(f"bytes {begin} to {end} are not {dtype}{shape}")
    return np.frombuffer(data, kind, math.prod(shape), start + begin).reshape(shape)


def save(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Write {name: array}, atomically. UserError where the folder cannot be written."""
    header, end = {"__metadata__": {"format": "pt"}}, 0  # which libraries ask for that read them into torch
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.tobytes())
