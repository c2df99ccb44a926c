"""All that follows from alpha(t) and sigma(t): x_t = alpha(t) x0 + sigma(t) eps, eps ~ N(0, I).

A process is only the two functions (types.Process). The log-SNR, the SDE dx = f(t) x dt + g(t) dw
with the same marginals, the probability-flow velocity, the score, the Gaussian posterior and the
prior are derived here, once, by autodiff and algebra (Song et al. 2021, Score-based generative
modeling through SDEs; Kingma et al. 2021, Variational diffusion models).

Times are scalars or (B,); every result that depends on t alone has t's shape. Images are (B, ...).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.arrays import expand, sum_per_example
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Noised, Prediction, Process


def derivative(function: Callable[[Array], Array], t: Array) -> Array:
    """Returns d function / dt, elementwise, by one forward-mode pass.

    Args:
      function: a function of times that maps each element independently of the others.
      t: the times, of any shape; integers become floating-point numbers.

    Returns:
      The derivative at t, of t's shape.
    """
    t = jnp.asarray(
        t, jnp.result_type(float) if jnp.issubdtype(jnp.result_type(t), jnp.integer) else None
    )
    return jax.jvp(function, (t,), (jnp.ones_like(t),))[1]


def corrupt(process: Process, x0: Array, eps: Array, t: Array) -> Noised:
    """Returns the noised examples x_t = alpha(t) x0 + sigma(t) eps: the forward process.

    Args:
      process: the process of the result.
      x0: clean data, (B, ...).
      eps: unit Gaussian noise, of x0's shape.
      t: the times of the result, a scalar or (B,).

    Returns:
      The noised examples, which also hold t, x0 and eps as given.
    """
    x_t = expand(process.alpha(t), x0) * x0 + expand(process.sigma(t), x0) * eps
    return Noised(x_t, t, x0, eps)


def logsnr(process: Process, t: Array) -> Array:
    """Returns the log-SNR lam(t) = 2 log(alpha / sigma), which decreases strictly in t.

    Args:
      process: the two functions alpha and sigma.
      t: times in [t_min, t_max], a scalar or (B,).

    Returns:
      lam in nats, of t's shape.
    """
    return 2 * (jnp.log(process.alpha(t)) - jnp.log(process.sigma(t)))


def drift_diffusion(process: Process, t: Array) -> tuple[Array, Array]:
    """Returns f(t) and g^2(t) of the SDE dx = f x dt + g dw (Kingma et al. 2021).

    f = d log alpha / dt and g^2 = d sigma^2 / dt - 2 f sigma^2, a sum of two terms that are not
    negative wherever alpha does not grow.

    Args:
      process: the process whose marginals the SDE has.
      t: times in [t_min, t_max], a scalar or (B,).

    Returns:
      f and g^2, each of t's shape; both are rates per unit of t.
    """
    alpha, sigma = process.alpha(t), process.sigma(t)
    f = derivative(process.alpha, t) / alpha
    return f, 2 * sigma * derivative(process.sigma, t) - 2 * f * sigma**2


def from_x0(process: Process, x_t: Array, x0: Array, t: Array) -> Prediction:
    """Returns the prediction with a given x0: eps = (x_t - alpha x0) / sigma.

    Args:
      process: the process of x_t.
      x_t: noised data, (B, ...).
      x0: the estimate of the data, of x_t's shape.
      t: the time of x_t, a scalar or (B,).
    """
    return Prediction(
        x0, (x_t - expand(process.alpha(t), x_t) * x0) / expand(process.sigma(t), x_t)
    )


def with_x0(
    process: Process, prediction: Prediction, x_t: Array, x0: Array, t: Array
) -> Prediction:
    """Returns a prediction with another x0, and the eps that x_t then implies.

    Everything else that the network predicts is kept.

    Args:
      process: the process of x_t.
      prediction: the prediction whose other fields (nu, residual) are kept.
      x_t: noised data, (B, ...).
      x0: the new estimate of the data, of x_t's shape.
      t: the time of x_t, a scalar or (B,).
    """
    changed = from_x0(process, x_t, x0, t)
    return prediction._replace(x0=changed.x0, eps=changed.eps)


def from_eps(process: Process, x_t: Array, eps: Array, t: Array) -> Prediction:
    """Returns the prediction with a given eps: x0 = (x_t - sigma eps) / alpha.

    Args:
      process: the process of x_t.
      x_t: noised data, (B, ...).
      eps: the estimate of the unit noise in x_t, of x_t's shape.
      t: the time of x_t, a scalar or (B,).
    """
    return Prediction(
        (x_t - expand(process.sigma(t), x_t) * eps) / expand(process.alpha(t), x_t), eps
    )


def velocity(process: Process, prediction: Prediction, t: Array) -> Array:
    """Returns the probability-flow velocity dx/dt = alpha'(t) x0 + sigma'(t) eps.

    It is f x - g^2 score / 2 (Song et al. 2021, eq. 13).

    Args:
      process: the process of x_t.
      prediction: x0 and eps, (B, ...) each.
      t: the time of x_t, a scalar or (B,).

    Returns:
      The velocity per unit of t, (B, ...).
    """
    x0, eps = prediction[:2]
    return (
        expand(derivative(process.alpha, t), x0) * x0
        + expand(derivative(process.sigma, t), eps) * eps
    )


def angle(process: Process, t: Array, sigma_data: float = 1.0) -> Array:
    """Returns arctan(sigma / (alpha sigma_data)), TrigFlow's time (Lu & Song 2025, sec. 3).

    In the frame of TrigFlow, x_t / sqrt(alpha^2 + (sigma / sigma_data)^2) is cos(angle) x0 +
    sin(angle) sigma_data eps.

    Args:
      process: the two functions alpha and sigma.
      t: times in [t_min, t_max], a scalar or (B,).
      sigma_data: standard deviation of the data.

    Returns:
      The angle in radians, of t's shape, in [0, pi / 2]; 0 is the data.
    """
    return jnp.arctan2(process.sigma(t), sigma_data * process.alpha(t))


def score(process: Process, prediction: Prediction, t: Array) -> Array:
    """Returns the score grad log p_t(x_t) = -eps / sigma(t).

    Args:
      process: the process of x_t.
      prediction: its eps, (B, ...), is used.
      t: the time of x_t, a scalar or (B,).

    Returns:
      The score, of eps's shape.
    """
    return -prediction.eps / expand(process.sigma(t), prediction.eps)


def transition(process: Process, t: Array, s: Array) -> tuple[Array, Array]:
    """Returns the forward move q(x_t | x_s) = N(ratio x_s, var I) for s < t.

    ratio = alpha_t / alpha_s and var = sigma_t^2 - ratio^2 sigma_s^2 (Kingma et al. 2021, appendix
    A). The variance is written as sigma_t^2 (1 - exp(lam_t - lam_s)), which stays exact in float32
    for times that are close together.

    Args:
      process: the two functions alpha and sigma.
      t: the later time, a scalar or (B,).
      s: the earlier time, below t, of t's shape.

    Returns:
      The ratio and the variance, each of t's shape.
    """
    ratio = process.alpha(t) / process.alpha(s)
    return ratio, -(process.sigma(t) ** 2) * jnp.expm1(logsnr(process, t) - logsnr(process, s))


def posterior(process: Process, x_t: Array, x0: Array, t: Array, s: Array) -> tuple[Array, Array]:
    """Returns the mean and variance of q(x_s | x_t, x0) = N(mean, var I) for s < t.

    mean = ratio sigma_s^2 / sigma_t^2 x_t + alpha_s var_ts / sigma_t^2 x0 and var = sigma_s^2
    var_ts / sigma_t^2 (Kingma et al. 2021, eq. 25-27; on the DDPM grid, Ho et al. 2020, eq. 6-7).

    Args:
      process: the process of x_t.
      x_t: noised data, (B, ...).
      x0: clean data or an estimate of it, of x_t's shape.
      t: the later time, a scalar or (B,).
      s: the earlier time, below t, of t's shape.

    Returns:
      The mean (B, ...), and the variance, of t's shape.
    """
    ratio, _ = transition(process, t, s)
    fresh = -jnp.expm1(logsnr(process, t) - logsnr(process, s))  # var_ts / sigma_t^2
    keep = ratio * (process.sigma(s) / process.sigma(t)) ** 2
    mean = expand(keep, x_t) * x_t + expand(process.alpha(s) * fresh, x_t) * x0
    return mean, process.sigma(s) ** 2 * fresh


def learned_log_variance(process: Process, nu: Array, t: Array, s: Array) -> Array:
    """Returns the log of the learned variance of p(x_s | x_t) (Nichol & Dhariwal 2021, eq. 15).

    It lies (nu + 1) / 2 of the way from log beta-tilde to log beta, with beta = var q(x_t | x_s)
    and beta-tilde = var q(x_s | x_t, x0).

    Args:
      process: the process of x_t.
      nu: the network's output, (B, ...); -1 is beta-tilde and 1 is beta. It is not clipped to [-1,
        1].
      t: the later time, a scalar or (B,).
      s: the earlier time, below t, of t's shape.

    Returns:
      The log-variance, of nu's shape.
    """
    _, beta = transition(process, t, s)
    beta_tilde = process.sigma(s) ** 2 * beta / process.sigma(t) ** 2
    low, high = expand(jnp.log(beta_tilde), nu), expand(jnp.log(beta), nu)
    return low + 0.5 * (nu + 1) * (high - low)


def prior_scale(process: Process) -> Array:
    """Returns sigma(t_max), the standard deviation of the prior N(0, sigma(t_max)^2 I).

    Args:
      process: its t_max is the noise end.

    Returns:
      The standard deviation, a scalar.
    """
    return process.sigma(jnp.asarray(process.t_max))


def prior(process: Process, eps: Array) -> Array:
    """Returns a draw from the prior: x_T = sigma(t_max) eps.

    Args:
      process: its t_max is the time of the result.
      eps: unit Gaussian noise, (B, ...).

    Returns:
      x_T, of eps's shape.
    """
    return prior_scale(process) * eps


def prior_logp(process: Process, x: Array) -> Array:
    """Returns the log-density of the prior, log N(x; 0, sigma(t_max)^2 I).

    Args:
      process: its t_max is the time of x.
      x: points, (B, ...).

    Returns:
      The log-densities in nats, (B,), summed over all other axes.
    """
    scale = prior_scale(process)
    return -sum_per_example(0.5 * (x / scale) ** 2 + jnp.log(scale) + 0.5 * math.log(2 * math.pi))


def time_of_logsnr(process: Process, lam: Array) -> Array:
    """Returns the time t in [t_min, t_max] at which the log-SNR is lam.

    Bisection to the last bit works for any strictly decreasing log-SNR. One Newton step from the
    (constant) bisection point then changes no value by more than rounding, but carries the exact
    derivative dt/dlam = 1 / lam'(t).

    Args:
      process: the process whose clock is inverted.
      lam: log-SNR, 2 log(alpha / sigma), of any shape; values beyond the ends of the process give
        t_min or t_max.

    Returns:
      The times, of lam's shape.
    """
    lam = jnp.asarray(lam)
    fixed = jax.lax.stop_gradient(lam)

    def halve(_, bracket):
        lo, hi = bracket
        mid = 0.5 * (lo + hi)
        too_clean = logsnr(process, mid) > fixed  # the time lies to its right
        return jnp.where(too_clean, mid, lo), jnp.where(too_clean, hi, mid)

    lo, hi = jnp.full_like(fixed, process.t_min), jnp.full_like(fixed, process.t_max)
    lo, hi = jax.lax.fori_loop(0, 60, halve, (lo, hi))
    t = jax.lax.stop_gradient(0.5 * (lo + hi))
    slope = derivative(lambda u: logsnr(process, u), t)
    t = t + (lam - fixed) / slope
    return jnp.clip(t, process.t_min, process.t_max)


@dataclass(frozen=True)
class Ending:
    """A process whose data end is moved to a noisier time.

    Attributes:
      base: the process, whose alpha and sigma stay.
      t_min: the time of the data end.
    """

    base: Process
    t_min: float

    @property
    def t_max(self) -> float:
        """The time of the noise end, that of the base."""
        return self.base.t_max

    def alpha(self, t: Array) -> Array:
        """The factor of x0 in x_t, that of the base.

        Args:
          t: times in [t_min, t_max], a scalar or (B,).
        """
        return self.base.alpha(t)

    def sigma(self, t: Array) -> Array:
        """The factor of eps in x_t, that of the base.

        Args:
          t: times in [t_min, t_max], a scalar or (B,).
        """
        return self.base.sigma(t)


def ending_at(process: Process, lam: float) -> Process:
    """Moves the data end of a process to the time at which its log-SNR is lam.

    The density at the data end is that of data with the noise of this log-SNR. Models of different
    processes can be compared only where it is the same for all.

    Args:
      process: the process.
      lam: the log-SNR, 2 log(alpha / sigma), of the data end.

    Raises:
      UserError: for a log-SNR that the process does not reach.
    """
    ends = np.asarray(logsnr(process, jnp.asarray([process.t_max, process.t_min])))
    if not ends[0] < lam <= ends[1] + 1e-4:
        raise UserError(
            f"end_logsnr={lam:g}: the log-SNR of this process ends at {ends[1]:.2f}; take a number "
            f"above {ends[0]:.2f} and at most {ends[1]:.2f}"
        )
    return Ending(process, float(time_of_logsnr(process, jnp.float32(lam))))
