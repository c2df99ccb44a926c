"""Place a sampler's times for a model: gradient descent through the sampler on a few reference
trajectories.

python -m experiments.optimize_grid --workdir=runs/a --sampler=multistep.dpmpp_2m --nfe=5,6,8,10
python -m experiments.optimize_grid --target=gmm8 --process='schedules.EDM()' --sampler=multistep.dpmpp_2m --nfe=5,8,10,20

For each budget the hand-made grids are tried, and times spread as those of the nearest budget before; the best two are moved by
Levenberg-Marquardt (samplers/grids.py, optimize) until the sampler comes as close as it can to the exact solutions from
--starts seeds. For a model the best of all are then polished (--polish, by the simplex of Nelder and Mead) until trajectory
error and quality, the Fréchet distance of images to the training data, both gain on the best hand-made grid. What is told is
measured on other seeds.
Writes WORKDIR/grids/NAME.json, .md and .png; every command on that workdir then takes --config.sampler.grid=NAME, or
sampler@NAME, and any command 'stored("PATH/NAME.json")'. An interrupted run goes on with the next budget.
"""

from __future__ import annotations

from pathlib import Path

import jax
from absl import flags

from diffusion_jax import parsing
from diffusion_jax.assembly import components, workdir
from diffusion_jax.assembly.build import build
from diffusion_jax.studies import comparison, grid_search
from experiments import cli, values


def main(config) -> None:

    FLAGS = flags.FLAGS
    name, budgets = (
        grid_search.grid_name(FLAGS.name, FLAGS.sampler),
        sorted(set(parsing.integers("nfe", FLAGS.nfe, 1, 10_000))),
    )
    spec = FLAGS.process if FLAGS.target is not None else config.process
    grid_search.checked(
        FLAGS.sampler, budgets, build(components.PROCESSES, spec)
    )  # before anything is loaded or solved
    options = {"iterations": FLAGS.iterations, "tries": FLAGS.tries}
    seeds = [
        list(range(grid_search.FIRST_SEED, grid_search.FIRST_SEED + FLAGS.starts)),
        list(range(FLAGS.num)),
    ]
    if FLAGS.target is not None:
        stem = (
            parsing.folder("out", FLAGS.out or f"runs/grids_{grid_search._plain(FLAGS.target)}")
            / name
        )
        with jax.enable_x64(True):
            made = [comparison.of_target(FLAGS.target, FLAGS.process, part) for part in seeds]
            text = grid_search.optimize(*made, FLAGS.sampler, budgets, stem, **options)
        use = f"""--target='{FLAGS.target}' --process='{FLAGS.process}' --samplers='{FLAGS.sampler}@stored("{stem}.json")'"""
    else:
        stem = parsing.folder("out", FLAGS.out or Path(FLAGS.workdir) / "grids") / name
        trained, dataset = (
            workdir.load(FLAGS.workdir, config),
            workdir.images(config, FLAGS.workdir),
        )
        if (
            FLAGS.polish
        ):  # the score that is polished wants as many seeds as that of the held-out ones
            seeds[0] = list(
                range(grid_search.FIRST_SEED, grid_search.FIRST_SEED + max(FLAGS.starts, FLAGS.num))
            )

        def of(part, few):
            return comparison.of_model(trained, dataset, part, Path(FLAGS.workdir).name, solved=few)

        made = [of(seeds[0], FLAGS.starts), of(seeds[1], FLAGS.solved)]
        text = grid_search.optimize(
            *made, FLAGS.sampler, budgets, stem, polish=FLAGS.polish, **options
        )
        grid = f"""'stored("{stem}.json")'""" if FLAGS.out else name
        use = f"--config.sampler.name='{FLAGS.sampler}' --config.sampler.grid={grid}"
    print(f"{text}\n{stem}.json, .md, .png; to use it: {use}")


if __name__ == "__main__":
    values.path_flag("workdir", None, "the folder of a trained model")
    flags.DEFINE_string(
        "target",
        None,
        "instead of a model, an exact law: gmm8, 'gmm(modes=20, dim=16)', checkerboard, ...",
    )
    flags.DEFINE_string(
        "process", "schedules.EDM()", "the process of --target (a model has its own)"
    )
    flags.DEFINE_string(
        "sampler", "multistep.dpmpp_2m", "a deterministic sampler with steps of its grid"
    )
    flags.DEFINE_string("nfe", "5,6,8,10", "budgets, a grid for each")
    values.integer_flag("starts", 32, "trajectories that the times are placed by", 1, 100_000)
    values.integer_flag("num", 500, "other seeds, by which every grid is measured", 10, 1_000_000)
    values.integer_flag(
        "solved",
        128,
        "how many of those are solved exactly, for a model; of a target all are",
        1,
        1_000_000,
    )
    values.integer_flag("iterations", 30, "of Levenberg-Marquardt, at most", 1, 10_000)
    values.integer_flag("tries", 2, "how many of the best hand-made grids to start from", 1, 100)
    values.integer_flag(
        "polish", 60, "evaluations of error and quality together, for a model; 0: none", 0, 100_000
    )
    flags.DEFINE_string("name", "", "of the grid; by default the sampler's")
    values.path_flag("out", "", "the folder; by default WORKDIR/grids, or runs/grids_TARGET")
    cli.launch(main, config="workdir", without=("target",), short=("guidance",))
