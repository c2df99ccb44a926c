"""The families of components that a config may name, and which modules hold their members."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from ml_collections import ConfigDict

from diffusion_jax.assembly.build import Family, build, member, members, resolved
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Process
from diffusion_jax.data import sound
from diffusion_jax.denoisers import guides, parameterization
from diffusion_jax.inverse import dense, masks, measurements, methods
from diffusion_jax.models import (
    autoencoder,
    classifier,
    discriminator,
    dit,
    edm2,
    mlp,
    mmdit,
    ncsnpp,
    sd_unet,
    text,
    unet,
)
from diffusion_jax.objectives import (
    autoencoding,
    consistency,
    denoising,
    distance,
    learned_variance,
    meanflow,
    times,
    uncertainty,
    vdm,
    weighting,
)
from diffusion_jax.objectives.autoencoding import Likelihood
from diffusion_jax.objectives.distance import Distance
from diffusion_jax.objectives.times import TimeLaw
from diffusion_jax.objectives.weighting import Weighting
from diffusion_jax.pretrained import clip_encoder, sd3_encoder
from diffusion_jax.processes import discrete, schedules
from diffusion_jax.samplers import (
    adaptive,
    ancestral,
    corrector,
    few_step,
    grids,
    multistep,
    ode,
    sde,
    singlestep,
    step_noise,
    stochastic,
)
from diffusion_jax.samplers.base import Sampler
from diffusion_jax.samplers.corrector import Corrector
from diffusion_jax.targets import presets
from diffusion_jax.training import loss_scale

_PROCESSES = schedules.PROCESSES + discrete.PROCESSES
PROCESSES = Family("process", _PROCESSES, "PROCESSES", {Process: _PROCESSES})
PARAMETERIZATIONS = Family(
    "parameterization", parameterization.PARAMETERIZATIONS, "PARAMETERIZATIONS"
)

DIFFUSION_OBJECTIVES = denoising.OBJECTIVES + learned_variance.OBJECTIVES + uncertainty.OBJECTIVES
VARIATIONAL_OBJECTIVES = vdm.OBJECTIVES
FEW_STEP_OBJECTIVES = consistency.OBJECTIVES + meanflow.OBJECTIVES
AUTOENCODER_OBJECTIVES = autoencoding.OBJECTIVES

OBJECTIVES = Family(
    "objective",
    DIFFUSION_OBJECTIVES + VARIATIONAL_OBJECTIVES + AUTOENCODER_OBJECTIVES + FEW_STEP_OBJECTIVES,
    "OBJECTIVES",
    {
        TimeLaw: times.TIME_LAWS,
        Weighting: weighting.WEIGHTINGS,
        Likelihood: autoencoding.LIKELIHOODS,
        Distance: distance.DISTANCES,
        Sampler: ancestral.SAMPLERS + ode.SAMPLERS + singlestep.SAMPLERS,
    },
    aliases={"elbo.hybrid": "learned_variance.hybrid"},  # its name in earlier versions
)

_SAMPLERS = (
    ancestral.SAMPLERS
    + ode.SAMPLERS
    + singlestep.SAMPLERS
    + multistep.SAMPLERS
    + adaptive.SAMPLERS
    + sde.SAMPLERS
    + stochastic.SAMPLERS
    + corrector.SAMPLERS
    + few_step.SAMPLERS
)

SAMPLERS = Family(
    "sampler",
    _SAMPLERS,
    "SAMPLERS",
    {Sampler: _SAMPLERS, Corrector: corrector.CORRECTORS},
    aliases={  # the names of k-diffusion and diffusers
        "euler_a": "ancestral.euler_ancestral",
        "dpm_2": "singlestep.dpm_2s",
        "dpmpp_sde": "sde.dpmpp_2s",
        "dpmpp_2m_sde": "sde.dpmpp_2m",
        "dpmpp_3m_sde": "sde.dpmpp_3m",
        "dpmpp": "multistep.dpmpp_2m",
        "plms": "multistep.pndm",
        "sa_solver": "sde.sa",
        "rk45": "adaptive.dopri5",
        "pc": "corrector.predictor_corrector",
    },
)

GRIDS = Family("grid", grids.GRIDS, "GRIDS")
TARGETS = Family("target", presets.TARGETS, "TARGETS")
GUIDES = Family("guidance", guides.GUIDES, "GUIDES", {guides.Guide: guides.GUIDES})
MEASUREMENTS = Family(
    "task", measurements.MEASUREMENTS, "MEASUREMENTS", aliases={"colourise": "colorize"}
)
METHODS = Family("method", methods.METHODS, "METHODS")
MASKS = Family("mask", masks.MASKS, "MASKS")
DENSE = Family("dense condition", dense.CONDITIONS, "CONDITIONS")
AUTOENCODERS = autoencoder.NETWORKS
CLASSIFIERS = classifier.NETWORKS
MODELS = Family(
    "model",
    unet.NETWORKS
    + mlp.NETWORKS
    + dit.NETWORKS
    + mmdit.NETWORKS
    + ncsnpp.NETWORKS
    + sd_unet.NETWORKS
    + edm2.NETWORKS
    + AUTOENCODERS
    + CLASSIFIERS,
    "NETWORKS",
)
DISCRIMINATORS = Family("discriminator", discriminator.NETWORKS, "NETWORKS")
ENCODERS = Family(
    "text encoder",
    text.ENCODERS + clip_encoder.ENCODERS + sd3_encoder.ENCODERS,
    "ENCODERS",
)
SOUNDS = Family("representation of sounds", sound.SOUNDS, "SOUNDS")
LOSS_SCALES = Family("scaling of the loss", loss_scale.LOSS_SCALES, "LOSS_SCALES")


# the keys of a config that name a component, and the family it is of
NAMED = {
    "process": PROCESSES,
    "parameterization": PARAMETERIZATIONS,
    "objective": OBJECTIVES,
    "model.name": MODELS,
    "data.dense": DENSE,
    "discriminator": DISCRIMINATORS,
    "training.loss_scale": LOSS_SCALES,
    "sampler.name": SAMPLERS,
    "sampler.grid": GRIDS,
    "sampler.guide": GUIDES,
}

CLIPS = ("none", "static", "dynamic")
NOISES = {"independent": step_noise.independent, "brownian": step_noise.brownian}


def full_name(key: str, spec: str) -> str:
    """Complete the names in the value of a config key: 'ddim' -> 'ancestral.ddim'.

    A grid may also be one that experiments.optimize_grid kept under a name of its own.

    Args:
      key: a key of NAMED, such as 'sampler.name'.
      spec: the value; '' names nothing and is returned unchanged.

    Raises:
      UserError: for a name or an argument that does not exist.
    """
    if not spec:
        return spec
    try:
        full = resolved(NAMED[key], spec)
    except UserError:
        if key != "sampler.grid":
            raise
        return spec
    # building also checks the arguments; the other components need more than the spec
    if key in (
        "process",
        "parameterization",
        "training.loss_scale",
        "sampler.name",
        "sampler.guide",
    ):
        build(NAMED[key], full)
    return full


def stored_dense(spec: str) -> str:
    """Return what the array 'dense' of the data must hold, 'numbers' or 'classes'; '' for nothing.

    Args:
      spec: config.data.dense; '' for no dense condition.

    Raises:
      UserError: for a condition that does not exist.
    """
    return dense.STORED.get(member(DENSE, spec), "") if spec else ""


def check_components(config: ConfigDict) -> None:
    """Build the components that the config names, except the network.

    Args:
      config: the config, of which only the keys of NAMED are read.

    Raises:
      UserError: for a name or an argument that does not exist.
    """
    process = build(PROCESSES, config.process)
    build(PARAMETERIZATIONS, config.parameterization), build(OBJECTIVES, config.objective, process)
    build(SAMPLERS, config.sampler.name), build(GUIDES, config.sampler.guide)
    resolved(MODELS, config.model.name)


def network_fields(model: str) -> dict[str, Any]:
    """Return the fields of a network, {name: annotation}.

    Args:
      model: config.model.name; a network that does not exist has no fields.
    """
    networks = members(MODELS)
    return inspect.get_annotations(networks[model]) if model in networks else {}


def network(name: str, **options: Any) -> ConfigDict:
    """The section config.model: the name, and every field of the network with its default.

    Args:
      name: the name of the network, such as 'unet.UNet'.
      **options: fields with other values than the default.
    """
    # these come from the data, config.text, flax and guidance
    skip = ("parent", "name", "num_classes", "text", "vector", "shape")
    skip = (*skip, "identity_attention", "skipped")
    fields = {
        f.name: f.default for f in dataclasses.fields(members(MODELS)[name]) if f.name not in skip
    }
    config = ConfigDict({"name": name, **fields})
    config.update(options)
    return config
