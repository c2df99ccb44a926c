"""The training runs of a sweep: one workdir for each combination of training keys.

All runs are trained to their end, or, by successive halving, in rungs: of R rungs the first trains
every run for steps / 2^(R - 1) of its steps, and each of the others lets the better half go on to
twice as many. A run is as good as the best of its cells on the first images of the search. What
earlier rungs measured is found again, and a run that was stopped may be resumed by hand.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from diffusion_jax.core.errors import UserError
from diffusion_jax.evaluation.metrics import find
from diffusion_jax.studies import training
from diffusion_jax.studies.sweep import cells, space
from diffusion_jax.studies.sweep import task as sweep_task
from diffusion_jax.studies.sweep.cells import CellSampler, Scoring
from diffusion_jax.studies.sweep.task import Task
from diffusion_jax.training import restoring

Judges = Callable[[], tuple[CellSampler, Scoring]]  # what draws and judges, once a run has weights


def train(task: Task, only: int | None = None) -> None:
    """Train the runs of a sweep, or resume them; a run that is complete takes seconds.

    Args:
      task: the sweep.
      only: the number of the one run to train; None for all.

    Raises:
      UserError: for a run that does not exist.
      CommandExit: if a signal stopped the training; the same command resumes it.
    """
    runs = list(task.runs)
    if only is not None and not 0 <= only < len(runs):
        known = f"the runs are 0 to {len(runs) - 1}" if runs else "this sweep trains nothing"
        raise UserError(f"--job=train:{only}: there is no such job; {known}")
    for number, folder in enumerate(runs):
        if only in (None, number):
            _train(task, folder, f"run {number + 1} of {len(runs)}")


def train_in_rungs(task: Task, rungs: int, judges: Judges) -> Task:
    """Train the runs of a sweep by successive halving.

    Args:
      task: the sweep.
      rungs: the number of rungs, at least 1; with one every run is trained to its end.
      judges: () -> what draws and judges images; it is called when every run has weights.

    Returns:
      The sweep, in which only the cells of runs that were trained to their end are searched.

    Raises:
      CommandExit: if a signal stopped the training; the same command resumes it.
    """
    if rungs == 1:
        train(task)
        return task
    alive = list(task.runs)
    for rung in range(rungs - 1):
        steps = {folder: steps_of(task.runs[folder], rungs - 1 - rung) for folder in alive}
        for number, folder in enumerate(alive):
            said = f"rung {rung + 1} of {rungs}, run {number + 1} of {len(alive)}"
            if _step(folder) < steps[folder]:
                _train(task, folder, said, steps[folder])
        sampler, scored = judges()
        loss = {folder: _loss(task, folder, steps[folder], sampler, scored) for folder in alive}
        # with other rungs, or none, more runs than the better half may have gone on: all stay
        further = sum(value == -math.inf for value in loss.values())
        alive = sorted(alive, key=loss.__getitem__)[: max(math.ceil(len(alive) / 2), further)]
        names = ", ".join(folder.name for folder in alive)
        print(f"rung {rung + 1} of {rungs}: of {len(loss)} runs go on: {names}", file=sys.stderr)
    for number, folder in enumerate(alive):
        _train(task, folder, f"rung {rungs} of {rungs}, run {number + 1} of {len(alive)}")
    return sweep_task.only_runs(task, alive)


def steps_of(config: ConfigDict, halvings: int) -> int:
    """The steps of a run on a rung: its share, as a multiple of steps_per_call.

    Args:
      config: the config of the run.
      halvings: how often its number of steps is halved.
    """
    whole, call = config.training.steps, config.training.steps_per_call
    return max(call, whole // 2**halvings // call * call)


def _train(task: Task, folder: Path, said: str, until: int | None = None) -> None:
    keys = [axis.key for axis in task.space.axes if not space.is_sampling(axis.key)]
    steps = "" if until is None else f" to step {until}"
    print(f"{said}: {folder}{steps}", file=sys.stderr, flush=True)
    if until is None:
        training.train(task.runs[folder], str(folder), asked=frozenset(keys))
    else:
        training.train_until(task.runs[folder], str(folder), until, asked=frozenset(keys))


def _step(folder: Path) -> int:
    return restoring.latest_step(folder / "checkpoints") or 0


def _loss(task: Task, folder: Path, steps: int, sampler: CellSampler, scored: Scoring) -> float:
    """The loss of the best cell of a run; minus infinity for one that was trained further."""
    if _step(folder) > steps:
        return -math.inf
    images = min(rungs[0].images for rungs in task.plan.rungs.values())
    loss, found = find(scored.metric).loss, [math.inf]
    for cell in task.cells.values():
        if cell.workdir == folder.absolute():
            kept = cells.measure(cell, images, sampler, scored, task.root / "cells")
            found += [] if kept.note else [loss(kept.scores[scored.metric])]
    return min(found)
