"""The training loop, and its promise: a run that was stopped and resumed equals one that was not.

The contract of exact resumption. For a fixed config, device count and software, after any number of
interruptions (kill -9 at any moment, SIGTERM, SIGINT) the final parameters, EMAs, optimizer state
and key, and every row of metrics.jsonl but its 'timing', are bit-identical to those of an
uninterrupted run. It holds because:

1. Step k is a pure function of (state, batch(k)), and draws from fold_in(key, k): no random stream
   has a position.
2. batch(k) is a pure function of (seed, k), so the position in the data is state.step;
   `batches(start)` begins there.
3. Steps run in calls of steps_per_call, aligned to its multiples. States are saved between calls
   only, so a resumed run makes the same calls (programs of other lengths may round differently).
4. A row is the mean over the steps since the row before. The sums of an unfinished interval are
   saved in the checkpoint with the state ('tally') and continued, so rows do not depend on where
   checkpoints fall.
5. Rows and hooks of step k come before the checkpoint of step k, and rows are on disk before it:
   whatever survives a crash, no row up to the step of a checkpoint is missing, and
   `open_writer(start_step=...)` removes those after it.
6. With forensics, a step whose loss, gradient or update is not finite changes nothing, and is
   noticed before any later checkpoint or hook: a saved state is a good one. What follows
   (on_nonfinite: stop, skip or rollback) depends only on what a resumed run knows, too: the state,
   the step, and what the checkpoint holds besides them.

Not promised is equality across different device counts, steps_per_call or versions of the software
(it holds up to rounding).
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.core.progress import no_progress, training_progress
from diffusion_jax.training import distributed, metrics, nonfinite
from diffusion_jax.training.checkpoint import Checkpointer
from diffusion_jax.training.run import Log, Report, Run
from diffusion_jax.training.state import TrainState

# (every, hook(state, step) -> a row or None)
Hook = tuple[int, Callable[[TrainState, int], Mapping[str, Any] | None]]


class Fitted(NamedTuple):
    """The outcome of a run.

    Attributes:
      state: the last state.
      step: its step.
      stopped_by: the signal that stopped the run early; None if it reached total_steps.
    """

    state: TrainState
    step: int
    stopped_by: signal.Signals | None


def fit(
    state: TrainState,
    step_fn: Callable[[TrainState, Any], tuple[TrainState, dict]],
    batches: Callable[[int], Iterable[tuple[int, Any]]],
    *,
    total_steps: int,
    until: int | None = None,
    batch_size: int,
    steps_per_call: int = 1,
    log_every: int = 50,
    checkpoint_every: int = 1000,
    checkpointer: Checkpointer | None = None,
    writer: metrics.Writer | None = None,
    hooks: Sequence[Hook] = (),
    extra: Mapping[str, Any] | None = None,
    resumed: Mapping[str, Any] | None = None,
    shift: int = 0,
    on_nonfinite: str = "stop",
    report: Report | None = None,
    progress: str = "images",
) -> Fitted:
    """Train from state.step to total_steps, or until a signal, and save.

    Args:
      state: where to begin; it is donated.
      step_fn: a compiled multi_step of steps_per_call steps.
      batches: batches(start) yields (step, stacked batch) for the calls from step `start` on.
      total_steps: the step at which the run ends.
      until: a step at which it stops before that, as after SIGTERM or SIGINT on any process, which
        end it after the current call (a second SIGINT aborts); None for none.
      batch_size: images in a global batch.
      steps_per_call: the number of steps of step_fn.
      log_every: steps between rows of metrics; 0 writes one at the end.
      checkpoint_every: steps between checkpoints; 0 saves one at the end.
      checkpointer: saves the checkpoints, if given.
      writer: writes the rows, if given.
      hooks: run at multiples of their interval (0: never) and at the last step.
      extra: JSON data for the checkpoints.
      resumed: the `extra` of the restored checkpoint.
      shift: step k takes the batch of position k + shift (`nonfinite.roll_back`).
      on_nonfinite: 'skip' allows MAX_SKIPS non-finite steps in a row; else the first ends the run.
      report: called at the first non-finite step in a row.
      progress: what the progress on stderr counts, such as 'rows'; '' shows none.

    Raises:
      UserError: if an interval is not a multiple of steps_per_call.
      NonFinite: if a step that is not finite ends the run.
    """
    start, every = int(state.step), (log_every, checkpoint_every, *(each for each, _ in hooks))
    _check_arguments(on_nonfinite, steps_per_call, start, total_steps, until or 0, every)
    bar = training_progress(total_steps, progress, start=start) if progress else no_progress()
    log = Log(total_steps, batch_size, log_every, writer, bar)
    allowed = nonfinite.MAX_SKIPS if on_nonfinite == "skip" else 0
    run = Run(state, start, log, checkpointer, extra, resumed or {}, allowed, report)
    lengths = (total_steps, until or total_steps, steps_per_call, checkpoint_every)
    with _signals() as received, contextlib.closing(bar):
        stop = _train(run, step_fn, batches, hooks, received, shift, *lengths)
        run.finish()
    stopped_by = signal.Signals(stop) if stop and run.step < total_steps else None
    return Fitted(run.state, run.step, stopped_by)


def _train(
    run: Run,
    step_fn: Callable,
    batches: Callable[[int], Iterable[tuple[int, Any]]],
    hooks: Sequence[Hook],
    received: Sequence[int],
    shift: int,
    total_steps: int,
    until: int,
    steps_per_call: int,
    checkpoint_every: int,
) -> int:
    """Train to `until` or until a signal; returns the signal, 0 if there was none."""
    stop_at = min(until, total_steps)
    feed = iter(batches(run.step + shift)) if run.step < stop_at else iter(())
    stop, agree = 0, distributed.agreement()
    while run.step < stop_at and not (stop := agree(received[0] if received else 0)):
        position, batch = next(feed)
        if position != run.step + shift:
            raise RuntimeError(
                f"the data gave the batch of step {position} where that of step "
                f"{run.step + shift} is due"
            )
        run.advance(step_fn, batch, steps_per_call)
        at_end = run.step == total_steps
        due = [hook for every, hook in hooks if every and (run.step % every == 0 or at_end)]
        save = bool(checkpoint_every) and run.step % checkpoint_every == 0
        # the metrics of the last call are read while the next one runs, so that the devices never
        # wait for the host
        run.read(keep=0 if due or save else 1)
        for hook in due:
            run.log.hook(run.step, hook(run.state, run.step))
        if save:
            run.save()
    return stop


def stack(batch: Callable[[int], Any], steps_per_call: int = 1) -> Callable[[int], Any]:
    """The batches of the steps of one call, stacked.

    Args:
      batch: step -> a dict of numpy arrays (B, ...).
      steps_per_call: the number of steps of a call.

    Returns:
      call(number) -> a dict of arrays (steps_per_call, B, ...).
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
    put_batch: Callable[[Any], Any] = lambda batch: batch,
) -> dict[str, Any]:
    """Average the metrics over all examples; returns plain JSON data like a row of metrics.

    Args:
      eval_step: a compiled make_eval_step.
      state: the state it is given.
      batches: batches on the host.
      key: batch i is drawn with fold_in(key, i), so equal calls at different times are comparable.
      put_batch: places a batch on the devices.

    Returns:
      {'loss': mean, ...}, without the prefix 'eval_'.

    Raises:
      UserError: if there is no batch.
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
        raise UserError("there is nothing to evaluate on: the held-out split has no batch")
    return metrics.row(tally | {"steps": sum(weights)})


def check_cadences(steps_per_call: int, cadences: Mapping[str, int]) -> None:
    """Check that numbers of steps are multiples of steps_per_call.

    Args:
      steps_per_call: the number of steps in one call.
      cadences: numbers of steps by the name that the error gives them.

    Raises:
      UserError: naming the first that is not.
    """
    for name, value in cadences.items():
        if steps_per_call < 1 or value % steps_per_call:
            raise UserError(
                f"{name}={value} must be a multiple of steps_per_call={steps_per_call}; change "
                "one of them"
            )


def _check_arguments(
    on_nonfinite: str,
    steps_per_call: int,
    start: int,
    total_steps: int,
    until: int,
    every: Sequence[int],
) -> None:
    if on_nonfinite not in nonfinite.REACTIONS:
        raise unknown("value of training.on_nonfinite", on_nonfinite, nonfinite.REACTIONS)
    log_every, checkpoint_every, *hooks = every
    cadences = {
        "total_steps": total_steps,
        "until": until,
        "log_every": log_every,
        "checkpoint_every": checkpoint_every,
    }
    cadences |= {f"the interval of hook {i}": each for i, each in enumerate(hooks)}
    check_cadences(steps_per_call, cadences | {"the restored step": start})


@contextlib.contextmanager
def _signals() -> Iterator[list[signal.Signals]]:
    """Collect SIGTERM and SIGINT instead of ending; a second SIGINT raises KeyboardInterrupt."""
    received: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may handle signals
        return

    def handle(number: int, frame: Any) -> None:
        if number == signal.SIGINT and signal.SIGINT in received:
            raise KeyboardInterrupt
        received.append(signal.Signals(number))
        again = "; send it again to abort at once" if number == signal.SIGINT else ""
        name = received[-1].name
        print(f"\n{name}: finishing this call and saving{again}", file=sys.stderr, flush=True)

    old = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
