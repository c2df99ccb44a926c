"""Solvers of the probability-flow ODE, dx/dt = alpha'(t) x0-hat + sigma'(t) eps-hat (Song et al.
2021, eq. 13).

In the frame y = x / alpha, u = sigma / alpha it reads dy/du = eps-hat (Karras et al. 2022, sec. 4;
DDIM, eq. 14), where the straight part of the path costs no error: Euler there is ancestral.ddim(),
the midpoint rule with the middle taken on a logarithmic scale is DPM-Solver-2, Heun is EDM's
sampler.
"""

from __future__ import annotations

import jax.numpy as jnp

from diffusion_jax import integrators
from diffusion_jax.processes import gaussian
from diffusion_jax.samplers import singlestep
from diffusion_jax.samplers.base import Sampler, memoryless


def _in_time(method, nfe: int, grid: str = "logistic()") -> Sampler:
    def step(noise, x, t, s, denoise, process, cond):
        return method(lambda u, y: gaussian.velocity(process, denoise(y, u, cond), u), x, t, s)

    return memoryless(step, nfe, grid=grid)


def euler() -> Sampler:
    """Euler in t: order 1. On rectified flow this is the usual flow-matching sampler."""
    return _in_time(integrators.euler, 1)


def heun() -> Sampler:
    """Heun in t: order 2, two evaluations a step."""
    return _in_time(
        integrators.heun, 2, "runge_kutta(mean=-0.9, scale=1.2, growth=0.1, in_time=True)"
    )


def rk4() -> Sampler:
    """Classical Runge-Kutta in t: order 4, four evaluations a step."""
    return _in_time(
        integrators.rk4, 4, "runge_kutta(mean=-1.8, scale=1.8, growth=0.08, in_time=True)"
    )


def _in_ratio(method, nfe: int, grid: str) -> Sampler:
    def step(noise, x, t, s, denoise, process, cond):
        def ratio(u):
            return process.sigma(u) / process.alpha(u)

        ends = {0: t, 1: s}

        def eps(u, y):
            # the method's own inner points need the time of their ratio; its ends are known
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
    """Heun in (x / alpha, sigma / alpha): order 2, two evaluations a step (Karras et al. 2022,
    algorithm 1).
    """
    return _in_ratio(integrators.heun, 2, "runge_kutta()")


def edm_rk4() -> Sampler:
    """Classical Runge-Kutta in (x / alpha, sigma / alpha): order 4, four evaluations a step."""
    return _in_ratio(integrators.rk4, 4, "runge_kutta(mean=0.0, scale=2.2, growth=0.005)")


def midpoint() -> Sampler:
    """DPM-Solver-2 (Lu et al. 2022a, algorithm 1; k-diffusion's dpm_2): Euler with the slope
    half-way in log(sigma / alpha). Order 2.
    """
    return singlestep.dpm_2s()


# The members of the family, which a config may name.
SAMPLERS = (euler, heun, rk4, edm_heun, edm_rk4, midpoint)
