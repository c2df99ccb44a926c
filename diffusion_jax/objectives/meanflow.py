"""MeanFlow (Geng et al. 2025a, "Mean flows for one-step generative modeling").

A few-step model that moves from t to any s <= t in one evaluation. Given s as part of the
condition, it predicts (x0-hat, eps-hat) with alpha_t x0-hat + sigma_t eps-hat = x_t, so that the
move to s ends at the point of the trajectory,

    J(x_t, t, s) = alpha_s x0-hat + sigma_s eps-hat = x_s.

J is constant along the trajectory: d J / dt = 0 along dx/dt = v. This is the MeanFlow identity. On
rectified flow, where J = x_t - (t - s) u with the average velocity u = eps-hat - x0-hat, it reads
u = v - (t - s) du/dt (their eq. 6). At s = t it says u = v, which is flow matching; at s = t_min it
is the consistency equation. With u the velocity of (x0-hat, eps-hat) under any process,

    L = E[ w |u_theta - u_- - dJ_-/dt|^2 ],

a regression on the network's own constant output u_- moved by the tangent, as in sCM.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.core import arrays, forward_mode, streams
from diffusion_jax.core.arrays import expand, mean_per_example
from diffusion_jax.core.errors import UserError, need_ranges
from diffusion_jax.core.types import Array, Cond, Key, Prediction, Process
from diffusion_jax.objectives import times
from diffusion_jax.objectives.base import FewStep, FewStepExample, FewStepNetworks, per_example
from diffusion_jax.processes import gaussian


def meanflow(
    process: Process,
    time: times.TimeLaw = times.logit_normal(-0.4, 1.0),
    ratio: float = 0.25,
    guidance: float = 1.0,
    p: float = 1.0,
    c: float = 1e-3,
    distilled: bool = False,
    kappa: float = 0.0,
    interval: tuple[float, float] = (0.0, 1.0),
) -> FewStep:
    """MeanFlow (Geng et al. 2025a, algorithm 1).

    The velocity that it learns is guided by the network's own (eq. 19 and 21),

        guidance v + kappa u(x_t, t, t) + (1 - guidance - kappa) u(x_t, t, t | null condition),

    whose effective scale is guidance / (1 - kappa).

    Args:
      process: the process that adds noise.
      time: the law of t and s, two draws in decreasing order.
      ratio: the share of examples with s < t; the others have s = t.
      guidance: the paper's omega, above; 1 without kappa is no guidance.
      p: the exponent of the weight w = 1 / (mean error^2 + c)^p, a constant (eq. 22). For p > 0 the
        mean that is learned is a robust one.
      c: the constant in w, which limits the weight of small errors.
      distilled: takes v from a teacher (distillation) rather than from the drawn x0 and eps.
      kappa: the share of the network's own conditional velocity, above.
      interval: the times with guidance; at the others v is learned as it is.

    Returns:
      The objective.

    Raises:
      UserError: for an argument out of its range.
    """
    need_ranges("meanflow.meanflow", kappa=(kappa, 0, 1000))
    if not 0 <= interval[0] < interval[1] <= 1:
        raise UserError(
            f"meanflow.meanflow: interval={interval} must be two increasing times in [0, 1]"
        )
    guide = _Guide(guidance, kappa, interval)
    return _meanflow("meanflow.meanflow", process, time, ratio, guide, p, c, distilled=distilled)


def improved(
    process: Process,
    time: times.TimeLaw = times.logit_normal(-0.4, 1.0),
    ratio: float = 0.5,
    guidance: float = 1.0,
    p: float = 1.0,
    c: float = 1e-3,
    distilled: bool = False,
) -> FewStep:
    """Improved MeanFlow (iMF; Geng et al. 2025b): the tangent along the network's own velocity.

    The tangent is along u(x_t, t, t) instead of the drawn velocity. Then V = u_theta + (t - s)
    du_-/dt depends on x_t alone and is regressed on v, |V - v|^2, as in flow matching: the gradient
    has the same mean and less noise. In the terms of this module dJ_-/dt is along u(x_t, t, t), and
    v - u(x_t, t, t) is added.

    Args:
      process: the process that adds noise.
      time: the law of t and s, two draws in decreasing order.
      ratio: the share of examples with s < t; the others have s = t.
      guidance: the scale of the guided velocity that the model learns, as in `meanflow`.
      p: the exponent of the weight, as in `meanflow`.
      c: the constant in w, which limits the weight of small errors.
      distilled: takes v from a teacher (distillation) rather than from the drawn x0 and eps.

    Returns:
      The objective.

    Raises:
      UserError: for an argument out of its range.
    """
    terms = time, ratio, _Guide(guidance), p, c
    return _meanflow("meanflow.improved", process, *terms, distilled=distilled, own_tangent=True)


class _Guide(NamedTuple):
    """The guided velocity of `meanflow`: its numbers omega and kappa, and the times of it."""

    scale: float
    kappa: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)

    @property
    def acts(self) -> bool:
        return self.scale != 1.0 or self.kappa != 0.0

    def velocity(self, v: Array, own: Array, null: Array, t: Array) -> Array:
        """The guided velocity of the velocity v, and of the network's own ones at s = t."""
        guided = self.scale * v + (1 - self.scale - self.kappa) * null
        guided = guided + self.kappa * own if self.kappa else guided
        inside = (t >= self.interval[0]) & (t <= self.interval[1])
        return jnp.where(expand(inside, v), guided, v)


def _meanflow(
    name: str,
    process: Process,
    time: times.TimeLaw,
    ratio: float,
    guide: _Guide,
    p: float,
    c: float,
    distilled: bool,
    own_tangent: bool = False,
) -> FewStep:
    """The objective of `meanflow` and, with own_tangent, of `improved`; name is for messages."""
    ranges = {"ratio": (ratio, 0, 1), "guidance": (guide.scale, 0, 1000)}
    need_ranges(name, **ranges, p=(p, 0, 10), c=(c, 1e-12, 1e6))

    @per_example
    def draw(keys: Key, x0: Array, progress: Array) -> FewStepExample:
        first = time(process, arrays.fold_in(keys, streams.OBJECTIVE_TIME))
        second = time(process, arrays.fold_in(keys, streams.OBJECTIVE_SECOND_TIME))
        chance = arrays.fold_in(keys, streams.OBJECTIVE_EQUAL_TIMES)
        t, s = jnp.maximum(first, second), jnp.minimum(first, second)
        s = jnp.where(arrays.uniform(chance) < ratio, s, t)
        eps = arrays.noise(arrays.fold_in(keys, streams.OBJECTIVE_NOISE), x0)
        return FewStepExample(*gaussian.corrupt(process, x0, eps, t), s)

    def loss(
        networks: FewStepNetworks, drawn: FewStepExample, cond: Cond, progress: Array
    ) -> Array:
        x_t, t, s = drawn.x_t, drawn.t, drawn.s

        def velocity(prediction: Prediction) -> Array:
            return gaussian.velocity(process, prediction, t)

        exact = Prediction(drawn.x0, drawn.eps)
        v = velocity(networks.teacher(x_t, t, cond) if distilled else exact)
        own = null = v
        if own_tangent or guide.kappa:
            own = velocity(networks.frozen(x_t, t, _ending(cond, t)))
        if guide.acts:
            null = velocity(networks.frozen(x_t, t, _ending(networks.null(cond), t)))
            v = guide.velocity(v, own, null, t)
        along = own if own_tangent else v

        def move(x: Array, t: Array) -> tuple[Array, Prediction]:
            prediction = networks.frozen(x, t, _ending(cond, s))
            end = (
                expand(process.alpha(s), x) * prediction.x0
                + expand(process.sigma(s), x) * prediction.eps
            )
            return end, prediction

        _, tangent, constant = forward_mode.jvp(
            move, (x_t, t), (along, jnp.ones_like(t)), has_aux=True
        )
        student = velocity(networks.student(x_t, t, _ending(cond, s)))
        error = student - velocity(constant) - tangent - (v - along)
        square = mean_per_example(error**2)
        return square / jax.lax.stop_gradient(square + c) ** p

    return FewStep(draw, loss, needs_teacher=distilled, guided=guide.acts, two_times=True)


def _ending(cond: Cond, s: Array) -> Cond:
    """The condition with s as the end of the move."""
    return (cond or {}) | {"to": s}


# The members of the family, which a config may name.
OBJECTIVES = (meanflow, improved)
