"""Noise for any deterministic one-step sampler: ancestral steps, and the churn of EDM.

    spec                                       method                      in k-diffusion
    stochastic.ancestral(singlestep.dpmpp_2s())  DPM-Solver++ 2S ancestral   dpmpp_2s_ancestral
    stochastic.ancestral(ode.midpoint())         DPM2 ancestral              dpm_2_ancestral
    stochastic.ancestral(ancestral.ddim())       Euler ancestral             euler_ancestral
    stochastic.churned(ancestral.ddim())         Euler with churn            euler
    stochastic.churned(ode.edm_heun())           EDM's sampler, sde.edm      heun
    stochastic.churned(ode.midpoint())           DPM2 with churn             dpm_2

Both work in the frame (x / alpha, u = sigma / alpha), and so for every process. The noise that they
add keeps the marginals: the law of the output converges at the order of the sampler, whatever the
amount of noise.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from diffusion_jax.core.errors import UserError, need_ranges
from diffusion_jax.processes import gaussian, schedules
from diffusion_jax.samplers.base import Sampler, draws_noise, memoryless, noise_range


def ancestral(sampler: Sampler, eta: float = 1.0, S_noise: float = 1.0) -> Sampler:
    """Moves by the sampler to a lower noise level than s, then adds the noise that leads back to s.

    u_up^2 = eta^2 u_s^2 (u_t^2 - u_s^2) / u_t^2 and u_down^2 = u_s^2 - u_up^2 (Katherine Crowson's
    k-diffusion; Ho et al. 2020 at eta = 1). u_down is never below the process's own lowest level,
    so near the data there is less noise.

    Args:
      sampler: a deterministic sampler without memory, such as singlestep.dpmpp_2s().
      eta: amount of noise, between 0 and 1; 0 is the sampler itself.
      S_noise: factor of the noise's standard deviation; 1 keeps the law.

    Raises:
      UserError: for a stochastic, multistep or adaptive sampler, or an amount of noise out of its
        range.
    """
    need_ranges("stochastic.ancestral", eta=(eta, 0, 1), S_noise=(S_noise, 0, math.inf))
    _need_plain("stochastic.ancestral", sampler)
    if eta == 0:
        return sampler

    def step(noise, x, t, s, denoise, process, cond):
        lam_t, lam_s = gaussian.logsnr(process, t), gaussian.logsnr(process, s)
        kept = 1 - eta**2 + eta**2 * jnp.exp(lam_t - lam_s)  # u_down^2 / u_s^2
        down = gaussian.time_of_logsnr(process, lam_s - jnp.log(kept))
        up = jnp.sqrt(
            jnp.maximum(-jnp.expm1(lam_s - gaussian.logsnr(process, down)), 0.0)
        )  # u_up / u_s
        x = sampler.step(noise, x, (), t, down, denoise, process, cond)[0]
        return process.alpha(s) / process.alpha(down) * x + S_noise * process.sigma(
            s
        ) * up * noise.path(t, s)

    return memoryless(step, sampler.nfe, sampler.grid)


def churned(
    sampler: Sampler,
    S_churn: float = 40.0,
    S_min: float = 0.05,
    S_max: float = 50.0,
    S_noise: float = 1.003,
) -> Sampler:
    """Adds noise that leads to a higher level than t, then moves by the sampler from there to s.

    (Karras et al. 2022, algorithm 2.) u rises by the factor 1 + gamma, gamma = min(S_churn / n,
    sqrt(2) - 1) for n steps, where u is in [S_min, S_max], but never above the process's own t_max.
    The last move, to x0-hat, has no churn.

    Args:
      sampler: a deterministic sampler without memory, such as ode.midpoint().
      S_churn: amount of noise over all steps, 0 or above; 0 is the sampler itself.
      S_min: lowest level sigma / alpha at which noise is added.
      S_max: highest level sigma / alpha at which noise is added.
      S_noise: factor of the noise's standard deviation; above 1 it makes up for networks that
        remove too much.

    Raises:
      UserError: for a stochastic, multistep or adaptive sampler, or an amount of noise out of its
        range.
    """
    need_ranges(
        "stochastic.churned", S_churn=(S_churn, 0, math.inf), S_noise=(S_noise, 0, math.inf)
    )
    noise_range("stochastic.churned", S_min, S_max)
    _need_plain("stochastic.churned", sampler)
    if S_churn == 0:
        return sampler

    def step(noise, x, n, t, s, denoise, process, cond):
        ratio = process.sigma(t) / process.alpha(t)
        gamma = jnp.where(
            (S_min <= ratio) & (ratio <= S_max), jnp.minimum(S_churn / n, math.sqrt(2) - 1), 0.0
        )
        lam = gaussian.logsnr(process, t)
        t_hat = jnp.where(
            gamma > 0, gaussian.time_of_logsnr(process, lam - 2 * jnp.log1p(gamma)), t
        )
        # (ratio_hat / ratio)^2 - 1; a difference of squares would leave the root of its rounding as
        # noise where churn is off
        growth = jnp.where(
            gamma > 0, jnp.maximum(jnp.expm1(lam - gaussian.logsnr(process, t_hat)), 0.0), 0.0
        )
        added = ratio * jnp.sqrt(growth) * S_noise * noise.path(t, s)
        x_hat = process.alpha(t_hat) * (x / process.alpha(t) + added)
        return sampler.step(noise, x_hat, (), t_hat, s, denoise, process, cond)[0], n

    return Sampler(
        lambda x, ts: 1 + jnp.sum(ts[1:] < ts[:-1]), step, nfe=sampler.nfe, grid=sampler.grid
    )


def _need_plain(name: str, sampler: Sampler) -> None:
    """Raises UserError for a sampler with noise, or with a memory, which noise would falsify."""
    x, ts = jax.ShapeDtypeStruct((1, 1), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.float32)
    if jax.tree.leaves(jax.eval_shape(sampler.init, x, ts)):
        raise UserError(
            f"{name} takes a sampler without memory: singlestep.dpmpp_2s, ode.midpoint or "
            "ancestral.ddim, no multistep or adaptive one"
        )
    if draws_noise(sampler, schedules.EDM()):
        raise UserError(
            f"{name} takes a deterministic sampler: singlestep.dpmpp_2s, ode.midpoint or "
            "ancestral.ddim(eta=0)"
        )


# The members of the family, which a config may name.
SAMPLERS = (ancestral, churned)
