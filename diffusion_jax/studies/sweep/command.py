"""The best settings of a model, found over any config keys: the command sweep.

space.py reads the keys and values, search.py decides which cells get images, cells.py draws and
judges them, page.py shows what was found, and launch.py hands the work to SLURM.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, Unpack

from ml_collections import ConfigDict

from diffusion_jax.assembly import denoiser, outputs, sampling
from diffusion_jax.core import parsing, provenance
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import Dataset
from diffusion_jax.evaluation import statistics
from diffusion_jax.pretrained import folders
from diffusion_jax.studies.sweep import cells, checks, page, runs
from diffusion_jax.studies.sweep import launch as sweep_launch
from diffusion_jax.studies.sweep import space as sweep_space
from diffusion_jax.studies.sweep import task as sweep_task
from diffusion_jax.studies.sweep.space import Space
from diffusion_jax.studies.sweep.task import Task
from diffusion_jax.training import distributed


class SweepFlags(TypedDict):
    """The flags that say what a sweep measures.

    Attributes:
      workdir: the folder of the trained model; None where a config file is given.
      config_file: the config file and its variant; None where the config is that of a workdir.
      over: KEY=VALUES of each --over.
      search: a spec of search.SEARCHES.
      for_each: keys, with commas, for each of whose values a best cell is found; '' for the number
        of network evaluations.
      num: images of a cell, at most.
      metric: the score that is optimized.
      metrics: the scores that are shown, with commas; '' for accuracy and frechet.
      features: feature extractors, with commas; '' for the default ones.
      reference: a file of experiments.statistics; '' compares with training images.
      out: the folder of the sweep; '' for sweep in the folder of the model's outputs.
    """

    workdir: str | None
    config_file: str | None
    over: Sequence[str]
    search: str
    for_each: str
    num: int
    metric: str
    metrics: str
    features: str
    reference: str
    out: str


def sweep(
    config: ConfigDict,
    *,
    launch: str,
    submit: bool,
    job: str,
    training_rungs: int = 1,
    asked: frozenset[str] = frozenset(),
    **flags: Unpack[SweepFlags],
) -> None:
    """Search a space of settings, and write sweep.md, .html, .png, .csv and .json.

    Args:
      config: the config of the model, with what the command line changes.
      launch: 'local', or 'slurm' to write jobs instead of doing them.
      submit: whether the jobs are submitted.
      job: the one job to do (launch.py); '' for all.
      training_rungs: rungs of training by successive halving; 1 trains every run to its end.
      asked: the config keys that the command line sets.
      **flags: see SweepFlags.

    Raises:
      UserError: for keys and values that do not exist or do not fit together.
    """
    if submit and launch != "slurm":
        raise UserError("--submit sends jobs to SLURM; add --launch=slurm")
    metrics = flags["metrics"] or "accuracy,frechet"
    named = sweep_task.names(flags["features"], metrics, flags["metric"])
    if (chosen := named._replace(reference=flags["reference"])).reference:
        statistics.load(chosen.reference)  # a mistake is reported before anything is trained
    task, dataset = prepare(config, flags, asked)
    _check_rungs(task, training_rungs, launch, job)
    if launch == "slurm":
        path = sweep_launch.write(task, sweep_launch.command(flags, config, asked))
        return sweep_launch.submit(path) if submit else print(f"submit the jobs: bash {path}")
    if job.startswith("train:"):
        numbers = parsing.integers("job", job.removeprefix("train:"))
        return runs.train(task, numbers[0] if numbers else -1)

    @functools.cache
    def judges() -> tuple[cells.CellSampler, cells.Scoring]:
        sampler = sweep_task.sampler(task, dataset, sampling.sampling_mesh(config))
        return sampler, sweep_task.prepare(task, sampler, dataset, chosen)

    if not job:
        sweep_task.announce(task)
        task = runs.train_in_rungs(task, training_rungs, judges)
    sampler, scored = judges()
    if job:
        losses = sweep_task.losses(sweep_task.read(task, scored), scored)
        number, images = sweep_launch.chosen(task.plan, job, losses)
        cells.measure(task.cells[number], images, sampler, scored, task.root / "cells")
        return None
    results = sweep_task.measure(task, sampler, scored)
    if distributed.first():
        record = provenance.provenance(config, config.seed)
        print(page.write(task, results, scored, record, flags["workdir"], asked))
        sweep_task.discard_blocks(task, scored)
    print(f"{task.root / 'sweep.html'} shows it; sweep.csv and sweep.json have all numbers")
    return None


def prepare(
    config: ConfigDict, flags: SweepFlags, asked: frozenset[str] = frozenset()
) -> tuple[Task, Dataset]:
    """Read, check and plan a sweep before anything runs.

    Args:
      config: the config of the model, with what the command line changes.
      flags: the flags that say what is measured.
      asked: the config keys that the command line sets.

    Returns:
      (the task, the data that its images are judged against).

    Raises:
      UserError: for keys and values that do not exist or do not fit together.
    """
    space = sweep_space.parse(config, flags["over"])
    root, varied = _root(flags), {axis.key for axis in space.axes}
    trains = not all(map(sweep_space.is_sampling, varied))
    dataset = checks.data_of(config, flags["workdir"], trains)
    if "sampler.guidance" not in varied | asked:
        config = denoiser.usable_guidance(config, dataset.num_classes)
    grouped = parsing.names(flags["for_each"]) or _budget(space)
    task = sweep_task.make(
        config, flags["workdir"], space, root, flags["num"], flags["search"], grouped
    )
    checks.check(task, dataset)
    return task, dataset


def _check_rungs(task: Task, rungs: int, launch: str, job: str) -> None:
    if rungs > 1 and (launch == "slurm" or job or not task.runs):
        why = "trains nothing: --over names sampling keys only"
        why = "is done in jobs, each of which trains a run to its end" if task.runs else why
        raise UserError(f"--training_rungs={rungs}: this sweep {why}; leave it out")


def _budget(space: Space) -> list[str]:
    """The key of the number of network evaluations, if the space varies it."""
    return [axis.key for axis in space.axes if axis.key == sweep_task.BUDGET]


def _root(flags: SweepFlags) -> Path:
    """The folder of the sweep."""
    if not (flags["out"] or flags["workdir"]):
        raise UserError("--out is missing: the folder of the sweep and of its training runs")
    text = flags["out"] or folders.outputs(flags["workdir"]) / "sweep"
    return outputs.folder("out", text, "sweep.json")
