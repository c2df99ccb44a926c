"""A local folder and the objects of a bucket that it mirrors: fetched, compared, sent.

The bucket is the truth: `pull` makes the folder equal to it. `push` sends what changed in the
folder since, and removes what was removed.

A checkpoint has many files. It counts as there once its object `_COMMITTED`, which lists them, is
there; that is sent after all of them, and removed before any of them. `pull` makes only an empty
folder for a checkpoint, and `fetch_checkpoint` fills it when it is read.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from diffusion_jax.core import buckets, reading
from diffusion_jax.core.buckets import Bucket
from diffusion_jax.core.errors import UserError

COMMITTED = "_COMMITTED"  # the last object of a checkpoint
UNSENT = "unsent"  # marks a folder that could not be sent: it is not used again
THREADS = 8  # files that are sent or fetched at a time
PROCESSES = 1000  # folders of one URL on one machine

_CHECKPOINT = re.compile(r"((?:.*/)?checkpoints[^/]*/[^/]+)/(.+)")
_UNFINISHED = ".orbax-checkpoint-tmp"

_MARKER = reading.table(reading.integer())  # {file: bytes}
_STATE = reading.record(
    {
        "files": reading.table(reading.items(reading.anything, 3, 3)),
        "checkpoints": reading.table(reading.text()),
    }
)


class Mirror(NamedTuple):
    """A local folder of what a bucket holds.

    Attributes:
      bucket: the bucket.
      folder: the folder.
      files: {name: [bytes, time in ns, fingerprint of the object]} of files that are the same here
        and there; changed in place.
      checkpoints: {name: fingerprint of its marker} of checkpoints that are whole here and there.
      there: names of the checkpoints that the bucket has.
      partial: names of those of which it has files without a marker.
      state: the file that keeps `files` and `checkpoints` for the next command.
      lock: an open file; no other process uses the folder while it is open. Folders of data are
        shared, and locked only while they are fetched.
      writable: whether the folder is ever sent.
      busy: a lock that is held while the records change.
    """

    bucket: Bucket
    folder: Path
    files: dict[str, list]
    checkpoints: dict[str, str]
    there: set[str]
    partial: set[str]
    state: Path
    lock: IO
    writable: bool
    busy: Any


def open_mirror(bucket: Bucket, *, writable: bool) -> Mirror:
    """Take the first folder of this URL that no other process of this machine uses.

    Folders are in $DIFFUSION_JAX_BUCKETS, or else in ~/.cache/diffusion_jax/buckets.

    Args:
      bucket: the bucket.
      writable: False for data, whose folder is shared between processes.

    Raises:
      UserError: if there are too many, or the folder cannot be made.
    """
    digest = hashlib.sha256(bucket.url.encode()).hexdigest()[:16]
    home = Path.home() / ".cache" / "diffusion_jax" / "buckets"
    place = Path(os.environ.get("DIFFUSION_JAX_BUCKETS") or home).absolute() / digest
    for number in range(PROCESSES):
        slot = place / (str(number) if writable else "data")
        folder = slot / PurePosixPath(bucket.url).name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = (slot / "lock").open("a")
        except OSError as error:
            raise UserError(
                f"{bucket.key}={bucket.url} needs a local folder, and '{slot}' cannot be written: "
                f"{error.strerror}; set DIFFUSION_JAX_BUCKETS to another"
            ) from error
        try:
            if (slot / UNSENT).exists():
                raise BlockingIOError
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if writable else 0))
        except BlockingIOError:
            file.close()
            continue
        state = slot / "state.json"
        kept = reading.kept(state, lambda path: reading.json_file(path, _STATE)) or {}
        records = kept.get("files", {}), kept.get("checkpoints", {}), set(), set()
        return Mirror(bucket, folder, *records, state, file, writable, threading.RLock())
    raise UserError(
        f"{bucket.key}={bucket.url}: '{place}' has {PROCESSES} folders in use; delete those of "
        "them that you do not need"
    )


# ---- from the bucket
def pull(mirror: Mirror, patience: float | None = None) -> None:
    """Make the folder equal to the bucket; of checkpoints only empty folders are made.

    Args:
      mirror: the mirror.
      patience: seconds for which a failure to list is tried again; None: buckets.PATIENCE.
    """
    with mirror.busy:
        files, markers, partial = {}, {}, set()
        for name, mark in buckets.names(mirror.bucket, patience=patience).items():
            found = _checkpoint(mirror, name)
            if found and found[1] == COMMITTED:
                markers[found[0]] = mark
            elif found:
                partial.add(found[0])
            elif not _hidden(name):
                files[name] = mark
        one = files.keys() == {""}  # the URL is that of one object
        files = {mirror.folder.name: files[""]} if one else files
        _replace(mirror.there, markers)
        _replace(mirror.partial, partial - set(markers))
        _clear(mirror, files, markers)

        def fetch(name: str) -> None:
            _fetch(mirror, name, "" if one else name, files[name])

        _each(fetch, [name for name in files if name not in mirror.files])
        for name in markers:
            (mirror.folder / name).mkdir(parents=True, exist_ok=True)
        _keep_state(mirror)
        if not mirror.writable:
            fcntl.flock(mirror.lock, fcntl.LOCK_UN)


def fetch_checkpoint(mirror: Mirror, name: str) -> None:
    """Fetch the files of a checkpoint, unless they are here.

    One that was removed from the bucket meanwhile is removed here, and newer ones appear.

    Args:
      mirror: the mirror.
      name: the folder of the checkpoint.
    """
    with mirror.busy:
        missing = name in mirror.there and name not in mirror.checkpoints
        if missing and not _fetch_files(mirror, name):
            pull(mirror)


def _fetch_files(mirror: Mirror, name: str) -> bool:
    """Copy a checkpoint from the bucket; False where it was removed meanwhile."""
    bucket, marker = mirror.bucket, f"{name}/{COMMITTED}"
    mark = buckets.names(bucket, name).get(marker)
    text = buckets.read(bucket, marker)
    if mark is None or text is None:
        return False
    listed = reading.json_text(text, f"'{bucket.url}/{marker}'", _MARKER)
    folder = mirror.folder / name
    part = folder.with_name(f".{folder.name}.fetched")
    shutil.rmtree(part, ignore_errors=True)
    for file in listed:
        buckets.check_name(bucket, file)
        (part / file).parent.mkdir(parents=True, exist_ok=True)
    whole = _each(lambda file: buckets.download(bucket, f"{name}/{file}", part / file), listed)
    if not all(whole):
        return False
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
    mirror.checkpoints[name] = mark
    _keep_state(mirror)
    return True


def _fetch(mirror: Mirror, name: str, source: str, mark: str) -> None:
    """Copy an object to a file, atomically; one that was removed meanwhile is left out."""
    path = mirror.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.fetched")
    if buckets.download(mirror.bucket, source, temporary):
        os.replace(temporary, path)
        mirror.files[name] = [*_about(path), mark]


def _clear(mirror: Mirror, files: dict[str, str], markers: dict[str, str]) -> None:
    """Remove what the bucket has not, or has in another version; forget it likewise."""
    for name, mark in list(mirror.checkpoints.items()):
        if markers.get(name) != mark or not any((mirror.folder / name).glob("*")):
            del mirror.checkpoints[name]
    for name, (*about, mark) in list(mirror.files.items()):
        path = mirror.folder / name
        if files.get(name) != mark or not path.is_file() or _about(path) != about:
            del mirror.files[name]
    for parent, folders, found in os.walk(mirror.folder, topdown=False):
        for each in found:
            path = Path(parent) / each
            name = path.relative_to(mirror.folder).as_posix()
            part = _checkpoint(mirror, name)
            if (part[0] not in mirror.checkpoints) if part else (name not in mirror.files):
                path.unlink()
        for each in folders:
            with contextlib.suppress(OSError):  # it is not empty
                (Path(parent) / each).rmdir()


# ---- to the bucket
def send(mirror: Mirror, name: str) -> None:
    """Send one file; what is written to it meanwhile is sent the next time.

    Args:
      mirror: the mirror.
      name: of the file; temporary files and those of checkpoints are left out.
    """
    if _hidden(name) or _checkpoint(mirror, name):
        return
    path = mirror.folder / name
    if not path.is_file():  # removed meanwhile
        return
    about = _about(path)
    mark = buckets.upload(mirror.bucket, name, path)
    with mirror.busy:
        mirror.files[name] = [*about, mark]


def push(mirror: Mirror) -> None:
    """Send all that changed: files, then checkpoints; then remove what was removed here.

    Args:
      mirror: the mirror.
    """
    files, checkpoints, known = [], {}, dict(mirror.files)
    for name in _walk(mirror.folder):
        if found := _checkpoint(mirror, name):
            checkpoints.setdefault(found[0], []).append(found[1])
        elif known.get(name, [])[:2] != _about(mirror.folder / name):
            files.append(name)
    _each(lambda name: send(mirror, name), files)
    for name in sorted(set(checkpoints) - set(mirror.checkpoints)):
        _send_checkpoint(mirror, name, checkpoints[name])
    for name in sorted(mirror.there):
        if not (mirror.folder / name).is_dir():
            remove_checkpoint(mirror, name)
    for name in known:
        if not (mirror.folder / name).exists():
            buckets.remove(mirror.bucket, name)
            mirror.files.pop(name, None)
    with mirror.busy:
        _keep_state(mirror)


def _send_checkpoint(mirror: Mirror, name: str, files: list[str]) -> None:
    """Send the files of a checkpoint, then the object that says that they are all there."""
    bucket, folder, marker = mirror.bucket, mirror.folder / name, f"{name}/{COMMITTED}"
    sizes = {file: (folder / file).stat().st_size for file in files}
    _each(lambda file: buckets.upload(bucket, f"{name}/{file}", folder / file), files)
    buckets.write(bucket, marker, json.dumps(sizes, sort_keys=True).encode())
    mark = buckets.names(bucket, name).get(marker, "")
    with mirror.busy:
        mirror.checkpoints[name] = mark
        mirror.there.add(name)


def remove_checkpoint(mirror: Mirror, name: str) -> None:
    """Remove a checkpoint from the bucket, first the object that says that it is there.

    Args:
      mirror: the mirror.
      name: the folder of the checkpoint.
    """
    buckets.remove(mirror.bucket, f"{name}/{COMMITTED}")
    _each(lambda each: buckets.remove(mirror.bucket, each), buckets.names(mirror.bucket, name))
    with mirror.busy:
        mirror.there.discard(name)
        mirror.partial.discard(name)
        mirror.checkpoints.pop(name, None)


# ---- files and names
def _each(act: Callable[[str], Any], names: Iterable[str]) -> list:
    """act(name) for every name, several at a time; the first error is raised."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(act, list(names)))


def _checkpoint(mirror: Mirror, name: str) -> tuple[str, str] | None:
    """(checkpoint, file in it) of a name; None for other files, and in data."""
    found = _CHECKPOINT.fullmatch(name) if mirror.writable else None
    return found and (found[1], found[2])


def _hidden(name: str) -> bool:
    """Whether a file is never sent: temporary ones, locks, unfinished checkpoints."""
    return any(part.startswith(".") or _UNFINISHED in part for part in name.split("/"))


def _walk(folder: Path) -> Iterator[str]:
    """The names of all regular files below a folder that may be sent."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [each for each in folders if not _hidden(each)]
        for file in files:
            path = Path(parent) / file
            if not _hidden(file) and not path.is_symlink():
                yield path.relative_to(folder).as_posix()


def _about(path: Path) -> list:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _replace(old: set[str], new: Iterable[str]) -> None:
    old.clear()
    old.update(new)


def _keep_state(mirror: Mirror) -> None:
    """Note what is the same here and there, so that the next command need not fetch it."""
    temporary = mirror.state.with_suffix(".tmp")
    value = {"files": mirror.files, "checkpoints": mirror.checkpoints}
    temporary.write_text(json.dumps(value))
    os.replace(temporary, mirror.state)
