"""What a trained autoencoder does: reconstruct, interpolate, be measured and encode data sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffusion_jax import data
from diffusion_jax.assembly import latent
from diffusion_jax.assembly.kinds import autoencoder
from diffusion_jax.assembly.settings import Experiment
from diffusion_jax.core import arrays, streams
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Cond, Key, Params
from diffusion_jax.data.padding import padded_batches
from diffusion_jax.evaluation import intervals
from diffusion_jax.evaluation.psnr import psnr
from diffusion_jax.likelihood import bounds
from diffusion_jax.objectives import variational
from diffusion_jax.training import sharding


def reconstruct_fn(experiment: Experiment) -> Callable:
    """Make the function that reconstructs images from their posterior means.

    Args:
      experiment: an autoencoder.

    Returns:
      A jitted function (params, x (B, ...), cond, keys) -> (B, ...).
    """

    @jax.jit
    def run(params: Params, x: Array, cond: Cond, keys: Key) -> Array:
        mean = autoencoder.networks(experiment, params).encode(x, cond)[0]
        return autoencoder.decode_latents(experiment, params, mean, keys, cond)

    return run


def interpolate_fn(experiment: Experiment, steps: int = 10) -> Callable:
    """Make the function that decodes the line between the latents of two images.

    Args:
      experiment: an autoencoder.
      steps: number of images on the line, its two ends included.

    Returns:
      A jitted function (params, a (B, ...), b (B, ...), cond, keys) -> (B, steps, ...).
    """

    @jax.jit
    def run(params: Params, a: Array, b: Array, cond: Cond, keys: Key) -> Array:
        ends = [autoencoder.networks(experiment, params).encode(x, cond)[0] for x in (a, b)]
        between = [arrays.tree_lerp(*ends, w) for w in np.linspace(0, 1, steps)]
        along = jnp.stack(between, axis=1)  # (B, steps, ...)
        z = along.reshape(-1, *along.shape[2:])

        def repeated(value: Array) -> Array:
            return jnp.repeat(value, steps, axis=0)

        cond = jax.tree.map(repeated, cond)
        x = autoencoder.decode_latents(experiment, params, z, repeated(keys), cond)
        return x.reshape(len(a), steps, *experiment.shape)

    return run


def measure_fn(experiment: Experiment, samples: int) -> Callable:
    """The bounds and the reconstruction of images.

    Args:
      experiment: an autoencoder.
      samples: number of samples of the importance-weighted bound.

    Returns:
      A jitted function (params, x (B, ...), cond, keys) -> per example 'rate', 'distortion', 'elbo'
      and 'iw_bound' in nats, the 'mean' of the latent, and the 'image' that is decoded from it (not
      for an autoregressive decoder).
    """
    likelihood, shape = experiment.objective.likelihood, experiment.model.latent_shape

    @jax.jit
    def run(params: Params, x: Array, cond: Cond, keys: Key) -> dict[str, Array]:
        networks = autoencoder.networks(experiment, params)
        eps = variational.latent_noise(samples)(
            arrays.fold_in(keys, streams.EXAMPLE_OBJECTIVE), jnp.zeros((len(x), *shape))
        )
        log_weights, rate, distortion = variational.importance(
            networks, likelihood, x, eps, cond, loop=True
        )
        mean = networks.encode(x, cond)[0]
        found = {
            "rate": rate,
            "distortion": distortion,
            "elbo": -rate - distortion,
            "iw_bound": bounds.log_mean_exp(log_weights, axis=0),
            "mean": mean.reshape(len(x), -1),
        }
        if experiment.model.autoregressive:
            return found
        return found | {"image": variational.mean_image(networks, likelihood, mean, cond)}

    return run


def held_out(
    experiment: Experiment,
    params: Params,
    source: data.Source,
    *,
    count: int = 2000,
    samples: int = 64,
    batch_size: int = 250,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """The averages of `measure_fn` over the first images of a split, with their intervals.

    Args:
      experiment: an autoencoder.
      params: the parameters of its networks.
      source: the split.
      count: number of images.
      samples: number of samples of the importance-weighted bound.
      batch_size: images that are measured at a time.
      mesh: the devices that measure; None for one device.

    Returns:
      Those averages, the 'psnr' of reconstructions in dB, the number of 'active_units' among
      'units', the numbers of 'images' and 'samples', and as 'intervals' half the width of the 95 %
      interval of every average and of the active units.
    """
    count = min(count, len(source))
    measure, batch, parts = measure_fn(experiment, samples), min(batch_size, count), []
    spread = sharding.spread(measure, mesh) if mesh else None
    for start, index, real in padded_batches(count, batch):
        rows = source.rows(index)
        cond = experiment.conditions.of_labels(rows["label"]) if experiment.num_classes else None
        keys = arrays.example_keys(jax.random.key(0), batch, start)
        x = data.transforms.to_float(rows["image"])
        out = spread(params, (x, cond, keys)) if spread else measure(params, x, cond, keys)
        part = {name: np.asarray(value)[:real] for name, value in out.items()}
        if "image" in part:
            part["psnr"] = psnr(np.clip(part.pop("image"), -1, 1), x[:real])
        parts.append(part)
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    means = found.pop("mean")
    measured = {name: intervals.mean(value) for name, value in found.items()}
    measured |= intervals.by_groups(
        lambda stays: {"active_units": int(variational.active_units(means[stays]))}, count
    )
    return intervals.record(measured) | {
        "units": means.shape[1],
        "images": count,
        "samples": samples,
    }


def codec(experiment: Experiment, params: Params) -> latent.Codec:
    """Return an autoencoder as a pair of functions with parameters.

    Args:
      experiment: an autoencoder that needs no labels.
      params: its parameters, {'autoencoder': ...}.

    Raises:
      UserError: for another kind of model, one that needs labels, and an autoregressive decoder.
    """
    if (
        not experiment.kind.reconstructs
        or experiment.model.autoregressive
        or experiment.num_classes
    ):
        raise UserError(
            f"{experiment.specs.model} makes no latents: take an autoencoder that needs "
            "no labels and no pixels"
        )
    likelihood = experiment.objective.likelihood

    def encode(own: Params, x: Array) -> tuple[Array, Array]:
        return autoencoder.networks(experiment, {"autoencoder": own}).encode(x, None)

    def decode(own: Params, z: Array) -> Array:
        networks = autoencoder.networks(experiment, {"autoencoder": own})
        return jnp.clip(variational.mean_image(networks, likelihood, z), -1.0, 1.0)

    return latent.Codec(encode, decode, params["autoencoder"], experiment.shape)
