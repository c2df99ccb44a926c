"""Measurements y = A x + noise: inpainting, super-resolution, deblurring and others.

A sample is an array (N_1, ..., N_d, C), such as an image (H, W, C); all but `colorize` treat its
axes alike.

For a linear A, everything that the methods need follows from A, its transpose and functions of the
symmetric matrix A A^T = U diag(s^2) U^T. The pseudo-inverse is A^+ y = A^T U diag(1 / s^2) U^T y.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion_jax.core import arrays, streams
from diffusion_jax.core.errors import UserError, need_ranges
from diffusion_jax.core.types import Array, Key
from diffusion_jax.inverse import masks

SMALL = 1e-6  # share of A A^T's largest eigenvalue below which a direction counts as not measured


class Measurement(NamedTuple):
    """A measurement y = forward(x0) + std n with n ~ N(0, I).

    Attributes:
      forward: a function x (B, ...) -> y (B, ...).
      std: standard deviation of the noise.
      adjoint: a function y -> A^T y of a linear measurement; None if it is not linear.
      spectral: a function (y, f) -> U f(s^2) U^T y of a linear measurement, where f is a function
        of the eigenvalues of A A^T; None if it is not linear.
    """

    forward: Callable[[Array], Array]
    std: float = 0.0
    adjoint: Callable[[Array], Array] | None = None
    spectral: Callable[[Array, Callable[[Array], Array]], Array] | None = None


def measure(measurement: Measurement, key: Key, x0: Array) -> Array:
    """Draws y = A(x0) + std n.

    The noise of an image is drawn from its own key, in a stream that no sampler uses. There is none
    in directions that are not measured.

    Args:
      measurement: A and the standard deviation of its noise.
      key: one key per image, (B,), or one for the batch.
      x0: images, (B, ...).

    Returns:
      y, (B, ...).
    """
    y = measurement.forward(x0)
    if not measurement.std:
        return y
    keys = arrays.fold_in(arrays.example_keys(key, len(x0)), streams.MEASUREMENT_NOISE)
    n = arrays.noise(keys, y)
    if measurement.spectral is not None:
        n = measurement.spectral(n, lambda s2: jnp.where(s2 > 0, 1.0, 0.0))
    return y + measurement.std * n


def pinv(measurement: Measurement, y: Array) -> Array:
    """Computes A^+ y, the x of least norm whose measurement is nearest to y.

    Args:
      measurement: a linear measurement.
      y: measurements, (B, ...).

    Returns:
      x, (B, ...).
    """
    return measurement.adjoint(
        measurement.spectral(y, lambda s2: divide(jnp.ones_like(s2), s2, is_measured(s2)))
    )


def consistent(measurement: Measurement, x: Array, y: Array) -> Array:
    """Finds the x nearest to the given one with A x = y: (x - A^+ A x) + A^+ y.

    In this order, known pixels become equal to y bit for bit.

    Args:
      measurement: a linear measurement.
      x: images, (B, ...).
      y: the measurement, (B, ...).

    Returns:
      x, (B, ...).
    """
    return (x - pinv(measurement, measurement.forward(x))) + pinv(measurement, y)


def is_measured(s2: Array) -> Array:
    """Returns which directions are measured.

    Args:
      s2: the eigenvalues of A A^T.

    Returns:
      bool of s2's shape.
    """
    return s2 > SMALL * jnp.max(s2)


def divide(numerator: Array, denominator: Array, where: Array) -> Array:
    """Divides where a condition holds, with a finite gradient.

    Args:
      numerator: array of any shape.
      denominator: array that broadcasts to the numerator; it may be 0 where `where` is false.
      where: bool; elsewhere the result is 0.

    Returns:
      The quotient.
    """
    return jnp.where(where, numerator / jnp.where(where, denominator, 1.0), 0.0)


# ---- measurements: functions of the shape of an example
def inpaint(shape: tuple[int, ...], mask: masks.Mask, std: float = 0.0) -> Measurement:
    """Inpainting: y = mask x. A A^T is the mask itself.

    Args:
      shape: shape of a sample, such as (H, W, C) or (D,).
      mask: ones and zeros that broadcast to `shape`, such as (H, W, 1).
      std: standard deviation of the noise.

    Returns:
      The measurement; y has the shape of x.

    Raises:
      UserError: if the mask does not fit.
    """
    fits = len(np.shape(mask)) == len(shape) and all(
        m in (1, n) for m, n in zip(np.shape(mask), shape)
    )
    if not fits:
        raise UserError(
            f"a mask of shape {np.shape(mask)} does not fit examples {tuple(shape)}; give one of "
            "the same size"
        )
    known = jnp.asarray(mask)
    return Measurement(
        lambda x: known.astype(x.dtype) * x,
        _std(std),
        lambda y: known * y,
        lambda y, f: f(known.astype(y.dtype)) * y,
    )


def colorize(shape: tuple[int, ...], std: float = 0.0) -> Measurement:
    """Colorization: y is the mean of the channels. A A^T = I / C.

    Args:
      shape: shape of an image, (H, W, C).
      std: standard deviation of the noise.

    Returns:
      The measurement; y is (B, H, W, 1).

    Raises:
      UserError: for gray images.
    """
    if len(shape) != 3 or shape[-1] == 1:
        raise UserError(
            f"colorize needs color images, and examples are {tuple(shape)}; take inpaint"
            + (", superres or deblur" if len(shape) > 1 else " or linear")
        )
    return Measurement(
        lambda x: jnp.mean(x, -1, keepdims=True),
        _std(std),
        lambda y: jnp.repeat(y / shape[-1], shape[-1], -1),
        lambda y, f: f(jnp.asarray(1 / shape[-1], y.dtype)) * y,
    )


def superres(
    shape: tuple[int, ...], factor: int = 4, std: float = 0.0, axes: tuple[int, ...] = ()
) -> Measurement:
    """Super-resolution: y is the mean of blocks of factor^d values. A A^T = I / factor^d.

    Args:
      shape: shape of a sample, such as (H, W, C).
      factor: extent of a block along each axis.
      std: standard deviation of the noise.
      axes: the d axes whose resolution is lost; () for all but channels.

    Returns:
      The measurement; y of images is (B, H / factor, W / factor, C).

    Raises:
      UserError: for vectors, if `factor` does not divide an axis, and for axes that are not there.
    """
    *extents, _ = _with_axes(shape, "superres")
    axes = tuple(sorted(set(axes))) or tuple(range(len(extents)))
    if not all(0 <= axis < len(extents) for axis in axes):
        raise UserError(
            f"superres(axes={axes}): the axes of samples {tuple(shape)} besides channels are "
            f"numbered from 0 to {len(extents) - 1}"
        )
    if factor < 1 or any(extents[axis] % factor for axis in axes):
        size = "x".join(map(str, extents))
        raise UserError(f"superres(factor={factor}) does not divide samples of {size}")
    size = factor ** len(axes)
    split = [(n // factor, factor) if i in axes else (n,) for i, n in enumerate(extents)]
    blocks = tuple(axis + 2 + place for place, axis in enumerate(axes))

    def forward(x: Array) -> Array:
        return jnp.mean(x.reshape(-1, *sum(split, ()), shape[-1]), blocks)

    def adjoint(y: Array) -> Array:
        x = y / size
        for axis in axes:
            x = jnp.repeat(x, factor, axis + 1)
        return x

    return Measurement(
        forward, _std(std), adjoint, lambda y, f: f(jnp.asarray(1 / size, y.dtype)) * y
    )


def deblur(
    shape: tuple[int, ...], width: float = 1.0, kernel: str = "gaussian", std: float = 0.0
) -> Measurement:
    """Deblurring: y = kernel * x, a circular convolution, diagonal under the FFT: s^2 = |h-hat|^2.

    Args:
      shape: shape of a sample, such as (H, W, C).
      width: standard deviation of the 'gaussian' kernel in values (pixels of an image); the
        'uniform' kernel has the extent 2 width + 1 along each axis.
      kernel: 'gaussian' or 'uniform'.
      std: standard deviation of the noise.

    Returns:
      The measurement; y has the shape of x.

    Raises:
      UserError: if the kernel is unknown or a number is out of range.
    """
    need_ranges("deblur", width=(width, 1e-3, 1e4))
    *extents, _ = _with_axes(shape, "deblur")
    if kernel not in ("gaussian", "uniform") or width <= 0:
        raise UserError(
            f"deblur(width={width}, kernel='{kernel}'): the kernel is 'gaussian' or 'uniform', its "
            "width above 0"
        )

    def profile(n: int) -> np.ndarray:
        distance = np.minimum(np.arange(n), n - np.arange(n))
        if kernel == "gaussian":
            weight = np.exp(-0.5 * (distance / width) ** 2)
        else:
            weight = (distance <= width).astype(float)
        return weight / weight.sum()

    response = np.fft.fftn(functools.reduce(np.multiply.outer, map(profile, extents))).real
    # the kernel is symmetric, so its transform is real
    h, axes = jnp.asarray(response[..., None], jnp.float32), tuple(range(1, len(shape)))

    def filtered(x: Array, gain: Array) -> Array:
        return jnp.fft.ifftn(
            gain.astype(x.dtype) * jnp.fft.fftn(x, axes=axes), axes=axes
        ).real.astype(x.dtype)

    def spectral(y: Array, f: Callable[[Array], Array]) -> Array:
        return filtered(y, f(h.astype(y.dtype) ** 2))

    return Measurement(lambda x: filtered(x, h), _std(std), lambda y: filtered(y, h), spectral)


def linear(shape: tuple[int, ...], matrix: Any, std: float = 0.0) -> Measurement:
    """Any linear map in few dimensions: y = matrix x, with x flattened.

    Args:
      shape: shape of an example, with D numbers.
      matrix: A, (M, D), anything that numpy converts to an array; a vector is one row.
      std: standard deviation of the noise.

    Returns:
      The measurement; y is (B, M).

    Raises:
      UserError: for a matrix of another width.
    """
    dim, matrix = math.prod(shape), np.atleast_2d(np.asarray(matrix, np.float64))
    if matrix.ndim != 2 or matrix.shape[1] != dim:
        raise UserError(
            f"linear: the matrix is {matrix.shape}; for examples {tuple(shape)} it must be "
            f"(M, {dim})"
        )
    eigenvalues, basis = np.linalg.eigh(matrix @ matrix.T)

    def times(a: np.ndarray, y: Array) -> Array:
        return jnp.matmul(y, jnp.asarray(a.T, y.dtype), precision="highest")

    return Measurement(
        lambda x: times(matrix, x.reshape(len(x), -1)),
        _std(std),
        lambda y: times(matrix.T, y).reshape(-1, *shape),
        lambda y, f: times(basis, f(jnp.asarray(eigenvalues, y.dtype)) * times(basis.T, y)),
    )


def saturate(shape: tuple[int, ...], gain: float = 2.0, std: float = 0.0) -> Measurement:
    """An overexposed image, y = clip(gain x, -1, 1): not linear, so only `dps` applies.

    Args:
      shape: shape of an example; not used.
      gain: factor before clipping.
      std: standard deviation of the noise.

    Returns:
      The measurement; y has the shape of x.

    Raises:
      UserError: if a number is out of its range.
    """
    need_ranges("saturate", gain=(gain, 1e-3, 1e4))
    return Measurement(lambda x: jnp.clip(gain * x, -1.0, 1.0), _std(std))


def _std(std: float) -> float:
    """The checked standard deviation of the noise."""
    need_ranges("the noise of a measurement", std=(std, 0, 1e4))
    return float(std)


def _with_axes(shape: tuple[int, ...], name: str) -> tuple[int, ...]:
    """The shape of a sample that has axes besides its channels; UserError for vectors."""
    if len(shape) < 2:
        raise UserError(
            f"{name} needs samples with an axis, such as images (H, W, C), and these are vectors "
            f"{tuple(shape)}; take inpaint or linear"
        )
    return shape


# The members of the family, which a config may name.
MEASUREMENTS = (inpaint, colorize, superres, deblur, linear, saturate)
