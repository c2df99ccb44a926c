"""From noise to data in one, two or four evaluations: every method on one data set, and the diffusion model they learn from.

python -m experiments.few_step --workdir=runs/few_step
python -m experiments.few_step --workdir=runs/few_step --methods=cd,ect --num=1000 --search
python -m experiments.few_step --workdir=runs/mnist_few_step --recipe=configs/mnist_few_step.py --images=FOLDER_OF_IDX_FILES

Trains the teacher (unless --teacher names one) and every method by the recipe's config, each in a folder of its own, and judges
their images at --nfe evaluations beside the teacher's at --teacher_nfe. Writes few_step.md (method x evaluations: recognized,
Fréchet distance, training seconds), .json, .png (quality against evaluations) and _grid.png (the same seeds by all).
What is trained and judged already is found again by the same command. --search also places the times by the Fréchet distance.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from experiments import cli, train

METHODS = "cd,ct,ict,ect,sct,scd,meanflow,imf"
SEARCHED = "searched"  # the grid that --search keeps with a model
FIRST_SEED = 1_000_000  # of the images that times are searched by


def trained_on(recipe: str, name: str, size: str, root: Path, teacher: Path, steps: int, images: str):
    """The model of this variant of the recipe, trained (or found) in root / name. steps, images: the recipe's own where 0 and ''."""
    from diffusion_jax import workdir as folder

    config = cli.load_config(f"{recipe}:{name}" + (f",{size}" if size else "")).unlock()
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
        sys.exit(cli.UNFINISHED)
    return folder.load(root / name, folder.saved_config(root / name))


def seconds(workdir: Path) -> float:
    """How long the training steps of a run took, evaluations and checkpoints apart (and what was over too soon to be timed)."""
    from diffusion_jax.training import metrics

    rows = [row for row in metrics.read_rows(workdir / "metrics.jsonl") if {"loss", "images", "timing"} <= row.keys()]
    images = [0, *(row["images"] for row in rows)]
    rates = [row["timing"].get("images_per_s") or float("inf") for row in rows]
    return sum((after - before) / rate for before, after, rate in zip(images, images[1:], rates))


def judged(trained, dataset, name: str, entries: list[str], budgets: list[int], count: int, kept: Path):
    """(Subject, Comparison) of a model's images by these samplers, from the cells in `kept` where they are there."""
    from diffusion_jax import comparison, experiment

    built = trained.experiment
    chosen = comparison.cells(entries, budgets, built.process, built.config.sampler.grid,
                              place=lambda spec, n: experiment.grid(built, spec, n))  # fmt: skip
    subject = comparison.of_model(trained, dataset, range(count), name)
    return subject, comparison.compare(subject, chosen, kept)


def search(trained, dataset, budgets: list[int], count: int, path: Path, evaluations: int = 40) -> None:
    """Place the times of the model's own sampler by the Fréchet distance of other seeds' images, and keep them as a grid."""
    import jax.numpy as jnp
    import numpy as np

    from diffusion_jax import comparison, experiment, provenance, reading
    from diffusion_jax.processes import gaussian
    from diffusion_jax.samplers import grids

    if reading.kept(path, lambda path: reading.json_file(path, grids.FILE)):
        return
    built = trained.experiment
    chosen, subject = experiment.plan(built), comparison.of_model(trained, dataset, range(FIRST_SEED, FIRST_SEED + count), "")
    found = {}
    for n in filter(lambda n: n > 1, budgets):
        run = comparison.runner(subject, chosen.sampler, n)
        score = lambda ts, run=run: subject.judge(subject.finish(run(ts)[0]), None)["frechet"]  # noqa: E731
        start = experiment.grid(built, chosen.grid, n)
        placed = grids.polish(score, built.process, start, evaluations=evaluations)
        found[str(n)] = np.asarray(gaussian.logsnr(built.process, jnp.asarray(placed.ts)), float).tolist()
    provenance.save_json(path, {"logsnr": found, "provenance": provenance.provenance(subject.identity)})


def report(rows: list[dict], budgets: list[int], floor: dict[str, float]) -> str:
    """A line for each model: training seconds, and recognition and Fréchet distance at every number of evaluations."""
    from diffusion_jax.provenance import markdown_table

    show = lambda row: f"{100 * row['accuracy']:.1f} % / {row['frechet']:.2f}" if "accuracy" in row else row.get("note", "")  # noqa: E731
    table = []
    for name in dict.fromkeys(row["sampler"] for row in rows):
        own = [row for row in rows if row["sampler"] == name]
        table.append({"model": name, "seconds": f"{own[0]['seconds']:.0f}"} | {f"at {row['nfe']}": show(row) for row in own})
    table.append({"model": "real test images", f"at {budgets[0]}": show(floor)})
    columns = {f"at {n}": f"{n} NFE" for n in sorted({row["nfe"] for row in rows})}
    return markdown_table(table, {"model": "model", "seconds": "training, s"} | columns)


class Table(NamedTuple):
    """What has been judged so far, by `count` images a cell: rows, and for each (name, evaluations) a tile of pictures."""

    dataset: Any
    count: int
    rows: list[dict]
    tiles: dict
    captions: dict


def add(table: Table, model, name: str, entry: str, nfe: list[int], kept: Path, took: float) -> dict[str, float]:
    """A row for each budget of a model that took so many seconds to train. Returns what real images score."""
    from diffusion_jax import plotting

    subject, compared = judged(model, table.dataset, name, [entry], nfe, table.count, kept)
    for result in compared.results:
        table.rows.append(row := result.row | {"sampler": name, "seconds": took})
        if result.samples is not None:
            table.tiles[name, row["nfe"]] = plotting.mosaic(result.samples[:10], 1)
            table.captions[name, row["nfe"]] = plotting.verdict(row)
    return subject.floor


def write(table: Table, root: Path, budgets: list[int], floor: dict[str, float]) -> str:
    """root/few_step.md, .json, .png and _grid.png. Returns the text of few_step.md."""
    from diffusion_jax import data, plotting, provenance
    from diffusion_jax.evaluation import judge

    features = judge.default_features(table.dataset.train)
    title = f"{table.dataset.name} in a few evaluations: {table.count} images, recognized / Fréchet distance of {features}"
    text = f"# {title}\n\n{report(table.rows, budgets, floor)}\nTraining includes the teacher's where a method needs one.\n"
    provenance.save_text(root / "few_step.md", text)
    stamp = provenance.provenance(None, 0)
    provenance.save_json(root / "few_step.json", {"rows": table.rows, "real": floor, "provenance": stamp})
    plotting.quality_curves(table.rows, root / "few_step.png", metrics=("accuracy", "frechet"), floor=floor, title=title)
    real = plotting.mosaic(data.arrays(table.dataset.test, limit=10)["image"], 1)
    plotting.strips(table.tiles, root / "few_step_grid.png", captions=table.captions, title=title, above={"real test images": real},
                    columns={n: f"{n} NFE" for n in sorted({row["nfe"] for row in table.rows})})  # fmt: skip
    return text


def check_names(recipe: str, methods: list[str], size: str, sampler: str, budgets: list[int]) -> None:
    """UserError, before anything is trained, for a method, a sampler or a budget that does not exist."""
    from diffusion_jax import comparison, experiment
    from diffusion_jax.build import build
    from diffusion_jax.errors import UserError

    if len(budgets) < 2:
        raise UserError("--nfe is empty; name numbers of network evaluations, such as 1,2,4")
    for name in ["teacher", *methods]:
        config = cli.load_config(f"{recipe}:{name}" + (f",{size}" if size else ""))
        entry = sampler if name == "teacher" else config.sampler.name
        comparison.cells([entry], budgets, build(experiment.PROCESSES, config.process), config.sampler.grid)


def main(_) -> None:
    from diffusion_jax import comparison, experiment
    from diffusion_jax import workdir as folder

    FLAGS = flags.FLAGS
    root, budgets = Path(FLAGS.workdir), sorted(set(cli.integers("nfe", FLAGS.nfe, 1, 10_000)))
    methods = [name.strip() for name in FLAGS.methods.split(",") if name.strip()]
    check_names(FLAGS.recipe, methods, FLAGS.size, FLAGS.teacher_sampler, [*budgets, FLAGS.teacher_nfe])
    teacher = Path(FLAGS.teacher or root / "teacher")
    images = FLAGS.images
    if FLAGS.teacher:
        model = folder.load(teacher, folder.saved_config(teacher, "--teacher"))
        images = images or model.experiment.config.data.path
    else:
        model = trained_on(FLAGS.recipe, "teacher", FLAGS.size, root, teacher, FLAGS.steps, images)
    table = Table(folder.dataset(model.experiment.config, teacher), FLAGS.num, [], {}, {})
    learned = seconds(teacher)
    sampler = FLAGS.teacher_sampler
    floor = add(table, model, f"diffusion ({sampler})", sampler, [*budgets, FLAGS.teacher_nfe], root / "cells", learned)
    text = write(table, root, budgets, floor)
    for name in methods:
        model = trained_on(FLAGS.recipe, name, FLAGS.size, root, teacher, FLAGS.steps, images)
        config, took = model.experiment.config, seconds(root / name)
        if config.distill.teacher or config.init_from:
            took += learned
        add(table, model, name, config.sampler.name, budgets, root / name / "cells", took)
        if FLAGS.search:
            search(model, table.dataset, budgets, FLAGS.num, root / name / "grids" / f"{SEARCHED}.json")
            entry = f"{config.sampler.name}@{SEARCHED}"
            add(table, model, f"{name}, times searched", entry, budgets[1:], root / name / "cells", took)
        text = write(table, root, budgets, floor)  # after every method: the rest may take an hour
    comparison.need_results(table.rows)
    print(f"{text}\n{root}/few_step.png and few_step_grid.png show it")


if __name__ == "__main__":
    cli.path_flag("workdir", None, "where everything goes; the same command goes on", required=True)
    cli.path_flag("recipe", "configs/digits_few_step.py", "a config file whose variants are the methods, and teacher")
    flags.DEFINE_string("size", "", "of a recipe that has several: light or full")
    cli.path_flag("images", "", "config.data.path, where the recipe's data have one; '': the recipe's, or what --teacher has")
    flags.DEFINE_string("methods", METHODS, "with commas: variants of the recipe")
    cli.path_flag("teacher", "", "the workdir of a trained diffusion model, instead of the recipe's own")
    flags.DEFINE_string("nfe", "1,2,4", "network evaluations, with commas")
    cli.integer_flag("teacher_nfe", 50, "of the diffusion model, besides", 1, 10_000)
    flags.DEFINE_string("teacher_sampler", "ancestral.ddim", "of the diffusion model: one that also takes few steps")
    cli.integer_flag("num", 500, "images that are judged", 10, 1_000_000)
    cli.integer_flag("steps", 0, "of every training, instead of the recipe's", 0, 10**9)
    flags.DEFINE_bool("search", False, "also place each method's times by the Fréchet distance")
    cli.launch(main, config="none")
