"""Solvers of the reverse-time SDE, dx = [f x - g^2 score] dt + g dw (Song et al. 2021, eq. 6), and EDM's stochastic sampler."""

from __future__ import annotations

import math

import jax.numpy as jnp

from diffusion_jax.processes import gaussian
from diffusion_jax.samplers import ode
from diffusion_jax.samplers.base import Sampler, memoryless


def euler_maruyama() -> Sampler:
    """x_s = x - (t - s) [f x + g^2 eps-hat / sigma] + g sqrt(t - s) z (Song et al. 2021, app. D). Weak order 1."""

    def step(noise, x, t, s, denoise, process):
        f, g2 = gaussian.drift_diffusion(process, t)
        drift = f * x - g2 * gaussian.score(process, denoise(x, t), t)
        return x - (t - s) * drift + jnp.sqrt(g2 * (t - s)) * noise.path(t, s)

    return memoryless(step)


def edm(S_churn: float = 40.0, S_min: float = 0.05, S_max: float = 50.0, S_noise: float = 1.003) -> Sampler:
    """EDM's stochastic sampler (Karras et al. 2022, algorithm 2), in the frame (x / alpha, sigma / alpha) for any process.

    Each step first adds noise, raising sigma / alpha by the factor 1 + gamma, gamma = min(S_churn / n, sqrt(2) - 1) while sigma / alpha
    is in [S_min, S_max]; then takes a Heun step down. S_churn = 0 is ode.edm_heun. Never rises above the process's own t_max.
    """
    heun = ode.edm_heun()

    def step(noise, x, n, t, s, denoise, process):
        ratio = process.sigma(t) / process.alpha(t)
        gamma = jnp.where((S_min <= ratio) & (ratio <= S_max), jnp.minimum(S_churn / n, math.sqrt(2) - 1), 0.0)
        lam = gaussian.logsnr(process, t)
        t_hat = jnp.where(gamma > 0, gaussian.time_of_logsnr(process, lam - 2 * jnp.log1p(gamma)), t)
        # (ratio_hat / ratio)^2 - 1; a difference of squares would leave the root of its rounding as noise where churn is off
        growth = jnp.where(gamma > 0, jnp.maximum(jnp.expm1(lam - gaussian.logsnr(process, t_hat)), 0.0), 0.0)
        added = ratio * jnp.sqrt(growth) * S_noise * noise.path(t, s)
        x_hat = process.alpha(t_hat) * (x / process.alpha(t) + added)
        return heun.step(noise, x_hat, (), t_hat, s, denoise, process)[0], n

    return Sampler(lambda x, ts: 1 + jnp.sum(ts[1:] < ts[:-1]), step, nfe=2)
