"""What a sampler is, and the one loop that runs them all.

A sampler moves x from time t to time s < t; it is handed the denoiser itself, so it may look wherever its order demands. To add
one, write a function that returns a Sampler; every test of the family and `experiments.compare_samplers` pick it up.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax import arrays
from diffusion_jax.processes import gaussian
from diffusion_jax.types import Array, Cond, Denoise, Key, Process


class Noise(NamedTuple):
    """Where one step's unit Gaussians, (B, ...), come from.

    path(t, s, part=0): the standardised increment of the driving Brownian motion between times t and s. A step that draws for several,
    disjoint intervals numbers them by `part`. extra(i): independent of the path and of each other, for moves at a fixed time.
    """

    path: Callable[..., Array]
    extra: Callable[[int | Array], Array]


class Sampler(NamedTuple):
    """init(x, ts) -> memory, () for a one-step method;  step(noise, x, memory, t, s, denoise, process) -> (x, memory).

    ts: the whole grid; copies of its last time at the end do not count. noise: this step's Noise; x: (B, ...); t, s: scalars;
    denoise(x, t) has its condition bound already. nfe: network evaluations per step.
    """

    init: Callable[[Array, Array], Any]
    step: Callable[..., tuple[Array, Any]]
    nfe: int = 1


def memoryless(step: Callable[..., Array], nfe: int = 1) -> Sampler:
    """A Sampler from step(noise, x, t, s, denoise, process) -> x."""
    return Sampler(lambda x, ts: (), lambda noise, x, memory, *rest: (step(noise, x, *rest), memory), nfe)


def independent(process: Process, keys: Key, x: Array) -> Callable[[Array], Noise]:
    """Fresh Gaussians in every step, from the image's key and the step's number: the field's usual choice. keys: (B,)."""

    def of_step(i: Array) -> Noise:
        own = arrays.fold_in(keys, i)
        return Noise(
            lambda t, s, part=0: arrays.noise(arrays.fold_in(own, part) if part else own, x),
            lambda i: arrays.noise(arrays.fold_in(own, 0x10000 + i), x),
        )

    return of_step


def brownian(process: Process, keys: Key, x: Array, *, levels: int = 14) -> Callable[[Array], Noise]:
    """Increments of one Brownian path per image, whatever the grid: SDE solvers of different NFE then follow the same path.

    A virtual Brownian tree (Li et al. 2020, sec. 4; k-diffusion) whose clock is the log-SNR between the process's ends, so that it is also the same under
    every process with these ends. It is resolved to 2^-levels of the clock; finer steps interpolate. keys: (B,).
    """
    import diffrax

    ends = [gaussian.logsnr(process, jnp.asarray(t, x.dtype)) for t in (process.t_max, process.t_min)]

    def tree(key):
        like = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
        return diffrax.VirtualBrownianTree(0.0, 1.0, tol=2.0**-levels, shape=like, key=key)

    def clock(t):
        return jnp.clip((gaussian.logsnr(process, t) - ends[0]) / (ends[1] - ends[0]), 0.0, 1.0)

    def path(t, s, part=0):
        early, late = clock(t), clock(s)
        increment = jax.vmap(lambda key: tree(key).evaluate(early, late))(arrays.fold_in(keys, 0x7FFFFFFE))
        return increment * jax.lax.rsqrt(late - early)

    return lambda i: Noise(path, independent(process, keys, x)(i).extra)


def sample(sampler: Sampler, denoise: Denoise, process: Process, key: Key, x: Array, ts: Array, cond: Cond = None, *,
           observe: Callable[[Array, Array], Any] | None = None, padded: bool = False, noise=independent):
    """Run x, at time ts[0], down the decreasing times ts, and end with the posterior mean x0-hat at ts[-1].

    key: one key per image, (B,), or a single key that is folded with each image's index; an image depends on its own key alone.
    The last move to x0-hat is made here, once, for every sampler: none ever divides by sigma = 0.
    padded: ts may end in copies of its last time, to which no move is made; so one compiled program serves grids of any length up to
    len(ts), at the price of reverse-mode differentiation and of observe.
    noise: `independent`, or `brownian`, which gives every grid the same Brownian path.
    Returns x0 (B, ...); with observe(x, t) -> pytree, also that pytree stacked over ts[1:].
    """
    noises = noise(process, arrays.example_keys(key, x.shape[0]), x)

    def bound(x_t, t):
        return denoise(x_t, t, cond)

    def move(carry, inputs):
        i, t, s = inputs
        x, memory = sampler.step(noises(i), *carry, t, s, bound, process)
        return (x, memory), observe(x, s) if observe else None

    ts = jnp.asarray(ts, x.dtype)
    carry, steps = (x, sampler.init(x, ts)), (jnp.arange(len(ts) - 1), ts[:-1], ts[1:])
    if padded:
        moves = jnp.sum(ts[1:] < ts[:-1])
        (x, _), seen = jax.lax.fori_loop(0, moves, lambda i, c: move(c, [step[i] for step in steps])[0], carry), None
    else:
        (x, _), seen = jax.lax.scan(move, carry, steps)
    x0 = bound(x, ts[-1]).x0
    return x0 if observe is None else (x0, seen)


def start(process: Process, key: Key, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """x_T, the prior's draw for a batch of `shape`. Uses each image's key in a stream that no step uses."""
    keys = arrays.fold_in(arrays.example_keys(key, shape[0]), 0x7FFFFFFF)
    return gaussian.prior(process, arrays.noise(keys, jnp.zeros(shape, dtype)))


def points(sampler: Sampler, nfe: int) -> int:
    """How many grid points a budget of `nfe` network evaluations buys: the last point costs one, every step sampler.nfe."""
    return max((nfe - 1) // sampler.nfe, 0) + 1


def evaluations(sampler: Sampler, ts: Array) -> int:
    """NFE of `sample` on these times."""
    return (len(ts) - 1) * sampler.nfe + 1
