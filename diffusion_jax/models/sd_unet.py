"""The U-Net of latent diffusion with captions: Stable Diffusion 1, 2 and XL.

Rombach et al. 2022, section 3.3; Podell et al. 2023 (SDXL), section 2. Its layout is that of
UNet2DConditionModel in diffusers.
"""

from __future__ import annotations

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.core.types import Array, Cond
from diffusion_jax.models import attention, layers
from diffusion_jax.models.attention import IDENTITY
from diffusion_jax.models.embeddings import ConditionEmbedding, adm
from diffusion_jax.models.normalization import group_norm
from diffusion_jax.models.remat import product, rematerialized
from diffusion_jax.models.text import TextFeatures

NORM_EPSILON = 1e-6  # of the group norm before the transformer blocks


class SDUNet(nn.Module):
    """The U-Net F(x, c_noise, cond): (B, H, W, C), (B,), dict -> (B, H, W, C) float32.

    It is the U-Net of DDPM whose attention blocks are transformers: self-attention of the pixels,
    cross-attention to the states of a text, and a gated perceptron. H and W must be multiples of
    2^(levels - 1).

    Attributes:
      num_classes: not used; the network has captions and no classes.
      text: reads captions out of cond (models/text.py); it is needed.
      width: channels of the first level.
      multipliers: level i has width * multipliers[i] channels, and half the resolution of the level
        before.
      blocks: residual blocks per level of the encoder; the decoder has one more per level.
      depth: transformer blocks after each residual block of a level; 0 is no attention there.
      middle_depth: transformer blocks in the middle.
      heads: attention heads of each level; the middle has those of the last.
      linear: the maps into and out of a transformer are linear maps (2 and XL), which are stored
        as matrices, instead of 1x1 convolutions.
      sizes: features of each of the numbers cond['sizes'] (B, 6): the height and width of the
        original image, the top and left of its crop, and the height and width of the image (SDXL,
        section 2.2). They and the pooled text enter the embedding of the condition. 0 is neither.
      dropout: rate between the two convolutions of a residual block.
      norm: (groups, epsilon) of the group norms.
      dtype: one of layers.DTYPES, for convolutions and attention. Parameters, norms, softmax,
        embedding, last convolution and output are float32.
      remat: see unet.UNet.
      attention_impl: 'auto', 'blocked', 'fused' or 'plain', see attention.multi_head.
      identity_attention: names of transformers whose self-attention maps are the identity, for
        perturbed-attention guidance.
      skipped: names of transformers that are left out, for skip-layer guidance.
    """

    num_classes: int = 0
    text: nn.Module | None = None
    width: int = 320
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    depth: tuple[int, ...] = (1, 1, 1, 0)
    middle_depth: int = 1
    heads: tuple[int, ...] = (8, 8, 8, 8)
    linear: bool = False
    sizes: int = 0
    dropout: float = 0.0
    norm: tuple[int, float] = (32, 1e-5)
    dtype: str = "float32"
    remat: str = "none"
    attention_impl: str = "auto"
    identity_attention: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, x: Array, c_noise: Array, cond: Cond = None, train: bool = False) -> Array:
        """Evaluates the network.

        Args:
          x: noised latents, (B, H, W, C).
          c_noise: a thousandth of the step of the chain, scalar or (B,).
          cond: the entries that `text` reads and, where `sizes` is not 0, 'sizes' (B, 6).
          train: turns dropout on; then rngs={'dropout': key} is needed.

        Returns:
          F, (B, H, W, C) float32.

        Raises:
          UserError: while tracing, for sizes and options that do not fit.
        """
        cond = cond or {}
        self._check(x, cond)
        text = self.text(cond, x.shape[0])
        embedding = ConditionEmbedding(self.width, 4 * self.width, 0, "adm", name="condition")(
            c_noise, {}, x.shape[0]
        )
        if self.sizes:
            embedding = embedding + _Added(4 * self.width, self.sizes, name="added")(
                text.pooled, cond["sizes"]
            )
        h = layers.conv(self.width, dtype=self.dtype, name="first")(x)
        h, skips = self._down(h, embedding, text, train)
        h = self._residual(h, embedding, train, h.shape[-1], "middle_1")
        h = self._transformer(h, text, self.middle_depth, self.heads[-1], "middle_attention")
        h = self._residual(h, embedding, train, h.shape[-1], "middle_2")
        h = self._up(h, skips, embedding, text, train)
        h = group_norm(h, "last_norm", self.norm, silu=True)
        return layers.conv(x.shape[-1], zero=True, name="last")(h).astype(jnp.float32)

    def _down(
        self, h: Array, embedding: Array, text: TextFeatures, train: bool
    ) -> tuple[Array, list[Array]]:
        """The encoder: the smallest feature map, and every map that the decoder receives again."""
        skips = [h]
        for level in range(len(self.multipliers)):
            for i in range(self.blocks):
                h = self._block(h, embedding, text, train, level, f"down_{level}_{i}")
                skips.append(h)
            if level < len(self.multipliers) - 1:
                half = functools.partial(layers.conv, stride=2, padding=(1, 1), dtype=self.dtype)
                h = half(h.shape[-1], name=f"down_{level}_half")(h)
                skips.append(h)
        return h, skips

    def _up(
        self, h: Array, skips: list[Array], embedding: Array, text: TextFeatures, train: bool
    ) -> Array:
        """The decoder, which takes the feature maps of the encoder in reverse order."""
        for level in reversed(range(len(self.multipliers))):
            for i in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(h, embedding, text, train, level, f"up_{level}_{i}")
            if level > 0:
                double = layers.conv(h.shape[-1], dtype=self.dtype, name=f"up_{level}_double")
                h = double(layers.nearest(h))
        return h

    def _block(
        self, h: Array, embedding: Array, text: TextFeatures, train: bool, level: int, name: str
    ) -> Array:
        """A residual block of a level and its transformer."""
        h = self._residual(h, embedding, train, self.width * self.multipliers[level], name)
        return self._transformer(h, text, self.depth[level], self.heads[level], f"{name}_attention")

    def _residual(self, h: Array, embedding: Array, train: bool, channels: int, name: str) -> Array:
        block = rematerialized(layers.ResidualBlock, self.remat, static_argnums=(3,))
        options = {"scale_shift": False, "dropout": self.dropout, "norm": self.norm}
        return block(channels, dtype=self.dtype, name=name, **options)(h, embedding, train)

    def _transformer(
        self, h: Array, text: TextFeatures, depth: int, heads: int, name: str
    ) -> Array:
        if not depth or name in self.skipped:
            return h
        impl = IDENTITY if name in self.identity_attention else self.attention_impl
        block = rematerialized(SpatialTransformer, self.remat)
        options = {"self_impl": impl, "impl": self.attention_impl, "dtype": self.dtype}
        made = block(depth, heads, self.norm[0], self.linear, name=name, **options)
        return made(h, text.states, text.mask)

    def _check(self, x: Array, cond: dict) -> None:
        """Checks options and shapes while tracing."""
        if self.text is None:
            raise UserError(
                "sd_unet.SDUNet draws captions; set config.text.encoder, such as 'clip()'"
            )
        if self.dtype not in layers.DTYPES:
            raise unknown("dtype", self.dtype, layers.DTYPES)
        levels = len(self.multipliers)
        if not len(self.depth) == len(self.heads) == levels:
            raise UserError(
                f"multipliers={self.multipliers}, depth={self.depth} and heads={self.heads} must "
                "have one number for each level"
            )
        if any(size % 2 ** (levels - 1) for size in x.shape[1:-1]):
            raise UserError(
                f"{layers.sizes_in_words(x)} do not fit multipliers={self.multipliers}: sizes must "
                f"be multiples of {2 ** (levels - 1)}"
            )
        if self.sizes and "sizes" not in cond:
            raise UserError(
                f"sd_unet.SDUNet(sizes={self.sizes}) needs the sizes of images in its condition; "
                'use config.text.encoder="clip(sizes=(1024, 1024, 0, 0, 1024, 1024), ...)"'
            )


class _Added(nn.Module):
    """A perceptron of the pooled text and of numbers, (B, D), (B, n) -> (B, width)."""

    width: int
    features: int

    @nn.compact
    def __call__(self, pooled: Array, numbers: Array) -> Array:
        numbers = numbers.astype(jnp.float32)
        spread = adm(numbers.reshape(-1), self.features).reshape(len(numbers), -1)
        h = jnp.concatenate([pooled.astype(jnp.float32), spread], axis=-1)
        h = jax.nn.silu(nn.Dense(self.width, name="linear_1")(h))
        return nn.Dense(self.width, name="linear_2")(h)


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map, (B, H, W, C) of the same shape.

        x + out(blocks(in(norm(x))))

    Attributes:
      depth: number of blocks.
      heads: number of attention heads.
      groups: groups of the norm.
      linear: see SDUNet.
      self_impl: the implementation of self-attention, see attention.multi_head.
      impl: that of cross-attention.
      dtype: type of the matrix products.
    """

    depth: int
    heads: int
    groups: int
    linear: bool
    self_impl: str = "auto"
    impl: str = "auto"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array, states: Array, mask: Array | None) -> Array:
        """Evaluates the blocks.

        Args:
          x: features, (B, H, W, C).
          states: states of a text, (B, L, D).
          mask: which of the states exist, (B, L) bool; None means all.

        Returns:
          (B, H, W, C).
        """
        b, *sizes, c = x.shape
        tokens = (b, math.prod(sizes), c)
        h = group_norm(x, "norm", (self.groups, NORM_EPSILON)).astype(self.dtype)
        h = self._mapped(h, "project_in").reshape(tokens)
        for i in range(self.depth):
            options = self.heads, self.self_impl, self.impl, self.dtype
            h = _Block(*options, name=f"block_{i}")(h, states, mask)
        h = self._mapped(h.reshape(x.shape), "project_out", zero=True)
        return (x + h).astype(self.dtype)

    def _mapped(self, h: Array, name: str, zero: bool = False) -> Array:
        if not self.linear:
            return layers.conv(h.shape[-1], 1, zero=zero, dtype=self.dtype, name=name)(h)
        init = layers.ZERO_INIT if zero else layers.KERNEL_INIT
        return nn.Dense(h.shape[-1], kernel_init=init, dtype=self.dtype, name=name)(h)


class _Block(nn.Module):
    """Self-attention, cross-attention and a gated perceptron, (B, T, C) -> (B, T, C)."""

    heads: int
    self_impl: str
    impl: str
    dtype: str

    @nn.compact
    def __call__(self, h: Array, states: Array, mask: Array | None) -> Array:
        c = h.shape[-1]
        norm = functools.partial(nn.LayerNorm, epsilon=1e-5)
        dense = functools.partial(nn.Dense, kernel_init=layers.KERNEL_INIT, dtype=self.dtype)
        attend = functools.partial(_Attention, self.heads, dtype=self.dtype)
        h = h + attend(self.self_impl, name="self")(norm(name="norm_1")(h))
        h = h + attend(self.impl, name="cross")(norm(name="norm_2")(h), states, mask)
        inner, gate = jnp.split(dense(8 * c, name="mlp_in")(norm(name="norm_3")(h)), 2, axis=-1)
        inner = product(inner * jax.nn.gelu(gate, approximate=False))
        return (h + dense(c, name="mlp_out")(inner)).astype(self.dtype)


class _Attention(nn.Module):
    """Attention of tokens (B, T, C) to themselves, or to the states of a text (B, L, D)."""

    heads: int
    impl: str
    dtype: str

    @nn.compact
    def __call__(self, x: Array, states: Array | None = None, mask: Array | None = None) -> Array:
        b, length, c = x.shape
        if c % self.heads:
            raise UserError(f"heads={self.heads} do not divide the {c} channels of an attention")
        dense = functools.partial(nn.Dense, kernel_init=layers.KERNEL_INIT, dtype=self.dtype)
        if states is None:
            qkv = product(dense(3 * c, use_bias=False, name="qkv")(x))
            h = attention.self_attention(qkv.reshape(b, length, 3, self.heads, -1), self.impl)
        else:
            q = product(dense(c, use_bias=False, name="query")(x))
            kv = product(dense(2 * c, use_bias=False, name="key_value")(states))
            k, v = jnp.unstack(kv.reshape(b, -1, 2, self.heads, c // self.heads), axis=2)
            q = q.reshape(b, length, self.heads, -1)
            h = attention.multi_head(q, k, v, self.impl, mask)
        return dense(c, name="project")(h.reshape(x.shape))


# The members of the family, which a config may name.
NETWORKS = (SDUNet,)
