"""Distances between two images, for losses that compare two networks: distance(x, y) -> (B,).

To add one, write a function that returns such a distance.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp

from diffusion_jax.arrays import mean_per_example
from diffusion_jax.errors import UserError, need_ranges
from diffusion_jax.types import Array

Distance = Callable[[Array, Array], Array]


def squared() -> Distance:
    """|x - y|^2 / D."""
    return lambda x, y: mean_per_example((x - y) ** 2)


def pseudo_huber(c: float = 0.00054) -> Distance:
    """sqrt(|x - y|^2 / D + c^2) - c (Song & Dhariwal 2024, eq. 7, over sqrt(D): their c is 0.00054
    sqrt(D)).

    Raises UserError for c <= 0, where the gradient at x = y would be 0 / 0.
    """
    need_ranges("distance.pseudo_huber", c=(c, 1e-12, 1e6))
    if not c > 0:
        raise UserError(f"pseudo_huber(c={c}): c must be above 0; distance.squared() has none")
    return lambda x, y: jnp.sqrt(mean_per_example((x - y) ** 2) + c**2) - c


def perceptual(features: Callable[[Array], Array]) -> Distance:
    """|features(x) - features(y)|^2 per feature: the hook for LPIPS and its kind (Song et al. 2023,
    sec. 6.1), in code.
    """
    return lambda x, y: mean_per_example((features(x) - features(y)) ** 2)
