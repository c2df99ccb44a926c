"""Conditions: labels and captions as the network takes them."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from diffusion_jax import arrays, data, streams
from diffusion_jax.assembly import latent
from diffusion_jax.assembly.settings import Experiment
from diffusion_jax.errors import UserError
from diffusion_jax.models import text
from diffusion_jax.types import Array, Batch, Cond, Key


def null_cond(experiment: Experiment, batch: int) -> Cond:
    """The condition that says nothing, for `batch` examples: label = num_classes, no caption. None
    of an unconditional one.
    """
    label = (
        {"label": jnp.full(batch, experiment.num_classes, jnp.int32)}
        if experiment.num_classes
        else {}
    )
    return (
        label | (text.null_captions(experiment.encoder, batch) if experiment.encoder else {})
    ) or None


def example(batch, keys: Key) -> Array:
    """The clean example x0 to learn from: the image; of latents a fresh draw of the posterior, by
    each example's key.
    """
    return (
        latent.draw(batch, arrays.fold_in(keys, streams.EXAMPLE_LATENT))
        if "std" in batch
        else batch["image"]
    )


def of_batch(experiment: Experiment, batch: Batch, keys: Key, train: bool) -> Cond:
    """The condition of a batch of examples: its labels and captions.

    In training each example loses its condition with probability config.label_dropout.

    Args:
      batch: with 'label' (B,), and the arrays of the captions.
      keys: of the examples, (B,).
      train: whether conditions are dropped.
    """
    cond = null_cond(experiment, len(keys))
    if cond is None:
        return None
    rate = experiment.label_dropout if train else 0.0
    dropped = arrays.uniform(arrays.fold_in(keys, streams.EXAMPLE_CONDITION_DROPOUT)) < rate
    return {
        name: jnp.where(arrays.expand(dropped, null), null, batch[name])
        for name, null in cond.items()
    }


def cond_for(experiment: Experiment, labels: Array) -> Cond:
    """The condition for these labels; None for an unconditional experiment. UserError for a label
    that does not exist.
    """
    if not experiment.num_classes:
        if len(labels):
            raise UserError(
                "this model takes captions: say what to draw by --prompt"
                if experiment.encoder
                else "this model is unconditional: it takes no labels"
            )
        return None
    bad = [int(label) for label in labels if not 0 <= label <= experiment.num_classes]
    if bad:
        raise UserError(
            f"label {bad[0]} does not exist: this model knows 0 to {experiment.num_classes - 1}, "
            f"and {experiment.num_classes} for 'any'"
        )
    return null_cond(experiment, len(labels)) | {"label": jnp.asarray(labels, jnp.int32)}


def prompt_cond(experiment: Experiment, prompts: Sequence[str]) -> Cond:
    """The condition for these captions, of any class. UserError for a model without captions, and
    for what it cannot read.
    """
    encoder = experiment.encoder
    if encoder is None:
        takes = (
            f"labels, 0 to {experiment.num_classes - 1}: use --labels"
            if experiment.num_classes
            else "no condition"
        )
        raise UserError(f"this model knows no captions, so it takes no --prompt; it takes {takes}")
    for prompt in dict.fromkeys(prompts):
        if not prompt.strip():
            raise UserError("--prompt is empty; say what to draw")
        if prompt != prompt.encode(errors="replace").decode():
            raise UserError(f"--prompt is no text in UTF-8: {prompt!r:.60}")
        if (length := encoder.count(prompt)) > encoder.max_length:
            raise UserError(
                f"--prompt has {length} tokens, of which this model reads {encoder.max_length}: '{prompt:.40}...'"
            )
    return null_cond(experiment, len(prompts)) | encoder.encode(prompts)


def captions_of_test(
    experiment: Experiment, dataset: data.Dataset, index: Array
) -> tuple[list[str], Cond]:
    """The first captions of these images of the test split, and the condition for them, of any
    class.
    """
    rows = dataset.test.rows(index)
    told = dataset.test.with_captions(rows, np.zeros(len(index), int))
    captions = [dataset.captions[i] for i in rows["caption"][:, 0]]
    return captions, null_cond(experiment, len(index)) | {
        name: told[name] for name in experiment.encoder.entries
    }


def conditions(
    experiment: Experiment, dataset: data.Dataset, count: int
) -> tuple[np.ndarray | None, Cond]:
    """What `count` samples are drawn of when they are judged: (labels (count,), or None where they
    are not known; condition).

    Of a model of classes every class in turn. Of a model of captions the prompts of combinations
    that training never saw, where the data set has kept some from it, else captions of the test
    split in turn.

    Raises:
      UserError: for a model of captions and a data set without them.
    """
    if not experiment.encoder:
        labels = np.arange(count) % experiment.num_classes if experiment.num_classes else None
        return labels, cond_for(experiment, np.zeros(0, int) if labels is None else labels)
    if dataset.name == "digits_captions":
        prompts, labels = data.digits_captions.held_out_prompts(count)
        return labels, prompt_cond(experiment, prompts)
    if not dataset.captions:
        raise UserError(
            f"this model takes captions, and the data set {dataset.name} has none to draw samples of"
        )
    index = np.arange(count) % len(dataset.test)
    return dataset.test.rows(index).get("label"), captions_of_test(experiment, dataset, index)[1]
