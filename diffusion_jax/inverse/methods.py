"""Methods for inverse problems: what is x0, given a measurement y = A(x0) + std n?

They work with any denoiser, which need not be trained for them. A method is a function of the
denoiser (`ddnm`, `pigdm`), which then serves every sampler, or a wrapper of any sampler
(`replacement`, `repaint`, `dps`). `restore` runs either, and its result satisfies the measurement
exactly where that has no noise. targets/posterior.py has the exact posteriors that methods are
compared with.

In the frame z = x_t / alpha, u = sigma / alpha, Bayes' rule for scores adds u^2 grad_z log p(y | z)
to x0-hat. The methods differ in their approximation of that gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.core import arrays, forward_mode, streams
from diffusion_jax.core.arrays import expand
from diffusion_jax.core.errors import UserError, need_ranges
from diffusion_jax.core.types import Array, Cond, Denoise, Key, Prediction, Process
from diffusion_jax.denoisers import thresholding
from diffusion_jax.inverse import measurements
from diffusion_jax.inverse.measurements import Measurement
from diffusion_jax.inverse.projections import draw_measured, keep_unreplaced, pull
from diffusion_jax.processes import gaussian
from diffusion_jax.samplers import base
from diffusion_jax.samplers.base import Sampler
from diffusion_jax.samplers.step_noise import Noise


class Method(NamedTuple):
    """A method: it changes the denoiser or the sampler by a measurement y, by default neither.

    Attributes:
      guide: a function (denoise, process, measurement, y) -> Denoise.
      wrap: a function (sampler, measurement, y) -> Sampler.
      linear: whether the measurement must be linear.
    """

    guide: Callable[..., Denoise] = lambda denoise, process, measurement, y: denoise
    wrap: Callable[..., Sampler] = lambda sampler, measurement, y: sampler
    linear: bool = True


def restore(
    method: Method,
    measurement: Measurement,
    y: Array,
    sampler: Sampler,
    denoise: Denoise,
    process: Process,
    key: Key,
    x: Array,
    ts: Array,
    cond: Cond = None,
    *,
    clip: tuple[float, float] | None = None,
    **options: Any,
) -> base.Samples:
    """Draws x0 given y, by any sampler.

    If the measurement is linear and has no noise, the result satisfies A x0 = y, and it equals y
    bit for bit on the known pixels of a mask.

    Args:
      method: how y enters: by the denoiser or by the sampler.
      measurement: the measurement that y is one of.
      y: the measurement of each example, (B, ...).
      sampler: any sampler, before the method changes it.
      denoise: any denoiser, a function (x_t, t, cond) -> Prediction.
      process: the process of the denoiser.
      key: one key per example, (B,), or one for the batch.
      x: the start at ts[0], (B, ...).
      ts: decreasing times, (n + 1,).
      cond: the condition, with leading axis B, or None.
      clip: the limits of the guided x0-hat; None for no limits.
      **options: further arguments of samplers.base.sample.

    Returns:
      What samplers.base.sample returns.

    Raises:
      UserError: if the method needs a linear measurement and this one is not linear.
    """
    if method.linear and measurement.spectral is None:
        raise UserError(
            "this method needs a linear measurement, and this one is not linear; take dps"
        )
    guided = method.guide(denoise, process, measurement, y)
    guided = guided if clip is None else thresholding.clip_x0(guided, process, *clip)
    wrapped = method.wrap(sampler, measurement, y)
    samples = base.sample(wrapped, guided, process, key, x, ts, cond, **options)
    if measurement.std or measurement.spectral is None:
        return samples
    return samples._replace(x0=measurements.consistent(measurement, samples.x0, y))


def unguided() -> Method:
    """Uses y at the end only, by `measurements.consistent`.

    It is the baseline of every method.

    Returns:
      The method.
    """
    return Method(linear=False)


# ---- guided denoisers
def ddnm(data_std: float = 1.0) -> Method:
    """DDNM (Wang et al. 2023, eq. 13): replaces the measured part of x0-hat.

        x0-hat + A^+ (y - A x0-hat)

    With noise each singular direction moves r^2 s^2 / (r^2 s^2 + std^2) of the way, where r^2 is
    `spread`. The result is the mean of N(x0-hat, r^2 I) given y, which tends to eq. 13 as std -> 0.
    (The paper's DDNM+, eq. 17-19, has weight 1 down to some noise level, and removes noise from the
    sampler.)

    Args:
      data_std: standard deviation of the data, for `spread`.

    Returns:
      The method.

    Raises:
      UserError: for an argument out of its range.
    """
    need_ranges("ddnm", data_std=(data_std, 1e-6, 1e4))

    def guide(denoise: Denoise, process: Process, measurement: Measurement, y: Array) -> Denoise:
        def guided(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
            prediction = denoise(x_t, t, cond)
            if measurement.std == 0:
                x0 = measurements.consistent(measurement, prediction.x0, y)
            else:
                r2 = spread(process, t, data_std)
                x0 = prediction.x0 + expand(r2, x_t) * pull(measurement, prediction.x0, y, r2)
            return gaussian.with_x0(process, prediction, x_t, x0, t)

        return guided

    return Method(guide)


def pigdm(data_std: float = 1.0, symmetric: bool = False) -> Method:
    """PiGDM (Song et al. 2023, eq. 8): takes p(x0 | x_t) for N(x0-hat, r^2 I), r^2 = `spread`.

        x0-hat + u^2 J^T A^T (r^2 A A^T + std^2 I)^-1 (y - A x0-hat),    J = d x0-hat / dz

    Each evaluation needs one vector-Jacobian product. The method is exact for data N(m, data_std^2
    I). (The paper's algorithm 1 multiplies the guidance by r^2 as well, which does not change it at
    high noise and lets it vanish at low noise.)

    Args:
      data_std: standard deviation of the data, for `spread`.
      symmetric: uses J v for J^T v. The exact J = Cov(x0 | x_t) / u^2 is symmetric, a network's
        only nearly. Forward mode keeps no activations.

    Returns:
      The method.

    Raises:
      UserError: for an argument out of its range.
    """
    need_ranges("pigdm", data_std=(data_std, 1e-6, 1e4))

    def guide(denoise: Denoise, process: Process, measurement: Measurement, y: Array) -> Denoise:
        def guided(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
            def x0_and_prediction(x: Array) -> tuple[Array, Prediction]:
                prediction = denoise(x, t, cond)
                return prediction.x0, prediction

            transform = forward_mode.linearize if symmetric else jax.vjp
            x0, times_jacobian, prediction = transform(x0_and_prediction, x_t, has_aux=True)
            pulled = times_jacobian(pull(measurement, x0, y, spread(process, t, data_std)))
            x0 = x0 + expand(process.sigma(t) ** 2 / process.alpha(t), x_t) * (
                pulled if symmetric else pulled[0]
            )
            return gaussian.with_x0(process, prediction, x_t, x0, t)

        return guided

    return Method(guide)


def spread(process: Process, t: Array, data_std: float = 1.0) -> Array:
    """The variance r^2 of x0 given x_t for data N(m, d^2 I): r^2 = u^2 d^2 / (u^2 + d^2).

    PiGDM has d = 1.

    Args:
      process: the process of x_t.
      t: the time of x_t, a scalar or (B,).
      data_std: d, the standard deviation of the data.

    Returns:
      r^2, of t's shape.
    """
    u2 = (process.sigma(t) / process.alpha(t)) ** 2
    return u2 * data_std**2 / (u2 + data_std**2)


# ---- wrapped samplers
def dps(scale: float = 1.0, symmetric: bool = False) -> Method:
    """DPS (Chung et al. 2023, algorithm 1), for any differentiable measurement.

        z - scale / |y - A(x0-hat)| grad_z |y - A(x0-hat)|^2, after each move

    The gradient is taken at the start of the move. The step is made in z = x_t / alpha, so that it
    is the same under every process, and the paper's own for VE.

    Args:
      scale: the step size of each move, in the unit of x0. More moves or larger images need another
        scale.
      symmetric: as in `pigdm`.

    Returns:
      The method.

    Raises:
      UserError: for an argument out of its range.
    """
    need_ranges("dps", scale=(scale, 0, 1e6))

    def wrap(sampler: Sampler, measurement: Measurement, y: Array) -> Sampler:
        def misfit(x0: Array) -> Array:
            return jnp.sum(
                jnp.sqrt(arrays.sum_per_example((y - measurement.forward(x0)) ** 2) + 1e-12)
            )

        def gradient(x: Array, t: Array, denoise: Denoise, cond: Cond) -> Array:
            transform = forward_mode.linearize if symmetric else jax.vjp
            x0, times_jacobian = transform(lambda x: denoise(x, t, cond).x0, x)
            pulled = times_jacobian(jax.grad(misfit)(x0))
            return pulled if symmetric else pulled[0]

        def step(noise, x, memory, t, s, denoise, process, cond):
            # |r|^-1 grad |r|^2 = 2 grad |r|; in x it is alpha_t times less than in z
            slope = gradient(x, t, denoise, cond)
            moved, memory = sampler.step(noise, x, memory, t, s, denoise, process, cond)
            return moved - 2 * scale * process.alpha(s) * process.alpha(t) * slope, memory

        return sampler._replace(step=step, nfe=0 if base.adaptive(sampler) else sampler.nfe + 1)

    return Method(wrap=wrap, linear=False)


def replacement() -> Method:
    """Imputation (Song et al. 2021, appendix I.2): draws the measured part of x_s given y.

    The draw is from q(A x_s | y). A measured direction whose eigenvalue of A A^T is e is not
    replaced where y's own noise is the larger one, (alpha_s std)^2 > sigma_s^2 e. There x_s /
    alpha_s is y itself in that direction, and all further randomness in it is the sampler's own
    noise. With a noisy measurement a stochastic sampler is needed, since a deterministic one has
    less spread than the posterior. The same holds for `repaint`.

    Returns:
      The method.
    """

    def wrap(sampler: Sampler, measurement: Measurement, y: Array) -> Sampler:
        def step(noise, x, memory, t, s, denoise, process, cond):
            x, memory = sampler.step(noise, x, memory, t, s, denoise, process, cond)
            z = noise.extra(streams.EXTRA_REPLACED)
            return draw_measured(measurement, process, x, y, s, z), memory

        return sampler._replace(step=step)

    return Method(wrap=wrap)


def repaint(resample: int = 10, jump: int = 1) -> Method:
    """RePaint (Lugmayr et al. 2022, algorithm 1): replacement with several passes over each move.

    Between the passes x_s is noised back to x_t. With a noisy measurement, which the paper does not
    treat, a measured direction is replaced only while x_s is noisier than y. After that it is not
    noised back: every pass starts from its part of x_t instead of from x_s with new noise, which
    would drift to the prior. The other directions are resampled given it, as before.

    Args:
      resample: number of passes over each move; 1 is `replacement`.
      jump: number of moves, of equal log-SNR, that one move of the grid is divided into and that a
        pass makes together (the paper's jump length).

    Returns:
      The method.

    Raises:
      UserError: if one of them is below 1.
    """
    need_ranges("repaint", resample=(resample, 1, 10_000), jump=(jump, 1, 10_000))

    def wrap(sampler: Sampler, measurement: Measurement, y: Array) -> Sampler:
        step = _repainted(sampler, measurement, y, resample, jump)
        starts = range(0, len(sampler.warmup), jump)
        warmup = tuple(resample * sum(sampler.warmup[i : i + jump]) for i in starts)
        return sampler._replace(step=step, nfe=sampler.nfe * resample * jump, warmup=warmup)

    return Method(wrap=wrap)


def _repainted(
    sampler: Sampler, measurement: Measurement, y: Array, resample: int, jump: int
) -> Callable[..., tuple[Array, Any]]:
    """The step of a sampler under `repaint`."""
    last_extra = streams.EXTRA_PASS - streams.EXTRA_PASS_PARTS - 1

    def step(noise, x, memory, t, s, denoise, process, cond):
        times = _between(process, t, s, jump)

        def one_pass(u: Array, carry: tuple[Array, Any]) -> tuple[Array, Any]:
            moved, last = carry
            ratio, var = gaussian.transition(process, t, s)
            noised = ratio * moved + jnp.sqrt(var) * noise.extra(streams.EXTRA_REPAINT + u)
            current = jnp.where(
                u > 0, keep_unreplaced(measurement, process, noised, x, times[1]), x
            )

            def down(carry: tuple[Array, Any], j: Array) -> tuple[tuple[Array, Any], None]:
                first = streams.EXTRA_PASSES + (u * jump + j) * streams.EXTRA_PASS
                own = _numbered(noise, first)
                x, memory = sampler.step(
                    own, *carry, times[j], times[j + 1], denoise, process, cond
                )
                x = draw_measured(measurement, process, x, y, times[j + 1], own.extra(last_extra))
                return (x, memory), None

            # The memory of a multistep method is that of the pass before; an adaptive method
            # counts its evaluations in it.
            start = current, last if base.adaptive(sampler) else memory
            return jax.lax.scan(down, start, jnp.arange(jump))[0]

        return jax.lax.fori_loop(0, resample, one_pass, (x, memory))

    return step


def _between(process: Process, t: Array, s: Array, jump: int) -> Array:
    """The times t = times[0] > ... > times[jump] = s, in equal steps of the log-SNR."""
    ends = jnp.stack([t, s])
    lam = gaussian.logsnr(process, ends)
    inner = gaussian.time_of_logsnr(
        process, lam[0] + jnp.arange(1, jump) / jump * (lam[1] - lam[0])
    )
    return jnp.concatenate([ends[:1], inner.astype(ends.dtype), ends[1:]])


def _numbered(noise: Noise, first: Array) -> Noise:
    """Independent draws for a move that is not one of the grid's, with numbers from `first` on."""
    return Noise(
        lambda t, s, part=0: noise.extra(first + part),
        lambda i: noise.extra(first + streams.EXTRA_PASS_PARTS + i),
    )


# The members of the family, which a config may name.
METHODS = (unguided, ddnm, pigdm, dps, replacement, repaint)
