"""BERT's encoder, and its parameters from published weights."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.types import Array, Params
from diffusion_jax.models import attention


class Bert(nn.Module):
    """BERT's encoder (Devlin et al. 2019): ids (B, L), mask (B, L) -> states (B, L, width) float32.

        h = norm(word + position), then in each layer
        h <- norm(h + attention(h)),    h <- norm(h + W2 gelu(W1 h))

    This is the encoder of Vaswani et al. 2017 with the exact gelu and without dropout. The
    embedding of BERT's first segment is part of the positions (see `convert`).

    Attributes:
      vocabulary: number of ids.
      positions: largest L.
      width: size of a state.
      depth: number of layers.
      heads: number of attention heads.
    """

    vocabulary: int
    positions: int
    width: int
    depth: int
    heads: int

    @nn.compact
    def __call__(self, ids: Array, mask: Array) -> Array:
        """Computes the states of a text.

        Args:
          ids: the words, (B, L) integers from 0 to vocabulary - 1, L at most `positions`.
          mask: which of the words exist, (B, L) bool; the states ignore the others.

        Returns:
          The states, (B, L, width) float32.
        """
        init = nn.initializers.normal(0.02)
        norm = functools.partial(nn.LayerNorm, epsilon=1e-12)
        dense = functools.partial(nn.Dense, kernel_init=init)
        # parameters may be NumPy arrays, which asarray lets a tracer index
        words = jnp.asarray(self.param("words", init, (self.vocabulary, self.width)))
        positions = jnp.asarray(self.param("places", init, (self.positions, self.width)))
        h = norm(name="norm")(words[ids] + positions[: ids.shape[1]])
        for i in range(self.depth):
            q, k, v = (
                dense(self.width, name=f"layer_{i}_{part}")(h) for part in ("query", "key", "value")
            )
            q, k, v = (a.reshape(*a.shape[:2], self.heads, -1) for a in (q, k, v))
            seen = attention.multi_head(q, k, v, "plain", mask).reshape(h.shape)
            project = dense(self.width, name=f"layer_{i}_project")
            h = norm(name=f"layer_{i}_norm_1")(h + project(seen))
            inner = dense(4 * self.width, name=f"layer_{i}_mlp_in")(h)
            outer = dense(self.width, name=f"layer_{i}_mlp_out")
            h = norm(name=f"layer_{i}_norm_2")(h + outer(jax.nn.gelu(inner, approximate=False)))
        return h


def convert(tensors: Mapping[str, np.ndarray], count: int) -> Params:
    """Converts the tensors of a BERT, by the names of Hugging Face's BertModel.

    Args:
      tensors: name -> tensor.
      count: number of layers.

    Returns:
      Parameters of `Bert`.
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
