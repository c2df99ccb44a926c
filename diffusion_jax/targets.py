"""Data laws whose denoiser is known exactly, so that samplers, objectives and likelihoods can be judged against truth.

Under x_t = alpha x0 + sigma eps a Gaussian stays Gaussian and a mixture stays a mixture; so E[x0 | x_t], the log-density at every t
and (for the Gaussian) the probability-flow map itself are closed forms. Points are (B, D); any shape (B, ...) with D entries
per example is taken and given back.

    denoise(target, process) -> Denoise;   log_density(target, process, x, t);   flow(gaussian, process, x, t, s);   draw(target, keys)
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax import arrays
from diffusion_jax.arrays import expand
from diffusion_jax.processes.gaussian import from_x0
from diffusion_jax.types import Array, Cond, Denoise, Key, Prediction, Process


class Gaussian(NamedTuple):
    """N(mean, basis diag(variances) basis^T). mean, variances: (D,); basis: (D, D), orthonormal columns."""

    mean: Array
    variances: Array
    basis: Array


class Mixture(NamedTuple):
    """sum_k weights_k N(means_k, diag(variances_k)). weights: (K,); means, variances: (K, D)."""

    weights: Array
    means: Array
    variances: Array


def gaussian(mean: Array, covariance: Array) -> Gaussian:
    """N(mean (D,), covariance (D, D))."""
    variances, basis = jnp.linalg.eigh(covariance)
    return Gaussian(jnp.asarray(mean), jnp.maximum(variances, 0), basis)


def mixture(weights: Array, means: Array, stds: Array) -> Mixture:
    """A mixture from weights (K,), means (K, D) and standard deviations, anything that broadcasts to (K, D)."""
    means = jnp.asarray(means)
    weights = jnp.asarray(weights, means.dtype)
    return Mixture(weights / weights.sum(), means, jnp.broadcast_to(jnp.asarray(stds, means.dtype) ** 2, means.shape))


def ring_of_gaussians(modes: int = 8, radius: float = 1.0, std: float = 0.1) -> Mixture:
    """The field's toy: `modes` equal Gaussians on a circle in the plane."""
    angle = 2 * math.pi * jnp.arange(modes) / modes
    return mixture(jnp.ones(modes), radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1), std)


def denoise_gaussian(target: Gaussian, process: Process) -> Denoise:
    """E[x0 | x_t] = m + alpha C (alpha^2 C + sigma^2)^-1 (x_t - alpha m)."""

    def denoise(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        alpha, sigma = _coefficients(process, x_t, t)
        z = (x_t.reshape(len(x_t), -1) - alpha * target.mean) @ target.basis
        gain = alpha * target.variances / (alpha**2 * target.variances + sigma**2)
        x0 = target.mean + (gain * z) @ target.basis.T
        return from_x0(process, x_t, x0.reshape(x_t.shape), t)

    return denoise


def flow(target: Gaussian, process: Process, x: Array, t: Array, s: Array) -> Array:
    """The probability-flow map from time t to time s, exactly: each eigendirection scales as its standard deviation does."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = _coefficients(process, x, t), _coefficients(process, x, s)
    z = (x.reshape(len(x), -1) - alpha_t * target.mean) @ target.basis
    z = z * jnp.sqrt((alpha_s**2 * target.variances + sigma_s**2) / (alpha_t**2 * target.variances + sigma_t**2))
    return (alpha_s * target.mean + z @ target.basis.T).reshape(x.shape)


def log_density_gaussian(target: Gaussian, process: Process, x: Array, t: Array) -> Array:
    """log p_t(x) in nats, (B,)."""
    alpha, sigma = _coefficients(process, x, t)
    z = (x.reshape(len(x), -1) - alpha * target.mean) @ target.basis
    return _log_normal(z, alpha**2 * target.variances + sigma**2)


def denoise_mixture(target: Mixture, process: Process) -> Denoise:
    """E[x0 | x_t]: each component's own conditional mean, weighted by the responsibilities p(k | x_t)."""

    def denoise(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        alpha, sigma = (c[:, None] for c in _coefficients(process, x_t, t))  # (B, 1, 1) against (K, D)
        offset = x_t.reshape(len(x_t), 1, -1) - alpha * target.means  # (B, K, D)
        total = alpha**2 * target.variances + sigma**2
        responsibility = jax.nn.softmax(jnp.log(target.weights) + _log_normal(offset, total))
        means = target.means + alpha * target.variances / total * offset
        x0 = jnp.einsum("bk,bkd->bd", responsibility, means)
        return from_x0(process, x_t, x0.reshape(x_t.shape), t)

    return denoise


def log_density_mixture(target: Mixture, process: Process, x: Array, t: Array) -> Array:
    """log p_t(x) in nats, (B,)."""
    alpha, sigma = (c[:, None] for c in _coefficients(process, x, t))
    offset = x.reshape(len(x), 1, -1) - alpha * target.means
    log_normal = _log_normal(offset, alpha**2 * target.variances + sigma**2)
    return jax.nn.logsumexp(jnp.log(target.weights) + log_normal, axis=-1)


def draw_gaussian(target: Gaussian, keys: Key, count: int) -> Array:
    """`count` exact samples, (count, D)."""
    z = arrays.noise(keys, jnp.zeros((count, len(target.mean)), target.mean.dtype))
    return target.mean + (z * jnp.sqrt(target.variances)) @ target.basis.T


def draw_mixture(target: Mixture, keys: Key, count: int) -> Array:
    """`count` exact samples, (count, D)."""
    keys = arrays.example_keys(keys, count)
    k = jax.vmap(lambda key: jax.random.choice(jax.random.fold_in(key, 1), len(target.weights), p=target.weights))(keys)
    z = arrays.noise(arrays.fold_in(keys, 0), target.means[k])
    return target.means[k] + jnp.sqrt(target.variances[k]) * z


def _coefficients(process: Process, x: Array, t: Array) -> tuple[Array, Array]:
    """alpha and sigma as (B, 1) columns."""
    t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
    return process.alpha(t)[:, None], process.sigma(t)[:, None]


def _log_normal(offset: Array, variance: Array) -> Array:
    """log N(offset; 0, diag(variance)), summed over the last axis."""
    return -0.5 * jnp.sum(offset**2 / variance + jnp.log(2 * math.pi * variance), axis=-1)
