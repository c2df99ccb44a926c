"""Autoencoders: VAEs and the autoencoders of latent diffusion."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.assembly import components, conditions
from diffusion_jax.assembly.build import build
from diffusion_jax.assembly.settings import Experiment, Kind, SamplingSettings
from diffusion_jax.core import arrays, streams
from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.core.types import Array, Cond, Key, Params
from diffusion_jax.evaluation import classifier
from diffusion_jax.objectives import variational
from diffusion_jax.objectives.variational import AutoencoderNetworks
from diffusion_jax.pretrained import lpips, weights
from diffusion_jax.training import step


def complete(experiment: Experiment, config: ConfigDict) -> Experiment:
    """Add the discriminator of an adversarial objective.

    Args:
      experiment: the autoencoder, with its objective.
      config: its config, which names the discriminator.

    Raises:
      UserError: for an adversarial objective without a discriminator.
    """
    if not experiment.objective.adversarial:
        return experiment
    if not config.discriminator:
        raise UserError(
            f"config.objective={config.objective} has an adversary, and config.discriminator names "
            "none; begin with a config that does, such as "
            "configs/fashion_autoencoder.py:adversarial"
        )
    adversary = build(components.DISCRIMINATORS, config.discriminator)
    return experiment._replace(discriminator=adversary)


def init(experiment: Experiment, key: Key) -> Params:
    """Initialize {'autoencoder': ...}, and {'discriminator': ...} if there is one.

    Args:
      experiment: the autoencoder.
      key: one key.
    """
    x = jnp.zeros((1, *experiment.shape))
    cond = experiment.conditions.null(1)
    params = {"autoencoder": experiment.model.init(key, x, cond)["params"]}
    if experiment.discriminator:
        own = experiment.discriminator.init(arrays.fold_in(key, streams.INIT_DISCRIMINATOR), x)[
            "params"
        ]
        params["discriminator"] = own
    return params


def loss(experiment: Experiment) -> step.LossFn:
    """Return the loss of an autoencoder, with the metrics of its objective.

    In evaluation it is that at the end of all schedules.

    Args:
      experiment: the autoencoder.
    """
    objective, like = experiment.objective, experiment.model.latent_shape

    def run(params: Params, batch, keys: Key, now: step.Now):
        x, last = conditions.example(batch, keys), jnp.iinfo(jnp.int32).max
        eps = objective.draw(
            arrays.fold_in(keys, streams.EXAMPLE_OBJECTIVE), jnp.zeros((len(x), *like))
        )
        cond = experiment.conditions.of_batch(batch, keys, now.train)
        at = now.step if now.train else jnp.int32(last)
        return objective.loss(networks(experiment, params), x, eps, cond, at)

    return run


def draw(
    experiment: Experiment,
    params: Params,
    keys: Key,
    cond: Cond,
    ts: Array,
    scale: Array | None,
    settings: SamplingSettings,
) -> tuple[Array, Array]:
    """Decode z ~ N(0, I), from the random stream of samplers.base.start.

    Args:
      experiment: the autoencoder.
      params: its parameters.
      keys: (B,), one for each image.
      cond: the conditions of the images, or None.
      ts: not used: there is one evaluation, of the decoder.
      scale: not used: there is no guidance.
      settings: not used, as there is no sampler.

    Returns:
      (images (B, ...) in [-1, 1], NFE (B,) of 1).
    """
    z = arrays.noise(
        arrays.fold_in(keys, streams.PRIOR), jnp.zeros((len(keys), *experiment.model.latent_shape))
    )
    return decode_latents(experiment, params, z, keys, cond), jnp.ones(len(keys), jnp.int32)


def networks(experiment: Experiment, params: Params) -> AutoencoderNetworks:
    """Return the networks of an autoencoder, as its objective calls them.

    Args:
      experiment: the autoencoder.
      params: {'autoencoder': ...}, and {'discriminator': ...} if there is one.

    Raises:
      UserError: for an adversarial objective with an autoencoder of dense layers.
    """
    model, adversary, own = experiment.model, experiment.discriminator, params["autoencoder"]
    if adversary and "last" not in own["decoder"]:
        raise UserError(
            f"config.objective has an adversary, which {experiment.specs.model} of dense layers "
            "cannot have: its weight is measured at a last convolution; use hidden=(), or "
            "adversarial=0"
        )

    def decode(own, z, cond=None, x=None):
        return model.apply({"params": own}, z, cond, x, method="decode")

    def discriminate(x, frozen):
        judge = params["discriminator"]
        return adversary.apply({"params": jax.lax.stop_gradient(judge) if frozen else judge}, x)

    def with_last(kernel, z):
        last = own["decoder"]["last"] | {"kernel": kernel}
        return decode(own | {"decoder": own["decoder"] | {"last": last}}, z)[0]

    return AutoencoderNetworks(
        lambda x, cond=None: model.apply({"params": own}, x, cond, method="encode"),
        lambda z, cond=None, x=None: decode(own, z, cond, x),
        discriminate,
        experiment.features,
        adversary and (own["decoder"]["last"]["kernel"], with_last),
    )


def prepare(experiment: Experiment, train: data.Source | None) -> Experiment:
    """The experiment with the features by which its objective compares images, if any.

    They are those of LPIPS, or of a classifier that is trained here.

    Args:
      experiment: an autoencoder.
      train: the training split; None for an untrained classifier, where only shapes matter.

    Raises:
      UserError: for unknown features, and for a classifier of data without labels.
    """
    wanted = experiment.objective.features
    if not wanted:
        return experiment
    if wanted == "lpips":
        return experiment._replace(
            features=functools.partial(lpips.features, params=weights.load("lpips"))
        )
    if wanted != "classifier":
        raise unknown("features", wanted, ("classifier", "lpips"))
    if train is None:
        params = classifier.init(experiment.shape, 2)
    elif "label" not in (everything := data.arrays(train)):
        raise UserError(
            "features='classifier' of the objective needs data with labels; use "
            "features='lpips', or perceptual=0"
        )
    else:
        params = classifier.fit(everything["image"], everything["label"]).params
    return experiment._replace(features=functools.partial(classifier.maps, params=params))


def decode_latents(
    experiment: Experiment, params: Params, z: Array, keys: Key, cond: Cond = None
) -> Array:
    """The images of latents, in [-1, 1].

    They are the means of p(x | z), or for an autoregressive decoder draws.

    Args:
      experiment: an autoencoder.
      params: the parameters of its networks.
      z: latents, (B, ...).
      keys: the keys of the images, (B,), by which an autoregressive decoder draws.
      cond: the condition.
    """
    bound, likelihood = networks(experiment, params), experiment.objective.likelihood
    if not experiment.model.autoregressive:
        x = variational.mean_image(bound, likelihood, z, cond)
        return jnp.clip(x, -1.0, 1.0) if experiment.is_image else x
    return variational.sample_pixels(
        bound, likelihood, z, arrays.fold_in(keys, streams.DECODER), experiment.shape, cond
    )


KIND = Kind(
    name="an autoencoder",
    complete=complete,
    prepare=prepare,
    init=init,
    loss=loss,
    draw=draw,
    denoises=False,
    reconstructs=True,
)
