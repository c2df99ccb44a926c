"""Solvers of the probability-flow ODE, dx/dt = alpha'(t) x0-hat + sigma'(t) eps-hat.

(Song et al. 2021, eq. 13.) In the frame y = x / alpha, u = sigma / alpha the ODE reads dy/du =
eps-hat (Karras et al. 2022, sec. 4; DDIM, eq. 14), where the straight part of the path costs no
error. Euler's method there is ancestral.ddim(), the midpoint rule with the middle taken on a
logarithmic scale is DPM-Solver-2, and Heun's method is EDM's sampler.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from diffusion_jax.core import integrators
from diffusion_jax.processes import gaussian
from diffusion_jax.samplers import singlestep
from diffusion_jax.samplers.base import Sampler, memoryless


def _in_time(method: Callable, nfe: int, grid: str = "logistic()") -> Sampler:
    """Returns the integrator `method` applied to dx/dt."""

    def step(noise, x, t, s, denoise, process, cond):
        return method(lambda u, y: gaussian.velocity(process, denoise(y, u, cond), u), x, t, s)

    return memoryless(step, nfe, grid=grid)


def euler() -> Sampler:
    """Euler's method in t: order 1. On rectified flow it is the usual sampler of flow matching."""
    return _in_time(integrators.euler, 1)


def heun() -> Sampler:
    """Heun's method in t: order 2, two evaluations per step."""
    return _in_time(
        integrators.heun, 2, "runge_kutta(mean=-0.9, scale=1.2, growth=0.1, in_time=True)"
    )


def rk4() -> Sampler:
    """The classical Runge-Kutta method in t: order 4, four evaluations per step."""
    return _in_time(
        integrators.rk4, 4, "runge_kutta(mean=-1.8, scale=1.8, growth=0.08, in_time=True)"
    )


def _in_ratio(method: Callable, nfe: int, grid: str) -> Sampler:
    """Returns the integrator `method` applied to dy/du, with the step scaled to [0, 1]."""

    def step(noise, x, t, s, denoise, process, cond):
        def ratio(u):
            return process.sigma(u) / process.alpha(u)

        ends = {0: t, 1: s}

        def eps(u, y):
            # the inner points of the method need the time of their ratio; the ends are known
            time = (
                ends[u]
                if u in ends
                else gaussian.time_of_logsnr(
                    process, -2 * jnp.log(ratio(t) + u * (ratio(s) - ratio(t)))
                )
            )
            return (ratio(s) - ratio(t)) * denoise(process.alpha(time) * y, time, cond).eps

        return process.alpha(s) * method(eps, x / process.alpha(t), 0, 1)

    return memoryless(step, nfe, grid=grid)


def edm_heun() -> Sampler:
    """Heun's method in (x / alpha, sigma / alpha) (Karras et al. 2022, algorithm 1): order 2.

    It takes two evaluations per step.
    """
    return _in_ratio(integrators.heun, 2, "runge_kutta()")


def edm_rk4() -> Sampler:
    """The classical Runge-Kutta method in (x / alpha, sigma / alpha): order 4, four evaluations."""
    return _in_ratio(integrators.rk4, 4, "runge_kutta(mean=0.0, scale=2.2, growth=0.005)")


def midpoint() -> Sampler:
    """DPM-Solver-2 (Lu et al. 2022a, algorithm 1; k-diffusion's dpm_2): order 2.

    It is Euler's method with the slope half-way in log(sigma / alpha).
    """
    return singlestep.dpm_2s()


# The members of the family, which a config may name.
SAMPLERS = (euler, heun, rk4, edm_heun, edm_rk4, midpoint)
