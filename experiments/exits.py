"""How a command ends: its exit status, and one line instead of a traceback.

Exit status 0: done. 2: a mistake of the user, or a refusal of the system (a full disk, no
permission). 75: stopped by SIGTERM (EX_TEMPFAIL of sysexits.h: a cluster runs the same command
again). 130: stopped by Ctrl-C. 141: the reader of its output has gone, as in | head. Set
DIFFUSION_JAX_TRACEBACK=1 to see where an error comes from. This module imports the standard library
alone, so that signals are handled from the first moment.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

DONE, MISTAKE, UNFINISHED, INTERRUPTED, CLOSED = 0, 2, 75, 130, 141
STATUS = {signal.SIGTERM: UNFINISHED, signal.SIGINT: INTERRUPTED}
AGAIN = 0.05  # seconds until a signal that was dropped is sent again
# seconds in which the main thread must react to a signal; a compilation in XLA can take minutes
GRACE = 5.0

_REMEDIES = {
    errno.ENOSPC: "free some space, then run the same command again",
    errno.EDQUOT: "free some of your quota, then run the same command again",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), then run the same command again",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.ENOENT: "it does not exist, or it was moved or deleted meanwhile",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


class Stopped(BaseException):
    """The main thread received SIGTERM or SIGINT outside the training loop, which handles both.

    Args:
      number: the number of the signal; the attribute `signal` is the signal itself.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)


def watch_signals() -> None:
    """From now on SIGTERM and SIGINT end the process with one line and their STATUS.

    This is called when a command begins to import. Inside `stoppable` the signals raise Stopped
    instead, so that open files are closed and temporary files removed.
    """
    for number in STATUS:
        signal.signal(number, _leave_now)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STATUS)  # see start_again


def start_again() -> None:
    """Start the command once more in the place of this process, with the environment of now.

    A signal that comes meanwhile waits until `watch_signals` of the new start.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STATUS)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ)


class stoppable:
    """A context in which SIGTERM and SIGINT raise Stopped in the main thread.

    Python handles a signal only between its own instructions. While the main thread is inside a
    long call of XLA a second thread waits GRACE seconds, then ends the process with the same line
    and status. Where Python drops the exception, because the signal came inside a finalizer or a
    callback of the garbage collector (jax has one), the signal is sent again a moment later.
    """

    def __enter__(self) -> stoppable:
        self.reacted = threading.Event()
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        self.pipe = reader, writer
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self.handler, self.unraisable = self._raise, sys.unraisablehook
        sys.unraisablehook = self._again
        for number in STATUS:
            signal.signal(number, self.handler)
        threading.Thread(target=self._watch, name="signals", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        signal.set_wakeup_fd(-1)
        sys.unraisablehook = self.unraisable
        self.reacted.set()
        watch_signals()
        if kind is Stopped:  # the process is ending: a signal that was sent again changes nothing
            for number in STATUS:
                signal.signal(number, signal.SIG_IGN)
        os.close(self.pipe[1])  # ends the thread

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.reacted.set()
        raise Stopped(number)

    def _again(self, dropped: Any) -> None:
        """sys.unraisablehook: report an exception that Python drops, but send Stopped again."""
        if not isinstance(dropped.exc_value, Stopped):
            return self.unraisable(dropped)
        self.reacted.clear()
        timer = threading.Timer(AGAIN, os.kill, (os.getpid(), dropped.exc_value.signal))
        timer.daemon = True
        timer.start()

    def _watch(self) -> None:
        while received := os.read(self.pipe[0], 1):
            number = received[0]
            if (
                number in STATUS
                and signal.getsignal(number) == self.handler
                and not self.reacted.wait(GRACE)
            ):
                _leave_now(number, None)
        os.close(self.pipe[0])


def stopped_line(number: int) -> str:
    """Return what a command prints when a signal stops it outside the training loop.

    Args:
      number: the number of the signal.
    """
    return f"{signal.Signals(number).name}: stopped before it was done; run the same command again"


def system_line(error: OSError) -> str:
    """Write a refusal of the system in one line: its message, the file and a remedy.

    Args:
      error: an error with errno, such as one of a full disk.
    """
    files = [
        os.fsencode(name).decode(errors="replace")
        for name in (error.filename, error.filename2)
        if isinstance(name, (str, bytes))
    ]
    files = [name if len(name) <= 100 else f"{name[:60]}...{name[-30:]}" for name in files]
    where = "".join(f": '{name}'" for name in files[:1])
    remedy = _REMEDIES.get(error.errno, "check the path and its permissions")
    return f"{error.strerror}{where}; {remedy}"


def open_closed_streams() -> None:
    """Open /dev/null in the place of a closed stdin, stdout or stderr (>&-).

    Otherwise the next file that is opened takes its place, and gets its text.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115 (stays open)


def say(text: str) -> None:
    """Print a last line to stderr; where that fails, only the exit status tells what happened.

    Args:
      text: one line.
    """
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def wants_traceback() -> bool:
    """Whether the user asks to see where an error comes from."""
    return os.environ.get("DIFFUSION_JAX_TRACEBACK", "") not in ("", "0")


def _leave_now(number: int, frame: FrameType | None) -> None:
    """End the process at once: nothing is open yet, or the main thread does not react."""
    os.write(2, f"{stopped_line(number)}\n".encode())
    os._exit(STATUS[signal.Signals(number)])
