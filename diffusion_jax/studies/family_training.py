"""Families of generative models trained for equal time, each in a workdir of its own."""

from __future__ import annotations

import math
import time
from pathlib import Path

import jax
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.assembly import datasets, preparation, train, trainer
from diffusion_jax.assembly.train_latent import encoded
from diffusion_jax.core import files, reading, staging
from diffusion_jax.core.errors import UNFINISHED, CommandExit
from diffusion_jax.studies import store
from diffusion_jax.training import loop

TRIED = 12  # training steps by which the speed is measured


def train_family(
    root: Path, config: ConfigDict, dataset: data.Dataset, settings: ConfigDict, seed: int
) -> tuple[Path, ConfigDict]:
    """Train a family for settings.seconds; a latent one spends half of them on its autoencoder.

    Args:
      root: the folder of the run.
      config: the config of the family; 'latent' is a key of a latent one.
      dataset: the images.
      settings: the config of the comparison.
      seed: the seed of the training.

    Returns:
      (the workdir of the model, its config with the number of steps).

    Raises:
      CommandExit: if a signal stopped the training.
    """
    if "latent" not in config:
        return train_for(root, config, dataset, settings.seconds, seed)
    recipe = settings.recipe.copy_and_resolve_references().unlock()
    recipe.data = settings.data
    train_for(root / "autoencoder", recipe, dataset, 0.5 * settings.seconds, seed)
    config.data = config.data.copy_and_resolve_references()
    config.data.update(name="latents", path=str(encoded(root)))
    config.latent.autoencoder = staging.shown(str(root / "autoencoder"))
    latents = datasets.dataset(config)
    return train_for(root / "model", config, latents, 0.5 * settings.seconds, seed)


def train_for(
    root: Path, config: ConfigDict, dataset: data.Dataset, seconds: float, seed: int
) -> tuple[Path, ConfigDict]:
    """Train a config for a number of seconds.

    The number of steps is measured by the first run and kept in budget.json, so that a run that was
    stopped resumes with the same number.

    Args:
      root: the workdir.
      config: the config.
      dataset: the training data.
      seconds: the time of the training steps, without compilation.
      seed: the seed of the training.

    Returns:
      (the workdir, the config with the number of steps).

    Raises:
      CommandExit: if a signal stopped the training.
    """
    budget = root / "budget.json"
    rule = reading.record({"steps": reading.integer(1, 10**9)})
    kept = store.load_json(budget, rule) or {"steps": 0}
    steps = kept["steps"] or steps_for(config, dataset, seconds, seed, root)
    config = with_steps(config, steps, seed)
    root.mkdir(parents=True, exist_ok=True)
    files.save_json(budget, {"steps": steps, "seconds": seconds})
    if not train.train(config, str(root), dataset=dataset):
        raise CommandExit(UNFINISHED)
    return root, config


def with_steps(config: ConfigDict, steps: int, seed: int) -> ConfigDict:
    """Copy a config for a seed and a number of steps, with a loss curve and one checkpoint.

    Args:
      config: the config of the family, which stays as it is.
      steps: number of training steps; the checkpoint is written after the last one.
      seed: config.seed, which decides the initial parameters, the order of the data and all noise.
    """
    config = config.copy_and_resolve_references().unlock()
    config.seed = seed
    config.training.update(
        steps=steps,
        eval_every=0,
        sample_every=0,
        checkpoint_every=steps,
        keep=1,
        log_every=max(1, steps // 20),
    )
    return config.lock()


def steps_for(
    config: ConfigDict, dataset: data.Dataset, seconds: float, seed: int, root: Path
) -> int:
    """Measure how many training steps fit into a number of seconds on this machine.

    Compilation does not count. The measure is the median time of a few calls.

    Args:
      config: the config of the family.
      dataset: the data set that it is trained on.
      seconds: the time that the steps may take.
      seed: the seed of the run, which is used for the trial as well.
      root: the workdir of the run, where the data may have caches.

    Returns:
      A multiple of config.training.steps_per_call, and at least that.
    """
    config = config.copy_and_resolve_references().unlock()
    config.seed = seed
    experiment = preparation.for_training(config, dataset, root)
    parts, k = trainer.training(experiment), config.training.steps_per_call
    state = parts.runner.init(parts.init, jax.random.key(config.seed))
    batch = data.batches(
        dataset.train, batch_size=config.data.batch_size, seed=config.seed, flip=config.data.flip
    )
    put, took = parts.runner.put_batch(loop.stack(batch, k)(0), axis=1), []
    for _ in range(2 + math.ceil(TRIED / k)):
        began = time.monotonic()
        state, numbers = parts.step(state, put)
        jax.block_until_ready(numbers)
        took.append(time.monotonic() - began)
    timed = sorted(took[2:])  # the first two calls compile, or warm up
    return max(k, round(seconds / timed[len(timed) // 2]) * k)
