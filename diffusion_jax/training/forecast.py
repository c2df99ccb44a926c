"""When the first shapes of a run are to be expected, by the time that its first steps took."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax

SKIPPED, TIMED = (
    3,
    10,
)  # calls before the clock starts, of which the first compiles, and calls that it measures

TOO_LONG = 12 * 3600  # seconds to first shapes from which a run is called too slow for its machine


def timed(
    step_fn: Callable, tell: Callable[[float], None], clock: Callable[[], float] = time.monotonic
) -> Callable:
    """The same step function, which calls tell(seconds per call) once, after SKIPPED + TIMED calls.

    Args:
      step_fn: (state, batch) -> (state, metrics), dispatched asynchronously; it is waited for
        twice.
      tell: what to do with the time of one call, which includes the loop around it.
      clock: seconds.
    """
    calls, began = 0, 0.0

    def run(state: Any, batch: Any) -> tuple[Any, Any]:
        nonlocal calls, began
        state, metrics = step_fn(state, batch)
        calls += 1
        if calls in (SKIPPED, SKIPPED + TIMED):
            jax.block_until_ready(metrics)
            now = clock()
            if calls > SKIPPED:
                tell((now - began) / TIMED)
            began = now
        return state, metrics

    return run


def line(seconds: float, *, step: int, first_shapes: int, batch_size: int, folder: str) -> str:
    """What to expect, in one line.

    Args:
      seconds: those of one step.
      step: the step that the run is at.
      first_shapes: config.training.first_shapes, the step at which samples begin to show shapes.
      batch_size: images in a step.
      folder: where the samples are.
    """
    wait, rate = seconds * (first_shapes - step), batch_size / seconds
    text = f"first shapes are expected at step {first_shapes:,}, in about {duration(wait)} at {rate:.3g} images/s"
    if wait < TOO_LONG:
        return f"{text}; look at {folder}"
    return f"{text}: too long on this machine; use smaller images, such as --config=configs/folder.py:edm,32, or an accelerator"


def duration(seconds: float) -> str:
    """'40 seconds', '12 minutes', '3.5 hours' or '4 days', to two digits."""
    for unit, size, least in (("days", 86_400, 2), ("hours", 3600, 2), ("minutes", 60, 1.5)):
        if seconds >= least * size:
            count = seconds / size
            return (
                f"{count:.1f} {unit}" if count < 10 and unit == "hours" else f"{count:.0f} {unit}"
            )
    return f"{seconds:.0f} seconds"
