"""A decoder that predicts each pixel of an image from those before it."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np

from diffusion_jax.core.types import Array
from diffusion_jax.models import layers
from diffusion_jax.models.convolution import convolve
from diffusion_jax.models.embeddings import KERNEL_INIT


class PixelCNN(nn.Module):
    """Masked 5 x 5 convolutions (van den Oord et al. 2016, section 3.4) with conditioning features.

    A pixel of the result depends on its conditioning features, and on the pixels of the image
    before it in raster order, except for a wedge to the upper right.

    Attributes:
      features: channels of the result.
      width: channels of the convolutions.
      layers: number of masked convolutions, at least 1.
    """

    features: int
    width: int
    layers: int

    @nn.compact
    def __call__(self, h: Array, x: Array) -> Array:
        """Predicts each pixel from those before it.

        Args:
          h: conditioning features, (B, H, W, D).
          x: the image, (B, H, W, C).

        Returns:
          (B, H, W, features).
        """
        # "told" is the name of these parameters in checkpoints
        condition = layers.conv(self.width, 1, name="told")(h)
        h = self._masked(x, "masked_0", itself=False) + condition
        for i in range(1, self.layers):
            h = h + self._masked(jax.nn.silu(h + condition), f"masked_{i}", itself=True)
        return layers.conv(self.features, 1, name="last")(jax.nn.silu(h))

    def _masked(self, x: Array, name: str, itself: bool) -> Array:
        before = np.arange(25).reshape(5, 5) < 12 + itself
        mask = np.broadcast_to(before[:, :, None, None], (5, 5, x.shape[-1], self.width))
        return nn.Conv(
            self.width,
            (5, 5),
            mask=mask.astype(np.float32),
            kernel_init=KERNEL_INIT,
            conv_general_dilated=convolve,
            name=name,
        )(x)
