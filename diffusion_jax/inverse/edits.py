"""Edits of images by a diffusion model: interpolation, translation and SDEdit.

Interpolation and translation use that a deterministic sampler can run from an image to its noise
and back.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from diffusion_jax.core import arrays, streams
from diffusion_jax.core.arrays import expand
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Cond, Denoise, Key, Process
from diffusion_jax.samplers import base
from diffusion_jax.samplers.base import Sampler


def slerp(a: Array, b: Array, weight: float | Array) -> Array:
    """Spherical interpolation of noises (Shoemake 1985), for each example on its own circle.

    Args:
      a: (B, ...), the result at weight 0.
      b: (B, ...), the result at weight 1.
      weight: scalar in [0, 1].

    Returns:
      (B, ...).
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
    """Interpolates between images (DDIM; Song et al. 2021, sec. 5.3).

    The noises of a and b are interpolated by `slerp` and decoded.

    Args:
      sampler: a deterministic sampler, which also encodes a and b.
      denoise: a function (x_t, t, cond) -> Prediction.
      process: the process of the denoiser.
      a: images, (B, ...), at weight 0.
      b: images, (B, ...), at weight 1.
      weights: weights of b, (W,), from 0 (a) to 1 (b).
      ts: decreasing times, (n,).
      conds: the conditions of a and b; an image in between has that of the nearer end.

    Returns:
      Images, (W, B, ...).
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
    """Interpolates between noises: decodes their `slerp`.

    Consistency models, whose samplers cannot encode, interpolate between their own images this way
    (Song et al. 2023, sec. 6.3).

    Args:
      sampler: any sampler; a stochastic one draws the same noise for every weight.
      denoise: a function (x_t, t, cond) -> Prediction.
      process: the process of the denoiser.
      keys: one key per image, (B,), or one for the batch; the same for every weight.
      a: x at ts[0], (B, ...), at weight 0.
      b: x at ts[0], (B, ...), at weight 1.
      weights: weights of b, (W,), from 0 (a) to 1 (b).
      ts: decreasing times, (n,).
      conds: the conditions of a and b; an image in between has that of the nearer end.

    Returns:
      Images, (W, B, ...).
    """

    def decode(weight: Array) -> Array:
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
    """Decodes the noise of x0 under another condition.

    These are dual diffusion implicit bridges (Su et al. 2023).

    Args:
      sampler: a deterministic sampler, which also encodes x0.
      denoise: a function (x_t, t, cond) -> Prediction.
      process: the process of the denoiser.
      x0: images, (B, ...).
      ts: decreasing times, (n,).
      source: the condition of x0.
      target: the condition of the result.

    Returns:
      Images, (B, ...).
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
    """SDEdit (Meng et al. 2022, algorithm 1): noises a guide image and denoises it.

    Args:
      sampler: any sampler, which starts at the noised guide.
      denoise: a function (x_t, t, cond) -> Prediction.
      process: the process of the denoiser.
      key: one for each image, (B,), or one for the batch.
      guide: images, (B, ...).
      ts: decreasing times; the guide is noised to ts[0].
      cond: the condition of the result, with leading axis B, or None.

    Returns:
      Images, (B, ...).
    """
    keys = arrays.example_keys(key, len(guide))
    eps = arrays.noise(arrays.fold_in(keys, streams.PRIOR), guide)
    x = process.alpha(ts[0]) * guide + process.sigma(ts[0]) * eps
    return base.sample(sampler, denoise, process, keys, x, ts, cond).x0


def last_moves(ts: Array, strength: float) -> Array:
    """The end of a grid of times, for `sdedit`.

    Args:
      ts: decreasing times, (n + 1,).
      strength: the share of the moves to make, in (0, 1]; at least one is made.

    Returns:
      The last times.

    Raises:
      UserError: if `strength` is out of range.
    """
    if not 0 < strength <= 1:
        raise UserError(
            f"strength={strength} of SDEdit: the share of the moves that are made, above 0 and at "
            "most 1"
        )
    return ts[-(1 + max(1, round(strength * (len(ts) - 1)))) :]
