"""What a trained autoencoder is asked for: reconstructions, ways between images, its numbers, and
how latents see it.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import arrays, data, streams
from diffusion_jax.assembly import latent
from diffusion_jax.assembly.kinds import autoencoder
from diffusion_jax.assembly.settings import Experiment
from diffusion_jax.data.padding import padded_batches
from diffusion_jax.errors import UserError
from diffusion_jax.evaluation.psnr import psnr
from diffusion_jax.likelihood import bounds
from diffusion_jax.objectives import variational
from diffusion_jax.types import Array, Cond, Key, Params


def reconstruct_fn(built: Experiment) -> Callable:
    """Jitted (params, x (B, ...), cond, keys) -> what the autoencoder makes of the posterior means
    of x.
    """

    @jax.jit
    def run(params: Params, x: Array, cond: Cond, keys: Key) -> Array:
        return autoencoder.pictures(
            built, params, autoencoder.networks(built, params).encode(x, cond)[0], keys, cond
        )

    return run


def interpolate_fn(built: Experiment, steps: int = 10) -> Callable:
    """Jitted (params, a (B, ...), b, cond, keys) -> (B, steps, ...): images of latents between
    those of a and b, in line.
    """

    @jax.jit
    def run(params: Params, a: Array, b: Array, cond: Cond, keys: Key) -> Array:
        ends = [autoencoder.networks(built, params).encode(x, cond)[0] for x in (a, b)]
        along = jnp.stack(
            [arrays.tree_lerp(*ends, w) for w in np.linspace(0, 1, steps)], axis=1
        )  # (B, steps, ...)
        z, again = along.reshape(-1, *along.shape[2:]), lambda x: jnp.repeat(x, steps, axis=0)
        x = autoencoder.pictures(built, params, z, again(keys), jax.tree.map(again, cond))
        return x.reshape(len(a), steps, *built.shape)

    return run


def measure_fn(built: Experiment, samples: int) -> Callable:
    """Jitted (params, x (B, ...), cond, keys) -> per example: 'rate', 'distortion', 'elbo' and
    'iw_bound' of so many samples in nats, 'mean', the latent's, and 'image', the reconstruction from
    it (not of a decoder that reads pixels).
    """
    likelihood, shape = built.objective.likelihood, built.model.latent_shape

    @jax.jit
    def run(params: Params, x: Array, cond: Cond, keys: Key) -> dict[str, Array]:
        networks = autoencoder.networks(built, params)
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
        if built.model.autoregressive:
            return found
        return found | {"image": variational.mean_image(networks, likelihood, mean, cond)}

    return run


def held_out(
    built: Experiment,
    params: Params,
    source: data.Source,
    *,
    count: int = 2000,
    samples: int = 64,
    batch_size: int = 250,
) -> dict[str, float]:
    """What measure_fn measures, on average over the first images of a split, the 'psnr' of
    reconstructions in dB, and 'active_units' of 'units'.
    """
    count = min(count, len(source))
    run, batch, parts = measure_fn(built, samples), min(batch_size, count), []
    for start, index, real in padded_batches(count, batch):
        rows = source.rows(index)
        cond = built.conditions.of_labels(rows["label"]) if built.num_classes else None
        keys = arrays.example_keys(jax.random.key(0), batch, start)
        x = data.transforms.to_float(rows["image"])
        out = run(params, x, cond, keys)
        part = {name: np.asarray(value)[:real] for name, value in out.items()}
        if "image" in part:
            part["psnr"] = psnr(np.clip(part.pop("image"), -1, 1), x[:real])
        parts.append(part)
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    means = found.pop("mean")
    units = {"active_units": int(variational.active_units(means)), "units": means.shape[1]}
    return (
        {name: float(value.mean()) for name, value in found.items()}
        | units
        | {"images": count, "samples": samples}
    )


def codec(built: Experiment, params: Params) -> latent.Codec:
    """The autoencoder as latent.py knows one. UserError for a model that is none, and for one whose
    pixels read each other.
    """
    if not built.kind.reconstructs or built.model.autoregressive or built.num_classes:
        raise UserError(
            f"{built.specs.model} makes no latents: take an autoencoder that needs no labels and no pixels"
        )
    likelihood = built.objective.likelihood

    def encode(own: Params, x: Array) -> tuple[Array, Array]:
        return autoencoder.networks(built, {"autoencoder": own}).encode(x, None)

    def decode(own: Params, z: Array) -> Array:
        return jnp.clip(
            variational.mean_image(
                autoencoder.networks(built, {"autoencoder": own}), likelihood, z
            ),
            -1.0,
            1.0,
        )

    return latent.Codec(encode, decode, params["autoencoder"], built.shape)
