"""Small array helpers. `noise` is the only function of the package that draws Gaussian images."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from diffusion_jax.core.types import Array, Key, Params


def expand(t: Array, x: Array) -> Array:
    """Returns t with the trailing axes that broadcast it against x.

    Args:
      t: scalar, or one value per example, (B,).
      x: array whose number of axes the result has, (B, ...).

    Returns:
      t, of shape (1, ..., 1) or (B, 1, ..., 1).
    """
    t = jnp.asarray(t)
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def mean_per_example(x: Array) -> Array:
    """Returns the mean over all axes but the first.

    Args:
      x: array of at least one axis, (B, ...).

    Returns:
      The means, (B,).
    """
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))


def sum_per_example(x: Array) -> Array:
    """Returns the sum over all axes but the first.

    Args:
      x: array of at least one axis, (B, ...).

    Returns:
      The sums, (B,).
    """
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def tree_lerp(old: Params, new: Params, weight: float | Array) -> Params:
    """Returns old + weight (new - old), leaf by leaf.

    Args:
      old: pytree of arrays, the result for weight 0.
      new: pytree of the same structure and shapes, the result for weight 1.
      weight: share of `new`, a scalar; an EMA of rate r has 1 - r.
    """
    return jax.tree.map(lambda a, b: a + weight * (b - a), old, new)


def once(x: Array) -> Array:
    """Returns a finite scalar as it is, which XLA's CPU then computes once.

    XLA's CPU repeats the arithmetic of a scalar in the program of every array that uses it, of
    which a train step has several for each leaf of the parameters. It does not repeat a remainder,
    here by a number so large that it changes nothing.

    Args:
      x: scalar of a floating type, below the largest number of that type.
    """
    return jax.lax.rem(x, jnp.full_like(x, jnp.finfo(x.dtype).max))


def example_keys(key: Key, batch: int, offset: int | Array = 0) -> Key:
    """Returns one key per example, (batch,).

    The key of example i depends on (key, offset + i) alone: not on the batch size, and not on how
    the batch is distributed over devices.

    Args:
      key: one key per example, (batch,), which is returned as it is; or a single key, which is
        folded with the index of each example. Raw keys of jax.random.PRNGKey, (2,) or (batch, 2),
        are converted to typed keys.
      batch: number of examples.
      offset: index of the first example.

    Raises:
      ValueError: for another number of keys.
    """
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if key.ndim == 1:
        if key.shape[0] != batch:
            raise ValueError(
                f"one key per example is needed: got {key.shape[0]} keys for a batch of {batch}"
            )
        return key
    return jax.vmap(jax.random.fold_in, (None, 0))(key, offset + jnp.arange(batch))


def fold_in(keys: Key, data: int | Array) -> Key:
    """Returns jax.random.fold_in of one key, or of each key of a (B,) array.

    Args:
      keys: one typed key, or one per example, (B,).
      data: the number that is folded into every key, from 0 to 2^32 - 1; core/streams.py names
        them.

    Returns:
      The new keys, of keys' shape.
    """
    return (
        jax.vmap(jax.random.fold_in, (0, None))(keys, data)
        if keys.ndim
        else jax.random.fold_in(keys, data)
    )


def noise(keys: Key, x: Array) -> Array:
    """Returns unit Gaussian noise of x's shape (B, ...) and dtype, image i from keys[i] alone.

    Args:
      keys: one key per image, (B,), or one for the batch.
      x: array whose shape and dtype the noise has.
    """
    keys = example_keys(keys, x.shape[0])
    return jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], x.dtype))(keys)


def uniform(keys: Key, **bounds: float) -> Array:
    """Returns one uniform number per key, from [0, 1) unless bounds are given.

    Args:
      keys: one typed key per number, (B,).
      **bounds: minval and maxval of jax.random.uniform, which draws from [minval, maxval).

    Returns:
      The numbers, (B,) float32.
    """
    return jax.vmap(lambda k: jax.random.uniform(k, **bounds))(keys)


_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("target", default=None)


def platform() -> str:
    """Returns the platform that programs are now traced for: 'cpu', 'gpu' or 'tpu'.

    It is JAX's default backend, or the one of an enclosing `compiling_for`.
    """
    return _target.get() or jax.default_backend()


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Programs traced in this context are for devices of that platform, which need not be present.

    It works for new functions only: JAX does not trace a function again that it has traced on such
    arguments before. The ahead-of-time compilation of planning/ uses it.

    Args:
      platform: 'cpu', 'gpu' or 'tpu', which `platform()` returns in the context.
    """
    token = _target.set(platform)
    try:
        yield
    finally:
        _target.reset(token)
