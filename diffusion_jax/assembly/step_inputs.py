"""What a training step gives a network: clean examples, their conditions, and keys of dropout."""

from __future__ import annotations

import jax

from diffusion_jax.assembly import conditions
from diffusion_jax.assembly.settings import Experiment
from diffusion_jax.core import streams
from diffusion_jax.core.types import Array, Batch, Cond, Key


def examples(experiment: Experiment, batch: Batch, keys: Key, train: bool) -> tuple[Array, Cond]:
    """Return the clean examples and their condition, both augmented in training.

    Args:
      experiment: the model.
      batch: arrays (B, ...) by name.
      keys: (B,), one for each example.
      train: whether conditions are dropped for guidance, and examples augmented.

    Returns:
      (x0 (B, ...), condition).
    """
    cond = experiment.conditions.of_batch(batch, keys, train)
    rate = experiment.data.augment if train else 0.0
    return conditions.augmented(conditions.example(batch, keys), cond, keys, rate)


def dropout(keys: Key, train: bool) -> dict[str, Key] | None:
    """Return Flax's random streams of a step, which follow from the first example's key.

    Args:
      keys: (B,), one for each example.
      train: whether there is dropout at all.
    """
    if not train:
        return None
    return {"dropout": jax.random.fold_in(keys[0], streams.EXAMPLE_NETWORK_DROPOUT)}
