"""Families of generative models trained on the same images, each in a workdir of its own."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.assembly import datasets, preparation, train, trainer
from diffusion_jax.assembly.train_latent import encoded
from diffusion_jax.core import files, reading, staging
from diffusion_jax.core.errors import UNFINISHED, CommandExit
from diffusion_jax.studies import store
from diffusion_jax.training import loop, metrics

ROUNDED = 64  # a run has a multiple of so many steps, so that its points are whole steps
TRIED = 8  # calls by which the speed of training is measured
OFTEN = 500  # most steps between two checkpoints


class Point(NamedTuple):
    """A moment of a family's training at which it is measured.

    Attributes:
      step: the step of its checkpoint.
      images: training images seen until then, those of an autoencoder included.
      minutes: training time of one core until then, without compilation and measurements.
    """

    step: int
    images: int
    minutes: float


class FamilyRun(NamedTuple):
    """A trained family.

    Attributes:
      workdir: the folder of its model.
      config: the config of its model.
      points: when it is measured, the last one at the end.
    """

    workdir: Path
    config: ConfigDict
    points: tuple[Point, ...]


def train_family(
    root: Path, config: ConfigDict, dataset: data.Dataset, settings: ConfigDict, seed: int
) -> FamilyRun:
    """Train a family on settings.images images; a latent one spends half on its autoencoder.

    All families see the same images in the same order, which follow from the seed and the step.

    Args:
      root: the folder of the run.
      config: the config of the family; 'latent' is a key of a latent one.
      dataset: the images.
      settings: the config of the comparison.
      seed: the seed of the training.

    Raises:
      CommandExit: if a signal stopped the training.
    """
    if "latent" not in config:
        return _trained(root, config, dataset, settings, settings.images, seed)
    recipe = settings.recipe.copy_and_resolve_references().unlock()
    recipe.data = settings.data
    first = _trained(root / "autoencoder", recipe, dataset, settings, settings.images // 2, seed)
    config = config.copy_and_resolve_references().unlock()
    config.data.update(name="latents", path=str(encoded(root)))
    config.latent.autoencoder = staging.shown(str(root / "autoencoder"))
    latents = datasets.dataset(config)
    run = _trained(root / "model", config, latents, settings, settings.images // 2, seed)
    before = first.points[-1]
    points = [
        Point(p.step, p.images + before.images, p.minutes + before.minutes) for p in run.points
    ]
    return run._replace(points=tuple(points))


def _trained(
    workdir: Path,
    config: ConfigDict,
    dataset: data.Dataset,
    settings: ConfigDict,
    images: int,
    seed: int,
) -> FamilyRun:
    """Train a config on a number of images, keeping the checkpoints of all points."""
    steps, points = steps_of(images, config.data.batch_size, settings.points)
    config = with_steps(config, steps, points, seed)
    workdir.mkdir(parents=True, exist_ok=True)
    if not train.train(config, str(workdir), dataset=dataset):
        raise CommandExit(UNFINISHED)
    images = [step * config.data.batch_size for step in points]
    each = seconds_per_image(workdir, config, dataset) / 60
    found = tuple(Point(step, seen, seen * each) for step, seen in zip(points, images))
    return FamilyRun(workdir, config, found)


def steps_of(images: int, batch_size: int, points: Sequence[float]) -> tuple[int, list[int]]:
    """The number of training steps, and the steps after which a family is measured.

    Args:
      images: training images that it sees.
      batch_size: images in a step.
      points: shares of the training; the end is always measured.

    Returns:
      (steps, steps of the points in order).
    """
    steps = max(1, images // batch_size)
    unit = max(1, steps // ROUNDED)
    steps = steps // unit * unit
    found = {max(1, round(share * steps / unit)) * unit for share in points}
    return steps, sorted({*(min(step, steps) for step in found), steps})


def with_steps(config: ConfigDict, steps: int, points: Sequence[int], seed: int) -> ConfigDict:
    """Copy a config for a seed and a number of steps, with a loss curve and checkpoints.

    Args:
      config: the config of the family, which stays as it is.
      steps: number of training steps.
      points: the steps whose checkpoints are kept.
      seed: config.seed, which decides the initial parameters, the order of the data and all noise.
    """
    config = config.copy_and_resolve_references().unlock()
    config.seed = seed
    unit = math.gcd(*points)
    often = max(step for step in range(1, min(unit, OFTEN) + 1) if unit % step == 0)
    config.training.update(
        steps=steps,
        eval_every=0,
        sample_every=0,
        checkpoint_every=often,
        keep=1,
        keep_every=unit,
        log_every=max(1, steps // ROUNDED),
    )
    return config.lock()


def seconds_per_image(workdir: Path, config: ConfigDict, dataset: data.Dataset) -> float:
    """Measure what training costs for an image, and keep it in speed.json.

    On a CPU it is the time of one core that this process spends, which other jobs on the machine
    and interruptions hardly change; elsewhere it is the time that passes. It is the median of a few
    steps with their data, without compilation.

    Args:
      workdir: the workdir of the trained model.
      config: its config.
      dataset: what it is trained on.
    """
    file, rule = workdir / "speed.json", reading.record({"seconds_per_image": reading.number(0)})
    if known := store.load_json(file, rule):
        return known["seconds_per_image"]
    clock = time.process_time if jax.default_backend() == "cpu" else time.monotonic
    experiment = preparation.for_training(config, dataset, workdir)
    parts = trainer.training(experiment)
    state = parts.runner.init(parts.init, jax.random.key(config.seed))
    size, took = config.data.batch_size, []
    batch = datasets.training_batches(experiment, dataset)
    calls = loop.stack(batch, config.training.steps_per_call)
    for i in range(2 + TRIED):
        began = clock()
        state, numbers = parts.step(state, parts.runner.put_batch(calls(i), axis=1))
        jax.block_until_ready(numbers)
        took.append(clock() - began)
    # the first two calls compile, or warm up
    found = statistics.median(took[2:]) / (size * config.training.steps_per_call)
    files.save_json(file, {"seconds_per_image": found})
    return found


def images_seen(root: Path) -> int:
    """Training images that the run in a folder has seen so far, those of an autoencoder included.

    Args:
      root: the folder of a family and seed.
    """
    found = 0
    for workdir in (root, root / "autoencoder", root / "model"):
        rows = metrics.read_rows(workdir / "metrics.jsonl")
        found += rows[-1]["images"] if rows else 0
    return found
