"""Compute bits per dimension of held-out data: by the probability flow, and by variational bounds.

python -m experiments.likelihood --workdir=runs/a --num=200 --bounds

Prints a table and writes likelihood.md, likelihood.json and, image by image, likelihood.npz into
the workdir. Running the same command again resumes an interrupted run at the next batch; other
settings start anew. A model of classes is given the label of each image, a model of captions no
caption. Nothing is guided or clipped. The noise of an image depends on --seed and its place in the
split alone.
"""

from absl import flags

from experiments import cli, values

if __name__ == "__main__":
    values.path_flag("workdir", None, "folder of a trained model", required=True)
    values.integer_flag("num", 0, "number of the split's first images; 0 takes all", 0, 1_000_000)
    flags.DEFINE_enum("split", "test", ["test", "train"], "split of the data set")
    flags.DEFINE_bool("unconditional", False, "give a conditional model no label")
    flags.DEFINE_string(
        "dequantize",
        "",
        "uniform, process, none, or several (default uniform for integers, none for other data)",
    )
    values.integer_flag("levels", 256, "number of values that a pixel of an image takes", 2, 65_536)
    values.integer_flag("iw", 1, "dequantizations (chains) of an importance weight", 1, 10_000)
    flags.DEFINE_string(
        "trace",
        "auto",
        "exact, rademacher or gaussian; auto: exact up to 32 dimensions, else rademacher",
    )
    values.integer_flag("probes", 1, "number of random directions of an inexact trace", 1, 10_000)
    flags.DEFINE_string(
        "solver",
        "tsit5",
        "ODE solver: tsit5, dopri5, dopri8 (adaptive), or euler, heun, rk4 (fixed steps)",
    )
    flags.DEFINE_float(
        "rtol",
        1e-3,
        "tolerance of an adaptive solver, relative and in nats per dimension",
        lower_bound=1e-7,
        upper_bound=1,
    )
    values.integer_flag("steps", 64, "number of steps of a solver on a fixed grid", 1, 100_000)
    flags.DEFINE_bool("bounds", False, "measure the variational bounds, too")
    values.integer_flag("moves", 256, "number of transitions of the discrete bound", 1, 100_000)
    flags.DEFINE_string(
        "grid", "uniform_logsnr", "grid of the discrete bound's times, of samplers/grids.py"
    )
    values.integer_flag("draws", 64, "times of the continuous bound per image", 2, 100_000)
    values.integer_flag("seed", 0, "seed of all noise", 0, 2**32 - 1)
    flags.DEFINE_float(
        "end_logsnr",
        None,
        "log-SNR at which the process ends, one for models to compare (default: its own, at t_min)",
    )
    values.integer_flag("batch_size", 100, "number of images at once; changes no value", 1, 65_536)
    cli.launch("diffusion_jax.studies.likelihood.command:likelihood", config="workdir", short=())
