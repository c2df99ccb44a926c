"""Exact posteriors of Gaussian mixtures under linear measurements."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax import arrays, streams
from diffusion_jax.processes import gaussian
from diffusion_jax.targets import laws
from diffusion_jax.types import Array, Cond, Denoise, Key, Prediction, Process


# ---- the truth, for mixtures
class Posterior(NamedTuple):
    """p(x0 | y) for mixture data, a mixture again: weights (B, K), means (B, K, D), covariances (K,
    D, D).
    """

    weights: Array
    means: Array
    covariances: Array


def posterior(law: laws.Mixture, matrix: Array, variance: Array, y: Array) -> Posterior:
    """The law of x0 given y (B, M) = matrix (M, D) x0 + N(0, diag(variance)), variance (M,) or a
    number.

    With S = A C A^T + N and G = C A^T S^-1: means m + G (y - A m), covariances C - G A C, weights
    proportional to w N(y; A m, S).
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
    """Mean (B, D) and variance of each coordinate (B, D)."""
    mean = jnp.einsum("bk,bkd->bd", exact.weights, exact.means, precision="highest")
    within = jnp.diagonal(exact.covariances, axis1=1, axis2=2)
    return mean, jnp.einsum(
        "bk,bkd->bd",
        exact.weights,
        within + (exact.means - mean[:, None]) ** 2,
        precision="highest",
    )


def draw_posterior(exact: Posterior, keys: Key) -> Array:
    """One draw for each y, (B, D), from keys (B,) (or one key)."""
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
    """E[x0 | x_t, y], exactly: x_t / alpha is one more measurement of x0, of variance (sigma /
    alpha)^2. t scalar.
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
