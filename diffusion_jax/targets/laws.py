"""Gaussians and mixtures of Gaussians: denoisers, densities and samples in closed form."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.core import arrays, streams
from diffusion_jax.core.types import Array, Cond, Denoise, Key, Prediction, Process
from diffusion_jax.processes.gaussian import from_x0


class Gaussian(NamedTuple):
    """N(mean, basis diag(variances) basis^T).

    Attributes:
      mean: (D,).
      variances: (D,).
      basis: (D, D), with orthonormal columns.
    """

    mean: Array
    variances: Array
    basis: Array


class Mixture(NamedTuple):
    """sum_k weights_k N(means_k, diag(variances_k)).

    Attributes:
      weights: (K,), which sum to 1.
      means: (K, D).
      variances: (K, D).
    """

    weights: Array
    means: Array
    variances: Array


# ---- laws
def gaussian(mean: Array, covariance: Array) -> Gaussian:
    """Makes a Gaussian from its mean and covariance.

    Args:
      mean: the mean, (D,).
      covariance: symmetric, (D, D); negative eigenvalues, which rounding may produce, are taken for
        0.
    """
    variances, basis = jnp.linalg.eigh(covariance)
    return Gaussian(jnp.asarray(mean), jnp.maximum(variances, 0), basis)


def mixture(weights: Array, means: Array, stds: Array) -> Mixture:
    """Makes a mixture of Gaussians.

    Args:
      weights: weights of the components, (K,), which are normalized.
      means: means of the components, (K, D).
      stds: standard deviations; anything that broadcasts to (K, D).
    """
    means = jnp.asarray(means)
    weights = jnp.asarray(weights, means.dtype)
    return Mixture(
        weights / weights.sum(),
        means,
        jnp.broadcast_to(jnp.asarray(stds, means.dtype) ** 2, means.shape),
    )


def ring_of_gaussians(modes: int = 8, radius: float = 1.0, std: float = 0.1) -> Mixture:
    """Makes equal Gaussians on a circle in the plane, the usual toy.

    Args:
      modes: number of Gaussians, K.
      radius: radius of the circle.
      std: standard deviation of each Gaussian in both coordinates.
    """
    angle = 2 * math.pi * jnp.arange(modes) / modes
    return mixture(jnp.ones(modes), radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1), std)


def denoise_gaussian(target: Gaussian, process: Process) -> Denoise:
    """Returns the denoiser of Gaussian data, E[x0 | x_t].

    It is m + alpha C (alpha^2 C + sigma^2)^-1 (x_t - alpha m) for N(m, C).

    Args:
      target: the law of x0.
      process: the process of x_t.

    Returns:
      The denoiser, for x_t with D entries per example; it has no use for a condition.
    """

    def denoise(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        mean, variances, basis = _cast(target, x_t.dtype)
        alpha, sigma = _coefficients(process, x_t, t)
        z = jnp.matmul(x_t.reshape(len(x_t), -1) - alpha * mean, basis, precision="highest")
        gain = alpha * variances / (alpha**2 * variances + sigma**2)
        x0 = mean + jnp.matmul(gain * z, basis.T, precision="highest")
        return from_x0(process, x_t, x0.reshape(x_t.shape), t)

    return denoise


def flow(target: Gaussian, process: Process, x: Array, t: Array, s: Array) -> Array:
    """Returns the exact probability-flow map of Gaussian data.

    Each eigendirection scales as its standard deviation, sqrt(alpha^2 variance + sigma^2), does.

    Args:
      target: the law of x0.
      process: the process of x.
      x: points at time t, (B, ...), with D entries per example.
      t: where the flow begins, a scalar or (B,).
      s: where it ends, a scalar or (B,), before or after t.

    Returns:
      The points at time s, of x's shape.
    """
    mean, variances, basis = _cast(target, x.dtype)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (
        _coefficients(process, x, t),
        _coefficients(process, x, s),
    )
    z = jnp.matmul(x.reshape(len(x), -1) - alpha_t * mean, basis, precision="highest")
    z = z * jnp.sqrt((alpha_s**2 * variances + sigma_s**2) / (alpha_t**2 * variances + sigma_t**2))
    return (alpha_s * mean + jnp.matmul(z, basis.T, precision="highest")).reshape(x.shape)


def log_density_gaussian(target: Gaussian, process: Process, x: Array, t: Array) -> Array:
    """Returns log p_t(x) of Gaussian data.

    Args:
      target: the law of x0.
      process: the process of x.
      x: points at time t, (B, ...), with D entries per example.
      t: the time of x, a scalar or (B,).

    Returns:
      The log-densities in nats, (B,).
    """
    mean, variances, basis = _cast(target, x.dtype)
    alpha, sigma = _coefficients(process, x, t)
    z = jnp.matmul(x.reshape(len(x), -1) - alpha * mean, basis, precision="highest")
    return _log_normal(z, alpha**2 * variances + sigma**2)


def denoise_mixture(target: Mixture, process: Process, labels: Array | None = None) -> Denoise:
    """Returns the denoiser E[x0 | x_t] of a mixture.

    It averages the components' conditional means, weighted by the responsibilities p(k | x_t).

    Args:
      target: the law of x0.
      process: the process of x_t.
      labels: (K,), the classes of the components. With cond = {'label': (B,)} only components of
        that label count; a label that does not occur stands for 'any'.
    """

    def denoise(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        weights, means, variances = _cast(target, x_t.dtype)
        weights = weights * _counted(labels, cond)
        # (B, 1, 1) against (K, D)
        alpha, sigma = (c[:, None] for c in _coefficients(process, x_t, t))
        offset = x_t.reshape(len(x_t), 1, -1) - alpha * means  # (B, K, D)
        total = alpha**2 * variances + sigma**2
        responsibility = jax.nn.softmax(jnp.log(weights) + _log_normal(offset, total))
        x0 = jnp.einsum(
            "bk,bkd->bd",
            responsibility,
            means + alpha * variances / total * offset,
            precision="highest",
        )
        return from_x0(process, x_t, x0.reshape(x_t.shape), t)

    return denoise


def log_density_mixture(
    target: Mixture,
    process: Process,
    x: Array,
    t: Array,
    labels: Array | None = None,
    cond: Cond = None,
) -> Array:
    """Returns log p_t(x) of a mixture.

    With labels and cond, as in `denoise_mixture`, it is the joint density log p_t(x, label).

    Args:
      target: the law of x0.
      process: the process of x.
      x: points at time t, (B, ...), with D entries per example.
      t: the time of x, a scalar or (B,).
      labels: (K,), the classes of the components; None counts all of them.
      cond: None, or a dict whose 'label' (B,) says which components count.

    Returns:
      The log-densities in nats, (B,).
    """
    weights, means, variances = _cast(target, x.dtype)
    weights = weights * _counted(labels, cond)
    alpha, sigma = (c[:, None] for c in _coefficients(process, x, t))
    offset = x.reshape(len(x), 1, -1) - alpha * means
    return jax.nn.logsumexp(
        jnp.log(weights) + _log_normal(offset, alpha**2 * variances + sigma**2), axis=-1
    )


def _counted(labels: Array | None, cond: Cond) -> Array:
    """Returns 1 for the components of cond's label and 0 for others, (B, K); 1 if there is none."""
    if labels is None or cond is None or "label" not in cond:
        return jnp.ones(())
    labels, wanted = jnp.asarray(labels), cond["label"][:, None]
    return ((labels == wanted) | ~jnp.isin(wanted, labels)).astype(jnp.float32)


def draw_gaussian(target: Gaussian, keys: Key, count: int) -> Array:
    """Returns exact samples of a Gaussian, in the law's precision if JAX has it.

    Args:
      target: the law to draw from.
      keys: one key per sample, (count,), or a single key, which is folded with the index of each
        sample.
      count: number of samples.

    Returns:
      The samples, (count, D).
    """
    mean, variances, basis = _cast(target, target.mean.dtype)
    z = arrays.noise(keys, jnp.zeros((count, len(mean)), mean.dtype))
    return mean + jnp.matmul(z * jnp.sqrt(variances), basis.T, precision="highest")


def draw_mixture(target: Mixture, keys: Key, count: int) -> Array:
    """Returns exact samples of a mixture, in the law's precision if JAX has it.

    Args:
      target: the law to draw from.
      keys: one key per sample, (count,), or a single key, which is folded with the index of each
        sample.
      count: number of samples.

    Returns:
      The samples, (count, D).
    """
    weights, means, variances = _cast(target, target.means.dtype)
    keys = arrays.example_keys(keys, count)
    k = jax.vmap(
        lambda key: jax.random.choice(
            jax.random.fold_in(key, streams.TARGET_COMPONENT), len(weights), p=weights
        )
    )(keys)
    z = arrays.noise(arrays.fold_in(keys, streams.TARGET_NOISE), means[k])
    return means[k] + jnp.sqrt(variances[k]) * z


def _cast(law: Gaussian | Mixture, dtype: jnp.dtype) -> Gaussian | Mixture:
    """Returns the law in this precision, or the nearest that JAX is set to."""
    return jax.tree.map(lambda value: jnp.asarray(value, jax.dtypes.canonicalize_dtype(dtype)), law)


def _coefficients(process: Process, x: Array, t: Array) -> tuple[Array, Array]:
    """Returns alpha and sigma as columns, (B, 1)."""
    t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
    return process.alpha(t)[:, None], process.sigma(t)[:, None]


def _log_normal(offset: Array, variance: Array) -> Array:
    """Returns log N(offset; 0, diag(variance)), summed over the last axis."""
    return -0.5 * jnp.sum(offset**2 / variance + jnp.log(2 * math.pi * variance), axis=-1)
