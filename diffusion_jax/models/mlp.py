"""A residual network for points rather than images, such as the two-dimensional toys."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Cond
from diffusion_jax.models.dropout import Dropout
from diffusion_jax.models.embeddings import KERNEL_INIT, ConditionEmbedding, concatenated


class MLP(nn.Module):
    """A residual perceptron F(x, c_noise, cond): (B, D), (B,), dict -> (B, D) float32.

    The output is exactly 0 at initialization. The calling convention and cond['label'] are those of
    unet.UNet. Each residual block computes

        h + W2 dropout(silu(W1 (norm(h) (1 + scale) + shift)))

    with scale and shift from the noise level and the class: ADM's adaptive norm (Dhariwal & Nichol
    2021) with layer norm.

    Attributes:
      num_classes: 0 is unconditional; otherwise there is an embedding for each class and one for
        "no class", label num_classes.
      vector: size of cond['vector'], as in unet.UNet.
      width: number of hidden units.
      blocks: number of residual blocks.
      dropout: rate inside a block.
      learn_variance: adds D outputs, after the first D (Nichol & Dhariwal 2021, eq. 15).
      extra_channels: size of cond['concat'], which the first layer receives besides x.
      noise_embedding: one of embeddings.NOISE_FEATURES.
      second_time: the network also receives cond['to'], the time at which a move ends (MeanFlow).
    """

    num_classes: int = 0
    vector: int = 0
    width: int = 128
    blocks: int = 3
    dropout: float = 0.0
    learn_variance: bool = False
    extra_channels: int = 0
    noise_embedding: str = "sinusoidal"
    second_time: bool = False

    @nn.compact
    def __call__(self, x: Array, c_noise: Array, cond: Cond = None, train: bool = False) -> Array:
        """Evaluates the network.

        Args:
          x: scaled points, (B, D).
          c_noise: the noise level, scalar or (B,).
          cond: None, or a dict with 'label' (B,), 'vector' (B, vector), 'concat' (B,
            extra_channels) and, with second_time, 'to' (B,).
          train: turns dropout on; then rngs={'dropout': key} is needed.

        Returns:
          F, (B, D) or (B, 2D) float32.

        Raises:
          UserError: if x is not (B, D).
        """
        if x.ndim != 2:
            raise UserError(f"the MLP takes points (B, D), not {x.shape}; use a U-Net for images")
        features = x.shape[-1] * (2 if self.learn_variance else 1)
        condition = ConditionEmbedding(
            self.width,
            self.width,
            self.num_classes,
            self.noise_embedding,
            second_time=self.second_time,
            vector=self.vector,
            name="condition",
        )
        embedding = jax.nn.silu(condition(c_noise, cond or {}, x.shape[0]))
        x = concatenated(x, cond or {}, self.extra_channels)
        h = nn.Dense(self.width, kernel_init=KERNEL_INIT, name="first")(x)
        for i in range(self.blocks):
            h = h + self._branch(h, embedding, train, f"block_{i}")
        h = jax.nn.silu(nn.LayerNorm(name="last_norm")(h))
        last = nn.Dense(features, kernel_init=nn.initializers.zeros_init(), name="last")
        return last(h).astype(jnp.float32)

    def _branch(self, h: Array, embedding: Array, train: bool, name: str) -> Array:
        modulation = nn.Dense(2 * self.width, kernel_init=KERNEL_INIT, name=f"{name}_embedding")
        scale, shift = jnp.split(modulation(embedding), 2, axis=-1)
        h = nn.LayerNorm(name=f"{name}_norm")(h) * (1 + scale) + shift
        h = jax.nn.silu(nn.Dense(self.width, kernel_init=KERNEL_INIT, name=f"{name}_1")(h))
        h = Dropout(self.dropout)(h, train)
        return nn.Dense(self.width, kernel_init=nn.initializers.zeros_init(), name=f"{name}_2")(h)


# The members of the family, which a config may name.
NETWORKS = (MLP,)
