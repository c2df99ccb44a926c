"""Positions of tokens on a grid: an embedding that is added, and rotations of queries and keys.

    sinusoidal    a vector of sines and cosines is added to each token (`position_embedding`)
    rotary        queries and keys are rotated by angles in proportion to their places, so that
                  attention depends on differences of places alone (`rotary_angles`, `rotate`)

A grid has one to three axes: that of a series, an image or a volume.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array

PERIOD = 10_000.0  # 2 pi times this bounds the periods


def grid_places(sizes: Sequence[int]) -> np.ndarray:
    """The places of the tokens of a grid.

    Args:
      sizes: number of tokens along each axis, (N_1, ..., N_d).

    Returns:
      (N_1 ... N_d, d) integers, with the last axis varying fastest.
    """
    return np.indices(sizes).reshape(len(sizes), -1).T


def position_embedding(sizes: Sequence[int], features: int) -> Array:
    """The positions of the tokens (Vaswani et al. 2017, section 3.5; in 2D as MAE, He et al. 2022).

        [sin(i w_j), cos(i w_j)],   w_j = 10000^(-j / n),   j = 0 .. n - 1,   n = features / (2 d)

    An equal part of the features is of each of the d axes, the last axis first: of an image the
    first half is of the column i, the second half of the row i. What three axes leave over is 0.

    Args:
      sizes: number of tokens along each axis, (N_1, ..., N_d).
      features: size of a token.

    Returns:
      (N_1 ... N_d, features) float32, with the last axis varying fastest.
    """
    return embed_places(grid_places(sizes), features)


def embed_places(places: np.ndarray, features: int) -> Array:
    """The embedding of `position_embedding` at any places.

    Args:
      places: the place of each token along each axis, (T, d).
      features: size of a token.

    Returns:
      (T, features) float32.
    """
    count = features // (2 * places.shape[1])
    frequency = PERIOD ** (-np.arange(count) / count)
    angles = [position[:, None] * frequency for position in places.T[::-1]]
    found = np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=-1)
    rest = features - found.shape[1]
    return jnp.asarray(np.pad(found, ((0, 0), (0, rest))), jnp.float32)


def rotary_angles(places: np.ndarray, head_width: int) -> np.ndarray:
    """The angles of rotary embeddings (Su et al. 2021, RoFormer; over axes as in EVA-02, 2023).

        place_a w_j,    w_j = 10000^(-j / n),   j = 0 .. n - 1,   n = head_width / (2 d)

    An equal share of the pairs of a head is of each of the d axes, the first axis first. The pairs
    that are left over are not rotated.

    Args:
      places: the place of each token along each axis, (T, d).
      head_width: number of channels of a head.

    Returns:
      One angle for each token and pair of channels, (T, head_width // 2) float32.

    Raises:
      UserError: for an odd number of channels, or fewer than two for an axis.
    """
    tokens, axes = places.shape
    count = head_width // (2 * axes)
    if not count or head_width % 2:
        raise UserError(
            f"rope=True: the {head_width} channels of a head must be even, and at least two for "
            f"each of {axes} axes; choose another number of heads, or another width"
        )
    frequency = PERIOD ** (-np.arange(count) / count)
    angles = (places[:, :, None] * frequency).reshape(tokens, axes * count)
    return np.pad(angles, ((0, 0), (0, head_width // 2 - axes * count))).astype(np.float32)


def rotate(x: Array, angles: Array | np.ndarray) -> Array:
    """Rotates each pair of neighboring channels by the angle of its token (Su et al. 2021, eq. 34).

        (x_0, x_1) -> (x_0 cos a - x_1 sin a, x_0 sin a + x_1 cos a)

    The product of a rotated query and a rotated key depends on the difference of their angles.

    Args:
      x: queries or keys, (B, T, heads, D), D even.
      angles: (T, D // 2).

    Returns:
      (B, T, heads, D), at least float32.
    """
    pairs = x.astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(*x.shape[:-1], -1, 2)
    cos, sin = (f(jnp.asarray(angles, pairs.dtype))[:, None, :] for f in (jnp.cos, jnp.sin))
    first, second = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return turned.reshape(x.shape)
