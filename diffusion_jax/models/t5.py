"""The encoder of T5 1.1 (Raffel et al. 2020; Shazeer 2020) and its tokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array


class T5Encoder(nn.Module):
    """T5's encoder: ids (B, L) -> states (B, L, width) float32.

        h = word, then in each layer
        h <- h + attention(norm(h)),    h <- h + W3 (gelu(W1 norm(h)) * W2 norm(h))

    and a norm at the end. Norms are root mean squares, no layer has a bias, and the logits of the
    attention are q k^T + r, not divided by a root, with one number r for each head and bucket of
    the distance of two tokens. All tokens are attended to, those that fill up a text included.

    Attributes:
      vocabulary: number of ids.
      width: size of a state.
      depth: number of layers.
      heads: number of attention heads.
      head_width: channels of a head.
      hidden: width of the perceptron.
      buckets: number of buckets of distances, half of them of the tokens that follow.
      farthest: the distance from which on all tokens are in the last bucket.
      epsilon: of the norms.
    """

    vocabulary: int = 32_128
    width: int = 4096
    depth: int = 24
    heads: int = 64
    head_width: int = 64
    hidden: int = 10_240
    buckets: int = 32
    farthest: int = 128
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, ids: Array) -> Array:
        """Computes the states of texts.

        Args:
          ids: the tokens, (B, L) integers from 0 to vocabulary - 1.

        Returns:
          (B, L, width).
        """
        init = nn.initializers.normal(1.0)
        words = jnp.asarray(self.param("words", init, (self.vocabulary, self.width)))
        by_distance = jnp.asarray(self.param("distances", init, (self.buckets, self.heads)))
        bias = by_distance[_distance_buckets(ids.shape[1], self.buckets, self.farthest)]
        bias, h = bias.transpose(2, 0, 1), words[ids]
        for i in range(self.depth):
            sizes = self.heads, self.head_width, self.hidden, self.epsilon
            h = _Layer(*sizes, name=f"layer_{i}")(h, bias)
        return nn.RMSNorm(epsilon=self.epsilon, name="last_norm")(h)


class _Layer(nn.Module):
    """A layer of the encoder, (B, L, width) and the bias of the logits (heads, L, L) -> states."""

    heads: int
    head_width: int
    hidden: int
    epsilon: float

    @nn.compact
    def __call__(self, h: Array, bias: Array) -> Array:
        b, length, width = h.shape
        seen = nn.RMSNorm(epsilon=self.epsilon, name="norm_1")(h)
        inner = self.heads * self.head_width
        qkv = nn.Dense(3 * inner, use_bias=False, name="qkv")(seen)
        q, k, v = jnp.unstack(qkv.reshape(b, length, 3, self.heads, self.head_width), axis=2)
        share = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) + bias, axis=-1)
        seen = jnp.einsum("bhqk,bkhd->bqhd", share, v).reshape(b, length, inner)
        h = h + nn.Dense(width, use_bias=False, name="project")(seen)
        seen = nn.RMSNorm(epsilon=self.epsilon, name="norm_2")(h)
        gate, linear = jnp.split(
            nn.Dense(2 * self.hidden, use_bias=False, name="mlp_in")(seen), 2, axis=-1
        )
        gated = jax.nn.gelu(gate, approximate=True) * linear
        return h + nn.Dense(width, use_bias=False, name="mlp_out")(gated)


def _distance_buckets(length: int, buckets: int, farthest: int) -> np.ndarray:
    """The buckets of the distances of tokens (Raffel et al. 2020, section 2.1).

    Half of the buckets are of tokens that follow. Of each half, the first half are of the distances
    0, 1, 2, ..., and the others grow in proportion to the distance up to `farthest`.

    Args:
      length: L, the number of tokens.
      buckets: number of buckets.
      farthest: from this distance on all tokens are in the last bucket.

    Returns:
      (L, L) integers from 0 to buckets - 1: of the second token as the first one sees it.
    """
    steps = np.arange(length)[None] - np.arange(length)[:, None]
    half, near = buckets // 2, buckets // 4
    distance = np.abs(steps)
    share = np.log(np.maximum(distance, 1) / near) / math.log(farthest / near)
    far = near + np.int64(share * (half - near))
    return np.where(distance < near, distance, np.minimum(far, half - 1)) + half * (steps > 0)


# ---- the tokenizer
class T5Tokenizer(NamedTuple):
    """A tokenizer of T5.

    Attributes:
      encode: texts -> their tokens with the one that ends a text, of any length.
      pad: the id that follows it.
      size: one more than the largest id.
    """

    encode: Callable[[Sequence[str]], list[list[int]]]
    pad: int
    size: int

    def ids(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Encodes texts; longer ones are cut off before their end.

        Args:
          texts: N texts.
          length: L.

        Returns:
          (N, L) int32.
        """
        ids = np.full((len(texts), length), self.pad, np.int32)
        for row, found in zip(ids, self.encode(texts)):
            kept = found if len(found) <= length else [*found[: length - 1], found[-1]]
            row[: len(kept)] = kept
        return ids


def tokenizer(file: bytes, what: str) -> T5Tokenizer:
    """Makes a tokenizer of a tokenizer.json, by the library tokenizers.

    Args:
      file: the content of tokenizer.json.
      what: the name of its folder, for messages.

    Raises:
      UserError: for a file that is no tokenizer of T5, and where the library is not installed.
    """
    try:
        import tokenizers  # noqa: PLC0415  an optional dependency: tokenizers
    except ImportError:
        raise UserError(
            "T5's text encoder needs the library tokenizers: pip install 'diffusion_jax[text]'"
        ) from None
    try:
        made = tokenizers.Tokenizer.from_str(file.decode())
        made.no_padding()
        made.no_truncation()
        end, pad = made.token_to_id("</s>"), made.token_to_id("<pad>")
        empty = made.encode("").ids
    except Exception as error:  # the library raises Exception itself
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"'{what}' has no tokenizer that can be read: {first:.200}") from error
    if None in (end, pad) or empty != [end]:
        raise UserError(
            f"'{what}' is no tokenizer of T5: the empty text is {empty}, which must be the one "
            "token </s>, and there must be a <pad>"
        )

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [found.ids for found in made.encode_batch(list(texts))]

    return T5Tokenizer(encode, pad, max(made.get_vocab().values()) + 1)
