"""Building blocks of networks: convolutions, residual and attention blocks.

Activations are (B, N_1, ..., N_d, C): series, images or volumes, d = 1 to 3 axes, from one
definition. `dtype` is the type of convolutions and matrix products; parameters, norms, softmax and
embeddings are float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array
from diffusion_jax.models import attention, fir
from diffusion_jax.models.convolution import convolve
from diffusion_jax.models.dropout import Dropout
from diffusion_jax.models.embeddings import KERNEL_INIT
from diffusion_jax.models.normalization import group_norm, pixel_norm
from diffusion_jax.models.remat import product

ZERO_INIT = nn.initializers.zeros_init()

DTYPES = ("float32", "bfloat16", "float16")  # that a network may compute in
KINDS = {1: "series", 2: "images", 3: "volumes"}  # by the number of axes


def check_axes(x: Array, network: str) -> None:
    """Checks while tracing that x has one to three axes between examples and channels.

    Args:
      x: the input of a network.
      network: its name with an article, for the message.

    Raises:
      UserError: for another number of axes.
    """
    if x.ndim - 2 not in KINDS:
        raise UserError(
            f"{network} takes series (B, N, C), images (B, H, W, C) or volumes (B, D, H, W, C), "
            f"not shape {x.shape}; use the MLP for vectors"
        )


def level_heights(height: int, levels: int) -> tuple[int, ...]:
    """The heights of the feature maps of a U-Net, of which each level has half of the one before.

    Args:
      height: that of the first level.
      levels: number of levels.
    """
    return tuple(height // 2**level for level in range(levels))


def sizes_in_words(x: Array) -> str:
    """The kind and the extents of samples: 'images of 6 x 8', for messages.

    Args:
      x: (B, N_1, ..., N_d, C).
    """
    return f"{KINDS[x.ndim - 2]} of {' x '.join(map(str, x.shape[1:-1]))}"


def conv(
    features: int,
    size: int = 3,
    *,
    axes: int = 2,
    stride: int = 1,
    padding: str | tuple[int, int] = "SAME",
    zero: bool = False,
    dtype: str = "float32",
    name: str,
) -> nn.Conv:
    """A convolution with DDPM's initialization and the same extent along every axis.

    Args:
      features: number of output channels.
      size: extent of the kernel along each axis.
      axes: number of axes, 1 to 3: series, images, volumes.
      stride: stride along each axis.
      padding: 'SAME', or (before, after) for each axis.
      zero: initializes the kernel with zeros.
      dtype: type of the computation.
      name: name of the submodule, and so of its parameters.

    Returns:
      The module.
    """
    init = ZERO_INIT if zero else KERNEL_INIT
    return nn.Conv(
        features,
        (size,) * axes,
        (stride,) * axes,
        padding if isinstance(padding, str) else (padding,) * axes,
        kernel_init=init,
        dtype=dtype,
        conv_general_dilated=convolve,
        name=name,
    )


# ---- changes of resolution
def space_to_depth(x: Array, factor: int) -> Array:
    """Packs blocks of pixels into channels (Shi et al. 2016); depth_to_space is the inverse.

    Args:
      x: feature maps or samples, (B, N_1, ..., N_d, C), with each N_i a multiple of `factor`.
      factor: extent of a block along each axis.

    Returns:
      (B, N_1 / factor, ..., N_d / factor, factor^d C).
    """
    b, *sizes, c = x.shape
    blocks, d = [n for size in sizes for n in (size // factor, factor)], len(sizes)
    order = (0, *range(1, 2 * d, 2), *range(2, 2 * d + 1, 2), 2 * d + 1)
    x = x.reshape(b, *blocks, c).transpose(order)
    return x.reshape(b, *blocks[::2], factor**d * c)


def depth_to_space(x: Array, factor: int) -> Array:
    """Unpacks channels into blocks of pixels, the inverse of space_to_depth.

    Args:
      x: (B, N_1, ..., N_d, factor^d C).
      factor: extent of a block along each axis.

    Returns:
      (B, factor N_1, ..., factor N_d, C).
    """
    b, *sizes, c = x.shape
    d = len(sizes)
    order = (0, *(k for i in range(d) for k in (1 + i, 1 + d + i)), 2 * d + 1)
    x = x.reshape(b, *sizes, *(factor,) * d, c // factor**d).transpose(order)
    return x.reshape(b, *(factor * size for size in sizes), c // factor**d)


def average_pool(x: Array) -> Array:
    """Averages blocks of two pixels along each axis.

    Args:
      x: features, (B, N_1, ..., N_d, C), with even N_i.

    Returns:
      (B, N_1 / 2, ..., N_d / 2, C).
    """
    b, *sizes, c = x.shape
    blocks = [n for size in sizes for n in (size // 2, 2)]
    return x.reshape(b, *blocks, c).mean(axis=tuple(range(2, 2 * len(sizes) + 1, 2)))


def nearest(x: Array) -> Array:
    """Repeats each pixel along each axis: nearest-neighbor upsampling by 2.

    Args:
      x: features, (B, N_1, ..., N_d, C).

    Returns:
      (B, 2 N_1, ..., 2 N_d, C).
    """
    b, *sizes, c = x.shape
    apart = jnp.expand_dims(x, tuple(range(2, 2 * len(sizes) + 1, 2)))
    blocks = [n for size in sizes for n in (size, 2)]
    return jnp.broadcast_to(apart, (b, *blocks, c)).reshape(b, *(2 * n for n in sizes), c)


RESAMPLE = {"none": lambda x: x, "down": average_pool, "up": nearest}


def resample(x: Array, direction: str, taps: Sequence[int | float] = (1, 1)) -> Array:
    """Halves, doubles or keeps the resolution.

    Args:
      x: features, (B, N_1, ..., N_d, C).
      direction: 'none', 'down' or 'up'.
      taps: the filter of fir.py; (1, 1) averages blocks of pixels and repeats pixels.

    Returns:
      (B, N_1', ..., N_d', C).
    """
    if direction == "none" or tuple(taps) == (1, 1):
        return RESAMPLE[direction](x)
    return fir.filtered(x, direction, taps)


# ---- blocks
class ResidualBlock(nn.Module):
    """A residual block, (B, N_1, ..., N_d, C), (B, E) -> (B, N_1', ..., N_d', channels).

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
      double_norm: scales and shifts by norm(h) pnorm(scale) + pnorm(shift), pnorm the pixel norm
        (adaptive double normalization, Lu & Song 2025, section 4.1), whatever scale_shift is.
      dropout: rate between the two convolutions.
      skip_scale: factor of the sum.
      dtype: type of the convolutions.
      norm: see normalization.group_norm.
      project: the shortcut is a 1x1 convolution even where the number of channels stays.
      resample_filter: the filter by which `resample` halves and doubles, see fir.py.
    """

    channels: int
    resample: str = "none"
    scale_shift: bool = True
    dropout: float = 0.0
    skip_scale: float = 1.0
    dtype: str = "float32"
    norm: tuple[int, float] | None = None
    project: bool = False
    resample_filter: tuple[int, ...] = (1, 1)
    double_norm: bool = False

    @nn.compact
    def __call__(self, x: Array, embedding: Array | None = None, train: bool = False) -> Array:
        """Evaluates the block.

        Args:
          x: features, (B, N_1, ..., N_d, C).
          embedding: the embedding of the condition, (B, E), or None.
          train: whether dropout is on, which needs an rng of the name 'dropout'.

        Returns:
          (B, N_1', ..., N_d', channels), whose axes are halved, doubled or kept by `resample`.
        """
        axes = x.ndim - 2
        h = group_norm(x, "norm_1", self.norm, silu=True, dtype=self.dtype)
        h = resample(h, self.resample, self.resample_filter)
        h = product(conv(self.channels, axes=axes, dtype=self.dtype, name="conv_1")(h))
        h = Dropout(self.dropout)(self._conditioned_norm(h, embedding), train)
        h = conv(self.channels, axes=axes, zero=True, dtype=self.dtype, name="conv_2")(h)

        x = resample(x, self.resample, self.resample_filter)
        if self.project or x.shape[-1] != self.channels:
            x = conv(self.channels, 1, axes=axes, dtype=self.dtype, name="shortcut")(x)
        return ((x + h) * self.skip_scale).astype(self.dtype)

    def _conditioned_norm(self, h: Array, embedding: Array | None) -> Array:
        """The second norm, with the embedding, and its activation."""
        after = {"silu": True, "dtype": self.dtype}
        if embedding is None:
            return group_norm(h, "norm_2", self.norm, **after)
        both = self.scale_shift or self.double_norm
        features = self.channels * (2 if both else 1)
        linear = nn.Dense(features, kernel_init=KERNEL_INIT, name="embedding")
        added = linear(jax.nn.silu(embedding))  # (B, features)
        if not both:
            h = h + jnp.expand_dims(added, tuple(range(1, h.ndim - 1)))
            return group_norm(h, "norm_2", self.norm, **after)
        scale, shift = jnp.split(added, 2, axis=-1)
        if self.double_norm:
            scale, shift = pixel_norm(scale) - 1, pixel_norm(shift)
        return group_norm(h, "norm_2", self.norm, scale=scale, shift=shift, **after)


class AttentionBlock(nn.Module):
    """Self-attention over the pixels of a feature map, (B, N_1, ..., N_d, C) of the same shape.

        skip_scale (x + project(attention(norm(x))))

    The projection starts at zero. The outputs of `qkv` are ordered by (q, k, v), then head, then
    channel of the head.

    Attributes:
      head_width: channels per head (ADM: 64); None is one head (DDPM), as are fewer channels than
        head_width.
      skip_scale: factor of the sum.
      impl: see attention.multi_head.
      dtype: type of the matrix products.
      norm: see normalization.group_norm.
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
          x: features, (B, N_1, ..., N_d, C).

        Returns:
          (B, N_1, ..., N_d, C).
        """
        b, *sizes, c = x.shape
        pixels = math.prod(sizes)
        heads = count_heads(c, self.head_width)
        h = group_norm(x, "norm", self.norm).reshape(b, pixels, c)
        init = nn.initializers.variance_scaling(
            1.0, "fan_in", "uniform"
        )  # fan_avg would see 3c outputs
        qkv = product(nn.Dense(3 * c, kernel_init=init, dtype=self.dtype, name="qkv")(h))
        qkv = qkv.reshape(b, pixels, 3, heads, c // heads)
        h = attention.self_attention(qkv, self.impl).reshape(x.shape)
        h = nn.Dense(c, kernel_init=ZERO_INIT, dtype=self.dtype, name="project")(h)
        return ((x + h) * self.skip_scale).astype(self.dtype)


class CrossAttentionBlock(nn.Module):
    """Cross-attention of pixels to the states of a text (Rombach et al. 2022, section 3.3).

        skip_scale (x + project(attention(query(norm(x)), key(states), value(states))))

    It maps (B, N_1, ..., N_d, C), states (B, L, D) and their mask (B, L) to the shape of the
    features. The projection starts at zero.

    Attributes:
      head_width: see AttentionBlock.
      skip_scale: factor of the sum.
      impl: see attention.multi_head.
      dtype: type of the matrix products.
      norm: see normalization.group_norm.
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
          x: features, (B, N_1, ..., N_d, C).
          states: states of a text, (B, L, D).
          mask: which of the states exist, (B, L) bool, at least one for each example.

        Returns:
          (B, N_1, ..., N_d, C).
        """
        b, *sizes, c = x.shape
        pixels = math.prod(sizes)
        heads = count_heads(c, self.head_width)
        h = group_norm(x, "norm", self.norm).reshape(b, pixels, c)
        q = product(nn.Dense(c, kernel_init=KERNEL_INIT, dtype=self.dtype, name="query")(h))
        k = product(nn.Dense(c, kernel_init=KERNEL_INIT, dtype=self.dtype, name="key")(states))
        v = product(nn.Dense(c, kernel_init=KERNEL_INIT, dtype=self.dtype, name="value")(states))
        q, k, v = (a.reshape(b, a.shape[1], heads, c // heads) for a in (q, k, v))
        h = attention.multi_head(q, k, v, self.impl, mask).reshape(x.shape)
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
