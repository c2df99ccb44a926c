"""The benchmark of the training loop: where the time of a real, short run goes."""

from __future__ import annotations

import collections
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from diffusion_jax.assembly import train
from diffusion_jax.studies.benchmark.timing import BenchmarkSettings, BenchmarkSubject, Part
from diffusion_jax.training import loop as training_loop

Events = dict[str, list[tuple[float, float]]]  # what happened -> (begin, end) of each time

LOOP = {
    "config": "config",
    "batch": "batch",
    "images_per_second": "images/s",
    "milliseconds": "a step, ms",
    "outside_percent": "outside the compiled step, %",
    "data_percent": "waiting for data, %",
    "logging_percent": "logging, %",
    "checkpointing_percent": "checkpoints, %",
    "rest_percent": "the rest, %",
}
CHECKPOINTS = 3  # of the short run, at least


def loop(subject: BenchmarkSubject, settings: BenchmarkSettings) -> Part:
    """Time a short run of the real training loop, with the config's own cadences.

    The run has at least three checkpoints; the cost of one is spread over as many steps as lie
    between two of them in the config. Evaluation and samples, which are other programs, are left
    out.

    Args:
      subject: the config and its data.
      settings: steps.

    Returns:
      A row with the shares of the time.
    """
    experiment = subject.experiment
    k, batch = experiment.training.steps_per_call, experiment.data.batch_size
    short = shortened(subject.config, settings.steps)
    events: Events = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        run = str(Path(folder) / "run")
        train.train(short, run, dataset=subject.dataset, fit=watched(events))
    configured = {
        "logging": experiment.training.log_every,
        "checkpointing": experiment.training.checkpoint_every,
    }
    seconds, shares = account(events, k, configured)
    total = sum(shares.values())
    row = {
        "config": subject.title,
        "what": "loop",
        "batch": batch,
        "seconds": seconds,
        "milliseconds": 1e3 * total,
        "images_per_second": batch / total,
        "outside_percent": 100 * (1 - shares["step"] / total),
    }
    row |= {f"{name}_percent": 100 * share / total for name, share in shares.items()}
    facts = (
        f"{subject.words}: {short.training.steps} steps, a row every {short.training.log_every} "
        f"and a checkpoint every {short.training.checkpoint_every}; their costs are spread over "
        f"{configured['logging']} and {configured['checkpointing']} steps, as configured."
    )
    return Part([row], LOOP, facts)


def shortened(config: ConfigDict, steps: int) -> ConfigDict:
    """The config of a run of about `steps` steps, without evaluation and samples.

    Args:
      config: the config of the whole run.
      steps: its steps, which become a multiple of those of a call.
    """
    calls = CHECKPOINTS * config.training.steps_per_call
    steps = max(steps // calls, 1) * calls
    short = config.copy_and_resolve_references()
    short.training.update(steps=steps, eval_every=0, sample_every=0)
    if "best" in short.training:
        short.training.best = ""  # the evaluations that choose it are left out
    most = steps // CHECKPOINTS
    for name in ("checkpoint_every", "log_every"):
        short.training[name] = min(most, config.training[name] or steps)
    return short


def watched(events: Events) -> Callable[..., Any]:
    """training.loop.fit, which notes when it steps, waits for data, logs and saves.

    Args:
      events: (begin, end) are appended to events['step'], ['data'], ['logging'], ['sync'] and
        ['checkpointing'].
    """

    def noted(name: str, function: Callable, wait: bool = False) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                result = function(*args, **kwargs)
                return jax.block_until_ready(result) if wait else result
            finally:
                events[name].append((began, time.perf_counter()))

        return run

    def fit(
        state: Any,
        step_fn: Callable,
        batches: Callable[[int], Any],
        *,
        writer: Any,
        checkpointer: Any,
        **options: Any,
    ) -> Any:
        def feed(start: int) -> Iterator[Any]:
            iterator = iter(batches(start))
            take = noted("data", lambda: next(iterator, None))
            while (item := take()) is not None:
                yield item

        writer = writer._replace(row=noted("logging", writer.row), sync=noted("sync", writer.sync))
        checkpointer.save = noted("checkpointing", checkpointer.save)
        return training_loop.fit(
            state,
            noted("step", step_fn, wait=True),
            feed,
            writer=writer,
            checkpointer=checkpointer,
            **options | {"progress": ""},
        )

    return fit


def account(
    events: Mapping[str, list[tuple[float, float]]],
    steps_per_call: int,
    cadences: Mapping[str, int],
) -> tuple[list[float], dict[str, float]]:
    """Divide the time of a run, from the end of its second call to the end of its last event.

    Args:
      events: what `watched` noted.
      steps_per_call: training steps in a call.
      cadences: name -> steps between two such events in the config (0: none), over which the mean
        cost of one is spread.

    Returns:
      (seconds of every call, seconds per step of 'step', 'data', 'rest' and each cadence).
    """
    begin, end = events["step"][1][1], max(stop for name in events for _, stop in events[name])
    inside = {
        name: [stop - start for start, stop in spans if start >= begin]
        for name, spans in events.items()
    }
    spent = {name: sum(seconds) for name, seconds in inside.items()}
    steps = len(inside["step"]) * steps_per_call
    rest = end - begin - sum(spent.values())
    shares = {
        "step": spent["step"] / steps,
        "data": spent.get("data", 0.0) / steps,
        "rest": rest / steps,
    }
    for name, every in cadences.items():
        total = spent.get(name, 0.0)
        if name == "checkpointing":  # rows are first written to the disk
            total += spent.get("sync", 0.0)
        shares[name] = total / len(inside[name]) / every if every and inside.get(name) else 0.0
    return inside["step"], shares
