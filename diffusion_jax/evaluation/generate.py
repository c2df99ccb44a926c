"""Many images from a sampler: seeds, batches of one size, a progress bar, and the file they end in.

One seed is one image: seed k gives the key jax.random.key(k), and image i depends on keys[i] alone,
so the same seed gives the same image whatever the batch size, the number of devices and the other
images.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core import npz
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.progress import progress as progress_bar
from diffusion_jax.core.types import Array, Cond, Key
from diffusion_jax.data import transforms
from diffusion_jax.data.padding import padded_batches


def generate(
    sample_fn: Callable[[Key, Cond], Array],
    keys: Key,
    cond: dict[str, Any] | None = None,
    *,
    batch_size: int,
    progress: bool | Callable[[int], None] = True,
    description: str = "sampling",
    finish: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Generate one image for each key.

    Every batch has exactly `batch_size` examples (the last is filled up with copies of the last
    example, which are dropped), so sample_fn compiles once, over several calls too.

    Args:
      sample_fn: (keys (B,), cond) -> images (B, ...) in [-1, 1], jitted by the caller; it spreads
        the work over devices and processes, if there are several.
      keys: (N,).
      cond: a dictionary of conditioning arrays (N, ...), or None.
      batch_size: examples in each batch.
      progress: whether progress is shown; or a function that is called with the number of images
        of every batch.
      description: names the progress.
      finish: what converts a batch on the host; None means `to_uint8`. Points in a plane are not
        converted.

    Returns:
      uint8 (N, ...), or what `finish` makes of the images.

    Raises:
      UserError: for a cond of another length and for images that are not finite.
    """
    count = len(keys)
    for name, values in (cond or {}).items():
        if len(values) != count:
            raise UserError(
                f"cond['{name}'] has {len(values)} entries for {count} images; give one for each"
            )
    if count == 0 or batch_size < 1:
        raise UserError(
            f"sampling needs at least one image, one a batch; got {count} images, batch size "
            f"{batch_size}"
        )
    images = []
    with progress_bar(count, description, enabled=progress is True) as advance:
        advance = progress if callable(progress) else advance
        for _, index, real in padded_batches(count, batch_size):
            own = jax.tree.map(lambda values, index=index: values[index], cond)
            batch = sample_fn(keys[index], own)
            images.append(
                (finish or transforms.to_uint8)(transforms.finite(np.asarray(batch)[:real]))
            )
            advance(real)
    return np.concatenate(images)


def seeds_to_keys(seeds: Sequence[int]) -> Key:
    """Return one key per seed, jax.random.key(seed).

    Args:
      seeds: numbers from 0 to 2^32 - 1, one for each image. N images from a root seed k have the
        seeds `range(k, k + N)`.

    Returns:
      Keys (N,).

    Raises:
      UserError: for a seed of 2^32 or more, such as one that follows the largest.
    """
    if len(seeds) and max(seeds) >= 2**32:
        raise UserError(
            f"seed {max(seeds)}: seeds must stay below 2^32; begin at {2**32 - len(seeds)} or less"
        )
    return jax.vmap(jax.random.key)(jnp.asarray(np.asarray(seeds, np.uint32)))


def save_npz(
    path: str | os.PathLike,
    images: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    seeds: Sequence[int] | None = None,
    **arrays: np.ndarray | None,
) -> None:
    """Write images and what belongs to them to an .npz file, atomically.

    Args:
      path: the file.
      images: uint8 (N, ...), or None.
      labels: (N,), or None.
      seeds: (N,), or None.
      **arrays: further arrays by name; those that are None are left out.
    """
    arrays = {"images": images, "labels": labels, "seeds": seeds} | arrays
    present = {name: value for name, value in arrays.items() if value is not None}
    npz.save(path, present, compressed=True)
