"""Distances between two images, for losses that compare two networks.

A distance is a function (x, y) -> (B,). A new one is a function that returns such a distance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import jax.numpy as jnp

from diffusion_jax.core.arrays import mean_per_example
from diffusion_jax.core.errors import UserError, need_ranges
from diffusion_jax.core.types import Array


class Distance(Protocol):
    """The distance of images x and y."""

    def __call__(self, x: Array, y: Array) -> Array:
        """Computes the distance of each pair of images.

        Args:
          x: the first images, (B, ...).
          y: the second images, of x's shape.

        Returns:
          The distances, (B,), at least 0.
        """


def squared() -> Distance:
    """The mean squared error, |x - y|^2 / D."""
    return lambda x, y: mean_per_example((x - y) ** 2)


def pseudo_huber(c: float = 0.00054) -> Distance:
    """The pseudo-Huber distance (Song & Dhariwal 2024, eq. 7): sqrt(|x - y|^2 / D + c^2) - c.

    This is the paper's distance divided by sqrt(D).

    Args:
      c: the paper's c, 0.00054 sqrt(D), divided by sqrt(D).

    Returns:
      The distance.

    Raises:
      UserError: if c <= 0, where the gradient at x = y would be 0 / 0.
    """
    need_ranges("distance.pseudo_huber", c=(c, 1e-12, 1e6))
    if not c > 0:
        raise UserError(
            f"pseudo_huber(c={c}): c must be above 0; use distance.squared() without a c"
        )
    return lambda x, y: jnp.sqrt(mean_per_example((x - y) ** 2) + c**2) - c


def perceptual(features: Callable[[Array], Array]) -> Distance:
    """The mean squared error of features, such as LPIPS (Song et al. 2023, sec. 6.1).

    It can be used from code only, because a config cannot name a function.

    Args:
      features: a function (x) -> features, (B, ...).

    Returns:
      The distance.
    """
    return lambda x, y: mean_per_example((features(x) - features(y)) ** 2)


# The members of the family, which a config may name.
DISTANCES = (squared, pseudo_huber, perceptual)
