"""Progress of long work on stderr: a bar on a terminal, and occasional lines in a log.

Both show the rate and the time left. The bars are tqdm's, and no other module draws any.
"""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TextIO

from tqdm import tqdm


@contextmanager
def progress(
    total: int,
    description: str,
    *,
    enabled: bool = True,
    unit: str = "samples",
    line_every: float = 15.0,
) -> Iterator[Callable[[int], Any]]:
    """Show how far a pass over `total` units has come.

    Args:
      total: the number of units.
      description: what the pass does, such as 'sampling'.
      enabled: whether to show anything.
      unit: the name of the units.
      line_every: seconds between the lines of a log; the last line always appears.

    Yields:
      advance(n), to be called after n more units.
    """
    if enabled and sys.stderr.isatty():
        with _bar(total, description, unit, sys.stderr) as bar:
            yield bar.update
        return
    done, began, printed = 0, time.monotonic(), time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, printed
        done, now = done + count, time.monotonic()
        if enabled and (done == total or now - printed > line_every):
            rate = done / max(now - began, 1e-9)
            left = f", {math.ceil((total - done) / rate)} s left" if done < total else ""
            line = f"{description}: {done}/{total} {unit}, {rate:.1f} {unit}/s{left}"
            print(line, file=sys.stderr, flush=True)
            printed = now

    yield advance


class TrainingProgress(NamedTuple):
    """The progress of a training run.

    Attributes:
      update: update(step, loss, rate), the rate in examples per second; None: not known yet.
      close: to be called when the run ends.
    """

    update: Callable[[int, float, float | None], None]
    close: Callable[[], None]


def training_progress(
    total: int,
    unit: str = "images",
    *,
    start: int = 0,
    seconds_between_lines: float = 10.0,
    stream: TextIO | None = None,
) -> TrainingProgress:
    """The progress of a training run: steps, loss, examples per second and time left.

    Args:
      total: the step at which the run ends.
      unit: the name of the examples, in the plural.
      start: the step at which it begins.
      seconds_between_lines: seconds between the lines of a log; the last line always appears.
      stream: where to write; None writes to stderr.
    """
    stream = stream or sys.stderr
    if stream.isatty():
        return _training_bar(total, start, unit, stream)
    return _training_lines(total, unit, stream, seconds_between_lines)


def no_progress() -> TrainingProgress:
    """Progress that is not shown."""
    return TrainingProgress(lambda *_: None, lambda: None)


def _bar(total: int, description: str, unit: str, stream: TextIO, start: int = 0) -> tqdm:
    # unlike tqdm's own, this size is never 0 x 0, with which a bar would be invisible
    size = shutil.get_terminal_size()
    return tqdm(
        total=total,
        initial=start,
        desc=description,
        unit=f" {unit}",
        file=stream,
        ncols=size.columns - 1,
        nrows=size.lines,
    )


def _training_bar(total: int, start: int, unit: str, stream: TextIO) -> TrainingProgress:
    bar = _bar(total, "training", "steps", stream, start)

    def update(step: int, loss: float, rate: float | None) -> None:
        speed = "" if rate is None else f"{rate:.0f}"
        bar.set_postfix({"loss": f"{loss:.4f}", f"{unit}/s": speed}, refresh=False)
        bar.update(step - bar.n)

    return TrainingProgress(update, bar.close)


def _training_lines(total: int, unit: str, stream: TextIO, seconds: float) -> TrainingProgress:
    last = -math.inf
    first: tuple[float, int] | None = None  # when and at which step the compiled program started

    def update(step: int, loss: float, rate: float | None) -> None:
        nonlocal last, first
        now = time.monotonic()
        first = first or (now, step)
        if step < total and now - last < seconds:
            return
        last = now
        left = ""
        if step > first[1]:
            left = f", {_clock((now - first[0]) / (step - first[1]) * (total - step))} left"
        speed = "" if rate is None else f", {rate:.0f} {unit}/s"
        print(f"step {step}/{total}, loss {loss:.4f}{speed}{left}", file=stream, flush=True)

    return TrainingProgress(update, lambda: None)


def _clock(seconds: float) -> str:
    """Seconds as '1:05' or '2:00:00'."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
