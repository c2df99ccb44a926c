"""The noise-conditional classifier: p(class | x_t) by the way down of a U-Net (Dhariwal & Nichol
2021, section 4).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.errors import UserError, unknown
from diffusion_jax.models import layers
from diffusion_jax.models.embeddings import KERNEL_INIT, ConditionEmbedding
from diffusion_jax.types import Array, Cond


class HalfUNet(nn.Module):
    """Logits (x, c_noise): (B, H, W, C), (B,) -> (B, num_classes) float32. Exactly 0 at init.

    The calling convention is the U-Net's, and so are the options; cond is not looked at. H and W
    must be multiples of stem * 2^(levels - 1).

    pool: 'attention' (CLIP's, as ADM: the mean pixel asks all pixels, by one query) or 'mean' over
    the last feature map. Other fields: see unet.UNet.
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
        self._check(x)
        told = ConditionEmbedding(
            self.width, 4 * self.width, 0, self.noise_embedding, name="condition"
        )
        told = told(c_noise, {}, x.shape[0])
        h = layers.conv(self.width, dtype=self.dtype, name="first")(
            layers.space_to_depth(x, self.stem)
        )
        for level, multiplier in enumerate(self.multipliers):
            for i in range(self.blocks):
                resample = (
                    "down" if level and not i else "none"
                )  # as BigGAN's and ADM's blocks do it
                h = self._residual(
                    h, told, train, self.width * multiplier, f"down_{level}_{i}", resample
                )
                if h.shape[1] in self.attention:
                    h = self._attention(h, f"down_{level}_{i}_attention")
        h = jax.nn.silu(layers.group_norm(h, "last_norm"))
        h = (
            _AttentionPool(self.head_width, name="pool")(h)
            if self.pool == "attention"
            else h.mean((1, 2))
        )
        return nn.Dense(self.num_classes, kernel_init=layers.ZERO_INIT, name="last")(
            h.astype(jnp.float32)
        )

    def _residual(
        self, h: Array, told: Array, train: bool, channels: int, name: str, resample: str
    ) -> Array:
        options = dict(scale_shift=self.scale_shift, dropout=self.dropout, dtype=self.dtype)
        return layers.ResidualBlock(channels, resample, **options, name=name)(h, told, train)

    def _attention(self, h: Array, name: str) -> Array:
        return layers.AttentionBlock(
            self.head_width, 1.0, self.attention_impl, self.dtype, name=name
        )(h)

    def _check(self, x: Array) -> None:
        if self.pool not in ("attention", "mean"):
            raise unknown("pool", self.pool, ["attention", "mean"])
        if x.ndim != 4:
            raise UserError(f"the classifier takes images (B, H, W, C), not shape {x.shape}")
        if self.blocks < 1:
            raise UserError(f"blocks={self.blocks}: a classifier needs at least one block a level")
        height, width, multiple = (
            x.shape[1],
            x.shape[2],
            self.stem * 2 ** (len(self.multipliers) - 1),
        )
        if height % multiple or width % multiple:
            raise UserError(
                f"images of {height} x {width} do not fit: stem={self.stem} and multipliers={self.multipliers}"
                f" need multiples of {multiple}; use fewer multipliers or a smaller stem"
            )


class _AttentionPool(nn.Module):
    """(B, H, W, C) -> (B, C): the mean pixel asks all pixels and itself, once, by attention
    (Radford et al. 2021, section 2.4).

    A learned place is added to every pixel. head_width: channels per head, as in
    layers.AttentionBlock. float32.
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

        def dense(name):
            return nn.Dense(c, kernel_init=KERNEL_INIT, name=name)

        def split(h):
            return h.reshape(b, -1, heads, c // heads)

        q, k, v = (
            split(dense("query")(tokens[:, :1])),
            split(dense("key")(tokens)),
            split(dense("value")(tokens)),
        )
        return dense("project")(layers.attention(q, k, v, "plain").reshape(b, c))
