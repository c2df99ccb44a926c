"""Diffusion models: a denoiser that is trained by an objective and sampled by a solver."""

from __future__ import annotations

import jax.numpy as jnp
from ml_collections import ConfigDict

from diffusion_jax.assembly import components, denoiser, step_inputs
from diffusion_jax.assembly.settings import Experiment, Kind, SamplingSettings
from diffusion_jax.core import arrays, streams
from diffusion_jax.core.types import Array, Cond, Denoise, Key, Params, Prediction
from diffusion_jax.data.sources import Source
from diffusion_jax.objectives.alignment import misalignment
from diffusion_jax.objectives.resampling import NAME
from diffusion_jax.processes import gaussian
from diffusion_jax.samplers import base
from diffusion_jax.training import ema, step


def init(experiment: Experiment, key: Key) -> Params:
    """Initialize the parameters of the network.

    Args:
      experiment: the model.
      key: one key.
    """
    x = jnp.zeros((1, *experiment.shape))
    cond = experiment.conditions.null(1)
    return experiment.model.init(key, x, jnp.zeros(1), cond)["params"]


def loss(experiment: Experiment) -> step.LossFn:
    """Return the loss of a denoiser, with the level of its noise, {'level': log-SNR (B,)}.

    Args:
      experiment: the model.
    """
    objective = experiment.objective
    uncertain = {"log_variance": True} if experiment.options.get("uncertainty") else {}

    def run(params: Params, batch, keys: Key, now: step.Now):
        x0, cond = step_inputs.examples(experiment, batch, keys, now.train)
        own = arrays.fold_in(keys, streams.EXAMPLE_OBJECTIVE)
        resampling = objective.resampling if now.train else None
        if resampling:
            times = arrays.fold_in(own, streams.OBJECTIVE_TIME)
            t, weights = resampling.draw(times, now.ema[NAME])
            noised = objective.at(own, x0, t)
        else:
            noised = objective.draw(own, x0)
        rngs = step_inputs.dropout(keys, now.train)
        aligned = experiment.alignment and "features" in batch
        extra = uncertain | ({"tokens": True} if aligned else {})
        denoise = denoiser.plain(experiment, params, train=now.train, rngs=rngs, **extra)
        examples = {"level": gaussian.logsnr(experiment.process, noised.t)}
        if aligned:
            prediction = denoise(noised.x_t, noised.t, cond)
            denoise = _known(prediction)
            examples["misalignment"] = misalignment(prediction.tokens, batch["features"])
        losses = objective.loss(denoise, noised, cond)
        if resampling:
            examples |= {"time": noised.t, "unweighted": losses}
            losses = losses * weights
        if aligned:
            losses = losses + experiment.alignment * examples["misalignment"]
        return losses, examples

    return run


def _known(prediction: Prediction) -> Denoise:
    """The denoiser that has made a prediction, for objectives that ask for that one alone."""

    def denoise(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
        return prediction

    return denoise


def draw(
    experiment: Experiment,
    params: Params,
    keys: Key,
    cond: Cond,
    ts: Array,
    scale: Array | None,
    settings: SamplingSettings,
) -> tuple[Array, Array]:
    """Sample by the denoiser and the sampler of the settings.

    Args:
      experiment: the model.
      params: its parameters.
      keys: (B,), one for each sample.
      cond: the conditions of the samples, or None.
      ts: decreasing times (n,), padded by repetitions of the last one.
      scale: the scale of the guidance, a scalar; None without guidance.
      settings: the sampler, its noise and its clip.

    Returns:
      (x0 (B, ...), NFE of each sample (B,)).
    """
    denoise = denoiser.denoiser(experiment, params, scale=scale, clip=settings.clip)
    x = base.start(experiment.process, keys, (len(keys), *experiment.shape))
    samples = base.sample(
        settings.sampler,
        denoise,
        experiment.process,
        keys,
        x,
        ts,
        cond,
        padded=True,
        noise=components.NOISES[settings.noise],
    )
    return samples.x0, samples.nfe


def complete(experiment: Experiment, config: ConfigDict) -> Experiment:
    """Return the experiment itself: a diffusion model has no further parts.

    Args:
      experiment: the model.
      config: its config, which is not used.
    """
    return experiment


def prepare(experiment: Experiment, train: Source | None) -> Experiment:
    """Return the experiment itself: a diffusion model learns nothing before training.

    Args:
      experiment: the model.
      train: the training split, which is not used.
    """
    return experiment


def companions(experiment: Experiment) -> tuple[ema.Ema, ...]:
    """Return the history of losses, where times are drawn by it; else nothing.

    Args:
      experiment: the model, whose objective says so.
    """
    resampling = experiment.objective.resampling
    return (ema.frozen(NAME, resampling.fresh()),) if resampling else ()


def remember(experiment: Experiment) -> step.Remember | None:
    """Return what adds the losses of a step to that history, or None where there is none.

    Args:
      experiment: the model, whose objective says so.
    """
    resampling = experiment.objective.resampling
    if not resampling:
        return None

    def run(averages: dict[str, Params], examples: dict[str, Array]) -> dict[str, Params]:
        history = averages[NAME], examples["time"], examples["unweighted"]
        return averages | {NAME: resampling.update(*history)}

    return run


KIND = Kind(
    name="a diffusion model",
    complete=complete,
    prepare=prepare,
    init=init,
    loss=loss,
    draw=draw,
    companions=companions,
    remember=remember,
    has_flow=True,
)
