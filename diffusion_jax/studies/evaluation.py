"""Evaluation of a trained model: sample quality against a reference."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffusion_jax.assembly import autoencoders, experiment, sample_conditions, sampling
from diffusion_jax.assembly import workdir as workdirs
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.core import files, parsing, provenance
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import Dataset
from diffusion_jax.evaluation import generate, judge, statistics
from diffusion_jax.evaluation import metrics as metric_table
from diffusion_jax.evaluation.features import Extractor
from diffusion_jax.report.tables import markdown_table
from diffusion_jax.training import distributed


def evaluate(
    config: ConfigDict,
    *,
    workdir: str,
    num: int = 1000,
    repeats: int = 3,
    features: str = "",
    metrics: str = "",
    reference: str = "",
) -> None:
    """Judge the images of a trained model, print a table and write WORKDIR/evaluation.json.

    Args:
      config: the config of the run, with the sampling settings.
      workdir: the folder of the run.
      num: number of images in each set.
      repeats: number of sets, which have disjoint seeds.
      features: feature extractors, with commas; '' takes pixels or the classifier.
      metrics: scores, with commas; '' takes those that the features allow.
      reference: a file of experiments.statistics; '' compares with training images.

    Raises:
      UserError: for metrics, features and references that do not exist or do not fit the data.
    """
    mesh = sampling.sampling_mesh(config)
    names, scores = judge.resolve_names(parsing.names(features), parsing.metrics(metrics))
    judge.check_metrics(scores)  # mistakes are reported before anything takes long
    trained = workdirs.load(workdir, config, mesh)
    model = trained.experiment
    experiment.need_images(model)
    dataset = workdirs.images(config, workdir)
    labels, _ = sample_conditions.for_judging(model, dataset, num)
    chosen = judge.choose(
        dataset.train,
        labels,
        features=names,
        metrics=scores,
        held_out=dataset.test,
        count=num,
    )
    for text in chosen.notes:
        judge.note(text)
    compared = read_reference(reference, dataset, chosen.features)
    about = {"reference": compared and compared.of, "num": num, "repeats": repeats}
    about |= _about(trained, chosen.features)
    print(
        f"{workdir}: step {trained.step}, weights {trained.weights}, {model.sampling.name}, "
        f"grid {about['grid']}, NFE {about['evaluations']}, guidance {model.sampling.guidance}; "
        f"{repeats} x {num} images",
        file=sys.stderr,
    )
    how = {"features": chosen.features, "metrics": chosen.metrics, "statistics": compared}
    size = model.sampling.batch_size
    result = score_samples(trained, dataset, num, repeats, size, mesh, **how)
    if distributed.first():
        measured, table = held_out(trained, dataset)
        files.save_json(Path(workdir) / "evaluation.json", result | measured | about)
        print(report(result) + table)


def _about(trained: Trained, features: Sequence[Extractor]) -> dict[str, Any]:
    """Describe the model, its sampling settings and the extractors, for the JSON file."""
    model = trained.experiment
    resolved = sampling.method(model)
    return {
        "features": {
            extractor.name: {"digest": extractor.digest, "resize": extractor.resize}
            for extractor in features
        },
        "evaluations": sampling.evaluations(resolved),
        "grid": resolved.grid,
        "sampler": model.record["sampler"],
        "step": trained.step,
        "weights": trained.weights,
        "provenance": provenance.provenance(model.record, model.seed),
    }


def score_samples(
    trained: Trained,
    dataset: Dataset,
    count: int,
    repeats: int,
    batch_size: int,
    mesh: Any = None,
    **how: Any,
) -> dict[str, Any]:
    """Judge several sets of images of a model, drawn from disjoint seeds.

    Args:
      trained: the model.
      dataset: its data set.
      count: number of images in each set.
      repeats: number of sets.
      batch_size: number of images that are drawn at once; changes no image.
      mesh: the devices that draw, as in sampling.sample_with; every process judges.
      **how: features, metrics and statistics of judge.against.

    Returns:
      {'sets': [scores of each], 'mean': scores, 'std': scores, 'real': scores of test images}.
    """
    model = trained.experiment
    labels, cond = sample_conditions.for_judging(model, dataset, count)
    judged = judge.against(dataset.train, labels, held_out=dataset.test, count=count, **how)
    # before the samples: what fails, fails early
    real = judge.on_real(dataset.train, dataset.test, judged)
    run, sets = sampling.sample_with(model, trained.params, sampling.method(model), mesh), []
    for repeat in range(repeats):
        keys = generate.seeds_to_keys(range(repeat * count, (repeat + 1) * count))
        images = generate.generate(run, keys, cond, batch_size=min(batch_size, count))
        sets.append(judged(images))

    def over(take: Callable[[list[float]], float]) -> dict[str, float]:
        return {name: float(take([scores[name] for scores in sets])) for name in sets[0]}

    return {
        "sets": sets,
        "mean": over(np.mean),
        "std": over(lambda x: np.std(x, ddof=1) if len(x) > 1 else 0.0),
        "real": real,
    }


def report(result: dict[str, Any]) -> str:
    """The table of a result: a line for each score, samples next to real test images.

    Args:
      result: what score_samples returned.
    """
    rows = []
    for name, mean in result["mean"].items():
        metric = metric_table.find(name, "pixels")
        row = {"": metric.title, "samples": metric.text(mean, result["std"][name])}
        if name in result["real"]:
            row["real"] = metric.text(result["real"][name])
        rows.append(row)
    return markdown_table(rows, {"": "", "samples": "samples", "real": "real test images"})


def held_out(trained: Trained, dataset: Dataset) -> tuple[dict[str, Any], str]:
    """Judge an autoencoder on held-out images; other models are not judged.

    Args:
      trained: the model.
      dataset: its data set.

    Returns:
      ({'autoencoder': numbers}, a table); ({}, '') for other models, and with a note where there
      are no held-out images, or none with the labels that the model needs.
    """
    if not trained.experiment.kind.reconstructs:
        return {}, ""
    if not len(dataset.test) or (
        trained.experiment.num_classes and "label" not in dataset.test.rows([0])
    ):
        judge.note(
            "the autoencoder is not judged on held-out images: there are none"
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
    rows = [
        {"": title, "held out": f"{found[name]:.4g}"}
        for name, title in titles.items()
        if name in found
    ]
    headings = {"": "", "held out": f"{found['images']} test images"}
    return {"autoencoder": found}, "\n" + markdown_table(rows, headings)


def read_reference(
    path: str, dataset: Dataset, features: Sequence[Extractor]
) -> statistics.Statistics | None:
    """The reference statistics in a file; None for ''.

    Args:
      path: a file of experiments.statistics.
      dataset: the data set that they must describe.
      features: the extractors, of which one must have made them.

    Raises:
      UserError: for statistics of another data set or another extractor.
    """
    if not path:
        return None
    found = statistics.load(path)
    extractor = next((e for e in features if e.name == found.of["extractor"]), None)
    if extractor is None:
        names = ",".join(e.name for e in features)
        raise UserError(
            f"--reference={path} is of the features {found.of['extractor']}; add them to "
            f"--features={names}"
        )
    split, count = found.of["split"], found.of["count"]
    statistics.need(
        found,
        path,
        **statistics.describe(extractor, getattr(dataset, split), dataset.name, split, count),
    )
    return found
