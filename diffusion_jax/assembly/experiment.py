"""The roof: from a ConfigDict to a process, a network, an objective and samplers, all plain
functions. The only reader of configs.

Nothing here computes; it puts together. What each config key means is said in configs/base.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn

from diffusion_jax.assembly import components, datasets, latent
from diffusion_jax.assembly.build import build
from diffusion_jax.denoisers import guides
from diffusion_jax.denoisers.parameterization import Parameterization
from diffusion_jax.errors import UserError
from diffusion_jax.models import text
from diffusion_jax.objectives.autoencoding import Autoencoding
from diffusion_jax.objectives.base import FewStep, Objective
from diffusion_jax.types import Params, Process


class Experiment(NamedTuple):
    """One config, put together for data of `shape` (H, W, C) (or (D,)) with `num_classes` labels
    (0: unconditional).
    """

    config: Any
    shape: tuple[int, ...]
    num_classes: int
    process: Process
    parameterization: Parameterization
    objective: Objective | Autoencoding | FewStep
    model: nn.Module
    grids: Path | None = (
        None  # the folder where this model's own grids are (experiments.optimize_grid)
    )
    encoder: text.Encoder | None = None  # of captions
    guide: guides.Guide = guides.cfg()
    others: tuple[
        tuple[Experiment, Params], ...
    ] = ()  # the other trained networks that the guide needs, in its order
    discriminator: nn.Module | None = None  # of an adversarial autoencoder
    features: Callable | None = None  # of an autoencoder's perceptual distance: see with_features
    latents: latent.Latents | None = None  # how examples become images, if they are latents
    teacher: tuple[Experiment, Params] | None = None  # of a few-step objective: see workdir.taught
    begin: Params | None = None  # what training starts from instead of fresh parameters


def assemble(
    config, shape: tuple[int, ...], num_classes: int = 0, load: Callable | None = None
) -> Experiment:
    """Build every component that the config names. Raises UserError, with the key, for a name or an
    argument that does not exist.

    load(other: guides.AuxiliaryModel) -> (Experiment, Params): how guidance gets at other trained networks
      (workdir.load).
    """
    num_classes = num_classes if config.conditional else 0
    process = build(components.PROCESSES, config.process)
    options = {
        k: tuple(v) if isinstance(v, (list, tuple)) else v
        for k, v in config.model.items()
        if k != "name"
    }
    encoder = datasets.text_encoder(config)
    if encoder:
        options["text"] = encoder.network
    if "shape" in components.network_fields(config.model.name):
        options["shape"] = tuple(shape)
    objective = build(components.OBJECTIVES, config.objective, process)
    model = build(components.MODELS, config.model.name, num_classes=num_classes, **options)
    if (type(objective) is Autoencoding) != hasattr(model, "latent_shape"):
        raise UserError(
            f"config.objective={config.objective} does not go with config.model.name={config.model.name}; the "
            "objectives of objectives/autoencoding.py are for autoencoders, and these for them"
        )
    adversary = None
    if getattr(objective, "adversarial", False):
        if not config.get("discriminator", ""):
            raise UserError(
                f"config.objective={config.objective} has an adversary, and config.discriminator names none; begin with "
                "a config that does, such as configs/fashion_autoencoder.py:adversarial"
            )
        adversary = build(components.DISCRIMINATORS, config.discriminator)
    if getattr(objective, "guided", False) and not (num_classes or encoder):
        raise UserError(
            f"config.objective={config.objective}: this model is unconditional, so there is no condition to guide by; "
            "leave guidance at 1, or set --config.conditional=True with labeled data"
        )
    if getattr(objective, "guided", False) and not learns_null(config):
        raise UserError(
            f"config.objective={config.objective} guides by the null condition, which config.label_dropout=0 never trains; "
            "leave guidance at 1, or set --config.label_dropout=0.1"
        )
    return guided_by(
        config.sampler.get("guide", "cfg()"),
        Experiment(
            config,
            tuple(shape),
            num_classes,
            process,
            build(components.PARAMETERIZATIONS, config.parameterization),
            objective,
            model,
            encoder=encoder,
            discriminator=adversary,
        ),
        load,
    )


def learns_null(config) -> bool:
    """Whether a conditional model of this config knows the null condition: by label dropout, or
    from the weights it starts from.
    """
    return config.label_dropout > 0 or bool(config.get("init_from", ""))


def guided_by(spec: str, experiment: Experiment, load: Callable | None = None) -> Experiment:
    """The experiment with the guide of this spec. load: see assemble. UserError for a guide that
    cannot serve this model.
    """
    guide = build(components.GUIDES, spec)
    if guide.needs and load is None:
        raise UserError(
            f"config.sampler.guide={spec} needs other trained networks; it serves commands on a trained --workdir"
        )
    others = tuple(load(other) for other in guide.needs)
    for other, (found, _) in zip(guide.needs, others):
        if (found.shape, found.config.process) != (experiment.shape, experiment.config.process):
            raise UserError(
                f"config.sampler.guide={spec}: {other.workdir} is for {found.shape} under {found.config.process}, "
                f"this model for {experiment.shape} under {experiment.config.process}"
            )
    return experiment._replace(guide=guide, others=others)


def is_image(experiment: Experiment) -> bool:
    """Whether an example is an image (H, W, C) rather than a point (D,)."""
    return len(experiment.shape) == 3


def need_images(experiment: Experiment) -> None:
    """UserError for a model of points, from commands that judge images."""
    if not is_image(experiment):
        raise UserError(
            f"this command judges images, and the model draws points {experiment.shape}; use experiments.sample"
        )


def need_pixels(experiment: Experiment) -> None:
    """UserError for a model of latents, from commands that look at the pixels inside the model."""
    if experiment.latents is not None:
        raise UserError(
            "this command works on the pixels that a model sees, and this one sees latents; take a model of images"
        )
