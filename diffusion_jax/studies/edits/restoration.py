"""Inverse problems solved by a trained model: the programs, and the restored images."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.assembly import components, denoiser, sampling
from diffusion_jax.assembly.experiment import Experiment
from diffusion_jax.core import arrays, streams
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Cond, Key
from diffusion_jax.data import transforms
from diffusion_jax.evaluation import generate
from diffusion_jax.evaluation.psnr import psnr
from diffusion_jax.inverse import measurements, methods
from diffusion_jax.inverse.measurements import Measurement
from diffusion_jax.inverse.methods import Method
from diffusion_jax.samplers import base
from diffusion_jax.studies.edits.job import Job, examples
from diffusion_jax.studies.edits.requests import measurement_for, method_for, of_table

Strip = tuple[list[np.ndarray], list[str], dict[str, Any]]  # rows of images, their names, facts


def restorer(
    model: Experiment, resolved: sampling.SamplingMethod, method: Method, measurement: Measurement
) -> Callable[[denoiser.Ensemble, Key, Cond, Array, Array, Array], Array]:
    """Compile the restoration of images: one program for all grids padded to one length.

    Args:
      model: the model.
      resolved: how it samples.
      method: how a measurement guides it.
      measurement: the measurement.

    Returns:
      (ensemble, keys (B,), cond, y, ts, scale) -> images (B, H, W, C).
    """
    return jax.jit(functools.partial(_restore, model, resolved, method, measurement))


def inpainter(
    model: Experiment, resolved: sampling.SamplingMethod, method: Method
) -> Callable[[denoiser.Ensemble, Key, Cond, Array, Array, Array, Array], Array]:
    """Compile inpainting: one program for all masks, and for all grids padded to one length.

    Args:
      model: the model.
      resolved: how it samples.
      method: how the known pixels guide it.

    Returns:
      (ensemble, keys (B,), cond, y, ts, scale, mask (H, W, 1)) -> images (B, H, W, C).
    """

    @jax.jit
    def run(
        ensemble: denoiser.Ensemble,
        keys: Key,
        cond: Cond,
        y: Array,
        ts: Array,
        scale: Array,
        mask: Array,
    ) -> Array:
        measurement = measurements.inpaint(model.shape, mask)
        return _restore(model, resolved, method, measurement, ensemble, keys, cond, y, ts, scale)

    return run


def _restore(
    model: Experiment,
    resolved: sampling.SamplingMethod,
    method: Method,
    measurement: Measurement,
    ensemble: denoiser.Ensemble,
    keys: Key,
    cond: Cond,
    y: Array,
    ts: Array,
    scale: Array,
) -> Array:
    """Restore one batch of images from measurements y (B, ...)."""
    clip, process = None if resolved.clip == "none" else (-1.0, 1.0), model.process
    guidance = scale if resolved.guided else None
    bound, own = denoiser.unpack(model, ensemble)
    denoise = denoiser.denoiser(bound, own, scale=guidance, clip="none")
    x = base.start(process, keys, (len(keys), *model.shape))
    if model.latents is not None and measurement.spectral is None:  # it is one of images
        measurement = Measurement(
            functools.partial(_of_decoded, bound, measurement.forward), measurement.std
        )
    x0 = methods.restore(
        method,
        measurement,
        y,
        resolved.sampler,
        denoise,
        process,
        keys,
        x,
        ts,
        cond,
        clip=clip,
        padded=True,
        noise=components.NOISES[resolved.noise],
    ).x0
    return sampling.decoded(bound, x0)


def _of_decoded(model: Experiment, forward: Callable[[Array], Array], z: Array) -> Array:
    """The measurement of the images that latents are decoded to."""
    return forward(sampling.decoded(model, z))


def restored(
    job: Job,
    method: Method,
    measurement: Measurement,
    y: Array,
    keys: Key,
    *,
    run: Callable[..., Array] | None = None,
    description: str = "restoring",
    progress: bool = True,
) -> np.ndarray:
    """Restore samples from measurements, in batches of one size.

    Args:
      job: the samples' conditions and the model.
      method: how the measurement guides the model.
      measurement: the measurement.
      y: (N, ...) what was measured.
      keys: (N,) random keys.
      run: the compiled program; None compiles one, by `restorer`.
      description: the title of the progress bar.
      progress: whether there is one.

    Returns:
      (N, ...) as they are judged: uint8 images, or normalized numbers.
    """
    model, resolved = job.trained.experiment, job.sampling
    run = run or restorer(model, resolved, method, measurement)
    params = denoiser.ensemble(model, job.trained.params)

    def draw(keys: Key, given: dict[str, Array]) -> Array:
        y = given.pop("y")
        return run(
            params, keys, given or None, y, np.asarray(resolved.ts), np.float32(resolved.guidance)
        )

    batch_size = min(model.sampling.batch_size, len(keys))
    return generate.generate(
        draw,
        keys,
        {"y": y, **(job.cond or {})},
        batch_size=batch_size,
        description=description,
        progress=progress,
        finish=sampling.to_output(model),
    )


def as_image(measurement: Measurement, y: Array, shape: tuple[int, ...]) -> np.ndarray:
    """A measurement as an image.

    Args:
      measurement: the measurement.
      y: (N, ...) what was measured.
      shape: (H, W, C) of the images.

    Returns:
      y where it has the images' shape, else the image of least norm with this measurement.
    """
    return np.asarray(y if y.shape[1:] == tuple(shape) else measurements.pinv(measurement, y))


def measure(job: Job, measurement: Measurement) -> Array:
    """Measure the samples of a job, with the noise of each from its own key.

    Args:
      job: the samples (N, ...) as the network sees them, and their keys (N,).
      measurement: how an image becomes a measurement.

    Returns:
      Measurements (N, ...), whose shape depends on the kind of measurement.
    """
    return jax.jit(lambda keys, x: measurements.measure(measurement, keys, x))(job.keys, job.images)


def with_budget(job: Job, method: Method, measurement: Measurement) -> tuple[Job, int | None]:
    """The job with a grid on which the method spends the model's budget, and its evaluations.

    Args:
      job: the job.
      method: a method, which may wrap the sampler.
      measurement: the measurement.

    Returns:
      (the job, network evaluations per image).
    """
    model, resolved = job.trained.experiment, job.sampling
    wrapped = method.wrap(resolved.sampler, measurement, None)
    ts = sampling.grid(model, resolved.grid, base.points(wrapped, model.sampling.nfe))
    evaluations = sampling.evaluations(resolved._replace(ts=ts, sampler=wrapped))
    return job._replace(sampling=resolved._replace(ts=ts)), evaluations


def keys_of_draw(job: Job, draw: int) -> Key:
    """The random keys (N,) of one of several results of each image.

    Args:
      job: the images with their keys.
      draw: the number of the result, from 0.
    """
    return arrays.fold_in(job.keys, streams.EDIT_DRAW + draw) if draw else job.keys


class RestoredSamples(NamedTuple):
    """What a method makes of measured samples; the arrays are as they are judged.

    Attributes:
      measurement: how they were measured.
      y: (N, ...) the measurements.
      draws: (K, N, ...) the results of the method.
      truth: (N, ...) the samples.
      evaluations: network evaluations of each result; None where a tolerance decides.
    """

    measurement: Measurement
    y: Array
    draws: np.ndarray
    truth: np.ndarray
    evaluations: int | None


def restore(job: Job, task: str, mask: str, spec: str, draws: int) -> RestoredSamples:
    """Restore the samples of a job from their own measurements.

    Args:
      job: the samples and the model.
      task: the measurement, as in `measurement_for`.
      mask: its mask.
      spec: the method.
      draws: results of each sample.
    """
    model, shape = job.trained.experiment, job.images.shape[1:]
    measurement = measurement_for(task, mask, shape, of_table(model.normalization))
    method = method_for(spec, measurement, task)
    y, truth = measure(job, measurement), sampling.to_output(model)(job.images)
    of_latents = model.latents is not None
    seen = _in_latents(job, method, measurement, y, task) if of_latents else (y, measurement)
    job, evaluations = with_budget(job, method, seen[1])
    results = np.stack(
        [restored(job, method, seen[1], seen[0], keys_of_draw(job, n)) for n in range(draws)]
    )
    if of_latents and method.linear:  # known pixels are not decoded
        known = np.asarray(measurement.forward(jnp.ones((1, *shape)))) > 0
        results = np.where(known, truth, results)
    return RestoredSamples(measurement, y, results, truth, evaluations)


def _in_latents(
    job: Job, method: Method, measurement: Measurement, y: Array, task: str
) -> tuple[Array, Measurement]:
    """The measurement by which a model of latents restores images.

    A method that needs a linear measurement inpaints the latents all of whose pixels are known. Any
    other compares the decoded image with what was measured.

    Args:
      job: the images and the model.
      method: the method.
      measurement: the measurement of the images.
      y: what was measured.
      task: the name of the measurement, for the error.

    Returns:
      (what is known (N, ...), its measurement: of latents, or a function of images).

    Raises:
      UserError: for a method that needs a linear measurement, if the task is not inpaint.
    """
    if not method.linear:
        return y, Measurement(measurement.forward, measurement.std)
    if task.partition("(")[0].strip() != "inpaint":
        raise UserError(
            f"--task={task} is not linear for a model of latents, whose images are decoded; take "
            "--method=dps"
        )
    shape = job.trained.experiment.shape
    height, width, channels = job.images.shape[1:]
    known = np.asarray(measurement.forward(jnp.ones((1, height, width, channels))))[0]
    blocks = known.reshape(shape[0], height // shape[0], shape[1], width // shape[1], channels)
    own = measurements.inpaint(shape, blocks.min((1, 3, 4))[..., None])
    return own.forward(examples(job)), own


def solve(job: Job, task: str, mask: str, spec: str, draws: int) -> Strip:
    """Restore the job's images from their own measurements.

    Args:
      job: the images and the model.
      task: the measurement, as in `measurement_for`.
      mask: its mask.
      spec: the method.
      draws: results of each image.

    Returns:
      Rows (N, H, W, C) uint8: the measurement, the results, the truth; their names; and facts for
      the JSON file, with the PSNR of every image.
    """
    found = restore(job, task, mask, spec, draws)
    given = as_image(found.measurement, found.y, job.images.shape[1:])
    given = transforms.to_uint8(given)
    scores = np.stack([psnr(result, found.truth) for result in found.draws])
    facts = {
        "method": spec,
        "psnr": float(scores.mean()),
        "psnr_of_measurement": float(psnr(given, found.truth).mean()),
        "psnr_per_image": scores.tolist(),
        "evaluations": found.evaluations,
    }
    names = ["measurement", *(["result"] * draws), "truth"]
    return [given, *found.draws, found.truth], names, facts
