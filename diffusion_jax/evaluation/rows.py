"""Functions of the rows of an array, computed in blocks that are spread over the devices.

Feature extractors (rows are images) and metrics of pairs (rows are the features of one set, next to
all features of the other) are the same loop: one compiled shape, any number of rows, any number of
devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffusion_jax.core.progress import progress
from diffusion_jax.core.types import Array
from diffusion_jax.data.padding import padded_batches

PAIRS = 2**24  # of one block of a pairwise metric: 64 MB of float32


def over_rows(
    fn: Callable[..., Any],
    rows: np.ndarray,
    *whole: Any,
    block: int,
    describe: str = "",
    unit: str = "samples",
) -> Any:
    """Apply a function to all rows, block by block, and gather the results on the host.

    Args:
      fn: (rows (B, ...), *whole) -> a tree of arrays (B, ...), jitted by the caller; row i of the
        result may depend on row i alone. It compiles once per block size.
      rows: (N, ...).
      *whole: trees of arrays that every block needs.
      block: rows at a time over all devices, rounded up to a multiple of their number.
      describe: names the progress that is shown; '' shows none.
      unit: the unit of the progress.

    Returns:
      A tree of arrays (N, ...).

    Raises:
      ValueError: if there are no rows.
    """
    if len(rows) == 0:
        raise ValueError("no rows to work on")
    mesh = _mesh()
    block = -(-min(block, len(rows)) // mesh.size) * mesh.size
    spread, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("rows",), ()))
    whole, parts = jax.device_put(whole, everywhere), []
    with progress(len(rows), describe, enabled=bool(describe), unit=unit) as advance:
        for _, index, real in padded_batches(len(rows), block):
            done = jax.device_get(fn(jax.device_put(rows[index], spread), *whole))
            parts.append(jax.tree.map(lambda x, real=real: x[:real], done))
            advance(real)
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def over_pairs(fn: Callable[..., Any], a: np.ndarray, b: np.ndarray, *whole: Any) -> Any:
    """Apply a function of pairs of rows by `over_rows`, with blocks of about PAIRS pairs.

    Args:
      fn: (a (B, D), b (M, D), *whole) -> results with B rows.
      a: (N, D), which is cut into blocks of B rows.
      b: (M, D), which every block is paired with.
      *whole: further arguments, which every block receives whole.

    Returns:
      The results for all N rows.
    """
    return over_rows(fn, a, b, *whole, block=max(1, PAIRS // len(b)))


def squared_distances(a: Array, b: Array) -> Array:
    """Return |a_i - b_j|^2 of features, in float32 and never negative.

    Args:
      a: (B, D); large means should be subtracted first, see `centered`.
      b: (M, D).

    Returns:
      (B, M).
    """
    # no bfloat16, as the distances of neighbors are small differences
    product = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(jnp.sum(a * a, 1)[:, None] + jnp.sum(b * b, 1) - 2 * product, 0)


def centered(*sets: np.ndarray) -> tuple[np.ndarray, ...]:
    """Subtract the mean of the first set from all sets, so that distances round less.

    Args:
      *sets: features (N_i, D).

    Returns:
      The sets in float32; the mean is computed and subtracted in float64.
    """
    mean = np.mean(sets[0], 0, dtype=np.float64)
    return tuple((np.asarray(x, np.float64) - mean).astype(np.float32) for x in sets)


def devices() -> int:
    """Return the number of devices that share a block."""
    return jax.local_device_count()


def _mesh() -> Mesh:
    return jax.make_mesh(
        (devices(),), ("rows",), axis_types=(AxisType.Auto,), devices=jax.local_devices()
    )
