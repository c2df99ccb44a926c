"""The grid of a model whose noise schedule was learned with it (Kingma et al. 2021)."""

from __future__ import annotations

import jax.numpy as jnp

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Process
from diffusion_jax.processes import learned as schedules
from diffusion_jax.samplers import grids


def learned(process: Process, n: int) -> Array:
    """Equal steps of u, the paper's own time, in t(u) = t_0 + (t_1 - t_0) s(u).

    Args:
      process: a processes.learned.Scheduled, as that of a trained model.
      n: number of times, at least 1; one time is t_max.

    Raises:
      UserError: for a process without a learned shape.
    """
    if getattr(process, "shape", None) is None:
        raise UserError(
            "grid 'learned' needs a model that has learned the shape of its schedule, by "
            "config.objective='vdm.vdm(learn_shape=True)'; use another, such as 'uniform_logsnr'"
        )
    s = schedules.shape(process.shape, jnp.linspace(1.0, 0.0, n))
    ts = process.t_min + (process.t_max - process.t_min) * s
    return grids._with_ends(process, ts, "learned")


# The members of the family, which a config may name.
GRIDS = (learned,)
