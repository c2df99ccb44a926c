"""The block of diffusion transformers, and its parts.

    h + gate_1 attention(norm(h) (1 + scale_1) + shift_1), then
    h + gate_2 mlp(norm(h) (1 + scale_2) + shift_2)

Shifts, scales and gates come from the condition (adaLN-Zero, Peebles & Xie 2023, section 3.2), or
are 0, 0 and 1 where the condition consists of tokens among the others. The options are those of
later papers:

    norm       LayerNorm, or RMSNorm (Zhang & Sennrich 2019)
    attention  queries and keys are normalized (Dehghani et al. 2023; Esser et al. 2024, section
               5.3.2) and rotated (positions.py)
    mlp        GELU (Hendrycks & Gimpel 2016), or SwiGLU (Shazeer 2020)
    text       cross-attention to its states between the two (Chen et al. 2024, PixArt-alpha)
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.core.errors import unknown
from diffusion_jax.core.types import Array
from diffusion_jax.models import attention, layers, positions
from diffusion_jax.models.dropout import Dropout
from diffusion_jax.models.embeddings import KERNEL_INIT
from diffusion_jax.models.remat import product
from diffusion_jax.models.text import TextFeatures

QK_NORMS = ("none", "rms", "layer")
NEUTRAL = (0.0, 0.0, 1.0)  # shift, scale and gate of a part that takes no condition


class TransformerBlock(nn.Module):
    """A transformer block, (B, T, D), silu of the condition (B, D) -> (B, T, D).

        h + gate_1 project(attention(qkv(norm(h) (1 + scale_1) + shift_1))), then
        h + gate_2 mlp_out(gelu(mlp_in(norm(h) (1 + scale_2) + shift_2)))

    With a condition it is the identity at initialization. The outputs of `qkv` are ordered by head,
    then (q, k, v), then channel of the head, so that a contiguous part of them, a tensor shard,
    consists of whole heads.

    Attributes:
      heads: number of attention heads.
      mlp_ratio: hidden units of the MLP, as a multiple of D.
      dropout: rate after the hidden units.
      impl: see attention.multi_head.
      dtype: type of the matrix products; norms and softmax are float32.
      rms_norm: RMSNorm with a learned scale instead of LayerNorm.
      qk_norm: one of QK_NORMS, of queries and keys within a head, with learned parameters.
      swiglu: mlp_out(silu(mlp_gate(h)) mlp_in(h)) with two thirds of the hidden units, which is as
        many parameters.
    """

    heads: int
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    impl: str = "auto"
    dtype: str = "float32"
    rms_norm: bool = False
    qk_norm: str = "none"
    swiglu: bool = False

    @nn.compact
    def __call__(
        self,
        h: Array,
        embedding: Array | None,
        train: bool,
        angles: Array | None = None,
        text: TextFeatures | None = None,
        identity: Array | None = None,
    ) -> Array:
        """Evaluates the block.

        Args:
          h: tokens, (B, T, D).
          embedding: silu of the embedding of the condition, (B, D); or shifts, scales and gates
            that all blocks share, (B, 6, D), to which the block adds a table of its own (Chen et
            al. 2024, section 2.3, adaLN-single); or None where the condition is among the tokens,
            and then norms have learned parameters.
          train: turns dropout on.
          angles: of rotary embeddings, see positions.rotary_angles; None for none.
          text: of which the tokens attend to the states; None without captions.
          identity: whether the map of the self-attention is the identity, a bool scalar; None is
            what `impl` says.

        Returns:
          (B, T, D).
        """
        if embedding is None:
            parts = 2 * NEUTRAL
        elif embedding.ndim == 3:
            init = nn.initializers.normal(h.shape[-1] ** -0.5)
            parts = shared_modulation(self.param("table", init, embedding.shape[1:]), embedding)
        else:
            parts = modulation(embedding, h.shape[-1], 6, self.dtype, "modulation")
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = parts
        learned = embedding is None
        inner = modulated_norm(h, shift_1, scale_1, self.rms_norm, learned, "norm_1")
        seen = self._attention(inner.astype(self.dtype), angles, identity)
        h = h + jnp.asarray(gate_1, self.dtype) * seen
        if text is not None:
            options = self.heads, self.impl, self.dtype, self.qk_norm
            h = h + TextAttention(*options, name="text")(h, text)
        inner = modulated_norm(h, shift_2, scale_2, self.rms_norm, learned, "norm_2")
        inner = mlp(
            inner.astype(self.dtype), self.mlp_ratio, self.swiglu, self.dropout, train, self.dtype
        )
        return h + jnp.asarray(gate_2, self.dtype) * inner

    def _attention(self, h: Array, angles: Array | None, identity: Array | None) -> Array:
        b, tokens, width = h.shape
        qkv = by_head(h, self.heads, self.dtype, "qkv")
        if self.qk_norm == "none" and angles is None:
            h = attention.self_attention(qkv, self.impl)
        else:
            q, k, v = jnp.unstack(qkv, axis=2)
            q = queries_or_keys(q, self.qk_norm, angles, "query_norm")
            k = queries_or_keys(k, self.qk_norm, angles, "key_norm")
            h = attention.multi_head(q, k, v, self.impl)
        if identity is not None:
            h = jnp.where(identity, qkv[:, :, 2], h)
        return product(linear(width, self.dtype, "project")(h.reshape(b, tokens, width)))


class TextAttention(nn.Module):
    """Cross-attention of tokens to the states of a text (Chen et al. 2024, section 2.3).

        project(attention(query(h), key(states), value(states)))

    The projection is zero at initialization.

    Attributes:
      heads: number of attention heads.
      impl: see attention.multi_head.
      dtype: type of the matrix products.
      qk_norm: see queries_or_keys.
    """

    heads: int
    impl: str = "auto"
    dtype: str = "float32"
    qk_norm: str = "none"

    @nn.compact
    def __call__(self, h: Array, text: TextFeatures) -> Array:
        """Attends to the states that exist.

        Args:
          h: tokens, (B, T, D).
          text: the states and their mask.

        Returns:
          (B, T, D).
        """
        width = h.shape[-1]
        impl = "auto" if self.impl == attention.IDENTITY else self.impl
        q, k, v = (
            product(linear(width, self.dtype, name)(a))
            for name, a in (("query", h), ("key", text.states), ("value", text.states))
        )
        q, k, v = (a.reshape(*a.shape[:2], self.heads, width // self.heads) for a in (q, k, v))
        q = queries_or_keys(q, self.qk_norm, None, "query_norm")
        k = queries_or_keys(k, self.qk_norm, None, "key_norm")
        h = attention.multi_head(q, k, v, impl, text.mask).reshape(h.shape)
        return nn.Dense(width, kernel_init=layers.ZERO_INIT, dtype=self.dtype, name="project")(h)


def linear(features: int, dtype: str, name: str) -> nn.Dense:
    """A linear layer with the initialization of the authors' code.

    Args:
      features: number of outputs.
      dtype: type of the product.
      name: name of the layer, and so of its parameters.

    Returns:
      The module.
    """
    return nn.Dense(features, kernel_init=KERNEL_INIT, dtype=dtype, name=name)


def by_head(h: Array, heads: int, dtype: str, name: str) -> Array:
    """The queries, keys and values of tokens, by one linear layer.

    It is to be called in a compact method.

    Args:
      h: tokens, (B, T, D).
      heads: number of heads.
      dtype: type of the product.
      name: name of the layer, whose outputs are ordered by head, then (q, k, v), then channel.

    Returns:
      (B, T, 3, heads, D / heads).
    """
    b, tokens, width = h.shape
    qkv = product(linear(3 * width, dtype, name)(h))
    return jnp.swapaxes(qkv.reshape(b, tokens, heads, 3, width // heads), 2, 3)


def mlp(
    h: Array,
    ratio: float,
    swiglu: bool,
    dropout: float,
    train: bool,
    dtype: str,
    prefix: str = "",
) -> Array:
    """The MLP of a block: mlp_out(gelu(mlp_in(h))), or with a gate.

    It is to be called in a compact method.

    Args:
      h: tokens, (B, T, D).
      ratio: hidden units, as a multiple of D.
      swiglu: mlp_out(silu(mlp_gate(h)) mlp_in(h)) with two thirds of the hidden units.
      dropout: rate after the hidden units.
      train: turns dropout on.
      dtype: type of the products.
      prefix: in front of the names of the layers.

    Returns:
      (B, T, D).
    """
    width, hidden = h.shape[-1], int(h.shape[-1] * ratio)
    if swiglu:
        hidden = 2 * hidden // 3
        gate = product(linear(hidden, dtype, f"{prefix}mlp_gate")(h))
        h = jax.nn.silu(gate) * product(linear(hidden, dtype, f"{prefix}mlp_in")(h))
    else:
        h = jax.nn.gelu(product(linear(hidden, dtype, f"{prefix}mlp_in")(h)), approximate=True)
    h = Dropout(dropout)(h, train)
    return product(linear(width, dtype, f"{prefix}mlp_out")(h))


def queries_or_keys(x: Array, norm: str, angles: Array | None, name: str) -> Array:
    """Normalizes and rotates the queries or the keys of an attention.

    It is to be called in a compact method.

    Args:
      x: (B, T, heads, D).
      norm: one of QK_NORMS. 'rms' and 'layer' normalize the channels of each head, in float32, with
        parameters that all heads share.
      angles: see positions.rotate; None does not rotate.
      name: name of the norm, and so of its parameters.

    Returns:
      (B, T, heads, D) of x's type.

    Raises:
      UserError: for another norm.
    """
    dtype = x.dtype
    if norm == "rms":
        x = nn.RMSNorm(epsilon=1e-6, dtype=jnp.float32, name=name)(x)
    elif norm == "layer":
        x = nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name=name)(x)  # epsilon of PyTorch's
    elif norm != "none":
        raise unknown("qk_norm", norm, QK_NORMS)
    return (x if angles is None else positions.rotate(x, angles)).astype(dtype)


def modulated_norm(
    h: Array,
    shift: Array | float,
    scale: Array | float,
    rms: bool = False,
    learned: bool = False,
    name: str | None = None,
) -> Array:
    """Computes norm(h) (1 + scale) + shift in float32.

    It is to be called in a compact method.

    Args:
      h: tokens, (B, T, D).
      shift: added to each token, (B, 1, D).
      scale: added to the factor 1 of each token, (B, 1, D).
      rms: RMSNorm, which has a learned scale, instead of LayerNorm.
      learned: whether LayerNorm has a learned scale and bias.
      name: name of the norm, and so of its parameters.

    Returns:
      (B, T, D) float32.
    """
    if rms:
        norm = nn.RMSNorm(epsilon=1e-6, dtype=jnp.float32, name=name)
    else:
        norm = nn.LayerNorm(
            epsilon=1e-6, use_scale=learned, use_bias=learned, dtype=jnp.float32, name=name
        )
    return norm(h) * (1 + scale) + shift


def shared_modulation(table: Array, shared: Array) -> list[Array]:
    """Shifts, scales and gates of a part of a network: a table and what the condition adds.

    Args:
      table: parameters of the part, (P, D).
      shared: of the condition, (B, P, D).

    Returns:
      A list of P arrays (B, 1, D).
    """
    return jnp.split(table.astype(shared.dtype) + shared, table.shape[0], axis=1)


def modulation(embedding: Array, width: int, parts: int, dtype: str, name: str) -> list[Array]:
    """A linear layer from the embedding to shifts, scales and gates, zero at initialization.

    It is to be called in a compact method.

    Args:
      embedding: embedding of the condition, (B, E).
      width: size of a token.
      parts: number of results.
      dtype: type of the product. A third of a block's parameters are here, so that under fsdp it
        decides how much is communicated.
      name: name of the layer, and so of its parameters.

    Returns:
      A list of `parts` arrays (B, 1, width).
    """
    out = nn.Dense(parts * width, kernel_init=layers.ZERO_INIT, dtype=dtype, name=name)(embedding)
    return jnp.split(out[:, None, :], parts, axis=-1)
