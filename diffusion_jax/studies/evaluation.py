"""Evaluation of a trained model: sample quality against a reference."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax.assembly import autoencoders, experiment, outputs, sample_conditions, sampling
from diffusion_jax.assembly import workdir as workdirs
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.core import files, provenance
from diffusion_jax.data import Dataset
from diffusion_jax.evaluation import choice, intervals, judge
from diffusion_jax.evaluation import metrics as metric_table
from diffusion_jax.evaluation.features import Extractor
from diffusion_jax.pretrained import folders
from diffusion_jax.report import media
from diffusion_jax.report.tables import markdown_table
from diffusion_jax.studies import against_truth, blocks, scoring
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
    names, scores = scoring.requested(features, metrics)  # before anything takes long
    root = folders.outputs(workdir)
    outputs.need_writable(root / "evaluation.json")
    trained = workdirs.load(workdir, config, mesh)
    model = trained.experiment
    experiment.need_judged(model)
    plural = media.media_of(model.shape, model.normalization).plural
    dataset = workdirs.images(config, workdir)
    labels, _ = sample_conditions.for_judging(model, dataset, num)
    chosen = choice.choose(
        dataset.train, labels, features=names, metrics=scores, held_out=dataset.test, count=num
    )
    for text in chosen.notes:
        choice.note(text)
    compared = scoring.read_reference(reference, dataset, chosen.features)
    own = about(trained, num, repeats, chosen.features, compared and compared.of)
    print(
        f"{workdir}: step {trained.step}, weights {trained.weights}, {model.sampling.name}, "
        f"grid {own['grid']}, NFE {own['evaluations']}, guidance {model.sampling.guidance}; "
        f"{repeats} x {num} {plural}",
        file=sys.stderr,
    )
    how = {"features": chosen.features, "metrics": chosen.metrics, "statistics": compared}
    folder = root / "evaluation"
    result = score_samples(trained, dataset, num, repeats, mesh, folder, **how)
    measured, table = held_out(trained, dataset, mesh)
    restored, psnr = against_truth.restored(trained, dataset, num, mesh)
    if distributed.first():
        files.save_json(root / "evaluation.json", result | measured | restored | own)
        blocks.discard(folder)
        print(report(result, plural) + table + psnr)
        print(f"{root}/evaluation.json has all numbers; to compare samplers by them:")
        print(f"python -m experiments.compare_samplers --workdir={shlex.quote(str(workdir))}")


def about(
    trained: Trained,
    num: int,
    repeats: int,
    features: Sequence[Extractor] = (),
    reference: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Describe the model, its sampling settings and the extractors, for evaluation.json.

    Args:
      trained: the model.
      num: number of images in each set.
      repeats: number of sets.
      features: the extractors that were named.
      reference: of what the images were compared with; None for training images.
    """
    model = trained.experiment
    resolved = sampling.method(model)
    return {
        "reference": reference,
        "num": num,
        "repeats": repeats,
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
    mesh: Any = None,
    folder: Path | None = None,
    **how: Any,
) -> dict[str, Any]:
    """Judge several sets of images of a model, drawn from disjoint seeds.

    Args:
      trained: the model.
      dataset: its data set.
      count: number of images in each set.
      repeats: number of sets.
      mesh: the devices that draw, as in sampling.sample_with.
      folder: where finished blocks of images are kept as rows of numbers until the result is
        there; None keeps them in memory.
      **how: features, metrics and statistics of judge.against.

    Returns:
      {'sets': [scores of each], 'mean': scores, 'std': their standard deviations over the sets,
      'intervals': half the width of the 95 % interval of each mean, 'real': scores of test images,
      'real_intervals': theirs, 'titles': of the scores}.
    """
    labels, _ = sample_conditions.for_judging(trained.experiment, dataset, count)
    judged = judge.against(dataset.train, labels, held_out=dataset.test, count=count, **how)
    # before the samples: what fails, fails early
    real = judge.measured_on_real(dataset.train, dataset.test, judged)
    sets, plan = [], scoring.plan_of(trained, None, dataset, range(count), mesh)
    for repeat in range(repeats):
        own = plan._replace(seeds=range(repeat * count, (repeat + 1) * count))
        where = folder and scoring.folder_of(folder, own, judged)
        sets.append(scoring.score(own, judged, where).measured)
    mean, each = intervals.mean_of_sets(sets), [intervals.values(found) for found in sets]
    return {
        "sets": each,
        "mean": intervals.values(mean),
        "std": {
            name: float(np.std([scores[name] for scores in each], ddof=1)) if repeats > 1 else 0.0
            for name in mean
        },
        "intervals": intervals.halves(mean),
        "titles": {name: judged.title(name) for name in mean},
        "real": intervals.values(real),
        "real_intervals": intervals.halves(real),
    }


def report(result: dict[str, Any], plural: str = "images") -> str:
    """The table of a result: a line for each score, samples next to real test images.

    Args:
      result: what score_samples returned.
      plural: what the samples are.
    """
    rows = []
    for name, mean in result["mean"].items():
        metric = metric_table.find(name)
        row = {
            "": result["titles"][name],
            "samples": metric.text(mean, result["intervals"].get(name)),
        }
        if name in result["real"]:
            half = result["real_intervals"].get(name)
            row["real"] = metric.text(result["real"][name], half)
        rows.append(row)
    table = markdown_table(rows, {"": "", "samples": "samples", "real": f"real test {plural}"})
    return f"{table}\n{metric_table.INTERVALS}\n"


def held_out(
    trained: Trained, dataset: Dataset, mesh: Mesh | None = None
) -> tuple[dict[str, Any], str]:
    """Judge an autoencoder on held-out images; other models are not judged.

    Args:
      trained: the model.
      dataset: its data set.
      mesh: the devices that measure; None for one device.

    Returns:
      ({'autoencoder': numbers}, a table); ({}, '') for other models, and with a note where there
      are no held-out images, or none with the labels that the model needs.
    """
    if not trained.experiment.kind.reconstructs:
        return {}, ""
    if not len(dataset.test) or (
        trained.experiment.num_classes and "label" not in dataset.test.rows([0])
    ):
        choice.note(
            "the autoencoder is not judged on held-out images: there are none"
            + (" with labels, which it needs" if len(dataset.test) else "")
        )
        return {}, ""
    found = autoencoders.held_out(trained.experiment, trained.params, dataset.test, mesh=mesh)
    titles = {
        "rate": "rate",
        "distortion": "distortion",
        "elbo": "bound on log p(x), ELBO",
        "iw_bound": f"importance-weighted, {found['samples']} samples",
        "psnr": "PSNR of reconstructions",
        "active_units": f"active units, of {found['units']}",
    }
    half = found["intervals"]
    rows = [
        {"": title, "held out": metric_table.find(name).text(found[name], half.get(name))}
        for name, title in titles.items()
        if name in found
    ]
    headings = {"": "", "held out": f"{found['images']} test images"}
    return {"autoencoder": found}, "\n" + markdown_table(rows, headings)
