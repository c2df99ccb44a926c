"""Building blocks of networks: group norm, convolutions, residual and attention blocks.

Activations are NHWC. `dtype` is the type of convolutions and matrix products; parameters, norms,
softmax and embeddings are float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array
from diffusion_jax.models import attention
from diffusion_jax.models.convolution import convolve
from diffusion_jax.models.embeddings import KERNEL_INIT
from diffusion_jax.models.remat import product

ZERO_INIT = nn.initializers.zeros_init()


def groups(channels: int) -> int:
    """The default number of groups of a group norm.

    Args:
      channels: number of channels.

    Returns:
      The largest divisor of `channels` up to min(32, channels / 4).
    """
    return max(g for g in range(1, max(1, min(32, channels // 4)) + 1) if channels % g == 0)


def group_norm(x: Array, name: str, norm: tuple[int, float] | None = None) -> Array:
    """Group norm (Wu & He 2018) in float32, to be called inside a module's compact method.

    Args:
      x: features, (B, ..., C).
      name: name of the submodule, and so of its parameters.
      norm: (groups, epsilon); None means `groups(C)` and 1e-6.

    Returns:
      Array of x's shape, float32.

    Raises:
      UserError: if the number of groups does not divide C.
    """
    number, epsilon = norm or (groups(x.shape[-1]), 1e-6)
    if x.shape[-1] % number:
        raise UserError(
            f"norm={norm}: {x.shape[-1]} channels do not fall into {number} groups; use a divisor, "
            "or None"
        )
    return nn.GroupNorm(number, epsilon=epsilon, dtype=jnp.float32, name=name)(x)


def conv(
    features: int,
    size: int = 3,
    *,
    stride: int = 1,
    padding: str | Sequence[tuple[int, int]] = "SAME",
    zero: bool = False,
    dtype: str = "float32",
    name: str,
) -> nn.Conv:
    """A square convolution with DDPM's initialization.

    Args:
      features: number of output channels.
      size: height and width of the kernel.
      stride: stride in both dimensions.
      padding: 'SAME', or (before, after) for both dimensions.
      zero: initializes the kernel with zeros.
      dtype: type of the computation.
      name: name of the submodule, and so of its parameters.

    Returns:
      The module.
    """
    init = ZERO_INIT if zero else KERNEL_INIT
    return nn.Conv(
        features,
        (size, size),
        (stride, stride),
        padding,
        kernel_init=init,
        dtype=dtype,
        conv_general_dilated=convolve,
        name=name,
    )


# ---- changes of resolution
def space_to_depth(x: Array, factor: int) -> Array:
    """Packs blocks of pixels into channels (Shi et al. 2016); depth_to_space is the inverse.

    Args:
      x: feature maps or images, (B, H, W, C), with H and W multiples of `factor`.
      factor: height and width of a block.

    Returns:
      (B, H / factor, W / factor, factor^2 C).
    """
    b, h, w, c = x.shape
    x = x.reshape(b, h // factor, factor, w // factor, factor, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // factor, w // factor, factor * factor * c)


def depth_to_space(x: Array, factor: int) -> Array:
    """Unpacks channels into blocks of pixels, the inverse of space_to_depth.

    Args:
      x: (B, H, W, factor^2 C).
      factor: height and width of a block.

    Returns:
      (B, factor H, factor W, C).
    """
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, factor, factor, c // factor**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, factor * h, factor * w, c // factor**2)


def average_pool(x: Array) -> Array:
    """Averages each 2 x 2 block of pixels.

    Args:
      x: features, (B, H, W, C), with even H and W.

    Returns:
      (B, H / 2, W / 2, C).
    """
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def nearest(x: Array) -> Array:
    """Repeats each pixel four times: nearest-neighbor upsampling by 2.

    Args:
      x: features, (B, H, W, C).

    Returns:
      (B, 2 H, 2 W, C).
    """
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c)).reshape(
        b, 2 * h, 2 * w, c
    )


RESAMPLE = {"none": lambda x: x, "down": average_pool, "up": nearest}


# ---- blocks
class ResidualBlock(nn.Module):
    """A residual block, (B, H, W, C), (B, E) -> (B, H', W', channels).

        skip_scale (shortcut(x) + conv(dropout(silu(norm(conv(silu(norm(x))))))))

    The embedding of the condition (B, E) enters at the second norm; None, in autoencoders, leaves
    it out. The second convolution starts at zero, where the block is its shortcut.

    Attributes:
      channels: number of output channels.
      resample: 'none', 'down' (average pooling) or 'up' (nearest neighbor), on both branches of the
        block (BigGAN; ADM, section 3).
      scale_shift: the embedding scales and shifts the second norm, norm(h) (1 + scale) + shift
        (adaptive group norm, Dhariwal & Nichol 2021, section 3.1); otherwise it is added before
        that norm (DDPM, Ho et al. 2020, appendix B).
      dropout: rate between the two convolutions.
      skip_scale: factor of the sum.
      dtype: type of the convolutions.
      norm: see group_norm.
      project: the shortcut is a 1x1 convolution even where the number of channels stays.
    """

    channels: int
    resample: str = "none"
    scale_shift: bool = True
    dropout: float = 0.0
    skip_scale: float = 1.0
    dtype: str = "float32"
    norm: tuple[int, float] | None = None
    project: bool = False

    @nn.compact
    def __call__(self, x: Array, embedding: Array | None = None, train: bool = False) -> Array:
        """Evaluates the block.

        Args:
          x: features, (B, H, W, C).
          embedding: the embedding of the condition, (B, E), or None.
          train: whether dropout is on, which needs an rng of the name 'dropout'.

        Returns:
          (B, H', W', channels), whose height and width are halved, doubled or kept by `resample`.
        """
        resample = RESAMPLE[self.resample]
        h = resample(jax.nn.silu(group_norm(x, "norm_1", self.norm)).astype(self.dtype))
        h = product(conv(self.channels, dtype=self.dtype, name="conv_1")(h))
        h = self._conditioned_norm(h, embedding)
        h = nn.Dropout(self.dropout, deterministic=not train)(jax.nn.silu(h).astype(self.dtype))
        h = conv(self.channels, zero=True, dtype=self.dtype, name="conv_2")(h)

        x = resample(x)
        if self.project or x.shape[-1] != self.channels:
            x = conv(self.channels, 1, dtype=self.dtype, name="shortcut")(x)
        return ((x + h) * self.skip_scale).astype(self.dtype)

    def _conditioned_norm(self, h: Array, embedding: Array | None) -> Array:
        """The second norm, with the embedding."""
        if embedding is None:
            return group_norm(h, "norm_2", self.norm)
        features = self.channels * (2 if self.scale_shift else 1)
        linear = nn.Dense(features, kernel_init=KERNEL_INIT, name="embedding")
        added = linear(jax.nn.silu(embedding))[:, None, None, :]  # (B, 1, 1, features)
        if not self.scale_shift:
            return group_norm(h + added, "norm_2", self.norm)
        scale, shift = jnp.split(added, 2, axis=-1)
        return group_norm(h, "norm_2", self.norm) * (1 + scale) + shift


class AttentionBlock(nn.Module):
    """Self-attention over the pixels of a feature map, (B, H, W, C) -> (B, H, W, C).

        skip_scale (x + project(attention(norm(x))))

    The projection starts at zero. The outputs of `qkv` are ordered by (q, k, v), then head, then
    channel of the head.

    Attributes:
      head_width: channels per head (ADM: 64); None is one head (DDPM), as are fewer channels than
        head_width.
      skip_scale: factor of the sum.
      impl: see attention.multi_head.
      dtype: type of the matrix products.
      norm: see group_norm.
    """

    head_width: int | None = 64
    skip_scale: float = 1.0
    impl: str = "auto"
    dtype: str = "float32"
    norm: tuple[int, float] | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Evaluates the block.

        Args:
          x: features, (B, H, W, C).

        Returns:
          (B, H, W, C).
        """
        b, height, width, c = x.shape
        heads = count_heads(c, self.head_width)
        h = group_norm(x, "norm", self.norm).reshape(b, height * width, c)
        init = nn.initializers.variance_scaling(
            1.0, "fan_in", "uniform"
        )  # fan_avg would see 3c outputs
        qkv = product(nn.Dense(3 * c, kernel_init=init, dtype=self.dtype, name="qkv")(h))
        qkv = qkv.reshape(b, height * width, 3, heads, c // heads)
        h = attention.self_attention(qkv, self.impl).reshape(b, height, width, c)
        h = nn.Dense(c, kernel_init=ZERO_INIT, dtype=self.dtype, name="project")(h)
        return ((x + h) * self.skip_scale).astype(self.dtype)


class CrossAttentionBlock(nn.Module):
    """Cross-attention of pixels to the states of a text (Rombach et al. 2022, section 3.3).

        skip_scale (x + project(attention(query(norm(x)), key(states), value(states))))

    It maps (B, H, W, C), states (B, L, D) and their mask (B, L) to (B, H, W, C). The projection
    starts at zero.

    Attributes:
      head_width: see AttentionBlock.
      skip_scale: factor of the sum.
      impl: see attention.multi_head.
      dtype: type of the matrix products.
      norm: see group_norm.
    """

    head_width: int | None = 64
    skip_scale: float = 1.0
    impl: str = "auto"
    dtype: str = "float32"
    norm: tuple[int, float] | None = None

    @nn.compact
    def __call__(self, x: Array, states: Array, mask: Array) -> Array:
        """Evaluates the block.

        Args:
          x: features, (B, H, W, C).
          states: states of a text, (B, L, D).
          mask: which of the states exist, (B, L) bool, at least one for each example.

        Returns:
          (B, H, W, C).
        """
        b, height, width, c = x.shape
        heads = count_heads(c, self.head_width)
        h = group_norm(x, "norm", self.norm).reshape(b, height * width, c)
        q = product(nn.Dense(c, kernel_init=KERNEL_INIT, dtype=self.dtype, name="query")(h))
        k = product(nn.Dense(c, kernel_init=KERNEL_INIT, dtype=self.dtype, name="key")(states))
        v = product(nn.Dense(c, kernel_init=KERNEL_INIT, dtype=self.dtype, name="value")(states))
        q, k, v = (a.reshape(b, a.shape[1], heads, c // heads) for a in (q, k, v))
        h = attention.multi_head(q, k, v, self.impl, mask).reshape(b, height, width, c)
        h = nn.Dense(c, kernel_init=ZERO_INIT, dtype=self.dtype, name="project")(h)
        return ((x + h) * self.skip_scale).astype(self.dtype)


def count_heads(channels: int, head_width: int | None) -> int:
    """The number of attention heads.

    Args:
      channels: number of channels.
      head_width: channels per head; None, or more than `channels`, means one head.

    Returns:
      channels / head_width.

    Raises:
      UserError: if head_width does not divide the channels.
    """
    head_width = min(channels, head_width or channels)
    if channels % head_width:
        raise UserError(
            f"head_width={head_width} does not divide the {channels} channels of an attention; "
            "use a divisor, or None"
        )
    return channels // head_width
