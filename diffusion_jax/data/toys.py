"""2-D points, for work without images.

They are deterministic in the seed and of about unit scale; train and test are independent.
"""

from __future__ import annotations

import numpy as np

from diffusion_jax.data.sources import Arrays

TRAIN, TEST = 50_000, 10_000
MODES, RINGS = 8, 3


def mixture(rng: np.random.Generator, n: int) -> Arrays:
    """Draw from eight Gaussians of standard deviation 0.08 on the unit circle; label = component.

    Args:
      rng: the source of randomness.
      n: number of points.
    """
    label = rng.integers(MODES, size=n)
    angle = 2 * np.pi * label / MODES
    return _source(_polar(1.0, angle) + 0.08 * rng.standard_normal((n, 2)), label)


def rings(rng: np.random.Generator, n: int) -> Arrays:
    """Draw from three circles of radius 1/3, 2/3, 1 with radial noise 0.03; label = ring.

    Args:
      rng: the source of randomness.
      n: number of points.
    """
    label = rng.integers(RINGS, size=n)
    radius = (label + 1) / RINGS + 0.03 * rng.standard_normal(n)
    return _source(_polar(radius, rng.uniform(0, 2 * np.pi, n)), label)


def checkerboard(rng: np.random.Generator, n: int) -> Arrays:
    """Draw uniformly from the eight dark squares of a 4 x 4 board over [-1, 1]^2; no label.

    Args:
      rng: the source of randomness.
      n: number of points.
    """
    column, pair = rng.integers(4, size=n), rng.integers(2, size=n)
    corner = np.stack([column, 2 * pair + column % 2], axis=1)
    return _source((corner + rng.uniform(size=(n, 2))) / 2 - 1)


def two_moons(rng: np.random.Generator, n: int) -> Arrays:
    """Draw from two interleaved half circles with noise 0.05, centered; label = moon.

    Args:
      rng: the source of randomness.
      n: number of points.
    """
    label = rng.integers(2, size=n)
    upper = _polar(1.0, rng.uniform(0, np.pi, n)) - [0.5, 0.25]
    moon = np.where(label[:, None] == 0, upper, -upper)
    return _source(moon + 0.05 * rng.standard_normal((n, 2)), label)


def _polar(radius: float | np.ndarray, angle: np.ndarray) -> np.ndarray:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _source(points: np.ndarray, label: np.ndarray | None = None) -> Arrays:
    return Arrays(points.astype(np.float32), label)


TOYS = {
    "mixture": (mixture, MODES),
    "rings": (rings, RINGS),
    "checkerboard": (checkerboard, 0),
    "two_moons": (two_moons, 2),
}


def split(name: str, seed: int) -> tuple[Arrays, Arrays, int]:
    """Draw the splits of a toy, TRAIN and TEST points from independent random numbers.

    Args:
      name: a key of TOYS.
      seed: config.seed; the same seed draws the same points.

    Returns:
      (train, test, number of classes); 0 classes for a toy without labels.
    """
    draw, classes = TOYS[name]
    rngs = (np.random.default_rng((seed, k)) for k in (0, 1))
    train, test = (draw(rng, n) for rng, n in zip(rngs, (TRAIN, TEST)))
    return train, test, classes
