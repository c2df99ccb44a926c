"""Many images from a sampler: seeds, batches of one size, a progress bar, and the file they end in.

One seed is one image: seed k gives the key jax.random.key(k), and image i depends on keys[i] alone, so the same seed
gives the same image whatever the batch size, the number of devices and the other images asked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.progress import progress as progress_bar
from diffusion_jax.provenance import atomic_path
from diffusion_jax.types import Array, Cond, Key

MAX_SEEDS = 10_000_000


def generate(
    sample_fn: Callable[[Key, Cond], Array],
    keys: Key,
    cond: dict[str, Any] | None = None,
    *,
    batch_size: int,
    progress: bool = True,
    description: str = "sampling",
    finish: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Images for keys (N,): uint8 (N, ...). sample_fn(keys (B,), cond) -> (B, ...) in [-1, 1], jitted by the caller.

    finish: what becomes of a batch on the host, None: to_uint8 (points in a plane stay what they are).

    Every batch has exactly `batch_size` examples (the last is filled up with copies of the last example, which are
    dropped), so sample_fn compiles once, over calls too. cond: a dict of (N, ...) arrays, sliced along, or None. Several
    devices or processes are the affair of sample_fn (experiment.sample_with). Raises UserError for a cond of another
    length and for images that are not finite.
    """
    count = len(keys)
    for name, values in (cond or {}).items():
        if len(values) != count:
            raise UserError(f"cond['{name}'] has {len(values)} entries for {count} images; give one for each")
    if count == 0 or batch_size < 1:
        raise UserError(f"sampling needs at least one image, one a batch; got {count} images, batch size {batch_size}")
    images = []
    with progress_bar(count, description, enabled=progress) as advance:
        for start in range(0, count, batch_size):
            index = np.minimum(np.arange(start, start + batch_size), count - 1)
            real = min(batch_size, count - start)
            batch = sample_fn(keys[index], jax.tree.map(lambda values: values[index], cond))
            images.append((finish or to_uint8)(finite(np.asarray(batch)[:real])))
            advance(real)
    return np.concatenate(images)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """[-1, 1] -> {0, ..., 255}: clip, then round (x + 1) 127.5. Inverse of x = 2 u / 255 - 1. UserError for NaN."""
    images = finite(np.asarray(images, np.float32))
    return np.rint((np.clip(images, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)


def finite(samples: np.ndarray) -> np.ndarray:
    """The samples (N, ...) themselves. UserError if a value is NaN or infinite, so that no command writes such samples."""
    if not np.isfinite(samples).all():
        bad = (~np.isfinite(samples)).reshape(len(samples), -1).any(1).sum()
        raise UserError(f"{bad} of {len(samples)} samples are not finite; take more steps, another sampler, or clip x0")
    return samples


def seeds_to_keys(seeds: Sequence[int]) -> Key:
    """One key per seed, (N,): jax.random.key(seed). N images from a root seed k are `range(k, k + N)`."""
    return jax.vmap(jax.random.key)(jnp.asarray(np.asarray(seeds, np.uint32)))


def parse_seeds(text: str) -> list[int]:
    """'0-63,100' -> [0, ..., 63, 100]. UserError for anything but distinct whole numbers below 2^32."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not match:
            raise UserError(f"seeds '{text}': '{part.strip()}' is no number and no range; write for example 0-63,100")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last >= 2**32:
            raise UserError(f"seeds '{text}': '{part.strip()}' must go up and stay below 2^32; write for example 0-63")
        if len(seeds) + last - first >= MAX_SEEDS:
            raise UserError(f"seeds '{text}' are more than {MAX_SEEDS:,} images; ask for fewer at a time")
        seeds.extend(range(first, last + 1))
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds '{text}' name an image twice; list each seed once")
    return seeds


def save_npz(path: str | os.PathLike, images: np.ndarray, labels=None, seeds=None, **arrays) -> None:
    """Write images uint8 (N, ...), labels, seeds and any further arrays under their names to an .npz, atomically."""
    arrays = {"images": images, "labels": labels, "seeds": seeds} | arrays
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **{name: np.asarray(value) for name, value in arrays.items() if value is not None})
