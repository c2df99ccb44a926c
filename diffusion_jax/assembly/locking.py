"""One process at a time trains in a workdir, and errors of the file system are one line."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from diffusion_jax.assembly import leases
from diffusion_jax.core import staging
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.mirrors import Mirror
from diffusion_jax.pretrained import folders
from diffusion_jax.training import distributed


@contextlib.contextmanager
def locked(workdir: str | Path) -> Iterator[Callable[[], None]]:
    """Keep other processes from training in this workdir while the block runs.

    The first process of a run holds the lock. In an object store it is a lease (`leases`), and the
    local folder is made equal to the bucket again once it is held.

    Args:
      workdir: the folder of the run, which is created if it is missing.

    Yields:
      in_place(), which raises UserError once the workdir was moved or deleted, before anything
      creates it anew.

    Raises:
      UserError: if another process trains there already, which it names, if the workdir cannot be
        written, or if it is a published model.
    """
    folders.refuse_to_write(workdir)
    if not distributed.first():
        yield lambda: None
        return
    if (mirror := staging.of(workdir)) is not None:
        with leases.leased(mirror.bucket) as still_ours:
            staging.refresh(workdir)
            staging.tidy(workdir)
            yield functools.partial(_still_ours, still_ours, mirror)
        return
    path = Path(workdir).expanduser().absolute() / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error.strerror}") from error
    # the system releases the lock when the file is closed, also when the process is killed
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"--workdir={workdir} is in use by {file.read().strip() or 'another process'}; "
                "wait for it, stop it, or use another --workdir"
            ) from None
        except OSError:
            # a file system without locks; on NFS those of some servers do not reach other hosts
            pass
        with one_line(workdir):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        yield functools.partial(_in_place, path, os.fstat(file.fileno()))


def _still_ours(check: Callable[[], None], mirror: Mirror) -> None:
    with staging.advice(mirror):
        check()


def _in_place(lock: Path, ours: os.stat_result) -> None:
    """Check that the lock file at this path is still the one that this process holds."""
    try:
        if os.path.samestat(os.stat(lock), ours):
            return
    except OSError:
        pass
    raise UserError(
        f"--workdir={lock.parent} was moved or deleted while this command was writing to it; "
        "move it back, then run the same command again to resume from its last checkpoint"
    )


@contextlib.contextmanager
def one_line(workdir: str | Path) -> Iterator[None]:
    """Turn an error of the file system (no space left, a missing file, ...) into a UserError.

    Args:
      workdir: the folder of the run, which the block writes to.

    Raises:
      UserError: names the workdir and the cause.
    """
    try:
        yield
    except BrokenPipeError:  # of the command's own output, not of the workdir
        raise
    except OSError as error:
        what = str(error)
        if error.strerror:
            what = error.strerror + (f": '{error.filename}'" if error.filename else "")
        raise UserError(
            f"{what}; once that is fixed, run the same command again to resume from the last "
            "checkpoint"
        ) from error
