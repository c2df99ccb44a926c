"""Conditions: labels, captions, vectors and dense arrays as the network takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp

from diffusion_jax.assembly import latent
from diffusion_jax.core import arrays, streams
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Batch, Cond, Key
from diffusion_jax.data import augmentation
from diffusion_jax.data.condition_arrays import DENSE, VECTOR
from diffusion_jax.data.normalization import ConditionUnits
from diffusion_jax.inverse.dense import DenseCondition
from diffusion_jax.models import text
from diffusion_jax.models.text import Encoder


class Conditions(NamedTuple):
    """Builds the conditions of one model.

    Attributes:
      null: batch size -> the condition without information, label = num_classes, no caption, and
        zeros for vectors and dense arrays; None for an unconditional model.
      of_labels: labels (B,) -> the condition of these labels; None for a model without classes.
        Raises UserError for a label that does not exist.
      of_prompts: captions -> the condition of these captions, with any class. Raises UserError for
        a model without captions and for a caption that it cannot read.
      of_batch: (batch, keys (B,), train) -> the condition of training examples, of which in
        training some lose theirs, at the rate config.label_dropout.
      columns: batch size -> zeros of the columns of a batch that of_batch reads besides 'image'.
    """

    null: Callable[[int], Cond]
    of_labels: Callable[[Array], Cond]
    of_prompts: Callable[[Sequence[str]], Cond]
    of_batch: Callable[[Batch, Key, bool], Cond]
    columns: Callable[[int], dict[str, Array]]


class ArrayInputs(NamedTuple):
    """The arrays that condition a model.

    Attributes:
      shape: of a sample, (N_1, ..., N_d, C).
      units: of vectors and stored dense arrays, if there are any.
      dense: the dense condition, or None.
    """

    shape: tuple[int, ...]
    units: ConditionUnits = ConditionUnits()
    dense: DenseCondition | None = None

    @property
    def vector(self) -> int:
        """The number of columns of the vectors; 0 where there are none."""
        return len(self.units.vector.shift) if self.units.vector else 0

    def null(self, batch: int) -> dict[str, Array]:
        """The entries of a condition in which nothing is known: zeros.

        Args:
          batch: number of examples.
        """
        found = {"vector": jnp.zeros((batch, self.vector + 1))} if self.vector else {}
        if self.dense:
            found["concat"] = jnp.zeros((batch, *self.shape[:-1], self.dense.channels))
        return found

    def columns(self, batch: int) -> dict[str, Array]:
        """Zeros of the columns of a batch from which the entries are made, besides 'image'.

        Args:
          batch: number of examples.
        """
        found = {VECTOR: jnp.zeros((batch, self.vector))} if self.vector else {}
        if self.dense and self.dense.stored:
            channels = self.dense.channels if self.units.dense else 1
            kind = jnp.float32 if self.units.dense else jnp.int32
            found[DENSE] = jnp.zeros((batch, *self.shape[:-1], channels), kind)
        return found

    def of_batch(self, batch: Batch, keys: Key) -> dict[str, Array]:
        """The entries of the condition of training examples.

        Args:
          batch: the examples, (B, ...).
          keys: their keys, (B,).
        """
        found = {"vector": of_vectors(batch[VECTOR])} if self.vector else {}
        if self.dense:
            found["concat"] = self.dense.make(example(batch, keys), batch.get(DENSE), keys)
        return found


def of_vectors(values: Array) -> Array:
    """Vectors as the network takes them: with a last number 1, which says that they are known.

    Args:
      values: (B, K), normalized.

    Returns:
      (B, K + 1) float32; zeros are the null condition.
    """
    values = jnp.asarray(values, jnp.float32)
    return jnp.concatenate([values, jnp.ones((len(values), 1))], axis=-1)


def builder(
    num_classes: int, encoder: Encoder | None, dropout: float, inputs: ArrayInputs
) -> Conditions:
    """The Conditions of a model.

    Args:
      num_classes: labels of the condition; 0 where there are none.
      encoder: the encoder of captions; None where there are none.
      dropout: probability with which a training example loses its condition.
      inputs: the arrays that condition the model.
    """

    def named(batch: int) -> dict[str, Array]:
        cond = {"label": jnp.full(batch, num_classes, jnp.int32)} if num_classes else {}
        return cond | (text.null_captions(encoder, batch) if encoder else {})

    def null(batch: int) -> Cond:
        return (named(batch) | inputs.null(batch)) or None

    def of_labels(labels: Array) -> Cond:
        if not num_classes:
            if len(labels):
                raise UserError(_no_labels(encoder, inputs))
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
            takes = labels if num_classes else _others(inputs)
            raise UserError(
                "this model has no captions as its condition, so it takes no --prompt; it takes "
                f"{takes}"
            )
        for prompt in dict.fromkeys(prompts):
            _check_prompt(encoder, prompt)
        return null(len(prompts)) | encoder.encode(prompts)

    def of_batch(batch: Batch, keys: Key, train: bool) -> Cond:
        nothing = null(len(keys))
        if nothing is None:
            return None
        own = {name: batch[name] for name in named(1)} | inputs.of_batch(batch, keys)
        uniform = arrays.uniform(arrays.fold_in(keys, streams.EXAMPLE_CONDITION_DROPOUT))
        dropped = uniform < (dropout if train else 0.0)
        return {
            name: jnp.where(arrays.expand(dropped, none), none, own[name])
            for name, none in nothing.items()
        }

    def columns(batch: int) -> dict[str, Array]:
        return named(batch) | inputs.columns(batch)

    return Conditions(null, of_labels, of_prompts, of_batch, columns)


def _no_labels(encoder: Encoder | None, inputs: ArrayInputs) -> str:
    """What a model without classes takes instead of labels."""
    if encoder:
        return "this model takes captions: give one by --prompt"
    if inputs.vector or inputs.dense:
        return f"this model has no classes: it takes {_others(inputs)}"
    return "this model is unconditional: it takes no labels"


def _others(inputs: ArrayInputs) -> str:
    """The arrays that condition a model, in words."""
    found = [f"{inputs.vector} numbers: use --condition"] if inputs.vector else []
    found += ["a dense condition: use --dense"] if inputs.dense else []
    return " and ".join(found) or "no condition"


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
