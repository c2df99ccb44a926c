"""Tensors out of torch's files, without torch and without running anything that is in them.

A torch file is a pickle beside raw storages: a zip since torch 1.6 (TorchScript too), before that pickles and storages
one after the other. A pickle can name any Python function to be called; this one may name only what rebuilds a tensor,
containers, and TorchScript's module classes, which become inert boxes. Everything else is refused.
"""

from __future__ import annotations

import collections
import io
import pickle
import struct
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

from diffusion_jax.errors import UserError

MAGIC = 0x1950A86A20F9469CFC6C  # of the older format
DTYPES = {
    "FloatStorage": np.float32, "DoubleStorage": np.float64, "HalfStorage": np.float16, "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}  # fmt: skip


def load(data: bytes) -> dict[str, np.ndarray]:
    """The contents of a torch file -> {dotted name: array}, whatever nesting of dicts, lists and modules it has.

    UserError for a file that is none, is damaged, or whose pickle asks for anything but tensors.
    """
    try:
        return dict(_leaves(_load_zip(data) if zipfile.is_zipfile(io.BytesIO(data)) else _load_legacy(data)))
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise UserError(f"not a torch file that can be read ({type(error).__name__}: {error}); fetch it again") from error


def _load_zip(data: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        root = next(name for name in names if name.endswith("data.pkl")).removesuffix("data.pkl")
        if root + "byteorder" in names and archive.read(root + "byteorder") != b"little":
            raise UserError("this torch file is big-endian; save it again on a little-endian machine")

        def storage(kind, key, size):
            return np.frombuffer(archive.read(f"{root}data/{key}"), kind, size)

        return _Unpickler(io.BytesIO(archive.read(root + "data.pkl")), storage).load()


def _load_legacy(data: bytes) -> Any:
    """magic, version, system, the object, the keys of its storages; then of each its length (int64) and its elements."""
    stream, storages = io.BytesIO(data), {}

    def storage(kind, key, size):  # to be filled once the object is known
        return storages.setdefault(key, np.zeros(size, kind))

    magic, _, system, value, keys = (_Unpickler(stream, storage).load() for _ in range(5))
    if magic != MAGIC or not system["little_endian"]:
        raise UserError("not a torch file of a little-endian machine; save it again with torch.save")
    for key in keys:
        (size,) = struct.unpack("<q", stream.read(8))
        storages[key][:] = np.frombuffer(stream.read(size * storages[key].itemsize), storages[key].dtype)
    return value


class _Box:
    """Stands for a module of TorchScript: holds its attributes, has no behaviour."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream, storage):
        super().__init__(stream, encoding="utf-8")
        self.storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module.startswith("__torch__."):
            return type("Module", (_Box,), {})
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor"): _tensor,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *rest: tensor,
            ("torch.jit._pickle", "build_intlist"): list,
            ("torch.jit._pickle", "restore_type_tag"): lambda value, tag: value,
        }
        if (module, name) not in known:
            raise UserError(f"this torch file asks for {module}.{name}, which is no tensor; it is not read")
        return known[module, name]

    def persistent_load(self, reference: Any) -> np.ndarray:
        kind, dtype, key, _, size, *_ = reference
        if kind != "storage":
            raise UserError(f"this torch file refers to a '{kind}', not to a storage; it is not read")
        return self.storage(dtype, key, size)


def _tensor(storage: np.ndarray, offset: int, shape: tuple, stride: tuple, *rest: Any) -> np.ndarray:
    """A view of its storage, which must hold it."""
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride)) if 0 not in shape else offset
    if offset < 0 or min(stride, default=0) < 0 or min(shape, default=0) < 0 or (last >= len(storage) and 0 not in shape):
        raise UserError("a tensor of this torch file lies outside its storage; fetch the file again")
    steps = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)


def _leaves(value: Any, path: str = ""):
    if isinstance(value, np.ndarray):
        yield path, value
        return
    value = value.state if isinstance(value, _Box) else value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, item in items:
        yield from _leaves(item, f"{path}.{key}" if path else str(key))
