"""Precision, recall, density and coverage: fidelity and diversity apart.

Around every image of a set lies the ball that reaches its k-th nearest neighbor in the set; the
union of the balls is the support of the set (Kynkaanniemi et al. 2019; Naeem et al. 2020).

    precision   the fraction of generated images inside the real support
    recall      the fraction of real images inside the generated support
    density     the number of real balls around a generated image, divided by k
    coverage    the fraction of real balls that hold a generated image
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array
from diffusion_jax.evaluation import rows


class Support(NamedTuple):
    """The support of a set.

    Attributes:
      features: (N, D).
      squared_radii: (N,), of the balls.
      k: the number of neighbors that a ball reaches.
    """

    features: np.ndarray
    squared_radii: np.ndarray
    k: int


class Prdc(NamedTuple):
    """The four fractions; density is 1 on average for equal distributions and may exceed it."""

    precision: float
    recall: float
    density: float
    coverage: float


def support(features: np.ndarray, *, k: int = 5) -> Support:
    """Compute the balls of a set once.

    Args:
      features: (N, D), N > k.
      k: the number of neighbors; 3 for precision and recall and 5 for density and coverage in the
        papers.

    Raises:
      UserError: for k images or fewer.
    """
    if len(features) <= k:
        raise UserError(
            f"balls to the {k}th neighbor need more than {k} images; got {len(features)}"
        )
    features = np.asarray(features, np.float32)
    (moved,) = rows.centered(features)
    nearest = rows.over_pairs(_nearest(k + 1), moved, moved)  # the image itself is the nearest
    return Support(features, nearest[:, k], k)


def prdc(fake: np.ndarray, real: Support) -> Prdc:
    """Compute precision, recall, density and coverage with one k.

    Args:
      fake: (N, D), features of generated images.
      real: the support of real images, whose k is used.
    """
    fake = support(fake, k=real.k)
    a, b = rows.centered(fake.features, real.features)
    # (N,): the number of real balls that hold each generated image
    balls = rows.over_pairs(_inside, a, b, real.squared_radii)
    found = rows.over_pairs(_inside, b, a, fake.squared_radii)
    reached = rows.over_pairs(_nearest(1), b, a)[:, 0] <= real.squared_radii
    return Prdc(*(float(np.mean(x)) for x in (balls > 0, found > 0, balls / real.k, reached)))


@jax.jit
def _inside(a: Array, b: Array, squared_radii: Array) -> Array:
    """Return (B,): the number of balls around `b` that hold each of `a`."""
    return jnp.sum(rows.squared_distances(a, b) <= squared_radii, 1)


def nearest_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compute the distance of each feature of a set to the nearest one of another set.

    Args:
      a: features (N, D).
      b: features (M, D).

    Returns:
      (N,), Euclidean distances.
    """
    b, a = rows.centered(b, a)
    return np.sqrt(rows.over_pairs(_nearest(1), a, b)[:, 0])


@functools.cache  # one compiled function for each count
def _nearest(count: int) -> Callable[[Array, Array], Array]:
    """Return a function a (B, D), b (M, D) -> the `count` smallest squared distances (B, count)."""
    return jax.jit(lambda a, b: -jax.lax.top_k(-rows.squared_distances(a, b), count)[0])
