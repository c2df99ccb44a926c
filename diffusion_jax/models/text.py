"""Captions as conditions: a caption becomes arrays, the arrays become states to look at and one
vector.

    bytes     a small transformer over the bytes of UTF-8, trained with the network: no download
    minilm    all-MiniLM-L6-v2 (Reimers & Gurevych 2019; Wang et al. 2020), frozen: its states are made once, and kept

An `Encoder` is both halves: `encode` on the host, from captions to arrays, and `network`, the part
of a network that reads them out of its cond. All zeros is "no caption", for which there are learned
states of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import UserError, need_ranges
from diffusion_jax.models import layers
from diffusion_jax.types import Array, Params

AT_ONCE = 64  # captions in one pass of a frozen encoder


class Encoder(NamedTuple):
    """How captions reach a network.

    encode(captions) -> {name: (N, ...)}: the entries of cond, of at most max_length tokens each;
    what is longer is cut off. count(caption) -> how many tokens it has.
    like: {name: shape and dtype of an entry, without N}. network: what reads them out of cond.
    cache_name: under which name the arrays may be kept on disk; '' where making them costs nothing.
    """

    encode: Callable[[Sequence[str]], dict[str, np.ndarray]]
    count: Callable[[str], int]
    entries: dict[str, jax.ShapeDtypeStruct]
    network: Text
    max_length: int
    cache_name: str = ""


def null_captions(encoder: Encoder, batch: int) -> dict[str, Array]:
    """The entries of cond that say nothing, for `batch` examples."""
    return {
        name: jnp.zeros((batch, *like.shape), like.dtype) for name, like in encoder.entries.items()
    }


# ---- in the network
class TextFeatures(NamedTuple):
    """A text as a network sees it: states (B, L, D), which of them there are (B, L) bool, and one
    vector (B, D), float32.
    """

    states: Array
    mask: Array
    pooled: Array


class Text(nn.Module):
    """cond -> TextFeatures: the states of its captions, each normalised, or the learned ones that stand for
    no caption.

    width: D. reader: a network (ids (B, L), mask) -> (B, L, D) for cond['bytes'] (B, L), in which 0
    is no byte; None: cond has 'tokens' (B, L, D), 'mask' (B, L) and 'pooled' (B, D) from a frozen
    encoder. Examples without any token, and all of a cond without these entries, have no caption.
    """

    width: int
    reader: nn.Module | None = None

    @nn.compact
    def __call__(self, cond: dict, batch: int) -> TextFeatures:
        init = nn.initializers.normal(1.0)
        null_state, null_pooled = (
            self.param(name, init, (self.width,)) for name in ("null_state", "null_pooled")
        )
        states, mask, pooled = self._read(cond, batch)
        there = jnp.any(mask, axis=1)
        normed = [
            nn.LayerNorm(name=name)(x.astype(jnp.float32))
            for name, x in (("states", states), ("pooled", pooled))
        ]
        return TextFeatures(
            jnp.where(there[:, None, None], normed[0], null_state),
            at_least_one(mask),
            jnp.where(there[:, None], normed[1], null_pooled),
        )

    def _read(self, cond: dict, batch: int) -> tuple[Array, Array, Array]:
        if self.reader is None:
            nothing = (
                jnp.zeros((batch, 1, self.width)),
                jnp.zeros((batch, 1), bool),
                jnp.zeros((batch, self.width)),
            )
            return tuple(
                cond.get(name, x) for name, x in zip(("tokens", "mask", "pooled"), nothing)
            )
        ids = cond.get("bytes", jnp.zeros((batch, 1), jnp.int32)).astype(jnp.int32)
        states = self.reader(ids, at_least_one(ids > 0))
        return states, ids > 0, mean(states, ids > 0)


def at_least_one(mask: Array) -> Array:
    """(B, L) bool, the first of an example where it has none: attention to nothing would be NaN."""
    return mask | (~jnp.any(mask, axis=1, keepdims=True) & (jnp.arange(mask.shape[1]) == 0))


def mean(states: Array, mask: Array) -> Array:
    """(B, L, D), (B, L) -> (B, D): over the states that there are; zero where there is none."""
    weight = mask.astype(states.dtype)[..., None]
    return jnp.sum(states * weight, axis=1) / jnp.maximum(jnp.sum(weight, axis=1), 1)


class Bert(nn.Module):
    """BERT's encoder (Devlin et al. 2019): ids (B, L), mask (B, L) -> states (B, L, width) float32.

    h = norm(word + place), then in each layer h <- norm(h + attention(h)), h <- norm(h + W2 gelu(W1
    h)), as in Vaswani et al. 2017, with the exact gelu. Without dropout. The embedding of BERT's
    first segment is part of `places` (see `convert`).
    """

    vocabulary: int
    positions: int
    width: int
    depth: int
    heads: int

    @nn.compact
    def __call__(self, ids: Array, mask: Array) -> Array:
        init = nn.initializers.normal(0.02)
        norm = functools.partial(nn.LayerNorm, epsilon=1e-12)
        dense = functools.partial(nn.Dense, kernel_init=init)
        words = self.param("words", init, (self.vocabulary, self.width))
        places = self.param("places", init, (self.positions, self.width))
        h = norm(name="norm")(
            jnp.asarray(words)[ids] + jnp.asarray(places)[: ids.shape[1]]
        )  # (parameters may be numpy's)
        for i in range(self.depth):
            q, k, v = (
                dense(self.width, name=f"layer_{i}_{part}")(h) for part in ("query", "key", "value")
            )
            q, k, v = (a.reshape(*a.shape[:2], self.heads, -1) for a in (q, k, v))
            seen = layers.attention(q, k, v, "plain", mask).reshape(h.shape)
            h = norm(name=f"layer_{i}_norm_1")(
                h + dense(self.width, name=f"layer_{i}_project")(seen)
            )
            inner = jax.nn.gelu(
                dense(4 * self.width, name=f"layer_{i}_mlp_in")(h), approximate=False
            )
            h = norm(name=f"layer_{i}_norm_2")(
                h + dense(self.width, name=f"layer_{i}_mlp_out")(inner)
            )
        return h


# ---- the encoders
def bytes(
    max_length: int,
    weights: Callable | None = None,
    *,
    width: int = 128,
    depth: int = 2,
    heads: int = 4,
) -> Encoder:
    """The bytes of the caption in UTF-8, read by a small BERT that is trained with the network.
    weights: not used.

    cond['bytes'] (B, max_length) int16: byte + 1, and 0 after the end.
    """
    need_ranges("bytes", width=(width, 4, 4096), depth=(depth, 1, 64), heads=(heads, 1, 256))

    def encode(captions: Sequence[str]) -> dict[str, np.ndarray]:
        ids = np.zeros((len(captions), max_length), np.int16)
        for row, caption in zip(ids, captions):
            read = np.frombuffer(caption.encode(errors="replace")[:max_length], np.uint8)
            row[: len(read)] = read.astype(np.int16) + 1
        return {"bytes": ids}

    if width % heads:
        raise UserError(
            f"config.text.encoder=bytes(width={width}): it must be a multiple of heads={heads}"
        )
    reader = Bert(257, max_length, width, depth, heads)
    like = {"bytes": jax.ShapeDtypeStruct((max_length,), np.int16)}
    return Encoder(
        encode,
        lambda caption: len(caption.encode(errors="replace")),
        like,
        Text(width, reader),
        max_length,
    )


MINILM = Bert(vocabulary=30_522, positions=512, width=384, depth=6, heads=12)


def minilm(max_length: int, weights: Callable[[str], Mapping[str, np.ndarray]]) -> Encoder:
    """all-MiniLM-L6-v2: the last layer's states, and their mean of unit length, which is the
    model's sentence embedding.

    weights('minilm') gives its tensors, with the file tokenizer.json as bytes; asked when the first
    caption is encoded.
    cond: 'tokens' (B, max_length, 384) float16, 'mask' (B, max_length) bool, 'pooled' (B, 384)
    float16. max_length counts the two marks that begin and end a text. UserError where the library
    tokenizers is absent.
    """
    if not 3 <= max_length <= MINILM.positions:
        raise UserError(
            f"config.text.max_length={max_length}: minilm reads 3 to {MINILM.positions} tokens"
        )

    @functools.cache
    def tokenizer():
        found = _tokenizer(weights("minilm")["tokenizer.json"])
        found.no_padding()
        found.no_truncation()
        return found

    @functools.cache
    def run():
        params = jax.tree.map(jnp.asarray, convert(weights("minilm"), MINILM.depth))
        return functools.partial(jax.jit(_states_and_mean), params)

    def encode(captions: Sequence[str]) -> dict[str, np.ndarray]:
        ids = np.zeros((-(-len(captions) // AT_ONCE) * AT_ONCE, max_length), np.int32)
        lengths = np.ones(len(ids), np.int32)
        for i, text in enumerate(tokenizer().encode_batch(list(captions))):
            read = (
                text.ids
                if len(text.ids) <= max_length
                else text.ids[: max_length - 1] + text.ids[-1:]
            )
            ids[i, : len(read)], lengths[i] = read, len(read)
        mask = np.arange(max_length) < lengths[:, None]
        parts = [
            run()(ids[i : i + AT_ONCE], mask[i : i + AT_ONCE]) for i in range(0, len(ids), AT_ONCE)
        ]
        tokens, pooled = (
            np.concatenate([np.asarray(x) for x in part])[: len(captions)] for part in zip(*parts)
        )
        return {"tokens": tokens, "mask": mask[: len(captions)], "pooled": pooled}

    like = {
        "tokens": jax.ShapeDtypeStruct((max_length, MINILM.width), np.float16),
        "mask": jax.ShapeDtypeStruct((max_length,), bool),
        "pooled": jax.ShapeDtypeStruct((MINILM.width,), np.float16),
    }
    return Encoder(
        encode,
        lambda caption: len(tokenizer().encode(caption).ids),
        like,
        Text(MINILM.width),
        max_length,
        cache_name=f"all-MiniLM-L6-v2-{max_length}",
    )


def _states_and_mean(params: Params, ids: Array, mask: Array) -> tuple[Array, Array]:
    states = MINILM.apply({"params": params}, ids, mask)
    pooled = mean(states, mask)
    pooled = pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)
    return (states * mask[..., None]).astype(jnp.float16), pooled.astype(jnp.float16)


def _tokenizer(file: np.ndarray):
    """tokenizer.json, as an array of bytes -> the tokenizer."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError(
            "the text encoder minilm needs the library tokenizers: pip install 'diffusion_jax[text]'"
        ) from None
    return Tokenizer.from_str(file.tobytes().decode())


def convert(tensors: Mapping[str, np.ndarray], count: int) -> Params:
    """The tensors of a BERT of `count` layers, by the names of Hugging Face's BertModel ->
    parameters of Bert.
    """

    def layer(name: str) -> dict[str, np.ndarray]:
        kind = "scale" if "LayerNorm" in name else "kernel"
        return {kind: tensors[f"{name}.weight"].T, "bias": tensors[f"{name}.bias"]}

    names = {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "project": "attention.output.dense",
        "norm_1": "attention.output.LayerNorm",
        "mlp_in": "intermediate.dense",
        "mlp_out": "output.dense",
        "norm_2": "output.LayerNorm",
    }
    segment = tensors["embeddings.token_type_embeddings.weight"][0]
    params = {
        "words": tensors["embeddings.word_embeddings.weight"],
        "norm": layer("embeddings.LayerNorm"),
        "places": tensors["embeddings.position_embeddings.weight"] + segment,
    }
    return params | {
        f"layer_{i}_{ours}": layer(f"encoder.layer.{i}.{theirs}")
        for i in range(count)
        for ours, theirs in names.items()
    }
