"""Object stores (gs://, s3://) through fsspec: whole objects, retried, every failure in one line.

An object store has no folders, no renaming and no appending. What it has is enough: one PUT makes
or replaces a whole object at once, a listing shows every PUT that has ended, and a PUT may be
conditional on the object not being there (`create`).
"""

from __future__ import annotations

import errno
import importlib.metadata
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from diffusion_jax.core.deferred import deferred
from diffusion_jax.core.errors import UserError

fsspec = deferred("fsspec")

T = TypeVar("T")

EXTRAS = {"gs": "gcs", "s3": "s3"}  # scheme -> extra of this package that installs its client
FIRST = 20.0  # seconds for which the first access of a command is tried again
PATIENCE = 600.0  # seconds for which later ones are tried again: a run outlives a short outage
LONGEST_WAIT = 30.0  # seconds between two tries

_REFUSED = (400, 401, 403, 404, 405)  # HTTP statuses that another try does not change
_LOCAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # of this machine's own disk
_FINGERPRINTS = ("generation", "ETag", "etag", "md5Hash", "LastModified", "updated", "mtime")


class Bucket(NamedTuple):
    """The objects of a store whose names begin with a common prefix.

    Attributes:
      url: scheme, bucket and prefix, without a slash at the end.
      key: the flag or config key that names it, for messages.
      files: fsspec's file system of the store.
      root: the prefix as that file system writes it.
    """

    url: str
    key: str
    files: fsspec.AbstractFileSystem
    root: str


def is_url(path: Any) -> bool:
    """Return whether a path names objects of a store rather than files, as in gs://bucket/runs.

    Args:
      path: the text of a path.
    """
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.\-]*://", str(path)))


def open_bucket(url: str, key: str) -> Bucket:
    """Connect to the store of a URL; nothing is read or written yet.

    Args:
      url: such as gs://bucket/runs/a or s3://bucket/runs/a, or of another store whose fsspec
        package is installed.
      key: the flag or config key that names it, for messages.

    Raises:
      UserError: for a URL without a bucket, an unknown scheme, and a package that is missing.
    """
    scheme, _, rest = url.partition("://")
    scheme, rest = scheme.lower(), rest.strip("/")
    others = {entry.name for entry in importlib.metadata.entry_points(group="fsspec.specs")}
    if scheme not in others | set(EXTRAS):
        raise UserError(f"{key}={url}: write gs://BUCKET/..., s3://BUCKET/... or a local path")
    if not rest or re.search(r"[\x00-\x1f*?\[\]]|::|(^|/)\.{0,2}(/|$)", rest):
        raise UserError(f"{key}={url}: write {scheme}://BUCKET/NAME with plain names")
    url = f"{scheme}://{rest}"
    try:
        files = fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
    except ImportError as error:
        extra = EXTRAS.get(scheme, scheme)
        raise UserError(
            f"{key}={url} needs the package for {scheme}://; pip install 'diffusion_jax[{extra}]'"
        ) from error
    except Exception as error:  # of the client library: credentials that are missing or damaged
        raise UserError(f"{key}={url} cannot be opened: {reason(error)}") from error
    return Bucket(url, key, files, files._strip_protocol(url).rstrip("/"))


def names(bucket: Bucket, below: str = "", patience: float | None = None) -> dict[str, str]:
    """List the objects below a prefix: {name below bucket.url: fingerprint of its content}.

    Args:
      bucket: the bucket; where it is itself one object, the name of that is ''.
      below: a folder of the bucket; '' lists everything.
      patience: seconds for which a failure is tried again; None: PATIENCE.

    Raises:
      UserError: for a store that cannot be read, and for names that are no paths below a folder.
    """

    def find() -> dict[str, dict]:
        bucket.files.invalidate_cache()
        try:
            return bucket.files.find(_path(bucket, below), detail=True)
        except FileNotFoundError:
            return {}

    found = {}
    for path, info in tried(bucket, "listed", find, patience).items():
        if f"{path}/".startswith(f"{bucket.root}/"):
            name = path.removeprefix(bucket.root).removeprefix("/")
        else:
            continue  # runs/ab where runs/a is listed
        if name.endswith("/") or info.get("type") == "directory":
            continue  # what the consoles of stores write for an empty folder
        if name:
            check_name(bucket, name)
        found[name] = _fingerprint(info)
    return found


def check_name(bucket: Bucket, name: str) -> None:
    """Refuse the name of an object that is no path below a folder, such as one with '..'.

    Args:
      bucket: the bucket, for the message.
      name: of the object.

    Raises:
      UserError: for such a name.
    """
    if re.search(r"[\x00-\x1f\\]|(^|/)\.{0,2}(/|$)", name):
        raise UserError(f"{bucket.key}={bucket.url} has an object that is no file: '{name:.99}'")


def read(bucket: Bucket, name: str, patience: float | None = None) -> bytes | None:
    """Read a small object; None where it does not exist.

    Args:
      bucket: the bucket.
      name: of the object.
      patience: seconds for which a failure is tried again; None: PATIENCE.
    """
    try:
        return tried(bucket, "read", lambda: bucket.files.cat_file(_path(bucket, name)), patience)
    except FileNotFoundError:
        return None


def write(bucket: Bucket, name: str, content: bytes, patience: float | None = None) -> None:
    """Make or replace a small object, at once.

    Args:
      bucket: the bucket.
      name: of the object.
      content: its bytes.
      patience: seconds for which a failure is tried again; None: PATIENCE.
    """
    _found(
        bucket,
        lambda: tried(
            bucket,
            "written",
            lambda: bucket.files.pipe_file(_path(bucket, name), content),
            patience,
        ),
    )


def create(bucket: Bucket, name: str, content: bytes, patience: float | None = None) -> bool:
    """Make an object unless there is one of that name: of several that try, one succeeds.

    Args:
      bucket: the bucket.
      name: of the object.
      content: its bytes.
      patience: seconds for which a failure is tried again; None: PATIENCE.

    Returns:
      Whether it was made. After a try whose answer was lost, the object that is there counts as
      made if it has this content.
    """

    def make() -> None:
        bucket.files.pipe_file(_path(bucket, name), content, mode="create")

    try:
        _found(bucket, lambda: tried(bucket, "written", make, patience))
    except FileExistsError:
        return read(bucket, name, patience) == content
    return True


def upload(bucket: Bucket, name: str, file: Path) -> str:
    """Make or replace an object by the content of a file, at once when all of it has arrived.

    Args:
      bucket: the bucket.
      name: of the object.
      file: the local file.

    Returns:
      The fingerprint of the object.
    """
    path = _path(bucket, name)

    def put() -> str:
        bucket.files.put_file(str(file), path)
        bucket.files.invalidate_cache()
        return _fingerprint(bucket.files.info(path))

    return _found(bucket, lambda: tried(bucket, "written", put))


def download(bucket: Bucket, name: str, file: Path) -> bool:
    """Copy an object to a file; False where it does not exist.

    Args:
      bucket: the bucket.
      name: of the object; '' for the object that the bucket itself is.
      file: the local file, which is written; its folder exists.
    """
    path = _path(bucket, name)
    try:
        tried(bucket, "read", lambda: bucket.files.get_file(path, str(file)))
    except FileNotFoundError:
        return False
    return True


def remove(bucket: Bucket, name: str) -> None:
    """Remove an object, if it exists.

    Args:
      bucket: the bucket.
      name: of the object.
    """
    try:
        tried(bucket, "written", lambda: bucket.files.rm_file(_path(bucket, name)))
    except FileNotFoundError:
        return


def tried(bucket: Bucket, done: str, act: Callable[[], T], patience: float | None = None) -> T:
    """Call a function of the store, again after longer and longer pauses while that may help.

    Args:
      bucket: the bucket, for the message.
      done: what happens to the bucket, 'read', 'listed' or 'written', for the message.
      act: the function.
      patience: seconds for which a failure is tried again; None: PATIENCE.

    Raises:
      UserError: where it is refused, or has failed for that long.
      FileNotFoundError: where an object does not exist.
      FileExistsError: where one does that must not.
    """
    pause = 0.25
    end = time.monotonic() + (PATIENCE if patience is None else patience)
    while True:
        try:
            return act()
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:  # each client library has types of its own
            if isinstance(error, OSError) and error.errno in _LOCAL:
                raise
            if _refused(error) or time.monotonic() + pause > end:
                raise UserError(
                    f"{bucket.key}={bucket.url} cannot be {done}: {reason(error)}; check the name, "
                    "the credentials and the network"
                ) from error
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, LONGEST_WAIT)


def reason(error: BaseException) -> str:
    """Say in one line why a store refused.

    Args:
      error: what the client library raised.
    """
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _found(bucket: Bucket, act: Callable[[], T]) -> T:
    """The result of a write; an object that is not found is then the bucket itself."""
    try:
        return act()
    except FileNotFoundError as error:
        raise UserError(
            f"{bucket.key}={bucket.url}: there is no such bucket; make it first"
        ) from error


def _refused(error: Exception) -> bool:
    """Whether the store has answered, and another try would get the same answer."""
    status = getattr(error, "code", None) or getattr(error, "status", None)
    return (
        isinstance(error, (PermissionError, NotImplementedError, ValueError, TypeError))
        or "Credentials" in type(error).__name__
        or str(error).startswith("Forbidden")  # as gcsfs writes status 403
        or (str(status).isdecimal() and int(status) in _REFUSED)
    )


def _path(bucket: Bucket, name: str) -> str:
    return f"{bucket.root}/{name}" if name else bucket.root


def _fingerprint(info: dict[str, Any]) -> str:
    """Text that changes whenever an object is replaced, as far as its store says."""
    mark = next((info[key] for key in _FINGERPRINTS if info.get(key)), "")
    return f"{info.get('size')} {mark}"
