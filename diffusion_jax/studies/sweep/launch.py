"""A sweep as jobs for SLURM: one line of a file for each, and a script that submits them in order.

    train:RUN             trains one run
    measure:RUNG:PLACE    measures one cell of a rung; which one it is follows from the rung before
    (none)                measures what is left, and writes the table and the page

Every job finishes what another began and finds what is done, so the script may be submitted again
after a failure. The jobs of a stage form one array, which starts once all jobs before succeeded.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from diffusion_jax.core import files
from diffusion_jax.core.errors import UserError
from diffusion_jax.studies.sweep.search import Losses, SearchPlan, entrants
from diffusion_jax.studies.sweep.task import Task

SCRIPT = "experiments/launch/sweep.sbatch"


class Stage(NamedTuple):
    """Jobs that may run at a time: an array of SLURM."""

    name: str
    jobs: tuple[str, ...]


def stages(task: Task) -> list[Stage]:
    """The jobs of a sweep: training, the rungs of the search, and the collection.

    Args:
      task: the sweep; its search says how many cells each rung has.
    """
    found = [Stage("train", tuple(f"train:{i}" for i in range(len(task.runs))))] * bool(task.runs)
    for rung in range(max(map(len, task.plan.rungs.values()))):
        places = range(sum(_sizes(task.plan, rung)))
        found.append(Stage(f"rung{rung}", tuple(f"measure:{rung}:{i}" for i in places)))
    return [*found, Stage("collect", ("",))]


def _sizes(plan: SearchPlan, rung: int) -> list[int]:
    """The number of cells of each group in a rung; 0 where its search has fewer."""
    return [own[rung].cells if rung < len(own) else 0 for own in plan.rungs.values()]


def chosen(plan: SearchPlan, job: str, losses: Losses) -> tuple[int, int]:
    """The cell and the number of images of a job 'measure:RUNG:PLACE'.

    Args:
      plan: the search.
      job: the job.
      losses: the losses of all results so far.

    Raises:
      UserError: for a job that does not exist, or whose rung waits for the one before.
    """
    parts = job.split(":")
    try:
        kind, rung, place = parts[0], int(parts[1]), int(parts[2])
    except (IndexError, ValueError):
        kind, rung, place = "", 0, 0
    deepest = max(map(len, plan.rungs.values()))
    if kind != "measure" or not 0 <= rung < deepest or not 0 <= place < sum(_sizes(plan, rung)):
        raise UserError(
            f"--job={job:.60}: there is no such job; write train:RUN or measure:RUNG:PLACE, as in "
            "the jobs.txt that --launch=slurm writes"
        )
    sizes = zip(plan.groups, _sizes(plan, rung))
    places = [(group, i) for group, size in sizes for i in range(size)]
    group, own = places[place]
    cells = entrants(plan, group, rung, losses)
    if cells is None:
        raise UserError(f"--job={job}: rung {rung - 1} is not complete; run its jobs first")
    return cells[own], plan.rungs[group][rung].images


# ---- what SLURM gets
def command(flags: Mapping[str, Any], config: ConfigDict, asked: frozenset[str]) -> list[str]:
    """The command line of a sweep, without --launch, --submit and --job.

    Args:
      flags: the value of each flag; None, '' and () are left out.
      config: the config, with what the command line changes.
      asked: the keys that it changes.
    """
    line = ["python", "-m", "experiments.sweep"]
    for name, value in flags.items():
        name = {"config_file": "config"}.get(name, name)
        for each in value if isinstance(value, (list, tuple)) else [value]:
            line += [f"--{name}={each}"] if each not in (None, "") else []
    for key in sorted(asked):
        value: Any = config
        for part in key.split("."):
            value = value[part]
        line.append(f"--config.{key}={value}")
    return line


def write(task: Task, line: Sequence[str]) -> Path:
    """Write jobs.txt and submit.sh into the folder of a sweep.

    Args:
      task: the sweep.
      line: its command line.

    Returns:
      The path of submit.sh.
    """
    jobs, lines, first, submit = task.root / "jobs.txt", [], 1, []
    for stage in stages(task):
        lines += [shlex.join([*line, *([f"--job={job}"] if job else [])]) for job in stage.jobs]
        after = " --kill-on-invalid-dep=yes --dependency=afterok:$job" if submit else ""
        script = f"{SCRIPT} {shlex.quote(str(jobs))} {first}"
        submit.append(
            f"job=$(sbatch --parsable --job-name=sweep-{stage.name} --array=0-{len(stage.jobs) - 1}"
            f'{after} "$@" {script})\n'
            f'echo "{stage.name}: array $job, jobs: {len(stage.jobs)}"\n'
        )
        first += len(stage.jobs)
    files.save_text(jobs, "".join(f"{each}\n" for each in lines))
    text = (
        "#!/usr/bin/env bash\n"
        "# Submits the jobs of jobs.txt, stage by stage; arguments go to sbatch, such as\n"
        "# --gpus-per-node=1 --time=4:00:00. Finished jobs take seconds, so it may run again.\n"
        "set -eu\n"
    )
    path = task.root / "submit.sh"
    files.save_text(path, text + "".join(submit))
    return path


def submit(path: Path) -> None:
    """Run submit.sh and print what it says.

    Args:
      path: the submit.sh that `write` wrote.

    Raises:
      UserError: where sbatch is missing or refuses a job.
    """
    try:
        done = subprocess.run(["bash", str(path)], capture_output=True, text=True)
    except OSError as error:
        raise UserError(f"--submit: bash cannot be started: {error.strerror}") from error
    print(done.stdout, end="")
    if done.returncode:
        reason = done.stderr.strip().splitlines()
        raise UserError(f"--submit: {reason[-1] if reason else 'sbatch failed'}; see '{path}'")
    if done.stderr:
        print(done.stderr, end="", file=sys.stderr)
