"""What the local page can be asked for, its limits, and the command lines that do the same."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from diffusion_jax.assembly import components, denoiser, sampling
from diffusion_jax.assembly.build import Family, members
from diffusion_jax.assembly.experiment import Experiment
from diffusion_jax.core.errors import UserError, need_range
from diffusion_jax.samplers import few_step

MOST_EVALUATIONS = 250  # a request; the programs are compiled for grids of this budget
MOST_IMAGES = 100
MOST_DRAWS = 8
PAGE_KEYS = {f"sampler.{key}" for key in ("name", "grid", "nfe", "guidance")}


class DrawingRequest(NamedTuple):
    """Sampling settings and conditions of a drawing.

    Attributes:
      sampler: the spec of the sampler.
      grid: the spec of its grid of times; 'auto' is the sampler's own.
      nfe: budget of network evaluations per image.
      guidance: scale of the guidance.
      seed: the seed of the first image; the others follow.
      num: number of images, or of images of each prompt.
      labels: classes in turn, by number or name, such as '3' or 'cat,any'. '' is all classes; of an
        inpainting it is no class.
      prompts: captions.
      method: of an inpainting, the method of inverse/methods.py.
    """

    sampler: str
    grid: str
    nfe: int
    guidance: float
    seed: int = 0
    num: int = 16
    labels: str = ""
    prompts: tuple[str, ...] = ()
    method: str = ""


def check(request: DrawingRequest) -> None:
    """Check the numbers of a request.

    Args:
      request: the request.

    Raises:
      UserError: for a number that is none, or is out of the range that the page serves.
    """
    most = MOST_DRAWS if request.method else MOST_IMAGES
    limits = {
        "network evaluations": (request.nfe, 1, MOST_EVALUATIONS),
        "guidance": (request.guidance, 0, 1000),
        "seed": (request.seed, 0, 2**32 - 1 - most),
        "number of images": (request.num, 1, most),
    }
    for name, (value, low, high) in limits.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"{name}: enter a number from {low:g} to {high:g}")
        need_range(name, value, low, high)
        if name != "guidance" and value != int(value):
            raise UserError(f"{name}={value}: enter a whole number")
    prompts = len(request.prompts)
    if not request.method and prompts * request.num > most:
        raise UserError(
            f"number of images={int(request.num)} of each of {prompts} prompts: the page draws at "
            f"most {most} in all; take fewer"
        )


def settings(experiment: Experiment, request: DrawingRequest) -> sampling.SamplingSettings:
    """The sampling settings of a model as a request changes them.

    Args:
      experiment: the model.
      request: the request, whose sampler a model without one does not use.

    Raises:
      UserError: for an unknown sampler.
    """
    own = experiment.sampling
    if not experiment.kind.denoises:
        return own
    own = sampling.with_sampler(own, request.sampler.strip())
    own = own._replace(grid=request.grid.strip(), nfe=int(request.nfe))
    return own._replace(guidance=float(request.guidance)) if guidable(experiment) else own


# ---- what a model can use
def guidable(experiment: Experiment) -> bool:
    """Whether guidance applies to a model.

    Args:
      experiment: the model.
    """
    try:
        denoiser.need_guidable(experiment, "guidance")
    except UserError:
        return False
    return True


def samplers(experiment: Experiment) -> list[str]:
    """The samplers that suit a model, its own first.

    Args:
      experiment: the model; a few-step model has the samplers of few-step models.
    """
    if not experiment.kind.denoises:
        return []
    known = _without_arguments(components.SAMPLERS, 0)
    if not experiment.kind.has_flow:
        own = members(components.SAMPLERS)
        known = [name for name in known if own[name] in few_step.SAMPLERS]
    return list(dict.fromkeys([experiment.sampling.name, *known]))


def grids(experiment: Experiment) -> list[str]:
    """The grids of times: 'auto', those of this model, and the hand-made ones.

    Args:
      experiment: the model.
    """
    placed = sorted(file.stem for folder in experiment.grids for file in folder.glob("*.json"))
    known = _without_arguments(components.GRIDS, 2)  # the process and the number of times
    if getattr(experiment.process, "shape", None) is None:
        known.remove("learned")  # needs a schedule that was learned with the model
    return list(dict.fromkeys(["auto", experiment.sampling.grid, *placed, *known]))


def _without_arguments(family: Family, given: int) -> list[str]:
    """The members of a family that need no more arguments than the first ones, from code."""
    return [
        name
        for name, make in members(family).items()
        if all(
            p.default is not p.empty for p in [*inspect.signature(make).parameters.values()][given:]
        )
    ]


# ---- command lines
def sample_command(
    experiment: Experiment, workdir: str, request: DrawingRequest, overrides: Mapping[str, Any]
) -> str:
    """The command line of experiments.sample that draws the images of a request.

    Args:
      experiment: the model.
      workdir: its folder, as the user named it.
      request: the request.
      overrides: values of other config keys (`overriding`).
    """
    last = int(request.seed) + int(request.num) - 1
    seeds = f"{int(request.seed)}" if request.num == 1 else f"{int(request.seed)}-{last}"
    flags = [("workdir", workdir), ("seeds", seeds), *_condition(request)]
    return _line("sample", [*flags, *_sampling(experiment, request), *overrides.items()])


def edit_command(
    experiment: Experiment, workdir: str, request: DrawingRequest, overrides: Mapping[str, Any]
) -> str:
    """The command line of experiments.edit that inpaints image.png by mask.png as a request does.

    Args:
      experiment: the model.
      workdir: its folder, as the user named it.
      request: the request.
      overrides: values of other config keys (`overriding`).
    """
    flags = [("workdir", workdir), ("task", "inpaint"), ("method", request.method)]
    flags += [("image", "image.png"), ("mask", "mask.png"), ("draws", int(request.num))]
    flags += [("seed", int(request.seed)), *_condition(request)]
    return _line("edit", [*flags, *_sampling(experiment, request), *overrides.items()])


def overriding(config: ConfigDict, keys: Iterable[str]) -> dict[str, Any]:
    """The flags by which a command line sets config keys, with their values.

    Args:
      config: the config with these values.
      keys: the keys; those that the page sets are left out.
    """
    found = {}
    for key in sorted(set(keys) - PAGE_KEYS):
        value: Any = config
        for part in key.split("."):
            value = value[part]
        found[f"config.{key}"] = value
    return found


def _condition(request: DrawingRequest) -> list[tuple[str, Any]]:
    if request.prompts:
        return [("prompt", prompt) for prompt in request.prompts]
    return [("labels", request.labels.strip())] if request.labels.strip() else []


def _sampling(experiment: Experiment, request: DrawingRequest) -> list[tuple[str, Any]]:
    if not experiment.kind.denoises:
        return []
    flags = [("sampler", request.sampler.strip()), ("config.sampler.grid", request.grid.strip())]
    flags += [("nfe", int(request.nfe))]
    return flags + ([("guidance", f"{request.guidance:.9g}")] if guidable(experiment) else [])


def _line(command: str, flags: Iterable[tuple[str, Any]]) -> str:
    """The line to type for a command with flags."""
    words = (f"--{name}={shlex.quote(str(value))}" for name, value in flags)
    return " ".join([f"python -m experiments.{command}", *words])
