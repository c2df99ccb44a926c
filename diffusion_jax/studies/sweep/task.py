"""A sweep as a task: its cells and runs, and the loop that measures them.

task = make(config, workdir, space, root, num, "halving()")
checks.check(task, dataset)
scoring = prepare(task, sampler, dataset, names)
found = measure(task, sampler, scoring)
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax.assembly.build import Family, build
from diffusion_jax.core import files
from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.core.progress import progress
from diffusion_jax.data import Dataset
from diffusion_jax.evaluation import choice, judge
from diffusion_jax.evaluation.metrics import NEITHER, find
from diffusion_jax.samplers import base
from diffusion_jax.studies import scoring
from diffusion_jax.studies.sweep import cells as sweep_cells
from diffusion_jax.studies.sweep import search as sweep_search
from diffusion_jax.studies.sweep import space as sweep_space
from diffusion_jax.studies.sweep.cells import CellSampler, CellScores, Scoring, SweepCell
from diffusion_jax.studies.sweep.search import SearchPlan
from diffusion_jax.studies.sweep.space import Space

SEARCHES = Family("search", sweep_search.SEARCHES, "SEARCHES")
BUDGET = "sampler.nfe"
SEEDS = (
    "note: every value of seed is a training run of its own, with other initial weights, another "
    "order of the data and other noise; runs that differ in the seed alone differ by chance, so "
    "their spread is the error of training, and the best of them is no better setting"
)

Results = dict[tuple[int, int], CellScores]  # (cell, images) -> its scores


class Task(NamedTuple):
    """What a sweep measures.

    Attributes:
      space: the keys and their values.
      cells: the cells that take part, by number.
      runs: the config of each training run, by its workdir; {} where a trained model is swept.
      plan: which cells get how many images.
      root: the folder of the sweep.
      num: images of a cell, at most.
      grouped: the keys for each of whose values a best cell is found.
      search: the spec of SEARCHES that made the plan.
    """

    space: Space
    cells: dict[int, SweepCell]
    runs: dict[Path, ConfigDict]
    plan: SearchPlan
    root: Path
    num: int
    grouped: tuple[str, ...]
    search: str


class Names(NamedTuple):
    """The names of the features, the metrics and the optimized score of a sweep.

    `reference` is a file of experiments.statistics; '' compares with training images.
    """

    features: list[str]
    metrics: list[str]
    metric: str
    reference: str = ""


# the scores of estimators that give several, the first of which stands for the estimator
_GIVES = {
    "prdc": ("precision", "recall", "density", "coverage"),
    "kid": ("kid", "kid_se"),
    "memorization": ("copies", "nearest_ratio"),
}


def names(features: str, metrics: str, metric: str = "") -> Names:
    """Read and check the flags --features, --metrics and --metric.

    Args:
      features: names with commas; '' for the default ones.
      metrics: names with commas.
      metric: the score that is optimized; '' for the first of the metrics.

    Raises:
      UserError: for unknown names, and for a metric that is not measured or has no direction.
    """
    chosen, scores = scoring.requested(features, metrics)
    if not scores:
        raise UserError("--metrics is empty; name some, with commas, such as accuracy,frechet")
    optimized = metric.lower() or _GIVES.get(scores[0], scores)[0]
    if (alias := choice.ALIASES.get(metric.lower())) and alias.features:
        chosen = list(dict.fromkeys([*chosen, alias.features]))
        optimized = f"{alias.metric}/{alias.features}"
    base = optimized.partition("/")[0]
    possible = [score for name in choice.NAMES for score in _GIVES.get(name, (name,))]
    if base not in possible:
        usable = [name for name in possible if find(name).direction != NEITHER]
        raise unknown("--metric", metric, usable)
    if find(base).direction == NEITHER:
        raise UserError(f"--metric={metric}: neither direction of it is better; choose another")
    given = [score for name in scores for score in _GIVES.get(name, (name,))]
    if base not in given:
        by = next((name for name, own in _GIVES.items() if base in own), base)
        raise UserError(f"--metric={metric} is not measured; add {by} to --metrics={metrics}")
    return Names(chosen, scores, optimized)


# ---- the cells
def make(
    config: ConfigDict,
    workdir: str | Path | None,
    space: Space,
    root: Path,
    num: int,
    search: str,
    grouped: Sequence[str] = (),
) -> Task:
    """The cells of a space, their runs, and the plan by which they are measured.

    Args:
      config: the config that the cells change.
      workdir: folder of the trained model; None where every cell is trained.
      space: the keys and their values.
      root: the folder of the sweep.
      num: images of a cell, at most.
      search: a spec of SEARCHES.
      grouped: keys of the space for each of whose values a best cell is found.

    Raises:
      UserError: for settings of a cell that are wrong together, and too many cells.
    """
    keys = [axis.key for axis in space.axes]
    for key in grouped:
        if key not in keys:
            raise unknown("--for_each", key, keys)
    method = build(SEARCHES, search)
    training = [key for key in keys if not sweep_space.is_sampling(key)]
    cells, runs, groups, adaptive = {}, {}, {}, set()
    for number in method.choose(space.size):
        settings = space.settings(number)
        own = sweep_space.with_settings(config, settings)
        folder = Path(workdir) if workdir else root
        if training:
            trained = {key: settings[key] for key in training}
            folder = root / "runs" / run_name(trained)
            runs.setdefault(folder, sweep_space.with_settings(config, trained))
        cell = sweep_cells.make(number, settings, folder.absolute(), own)
        if base.adaptive(cell.sampling.sampler):  # its tolerance decides, so it is measured once
            same = tuple(value for key, value in settings.items() if key != BUDGET)
            if same in adaptive:
                continue
            adaptive.add(same)
        cells[number] = cell
        groups.setdefault(tuple(settings[key] for key in grouped), []).append(number)
    plan = sweep_search.plan(groups, num, method)
    return Task(space, cells, runs, plan, root, num, tuple(grouped), search)


def run_name(settings: dict[str, Any]) -> str:
    """The name of the folder of a training run: its settings in short, and a hash of them.

    Args:
      settings: the training keys of the run and their values.
    """
    said = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in settings.items())
    digest = hashlib.sha256(files.canonical_json(settings).encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9.,=_+-]+', '_', said)[:80]}-{digest}"


def only_runs(task: Task, runs: Collection[Path]) -> Task:
    """The sweep in which the cells of these runs alone are searched; the others stay listed.

    Args:
      task: a sweep that trains.
      runs: the folders of the runs.
    """
    folders = {folder.absolute() for folder in runs}
    groups = {
        name: [number for number in members if task.cells[number].workdir in folders]
        for name, members in task.plan.groups.items()
    }
    left = {name: members for name, members in groups.items() if members}
    return task._replace(plan=sweep_search.plan(left, task.num, build(SEARCHES, task.search)))


# ---- measuring
def sampler(task: Task, dataset: Dataset, mesh: Mesh) -> CellSampler:
    """What draws the images of a sweep.

    Args:
      task: the sweep.
      dataset: the data of their conditions.
      mesh: the devices that draw.
    """
    first = min(rungs[0].images for rungs in task.plan.rungs.values())
    return CellSampler(list(task.cells.values()), dataset, first, mesh)


def prepare(task: Task, sampler: CellSampler, dataset: Dataset, chosen: Names) -> Scoring:
    """Prepare the judge of all images.

    Args:
      task: the sweep, whose runs are trained.
      sampler: draws the images.
      dataset: what they are judged against.
      chosen: the features and metrics.

    Raises:
      UserError: if the optimized score is not among those that are measured.
    """
    labels = sampler.labels(next(iter(task.cells.values())), task.num)
    named = chosen.features, chosen.metrics, chosen.reference
    judged = scoring.judge_named(dataset, labels, task.num, *named)
    # real images are as many as in a cell: scores depend on their number
    real = judge.measured_on_real(dataset.train, dataset.test, judged, task.num)
    about = {"judge": judged.identity, "metrics": chosen.metrics, "metric": chosen.metric}
    about |= {"reference": chosen.reference} if chosen.reference else {}
    about |= scoring.reference_record(chosen.reference)
    return Scoring(judged, _score_name(judged, chosen, real), about, real)


def _score_name(judged: judge.Judge, chosen: Names, measured: Mapping[str, Any]) -> str:
    """The name in scores of the metric that is optimized, by the first features that give it.

    Args:
      judged: gives the scores.
      chosen: the name of the metric, with or without '/FEATURES'.
      measured: scores of real images; {} where there are none.

    Raises:
      UserError: for a metric that is not measured.
    """
    metric = chosen.metric
    own = [metric, *(f"{metric}/{name}" for name in judged.features if name != judged.plain)]
    if found := next((name for name in own if name in measured), None):
        return found
    if measured:
        raise UserError(
            f"--metric={metric} is not among the scores {', '.join(measured)}; add what computes "
            f"it to --metrics={','.join(chosen.metrics)}"
        )
    return metric if judged.plain or "/" in metric or not own[1:] else own[1]


def measure(task: Task, sampler: CellSampler, scored: Scoring, title: str = "sweep") -> Results:
    """Measure what the plan wants and the folder does not hold, and return all results.

    Args:
      task: the sweep, whose runs are trained.
      sampler: draws the images.
      scored: judges them.
      title: names the progress.
    """
    folder, results = task.root / "cells", read(task, scored)
    left = task.plan.images - sum(
        max((images for cell, images in results if cell == number), default=0)
        for members in task.plan.groups.values()
        for number in members
    )
    with progress(left, title, enabled=left > 0) as advance:
        while todo := sweep_search.wanted(task.plan, losses(results, scored)):
            todo.sort(key=lambda pair: (sweep_cells.order(task.cells[pair[0]]), pair))
            for number, images in todo:
                cell = task.cells[number]
                before = max((n for c, n in results if c == number), default=0)
                results[number, images] = sweep_cells.measure(cell, images, sampler, scored, folder)
                advance(images - before)
    return results


def repeated(task: Task, repeats: int) -> Task:
    """The sweep of all cells on several sets of disjoint seeds, each on all of its images.

    Set r of a cell has the number of the cell plus r times the number of cells.

    Args:
      task: a sweep of all cells of its space.
      repeats: the number of sets.
    """
    size, cells = len(task.cells), {}
    for repeat in range(repeats):
        for cell in task.cells.values():
            number = repeat * size + cell.number
            cells[number] = cell._replace(number=number, first=repeat * task.num)
    return task._replace(
        cells=cells, plan=sweep_search.plan({(): list(cells)}, task.num, sweep_search.grid())
    )


def read(task: Task, scored: Scoring) -> Results:
    """The results that the folder of a sweep holds.

    Args:
      task: the sweep.
      scored: how its images are judged; results of another judge are not read.
    """
    folder = task.root / "cells"
    return {
        (number, found.images): found
        for number, cell in task.cells.items()
        for found in sweep_cells.known(cell, scored, folder)
    }


def losses(results: Results, scored: Scoring) -> dict[tuple[int, int], float]:
    """The loss of every result by the optimized score: less is better, infinity for a failure.

    Args:
      results: the scores of cells.
      scored: names the optimized score.
    """
    loss = find(scored.metric).loss
    return {
        key: loss(found.scores[scored.metric]) if not found.note else float("inf")
        for key, found in results.items()
    }


def discard_blocks(task: Task, scored: Scoring) -> None:
    """Remove what would be needed to continue cells, once the results are written elsewhere.

    Args:
      task: the sweep.
      scored: how its images are judged.
    """
    for cell in task.cells.values():
        sweep_cells.discard_blocks(cell, scored, task.root / "cells")


def described(task: Task) -> str:
    """What a sweep is about to do, in one line.

    Args:
      task: the sweep; the count of images is that of its plan.
    """
    runs = f"{len(task.runs)} training runs, " if task.runs else ""
    whole = len(task.cells) * task.num
    share = 100 * task.plan.images / whole
    return (
        f"{runs}{len(task.cells)} cells of {task.space.size}, at most {task.num} images each: "
        f"{task.plan.images:,} images, {share:.3g} % of {whole:,}"
    )


def announce(task: Task) -> None:
    """Print that line, and what it means to vary the seed.

    Args:
      task: the sweep.
    """
    print(described(task), file=sys.stderr, flush=True)
    if any(axis.key == "seed" for axis in task.space.axes):
        print(SEEDS, file=sys.stderr, flush=True)
