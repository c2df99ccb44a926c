"""Latent diffusion (Rombach et al. 2022): a data set encoded once, diffused instead of the images,
and decoded in the end.

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

from diffusion_jax import arrays, data
from diffusion_jax.data.latents import Encoded
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation import rows
from diffusion_jax.progress import progress
from diffusion_jax.types import Array, Key, Params

CHUNK = 4096  # images that are read at a time


class Codec(NamedTuple):
    """An autoencoder of images of image_shape. encode(params, x) -> (mean, log_variance);
    decode(params, z) -> images.
    """

    encode: Callable[[Params, Array], tuple[Array, Array]]
    decode: Callable[[Params, Array], Array]
    params: Params
    image_shape: tuple[int, ...]


class Latents(NamedTuple):
    """How samples become images. decode(params, x0 (B, h, w, c)) -> (B, H, W, C) in [-1, 1];
    params: the autoencoder's.
    """

    decode: Callable[[Params, Array], Array]
    params: Params


def digest(params: Params) -> str:
    """sha256 of a tree of arrays: of every leaf's path, type, shape and bytes."""
    found = hashlib.sha256()
    for path, leaf in sorted(
        (jax.tree_util.keystr(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    ):
        value = np.asarray(leaf)
        found.update(f"{path} {value.dtype} {value.shape} ".encode() + value.tobytes())
    return found.hexdigest()


def draw(batch: dict[str, Array], keys: Key) -> Array:
    """x0 ~ q(z | x) of a batch of latents, (B, h, w, c), each from its own key: another in every
    epoch.
    """
    return batch["image"] + batch["std"] * arrays.noise(keys, batch["image"])


def encode(
    codec: Codec, dataset: data.Dataset, *, batch_size: int = 256, dtype: str = "float32"
) -> tuple[Encoded, dict[str, np.ndarray]]:
    """What data.latents.save writes: of every image of both splits the posterior's mean and
    log-variance, of `dtype`.

    scale^2 is the variance of z over the training split and its pixels: Var[mean] + E[std^2].
    UserError for images of another size.
    """
    if dataset.image_shape != tuple(codec.image_shape):
        raise UserError(
            f"the images of data.name={dataset.name} are {dataset.image_shape}, the autoencoder is for "
            f"{tuple(codec.image_shape)}; set data.image_size and data.channels, or train another"
        )
    run = jax.jit(lambda images, params: codec.encode(params, images))
    splits = {}
    for split, source in (("train", dataset.train), ("test", dataset.test)):
        parts = []
        with progress(len(source), f"encoding the {split} split") as advance:
            for start in range(0, len(source), CHUNK):
                read = source.rows(np.arange(start, min(start + CHUNK, len(source))))
                moments = rows.over_rows(
                    run, data.transforms.to_float(read["image"]), codec.params, block=batch_size
                )
                kept = dict(
                    zip(("mean", "log_variance"), (value.astype(dtype) for value in moments))
                )
                parts.append(kept | ({"label": read["label"]} if "label" in read else {}))
                advance(len(read["image"]))
        splits |= {
            f"{split}_{name}": np.concatenate([part[name] for part in parts]) for name in parts[0]
        }
    mean, variance = (
        splits["train_mean"].astype(np.float64),
        np.exp(splits["train_log_variance"].astype(np.float64)),
    )
    over = tuple(range(mean.ndim - 1))
    shift, scale = mean.mean(over), np.sqrt(mean.var(over) + variance.mean(over))
    about = (
        digest(codec.params),
        tuple(codec.image_shape),
        dataset.name,
        dataset.num_classes,
        tuple(dataset.class_names),
    )
    return Encoded(*about, tuple(shift.tolist()), tuple(scale.tolist())), splits


def latents(codec: Codec, encoded: Encoded, workdir: str) -> Latents:
    """How samples of latents become images, by the autoencoder that made these.

    UserError if the codec, that of `workdir`, is another one, or is for images of another shape.
    """
    if tuple(codec.image_shape) != tuple(encoded.image_shape):
        shapes = f"is for images {tuple(codec.image_shape)}, and the latents were made of images {tuple(encoded.image_shape)}"
        raise UserError(
            f"config.latent.autoencoder={workdir} {shapes}; name the one that made them, or encode again"
        )
    if (found := digest(codec.params)) != encoded.autoencoder:
        hashes = f"its parameters' sha256 is {found[:12]}..., theirs {encoded.autoencoder[:12]}..."
        raise UserError(
            f"config.latent.autoencoder={workdir} is not the autoencoder that made the latents: {hashes}; "
            "name that one, or encode again"
        )
    shift, scale = (jnp.asarray(x, jnp.float32) for x in (encoded.shift, encoded.scale))
    return Latents(lambda params, x: codec.decode(params, shift + scale * x), codec.params)
