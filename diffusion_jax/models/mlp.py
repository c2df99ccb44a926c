"""A residual network for points rather than images: the two-dimensional toys."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from diffusion_jax.errors import UserError
from diffusion_jax.models.embeddings import KERNEL_INIT, ConditionEmbedding
from diffusion_jax.types import Array, Cond


class MLP(nn.Module):
    """F(x, c_noise, cond): (B, D), (B,), dict -> (B, D) float32, or (B, 2D) with learn_variance.
    Exactly 0 at init.

    The calling convention and cond['label'] are the U-Net's. Residual blocks
        h + W2 drop(silu(W1 (norm(h) (1 + scale) + shift)))
    with scale and shift from noise level and class: ADM's adaptive norm (Dhariwal & Nichol 2021)
      with layer norm.

    num_classes: 0 is unconditional; otherwise a row per class and one for "no class", label
      num_classes.
    width: hidden units. blocks: residual blocks. dropout: rate inside a block.
    learn_variance: D more outputs, after the first D (Nichol & Dhariwal 2021, eq. 15).
    noise_embedding: one of embeddings.NOISE_FEATURES. second_time: also told cond['to'], where a
      move ends (MeanFlow).
    """

    num_classes: int = 0
    width: int = 128
    blocks: int = 3
    dropout: float = 0.0
    learn_variance: bool = False
    noise_embedding: str = "sinusoidal"
    second_time: bool = False

    @nn.compact
    def __call__(self, x: Array, c_noise: Array, cond: Cond = None, train: bool = False) -> Array:
        if x.ndim != 2:
            raise UserError(f"the MLP takes points (B, D), not {x.shape}; use a U-Net for images")
        features = x.shape[-1] * (2 if self.learn_variance else 1)
        condition = ConditionEmbedding(
            self.width,
            self.width,
            self.num_classes,
            self.noise_embedding,
            second_time=self.second_time,
            name="condition",
        )
        told = jax.nn.silu(condition(c_noise, cond or {}, x.shape[0]))
        h = nn.Dense(self.width, kernel_init=KERNEL_INIT, name="first")(x)
        for i in range(self.blocks):
            h = h + self._branch(h, told, train, f"block_{i}")
        h = jax.nn.silu(nn.LayerNorm(name="last_norm")(h))
        return nn.Dense(features, kernel_init=nn.initializers.zeros_init(), name="last")(h).astype(
            jnp.float32
        )

    def _branch(self, h: Array, told: Array, train: bool, name: str) -> Array:
        told = nn.Dense(2 * self.width, kernel_init=KERNEL_INIT, name=f"{name}_embedding")(told)
        scale, shift = jnp.split(told, 2, axis=-1)
        h = nn.LayerNorm(name=f"{name}_norm")(h) * (1 + scale) + shift
        h = jax.nn.silu(nn.Dense(self.width, kernel_init=KERNEL_INIT, name=f"{name}_1")(h))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        return nn.Dense(self.width, kernel_init=nn.initializers.zeros_init(), name=f"{name}_2")(h)
