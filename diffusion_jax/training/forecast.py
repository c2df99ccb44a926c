"""A forecast of when samples begin to show shapes, from the time of the first steps of a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax

SKIPPED = 3  # calls before the clock starts, of which the first compiles
TIMED = 10  # calls that are measured
TOO_LONG = 12 * 3600  # seconds to first shapes above which a run is too slow for its machine


def timed(
    step_fn: Callable, tell: Callable[[float], None], clock: Callable[[], float] = time.monotonic
) -> Callable:
    """A step function that measures itself once, after SKIPPED + TIMED calls.

    Args:
      step_fn: (state, batch) -> (state, metrics), dispatched asynchronously; its result is waited
        for twice.
      tell: is called with the seconds per call, which include the loop around it.
      clock: the time in seconds.
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
    """The forecast in one line.

    Args:
      seconds: the duration of one step.
      step: the step of the run.
      first_shapes: config.training.first_shapes, the step at which samples begin to show shapes.
      batch_size: images in a step.
      folder: where the samples are.
    """
    wait, rate = seconds * (first_shapes - step), batch_size / seconds
    text = (
        f"first shapes are expected at step {first_shapes:,}, in about {duration(wait)} at "
        f"{rate:.3g} images/s"
    )
    if wait < TOO_LONG:
        return f"{text}; look at {folder}"
    return (
        f"{text}: too long on this machine; use smaller images, such as "
        "--config=configs/folder.py:edm,32, or an accelerator"
    )


def duration(seconds: float) -> str:
    """Write a time as '40 seconds', '12 minutes', '3.5 hours' or '4 days', to two digits.

    Args:
      seconds: the time, at least 0.
    """
    for unit, size, least in (("days", 86_400, 2), ("hours", 3600, 2), ("minutes", 60, 1.5)):
        if seconds >= least * size:
            count = seconds / size
            return (
                f"{count:.1f} {unit}" if count < 10 and unit == "hours" else f"{count:.0f} {unit}"
            )
    return f"{seconds:.0f} seconds"
