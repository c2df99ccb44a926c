"""Exact posteriors of Gaussian mixtures under linear measurements."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.core import arrays, streams
from diffusion_jax.core.types import Array, Cond, Denoise, Key, Prediction, Process
from diffusion_jax.processes import gaussian
from diffusion_jax.targets import laws


class Posterior(NamedTuple):
    """p(x0 | y) for mixture data, which is a mixture again.

    Attributes:
      weights: (B, K).
      means: (B, K, D).
      covariances: (K, D, D).
    """

    weights: Array
    means: Array
    covariances: Array


def posterior(law: laws.Mixture, matrix: Array, variance: Array, y: Array) -> Posterior:
    """Returns the law of x0 given y = A x0 + N(0, diag(variance)).

    With S = A C A^T + N and G = C A^T S^-1 the means are m + G (y - A m), the covariances C - G A
    C, and the weights proportional to w N(y; A m, S).

    Args:
      law: the mixture of x0.
      matrix: A of y = A x0 + noise, (M, D).
      variance: variance of the noise of each measurement, (M,) or one number for all.
      y: measurements, (B, M).

    Returns:
      The posterior of each measurement.
    """
    precise = {"precision": "highest"}
    spread_to_y = law.variances[:, :, None] * matrix.T  # C A^T, (K, D, M)
    total = jnp.einsum("md,kdn->kmn", matrix, spread_to_y, **precise)
    total = total + jnp.diag(jnp.broadcast_to(jnp.asarray(variance, y.dtype), y.shape[1:]))
    root = jnp.linalg.cholesky(total)
    offset = y[:, None] - jnp.einsum("md,kd->km", matrix, law.means, **precise)  # (B, K, M)
    white = jax.vmap(
        lambda r, b: jax.scipy.linalg.solve_triangular(r, b.T, lower=True).T, (0, 1), 1
    )(root, offset)
    half_gain = jax.vmap(lambda r, c: jax.scipy.linalg.solve_triangular(r, c.T, lower=True))(
        root, spread_to_y
    )  # (K, M, D)
    logit = (
        jnp.log(law.weights)
        - 0.5 * jnp.sum(white**2, -1)
        - jnp.sum(jnp.log(jnp.diagonal(root, axis1=1, axis2=2)), -1)
    )
    means = law.means + jnp.einsum("bkm,kmd->bkd", white, half_gain, **precise)
    covariances = jax.vmap(jnp.diag)(law.variances) - jnp.einsum(
        "kmd,kme->kde", half_gain, half_gain, **precise
    )
    return Posterior(jax.nn.softmax(logit), means, covariances)


def posterior_moments(exact: Posterior) -> tuple[Array, Array]:
    """Returns the mean and the variance of each coordinate of a posterior.

    Args:
      exact: the posteriors of B measurements.

    Returns:
      The mean and the variance, (B, D) each.
    """
    mean = jnp.einsum("bk,bkd->bd", exact.weights, exact.means, precision="highest")
    within = jnp.diagonal(exact.covariances, axis1=1, axis2=2)
    return mean, jnp.einsum(
        "bk,bkd->bd",
        exact.weights,
        within + (exact.means - mean[:, None]) ** 2,
        precision="highest",
    )


def draw_posterior(exact: Posterior, keys: Key) -> Array:
    """Returns one draw from each posterior.

    Args:
      exact: the posteriors of B measurements.
      keys: one key per draw, (B,), or a single key, which is folded with the index of each draw.

    Returns:
      The draws, (B, D).
    """
    keys = arrays.example_keys(keys, len(exact.weights))
    k = jax.vmap(
        lambda key, w: jax.random.categorical(
            jax.random.fold_in(key, streams.TARGET_COMPONENT), jnp.log(w)
        )
    )(keys, exact.weights)
    values, basis = jnp.linalg.eigh(exact.covariances)
    root = basis * jnp.sqrt(jnp.maximum(values, 0))[:, None]
    z = arrays.noise(arrays.fold_in(keys, streams.TARGET_NOISE), exact.means[:, 0])
    mean = jnp.take_along_axis(exact.means, k[:, None, None], 1)[:, 0]
    return mean + jnp.einsum("bde,be->bd", root[k], z, precision="highest")


def conditional(
    law: laws.Mixture, process: Process, matrix: Array, std: float, y: Array
) -> Denoise:
    """Returns the exact denoiser E[x0 | x_t, y].

    x_t / alpha is one more measurement of x0, of variance (sigma / alpha)^2.

    Args:
      law: the mixture of x0.
      process: the process of x_t.
      matrix: A of y = A x0 + std n, (M, D).
      std: standard deviation of the measurement's noise.
      y: measurements, (B, M).

    Returns:
      The denoiser, for x_t (B, D) and scalar t.
    """

    def denoise(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        alpha, u2 = process.alpha(t), (process.sigma(t) / process.alpha(t)) ** 2
        both = jnp.concatenate([matrix, jnp.eye(law.means.shape[1], dtype=x_t.dtype)])
        variance = jnp.where(jnp.arange(len(both)) < len(matrix), std**2, u2)
        mean, _ = posterior_moments(
            posterior(law, both, variance, jnp.concatenate([y, x_t / alpha], 1))
        )
        return gaussian.from_x0(process, x_t, mean, t)

    return denoise
