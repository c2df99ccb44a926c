"""The Gaussian noise of a sampler's steps: fresh in every step, or from one Brownian path."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.core import arrays, streams
from diffusion_jax.core.deferred import deferred
from diffusion_jax.core.types import Array, Key, Process
from diffusion_jax.processes import gaussian

diffrax = deferred("diffrax")


class Noise(NamedTuple):
    """The unit Gaussian noise of one step of a sampler, in arrays (B, ...).

    Attributes:
      path: path(t, s, part=0) is the standardized increment of the driving Brownian motion between
        the times t and s. A step that needs the increments of several disjoint intervals numbers
        them by `part`.
      extra: extra(i) is independent of the path and of every other i; for moves at a fixed time,
        such as Langevin steps.
    """

    path: Callable[..., Array]
    extra: Callable[[int | Array], Array]


NoiseOfStep = Callable[[Array], Noise]  # the number of a step -> its Noise


def silence(x: Array) -> Noise:
    """Returns zeros instead of noise, for steps of deterministic samplers outside of `sample`.

    Args:
      x: array (B, ...) whose shape and dtype the zeros have.
    """
    return Noise(lambda t, s, part=0: jnp.zeros_like(x), lambda i: jnp.zeros_like(x))


def independent(process: Process, keys: Key, x: Array) -> NoiseOfStep:
    """Draws fresh Gaussian noise in every step, from the image's key and the number of the step.

    Args:
      process: not used; every source of noise has the same arguments.
      keys: one key per image, (B,).
      x: array (B, ...) whose shape and dtype the noise has.

    Returns:
      A function of the number of a step that returns its noise.
    """

    def of_step(i: Array) -> Noise:
        own = arrays.fold_in(keys, i)
        return Noise(
            lambda t, s, part=0: arrays.noise(arrays.fold_in(own, part) if part else own, x),
            lambda i: arrays.noise(arrays.fold_in(own, streams.STEP_EXTRA + i), x),
        )

    return of_step


def brownian(process: Process, keys: Key, x: Array, *, levels: int = 14) -> NoiseOfStep:
    """Draws the increments of one Brownian path per image, which is the same on every grid.

    SDE solvers with different numbers of steps then follow the same path. The path is a virtual
    Brownian tree (Li et al. 2020, sec. 4; k-diffusion) whose clock is the log-SNR between the
    process's ends, so it is also the same under every process with these ends.

    Args:
      process: the process whose log-SNR is the clock.
      keys: one key per image, (B,).
      x: array (B, ...) whose shape and dtype the noise has.
      levels: the path is resolved to 2^-levels of the clock; finer steps interpolate it.

    Returns:
      A function of the number of a step that returns its noise.
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
            arrays.fold_in(keys, streams.BROWNIAN_PATH)
        )
        return increment * jax.lax.rsqrt(late - early)

    return lambda i: Noise(path, independent(process, keys, x)(i).extra)
