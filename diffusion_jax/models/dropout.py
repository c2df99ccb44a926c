"""Dropout (Srivastava et al. 2014), and its rate by resolution (Hoogeboom et al. 2023).

    y = m x / (1 - p),        m = 0 with probability p, else 1

The random bits are the cost of dropout on an accelerator. jax.random draws 32 for each element by
20 rounds of Threefry, with which dropout takes three times as long as reading and writing the array
(docs/scaling.md). Here an element has 16 bits of Philox2x32 (Salmon et al. 2011), with the 7 rounds
that pass their tests,

    (a, b) <- (high(M a) ^ k ^ b, low(M a)),        k <- k + W,

which are fast enough to be computed again for the backward pass. They depend on the key, the
example and the place within it alone, so that masks do not depend on the mesh.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.core.types import Array, Key

LEVELS = 2**16  # of a random number: the rate is rounded to a multiple of its inverse
MULTIPLIER, WEYL, ROUNDS = 0xD256D193, 0x9E3779B9, 7  # of Philox2x32


class Dropout(nn.Module):
    """Sets elements to zero at random while training, and divides the others by 1 - rate.

    Attributes:
      rate: the probability that an element is dropped, in [0, 1), rounded to 1 / 65536.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Drops elements.

        Args:
          x: any array with an axis of examples first and at least one other.
          train: whether anything is dropped, which needs an rng of the name 'dropout'.

        Returns:
          Array of x's shape and type.
        """
        threshold = round(self.rate * LEVELS)
        if not train or not threshold:
            return x
        keep = kept(self.make_rng("dropout"), x.shape, threshold)
        return jnp.where(keep, x / (1 - threshold / LEVELS), 0).astype(x.dtype)


def kept(key: Key, shape: tuple[int, ...], threshold: int) -> Array:
    """Which elements are kept.

    Args:
      key: a key of any implementation.
      shape: (B, ..., C).
      threshold: the number of the 65,536 equally likely values of an element that drop it.

    Returns:
      Array of `shape`, bool.
    """
    inner = (*shape[1:-1], math.ceil(shape[-1] / 2))  # places of two elements within an example
    example = jax.lax.broadcasted_iota(jnp.uint32, (shape[0], *inner), 0)
    place = jnp.arange(math.prod(inner), dtype=jnp.uint32).reshape(inner)
    words = philox(jax.random.bits(key, (2,)), jnp.broadcast_to(place, example.shape), example)
    numbers = jnp.concatenate([words & (LEVELS - 1), words >> 16], axis=-1)
    return numbers[..., : shape[-1]] >= threshold


def philox(key: Array, a: Array, b: Array) -> Array:
    """A random word for each counter, by Philox2x32-7.

    Args:
      key: two words, (2,) uint32; the second is added to the second word of the counters.
      a: first words of the counters, uint32.
      b: second words, like a.

    Returns:
      Array like a.
    """
    k, b = key[0], b + key[1]
    for _ in range(ROUNDS):
        a, b, k = _high(a) ^ k ^ b, a * jnp.uint32(MULTIPLIER), k + jnp.uint32(WEYL)
    return a


def _high(a: Array) -> Array:
    """The upper word of MULTIPLIER a, from products of halves.

    XLA cannot divide a program with `jax.lax.mulhi` among several devices (jaxlib 0.10.2).
    """
    low, high = jnp.uint32(MULTIPLIER & 0xFFFF), jnp.uint32(MULTIPLIER >> 16)
    a_low, a_high = a & 0xFFFF, a >> 16
    upper = a_high * low + (a_low * low >> 16)  # at most 2^32 - 2^16
    middle = a_low * high + (upper & 0xFFFF)
    return a_high * high + (upper >> 16) + (middle >> 16)


def rate_at(h: Array, direction: str, rate: float, height: int) -> float:
    """The rate of dropout of a residual block ("Simple diffusion", section 3.3).

    Args:
      h: the input of the block, (B, N_1, ..., N_d, C).
      direction: whether the block halves ('down'), doubles ('up') or keeps ('none') the resolution.
      rate: the rate of blocks that have dropout.
      height: the greatest N_1 of the output of such a block; 0 is all.
    """
    out = {"down": h.shape[1] // 2, "up": 2 * h.shape[1], "none": h.shape[1]}[direction]
    return rate if not height or out <= height else 0.0
