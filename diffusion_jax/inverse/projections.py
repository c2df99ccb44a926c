"""What methods compute with a linear measurement: moves toward y, and draws of the measured part.

With A A^T = U diag(s^2) U^T,

    (r^2 A A^T + std^2 I)^-1 y = U diag(1 / (r^2 s^2 + std^2)) U^T y.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from diffusion_jax.core.arrays import expand
from diffusion_jax.core.types import Array, Process
from diffusion_jax.inverse.measurements import Measurement, divide, is_measured


def pull(measurement: Measurement, x0: Array, y: Array, r2: Array) -> Array:
    """Computes A^T (r^2 A A^T + std^2 I)^-1 (y - A x0), over the measured directions.

    Args:
      measurement: a linear measurement.
      x0: the estimate of the data, (B, ...).
      y: the measurement, (B, ...).
      r2: r^2, the variance of x0, scalar or (B,).

    Returns:
      (B, ...) of x0's shape.
    """
    r2, variance = expand(r2, y), measurement.std**2

    def inverse(s2: Array) -> Array:
        return divide(jnp.ones_like(s2), r2 * s2 + variance, is_measured(s2))

    return measurement.adjoint(measurement.spectral(y - measurement.forward(x0), inverse))


def draw_measured(
    measurement: Measurement, process: Process, x: Array, y: Array, s: Array, z: Array
) -> Array:
    """Replaces the measured part of x_s by a draw from q(A x_s | y).

    A x_s becomes alpha_s y plus noise, which together have the variance sigma_s^2 A A^T about
    alpha_s A x0. Directions in which alpha_s y alone has more variance than that are not changed.

    Args:
      measurement: a linear measurement.
      process: the process of x.
      x: at time s, (B, ...).
      y: the measurement, (B, ...).
      s: a time, scalar.
      z: unit noise, (B, ...).

    Returns:
      x at time s, (B, ...).
    """
    left = _spare_variance(measurement, process, s)
    noise = measurement.spectral(
        measurement.forward(z), lambda s2: jnp.sqrt(jnp.maximum(left(s2), 0))
    )

    def inverse(s2: Array) -> Array:
        return divide(jnp.ones_like(s2), s2, is_measured(s2) & (left(s2) >= 0))

    return x + measurement.adjoint(
        measurement.spectral(process.alpha(s) * y + noise - measurement.forward(x), inverse)
    )


def keep_unreplaced(
    measurement: Measurement, process: Process, x: Array, other: Array, s: Array
) -> Array:
    """Copies the measured directions that `draw_measured` does not change at time s.

    Args:
      measurement: a linear measurement.
      process: the process of x.
      x: at time s, (B, ...).
      other: where the directions are copied from, (B, ...).
      s: a time, scalar.

    Returns:
      x with these directions of `other`, (B, ...).
    """
    if measurement.std == 0:
        return x
    left = _spare_variance(measurement, process, s)

    def inverse(s2: Array) -> Array:
        return divide(jnp.ones_like(s2), s2, is_measured(s2) & (left(s2) < 0))

    return x + measurement.adjoint(measurement.spectral(measurement.forward(other - x), inverse))


def _spare_variance(
    measurement: Measurement, process: Process, s: Array
) -> Callable[[Array], Array]:
    """(s2) -> sigma_s^2 - (alpha_s std)^2 / s2.

    This is the variance of x_s in a measured direction beyond that of alpha_s y.
    """
    alpha, sigma = process.alpha(s), process.sigma(s)
    return lambda s2: sigma**2 - divide((alpha * measurement.std) ** 2, s2, is_measured(s2))
