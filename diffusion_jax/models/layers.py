"""The pieces of networks: attention, group norm, convolutions, changes of resolution, residual and
attention blocks.

Activations are NHWC. `dtype` is the type of the matrix work; parameters, norms, softmax and the
embedding stay float32.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from diffusion_jax import arrays
from diffusion_jax.errors import UserError, unknown
from diffusion_jax.models.embeddings import KERNEL_INIT
from diffusion_jax.types import Array

ZERO_INIT = nn.initializers.zeros_init()


def attention(q: Array, k: Array, v: Array, impl: str = "auto", mask: Array | None = None) -> Array:
    """softmax(q k^T / sqrt(D)) v per head (Vaswani et al. 2017, eq. 1). q, result: (B, T, heads,
    D); k, v: (B, S, heads, D).

    mask: (B, S) bool, which keys there are, at least one of each example; None: all.
    impl 'fused' is jax.nn.dot_product_attention, with cuDNN's flash kernel where the GPU has one
    for this type and width (that kernel has no forward-mode derivative); 'plain' is einsum, which
    has one (jvp) and is about twice as fast on CPU; 'auto' is plain on CPU and fused elsewhere.
    """
    implementations = {"plain": _plain_attention, "fused": _fused_attention}
    if impl == "auto":
        impl = "plain" if arrays.platform() == "cpu" else "fused"
    if impl not in implementations:
        raise unknown("attention_impl", impl, ["auto", *implementations])
    return implementations[impl](q, k, v, mask)


def _plain_attention(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    scale = q.shape[-1] ** -0.5
    q, k, v = (jnp.swapaxes(a, 1, 2) for a in (q * scale, k, v))  # (B, heads, T, D)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=wide)
    if mask is not None:
        logits = jnp.where(mask[:, None, None, :], logits, -jnp.inf)
    # The result does not depend on what is subtracted, so neither does its derivative.
    p = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    out = jnp.einsum("bhqk,bhkd->bhqd", p.astype(v.dtype), v, preferred_element_type=wide)
    out = out / jnp.sum(
        p, axis=-1, keepdims=True
    )  # T x D divisions after the product, not T x T before it
    return jnp.swapaxes(out, 1, 2).astype(v.dtype)


def _fused_attention(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    if mask is not None:  # a text: so few keys that no flash kernel is missed
        return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None, :])
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn" if _cudnn_fits(q) else None)


def _cudnn_fits(q: Array) -> bool:
    """Whether cuDNN has a flash kernel: an NVIDIA GPU, bfloat16 (so Ampere or newer), D a multiple
    of 8 up to 128.
    """
    nvidia = arrays.platform() == "gpu" and "NVIDIA" in jax.local_devices()[0].device_kind
    return nvidia and q.dtype == jnp.bfloat16 and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128


def groups(channels: int) -> int:
    """The number of groups of a group norm: the largest divisor of `channels` up to min(32,
    channels / 4).
    """
    return max(g for g in range(1, max(1, min(32, channels // 4)) + 1) if channels % g == 0)


def group_norm(x: Array, name: str, norm: tuple[int, float] | None = None) -> Array:
    """Group norm (Wu & He 2018) in float32. Called inside a module's compact method.

    norm: (groups, epsilon); None: `groups` of the channels, 1e-6. UserError for groups that do not
      divide the channels.
    """
    number, epsilon = norm or (groups(x.shape[-1]), 1e-6)
    if x.shape[-1] % number:
        raise UserError(
            f"norm={norm}: {x.shape[-1]} channels do not fall into {number} groups; use a divisor, or None"
        )
    return nn.GroupNorm(number, epsilon=epsilon, dtype=jnp.float32, name=name)(x)


def conv(
    features: int, size: int = 3, *, stride=1, padding="SAME", zero=False, dtype="float32", name
) -> nn.Conv:
    """A square convolution with DDPM's initialisation, or zero."""
    init = ZERO_INIT if zero else KERNEL_INIT
    return nn.Conv(
        features, (size, size), (stride, stride), padding, kernel_init=init, dtype=dtype, name=name
    )


def space_to_depth(x: Array, factor: int) -> Array:
    """(B, H, W, C) -> (B, H / factor, W / factor, factor^2 C). Nothing is lost: depth_to_space
    undoes it.
    """
    b, h, w, c = x.shape
    x = x.reshape(b, h // factor, factor, w // factor, factor, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // factor, w // factor, factor * factor * c)


def depth_to_space(x: Array, factor: int) -> Array:
    """(B, H, W, factor^2 C) -> (B, factor H, factor W, C), the inverse of space_to_depth."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, factor, factor, c // factor**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, factor * h, factor * w, c // factor**2)


def average_pool(x: Array) -> Array:
    """(B, H, W, C) -> (B, H/2, W/2, C): the mean of each 2 x 2 block."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def nearest(x: Array) -> Array:
    """(B, H, W, C) -> (B, 2H, 2W, C): each pixel four times."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c)).reshape(
        b, 2 * h, 2 * w, c
    )


RESAMPLE = {"none": lambda x: x, "down": average_pool, "up": nearest}


class ResidualBlock(nn.Module):
    """skip_scale (shortcut(x) + conv(drop(silu(norm(conv(silu(norm(x)))))))), told noise level and
    class at norm 2.

    (B, H, W, C), (B, E) -> (B, H', W', channels). The second convolution starts at zero: the block
    is its shortcut. Without an embedding (None, in autoencoders) it is told nothing.

    scale_shift: the embedding scales and shifts the second norm, norm(h) (1 + scale) + shift
      (adaptive group norm, Dhariwal & Nichol 2021, section 3.1); otherwise it is added before that
      norm (DDPM, Ho et al. 2020, appendix B).
    resample: 'none', 'down' (average pool) or 'up' (nearest), on both branches of the block
      (BigGAN; ADM, section 3).
    norm: see group_norm.
    """

    channels: int
    resample: str = "none"
    scale_shift: bool = True
    dropout: float = 0.0
    skip_scale: float = 1.0
    dtype: str = "float32"
    norm: tuple[int, float] | None = None

    @nn.compact
    def __call__(self, x: Array, embedding: Array | None = None, train: bool = False) -> Array:
        resample = RESAMPLE[self.resample]
        h = resample(jax.nn.silu(group_norm(x, "norm_1", self.norm)).astype(self.dtype))
        h = product(conv(self.channels, dtype=self.dtype, name="conv_1")(h))
        h = self._told_norm(h, embedding)
        h = nn.Dropout(self.dropout, deterministic=not train)(jax.nn.silu(h).astype(self.dtype))
        h = conv(self.channels, zero=True, dtype=self.dtype, name="conv_2")(h)

        x = resample(x)
        if x.shape[-1] != self.channels:
            x = conv(self.channels, 1, dtype=self.dtype, name="shortcut")(x)
        return ((x + h) * self.skip_scale).astype(self.dtype)

    def _told_norm(self, h: Array, embedding: Array | None) -> Array:
        """The second norm, told the embedding."""
        if embedding is None:
            return group_norm(h, "norm_2", self.norm)
        told = nn.Dense(
            self.channels * (2 if self.scale_shift else 1),
            kernel_init=KERNEL_INIT,
            name="embedding",
        )
        told = told(jax.nn.silu(embedding))[:, None, None, :]  # (B, 1, 1, channels or twice that)
        if not self.scale_shift:
            return group_norm(h + told, "norm_2", self.norm)
        scale, shift = jnp.split(told, 2, axis=-1)
        return group_norm(h, "norm_2", self.norm) * (1 + scale) + shift


class AttentionBlock(nn.Module):
    """skip_scale (x + project(attention(norm(x)))) over the H W pixels of a feature map. (B, H, W,
    C) -> (B, H, W, C).

    head_width: channels per head (ADM: 64); None is one head (DDPM), and so are fewer channels than
      head_width.
    norm: see group_norm. The projection starts at zero. The outputs of `qkv` are ordered by (q, k,
    v), then head, then channel of the head.
    """

    head_width: int | None = 64
    skip_scale: float = 1.0
    impl: str = "auto"
    dtype: str = "float32"
    norm: tuple[int, float] | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, height, width, c = x.shape
        heads = count_heads(c, self.head_width)
        h = group_norm(x, "norm", self.norm).reshape(b, height * width, c)
        init = nn.initializers.variance_scaling(
            1.0, "fan_in", "uniform"
        )  # fan_avg would see 3c outputs
        qkv = product(nn.Dense(3 * c, kernel_init=init, dtype=self.dtype, name="qkv")(h))
        q, k, v = jnp.unstack(qkv.reshape(b, height * width, 3, heads, c // heads), axis=2)
        h = attention(q, k, v, self.impl).reshape(b, height, width, c)
        h = nn.Dense(c, kernel_init=ZERO_INIT, dtype=self.dtype, name="project")(h)
        return ((x + h) * self.skip_scale).astype(self.dtype)


class CrossAttentionBlock(nn.Module):
    """skip_scale (x + project(attention(query(norm(x)), key(states), value(states)))): pixels look
    at a text.

    (B, H, W, C), states (B, L, D), mask (B, L) -> (B, H, W, C), by Rombach et al. 2022, section
    3.3. mask: which states there are, at least one. The projection starts at zero, and the other
    fields are those of AttentionBlock.
    """

    head_width: int | None = 64
    skip_scale: float = 1.0
    impl: str = "auto"
    dtype: str = "float32"
    norm: tuple[int, float] | None = None

    @nn.compact
    def __call__(self, x: Array, states: Array, mask: Array) -> Array:
        b, height, width, c = x.shape
        heads = count_heads(c, self.head_width)
        h = group_norm(x, "norm", self.norm).reshape(b, height * width, c)
        q = product(nn.Dense(c, kernel_init=KERNEL_INIT, dtype=self.dtype, name="query")(h))
        k = product(nn.Dense(c, kernel_init=KERNEL_INIT, dtype=self.dtype, name="key")(states))
        v = product(nn.Dense(c, kernel_init=KERNEL_INIT, dtype=self.dtype, name="value")(states))
        q, k, v = (a.reshape(b, a.shape[1], heads, c // heads) for a in (q, k, v))
        h = attention(q, k, v, self.impl, mask).reshape(b, height, width, c)
        h = nn.Dense(c, kernel_init=ZERO_INIT, dtype=self.dtype, name="project")(h)
        return ((x + h) * self.skip_scale).astype(self.dtype)


def count_heads(channels: int, head_width: int | None) -> int:
    """How many heads of `head_width` channels (None, or fewer channels: one); UserError unless it
    divides.
    """
    head_width = min(channels, head_width or channels)
    if channels % head_width:
        raise UserError(
            f"head_width={head_width} does not divide the {channels} channels of an attention; use a divisor, or None"
        )
    return channels // head_width


# ---- memory
REMAT = ("none", "block", "dots", "offload")
PRODUCT, HOST = "product", "pinned_host"


def product(x: Array) -> Array:
    """x, marked as what remat 'dots' keeps: the result of a convolution or of a matrix product with
    parameters.

    To mark are the results inside a block that its backward pass looks at; one that is only added
    to something is not.
    """
    return checkpoint_name(x, PRODUCT)


def rematerialized(
    module: type[nn.Module], remat: str, static_argnums: tuple[int, ...] = ()
) -> type[nn.Module]:
    """The class of a block, or its twin that keeps fewer activations and computes the rest again
    backwards (Chen et al. 2016).

    remat: what is kept of each block beside its input. 'none': everything, nothing is computed
      twice. 'block': nothing; the block runs again, about a third more work. 'dots': the results
      marked by `product`; norms, activations and attention run again. 'offload': as 'dots', but
      these wait in the host's memory.
    static_argnums count the arguments of __call__ with self as 0.
    Raises UserError for another remat, and for 'offload' on a device that cannot reach pinned host
    memory.
    """
    remat = {False: "none", True: "block"}.get(
        remat, remat
    )  # as configs had it before there were four
    if remat not in REMAT:
        raise unknown("remat", remat, REMAT)
    if remat == "none":
        return module
    return nn.remat(module, policy=_policy(remat), static_argnums=static_argnums)


def _policy(remat: str):
    names = jax.checkpoint_policies
    if remat == "block":
        return names.nothing_saveable
    if remat == "dots":
        return names.save_only_these_names(PRODUCT)
    kinds = sorted(memory.kind for memory in jax.local_devices()[0].addressable_memories())
    if (
        HOST not in kinds and arrays.platform() == jax.default_backend()
    ):  # (a device that is not here is believed)
        raise UserError(
            f"remat=offload needs {HOST} memory, and this device has {', '.join(kinds)}; use remat=dots or block"
        )
    return names.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[PRODUCT],
        offload_src="device",
        offload_dst=HOST,
    )
