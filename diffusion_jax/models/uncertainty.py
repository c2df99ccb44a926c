"""The learned uncertainty of a network, by which objectives weight noise levels."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array
from diffusion_jax.models.embeddings import smooth


class LogVariance(nn.Module):
    """The learned uncertainty u(c_noise), (B,) -> (B,), the logarithm of the loss at a noise level.

    It is linear in smooth features of the noise level, and 0 at initialization (Karras et al. 2024,
    eq. 21; Lu & Song 2025, algorithm 1).

    Attributes:
      features: size of the features.
    """

    features: int

    @nn.compact
    def __call__(self, c_noise: Array) -> Array:
        """Evaluates u.

        Args:
          c_noise: the noise level, (B,).
        """
        linear = nn.Dense(1, kernel_init=nn.initializers.zeros_init(), name="last")
        return linear(smooth(c_noise, self.features))[:, 0]


def with_log_variance(
    out: Array, c_noise: Array, features: int, asked: bool
) -> Array | tuple[Array, dict[str, Array]]:
    """Returns the output of a network, with its learned uncertainty where it is asked for.

    A network calls this in its own scope, where the parameters are those of 'uncertainty'.

    Args:
      out: F, (B, ...).
      c_noise: the noise level, scalar or (B,).
      features: size of the features; 0: the network learns no uncertainty.
      asked: whether the uncertainty is returned.

    Returns:
      F, or (F, {'log_variance': u (B,)}).

    Raises:
      UserError: while tracing, if a network is asked that learns none.
    """
    if asked and not features:
        raise UserError("this network has learned no uncertainty: set config.model.uncertainty=128")
    if not features:
        return out
    c_noise = jnp.broadcast_to(jnp.asarray(c_noise, jnp.float32), out.shape[:1])
    u = LogVariance(features, name="uncertainty")(c_noise)
    return (out, {"log_variance": u}) if asked else out
