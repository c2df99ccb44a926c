"""The samples that are edited or restored, with their conditions and the model that does it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.assembly import denoiser, sample_conditions, sampling
from diffusion_jax.assembly.experiment import Experiment
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.core import parsing
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Cond, Key
from diffusion_jax.data import Dataset, transforms
from diffusion_jax.evaluation import generate, rows
from diffusion_jax.evaluation.psnr import psnr


class Job(NamedTuple):
    """Images, or other samples, that a model edits or restores.

    Attributes:
      trained: the model.
      sampling: how it samples; guided only where the images have a condition.
      images: (N, ...) float, as the network sees them: images in [-1, 1], or normalized numbers.
      labels: (N,) their true classes; None where they are not known.
      cond: their conditions.
      keys: (N,) a random key for each.
    """

    trained: Trained
    sampling: sampling.SamplingMethod
    images: Array
    labels: np.ndarray | None
    cond: Cond
    keys: Key


def examples(job: Job) -> Array:
    """The job's images as the model sees them: themselves, or their latents.

    Args:
      job: the images (N, H, W, C) and the model.
    """
    latents = job.trained.experiment.latents
    if latents is None:
        return job.images
    block = min(len(job.images), job.trained.experiment.sampling.batch_size)
    encode = jax.jit(lambda images, params: latents.encode(params, images))
    return jnp.asarray(rows.over_rows(encode, job.images, latents.params, block=block))


def to_images(job: Job) -> Callable[[Array], np.ndarray]:
    """Make the function from results of the model (N, ...) to images (N, H, W, C) uint8.

    Args:
      job: the images and the model.
    """
    model = job.trained.experiment
    return sampling.to_images(model, min(len(job.images), model.sampling.batch_size))


def led_away(job: Job, prompt: str) -> Job:
    """Return the job whose guidance leads away from a negative prompt.

    Args:
      job: the images and the model.
      prompt: the caption; '' leaves the job as it is.

    Raises:
      UserError: where the model has no captions or no use for it.
    """
    model = denoiser.led_away(job.trained.experiment, prompt, guided=job.sampling.guided)
    return job._replace(trained=job.trained._replace(experiment=model))


def job_for(
    trained: Trained,
    dataset: Dataset | None,
    index: np.ndarray,
    labels: str,
    prompts: Sequence[str],
    seeds: Iterable[int],
    images: np.ndarray | None = None,
) -> Job:
    """The job of some images of the test split, or of the user's own.

    Args:
      trained: the model.
      dataset: its data set; None for the user's own images.
      index: (N,) the numbers of the images in the test split.
      labels: classes in turn, by number or name, such as '3,cat'; 'own' is the whole condition of
        the images, as in `conditions`; '' is no condition.
      prompts: captions in turn.
      seeds: a seed for each image.
      images: (N, H, W, C) uint8, the user's own images, whose classes are not known.

    Raises:
      UserError: for a condition that the model or the images do not have.
    """
    resolved = sampling.method(trained.experiment)
    conditioned = bool(labels or prompts)
    guided = denoiser.is_guided(trained.experiment, resolved.guidance, conditioned=conditioned)
    picked = {"image": images} if dataset is None else dataset.test.rows(index)
    own = picked.get("label") if dataset is not None and dataset.num_classes else None
    names = trained.data.get("class_names") or ()
    chosen = labels if labels == "own" else parsing.labels("labels", labels, names)
    cond = conditions(trained.experiment, dataset, index, chosen, prompts, own)
    x0 = jnp.asarray(transforms.to_float(picked["image"]))
    keys = generate.seeds_to_keys(seeds)
    return Job(trained, resolved._replace(guided=guided), x0, own, cond, keys)


def psnr_of(model: Experiment, samples: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """PSNR of each sample, whose peak for normalized numbers is the range of the training split.

    Args:
      model: the model.
      samples: (N, ...), as they are judged (sampling.to_output).
      truth: likewise.

    Returns:
      (N,), in dB.
    """
    known = model.normalization
    if known is None:
        return psnr(samples, truth)
    span = np.subtract(known.high, known.low)
    return psnr(known.decode(samples), known.decode(truth), np.where(span > 0, span, 1.0))


def conditions(
    model: Experiment,
    dataset: Dataset | None,
    index: np.ndarray,
    labels: str | list[int],
    prompts: Sequence[str],
    own: np.ndarray | None,
) -> Cond:
    """The condition of each image.

    Args:
      model: the model.
      dataset: the data set of the images; None for the user's own.
      index: (N,) their numbers in the test split.
      labels: classes in turn; 'own' is the whole condition of the images: their true classes or
        captions, and the arrays that condition the model; [] or '' is no condition.
      prompts: captions in turn.
      own: (N,) the true classes; None where they are not known.

    Raises:
      UserError: for a condition that the model or the images do not have.
    """
    if labels and prompts:
        raise UserError("--labels and --prompt together: give one of them")
    if prompts:
        return model.conditions.of_prompts(np.resize(prompts, len(index)).tolist())
    if labels == "own" and dataset is None and own is None:
        raise UserError("--labels=own: the class of an --image is not known; name it")
    if labels == "own" and sample_conditions.has_arrays(model):
        return sample_conditions.of_examples(model, dataset.test, index)[1]
    if labels == "own" and model.encoder:
        return sample_conditions.captions_of_test(model, dataset, index)[1]
    if (labels and not model.num_classes) or (labels == "own" and own is None):
        shown = labels if labels == "own" else ",".join(map(str, labels))
        raise UserError(
            f"--labels={shown}: this model or its data set has no classes; leave --labels out"
        )
    null = model.conditions.null(len(index))
    if not labels:
        return null
    wanted = np.asarray(own) if labels == "own" else np.resize(labels, len(index))
    return null | model.conditions.of_labels(wanted)
