"""Singlestep exponential solvers: high order from evaluations inside the step, and no memory.

DPM-Solver (Lu et al. 2022a) and DPM-Solver++ (Lu et al. 2022b). A step evaluates the denoiser at t
and at t + r h on the clock log(alpha / sigma). Each move, to the next evaluation and at last to s,
integrates the line through the first evaluation and the latest one (exponential.py).
"""

from __future__ import annotations

import jax.numpy as jnp

from diffusion_jax.core.errors import UserError
from diffusion_jax.processes import gaussian
from diffusion_jax.samplers import exponential
from diffusion_jax.samplers.base import Sampler, memoryless
from diffusion_jax.samplers.exponential import log_ratio


def _singlestep(
    ratios: tuple[float, ...], *, data: bool, second: str, grid: str = "logistic()"
) -> Sampler:
    """Returns the solver whose inner evaluations are at these ratios of the step.

    data: whether x0-hat or eps-hat is interpolated; second: see `exponential.weights`.
    """
    if not all(0 < r <= 1 for r in ratios):
        raise UserError(
            "the inner evaluations of a singlestep solver must be at ratios of the step in (0, 1]; "
            f"got {', '.join(map(str, ratios))}"
        )

    def step(noise, x, t, s, denoise, process, cond):
        def evaluate(y, time):
            prediction = denoise(y, time, cond)
            return prediction.x0 if data else prediction.eps

        low, high = log_ratio(process, t), log_ratio(process, s)
        inner = [gaussian.time_of_logsnr(process, 2 * (low + r * (high - low))) for r in ratios]
        times, values = [t], [evaluate(x, t)]
        for i, stop in enumerate([*inner, s]):
            weights = exponential.weights(
                process, jnp.stack(times), t, stop, data=data, second=second
            )
            y = exponential.carry(process, t, stop, data=data) * x + sum(
                w * v for w, v in zip(weights, values)
            )
            if i < len(ratios):
                times, values = [t, stop], [values[0], evaluate(y, stop)]
        return y

    return memoryless(step, nfe=1 + len(ratios), grid=grid)


def dpm_2s(r1: float = 0.5) -> Sampler:
    """DPM-Solver-2 (Lu et al. 2022a, algorithm 4): order 2, two evaluations per step.

    x_s = (alpha_s / alpha_t) x - sigma_s expm1(h) [eps + (eps_1 - eps) / (2 r1)].

    Args:
      r1: ratio of the step at which eps_1 is evaluated, in (0, 1].

    Raises:
      UserError: for a ratio out of its range.
    """
    return _singlestep((r1,), data=False, second="midpoint", grid="logistic(scale=1.0)")


def dpm_3s(r1: float = 1 / 3, r2: float = 2 / 3) -> Sampler:
    """DPM-Solver-3 (Lu et al. 2022a, algorithm 5): order 3, three evaluations per step.

    x_s comes from the line through eps at t and eps_2 at r2 of the step.

    Args:
      r1: ratio of the step of the second evaluation, in (0, 1].
      r2: ratio of the step of the third evaluation, in (0, 1].

    Raises:
      UserError: for a ratio out of its range.
    """
    return _singlestep((r1, r2), data=False, second="exact", grid="logistic(scale=1.5)")


def dpmpp_2s(r1: float = 0.5) -> Sampler:
    """DPM-Solver++(2S) (Lu et al. 2022b, algorithm 1): order 2, two evaluations per step.

    x_s = (sigma_s / sigma_t) x - alpha_s expm1(-h) [x0 + (x0_1 - x0) / (2 r1)].

    Args:
      r1: ratio of the step at which x0_1 is evaluated, in (0, 1].

    Raises:
      UserError: for a ratio out of its range.
    """
    return _singlestep((r1,), data=True, second="midpoint")


def dpmpp_3s(r1: float = 1 / 3, r2: float = 2 / 3) -> Sampler:
    """DPM-Solver++(3S): order 3, as `dpm_3s`, but in data prediction.

    Args:
      r1: ratio of the step of the second evaluation, in (0, 1].
      r2: ratio of the step of the third evaluation, in (0, 1].

    Raises:
      UserError: for a ratio out of its range.
    """
    return _singlestep((r1, r2), data=True, second="exact")


# The members of the family, which a config may name.
SAMPLERS = (dpm_2s, dpm_3s, dpmpp_2s, dpmpp_3s)
