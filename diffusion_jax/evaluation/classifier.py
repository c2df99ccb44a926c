"""A small convolutional classifier of a data set, for features and logits.

It is trained on the data set at hand in about a minute on two CPU cores, and kept. The features are
its last hidden layer. It consists of plain functions of a dictionary of parameters.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion_jax.core import npz, reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.progress import progress
from diffusion_jax.core.types import Array
from diffusion_jax.data import transforms
from diffusion_jax.evaluation import rows
from diffusion_jax.models.convolution import convolve

SIZE = 32  # larger images are first resized to this
RESIZE = f"none to {SIZE}, above it bilinear, antialiased"
WIDTHS, FEATURES = (16, 32, 64, 64), 128  # every second convolution halves the map
IMAGES = 120_000  # images in all steps together, each at most 100 times
BATCH, RATE, DECAY = 128, 2e-3, 0.02
SCALED_BY = 2000  # training images that give the features their scale
VERSION = 2  # of what this file computes
Params = dict[str, Array]


class Classifier(NamedTuple):
    """A trained classifier.

    Attributes:
      params: the parameters by name.
      classes: the width of the logits.
      digest: the digest of the parameters.
    """

    params: Params
    classes: int
    digest: str


def fit(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    cache_dir: str | os.PathLike | None = "~/.cache/diffusion_jax",
    seen: int = IMAGES,
) -> Classifier:
    """Train the classifier of a data set, or read it from the cache.

    AdamW with one cosine cycle over `seen` images, and random shifts by one pixel.

    Args:
      images: uint8 (N, H, W, C).
      labels: (N,).
      cache_dir: where it is kept under a hash of data and settings; None keeps nothing.
      seen: the number of images in all steps together.

    Raises:
      UserError: for labels that do not fit the images, and for a set of one class.
    """
    images, labels = np.ascontiguousarray(images), np.asarray(labels, np.int32)
    if (
        images.ndim != 4
        or images.dtype != np.uint8
        or labels.shape != images.shape[:1]
        or len(np.unique(labels)) < 2
    ):
        got = f"{images.dtype} {images.shape}, labels {labels.shape}"
        raise UserError(
            "a classifier needs uint8 images (N, H, W, C) with one label each, of two classes or "
            f"more; got {got}"
        )
    settings = json.dumps(
        [VERSION, WIDTHS, FEATURES, BATCH, RATE, DECAY, SIZE, seen, images.shape, jax.__version__]
    )
    key = hashlib.sha256(settings.encode() + images.tobytes() + labels.tobytes()).hexdigest()[:24]
    path = None if cache_dir is None else Path(cache_dir).expanduser() / f"classifier-{key}.npz"
    classes = int(labels.max()) + 1
    params = (
        None
        if path is None
        else reading.kept(path, lambda path: _load(path, images.shape[1:], classes))
    )
    if params is None:
        params = _train(images, labels, min(seen, 100 * len(images)))
        _keep(path, params)
    digest = hashlib.sha256(
        b"".join(name.encode() + params[name].tobytes() for name in sorted(params))
    )
    return Classifier(params, len(params["logits.bias"]), f"{VERSION}-{digest.hexdigest()[:16]}")


@jax.jit
def forward(images: Array, params: Params) -> tuple[Array, Array]:
    """Compute features and logits.

    Args:
      images: uint8 (B, H, W, C).
      params: the parameters.

    Returns:
      (features (B, 128), the last hidden layer, of mean square 1; logits (B, K)), float32.
    """
    x = _convolved(transforms.to_float(images), params)[-1]
    features = jax.nn.relu(x.reshape(len(x), -1) @ params["hidden.kernel"] + params["hidden.bias"])
    return features, features @ params["logits.kernel"] + params["logits.bias"]


def maps(x: Array, params: Params) -> tuple[Array, ...]:
    """Compute the feature maps of all convolutions, of unit length in each pixel.

    Their squared differences are a perceptual distance (Zhang et al. 2018, eq. 1, unweighted), for
    the losses of autoencoders.

    Args:
      x: (B, H, W, C), images in [-1, 1].
      params: the parameters.

    Returns:
      Maps (B, h, w, c).
    """
    return tuple(
        h * jax.lax.rsqrt(jnp.sum(h * h, -1, keepdims=True) + 1e-6) for h in _convolved(x, params)
    )


def _convolved(x: Array, params: Params) -> list[Array]:
    """Compute the feature maps of all convolutions, of images (B, H, W, C) in [-1, 1]."""
    found = []
    height, width = (min(size, SIZE) for size in x.shape[1:3])
    if (height, width) != x.shape[1:3]:
        x = jax.image.resize(x, (len(x), height, width, x.shape[-1]), "bilinear")
    for i in range(len(WIDTHS)):
        x = convolve(x, params[f"conv{i}.kernel"], (1 + i % 2,) * 2, "SAME")
        x = jax.nn.relu(x + params[f"conv{i}.bias"])
        found.append(x)
    return found


def init(shape: tuple[int, int, int], classes: int) -> Params:
    """Initialize the parameters by He's method, with fixed random numbers.

    Args:
      shape: (H, W, C) of the images; sides longer than SIZE are reduced to it before the first
        layer.
      classes: number of classes K, the width of the logits.
    """
    rng, params = np.random.default_rng(0), {}

    def layer(name: str, *shape: int, gain: float = 2.0) -> None:
        params[name + ".kernel"] = (
            rng.normal(size=shape) * np.sqrt(gain / np.prod(shape[:-1]))
        ).astype(np.float32)
        params[name + ".bias"] = np.zeros(shape[-1], np.float32)

    (height, width), channels = (min(size, SIZE) for size in shape[:2]), shape[2]
    for i, out in enumerate(WIDTHS):
        layer(f"conv{i}", 3, 3, channels, out)
        height, width, channels = -(-height // (1 + i % 2)), -(-width // (1 + i % 2)), out
    layer("hidden", height * width * channels, FEATURES)
    layer("logits", FEATURES, classes, gain=0.1)
    return params


def _train(images: np.ndarray, labels: np.ndarray, seen: int) -> Params:
    steps = max(1, seen // BATCH)
    tx = optax.adamw(optax.cosine_onecycle_schedule(steps, RATE), weight_decay=DECAY)
    params = init(images.shape[1:], int(labels.max()) + 1)
    rng, state = np.random.default_rng(0), tx.init(params)
    step = jax.jit(lambda *args: _step(tx, *args), donate_argnums=(0, 1))
    order = np.concatenate(
        [rng.permutation(len(images)) for _ in range(-(-steps * BATCH // len(images)))]
    )
    with progress(steps * BATCH, "training the classifier") as advance:
        for i in range(steps):
            chosen = order[i * BATCH : (i + 1) * BATCH]
            params, state = step(
                params, state, images[chosen], labels[chosen], rng.integers(-1, 2, (len(chosen), 2))
            )
            if i % 20 == 19 or i == steps - 1:
                jax.block_until_ready(params)
                advance(BATCH * (i % 20 + 1))
    return _unit_features(jax.device_get(params), images[:SCALED_BY])


def _unit_features(params: dict[str, np.ndarray], images: np.ndarray) -> dict[str, np.ndarray]:
    """Scale the features to mean square 1, as the kernels of KID and MMD have a scale."""
    features, _ = rows.over_rows(forward, images, params, block=512)
    scale = np.sqrt(np.mean(np.square(features, dtype=np.float64))).astype(np.float32)
    factors = {"hidden.kernel": 1 / scale, "hidden.bias": 1 / scale, "logits.kernel": scale}
    return {name: value * factors.get(name, np.float32(1)) for name, value in params.items()}


def _step(
    tx: optax.GradientTransformation,
    params: Params,
    state: optax.OptState,
    images: Array,
    labels: Array,
    shifts: Array,
) -> tuple[Params, optax.OptState]:
    """One step of training on images that are shifted by at most a pixel."""
    images = jax.vmap(lambda image, shift: jnp.roll(image, shift, (0, 1)))(images, shifts)

    def loss(params: Params) -> Array:
        return jnp.mean(
            optax.softmax_cross_entropy_with_integer_labels(forward(images, params)[1], labels)
        )

    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state


def _load(path: Path, shape: tuple[int, int, int], classes: int) -> dict[str, np.ndarray]:
    """Read the parameters that `_keep` wrote for such images; UserError for a damaged file."""
    return npz.load(
        path,
        {name: npz.ArraySpec("f", value.shape) for name, value in init(shape, classes).items()},
    )


def _keep(path: Path | None, params: dict[str, np.ndarray]) -> None:
    """Write the parameters to the cache; a cache that cannot be written is no error."""
    if path is not None:
        with contextlib.suppress(UserError, OSError):
            npz.save(path, params)
