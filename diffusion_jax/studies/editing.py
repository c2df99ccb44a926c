"""Images restored and edited by a trained model."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import arrays, data, parsing, streams
from diffusion_jax.assembly import components, denoiser, sampling
from diffusion_jax.assembly.build import build, members
from diffusion_jax.assembly.conditions import captions_of_test, cond_for, null_cond, prompt_cond
from diffusion_jax.data import folder, transforms
from diffusion_jax.errors import UserError, unknown
from diffusion_jax.evaluation import generate
from diffusion_jax.evaluation.psnr import psnr
from diffusion_jax.inverse import edits, measurements, methods
from diffusion_jax.samplers import base

EDITS = ("interpolate", "sdedit", "translate")


class Job(NamedTuple):
    """What is asked for: images (N, H, W, C) float in [-1, 1] and their labels (N,) or None, of a
    loaded model, by a plan, which guides where the model is told something. cond: what it is told.
    """

    trained: Any
    plan: Any
    images: Any
    labels: Any
    cond: Any
    keys: Any


def job_for(trained, dataset, index, labels: str, prompts: list[str], seeds, images=None) -> Job:
    """The Job of these images of the test split. labels, prompts: as the flags; the null condition
    where both are empty.

    images: uint8 (N, H, W, C) of the user's own instead, whose classes are not known; dataset and
      index are then not used.
    """
    plan, picked = (
        sampling.plan(trained.experiment),
        {"image": images} if dataset is None else dataset.test.rows(index),
    )
    plan = plan._replace(
        guided=denoiser.is_guided(trained.experiment, plan.guidance, told=bool(labels or prompts))
    )
    images = jnp.asarray(data.transforms.to_float(picked["image"]))
    own = picked.get("label") if dataset is not None and dataset.num_classes else None
    chosen = (
        labels
        if labels == "own"
        else parsing.labels("labels", labels, trained.data.get("class_names") or ())
    )
    cond = conditions(trained.experiment, dataset, index, chosen, prompts, own)
    return Job(trained, plan, images, own, cond, generate.seeds_to_keys(seeds))


# ---- what is asked for
def mask_for(spec: str, shape: tuple[int, ...]):
    """The mask (H, W, 1) of a name, half, box(side=0.5), random(keep=0.3), or of a picture: white
    is kept, black is painted.

    UserError for a picture that is none, of another size, or that leaves nothing to paint or
    nothing to go by.
    """
    spec = parsing.expand("--mask", spec)
    if not re.search(r"[./\\]\w+$", spec.partition("(")[0]) and not Path(spec).is_file():
        return build(components.MASKS, spec, shape)
    try:
        with transforms.open_image(spec) as picture:
            mask = (np.asarray(picture.convert("L"), np.float32) > 127.5).astype(np.float32)[
                ..., None
            ]
    except Exception as error:  # a damaged picture can raise nearly anything
        why = _unreadable(error)
        raise UserError(
            f"--mask={spec} cannot be read as a picture ({why}); or take half, box or random"
        ) from None
    if mask.shape[:2] != tuple(shape[:2]):
        sizes = ["x".join(map(str, of[:2])) for of in (mask.shape, shape)]
        raise UserError(f"--mask={spec} is {sizes[0]} (height x width), the images are {sizes[1]}")
    if mask.min() == mask.max():
        what = "white: there is nothing to paint" if mask.max() else "black: nothing is known"
        raise UserError(f"--mask={spec} is all {what}")
    return mask


def measurement_for(task: str, mask: str, shape: tuple[int, ...]):
    """The Measurement that --task and --mask name. UserError for a mask without a use and for what
    the task does not take.
    """
    name = task.partition("(")[0].strip()
    known = members(components.MEASUREMENTS)
    if name not in known and name not in components.MEASUREMENTS.aliases:
        raise unknown("task", name, (*known, *EDITS))
    if name == "inpaint":
        return build(components.MEASUREMENTS, task, shape, mask_for(mask or "half", shape))
    if mask:
        raise UserError(f"--mask={mask} is for --task=inpaint, and --task={task} has no mask")
    return build(components.MEASUREMENTS, task, shape)


def method_for(spec: str, measurement, task: str):
    """The Method of a name. UserError for one that needs a linear measurement if this is none."""
    method = build(components.METHODS, spec)
    if method.linear and measurement.spectral is None:
        raise UserError(
            f"--method={spec} needs a linear measurement, and --task={task} is not linear; take --method=dps"
        )
    return method


def conditions(built, dataset, index, labels: str | list[int], prompts: list[str], own):
    """The condition of each image: none; 'own', its true class or caption; classes in turn; or
    prompts in turn.
    """
    if labels and prompts:
        raise UserError("--labels and --prompt together: ask for one of them")
    if prompts:
        return prompt_cond(built, np.resize(prompts, len(index)).tolist())
    if labels == "own" and dataset is None and own is None:
        raise UserError("--labels=own: the class of an --image is not known; name it")
    if labels == "own" and built.encoder:
        return captions_of_test(built, dataset, index)[1]
    if labels and not built.num_classes or labels == "own" and own is None:
        told = labels if labels == "own" else ",".join(map(str, labels))
        raise UserError(
            f"--labels={told}: this model or its data set has no classes; leave --labels away"
        )
    null = null_cond(built, len(index))
    if not labels:
        return null
    wanted = np.asarray(own) if labels == "own" else np.resize(labels, len(index))
    return null | cond_for(built, wanted)


# ---- inverse problems
def restorer(built, plan, method, measurement):
    """Jitted (ensemble, keys (B,), cond, y, ts, scale) -> images (B, H, W, C): one program for any
    grid padded to one length.
    """
    clip, process = None if plan.clip == "none" else (-1.0, 1.0), built.process

    @jax.jit
    def run(ensemble, keys, cond, y, ts, scale):
        denoise = denoiser.denoiser(
            *denoiser.unpack(built, ensemble), scale=scale if plan.guided else None, clip="none"
        )
        x = base.start(process, keys, (len(keys), *built.shape))
        problem = method, measurement, y, plan.sampler, denoise, process, keys, x, ts, cond
        return methods.restore(
            *problem, clip=clip, padded=True, noise=components.NOISES[plan.noise]
        ).x0

    return run


def restored(job: Job, method, measurement, y, keys, *, description: str = "restoring"):
    """The images (N, H, W, C) uint8 that a method makes of y (N, ...), in batches of one compiled
    size.
    """
    built, plan = job.trained.experiment, job.plan
    run, params = (
        restorer(built, plan, method, measurement),
        denoiser.ensemble(built, job.trained.params),
    )

    def draw(keys, given):
        y = given.pop("y")
        return run(params, keys, given or None, y, np.asarray(plan.ts), np.float32(plan.guidance))

    batch_size = min(built.config.sampler.batch_size, len(keys))
    return generate.generate(
        draw, keys, {"y": y, **(job.cond or {})}, batch_size=batch_size, description=description
    )


def shown(measurement, y, shape: tuple[int, ...]):
    """y as a picture of the images' shape: itself, or where it has another shape the least image
    that would be measured so.
    """
    return np.asarray(y if y.shape[1:] == tuple(shape) else measurements.pinv(measurement, y))


def solve(job: Job, task: str, mask: str, spec: str, draws: int):
    """(the strip, what the JSON says) of an inverse problem."""
    built = job.trained.experiment
    measurement = measurement_for(task, mask, built.shape)
    method = method_for(spec, measurement, task)
    wrapped = method.wrap(job.plan.sampler, measurement, None)
    ts = sampling.grid(built, job.plan.grid, base.points(wrapped, built.config.sampler.nfe))
    job = job._replace(plan=job.plan._replace(ts=ts))
    y = jax.jit(lambda keys, x: measurements.measure(measurement, keys, x))(job.keys, job.images)
    results = [
        restored(
            job,
            method,
            measurement,
            y,
            arrays.fold_in(job.keys, streams.EDIT_DRAW + draw) if draw else job.keys,
        )
        for draw in range(draws)
    ]
    truth, given = (
        transforms.to_uint8(job.images),
        transforms.to_uint8(shown(measurement, y, built.shape)),
    )
    names = ["measurement", *(["result"] * draws), "truth"]
    scores = np.stack([psnr(result, truth) for result in results])
    told = {
        "method": spec,
        "psnr": float(scores.mean()),
        "psnr_of_measurement": float(psnr(given, truth).mean()),
        "psnr_per_image": scores.tolist(),
        "evaluations": sampling.evaluations(job.plan._replace(sampler=wrapped)),
    }
    return [given, *results, truth], names, told


# ---- edits
def edit(job: Job, task: str, labels: str, strengths: list[float]):
    """(rows of images uint8, their names, what the JSON says) of interpolate, sdedit or translate."""
    built, plan = job.trained.experiment, job.plan
    clip = "none" if task != "sdedit" else plan.clip  # a clipped denoiser has no way back
    guided = plan.guided and task == "sdedit"
    if not guided and denoiser.is_guided(built, plan.guidance):
        why = (
            "without a condition there is nothing to guide by"
            if task == "sdedit"
            else f"{task} follows the model's own flow"
        )
        print(f"config.sampler.guidance={plan.guidance:g} is not used: {why}", file=sys.stderr)
    denoise = denoiser.denoiser(
        built, job.trained.params, scale=jnp.float32(plan.guidance) if guided else None, clip=clip
    )
    do = {"interpolate": _interpolate, "sdedit": _sdedit, "translate": _translate}[task]
    rows, names, told = do(job, denoise, labels, strengths)
    return (
        rows,
        names,
        told
        | {
            "evaluations": sampling.evaluations(plan),
            "guidance": plan.guidance if guided else None,
        },
    )


def _interpolate(job: Job, denoise, labels: str, strengths, steps: int = 9):
    """A column for each pair, from the one above to the one below: of images, or of the model's own
    if its sampler cannot encode.
    """
    sampler, process, ts, half = (
        job.plan.sampler,
        job.trained.experiment.process,
        job.plan.ts,
        len(job.images) // 2,
    )
    if not half:
        raise UserError("--task=interpolate goes between two images; ask for --num=2 or more")
    weights = np.linspace(0, 1, steps).astype(np.float32)
    names = [f"{100 * w:.3g} %" for w in weights]

    def pairs(tree):
        return [jax.tree.map(lambda v: v[i : 2 * half : 2], tree) for i in (0, 1)]

    conds = tuple(pairs(job.cond))
    if base.draws_noise(sampler, process):
        run = jax.jit(lambda *args: edits.blend(sampler, denoise, process, *args))
        starts = pairs(base.start(process, job.keys, job.images.shape))
        frames = np.asarray(run(pairs(job.keys)[0], *starts, weights, ts, conds))
        return list(map(transforms.to_uint8, frames)), names, {"between": "own images"}
    run = jax.jit(lambda *args: edits.interpolate(sampler, denoise, process, *args))
    one, other = pairs(job.images)
    frames = np.asarray(run(one, other, weights, ts, conds))
    ends = [
        psnr(transforms.to_uint8(frame), transforms.to_uint8(end)).mean()
        for frame, end in ((frames[0], one), (frames[-1], other))
    ]
    rows = [one, *frames, other]
    return (
        list(map(transforms.to_uint8, rows)),
        ["one", *names, "other"],
        {"psnr_of_ends": [float(end) for end in ends]},
    )


def _sdedit(job: Job, denoise, labels: str, strengths):
    """A row for each strength: the more noise, the less is left of the guide."""
    built, guide = job.trained.experiment, transforms.to_uint8(job.images)
    run = jax.jit(
        lambda keys, x, ts, cond: edits.sdedit(
            job.plan.sampler, denoise, built.process, keys, x, ts, cond
        )
    )
    results = [
        transforms.to_uint8(run(job.keys, job.images, edits.last_moves(job.plan.ts, s), job.cond))
        for s in strengths
    ]
    told = {
        "psnr_to_guide": {
            f"{s:g}": float(psnr(r, guide).mean()) for s, r in zip(strengths, results)
        }
    }
    return [guide, *results], ["guide", *(f"strength {s:g}" for s in strengths)], told


def _translate(job: Job, denoise, labels: str, strengths):
    """A row for each class: every image under it, the first row under its own, which gives the
    image back.
    """
    built = job.trained.experiment
    if not built.num_classes:
        raise UserError("--task=translate goes from class to class, and this model has none")
    classes = [*(job.trained.data.get("class_names") or ()), "any"]  # as cond_for counts them
    targets = (
        parsing.labels("labels", labels, classes[:-1])
        if labels not in ("", "own")
        else list(range(built.num_classes))
    )
    truth = transforms.to_uint8(
        job.images
    )  # where its class is not known, the way back to noise has no condition
    own = null_cond(built, len(truth)) if job.labels is None else cond_for(built, job.labels)
    run = jax.jit(
        lambda x, ts, a, b: edits.translate(job.plan.sampler, denoise, built.process, x, ts, a, b)
    )
    conds = [own, *(cond_for(built, np.full(len(truth), label)) for label in targets)]
    results = [transforms.to_uint8(run(job.images, job.plan.ts, own, cond)) for cond in conds]
    names = ["image", "there and back", *(classes[label] for label in targets)]
    return [truth, *results], names, {"psnr_there_and_back": float(psnr(results[0], truth).mean())}


# ---- the command
def pictures_of(files: Sequence[str], shape: tuple[int, ...]):
    """Picture files as images (N, H, W, C) uint8 of a model's shape: centered square crop, resized,
    grey or color as it wants.

    Raises:
      UserError: for a file that is no picture, and for another size than the model's if that is no
        square.
    """
    height, width, channels = shape
    found = []
    for name in files:
        path = Path(parsing.expand("--image", name))
        try:
            with transforms.open_image(path) as picture:
                size = picture.size
            if size != (width, height) and height != width:
                raise UserError(
                    f"--image={name} is {size[1]}x{size[0]} (height x width), and the model's images are {height}x{width}"
                )
            found.append(folder.decode(path, 0 if size == (width, height) else height, channels))
        except UserError:
            raise
        except Exception as error:  # a damaged picture can raise nearly anything
            raise UserError(
                f"--image={name} cannot be read as a picture ({_unreadable(error)})"
            ) from error
    return np.stack(found)


def _unreadable(error: Exception) -> str:
    """Why a picture cannot be read, in a few words."""
    return (
        getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
    )


def strengths_of(text: str) -> list[float]:
    """'0.3,0.6' -> [0.3, 0.6]. UserError for anything but shares above 0 and at most 1."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < strength <= 1 for strength in found):
        raise UserError(
            f"--strength={text}: write shares of the way to noise, above 0 and at most 1, such as 0.3,0.5,0.7"
        )
    return found
