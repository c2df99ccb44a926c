"""Plain arrays in .npz and .npy files: written atomically, read within bounds, never unpickled."""

from __future__ import annotations

import contextlib
import math
import os
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

import numpy as np

from diffusion_jax.core.errors import UserError, printable
from diffusion_jax.core.files import atomic_path

UNPACKED = 100  # bytes of arrays for each byte of a file: runs of equal pixels compress well
SMALL = 2**26  # bytes of arrays that any file may unpack to
SHOWN = 6  # arrays that a message names


class ArraySpec(NamedTuple):
    """The type and shape that an array of a file must have.

    Attributes:
      kinds: letters of numpy's dtype.kind, such as 'f' or 'iu'; 'V' is bfloat16 written by numpy.
      shape: the sizes, None where any size is allowed; None allows any shape.
      finite: whether NaN and infinities are refused.
    """

    kinds: str
    shape: tuple[int | None, ...] | None = None
    finite: bool = True


def save(path: str | os.PathLike, arrays: Mapping[str, Any], *, compressed: bool = False) -> None:
    """Write {name: array} to an .npz file, atomically.

    Args:
      path: the file, which is replaced if it exists; missing folders are made.
      arrays: the arrays by name.
      compressed: whether they are compressed, which takes longer.

    Raises:
      UserError: where the folder cannot be written.
    """
    write = np.savez_compressed if compressed else np.savez
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        write(file, **{name: np.asarray(array) for name, array in arrays.items()})


def load(
    path: str | os.PathLike,
    needed: Mapping[str, ArraySpec],
    also: Callable[[str], ArraySpec | None] | None = None,
    *,
    unpacked: float = UNPACKED,
) -> dict[str, np.ndarray]:
    """Read the plain arrays of an .npz file.

    Args:
      path: the .npz file, a regular file.
      needed: the arrays that must be there, and what each must be.
      also: name of another array -> what it must be, or None for an array that is not read; without
        it other arrays are not read.
      unpacked: how many times larger than the file the arrays may be, where they have more than
        SMALL bytes.

    Returns:
      {name: array}.

    Raises:
      UserError: where the file is missing or damaged, lacks an array, or holds one that does not
        meet its specification, such as a pickle.
    """
    try:
        return _load(path, needed, also or (lambda name: None), unpacked)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from error
    except Exception as error:  # damaged zip files raise many types; the cause stays attached
        raise UserError(f"'{path}' is damaged ({type(error).__name__}: {error!s:.200})") from error


def _load(
    path: str | os.PathLike,
    needed: Mapping[str, ArraySpec],
    also: Callable[[str], ArraySpec | None],
    unpacked: float,
) -> dict[str, np.ndarray]:
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise UserError(f"'{path}' is {kind}")
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise UserError(f"'{path}' is damaged: it has two arrays of one name")
        if missing := [name for name in needed if name not in members]:
            raise _lacks(path, missing, list(members))
        wanted = {name: spec for name in members if (spec := needed.get(name) or also(name))}
        size = sum(members[name].file_size for name in wanted)
        if size > max(unpacked * os.path.getsize(path), SMALL):
            raise UserError(
                f"'{path}' unpacks to more than {unpacked:g} times its size; it is not read"
            )
        found = {}
        for name, spec in wanted.items():
            with archive.open(members[name]) as file:
                found[name] = _plain_array(file, members[name].file_size)
            _check(found[name], spec, f"'{path}' is damaged: {name:.60}")
            found[name] = native(found[name])
    return found


def native(array: np.ndarray) -> np.ndarray:
    """Return an array in the byte order of the machine, as JAX needs it; a copy if it has another.

    Args:
      array: of any type.
    """
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _lacks(path: str | os.PathLike, missing: Sequence[str], members: Sequence[str]) -> UserError:
    """The error of a file without some arrays, which names those that it has."""
    names = [printable(name) for name in members][:SHOWN] or ["nothing"]
    held = f"{', '.join(names)}{' and others' * (len(members) > SHOWN)}"
    return UserError(f"'{path}' lacks {', '.join(missing)}; it holds {held:.200}")


def described(path: str | os.PathLike, name: str = "") -> tuple[tuple[int, ...], np.dtype]:
    """Return the shape and the type of an array, of which its header tells.

    Args:
      path: an .npy file, or an .npz file.
      name: the array of the .npz file.

    Raises:
      UserError: where the file is missing or damaged, or lacks the array.
    """
    with _plain(path), contextlib.ExitStack() as opened:
        if name:
            archive = opened.enter_context(zipfile.ZipFile(path))
            if f"{name}.npy" not in archive.namelist():
                members = [each.removesuffix(".npy") for each in archive.namelist()]
                raise _lacks(path, [name], members)
            file = opened.enter_context(archive.open(f"{name}.npy"))
        else:
            file = opened.enter_context(open(path, "rb"))
        shape, _, dtype = _header(file)
        return shape, dtype


def mapped(path: str | os.PathLike) -> np.memmap:
    """Map the array of an .npy file into memory, to be read as it is needed.

    Args:
      path: the file, a regular file, which must not change while it is mapped.

    Raises:
      UserError: where the file is missing or damaged, or holds a pickle.
    """
    with _plain(path), open(path, "rb") as file:
        shape, fortran, dtype = _header(file)
        size = os.fstat(file.fileno()).st_size - file.tell()
        if size != math.prod(shape) * dtype.itemsize or not size:
            raise ValueError(f"{size} bytes for {dtype}{list(shape)}")
        order = "F" if fortran else "C"
        return np.memmap(path, dtype, "r", offset=file.tell(), shape=shape, order=order)


def mapped_members(
    path: str | os.PathLike, specs: Mapping[str, ArraySpec]
) -> dict[str, np.ndarray | np.memmap]:
    """Map arrays of an .npz file into memory, to be read as they are needed.

    Arrays that are compressed cannot be mapped, and are read. Types and shapes are checked by the
    headers; whether the numbers are finite is not.

    Args:
      path: the file, a regular file, which must not change while it is mapped.
      specs: the arrays, by name, that are mapped where they are there, and what each must be.

    Returns:
      {name: array}, of those that are there.

    Raises:
      UserError: where the file is missing or damaged, or holds an array that does not meet its
        specification.
    """
    with _plain(path), zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        stored = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        found = {}
        for name in specs.keys() & stored.keys():
            if stored[name].compress_type != zipfile.ZIP_STORED:
                found |= load(path, {name: specs[name]._replace(finite=False)})
                continue
            found[name] = _mapped_member(file, stored[name])
            _check(found[name], specs[name]._replace(finite=False), f"'{path}' is damaged: {name}")
    return found


def _mapped_member(file: IO[bytes], info: zipfile.ZipInfo) -> np.memmap:
    """Map the array of a member that is stored without compression."""
    file.seek(info.header_offset)
    head = file.read(30)  # of the member, before its name and its extra field
    if len(head) < 30 or head[:4] != b"PK\x03\x04":
        raise ValueError(f"no member at {info.header_offset}")
    start = info.header_offset + 30 + sum(struct.unpack("<2H", head[26:30]))
    file.seek(start)
    shape, fortran, dtype = _header(file)
    if file.tell() - start + math.prod(shape) * dtype.itemsize != info.file_size or 0 in shape:
        raise ValueError(f"a header of {dtype}{list(shape)} in {info.file_size} bytes")
    order = "F" if fortran else "C"
    return np.memmap(file.name, dtype, "r", offset=file.tell(), shape=shape, order=order)


class MappedArray(NamedTuple):
    """Where a mapped array is, which is what travels to another process instead of its content."""

    path: str
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]  # of the file, in the order of C
    axes: tuple[int, ...]  # of the array, in the order of the file


def sent(array: np.ndarray) -> np.ndarray | MappedArray:
    """Return what travels to another process of an array: of a mapped one the place of its file.

    Args:
      array: an array in memory, or a whole mapped one, whose axes may be in another order; not a
        part of it.
    """
    if not isinstance(array, np.memmap):
        return array
    axes = tuple(np.argsort([-stride for stride in array.strides], kind="stable").tolist())
    shape = tuple(array.shape[axis] for axis in axes)
    return MappedArray(str(array.filename), array.dtype, array.offset, shape, axes)


def received(array: np.ndarray | MappedArray) -> np.ndarray:
    """Return the array of what `sent` returned.

    Args:
      array: the array, or the place where it is.
    """
    if not isinstance(array, MappedArray):
        return array
    path, dtype, offset, shape, axes = array
    found = np.memmap(path, dtype, "r", offset=offset, shape=shape)
    return found.transpose(np.argsort(axes))


@contextlib.contextmanager
def _plain(path: str | os.PathLike) -> Iterator[None]:
    """Turn what a damaged file raises in the block into one line."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UserError(f"'{path}' is not a regular file")
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from error
    except Exception as error:  # damaged files raise many types; the cause stays attached
        raise UserError(f"'{path}' is damaged ({type(error).__name__}: {error!s:.200})") from error


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of an .npy file: (shape, whether in the order of Fortran, type)."""
    version = np.lib.format.read_magic(file)
    headers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    shape, fortran, dtype = headers[version](file)
    if dtype.hasobject:
        raise ValueError("it holds a pickle of Python objects, which are never read")
    if min(shape, default=0) < 0:
        raise ValueError(f"a header of {dtype}{list(shape)}")
    return shape, fortran, dtype


def _plain_array(file: IO[bytes], size: int) -> np.ndarray:
    """Read the array of an .npy member of `size` bytes.

    Raises:
      ValueError: unless its header and its bytes agree, and it holds no objects.
    """
    shape, fortran, dtype = _header(file)
    if math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"a header of {dtype}{list(shape)} in {size} bytes")
    data = file.read()
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(data)} bytes for {dtype}{list(shape)}")
    if not data:
        return np.zeros(shape, dtype)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _check(array: np.ndarray, spec: ArraySpec, what: str) -> None:
    """Raise UserError, beginning with `what`, unless the array meets its specification."""
    fits = spec.shape is None or (
        len(spec.shape) == array.ndim
        and all(size in (None, own) for size, own in zip(spec.shape, array.shape))
    )
    if array.dtype.kind not in spec.kinds or not fits:
        shape = "" if spec.shape is None else f" {['any' if n is None else n for n in spec.shape]}"
        raise UserError(
            f"{what} is {array.dtype}{list(array.shape)}, and must be of kind {spec.kinds}{shape}"
        )
    if spec.finite and array.dtype.kind in "fc" and not np.isfinite(array).all():
        raise UserError(f"{what} has values that are not finite")
