"""Leases: one run at a time writes a workdir in an object store.

A lease is the object `.leases/N`, which names its owner and is written again every RENEWAL seconds.
The newest, of the largest N, counts. A run that finds it released, or sees it unchanged for EXPIRY
seconds of its own clock, makes `.leases/N+1` on the condition that there is none: of several that
try, the store lets one succeed. The former owner, if it was only slow, finds the larger number at
its next renewal, or before its next checkpoint, and ends.

Not protected is the moment between that look and the write: a process that is suspended exactly
there for more than EXPIRY seconds may still write one object after another run has taken over.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from diffusion_jax.core import buckets, reading
from diffusion_jax.core.buckets import Bucket
from diffusion_jax.core.errors import UserError

LEASES = ".leases"  # hidden, so no command takes them for files of the workdir
RENEWAL = 15.0  # seconds
EXPIRY = 60.0  # seconds without a renewal after which a lease counts as left behind
LOOK = 1.0  # seconds between two looks at a lease that may be left behind

_LEASE = reading.record(
    {
        "owner": reading.text(),
        "machine": reading.text(),
        "process": reading.text(),
        "token": reading.text(),
        "renewed": reading.integer(),
        "released": reading.boolean(),
    }
)


@contextlib.contextmanager
def leased(bucket: Bucket) -> Iterator[Callable[[], None]]:
    """Keep other runs from writing to a workdir in a bucket while the block runs.

    Args:
      bucket: the workdir.

    Yields:
      still_ours(), which raises UserError once another run has taken over.

    Raises:
      UserError: if another run has the lease and renews it.
    """
    lease = _Lease(bucket)
    lease.acquire()
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(RENEWAL):
            with contextlib.suppress(UserError):  # it is found again before the next checkpoint
                lease.renew()

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield lease.check
    finally:
        stop.set()
        thread.join()
        with contextlib.suppress(UserError):  # then it expires
            lease.release()


class _Lease:
    """The lease of this process on one workdir."""

    def __init__(self, bucket: Bucket) -> None:
        machine, process = _machine(), _process(os.getpid())
        self._bucket, self._number, self._renewed = bucket, 0, time.monotonic()
        self._about = {
            "owner": f"process {os.getpid()} on {socket.gethostname()}",
            "machine": machine,
            "process": process,
            "token": uuid.uuid4().hex,
            "renewed": 0,
            "released": False,
        }
        self._busy = threading.Lock()

    def acquire(self) -> None:
        """Take the lease; wait as long as the one that is there may be left behind."""
        newest = self._newest(buckets.FIRST)
        if newest and not _ended(held := self._read(newest)):
            self._watch(newest, held)
        self._number = newest + 1
        made = buckets.create(self._bucket, _name(self._number), self._content(), buckets.FIRST)
        now = self._newest()
        held = self._read(now)  # a store without conditional PUTs would have let two through
        if not made or now != self._number or not held or held["token"] != self._about["token"]:
            raise self._in_use(held)
        self._renewed = time.monotonic()
        for name in buckets.names(self._bucket, LEASES):
            if int(name.rpartition("/")[2]) < self._number:
                buckets.remove(self._bucket, name)

    def renew(self) -> None:
        """Write the lease again; UserError if it is no longer ours."""
        with self._busy:
            if (newest := self._newest()) != self._number:
                raise UserError(
                    f"{self._bucket.key}={self._bucket.url} was taken over by "
                    f"{self._owner(self._read(newest))} while this command could not reach it; "
                    "stop that run first"
                )
            self._about["renewed"] += 1
            buckets.write(self._bucket, _name(self._number), self._content())
            self._renewed = time.monotonic()

    def check(self) -> None:
        """Raise UserError if the lease is no longer ours."""
        if time.monotonic() - self._renewed > RENEWAL:
            self.renew()

    def release(self) -> None:
        """Let the next run begin at once."""
        with self._busy:
            self._about["released"] = True
            if self._newest(buckets.FIRST) == self._number:
                name = _name(self._number)
                buckets.write(self._bucket, name, self._content(), buckets.FIRST)

    def _watch(self, number: int, held: dict[str, Any] | None) -> None:
        """Wait until a lease was not renewed for EXPIRY seconds; UserError if it is."""
        print(
            f"note: {self._bucket.url} was last written by {self._owner(held)}, which has not said "
            f"that it ended; waiting up to {EXPIRY:.0f} s to see whether it still runs",
            file=sys.stderr,
        )
        end = time.monotonic() + EXPIRY
        while time.monotonic() < end:
            time.sleep(LOOK)
            now = self._read(number)
            if _ended(now):
                return
            if now != held or self._newest() != number:
                raise self._in_use(now)

    def _newest(self, patience: float | None = None) -> int:
        found = buckets.names(self._bucket, LEASES, patience)
        numbers = [name.rpartition("/")[2] for name in found]
        return max((int(each) for each in numbers if each.isdecimal()), default=0)

    def _read(self, number: int) -> dict[str, Any] | None:
        """The lease of a number; None where there is none, or something else."""
        text = buckets.read(self._bucket, _name(number))
        with contextlib.suppress(UserError):
            return reading.json_text(text or "", "the lease", _LEASE)
        return None

    def _content(self) -> bytes:
        return json.dumps(self._about).encode()

    def _owner(self, held: dict[str, Any] | None) -> str:
        return held["owner"] if held else "another process"

    def _in_use(self, held: dict[str, Any] | None) -> UserError:
        return UserError(
            f"{self._bucket.key}={self._bucket.url} is in use by {self._owner(held)}; wait for it, "
            f"stop it, or use another {self._bucket.key}"
        )


def _name(number: int) -> str:
    return f"{LEASES}/{number}"


def _ended(held: dict[str, Any] | None) -> bool:
    """Whether the owner of a lease is known to have ended: it says so, or it ran here."""
    if held is None or held["released"]:
        return True
    if not held["machine"] or held["machine"] != _machine():
        return False
    pid = held["process"].partition(" ")[0]
    return pid.isdecimal() and _process(int(pid)) != held["process"]


def _machine() -> str:
    """Names this boot of this machine, and the space of its process numbers; '' if not known."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _process(pid: int) -> str:
    """The number of a process and when it began, which no two processes of a boot share."""
    with contextlib.suppress(OSError, IndexError):
        # the name of the program, in parentheses, may contain anything
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if fields[0] != "Z":  # a zombie has ended
            return f"{pid} {fields[19]}"
    return f"{pid} ended"
