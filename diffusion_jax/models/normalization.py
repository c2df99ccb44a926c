"""Group norm (Wu & He 2018), in as few passes over the features as possible.

    y = act(gamma (x - mean) / sqrt(var + epsilon) + beta) = act(a x + b)

The mean and the variance of a group follow from the sums of x and x^2 over the pixels of each
channel, which are (B, C), and so do a and b. So there is a pass for the two sums, and one for
act(a x + b). The backward pass, with z = a x + b and dz = act'(z) dy, is

    da = sum dz x,    db = sum dz       over the pixels,
    dx = a dz + c + 2 d x               with the derivatives c and d by the sums of x and x^2.

XLA alone would keep dz in float32, as it contains an exponential. So on accelerators this rule is
written out, and keeps dz in the type of x, half of the bytes if that is bfloat16. The rule has no
forward mode; within `forward_mode`, and on CPUs, JAX differentiates the formula itself.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.core import arrays, forward_mode
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array


class Form(NamedTuple):
    """What is constant in a group norm.

    Attributes:
      groups: number of groups, a divisor of C.
      epsilon: added to the variance.
      silu: whether act is the SiLU, z / (1 + exp(-z)); otherwise it is the identity.
      dtype: type of the result.
    """

    groups: int
    epsilon: float
    silu: bool
    dtype: str


def groups(channels: int) -> int:
    """The default number of groups of a group norm.

    Args:
      channels: number of channels.

    Returns:
      The largest divisor of `channels` up to min(32, channels / 4).
    """
    return max(g for g in range(1, max(1, min(32, channels // 4)) + 1) if channels % g == 0)


def group_norm(
    x: Array,
    name: str,
    norm: tuple[int, float] | None = None,
    *,
    silu: bool = False,
    dtype: str = "float32",
    scale: Array | None = None,
    shift: Array | None = None,
) -> Array:
    """Group norm (Wu & He 2018), to be called inside a module's compact method.

    Args:
      x: features, (B, ..., C).
      name: name of the submodule, and so of its parameters.
      norm: (groups, epsilon), where 0 groups mean `groups(C)`; None means these and 1e-6.
      silu: whether a SiLU follows.
      dtype: type of the result; everything is computed in float32.
      scale: see GroupNorm.
      shift: see GroupNorm.

    Returns:
      Array of x's shape.

    Raises:
      UserError: if the number of groups does not divide C.
    """
    number, epsilon = norm or (0, 1e-6)
    number = number or groups(x.shape[-1])
    if x.shape[-1] % number:
        raise UserError(
            f"norm={norm}: {x.shape[-1]} channels do not fall into {number} groups; use a divisor, "
            "or None"
        )
    return GroupNorm(Form(number, epsilon, silu, dtype), name=name)(x, scale, shift)


def pixel_norm(x: Array, epsilon: float = 1e-8) -> Array:
    """Pixel norm (Karras et al. 2018, section 4.2): x / sqrt(mean x^2 + epsilon) over the channels.

    Args:
      x: features, (..., C).
      epsilon: added to the mean square.

    Returns:
      Array of x's shape, of mean square 1 over the last axis.
    """
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon)


class GroupNorm(nn.Module):
    """Group norm of features (B, N_1, ..., N_d, C), with the parameters of flax's.

    Attributes:
      form: groups, epsilon, activation and type.
    """

    form: Form

    @nn.compact
    def __call__(self, x: Array, scale: Array | None = None, shift: Array | None = None) -> Array:
        """Normalizes the features.

        Args:
          x: features, (B, N_1, ..., N_d, C).
          scale: (B, C): the normalized features are multiplied by 1 + scale before the activation;
            None leaves it out.
          shift: (B, C): what is added then; None leaves it out.

        Returns:
          Array of x's shape, of the type of the form; everything is computed in float32.
        """
        channels = (x.shape[-1],)
        gamma = self.param("scale", nn.initializers.ones_init(), channels, jnp.float32)[None]
        beta = self.param("bias", nn.initializers.zeros_init(), channels, jnp.float32)[None]
        if scale is not None:
            gamma, beta = gamma * (1 + scale), beta * (1 + scale)
        if shift is not None:
            beta = beta + shift
        plain = forward_mode.active() or arrays.platform() == "cpu"
        return (_normalized if plain else _by_rule)(self.form, x, gamma, beta)


def _normalized(form: Form, x: Array, gamma: Array, beta: Array) -> Array:
    a, b = _coefficients(form, x.shape, *_sums(x), gamma, beta)
    return _activated(form, x, a, b)


def _sums(x: Array) -> tuple[Array, Array]:
    """The sums of x and of its square over the pixels, (B, C) each."""
    pixels, x = tuple(range(1, x.ndim - 1)), x.astype(jnp.float32)
    return x.sum(pixels), (x * x).sum(pixels)


def _coefficients(
    form: Form, shape: tuple[int, ...], sums: Array, squares: Array, gamma: Array, beta: Array
) -> tuple[Array, Array]:
    """a and b, (B, C) each, by the sums and gamma and beta, (B, C) or (1, C)."""
    batch, *sizes, channels = shape
    size = channels // form.groups  # of a group
    count = size * functools.reduce(int.__mul__, sizes, 1)

    def mean_of(x: Array) -> Array:
        return jnp.repeat(x.reshape(batch, form.groups, size).sum(-1) / count, size, axis=-1)

    mean, square = mean_of(sums), mean_of(squares)
    a = gamma * jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0) + form.epsilon)
    return a, beta - mean * a


def _activated(form: Form, x: Array, a: Array, b: Array) -> Array:
    z = _over_pixels(a, x) * x + _over_pixels(b, x)
    return (jax.nn.silu(z) if form.silu else z).astype(form.dtype)


def _over_pixels(x: Array, like: Array) -> Array:
    """(B, C) as (B, 1, ..., 1, C)."""
    return jnp.expand_dims(x, tuple(range(1, like.ndim - 1)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_rule(form: Form, x: Array, gamma: Array, beta: Array) -> Array:
    return _normalized(form, x, gamma, beta)


def _forward(form: Form, x: Array, gamma: Array, beta: Array) -> tuple[Array, tuple]:
    sums = _sums(x)
    a, b = _coefficients(form, x.shape, *sums, gamma, beta)
    return _activated(form, x, a, b), (x, sums, gamma, beta)


def _backward(form: Form, saved: tuple, dy: Array) -> tuple[Array, Array, Array]:
    x, sums, gamma, beta = saved
    coefficients = functools.partial(_coefficients, form, x.shape)
    (a, b), pull = jax.vjp(coefficients, *sums, gamma, beta)

    x32, dz = x.astype(jnp.float32), dy.astype(jnp.float32)
    if form.silu:
        z = _over_pixels(a, x) * x32 + _over_pixels(b, x)
        s = jax.nn.sigmoid(z)
        dz = dz * (s * (1 + z * (1 - s)))
    dz = jax.lax.optimization_barrier(dz.astype(x.dtype)).astype(jnp.float32)
    pixels = tuple(range(1, x.ndim - 1))
    c, d, dgamma, dbeta = pull(((dz * x32).sum(pixels), dz.sum(pixels)))
    dx = _over_pixels(a, x) * dz + _over_pixels(c, x) + 2 * _over_pixels(d, x) * x32
    return dx.astype(x.dtype), dgamma, dbeta


_by_rule.defvjp(_forward, _backward)
