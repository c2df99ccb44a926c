"""Edits of images by a diffusion model: interpolation, blending, translation and SDEdit."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from diffusion_jax import arrays, streams
from diffusion_jax.arrays import expand
from diffusion_jax.errors import UserError
from diffusion_jax.samplers import base
from diffusion_jax.samplers.base import Sampler
from diffusion_jax.types import Array, Cond, Denoise, Key, Process


# ---- edits: what a deterministic sampler's way to the noise and back is good for
def slerp(a: Array, b: Array, weight: float | Array) -> Array:
    """Spherical interpolation of noises (Shoemake 1985), each example on its own circle; a at
    weight 0, b at 1. (B, ...).
    """
    dot = arrays.sum_per_example(a * b) * jax.lax.rsqrt(
        arrays.sum_per_example(a**2) * arrays.sum_per_example(b**2)
    )
    near = 1 - jnp.abs(dot) < 1e-6  # parallel: the straight line is the limit
    angle = jnp.arccos(jnp.where(near, 0.0, dot))
    parts = [jnp.where(near, w, jnp.sin(w * angle) / jnp.sin(angle)) for w in (1 - weight, weight)]
    return expand(parts[0], a) * a + expand(parts[1], b) * b


def interpolate(
    sampler: Sampler,
    denoise: Denoise,
    process: Process,
    a: Array,
    b: Array,
    weights: Array,
    ts: Array,
    conds: tuple[Cond, Cond] = (None, None),
) -> Array:
    """Images on the way from a to b (B, ...): slerp between their encodings, decoded (Song et al.
    2021, DDIM, sec. 5.3).

    conds: of a and of b; an image on the way has that of the nearer end. Returns (W, B, ...).
    """
    noises = [
        base.encode(sampler, denoise, process, x0, ts, cond) for x0, cond in zip((a, b), conds)
    ]
    return blend(sampler, denoise, process, jax.random.key(0), *noises, weights, ts, conds)


def blend(
    sampler: Sampler,
    denoise: Denoise,
    process: Process,
    keys: Key,
    a: Array,
    b: Array,
    weights: Array,
    ts: Array,
    conds: tuple[Cond, Cond] = (None, None),
) -> Array:
    """Images of the slerps between the starts a and b (B, ...), x at ts[0], with the keys (of a
    stochastic sampler) the same all the way.

    So consistency models, whose samplers cannot encode, interpolate between their own images (Song
    et al. 2023, sec. 6.3). conds, and what is returned: as `interpolate`.
    """

    def decode(weight):
        cond = jax.tree.map(lambda p, q: jnp.where(weight < 0.5, p, q), *conds)
        return base.sample(sampler, denoise, process, keys, slerp(a, b, weight), ts, cond).x0

    return jax.lax.map(decode, jnp.asarray(weights))


def translate(
    sampler: Sampler,
    denoise: Denoise,
    process: Process,
    x0: Array,
    ts: Array,
    source: Cond,
    target: Cond,
) -> Array:
    """The noise of x0 under one condition, decoded under another (Su et al. 2023, dual diffusion
    implicit bridges).
    """
    noise = base.encode(sampler, denoise, process, x0, ts, source)
    return base.sample(sampler, denoise, process, jax.random.key(0), noise, ts, target).x0


def sdedit(
    sampler: Sampler,
    denoise: Denoise,
    process: Process,
    key: Key,
    guide: Array,
    ts: Array,
    cond: Cond = None,
) -> Array:
    """SDEdit (Meng et al. 2022, algorithm 1): the guide (B, ...), noised to time ts[0], is denoised
    by any sampler.
    """
    keys = arrays.example_keys(key, len(guide))
    eps = arrays.noise(arrays.fold_in(keys, streams.PRIOR), guide)
    return base.sample(
        sampler,
        denoise,
        process,
        keys,
        process.alpha(ts[0]) * guide + process.sigma(ts[0]) * eps,
        ts,
        cond,
    ).x0


def last_moves(ts: Array, strength: float) -> Array:
    """The last `strength` of a grid's moves, at least one. UserError outside (0, 1]."""
    if not 0 < strength <= 1:
        raise UserError(
            f"strength={strength} of SDEdit: the share of the moves that are made, above 0 and at most 1"
        )
    return ts[-(1 + max(1, round(strength * (len(ts) - 1)))) :]
