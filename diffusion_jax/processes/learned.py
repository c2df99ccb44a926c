"""Noise schedules that are learned with the network (Kingma et al. 2021, VDM, appendix H).

    t(u) = t_0 + (t_1 - t_0) s(u),    s(u) = (g(u) - g(0)) / (g(1) - g(0)),    u in [0, 1]
    g(u) = h + l3(sigmoid(l2(h))),    h = l1(u)

l1, l2 and l3 are linear with positive weights, so s rises from 0 to 1. The times t_0 and t_1 are
those of the learned ends gamma_0 and gamma_1, with gamma = -logsnr. Under schedules.VDM, whose
gamma is affine in t, gamma(t(u)) is the paper's gamma_eta(u) = gamma_0 + (gamma_1 - gamma_0) s(u).

The process and its time stay as they are. What is learned is where its ends are and how often
training visits the times between them: the bound in continuous time is an integral over the
log-SNR,

    1/2 E_u[dgamma/du |eps - eps_hat|^2] = 1/2 int_{gamma_0}^{gamma_1} |eps - eps_hat|^2 dgamma,

which depends on the ends alone (eq. 18). So x_t, the inputs of the network and every sampler mean
the same before and after training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Params, Process
from diffusion_jax.processes import gaussian

NAME = "schedule"  # of its parameters among those of the network
ENDS, SHAPE = "ends", "shape"  # its parts
SLOPE, MARGIN = 20.0, 0.2  # of the sigmoids before training, and how far beyond [0, 1] they reach


class Schedule(NamedTuple):
    """What of a schedule is learned, and where learning starts.

    Attributes:
      clock: the process whose times the schedule visits.
      gammas: (gamma_0, gamma_1) at the start, within the ends of the clock.
      learn_ends: whether gamma_0 and gamma_1 are learned.
      width: number of sigmoids of the shape; 0: the shape is that of the clock.
    """

    clock: Process
    gammas: tuple[float, float]
    learn_ends: bool
    width: int

    def fresh(self) -> Params:
        """Returns the parameters before training, whose shape is nearly s(u) = u."""
        params = {ENDS: jnp.asarray(self.gammas, jnp.float32)} if self.learn_ends else {}
        return params | ({SHAPE: fresh_shape(self.width)} if self.width else {})

    def ends(self, params: Params) -> tuple[Array, Array]:
        """Returns the times t_0 and t_1, which are kept within those of the clock.

        Args:
          params: the parameters of the schedule.
        """
        gammas = params[ENDS] if self.learn_ends else jnp.asarray(self.gammas, jnp.float32)
        t = gaussian.time_of_logsnr(self.clock, -gammas)
        return t[0], t[1]

    def shape(self, params: Params, u: Array) -> Array:
        """Returns s(u).

        Args:
          params: the parameters of the schedule.
          u: numbers in [0, 1], (B,).
        """
        return shape(params.get(SHAPE), u)

    def process(self, params: Params) -> Scheduled:
        """Returns the clock between its learned ends.

        Args:
          params: the parameters of the schedule, which may be traced.
        """
        return Scheduled(self.clock, *self.ends(params), params.get(SHAPE))

    def trained(self, params: Params) -> Scheduled:
        """Returns the same as a process of numbers, by which grids and likelihoods can be made.

        Args:
          params: the parameters of the schedule, whole on every device.
        """
        params = jax.tree.map(np.asarray, params)
        return Scheduled(self.clock, *map(float, self.ends(params)), params.get(SHAPE))


@dataclass(frozen=True)
class Scheduled:
    """A process between its learned ends, with the shape that training visited its times by.

    Attributes:
      base: the process, whose alpha and sigma stay.
      t_min: the time of the data end, t_0.
      t_max: the time of the noise end, t_1.
      shape: the parameters of s, by which the grid 'learned' places its times; None for s(u) = u.
    """

    base: Process
    t_min: float
    t_max: float
    shape: Params | None = field(default=None, compare=False, repr=False)

    def alpha(self, t: Array) -> Array:
        """The factor of x0 in x_t, that of the base.

        Args:
          t: times in [t_min, t_max], a scalar or (B,).
        """
        return self.base.alpha(t)

    def sigma(self, t: Array) -> Array:
        """The factor of eps in x_t, that of the base.

        Args:
          t: times in [t_min, t_max], a scalar or (B,).
        """
        return self.base.sigma(t)


def times(process: Process, u: Array) -> Array:
    """The times t(u) = t_0 + (t_1 - t_0) s(u) that training visited at u.

    Args:
      process: a Scheduled, as that of a trained model.
      u: numbers in [0, 1], of any shape; 0 is the data end.

    Raises:
      UserError: for a process without a learned shape.
    """
    if getattr(process, "shape", None) is None:
        raise UserError(
            "grid 'learned' needs a model that has learned the shape of its schedule, by "
            "config.objective='vdm.vdm(learn_shape=True)'; use another, such as 'uniform_logsnr'"
        )
    return process.t_min + (process.t_max - process.t_min) * shape(process.shape, u)


def fresh_shape(width: int) -> Params:
    """Makes the parameters of a shape that is nearly s(u) = u: many even steps.

    Weights are kept as their logarithms. The paper's network has 1024 sigmoids.

    Args:
      width: number of sigmoids, at least 1.
    """
    centers = jnp.linspace(-MARGIN, 1 + MARGIN, width)
    slope = jnp.full(width, math.log(SLOPE), jnp.float32)
    return {
        "l1": {"log_weight": jnp.zeros(()), "bias": jnp.zeros(())},
        "l2": {"log_weight": slope, "bias": -SLOPE * centers},
        "l3": {"log_weight": jnp.zeros(width)},
    }


def shape(params: Params | None, u: Array) -> Array:
    """Computes s(u) = (g(u) - g(0)) / (g(1) - g(0)), which rises from 0 to 1.

    Args:
      params: the three layers, as `fresh_shape` makes them; None for s(u) = u.
      u: numbers in [0, 1], (B,).

    Returns:
      s(u), (B,).
    """
    u = jnp.asarray(u)
    if params is None:
        return u
    weights = {name: jnp.exp(layer["log_weight"]) for name, layer in params.items()}

    def g(u: Array) -> Array:
        h = weights["l1"] * u + params["l1"]["bias"]
        steps = jax.nn.sigmoid(h[..., None] * weights["l2"] + params["l2"]["bias"])
        return h + jnp.mean(weights["l3"] * steps, axis=-1)

    low, high = g(jnp.zeros((), u.dtype)), g(jnp.ones((), u.dtype))
    return (g(u) - low) / (high - low)
