"""Exponential integrators, which solve the linear part of the flow ODE and the SDE exactly.

With lam = log(alpha / sigma) as the clock, h = lam_s - lam_t, and the reverse SDE with noise eta >=
0 (0: the ODE; 1: the time-reversed SDE),

    x_s = (sigma_s / sigma_t) e^(-eta h) x_t
          + alpha_s (1 + eta) int_0^h e^((1 + eta)(u - h)) x0-hat du
          + sigma_s sqrt(1 - e^(-2 eta h)) z

and, for the ODE in noise prediction,

    x_s = (alpha_s / alpha_t) x_t - sigma_s int_0^h e^(h - u) eps-hat du

(Lu et al. 2022a, prop. 3.1; 2022b, prop. 4.1; Xue et al. 2023, SA-Solver, prop. 4.2, eta = tau^2).
A method replaces the prediction by a polynomial through known values, so a move is carry * x +
sum_j weight_j value_j + noise.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.types import Array, Process
from diffusion_jax.processes import gaussian


def log_ratio(process: Process, t: Array) -> Array:
    """Returns log(alpha / sigma), the lambda of Lu et al.: half of our log-SNR.

    Args:
      process: the two functions alpha and sigma.
      t: times, of any shape.

    Returns:
      The logarithms, of t's shape.
    """
    return 0.5 * gaussian.logsnr(process, t)


def phi(k: int, z: Array) -> Array:
    """Returns phi_k(z) = (phi_{k-1}(z) - 1 / (k-1)!) / z with phi_0 = exp.

    (Hochbruck & Ostermann 2010.) A series is used where |z| < 1, which is free of cancellation.

    Args:
      k: index of the function, 0 or above.
      z: arguments, of any shape; a step has h or -h.

    Returns:
      The values, of z's shape; phi_k(0) = 1 / k!.
    """
    term = total = jnp.ones_like(z) / float(np.prod(np.arange(1, k + 1), dtype=float))
    for j in range(1, 18):
        term = term * z / (k + j)
        total = total + term
    large = jnp.where(jnp.abs(z) < 1, 1.0, z)
    value = jnp.exp(large)
    for j in range(k):
        value = (value - 1.0 / float(np.prod(np.arange(1, j + 1), dtype=float))) / large
    return jnp.where(jnp.abs(z) < 1, total, value)


def _differences(nodes: Array, p: int) -> Array:
    """Returns the matrix (p, p) from p values at the nodes (p,) to their polynomial's coefficients.

    The nodes are in units of the step.
    """
    one = jnp.ones((), nodes.dtype)
    if p == 1:
        return one[None, None]
    vandermonde = jnp.stack([nodes**k for k in range(p)], 1)  # value_j = sum_k c_k nodes_j^k
    return jnp.linalg.inv(vandermonde)


def _nodes(process: Process, times: Array, t: Array, s: Array) -> Array:
    """Returns the places of the times (p,) on the clock, in units of the step from t to s: (p,)."""
    lam = log_ratio(process, times)
    return (lam - log_ratio(process, t)) / (log_ratio(process, s) - log_ratio(process, t))


def carry(
    process: Process, t: Array, s: Array, *, data: bool = True, eta: float | Array = 0.0
) -> Array:
    """Returns the factor of x in the move from t to s.

    Args:
      process: the process of x.
      t: where the move begins, a scalar.
      s: where it ends, a scalar.
      data: whether the method is in data prediction or in noise prediction.
      eta: amount of noise; 0 is the ODE.

    Returns:
      The factor, a scalar.
    """
    if not data:
        return process.alpha(s) / process.alpha(t)
    return (
        process.sigma(s)
        / process.sigma(t)
        * jnp.exp(-eta * (log_ratio(process, s) - log_ratio(process, t)))
    )


def noise_level(process: Process, t: Array, s: Array, eta: float | Array) -> Array:
    """Returns the standard deviation of the noise that a move adds.

    It is sigma_s sqrt(1 - e^(-2 eta h)), which is 0 at eta = 0, and differentiable there too.

    Args:
      process: the process of x.
      t: where the move begins, a scalar.
      s: where it ends, a scalar.
      eta: amount of noise, 0 or above; 0 is the ODE, 1 the reverse SDE.

    Returns:
      The standard deviation, a scalar.
    """
    share = -jnp.expm1(2 * eta * (log_ratio(process, t) - log_ratio(process, s)))
    return process.sigma(s) * jnp.where(share > 0, jnp.sqrt(jnp.where(share > 0, share, 1.0)), 0.0)


def weights(
    process: Process,
    times: Array,
    t: Array,
    s: Array,
    *,
    data: bool = True,
    eta: float | Array = 0.0,
    second: str = "exact",
    curvature: float = 1.0,
) -> Array:
    """Returns the weights of known values in the move from t to s.

    Args:
      process: the process of x.
      times: where the values are known, (p,), p at most 4.
      t: where the move begins, a scalar.
      s: where it ends, a scalar.
      data: whether the values are x0-hat or eps-hat.
      eta: amount of noise; 0 is the ODE.
      second: with two values, 'exact' integrates the line through them; 'midpoint' takes its value
        half-way (the papers' 2M and 2S).
      curvature: factor of the quadratic term.

    Returns:
      The weights, (p,), in the order of `times`.
    """
    p = len(times)
    h = (1 + eta) * (log_ratio(process, s) - log_ratio(process, t))
    z, scale = (-h, process.alpha(s) * h) if data else (h, -process.sigma(s) * h)
    # integral over the step of e^(z (1 - u)) u^k du = k! phi_{k+1}(z)
    moments = [phi(1, z), phi(2, z), 2 * curvature * phi(3, z), 6 * phi(4, z)][:p]
    if p == 2 and second == "midpoint":
        moments[1] = 0.5 * phi(1, z)
    return scale * jnp.stack(moments) @ _differences(_nodes(process, times, t, s), p)
