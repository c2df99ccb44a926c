"""Maximum mean discrepancy with a Gaussian kernel (Gretton et al. 2012).

    MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y)
    k(x, y) = exp(-|x - y|^2 / (2 sigma^2))

The means run over all pairs, an image with itself included (eq. 5, the V-statistic), so the
estimate is never negative and is biased upward by at most 1/N + 1/M. Jayasumana et al. (2024), who
report it with sigma = 10 on CLIP features and call it CMMD, do the same.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.types import Array
from diffusion_jax.evaluation import rows


def squared_mmd(a: np.ndarray, b: np.ndarray, *, sigma: float) -> float:
    """Estimate MMD^2 between two sets of features.

    Kernels are float32, sums float64; the work is done in blocks that are spread over the devices.

    Args:
      a: (N, D), features of one set.
      b: (M, D), features of the other set.
      sigma: the width of the kernel.
    """
    a, b = rows.centered(a, b)
    scale = np.float32(1 / (2 * sigma**2))

    def mean(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.mean(rows.over_pairs(_kernel_means, x, y, scale), dtype=np.float64))

    squared = mean(a, a) + mean(b, b) - 2 * mean(a, b)
    return max(squared, 0.0)  # rounding may leave -1e-8 for equal sets


@jax.jit
def _kernel_means(a: Array, b: Array, scale: Array) -> Array:
    return jnp.mean(jnp.exp(-scale * rows.squared_distances(a, b)), 1)
