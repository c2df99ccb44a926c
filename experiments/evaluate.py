"""How good a trained model's images are, with the spread over sampling seeds, beside what real test
images score.

python -m experiments.evaluate --workdir=runs/a --num=1000 --repeats=5
python -m experiments.evaluate --workdir=runs/captions     # of prompts: those kept from training, or the test captions
python -m experiments.evaluate --workdir=runs/a --features=pixels,classifier,inception --metrics=frechet,kid,prdc,memorisation

Prints a table and writes evaluation.json into the workdir. --reference takes what
experiments.statistics made. Metrics that the data do not allow (of labels, of more images than
there are) are left out with a note before anything is sampled. An autoencoder is also judged on
held-out images: rate, distortion and bounds on the likelihood in nats, PSNR, active units.
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from diffusion_jax import files, parsing, provenance
from diffusion_jax.assembly import conditions, experiment, sampling, workdir
from diffusion_jax.evaluation import judge
from diffusion_jax.studies import evaluation
from diffusion_jax.training import distributed
from experiments import cli, values


def main(config) -> None:

    FLAGS = flags.FLAGS
    mesh = sampling.sampling_mesh(config)
    features, metrics = judge.spelled(parsing.names(FLAGS.features), parsing.metrics(FLAGS.metrics))
    judge.named(metrics)  # mistakes are reported before anything takes long
    trained = workdir.load(FLAGS.workdir, config, mesh)
    experiment.need_images(trained.experiment)
    dataset = workdir.images(config, FLAGS.workdir)
    labels, _ = conditions.conditions(trained.experiment, dataset, FLAGS.num)
    chosen = judge.choose(
        dataset.train,
        labels,
        features=features,
        metrics=metrics,
        held_out=dataset.test,
        count=FLAGS.num,
    )
    for text in chosen.notes:
        judge.note(text)
    statistics = evaluation.reference(FLAGS.reference, dataset, chosen.features)
    plan = sampling.plan(trained.experiment)
    nfe = sampling.evaluations(plan)
    print(
        f"{FLAGS.workdir}: step {trained.step}, weights {trained.weights}, {config.sampler.name}, grid {plan.grid}, "
        f"NFE {nfe}, guidance {config.sampler.guidance}; {FLAGS.repeats} x {FLAGS.num} images",
        file=sys.stderr,
    )
    result = evaluation.evaluate(
        trained,
        dataset,
        FLAGS.num,
        FLAGS.repeats,
        config.sampler.batch_size,
        mesh,
        features=chosen.features,
        metrics=chosen.metrics,
        statistics=statistics,
    )
    if not distributed.first():
        return
    measured, table = evaluation.held_out(trained, dataset)
    files.save_json(
        Path(FLAGS.workdir) / "evaluation.json",
        result
        | measured
        | {
            "features": {
                extractor.name: {"digest": extractor.digest, "resize": extractor.resize}
                for extractor in chosen.features
            },
            "reference": statistics and statistics.of,
            "num": FLAGS.num,
            "repeats": FLAGS.repeats,
            "evaluations": nfe,
            "grid": plan.grid,
            "sampler": config.sampler.to_dict(),
            "step": trained.step,
            "weights": trained.weights,
            "provenance": provenance.provenance(config.to_dict(), config.seed),
        },
    )
    print(evaluation.report(result) + table)


if __name__ == "__main__":
    values.path_flag("workdir", None, "the folder of a trained model", required=True)
    values.integer_flag("num", 1000, "images in each set", 10, 1_000_000)
    values.integer_flag("repeats", 3, "sets, from disjoint seeds", 1, 1000)
    flags.DEFINE_string(
        "features",
        "",
        "features of the images, with commas: pixels, thumbnails, classifier, inception, "
        "efficientnet_lite0 (default pixels up to 1,000 numbers an image, else classifier)",
    )
    flags.DEFINE_string(
        "metrics",
        "",
        "scores, with commas: accuracy, frechet, kid, prdc, class_accuracy, inception_score (the "
        "default, as far as the features allow), memorisation, cmmd, frechet_infinity, frechet_interval; fid: frechet of the features inception",
    )
    values.path_flag(
        "reference",
        "",
        "made by experiments.statistics; instead of the first 10,000 training images",
    )
    cli.launch(main, config="workdir")
