"""The functions that every kind of model has, and which kind an objective belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from diffusion_jax.assembly.experiment import Experiment
from diffusion_jax.assembly.kinds import autoencoder_model, diffusion_model, few_step_model
from diffusion_jax.objectives.autoencoding import Autoencoding
from diffusion_jax.objectives.base import FewStep, Objective
from diffusion_jax.types import Key, Params


def init_params(experiment: Experiment, key: Key) -> Params:
    """The network's fresh parameters; traceable, for shapes first and shards at once."""
    return KINDS[type(experiment.objective)].init(experiment, key)


def loss_fn(experiment: Experiment) -> Callable:
    """(params, batch, keys (B,), now) -> (losses (B,), {name: (B,)}), what the train step descends:
    see step.LossFn.
    """
    return KINDS[type(experiment.objective)].loss(experiment)


# ---- what differs between a denoiser and an autoencoder
class Kind(NamedTuple):
    """init(experiment, key) -> params; loss(experiment) -> LossFn; draw(experiment, params, ...) ->
    (x, NFE) in sample_fn.
    """

    init: Callable
    loss: Callable
    draw: Callable


KINDS = {  # by the type of the objective
    Objective: Kind(
        diffusion_model._init_denoiser,
        diffusion_model._denoising_loss,
        diffusion_model._draw_diffusion,
    ),
    FewStep: Kind(
        diffusion_model._init_denoiser,
        few_step_model._few_step_loss,
        diffusion_model._draw_diffusion,
    ),
    Autoencoding: Kind(
        autoencoder_model._init_autoencoder,
        autoencoder_model._autoencoding_loss,
        autoencoder_model._draw_decoded,
    ),
}
