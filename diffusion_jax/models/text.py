"""Captions as conditions: captions become arrays, and the arrays become states and one vector.

    bytes     a small transformer over the bytes of UTF-8, trained with the network: no download
    minilm    all-MiniLM-L6-v2 (Reimers & Gurevych 2019; Wang et al. 2020), frozen: its states are
              computed once and kept

An `Encoder` holds both halves: `encode` runs on the host, from captions to arrays, and `network` is
the part of a network that reads these arrays out of its condition. Arrays of zeros mean "no
caption", for which there are learned states.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.errors import UserError, need_ranges
from diffusion_jax.core.types import Array, Params
from diffusion_jax.models import bert
from diffusion_jax.models.bert import Bert

BATCH = 64  # captions in one pass of a frozen encoder

Weights = Callable[[str], Mapping[str, np.ndarray]]  # name of a model -> its tensors


class Encoder(NamedTuple):
    """A text encoder: it turns captions into conditioning inputs.

    Attributes:
      encode: a function (captions) -> {name: (N, ...)}, the entries of cond, of at most max_length
        tokens each; longer captions are cut off.
      count: a function (caption) -> its number of tokens.
      entries: {name: shape and dtype of an entry, without N}.
      network: the module that reads the entries out of cond, such as `Text` or `GivenStates`.
      max_length: the largest number of tokens.
      cache_name: the name under which the arrays may be kept on disk; '' where computing them is
        cheap.
      null: () -> {name: the entry that means "no caption"}; None where that is zeros.
    """

    encode: Callable[[Sequence[str]], dict[str, np.ndarray]]
    count: Callable[[str], int]
    entries: dict[str, jax.ShapeDtypeStruct]
    network: nn.Module
    max_length: int
    cache_name: str = ""
    null: Callable[[], dict[str, np.ndarray]] | None = None


def null_captions(encoder: Encoder, batch: int) -> dict[str, Array]:
    """The entries of cond that mean "no caption".

    Args:
      encoder: the text encoder that the entries are for.
      batch: B, the number of examples.

    Returns:
      {name: (B, ...)}: zeros, or what the encoder has instead.
    """
    null = encoder.null() if encoder.null else {}
    return {
        name: jnp.broadcast_to(jnp.asarray(null.get(name, 0), entry.dtype), (batch, *entry.shape))
        for name, entry in encoder.entries.items()
    }


# ---- in the network
class TextFeatures(NamedTuple):
    """A text as a network receives it.

    Attributes:
      states: (B, L, D) float32.
      mask: which of the states exist, (B, L) bool, at least one for each example; None means all.
      pooled: one vector for the whole text, (B, D) float32; None if there is none.
    """

    states: Array
    mask: Array | None
    pooled: Array | None


class Text(nn.Module):
    """Reads the captions of a condition: cond -> TextFeatures.

    The states are normalized. Examples without any token, and all examples of a cond without the
    entries, have no caption; they receive learned states.

    Attributes:
      width: D.
      reader: a network (ids (B, L), mask) -> (B, L, D) for cond['bytes'] (B, L), in which 0 is no
        byte. None: cond has 'tokens' (B, L, D), 'mask' (B, L) and 'pooled' (B, D) of a frozen
        encoder.
    """

    width: int
    reader: nn.Module | None = None

    @nn.compact
    def __call__(self, cond: dict, batch: int) -> TextFeatures:
        """Reads the captions of a condition.

        Args:
          cond: the entries of the text encoder, a dict of arrays with leading axis B; without them
            no example has a caption.
          batch: B, the number of examples.

        Returns:
          The states, their mask and the pooled vectors.
        """
        init = nn.initializers.normal(1.0)
        null_state, null_pooled = (
            self.param(name, init, (self.width,)) for name in ("null_state", "null_pooled")
        )
        states, mask, pooled = self._read(cond, batch)
        has_caption = jnp.any(mask, axis=1)
        states, pooled = (
            nn.LayerNorm(name=name)(x.astype(jnp.float32))
            for name, x in (("states", states), ("pooled", pooled))
        )
        return TextFeatures(
            jnp.where(has_caption[:, None, None], states, null_state),
            at_least_one(mask),
            jnp.where(has_caption[:, None], pooled, null_pooled),
        )

    def _read(self, cond: dict, batch: int) -> tuple[Array, Array, Array]:
        """(states, mask, pooled) of cond, before normalization."""
        if self.reader is None:
            nothing = {
                "tokens": jnp.zeros((batch, 1, self.width)),
                "mask": jnp.zeros((batch, 1), bool),
                "pooled": jnp.zeros((batch, self.width)),
            }
            return tuple(cond.get(name, zeros) for name, zeros in nothing.items())
        ids = cond.get("bytes", jnp.zeros((batch, 1), jnp.int32)).astype(jnp.int32)
        states = self.reader(ids, at_least_one(ids > 0))
        return states, ids > 0, mean(states, ids > 0)


class GivenStates(nn.Module):
    """Passes the states of a frozen encoder on as they are: cond -> TextFeatures.

    All of cond['tokens'] (B, L, D) exist, and cond['pooled'] (B, D) may be missing.
    """

    @nn.compact
    def __call__(self, cond: dict, batch: int) -> TextFeatures:
        """Reads the captions of a condition.

        Args:
          cond: the entries of the text encoder.
          batch: not used.

        Returns:
          The states and the pooled vectors.

        Raises:
          UserError: for a condition without them.
        """
        if "tokens" not in cond:
            raise UserError("this network draws captions, and the condition has none")
        return TextFeatures(cond["tokens"], None, cond.get("pooled"))


def at_least_one(mask: Array) -> Array:
    """Adds the first state of an example that has none; attention to nothing would be NaN.

    Args:
      mask: which states exist, (B, L) bool.

    Returns:
      (B, L) bool.
    """
    return mask | (~jnp.any(mask, axis=1, keepdims=True) & (jnp.arange(mask.shape[1]) == 0))


def mean(states: Array, mask: Array) -> Array:
    """The mean over the states that exist, or zero where there are none.

    Args:
      states: states of a text, (B, L, D).
      mask: which states exist, (B, L) bool.

    Returns:
      (B, D).
    """
    weight = mask.astype(states.dtype)[..., None]
    return jnp.sum(states * weight, axis=1) / jnp.maximum(jnp.sum(weight, axis=1), 1)


# ---- the encoders
def bytes(
    max_length: int,
    weights: Weights | None = None,
    *,
    width: int = 128,
    depth: int = 2,
    heads: int = 4,
) -> Encoder:
    """The bytes of a caption in UTF-8, read by a small BERT that is trained with the network.

    The entry is cond['bytes'] (B, max_length) int16: byte + 1, and 0 after the end.

    Args:
      max_length: largest number of bytes.
      weights: not used; every encoder takes them.
      width: size of a state.
      depth: number of layers.
      heads: number of attention heads.

    Returns:
      The encoder.

    Raises:
      UserError: if `width` is not a multiple of `heads` or a number is out of range.
    """
    need_ranges("bytes", width=(width, 4, 4096), depth=(depth, 1, 64), heads=(heads, 1, 256))
    if width % heads:
        raise UserError(
            f"config.text.encoder=bytes(width={width}): it must be a multiple of heads={heads}"
        )

    def encode(captions: Sequence[str]) -> dict[str, np.ndarray]:
        ids = np.zeros((len(captions), max_length), np.int16)
        for row, caption in zip(ids, captions):
            read = np.frombuffer(caption.encode(errors="replace")[:max_length], np.uint8)
            row[: len(read)] = read.astype(np.int16) + 1
        return {"bytes": ids}

    def count(caption: str) -> int:
        return len(caption.encode(errors="replace"))

    entries = {"bytes": jax.ShapeDtypeStruct((max_length,), np.int16)}
    network = Text(width, Bert(257, max_length, width, depth, heads))
    return Encoder(encode, count, entries, network, max_length)


MINILM = Bert(vocabulary=30_522, positions=512, width=384, depth=6, heads=12)


def minilm(max_length: int, weights: Weights) -> Encoder:
    """The frozen encoder all-MiniLM-L6-v2 (Reimers & Gurevych 2019; Wang et al. 2020).

    The entries are 'tokens' (B, max_length, 384) float16, the states of the last layer, 'mask' (B,
    max_length) bool, and 'pooled' (B, 384) float16, the mean of the states with unit length, which
    is the model's sentence embedding.

    Args:
      max_length: largest number of tokens, with the two that begin and end a text.
      weights: weights('minilm') gives the tensors, with the file tokenizer.json as bytes. It is
        called when the first caption is encoded.

    Returns:
      The encoder. Its functions raise UserError if the library tokenizers is not installed.

    Raises:
      UserError: if `max_length` is out of range.
    """
    if not 3 <= max_length <= MINILM.positions:
        raise UserError(
            f"config.text.max_length={max_length}: minilm reads 3 to {MINILM.positions} tokens"
        )
    model = _MiniLM(max_length, weights)
    entries = {
        "tokens": jax.ShapeDtypeStruct((max_length, MINILM.width), np.float16),
        "mask": jax.ShapeDtypeStruct((max_length,), bool),
        "pooled": jax.ShapeDtypeStruct((MINILM.width,), np.float16),
    }
    cache_name = f"all-MiniLM-L6-v2-{max_length}"
    return Encoder(model.encode, model.count, entries, Text(MINILM.width), max_length, cache_name)


class _MiniLM:
    """The tokenizer and the network of `minilm`, which are loaded when they are first used."""

    def __init__(self, max_length: int, weights: Weights) -> None:
        self.max_length, self.weights = max_length, weights

    @functools.cached_property
    def tokenizer(self) -> Any:
        tokenizer = _tokenizer(self.weights("minilm")["tokenizer.json"])
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    @functools.cached_property
    def run(self) -> Callable[[np.ndarray, np.ndarray], tuple[Array, Array]]:
        params = jax.tree.map(jnp.asarray, bert.convert(self.weights("minilm"), MINILM.depth))
        return functools.partial(jax.jit(_states_and_mean), params)

    def count(self, caption: str) -> int:
        return len(self.tokenizer.encode(caption).ids)

    def encode(self, captions: Sequence[str]) -> dict[str, np.ndarray]:
        ids = np.zeros((-(-len(captions) // BATCH) * BATCH, self.max_length), np.int32)
        lengths = np.ones(len(ids), np.int32)
        for i, text in enumerate(self.tokenizer.encode_batch(list(captions))):
            read = text.ids
            if len(read) > self.max_length:
                read = read[: self.max_length - 1] + read[-1:]
            ids[i, : len(read)], lengths[i] = read, len(read)
        mask = np.arange(self.max_length) < lengths[:, None]
        parts = [
            self.run(ids[i : i + BATCH], mask[i : i + BATCH]) for i in range(0, len(ids), BATCH)
        ]
        tokens, pooled = (
            np.concatenate([np.asarray(x) for x in part])[: len(captions)] for part in zip(*parts)
        )
        return {"tokens": tokens, "mask": mask[: len(captions)], "pooled": pooled}


def _states_and_mean(params: Params, ids: Array, mask: Array) -> tuple[Array, Array]:
    states = MINILM.apply({"params": params}, ids, mask)
    pooled = mean(states, mask)
    pooled = pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)
    return (states * mask[..., None]).astype(jnp.float16), pooled.astype(jnp.float16)


def _tokenizer(file: np.ndarray) -> Any:
    """The tokenizer of tokenizer.json, given as an array of bytes."""
    try:
        from tokenizers import Tokenizer  # noqa: PLC0415  an optional dependency: tokenizers
    except ImportError:
        raise UserError(
            "the text encoder minilm needs the library tokenizers: "
            "pip install 'diffusion_jax[text]'"
        ) from None
    return Tokenizer.from_str(file.tobytes().decode())


# The members of the family, which a config may name.
ENCODERS = (bytes, minilm)
