"""Workdirs and data in object stores, by local paths: every URL has a local folder that mirrors it.

    folder = local("gs://bucket/runs/a", "--workdir")    # a path; other paths are left as they are

All code works on that folder. Files that are written atomically are sent as they are written
(`sent`), checkpoints when they are whole (`push`), the rest with them and at the end of the
command. What a killed process had not sent is made again, as the bucket is the truth. Every
process has folders of its own, so several hosts need no common disk (`mirrors`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffusion_jax.core import buckets, mirrors
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.mirrors import Mirror

_OPEN: list[Mirror] = []  # of this process


def local(path: Any, key: str = "--workdir", *, writable: bool = True) -> Any:
    """Return the local folder of a URL, made equal to what the bucket holds; other paths unchanged.

    Args:
      path: a path, or a URL such as gs://bucket/runs/a, also one within a folder that is open.
      key: the flag or config key that names it, for messages.
      writable: False for data, of which the URL may be one file, and which must exist.

    Raises:
      UserError: for a URL or a store that cannot be used, and for data that do not exist.
    """
    if not buckets.is_url(path):
        return path
    bucket = buckets.open_bucket(str(path), key)
    for mirror in _OPEN:
        if f"{bucket.url}/".startswith(f"{mirror.bucket.url}/"):
            below = bucket.url[len(mirror.bucket.url) :].lstrip("/")
            return str(_top(mirror) / below if below else _top(mirror))
    mirror = mirrors.open_mirror(bucket, writable=writable)
    try:
        mirrors.pull(mirror, buckets.FIRST)
        if not writable and not mirror.files:
            raise UserError(f"{key}={path}: the bucket has nothing there")
    except BaseException:
        mirror.lock.close()
        raise
    _OPEN.append(mirror)
    return str(_top(mirror))


def of(path: str | os.PathLike) -> Mirror | None:
    """Return the open mirror that a local path belongs to; None for other paths.

    Args:
      path: a local path.
    """
    path = os.path.abspath(os.fspath(path)) if _OPEN else ""
    return next((each for each in _OPEN if f"{path}/".startswith(f"{each.folder}/")), None)


def shown(text: str) -> str:
    """Replace local folders in a text by the URLs that they stand for.

    Args:
      text: what is printed, or written for the user.
    """
    for mirror in _OPEN:
        text = text.replace(str(_top(mirror)), mirror.bucket.url)
    return text


def sent(path: str | os.PathLike) -> None:
    """Send one file that is whole, if it belongs to a workdir in a bucket; else do nothing.

    Args:
      path: the local file.
    """
    if (mirror := of(path)) is not None and mirror.writable:
        with advice(mirror):
            mirrors.send(mirror, _name(mirror, path))


def push(path: str | os.PathLike | None = None) -> None:
    """Send all that changed in a workdir in a bucket, and remove what was removed.

    Args:
      path: a path of the workdir; None sends every workdir that is open.
    """
    for mirror in _OPEN:
        if mirror.writable and (path is None or mirror is of(path)):
            with advice(mirror):
                mirrors.push(mirror)


def refresh(path: str | os.PathLike) -> None:
    """Make the local folder of a workdir equal to the bucket again; other paths are left alone.

    Args:
      path: a path of the workdir.
    """
    if (mirror := of(path)) is not None:
        mirrors.pull(mirror)


def tidy(path: str | os.PathLike) -> None:
    """Remove from the bucket what killed runs left of checkpoints; only the owner may call this.

    Args:
      path: a path of the workdir.
    """
    if (mirror := of(path)) is not None:
        for name in sorted(mirror.partial):
            mirrors.remove_checkpoint(mirror, name)


def fetch(folder: str | os.PathLike) -> None:
    """Fetch the files of a checkpoint, if it is in a bucket and they are not here yet.

    Args:
      folder: the local folder of the checkpoint.
    """
    if (mirror := of(folder)) is not None:
        mirrors.fetch_checkpoint(mirror, _name(mirror, folder))


def close() -> None:
    """Forget all mirrors of this process; their folders stay for the next."""
    while _OPEN:
        _OPEN.pop().lock.close()


def _top(mirror: Mirror) -> Path:
    """The local path that the URL stands for: the folder, or the one file of data."""
    file = mirror.folder / mirror.folder.name
    one = not mirror.writable and mirror.files.keys() == {file.name}
    return file if one else mirror.folder


def _name(mirror: Mirror, path: str | os.PathLike) -> str:
    return Path(os.path.abspath(path)).relative_to(mirror.folder).as_posix()


@contextlib.contextmanager
def advice(mirror: Mirror) -> Iterator[None]:
    """Say in the error of a store that is gone where the results are meanwhile.

    Args:
      mirror: of the workdir; its folder is not used again.

    Raises:
      UserError: what the block raises, with this advice.
    """
    try:
        yield
    except UserError as error:
        (mirror.state.parent / mirrors.UNSENT).touch()
        raise UserError(
            f"{error}; running the same command again resumes from what was sent; the rest stays "
            f"in {mirror.state.parent}{os.sep} until you delete it"
        ) from error
