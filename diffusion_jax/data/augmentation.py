"""Non-leaky augmentation of training images (Karras et al. 2022, appendix F.2 and table 6).

A diffusion model that is trained on distorted images draws distorted images, unless the network is
given the parameters of each distortion as labels: with labels of zero it then draws images as they
are. Each distortion is applied to an example with the same probability; only the mirroring left to
right is applied to half of all examples, whatever the probability.

    distortion            parameters                          labels
    flip left to right    one bit                             the bit
    flip top to bottom    one bit                             the bit
    scale                 w ~ N(0, 1): by 2^(0.2 w)           w
    rotation              a ~ U(-pi, pi)                      cos a - 1, sin a
    stretch               w ~ N(0, 1): by 2^(0.2 w) along d,  w cos d, w sin d
                          by its inverse across; d is 0, or
                          U(-pi, pi) in half of the cases
    translation           w ~ N(0, 1)^2: by 0.125 w sides     w

The geometric distortions are one affine map. The image is continued by reflection, doubled in
resolution by the wavelet filter sym6, sampled bilinearly, filtered and halved. The filter is
orthonormal, so an image without distortion comes back as it is.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core import arrays
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Key

LABELS = 9  # numbers that describe the distortion of an example

SCALE, STRETCH, SHIFT = 0.2, 0.2, 0.125  # standard deviations: in octaves, and in sides

# The least asymmetric wavelet with six vanishing moments (Daubechies 1992, table 6.3).
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
BEFORE = 5  # taps of the filter before its center


class Distortion(NamedTuple):
    """The parameters of the distortions of a batch.

    Attributes:
      flips: whether an image is mirrored left to right, and top to bottom, (B, 2) of 0 and 1.
      scale: w of the scale, (B,).
      angle: the rotation in radians, (B,).
      stretch: w of the stretch, (B,).
      direction: the direction of the stretch in radians, (B,).
      shift: w of the translation to the right and downward, (B, 2).
    """

    flips: Array
    scale: Array
    angle: Array
    stretch: Array
    direction: Array
    shift: Array


def augment(keys: Key, images: Array, probability: float) -> tuple[Array, Array]:
    """Distort images, and return the labels for the network.

    Args:
      keys: one key per image, (B,).
      images: (B, H, W, C) of any range.
      probability: that of each distortion of an image.

    Returns:
      (the images (B, H, W, C), the labels (B, LABELS) float32).

    Raises:
      UserError: for images of one row or column.
    """
    distortion = draw(keys, probability)
    return distort(images, distortion), labels(distortion)


def draw(keys: Key, probability: float) -> Distortion:
    """Draw the parameters of distortions, 0 for those that are not applied.

    Args:
      keys: one key per image, (B,).
      probability: that of each distortion of an image, except the flip left to right, which is
        always drawn.
    """

    def uniform(part: int, **bounds: float) -> Array:
        return arrays.uniform(arrays.fold_in(keys, part), **bounds)

    def normal(part: int) -> Array:
        return jax.vmap(jax.random.normal)(arrays.fold_in(keys, part))

    def sometimes(part: int, value: Array) -> Array:
        return jnp.where(uniform(part) < probability, value, 0.0)

    flip_x, flip_y = (jnp.float32(uniform(part) < 0.5) for part in (0, 1))
    angle, direction = (uniform(part, minval=-np.pi, maxval=np.pi) for part in (3, 5))
    moved = uniform(16) < probability
    shift = jnp.stack([normal(7), normal(8)], axis=-1)
    return Distortion(
        flips=jnp.stack([flip_x, sometimes(11, flip_y)], axis=-1),
        scale=sometimes(12, normal(2)),
        angle=sometimes(13, angle),
        stretch=sometimes(14, normal(4)),
        direction=jnp.where(uniform(15) < 0.5, direction, 0.0),
        shift=jnp.where(moved[:, None], shift, 0.0),
    )


def labels(distortion: Distortion) -> Array:
    """Return the numbers by which the network knows a distortion, (B, LABELS); zeros for none.

    Args:
      distortion: the parameters.
    """
    flips, scale, angle, stretch, direction, shift = distortion
    turned = scale, jnp.cos(angle) - 1, jnp.sin(angle)
    stretched = stretch * jnp.cos(direction), stretch * jnp.sin(direction)
    rows = jnp.stack([*turned, *stretched], axis=-1)
    return jnp.concatenate([flips, rows, shift], axis=-1).astype(jnp.float32)


def distort(images: Array, distortion: Distortion) -> Array:
    """Distort images by given parameters.

    Args:
      images: (B, H, W, C).
      distortion: the parameters, of the same B.

    Returns:
      (B, H, W, C).

    Raises:
      UserError: for images of one row or column.
    """
    height, width = images.shape[1:3]
    if min(height, width) < 2:
        raise UserError(
            f"images of {height} x {width} cannot be augmented: they need two rows and columns; "
            "set --config.data.augment=0"
        )
    flips = distortion.flips[:, :, None, None, None] > 0
    images = jnp.where(flips[:, 0], images[:, :, ::-1], images)
    images = jnp.where(flips[:, 1], images[:, ::-1], images)
    fine = _by_axis(images, _doubling(height), _doubling(width))
    sampled = jax.vmap(_bilinear)(fine, *_places(distortion, height, width))
    return _by_axis(sampled, _halving(height), _halving(width))


def _by_axis(images: Array, rows: np.ndarray, columns: np.ndarray) -> Array:
    """Apply a matrix to the rows and one to the columns of each image."""
    precision = jax.lax.Precision.HIGHEST
    return jnp.einsum("ih,bhwc,jw->bijc", rows, images, columns, precision=precision)


def _doubling(side: int) -> np.ndarray:
    """The matrix (2 P, side) to one period of the doubled line, of P = 2 side - 2 pixels.

    A line that is continued by reflection has this period.
    """
    period = max(2 * side - 2, 1)
    matrix = np.zeros((2 * period, side), np.float32)
    for pixel in range(period):
        for tap, value in enumerate(SYM6):
            matrix[(2 * pixel + tap - BEFORE) % (2 * period), min(pixel, period - pixel)] += value
    return matrix


def _halving(side: int) -> np.ndarray:
    """The matrix (side, 2 side + 10) from the doubled line, which begins BEFORE pixel 0."""
    matrix = np.zeros((side, 2 * side + len(SYM6) - 2), np.float32)
    for pixel in range(side):
        matrix[pixel, 2 * pixel : 2 * pixel + len(SYM6)] = SYM6
    return matrix


def _places(distortion: Distortion, height: int, width: int) -> tuple[Array, Array]:
    """Where the pixels of the doubled result lie in the doubled image: rows and columns (B, J, I).

    The inverse of the affine map, about the center of the image: first the translation is undone,
    then stretch, rotation and scale.
    """
    center_x, center_y = (width - 1) / 2, (height - 1) / 2
    x = (np.arange(2 * width + len(SYM6) - 2, dtype=np.float32) - BEFORE) / 2 - center_x
    y = (np.arange(2 * height + len(SYM6) - 2, dtype=np.float32) - BEFORE) / 2 - center_y
    shift = distortion.shift * SHIFT * jnp.asarray([width, height], jnp.float32)
    x, y = x - shift[:, 0, None], y - shift[:, 1, None]  # (B, I), (B, J)
    across = 2.0 ** (STRETCH * distortion.stretch)
    stretch = jnp.stack([1 / across, across], axis=-1)[:, :, None] * _rotation(distortion.direction)
    back = _rotation(distortion.angle - distortion.direction)
    smaller = 2.0 ** (-SCALE * distortion.scale)
    precision = jax.lax.Precision.HIGHEST
    matrix = jnp.einsum("b,bij,bjk->bik", smaller, back, stretch, precision=precision)

    def along(axis: int, center: float) -> Array:
        a, b = matrix[:, axis, :, None, None].swapaxes(0, 1)
        return 2 * (a * x[:, None, :] + b * y[:, :, None] + center)

    return along(1, center_y), along(0, center_x)


def _rotation(angle: Array) -> Array:
    """The matrices of rotations, (B, 2, 2)."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)], -2)


def _bilinear(image: Array, rows: Array, columns: Array) -> Array:
    """Sample a periodic image (N, M, C) at rows and columns (J, I), bilinearly: (J, I, C)."""
    top, left = jnp.floor(rows), jnp.floor(columns)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    i, j = jnp.int32(top), jnp.int32(left)

    def at(i: Array, j: Array) -> Array:
        return image[i % image.shape[0], j % image.shape[1]]

    upper = at(i, j) * (1 - right) + at(i, j + 1) * right
    lower = at(i + 1, j) * (1 - right) + at(i + 1, j + 1) * right
    return upper * (1 - down) + lower * down
