"""Weights of a workdir in the layout of other libraries."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from configs import base
from diffusion_jax import files, parsing, reading
from diffusion_jax.assembly import denoiser
from diffusion_jax.assembly import workdir as folder
from diffusion_jax.assembly.kinds import few_step_model
from diffusion_jax.errors import UserError
from diffusion_jax.pretrained import (
    chains,
    diffusers_networks,
    equivalent,
    layouts,
    networks,
    published,
    safetensors,
    schedulers,
)
from diffusion_jax.studies.import_weights import SOURCES

ALONE = ", or export the network alone with --network_only"


def export_weights(
    config,
    workdir: str,
    to: str,
    path: str,
    *,
    label: str = "",
    variance: bool = False,
    network_only: bool = False,
) -> Path:
    """Write the network of a workdir to the folder `path`.

    Args:
      label: of a U-Net of classes, the class that is exported, or 'any' for the model without a
        class.
      variance: whether a U-Net keeps its learned variance, which DDPMPipeline can use and
        DDIMPipeline cannot.
      network_only: a U-Net without pipeline and scheduler, unchanged: its timestep is 1000 c_noise
        of the parameterization.

    Returns:
      The file of weights.

    Raises:
      UserError: for a model that they do not have, with the overrides of one that they do.
    """
    name = class_for(to, config.model.name)
    network = networks.network(name)
    trained = folder.load(workdir, config)
    built, params = (
        trained.experiment,
        trained.params[network.subtree] if network.subtree else trained.params,
    )
    if built.encoder:
        raise UserError(
            f"config.text.encoder={config.text.encoder}: {name} reads no captions; this cannot be exported"
        )
    options = (
        base.network(config.model.name).to_dict()
        | config.model.to_dict()
        | {"num_classes": built.num_classes}
    )
    params = layouts.unstacked(
        {path: np.asarray(leaf) for path, leaf in layouts.flat(params).items()}
    )
    rule = reading.record({}, {"imported": reading.record({"latents": diffusers_networks.LATENTS})})
    latents = (
        files.load_json(Path(workdir) / "provenance.json", rule)
        .get("imported", {})
        .get("latents", {})
    )
    if name != "UNet2DModel":
        if label:
            raise UserError(f"--label={label} is for a U-Net; a {name} is exported whole")
        return _save(
            network, options, built, params, Path(path), diffusers=to == "diffusers", more=latents
        )
    if options["num_classes"] or label:
        params, options = _one_class(trained, params, options, label)
    if network_only:
        return _save(network, options, built, params, Path(path))
    return _save_pipeline(network, options, built, params, Path(path), variance)


def _one_class(trained, params: dict, options: dict, label: str) -> tuple[dict, dict]:
    """(parameters, options) of the unconditional network that a model of classes is for one of
    them.
    """
    classes = trained.experiment.num_classes
    if not classes:
        raise UserError(f"--label={label}: this model is unconditional; leave --label out")
    chosen = parsing.labels("label", label, trained.data["class_names"])
    if len(chosen) != 1 or chosen[0] > classes:
        wrong = f"--label={label}: " if label else ""
        raise UserError(
            f"{wrong}the pipelines of diffusers know no classes, and this model has {classes}; export one of them with "
            f"--label=0 to {classes - 1}, or the model without a class with --label=any"
        )
    return equivalent.of_one_class(params, chosen[0]), options | {"num_classes": 0}


def _save(
    network, options: dict, built, params: dict, folder: Path, *, diffusers: bool = True, more=None
) -> Path:
    """config.json and the file of weights; returns the file."""
    shapes = {path: leaf.shape for path, leaf in params.items()}
    described = published.write_config(network, options, built.shape, shapes) | (more or {})
    tensors = layouts.to_theirs(layouts.table(network, options, shapes), params) | network.fixed(
        options, built.shape
    )
    file = folder / ("diffusion_pytorch_model.safetensors" if diffusers else "model.safetensors")
    safetensors.save(file, tensors)
    files.save_json(file.with_name("config.json"), described)
    return file


def _save_pipeline(
    network, options: dict, built, params: dict, folder: Path, variance: bool
) -> Path:
    """unet/, scheduler/ and, of a model of images, model_index.json; returns the file of weights."""
    if not few_step_model.follows_a_path(built):
        raise UserError(
            f"config.objective={built.config.objective} trains a few-step model, which no DDIM scheduler samples{ALONE}"
        )
    shapes = {path: leaf.shape for path, leaf in params.items()}
    wrong, found = published.misfits(network, options, built.shape, shapes), None
    try:
        found = scheduling(built)
    except UserError as error:
        value = f"{built.config.parameterization} under {built.config.process}"
        wrong["parameterization"] = published.Misfit(value, "eps()", str(error))
    if wrong:
        published.refuse(wrong, ALONE if wrong.keys() == {"parameterization"} else "")
    learned = options["learn_variance"]
    options = options | {"learn_variance": learned and variance}
    params = equivalent.with_last(params, built.shape[-1], found.factor, variance)
    if found.shift:
        params = equivalent.with_steps(params, options["noise_embedding"], found.shift)
    file = _save(network, options, built, params, folder / "unet")
    scheduler = schedulers.write_scheduler(
        found.betas, found.prediction, clip=built.config.sampler.clip, learned=learned and variance
    )
    files.save_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    _say(built, len(found.betas), learned and not variance)
    if built.latents is None:
        pipeline = "DDPMPipeline" if learned and variance else "DDIMPipeline"
        files.save_json(folder / "model_index.json", schedulers.write_index(pipeline))
    return file


def scheduling(built):
    """The chains.Chain under which the network means in diffusers what it means here. UserError
    with the reason if none does.
    """
    return chains.chain(built.process, built.parameterization)


def class_for(to: str, model: str) -> str:
    """Their class for config.model.name; UserError where --to has none."""
    names = {networks.network(name).model: name for name in SOURCES[to]}
    if model not in names:
        raise UserError(
            f"config.model.name={model} has no counterpart in --to={to}, which has {' and '.join(names)}"
        )
    return names[model]


def _say(built, steps: int, dropped: bool) -> None:
    """What a user should know of a pipeline: its budgets, and what of the run is not in it."""
    guidance, fitting = (
        built.config.sampler.guidance,
        [str(n) for n in chains.BUDGETS if steps % n == 0] or [str(steps)],
    )
    print(
        f"the chain has {steps} steps: num_inference_steps that divide them are {', '.join(fitting)}, ...",
        file=sys.stderr,
    )
    if built.num_classes and denoiser.is_guided(built, guidance):
        print(
            f"config.sampler.guidance={guidance:g} is not exported: these pipelines draw without guidance",
            file=sys.stderr,
        )
    if dropped:
        print(
            "the learned variance is left out; --variance keeps it, for DDPMPipeline alone",
            file=sys.stderr,
        )
    if built.latents is not None:
        print(
            "the network is of latents: without a model_index.json, for a program that decodes them",
            file=sys.stderr,
        )
