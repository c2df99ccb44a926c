"""Solvers of the reverse-time SDE, dx = [f x - g^2 score] dt + g dw, and of SDEs with other noise.

(Song et al. 2021, eq. 6.) Every amount of noise has the same marginals if the drift along the score
balances it. eta and tau below scale the noise; 0 is the probability-flow ODE. The exponential
integrators solve the linear part and the noise exactly (exponential.py).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from diffusion_jax.core.errors import UserError, need_range, need_ranges, unknown
from diffusion_jax.core.types import Array, Process
from diffusion_jax.processes import gaussian
from diffusion_jax.samplers import exponential, history, ode, stochastic
from diffusion_jax.samplers.base import Sampler, memoryless, noise_range
from diffusion_jax.samplers.exponential import log_ratio


def euler_maruyama() -> Sampler:
    """Euler-Maruyama (Song et al. 2021, app. D): weak order 1.

    x_s = x - (t - s) [f x + g^2 eps-hat / sigma] + g sqrt(t - s) z.
    """

    def step(noise, x, t, s, denoise, process, cond):
        f, g2 = gaussian.drift_diffusion(process, t)
        drift = f * x - g2 * gaussian.score(process, denoise(x, t, cond), t)
        return x - (t - s) * drift + jnp.sqrt(g2 * (t - s)) * noise.path(t, s)

    return memoryless(step)


def reverse_diffusion() -> Sampler:
    """Reverse diffusion (Song et al. 2021, app. E, eq. 46): the forward chain's move, reversed.

    x_s = (2 - r) x + v score + sqrt(v) z, with x_t ~ N(r x_s, v). r and v are those between the two
    times, r = alpha_t / alpha_s, so no N beta can reach 1. Weak order 1.
    """

    def step(noise, x, t, s, denoise, process, cond):
        ratio, variance = gaussian.transition(process, t, s)
        score = gaussian.score(process, denoise(x, t, cond), t)
        return (2 - ratio) * x + variance * score + jnp.sqrt(variance) * noise.path(t, s)

    return memoryless(step)


DIFFUSIONS = {  # D(t) of `interpolant`; t = 0 is the data, where SiT's clock has t = 1
    "sde": lambda process, t: 0.5 * gaussian.drift_diffusion(process, t)[1],
    "constant": lambda process, t: jnp.ones_like(t),
    "sigma": lambda process, t: process.sigma(t),
    "linear": lambda process, t: t,
    "decreasing": lambda process, t: 0.25 * (1 - jnp.cos(math.pi * t)) ** 2,
    "increasing_decreasing": lambda process, t: jnp.sin(math.pi * t) ** 2,
    "sin2": lambda process, t: jnp.sin(math.pi * t) ** 2,
}


def interpolant(diffusion: str = "sde", scale: float = 1.0) -> Sampler:
    """Euler-Maruyama of dx = [velocity - D score] dt + sqrt(2 D) dw, for any D >= 0.

    (Albergo et al. 2023, eq. 2.36; Ma et al. 2024, SiT.) Every D gives the marginals of the
    process. Weak order 1. The steps must be short where D / sigma^2 is large: 'constant' needs many
    steps near the data.

    Args:
      diffusion: the shape of D(t), by the names of SiT's code. 'sde' is g^2 / 2 (there 'SBDM'),
        which at scale 1 is the reverse SDE; 'constant' is 1; 'sigma' is sigma(t); 'linear' is t;
        'decreasing' is (1 - cos(pi t))^2 / 4, from 1 at the noise (t = 1) to 0 at the data (t = 0);
        'increasing_decreasing', also named 'sin2', is sin(pi t)^2.
      scale: the factor of D, at least 0, as SiT's diffusion_norm (which that code puts inside the
        square of 'decreasing'); 0 is ode.euler.

    Raises:
      UserError: for an unknown shape, or a scale that is negative or not finite.
    """
    if diffusion not in DIFFUSIONS:
        raise unknown("diffusion of sde.interpolant", diffusion, DIFFUSIONS)
    need_range("sde.interpolant: scale", scale, 0)

    def step(noise, x, t, s, denoise, process, cond):
        prediction, D = denoise(x, t, cond), scale * DIFFUSIONS[diffusion](process, t)
        drift = gaussian.velocity(process, prediction, t) - D * gaussian.score(
            process, prediction, t
        )
        x = x - (t - s) * drift
        return x + jnp.sqrt(2 * D * (t - s)) * noise.path(t, s) if scale else x

    return memoryless(step)


def edm(
    S_churn: float = 40.0, S_min: float = 0.05, S_max: float = 50.0, S_noise: float = 1.003
) -> Sampler:
    """EDM's stochastic sampler (Karras et al. 2022, algorithm 2), for any process.

    It is stochastic.churned(ode.edm_heun()): each step first adds noise, which raises sigma / alpha
    by the factor 1 + gamma, gamma = min(S_churn / n, sqrt(2) - 1) while sigma / alpha is in [S_min,
    S_max], and then takes a Heun step down. It never rises above the process's own t_max.

    Args:
      S_churn: amount of noise over all n steps, 0 or above; 0 is ode.edm_heun.
      S_min: lowest level sigma / alpha at which noise is added.
      S_max: highest level sigma / alpha at which noise is added.
      S_noise: factor of the noise's standard deviation.

    Raises:
      UserError: for an argument out of its range.
    """
    need_ranges("sde.edm", S_churn=(S_churn, 0, math.inf), S_noise=(S_noise, 0, math.inf))
    return stochastic.churned(ode.edm_heun(), S_churn, S_min, S_max, S_noise)


# ---- exponential integrators
def _dpmpp(
    name: str,
    order: int,
    eta: float,
    second: str = "midpoint",
    curvature: float = 1.0,
    lower_order_final: bool = True,
    grid: str = "logistic()",
) -> Sampler:
    """Returns the multistep exponential solver of the reverse SDE with noise eta."""
    need_range(f"sde.{name}: eta", eta, 0)
    if second not in ("midpoint", "exact"):
        raise unknown(f"second of sde.{name}", second, ("midpoint", "exact"))

    def weights(process, p, times, s):
        return exponential.weights(
            process, times, times[0], s, eta=eta, second=second, curvature=curvature
        )

    return history.solver(
        order,
        lambda prediction: prediction.x0,
        functools.partial(exponential.carry, eta=eta),
        weights,
        functools.partial(exponential.noise_level, eta=eta) if eta else None,
        lower_order_final=lower_order_final,
        grid=grid,
    )


def dpmpp_1(eta: float = 1.0) -> Sampler:
    """SDE-DPM-Solver++ 1 (Lu et al. 2022b, sec. 5; Xue et al. 2023): x0-hat held over the step.

    x_s = (sigma_s / sigma_t) e^(-eta h) x - alpha_s expm1(-(1 + eta) h) x0 + sigma_s sqrt(1 - e^(-2
    eta h)) z; the linear part and the noise are exact.

    Args:
      eta: amount of noise, at least 0; 1 is ancestral.ddpm('small'), 0 is ancestral.ddim().

    Raises:
      UserError: if eta is negative or not finite.
    """
    return _dpmpp("dpmpp_1", 1, eta)


def dpmpp_2m(eta: float = 1.0, second: str = "midpoint", lower_order_final: bool = True) -> Sampler:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022b, sec. 5; k-diffusion's dpmpp_2m_sde).

    It integrates the line through the last two x0-hat.

    Args:
      eta: amount of noise, at least 0; 1 is the reverse SDE, 0 is multistep.dpmpp_2m.
      second: weight of the difference, 'midpoint' or 'exact' (k-diffusion's 'heun').
      lower_order_final: whether the order falls at the end of the grid (history.py).

    Raises:
      UserError: for an argument out of its range.
    """
    return _dpmpp("dpmpp_2m", 2, eta, second, lower_order_final=lower_order_final)


def dpmpp_3m(
    eta: float = 1.0,
    curvature: float = 1.0,
    second: str = "midpoint",
    lower_order_final: bool = True,
) -> Sampler:
    """SDE-DPM-Solver++(3M) (k-diffusion's dpmpp_3m_sde).

    It integrates the parabola through the last three x0-hat. k-diffusion has curvature=0.5 and
    second='exact'.

    Args:
      eta: amount of noise, at least 0; 1 is the reverse SDE, 0 is multistep.dpmpp_3m.
      curvature: factor of the quadratic term, in [0, 10].
      second: weight of the difference in the second step, which has two values only; as in
        `dpmpp_2m`.
      lower_order_final: whether the order falls at the end of the grid (history.py).

    Raises:
      UserError: for an argument out of its range.
    """
    need_ranges("sde.dpmpp_3m", curvature=(curvature, 0, 10))
    return _dpmpp("dpmpp_3m", 3, eta, second, curvature, lower_order_final, history.THIRD_ORDER)


def dpmpp_2s(eta: float = 1.0, r: float = 0.5) -> Sampler:
    """DPM-Solver++(2S) for the SDE (k-diffusion's dpmpp_sde): two evaluations per step.

    The second evaluation is at the ratio r of the step and is reached with noise of its own. Both
    moves go down to sigma_down and add sigma_up, as in ancestral.euler_ancestral, whose limit for
    eta above 1 is used here too. The noise of the whole step contains that of its first part, as on
    one path of the SDE: independent draws would cost the weak order.

    Args:
      eta: amount of noise, at least 0; 1 is the reverse SDE, 0 is singlestep.dpmpp_2s.
      r: ratio of the step at which the second evaluation is made, between 0 and 1.

    Raises:
      UserError: for an argument out of its range.
    """
    need_range("sde.dpmpp_2s: eta", eta, 0)
    if not 0 < r < 1:
        raise UserError(f"sde.dpmpp_2s(r={r}): r, the ratio of the step, must be between 0 and 1")

    def step(noise, x, t, s, denoise, process, cond):
        low, high = log_ratio(process, t), log_ratio(process, s)
        middle = gaussian.time_of_logsnr(process, 2 * (low + r * (high - low)))

        def move(x0, end, z):
            """Returns x at `end` with x0 held and fresh noise of variance up sigma_end^2.

            The old noise is scaled down to the rest of the variance.
            """
            up = jnp.minimum(-(eta**2) * jnp.expm1(2 * (low - log_ratio(process, end))), 1.0)
            down = process.sigma(end) * jnp.sqrt(1 - up)
            kept = down / process.sigma(t)
            return (
                kept * x
                + (process.alpha(end) - kept * process.alpha(t)) * x0
                + process.sigma(end) * jnp.sqrt(up) * z
            )

        first, rest = (noise.path(t, middle), noise.path(middle, s, part=1)) if eta else (0.0, 0.0)
        # the share of [t, middle] in the noise of [t, s]: the driving Brownian motion runs on the
        # clock (alpha / sigma)^2
        share = (
            jnp.exp(2 * (low - high) * (1 - r))
            * jnp.expm1(2 * (low - high) * r)
            / jnp.expm1(2 * (low - high))
        )
        whole = jnp.sqrt(share) * first + jnp.sqrt(1 - share) * rest
        x0 = denoise(x, t, cond).x0
        ahead = denoise(move(x0, middle, first), middle, cond).x0
        return move(x0 + (ahead - x0) / (2 * r), s, whole)

    return memoryless(step, nfe=2)


class _Corrected(NamedTuple):
    """SA-Solver's memory.

    Attributes:
      past: the predictions.
      x: x where the last move began, (B, ...).
      z: the noise of that move, (B, ...).
    """

    past: history.History
    x: Array
    z: Array


def sa(
    predictor: int = 3,
    corrector: int = 3,
    tau: float | Callable[[Array], Array] = 1.0,
    S_min: float = 0.0,
    S_max: float = math.inf,
    lower_order_final: bool = True,
) -> Sampler:
    """SA-Solver (Xue et al. 2023, algorithm 1): stochastic Adams methods in data prediction.

    The noise is eta(t) = tau(t)^2. The evaluation that starts a step first corrects the move that
    led to it, with the same noise, so a step costs one evaluation. tau is held at its value at the
    start of each step (the paper's piecewise constant tau), so that the linear part and the noise
    are exact.

    Args:
      predictor: number of predictions that the predictor takes, 1 to 4.
      corrector: number of predictions that the corrector takes, 1 to 4; 0: no corrector.
      tau: amount of noise, at least 0, or a function of the process's time t; 1 is the reverse SDE,
        0 is deterministic.
      S_min: tau is 0 where sigma / alpha is below S_min (the paper has 0.05 on EDM's path).
      S_max: tau is 0 where sigma / alpha is above S_max (the paper has 1 on EDM's path).
      lower_order_final: whether predictor and corrector take fewer predictions at the end of the
        grid (history.py).

    Raises:
      UserError: for a number out of its range.
    """
    if not (1 <= predictor <= 4 and 0 <= corrector <= 4):
        raise UserError(
            f"sde.sa(predictor={predictor}, corrector={corrector}): the predictor must take 1 to 4 "
            "predictions, the corrector 0 to 4"
        )
    need_range("sde.sa: tau", tau, 0)
    noise_range("sde.sa", S_min, S_max)
    none = not callable(tau) and tau == 0
    eta_at = functools.partial(_eta, tau, S_min, S_max)

    def step(noise, x, memory, t, s, denoise, process, cond):
        past = history.remember(memory.past, denoise(x, t, cond).x0, t)
        if corrector:
            # 2 more: the move before also has the prediction at its end
            began = memory.past.times[0]
            again = _adams(
                process, memory.x, past, memory.z, corrector, eta_at(process, began), began, t, 2
            )
            x = jnp.where(memory.past.count > 0, again, x)
        z = memory.z if none else noise.path(t, s)
        moved = _adams(process, x, past, z, predictor, eta_at(process, t), t, s)
        return moved, _Corrected(past, x, z)

    def init(x, ts):
        past = history.empty(max(predictor, corrector), x, ts, lower_order_final)
        return _Corrected(past, x, jnp.zeros_like(x))

    return Sampler(init, step, grid=history.THIRD_ORDER)


def _eta(
    tau: float | Callable[[Array], Array], S_min: float, S_max: float, process: Process, t: Array
) -> Array | None:
    """Returns the noise tau(t)^2 of SA-Solver at time t; None where there is none at any time."""
    if not callable(tau) and tau == 0:
        return None
    eta = (tau(t) if callable(tau) else jnp.full_like(t, tau)) ** 2
    if S_min == 0 and S_max == math.inf:
        return eta
    ratio = process.sigma(t) / process.alpha(t)
    return jnp.where((S_min <= ratio) & (ratio <= S_max), eta, 0.0)


def _adams(
    process: Process,
    x: Array,
    past: history.History,
    z: Array,
    order: int,
    eta: Array | None,
    t: Array,
    s: Array,
    more: int = 0,
) -> Array:
    """Returns x at s by a stochastic Adams move from x at t with the noise z.

    order: number of predictions; more: see `history.allowed`.
    """
    amount = 0.0 if eta is None else eta
    weights = [
        exponential.weights(process, past.times[:p], t, s, eta=amount) for p in range(1, order + 1)
    ]
    x = exponential.carry(process, t, s, eta=amount) * x + history.combine(
        process, weights, past, more
    )
    return x if eta is None else x + exponential.noise_level(process, t, s, eta) * z


# The members of the family, which a config may name.
SAMPLERS = (
    euler_maruyama,
    reverse_diffusion,
    interpolant,
    edm,
    dpmpp_1,
    dpmpp_2m,
    dpmpp_3m,
    dpmpp_2s,
    sa,
)
