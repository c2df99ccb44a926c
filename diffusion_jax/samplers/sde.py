"""Solvers of the reverse-time SDE, dx = [f x - g^2 score] dt + g dw (Song et al. 2021, eq. 6), and of its relatives with other noise.

Any amount of noise has the same marginals, if the score keeps it in check: eta and tau below scale it, 0 being the probability-flow ODE. The
exponential ones solve the linear part and the noise exactly (exponential.py).
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.errors import UserError, unknown
from diffusion_jax.processes import gaussian
from diffusion_jax.samplers import exponential, multistep, ode
from diffusion_jax.samplers.base import Sampler, memoryless
from diffusion_jax.samplers.exponential import log_ratio


def euler_maruyama() -> Sampler:
    """x_s = x - (t - s) [f x + g^2 eps-hat / sigma] + g sqrt(t - s) z (Song et al. 2021, app. D). Weak order 1."""

    def step(noise, x, t, s, denoise, process):
        f, g2 = gaussian.drift_diffusion(process, t)
        drift = f * x - g2 * gaussian.score(process, denoise(x, t), t)
        return x - (t - s) * drift + jnp.sqrt(g2 * (t - s)) * noise.path(t, s)

    return memoryless(step)


def reverse_diffusion() -> Sampler:
    """x_s = (2 - r) x + v score + sqrt(v) z, with x_t ~ N(r x_s, v): the forward chain's own move, reversed (Song et al. 2021, app. E, eq. 46).

    r and v are those between the two times (alpha_t / alpha_s; no N beta that could reach 1). Weak order 1.
    """

    def step(noise, x, t, s, denoise, process):
        ratio, variance = gaussian.transition(process, t, s)
        score = gaussian.score(process, denoise(x, t), t)
        return (2 - ratio) * x + variance * score + jnp.sqrt(variance) * noise.path(t, s)

    return memoryless(step)


DIFFUSIONS = {  # w(t) of `interpolant`
    "sde": lambda process, t: gaussian.drift_diffusion(process, t)[1],
    "constant": lambda process, t: jnp.ones_like(t),
    "sigma": lambda process, t: process.sigma(t),
    "sin2": lambda process, t: jnp.sin(math.pi * t) ** 2,
    "decreasing": lambda process, t: 0.25 * (jnp.cos(math.pi * t) + 1) ** 2,
    "increasing_decreasing": lambda process, t: jnp.sin(math.pi * t) ** 2 * process.sigma(t),
}


def interpolant(diffusion: str = "sde", scale: float = 1.0) -> Sampler:
    """Euler-Maruyama of dx = [velocity - w score / 2] dt + sqrt(w) dw, any w >= 0 (stochastic interpolants: Albergo et al. 2023, eq. 2.36; Ma et al. 2024).

    w = scale times 'sde' (g^2, with scale 1 the reverse SDE), 'constant', 'sigma', 'sin2', 'decreasing' or 'increasing_decreasing' (SiT's table);
    scale 0 is ode.euler. Weak order 1. Steps must be short where w / sigma^2 is large: 'constant' asks for many near the data.
    """
    if diffusion not in DIFFUSIONS:
        raise unknown("diffusion of sde.interpolant", diffusion, DIFFUSIONS)
    if scale < 0:
        raise UserError(f"sde.interpolant(scale={scale}): a diffusion coefficient is not negative")

    def step(noise, x, t, s, denoise, process):
        prediction, w = denoise(x, t), scale * DIFFUSIONS[diffusion](process, t)
        drift = gaussian.velocity(process, prediction, t) - 0.5 * w * gaussian.score(process, prediction, t)
        x = x - (t - s) * drift
        return x + jnp.sqrt(w * (t - s)) * noise.path(t, s) if scale else x

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


# ---- exponential integrators -------------------------------------------------------------------------------------------------


def _dpmpp(order: int, eta: float, second: str = "midpoint", curvature: float = 1.0) -> Sampler:
    """The multistep exponential solver of the reverse SDE with noise eta, in data prediction."""

    def weights(process, p, times, s):
        return exponential.weights(process, times, times[0], s, eta=_noise(eta, "eta"), second=second, curvature=curvature)

    return multistep.solver(order, lambda prediction: prediction.x0, functools.partial(exponential.carry, eta=eta), weights,
                            functools.partial(exponential.noise_level, eta=eta) if eta else None)  # fmt: skip


def _noise(value: float, name: str) -> float:
    if value < 0:
        raise UserError(f"{name}={value}: the amount of noise is not negative")
    return value


def dpmpp_1(eta: float = 1.0) -> Sampler:
    """SDE-DPM-Solver++ 1 (Lu et al. 2022b, sec. 5; Xue et al. 2023): x0-hat held over the step, linear part and noise exact.

    x_s = (sigma_s / sigma_t) e^(-eta h) x - alpha_s expm1(-(1 + eta) h) x0 + sigma_s sqrt(1 - e^(-2 eta h)) z; eta = 1 is ancestral.ddpm('small').
    """
    return _dpmpp(1, eta)


def dpmpp_2m(eta: float = 1.0, second: str = "midpoint") -> Sampler:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022b, sec. 5; k-diffusion's dpmpp_2m_sde): the line through the last two x0-hat.

    second: 'midpoint', or 'exact' (k-diffusion's 'heun'). eta = 0 is multistep.dpmpp_2m.
    """
    if second not in ("midpoint", "exact"):
        raise unknown("second of sde.dpmpp_2m", second, ("midpoint", "exact"))
    return _dpmpp(2, eta, second)


def dpmpp_3m(eta: float = 1.0, curvature: float = 1.0) -> Sampler:
    """SDE-DPM-Solver++(3M) (k-diffusion's dpmpp_3m_sde): the parabola through the last three x0-hat.

    curvature multiplies its last term; k-diffusion has 0.5. eta = 0 is multistep.dpmpp_3m.
    """
    return _dpmpp(3, eta, "exact", curvature)


def dpmpp_2s(eta: float = 1.0, r: float = 0.5) -> Sampler:
    """DPM-Solver++(2S) for the SDE (k-diffusion's dpmpp_sde): a second look at the ratio r of the step, reached with noise of its own.

    Both moves go down to sigma_down and add sigma_up, as ancestral.euler_ancestral. The noise of the whole step contains that of its first
    part, as on one path of the SDE: independent draws would cost the weak order. Two evaluations a step.
    """
    if not 0 < r < 1:
        raise UserError(f"sde.dpmpp_2s(r={r}): the second look is at a ratio of the step between 0 and 1")

    def step(noise, x, t, s, denoise, process):
        low, high = log_ratio(process, t), log_ratio(process, s)
        middle = gaussian.time_of_logsnr(process, 2 * (low + r * (high - low)))

        def move(x0, end, z):
            """From x at t to `end`, x0 held: noise of variance up^2 sigma_end^2, the rest of the old noise scaled to fit."""
            up = -(eta**2) * jnp.expm1(2 * (low - log_ratio(process, end)))
            down = process.sigma(end) * jnp.sqrt(1 - up)
            kept = down / process.sigma(t)
            return kept * x + (process.alpha(end) - kept * process.alpha(t)) * x0 + process.sigma(end) * jnp.sqrt(up) * z

        first, rest = noise.path(t, middle), noise.path(middle, s, part=1)
        # the share of [t, middle] in the noise of [t, s]: the driving Brownian motion runs on the clock (alpha / sigma)^2
        share = jnp.exp(2 * (low - high) * (1 - r)) * jnp.expm1(2 * (low - high) * r) / jnp.expm1(2 * (low - high))
        whole = jnp.sqrt(share) * first + jnp.sqrt(1 - share) * rest
        x0 = denoise(x, t).x0
        ahead = denoise(move(x0, middle, first), middle).x0
        return move(x0 + (ahead - x0) / (2 * r), s, whole)

    return memoryless(step, nfe=2)


class _Corrected(NamedTuple):
    """SA-Solver's memory: the predictions, x where the last move began, and the noise of that move."""

    history: multistep.History
    x: jax.Array
    z: jax.Array


def sa(predictor: int = 3, corrector: int = 3, tau: float = 1.0) -> Sampler:
    """SA-Solver (Xue et al. 2023, algorithm 1): stochastic Adams in data prediction, noise tau at every time; eta = tau^2.

    The evaluation that starts a step first corrects the move that led to it, with the same noise; so a step costs one. predictor, corrector:
    how many predictions each takes, 1 to 4; corrector 0: none. tau = 0 is deterministic.
    """
    if not (1 <= predictor <= 4 and 0 <= corrector <= 4):
        raise UserError(f"sde.sa(predictor={predictor}, corrector={corrector}): the predictor takes 1 to 4 predictions, the corrector 0 to 4")
    eta = _noise(tau, "tau") ** 2

    def move(process, x, history, z, order, t, s):
        weights = [exponential.weights(process, history.times[:p], t, s, eta=eta) for p in range(1, order + 1)]
        x = exponential.carry(process, t, s, eta=eta) * x + multistep.combine(weights, history)
        return x + exponential.noise_level(process, t, s, eta) * z if eta else x

    def step(noise, x, past, t, s, denoise, process):
        history = multistep.remember(past.history, denoise(x, t).x0, t)
        if corrector:
            again = move(process, past.x, history, past.z, corrector, past.history.times[0], t)
            x = jnp.where(past.history.count > 0, again, x)
        z = noise.path(t, s) if eta else past.z
        return move(process, x, history, z, predictor, t, s), _Corrected(history, x, z)

    def init(x, ts):
        return _Corrected(multistep.empty(max(predictor, corrector), x, ts), x, jnp.zeros_like(x))

    return Sampler(init, step)
