"""Evaluation of a trained model: sample quality against a reference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffusion_jax.assembly import autoencoders, conditions, denoiser, sampling
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation import generate, judge, statistics
from diffusion_jax.report.tables import markdown_table

TITLES = {
    "accuracy": "recognized",
    "frechet": "Fréchet distance",
    "frechet_low": "Fréchet distance, 95 % from",
    "frechet_high": "Fréchet distance, 95 % to",
    "frechet_infinity": "Fréchet distance, infinitely many images",
    "kid": "KID x 1000",
    "kid_se": "KID x 1000, standard error",
    "cmmd": "MMD x 1000, sigma 10",
    "inception_score": "inception score",
    "class_accuracy": "read as its class",
    "nearest_ratio": "nearest training image (1: as held-out)",
    "copies": "nearer than 99 % of held-out",
}


def title_of(name: str) -> str:
    """What a score 'metric' or 'metric/extractor' is called: with Inception's features the Fréchet
    distance is FID.
    """
    metric, _, extractor = name.partition("/")
    title = TITLES.get(metric, metric)
    if metric == "accuracy":
        return title
    if extractor == "inception":
        title = title.replace("Fréchet distance", "FID")
    return f"{title} ({extractor or 'pixels'})"


def evaluate(trained, dataset, count: int, repeats: int, batch_size: int, mesh=None, **how) -> dict:
    """Scores of `repeats` sets of `count` images from disjoint seeds: {'sets': [...], 'mean':
    {...}, 'std', 'real': the same}.

    how: features, metrics and statistics of judge.against. mesh: as in experiment.sample_with;
      judging is done by every process.
    """
    built = trained.experiment
    labels, cond = conditions.conditions(built, dataset, count)
    judged = judge.against(dataset.train, labels, held_out=dataset.test, count=count, **how)
    real = judge.on_real(
        dataset.train, dataset.test, judged
    )  # before the samples: what fails, fails early
    run, sets = sampling.sample_with(built, trained.params, sampling.plan(built), mesh), []
    for repeat in range(repeats):
        keys = generate.seeds_to_keys(range(repeat * count, (repeat + 1) * count))
        images = generate.generate(run, keys, cond, batch_size=min(batch_size, count))
        sets.append(judged(images))

    def over(take):
        return {name: float(take([scores[name] for scores in sets])) for name in sets[0]}

    return {
        "sets": sets,
        "mean": over(np.mean),
        "std": over(lambda x: np.std(x, ddof=1) if len(x) > 1 else 0.0),
        "real": real,
    }


def report(result: dict) -> str:
    """The result as a table: a line for each number, samples beside real test images."""
    rows = []
    for name, mean in result["mean"].items():
        metric = name.partition("/")[0]
        cells = {"": title_of(name), "samples": _show(metric, mean, result["std"][name])}
        rows.append(
            cells
            | ({"real": _show(metric, result["real"][name])} if name in result["real"] else {})
        )
    return markdown_table(rows, {"": "", "samples": "samples", "real": "real test images"})


def held_out(trained, dataset) -> tuple[dict, str]:
    """({'autoencoder': what autoencoders.held_out found}, as a table); nothing, of a model that is
    none.

    With a note, nothing where the data have no held-out images, or none with the labels that the
    model needs.
    """
    if not denoiser.is_autoencoder(trained.experiment):
        return {}, ""
    if not len(dataset.test) or (
        trained.experiment.num_classes and "label" not in dataset.test.rows([0])
    ):
        judge.note(
            "what the autoencoder makes of held-out images is left out: there are none"
            + (" with labels, which it needs" if len(dataset.test) else "")
        )
        return {}, ""
    found = autoencoders.held_out(trained.experiment, trained.params, dataset.test)
    titles = {
        "rate": "rate (nats)",
        "distortion": "distortion (nats)",
        "elbo": "bound on log p(x), ELBO (nats)",
        "iw_bound": f"importance-weighted, {found['samples']} samples (nats)",
        "psnr": "PSNR of reconstructions (dB)",
        "active_units": f"active units, of {found['units']}",
    }
    shown = [
        {"": title, "held out": f"{found[name]:.4g}"}
        for name, title in titles.items()
        if name in found
    ]
    return {"autoencoder": found}, "\n" + markdown_table(
        shown, {"": "", "held out": f"{found['images']} test images"}
    )


def _show(metric: str, mean: float, std: float = 0.0) -> str:
    """Fractions that are accuracies in percent, KID in thousandths, the rest as they are."""
    scale, digits, unit = (
        (100, 2, " %") if "accuracy" in metric else (1000, 3, "") if "kid" in metric else (1, 3, "")
    )
    return f"{scale * mean:.{digits}f}{unit}" + (f" ± {scale * std:.{digits}f}" if std else "")


def reference(path: str, dataset, features: Sequence):
    """The statistics of a file, None of ''. UserError unless they are of this data set and of one
    of these extractors.
    """
    if not path:
        return None
    found = statistics.load(path)
    extractor = next((e for e in features if e.name == found.of["extractor"]), None)
    if extractor is None:
        names = ",".join(e.name for e in features)
        raise UserError(
            f"--reference={path} is of the features {found.of['extractor']}; add them to --features={names}"
        )
    split, count = found.of["split"], found.of["count"]
    statistics.need(
        found,
        path,
        **statistics.describe(extractor, getattr(dataset, split), dataset.name, split, count),
    )
    return found
