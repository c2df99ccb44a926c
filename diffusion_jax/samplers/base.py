"""What a sampler is, and the one loop that runs them all.

A sampler moves x from time t to time s < t; it is handed the denoiser itself, so it may look
wherever its order demands. To add one, write a function that returns a Sampler; every test of the
family and `experiments.compare_samplers` pick it up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import arrays
from diffusion_jax.errors import UserError
from diffusion_jax.processes import gaussian
from diffusion_jax.types import Array, Cond, Denoise, Key, Prediction, Process


class Noise(NamedTuple):
    """Where one step's unit Gaussians, (B, ...), come from.

    path(t, s, part=0): the standardised increment of the driving Brownian motion between times t
    and s. A step that draws for several, disjoint intervals numbers them by `part`. extra(i):
    independent of the path and of each other, for moves at a fixed time.
    """

    path: Callable[..., Array]
    extra: Callable[[int | Array], Array]


class Sampler(NamedTuple):
    """init(x, ts) -> memory, () for a one-step method;  step(noise, x, memory, t, s, denoise, process) -> (x, memory).

    ts: the whole grid; copies of its last time at the end do not count. noise: this step's Noise;
    x: (B, ...); t, s: scalars; denoise(x, t) has its condition bound already (`bind`). nfe: network
    evaluations per step; warmup: what the first steps make beyond that. spent(memory) -> (B,): the
    evaluations so far of an adaptive method, whose nfe is 0 because its tolerance decides.
    grid: the grid of samplers/grids.py that suits it, as a spec; what config.sampler.grid='auto'
      means.
    """

    init: Callable[[Array, Array], Any]
    step: Callable[..., tuple[Array, Any]]
    nfe: int = 1
    warmup: tuple[int, ...] = ()
    spent: Callable[[Any], Array] | None = None
    grid: str = "logistic()"


def memoryless(step: Callable[..., Array], nfe: int = 1, grid: str = "logistic()") -> Sampler:
    """A Sampler from step(noise, x, t, s, denoise, process) -> x."""
    return Sampler(
        lambda x, ts: (),
        lambda noise, x, memory, *rest: (step(noise, x, *rest), memory),
        nfe,
        grid=grid,
    )


def noise_range(sampler: str, S_min: float, S_max: float) -> None:
    """Checks the levels sigma / alpha between which a sampler adds noise: UserError unless 0 <=
    S_min <= S_max.
    """
    if not 0 <= S_min <= S_max:
        raise UserError(
            f"{sampler}(S_min={S_min}, S_max={S_max}): S_min is 0 or above, and S_max not below it"
        )


def bind(denoise: Denoise, cond: Cond) -> Callable[..., Prediction]:
    """denoise as a step is handed it: bound(x, t), and bound(x, t, to=s), which tells a network of
    two times where the move ends.
    """

    def bound(x_t: Array, t: Array, to: Array | None = None) -> Prediction:
        return denoise(
            x_t,
            t,
            cond if to is None else (cond or {}) | {"to": jnp.broadcast_to(to, x_t.shape[:1])},
        )

    return bound


def silence(x: Array) -> Noise:
    """No noise, for the steps of deterministic samplers outside `sample`."""
    return Noise(lambda t, s, part=0: jnp.zeros_like(x), lambda i: jnp.zeros_like(x))


def independent(process: Process, keys: Key, x: Array) -> Callable[[Array], Noise]:
    """Fresh Gaussians in every step, from the image's key and the step's number: the field's usual
    choice. keys: (B,).
    """

    def of_step(i: Array) -> Noise:
        own = arrays.fold_in(keys, i)
        return Noise(
            lambda t, s, part=0: arrays.noise(arrays.fold_in(own, part) if part else own, x),
            lambda i: arrays.noise(arrays.fold_in(own, 0x10000 + i), x),
        )

    return of_step


def brownian(
    process: Process, keys: Key, x: Array, *, levels: int = 14
) -> Callable[[Array], Noise]:
    """Increments of one Brownian path per image, whatever the grid: SDE solvers of different NFE
    then follow the same path.

    A virtual Brownian tree (Li et al. 2020, sec. 4; k-diffusion) whose clock is the log-SNR between
    the process's ends, so that it is also the same under every process with these ends. It is
    resolved to 2^-levels of the clock; finer steps interpolate. keys: (B,).
    """
    ends = [
        gaussian.logsnr(process, jnp.asarray(t, x.dtype)) for t in (process.t_max, process.t_min)
    ]

    def tree(key):
        like = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
        return diffrax.VirtualBrownianTree(0.0, 1.0, tol=2.0**-levels, shape=like, key=key)

    def clock(t):
        return jnp.clip((gaussian.logsnr(process, t) - ends[0]) / (ends[1] - ends[0]), 0.0, 1.0)

    def path(t, s, part=0):
        early, late = clock(t), clock(s)
        increment = jax.vmap(lambda key: tree(key).evaluate(early, late))(
            arrays.fold_in(keys, 0x7FFFFFFE)
        )
        return increment * jax.lax.rsqrt(late - early)

    return lambda i: Noise(path, independent(process, keys, x)(i).extra)


def sample(
    sampler: Sampler,
    denoise: Denoise,
    process: Process,
    key: Key,
    x: Array,
    ts: Array,
    cond: Cond = None,
    *,
    observe: Callable[[Array, Array], Any] | None = None,
    padded: bool = False,
    noise=independent,
    count: bool = False,
):
    """Run x, at time ts[0], down the decreasing times ts, and end with the posterior mean x0-hat at
    ts[-1].

    key: one key per image, (B,), or a single key that is folded with each image's index; an image
    depends on its own key alone. The last move to x0-hat is made here, once, for every sampler:
    none ever divides by sigma = 0.
    padded: ts may end in copies of its last time, to which no move is made; so one compiled program
    serves grids of any length up to len(ts), at the price of reverse-mode differentiation and of
    observe.
    noise: `independent`, or `brownian`, which gives every grid the same Brownian path.
    Returns x0 (B, ...); with observe(x, t) -> pytree, also that pytree stacked over ts[1:]; with
    count, also the NFE of each image, (B,). Raises UserError for times that do not decrease, where
    they are known: times that are traced cannot be checked.
    """
    _check_times(ts, padded)
    noises = noise(process, arrays.example_keys(key, x.shape[0]), x)

    bound = bind(denoise, cond)

    def move(carry, inputs):
        i, t, s = inputs
        x, memory = sampler.step(noises(i), *carry, t, s, bound, process)
        return (x, memory), observe(x, s) if observe else None

    ts = jnp.asarray(ts, x.dtype)
    carry, steps = (x, sampler.init(x, ts)), (jnp.arange(len(ts) - 1), ts[:-1], ts[1:])
    moves = jnp.sum(ts[1:] < ts[:-1])
    if padded and len(ts) > 1:  # a grid of one time has no move to trace
        (x, memory), seen = (
            jax.lax.fori_loop(
                0, moves, lambda i, c: move(c, [step[i] for step in steps])[0], carry
            ),
            None,
        )
    else:
        (x, memory), seen = jax.lax.scan(move, carry, steps)
    x0 = bound(x, ts[-1]).x0
    extra = (() if observe is None else (seen,)) + (
        (_spent(sampler, memory, moves, len(x)),) if count else ()
    )
    return (x0, *extra) if extra else x0


def _check_times(ts: Array, padded: bool) -> None:
    """UserError unless the times ts (n,) decrease strictly; padded: but for copies of the last at
    the end. Traced ones pass.
    """
    if isinstance(ts, jax.core.Tracer):
        return
    times = np.asarray(ts, np.float64)
    if times.ndim != 1 or not len(times):
        raise UserError(
            f"the times of a sampler are an array (n,) of at least one; got one of shape {times.shape}"
        )
    for i in np.flatnonzero(~np.isfinite(times)):
        raise UserError(f"the times of a sampler are numbers; got ts[{i}]={times[i]:g}")
    moves = times[: np.argmax(times == times[-1]) + 1] if padded else times
    for i in np.flatnonzero(np.diff(moves) >= 0):
        raise UserError(
            f"the times of a sampler decrease, from noise to data; got ts[{i}]={times[i]:g}, then ts[{i + 1}]={times[i + 1]:g}. "
            "Take a grid of samplers/grids.py, or reverse the array"
        )
    if np.any(times[len(moves) :] != times[-1]):
        raise UserError(
            "a padded grid of times ends in copies of its last time; got another after the first of them"
        )


def encode(
    sampler: Sampler, denoise: Denoise, process: Process, x0: Array, ts: Array, cond: Cond = None
) -> Array:
    """The noise that the sampler turns into x0: the same steps up the times ts, from ts[-1] to
    ts[0] (DDIM inversion; Song et al. 2021, sec. 5.4).

    A deterministic sampler, ts as for `sample`. x0 (B, ...) is taken to be x_t / alpha at ts[-1],
    which adds no noise of its own. Returns x at ts[0], (B, ...). Raises UserError for a sampler
    that draws noise, and for times that do not decrease (traced times cannot be checked).
    """
    _check_times(ts, padded=False)
    if draws_noise(sampler, process):
        raise UserError(
            "only a deterministic sampler can encode; take for example ancestral.ddim, ode.heun or multistep.dpmpp_2m"
        )
    ts = jnp.asarray(ts, x0.dtype)[::-1]
    nothing, bound = silence(x0), bind(denoise, cond)

    def move(carry, times):
        return sampler.step(nothing, *carry, *times, bound, process), None

    x = process.alpha(ts[0]) * x0
    return jax.lax.scan(move, (x, sampler.init(x, ts)), (ts[:-1], ts[1:]))[0][0]


def draws_noise(sampler: Sampler, process: Process) -> bool:
    """Whether the sampler is stochastic: told by tracing one step."""
    asked = []

    def step(x, t, s):
        ts = jnp.stack([t, s])
        noise = Noise(lambda t, s, part=0: asked.append(1) or x, lambda i: asked.append(1) or x)

        def denoise(x, t, to=None):
            return Prediction(x, x, x)

        return sampler.step(noise, x, sampler.init(x, ts), t, s, denoise, process)

    scalar = jax.ShapeDtypeStruct((), jnp.float32)
    jax.eval_shape(step, jax.ShapeDtypeStruct((1, 1), jnp.float32), scalar, scalar)
    return bool(asked)


def start(process: Process, key: Key, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """x_T, the prior's draw for a batch of `shape`. Uses each image's key in a stream that no step
    uses.
    """
    keys = arrays.fold_in(arrays.example_keys(key, shape[0]), 0x7FFFFFFF)
    return gaussian.prior(process, arrays.noise(keys, jnp.zeros(shape, dtype)))


# ---- what it costs
def adaptive(sampler: Sampler) -> bool:
    """Whether the sampler chooses its own steps: then its grid is the two ends, and its NFE is
    known only afterwards.
    """
    return sampler.spent is not None


def points(sampler: Sampler, nfe: int) -> int:
    """How many grid points a budget of `nfe` network evaluations buys: the last costs one, every
    step sampler.nfe and its warm-up. 2 if adaptive.
    """
    if adaptive(sampler):
        return 2
    steps = 0
    while _cost(sampler, steps + 1) < nfe:
        steps += 1
    return steps + 1


def evaluations(sampler: Sampler, ts: Array) -> int:
    """NFE of `sample` on these times. UserError for an adaptive sampler, whose images each say it
    themselves: sample(..., count=True).
    """
    if adaptive(sampler):
        raise UserError(
            "the evaluations of an adaptive sampler are counted while it runs: base.sample(..., count=True)"
        )
    return _cost(sampler, len(ts) - 1) + 1


def _cost(sampler: Sampler, steps: int) -> int:
    return steps * sampler.nfe + sum(sampler.warmup[:steps])


def _spent(sampler: Sampler, memory: Any, moves: Array, batch: int) -> Array:
    """The NFE of each image, (B,), after `moves` steps."""
    if adaptive(sampler):
        return sampler.spent(memory) + 1
    warmup = jnp.asarray([sum(sampler.warmup[:i]) for i in range(len(sampler.warmup) + 1)])
    return jnp.broadcast_to(
        moves * sampler.nfe + warmup[jnp.minimum(moves, len(sampler.warmup))] + 1, (batch,)
    )
