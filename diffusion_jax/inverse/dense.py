"""Dense conditions: what a model that is trained for it sees of each sample, in every position.

The network receives an array of the sample's extents (N_1, ..., N_d) besides x_t, in its input
channels (Saharia et al. 2021, SR3; Saharia et al. 2022, Palette): super-resolution, inpainting,
colorization, or an array that is stored with the data. In contrast to the methods of methods.py,
which guide an unconditional model by a measurement, the measurement is known before training.

A dense condition is a function of the shape of a sample and of the number of channels that are
stored. Zeros mean that nothing is known.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.core import arrays, streams
from diffusion_jax.core.errors import UserError, need_ranges, unknown
from diffusion_jax.core.types import Array, Key


class DenseCondition(NamedTuple):
    """A dense condition of samples of one shape.

    Attributes:
      channels: K, its number of channels.
      make: (x0 (B, N_1, ..., N_d, C), stored (B, N_1, ..., N_d, ...) or None, keys (B,)) -> the
        condition (B, N_1, ..., N_d, K).
      shown: condition -> what it shows of the samples, (B, N_1, ..., N_d, C), for pictures.
      stored: what the data hold: '' where the condition is made of x0, 'numbers', or 'classes'.
      measured: the shape of what is measured of a sample, where it is another; () where it is not.
      of_measured: measured arrays (B, *measured) -> the condition.
      of_mask: (x0, mask (B, N_1, ..., N_d, 1), 1 where it is known) -> the condition of that mask;
        None where there are no masks.
    """

    channels: int
    make: Callable[[Array, Array | None, Key], Array]
    shown: Callable[[Array], Array]
    stored: str = ""
    measured: tuple[int, ...] = ()
    of_measured: Callable[[Array], Array] | None = None
    of_mask: Callable[[Array, Array], Array] | None = None


ENLARGEMENTS = ("nearest", "bilinear")


def lowres(
    shape: tuple[int, ...], stored: int = 0, factor: int = 4, enlarged: str = "nearest"
) -> DenseCondition:
    """Super-resolution: the mean of factor^d positions, enlarged to the extents of the sample.

    Args:
      shape: of a sample, (N_1, ..., N_d, C).
      stored: not used.
      factor: extent of a block along each axis.
      enlarged: 'nearest' repeats each position; 'bilinear' interpolates between the middles of the
        blocks, as the networks of ADM that enlarge images do.

    Returns:
      The condition, of C channels.

    Raises:
      UserError: if `factor` does not divide the sample, for vectors, and for another enlargement.
    """
    need_ranges("lowres", factor=(factor, 2, 4096))
    if enlarged not in ENLARGEMENTS:
        raise unknown("enlarged", enlarged, ENLARGEMENTS)
    if len(shape) < 2 or any(size % factor for size in shape[:-1]):
        raise UserError(
            f"lowres(factor={factor}) does not divide samples {tuple(shape)}; take a factor that "
            "divides every extent"
        )
    enlarge = functools.partial(repeated if enlarged == "nearest" else interpolated, factor=factor)
    return DenseCondition(
        shape[-1],
        lambda x0, stored, keys: enlarge(reduced(x0, factor)),
        _same,
        measured=(*(size // factor for size in shape[:-1]), shape[-1]),
        of_measured=enlarge,
    )


def reduced(x: Array, factor: int) -> Array:
    """Averages blocks of positions.

    Args:
      x: (B, N_1, ..., N_d, C), with each N_i a multiple of `factor`.
      factor: extent of a block along each axis.

    Returns:
      (B, N_1 / factor, ..., N_d / factor, C).
    """
    b, *sizes, c = x.shape
    blocks = [n for size in sizes for n in (size // factor, factor)]
    return x.reshape(b, *blocks, c).mean(tuple(range(2, 2 * len(sizes) + 1, 2)))


def repeated(x: Array, factor: int) -> Array:
    """Repeats every position along each axis, the transpose of `reduced` but for its scale.

    Args:
      x: (B, N_1, ..., N_d, C).
      factor: how often.

    Returns:
      (B, factor N_1, ..., factor N_d, C).
    """
    for axis in range(1, x.ndim - 1):
        x = jnp.repeat(x, factor, axis)
    return x


def interpolated(x: Array, factor: int) -> Array:
    """Interpolates linearly along each axis between the middles of the positions.

    Args:
      x: (B, N_1, ..., N_d, C).
      factor: how many positions become of each.

    Returns:
      (B, factor N_1, ..., factor N_d, C).
    """
    size = (len(x), *(factor * n for n in x.shape[1:-1]), x.shape[-1])
    return jax.image.resize(x, size, "linear")


def inpaint(shape: tuple[int, ...], stored: int = 0, scattered: float = 0.25) -> DenseCondition:
    """Inpainting: the sample where it is known, 0 elsewhere, and the mask (1 where it is known).

    The mask of each example is drawn from its own key: with probability `scattered` each position
    is known independently, at a rate that is uniform in [0, 1]; otherwise a box is hidden, whose
    sides are uniform between a quarter of the sample's and all of it. Of vectors, which have no
    positions, each number is known independently.

    Args:
      shape: of a sample, (N_1, ..., N_d, C).
      stored: not used.
      scattered: share of the masks that are scattered.

    Returns:
      The condition, of C + 1 channels, or of 2 C for vectors.

    Raises:
      UserError: if `scattered` is out of range.
    """
    need_ranges("inpaint", scattered=(scattered, 0, 1))
    extents = tuple(shape[:-1])
    size = (*extents, 1 if extents else shape[-1])

    def drawn(key: Key) -> Array:
        kind, rate, places, corners = jax.random.split(key, 4)
        known = jax.random.uniform(places, size) < jax.random.uniform(rate)
        if not extents:
            return known
        inside = jnp.ones(size, bool)
        for axis, (extent, own) in enumerate(zip(extents, jax.random.split(corners, len(extents)))):
            u = jax.random.uniform(own, (2,))
            side = jnp.ceil(extent * (0.25 + 0.75 * u[0]))
            first = jnp.floor(u[1] * (extent - side + 1))
            place = jnp.arange(extent).reshape((-1,) + (1,) * (len(size) - axis - 1))
            inside = inside & (place >= first) & (place < first + side)
        return jnp.where(jax.random.uniform(kind) < scattered, known, ~inside)

    def of_mask(x0: Array, mask: Array) -> Array:
        mask = jnp.broadcast_to(mask.astype(x0.dtype), (len(x0), *size))
        return jnp.concatenate([mask * x0, mask], -1)

    def make(x0: Array, stored: Array | None, keys: Key) -> Array:
        return of_mask(x0, jax.vmap(drawn)(arrays.fold_in(keys, streams.EXAMPLE_MASK)))

    return DenseCondition(
        shape[-1] + size[-1], make, lambda c: c[..., : shape[-1]], of_mask=of_mask
    )


def gray(shape: tuple[int, ...], stored: int = 0) -> DenseCondition:
    """Colorization: the mean of the channels.

    Args:
      shape: of a sample, (N_1, ..., N_d, C).
      stored: not used.

    Returns:
      The condition, of one channel.

    Raises:
      UserError: for samples of one channel, and for vectors.
    """
    if len(shape) < 2 or shape[-1] == 1:
        raise UserError(
            f"gray is for samples of several channels, and these are {tuple(shape)}; take lowres "
            "or inpaint"
        )
    return DenseCondition(
        1,
        lambda x0, stored, keys: jnp.mean(x0, -1, keepdims=True),
        lambda c: jnp.repeat(c, shape[-1], -1),
        measured=(*shape[:-1], 1),
        of_measured=_same,
    )


def array(shape: tuple[int, ...], stored: int = 0) -> DenseCondition:
    """The array 'dense' of the data, whose channels are normalized.

    Args:
      shape: of a sample, (N_1, ..., N_d, C).
      stored: K, the channels of the array.

    Returns:
      The condition, of K channels.
    """

    def shown(c: Array) -> Array:
        if c.shape[-1] == shape[-1]:
            return c
        return jnp.repeat(jnp.mean(c, -1, keepdims=True), shape[-1], -1)

    return DenseCondition(stored, lambda x0, stored, keys: stored, shown, stored="numbers")


def classes(shape: tuple[int, ...], stored: int = 0, number: int = 2) -> DenseCondition:
    """The array 'dense' of the data, the number of a class in each position, as one-hot channels.

    Args:
      shape: of a sample, (N_1, ..., N_d, C).
      stored: not used.
      number: of classes, which count from 0; a position of another number has none.

    Returns:
      The condition, of `number` channels.

    Raises:
      UserError: if `number` is out of range.
    """
    need_ranges("classes", number=(number, 2, 1024))

    def shown(c: Array) -> Array:
        level = jnp.argmax(c, -1, keepdims=True) * (2 / (number - 1)) - 1
        return jnp.repeat(level, shape[-1], -1)

    return DenseCondition(
        number,
        lambda x0, stored, keys: jax.nn.one_hot(stored[..., 0], number),
        shown,
        stored="classes",
    )


def _same(c: Array) -> Array:
    return c


# what the data must hold for a condition, 'numbers' or the numbers of 'classes'
STORED = {array: "numbers", classes: "classes"}

# The members of the family, which a config may name.
CONDITIONS = (lowres, inpaint, gray, array, classes)
