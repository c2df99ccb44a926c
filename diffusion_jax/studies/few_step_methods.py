"""Few-step methods trained on one data set and compared: the command few_step."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion_jax import data
from diffusion_jax.assembly import components, config_files, sampling, train
from diffusion_jax.assembly import workdir as workdirs
from diffusion_jax.assembly.build import build
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.core import files, parsing, provenance
from diffusion_jax.core.errors import UNFINISHED, CommandExit, UserError
from diffusion_jax.core.types import Array
from diffusion_jax.evaluation import choice
from diffusion_jax.evaluation.metrics import find
from diffusion_jax.processes import gaussian
from diffusion_jax.report import pictures, quality
from diffusion_jax.report.tables import markdown_table
from diffusion_jax.samplers import grid_files, placement
from diffusion_jax.studies import comparison, ranking, store, subjects
from diffusion_jax.training import metrics

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
    """

    config: str
    size: str
    images: str
    steps: int
    root: Path
    teacher: Path


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

    Raises:
      UserError: before anything is trained, for names and budgets that do not exist; at the end, if
        no cell has a result.
      CommandExit: if a signal stopped a training; running the command again resumes it.
    """
    root, budgets = Path(workdir), sorted(set(parsing.integers("nfe", nfe, 1, 10_000)))
    names, wide = parsing.names(methods), [*budgets, teacher_nfe]
    check_names(recipe, names, size, teacher_sampler, wide)
    how = Recipe(recipe, size, images, steps, root, Path(teacher or root / "teacher"))
    if teacher:
        model = workdirs.load(teacher, workdirs.saved_config(teacher, "--teacher"))
        how = how._replace(images=images or model.experiment.data.path)
    else:
        model = train_variant(how, "teacher")
    dataset = workdirs.dataset(workdirs.saved_config(how.teacher), how.teacher)
    table, took = FewStepTable(dataset, num, [], {}, {}), seconds(how.teacher)
    title = f"diffusion ({teacher_sampler})"
    real = add(table, model, title, teacher_sampler, wide, root / "cells", took)
    text = write(table, root, budgets, real)
    for name in names:
        _add_method(table, how, name, budgets, took, search=search)
        text = write(table, root, budgets, real)  # the other methods may take an hour
    ranking.need_results(table.rows)
    print(f"{text}\n{root}/few_step.png and few_step_grid.png show it; to sample a model:")
    print(f"python -m experiments.sample --workdir={root}/METHOD --nfe=1")


def check_names(
    recipe: str, methods: Sequence[str], size: str, sampler: str, budgets: Sequence[int]
) -> None:
    """Check that the methods, the sampler and the budgets exist.

    Args:
      recipe: the config file.
      methods: variants of the recipe.
      size: the size of the recipe.
      sampler: that of the teacher.
      budgets: those of the methods and the teacher's own.

    Raises:
      UserError: for one that does not exist.
    """
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
    teaching: float,
    *,
    search: bool,
) -> None:
    """Train a method and add its rows, and those on searched times if these are requested."""
    model, root = train_variant(recipe, name), recipe.root / name
    sources, took = model.experiment.sources, seconds(root)
    if sources.teacher or sources.start:
        took += teaching
    sampler, cells = model.experiment.sampling.name, root / "cells"
    add(table, model, name, sampler, budgets, cells, took)
    if search:
        path = root / "grids" / f"{SEARCHED}.json"
        search_times(model, table.dataset, budgets, table.count, path)
        entry = f"{sampler}@{SEARCHED}"
        add(table, model, f"{name}, times searched", entry, budgets[1:], cells, took)


# ---- training
def train_variant(recipe: Recipe, name: str) -> Trained:
    """Return the model of a variant of the recipe; train it in root / name if it is not there yet.

    Args:
      recipe: the config file, and what the command line changes of it.
      name: a variant of the config file, such as 'teacher' or a method; also the name of the
        workdir.

    Raises:
      CommandExit: if a signal stopped the training.
    """
    config = config_files.load_config(_variant(recipe.config, name, recipe.size)).unlock()
    if config.distill.teacher:
        config.distill.teacher = str(recipe.teacher)
    if config.init_from:
        config.init_from = str(recipe.teacher)
    if recipe.images:
        config.data.path = recipe.images
    if recipe.steps:
        config.training.steps = recipe.steps
        config.optimizer.warmup = min(config.optimizer.warmup, recipe.steps // 4)
    root = recipe.root / name
    if not train.train(config.lock(), str(root)):
        raise CommandExit(UNFINISHED)
    return workdirs.load(root, workdirs.saved_config(root))


def seconds(workdir: Path) -> float:
    """Sum the seconds that the training steps of a run took, without evaluations and checkpoints.

    Args:
      workdir: the folder of the run, whose metrics.jsonl has the images and the images per second
        between two lines of the log. Steps that were over too soon to be timed count as nothing.
    """
    rows = [
        row
        for row in metrics.read_rows(workdir / "metrics.jsonl")
        if {"loss", "images", "timing"} <= row.keys()
    ]
    images = [0, *(row["images"] for row in rows)]
    rates = [row["timing"].get("images_per_s") or float("inf") for row in rows]
    return sum((after - before) / rate for before, after, rate in zip(images, images[1:], rates))


# ---- searched times
def search_times(
    trained: Trained,
    dataset: data.Dataset,
    budgets: Sequence[int],
    count: int,
    path: Path,
    evaluations: int = 40,
) -> None:
    """Place the times of a model's own sampler by the Fréchet distance of its images.

    Args:
      trained: the model.
      dataset: what the images are judged against.
      budgets: numbers of network evaluations; one evaluation has no times to place.
      count: images, from other seeds than those by which models are compared.
      path: the grid file; one that is there is kept.
      evaluations: number of evaluations of the distance, for each budget.
    """
    if store.load_json(path, grid_files.FILE):
        return
    experiment, plan = trained.experiment, sampling.method(trained.experiment)
    subject = subjects.of_model(trained, dataset, range(FIRST_SEED, FIRST_SEED + count), "")

    def score(run: subjects.Runner, ts: Array) -> float:
        return subject.scores(subject.finish(run(ts)[0]))["frechet"]

    found = {}
    for n in filter(lambda n: n > 1, budgets):
        measure = functools.partial(score, subjects.runner(subject, plan.sampler, n))
        start = sampling.grid(experiment, plan.grid, n)
        ts = placement.polish(measure, experiment.process, start, evaluations=evaluations).ts
        logsnr = gaussian.logsnr(experiment.process, jnp.asarray(ts))
        found[str(n)] = np.asarray(logsnr, float).tolist()
    files.save_json(path, {"logsnr": found, "provenance": provenance.provenance(subject.identity)})


# ---- what is judged and written
class FewStepTable(NamedTuple):
    """The results so far; `add` changes them in place.

    Attributes:
      dataset: the data set of all models.
      count: images in each cell.
      rows: a row for each model and budget.
      tiles: (model, budget) -> picture of its first images.
      captions: (model, budget) -> its scores.
    """

    dataset: data.Dataset
    count: int
    rows: list[dict[str, Any]]
    tiles: dict[tuple[str, int], np.ndarray]
    captions: dict[tuple[str, int], str]


def add(
    table: FewStepTable,
    model: Trained,
    name: str,
    entry: str,
    budgets: Sequence[int],
    folder: Path,
    took: float,
) -> dict[str, float]:
    """Judge a model at every budget and add a row for each.

    Args:
      table: changed in place.
      model: the model.
      name: its name in the table.
      entry: its sampler, with @grid where it does not use the config's.
      budgets: numbers of network evaluations.
      folder: where finished cells are kept.
      took: the seconds of its training.

    Returns:
      What real test images score.
    """
    experiment = model.experiment
    chosen = comparison.cells(
        [entry],
        budgets,
        experiment.process,
        experiment.sampling.grid,
        place=functools.partial(sampling.grid, experiment),
    )
    subject = subjects.of_model(model, table.dataset, range(table.count), name)
    for result in comparison.compare(subject, chosen, folder).results:
        row = result.row | {"sampler": name, "seconds": took}
        table.rows.append(row)
        if result.samples is not None:
            table.tiles[name, row["nfe"]] = pictures.mosaic(result.samples[:10], 1)
            table.captions[name, row["nfe"]] = pictures.verdict(row)
    return subject.judging.truth_scores


def report(rows: Sequence[dict[str, Any]], budgets: Sequence[int], real: dict[str, float]) -> str:
    """Write a Markdown table of each model's training seconds and its scores at every budget.

    The last line has the scores of real test images.

    Args:
      rows: a row for each model and budget: 'sampler' (the title of the model), 'nfe', 'seconds',
        and either 'accuracy' and 'frechet' or a 'note' that says why there are none.
      budgets: numbers of network evaluations; the scores of real images stand in the column of the
        first.
      real: 'accuracy' in [0, 1] and 'frechet' of as many real test images.
    """

    def show(row: dict[str, Any]) -> str:
        if "accuracy" not in row:
            return row.get("note", "")
        return f"{find('accuracy').text(row['accuracy'])} / {row['frechet']:.2f}"

    table = []
    for name in dict.fromkeys(row["sampler"] for row in rows):
        own = [row for row in rows if row["sampler"] == name]
        line = {"model": name, "seconds": f"{own[0]['seconds']:.0f}"}
        table.append(line | {f"at {row['nfe']}": show(row) for row in own})
    table.append({"model": "real test images", f"at {budgets[0]}": show(real)})
    columns = {f"at {n}": f"{n} NFE" for n in sorted({row["nfe"] for row in rows})}
    return markdown_table(table, {"model": "model", "seconds": "training, s"} | columns)


def write(table: FewStepTable, root: Path, budgets: Sequence[int], real: dict[str, float]) -> str:
    """Write few_step.md, .json, .png and _grid.png in the folder `root`.

    Args:
      table: the results so far; the rows of methods that are not trained yet are absent.
      root: the folder of the files, which are replaced.
      budgets: numbers of network evaluations that the methods are judged at.
      real: 'accuracy' in [0, 1] and 'frechet' of as many real test images.

    Returns:
      The text of few_step.md.
    """
    features = choice.default_features(table.dataset.train)
    title = (
        f"{table.dataset.name} in a few evaluations: {table.count} images, "
        f"recognized / Fréchet distance of {features}"
    )
    text = (
        f"# {title}\n\n{report(table.rows, budgets, real)}\n"
        "Training includes the teacher's where a method needs one.\n"
    )
    files.save_text(root / "few_step.md", text)
    record = {"rows": table.rows, "real": real, "provenance": provenance.provenance(None, 0)}
    files.save_json(root / "few_step.json", record)
    shown = ("accuracy", "frechet")
    quality.quality_curves(
        table.rows, root / "few_step.png", metrics=shown, reference=real, title=title
    )
    images = data.arrays(table.dataset.test, limit=10)["image"]
    pictures.strips(
        table.tiles,
        root / "few_step_grid.png",
        captions=table.captions,
        title=title,
        above={"real test images": pictures.mosaic(images, 1)},
        columns={n: f"{n} NFE" for n in sorted({row["nfe"] for row in table.rows})},
    )
    return text
