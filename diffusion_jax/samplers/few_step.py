"""Samplers of few-step models: from noise to data in one, two or four evaluations.

A consistency function is a denoiser whose x0-hat is the end of the trajectory; an average velocity
is one whose (x0-hat, eps-hat) leads to the trajectory's point at another time
(objectives/consistency.py, meanflow.py). `base.sample` on a grid of one time is therefore one-step
generation by either. Grids of a few times, which end before the data, are grids.few_step and
grids.levels.
"""

from __future__ import annotations

import jax.numpy as jnp

from diffusion_jax.core.arrays import expand
from diffusion_jax.core.types import Array, Cond
from diffusion_jax.samplers.base import Sampler, memoryless


def multistep() -> Sampler:
    """Multistep consistency sampling (Song et al. 2023, algorithm 1).

    x_s = alpha_s x0-hat + sqrt(sigma_s^2 - (alpha_s u)^2) z, where u is the noise level sigma /
    alpha that x0-hat still has (Prediction.residual): that of t_min for
    parameterization.consistency, whose boundary is there, as in the paper; 0 for a function that
    ends at the data (sCM, ECT, latent consistency models), where the noise is sigma_s z. On a grid
    of chosen times it is the stochastic iterative sampler. Where x0-hat is exact the output has the
    law of x_t / alpha_t at the boundary, whatever the times.
    """

    def step(noise, x, t, s, denoise, process, cond):
        prediction, level = denoise(x, t, cond), process.sigma(s)
        if prediction.residual is not None:
            level = expand(
                jnp.sqrt(
                    jnp.maximum(level**2 - (process.alpha(s) * prediction.residual) ** 2, 0.0)
                ),
                x,
            )
        return process.alpha(s) * prediction.x0 + level * noise.path(t, s)

    return memoryless(step, grid="few_step()")


def ending_at(cond: Cond, s: Array, batch: int) -> Cond:
    """Returns the condition with the time s at which the move ends, as cond['to'], (B,).

    Networks with two times read it, such as average velocities; a denoiser ignores it.

    Args:
      cond: the condition, a dict of arrays with leading axis B, or None.
      s: where the move ends, a scalar or (B,).
      batch: B, the number of examples.
    """
    return (cond or {}) | {"to": jnp.broadcast_to(s, (batch,))}


def jump() -> Sampler:
    """MeanFlow's sampler (Geng et al. 2025, eq. 12): x_s = alpha_s x0-hat + sigma_s eps-hat.

    The prediction is given s as its second time. On rectified flow the move is x_s = x_t + (s - t)
    u(x_t, t, s). With a denoiser, which ignores s, it is DDIM.
    """

    def step(noise, x, t, s, denoise, process, cond):
        x0, eps = denoise(x, t, ending_at(cond, s, len(x)))[:2]
        return process.alpha(s) * x0 + process.sigma(s) * eps

    return memoryless(step, grid="few_step()")


# The members of the family, which a config may name.
SAMPLERS = (multistep, jump)
