"""How good a trained model's images are, with the spread over sampling seeds, beside what real test images score.

python -m experiments.evaluate --workdir=runs/a --num=1000 --repeats=5
python -m experiments.evaluate --workdir=runs/captions     # of prompts: those kept from training, or the test captions
python -m experiments.evaluate --workdir=runs/a --features=pixels,classifier,inception --metrics=frechet,kid,prdc,memorisation

Prints a table and writes evaluation.json into the workdir. --reference takes what experiments.statistics made. Metrics that the data
do not allow (of labels, of more images than there are) are left out with a note before anything is sampled. An autoencoder is
also judged on held-out images: rate, distortion and bounds on the likelihood in nats, PSNR, active units.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from experiments import cli


TITLES = {
    "accuracy": "recognized", "frechet": "Fréchet distance", "frechet_low": "Fréchet distance, 95 % from",
    "frechet_high": "Fréchet distance, 95 % to", "frechet_infinity": "Fréchet distance, infinitely many images",
    "kid": "KID x 1000", "kid_se": "KID x 1000, standard error",
    "cmmd": "MMD x 1000, sigma 10", "inception_score": "inception score", "class_accuracy": "read as its class",
    "nearest_ratio": "nearest training image (1: as held-out)", "copies": "nearer than 99 % of held-out",
}  # fmt: skip


def title_of(name: str) -> str:
    """What a score 'metric' or 'metric/extractor' is called: with Inception's features the Fréchet distance is FID."""
    metric, _, extractor = name.partition("/")
    title = TITLES.get(metric, metric)
    if metric == "accuracy":
        return title
    if extractor == "inception":
        title = title.replace("Fréchet distance", "FID")
    return f"{title} ({extractor or 'pixels'})"


def evaluate(trained, dataset, count: int, repeats: int, batch_size: int, mesh=None, **how) -> dict:
    """Scores of `repeats` sets of `count` images from disjoint seeds: {'sets': [...], 'mean': {...}, 'std', 'real': the same}.

    how: features, metrics and statistics of judge.against. mesh: as in experiment.sample_with; judging is done by every process.
    """
    import numpy as np

    from diffusion_jax import experiment
    from diffusion_jax.evaluation import generate, judge

    built = trained.experiment
    labels, cond = experiment.conditions(built, dataset, count)
    judged = judge.against(dataset.train, labels, held_out=dataset.test, count=count, **how)
    real = judge.on_real(dataset.train, dataset.test, judged)  # before the samples: what fails, fails early
    run, sets = experiment.sample_with(built, trained.params, experiment.plan(built), mesh), []
    for repeat in range(repeats):
        keys = generate.seeds_to_keys(range(repeat * count, (repeat + 1) * count))
        images = generate.generate(run, keys, cond, batch_size=min(batch_size, count))
        sets.append(judged(images))
    over = lambda take: {name: float(take([scores[name] for scores in sets])) for name in sets[0]}  # noqa: E731
    return {"sets": sets, "mean": over(np.mean), "std": over(lambda x: np.std(x, ddof=1) if len(x) > 1 else 0.0),
            "real": real}  # fmt: skip


def report(result: dict) -> str:
    """The result as a table: a line for each number, samples beside real test images."""
    from diffusion_jax.provenance import markdown_table

    rows = []
    for name, mean in result["mean"].items():
        metric = name.partition("/")[0]
        cells = {"": title_of(name), "samples": _show(metric, mean, result["std"][name])}
        rows.append(cells | ({"real": _show(metric, result["real"][name])} if name in result["real"] else {}))
    return markdown_table(rows, {"": "", "samples": "samples", "real": "real test images"})


def held_out(trained, dataset) -> tuple[dict, str]:
    """({'autoencoder': what autoencoders.held_out found}, as a table); nothing, of a model that is none.

    With a note, nothing where the data have no held-out images, or none with the labels that the model needs.
    """
    from diffusion_jax import autoencoders, experiment
    from diffusion_jax.evaluation import judge
    from diffusion_jax.provenance import markdown_table

    if not experiment.is_autoencoder(trained.experiment):
        return {}, ""
    if not len(dataset.test) or (trained.experiment.num_classes and "label" not in dataset.test.rows([0])):
        judge.note("what the autoencoder makes of held-out images is left out: there are none"
                   + (" with labels, which it needs" if len(dataset.test) else ""))  # fmt: skip
        return {}, ""
    found = autoencoders.held_out(trained.experiment, trained.params, dataset.test)
    titles = {"rate": "rate (nats)", "distortion": "distortion (nats)", "elbo": "bound on log p(x), ELBO (nats)",
              "iw_bound": f"importance-weighted, {found['samples']} samples (nats)", "psnr": "PSNR of reconstructions (dB)",
              "active_units": f"active units, of {found['units']}"}  # fmt: skip
    shown = [{"": title, "held out": f"{found[name]:.4g}"} for name, title in titles.items() if name in found]
    return {"autoencoder": found}, "\n" + markdown_table(shown, {"": "", "held out": f"{found['images']} test images"})


def _show(metric: str, mean: float, std: float = 0.0) -> str:
    """Fractions that are accuracies in percent, KID in thousandths, the rest as they are."""
    scale, digits, unit = (100, 2, " %") if "accuracy" in metric else (1000, 3, "") if "kid" in metric else (1, 3, "")
    return f"{scale * mean:.{digits}f}{unit}" + (f" ± {scale * std:.{digits}f}" if std else "")


def reference(path: str, dataset, features: Sequence):
    """The statistics of a file, None of ''. UserError unless they are of this data set and of one of these extractors."""
    from diffusion_jax.errors import UserError
    from diffusion_jax.evaluation import statistics

    if not path:
        return None
    found = statistics.load(path)
    extractor = next((e for e in features if e.name == found.of["extractor"]), None)
    if extractor is None:
        names = ",".join(e.name for e in features)
        raise UserError(f"--reference={path} is of the features {found.of['extractor']}; add them to --features={names}")
    split, count = found.of["split"], found.of["count"]
    statistics.need(found, path, **statistics.describe(extractor, getattr(dataset, split), dataset.name, split, count))
    return found


def main(config) -> None:
    from diffusion_jax import experiment, provenance
    from diffusion_jax import workdir as folder
    from diffusion_jax.evaluation import judge
    from diffusion_jax.training import distributed

    FLAGS = flags.FLAGS
    mesh = experiment.sampling_mesh(config)
    features, metrics = judge.spelled(cli.names(FLAGS.features), cli.metrics(FLAGS.metrics))
    judge.named(metrics)  # mistakes are reported before anything takes long
    trained = folder.load(FLAGS.workdir, config, mesh)
    experiment.need_images(trained.experiment)
    dataset = folder.images(config, FLAGS.workdir)
    labels, _ = experiment.conditions(trained.experiment, dataset, FLAGS.num)
    chosen = judge.choose(dataset.train, labels, features=features, metrics=metrics, held_out=dataset.test, count=FLAGS.num)
    for text in chosen.notes:
        judge.note(text)
    statistics = reference(FLAGS.reference, dataset, chosen.features)
    plan = experiment.plan(trained.experiment)
    nfe = experiment.evaluations(plan)
    print(f"{FLAGS.workdir}: step {trained.step}, weights {trained.weights}, {config.sampler.name}, grid {plan.grid}, "
          f"NFE {nfe}, guidance {config.sampler.guidance}; {FLAGS.repeats} x {FLAGS.num} images", file=sys.stderr)  # fmt: skip
    result = evaluate(trained, dataset, FLAGS.num, FLAGS.repeats, config.sampler.batch_size, mesh, features=chosen.features,
                      metrics=chosen.metrics, statistics=statistics)  # fmt: skip
    if not distributed.first():
        return
    measured, table = held_out(trained, dataset)
    provenance.save_json(Path(FLAGS.workdir) / "evaluation.json", result | measured | {
        "features": {extractor.name: {"digest": extractor.digest, "resize": extractor.resize} for extractor in chosen.features},
        "reference": statistics and statistics.of, "num": FLAGS.num, "repeats": FLAGS.repeats, "evaluations": nfe, "grid": plan.grid,
        "sampler": config.sampler.to_dict(), "step": trained.step, "weights": trained.weights,
        "provenance": provenance.provenance(config.to_dict(), config.seed)})  # fmt: skip
    print(report(result) + table)


if __name__ == "__main__":
    cli.path_flag("workdir", None, "the folder of a trained model", required=True)
    cli.integer_flag("num", 1000, "images in each set", 10, 1_000_000)
    cli.integer_flag("repeats", 3, "sets, from disjoint seeds", 1, 1000)
    flags.DEFINE_string("features", "", "features of the images, with commas: pixels, thumbnails, classifier, inception, "
                        "efficientnet_lite0 (default pixels up to 1,000 numbers an image, else classifier)")  # fmt: skip
    flags.DEFINE_string("metrics", "", "scores, with commas: accuracy, frechet, kid, prdc, class_accuracy, inception_score (the "
                        "default, as far as the features allow), memorisation, cmmd, frechet_infinity, frechet_interval; fid: frechet of the features inception")  # fmt: skip
    cli.path_flag("reference", "", "made by experiments.statistics; instead of the first 10,000 training images")
    cli.launch(main, config="workdir")
