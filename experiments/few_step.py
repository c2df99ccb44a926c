"""From noise to data in one, two or four evaluations: every method on one data set, and the
diffusion model they learn from.

python -m experiments.few_step --workdir=runs/few_step
python -m experiments.few_step --workdir=runs/few_step --methods=cd,ect --num=1000 --search
python -m experiments.few_step --workdir=runs/mnist_few_step --recipe=configs/mnist_few_step.py --images=FOLDER_OF_IDX_FILES

Trains the teacher (unless --teacher names one) and every method by the recipe's config, each in a
folder of its own, and judges their images at --nfe evaluations beside the teacher's at
--teacher_nfe. Writes few_step.md (method x evaluations: recognized, Fréchet distance, training
seconds), .json, .png (quality against evaluations) and _grid.png (the same seeds by all). What is
trained and judged already is found again by the same command. --search also places the times by the
Fréchet distance.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from diffusion_jax import parsing
from diffusion_jax.assembly import workdir
from diffusion_jax.studies import comparison, few_step_methods
from diffusion_jax.studies.few_step_methods import Table
from experiments import cli, values


def main(_) -> None:

    FLAGS = flags.FLAGS
    root, budgets = Path(FLAGS.workdir), sorted(set(parsing.integers("nfe", FLAGS.nfe, 1, 10_000)))
    methods = [name.strip() for name in FLAGS.methods.split(",") if name.strip()]
    few_step_methods.check_names(
        FLAGS.recipe, methods, FLAGS.size, FLAGS.teacher_sampler, [*budgets, FLAGS.teacher_nfe]
    )
    teacher = Path(FLAGS.teacher or root / "teacher")
    images = FLAGS.images
    if FLAGS.teacher:
        model = workdir.load(teacher, workdir.saved_config(teacher, "--teacher"))
        images = images or model.experiment.config.data.path
    else:
        model = few_step_methods.trained_on(
            FLAGS.recipe, "teacher", FLAGS.size, root, teacher, FLAGS.steps, images
        )
    table = Table(workdir.dataset(model.experiment.config, teacher), FLAGS.num, [], {}, {})
    learned = few_step_methods.seconds(teacher)
    sampler = FLAGS.teacher_sampler
    floor = few_step_methods.add(
        table,
        model,
        f"diffusion ({sampler})",
        sampler,
        [*budgets, FLAGS.teacher_nfe],
        root / "cells",
        learned,
    )
    text = few_step_methods.write(table, root, budgets, floor)
    for name in methods:
        model = few_step_methods.trained_on(
            FLAGS.recipe, name, FLAGS.size, root, teacher, FLAGS.steps, images
        )
        config, took = model.experiment.config, few_step_methods.seconds(root / name)
        if config.distill.teacher or config.init_from:
            took += learned
        few_step_methods.add(
            table, model, name, config.sampler.name, budgets, root / name / "cells", took
        )
        if FLAGS.search:
            few_step_methods.search(
                model,
                table.dataset,
                budgets,
                FLAGS.num,
                root / name / "grids" / f"{few_step_methods.SEARCHED}.json",
            )
            entry = f"{config.sampler.name}@{few_step_methods.SEARCHED}"
            few_step_methods.add(
                table,
                model,
                f"{name}, times searched",
                entry,
                budgets[1:],
                root / name / "cells",
                took,
            )
        text = few_step_methods.write(
            table, root, budgets, floor
        )  # after every method: the rest may take an hour
    comparison.need_results(table.rows)
    print(f"{text}\n{root}/few_step.png and few_step_grid.png show it")


if __name__ == "__main__":
    values.path_flag(
        "workdir", None, "where everything goes; the same command goes on", required=True
    )
    values.path_flag(
        "recipe",
        "configs/digits_few_step.py",
        "a config file whose variants are the methods, and teacher",
    )
    flags.DEFINE_string("size", "", "of a recipe that has several: light or full")
    values.path_flag(
        "images",
        "",
        "config.data.path, where the recipe's data have one; '': the recipe's, or what --teacher has",
    )
    flags.DEFINE_string("methods", few_step_methods.METHODS, "with commas: variants of the recipe")
    values.path_flag(
        "teacher", "", "the workdir of a trained diffusion model, instead of the recipe's own"
    )
    flags.DEFINE_string("nfe", "1,2,4", "network evaluations, with commas")
    values.integer_flag("teacher_nfe", 50, "of the diffusion model, besides", 1, 10_000)
    flags.DEFINE_string(
        "teacher_sampler", "ancestral.ddim", "of the diffusion model: one that also takes few steps"
    )
    values.integer_flag("num", 500, "images that are judged", 10, 1_000_000)
    values.integer_flag("steps", 0, "of every training, instead of the recipe's", 0, 10**9)
    flags.DEFINE_bool("search", False, "also place each method's times by the Fréchet distance")
    cli.launch(main, config="none")
