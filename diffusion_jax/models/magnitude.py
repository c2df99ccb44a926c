"""Layers that keep the expected magnitude of their activations (Karras et al. 2024, EDM2).

The paper is "Analyzing and improving the training dynamics of diffusion models"; equations are its
own. With inputs of unit magnitude the results have unit magnitude, without norms and biases:

    weights      normalized(w) / sqrt(n),       n the inputs of a unit                   eq. 47
    mp_silu      silu(x) / 0.596                                                           eq. 81
    mp_sum       ((1 - t) a + t b) / sqrt((1 - t)^2 + t^2)                                 eq. 88
    mp_cat       the parts weighted so that their shares are 1 - t and t                   eq. 103
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.types import Array
from diffusion_jax.models.convolution import convolve

EPSILON = 1e-4  # added to each root mean square
TINY = 1e-30  # a sum of squares below it has no gradient


def normalized(x: Array, axes: tuple[int, ...] | int) -> Array:
    """Divides by the root mean square over some axes plus 1e-4.

    Args:
      x: any array.
      axes: the axes of a vector whose components will have mean square 1.

    Returns:
      Array of x's shape and type.
    """
    mean = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=axes, keepdims=True)
    return x / (EPSILON + jnp.sqrt(jnp.maximum(mean, TINY))).astype(x.dtype)


def mp_silu(x: Array) -> Array:
    """SiLU with unit expected magnitude for unit Gaussian inputs (eq. 81).

    Args:
      x: any array.
    """
    return jax.nn.silu(x) / 0.596


def mp_sum(a: Array, b: Array, t: float = 0.5) -> Array:
    """The sum of two arrays of unit magnitude, with unit magnitude (eq. 88).

    Args:
      a: any array.
      b: array of a's shape.
      t: share of b.
    """
    return (a + t * (b - a)) / math.hypot(1 - t, t)


def mp_cat(a: Array, b: Array, t: float = 0.5) -> Array:
    """Both arrays side by side along the last axis, with unit magnitude (eq. 103).

    Args:
      a: features, (..., n).
      b: features, (..., m).
      t: share of b in what a layer of them computes.

    Returns:
      (..., n + m).
    """
    n, m = a.shape[-1], b.shape[-1]
    scale = math.sqrt(n + m) / math.hypot(1 - t, t)
    return jnp.concatenate(
        [scale * (1 - t) / math.sqrt(n) * a, scale * t / math.sqrt(m) * b], axis=-1
    )


class MPLayer(nn.Module):
    """A linear layer or a convolution of unit-magnitude weights (eq. 47), without a bias.

    Attributes:
      features: number of outputs.
      size: height and width of the kernel; 0 is a linear layer on the last axis.
    """

    features: int
    size: int = 0

    @nn.compact
    def __call__(self, x: Array, gain: Array | float = 1.0) -> Array:
        """Applies the layer.

        Args:
          x: (..., n) or, for a convolution, (B, H, W, n).
          gain: factor of the result.

        Returns:
          Array of x's shape but for the last axis, which is `features`.
        """
        shape = (self.size,) * 2 * bool(self.size) + (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(1.0), shape, jnp.float32)
        kernel = unit_kernel(kernel) * (gain / math.sqrt(math.prod(shape[:-1])))
        if not self.size:
            return x @ kernel.astype(x.dtype)
        return convolve(x, kernel.astype(x.dtype), (1, 1), "SAME")


def unit_kernel(kernel: Array) -> Array:
    """The kernel whose weights of each output have mean square 1 (eq. 66).

    Args:
      kernel: (..., inputs, outputs).
    """
    return normalized(kernel, tuple(range(kernel.ndim - 1)))


class MPFourier(nn.Module):
    """Random Fourier features of unit magnitude (eq. 75), (B,) -> (B, features).

        sqrt(2) cos(x w_i + phase_i),    w_i ~ 2 pi N(0, 1),    phase_i ~ 2 pi U(0, 1)

    The frequencies and phases are parameters without a gradient, so that a file can bring them; a
    decay of the weights would change them, and EDM2 has none.
    """

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Computes the features.

        Args:
          x: numbers, (B,).

        Returns:
          (B, features) float32.
        """
        turn, shape = 2 * np.pi, (self.features,)
        frequencies = self.param("frequencies", nn.initializers.normal(turn), shape, jnp.float32)
        phases = self.param("phases", nn.initializers.uniform(turn), shape, jnp.float32)
        frequencies, phases = map(jax.lax.stop_gradient, (frequencies, phases))
        return math.sqrt(2) * jnp.cos(x[:, None] * frequencies + phases)
