"""MeanFlow (Geng et al. 2025a, "Mean flows for one-step generative modeling"): a network that jumps
from t to any s <= t.

Told s, it predicts (x0-hat, eps-hat), alpha_t x0-hat + sigma_t eps-hat = x_t, whose move to s is
the trajectory's point there,

    J(x_t, t, s) = alpha_s x0-hat + sigma_s eps-hat = x_s.

That it is the same all along the trajectory, d J / dt = 0 along dx/dt = v, is the MeanFlow
identity: on rectified flow, where J = x_t - (t - s) u with the average velocity u = eps-hat -
x0-hat, it reads u = v - (t - s) du/dt (their eq. 6). At s = t it says u = v, which is flow
matching; at s = t_min it is the consistency equation. With u the velocity of (x0-hat, eps-hat)
under any process,

    L = E[ w |u_theta - u_- - dJ_-/dt|^2 ],

a regression on the network's own constant output u_- moved by the tangent, as sCM's is.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from diffusion_jax import arrays, streams
from diffusion_jax.arrays import expand, mean_per_example
from diffusion_jax.errors import need_ranges
from diffusion_jax.objectives import times
from diffusion_jax.objectives.base import FewStep, FewStepExample, per_example
from diffusion_jax.processes import gaussian
from diffusion_jax.types import Prediction, Process


def meanflow(
    process: Process,
    time: times.TimeLaw = times.logit_normal(-0.4, 1.0),
    ratio: float = 0.25,
    guidance: float = 1.0,
    p: float = 1.0,
    c: float = 1e-3,
    taught: bool = False,
) -> FewStep:
    """MeanFlow (Geng et al. 2025a, algorithm 1): v is that of the drawn x0 and eps, or of a teacher
    (taught).

    time: of t and s, two draws in order. ratio: the share of examples with s < t; the others have s
    = t. guidance: the model learns the guided velocity, guidance v + (1 - guidance) u(x_t, t, t |
    no condition) (eq. 19). w = 1 / (mean error^2 + c)^p, a constant (eq. 22); at p > 0 the mean
    that is learned is a robust one.
    """
    need_ranges(
        "meanflow.meanflow",
        ratio=(ratio, 0, 1),
        guidance=(guidance, 0, 1000),
        p=(p, 0, 10),
        c=(c, 1e-12, 1e6),
    )
    return _jumps(process, time, ratio, guidance, p, c, taught, own=False)


def improved(
    process: Process,
    time: times.TimeLaw = times.logit_normal(-0.4, 1.0),
    ratio: float = 0.5,
    guidance: float = 1.0,
    p: float = 1.0,
    c: float = 1e-3,
    taught: bool = False,
) -> FewStep:
    """Improved MeanFlow (iMF; Geng et al. 2025b): the tangent along the network's own velocity
    u(x_t, t, t), not the drawn one.

    Then V = u_theta + (t - s) du_-/dt depends on x_t alone and is regressed on v, |V - v|^2, as in
    flow matching: of the same gradient in the mean, and less noise. In the terms above dJ_-/dt is
    along u(x_t, t, t), and v - u(x_t, t, t) is added.
    """
    need_ranges(
        "meanflow.improved",
        ratio=(ratio, 0, 1),
        guidance=(guidance, 0, 1000),
        p=(p, 0, 10),
        c=(c, 1e-12, 1e6),
    )
    return _jumps(process, time, ratio, guidance, p, c, taught, own=True)


def _jumps(
    process: Process,
    time: times.TimeLaw,
    ratio: float,
    guidance: float,
    p: float,
    c: float,
    taught: bool,
    own: bool,
) -> FewStep:
    @per_example
    def draw(keys, x0, progress):
        first = time(process, arrays.fold_in(keys, streams.OBJECTIVE_TIME))
        second = time(process, arrays.fold_in(keys, streams.OBJECTIVE_SECOND_TIME))
        chance = arrays.fold_in(keys, streams.OBJECTIVE_EQUAL_TIMES)
        t, s = jnp.maximum(first, second), jnp.minimum(first, second)
        s = jnp.where(arrays.uniform(chance) < ratio, s, t)
        eps = arrays.noise(arrays.fold_in(keys, streams.OBJECTIVE_NOISE), x0)
        return FewStepExample(*gaussian.corrupt(process, x0, eps, t), s)

    def loss(networks, drawn, cond, progress):
        x_t, t, s = drawn.x_t, drawn.t, drawn.s

        def told(cond, s):
            return (cond or {}) | {"to": s}

        def velocity(prediction):
            return gaussian.velocity(process, prediction, t)

        v = velocity(networks.teacher(x_t, t, cond) if taught else Prediction(drawn.x0, drawn.eps))
        if guidance != 1.0:
            v = guidance * v + (1 - guidance) * velocity(
                networks.frozen(x_t, t, told(networks.null(cond), t))
            )
        along = velocity(networks.frozen(x_t, t, told(cond, t))) if own else v

        def jump(x, t):
            prediction = networks.frozen(x, t, told(cond, s))
            end = (
                expand(process.alpha(s), x) * prediction.x0
                + expand(process.sigma(s), x) * prediction.eps
            )
            return end, prediction

        _, slope, constant = jax.jvp(jump, (x_t, t), (along, jnp.ones_like(t)), has_aux=True)
        error = (
            velocity(networks.student(x_t, t, told(cond, s)))
            - velocity(constant)
            - slope
            - (v - along)
        )
        square = mean_per_example(error**2)
        return square / jax.lax.stop_gradient(square + c) ** p

    return FewStep(draw, loss, needs_teacher=taught, guided=guidance != 1.0)


# The members of the family, which a config may name.
OBJECTIVES = (meanflow, improved)
