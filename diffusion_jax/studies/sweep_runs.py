"""The training runs of a sweep: one workdir for each combination of training keys."""

from __future__ import annotations

import sys

from diffusion_jax.core.errors import UserError
from diffusion_jax.studies import sweep_space, training
from diffusion_jax.studies.sweep_task import Task


def train(task: Task, only: int | None = None) -> None:
    """Train the runs of a sweep, or resume them; a run that is complete takes seconds.

    Args:
      task: the sweep.
      only: the number of the one run to train; None for all.

    Raises:
      UserError: for a run that does not exist.
      CommandExit: if a signal stopped the training; the same command resumes it.
    """
    runs = list(task.runs.items())
    if only is not None and not 0 <= only < len(runs):
        known = f"the runs are 0 to {len(runs) - 1}" if runs else "this sweep trains nothing"
        raise UserError(f"--job=train:{only}: there is no such job; {known}")
    keys = [axis.key for axis in task.space.axes if not sweep_space.is_sampling(axis.key)]
    for number, (folder, config) in enumerate(runs):
        if only in (None, number):
            print(f"run {number + 1} of {len(runs)}: {folder}", file=sys.stderr, flush=True)
            training.train(config, str(folder), asked=frozenset(keys))
