"""The variational bound of a chain of moves, plain and importance-weighted, and in continuous time;
and improved DDPM's hybrid objective, which learns the variance with it.

    -log p(x0) <= KL(q(x_T | x0) || p(x_T))                                   prior
                + sum over moves t -> s of KL(q(x_s | x_t, x0) || p(x_s | x_t))   diffusion
                - log p(x0 | x_t_min)                                           reconstruction

Ho et al. 2020, eq. 5; Nichol & Dhariwal 2021, eq. 4-7. p(x_s | x_t) is Gaussian with the posterior
mean at x0-hat, the one that samplers/ancestral.py draws from; the last move is a Gaussian around
x0-hat, integrated over x0's bin. Everything here is in bits per dimension, as both papers report it
and as improved DDPM's code weighs it. In the limit of many moves the diffusion term is an integral
over the log-SNR, the same for every process between the same ends (Kingma et al. 2021).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from diffusion_jax import arrays, streams
from diffusion_jax.arrays import expand, mean_per_example
from diffusion_jax.errors import UserError, need_ranges
from diffusion_jax.likelihood import bounds
from diffusion_jax.objectives import times
from diffusion_jax.objectives.base import Objective, per_example
from diffusion_jax.processes import gaussian
from diffusion_jax.types import Process


def hybrid(
    process: Process, steps: int = 1000, vlb_weight: float = 1e-3, levels: int = 256
) -> Objective:
    """L_simple + vlb_weight L_vlb (Nichol & Dhariwal 2021, eq. 16), for networks with learned
    variance (Prediction.nu).

    L_simple is the mean squared error of eps. L_vlb is the whole bound in bits per dimension,
    estimated by `steps` times its term at the drawn t, so that the default weighs the term by steps
    / 1000 as the paper's code does. In L_vlb the mean is held fixed: it trains nu alone. t lies on
    the grid of `steps` times, DDPM's i / N on its chain; data has `levels` values in [-1, 1].
    Raises UserError for a network without learned variance and for fewer than two steps.
    """
    need_ranges(
        "elbo.hybrid",
        steps=(steps, 2, 100_000),
        vlb_weight=(vlb_weight, 0, 1e6),
        levels=(levels, 2, 65_536),
    )
    time, spacing = times.grid(steps), (process.t_max - process.t_min) / (steps - 1)

    @per_example
    def draw(keys, x0):
        t = time(process, arrays.fold_in(keys, streams.OBJECTIVE_TIME))
        return gaussian.corrupt(
            process, x0, arrays.noise(arrays.fold_in(keys, streams.OBJECTIVE_NOISE), x0), t
        )

    def loss(denoise, noised, cond=None):
        prediction = denoise(noised.x_t, noised.t, cond)
        if prediction.nu is None:
            raise UserError(
                "elbo.hybrid needs a network that learns it: set config.model.learn_variance=True"
            )
        simple = mean_per_example((prediction.eps - noised.eps) ** 2)
        index = jnp.round((noised.t - process.t_min) / spacing)
        below = (
            jnp.maximum(index, 1) - 1
        )  # the first time makes no move; its term is the reconstruction
        t, s = process.t_min + (below + 1) * spacing, process.t_min + below * spacing
        fixed, first = jax.lax.stop_gradient(prediction.x0), index == 0

        # each term sees harmless arguments where the other one counts, so that no gradient
        # overflows in what is not used
        def own(used, value, harmless):
            return jnp.where(expand(used, value), value, harmless)

        move = bounds._move(
            process, noised.x0, own(~first, fixed, noised.x0), own(~first, prediction.nu, 0.0), t, s
        )
        ends = jnp.asarray([process.t_min + spacing, process.t_min], noised.x0.dtype)
        reconstruction = bounds._reconstruction(
            process,
            noised.x0,
            own(first, fixed, noised.x0),
            own(first, prediction.nu, 0.0),
            *ends,
            levels,
        )
        return simple + vlb_weight * steps * jnp.where(first, reconstruction, move)

    return Objective(draw, loss)


# The members of the family, which a config may name.
OBJECTIVES = (hybrid,)
