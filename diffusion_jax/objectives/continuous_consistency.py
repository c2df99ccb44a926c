"""The continuous-time limit of consistency models, sCM (Lu & Song 2025).

phi = arctan(sigma / (alpha sigma_data)) is TrigFlow's time, and v the velocity in it, which every
process has. With dx/dphi = v = sigma_data F, the loss is |F - F_- - g / (|g| + c)|^2 with

    g = cos(phi) d f_- / dphi = -cos^2 (v_- - v) - r cos sin (x + d v_- / dphi).

It regresses the network on its own output, moved by the tangent. g has the data's scale where it is
normalized, and |.| is divided by the root of the dimension. r grows from 0 to 1 in the beginning of
the run (sec. 4.1). The derivative is taken in forward mode through the network, whose embedding of
the noise level must be smooth. With the learned weighting, the loss is exp(w) |.|^2 - w for a
function w(t) that the network learns besides: minus the u of uncertainty.py.
"""

from __future__ import annotations

import jax.numpy as jnp

from diffusion_jax.core import arrays, forward_mode, streams
from diffusion_jax.core.arrays import expand, mean_per_example
from diffusion_jax.core.errors import need_ranges
from diffusion_jax.core.types import Array, Cond, Denoise, Key, Prediction, Process
from diffusion_jax.objectives import times
from diffusion_jax.objectives.base import FewStep, FewStepExample, FewStepNetworks, per_example
from diffusion_jax.objectives.uncertainty import balanced
from diffusion_jax.processes import gaussian


def continuous_time(
    name: str,
    process: Process,
    time: times.TimeLaw,
    sigma_data: float,
    warmup: float,
    c: float,
    learned_weight: bool,
    with_teacher: bool,
) -> FewStep:
    """The objective above; consistency.continuous and continuous_distillation are its presets.

    Args:
      name: of the preset, for messages.
      process: the process that adds noise.
      time: the law of t, (process, keys) -> t.
      sigma_data: standard deviation of the data.
      warmup: the share of the run in which r grows from 0 to 1.
      c: the constant of the normalization of the tangent.
      learned_weight: weights each noise level by the network's own uncertainty.
      with_teacher: takes v from the teacher rather than from the drawn x0 and eps.

    Returns:
      The objective. With `learned_weight` its loss raises UserError for a network without the
      learned uncertainty.

    Raises:
      UserError: for an argument out of its range.
    """
    ranges = {"sigma_data": (sigma_data, 1e-6, 1e4), "warmup": (warmup, 0, 1), "c": (c, 0, 1e6)}
    need_ranges(f"consistency.{name}", **ranges)

    @per_example
    def draw(keys: Key, x0: Array, progress: Array) -> FewStepExample:
        t = time(process, arrays.fold_in(keys, streams.OBJECTIVE_TIME))
        eps = arrays.noise(arrays.fold_in(keys, streams.OBJECTIVE_NOISE), x0)
        return FewStepExample(
            *gaussian.corrupt(process, x0, eps, t), s=jnp.full_like(t, process.t_min)
        )

    def loss(
        networks: FewStepNetworks, drawn: FewStepExample, cond: Cond, progress: Array
    ) -> Array:
        x_t, t = drawn.x_t, drawn.t
        exact = Prediction(drawn.x0, drawn.eps)
        truth = networks.teacher(x_t, t, cond) if with_teacher else exact
        r = jnp.minimum(1.0, progress / max(warmup, 1e-9))
        g, own = _tangent(process, networks.frozen, drawn, truth, cond, sigma_data, r)
        g = g / expand(jnp.sqrt(mean_per_example(g**2)) + c, g)
        student, phi = networks.student(x_t, t, cond), gaussian.angle(process, t, sigma_data)
        error = (_velocity(student, phi, sigma_data) - own) / sigma_data - g
        losses = mean_per_example(error**2)
        if not learned_weight:
            return losses
        return balanced(f"consistency.{name}", losses, student.log_variance)

    return FewStep(draw, loss, needs_teacher=with_teacher, bounded=True)


def _tangent(
    process: Process,
    frozen: Denoise,
    drawn: FewStepExample,
    truth: Prediction,
    cond: Cond,
    sigma_data: float,
    r: Array,
) -> tuple[Array, Array]:
    """g before its normalization, and v_-, both (B, ...)."""
    x_t, t = drawn.x_t, drawn.t
    phi = gaussian.angle(process, t, sigma_data)
    pace = gaussian.derivative(lambda u: gaussian.angle(process, u, sigma_data), t)  # dphi/dt

    def f(x: Array, t: Array) -> tuple[Array, Prediction]:
        prediction = frozen(x, t, cond)
        return prediction.x0, prediction

    along = gaussian.velocity(process, truth, t), jnp.ones_like(t)
    _, df_dt, prediction = forward_mode.jvp(f, (x_t, t), along, has_aux=True)
    cos, own = expand(jnp.cos(phi), x_t), _velocity(prediction, phi, sigma_data)
    whole = cos * df_dt / expand(pace, x_t)
    first = -(cos**2) * (own - _velocity(truth, phi, sigma_data))
    return first + r * (whole - first), own


def _velocity(prediction: Prediction, phi: Array, sigma_data: float) -> Array:
    """The velocity in phi of z = cos x0 + sin sigma_data eps."""
    x0, eps = prediction[:2]
    return sigma_data * expand(jnp.cos(phi), eps) * eps - expand(jnp.sin(phi), x0) * x0
