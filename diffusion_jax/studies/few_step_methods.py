"""Few-step methods trained and compared."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion_jax import data, errors, files, provenance, reading
from diffusion_jax.assembly import components, config_files, sampling, train, workdir
from diffusion_jax.assembly.build import build
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation import judge
from diffusion_jax.processes import gaussian
from diffusion_jax.report import curves, pictures
from diffusion_jax.report.tables import markdown_table
from diffusion_jax.samplers import grids, placement
from diffusion_jax.studies import comparison
from diffusion_jax.training import metrics

METHODS = "cd,ct,ict,ect,sct,scd,meanflow,imf"
SEARCHED = "searched"  # the grid that --search keeps with a model
FIRST_SEED = 1_000_000  # of the images that times are searched by


def trained_on(
    recipe: str, name: str, size: str, root: Path, teacher: Path, steps: int, images: str
):
    """The model of this variant of the recipe, trained (or found) in root / name. steps, images:
    the recipe's own where 0 and ''.
    """
    config = config_files.load_config(f"{recipe}:{name}" + (f",{size}" if size else "")).unlock()
    if config.distill.teacher:
        config.distill.teacher = str(teacher)
    if config.init_from:
        config.init_from = str(teacher)
    if images:
        config.data.path = images
    if steps:
        config.training.steps = steps
        config.optimizer.warmup = min(config.optimizer.warmup, steps // 4)
    if not train.train(config.lock(), str(root / name)):
        sys.exit(errors.UNFINISHED)
    return workdir.load(root / name, workdir.saved_config(root / name))


def seconds(workdir: Path) -> float:
    """How long the training steps of a run took, evaluations and checkpoints apart (and what was
    over too soon to be timed).
    """
    rows = [
        row
        for row in metrics.read_rows(workdir / "metrics.jsonl")
        if {"loss", "images", "timing"} <= row.keys()
    ]
    images = [0, *(row["images"] for row in rows)]
    rates = [row["timing"].get("images_per_s") or float("inf") for row in rows]
    return sum((after - before) / rate for before, after, rate in zip(images, images[1:], rates))


def judged(
    trained, dataset, name: str, entries: list[str], budgets: list[int], count: int, kept: Path
):
    """(Subject, Comparison) of a model's images by these samplers, from the cells in `kept` where
    they are there.
    """
    built = trained.experiment
    chosen = comparison.cells(
        entries,
        budgets,
        built.process,
        built.config.sampler.grid,
        place=lambda spec, n: sampling.grid(built, spec, n),
    )
    subject = comparison.of_model(trained, dataset, range(count), name)
    return subject, comparison.compare(subject, chosen, kept)


def search(
    trained, dataset, budgets: list[int], count: int, path: Path, evaluations: int = 40
) -> None:
    """Place the times of the model's own sampler by the Fréchet distance of other seeds' images,
    and keep them as a grid.
    """
    if reading.kept(path, lambda path: reading.json_file(path, grids.FILE)):
        return
    built = trained.experiment
    chosen, subject = (
        sampling.plan(built),
        comparison.of_model(trained, dataset, range(FIRST_SEED, FIRST_SEED + count), ""),
    )
    found = {}
    for n in filter(lambda n: n > 1, budgets):
        run = comparison.runner(subject, chosen.sampler, n)

        def score(ts, run=run):
            return subject.judge(subject.finish(run(ts)[0]), None)["frechet"]

        start = sampling.grid(built, chosen.grid, n)
        placed = placement.polish(score, built.process, start, evaluations=evaluations)
        found[str(n)] = np.asarray(
            gaussian.logsnr(built.process, jnp.asarray(placed.ts)), float
        ).tolist()
    files.save_json(path, {"logsnr": found, "provenance": provenance.provenance(subject.identity)})


def report(rows: list[dict], budgets: list[int], floor: dict[str, float]) -> str:
    """A line for each model: training seconds, and recognition and Fréchet distance at every number
    of evaluations.
    """

    def show(row):
        return (
            f"{100 * row['accuracy']:.1f} % / {row['frechet']:.2f}"
            if "accuracy" in row
            else row.get("note", "")
        )

    table = []
    for name in dict.fromkeys(row["sampler"] for row in rows):
        own = [row for row in rows if row["sampler"] == name]
        table.append(
            {"model": name, "seconds": f"{own[0]['seconds']:.0f}"}
            | {f"at {row['nfe']}": show(row) for row in own}
        )
    table.append({"model": "real test images", f"at {budgets[0]}": show(floor)})
    columns = {f"at {n}": f"{n} NFE" for n in sorted({row["nfe"] for row in rows})}
    return markdown_table(table, {"model": "model", "seconds": "training, s"} | columns)


class Table(NamedTuple):
    """What has been judged so far, by `count` images a cell: rows, and for each (name, evaluations)
    a tile of pictures.
    """

    dataset: Any
    count: int
    rows: list[dict]
    tiles: dict
    captions: dict


def add(
    table: Table, model, name: str, entry: str, nfe: list[int], kept: Path, took: float
) -> dict[str, float]:
    """A row for each budget of a model that took so many seconds to train. Returns what real images
    score.
    """
    subject, compared = judged(model, table.dataset, name, [entry], nfe, table.count, kept)
    for result in compared.results:
        table.rows.append(row := result.row | {"sampler": name, "seconds": took})
        if result.samples is not None:
            table.tiles[name, row["nfe"]] = pictures.mosaic(result.samples[:10], 1)
            table.captions[name, row["nfe"]] = pictures.verdict(row)
    return subject.floor


def write(table: Table, root: Path, budgets: list[int], floor: dict[str, float]) -> str:
    """root/few_step.md, .json, .png and _grid.png. Returns the text of few_step.md."""
    features = judge.default_features(table.dataset.train)
    title = f"{table.dataset.name} in a few evaluations: {table.count} images, recognized / Fréchet distance of {features}"
    text = f"# {title}\n\n{report(table.rows, budgets, floor)}\nTraining includes the teacher's where a method needs one.\n"
    files.save_text(root / "few_step.md", text)
    stamp = provenance.provenance(None, 0)
    files.save_json(
        root / "few_step.json", {"rows": table.rows, "real": floor, "provenance": stamp}
    )
    curves.quality_curves(
        table.rows, root / "few_step.png", metrics=("accuracy", "frechet"), floor=floor, title=title
    )
    real = pictures.mosaic(data.arrays(table.dataset.test, limit=10)["image"], 1)
    pictures.strips(
        table.tiles,
        root / "few_step_grid.png",
        captions=table.captions,
        title=title,
        above={"real test images": real},
        columns={n: f"{n} NFE" for n in sorted({row["nfe"] for row in table.rows})},
    )
    return text


def check_names(
    recipe: str, methods: list[str], size: str, sampler: str, budgets: list[int]
) -> None:
    """UserError, before anything is trained, for a method, a sampler or a budget that does not
    exist.
    """
    if len(budgets) < 2:
        raise UserError("--nfe is empty; name numbers of network evaluations, such as 1,2,4")
    for name in ["teacher", *methods]:
        config = config_files.load_config(f"{recipe}:{name}" + (f",{size}" if size else ""))
        entry = sampler if name == "teacher" else config.sampler.name
        comparison.cells(
            [entry], budgets, build(components.PROCESSES, config.process), config.sampler.grid
        )
