"""The noise-conditional classifier: p(class | x_t) by the encoder half of a U-Net."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.core.types import Array, Cond
from diffusion_jax.models import attention, layers
from diffusion_jax.models.embeddings import KERNEL_INIT, ConditionEmbedding
from diffusion_jax.models.normalization import group_norm


class HalfUNet(nn.Module):
    """A classifier of noised images (Dhariwal & Nichol 2021, section 4).

    It maps x (B, H, W, C) and c_noise (B,) to logits (B, num_classes) float32, which are exactly 0
    at initialization. It is called as unet.UNet is; cond is ignored. H and W must be multiples of
    stem * 2^(levels - 1).

    Attributes:
      num_classes: number of classes.
      stem: 2 packs each 2 x 2 block of pixels into channels before the first convolution; 1 does
        not.
      width: channels of the first level.
      multipliers: level i has width * multipliers[i] channels, and half the resolution of the level
        before.
      blocks: residual blocks per level.
      attention: the heights of the feature maps with attention after each residual block.
      head_width: channels per attention head.
      dropout: rate between the two convolutions of a residual block.
      scale_shift: whether the embedding scales and shifts the second norm of a block, or is added
        before it.
      noise_embedding: one of embeddings.NOISE_FEATURES.
      pool: 'attention' (CLIP's, as in ADM: the mean pixel attends to all pixels) or 'mean', over
        the last feature map.
      dtype: type of convolutions and attention.
      attention_impl: see attention.multi_head.
    """

    num_classes: int = 0
    stem: int = 1
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (16,)
    head_width: int | None = 64
    dropout: float = 0.0
    scale_shift: bool = True
    noise_embedding: str = "sinusoidal"
    pool: str = "attention"
    dtype: str = "float32"
    attention_impl: str = "auto"

    @nn.compact
    def __call__(self, x: Array, c_noise: Array, cond: Cond = None, train: bool = False) -> Array:
        """Evaluates the classifier.

        Args:
          x: scaled noised images, (B, H, W, C).
          c_noise: the noise level, scalar or (B,).
          cond: ignored.
          train: turns dropout on; then rngs={'dropout': key} is needed.

        Returns:
          Logits, (B, num_classes) float32.

        Raises:
          UserError: while tracing, for sizes and options that do not fit.
        """
        self._check(x)
        condition = ConditionEmbedding(
            self.width, 4 * self.width, 0, self.noise_embedding, name="condition"
        )
        embedding = condition(c_noise, {}, x.shape[0])
        h = layers.conv(self.width, dtype=self.dtype, name="first")(
            layers.space_to_depth(x, self.stem)
        )
        for level, multiplier in enumerate(self.multipliers):
            for i in range(self.blocks):
                name, channels = f"down_{level}_{i}", self.width * multiplier
                resample = "down" if level and not i else "none"  # as in BigGAN's and ADM's blocks
                h = self._residual(h, embedding, train, channels, name, resample)
                if h.shape[1] in self.attention:
                    h = self._attention(h, f"{name}_attention")
        h = group_norm(h, "last_norm", silu=True)
        if self.pool == "attention":
            h = _AttentionPool(self.head_width, name="pool")(h)
        else:
            h = h.mean((1, 2))
        last = nn.Dense(self.num_classes, kernel_init=layers.ZERO_INIT, name="last")
        return last(h.astype(jnp.float32))

    @nn.nowrap
    def heights(self, height: int) -> tuple[int, ...]:
        """The heights of the feature maps, which `attention` may name.

        Args:
          height: that of an example.
        """
        return layers.level_heights(height // self.stem, len(self.multipliers))

    def _residual(
        self, h: Array, embedding: Array, train: bool, channels: int, name: str, resample: str
    ) -> Array:
        options = dict(scale_shift=self.scale_shift, dropout=self.dropout, dtype=self.dtype)
        return layers.ResidualBlock(channels, resample, **options, name=name)(h, embedding, train)

    def _attention(self, h: Array, name: str) -> Array:
        options = self.head_width, 1.0, self.attention_impl, self.dtype
        return layers.AttentionBlock(*options, name=name)(h)

    def _check(self, x: Array) -> None:
        """Checks options and shapes while tracing."""
        if self.pool not in ("attention", "mean"):
            raise unknown("pool", self.pool, ["attention", "mean"])
        if x.ndim != 4:
            raise UserError(f"the classifier takes images (B, H, W, C), not shape {x.shape}")
        if self.blocks < 1:
            raise UserError(f"blocks={self.blocks}: a classifier needs at least one block a level")
        height, width = x.shape[1:3]
        multiple = self.stem * 2 ** (len(self.multipliers) - 1)
        if height % multiple or width % multiple:
            raise UserError(
                f"images of {height} x {width} do not fit: stem={self.stem} and multipliers="
                f"{self.multipliers} need multiples of {multiple}; use fewer multipliers or a "
                "smaller stem"
            )


class _AttentionPool(nn.Module):
    """Attention pooling (Radford et al. 2021, section 2.4), (B, H, W, C) -> (B, C) float32.

    The mean pixel attends once to all pixels and to itself. A learned position is added to each.

    Attributes:
      head_width: channels per head, as in layers.AttentionBlock.
    """

    head_width: int | None = 64

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, height, width, c = x.shape
        heads = c // min(c, self.head_width or c)
        x = x.reshape(b, height * width, c).astype(jnp.float32)
        tokens = jnp.concatenate([x.mean(1, keepdims=True), x], axis=1)
        tokens = tokens + self.param(
            "places", nn.initializers.normal(c**-0.5), (tokens.shape[1], c), jnp.float32
        )

        def dense(name: str) -> nn.Dense:
            return nn.Dense(c, kernel_init=KERNEL_INIT, name=name)

        def split(h: Array) -> Array:
            return h.reshape(b, -1, heads, c // heads)

        q = split(dense("query")(tokens[:, :1]))
        k, v = split(dense("key")(tokens)), split(dense("value")(tokens))
        return dense("project")(attention.multi_head(q, k, v, "plain").reshape(b, c))


# The members of the family, which a config may name.
NETWORKS = (HalfUNet,)
