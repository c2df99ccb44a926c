"""The families of a comparison in several processes, each on a core of its own.

A process takes one task after the other. What it prints goes to WORKDIR/worker_NUMBER.log, and the
first process shows the progress of all tasks with the time left. When the first process ends, even
by kill -9, the others end too; running the same command again resumes.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from diffusion_jax.core.errors import CommandExit, UserError
from diffusion_jax.core.progress import progress
from diffusion_jax.studies.families import measures
from diffusion_jax.studies.families import tasks as family_tasks
from diffusion_jax.studies.families.tasks import FamilyTask

WATCHED = 10.0  # seconds between two looks at how far all tasks are
STOPPING = 60.0  # seconds that a process has for its checkpoint when the command is stopped
UNIT = 1000  # parts of the most expensive task in which progress is counted


def cores() -> list[int]:
    """The cores that this process may use; [] where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def check_jobs(jobs: int) -> None:
    """Check that there is a core for each process.

    Args:
      jobs: number of processes at a time.

    Raises:
      UserError: for more processes than cores.
    """
    if jobs > 1 and jobs > len(cores()):
        raise UserError(
            f"--jobs={jobs}: each has a core of its own, and there are {len(cores())}; write "
            f"--jobs={max(1, len(cores()))}"
        )


def run_all(
    root: Path,
    tasks: Sequence[FamilyTask],
    configs: dict[str, ConfigDict],
    settings: ConfigDict,
    jobs: int,
    finished: Callable[[], Any],
) -> None:
    """Train and measure tasks in several processes.

    Args:
      root: the folder of the comparison.
      tasks: those that are missing, in the order in which they begin.
      configs: the config of each family.
      settings: the config of the comparison.
      jobs: number of processes at a time, at most one for each core.
      finished: called whenever a task is finished.

    Raises:
      UserError: at the end, if a task failed or a process was killed; it names the logs.
    """
    context = multiprocessing.get_context("spawn")
    waiting = context.SimpleQueue()
    for task in [*tasks, *[None] * jobs]:
        waiting.put(task)
    plain = {name: config.to_dict() for name, config in configs.items()}
    cache = jax.config.jax_compilation_cache_dir
    root.mkdir(parents=True, exist_ok=True)
    workers = [
        context.Process(
            target=_work,
            args=(root, waiting, plain, settings.to_dict(), core, root / f"worker_{i}.log", cache),
        )
        for i, core in enumerate(cores()[:jobs])
    ]
    try:
        with _ending(workers):
            _watch(root, tasks, configs, settings, workers, finished)
    finally:
        del waiting  # its semaphores go now: after a signal Python has no shutdown


@contextlib.contextmanager
def _ending(workers: Sequence[BaseProcess]) -> Iterator[None]:
    """Start processes, and stop those that are left when the block ends: they save first."""
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        for worker in workers:
            worker.terminate()  # SIGTERM: a training saves its state
        for worker in workers:
            worker.join(STOPPING)
            worker.kill()


def _watch(
    root: Path,
    tasks: Sequence[FamilyTask],
    configs: dict[str, ConfigDict],
    settings: ConfigDict,
    workers: Sequence[BaseProcess],
    finished: Callable[[], Any],
) -> None:
    """Show the progress of all tasks until the processes have ended."""

    def parts(task: FamilyTask) -> int:
        done = family_tasks.fraction(root, task, configs[task.name], settings)
        return round(UNIT * settings.cost.get(task.name, 1.0) * done)

    def whole(task: FamilyTask) -> int:
        return round(UNIT * settings.cost.get(task.name, 1.0))

    before, ended = {task: parts(task) for task in tasks}, set()
    total = sum(whole(task) - before[task] for task in tasks)
    print(
        f"{len(tasks)} runs in {len(workers)} processes; their logs are {root}/worker_*.log",
        file=sys.stderr,
    )
    description = f"families (a diffusion model: {UNIT} parts)"
    with progress(total, description, unit="parts", line_every=60.0) as advance:
        running = True
        while running:
            running = any(worker.is_alive() for worker in workers)
            now = {task: max(parts(task), before[task]) for task in tasks}
            if (more := sum(now.values()) - sum(before.values())) > 0:
                advance(more)
            before = now
            done = {task for task in tasks if now[task] == whole(task)}
            if new := done - ended:
                ended = done
                _report(new, finished)
            connection.wait([worker.sentinel for worker in workers if worker.is_alive()], WATCHED)
    if failed := [f"worker_{i}.log" for i, worker in enumerate(workers) if worker.exitcode]:
        left = ", ".join(task.folder for task in tasks if task not in ended)
        raise UserError(
            f"not finished: {left or 'none'}; see {' and '.join(failed)} in '{root}', and run "
            "the same command again"
        )


def _report(tasks: Collection[FamilyTask], finished: Callable[[], Any]) -> None:
    """Say which tasks are finished, and write the report; a failure there does not end the runs."""
    names = ", ".join(sorted(task.folder for task in tasks))
    print(f"finished: {names}", file=sys.stderr, flush=True)
    try:
        finished()
    except Exception:
        traceback.print_exc()


# ---- in a process of its own
def _work(
    root: Path,
    waiting: Any,
    configs: dict[str, dict],
    settings: dict[str, Any],
    core: int,
    log: Path,
    cache: str | None,
) -> None:
    """Take tasks until there are none."""
    os.sched_setaffinity(0, {core})  # before JAX counts the cores
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    own = {name: ConfigDict(config) for name, config in configs.items()}
    chosen = ConfigDict(settings)
    dataset = family_tasks.dataset_of(own)

    @functools.cache
    def judge() -> Any:
        return measures.judge_of(dataset, chosen.num, chosen.features)

    failed = False
    while task := waiting.get():
        began = time.monotonic()
        print(f"---- {task.folder}", file=sys.stderr, flush=True)
        try:
            family_tasks.run(root, task, own[task.name], chosen, dataset, judge)
        except CommandExit as end:  # a signal
            sys.exit(end.status)
        except Exception:  # the other families go on; the log has the reason
            traceback.print_exc()
            failed = True
        took = (time.monotonic() - began) / 60
        print(f"{task.folder}: {took:.1f} minutes", file=sys.stderr, flush=True)
        jax.clear_caches()
        gc.collect()
    sys.exit(int(failed))


def _end_with_parent() -> None:
    """End this process at once when the one that started it is gone: all work is resumable."""
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
