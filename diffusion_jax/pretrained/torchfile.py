"""Tensors out of torch's files, without torch and without running anything that is in them.

A torch file is a pickle with raw storages: a zip since torch 1.6 (TorchScript too), before that
pickles and storages one after the other. A pickle can name any Python function to be called. Here
it is read as data (see pickles.py): it may name only what rebuilds a tensor, containers, and
TorchScript's module classes, and none of these is imported or called. A tensor is a view of the
bytes of the file, inside the storage that the pickle names for it, with no more elements than the
storage has.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np

from diffusion_jax.core import reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.pretrained import pickles
from diffusion_jax.pretrained.pickles import Made, Name, PersistentId, read

MAGIC = 0x1950A86A20F9469CFC6C  # of the older format

DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}

TENSOR = {Name("torch._utils", "_rebuild_tensor"), Name("torch._utils", "_rebuild_tensor_v2")}

SAME = {
    Name("torch._utils", "_rebuild_parameter"),
    Name("torch.jit._pickle", "build_intlist"),
    Name("torch.jit._pickle", "restore_type_tag"),
}  # calls that mean their first argument

DICT = {Name("collections", "OrderedDict")}
IGNORED = {Name("argparse", "Namespace")}  # the flags of a training, which hold no tensor
DEPTH = 64  # containers and modules inside others
RANK = 32  # dimensions of a tensor: numpy 1 had no more
Storages = Callable[[Any, Any, int], np.ndarray]  # (dtype, key, size) -> elements, shape (size,)


def load(data: bytes) -> dict[str, np.ndarray]:
    """Read the tensors of a torch file, whatever nesting of dicts, lists and modules it has.

    Args:
      data: the bytes of the file.

    Returns:
      {dotted name: array}; the arrays are read-only views of `data`.

    Raises:
      UserError: for bytes that are not such a file, for a damaged file, and for one whose pickle
        names anything but tensors.
    """
    try:
        value, storages = (_read_zip if data[:2] == b"PK" else _read_legacy)(data)
        return reading.once(_Leaves(storages, len(data)).of(value))
    except UserError:
        raise
    except Exception as error:  # damaged files raise many types; the cause stays attached
        raise UserError(
            f"not a torch file that can be read ({type(error).__name__}: {error}); download it "
            "again"
        ) from error


def storage(data: bytes) -> np.ndarray:
    """Read the one storage that torch.save wrote in the older format, as pickles of tensors hold.

    Args:
      data: the bytes that torch.storage._load_from_bytes would take.

    Returns:
      Its elements (n,), a read-only view of `data`.

    Raises:
      UserError: for bytes that are not one storage of numbers.
    """
    try:
        value, keys, at = _legacy_header(data)
        dtype, key, size = _storage_of(value)
        (length,) = struct.unpack_from("<q", data, at)
        if keys != [key] or length != size:
            raise UserError("a storage of this file is not the one it names; download it again")
        return _elements(memoryview(data)[at + 8 :], dtype, size)
    except UserError:
        raise
    except Exception as error:  # damaged files raise many types; the cause stays attached
        raise UserError(
            f"a storage of this file cannot be read ({type(error).__name__}: {error}); download it "
            "again"
        ) from error


def view(elements: np.ndarray, offset: Any, shape: Any, stride: Any) -> np.ndarray:
    """View a storage as a tensor.

    Args:
      elements: the storage (n,).
      offset: the first element of the tensor.
      shape: its shape.
      stride: its strides in elements.

    Raises:
      UserError: for a tensor that lies outside of the storage, or one of another kind of numbers.
    """
    offset, shape, stride = _place(offset, shape, stride, len(elements))
    if 0 in shape:
        return np.zeros(shape, elements.dtype)
    return np.lib.stride_tricks.as_strided(
        elements[offset:],
        shape,
        [step * elements.dtype.itemsize for step in stride],
        writeable=False,
    )


def _place(
    offset: Any, shape: Any, stride: Any, size: int
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Return (offset, shape, stride) of a tensor; UserError if it leaves a storage of this size."""
    offset, shape, stride = _whole([offset])[0], _whole(shape), _whole(stride)
    if len(shape) != len(stride) or len(shape) > RANK:
        raise UserError(
            "a tensor of this torch file has a shape without strides; download the file again"
        )
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride))
    if 0 not in shape and (last >= size or math.prod(shape) > size):
        raise UserError(
            "a tensor of this torch file lies outside its storage; download the file again"
        )
    return offset, shape, stride


def _allowed(name: Name) -> None:
    """Raise UserError for a name that no file of tensors needs."""
    dtype = name.module == "torch" and name.name in DTYPES
    if not (
        dtype or name.module.startswith("__torch__.") or name in TENSOR | SAME | DICT | IGNORED
    ):
        named = f"{name.module}.{name.name}"
        raise UserError(
            f"this torch file names {named:.200}, which is not a tensor; it is not read"
        )


# ---- the two formats
def _read_zip(data: bytes) -> tuple[Any, Storages]:
    """Return (the object, its storages) of a zip with data.pkl and data/KEY for each storage."""
    members = _members(data)
    root = next((name for name in members if name.endswith("data.pkl")), None)
    if root is None:
        raise UserError("this zip has no data.pkl, so it is not a torch file; download it again")
    root = root.removesuffix("data.pkl")
    if root + "byteorder" in members and bytes(members[root + "byteorder"]()) != b"little":
        raise UserError("this torch file is big-endian; save it again on a little-endian machine")
    value, _ = read(bytes(members[root + "data.pkl"]()), 0, _allowed)

    kept: dict[str, Any] = {}

    def storage(dtype: Any, key: Any, size: int) -> np.ndarray:
        if key not in kept:
            kept[key] = members[f"{root}data/{key}"]()
        return _elements(kept[key], dtype, size)

    return value, storage


def _members(data: bytes) -> dict[str, Callable[[], Any]]:
    """Return {name: a function that returns its bytes}.

    The bytes are views of `data` where they are not compressed, which torch never does. All of them
    together are at most twice as large as the file, also where members overlap or are a bomb.
    """
    archive, left = zipfile.ZipFile(io.BytesIO(data)), 2 * len(data)

    def content(info: zipfile.ZipInfo) -> Any:
        nonlocal left
        left -= info.file_size
        if left < 0:
            raise UserError("this torch file unpacks to more than twice its size; it is not read")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            return archive.read(info)
        lengths = struct.unpack_from("<HH", data, info.header_offset + 26)  # name, extra field
        begin = info.header_offset + 30 + sum(lengths)
        found = memoryview(data)[begin : begin + info.file_size]
        if len(found) != info.file_size or zlib.crc32(found) != info.CRC:
            raise UserError(
                f"'{info.filename:.100}' in this torch file is damaged; download it again"
            )
        return found

    members = ((info.filename, lambda info=info: content(info)) for info in archive.infolist())
    return reading.once(members)


def _read_legacy(data: bytes) -> tuple[Any, Storages]:
    """Return (the object, its storages) of a file from before torch 1.6.

    It holds magic, version, system, the object and the keys of its storages; then of each storage
    its length (int64) and its elements.
    """
    value, keys, at = _legacy_header(data)
    dtypes = _dtypes(value, len(data))
    found: dict[str, Any] = {}
    for key in keys:
        if key not in dtypes:
            raise UserError(
                f"the storage '{key:.100}' of this torch file belongs to no tensor; download it "
                "again"
            )
        (size,) = struct.unpack_from("<q", data, at)
        length = size * dtypes[key].itemsize
        if not 0 <= length <= len(data) - at - 8:
            raise UserError(
                "a storage of this torch file is longer than the file; download it again"
            )
        found[key] = memoryview(data)[at + 8 : at + 8 + length]
        at += 8 + length
    return value, lambda dtype, key, size: _elements(found[key], dtype, size)


def _legacy_header(data: bytes) -> tuple[Any, list[str], int]:
    """Return (the object, the keys of its storages, where these begin) of an older file."""
    magic, at = read(data, 0, _allowed)
    _, at = read(data, at, _allowed)
    system, at = read(data, at, _allowed)
    if magic != MAGIC or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise UserError(
            "not a torch file of a little-endian machine; save it again with torch.save"
        )
    value, at = read(data, at, _allowed)
    keys, at = read(data, at, _allowed)
    if (
        not isinstance(keys, list)
        or not all(isinstance(key, str) for key in keys)
        or len(set(keys)) < len(keys)
    ):
        raise UserError("the storages of this torch file have no list of keys; download it again")
    return value, keys, at


def _dtypes(value: Any, size: int) -> dict[str, np.dtype]:
    """Return {key: dtype} of the storages of an object, whose file has `size` bytes."""
    found: dict[str, np.dtype] = {}

    def storage(dtype: Any, key: Any, length: int) -> np.ndarray:
        if found.setdefault(key, dtype) != dtype:
            raise UserError("a storage of this torch file has two types; download the file again")
        return np.broadcast_to(np.zeros((), dtype), (length,))  # no memory, but a shape

    for _ in _Leaves(storage, size).of(value):
        pass
    return found


def _elements(content: Any, dtype: np.dtype, size: int) -> np.ndarray:
    """Return the first elements of a storage (size,); UserError if it has fewer."""
    if not 0 <= size <= len(content) // dtype.itemsize:
        raise UserError(
            "a storage of this torch file is shorter than it says; download the file again"
        )
    found = np.frombuffer(content, dtype, size)
    if dtype == np.bool_ and size and found.view(np.uint8).max() > 1:
        raise UserError(
            "a storage of truth values holds other bytes than 0 and 1; download the file again"
        )
    return found


# ---- the tensors of an object
class _Leaves:
    """Walk an object of a file of `size` bytes for its tensors.

    A list of lists of the same lists is short in a pickle and endless to walk: no more is visited
    than half the pickle's steps, as each thing takes two or more, and the names of all tensors
    together are no longer than the file.
    """

    def __init__(self, storages: Storages, size: int) -> None:
        self.storages, self.visits, self.letters = storages, pickles.steps(size) // 2, size

    def of(self, value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (dotted name, array) of each tensor."""
        self.visits -= 1
        self.letters -= len(path) * (isinstance(value, Made) and value.name in TENSOR)
        if depth > DEPTH or min(self.visits, self.letters) < 0:
            raise UserError(
                "this torch file refers to itself or is nested too deep to be a file of tensors; "
                "it is not read"
            )
        if isinstance(value, Made) and value.name in TENSOR:
            yield path, self._tensor(*value.args)
        elif isinstance(value, Made) and value.name in SAME:
            yield from self.of(value.args[0], path, depth + 1)
        else:
            for key, item in _items(value):
                yield from self.of(item, f"{path}.{key}" if path else str(key), depth + 1)

    def _tensor(
        self, reference: Any, offset: Any, shape: Any, stride: Any, *rest: Any
    ) -> np.ndarray:
        """Return a view of the storage of a tensor; UserError if it lies outside."""
        dtype, key, size = _storage_of(reference)
        offset, shape, stride = _place(offset, shape, stride, size)
        if 0 in shape:
            return np.zeros(shape, dtype)
        return view(self.storages(dtype, key, size), offset, shape, stride)


def _items(value: Any) -> Any:
    """Return the (key, item) pairs of a container or TorchScript module, () of anything else."""
    if isinstance(value, Made):
        if value.name in IGNORED:
            return ()
        if value.name not in DICT and not value.name.module.startswith("__torch__."):
            raise UserError(
                f"this torch file calls {value.name.module}.{value.name.name}, which is not a "
                "tensor; it is not read"
            )
        value = value.items if value.name in DICT else value.state
    return (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, (list, tuple))
        else ()
    )


def _storage_of(reference: Any) -> tuple[np.dtype, str, int]:
    """Return (dtype, key, elements) of a persistent id; UserError if it is not a storage."""
    about = reference.about if isinstance(reference, PersistentId) else None
    if not isinstance(about, tuple) or len(about) < 5 or about[0] != "storage":
        raise UserError("a tensor of this torch file does not consist of a storage; it is not read")
    _, kind, key, _, size, *view = about
    if not isinstance(kind, Name) or kind.module != "torch" or not isinstance(key, str):
        raise UserError("a storage of this torch file has no type or no key; it is not read")
    if view not in ([], [None]):
        raise UserError(
            "a storage of this torch file is a part of another; save it again with torch.save"
        )
    return np.dtype(DTYPES[kind.name]), key, _whole([size])[0]


def _whole(values: Any) -> tuple[int, ...]:
    """Return sizes, strides or offsets, which must be integers from 0 to 2^62."""
    if isinstance(values, Made) and values.name in SAME:
        values = values.args[0]
    if not isinstance(values, (tuple, list)) or not all(
        type(value) is int and 0 <= value < 2**62 for value in values
    ):
        raise UserError(
            "a size or a stride in this torch file is not a number of elements; download the file "
            "again"
        )
    return tuple(values)
