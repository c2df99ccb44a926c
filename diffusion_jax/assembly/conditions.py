"""Conditions: labels and captions as the network takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp

from diffusion_jax.assembly import latent
from diffusion_jax.core import arrays, streams
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Batch, Cond, Key
from diffusion_jax.data import augmentation
from diffusion_jax.models import text
from diffusion_jax.models.text import Encoder


class Conditions(NamedTuple):
    """Builds the conditions of one model.

    Attributes:
      null: batch size -> the condition without information, label = num_classes and no caption;
        None for an unconditional model.
      of_labels: labels (B,) -> the condition of these labels; None for an unconditional model.
        Raises UserError for a label that does not exist.
      of_prompts: captions -> the condition of these captions, with any class. Raises UserError for
        a model without captions and for a caption that it cannot read.
      of_batch: (batch, keys (B,), train) -> the condition of training examples, of which in
        training some lose theirs, at the rate config.label_dropout.
    """

    null: Callable[[int], Cond]
    of_labels: Callable[[Array], Cond]
    of_prompts: Callable[[Sequence[str]], Cond]
    of_batch: Callable[[Batch, Key, bool], Cond]


def builder(num_classes: int, encoder: Encoder | None, dropout: float) -> Conditions:
    """The Conditions of a model.

    Args:
      num_classes: labels of the condition; 0 where there are none.
      encoder: the encoder of captions; None where there are none.
      dropout: probability with which a training example loses its condition.
    """

    def null(batch: int) -> Cond:
        cond = {"label": jnp.full(batch, num_classes, jnp.int32)} if num_classes else {}
        return (cond | (text.null_captions(encoder, batch) if encoder else {})) or None

    def of_labels(labels: Array) -> Cond:
        if not num_classes:
            if len(labels):
                raise UserError(
                    "this model takes captions: give one by --prompt"
                    if encoder
                    else "this model is unconditional: it takes no labels"
                )
            return None
        bad = [int(label) for label in labels if not 0 <= label <= num_classes]
        if bad:
            raise UserError(
                f"label {bad[0]} does not exist: this model has the labels 0 to {num_classes - 1}, "
                f"and {num_classes} for 'any'"
            )
        return null(len(labels)) | {"label": jnp.asarray(labels, jnp.int32)}

    def of_prompts(prompts: Sequence[str]) -> Cond:
        if encoder is None:
            labels = f"labels, 0 to {num_classes - 1}: use --labels"
            takes = labels if num_classes else "no condition"
            raise UserError(
                "this model has no captions as its condition, so it takes no --prompt; it takes "
                f"{takes}"
            )
        for prompt in dict.fromkeys(prompts):
            _check_prompt(encoder, prompt)
        return null(len(prompts)) | encoder.encode(prompts)

    def of_batch(batch: Batch, keys: Key, train: bool) -> Cond:
        cond = null(len(keys))
        if cond is None:
            return None
        uniform = arrays.uniform(arrays.fold_in(keys, streams.EXAMPLE_CONDITION_DROPOUT))
        dropped = uniform < (dropout if train else 0.0)
        return {
            name: jnp.where(arrays.expand(dropped, nothing), nothing, batch[name])
            for name, nothing in cond.items()
        }

    return Conditions(null, of_labels, of_prompts, of_batch)


def against(conditions: Conditions, prompt: str) -> Conditions:
    """Make guidance lead away from a caption, a negative prompt, instead of from no caption.

    Args:
      conditions: those of a model of captions.
      prompt: the caption.

    Raises:
      UserError: for a model without captions and for a caption that it cannot read.
    """
    one = conditions.of_prompts([prompt])

    def null(batch: int) -> Cond:
        return {name: jnp.repeat(jnp.asarray(value), batch, 0) for name, value in one.items()}

    return conditions._replace(null=null)


def _check_prompt(encoder: Encoder, prompt: str) -> None:
    """Check that the encoder reads the whole caption; UserError if it would be cut off."""
    if not prompt.strip():
        raise UserError("--prompt is empty; describe the image to draw")
    if prompt != prompt.encode(errors="replace").decode():
        raise UserError(f"--prompt is not valid UTF-8: {prompt!r:.60}")
    if (length := encoder.count(prompt)) > encoder.max_length:
        raise UserError(
            f"--prompt has {length} tokens, of which this model reads {encoder.max_length}: "
            f"'{prompt:.40}...'"
        )


def example(batch: Batch, keys: Key) -> Array:
    """The clean example x0: the image, or of latents a fresh draw of the posterior.

    Args:
      batch: with 'image' (B, ...), and of latents their 'std'.
      keys: the keys of the examples, (B,).
    """
    if "std" not in batch:
        return batch["image"]
    return latent.draw(batch, arrays.fold_in(keys, streams.EXAMPLE_LATENT))


def augmented(x0: Array, cond: Cond, keys: Key, probability: float) -> tuple[Array, Cond]:
    """The clean examples after non-leaky augmentation, and the condition with its labels.

    Args:
      x0: clean images, (B, H, W, C).
      cond: their condition, or None.
      keys: the keys of the examples, (B,).
      probability: that of each distortion; 0 returns both arguments as they are.
    """
    if not probability:
        return x0, cond
    keys = arrays.fold_in(keys, streams.EXAMPLE_AUGMENTATION)
    x0, labels = augmentation.augment(keys, x0, probability)
    return x0, (cond or {}) | {"augment": labels}
