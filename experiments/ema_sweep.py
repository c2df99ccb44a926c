"""How long the weights should have been averaged: samples of one training run under power EMAs of
many lengths.

python -m experiments.ema_sweep --workdir=runs/a --lengths=0.02,0.05,0.1,0.15,0.2 --num=1000

The run must have kept snapshots (--config.ema.powers='(0.05,0.1)'); every length is made from them
(Karras et al. 2024, EDM2, section 3.2). All lengths draw the same seeds. Prints a table and writes
ema_sweep.md, .png and .json into the workdir. Lengths that ema_sweep.json has already are not made
again; --config.sampler.ema='post_hoc(LENGTH)' uses the best one anywhere else.
"""

from __future__ import annotations

from pathlib import Path

import jax
from absl import flags

from diffusion_jax import files, parsing
from diffusion_jax.assembly import experiment, workdir
from diffusion_jax.evaluation import judge
from diffusion_jax.report import curves
from diffusion_jax.studies import ema_sweep
from diffusion_jax.training import post_hoc
from experiments import cli, values


def main(config) -> None:

    FLAGS = flags.FLAGS
    root, lengths, metrics = (
        Path(FLAGS.workdir),
        ema_sweep.lengths_of(FLAGS.lengths),
        parsing.metrics(FLAGS.metrics),
    )
    features, metrics = judge.resolve_names(parsing.names(FLAGS.features), metrics)
    judge.check_metrics(metrics)
    config.sampler.ema = f"post_hoc({lengths[0]:g})"
    trained = workdir.load(root, config)  # tells at once if there are no snapshots
    experiment.need_images(trained.experiment)
    dataset = workdir.images(config, FLAGS.workdir)
    features = features or [judge.default_features(dataset.train)]
    template = jax.eval_shape(lambda: trained.params)
    sampler = {
        key: value for key, value in config.sampler.items() if key not in ("ema", "batch_size")
    }
    told = {
        "num": FLAGS.num,
        "repeats": FLAGS.repeats,
        "features": features,
        "metrics": metrics,
        "step": trained.step,
        "snapshots": len(post_hoc.steps(root / "ema_snapshots")),
        "config": config.to_dict() | {"sampler": sampler},
    }
    rows = ema_sweep.means(
        ema_sweep.sweep(
            lengths,
            lambda length: post_hoc.reconstruct(
                root / "ema_snapshots", length, template, step=trained.step
            ),
            ema_sweep.scorer(
                trained.experiment,
                dataset,
                FLAGS.num,
                FLAGS.repeats,
                config.sampler.batch_size,
                features=features,
                metrics=metrics,
            ),
            root / "ema_sweep.json",
            told,
        )
    )
    title = f"Power EMAs of {root.name} at step {trained.step}: {FLAGS.repeats} x {FLAGS.num} images, {config.sampler.name}"
    text = f"# {title}\n\n{ema_sweep.report(rows)}"
    files.save_text(root / "ema_sweep.md", text)
    curves.lengths(rows, root / "ema_sweep.png", title=title)
    print(text)


if __name__ == "__main__":
    values.path_flag("workdir", None, "the folder of a trained model", required=True)
    flags.DEFINE_string(
        "lengths",
        "0.02,0.05,0.1,0.15,0.2",
        "standard deviations of the weights, as shares of the run",
    )
    values.integer_flag("num", 1000, "images in each set", 10, 1_000_000)
    values.integer_flag("repeats", 1, "sets, from disjoint seeds", 1, 1000)
    flags.DEFINE_string("features", "", "features of the images, as in experiments.evaluate")
    flags.DEFINE_string("metrics", "accuracy,frechet", "as in experiments.evaluate")
    cli.launch(main, config="workdir")
