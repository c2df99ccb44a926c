"""The adversary of an autoencoder: it says of every patch of an image whether it is real."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.errors import need_ranges
from diffusion_jax.models import layers
from diffusion_jax.types import Array

SLOPE = 0.2  # of the leaky rectifiers


class PatchGAN(nn.Module):
    """Logits, positive for real: (B, H, W, C) -> (B, h, w, 1) (Isola et al. 2017, section 3.2.2;
    Esser et al. 2021).

    layers: convolutions that halve the map, each with twice the channels of the one before, at most
    8 width. Group norm stands in for their batch norm, so that an image is judged by itself.
    """

    width: int = 64
    layers: int = 3

    @nn.compact
    def __call__(self, x: Array) -> Array:
        need_ranges("PatchGAN", width=(self.width, 1, 4096), layers=(self.layers, 1, 16))
        for i in range(self.layers + 1):
            stride = 2 if i < self.layers else 1
            x = layers.conv(self.width * 2 ** min(i, 3), 4, stride=stride, name=f"conv_{i}")(x)
            x = layers.group_norm(x, f"norm_{i}") if i else x
            x = jax.nn.leaky_relu(x, SLOPE)
        return layers.conv(1, 4, name="last")(x).astype(jnp.float32)
