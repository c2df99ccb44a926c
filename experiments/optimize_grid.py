"""Optimize the times of a sampler for a model, by gradient descent through the sampler.

python -m experiments.optimize_grid --workdir=runs/a --sampler=multistep.dpmpp_2m --nfe=5,6,8,10
python -m experiments.optimize_grid --target=gmm8 --process='schedules.EDM()' --nfe=5,8,10,20

For each budget the hand-made grids are tried, and times that are spread as those of the nearest
budget before; the best --tries of them are moved by Levenberg-Marquardt (samplers/placement.py)
until the sampler comes as close as it can to the exact solutions from --starts seeds. For a model
the best of all are then polished (--polish, by the simplex of Nelder and Mead) until trajectory
error and quality, the Fréchet distance of images to the training data, both gain on the best
hand-made grid. The reported numbers are measured on other seeds.

Writes WORKDIR/grids/NAME.json, .md and .png; every command on that workdir then takes
--config.sampler.grid=NAME, or sampler@NAME, and any command 'stored("PATH/NAME.json")'. An
interrupted run resumes with the next budget.
"""

from absl import flags

from experiments import cli, values

if __name__ == "__main__":
    values.path_flag("workdir", None, "folder of a trained model")
    flags.DEFINE_string(
        "target",
        None,
        "analytic target instead of a model: gmm8, 'gmm(modes=20, dim=16)', checkerboard, ...",
    )
    flags.DEFINE_string("process", "schedules.EDM()", "process of --target (a model has its own)")
    sampler = "deterministic sampler that steps along a grid"
    flags.DEFINE_string("sampler", "multistep.dpmpp_2m", sampler)
    flags.DEFINE_string("nfe", "5,6,8,10", "budgets of network evaluations, a grid for each")
    starts = "number of trajectories by which the times are placed"
    values.integer_flag("starts", 32, starts, 1, 100_000)
    num = "number of other seeds, by which every grid is measured"
    values.judge_flags(500, num, standard="accuracy,frechet")
    solved = "number of starts that are solved exactly for a model (for a target, all are)"
    values.integer_flag("solved", 128, solved, 1, 1_000_000)
    iterations = "iterations of Levenberg-Marquardt, at most"
    values.integer_flag("iterations", 30, iterations, 1, 10_000)
    values.integer_flag("tries", 2, "number of the best grids to start from", 1, 100)
    polish = "evaluations that polish a model's error and quality together; 0 skips it"
    values.integer_flag("polish", 60, polish, 0, 100_000)
    flags.DEFINE_string("name", "", "name of the grid (default from the sampler's)")
    out = "folder to write to (default WORKDIR/grids, or runs/grids_TARGET)"
    values.path_flag("out", "", out, stored=values.FOLDER)
    study = "diffusion_jax.studies.grids.search"
    other = {"target": f"{study}:optimize_on_target"}
    cli.launch(f"{study}:optimize_grid", config="workdir", instead=other, short=("guidance",))
