"""Edits that are no inverse problems: interpolation, SDEdit, and translation between classes."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from diffusion_jax.assembly import denoiser, sampling
from diffusion_jax.core import parsing
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Denoise
from diffusion_jax.inverse import edits
from diffusion_jax.samplers import base
from diffusion_jax.studies.edits.job import Job, examples, psnr_of, to_images
from diffusion_jax.studies.edits.restoration import Strip

# all parameters -> the denoiser: large networks are arguments of a program, and not part of it
Denoiser = Callable[[denoiser.Ensemble], Denoise]


def apply(job: Job, task: str, labels: str, strengths: list[float]) -> Strip:
    """Edit the job's images.

    Args:
      job: the images and the model.
      task: 'interpolate', 'sdedit' or 'translate'.
      labels: the target classes of translate; '' takes all.
      strengths: the strengths of sdedit.

    Returns:
      Rows of samples (N, ...) as they are judged, their names, and facts for the JSON file.

    Raises:
      UserError: where the model or the number of images does not allow the task.
    """
    model, resolved = job.trained.experiment, job.sampling
    clip = "none" if task != "sdedit" else resolved.clip  # a clipped denoiser cannot be inverted
    guided = resolved.guided and task == "sdedit"
    if not guided and denoiser.is_guided(model, resolved.guidance):
        why = (
            "without a condition there is nothing to guide by"
            if task == "sdedit"
            else f"{task} follows the model's own flow"
        )
        print(f"config.sampler.guidance={resolved.guidance:g} is not used: {why}", file=sys.stderr)
    denoise = denoiser.of_ensemble(model, scale=resolved.guidance if guided else None, clip=clip)
    if task == "interpolate":
        rows, names, facts = interpolate(job, denoise)
    elif task == "sdedit":
        rows, names, facts = sdedit(job, denoise, strengths)
    else:
        rows, names, facts = translate(job, denoise, labels)
    facts |= {
        "evaluations": sampling.evaluations(resolved),
        "guidance": resolved.guidance if guided else None,
    }
    return rows, names, facts


def _program(job: Job, denoise: Denoiser, edit: Callable[..., Array]) -> Callable[..., Array]:
    """Compile edit(sampler, denoise, process, ...), as a function of the rest."""
    model = job.trained.experiment

    @jax.jit
    def run(ensemble: denoiser.Ensemble, *args: Any) -> Array:
        return edit(job.sampling.sampler, denoise(ensemble), model.process, *args)

    return functools.partial(run, denoiser.ensemble(model, job.trained.params))


def interpolate(job: Job, denoise: Denoiser, steps: int = 9) -> Strip:
    """Interpolate between pairs of images; see `apply` for what is returned.

    A column of the picture is a pair. A sampler that cannot encode interpolates between images of
    the model's own.

    Args:
      job: the images and the model.
      denoise: the denoiser.
      steps: images of each pair.

    Raises:
      UserError: if there are fewer than two images.
    """
    ts, half = job.sampling.ts, len(job.images) // 2
    if not half:
        raise UserError("--task=interpolate needs two images; set --num=2 or more")
    weights = np.linspace(0, 1, steps).astype(np.float32)
    names = [f"{100 * weight:.3g} %" for weight in weights]

    def every_second(tree: Any, begin: int) -> Any:
        return jax.tree.map(lambda values: values[begin : 2 * half : 2], tree)

    def pairs(tree: Any) -> list[Any]:
        return [every_second(tree, 0), every_second(tree, 1)]

    conds, finish = tuple(pairs(job.cond)), to_images(job)
    model, x0 = job.trained.experiment, examples(job)
    if base.draws_noise(job.sampling.sampler, model.process):
        run = _program(job, denoise, edits.blend)
        starts = pairs(base.start(model.process, job.keys, x0.shape))
        frames = run(pairs(job.keys)[0], *starts, weights, ts, conds)
        return list(map(finish, np.asarray(frames))), names, {"between": "own images"}
    run = _program(job, denoise, edits.interpolate)
    frames = list(map(finish, np.asarray(run(*pairs(x0), weights, ts, conds))))
    one, other = map(sampling.to_output(model), pairs(job.images))
    ends = [
        psnr_of(model, frame, end).mean() for frame, end in ((frames[0], one), (frames[-1], other))
    ]
    rows = [one, *frames, other]
    return rows, ["one", *names, "other"], {"psnr_of_ends": [float(end) for end in ends]}


def sdedit(job: Job, denoise: Denoiser, strengths: list[float]) -> Strip:
    """SDEdit at several strengths, a row for each; see `apply` for what is returned.

    Args:
      job: the images and the model.
      denoise: the denoiser.
      strengths: shares of the sampler's steps: the larger, the less is left of the image.
    """
    model, finish, x0 = job.trained.experiment, to_images(job), examples(job)
    guide, run = sampling.to_output(model)(job.images), _program(job, denoise, edits.sdedit)
    results = [
        finish(run(job.keys, x0, edits.last_moves(job.sampling.ts, strength), job.cond))
        for strength in strengths
    ]
    distances = {
        f"{strength:g}": float(psnr_of(model, result, guide).mean())
        for strength, result in zip(strengths, results, strict=True)
    }
    names = ["guide", *(f"strength {strength:g}" for strength in strengths)]
    return [guide, *results], names, {"psnr_to_guide": distances}


def translate(job: Job, denoise: Denoiser, labels: str) -> Strip:
    """Translate images between classes, a row for each; see `apply` for what is returned.

    The first row encodes and decodes every image under its own class, which gives it back.

    Args:
      job: the images and the model.
      denoise: the denoiser.
      labels: the target classes; '' takes all.

    Raises:
      UserError: for a model without classes.
    """
    model = job.trained.experiment
    if not model.num_classes:
        raise UserError(
            "--task=translate translates between classes, and this model has no classes"
        )
    classes = [*(job.trained.data.get("class_names") or ()), "any"]  # by number, then the null
    targets = (
        list(range(model.num_classes))
        if labels in ("", "own")
        else parsing.labels("labels", labels, classes[:-1])
    )
    truth = sampling.to_output(model)(job.images)
    # where the class of an image is not known, it is encoded without a condition
    own = (
        model.conditions.null(len(truth))
        if job.labels is None
        else model.conditions.of_labels(job.labels)
    )
    run, x0, finish = _program(job, denoise, edits.translate), examples(job), to_images(job)
    conds = [own, *(model.conditions.of_labels(np.full(len(truth), label)) for label in targets)]
    results = [finish(run(x0, job.sampling.ts, own, cond)) for cond in conds]
    names = ["image", "there and back", *(classes[label] for label in targets)]
    score = float(psnr_of(model, results[0], truth).mean())
    return [truth, *results], names, {"psnr_there_and_back": score}
