"""Measurements y = A x + noise of images: inpainting, superresolution, deblurring and others."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from diffusion_jax import arrays, streams
from diffusion_jax.errors import UserError, need_ranges
from diffusion_jax.inverse import masks
from diffusion_jax.types import Array, Key

SMALL = 1e-6  # of A A^T's largest eigenvalue: directions below it count as not measured


class Measurement(NamedTuple):
    """y = forward(x0) + std n, n ~ N(0, I).

    forward: x (B, ...) -> y (B, ...). Where it is linear, adjoint: y -> A^T y, and spectral: (y, f)
    -> U f(s^2) U^T y, f of the eigenvalues of A A^T; both None where it is not. std: a number.
    """

    forward: Callable[[Array], Array]
    std: float = 0.0
    adjoint: Callable[[Array], Array] | None = None
    spectral: Callable[[Array, Callable[[Array], Array]], Array] | None = None


def measure(measurement: Measurement, key: Key, x0: Array) -> Array:
    """y = A(x0) + std n, image i's noise from its own key, in a stream that no sampler uses; none
    where nothing is measured.
    """
    y = measurement.forward(x0)
    if not measurement.std:
        return y
    n = arrays.noise(
        arrays.fold_in(arrays.example_keys(key, len(x0)), streams.MEASUREMENT_NOISE), y
    )
    if measurement.spectral is not None:
        n = measurement.spectral(n, lambda s2: jnp.where(s2 > 0, 1.0, 0.0))
    return y + measurement.std * n


def pinv(measurement: Measurement, y: Array) -> Array:
    """A^+ y, the x of least norm that comes nearest to y."""
    return measurement.adjoint(
        measurement.spectral(y, lambda s2: _ratio(jnp.ones_like(s2), s2, s2 > SMALL * jnp.max(s2)))
    )


def consistent(measurement: Measurement, x: Array, y: Array) -> Array:
    """The x nearest to `x` with A x = y: (x - A^+ A x) + A^+ y, in the order that leaves known
    pixels equal to y bit for bit.
    """
    return (x - pinv(measurement, measurement.forward(x))) + pinv(measurement, y)


def _ratio(above: Array, below: Array, where: Array) -> Array:
    """above / below, 0 outside `where`."""
    return jnp.where(where, above / jnp.where(where, below, 1.0), 0.0)


# ---- measurements: functions of the shape of an example
def inpaint(shape: tuple[int, ...], mask: masks.Mask, std: float = 0.0) -> Measurement:
    """y = mask x: A A^T is the mask itself. mask: ones and zeros that broadcast to `shape`, such as
    (H, W, 1), else UserError.
    """
    if len(np.shape(mask)) != len(shape) or any(
        m not in (1, n) for m, n in zip(np.shape(mask), shape)
    ):
        raise UserError(
            f"a mask of shape {np.shape(mask)} does not fit examples {tuple(shape)}; give one of the same size"
        )
    known = jnp.asarray(mask)
    return Measurement(
        lambda x: known.astype(x.dtype) * x,
        _std(std),
        lambda y: known * y,
        lambda y, f: f(known.astype(y.dtype)) * y,
    )


def colorize(shape: tuple[int, ...], std: float = 0.0) -> Measurement:
    """y (B, H, W, 1), the mean of the channels; A A^T = I / C. UserError for grey images."""
    if len(shape) != 3 or shape[-1] == 1:
        raise UserError(
            f"colorize needs color images, and examples are {tuple(shape)}; take inpaint, superres or deblur"
        )
    return Measurement(
        lambda x: jnp.mean(x, -1, keepdims=True),
        _std(std),
        lambda y: jnp.repeat(y / shape[-1], shape[-1], -1),
        lambda y, f: f(jnp.asarray(1 / shape[-1], y.dtype)) * y,
    )


def superres(shape: tuple[int, ...], factor: int = 4, std: float = 0.0) -> Measurement:
    """y (B, H / factor, W / factor, C), means of factor x factor pixels; A A^T = I / factor^2.
    UserError if it does not divide.
    """
    height, width, channels = _image(shape, "superres")
    if factor < 1 or height % factor or width % factor:
        raise UserError(f"superres(factor={factor}) does not divide images of {height}x{width}")

    def forward(x):
        return jnp.mean(
            x.reshape(-1, height // factor, factor, width // factor, factor, channels), (2, 4)
        )

    def adjoint(y):
        return jnp.repeat(jnp.repeat(y / factor**2, factor, 1), factor, 2)

    return Measurement(
        forward, _std(std), adjoint, lambda y, f: f(jnp.asarray(1 / factor**2, y.dtype)) * y
    )


def deblur(
    shape: tuple[int, ...], width: float = 1.0, kernel: str = "gaussian", std: float = 0.0
) -> Measurement:
    """y = kernel * x, a convolution that wraps around: diagonal under the FFT, s^2 = |h-hat|^2.

    kernel: 'gaussian' of standard deviation `width` pixels, or 'uniform', a square of side 2 width
      + 1.
    """
    need_ranges("deblur", width=(width, 1e-3, 1e4))
    height, across, _ = _image(shape, "deblur")
    if kernel not in ("gaussian", "uniform") or width <= 0:
        raise UserError(
            f"deblur(width={width}, kernel='{kernel}'): the kernel is 'gaussian' or 'uniform', its width above 0"
        )

    def profile(n):
        place = np.minimum(np.arange(n), n - np.arange(n))
        weight = (
            np.exp(-0.5 * (place / width) ** 2)
            if kernel == "gaussian"
            else (place <= width).astype(float)
        )
        return weight / weight.sum()

    h = jnp.asarray(
        np.fft.fft2(np.outer(profile(height), profile(across))).real[..., None], jnp.float32
    )  # symmetric: real

    def filtered(x, gain):
        return jnp.fft.ifft2(
            gain.astype(x.dtype) * jnp.fft.fft2(x, axes=(1, 2)), axes=(1, 2)
        ).real.astype(x.dtype)

    def spectral(y, f):
        return filtered(y, f(h.astype(y.dtype) ** 2))

    return Measurement(lambda x: filtered(x, h), _std(std), lambda y: filtered(y, h), spectral)


def linear(shape: tuple[int, ...], matrix: Any, std: float = 0.0) -> Measurement:
    """y (B, M) = matrix (M, D) x, x flattened; any linear map in few dimensions. UserError for a
    matrix of another width.
    """
    dim, matrix = math.prod(shape), np.atleast_2d(np.asarray(matrix, np.float64))
    if matrix.ndim != 2 or matrix.shape[1] != dim:
        raise UserError(
            f"linear: the matrix is {matrix.shape}; for examples {tuple(shape)} it must be (M, {dim})"
        )
    eigenvalues, basis = np.linalg.eigh(matrix @ matrix.T)

    def times(a, y):
        return jnp.matmul(y, jnp.asarray(a.T, y.dtype), precision="highest")

    return Measurement(
        lambda x: times(matrix, x.reshape(len(x), -1)),
        _std(std),
        lambda y: times(matrix.T, y).reshape(-1, *shape),
        lambda y, f: times(basis, f(jnp.asarray(eigenvalues, y.dtype)) * times(basis.T, y)),
    )


def saturate(shape: tuple[int, ...], gain: float = 2.0, std: float = 0.0) -> Measurement:
    """y = clip(gain x, -1, 1), an overexposed picture: not linear, so only `dps` takes it."""
    need_ranges("saturate", gain=(gain, 1e-3, 1e4))
    return Measurement(lambda x: jnp.clip(gain * x, -1.0, 1.0), _std(std))


def _std(std: float) -> float:
    need_ranges("the noise of a measurement", std=(std, 0, 1e4))
    return float(std)


def _image(shape: tuple[int, ...], name: str) -> tuple[int, int, int]:
    if len(shape) != 3:
        raise UserError(f"{name} is for images (H, W, C), and these examples are {tuple(shape)}")
    return shape


# The members of the family, which a config may name.
MEASUREMENTS = (inpaint, colorize, superres, deblur, linear, saturate)
