"""Bits per dimension of held-out data under a trained model: by the probability flow, and by the
variational bounds.

python -m experiments.likelihood --workdir=runs/a --num=200 --bounds

Prints a table and writes likelihood.md, likelihood.json and, image by image, likelihood.npz into
the workdir. An interrupted run goes on at the next batch; one with other settings starts anew. A
model of classes is given the label of each image, a model of captions none of them. Nothing is
guided or clipped. The noise of an image depends on --seed and its place in the split alone.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from absl import flags

from diffusion_jax import files, provenance
from diffusion_jax.assembly import experiment, workdir
from diffusion_jax.evaluation import generate
from diffusion_jax.studies import likelihoods
from experiments import cli, values


def main(config) -> None:

    FLAGS = flags.FLAGS
    trained, stem = workdir.load(FLAGS.workdir, config), Path(FLAGS.workdir) / "likelihood"
    experiment.need_pixels(trained.experiment)
    chosen = likelihoods.resolved(
        {name: FLAGS[name].value for name in likelihoods.SETTINGS}, trained
    )
    told = {
        "settings": chosen,
        "step": trained.step,
        "weights": trained.weights,
        "config": config.to_dict(),
    }
    parts = stem.with_suffix(".parts") / provenance.config_hash(told)[:16]
    print(
        f"{FLAGS.workdir}: step {trained.step}, weights {trained.weights}, solver {chosen['solver']}, "
        f"trace {chosen['trace']}; without guidance{', clipping and captions' if trained.experiment.encoder else ' and clipping'}",
        file=sys.stderr,
    )
    values = likelihoods.run(
        trained,
        workdir.dataset(config, FLAGS.workdir),
        chosen,
        FLAGS.num or sys.maxsize,
        FLAGS.batch_size,
        parts,
    )
    rows = likelihoods.table(values, chosen)
    count = len(next(v for name, v in values.items() if name.endswith(".total")))
    title = (
        f"Bits per dimension of {count} {FLAGS.split} images of {config.data.name} under {Path(FLAGS.workdir).name}, "
        "mean ± standard error over images"
    )
    files.save_text(stem.with_suffix(".md"), f"# {title}\n\n{likelihoods.report(rows)}")
    generate.save_npz(stem.with_suffix(".npz"), None, **values)
    files.save_json(
        stem.with_suffix(".json"),
        {
            "rows": rows,
            "count": count,
            **told,
            "provenance": provenance.provenance(config.to_dict(), FLAGS.seed),
        },
    )
    shutil.rmtree(parts)  # what runs with other settings have begun stays
    if not any(parts.parent.iterdir()):
        parts.parent.rmdir()
    print(likelihoods.report(rows))


if __name__ == "__main__":
    values.path_flag("workdir", None, "the folder of a trained model", required=True)
    values.integer_flag(
        "num", 0, "how many images, from the first of the split; 0: all", 0, 1_000_000
    )
    flags.DEFINE_enum("split", "test", ("test", "train"), "which images")
    flags.DEFINE_bool("unconditional", False, "tell a conditional model no label")
    flags.DEFINE_string(
        "dequantize",
        "",
        "uniform, process or none, or several with commas; by default uniform for images",
    )
    values.integer_flag("levels", 256, "values that a pixel takes", 2, 65_536)
    values.integer_flag(
        "iw", 1, "importance-weighted over this many dequantisations (and chains)", 1, 10_000
    )
    flags.DEFINE_string(
        "trace",
        "auto",
        "exact, rademacher or gaussian; auto: exact up to 32 dimensions, else rademacher",
    )
    values.integer_flag("probes", 1, "random directions of an inexact trace", 1, 10_000)
    flags.DEFINE_string(
        "solver",
        "tsit5",
        "adaptive: tsit5, dopri5, dopri8; on a fixed grid of log-SNRs: euler, heun, rk4",
    )
    flags.DEFINE_float(
        "rtol",
        1e-3,
        "tolerance of an adaptive solver, also in nats per dimension",
        lower_bound=1e-7,
        upper_bound=1,
    )
    values.integer_flag("steps", 64, "steps of a solver on a fixed grid", 1, 100_000)
    flags.DEFINE_bool("bounds", False, "the variational bounds too")
    values.integer_flag("moves", 256, "moves of the discrete bound", 1, 100_000)
    flags.DEFINE_string("grid", "uniform_logsnr", "where they stop: a grid of samplers/grids.py")
    values.integer_flag("draws", 64, "times an image of the continuous bound", 2, 100_000)
    values.integer_flag("seed", 0, "of all noise", 0, 2**32 - 1)
    values.integer_flag("batch_size", 100, "images at once; changes no value", 1, 65_536)
    cli.launch(main, config="workdir", short=())
