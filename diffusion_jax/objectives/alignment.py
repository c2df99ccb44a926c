"""Representation alignment, REPA (Yu et al. 2025): a loss term besides that of a denoiser.

    L = L_denoising + weight E [ mean over tokens of 1 - cos(h(x_t)_n, y(x0)_n) ]

h is a projection of the tokens of an intermediate block of the network, and y the features that a
frozen encoder, such as DINOv2, has of the clean image. The paper's term is this one minus the
weight, the negative cosine.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array

SMALLEST = 1e-12  # below this length a vector has no direction


def misalignment(tokens: Array, features: Array) -> Array:
    """One minus the cosine of tokens and features, averaged over tokens (Yu et al. 2025, eq. 8).

    It is 0 where they are parallel and 2 where they are opposite. Features receive no gradient.

    Args:
      tokens: projected tokens of the network, (B, T, D).
      features: features of the encoder, (B, T, D).

    Returns:
      (B,) float32.

    Raises:
      UserError: while tracing, for another number of tokens.
    """
    if tokens.shape != features.shape:
        raise UserError(
            f"config.repa.features has {features.shape[1]} vectors of {features.shape[2]} features "
            f"for each image, and the network {tokens.shape[1]} tokens of {tokens.shape[2]}; make "
            "features for the network's grid of patches"
        )
    features = jax.lax.stop_gradient(features)
    return 1 - jnp.mean(jnp.sum(_directions(tokens) * _directions(features), axis=-1), axis=-1)


def _directions(x: Array) -> Array:
    """Vectors of length 1, with a derivative also at 0."""
    x = x.astype(jnp.float32)
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, SMALLEST**2))
