"""The objective of EDM2, which weights each noise level by the network's own uncertainty.

Karras et al. 2024 ("Analyzing and improving the training dynamics of diffusion models").
"""

from __future__ import annotations

import jax.numpy as jnp

from diffusion_jax.core.arrays import mean_per_example
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Cond, Denoise, Noised, Process
from diffusion_jax.objectives import denoising, weighting
from diffusion_jax.objectives.base import Objective


def edm2(
    process: Process, p_mean: float = -0.4, p_std: float = 1.0, sigma_data: float = 0.5
) -> Objective:
    """EDM2's objective (Karras et al. 2024, eq. 14 to 16 and 21): EDM's, weighted by its own size.

        L / exp(u(sigma)) + u(sigma),    L the loss of `denoising.edm`

    The network learns u, the logarithm of its loss at a noise level, so that all levels contribute
    equally.

    Args:
      process: the process that adds noise.
      p_mean: mean of log(sigma / alpha).
      p_std: standard deviation of log(sigma / alpha).
      sigma_data: standard deviation of the data.

    Returns:
      The objective. Its loss raises UserError for a network without the learned uncertainty.

    Raises:
      UserError: for an argument out of its range.
    """
    plain, weight = denoising.edm(process, p_mean, p_std, sigma_data), weighting.edm(sigma_data)

    def loss(denoise: Denoise, noised: Noised, cond: Cond = None) -> Array:
        prediction = denoise(noised.x_t, noised.t, cond)
        u = prediction.log_variance
        if u is None:
            raise UserError(
                "uncertainty.edm2 needs a network that learns its own uncertainty: set "
                "config.model.name=edm2.EDM2UNet and config.model.uncertainty=128"
            )
        error = mean_per_example((prediction.eps - noised.eps) ** 2)
        return weight(process, noised.t) * error * jnp.exp(-u) + u

    return plain._replace(loss=loss)


# The members of the family, which a config may name.
OBJECTIVES = (edm2,)
