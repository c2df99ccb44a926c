"""Exact likelihood by the probability flow, and bits per dimension.

    log p_0(x) = log p_T(x_T) + int div v dt,    x_T the flow's image of x

(Song et al. 2021, eq. 39; FFJORD, Grathwohl et al. 2019.) Every process is solved in the same
frame, so that one model has one likelihood and one cost under all of them: the unit frame z = x /
r, r^2 = alpha^2 + sigma^2, on the clock u = log(sigma / alpha) = -lam / 2. With tan(phi) = e^u the
path is cos(phi) x0 + sin(phi) eps, and

    dz/du = sin(phi) cos(phi) (cos(phi) eps-hat - sin(phi) x0-hat),
    log p(x) = log p(z) - D log r.

In this frame z stays of order one, no noise level is crossed too fast, and the kinks of a table of
betas in t do not appear. The divergence needs forward mode alone (e . J e), which is fast inside
loops on every backend. Every image has a solve of its own, steps included, so values do not depend
on the batch (except for rounding, which at tight tolerances may move a step).

Two errors that no solver removes: the marginal at t_max is the prior only up to alpha(t_max) x0,
and the density is that at t_min, of data with noise sigma(t_min).
`bits_per_dim(dequantize='process')` accounts for the second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core import arrays, forward_mode, integrators, streams
from diffusion_jax.core.arrays import sum_per_example
from diffusion_jax.core.deferred import deferred
from diffusion_jax.core.errors import unknown
from diffusion_jax.core.types import Array, Cond, Denoise, Key, Process
from diffusion_jax.likelihood.bins import in_bins, in_bins_of_channels, log_bin
from diffusion_jax.likelihood.bounds import BIT, log_mean_exp
from diffusion_jax.processes import gaussian

diffrax = deferred("diffrax")

# up to here the default trace is exact: it takes D derivatives where Hutchinson's takes one a probe
EXACT_DIMENSIONS = 32
ADAPTIVE = {"tsit5": "Tsit5", "dopri5": "Dopri5", "dopri8": "Dopri8"}  # diffrax's names
FIXED = {"euler": 1, "heun": 2, "rk4": 4}  # evaluations per step
CHUNK = 64  # derivatives taken at once, which bounds the memory of an exact trace
Field = Callable[[Array, Array], Array]  # f(u, y) -> dy/du

# (field, y, start, end) -> (y at the end, NFE)
Solver = Callable[[Field, Array, Array, Array], tuple[Array, Array]]

# (key, x of one example (...)) -> probes (K, ...), the mean of sum_k e_k e_k^T being 1
Trace = Callable[[Key, Array], Array]


class FlowLikelihood(NamedTuple):
    """The results of `log_likelihood` for each image.

    Attributes:
      logp: prior + change, the log-density at t_min in nats, (B,).
      prior: log-density of the latent under the prior in nats, (B,).
      change: change of the log-density along the flow in nats, (B,).
      latent: x_T, (B, ...).
      nfe: network evaluations, (B,).
    """

    logp: Array
    prior: Array
    change: Array
    latent: Array
    nfe: Array


def log_likelihood(
    process: Process,
    denoise: Denoise,
    x: Array,
    key: Key,
    cond: Cond = None,
    *,
    trace: Trace | None = None,
    solver: Solver | None = None,
) -> FlowLikelihood:
    """Returns log p(x) at time t_min under the flow's own density, for continuous x.

    It can be jitted as a whole. An adaptive solve that runs out of steps gives NaN. Guidance in
    `denoise` gives the density of the guided flow.

    Args:
      process: the process that the denoiser was made for.
      denoise: a function (x_t, t, cond) -> Prediction.
      x: continuous data, (B, ...).
      key: one key per image, (B,), or one for the batch. It draws the probes, which stay the same
        along the path (FFJORD, sec. 3.1).
      cond: the condition, with leading axis B.
      trace: exact() up to EXACT_DIMENSIONS dimensions by default, else hutchinson().
      solver: adaptive() by default.

    Returns:
      The log-density and its parts, the latent, and the NFE of each image.
    """
    size = math.prod(x.shape[1:])
    trace = trace or (exact() if size <= EXACT_DIMENSIONS else hutchinson())
    solver = solver or adaptive()
    ends = jnp.asarray([process.t_min, process.t_max], x.dtype)
    start, end = -0.5 * gaussian.logsnr(process, ends)
    r_start, r_end = jnp.hypot(process.alpha(ends), process.sigma(ends))

    def one(x, key, cond):
        probes = trace(key, x)

        def field(u, y):
            velocity, tangent = forward_mode.linearize(
                _velocity(process, denoise, u, cond), y[:-1].reshape(x.shape)
            )
            terms = jax.lax.map(lambda e: jnp.vdot(e, tangent(e)), probes, batch_size=CHUNK)
            return jnp.append(velocity, terms.sum() / size)

        y, nfe = solver(field, jnp.append(x / r_start, 0.0), start, end)
        return r_end * y[:-1].reshape(x.shape), size * y[-1], nfe

    latent, divergence, nfe = jax.vmap(one)(x, arrays.example_keys(key, len(x)), cond)
    prior, change = (
        gaussian.prior_logp(process, latent),
        divergence + size * jnp.log(r_end / r_start),
    )
    return FlowLikelihood(prior + change, prior, change, latent, nfe)


def _velocity(process: Process, denoise: Denoise, u: Array, cond: Cond) -> Callable[[Array], Array]:
    """Returns z -> dz/du at u, for one example z (...)."""
    t = gaussian.time_of_logsnr(process, -2 * u)
    alpha, sigma = process.alpha(t), process.sigma(t)
    r = jnp.hypot(alpha, sigma)
    cos, sin = alpha / r, sigma / r
    cond = jax.tree.map(lambda c: c[None], cond)

    def velocity(z):
        prediction = denoise(r * z[None], t, cond)
        return (sin * cos * (cos * prediction.eps - sin * prediction.x0))[0]

    return velocity


# ---- traces: the directions in which the divergence is probed
def exact() -> Trace:
    """Every coordinate direction: the exact divergence, at D derivatives per evaluation.

    Returns:
      The trace; its probes are (D, ...).
    """
    return lambda key, x: jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)


def hutchinson(probes: int = 1, law: str = "rademacher") -> Trace:
    """Random directions (Hutchinson 1990): unbiased, with an error of order 1 / sqrt(probes).

    Args:
      probes: number of directions.
      law: 'rademacher' or 'gaussian'. Rademacher signs have no error from the diagonal of the
        Jacobian, and so a smaller one.

    Returns:
      The trace; its probes are (probes, ...).

    Raises:
      UserError: for another law.
    """
    if law not in ("rademacher", "gaussian"):
        raise unknown("law of the probes", law, ("rademacher", "gaussian"))

    def draw(key, x):
        e = arrays.noise(key, jnp.zeros((probes, *x.shape), x.dtype)) / math.sqrt(probes)
        return (
            e
            if law == "gaussian"
            else jnp.where(e < 0, -1.0, 1.0).astype(x.dtype) / math.sqrt(probes)
        )

    return draw


# ---- solvers, with log(sigma / alpha) as the clock
def adaptive(
    method: str = "tsit5", rtol: float = 1e-5, atol: float = 1e-5, max_steps: int = 4096
) -> Solver:
    """A Runge-Kutta pair of diffrax with steps chosen by its error estimate.

    The NFE includes rejected steps.

    Args:
      method: 'tsit5', 'dopri5' or 'dopri8'.
      rtol: relative tolerance of z, and likewise of the log-density in nats per dimension.
      atol: absolute tolerance of the same.
      max_steps: most steps of a solve, which then gives NaN.

    Raises:
      UserError: for another method.
    """
    if method not in ADAPTIVE:
        raise unknown("adaptive solver", method, ADAPTIVE)

    def solve(field, y, start, end):
        def norm(error):
            # the larger of the state's and the log-density's error: as one number among D the
            # latter would hardly count
            return jnp.maximum(jnp.sqrt(jnp.mean(error[:-1] ** 2)), jnp.abs(error[-1]))

        solver = getattr(diffrax, ADAPTIVE[method])()
        term = diffrax.ODETerm(lambda u, y, args: field(u, y))
        control = diffrax.PIDController(rtol, atol, norm=norm)
        solution = diffrax.diffeqsolve(
            term,
            solver,
            start,
            end,
            0.01 * (end - start),
            y,
            stepsize_controller=control,
            max_steps=max_steps,
            throw=False,
            adjoint=diffrax.ForwardMode(),
        )
        finished = solution.result == diffrax.RESULTS.successful
        stages = solver.tableau.num_stages - 1  # the first of a step is the last of the one before
        nfe = stages * solution.stats["num_steps"] + 1
        return jnp.where(finished, solution.ys[-1], jnp.nan), nfe

    return solve


def fixed(method: str = "heun", steps: int = 64) -> Solver:
    """Equal steps of the log-SNR by a method of integrators.py, differentiable in both modes.

    Args:
      method: 'euler', 'heun' or 'rk4'.
      steps: number of steps.

    Raises:
      UserError: for another method.
    """
    if method not in FIXED:
        raise unknown("solver on a fixed grid", method, FIXED)
    step = getattr(integrators, method)

    def solve(field, y, start, end):
        us = start + (end - start) * jnp.linspace(0.0, 1.0, steps + 1, dtype=y.dtype)
        y, _ = jax.lax.scan(lambda y, ends: (step(field, y, *ends), None), y, (us[:-1], us[1:]))
        return y, jnp.asarray(steps * FIXED[method])

    return solve


def solver(name: str, *, rtol: float = 1e-5, steps: int = 64) -> Solver:
    """Returns the solver of a given name.

    Args:
      name: 'tsit5', 'dopri5' or 'dopri8', which are adaptive; 'euler', 'heun' or 'rk4'.
      rtol: relative and absolute tolerance of the adaptive ones.
      steps: number of steps of the others.

    Raises:
      UserError: for another name.
    """
    if name in ADAPTIVE:
        return adaptive(name, rtol, rtol)
    if name in FIXED:
        return fixed(name, steps)
    raise unknown("solver", name, (*ADAPTIVE, *FIXED))


# ---- images
class Bits(NamedTuple):
    """The results of `bits_per_dim` for each image.

    Attributes:
      bits: bits per dimension, the mean over the K draws, (B,).
      importance: the tighter, importance-weighted value, (B,).
      log_weights: each draw's estimate of log P(x0) in nats, (B, K).
      nfe: network evaluations of all draws together, (B,).
    """

    bits: Array
    importance: Array
    log_weights: Array
    nfe: Array


def bits_per_dim(
    process: Process,
    denoise: Denoise,
    x0: Array,
    key: Key,
    cond: Cond = None,
    *,
    dequantize: str = "uniform",
    levels: int = 256,
    bins: Sequence[float] | None = None,
    draws: int = 1,
    trace: Trace | None = None,
    solver: Solver | None = None,
) -> Bits:
    """Returns -log2 P(x0) / D for data with `levels` values, bounded from above.

    The mean over draws estimates a bound of log P(x0), their log-mean-exp a tighter one (Burda et
    al. 2016, eq. 8). `dequantize` is
    'uniform'  x = x0 + U over x0's bin, of width w = 2 / (levels - 1):
               log P(x0) >= E[log p(x)] + D log w  (Theis et al. 2016, sec. 3.1)
    'process'  x ~ q(x_t_min | x0), by the process itself:
               log P(x0) >= E[log p(x) + log P(x0 | x) - log q(x | x0)]  (Song, Durkan et al. 2021;
               Zheng et al. 2023), with P(x0 | x) the reconstruction of likelihood/bounds.py
    'none'     x = x0, continuous data: no bin and no offset; the value may have either sign

    'uniform' takes data at t_min as if without noise, so it needs a sigma(t_min) well below w and a
    model that was trained on dequantized data; 'process' needs neither. All draws of an image share
    the probes of a Hutchinson trace, so that their error does not mislead log-mean-exp.

    Args:
      process: the process that the denoiser was made for.
      denoise: a function (x_t, t, cond) -> Prediction.
      x0: (B, ...) with `levels` equally spaced values in [-1, 1].
      key: one key per image, (B,), or one for the batch.
      cond: the condition, with leading axis B.
      dequantize: 'uniform', 'process' or 'none'.
      levels: number of values that x0 can take.
      bins: distance of the values of each channel, (C,), for 'uniform'; None for that of `levels`.
      draws: number of dequantizations, K.
      trace: see `log_likelihood`.
      solver: see `log_likelihood`.

    Returns:
      The bits of each image, and the estimates that they come from.

    Raises:
      UserError: for another way to dequantize.
    """
    keys = arrays.example_keys(key, len(x0))
    probes = arrays.fold_in(keys, streams.LIKELIHOOD_PROBES)

    def weight(k):
        own = arrays.fold_in(arrays.fold_in(keys, streams.LIKELIHOOD_DEQUANTIZATION), k)
        x, offset, more = _dequantized(process, denoise, x0, own, cond, dequantize, levels, bins)
        found = log_likelihood(process, denoise, x, probes, cond, trace=trace, solver=solver)
        return found.logp + offset, found.nfe + more

    weights, nfe = jax.lax.map(weight, jnp.arange(draws))
    bits = -1 / (math.prod(x0.shape[1:]) * BIT)
    return Bits(bits * weights.mean(0), bits * log_mean_exp(weights, axis=0), weights.T, nfe.sum(0))


def _dequantized(
    process: Process,
    denoise: Denoise,
    x0: Array,
    keys: Key,
    cond: Cond,
    how: str,
    levels: int,
    bins: Sequence[float] | None,
) -> tuple[Array, Array | float, int]:
    """Dequantizes x0: (x, bound of log P(x0) minus log p(x), network evaluations)."""
    if how not in ("uniform", "process", "none"):
        raise unknown("dequantization", how, ("uniform", "process", "none"))
    if how == "process":
        return *_noised(process, denoise, x0, keys, cond, levels), 1
    if how == "uniform" and bins is not None:
        return *in_bins_of_channels(x0, keys, bins), 0
    return *in_bins(x0, keys, levels, 1.0 if how == "uniform" else 0.0), 0


def _noised(
    process: Process, denoise: Denoise, x0: Array, keys: Key, cond: Cond, levels: int
) -> tuple[Array, Array]:
    """Dequantizes by the process: (x ~ q(x_t_min | x0), log P(x0 | x) - log q(x | x0))."""
    t, eps = jnp.asarray(process.t_min, x0.dtype), arrays.noise(keys, x0)
    x = gaussian.corrupt(process, x0, eps, t).x_t
    log_std = jnp.log(process.sigma(t))
    log_q = -sum_per_example(0.5 * eps**2 + log_std + 0.5 * math.log(2 * math.pi))
    mean = denoise(x, t, cond).x0
    return x, sum_per_example(log_bin(x0, mean, 2 * log_std, levels)) - log_q


def mean_with_error(values: Array) -> tuple[float, float]:
    """Returns the mean of independent values (N,) and its standard error, std / sqrt(N).

    Args:
      values: one value per image, (N,), in any unit.

    Returns:
      The mean and its standard error in the unit of the values. The standard error of fewer than
      two values is NaN.
    """
    values = np.asarray(values, np.float64)
    if len(values) < 2:
        return float(values.mean()), math.nan
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))
