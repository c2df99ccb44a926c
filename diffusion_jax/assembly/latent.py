"""Latent diffusion (Rombach et al. 2022): diffusion of the latents of an encoded data set.

    z ~ N(mean(x), std(x)^2)     x0 = (z - shift) / scale     images = decode(shift + scale x0)

shift and scale, one of each channel, make the training split's z of mean 0 and variance 1. The
autoencoder is known here as a pair of functions with parameters; its identity is the hash of these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import data
from diffusion_jax.core import arrays
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.progress import progress
from diffusion_jax.core.types import Array, Key, Params
from diffusion_jax.data import normalization
from diffusion_jax.data.latents import Encoded
from diffusion_jax.evaluation import rows

CHUNK = 4096  # images that are read at a time


class Codec(NamedTuple):
    """An autoencoder.

    Attributes:
      encode: (params, x (B, H, W, C)) -> (mean, log_variance), both (B, h, w, c).
      decode: (params, z (B, h, w, c)) -> images (B, H, W, C).
      params: the parameters of its networks.
      image_shape: (H, W, C).
    """

    encode: Callable[[Params, Array], tuple[Array, Array]]
    decode: Callable[[Params, Array], Array]
    params: Params
    image_shape: tuple[int, ...]


class LatentDecoder(NamedTuple):
    """The autoencoder of latents: it turns them into images, and images into them.

    Attributes:
      decode: (params, x0 (B, h, w, c)) -> images (B, H, W, C) in [-1, 1].
      params: the parameters of the autoencoder.
      encode: (params, images) -> x0, the means of their latents; None where it is not known.
    """

    decode: Callable[[Params, Array], Array]
    params: Params
    encode: Callable[[Params, Array], Array] | None = None


def digest(params: Params) -> str:
    """Compute the sha256 of a tree of arrays: of every leaf's path, type, shape and bytes.

    Args:
      params: the parameters, on any devices.

    Returns:
      64 hexadecimal digits.
    """
    found = hashlib.sha256()
    for path, leaf in sorted(
        (jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ):
        value = np.asarray(leaf)
        found.update(f"{path} {value.dtype} {value.shape} ".encode() + value.tobytes())
    return found.hexdigest()


def draw(batch: dict[str, Array], keys: Key) -> Array:
    """Draws x0 ~ q(z | x), (B, h, w, c), each from its own key, so that epochs differ.

    Args:
      batch: 'image', the means, and 'std', the standard deviations, both (B, h, w, c).
      keys: (B,).
    """
    return batch["image"] + batch["std"] * arrays.noise(keys, batch["image"])


def encode(
    codec: Codec,
    dataset: data.Dataset,
    *,
    batch_size: int = 256,
    dtype: str = "float32",
    flips: bool = False,
    new: Callable[[str, tuple[int, ...]], np.ndarray] | None = None,
) -> tuple[Encoded, dict[str, np.ndarray]]:
    """Encode both splits of a data set.

    scale^2 is the variance of z over the training split and its pixels, Var[mean] + E[std^2].

    Args:
      codec: the autoencoder.
      dataset: the data set of images.
      batch_size: images that are encoded at a time.
      dtype: the type of the stored moments.
      flips: whether the mirrored images of the training split are encoded as well.
      new: (name, shape) -> the array that is filled, which may be on disk; None keeps all in
        memory.

    Returns:
      What data.latents.save writes: a description, and the posterior's mean and log-variance of
      every image.

    Raises:
      UserError: for images of another size than the autoencoder's.
    """
    if dataset.image_shape != tuple(codec.image_shape):
        raise UserError(
            f"the images of data.name={dataset.name} are {dataset.image_shape}, the autoencoder is "
            f"for {tuple(codec.image_shape)}; set data.image_size and data.channels, or train "
            "another"
        )
    run = jax.jit(lambda images, params: codec.encode(params, images))
    make = new or (lambda name, shape: np.empty(shape, dtype))
    encoder = _Encoder(run, codec.params, batch_size, make)
    splits = _moments(encoder, dataset.train, "train") | _moments(encoder, dataset.test, "test")
    if flips:
        splits |= _moments(encoder, dataset.train, "train", mirrored=True)
    shift, scale = _statistics(splits["train_mean"], splits["train_log_variance"])
    encoded = Encoded(
        digest(codec.params),
        tuple(codec.image_shape),
        dataset.name,
        dataset.num_classes,
        tuple(dataset.class_names),
        tuple(shift.tolist()),
        tuple(scale.tolist()),
    )
    return encoded, splits


class _Encoder(NamedTuple):
    """How images are encoded: a compiled function, and the arrays that it fills."""

    run: Callable[[Array, Params], tuple[Array, Array]]
    params: Params
    batch_size: int
    make: Callable[[str, tuple[int, ...]], np.ndarray]


def _moments(
    encoder: _Encoder, source: data.Source, split: str, *, mirrored: bool = False
) -> dict[str, np.ndarray]:
    """The posterior moments of every image of a split, and the labels where there are some."""
    end, labels, found = "_flipped" if mirrored else "", [], {}
    what = f"encoding the {split} split" + ", mirrored" * mirrored
    with progress(len(source), what) as advance:
        for start in range(0, len(source), CHUNK):
            read = source.rows(np.arange(start, min(start + CHUNK, len(source))))
            images = data.transforms.to_float(read["image"])
            images = images[:, :, ::-1] if mirrored else images
            parts = rows.over_rows(encoder.run, images, encoder.params, block=encoder.batch_size)
            for name, part in zip(data.latents.MOMENTS, parts):
                name = f"{split}_{name}{end}"
                if name not in found:
                    found[name] = encoder.make(name, (len(source), *part.shape[1:]))
                found[name][start : start + len(part)] = part
            labels += [read["label"]] if "label" in read else []
            advance(len(images))
    return found | ({f"{split}_label": np.concatenate(labels)} if labels and not mirrored else {})


def _statistics(mean: np.ndarray, log_variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shift and scale of each channel, of a split that is read in parts."""
    variance = 0.0
    for start in range(0, len(log_variance), CHUNK):
        part = np.exp(log_variance[start : start + CHUNK].astype(np.float64))
        variance += part.sum(tuple(range(part.ndim - 1)))
    parts = (mean[start : start + CHUNK] for start in range(0, len(mean), CHUNK))
    own = normalization.measure(parts, "standard", "float32", "the latents")
    count = mean.size / mean.shape[-1]
    return np.asarray(own.shift), np.sqrt(np.square(own.scale) + variance / count)


def latents(codec: Codec, encoded: Encoded, workdir: str) -> LatentDecoder:
    """Make the decoder of latents, of the autoencoder that encoded them.

    Args:
      codec: the autoencoder.
      encoded: the description of the latents.
      workdir: the workdir of the autoencoder, for messages.

    Raises:
      UserError: if the codec is another one, or for images of another shape.
    """
    if tuple(codec.image_shape) != tuple(encoded.image_shape):
        raise UserError(
            f"config.latent.autoencoder={workdir} is for images {tuple(codec.image_shape)}, and "
            f"the latents were made of images {tuple(encoded.image_shape)}; name the one that made "
            "them, or encode again"
        )
    if (found := digest(codec.params)) != encoded.autoencoder:
        hashes = f"its parameters' sha256 is {found[:12]}..., theirs {encoded.autoencoder[:12]}..."
        raise UserError(
            f"config.latent.autoencoder={workdir} is not the autoencoder that made the latents: "
            f"{hashes}; name that one, or encode again"
        )
    shift, scale = (jnp.asarray(x, jnp.float32) for x in (encoded.shift, encoded.scale))
    return LatentDecoder(
        lambda params, x: codec.decode(params, shift + scale * x),
        codec.params,
        lambda params, images: (codec.encode(params, images)[0] - shift) / scale,
    )
