"""Weighting each noise level by the network's own uncertainty, and the objective of EDM2.

Karras et al. 2024 ("Analyzing and improving the training dynamics of diffusion models").
"""

from __future__ import annotations

import jax.numpy as jnp

from diffusion_jax.core.arrays import mean_per_example
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Cond, Denoise, Noised, Process
from diffusion_jax.objectives import denoising, weighting
from diffusion_jax.objectives.base import Objective


def balanced(name: str, losses: Array, log_variance: Array | None) -> Array:
    """Divides losses by their size, which the network learns (Karras et al. 2024, eq. 14 to 16).

        L / exp(u) + u,    least where u = log E[L]

    Args:
      name: of the objective, for messages.
      losses: L, (B,).
      log_variance: u, (B,), of the prediction; None for a network without it.

    Returns:
      The weighted losses, (B,).

    Raises:
      UserError: for a network without the learned uncertainty.
    """
    if log_variance is None:
        raise UserError(
            f"{name} needs a network that learns its own uncertainty: set "
            "config.model.uncertainty=128, which unet.UNet, ncsnpp.NCSNpp and edm2.EDM2UNet have"
        )
    return losses * jnp.exp(-log_variance) + log_variance


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
        losses = weight(process, noised.t) * mean_per_example((prediction.eps - noised.eps) ** 2)
        return balanced("uncertainty.edm2", losses, prediction.log_variance)

    return plain._replace(loss=loss)


# The members of the family, which a config may name.
OBJECTIVES = (edm2,)
