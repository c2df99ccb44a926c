"""What a tracker is, and why none of them can end or slow down a run."""

from __future__ import annotations

import logging
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Scalars = Mapping[str, float]
WAITING = 1000  # calls that wait for a tracker in a thread; further ones are dropped
PATIENCE = 60.0  # seconds that the end of a run waits for such a tracker


class Tracker(NamedTuple):
    """The functions of a tracker.

    Attributes:
      scalars: scalars(step, {name: number}) shows the numbers of a row.
      images: images(step, name, batch) shows uint8 images (N, H, W, 3).
      text: text(step, name, content) shows a text.
      flush: writes what waits in memory to the disk.
      close: closes files and connections.
    """

    scalars: Callable[[int, Scalars], None]
    images: Callable[[int, str, np.ndarray], None]
    text: Callable[[int, str, str], None]
    flush: Callable[[], None]
    close: Callable[[], None]


def guarded(name: str, tracker: Tracker) -> Tracker:
    """The tracker, which says once that it fails and does nothing from then on.

    Args:
      name: its name in the warning.
      tracker: the functions, which may raise any error.
    """
    failed = False

    def attempt(call: Callable[..., None]) -> Callable[..., None]:
        def run(*args: Any) -> None:
            nonlocal failed
            if failed:
                return
            try:
                call(*args)
            except Exception as error:
                failed = True
                warn(name, exc_info=error)

        return run

    return Tracker(*map(attempt, tracker))


def warn(name: str, *, exc_info: Exception) -> None:
    """Say on stderr that a tracker failed; its traceback is logged for debugging.

    Args:
      name: of the tracker.
      exc_info: its error.
    """
    logging.getLogger(__name__).debug("%s", name, exc_info=exc_info)
    said = " ".join(f"{type(exc_info).__name__}: {exc_info}".split())[:200]
    print(f"warning: {name}: {said}; training continues without it", file=sys.stderr)


def in_thread(name: str, open_tracker: Callable[[], Tracker]) -> Tracker:
    """A tracker whose calls are made by a thread, in order, so that training never waits for them.

    Args:
      name: its name in warnings.
      open_tracker: opens it, in the thread.

    Returns:
      The tracker. Of more than WAITING calls that wait, the later ones are dropped, which is said
      once. Closing it waits at most PATIENCE seconds.
    """
    calls: queue.Queue = queue.Queue(WAITING)
    dropped = False

    thread = threading.Thread(target=_serve, args=(name, open_tracker, calls), daemon=True)

    def later(which: int) -> Callable[..., None]:
        def put(*args: Any) -> None:
            nonlocal dropped
            try:
                if thread.is_alive():
                    calls.put_nowait((which, args))
            except queue.Full:
                if not dropped:
                    print(
                        f"warning: {name} is too slow; some rows and pictures are left out",
                        file=sys.stderr,
                    )
                dropped = True

        return put

    def close() -> None:
        began = time.monotonic()
        while thread.is_alive() and time.monotonic() - began < PATIENCE:
            try:
                calls.put(None, timeout=1.0)
                break
            except queue.Full:
                continue
        thread.join(max(0.0, PATIENCE - (time.monotonic() - began)))
        if thread.is_alive():
            print(
                f"warning: {name} takes too long; the last rows and pictures may be missing",
                file=sys.stderr,
            )

    thread.start()
    scalars, images, text, flush = map(later, range(4))
    return Tracker(scalars, images, text, flush, close)


def _serve(name: str, open_tracker: Callable[[], Tracker], calls: queue.Queue) -> None:
    """Open a tracker and make the calls (number of a function, arguments) of a queue up to None."""
    try:
        tracker = open_tracker()
    except Exception as error:
        warn(name, exc_info=error)
        return
    tracker = guarded(name, tracker)
    while (call := calls.get()) is not None:
        which, args = call
        tracker[which](*args)
    tracker.close()
