"""Exponential integrators: the linear part of the probability-flow ODE and of the reverse SDE
solved exactly, for every solver built on that.

With lam = log(alpha / sigma) as clock, h = lam_s - lam_t, and the reverse SDE with `noise` eta >= 0
(0: the ODE; 1: the time-reversed SDE)

    x_s = (sigma_s / sigma_t) e^(-eta h) x_t + alpha_s (1 + eta) int_0^h e^((1 + eta)(u - h)) x0-hat
    du + sigma_s sqrt(1 - e^(-2 eta h)) z
    x_s = (alpha_s / alpha_t) x_t - sigma_s int_0^h e^(h - u) eps-hat du                                (the ODE in noise prediction)

(Lu et al. 2022a, prop. 3.1; 2022b, prop. 4.1; Xue et al. 2023, SA-Solver, prop. 4.2, eta = tau^2).
A method replaces the prediction by a polynomial through known values; so a move is carry * x +
sum_j weight_j value_j + noise.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from diffusion_jax.processes import gaussian
from diffusion_jax.types import Array, Process


def log_ratio(process: Process, t: Array) -> Array:
    """log(alpha / sigma), the lambda of Lu et al.; half our log-SNR."""
    return 0.5 * gaussian.logsnr(process, t)


def phi(k: int, z: Array) -> Array:
    """phi_k(z) = (phi_{k-1}(z) - 1 / (k-1)!) / z, phi_0 = exp (Hochbruck & Ostermann 2010): a
    series where |z| < 1, free of cancellation.
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
    """The coefficients of the polynomial through p values at these nodes, from the values: (p, p).
    In units of the step.
    """
    one = jnp.ones((), nodes.dtype)
    if p == 1:
        return one[None, None]
    vandermonde = jnp.stack([nodes**k for k in range(p)], 1)  # value_j = sum_k c_k nodes_j^k
    return jnp.linalg.inv(vandermonde)


def _nodes(process, times, t, s):
    """Where earlier predictions stand, in units of the step from t to s, on the clock log(alpha /
    sigma).
    """
    lam = log_ratio(process, times)
    return (lam - log_ratio(process, t)) / (log_ratio(process, s) - log_ratio(process, t))


def carry(
    process: Process, t: Array, s: Array, *, data: bool = True, eta: float | Array = 0.0
) -> Array:
    """What the move from t to s leaves of x."""
    if not data:
        return process.alpha(s) / process.alpha(t)
    return (
        process.sigma(s)
        / process.sigma(t)
        * jnp.exp(-eta * (log_ratio(process, s) - log_ratio(process, t)))
    )


def noise_level(process: Process, t: Array, s: Array, eta: float | Array) -> Array:
    """Standard deviation of what the move from t to s adds; differentiable at eta = 0 too, where it
    is 0.
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
    """Of the values that stand at `times` (p,), p <= 4, in the move from t to s: (p,).

    second: with two values, 'exact' integrates the line through them, 'midpoint' takes its value
      half-way (the papers' 2M and 2S).
    curvature: factor of the quadratic term.
    """
    p = len(times)
    h = (1 + eta) * (log_ratio(process, s) - log_ratio(process, t))
    z, scale = (-h, process.alpha(s) * h) if data else (h, -process.sigma(s) * h)
    # integral over the step of e^(z (1 - u)) u^k du = k! phi_{k+1}(z)
    moments = [phi(1, z), phi(2, z), 2 * curvature * phi(3, z), 6 * phi(4, z)][:p]
    if p == 2 and second == "midpoint":
        moments[1] = 0.5 * phi(1, z)
    return scale * jnp.stack(moments) @ _differences(_nodes(process, times, t, s), p)
