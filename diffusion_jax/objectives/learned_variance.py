"""The objectives of improved DDPM that learn the reverse variance: L_hybrid and L_vlb.

Nichol & Dhariwal 2021 ("Improved denoising diffusion probabilistic models").
It uses one term of the variational bound of likelihood/bounds.py, in bits per dimension, as the
paper reports it and as its code weights it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from diffusion_jax.core import arrays, streams
from diffusion_jax.core.arrays import expand, mean_per_example
from diffusion_jax.core.errors import UserError, need_ranges
from diffusion_jax.core.types import Array, Cond, Denoise, Key, Noised, Prediction, Process
from diffusion_jax.likelihood import bounds
from diffusion_jax.objectives import times
from diffusion_jax.objectives.base import Objective, per_example
from diffusion_jax.objectives.resampling import Resampling
from diffusion_jax.processes import gaussian


def hybrid(
    process: Process, steps: int = 1000, vlb_weight: float = 1e-3, levels: int = 256
) -> Objective:
    """L_simple + vlb_weight L_vlb (Nichol & Dhariwal 2021, eq. 16).

    L_simple is the mean squared error of eps. L_vlb is the whole bound in bits per dimension,
    estimated by `steps` times its term at the drawn t, so that the default weights the term by
    steps / 1000 as the paper's code does. In L_vlb the mean is held fixed: it trains nu alone.

    Args:
      process: the process that adds noise.
      steps: number of grid points that t is drawn from, DDPM's i / N on its chain.
      vlb_weight: weight of L_vlb.
      levels: number of values that the data take in [-1, 1]; 0 is for data without such levels, as
        latents, of which the bound has the density.

    Returns:
      The objective. Its loss raises UserError for a network without learned variance.

    Raises:
      UserError: for fewer than two steps.
    """
    need_ranges(
        "learned_variance.hybrid", steps=(steps, 2, 100_000), vlb_weight=(vlb_weight, 0, 1e6)
    )
    _check_levels("learned_variance.hybrid", levels)
    time = times.grid(steps)

    @per_example
    def draw(keys: Key, x0: Array) -> Noised:
        t = time(process, arrays.fold_in(keys, streams.OBJECTIVE_TIME))
        eps = arrays.noise(arrays.fold_in(keys, streams.OBJECTIVE_NOISE), x0)
        return gaussian.corrupt(process, x0, eps, t)

    def loss(denoise: Denoise, noised: Noised, cond: Cond = None) -> Array:
        prediction = denoise(noised.x_t, noised.t, cond)
        if prediction.nu is None:
            raise UserError(
                "learned_variance.hybrid needs a network that learns it: set "
                "config.model.learn_variance=True"
            )
        simple = mean_per_example((prediction.eps - noised.eps) ** 2)
        held = prediction._replace(x0=jax.lax.stop_gradient(prediction.x0))
        term = _bound_term(process, noised, held, steps, levels)
        return simple + vlb_weight * steps * term

    return Objective(draw, loss, gray_levels=bool(levels))


def vlb(
    process: Process, steps: int = 1000, levels: int = 256, importance: bool = True
) -> Objective:
    """The variational bound L_vlb itself, in bits per dimension (Nichol & Dhariwal 2021, eq. 4).

    It is `steps` times its term at the drawn t, and trains the mean as well.

    Args:
      process: the process that adds noise.
      steps: number of grid points that t is drawn from, DDPM's i / N on its chain.
      levels: number of values that the data take in [-1, 1]; 0 is for data without such levels, as
        latents, of which the bound has the density.
      importance: draws times by their losses (eq. 18; resampling.py), which makes the gradient less
        noisy. The held-out loss has uniform times.

    Returns:
      The objective. Its loss raises UserError for a network without learned variance.

    Raises:
      UserError: for fewer than two steps.
    """
    need_ranges("learned_variance.vlb", steps=(steps, 2, 100_000))
    _check_levels("learned_variance.vlb", levels)
    time = times.grid(steps)

    @per_example
    def at(keys: Key, x0: Array, t: Array) -> Noised:
        eps = arrays.noise(arrays.fold_in(keys, streams.OBJECTIVE_NOISE), x0)
        return gaussian.corrupt(process, x0, eps, t)

    @per_example
    def draw(keys: Key, x0: Array) -> Noised:
        return at(keys, x0, time(process, arrays.fold_in(keys, streams.OBJECTIVE_TIME)))

    def loss(denoise: Denoise, noised: Noised, cond: Cond = None) -> Array:
        prediction = denoise(noised.x_t, noised.t, cond)
        if prediction.nu is None:
            raise UserError(
                "learned_variance.vlb needs a network that learns it: set "
                "config.model.learn_variance=True"
            )
        return steps * _bound_term(process, noised, prediction, steps, levels)

    resampling = Resampling(steps, process.t_min, process.t_max) if importance else None
    return Objective(draw, loss, resampling, at, gray_levels=bool(levels))


def _check_levels(name: str, levels: int) -> None:
    """UserError for a number of levels that no data have."""
    if levels:
        need_ranges(name, levels=(levels, 2, 65_536))


def _bound_term(
    process: Process, noised: Noised, prediction: Prediction, steps: int, levels: int
) -> Array:
    """The term of the bound at the time of each example, (B,) bits per dimension."""
    spacing = (process.t_max - process.t_min) / (steps - 1)
    index = jnp.round((noised.t - process.t_min) / spacing)
    # the first time makes no move; its term is the reconstruction
    below = jnp.maximum(index, 1) - 1
    t, s = process.t_min + (below + 1) * spacing, process.t_min + below * spacing
    first = index == 0

    # Each term receives harmless arguments where the other one counts, so that no gradient
    # overflows in a value that is not used.
    def own(used: Array, value: Array, harmless: Array | float) -> Array:
        return jnp.where(expand(used, value), value, harmless)

    move = bounds._move(
        process,
        noised.x0,
        own(~first, prediction.x0, noised.x0),
        own(~first, prediction.nu, 0.0),
        t,
        s,
    )
    ends = jnp.asarray([process.t_min + spacing, process.t_min], noised.x0.dtype)
    reconstruction = bounds._reconstruction(
        process,
        noised.x0,
        own(first, prediction.x0, noised.x0),
        own(first, prediction.nu, 0.0),
        *ends,
        levels,
    )
    return jnp.where(first, reconstruction, move)


# The members of the family, which a config may name.
OBJECTIVES = (hybrid, vlb)
