"""Consistency functions and average velocities that are known exactly, and the losses they have."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from diffusion_jax.core.arrays import expand
from diffusion_jax.core.types import Prediction
from diffusion_jax.processes import gaussian, schedules
from diffusion_jax.targets import laws, presets

EDM, FLOW, TRIG = schedules.EDM(sigma_max=20.0), schedules.RectifiedFlow(), schedules.TrigFlow()


NORMAL = presets.normal(2, seed=1, condition=16.0)


MIXTURE = presets.from_mixture(
    laws.mixture([0.6, 0.4], [[0.8, -0.3], [-0.5, 0.6]], [[0.3, 0.2], [0.15, 0.4]])
)


def solve(target, process, x, t, s, steps=64):
    """x at time s: the flow of a Gaussian in closed form, else rk4 on the clock log(sigma / alpha)
    of targets.reference.

    Differentiable, of one time per example, and accurate to 1e-6 here.
    """
    if target.flow:
        return target.flow(process, x, t, s)

    def norm(t):
        return jnp.hypot(process.alpha(t), process.sigma(t))

    denoise = target.denoise(
        schedules.EDM(sigma_max=1.0)
    )  # its time is the noise level u = sigma / alpha
    start, end = (-0.5 * gaussian.logsnr(process, time) for time in (t, s))

    def slope(log_u, z):
        u = jnp.exp(log_u)
        x0, eps = denoise(expand(jnp.sqrt(1 + u**2), z) * z, u)[:2]
        return expand(u / (1 + u**2) ** 1.5, z) * (eps - expand(u, z) * x0)

    def move(z, i):
        a, h = start + i / steps * (end - start), (end - start) / steps
        k1 = slope(a, z)
        k2 = slope(a + h / 2, z + expand(h / 2, z) * k1)
        k3 = slope(a + h / 2, z + expand(h / 2, z) * k2)
        k4 = slope(a + h, z + expand(h, z) * k3)
        return z + expand(h / 6, z) * (k1 + 2 * k2 + 2 * k3 + k4), None

    return expand(norm(s), x) * jax.lax.scan(move, x / expand(norm(t), x), jnp.arange(steps))[0]


def exact(target, process):
    """A Denoise: the consistency function, x0-hat = x at t_min over alpha; given cond['to'], the
    average velocity's prediction.

    That is the solution of alpha_t x0 + sigma_t eps = x_t, alpha_s x0 + sigma_s eps = x_s; for s =
    t it is the denoiser.
    """
    denoiser = target.denoise(process)

    def denoise(x, t, cond=None):
        t = jnp.broadcast_to(t, x.shape[:1]).astype(x.dtype)
        s = (cond or {}).get("to", jnp.full_like(t, process.t_min))
        x_s = solve(target, process, x, t, s)
        if not cond or "to" not in cond:
            return gaussian.from_x0(process, x, x_s / expand(process.alpha(s), x), t)
        (a_t, b_t), (a_s, b_s) = (
            (process.alpha(u)[:, None], process.sigma(u)[:, None]) for u in (t, s)
        )
        det = a_s * b_t - a_t * b_s
        safe = jnp.where(jnp.abs(det) < 1e-9, 1.0, det)
        jump, still = (
            Prediction((b_t * x_s - b_s * x) / safe, (a_s * x - a_t * x_s) / safe),
            denoiser(x, t),
        )
        return Prediction(
            *(jnp.where(jnp.abs(det) < 1e-9, b, a) for a, b in zip(jump[:2], still[:2]))
        )

    return denoise


def network(params, x, c_noise, cond):
    """Two hidden layers of 64, with sines of both times as inputs."""
    to = (cond or {}).get("to", jnp.zeros(len(x)))
    waves = [
        f(k * time)[:, None]
        for time in (c_noise, to)
        for k in (1, 2, 4)
        for f in (jnp.sin, jnp.cos)
    ]
    h = jnp.concatenate([x, c_noise[:, None], to[:, None], *waves], -1)
    for weight, bias in params[:-1]:
        h = jax.nn.silu(h @ weight + bias)
    return h @ params[-1][0] + params[-1][1]
