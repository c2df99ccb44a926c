"""The discriminator of an autoencoder, which judges every patch of an image."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.core.errors import need_ranges
from diffusion_jax.core.types import Array
from diffusion_jax.models import layers
from diffusion_jax.models.normalization import group_norm

SLOPE = 0.2  # of the leaky rectifiers


class PatchGAN(nn.Module):
    """The PatchGAN discriminator (Isola et al. 2017, section 3.2.2; Esser et al. 2021).

    It maps (B, H, W, C) to logits (B, h, w, 1), which are positive for real patches. Group norm
    replaces the papers' batch norm, so that the logits of an image do not depend on the batch.

    Attributes:
      width: channels of the first layer.
      layers: number of convolutions that halve the feature map. Each has twice the channels of the
        one before, at most 8 width.
    """

    width: int = 64
    layers: int = 3

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Computes the logits of the patches of images.

        Args:
          x: images, (B, H, W, C), in [-1, 1].

        Returns:
          Logits, (B, h, w, 1), positive for real patches.

        Raises:
          UserError: if a field is out of its range.
        """
        need_ranges("PatchGAN", width=(self.width, 1, 4096), layers=(self.layers, 1, 16))
        for i in range(self.layers + 1):
            stride = 2 if i < self.layers else 1
            x = layers.conv(self.width * 2 ** min(i, 3), 4, stride=stride, name=f"conv_{i}")(x)
            x = group_norm(x, f"norm_{i}") if i else x
            x = jax.nn.leaky_relu(x, SLOPE)
        return layers.conv(1, 4, name="last")(x).astype(jnp.float32)


# The members of the family, which a config may name.
NETWORKS = (PatchGAN,)
