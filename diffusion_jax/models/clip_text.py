"""CLIP's text transformer (Radford et al. 2021) and its tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core import reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array

ACTIVATIONS = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


class ClipStates(NamedTuple):
    """What CLIP makes of texts.

    Attributes:
      states: the states of the chosen layer, (B, L, width) float32.
      pooled: the projection of the normalized last state at the end of the text, (B, projection),
        or that state itself without a projection, (B, width).
    """

    states: Array
    pooled: Array


class ClipText(nn.Module):
    """CLIP's text transformer: ids (B, L), ends (B,) -> ClipStates, float32.

        h = word + position, then in each layer
        h <- h + attention(norm(h)),    h <- h + W2 act(W1 norm(h))

    A token attends to itself and to those before it. Those beyond the end of a text are not masked.

    Attributes:
      vocabulary: number of ids.
      positions: largest L.
      width: size of a state.
      depth: number of layers.
      heads: number of attention heads.
      hidden: width of the perceptron.
      activation: a key of ACTIVATIONS.
      epsilon: of the layer norms.
      projection: size of `pooled`; 0 is no projection.
      skip: layers that `states` leaves out: 0 is the last layer, 1 the one before it (SDXL).
      normalized: whether `states` are normalized by the last norm.
    """

    vocabulary: int = 49_408
    positions: int = 77
    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    activation: str = "quick_gelu"
    epsilon: float = 1e-5
    projection: int = 0
    skip: int = 0
    normalized: bool = True

    @nn.compact
    def __call__(self, ids: Array, ends: Array) -> ClipStates:
        """Computes the states of texts.

        Args:
          ids: the tokens, (B, L) integers from 0 to vocabulary - 1, L at most `positions`.
          ends: the place of the token that ends a text, (B,).

        Returns:
          The states of a layer, and a vector for each text.
        """
        init = nn.initializers.normal(0.02)
        words = jnp.asarray(self.param("words", init, (self.vocabulary, self.width)))
        places = jnp.asarray(self.param("places", init, (self.positions, self.width)))
        h = words[ids] + places[: ids.shape[1]]
        states = h
        for i in range(self.depth):
            h = _Layer(self.heads, self.hidden, self.activation, self.epsilon, name=f"layer_{i}")(h)
            states = h if i + self.skip < self.depth else states
        norm = nn.LayerNorm(epsilon=self.epsilon, name="last_norm")
        pooled = norm(h)[jnp.arange(len(ids)), ends]
        if self.projection:
            project = nn.Dense(self.projection, use_bias=False, kernel_init=init, name="projection")
            pooled = project(pooled)
        return ClipStates(norm(states) if self.normalized else states, pooled)


class _Layer(nn.Module):
    """A layer of the transformer, (B, L, width) -> (B, L, width)."""

    heads: int
    hidden: int
    activation: str
    epsilon: float

    @nn.compact
    def __call__(self, h: Array) -> Array:
        b, length, width = h.shape
        seen = nn.LayerNorm(epsilon=self.epsilon, name="norm_1")(h)
        qkv = nn.Dense(3 * width, name="qkv")(seen).reshape(b, length, 3, self.heads, -1)
        q, k, v = jnp.unstack(qkv, axis=2)
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
        before = jnp.tri(length, dtype=bool)
        share = jax.nn.softmax(jnp.where(before, logits, -jnp.inf), axis=-1)
        seen = jnp.einsum("bhqk,bkhd->bqhd", share, v).reshape(h.shape)
        h = h + nn.Dense(width, name="project")(seen)
        inner = nn.Dense(self.hidden, name="mlp_in")(
            nn.LayerNorm(epsilon=self.epsilon, name="norm_2")(h)
        )
        return h + nn.Dense(width, name="mlp_out")(ACTIVATIONS[self.activation](inner))


# ---- the tokenizer
SPECIAL = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
# CLIP's pieces of a text: the special tokens, English contractions, words, digits, the rest
_PIECES = (
    r"<\|startoftext\|>|<\|endoftext\|>"
    r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


class ClipTokenizer(NamedTuple):
    """A tokenizer of CLIP.

    Attributes:
      encode: texts -> their tokens with those that begin and end a text, of any length.
      end: the id of the token that ends a text.
      pad: the id that follows it.
      size: one more than the largest id.
    """

    encode: Callable[[Sequence[str]], list[list[int]]]
    end: int
    pad: int
    size: int

    def ids(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Encodes texts; longer ones are cut off before their end.

        Args:
          texts: N texts.
          length: L.

        Returns:
          (ids (N, L) int32, the first places of tokens that end a text (N,)).
        """
        ids = np.full((len(texts), length), self.pad, np.int32)
        for row, found in zip(ids, self.encode(texts)):
            kept = found if len(found) <= length else [*found[: length - 1], found[-1]]
            row[: len(kept)] = kept
        return ids, np.argmax(ids == self.end, axis=1)


def tokenizer(files: Mapping[str, bytes], what: str) -> ClipTokenizer:
    """Makes a tokenizer of the files of its folder, by the library tokenizers.

    Args:
      files: the contents of tokenizer.json, or of vocab.json and merges.txt; and, if they exist, of
        tokenizer_config.json and special_tokens_map.json.
      what: the name of the folder, for messages.

    Raises:
      UserError: for files that are no tokenizer, and where the library is not installed.
    """
    try:
        import tokenizers  # noqa: PLC0415  an optional dependency: tokenizers
    except ImportError:
        raise UserError(
            "CLIP's text encoder needs the library tokenizers: pip install 'diffusion_jax[text]'"
        ) from None
    special = _special(files, what)
    try:
        if "tokenizer.json" in files:
            made = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
        else:
            made = _byte_pairs(tokenizers, files, special, what)
        made.no_padding()
        made.no_truncation()
        made.add_special_tokens(list(dict.fromkeys(special.values())))
        end, pad = (made.token_to_id(special[name]) for name in ("eos_token", "pad_token"))
        empty = made.encode("").ids
    except UserError:
        raise
    except Exception as error:  # the library raises Exception itself
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"'{what}' has no tokenizer that can be read: {first:.200}") from error
    if len(empty) != 2 or empty[1] != end:
        raise UserError(
            f"'{what}' is no tokenizer of CLIP: the empty text is {empty}, which must be two "
            f"tokens, the second {special['eos_token']}"
        )

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [found.ids for found in made.encode_batch(list(texts))]

    return ClipTokenizer(encode, end, pad, max(made.get_vocab().values()) + 1)


def _special(files: Mapping[str, bytes], what: str) -> dict[str, str]:
    """The special tokens of a folder, where they are texts or objects with a 'content'."""
    found = dict(SPECIAL)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        stored = reading.json_text(files.get(name, b"{}"), f"'{what}/{name}'", reading.table())
        for key in SPECIAL:
            value = stored.get(key)
            value = value.get("content") if isinstance(value, dict) else value
            found |= {key: value} if isinstance(value, str) else {}
    return found


def _byte_pairs(
    tokenizers: Any, files: Mapping[str, bytes], special: Mapping[str, str], what: str
) -> Any:
    """The tokenizer of vocab.json and merges.txt: byte pairs of words that end in '</w>'."""
    rule = reading.table(reading.integer(0, 2**31))
    vocabulary = reading.json_text(files["vocab.json"], f"'{what}/vocab.json'", rule)
    lines = files["merges.txt"].decode().splitlines()
    merges = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    options = {"unk_token": special["unk_token"], "end_of_word_suffix": "</w>"}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges, **options))
    made.normalizer = tokenizers.normalizers.Sequence(
        [
            tokenizers.normalizers.NFC(),
            tokenizers.normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            tokenizers.normalizers.Lowercase(),
        ]
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(_PIECES), "removed", invert=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bos, eos = special["bos_token"], special["eos_token"]
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{bos} $A {eos}", special_tokens=[(one, vocabulary[one]) for one in (bos, eos)]
    )
    return made
