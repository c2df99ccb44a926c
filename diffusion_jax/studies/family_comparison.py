"""Families of generative models compared at equal training time: the command compare_families."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.assembly import (
    autoencoders,
    components,
    datasets,
    denoiser,
    sample_conditions,
    sampling,
)
from diffusion_jax.assembly import workdir as workdirs
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.core import arrays, files, npz, parsing, provenance, reading
from diffusion_jax.core.errors import unknown
from diffusion_jax.core.types import Array, Cond, Key, Params
from diffusion_jax.data import transforms
from diffusion_jax.evaluation import choice, generate, intervals, judge, sharpness
from diffusion_jax.evaluation.intervals import Measured
from diffusion_jax.likelihood import flow
from diffusion_jax.studies import few_step_methods, store
from diffusion_jax.studies.family_report import said_scores, write
from diffusion_jax.studies.family_training import train_family

SHOWN = 20  # images in a strip

Row = dict[str, Any]


# ---- the command
def compare_families(
    config: ConfigDict, *, workdir: str, families: str, seeds: str, others: str
) -> None:
    """Compare families of generative models, and print the report.

    Args:
      config: the config of configs/families.py.
      workdir: the folder of all runs and of the report.
      families: names separated by ';'; '' for all of the config.
      seeds: the seeds of training, separated by commas; '' for those of the config.
      others: workdirs of trained models that are measured too, separated by commas.
    """
    print(compare(config, workdir, families, seeds, parsing.paths("others", others)))
    print(f"{workdir}/families.html holds all of this, with pictures; to sample a family:")
    print(f"python -m experiments.sample --workdir={workdir}/FAMILY_SEED")


def compare(
    config: ConfigDict,
    workdir: str,
    families: str = "",
    seeds: str = "",
    others: Sequence[str] = (),
) -> str:
    """Train, measure and write everything that is missing.

    Args:
      config: the config of configs/families.py.
      workdir: the folder of all runs and of the report.
      families: names with semicolons; '' for all of the config.
      seeds: with commas; '' for those of the config.
      others: workdirs of trained models that are measured too.

    Returns:
      The text of families.md.

    Raises:
      UserError: before anything is trained, for names that do not exist and models that cannot be
        compared.
      CommandExit: if a signal stopped a training; running the command again resumes it.
    """
    root, configs = Path(workdir).absolute(), _family_configs(config, families)
    chosen = parsing.integers("seeds", seeds, 0, 2**32 - 1) if seeds else list(config.seeds)
    dataset = datasets.dataset(next(iter(configs.values())))
    shape = dataset.image_shape
    models = {
        Path(other): workdirs.load_for_comparison(other, "--others", shape) for other in others
    }
    judged, real = _judge(dataset, config.num)
    rows, shown = [], {"real": data.arrays(dataset.test)["image"][:SHOWN]}
    titles = {name: config.about[name] for name in configs}
    # all families with one seed, then the next: what is there when it is stopped can be compared
    for seed in chosen:
        for name, own in configs.items():
            if seed == chosen[0] or name in config.repeated:
                folder = root / f"{name}_{seed}"
                row, images = _measured_once(folder, own, dataset, judged, config, seed)
                rows.append({"family": name, "seed": seed} | row)
                shown.setdefault(name, images)
                _print_scores(f"{name}, seed {seed}", row, judged)
    for other, trained in models.items():
        row, shown[other.name] = _measured_other(other, trained, dataset, judged, config.num)
        rows.append({"family": other.name, "seed": chosen[0]} | row)
        titles[other.name] = _described(trained)
        _print_scores(str(other), row, judged)
    record = {
        "data": config.data.name,
        "num": config.num,
        "seconds": config.seconds,
        "features": choice.default_features(dataset.train),
        "provenance": provenance.provenance(config.to_dict(), chosen[0]),
    }
    return write(rows, shown, real, titles, root / "families", record)


def _family_configs(config: ConfigDict, families: str) -> dict[str, ConfigDict]:
    """The config of each family, with the data set of the comparison.

    Raises:
      UserError: for a family, or a component of one, that does not exist.
    """
    names = [part.strip() for part in families.split(";") if part.strip()] or list(config.families)
    for name in names:
        if name not in config.family:
            raise unknown("--families", name, list(config.family))
    configs = {name: config.family[name].copy_and_resolve_references().unlock() for name in names}
    for own in configs.values():
        components.check_components(own)
        own.data = config.data
    return configs


def _judge(dataset: data.Dataset, count: int) -> tuple[judge.Judge, dict[str, Any]]:
    """Make (the judge of images, the scores of real test images with their 'intervals')."""
    labels = np.arange(count) % dataset.num_classes if dataset.num_classes else None
    metrics = ("accuracy", "frechet", "prdc")
    judged = judge.against(dataset.train, labels, metrics=metrics, count=count)
    test = data.arrays(dataset.test)["image"]
    real = judge.measured_on_real(dataset.train, dataset.test, judged, count)
    return judged, intervals.record(real | sharpness.relative(test, test))


def _print_scores(name: str, row: Mapping[str, Any], judged: judge.Judge) -> None:
    print(f"{name}: {said_scores(row, judged.plain)}", file=sys.stderr)


# ---- one family
def _measured_once(
    root: Path,
    config: ConfigDict,
    dataset: data.Dataset,
    judged: judge.Judge,
    settings: ConfigDict,
    seed: int,
) -> tuple[Row, np.ndarray]:
    """The row and the first images of one run, from its folder or made now."""
    file = root / "family.npz"
    if found := store.load(file, _read):
        return found
    began = time.monotonic()
    path, config = train_family(root, config, dataset, settings, seed)
    took = time.monotonic() - began
    likelihood = settings.likelihood if seed == settings.seeds[0] else 0
    trained = workdirs.load(path, config)
    row, images = measured(trained, dataset, judged, settings.num, likelihood, root.name)
    row |= {"train_seconds": took, "steps": config.training.steps}
    files.save_json(root / "family.json", row)
    generate.save_npz(file, images)
    return row, images


def _read(file: Path) -> tuple[Row, np.ndarray]:
    """The row and the images of family.json and family.npz; UserError for damaged files."""
    numbers = {
        key: reading.number(0) for key in ("train_seconds", "steps", "milliseconds", "parameters")
    }
    also = {"intervals": reading.table(reading.number(0))}  # rows of before have none
    rule = reading.record(numbers, also, others=reading.number(finite=False))
    row = reading.json_file(file.with_suffix(".json"), rule)
    arrays = npz.load(file, {"images": npz.ArraySpec("u", (None, None, None, None))})
    return row, arrays["images"]


def _measured_other(
    root: Path, trained: Trained, dataset: data.Dataset, judged: judge.Judge, count: int
) -> tuple[Row, np.ndarray]:
    """The row and the first images of a model that is there, by its own sampler."""
    row, images = measured(trained, dataset, judged, count, 0, root.name)
    steps = trained.experiment.training.steps
    return row | {"train_seconds": few_step_methods.seconds(root), "steps": steps}, images


def _described(trained: Trained) -> str:
    specs, settings = trained.experiment.specs, trained.experiment.sampling
    return f"{specs.objective}, {settings.name} in {settings.nfe} evaluations"


def measured(
    trained: Trained,
    dataset: data.Dataset,
    judged: judge.Judge,
    count: int,
    likelihoods: int,
    name: str,
) -> tuple[Row, np.ndarray]:
    """Measure a trained model.

    Args:
      trained: the model.
      dataset: the images.
      judged: scores images, with labels where the model has classes.
      count: images that are drawn.
      likelihoods: test images whose likelihood is computed, where the model has one.
      name: the name of the model, for the progress bar.

    Returns:
      (its scores and half the widths of their 'intervals', its first images).
    """
    experiment = trained.experiment
    run = sampling.sample_with(experiment, trained.params, sampling.method(experiment))
    batch = min(experiment.sampling.batch_size, count)
    keys = generate.seeds_to_keys(range(count))
    labels, cond = sample_conditions.for_judging(experiment, dataset, count)
    run(keys[:batch], jax.tree.map(lambda c: c[:batch], cond))  # compiled before the clock starts
    began = time.monotonic()
    images = generate.generate(run, keys, cond, batch_size=batch, description=name)
    took = {"milliseconds": 1000 * (time.monotonic() - began) / count}
    found = judged.measured(images, labels)
    found |= sharpness.relative(images, data.arrays(dataset.test)["image"])
    if likelihoods and not (experiment.kind.reconstructs or experiment.latents):
        found["bits"] = _bits(trained, dataset, likelihoods)
    scores = took | intervals.record(found)
    networks = denoiser.ensemble(experiment, trained.params)
    scores["parameters"] = sum(x.size for x in jax.tree.leaves(networks))
    if experiment.kind.reconstructs:
        scores |= _autoencoder_scores(trained, dataset)
    return scores, images[:SHOWN]


def _autoencoder_scores(trained: Trained, dataset: data.Dataset) -> dict[str, float]:
    experiment = trained.experiment
    found = autoencoders.held_out(experiment, trained.params, dataset.test)
    scores = {
        key: found[key] for key in ("active_units", "units", "rate", "distortion", "iw_bound")
    }
    if experiment.objective.likelihood.is_discrete:
        scores["bits"] = -found["iw_bound"] / math.log(2) / math.prod(experiment.shape)
    return scores


def _bits(trained: Trained, dataset: data.Dataset, count: int) -> Measured:
    """Bits per dimension of the first test images, by the flow and dequantized by the process."""
    experiment, examples = trained.experiment, data.arrays(dataset.test, count)
    images = transforms.to_float(jnp.asarray(examples["image"]))
    labels = examples["label"] if experiment.num_classes else np.zeros(0, int)
    cond = experiment.conditions.of_labels(labels)
    keys = arrays.example_keys(jax.random.key(0), len(images))

    @jax.jit
    def run(params: Params, x: Array, keys: Key, cond: Cond) -> Array:
        denoise = denoiser.denoiser(experiment, params, clip="none")
        process = experiment.process
        return flow.bits_per_dim(process, denoise, x, keys, cond, dequantize="process").bits

    return intervals.mean(np.asarray(run(trained.params, images, keys, cond)))
