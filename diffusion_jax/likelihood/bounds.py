"""Variational bounds on the likelihood: discrete, continuous and importance-weighted."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from diffusion_jax.core import arrays, streams
from diffusion_jax.core.arrays import expand, mean_per_example
from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.core.types import Array, Cond, Denoise, Key, Prediction, Process
from diffusion_jax.likelihood import bins
from diffusion_jax.processes import gaussian

BIT = math.log(2.0)  # nats


def vlb(
    process: Process,
    denoise: Denoise,
    x0: Array,
    key: Key,
    ts: Array,
    cond: Cond = None,
    *,
    variance: str = "small",
    reconstruction_nu: float = 1.0,
    levels: int = 256,
) -> dict[str, Array]:
    """Returns the discrete bound of each image in bits per dimension, with one x_t for every term.

    (Ho et al. 2020, eq. 5.) The bound is along the decreasing times ts.

    Args:
      process: the process that the denoiser was made for.
      denoise: a function (x_t, t, cond) -> Prediction.
      x0: (B, ...) with `levels` values in [-1, 1].
      key: one key per image, (B,), or one for the batch.
      ts: (n,), n >= 2, from t_max to t_min.
      cond: the condition, with leading axis B.
      variance: 'small', 'large' or 'learned', as in samplers.ancestral.ddpm.
      reconstruction_nu: the reconstruction's variance if it is not learned. 1 is sigma(t_min)^2,
        right on any grid for data wider than that; -1 is beta-tilde of the move above, which Ho et
        al.'s code uses on its chain (and which vanishes on a fine grid with a fixed t_min).
      levels: number of values that x0 can take.

    Returns:
      prior, diffusion, reconstruction, and total, their sum: (B,); terms, the moves of diffusion:
      (B, n - 1). All in bits per dimension.

    Raises:
      UserError: for another variance, a network without the learned one, or fewer than two times.
    """
    _check(variance, ts)
    keys = arrays.example_keys(key, x0.shape[0])
    ts = jnp.asarray(ts, x0.dtype)

    def predict(i, t) -> Prediction:
        x_t = gaussian.corrupt(process, x0, arrays.noise(arrays.fold_in(keys, i), x0), t).x_t
        return _with_variance(denoise(x_t, t, cond), variance)

    def move(_, inputs):
        i, t, s = inputs
        prediction = predict(i, t)
        return None, _move(process, x0, prediction.x0, prediction.nu, t, s)

    terms = jax.lax.scan(move, None, (jnp.arange(len(ts) - 1), ts[:-1], ts[1:]))[1].T
    last = predict(len(ts) - 1, ts[-1])
    nu = last.nu if variance == "learned" else jnp.full_like(x0, reconstruction_nu)
    parts = {
        "prior": _prior(process, x0, ts[0]),
        "diffusion": terms.sum(axis=1),
        "reconstruction": _reconstruction(process, x0, last.x0, nu, ts[-2], ts[-1], levels),
    }
    return {"total": sum(parts.values()), **parts, "terms": terms}


def importance_vlb(
    process: Process,
    denoise: Denoise,
    x0: Array,
    key: Key,
    ts: Array,
    cond: Cond = None,
    *,
    draws: int = 8,
    variance: str = "small",
    reconstruction_nu: float = 1.0,
    levels: int = 256,
) -> dict[str, Array]:
    """Returns the importance-weighted bound from `draws` chains x_T, ..., x_t_min ~ q(. | x0).

    (Burda et al. 2016, eq. 8.) Each chain has the weight w = p(x0, chain) / q(chain | x0), whose
    mean is p(x0). -log of the mean weight is a bound that tightens with `draws` and is never above
    the mean of -log w, which estimates `vlb`.

    Args:
      process: the process that the denoiser was made for.
      denoise: a function (x_t, t, cond) -> Prediction.
      x0: (B, ...) with `levels` values in [-1, 1].
      key: one key per image, (B,), or one for the batch.
      ts: (n,), n >= 2, from t_max to t_min.
      cond: the condition, with leading axis B.
      draws: number of chains.
      variance: variance of the moves: 'small', 'large' or 'learned', as in `vlb`.
      reconstruction_nu: the reconstruction's variance if it is not learned, as in `vlb`: 1 is
        sigma(t_min)^2, -1 beta-tilde.
      levels: number of values that x0 can take.

    Returns:
      total, the importance-weighted bound, and plain, the mean over the chains: (B,); prior,
      diffusion and reconstruction, the three terms of plain: (B,), all in bits per dimension; and
      log_weights: (B, draws) in nats.

    Raises:
      UserError: for another variance, a network without the learned one, or fewer than two times.
    """
    _check(variance, ts)
    keys, size = arrays.example_keys(key, x0.shape[0]), math.prod(x0.shape[1:])
    problem = process, denoise, x0, jnp.asarray(ts, x0.dtype), cond

    def chain(k):
        return _chain(*problem, arrays.fold_in(keys, k), variance, reconstruction_nu, levels)

    parts = jax.lax.map(chain, jnp.arange(draws))  # three of (draws, B)
    log_weights = -size * BIT * sum(parts)
    means = dict(zip(("prior", "diffusion", "reconstruction"), (part.mean(0) for part in parts)))
    return {
        "total": -log_mean_exp(log_weights, axis=0) / (size * BIT),
        "plain": sum(means.values()),
        **means,
        "log_weights": log_weights.T,
    }


def _chain(
    process: Process,
    denoise: Denoise,
    x0: Array,
    ts: Array,
    cond: Cond,
    keys: Key,
    variance: str,
    reconstruction_nu: float,
    levels: int,
) -> tuple[Array, Array, Array]:
    """Returns log q - log p of one chain: prior, diffusion, reconstruction, (B,) in bits/dim."""

    def fresh(i):
        return arrays.noise(arrays.fold_in(keys, i), x0)

    def move(x_t, inputs):
        i, t, s = inputs
        prediction, eps = _with_variance(denoise(x_t, t, cond), variance), fresh(i)
        mean, var = gaussian.posterior(process, x_t, x0, t, s)
        gap, _ = gaussian.posterior(process, jnp.zeros_like(x0), x0 - prediction.x0, t, s)
        log_p = gaussian.learned_log_variance(process, prediction.nu, t, s)
        return mean + jnp.sqrt(var) * eps, mean_per_example(
            _log_ratio(eps, gap, expand(jnp.log(var), x0), log_p)
        )

    eps, scale, sigma = fresh(len(ts) - 1), gaussian.prior_scale(process), process.sigma(ts[0])
    prior = mean_per_example(
        _log_ratio(eps, process.alpha(ts[0]) * x0, 2 * jnp.log(sigma), 2 * jnp.log(scale))
    )
    x = gaussian.corrupt(process, x0, eps, ts[0]).x_t
    x, terms = jax.lax.scan(move, x, (jnp.arange(len(ts) - 1), ts[:-1], ts[1:]))
    last = _with_variance(denoise(x, ts[-1], cond), variance)
    nu = last.nu if variance == "learned" else jnp.full_like(x0, reconstruction_nu)
    return (
        prior / BIT,
        terms.sum(0) / BIT,
        _reconstruction(process, x0, last.x0, nu, ts[-2], ts[-1], levels),
    )


def continuous_vlb(
    process: Process,
    denoise: Denoise,
    x0: Array,
    key: Key,
    cond: Cond = None,
    *,
    draws: int = 32,
    levels: int = 256,
) -> dict[str, Array]:
    """Returns the bound in continuous time of each image (Kingma et al. 2021, eq. 11-18).

    diffusion = 1/2 E_t[-lam'(t) |eps - eps-hat|^2] = 1/2 int |eps - eps-hat|^2 dlam over the
    log-SNR between the ends, by one uniform log-SNR in each of `draws` equal strata (the
    low-variance sampler of app. I.1, with each image's own key). prior and reconstruction are those
    of `vlb`, the latter with variance sigma(t_min)^2.

    Args:
      process: the process that the denoiser was made for.
      denoise: a function (x_t, t, cond) -> Prediction.
      x0: (B, ...) with `levels` values in [-1, 1].
      key: one key per image, (B,), or one for the batch.
      cond: the condition, with leading axis B.
      draws: number of strata, at least 2.
      levels: number of values that x0 can take.

    Returns:
      prior, diffusion, reconstruction, and total, their sum: (B,); terms: (B, draws), of mean
      diffusion; error: (B,), its standard error, from the differences between adjacent strata (a
      little too large, because it takes the trend for noise). All in bits per dimension.

    Raises:
      UserError: for fewer than two draws.
    """
    if draws < 2:
        raise UserError(f"bounds.continuous_vlb needs at least 2 draws; got draws={draws}")
    keys = arrays.example_keys(key, x0.shape[0])
    ends = jnp.asarray([process.t_min, process.t_max], x0.dtype)
    high, low = gaussian.logsnr(process, ends)

    def predict(i, t) -> tuple[Prediction, Array]:
        eps = arrays.noise(arrays.fold_in(arrays.fold_in(keys, i), streams.BOUND_NOISE), x0)
        return denoise(gaussian.corrupt(process, x0, eps, t).x_t, t, cond), eps

    def term(i):
        own = arrays.fold_in(arrays.fold_in(keys, i), streams.BOUND_LEVEL)
        u = (i + arrays.uniform(own)) / draws
        prediction, eps = predict(i, gaussian.time_of_logsnr(process, low + u * (high - low)))
        return 0.5 * (high - low) * mean_per_example((prediction.eps - eps) ** 2) / BIT

    terms = jax.lax.map(term, jnp.arange(draws)).T
    last, log_var = predict(draws, ends[0])[0], 2 * jnp.log(process.sigma(ends[0]))
    parts = {
        "prior": _prior(process, x0, ends[1]),
        "diffusion": terms.mean(axis=1),
        "reconstruction": -mean_per_example(bins.log_bin(x0, last.x0, log_var, levels)) / BIT,
    }
    differences = jnp.diff(terms, axis=1)
    error = jnp.sqrt(0.5 * jnp.mean(differences**2, axis=1) / draws)
    return {"total": sum(parts.values()), **parts, "terms": terms, "error": error}


def _check(variance: str, ts: Array) -> None:
    """Raises UserError for another variance, or fewer than two times."""
    if variance not in ("small", "large", "learned"):
        raise unknown("variance of bounds.vlb", variance, ("small", "large", "learned"))
    if len(ts) < 2:
        raise UserError(f"bounds.vlb needs a grid of at least 2 times; got {len(ts)}")


def _with_variance(prediction: Prediction, variance: str) -> Prediction:
    """Returns the prediction with the nu that `variance` names."""
    if variance != "learned":
        return prediction._replace(
            nu=jnp.full_like(prediction.x0, {"small": -1.0, "large": 1.0}[variance])
        )
    if prediction.nu is None:
        raise UserError(
            "bounds.vlb with variance='learned' needs a network that learns it: learn_variance=True"
        )
    return prediction


# ---- the three kinds of term, each (B,) in bits per dimension
def _prior(process: Process, x0: Array, t: Array) -> Array:
    """Returns KL(q(x_t | x0) || N(0, prior scale^2)) at the noise end."""
    scale, sigma = gaussian.prior_scale(process), process.sigma(t)
    return (
        mean_per_example(_kl(process.alpha(t) * x0, 2 * jnp.log(sigma), 2 * jnp.log(scale))) / BIT
    )


def _move(process: Process, x0: Array, x0_hat: Array, nu: Array, t: Array, s: Array) -> Array:
    """Returns KL(q(x_s | x_t, x0) || p(x_s | x_t)); nu = -1 is the 'small' variance, +1 'large'."""
    # both means are the posterior's, which is linear: their difference needs no x_t, and nothing
    # cancels
    gap, variance = gaussian.posterior(process, jnp.zeros_like(x0), x0 - x0_hat, t, s)
    log_p = gaussian.learned_log_variance(process, nu, t, s)
    return mean_per_example(_kl(gap, expand(jnp.log(variance), x0), log_p)) / BIT


def _reconstruction(
    process: Process, x0: Array, x0_hat: Array, nu: Array, t: Array, s: Array, levels: int
) -> Array:
    """Returns -log p(x0 | x_s) at s = t_min.

    Its log-variance is between beta-tilde of the move above, t -> s, and sigma_s^2. On the DDPM
    chain this is improved DDPM's first move, whose beta is sigma_1^2 and whose beta-tilde, 0, is
    replaced by the second's. With levels = 0 it is a density.
    """
    low = gaussian.learned_log_variance(process, -jnp.ones_like(x0), t, s)
    high = expand(2 * jnp.log(process.sigma(s)), x0)
    law = x0_hat, low + 0.5 * (nu + 1) * (high - low)
    log_p = bins.log_bin(x0, *law, levels) if levels else bins.log_density(x0, *law)
    return -mean_per_example(log_p) / BIT


def _kl(gap: Array, log_q: Array, log_p: Array) -> Array:
    """Returns KL(N(m, q) || N(m + gap, p)) in nats, elementwise, from log-variances."""
    return 0.5 * (jnp.expm1(log_q - log_p) - (log_q - log_p) + gap**2 * jnp.exp(-log_p))


def _log_ratio(eps: Array, gap: Array, log_q: Array, log_p: Array) -> Array:
    """Returns log N(m, q) - log N(m - gap, p) at m + sqrt(q) eps, in nats, elementwise.

    `_kl` is its mean over eps.
    """
    return 0.5 * (
        jnp.exp(-log_p) * (jnp.exp(0.5 * log_q) * eps + gap) ** 2 - eps**2 + log_p - log_q
    )


def log_mean_exp(log_weights: Array, axis: int) -> Array:
    """Returns the log of the mean of exp(log_weights) over an axis (Burda et al. 2016, eq. 8).

    Args:
      log_weights: log importance weights in nats, of any shape.
      axis: the axis of the independent draws, which the result lacks.

    Returns:
      The logarithms in nats, of the shape of log_weights without the axis.
    """
    return jax.nn.logsumexp(log_weights, axis=axis) - math.log(log_weights.shape[axis])
