"""Solvers of the probability-flow ODE, dx/dt = alpha'(t) x0-hat + sigma'(t) eps-hat (Song et al. 2021, eq. 13).

In the frame y = x / alpha, u = sigma / alpha it reads dy/du = eps-hat (Karras et al. 2022, sec. 4; DDIM, eq. 14), where the straight
part of the path costs no error: Euler there is ancestral.ddim(), Heun there is EDM's sampler.
"""

from __future__ import annotations

from diffusion_jax import integrators
from diffusion_jax.processes import gaussian
from diffusion_jax.samplers.base import Sampler, memoryless


def _in_time(method, nfe: int) -> Sampler:
    def step(noise, x, t, s, denoise, process):
        return method(lambda u, y: gaussian.velocity(process, denoise(y, u), u), x, t, s)

    return memoryless(step, nfe)


def euler() -> Sampler:
    """Euler in t: order 1. On rectified flow this is the usual flow-matching sampler."""
    return _in_time(integrators.euler, 1)


def heun() -> Sampler:
    """Heun in t: order 2, two evaluations a step."""
    return _in_time(integrators.heun, 2)


def rk4() -> Sampler:
    """Classical Runge-Kutta in t: order 4, four evaluations a step."""
    return _in_time(integrators.rk4, 4)


def edm_heun() -> Sampler:
    """Heun in (x / alpha, sigma / alpha): order 2, two evaluations a step (Karras et al. 2022, algorithm 1)."""

    def step(noise, x, t, s, denoise, process):
        ratio_t, ratio_s = process.sigma(t) / process.alpha(t), process.sigma(s) / process.alpha(s)
        y, h, slope = x / process.alpha(t), ratio_s - ratio_t, denoise(x, t).eps
        ahead = denoise(process.alpha(s) * (y + h * slope), s).eps
        return process.alpha(s) * (y + 0.5 * h * (slope + ahead))

    return memoryless(step, nfe=2)
