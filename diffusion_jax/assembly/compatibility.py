"""Objectives that cannot learn from some data, by some parameterization or by some network.

And networks whose options name feature maps that they do not have.

An objective states what it needs: gray levels (Objective.gray_levels, Likelihood.gray_levels), two
times or a boundary (FewStep.two_times, FewStep.bounded). What would train without an error and
mean nothing is refused here, before training.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import jax.numpy as jnp

from diffusion_jax.assembly import components
from diffusion_jax.assembly.build import member, members
from diffusion_jax.assembly.settings import Experiment
from diffusion_jax.core.errors import UserError
from diffusion_jax.objectives.autoencoding import Autoencoding


def check(experiment: Experiment, *, latents: bool) -> None:
    """Check that the objective goes with the data, the parameterization and the network.

    Args:
      experiment: the model, with the normalization of its data.
      latents: whether the data are latents of an autoencoder.

    Raises:
      UserError: for an objective that would learn nothing that has a meaning.
    """
    if experiment.kind.classifies:  # which takes from its objective the noise alone
        return
    _check_data(experiment, latents)
    if experiment.kind.denoises:
        _check_second_time(experiment)
        _check_boundary(experiment)


def heights_note(experiment: Experiment, heights: Collection[int]) -> str:
    """Say which feature maps the options of the network name that it does not have.

    Attention or dropout at heights that the network does not have is no attention or no dropout.

    Args:
      experiment: the model.
      heights: those of its examples; several where images of several shapes train it.

    Returns:
      One line with the heights that exist; '' where all are there.
    """
    model = experiment.model
    if not hasattr(model, "heights"):
        return ""
    known = sorted({own for height in heights for own in model.heights(height)}, reverse=True)
    words = f"its feature maps have the heights {', '.join(map(str, known))}"
    if absent := [height for height in model.attention if height not in known]:
        return (
            f"config.model.attention={tuple(model.attention)}: {experiment.specs.model} has no "
            f"feature map of height {', '.join(map(str, absent))} for data of shape "
            f"{tuple(experiment.shape)}, and no attention there; {words}"
        )
    height = getattr(model, "dropout_height", 0)
    if model.dropout and 0 < height < known[-1]:
        return f"config.model.dropout_height={height} leaves no feature map with dropout; {words}"
    return ""


def _check_data(experiment: Experiment, latents: bool) -> None:
    """UserError for an objective of images where the data are none."""
    if experiment.is_image and not latents:
        return
    objective, spec = experiment.objective, f"config.objective={experiment.specs.objective}"
    own = "latents" if latents else "arrays of numbers" if experiment.normalization else "points"
    autoencodes = isinstance(objective, Autoencoding)
    if _states(objective.likelihood if autoencodes else objective, "gray_levels"):
        raise UserError(
            f"{spec} has a probability of gray levels, which images of 8 bits have and {own} do "
            f"not; {_without_levels(experiment)}"
        )
    if autoencodes and objective.features == "lpips":
        raise UserError(
            f"{spec}: LPIPS compares images of 8 bits, and the data are {own}; set perceptual=0"
        )


def _states(objective: NamedTuple, what: str) -> bool:
    """Whether the objective states this need; objectives of other kinds do not have the field."""
    return getattr(objective, what, False) is True


def _without_levels(experiment: Experiment) -> str:
    """The remedy: the same objective for data without gray levels."""
    own = member(components.OBJECTIVES, experiment.specs.objective)
    if own in components.AUTOENCODER_OBJECTIVES:
        return "set likelihood=gaussian()"
    if own in components.VARIATIONAL_OBJECTIVES:
        return "use --config.objective='denoising.dsm(likelihood=True)', which has its other term"
    return "set levels=0, which takes a density in its place"


def _check_second_time(experiment: Experiment) -> None:
    """UserError for a second time that the network lacks, and for one that nothing trains."""
    spec = f"config.objective={experiment.specs.objective}"
    wanted = _states(experiment.objective, "two_times")
    if wanted and not experiment.two_times:
        having = [
            name
            for name in members(components.MODELS)
            if "second_time" in components.network_fields(name)
        ]
        raise UserError(
            f"{spec} is of moves between two times, and {experiment.specs.model} receives one; set "
            f"--config.model.second_time=True, which {', '.join(having)} have"
        )
    if experiment.two_times and not wanted:
        raise UserError(
            f"config.model.second_time=True: {spec} trains no second time; set "
            "--config.model.second_time=False, or use --config.objective='meanflow.meanflow()'"
        )


def _check_boundary(experiment: Experiment) -> None:
    """UserError for a consistency function whose value at t_min the network could choose.

    It would choose a constant, which is consistent along every trajectory. x0-hat is linear in the
    output F of the network, with the slope -sigma / (alpha b - sigma a).
    """
    if not _states(experiment.objective, "bounded"):
        return
    process, t = experiment.process, jnp.float32(experiment.process.t_min)
    a, b = experiment.parameterization.coefficients(process, t)
    alpha, sigma = process.alpha(t), process.sigma(t)
    if abs(float(sigma / (alpha * b - sigma * a))) > 0.5:
        raise UserError(
            f"config.parameterization={experiment.specs.parameterization}: a consistency function "
            "must be the data at t_min, and here it is the output of the network, which learns a "
            "constant; use --config.parameterization='consistency()' or 'edm()'"
        )
