"""Inverse problems and edits by any denoiser, none of it trained for: what is x0, given a
measurement y = A(x0) + std n?

Where A is linear all that the methods ask of it follows from A, its transpose and functions of A
A^T = U diag(s^2) U^T:

    A^+ y = A^T U diag(1 / s^2) U^T y,        (r^2 A A^T + std^2 I)^-1 y = U diag(1 / (r^2 s^2 + std^2)) U^T y.

A method is a function of the denoiser (`ddnm`, `pigdm`), which then serves every sampler, or a
wrapper of any sampler (`replacement`, `repaint`, `dps`), as correctors are. `restore` runs either
and ends on the measurement exactly where that has no noise. `posterior` and `conditional` are the
truth for mixtures, which methods are judged by. At the end: encoding, interpolation, SDEdit,
translation.

In the frame z = x_t / alpha, u = sigma / alpha a denoiser is told of y by moving x0-hat by u^2
grad_z log p(y | z) (Bayes' rule for scores).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax import arrays, streams
from diffusion_jax.arrays import expand
from diffusion_jax.denoisers import guidance
from diffusion_jax.errors import UserError, need_ranges
from diffusion_jax.inverse import measurements
from diffusion_jax.inverse.measurements import Measurement
from diffusion_jax.processes import gaussian
from diffusion_jax.samplers import base
from diffusion_jax.samplers.base import Noise, Sampler
from diffusion_jax.types import Array, Cond, Denoise, Key, Prediction, Process


# ---- methods
class Method(NamedTuple):
    """How a denoiser, or a sampler, is told of y. Either is left as it is by default.

    guide(denoise, process, measurement, y) -> Denoise;  wrap(sampler, measurement, y) -> Sampler;  linear: whether A must be.
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
    **options,
) -> base.Samples:
    """A draw of x0 given y, by any sampler: what samplers.base.sample returns.

    clip: keeps the guided x0-hat in these limits. Where the measurement is linear and has no noise
    the result has A x0 = y, exactly on the known pixels of a mask. Raises UserError for a method
    that needs a linear measurement and has none.
    """
    if method.linear and measurement.spectral is None:
        raise UserError(
            "this method needs a linear measurement, and this one is not linear; take dps"
        )
    guided = method.guide(denoise, process, measurement, y)
    guided = guided if clip is None else guidance.clip_x0(guided, process, *clip)
    samples = base.sample(
        method.wrap(sampler, measurement, y), guided, process, key, x, ts, cond, **options
    )
    if measurement.std or measurement.spectral is None:
        return samples
    return samples._replace(x0=measurements.consistent(measurement, samples.x0, y))


def unguided() -> Method:
    """y is looked at only at the end, by `consistent`: the baseline of every method."""
    return Method(linear=False)


def ddnm(data_std: float = 1.0) -> Method:
    """DDNM (Wang et al. 2023, eq. 13): the measured part of x0-hat is replaced, x0-hat + A^+ (y - A
    x0-hat).

    With noise each singular direction goes r^2 s^2 / (r^2 s^2 + std^2) of the way, r^2 = `spread`:
    the mean of N(x0-hat, r^2 I) given y, in one with eq. 13 as std -> 0. (The paper's DDNM+, eq.
    17-19, has this weight 1 down to some noise level, and takes noise out of the sampler.)
    """
    need_ranges("ddnm", data_std=(data_std, 1e-6, 1e4))

    def guide(denoise, process, measurement, y):
        def guided(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
            prediction = denoise(x_t, t, cond)
            if measurement.std == 0:
                x0 = measurements.consistent(measurement, prediction.x0, y)
            else:
                r2 = spread(process, t, data_std)
                x0 = prediction.x0 + expand(r2, x_t) * _pull(measurement, prediction.x0, y, r2)
            return gaussian.with_x0(process, prediction, x_t, x0, t)

        return guided

    return Method(guide)


def pigdm(data_std: float = 1.0, symmetric: bool = False) -> Method:
    """PiGDM (Song et al. 2023, eq. 8): p(x0 | x_t) is taken for N(x0-hat, r^2 I), r^2 = `spread`,
    and p(y | x_t) for Gaussian:

        x0-hat + u^2 J^T A^T (r^2 A A^T + std^2 I)^-1 (y - A x0-hat),     J = d x0-hat / dz,

    one vector-Jacobian product a look. Exact for data N(m, data_std^2 I). symmetric: J v stands for
    J^T v, as the exact J = Cov(x0 | x_t) / u^2 is symmetric (a network's is not quite); forward
    mode is twice as fast in a loop on a CPU. (The paper's algorithm 1 multiplies the guidance by
    r^2 besides, which leaves high noise as it is and fades it out at low noise.)
    """
    need_ranges("pigdm", data_std=(data_std, 1e-6, 1e4))

    def guide(denoise, process, measurement, y):
        def guided(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
            transform = jax.linearize if symmetric else jax.vjp
            x0, times_jacobian, prediction = transform(
                lambda x: _x0_and_all(denoise(x, t, cond)), x_t, has_aux=True
            )
            pulled = times_jacobian(_pull(measurement, x0, y, spread(process, t, data_std)))
            x0 = x0 + expand(process.sigma(t) ** 2 / process.alpha(t), x_t) * (
                pulled if symmetric else pulled[0]
            )
            return gaussian.with_x0(process, prediction, x_t, x0, t)

        return guided

    return Method(guide)


def dps(scale: float = 1.0, symmetric: bool = False) -> Method:
    """DPS (Chung et al. 2023, algorithm 1): after each move, z - scale / |y - A(x0-hat)| grad_z |y
    - A(x0-hat)|^2.

    The gradient is at the move's start; the step is in z = x_t / alpha, so that it is the same
    under every process, and the paper's own for VE. `scale` is for each move and has the unit of
    x0: more moves or larger images want another. symmetric: as in `pigdm`, and many times faster
    with convolutions on a CPU. Any differentiable A.
    """
    need_ranges("dps", scale=(scale, 0, 1e6))

    def wrap(sampler, measurement, y):
        def misfit(x0):
            return jnp.sum(
                jnp.sqrt(arrays.sum_per_example((y - measurement.forward(x0)) ** 2) + 1e-12)
            )

        def gradient(x, t, denoise, cond):
            transform = jax.linearize if symmetric else jax.vjp
            x0, times_jacobian = transform(lambda x: denoise(x, t, cond).x0, x)
            pulled = times_jacobian(jax.grad(misfit)(x0))
            return pulled if symmetric else pulled[0]

        def step(noise, x, memory, t, s, denoise, process, cond):
            slope = gradient(
                x, t, denoise, cond
            )  # |r|^-1 grad |r|^2 = 2 grad |r|, in x: alpha_t times less than in z
            moved, memory = sampler.step(noise, x, memory, t, s, denoise, process, cond)
            return moved - 2 * scale * process.alpha(s) * process.alpha(t) * slope, memory

        return sampler._replace(step=step, nfe=0 if base.adaptive(sampler) else sampler.nfe + 1)

    return Method(wrap=wrap, linear=False)


def replacement() -> Method:
    """After each move the measured part of x_s is drawn from q(A x_s | y): imputation (Song et al.
    2021, appendix I.2).

    Where y's own noise is the larger, alpha_s std > sigma_s s, nothing is replaced any more. There
    x_s / alpha_s is y itself in the measured directions, and what is random in them after that is
    the sampler's own noise: with a noisy measurement take a stochastic sampler, since a
    deterministic one leaves less spread than the posterior has. The same holds for `repaint`.
    """

    def wrap(sampler, measurement, y):
        def step(noise, x, memory, t, s, denoise, process, cond):
            x, memory = sampler.step(noise, x, memory, t, s, denoise, process, cond)
            return _replaced(
                measurement, process, x, y, s, noise.extra(streams.EXTRA_REPLACED)
            ), memory

        return sampler._replace(step=step)

    return Method(wrap=wrap)


def repaint(resample: int = 10, jump: int = 1) -> Method:
    """RePaint (Lugmayr et al. 2022, algorithm 1): replacement, each move made `resample` times, x_s
    noised back to x_t between.

    With a noisy measurement, which the paper does not treat, a measured direction is replaced only
    while x_s is noisier than y. After that it moves plainly: every pass starts from its part of x_t
    instead of from x_s with new noise, which would drift to the prior. The other directions are
    resampled given it, as before.

    Args:
      resample: how often each move is made; 1 is `replacement`.
      jump: moves, of equal log-SNR, that one move of the grid is divided into and that are gone
        back over together (the paper's jump length).

    Raises:
      UserError: one of them is below 1.
    """
    need_ranges("repaint", resample=(resample, 1, 10_000), jump=(jump, 1, 10_000))

    def wrap(sampler, measurement, y):
        def step(noise, x, memory, t, s, denoise, process, cond):
            times = _between(process, t, s, jump)

            last_extra = streams.EXTRA_PASS - streams.EXTRA_PASS_PARTS - 1

            def again(u, carry):
                moved, last = carry
                ratio, var = gaussian.transition(process, t, s)
                noised = ratio * moved + jnp.sqrt(var) * noise.extra(streams.EXTRA_REPAINT + u)
                current = jnp.where(
                    u > 0, _not_replaced(measurement, process, noised, x, times[1]), x
                )

                def down(carry, j):
                    own = _numbered(
                        noise, streams.EXTRA_PASSES + (u * jump + j) * streams.EXTRA_PASS
                    )
                    x, memory = sampler.step(
                        own, *carry, times[j], times[j + 1], denoise, process, cond
                    )
                    return (
                        _replaced(measurement, process, x, y, times[j + 1], own.extra(last_extra)),
                        memory,
                    ), None

                # what a multistep method remembers is of the pass before; an adaptive one remembers
                # its evaluations
                return jax.lax.scan(
                    down, (current, last if base.adaptive(sampler) else memory), jnp.arange(jump)
                )[0]

            return jax.lax.fori_loop(0, resample, again, (x, memory))

        starts = range(0, len(sampler.warmup), jump)
        warmup = tuple(resample * sum(sampler.warmup[i : i + jump]) for i in starts)
        return sampler._replace(step=step, nfe=sampler.nfe * resample * jump, warmup=warmup)

    return Method(wrap=wrap)


def spread(process: Process, t: Array, data_std: float = 1.0) -> Array:
    """r^2, the variance of x0 given x_t, were the data N(m, data_std^2 I): u^2 d^2 / (u^2 + d^2).
    PiGDM has d = 1.
    """
    u2 = (process.sigma(t) / process.alpha(t)) ** 2
    return u2 * data_std**2 / (u2 + data_std**2)


def _pull(measurement: Measurement, x0: Array, y: Array, r2: Array) -> Array:
    """A^T (r^2 A A^T + std^2 I)^-1 (y - A x0), over what is measured."""
    r2, variance = expand(r2, y), measurement.std**2

    def inverse(s2):
        return measurements._ratio(
            jnp.ones_like(s2), r2 * s2 + variance, s2 > measurements.SMALL * jnp.max(s2)
        )

    return measurement.adjoint(measurement.spectral(y - measurement.forward(x0), inverse))


def _x0_and_all(prediction: Prediction) -> tuple[Array, Prediction]:
    return prediction.x0, prediction


def _replaced(
    measurement: Measurement, process: Process, x: Array, y: Array, s: Array, z: Array
) -> Array:
    """x with A x drawn anew: alpha_s y and noise, together of variance sigma_s^2 A A^T about
    alpha_s A x0.
    """
    left = _spare_variance(measurement, process, s)
    noise = measurement.spectral(
        measurement.forward(z), lambda s2: jnp.sqrt(jnp.maximum(left(s2), 0))
    )

    def inverse(s2):
        return measurements._ratio(
            jnp.ones_like(s2), s2, (s2 > measurements.SMALL * jnp.max(s2)) & (left(s2) >= 0)
        )

    return x + measurement.adjoint(
        measurement.spectral(process.alpha(s) * y + noise - measurement.forward(x), inverse)
    )


def _not_replaced(
    measurement: Measurement, process: Process, x: Array, other: Array, s: Array
) -> Array:
    """x with those measured directions of `other` that `_replaced` leaves alone at time s."""
    if measurement.std == 0:
        return x
    left = _spare_variance(measurement, process, s)

    def inverse(s2):
        return measurements._ratio(
            jnp.ones_like(s2), s2, (s2 > measurements.SMALL * jnp.max(s2)) & (left(s2) < 0)
        )

    return x + measurement.adjoint(measurement.spectral(measurement.forward(other - x), inverse))


def _spare_variance(
    measurement: Measurement, process: Process, s: Array
) -> Callable[[Array], Array]:
    """(s2) -> sigma_s^2 - (alpha_s std)^2 / s2: the variance that x_s has in a measured direction
    beyond that of alpha_s y.
    """
    alpha, sigma = process.alpha(s), process.sigma(s)
    return lambda s2: (
        sigma**2
        - measurements._ratio(
            (alpha * measurement.std) ** 2, s2, s2 > measurements.SMALL * jnp.max(s2)
        )
    )


def _between(process: Process, t: Array, s: Array, jump: int) -> Array:
    """t = times[0] > ... > times[jump] = s, in equal steps of the log-SNR."""
    ends = jnp.stack([t, s])
    lam = gaussian.logsnr(process, ends)
    inner = gaussian.time_of_logsnr(
        process, lam[0] + jnp.arange(1, jump) / jump * (lam[1] - lam[0])
    )
    return jnp.concatenate([ends[:1], inner.astype(ends.dtype), ends[1:]])


def _numbered(noise: Noise, first: Array) -> Noise:
    """Independent draws for a move that is not the grid's: from `first` on."""
    return Noise(
        lambda t, s, part=0: noise.extra(first + part),
        lambda i: noise.extra(first + streams.EXTRA_PASS_PARTS + i),
    )


# The members of the family, which a config may name.
METHODS = (unguided, ddnm, pigdm, dps, replacement, repaint)
