"""Few-step methods trained on one data set and compared: the command few_step."""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.assembly import by_shape, components, config_files, datasets, sampling, train
from diffusion_jax.assembly import workdir as workdirs
from diffusion_jax.assembly.build import build
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.core import files, parsing, provenance, staging
from diffusion_jax.core.errors import UNFINISHED, CommandExit, UserError
from diffusion_jax.core.types import Array
from diffusion_jax.evaluation import intervals
from diffusion_jax.processes import gaussian
from diffusion_jax.report import media, pictures
from diffusion_jax.samplers import grid_files, placement
from diffusion_jax.studies import drawing, scoring, store, subjects
from diffusion_jax.studies.few_step import report
from diffusion_jax.studies.few_step.report import FewStepTable
from diffusion_jax.studies.samplers import cells as comparison
from diffusion_jax.training import distributed, metrics

SEARCHED = "searched"  # the name of the grid that --search keeps with a model
FIRST_SEED = 1_000_000  # of the images that times are searched by


# ---- the command
class Recipe(NamedTuple):
    """The recipe by which the models are trained.

    Attributes:
      config: a config file whose variants are the methods and 'teacher'.
      size: the size of a recipe that has several, such as 'light'; '' for the only one.
      images: config.data.path; '' for the recipe's own.
      steps: number of steps of every training; 0 for the recipe's own.
      root: the folder of the models.
      teacher: the workdir of the diffusion model that methods learn from.
      changes: further config keys of every training and their values, as texts.
    """

    config: str
    size: str
    images: str
    steps: int
    root: Path
    teacher: Path
    changes: tuple[tuple[str, str], ...] = ()


def few_step(
    *,
    workdir: str,
    recipe: str,
    size: str,
    images: str,
    methods: str,
    teacher: str,
    nfe: str,
    teacher_nfe: int,
    teacher_sampler: str,
    num: int,
    steps: int,
    search: bool,
    override: Sequence[str] = (),
    **judging: Unpack[scoring.JudgeFlags],
) -> None:
    """Train, judge and compare few-step methods, and print the report.

    What is trained and judged already is found again. The report is written after every method.

    Args:
      workdir: the folder of all models and results.
      recipe: a config file whose variants are the methods and 'teacher'.
      size: the size of the recipe, if it has several.
      images: config.data.path; '' for the recipe's or the teacher's.
      methods: variants of the recipe, separated by commas.
      teacher: the workdir of a diffusion model; '' trains the recipe's.
      nfe: budgets of network evaluations, separated by commas.
      teacher_nfe: a further budget of the diffusion model.
      teacher_sampler: the sampler of the diffusion model.
      num: images in each cell.
      steps: number of steps of every training; 0 for the recipe's.
      search: whether the times of each method are also placed by the Fréchet distance.
      override: config keys of every training, each as KEY=VALUE.
      **judging: see scoring.JudgeFlags.

    Raises:
      UserError: before anything is trained, for names and budgets that do not exist; at the end, if
        no cell has a result.
      CommandExit: if a signal stopped a training; running the command again resumes it.
    """
    root, budgets = Path(workdir), sorted(set(parsing.integers("nfe", nfe, 1, 10_000)))
    names, wide = parsing.names(methods), [*budgets, teacher_nfe]
    check_names(recipe, names, size, teacher_sampler, wide, **judging)
    own, changes = Path(teacher or root / "teacher"), _changes(override)
    how = Recipe(recipe, size, images, steps, root, own, changes)
    model, how = _teacher(how, teacher)
    dataset = workdirs.dataset(workdirs.saved_config(how.teacher), how.teacher)
    table, took = FewStepTable(dataset, num, [], {}, {}, judging), seconds(how.teacher)
    named = f"diffusion ({teacher_sampler})", teacher_sampler
    real = add(table, model, *named, wide, root / "cells", took)
    text = report.write(table, root, budgets, real)
    for name in names:  # the others may take an hour
        _add_method(table, how, name, budgets, took, search=search)
        text = report.write(table, root, budgets, real)
    report.need_results(table)
    text += f"\n{root}/few_step.png and few_step_grid.png show it; to sample a model:"
    print(f"{text}\npython -m experiments.sample --workdir={shlex.quote(str(root))}/METHOD --nfe=1")


def check_names(
    recipe: str,
    methods: Sequence[str],
    size: str,
    sampler: str,
    budgets: Sequence[int],
    features: str = "",
    metrics: str = "",
    reference: str = "",
) -> None:
    """Check that the methods, the sampler, the budgets and the metrics exist.

    Args:
      recipe: the config file.
      methods: variants of the recipe.
      size: the size of the recipe.
      sampler: the sampler of the teacher.
      budgets: the budgets of the methods, and the teacher's own.
      features: as of `scoring.requested`.
      metrics: likewise.
      reference: the file of reference statistics, which is read later.

    Raises:
      UserError: for one that does not exist.
    """
    scoring.requested(features, metrics)
    if len(budgets) < 2:
        raise UserError("--nfe is empty; name numbers of network evaluations, such as 1,2,4")
    for name in ["teacher", *methods]:
        config = config_files.load_config(_variant(recipe, name, size))
        entry = sampler if name == "teacher" else config.sampler.name
        process = build(components.PROCESSES, config.process)
        comparison.cells([entry], budgets, process, config.sampler.grid)


def _variant(recipe: str, name: str, size: str) -> str:
    return f"{recipe}:{name}" + (f",{size}" if size else "")


def _add_method(
    table: FewStepTable,
    recipe: Recipe,
    name: str,
    budgets: Sequence[int],
    teaching: float | None,
    *,
    search: bool,
) -> None:
    """Train a method and add its rows, and those on searched times if these are requested."""
    model, root = train_variant(recipe, name), recipe.root / name
    sources, took = model.experiment.sources, seconds(root) or 0.0
    if sources.teacher or sources.start:
        took += teaching or 0.0
    sampler, cells = model.experiment.sampling.name, root / "cells"
    add(table, model, name, sampler, budgets, cells, took)
    if search:
        path = root / "grids" / f"{SEARCHED}.json"
        search_times(model, table.dataset, budgets, table.count, path, **table.judging)
        entry = f"{sampler}@{SEARCHED}"
        add(table, model, f"{name}, times searched", entry, budgets[1:], cells, took)


def _changes(texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The keys and values of --override; UserError for a text without '='."""
    for text in texts:
        if "=" not in text:
            raise UserError(f"--override={text}: write KEY=VALUE, such as data.name=table")
    pairs = (text.removeprefix("config.").split("=", 1) for text in texts)
    return tuple((key, value) for key, value in pairs)


def _teacher(how: Recipe, given: str) -> tuple[Trained, Recipe]:
    """The diffusion model, which --teacher or the recipe names, and the recipe with its data."""
    if not given:
        return train_variant(how, "teacher"), how
    saved = workdirs.saved_config(given, "--teacher")
    model, own = workdirs.load(given, saved), _variant(how.config, "teacher", how.size)
    changes = (*_data_of(saved, own), *how.changes)
    return model, how._replace(images=how.images or model.experiment.data.path, changes=changes)


def _data_of(teacher: ConfigDict, recipe: str) -> tuple[tuple[str, str], ...]:
    """The keys of the teacher's data, for a recipe whose network the data choose; () for others."""
    own = config_files.load_config(recipe)
    if own.model.name != by_shape.AUTO:
        return ()
    keys = [key for key in datasets.named(teacher) if teacher.data[key] != own.data.get(key)]
    return tuple((f"data.{key}", str(teacher.data[key])) for key in keys)


# ---- training
def train_variant(recipe: Recipe, name: str) -> Trained:
    """Return the model of a variant of the recipe; train it in root / name if it is not there yet.

    Args:
      recipe: the config file, and what the command line changes of it.
      name: a variant of the config file, such as 'teacher' or a method; also the name of the
        workdir.

    Raises:
      UserError: for a recipe whose network the data choose, where there are none.
      CommandExit: if a signal stopped the training.
    """
    config = config_files.load_config(_variant(recipe.config, name, recipe.size)).unlock()
    if config.distill.teacher:
        config.distill.teacher = staging.shown(str(recipe.teacher))
    if config.init_from:
        config.init_from = staging.shown(str(recipe.teacher))
    changes = [*recipe.changes, *([("data.path", recipe.images)] if recipe.images else [])]
    if config.model.name == by_shape.AUTO and "data.path" not in dict(changes):
        raise UserError(
            f"--images is missing: the .npz or .npy file whose shape chooses the network of "
            f"{recipe.config}"
        )
    config_files.apply(config.lock(), changes)
    config.unlock()
    if recipe.steps:
        config.training.steps = recipe.steps
        config.optimizer.warmup = min(config.optimizer.warmup, recipe.steps // 4)
    root = recipe.root / name
    if not train.train(config.lock(), str(root)):
        raise CommandExit(UNFINISHED)
    config = workdirs.saved_config(root)
    return workdirs.load(root, config, sampling.sampling_mesh(config))


def seconds(workdir: Path) -> float | None:
    """Sum the seconds that the training steps of a run took, without evaluations and checkpoints.

    None where that is not known, such as of a published model.

    Args:
      workdir: the folder of the run, whose metrics.jsonl has the images and the images per second
        between two lines of the log. Steps that were over too soon to be timed count as nothing.
    """
    rows = [
        row
        for row in metrics.read_rows(workdir / "metrics.jsonl")
        if {"loss", "images", "timing"} <= row.keys()
    ]
    if not rows:
        return None
    images = [0, *(row["images"] for row in rows)]
    rates = [row["timing"].get("images_per_s") or float("inf") for row in rows]
    return sum((after - before) / rate for before, after, rate in zip(images, images[1:], rates))


def _mesh(model: Trained) -> Mesh:
    return sampling.sampling_mesh(ConfigDict(model.experiment.record))


# ---- searched times
def search_times(
    trained: Trained,
    dataset: data.Dataset,
    budgets: Sequence[int],
    count: int,
    path: Path,
    evaluations: int = 40,
    **judging: str,
) -> None:
    """Place the times of a model's own sampler by the Fréchet distance of its images.

    Args:
      trained: the model.
      dataset: what the images are judged against.
      budgets: numbers of network evaluations; one evaluation has no times to place.
      count: images, from other seeds than those by which models are compared.
      path: the grid file; times that it has of the same model and settings are kept.
      evaluations: number of evaluations of the distance, for each budget.
      **judging: features, metrics and reference of `subjects.of_model`.
    """
    of = times_hash(trained, count, evaluations, **judging)
    found = _kept_times(path, of)
    missing = [n for n in budgets if n > 1 and str(n) not in found]
    if not missing:
        return
    experiment, plan = trained.experiment, sampling.method(trained.experiment)
    subject = subjects.of_model(
        trained, dataset, range(FIRST_SEED, FIRST_SEED + count), "", mesh=_mesh(trained), **judging
    )

    def score(run: drawing.Runner, ts: Array) -> float:
        found = drawing.judged(subject, run, ts, grouped=False)
        return distributed.from_first(found and found.measured["frechet"].value)

    for n in missing:
        measure = functools.partial(score, drawing.runner(subject, plan.sampler, n))
        start = sampling.grid(experiment, plan.grid, n)
        ts = placement.polish(measure, experiment.process, start, evaluations=evaluations).ts
        logsnr = gaussian.logsnr(experiment.process, jnp.asarray(ts))
        found[str(n)] = np.asarray(logsnr, float).tolist()
    stamp = provenance.provenance(subject.identity)
    if distributed.first():
        files.save_json(path, {"logsnr": found, "of": of, "provenance": stamp})


def times_hash(trained: Trained, count: int, evaluations: int, **judging: str) -> str:
    """The hash of everything that searched times depend on besides their number.

    Args:
      trained: the model.
      count: images of the search.
      evaluations: number of evaluations of the distance, for each budget.
      **judging: features, metrics and reference.
    """
    model = trained.experiment
    about = {"config": model.record, "step": trained.step, "weights": trained.weights}
    about |= {"count": count, "evaluations": evaluations, **judging, **model.origins}
    about |= scoring.reference_record(judging.get("reference", ""))
    return provenance.config_hash(files.plain(about))


def _kept_times(path: Path, of: str) -> dict[str, list[float]]:
    """The log-SNRs of a grid file by their numbers, if it is of this model and these settings."""
    kept = store.load_json(path, grid_files.FILE) or {}
    if kept and kept.get("of") != of:
        print(f"{path} was made with other settings and is started anew", file=sys.stderr)
        return {}
    return kept.get("logsnr", {})


# ---- what is judged
def add(
    table: FewStepTable,
    model: Trained,
    name: str,
    entry: str,
    budgets: Sequence[int],
    folder: Path,
    took: float | None,
) -> dict[str, Any]:
    """Judge a model at every budget and add a row for each.

    Args:
      table: changed in place.
      model: the model.
      name: its name in the table.
      entry: its sampler, with @grid where it does not use the config's.
      budgets: numbers of network evaluations.
      folder: where finished cells are kept.
      took: the seconds of its training; None where they are not known.

    Returns:
      What real test images score: a row with intervals, and 'features' of its plain scores.
    """
    experiment = model.experiment
    chosen = comparison.cells(
        [entry],
        budgets,
        experiment.process,
        experiment.sampling.grid,
        place=functools.partial(sampling.grid, experiment),
    )
    seeds, mesh = range(table.count), _mesh(model)
    subject = subjects.of_model(model, table.dataset, seeds, name, mesh=mesh, **table.judging)
    shown = media.media_of(table.dataset.image_shape, table.dataset.normalization)
    for result in comparison.compare(subject, chosen, folder).results:
        row = result.row | {"sampler": name, "seconds": took}
        table.rows.append(row)
        if result.samples is not None:
            table.tiles[name, row["nfe"]] = pictures.mosaic(shown.tiles(result.samples[:10]), 1)
            features = subject.judging.features
            table.captions[name, row["nfe"]] = pictures.verdict(row, features)
    return intervals.record(subject.judging.truth) | {"features": subject.judging.features}
