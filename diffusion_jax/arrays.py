"""Small array helpers that every room may use. `noise` is the only place of the project that draws
Gaussian images.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from diffusion_jax.types import Array, Key


def expand(t: Array, x: Array) -> Array:
    """Reshape t, a scalar or (B,), so that it broadcasts against x of shape (B, ...)."""
    t = jnp.asarray(t)
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def mean_per_example(x: Array) -> Array:
    """(B, ...) -> (B,): the mean over everything but the batch."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))


def sum_per_example(x: Array) -> Array:
    """(B, ...) -> (B,): the sum over everything but the batch."""
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def tree_lerp(old, new, weight):
    """old + weight (new - old), leaf by leaf."""
    return jax.tree.map(lambda a, b: a + weight * (b - a), old, new)


def example_keys(key: Key, batch: int, offset: int | Array = 0) -> Key:
    """One key per example, (batch,). A (batch,) key array passes through; a single key is folded
    with each example's index.

    Example i's key depends on (key, offset + i) alone: never on the batch size or on how the batch
    is laid out over devices. Raw keys of jax.random.PRNGKey, (2,) or (batch, 2), count as the typed
    keys that they stand for.
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
    """jax.random.fold_in for one key or a (B,) array of keys."""
    return (
        jax.vmap(jax.random.fold_in, (0, None))(keys, data)
        if keys.ndim
        else jax.random.fold_in(keys, data)
    )


def noise(keys: Key, x: Array) -> Array:
    """Unit Gaussian noise of x's shape (B, ...) and dtype, image i from keys[i] alone. keys: (B,)
    or one key for the batch.
    """
    keys = example_keys(keys, x.shape[0])
    return jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], x.dtype))(keys)


def uniform(keys: Key, **bounds) -> Array:
    """One uniform number per key: (B,) keys -> (B,) float32."""
    return jax.vmap(lambda k: jax.random.uniform(k, **bounds))(keys)


_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("target", default=None)


def platform() -> str:
    """'cpu', 'gpu' or 'tpu': the kind of device that what is traced now is for. jax's default,
    unless `compiling_for` says.
    """
    return _target.get() or jax.default_backend()


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Programs traced inside are for devices of that platform, which need not be here
    (planning/).

    For new functions only: jax does not trace a function anew that it has traced on such arguments
      before.
    """
    token = _target.set(platform)
    try:
        yield
    finally:
        _target.reset(token)
