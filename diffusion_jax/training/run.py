"""The mutable state of a training run, and where its metrics go; see loop.py."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from diffusion_jax.core.progress import TrainingProgress
from diffusion_jax.training import metrics, nonfinite
from diffusion_jax.training.checkpoint import Checkpointer
from diffusion_jax.training.state import TrainState

# report(step, its metrics, step of the last good checkpoint)
Report = Callable[[int, Mapping[str, Any], int | None], None]


class Log:
    """The log of a run: rows of metrics, and progress with the rate of training.

    Args:
      total_steps: the step at which the run ends; its row is always written.
      batch_size: images in a global batch, for the rate in images per second.
      log_every: steps between rows; 0 writes one at the end.
      writer: writes the rows, if given.
      bar: shows the progress on stderr.
    """

    def __init__(
        self,
        total_steps: int,
        batch_size: int,
        log_every: int,
        writer: metrics.Writer | None,
        bar: TrainingProgress,
    ) -> None:
        self._total_steps, self._batch_size, self._log_every = total_steps, batch_size, log_every
        self._writer, self._bar = writer, bar
        self._began = time.monotonic()
        # when and at which step the current rate began; None before the end of the first call,
        # which compiles
        self._mark: tuple[float, int] | None = None

    def call(self, step: int, loss: float, tally: metrics.Tally) -> bool:
        """Show the loss of a call of the step function, and write a row if one is due.

        Args:
          step: number of steps after the call.
          loss: the mean loss of its steps.
          tally: the sums since the row before, this call included.

        Returns:
          Whether a row was due and written.
        """
        rate = self._rate(step)
        self._bar.update(step, loss, rate)
        due = bool(self._log_every and step % self._log_every == 0) or step == self._total_steps
        if due:
            self._row(step, metrics.row(tally), rate)
        if due or self._mark is None:
            self._mark = (time.monotonic(), step)
        return due

    def hook(self, step: int, values: Mapping[str, Any] | None) -> None:
        """Write the row of a hook; the time it took is not the time of a step.

        Args:
          step: number of steps after which the hook ran.
          values: its metrics; None or {} writes no row.
        """
        if values:
            self._row(step, values, None)
        if self._mark is not None:
            self._mark = (time.monotonic(), step)

    def sync(self) -> None:
        """Wait until the rows are on disk."""
        if self._writer:
            self._writer.sync()

    def _row(self, step: int, values: Mapping[str, Any], rate: float | None) -> None:
        if not self._writer:
            return
        timing = {"seconds": time.monotonic() - self._began}
        if rate is not None:
            timing |= {"images_per_s": rate, "seconds_per_step": self._batch_size / rate}
        self._writer.row(step, {"images": step * self._batch_size, **values}, timing)

    def _rate(self, step: int) -> float | None:
        if self._mark is None or step == self._mark[1]:
            return None
        seconds = max(time.monotonic() - self._mark[0], 1e-9)
        return (step - self._mark[1]) * self._batch_size / seconds


class Run:
    """The changing parts of a run: the state, its step, and metrics that are not saved yet.

    Args:
      state: the state to begin with.
      step: its number of steps.
      log: shows and writes the metrics.
      checkpointer: saves the checkpoints, if given.
      extra: JSON data for the checkpoints.
      resumed: the `extra` of the restored checkpoint, with metrics that no row has yet; {} for a
        new run.
      allowed: number of non-finite steps in a row that do not end the run.
      report: called at the first non-finite step in a row, if given.
    """

    def __init__(
        self,
        state: TrainState,
        step: int,
        log: Log,
        checkpointer: Checkpointer | None,
        extra: Mapping[str, Any] | None,
        resumed: Mapping[str, Any],
        allowed: int,
        report: Report | None,
    ) -> None:
        self.state, self.step = state, step
        self.log, self._checkpointer, self._extra = log, checkpointer, dict(extra or {})
        self._saved = checkpointer.latest() if checkpointer else None  # the step of the last one
        self._unread: collections.deque = collections.deque()  # (first step, metrics) of calls
        self._tally = resumed.get("tally") or metrics.empty_tally()
        self._in_a_row = resumed.get("in_a_row", 0)  # steps that were not finite, up to now
        self._allowed, self._report = allowed, report

    def advance(self, step_fn: Callable, batch: Any, steps: int) -> None:
        """Make one call of the step function; its metrics are read later.

        Args:
          step_fn: (state, batch) -> (state, metrics), compiled for a number of steps.
          batch: the stacked batches of these steps, on the devices.
          steps: number of steps of the call.
        """
        self.state, numbers = step_fn(self.state, batch)
        self._unread.append((self.step, numbers))
        self.step += steps

    def read(self, keep: int) -> None:
        """Read the metrics of all calls but the last `keep`, and write a row if one is due.

        Args:
          keep: number of calls whose metrics are not read yet, so that the devices need not wait.

        Raises:
          NonFinite: if more steps in a row than are allowed were not finite.
        """
        while len(self._unread) > keep:
            first, numbers = self._unread.popleft()
            numbers = jax.device_get(numbers)
            flags = numbers["nonfinite"]["flag"] if "nonfinite" in numbers else ()
            for i, flag in enumerate(flags):
                self._in_a_row = self._in_a_row + 1 if flag else 0
                if flag:
                    self._not_finite(first + i, jax.tree.map(lambda x: x[i], numbers))  # noqa: B023
            self._tally = metrics.add(self._tally, numbers)
            last = first + len(numbers["loss"])
            if self.log.call(last, float(np.mean(numbers["loss"])), self._tally):
                self._tally = metrics.empty_tally()

    def save(self) -> None:
        """Save a checkpoint of this step, unless there is one."""
        if self._checkpointer and self.step != self._saved:
            self.log.sync()
            extra = self._extra | {"tally": self._tally, "in_a_row": self._in_a_row}
            self._checkpointer.save(self.step, self.state, extra)
            self._saved = self.step

    def finish(self) -> None:
        """Read and save all that is left, and wait until it is on disk."""
        self.read(keep=0)
        self.save()
        if self._checkpointer:
            self._checkpointer.wait()

    def _not_finite(self, step: int, numbers: dict[str, Any]) -> None:
        """Report the first step in a row; raise NonFinite if there were more than are allowed."""
        if 1 < self._in_a_row <= self._allowed:
            return
        good = self._last_good()
        if self._report and self._in_a_row == 1:
            self._report(step, numbers, good)
        if self._in_a_row <= self._allowed:
            return
        saved = (
            "no checkpoint was kept"
            if not self._checkpointer
            else "there is no checkpoint yet"
            if good is None
            else f"the last good checkpoint is '{self._checkpointer.directory / str(good)}'"
        )
        raise nonfinite.error(step, numbers["nonfinite"], self._allowed, saved)

    def _last_good(self) -> int | None:
        if not self._checkpointer:
            return None
        self._checkpointer.wait()
        return self._checkpointer.latest()
