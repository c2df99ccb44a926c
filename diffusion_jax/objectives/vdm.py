"""The objective of variational diffusion models: the bound in continuous time (Kingma et al. 2021).

    L = KL(q(x_1 | x0) || p(x_1)) + 1/2 E_u[dgamma/du |eps - eps_hat|^2] - E[log p(x0 | x_0)]

in bits per dimension (eq. 11 to 18). The noise schedule can be learned with the network
(processes/learned.py). Its ends minimize the bound. Its shape, on which the bound does not depend,
minimizes the variance of the estimate of the bound, which is the mean of its square but for a
constant (appendix I.2).

p(x_1) = N(0, sigma_1^2) is the prior of the process, of which the paper's N(0, 1) is the limit, and
p(x0 | x_0) is a distribution over gray levels that needs no network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.core import arrays, streams
from diffusion_jax.core.arrays import expand, mean_per_example
from diffusion_jax.core.errors import UserError, need_ranges
from diffusion_jax.core.types import Array, Cond, Denoise, Key, Noised, Params, Prediction, Process
from diffusion_jax.likelihood import bins, bounds
from diffusion_jax.objectives import times, weighting
from diffusion_jax.objectives.base import Learned, Objective, per_example
from diffusion_jax.processes import gaussian, schedules
from diffusion_jax.processes.learned import Schedule

# (params, context, x_t, t) -> the prediction of the network with these parameters
Predict = Callable[[Params, Any, Array, Array], Prediction]
_UNIT = schedules.VDM()  # a process of times in [0, 1], where a law of times draws u


def vdm(
    process: Process,
    levels: int = 256,
    stratified: bool = True,
    learn_ends: bool = False,
    learn_shape: bool = False,
    gammas: tuple[float, ...] = (),
    width: int = 1024,
) -> Objective:
    """The bound in continuous time, in bits per dimension, with a fixed or learned schedule.

    Args:
      process: the process that adds noise. Learned ends stay within its own; the paper's is
        schedules.VDM.
      levels: number of values that the data take in [-1, 1].
      stratified: draws the times of a batch by one number (times.stratified; appendix I.1), instead
        of independently.
      learn_ends: learns gamma_0 and gamma_1, the negative log-SNR of both ends, by the bound.
      learn_shape: learns the shape between the ends, by the variance of the bound's estimate.
      gammas: (gamma_0, gamma_1) before training, where they are learned; () are the ends of the
        process.
      width: number of sigmoids of the learned shape.

    Returns:
      The objective.

    Raises:
      UserError: for an argument out of its range, and for gammas that are not learned or are beyond
        the ends of the process.
    """
    need_ranges("vdm.vdm", levels=(levels, 2, 4096), width=(width, 1, 65_536))
    law = times.stratified() if stratified else times.uniform()
    if gammas and not learn_ends:
        raise UserError(
            f"vdm.vdm: gammas={gammas} are where learning starts; set learn_ends=True, or make "
            "them the ends of the process"
        )
    schedule = Schedule(process, _ends(process, gammas), learn_ends, width if learn_shape else 0)

    @per_example
    def draw(keys: Key, x0: Array) -> Noised:
        t = law(process, arrays.fold_in(keys, streams.OBJECTIVE_TIME))
        return gaussian.corrupt(process, x0, _noise(keys, x0), t)

    def loss(denoise: Denoise, noised: Noised, cond: Cond = None) -> Array:
        rate = process.t_max - process.t_min
        prior, reconstruction = _at_ends(process, noised.x0, noised.eps, levels)
        return _diffusion(process, denoise, noised, rate, cond) + prior + reconstruction

    learns = learn_ends or learn_shape
    learned = Learned(schedule, _learned_loss(schedule, law, levels)) if learns else None
    return Objective(draw, loss, learned=learned, gray_levels=True)


def _learned_loss(schedule: Schedule, law: times.TimeLaw, levels: int) -> Callable:
    """The loss of a learned schedule, as base.Learned describes it."""
    process = schedule.clock

    def loss(
        predict: Predict, params: Params, own: Params, keys: Key, x0: Array, context: Any
    ) -> tuple[Array, Array, dict[str, Array]]:
        keys = arrays.example_keys(keys, len(x0))
        u = law(_UNIT, arrays.fold_in(keys, streams.OBJECTIVE_TIME))
        eps, ends = _noise(keys, x0), schedule.ends(own)
        shape = jax.jvp(lambda u: schedule.shape(own, u), (u,), (jnp.ones_like(u),))

        def diffusion(main: Any, shape: tuple[Array, Array], rest: Any) -> Array:
            (params, ends), (x0, eps, context) = main, rest
            t, rate = _time_and_rate(ends, shape)

            def denoise(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
                return predict(params, context, x_t, t)

            return _diffusion(process, denoise, gaussian.corrupt(process, x0, eps, t), rate, None)

        losses = by_loss_and_square(diffusion)((params, ends), shape, (x0, eps, context))
        prior, reconstruction = _at_ends(schedule.process(own), x0, eps, levels)
        examples = {"prior": prior, "reconstruction": reconstruction}
        return losses + prior + reconstruction, _time_and_rate(ends, shape)[0], examples

    return loss


def by_loss_and_square(losses: Callable[..., Array]) -> Callable[..., Array]:
    """Makes losses whose gradient to the second argument is that of their squares.

    The variance of an estimate is its mean square but for the square of its mean, which does not
    depend on the shape of a schedule. One backward pass serves both (Kingma et al. 2021, appendix
    I.2): d losses^2 = 2 losses d losses, example by example.

    Args:
      losses: a function (main, own, rest) -> (B,), of its arguments alone: it may not use traced
        values of its surroundings. Loss i must depend on element i alone of the arrays (B,) that
        `own` consists of.

    Returns:
      The same function, with gradient d losses to `main`, d losses^2 to `own` and 0 to `rest`.
    """

    @jax.custom_vjp
    def run(main: Any, own: Any, rest: Any) -> Array:
        return losses(main, own, rest)

    def forward(main: Any, own: Any, rest: Any) -> tuple[Array, tuple]:
        found, pull = jax.vjp(lambda main, own: losses(main, own, rest), main, own)
        return found, (found, pull)

    def backward(kept: tuple, cotangent: Array) -> tuple:
        found, pull = kept
        main, own = pull(cotangent)
        return main, jax.tree.map(lambda each: 2 * found * each, own), None

    run.defvjp(forward, backward)
    return run


def _noise(keys: Key, x0: Array) -> Array:
    return arrays.noise(arrays.fold_in(keys, streams.OBJECTIVE_NOISE), x0)


def _time_and_rate(ends: tuple[Array, Array], shape: tuple[Array, Array]) -> tuple[Array, Array]:
    """t(u) and dt/du from the times of the ends, and from s(u) and ds/du (B,)."""
    (first, last), (s, slope) = ends, shape
    return first + (last - first) * s, (last - first) * slope


def _diffusion(
    process: Process, denoise: Denoise, noised: Noised, rate: Array | float, cond: Cond
) -> Array:
    """1/2 dgamma/du |eps - eps_hat|^2, with rate = dt/du, (B,) bits per dimension."""
    error = mean_per_example((denoise(noised.x_t, noised.t, cond).eps - noised.eps) ** 2)
    return 0.5 * rate * weighting.likelihood()(process, noised.t) * error / bounds.BIT


def _at_ends(process: Process, x0: Array, eps: Array, levels: int) -> tuple[Array, Array]:
    """The terms of the noise end and of the data end, each (B,) bits per dimension.

    The noise of the data end is that of x_t: each term is an expectation of its own.
    """
    first, last = jnp.asarray(process.t_min), jnp.asarray(process.t_max)
    lam = gaussian.logsnr(process, first)
    mean = x0 + expand(jnp.exp(-0.5 * lam), x0) * eps
    own = mean_per_example(bins.log_level(x0, mean, -lam, levels)) / bounds.BIT
    return bounds._prior(process, x0, last), -own


def _ends(process: Process, gammas: tuple[float, ...]) -> tuple[float, float]:
    """gamma at both ends. UserError where the process does not have them."""
    ends = jnp.asarray([process.t_min, process.t_max], jnp.float32)
    first, last = map(float, -gaussian.logsnr(process, ends))
    if not gammas:
        return first, last
    if len(gammas) != 2 or not first - 1e-4 <= gammas[0] < gammas[1] <= last + 1e-4:
        raise UserError(
            f"vdm.vdm: gammas={gammas} must be two numbers, the smaller first, between the ends "
            f"{first:.4g} and {last:.4g} of the process; take other numbers, or another process "
            "such as schedules.VDM(gamma_min=-20.0, gamma_max=10.0)"
        )
    return tuple(map(float, gammas))


# The members of the family, which a config may name.
OBJECTIVES = (vdm,)
