"""The denoiser of a trained model, with its guidance."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffusion_jax.assembly import components, conditions, defaults
from diffusion_jax.assembly.build import build
from diffusion_jax.assembly.settings import Experiment
from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.core.types import Apply, Array, Cond, Denoise, Params, Prediction
from diffusion_jax.denoisers import guides, parameterization, projected, thresholding


def apply(experiment: Experiment) -> Apply:
    """Return the network as a pure function, as parameterization.denoiser takes it.

    Args:
      experiment: the model.

    Returns:
      (params, x_in (B, ...), c_noise (B,), cond, **kwargs) -> the output of the network.
    """

    def run(params: Params, x_in: Array, c_noise: Array, cond: Cond, **kwargs: Any) -> Array:
        return experiment.model.apply({"params": params}, x_in, c_noise, cond, **kwargs)

    return run


def plain(experiment: Experiment, params: Params, **kwargs: Any) -> Denoise:
    """The network of a model as a Denoise, without guidance and thresholding.

    Args:
      experiment: the model.
      params: the parameters of the network.
      **kwargs: further arguments of the network, such as train and rngs.
    """
    return parameterization.denoiser(
        apply(experiment), params, experiment.parameterization, experiment.process, **kwargs
    )


def need_denoiser(experiment: Experiment) -> None:
    """Check that the model is a denoiser, for commands that need one.

    Args:
      experiment: the model.

    Raises:
      UserError: for a model of another kind.
    """
    if not experiment.kind.denoises:
        raise UserError(
            f"{experiment.specs.model} is {experiment.kind.name}, which has no denoiser; "
            "use a diffusion model"
        )


class Ensemble(NamedTuple):
    """The parameters of a model and of the networks that it samples with, to be traced together.

    Attributes:
      own: the parameters of the model.
      others: the parameters of the networks that its guide needs.
      autoencoder: the parameters of the network that decodes its latents, if there is one.
    """

    own: Params
    others: tuple[Params, ...] = ()
    autoencoder: Params = None


def ensemble(experiment: Experiment, params: Params) -> Ensemble:
    """Add the parameters of the other networks that the experiment samples with.

    Args:
      experiment: the model, with the networks that its guide and its latents need.
      params: its own parameters.
    """
    others, latents = tuple(other for _, other in experiment.others), experiment.latents
    return Ensemble(params, others, latents and latents.params)


def unpack(experiment: Experiment, params: Ensemble) -> tuple[Experiment, Params]:
    """Split an ensemble into the experiment and the parameters of the model.

    Inside a compiled function the parameters are traced; without it they are constants of the
    program.

    Args:
      experiment: the model for which the ensemble was made.
      params: all parameters, traced.

    Returns:
      (the experiment with the other networks' parameters, the model's own parameters).
    """
    others = tuple((other, own) for (other, _), own in zip(experiment.others, params.others))
    latents = experiment.latents and experiment.latents._replace(params=params.autoencoder)
    return experiment._replace(others=others, latents=latents), params.own


def denoiser(
    experiment: Experiment, params: Params, *, scale: Array | None = None, clip: str = "static"
) -> Denoise:
    """The trained network as a Denoise, guided and thresholded.

    Args:
      experiment: the model.
      params: the parameters of the network.
      scale: the scale of the guidance; None for no guidance. `is_guided` decides which of the two
        a scale in a config means.
      clip: 'static' keeps x0-hat in [-1, 1], 'dynamic' is the thresholding of Imagen, 'none' leaves
        x0-hat as it is. The average velocities of a network with a second time (MeanFlow) are not
        clipped, only the x0-hat of the last move.

    Raises:
      UserError: for a model that is not a denoiser, and for guidance that this model has no
        condition for.
    """
    need_denoiser(experiment)
    process, denoise = experiment.process, plain(experiment, params)
    if scale is not None:
        need_guidable(experiment, "scale")
        guided = experiment.guide.apply(denoise, scale, _context(experiment, params))

        def denoise(x_t: Array, t: Array, cond: Cond = None) -> Prediction:
            null = experiment.conditions.null(len(x_t))
            return guided(x_t, t, ((null or {}) | (cond or {})) or None)

    match clip:
        case "none":
            pass
        case "static":
            denoise = thresholding.clip_x0(denoise, process)
        case "dynamic":
            denoise = thresholding.dynamic_threshold(denoise, process)
        case _:
            raise unknown("config.sampler.clip", clip, components.CLIPS)
    if scale is not None and experiment.guide.still:
        still = functools.partial(experiment.guide.still, process)
        denoise = projected.still(denoise, process, still)
    return denoise if experiment.two_times else thresholding.without_end_time(denoise)


def of_ensemble(
    experiment: Experiment, *, scale: float | None = None, clip: str = "static"
) -> Callable[[Ensemble], Denoise]:
    """Return the function from all parameters to the denoiser, for programs that take them.

    Args:
      experiment: the model.
      scale: as for `denoiser`.
      clip: as for `denoiser`.
    """

    def denoise(params: Ensemble) -> Denoise:
        guidance = None if scale is None else jnp.float32(scale)
        return denoiser(*unpack(experiment, params), scale=guidance, clip=clip)

    return denoise


def _context(experiment: Experiment, params: Params) -> guides.GuidanceContext:
    """The context in which the guide of the experiment is applied."""
    found = dict(zip(experiment.guide.needs, experiment.others))

    def null(cond: Cond) -> Cond:
        return cond | experiment.conditions.null(len(jax.tree.leaves(cond)[0]))

    return guides.GuidanceContext(
        experiment.process,
        null if experiment.conditions.null(1) else None,
        lambda other: denoiser(*found[other], clip="none"),
        lambda other: logits(*found[other]),
        lambda blocks, how: denoiser(
            _perturbed(experiment, params, blocks, how), params, clip="none"
        ),
    )


def _perturbed(
    experiment: Experiment, params: Params, blocks: tuple[str, ...], how: str
) -> Experiment:
    """The experiment whose network has these self-attention blocks in its field `how`."""
    if not hasattr(experiment.model, how):
        raise UserError(
            f"config.sampler.guide: {experiment.specs.model} has no self-attention blocks to "
            "perturb; pag and slg are for unet.UNet, ncsnpp.NCSNpp, edm2.EDM2UNet, dit.DiT, "
            "mmdit.MMDiT and sd_unet.SDUNet"
        )
    known = sorted(name for name, own in params.items() if _attends(own))
    if known == ["blocks"]:  # those of a loop (scan_blocks), along the first axis of each leaf
        known = [f"block_{i}" for i in range(len(jax.tree.leaves(params["blocks"])[0]))]
    for name in blocks:
        if name not in known:
            raise unknown("block of config.sampler.guide", name, known)
    return experiment._replace(model=experiment.model.clone(**{how: tuple(blocks)}))


def _attends(params: Params) -> bool:
    """Whether these are parameters of a block with self-attention, itself or inside it."""
    if not isinstance(params, Mapping):
        return False
    return bool({"qkv", "image_qkv"} & params.keys()) or any(map(_attends, params.values()))


def logits(experiment: Experiment, params: Params) -> Callable[..., Array]:
    """Return a noise-conditional classifier as a function (x_t, t) -> logits (B, classes).

    Args:
      experiment: the classifier.
      params: its parameters.

    Raises:
      UserError: for a model that is not a classifier.
    """
    if not experiment.kind.classifies:
        raise UserError(
            f"{experiment.specs.model} is not a classifier; make one with "
            "experiments.train_classifier"
        )

    def run(x_t: Array, t: Array, **kwargs: Any) -> Array:
        t = jnp.broadcast_to(t, x_t.shape[:1])
        return apply(experiment)(
            params, *experiment.parameterization.encode(experiment.process, x_t, t), None, **kwargs
        )

    return run


def is_neutral(experiment: Experiment, scale: float) -> bool:
    """Return whether guidance at a scale leaves the model as it is.

    Args:
      experiment: the model, whose guide has a neutral scale: 1 for classifier-free guidance, for
        example.
      scale: the scale of the guidance.
    """
    return scale == experiment.guide.neutral


def is_guided(
    experiment: Experiment,
    scale: float,
    *,
    key: str = "config.sampler.guidance",
    conditioned: bool = True,
) -> bool:
    """Whether guidance at this scale differs from the model itself.

    Every command decides it here, by the neutral scale of the guide.

    Args:
      experiment: the model.
      scale: the scale of the guidance.
      key: the name of the scale in an error.
      conditioned: whether samples have a condition. Under the null condition, classifier-free
        guidance at any scale is the model.

    Raises:
      UserError: for a model that has nothing to guide by, at another scale than the neutral one.
    """
    if is_neutral(experiment, scale):
        return False
    need_guidable(experiment, f"{key}={scale:g}")
    return conditioned or not experiment.guide.condition or bool(experiment.guide.away)


def learns_null(config: ConfigDict) -> bool:
    """Return whether a conditional model learns the null condition.

    It learns it by label dropout, or has it from the weights that it starts from.

    Args:
      config: the config of the model.
    """
    return config.label_dropout > 0 or bool(config.init_from)


def usable_guidance(config: ConfigDict, num_classes: int) -> ConfigDict:
    """The config, with its guide's neutral scale where the model has no condition to guide by.

    A note on stderr then says so. This is for scales that the user has not set: that of a preset on
    data without labels, and a stored one. `denoiser.is_guided` refuses the others.

    Args:
      config: a locked config.
      num_classes: the number of classes of the data.
    """
    full = defaults.with_defaults(config)
    guide, scale = build(components.GUIDES, full.sampler.guide), full.sampler.guidance
    labels = num_classes and full.conditional
    others = full.text.encoder or full.data.condition or full.data.dense
    conditional = labels if guide.condition == "label" else labels or others
    learned = learns_null(full) or not guide.null
    if (
        not guide.condition
        or guide.neutral is None
        or scale == guide.neutral
        or (conditional and learned)
    ):
        return config
    why = (
        "without label_dropout the model learns no null condition"
        if conditional
        else "the model is unconditional"
    )
    print(
        f"note: config.sampler.guidance={scale:g} is not used, since {why}; "
        f"it becomes {guide.neutral:g}",
        file=sys.stderr,
    )
    config = config.copy_and_resolve_references().unlock()
    config.sampler.guidance = guide.neutral
    return config.lock()


def led_away(experiment: Experiment, prompt: str, *, guided: bool) -> Experiment:
    """Return the model whose guidance leads away from a caption, a negative prompt.

    Args:
      experiment: a model of captions.
      prompt: the caption; '' leaves the model as it is.
      guided: whether its samples are guided.

    Raises:
      UserError: for a model without captions, and where guidance has no use for the caption.
    """
    if not prompt:
        return experiment
    away = conditions.against(experiment.conditions, prompt)
    if not guided or not experiment.guide.null:
        raise UserError(
            "--negative_prompt is what guidance leads away from, and nothing is guided by captions "
            "here; set --guidance=5, and config.sampler.guide='cfg()'"
        )
    return experiment._replace(conditions=away)


def need_guidable(experiment: Experiment, asked: str) -> None:
    """Check that guidance applies to the model.

    Args:
      experiment: the model.
      asked: what set the scale, for the message.

    Raises:
      UserError: for a model that its guide cannot guide.
    """
    guide, model = experiment.guide, experiment.specs.model
    neutral = 1.0 if guide.neutral is None else guide.neutral
    remedy = "use --config.sampler.guide='cfg()' with" if guide.neutral is None else "set"
    remedy = f"{remedy} --config.sampler.guidance={neutral:g}"
    if not experiment.kind.denoises:
        raise UserError(
            f"{asked}: {model} is {experiment.kind.name}, to which guidance does not apply; "
            f"{remedy}"
        )
    if guide.still and not experiment.kind.has_flow:
        raise UserError(
            f"{asked}: cfg_zero leaves x_t where it is in the first steps, and {model} is "
            f"{experiment.kind.name}, whose first step is most of the way; use "
            "--config.sampler.guide='cfg_zero(zero_init=0.0)'"
        )
    if guide.condition and experiment.conditions.null(1) is None:
        raise UserError(
            f"{asked}: this model is unconditional, so there is no condition for guidance; {remedy}"
        )
    if guide.null and not experiment.learns_null:
        raise UserError(
            f"{asked}: this model is trained with config.label_dropout=0, so it does not know the "
            f"null condition that guidance leads away from; {remedy}, or train one with "
            "--config.label_dropout=0.1"
        )
    if guide.condition == "label" and not experiment.num_classes:
        raise UserError(
            f"{asked}: guidance by a classifier goes by labels, and this model takes "
            f"{'captions' if experiment.encoder else 'arrays'}; {remedy}"
        )
