"""The training loop, and the promise it keeps: a run that was stopped and resumed is the run that
was not.

The exact-resume contract. For a fixed config, device count and software, after any number of
interruptions (kill -9 at any moment, SIGTERM, SIGINT) the final parameters, EMAs, optimizer state
and key, and every row of metrics.jsonl but its 'timing', are bit-identical to those of an
uninterrupted run. It holds because: 1. Step k is a pure function of (state, batch(k)), and draws
from fold_in(key, k): no random stream has a position. 2. batch(k) is a pure function of (seed, k),
so the data position is state.step; `batches(start)` begins there. 3. Steps run in calls of
steps_per_call, aligned to its multiples. State is saved between calls only, so a resumed run
   makes the very calls the other made (programs of other lengths may round differently).
4. A row is the mean over the steps since the row before. The sums of an unfinished interval are
   saved in the checkpoint beside the state ('tally') and taken up again, so rows do not depend on
   where checkpoints fall.
5. Rows and hooks of step k come before the checkpoint of step k, and rows are on disk before it:
   whatever survives a crash, no row up to a checkpoint's step is missing, and
   `open_writer(start_step=...)` cuts off those after it.
6. A step whose loss, gradient or update is not finite moves nothing, and is noticed before any
   later checkpoint or hook: a saved state is a good one. What happens then (`on_nonfinite`: stop,
   skip, or `roll_back`) depends on what a resumed run knows, too: the state, the step, and what the
   checkpoint holds beside them.
Not promised: equality across different device counts, steps_per_call or versions of the software
(to rounding it holds).
"""

from __future__ import annotations

import collections
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax import streams
from diffusion_jax.errors import UserError, unknown
from diffusion_jax.training import checkpoint, distributed, metrics
from diffusion_jax.training.state import TrainState

ON_NONFINITE = ("stop", "skip", "rollback")
SKIPS_IN_A_ROW = 10  # a run that is not finite so many times in a row will not recover
ROLLBACKS_IN_A_ROW = 3  # likewise, to the same checkpoint

Report = Callable[
    [int, Mapping[str, Any], int | None], None
]  # (step, its metrics, step of the last good checkpoint)

Hook = tuple[
    int, Callable[[TrainState, int], Mapping[str, Any] | None]
]  # (every, fn(state, step) -> a row or None)


class Fitted(NamedTuple):
    """How a run ended: the state, its step, and the signal that stopped it early (None: it reached
    total_steps).
    """

    state: TrainState
    step: int
    stopped_by: signal.Signals | None


class NonFinite(UserError):
    """The loss or its gradient is not finite. step: that of its batch; example, level: as in
    make_train_step.
    """

    def __init__(self, message: str, step: int, example: int | None, level: float | None):
        super().__init__(message)
        self.step, self.example, self.level = step, example, level


def fit(
    state: TrainState,
    step_fn: Callable[[TrainState, Any], tuple[TrainState, dict]],
    batches: Callable[[int], Iterable[tuple[int, Any]]],
    *,
    total_steps: int,
    batch_size: int,
    steps_per_call: int = 1,
    log_every: int = 50,
    checkpoint_every: int = 1000,
    checkpointer: checkpoint.Checkpointer | None = None,
    writer: metrics.Writer | None = None,
    hooks: Sequence[Hook] = (),
    extra: Mapping[str, Any] | None = None,
    resumed: Mapping[str, Any] | None = None,
    shift: int = 0,
    on_nonfinite: str = "stop",
    report: Report | None = None,
    progress: bool = True,
) -> Fitted:
    """Train from state.step to total_steps, or until SIGTERM or SIGINT (on any process), and save.
    To resume, see above.

    step_fn: a compiled multi_step of steps_per_call steps; the state given to it is donated.
    batches(start): (step, batch) for step = start, start + steps_per_call, ..., each batch as
    step_fn takes it (see `stack`). batch_size: the global one. hooks run at multiples of their
    `every` (0: never) and at the last step; they must not keep the state. extra: JSON for
    checkpoints.
    resumed: the `extra` of the restored checkpoint. A second SIGINT aborts at once.
    shift: step k takes the batch of position k + shift (see `roll_back`). on_nonfinite='skip'
    counts steps that are not finite and goes on, up to SKIPS_IN_A_ROW; otherwise the first is the
    end, here. report: called at the first of them in a row. Raises UserError if a cadence is not a
    multiple of steps_per_call, NonFinite if a step that is not finite ends the run.
    """
    if on_nonfinite not in ON_NONFINITE:
        raise unknown("value of training.on_nonfinite", on_nonfinite, ON_NONFINITE)
    start = int(state.step)
    cadences = {
        "total_steps": total_steps,
        "log_every": log_every,
        "checkpoint_every": checkpoint_every,
    }
    cadences |= {f"hook {i} every": every for i, (every, _) in enumerate(hooks)} | {
        "the restored step": start
    }
    check_cadences(steps_per_call, cadences)
    bar = metrics.open_progress(total_steps, start=start) if progress else metrics.silent()
    allowed = SKIPS_IN_A_ROW if on_nonfinite == "skip" else 0
    log = _Log(
        start,
        total_steps,
        batch_size,
        log_every,
        writer,
        bar,
        checkpointer,
        resumed or {},
        allowed,
        report,
    )
    saved = checkpointer.latest() if checkpointer else None

    def save(step: int) -> None:
        nonlocal saved
        if checkpointer and step != saved:
            if writer:
                writer.sync()
            checkpointer.save(
                step, state, dict(extra or {}) | {"tally": log.tally, "in_a_row": log.in_a_row}
            )
            saved = step

    step, stop, agree = start, 0, distributed.agreement()
    with _signals() as received, contextlib.closing(bar):
        feed = iter(batches(start + shift)) if start < total_steps else iter(())
        while step < total_steps and not (stop := agree(received[0] if received else 0)):
            position, batch = next(feed)
            if position != step + shift:
                raise RuntimeError(
                    f"the data gave the batch of step {position} where that of step {step + shift} is due"
                )
            state, numbers = step_fn(state, batch)
            log.put(step, numbers)
            step += steps_per_call
            due = [
                fn for every, fn in hooks if every and (step % every == 0 or step == total_steps)
            ]
            save_now = checkpoint_every and step % checkpoint_every == 0
            # the metrics of the last call are read while the next one runs, so that the devices
            # never wait for the host
            log.read(keep=0 if due or save_now else 1)
            for fn in due:
                log.hook(step, fn(state, step))
            if save_now:
                save(step)
        del feed  # ends a prefetching generator
        log.read(keep=0)
        save(step)
        if checkpointer:
            checkpointer.wait()
    return Fitted(state, step, signal.Signals(stop) if stop and step < total_steps else None)


class Rollback(NamedTuple):
    """Where a run stands after going back. Plain numbers, for the checkpoint's `extra` (`_asdict`)."""

    to: int | None = None  # the step of the checkpoint it last went back to
    tries: int = 0  # how often it went back there
    shift: int = (
        0  # how far the data are ahead of the steps: step k takes the batch of position k + shift
    )


def roll_back(
    error: NonFinite, now: Rollback, state: TrainState, steps_per_call: int
) -> tuple[TrainState, Rollback]:
    """The run that goes on from `state`, the last good checkpoint's, past the data and the noise of
    the step that failed.

    The data go on after the call of that step (as Chowdhery et al. 2022, PaLM, section 5.1, did by
    hand), and the key is folded with the number of tries, which changes all noise from here on.
    Both depend on the checkpoint and the failed step alone, so a run that is killed and fails there
    again goes back alike. Raises NonFinite, the error given, after ROLLBACKS_IN_A_ROW to the same
    checkpoint.
    """
    to = int(state.step)
    tries = now.tries + 1 if now.to == to else 1
    if tries > ROLLBACKS_IN_A_ROW:
        line = f"{error}; it had gone back to step {to} {ROLLBACKS_IN_A_ROW} times"
        raise NonFinite(line, error.step, error.example, error.level) from None
    after = (error.step // steps_per_call + 1) * steps_per_call
    key = jax.jit(jax.random.fold_in)(
        state.key, np.uint32(streams.ROLLBACK - tries)
    )  # steps fold in numbers from 0 up
    return state._replace(key=key), Rollback(to, tries, now.shift + after - to)


def stack(batch: Callable[[int], Any], steps_per_call: int = 1) -> Callable[[int], Any]:
    """batch(step), a dict of numpy arrays (B, ...) -> call(number): its steps' stacked,
    (steps_per_call, B, ...).
    """

    def call(number: int) -> Any:
        steps = range(number * steps_per_call, (number + 1) * steps_per_call)
        return jax.tree.map(lambda *rows: np.stack(rows), *[batch(step) for step in steps])

    return call


def evaluate(
    eval_step: Callable,
    state: Any,
    batches: Iterable[Any],
    key: jax.Array,
    *,
    put_batch=lambda batch: batch,
) -> dict:
    """Means over all examples of all (host) batches, as plain JSON data like a row's: {'loss': ..,
    ...}.

    eval_step: compiled make_eval_step, state: what it is given. Batch i is drawn with fold_in(key,
    i), so equal calls at different times are comparable.
    """
    tally, weights = metrics.empty_tally(), []
    for i, batch in enumerate(batches):
        size = len(jax.tree.leaves(batch)[0])
        numbers = jax.device_get(eval_step(state, put_batch(batch), jax.random.fold_in(key, i)))
        by_level = numbers.pop("loss_by_level", None)
        weighted = {name: np.float64(value)[None] * size for name, value in numbers.items()}
        if by_level is not None:
            weighted["loss_by_level"] = {name: value[None] for name, value in by_level.items()}
        tally = metrics.add(tally, weighted)
        weights.append(size)
    if not weights:
        raise UserError("there is nothing to evaluate on: the held-out split gave no batch")
    return metrics.row(tally | {"steps": sum(weights)})


class _Log:
    """Calls whose metrics have not been read yet, and the tally of those that have."""

    def __init__(
        self,
        start,
        total_steps,
        batch_size,
        log_every,
        writer,
        bar,
        checkpointer,
        resumed,
        allowed,
        report,
    ):
        self.total_steps, self.batch_size, self.log_every = total_steps, batch_size, log_every
        self.writer, self.bar, self.checkpointer = writer, bar, checkpointer
        self.tally = resumed.get("tally") or metrics.empty_tally()
        self.allowed, self.report = allowed, report  # so many steps in a row may be not finite
        self.in_a_row = resumed.get("in_a_row", 0)  # so many were
        self.waiting: collections.deque = collections.deque()
        self.began = time.monotonic()
        # when and at which step the current rate began; None before the end of the first call,
        # which compiles
        self.mark: tuple[float, int] | None = None

    def put(self, step: int, numbers: dict) -> None:
        self.waiting.append((step, numbers))

    def read(self, keep: int) -> None:
        """Read all calls but the last `keep`: count, write the row if one is due, raise NonFinite."""
        while len(self.waiting) > keep:
            step, numbers = self.waiting.popleft()
            numbers = jax.device_get(numbers)
            for i, flag in enumerate(numbers["nonfinite"]["flag"]):
                self.in_a_row = self.in_a_row + 1 if flag else 0
                if flag:
                    self._not_finite(
                        step + i, {name: _at(value, i) for name, value in numbers.items()}
                    )
            self.tally = metrics.add(self.tally, numbers)
            step += len(numbers["loss"])
            rate = self._rate(step)
            self.bar.update(step, float(np.mean(numbers["loss"])), rate)
            if (self.log_every and step % self.log_every == 0) or step == self.total_steps:
                self.row(step, metrics.row(self.tally), rate)
                self.tally = metrics.empty_tally()
                self.mark = (time.monotonic(), step)
            elif self.mark is None:
                self.mark = (time.monotonic(), step)

    def hook(self, step: int, values: Mapping[str, Any] | None) -> None:
        if values:
            self.row(step, values, None)
        if self.mark is not None:  # the time of a hook is not the time of a step
            self.mark = (time.monotonic(), step)

    def row(self, step: int, values: Mapping[str, Any], rate: float | None) -> None:
        if self.writer:
            timing = {"seconds": time.monotonic() - self.began} | (
                {}
                if rate is None
                else {"images_per_s": rate, "seconds_per_step": self.batch_size / rate}
            )
            self.writer.row(step, {"images": step * self.batch_size, **values}, timing)

    def _rate(self, step: int) -> float | None:
        if self.mark is None or step == self.mark[1]:
            return None
        return (step - self.mark[1]) * self.batch_size / max(time.monotonic() - self.mark[0], 1e-9)

    def _not_finite(self, step: int, numbers: dict[str, Any]) -> None:
        """Report the first in a row; raise NonFinite if there were more than are allowed."""
        if self.in_a_row > 1 and self.in_a_row <= self.allowed:
            return
        good = self._last_good()
        if self.report and self.in_a_row == 1:
            self.report(step, numbers, good)
        if self.in_a_row <= self.allowed:
            return
        found = numbers["nonfinite"]
        example, level = int(found["example"]), float(found["level"])
        where = f", example {example} of its batch" if example >= 0 else ""
        where += (
            f", at noise level log-SNR {level:.3f}"
            if np.isfinite(level)
            else ", noise level unknown"
        )
        what = (
            "gradient (the loss is finite)"
            if found["gradient"]
            else "update (the gradient is finite)"
            if found["update"]
            else "loss"
        )
        skipped = f" ({self.allowed} steps in a row were skipped)" if self.allowed else ""
        saved = (
            "no checkpoint was kept"
            if not self.checkpointer
            else "there is no checkpoint yet"
            if good is None
            else f"the last good checkpoint is '{self.checkpointer.directory / str(good)}'"
        )
        raise NonFinite(
            f"the {what} is not finite at step {step}{skipped}{where}; {saved}; lower optimizer.learning_rate, or clip harder",
            step,
            example if example >= 0 else None,
            level if np.isfinite(level) else None,
        )

    def _last_good(self) -> int | None:
        if not self.checkpointer:
            return None
        self.checkpointer.wait()
        return self.checkpointer.latest()


def _at(tree: Any, i: int) -> Any:
    """The i-th step of a call's metrics."""
    return jax.tree.map(lambda x: x[i], tree)


def check_cadences(steps_per_call: int, cadences: Mapping[str, int]) -> None:
    for name, value in cadences.items():
        if steps_per_call < 1 or value % steps_per_call:
            raise UserError(
                f"{name}={value} must be a multiple of steps_per_call={steps_per_call}; change one of them"
            )


@contextlib.contextmanager
def _signals() -> Iterator[list[signal.Signals]]:
    """Collects SIGTERM and SIGINT instead of dying of them; a second SIGINT is a KeyboardInterrupt."""
    received: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may handle signals
        return

    def handle(number, frame):
        if number == signal.SIGINT and signal.SIGINT in received:
            raise KeyboardInterrupt
        received.append(signal.Signals(number))
        again = "; again to abort at once" if number == signal.SIGINT else ""
        print(
            f"\n{received[-1].name}: finishing this call and saving{again}",
            file=sys.stderr,
            flush=True,
        )

    old = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
