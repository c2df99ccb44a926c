"""Bins of gray levels and other whole numbers: their log-probability, and dequantization."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.types import Array, Key


def log_bin(x: Array, mean: Array, log_variance: Array, levels: int = 256) -> Array:
    """Returns the log-probability of x's bin under N(mean, exp(log_variance)), in nats.

    (Ho et al. 2020, eq. 13.) The two outer bins reach to infinity, so their probabilities are
    one-sided tails. An inner bin reaches half-way to the adjacent levels. The probability has no
    lower limit; value and gradient are exact in the tails, and finite wherever the squared distance
    in standard deviations is finite.

    Args:
      x: gray levels, each one of `levels` equally spaced values in [-1, 1], of any shape.
      mean: mean of the Gaussian; it broadcasts against x.
      log_variance: log-variance of the Gaussian; it broadcasts against x. Above -170 in float32,
        where exp overflows.
      levels: number of values that x can take.

    Returns:
      Nats, of the shape of x and mean broadcast together.
    """
    half, inverse_std = 1.0 / (levels - 1), jnp.exp(-0.5 * log_variance)
    lowest, highest = x < -1 + half, x > 1 - half
    # the inner edge of an outer bin, positive away from the mean
    edge = jnp.where(highest, x - half - mean, mean - x - half) * inverse_std
    outer = _log_ndtr(-edge)
    return jnp.where(
        lowest | highest, outer, _log_inner_bin(jnp.abs(x - mean) * inverse_std, half * inverse_std)
    )


def log_density(x: Array, mean: Array, log_variance: Array) -> Array:
    """Returns the log-density of x under N(mean, exp(log_variance)), in nats.

    Args:
      x: numbers of any shape.
      mean: mean of the Gaussian; it broadcasts against x.
      log_variance: log-variance of the Gaussian; it broadcasts against x.

    Returns:
      Nats, of the shape of x and mean broadcast together.
    """
    square = (x - mean) ** 2 * jnp.exp(-log_variance)
    return -0.5 * (square + log_variance + math.log(2 * math.pi))


def log_level(x: Array, mean: Array, log_variance: Array, levels: int = 256) -> Array:
    """Returns the log-probability of x's level among all levels, in nats.

        p(x) = N(mean; x, var) / sum_v N(mean; v, var),    var = exp(log_variance)

    (Kingma et al. 2021, sec. 3.2, with mean = z_0 / alpha_0 and var = 1 / SNR(0)). The sum is over
    the levels v.

    Args:
      x: gray levels, each one of `levels` equally spaced values in [-1, 1], of any shape.
      mean: the noisy value, of x's shape.
      log_variance: log-variance of its noise, a scalar.
      levels: number of values that x can take.

    Returns:
      Nats, of x's shape.
    """
    inverse_std = jnp.exp(-0.5 * log_variance)

    def exponent(v: Array) -> Array:
        return -0.5 * ((mean[..., None] - v) * inverse_std) ** 2

    own = exponent(x[..., None])
    return -jax.nn.logsumexp(exponent(jnp.linspace(-1.0, 1.0, levels)) - own, axis=-1)


# half the width of a bin, in standard deviations, below which the density hardly bends within it
THIN = 5e-3


def _log_inner_bin(distance: Array, half: Array) -> Array:
    """Returns log(Phi(distance + half) - Phi(distance - half)).

    Both arguments are in standard deviations and not negative. A wide bin is a difference of tails.
    In a thin bin, where the two tails agree in all their digits, the density at the place v in
    [-half, half] is phi(distance) exp(-distance v), up to a factor between exp(-half^2 / 2) and 1.
    """
    wide = jnp.maximum(half, THIN)
    near, far = _log_ndtr(wide - distance), _log_ndtr(-wide - distance)
    by_tails = near + jnp.log(-jnp.expm1(jnp.minimum(far - near, -1e-6)))
    thin = jnp.minimum(half, THIN)
    z = distance * thin
    large = jnp.maximum(z, 0.03)
    log_sinhc = jnp.where(
        z > 0.03,
        large + jnp.log(-jnp.expm1(-2 * large) / (2 * large)),
        jnp.minimum(z, 0.03) ** 2 / 6,
    )
    by_density = jnp.log(2 * thin) - 0.5 * distance**2 - 0.5 * math.log(2 * math.pi) + log_sinhc
    return jnp.where(half > THIN, by_tails, by_density)


@jax.custom_jvp
def _log_ndtr(x: Array) -> Array:
    """Returns log Phi(x), with a derivative phi / Phi that is exact in the tail.

    There the derivative of jax.scipy's log_ndtr is a difference of large logarithms.
    """
    return jax.scipy.special.log_ndtr(x)


@_log_ndtr.defjvp
def _log_ndtr_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """The derivative phi / Phi: by logarithms above -5, and below by Laplace's continued fraction.

    The fraction is z + 1 / (z + 2 / (z + 3 / ...)) with z = -x. erfcx would not do: in JAX it is 0
    where erfc is subnormal, so the slope would be infinite from 13.0 to 13.3 deviations.
    """
    (x,), (dx,) = primals, tangents
    value, z = _log_ndtr(x), jnp.maximum(-x, 5.0)
    by_logarithms = jnp.exp(
        -0.5 * jnp.maximum(x, -5.0) ** 2
        - 0.5 * math.log(2 * math.pi)
        - jnp.where(x > -5, value, 0.0)
    )
    by_fraction = z
    for k in range(12, 0, -1):  # exact to float64's rounding from z = 5
        by_fraction = z + k / by_fraction
    return value, jnp.where(x > -5, by_logarithms, by_fraction) * dx


def in_bins(x0: Array, keys: Key, levels: int, width: float = 1.0) -> tuple[Array, float]:
    """Dequantizes uniformly over bins of `levels` values (Theis et al. 2016, sec. 3.1).

    Args:
      x0: (B, ...) with `levels` equally spaced values in [-1, 1].
      keys: one key per example, (B,).
      levels: number of values.
      width: 1, or 0 to leave x0 as it is.

    Returns:
      x0 + U, and D log w, which is added to log p(x) for a bound of log P(x0).
    """
    log_width = math.log(2 / (levels - 1))
    half = 0.5 * math.exp(log_width)
    x = x0 + width * jax.vmap(
        lambda key: jax.random.uniform(key, x0.shape[1:], x0.dtype, -half, half)
    )(keys)
    return x, width * math.prod(x0.shape[1:]) * log_width


def in_bins_of_channels(x0: Array, keys: Key, bins: Sequence[float]) -> tuple[Array, float]:
    """Dequantizes uniformly over bins whose width depends on the channel.

    Args:
      x0: (B, ..., C), whose channels have equally spaced values.
      keys: one key per example, (B,).
      bins: the distance of the values of each channel, (C,).

    Returns:
      x0 + w U, and the sum of log w over the D dimensions of an example.
    """
    widths = np.asarray(bins, np.float64)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, x0.shape[1:], x0.dtype, -0.5, 0.5))(keys)
    places = math.prod(x0.shape[1:-1])
    return x0 + widths.astype(x0.dtype) * uniform, places * float(np.log(widths).sum())
