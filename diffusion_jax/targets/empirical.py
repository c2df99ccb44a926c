"""The distribution of a data set itself, whose denoiser is a weighted mean of its examples."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core import arrays, streams
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Cond, Denoise, Key, Prediction, Process
from diffusion_jax.processes.gaussian import from_x0
from diffusion_jax.targets import laws
from diffusion_jax.targets.presets import Target


def empirical(
    images: Array, labels: Array | None = None, *, block: int = 2048, again: int = 4
) -> Target:
    """Makes the Target of the finite set itself, (1 / N) sum_j delta(x - y_j).

    Its optimal denoiser, which a network without error learns, is E[x0 | x_t] = sum_j w_j y_j with
    w = softmax_j(-|x_t - alpha y_j|^2 / (2 sigma^2)) (Karras et al. 2022, eq. 57; De Bortoli 2022).

    The images are streamed in one scan with an online softmax. Distances are a matrix product,
    |x|^2 - 2 x.y + |y|^2 around the data's mean. At small sigma the rounding of the product,
    divided by sigma^2, would amount to nats, and only near images count there; so the distances of
    the nearest images of every block are computed again as sums of squares.

    Args:
      images: (N, ...), floating in [-1, 1], or uint8, which are read as u / 127.5 - 1 and kept as
        bytes.
      labels: (N,) or None. With cond = {'label': (B,)} only images of that label count; a label
        that does not occur stands for 'any'.
      block: number of images in memory at a time: B examples need (B + D) block numbers.
      again: number of images of every block whose distance is computed again.

    Raises:
      UserError: for other shapes.
    """
    images = np.asarray(images)
    if (
        images.ndim < 2
        or not len(images)
        or (labels is not None and np.shape(labels) != (len(images),))
    ):
        got = f"images {images.shape}, labels {np.shape(labels)}"
        raise UserError(
            "an empirical target needs images (N, ...) and, if there are labels, one for each; "
            f"got {got}"
        )
    stream = _streamed(images.reshape(len(images), -1), labels, min(block, len(images)), again)

    def denoise_with(process: Process) -> Denoise:
        def denoise(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
            *_, x0 = stream(process, x_t, t, cond)
            return from_x0(process, x_t, x0.reshape(x_t.shape), t)

        return denoise

    def log_density(process: Process, x: Array, t: Array, cond: Cond = None) -> Array:
        log_sum, count, _ = stream(process, x, t, cond)
        log_unit = 0.5 * jnp.log(2 * math.pi * laws._coefficients(process, x, t)[1][:, 0] ** 2)
        return log_sum - jnp.log(count.astype(x.dtype)) - math.prod(images.shape[1:]) * log_unit

    def draw(keys: Key, count: int) -> Array:
        keys = arrays.fold_in(arrays.example_keys(keys, count), streams.TARGET_COMPONENT)
        j = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(images)))(keys)
        return _values(jnp.asarray(images[np.asarray(j)]), jnp.result_type(float))

    return Target(images.shape[1:], denoise_with, log_density, draw)


def _values(images: Array, dtype: jnp.dtype) -> Array:
    """Returns uint8 images in [-1, 1], and floating ones as they are."""
    return images.astype(dtype) / 127.5 - 1 if images.dtype == jnp.uint8 else images.astype(dtype)


def _streamed(flat: np.ndarray, labels: Array | None, block: int, again: int) -> Callable:
    """Returns the function (process, x, t, cond) that sums over the images flat (N, D).

    It returns log sum_j exp(-|x - alpha y_j|^2 / (2 sigma^2)) (B,), how many images count (B,), and
    sum_j w_j y_j (B, D).
    """
    count, missing = len(flat), -len(flat) % block
    labels = np.zeros(count, np.int32) if labels is None else np.asarray(labels, np.int32)
    mean = np.mean(np.asarray(_values(flat, np.float64)), axis=0)
    blocks = (
        np.pad(flat, ((0, missing), (0, 0))).reshape(-1, block, flat.shape[1]),
        np.pad(labels, (0, missing), constant_values=-1).reshape(-1, block),
    )
    known = np.unique(labels)

    def stream(process: Process, x: Array, t: Array, cond: Cond):
        alpha, sigma = laws._coefficients(process, x, t)
        center = jnp.asarray(mean, x.dtype)
        x = x.reshape(len(x), -1) - alpha * center
        wanted = (cond or {}).get("label", jnp.full(len(x), -1))
        anything = ~jnp.isin(wanted, known)

        def one(carry, inputs):
            top, total, weighted, number = carry
            y, label = _values(inputs[0], x.dtype) - center, inputs[1]
            counts = (label >= 0) & (anything[:, None] | (label == wanted[:, None]))  # (B, block)
            product = jnp.matmul(x, y.T, precision="highest")
            square = (
                jnp.sum(x**2, 1, keepdims=True) - 2 * alpha * product + alpha**2 * jnp.sum(y**2, 1)
            )
            logit = jnp.where(counts, -jnp.maximum(square, 0) / (2 * sigma**2), -jnp.inf)
            _, near = jax.lax.top_k(logit, min(again, block))  # (B, again)
            exact = jnp.sum((x[:, None] - alpha[:, None] * y[near]) ** 2, -1)
            exact = jnp.where(
                jnp.take_along_axis(counts, near, 1), -exact / (2 * sigma**2), -jnp.inf
            )
            logit = jnp.put_along_axis(logit, near, exact, 1, inplace=False)
            peak = jnp.maximum(top, jnp.max(logit, 1))
            weight, kept = jnp.exp(logit - peak[:, None]), jnp.exp(top - peak)
            weighted = kept[:, None] * weighted + jnp.matmul(weight, y, precision="highest")
            return (
                peak,
                kept * total + jnp.sum(weight, 1),
                weighted,
                number + jnp.sum(counts, 1, dtype=jnp.int32),
            ), None

        none = jnp.zeros(len(x), x.dtype)
        lowest = jnp.full_like(none, -1e30)  # not -inf: -inf - -inf would be NaN
        start = lowest, none, jnp.zeros_like(x), jnp.zeros(len(x), jnp.int32)
        (top, total, weighted, number), _ = jax.lax.scan(one, start, blocks)
        return top + jnp.log(total), number, center + weighted / total[:, None]

    return stream
