"""From a config to an Experiment: every component and every setting of one model.

`assemble` is where a config is read. What each config key means is said in configs/base.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from diffusion_jax.assembly import components, conditions, datasets, defaults, denoiser
from diffusion_jax.assembly.build import build, member
from diffusion_jax.assembly.kinds import autoencoder, classifier, diffusion, few_step, vdm
from diffusion_jax.assembly.settings import (
    Averages,
    DataSettings,
    Experiment,
    Kind,
    MeshSettings,
    Optimizer,
    SamplingSettings,
    Sources,
    Specs,
    TrainingSettings,
)
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import augmentation
from diffusion_jax.data.normalization import ConditionUnits
from diffusion_jax.denoisers import guides
from diffusion_jax.models.text import Encoder
from diffusion_jax.training import ema, optimizer

# The kind of model, by its objective.
KINDS = {
    **dict.fromkeys(components.DIFFUSION_OBJECTIVES, diffusion.KIND),
    **dict.fromkeys(components.VARIATIONAL_OBJECTIVES, vdm.KIND),
    **dict.fromkeys(components.FEW_STEP_OBJECTIVES, few_step.KIND),
    **dict.fromkeys(components.AUTOENCODER_OBJECTIVES, autoencoder.KIND),
}


def assemble(
    config: ConfigDict,
    shape: tuple[int, ...],
    num_classes: int = 0,
    load: Callable | None = None,
    units: ConditionUnits = ConditionUnits(),
) -> Experiment:
    """Build every component that the config names and resolve all of its settings.

    Args:
      config: a config such as those of configs/.
      shape: the shape of an example, (H, W, C) or (D,).
      num_classes: labels of the data; 0 where there are none.
      load: guides.AuxiliaryModel -> (Experiment, Params): loads the other trained networks that the
        guide needs (workdir.load does so).
      units: of the arrays that condition the model; they are needed where config.data names some.

    Raises:
      UserError: with the key, for a name or an argument that does not exist, and for components
        that do not go together.
    """
    record, config = config.to_dict(), defaults.with_defaults(config)
    num_classes = num_classes if config.conditional else 0
    process = build(components.PROCESSES, config.process)
    encoder = datasets.text_encoder(config)
    objective = build(components.OBJECTIVES, config.objective, process)
    inputs, options = _array_inputs(config, tuple(shape), units), _options(config)
    model = _network(config.model.name, options, tuple(shape), num_classes, encoder, inputs)
    kind = _kind(config)
    _check_augmentation(config, kind, options, shape)
    experiment = Experiment(
        shape=tuple(shape),
        num_classes=num_classes,
        process=process,
        parameterization=build(components.PARAMETERIZATIONS, config.parameterization),
        objective=objective,
        model=model,
        kind=kind,
        specs=_specs(config),
        options=options,
        sampling=sampling_settings(config),
        training=_training(config),
        data=DataSettings(*(config.data[key] for key in DataSettings._fields)),
        optimizer=_optimizer(config),
        averages=_averages(config),
        mesh=MeshSettings(config.parallel, config.mesh.to_dict()),
        sources=_sources(config),
        seed=config.seed,
        conditions=conditions.builder(num_classes, encoder, config.label_dropout, inputs),
        learns_null=denoiser.learns_null(config),
        record=record,
        two_times=options.get("second_time") is True,
        guide=guides.cfg(),
        encoder=encoder,
        alignment=_alignment(config, kind, options),
        units=inputs.units,
        dense=inputs.dense,
    )
    experiment = experiment.kind.complete(experiment, config)
    return guided_by(config.sampler.guide, experiment, load)


def _specs(config: ConfigDict) -> Specs:
    """The text by which the config names each component."""
    return Specs(
        config.process,
        config.parameterization,
        config.objective,
        config.model.name,
        config.text.encoder,
    )


def _sources(config: ConfigDict) -> Sources:
    """The workdirs of other trained models."""
    distill = config.distill
    return Sources(config.latent.autoencoder, distill.teacher, distill.guidance, config.init_from)


def _options(config: ConfigDict) -> dict[str, Any]:
    """The options of the network; sequences are tuples."""
    return {
        key: tuple(value) if isinstance(value, (list, tuple)) else value
        for key, value in config.model.items()
        if key != "name"
    }


def _array_inputs(
    config: ConfigDict, shape: tuple[int, ...], units: ConditionUnits
) -> conditions.ArrayInputs:
    """The arrays that condition the model. UserError where the data or the network have none."""
    several = "unet.UNet, dit.DiT, mlp.MLP"
    for key, field, names in (
        ("condition", "vector", f"{several}, ncsnpp.NCSNpp or edm2.EDM2UNet"),
        ("dense", "extra_channels", several),
    ):
        if not (value := config.data[key]):
            continue
        if field not in components.network_fields(config.model.name):
            raise UserError(
                f"config.data.{key}={value}: {config.model.name} reads no such condition; use "
                f"{names}"
            )
        if config.data.name == "latents":
            raise UserError(
                f"config.data.{key}={value}: latents have none; take a model of the samples "
                "themselves"
            )
    if config.data.condition and not units.vector:
        raise UserError(
            f"config.data.condition={config.data.condition}: the number of its columns is not "
            "known here; this command needs the data or a trained model"
        )
    stored, dense = components.stored_dense(config.data.dense), None
    vector, units = units.vector if config.data.condition else None, units.dense if stored else None
    if config.data.dense:
        channels = len(units.shift) if units else 0
        dense = build(components.DENSE, config.data.dense, shape, channels)
        if not dense.channels:
            raise UserError(
                f"config.data.dense={config.data.dense}: the channels of the array are not known "
                "here; this command needs the data or a trained model"
            )
    return conditions.ArrayInputs(shape, ConditionUnits(vector, units), dense)


def _network(
    name: str,
    options: dict[str, Any],
    shape: tuple[int, ...],
    num_classes: int,
    encoder: Encoder | None,
    inputs: conditions.ArrayInputs,
) -> nn.Module:
    """The network, with what it takes from the data besides its options."""
    given = {"num_classes": num_classes}
    if encoder:
        given["text"] = encoder.network
    if inputs.vector:
        given["vector"] = inputs.vector + 1
    if inputs.dense:
        given["extra_channels"] = inputs.dense.channels
    if "shape" in components.network_fields(name):
        given["shape"] = shape
    return build(components.MODELS, name, **options | given)


def _kind(config: ConfigDict) -> Kind:
    """The kind of model, by its objective and its network. UserError where they contradict."""
    kind = KINDS[member(components.OBJECTIVES, config.objective)]
    network = member(components.MODELS, config.model.name)
    if (network in components.AUTOENCODERS) != (kind is autoencoder.KIND):
        raise UserError(
            f"config.objective={config.objective} does not go with "
            f"config.model.name={config.model.name}; the objectives of objectives/autoencoding.py "
            "are for autoencoders, and autoencoders need one of them"
        )
    return classifier.KIND if network in components.CLASSIFIERS else kind


def _check_augmentation(
    config: ConfigDict, kind: Kind, options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    """UserError for non-leaky augmentation of what is no image, or without labels for it."""
    asked = f"config.data.augment={config.data.augment:g}"
    if not config.data.augment:
        return
    if config.data.dense:
        raise UserError(
            f"{asked} distorts images and not their condition config.data.dense="
            f"{config.data.dense}; set --config.data.augment=0"
        )
    if len(shape) != 3 or config.data.name == "latents" or not kind.denoises:
        raise UserError(
            f"{asked} distorts the images that a diffusion or few-step model learns from; "
            "set --config.data.augment=0"
        )
    if options.get("augment") != augmentation.LABELS:
        raise UserError(
            f"{asked}: the network must be given the {augmentation.LABELS} labels of the "
            f"augmentation; set --config.model.augment={augmentation.LABELS}, which unet.UNet and "
            "ncsnpp.NCSNpp have, or --config.data.augment=0"
        )


def _alignment(config: ConfigDict, kind: Kind, options: dict[str, Any]) -> float:
    """The weight of representation alignment. UserError where the network or its kind has none."""
    if not config.repa.features:
        return 0.0
    if kind is not diffusion.KIND or not options.get("aligned"):
        raise UserError(
            f"config.repa.features={config.repa.features} needs a diffusion model whose network "
            "has projected tokens: dit.DiT with config.model.aligned, the number of features"
        )
    return config.repa.weight


def sampling_settings(config: ConfigDict) -> SamplingSettings:
    """Return the section config.sampler, with the sampler built.

    Args:
      config: the config of the model.

    Raises:
      UserError: for an unknown sampler.
    """
    keys = ("name", "grid", "nfe", "guidance", "clip", "noise")
    return SamplingSettings(
        build(components.SAMPLERS, config.sampler.name),
        *(config.sampler[key] for key in keys),
        weights=config.sampler.ema,
        checkpoint=config.sampler.checkpoint,
        batch_size=config.sampler.batch_size,
        labels=config.sampler.labels,
    )


def _optimizer(config: ConfigDict) -> Optimizer:
    """The optax transformation of config.optimizer, with its schedule over the whole run."""
    options = config.optimizer.to_dict()
    return Optimizer(
        *optimizer.make_optimizer(options.pop("name"), total_steps=config.training.steps, **options)
    )


def _training(config: ConfigDict) -> TrainingSettings:
    """The section config.training, with the scaling of the loss built. UserError if it is wrong."""
    settings = TrainingSettings(*(config.training[key] for key in TrainingSettings._fields))
    if not (spec := config.training.loss_scale):
        return settings._replace(loss_scale=None)
    return settings._replace(loss_scale=build(components.LOSS_SCALES, spec))


def _averages(config: ConfigDict) -> Averages:
    """The moving averages of config.ema and their names."""
    halflives, powers = config.ema.halflives, config.ema.powers
    averages = ema.halflives(halflives, ramp=config.ema.ramp)
    return Averages(
        ema=ema.together(averages, ema.powers(powers)) if powers else averages,
        names=(*map(ema.name, halflives), *map(ema.power_name, powers)),
        default=ema.name(max(halflives)) if halflives else "params",
        powers=tuple(powers),
        snapshot_every=config.ema.snapshot_every,
    )


def guided_by(spec: str, experiment: Experiment, load: Callable | None = None) -> Experiment:
    """The experiment with the guide of this spec.

    Args:
      spec: as config.sampler.guide.
      experiment: the model that is guided.
      load: as for `assemble`.

    Raises:
      UserError: for a guide that cannot serve this model.
    """
    guide = build(components.GUIDES, spec)
    if guide.needs and load is None:
        raise UserError(
            f"config.sampler.guide={spec} needs other trained networks; it serves commands on a "
            "trained --workdir"
        )
    others = tuple(load(other) for other in guide.needs)
    own = (experiment.shape, experiment.specs.process)
    for other, (found, _) in zip(guide.needs, others):
        if (found.shape, found.specs.process) != own:
            raise UserError(
                f"config.sampler.guide={spec}: {other.workdir} is for {found.shape} under "
                f"{found.specs.process}, this model for {own[0]} under {own[1]}"
            )
        for what, theirs, ours in (
            ("classes", found.num_classes, experiment.num_classes),
            ("as its text encoder", found.specs.encoder, experiment.specs.encoder),
        ):
            if theirs and ours and theirs != ours:
                raise UserError(
                    f"config.sampler.guide={spec}: {other.workdir} has {theirs} {what}, and this "
                    f"model {ours}; take one with the same"
                )
    return experiment._replace(guide=guide, others=others)


def need_images(experiment: Experiment) -> None:
    """Check that the model draws images, for commands that judge them.

    Args:
      experiment: the model.

    Raises:
      UserError: for a model of points or of arrays of other numbers.
    """
    if not experiment.is_image:
        what = "arrays" if experiment.normalization else "points"
        raise UserError(
            f"this command judges images, and the model draws {what} {experiment.shape}; "
            "use experiments.sample"
        )


def need_judged(experiment: Experiment) -> None:
    """Check that the samples of the model can be judged: images, or arrays of a file.

    Args:
      experiment: the model.

    Raises:
      UserError: for a model of points in a plane.
    """
    if experiment.normalization is None:
        need_images(experiment)


def need_pixels(experiment: Experiment) -> None:
    """Check that the model sees pixels, for commands that work on them.

    Args:
      experiment: the model.

    Raises:
      UserError: for a model of latents.
    """
    if experiment.latents is not None:
        raise UserError(
            "this command works on pixels, and the inputs of this model are latents; "
            "take a model of images"
        )
