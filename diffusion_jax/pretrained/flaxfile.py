"""Arrays out of the files of flax.training.checkpoints: msgpack, which holds no code.

Flax writes an array as an extension of msgpack, of the code 1 (3 for a single number), whose
content is (shape, name of the type, numbers). Every other extension is refused. What is not an
array is skipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import msgpack
import numpy as np

from diffusion_jax.core import reading
from diffusion_jax.core.errors import UserError

ARRAY, SCALAR = 1, 3  # codes of extensions
DTYPES = {
    name: np.dtype(name)
    for name in ("float16", "float32", "float64", "bool")
    + tuple(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}
LONGEST, VALUES = 100_000, 1_000_000  # values of one container, and of all of them
DEPTH, RANK = 64, 32


class _Damaged(Exception):
    """The bytes are no such file; the reason."""


def is_flax(data: bytes) -> bool:
    """Whether a file begins as a map of msgpack that is not empty, which no file of torch does.

    Args:
      data: the bytes of the file, or the first of them.
    """
    return data[:1] != b"" and (0x81 <= data[0] <= 0x8F or data[0] in (0xDE, 0xDF))


def load(data: bytes) -> dict[str, np.ndarray]:
    """Read the arrays of a file of flax.

    Args:
      data: the bytes of the file.

    Returns:
      {dotted name: array}; the arrays are read-only.

    Raises:
      UserError: for bytes that are not such a file, or are damaged.
    """
    count = _Count()
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            ext_hook=_array,
            object_pairs_hook=count.pairs,
            list_hook=count.items,
            max_array_len=LONGEST,
            max_map_len=LONGEST,
        )
        return reading.once(_leaves(value, ""))
    except (_Damaged, ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise UserError(
            f"not a file of flax that can be read ({type(error).__name__}: {error!s:.200}); "
            "download it again"
        ) from error


class _Count:
    """Bounds the values of all containers, so that the memory is bounded."""

    def __init__(self) -> None:
        self.left = VALUES

    def _take(self, count: int) -> None:
        self.left -= count + 1
        if self.left < 0:
            raise _Damaged(f"it has more than {VALUES} values")

    def pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        self._take(len(pairs))
        return reading.once(pairs)

    def items(self, items: list[Any]) -> list[Any]:
        self._take(len(items))
        return items


def _array(code: int, data: bytes) -> np.ndarray:
    """The array of an extension of msgpack."""
    if code not in (ARRAY, SCALAR):
        raise _Damaged(f"an extension of the code {code}, which flax does not write for arrays")
    content = msgpack.unpackb(data, raw=False, use_list=True, max_array_len=RANK)
    if not isinstance(content, list) or len(content) != 3:
        raise _Damaged("an array without shape, type and numbers")
    shape, name, numbers = content
    whole = isinstance(shape, list) and all(type(n) is int and 0 <= n < 2**48 for n in shape)
    if not whole or not isinstance(name, str) or name not in DTYPES or type(numbers) is not bytes:
        raise _Damaged("an array whose shape or type is not that of numbers")
    if math.prod(shape) * DTYPES[name].itemsize != len(numbers):
        raise _Damaged(f"an array of shape {shape} with {len(numbers)} bytes")
    if name == "bool" and numbers.strip(b"\0\1"):
        raise _Damaged("an array of truth values that holds other bytes than 0 and 1")
    return np.frombuffer(numbers, DTYPES[name]).reshape(shape)


def _leaves(value: Any, path: str, depth: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (dotted name, array) of each array."""
    if depth > DEPTH:
        raise _Damaged("it is nested too deep")
    if isinstance(value, np.ndarray):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else key, depth + 1)
    elif isinstance(value, list):
        for key, item in enumerate(value):
            yield from _leaves(item, f"{path}.{key}" if path else str(key), depth + 1)
