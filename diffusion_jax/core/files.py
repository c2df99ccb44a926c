"""Files: written atomically, JSON in a canonical form."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.core import reading, staging
from diffusion_jax.core.errors import UserError

LONGEST_NAME = 255  # bytes of a file name on all usual disks
TEMPORARY_NAME = len(".012345678901.tmp") + 1  # what `atomic_path` adds to a name
ABANDONED = 24 * 3600  # seconds after which nobody writes into a temporary folder any more
_TEMPORARY = re.compile(r"\.(.+\.)?[0-9a-f]{12}\.tmp")


def plain(value: Any) -> Any:
    """Convert a value to plain JSON data.

    Args:
      value: None, text, a number, or a mapping, sequence, set, ConfigDict or array (numpy or JAX)
        of such values.

    Returns:
      The value, in which mappings have string keys, sets are sorted lists, arrays are lists, and
      objects of other types are their text.
    """
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if hasattr(value, "to_dict"):  # ConfigDict
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=str)
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else str(value)


def canonical_json(value: Any, indent: int | None = 2) -> str:
    """Return JSON text that depends on the values alone, with sorted keys.

    Args:
      value: what `plain` converts.
      indent: spaces per level; None writes one line.
    """
    return json.dumps(plain(value), sort_keys=True, indent=indent)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` when the block ends.

    If the block raises, `path` stays as it was. Missing folders are made. In a workdir that is in
    an object store the whole file is then sent there (`staging.sent`). The temporary name keeps
    the suffix, by which many writers choose their format.

    Args:
      path: the file to write; it must not be a folder.

    Yields:
      The temporary path, an empty file next to `path`.

    Raises:
      UserError: where the folder cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:12]}.tmp{path.suffix}")
    if path.is_dir():
        raise UserError(f"cannot write '{path}': it is a folder; give the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
    except OSError as error:
        raise UserError(
            f"cannot write '{path}': {error.strerror}; choose a folder that can be written"
        ) from error
    try:
        yield temporary
        os.chmod(temporary, mode)  # some libraries write files that only their owner can read
        os.replace(temporary, path)
        staging.sent(path)
    except OSError as error:  # such as a full disk, where the system names no file
        error.filename = os.fspath(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike) -> None:
    """Check that `atomic_path` can write a file, and leave nothing behind.

    A command calls this before its work, whose results would be lost otherwise. A full disk is not
    found in this way.

    Args:
      path: the file; its folder need not exist.

    Raises:
      UserError: where the folder cannot be written, or the name is too long.
    """
    path = Path(os.path.abspath(path))
    folder = next(parent for parent in path.parents if os.path.lexists(parent))
    longest = len(os.fsencode(path.name)) + TEMPORARY_NAME
    try:
        names = path.relative_to(folder).parts[:-1]
        if max(longest, *(len(os.fsencode(name)) for name in names), 0) > LONGEST_NAME:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        trial = folder / f".{uuid.uuid4().hex[:12]}.tmp"
        trial.touch()
        trial.unlink()
    except OSError as error:
        remedy = (
            "use a shorter name"
            if error.errno == errno.ENAMETOOLONG
            else "choose a folder that can be written"
        )
        name = str(path) if len(str(path)) <= 100 else f"{str(path)[:60]}...{str(path)[-30:]}"
        raise UserError(f"cannot write '{name}': {error.strerror}; {remedy}") from error


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary empty folder that replaces `path` when the block ends.

    If the block raises, or the folder cannot be moved to `path`, `path` stays as it was. The folder
    that was there is removed.

    Args:
      path: the folder to write; of a link, the folder that it leads to.

    Yields:
      The temporary folder, next to `path`.

    Raises:
      UserError: where the folder cannot be written.
    """
    path = Path(os.path.realpath(path))
    temporary, old = (
        path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.{end}") for end in ("tmp", "old")
    )
    try:
        remove_abandoned(path.parent)
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(
            f"cannot write '{path}': {error.strerror}; choose a folder that can be written"
        ) from error
    try:
        yield temporary
        if path.exists():
            os.rename(path, old)
        try:
            os.rename(temporary, path)
        except OSError:
            if old.exists():
                os.rename(old, path)
            raise
    finally:
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)


def remove_abandoned(parent: str | os.PathLike) -> None:
    """Remove the temporary folders that a killed process left more than ABANDONED seconds ago.

    Args:
      parent: the folder that they are in; it need not exist.
    """
    for entry in Path(parent).glob(".*.tmp"):
        with contextlib.suppress(OSError):  # another process was faster
            age = time.time() - entry.lstat().st_mtime
            if _TEMPORARY.fullmatch(entry.name) and entry.is_dir() and age > ABANDONED:
                shutil.rmtree(entry, ignore_errors=True)


def save_text(path: str | os.PathLike, text: str) -> None:
    """Write text in UTF-8, atomically; bytes of file names that are not UTF-8 are escaped.

    Args:
      path: the file, which is replaced if it exists; missing folders are made.
      text: the content of the file.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def save_json(path: str | os.PathLike, value: Any) -> None:
    """Write a value as canonical JSON, atomically.

    Args:
      path: the file, which is replaced if it exists; missing folders are made.
      value: what `plain` converts.
    """
    save_text(path, canonical_json(value) + "\n")


def load_json(path: str | os.PathLike, rule: reading.Rule = reading.anything) -> Any:
    """Read a JSON file whose value meets a rule (see `reading`).

    Args:
      path: the file, of at most 256 MiB.
      rule: what the value must be; by default anything.

    Returns:
      The value of the file.

    Raises:
      UserError: naming the file and the place, where it is missing, broken or something else.
    """
    try:
        return reading.json_file(path, rule)
    except UserError as error:
        raise UserError(f"{error}; delete it or make it again") from None
