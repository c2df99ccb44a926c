"""Trajectories of the probability-flow ODE at high accuracy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.deferred import deferred
from diffusion_jax.core.types import Array, Cond, Denoise, Process
from diffusion_jax.processes import gaussian

diffrax = deferred("diffrax")


def reference(
    denoise: Denoise,
    process: Process,
    x: Array,
    t: float,
    s: float,
    *,
    cond: Cond = None,
    rtol: float = 1e-10,
) -> np.ndarray:
    """Returns x at time s of the probability-flow solution through x at time t, in float64.

    With u = sigma / alpha = tan(phi) and z = x / sqrt(alpha^2 + sigma^2) = cos(phi) x0 + sin(phi)
    eps the flow is

        dz / d log u = sin(phi) cos(phi) [cos(phi) eps-hat - sin(phi) x0-hat],

    in which everything is of order one at every noise level, and in which the process's own clock,
    with its kinks if it has any, does not appear. The solver is Dormand-Prince 8(7) with PID
    control of the largest error of any entry.

    Args:
      denoise: a function (x_t, t, cond) -> Prediction, which computes in the precision of its
        input.
      process: the process of x.
      x: (B, ...) at time t.
      t: where the solution begins, in [t_min, t_max].
      s: where it ends, in [t_min, t_max].
      cond: the condition, with leading axis B.
      rtol: tolerance of the error of a step, both relative and absolute.

    Returns:
      x at time s, a float64 numpy array (B, ...).
    """
    with jax.enable_x64(True):

        def slope(log_u, z, _):
            u = jnp.exp(log_u)
            cos, sin = 1 / jnp.sqrt(1 + u**2), u / jnp.sqrt(1 + u**2)
            time = gaussian.time_of_logsnr(process, -2 * log_u)
            x0, eps = denoise(z * norm(time), time, cond)[:2]
            return sin * cos * (cos * eps - sin * x0)

        def norm(time):
            return jnp.hypot(process.alpha(time), process.sigma(time))

        @jax.jit
        def solve(x, t, s):
            ends = (-0.5 * gaussian.logsnr(process, time) for time in (t, s))
            control = diffrax.PIDController(
                rtol, rtol, pcoeff=0.3, icoeff=0.4, norm=lambda e: jnp.max(jnp.abs(e))
            )
            options = {"stepsize_controller": control, "max_steps": 100_000}
            options["adjoint"] = diffrax.ForwardMode()
            term, method = diffrax.ODETerm(slope), diffrax.Dopri8()
            solved = diffrax.diffeqsolve(term, method, *ends, None, x / norm(t), **options)
            return solved.ys[0] * norm(s)

        arguments = (jnp.asarray(np.asarray(value), "float64") for value in (x, t, s))
        return np.asarray(solve(*arguments))
