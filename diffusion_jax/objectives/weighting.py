"""Weightings: w(process, t) multiplies the mean squared error of eps.

All weightings have this one unit, so that they can be compared. Errors in other spaces are
multiples of the error of eps, because alpha dx0 + sigma deps = 0 for every prediction of the same
x_t:

    |dx0|^2 = |deps|^2 / SNR
    |dv|^2 = |deps|^2 (alpha^2 + sigma^2)^2 / alpha^2
    |dvelocity|^2 = |deps|^2 (sigma lam' / 2)^2

Kingma & Gao 2023 (Understanding diffusion objectives as the ELBO with simple data augmentation),
table 1, compares them. A new weighting is a function that returns such a function.
"""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp

from diffusion_jax.core.errors import need_ranges
from diffusion_jax.core.types import Array, Process
from diffusion_jax.processes.gaussian import derivative, logsnr


class Weighting(Protocol):
    """The weight of the mean squared error of eps at times t."""

    def __call__(self, process: Process, t: Array) -> Array:
        """Computes the weights of times.

        Args:
          process: the process of the noised data.
          t: times in [t_min, t_max], a scalar or (B,).

        Returns:
          The weights, of t's shape, at least 0.
        """


def unit() -> Weighting:
    """The error of eps itself, L_simple (Ho et al. 2020, eq. 14).

    It is also the score loss with lambda(t) = sigma^2, and the error of x0 weighted by SNR.
    """
    return lambda process, t: jnp.ones_like(t)


def x0() -> Weighting:
    """The error of x0: 1 / SNR on eps."""
    return lambda process, t: jnp.exp(-logsnr(process, t))


def v() -> Weighting:
    """The error of v = alpha eps - sigma x0 (Salimans & Ho 2022), SNR + 1 on x0."""
    return lambda process, t: (
        (process.alpha(t) ** 2 + process.sigma(t) ** 2) ** 2 / process.alpha(t) ** 2
    )


def velocity(floor: float = 0.0) -> Weighting:
    """The error of the path's velocity, as in flow matching (Lipman et al. 2023, eq. 14).

    Of a rectified flow the velocity is (x_t - x0) / t. For networks that predict x0, Li & He (2025,
    appendix A) divide by max(t, floor), which limits the weight of little noise.

    Args:
      floor: the time below which the weight is that of the error times (t / floor)^2.

    Returns:
      The weighting.

    Raises:
      UserError: for an argument out of its range.
    """
    need_ranges("weighting.velocity", floor=(floor, 0, 1))

    def weight(process: Process, t: Array) -> Array:
        found = (0.5 * process.sigma(t) * derivative(lambda u: logsnr(process, u), t)) ** 2
        return found * jnp.minimum(t / floor, 1) ** 2 if floor else found

    return weight


def snr() -> Weighting:
    """SNR on eps, SNR^2 on x0: a mild emphasis on low noise."""
    return lambda process, t: jnp.exp(logsnr(process, t))


def min_snr(gamma: float = 5.0) -> Weighting:
    """Min-SNR: min(SNR, gamma) on x0 (Hang et al. 2023, eq. 8), min(SNR, gamma) / SNR on eps.

    Args:
      gamma: the SNR above which the weight on x0 is constant.

    Raises:
      UserError: for an argument out of its range.
    """
    need_ranges("weighting.min_snr", gamma=(gamma, 1e-6, 1e6))
    return lambda process, t: jnp.minimum(1.0, gamma * jnp.exp(-logsnr(process, t)))


def p2(gamma: float = 1.0, k: float = 1.0) -> Weighting:
    """P2: 1 / (k + SNR)^gamma on eps (Choi et al. 2022, eq. 8).

    Args:
      gamma: the exponent; 0 is `unit`.
      k: the SNR at which the weight begins to fall.

    Raises:
      UserError: for an argument out of its range.
    """
    need_ranges("weighting.p2", gamma=(gamma, 0, 100), k=(k, 1e-6, 1e6))
    return lambda process, t: (k + jnp.exp(logsnr(process, t))) ** -gamma


def sigmoid(bias: float = 2.0) -> Weighting:
    """Sigmoid weighting of the ELBO of each noise level (Kingma & Gao 2023, eq. 2).

        -lam'(t) sigmoid(bias - lam) on eps

    The weight w(lam) = sigmoid(bias - lam) is that of Hoogeboom et al. (2024). With uniform t the
    loss is then the integral of w(lam) |eps - eps-hat|^2 over the log-SNR under every
    process, up to the factor 1/2 of the ELBO.

    Args:
      bias: the log-SNR at which the weight of a noise level is 1/2.

    Raises:
      UserError: for an argument out of its range.
    """
    need_ranges("weighting.sigmoid", bias=(bias, -50, 50))
    return lambda process, t: likelihood()(process, t) * jax.nn.sigmoid(bias - logsnr(process, t))


def likelihood() -> Weighting:
    """Likelihood weighting: g^2 / sigma^2 = -lam'(t) on eps (Song et al. 2021b, eq. 7).

    It is twice the rate of the continuous-time ELBO.
    """
    return lambda process, t: -derivative(lambda u: logsnr(process, u), t)


def edm(sigma_data: float = 0.5) -> Weighting:
    """EDM's weighting: (sigma^2 + sd^2) / (sigma sd)^2 on x0 (Karras et al. 2022, table 1).

    That is 1 + 1 / (SNR sd^2) on eps, and the plain error of F of parameterization.edm.

    Args:
      sigma_data: standard deviation sd of the data.

    Raises:
      UserError: for an argument out of its range.
    """
    need_ranges("weighting.edm", sigma_data=(sigma_data, 1e-6, 1e4))
    return lambda process, t: 1 + jnp.exp(-logsnr(process, t)) / sigma_data**2


# The members of the family, which a config may name.
WEIGHTINGS = (unit, x0, v, velocity, snr, min_snr, p2, sigmoid, likelihood, edm)
