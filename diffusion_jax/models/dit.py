"""The diffusion transformer, DiT (Peebles & Xie 2023).

The paper is "Scalable diffusion models with transformers".
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.core.types import Array, Cond
from diffusion_jax.models import attention, layers
from diffusion_jax.models.attention import IDENTITY
from diffusion_jax.models.embeddings import KERNEL_INIT, ConditionEmbedding
from diffusion_jax.models.remat import product, rematerialized

# Table 1 of the paper. DiT-XL/2 is DiT(patch=2, **SIZES["XL"]).
SIZES = {
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "XL": {"width": 1152, "depth": 28, "heads": 16},
}

SMALL_INIT = nn.initializers.normal(0.02)  # of noise level and class, in the authors' code


class DiT(nn.Module):
    """The diffusion transformer F(x, c_noise, cond): (B, N_1, ..., N_d, C), (B,), dict -> the same.

    The output is float32 and exactly 0 at initialization. A series, an image or a volume (d = 1 to
    3 axes) is cut into patches, each of which becomes a token of `width` numbers. A positional
    embedding is added; `depth` blocks (see _Block) follow, and a linear layer back to pixels. All
    of them receive noise level and class by adaLN-Zero (section 3.2 of the paper). The calling
    convention and cond['label'] are those of unet.UNet. Each N_i must be a multiple of patch, and
    is free otherwise, because the positional embedding has no parameters.

    Attributes:
      num_classes: 0 is an unconditional network, which ignores labels; otherwise there is an
        embedding for each class and one for "no class".
      patch: extent of a patch along each axis; for images half of it is four times the work.
      width: size of a token, see SIZES.
      depth: number of blocks, see SIZES.
      heads: number of attention heads, see SIZES.
      mlp_ratio: hidden units of a block's MLP, as a multiple of width.
      dropout: rate after the hidden units; the paper has none.
      learn_variance: the output has 2C channels, the second C for the variance (Nichol & Dhariwal
        2021, eq. 15).
      noise_embedding: one of embeddings.NOISE_FEATURES; 'adm' in 1000 c_noise is the authors'.
      second_time: the network also receives cond['to'], the time at which a move ends (MeanFlow).
      dtype: 'float32' or 'bfloat16' for tokens and blocks. Parameters, norms, softmax, the
        embedding of noise level and class, last layer and output are float32.
      remat: see remat.rematerialized.
      attention_impl: see attention.multi_head.
      scan_blocks: runs the blocks in one loop, over parameters 'blocks' with a leading axis `depth`
        instead of 'block_0', ...; one block is compiled instead of all. For accelerators.
      identity_attention: names of self-attention blocks whose attention map is the identity, for
        perturbed-attention guidance (Ahn et al. 2024); parameters are not concerned.
      skipped: names of self-attention blocks that are left out, for skip-layer guidance.
    """

    num_classes: int = 0
    patch: int = 2
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    learn_variance: bool = False
    noise_embedding: str = "adm"
    second_time: bool = False
    dtype: str = "float32"
    remat: str = "none"
    attention_impl: str = "auto"
    scan_blocks: bool = False
    identity_attention: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, x: Array, c_noise: Array, cond: Cond = None, train: bool = False) -> Array:
        """Evaluates the network.

        Args:
          x: scaled noised samples or latents, (B, N_1, ..., N_d, C).
          c_noise: the noise level, scalar or (B,).
          cond: None, or a dict with 'label' (B,) and, with second_time, 'to' (B,).
          train: turns dropout on; then rngs={'dropout': key} is needed.

        Returns:
          F, (B, N_1, ..., N_d, C or 2C) float32.

        Raises:
          UserError: while tracing, for sizes and options that do not fit.
        """
        self._check(x)
        channels = x.shape[-1] * (2 if self.learn_variance else 1)
        condition = ConditionEmbedding(
            256,
            self.width,
            self.num_classes,
            self.noise_embedding,
            SMALL_INIT,
            SMALL_INIT,
            self.second_time,
            name="condition",
        )
        embedding = jax.nn.silu(condition(c_noise, cond or {}, x.shape[0]))
        patches = layers.space_to_depth(x, self.patch)  # (B, N_1 / patch, ..., patch^d C)
        b, *sizes, _ = patches.shape
        h = nn.Dense(self.width, kernel_init=KERNEL_INIT, dtype=self.dtype, name="first")(patches)
        positions = position_embedding(sizes, self.width).astype(self.dtype)
        h = h.reshape(b, math.prod(sizes), self.width) + positions
        h = self._blocks(h, embedding, train)
        shift, scale = modulation(embedding, self.width, 2, "float32", "last_modulation")
        h = layer_norm(h, shift, scale)
        outputs = channels * self.patch ** len(sizes)
        last = nn.Dense(outputs, kernel_init=layers.ZERO_INIT, name="last")
        h = last(h).reshape(b, *sizes, -1)  # float32
        return layers.depth_to_space(h, self.patch).astype(jnp.float32)

    def _blocks(self, h: Array, embedding: Array, train: bool) -> Array:
        make = functools.partial(
            rematerialized(_Block, self.remat, static_argnums=(3,)),
            self.heads,
            self.mlp_ratio,
            self.dropout,
            dtype=self.dtype,
        )
        if not self.scan_blocks:
            for name in (f"block_{i}" for i in range(self.depth)):
                impl = IDENTITY if name in self.identity_attention else self.attention_impl
                if name not in self.skipped:
                    h = make(impl=impl, name=name)(h, embedding, train)
            return h
        loop = nn.scan(
            lambda block, h, embedding: (block(h, embedding, train), None),
            length=self.depth,
            in_axes=nn.broadcast,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
        )
        return loop(make(impl=self.attention_impl, name="blocks"), h, embedding)[0]

    def _check(self, x: Array) -> None:
        """Checks options and shapes while tracing."""
        if self.dtype not in ("float32", "bfloat16"):
            raise unknown("dtype", self.dtype, ["float32", "bfloat16"])
        if self.scan_blocks and (self.identity_attention or self.skipped):
            raise UserError(
                "config.model.scan_blocks=True has one block for all, of which guidance cannot "
                "perturb a part; choose another guide, such as cfg()"
            )
        layers.check_axes(x, "the DiT")
        if any(size % self.patch for size in x.shape[1:-1]):
            raise UserError(
                f"{layers.sizes_in_words(x)} do not fit a DiT with patch={self.patch}: they must "
                "be multiples of it; resize the data, or choose another patch"
            )
        if self.width % self.heads or self.width % 4:
            raise UserError(
                f"width={self.width} must be a multiple of heads={self.heads} and of 4; see "
                "dit.SIZES"
            )


class _Block(nn.Module):
    """A block with adaLN-Zero, (B, T, D), silu of the condition (B, D) -> (B, T, D).

        h + gate_1 project(attention(qkv(norm(h) (1 + scale_1) + shift_1))), then
        h + gate_2 mlp_out(gelu(mlp_in(norm(h) (1 + scale_2) + shift_2)))

    It is the identity at initialization. Cross-attention to the tokens of a text would stand
    between the two. The outputs of `qkv` are ordered by head, then (q, k, v), then channel of the
    head, so that a contiguous part of them, a tensor shard, consists of whole heads.
    """

    heads: int
    mlp_ratio: float = 4.0
    dropout: float = 0.0
    impl: str = "auto"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, h: Array, embedding: Array, train: bool) -> Array:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation(
            embedding, h.shape[-1], 6, self.dtype, "modulation"
        )
        h = h + gate_1.astype(self.dtype) * self._attention(
            layer_norm(h, shift_1, scale_1).astype(self.dtype)
        )
        return h + gate_2.astype(self.dtype) * self._mlp(
            layer_norm(h, shift_2, scale_2).astype(self.dtype), train
        )

    def _dense(self, features: int, name: str) -> nn.Dense:
        return nn.Dense(features, kernel_init=KERNEL_INIT, dtype=self.dtype, name=name)

    def _attention(self, h: Array) -> Array:
        b, tokens, width = h.shape
        qkv = product(self._dense(3 * width, "qkv")(h))
        qkv = jnp.swapaxes(qkv.reshape(b, tokens, self.heads, 3, width // self.heads), 2, 3)
        h = attention.self_attention(qkv, self.impl).reshape(b, tokens, width)
        return product(self._dense(width, "project")(h))

    def _mlp(self, h: Array, train: bool) -> Array:
        width = h.shape[-1]
        h = product(self._dense(int(width * self.mlp_ratio), "mlp_in")(h))
        h = nn.Dropout(self.dropout, deterministic=not train)(jax.nn.gelu(h, approximate=True))
        return product(self._dense(width, "mlp_out")(h))


def layer_norm(h: Array, shift: Array, scale: Array) -> Array:
    """Computes norm(h) (1 + scale) + shift in float32, with a norm that has no parameters.

    It is to be called in a compact method.

    Args:
      h: tokens, (B, T, D).
      shift: added to each token, (B, 1, D).
      scale: added to the factor 1 of each token, (B, 1, D).

    Returns:
      (B, T, D) float32.
    """
    norm = nn.LayerNorm(epsilon=1e-6, use_scale=False, use_bias=False, dtype=jnp.float32)
    return norm(h) * (1 + scale) + shift


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


def position_embedding(sizes: Sequence[int], features: int) -> Array:
    """The positions of the tokens (Vaswani et al. 2017, section 3.5; in 2D as MAE, He et al. 2022).

        [sin(i w_j), cos(i w_j)],   w_j = 10000^(-j / n),   j = 0 .. n - 1,   n = features / (2 d)

    An equal part of the features is of each of the d axes, the last axis first: of an image the
    first half is of the column i, the second half of the row i. What three axes leave over is 0.

    Args:
      sizes: number of tokens along each axis, (N_1, ..., N_d).
      features: size of a token.

    Returns:
      (N_1 ... N_d, features) float32, with the last axis varying fastest.
    """
    count = features // (2 * len(sizes))
    frequency = 10_000.0 ** (-np.arange(count) / count)
    places = np.indices(sizes).reshape(len(sizes), -1)[::-1]
    angles = [position[:, None] * frequency for position in places]
    found = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=-1)
    rest = features - found.shape[1]
    return jnp.asarray(np.pad(found, ((0, 0), (0, rest))), jnp.float32)


# The members of the family, which a config may name.
NETWORKS = (DiT,)
