"""Fidelity and diversity apart: precision and recall (Kynkaanniemi et al. 2019), density and
coverage (Naeem et al. 2020).

Around every image of a set lies the ball that reaches its k-th nearest neighbour in the set; the
balls' union is the set's support. Precision: generated images inside the real support. Recall: real
images inside the generated support.
Density: real balls around a generated image, over k. Coverage: real balls that hold a generated
image.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.evaluation import rows
from diffusion_jax.types import Array


class Support(NamedTuple):
    """features (N, D) and the squared radii (N,) of their balls; k: how many neighbours these
    reach.
    """

    features: np.ndarray
    squared_radii: np.ndarray
    k: int


class Prdc(NamedTuple):
    """Fractions in [0, 1]; density is 1 on average for equal laws and may exceed it."""

    precision: float
    recall: float
    density: float
    coverage: float


def support(features: np.ndarray, *, k: int = 5) -> Support:
    """The balls of features (N, D), N > k. The papers: k = 3 for precision and recall, 5 for
    density and coverage.
    """
    if len(features) <= k:
        raise UserError(
            f"balls to the {k}th neighbour need more than {k} images; got {len(features)}"
        )
    features = np.asarray(features, np.float32)
    (moved,) = rows.centred(features)
    nearest = rows.over_pairs(_nearest(k + 1), moved, moved)  # the image itself is the nearest
    return Support(features, nearest[:, k], k)


def prdc(fake: np.ndarray, real: np.ndarray | Support, *, k: int = 5) -> Prdc:
    """All four, of generated features (N, D) against real ones (M, D), with one k. real: a Support
    made before, of that k.
    """
    real = real if isinstance(real, Support) else support(real, k=k)
    fake = support(fake, k=real.k)
    a, b = rows.centred(fake.features, real.features)
    balls = rows.over_pairs(
        _inside, a, b, real.squared_radii
    )  # (N,): of how many real balls each is inside
    found = rows.over_pairs(_inside, b, a, fake.squared_radii)
    reached = rows.over_pairs(_nearest(1), b, a)[:, 0] <= real.squared_radii
    return Prdc(*(float(np.mean(x)) for x in (balls > 0, found > 0, balls / real.k, reached)))


@jax.jit
def _inside(a: Array, b: Array, squared_radii: Array) -> Array:
    """(B,): how many balls around b hold each a."""
    return jnp.sum(rows.squared_distances(a, b) <= squared_radii, 1)


def nearest_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,): the distance of each of the features a (N, D) to the nearest of b (M, D)."""
    b, a = rows.centred(b, a)
    return np.sqrt(rows.over_pairs(_nearest(1), a, b)[:, 0])


@functools.cache  # one compiled function for each count
def _nearest(count: int):
    """The function a (B, D), b (M, D) -> squared distances to the `count` nearest, (B, count),
    ascending.
    """
    return jax.jit(lambda a, b: -jax.lax.top_k(-rows.squared_distances(a, b), count)[0])
