"""What is measured of a trained family: its images, its likelihood, and the latent of a VAE."""

from __future__ import annotations

import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax import data
from diffusion_jax.assembly import autoencoders, denoiser, sample_conditions, sampling
from diffusion_jax.assembly.kinds import autoencoder
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.core import arrays
from diffusion_jax.core.types import Array, Cond, Key, Params
from diffusion_jax.data import transforms
from diffusion_jax.evaluation import generate, intervals, judge, sharpness
from diffusion_jax.evaluation.intervals import Measured
from diffusion_jax.likelihood import flow
from diffusion_jax.objectives import variational
from diffusion_jax.processes import gaussian

SHOWN = 200  # images that are kept of each family
RECONSTRUCTED = 10
POSTERIORS = 2000  # test images over which the rate of each unit is averaged
TRAVERSED = np.linspace(-3, 3, 7)  # values of a unit, in standard deviations of the prior
LIVE, DEAD = 3, 2  # units that are traversed: those of the highest and of the lowest rate

Row = dict[str, Any]
Pictures = dict[str, np.ndarray]


def judge_of(dataset: data.Dataset, count: int, features: str) -> judge.Judge:
    """Make the judge of all families.

    Args:
      dataset: the images.
      count: number of images that are drawn of each family.
      features: the extractor of the Fréchet distance, precision and recall.
    """
    labels = np.arange(count) % dataset.num_classes if dataset.num_classes else None
    return judge.against(
        dataset.train,
        labels,
        features=(features,),
        metrics=("accuracy", "frechet", "prdc", "memorization"),
        held_out=dataset.test,
        count=count,
        plain=True,
    )


def of_real(dataset: data.Dataset, judged: judge.Judge, count: int) -> Row:
    """The scores of real test images, and half the widths of their 'intervals'.

    Args:
      dataset: the images.
      judged: the judge.
      count: number of images.
    """
    test = data.arrays(dataset.test)["image"]
    real = judge.measured_on_real(dataset.train, dataset.test, judged, count)
    return intervals.record(real | sharpness.relative(test, test))


def of_images(
    trained: Trained, dataset: data.Dataset, judged: judge.Judge, count: int, name: str
) -> tuple[Row, Pictures]:
    """Draw images of a trained model and score them.

    Args:
      trained: the model.
      dataset: the images.
      judged: scores images, with labels where the model has classes.
      count: images that are drawn.
      name: the name of the model, for the progress bar.

    Returns:
      (its scores and half the widths of their 'intervals', {'images': its first images}).
    """
    experiment = trained.experiment
    run = sampling.sample_with(experiment, trained.params, sampling.method(experiment))
    batch = min(experiment.sampling.batch_size, count)
    keys = generate.seeds_to_keys(range(count))
    labels, cond = sample_conditions.for_judging(experiment, dataset, count)
    run(keys[:batch], jax.tree.map(lambda c: c[:batch], cond))  # compiled before the clock starts
    # as the time of training (training.seconds_per_image)
    clock = time.process_time if jax.default_backend() == "cpu" else time.monotonic
    began = clock()
    images = generate.generate(run, keys, cond, batch_size=batch, description=name)
    took = 1000 * (clock() - began) / count
    found = judged.measured(images, labels)
    found |= sharpness.relative(images, data.arrays(dataset.test)["image"])
    scores = {"milliseconds": took, "evaluations": _evaluations(trained)}
    networks = denoiser.ensemble(experiment, trained.params)
    scores["parameters"] = sum(x.size for x in jax.tree.leaves(networks))
    return scores | intervals.record(found), {"images": images[:SHOWN]}


def _evaluations(trained: Trained) -> int:
    """Network evaluations for an image: an autoregressive decoder is called once for each pixel."""
    experiment = trained.experiment
    if experiment.kind.reconstructs and experiment.model.autoregressive:
        return math.prod(experiment.shape[:2])
    return experiment.sampling.nfe


def at_the_end(
    trained: Trained, dataset: data.Dataset, settings: ConfigDict
) -> tuple[Row, Pictures]:
    """What is measured at the end of training alone: likelihoods, and the latent of a VAE.

    Args:
      trained: the model.
      dataset: the images.
      settings: 'likelihood', the number of test images whose bits are measured, and 'end_logsnr',
        the log-SNR at which a diffusion process ends for them.

    Returns:
      (scores with their 'intervals', arrays of the probes of a VAE).
    """
    experiment = trained.experiment
    if experiment.kind.reconstructs:
        return _of_autoencoder(trained, dataset)
    if not settings.likelihood or experiment.latents:
        return {}, {}
    return intervals.record({"bits": _bits(trained, dataset, settings)}), {}


def _bits(trained: Trained, dataset: data.Dataset, settings: ConfigDict) -> Measured:
    """Bits per dimension of the first test images, by the flow and dequantized by the process."""
    experiment, examples = trained.experiment, data.arrays(dataset.test, settings.likelihood)
    images = transforms.to_float(jnp.asarray(examples["image"]))
    labels = examples["label"] if experiment.num_classes else np.zeros(0, int)
    cond = experiment.conditions.of_labels(labels)
    keys = arrays.example_keys(jax.random.key(0), len(images))
    process = gaussian.ending_at(experiment.process, settings.end_logsnr)

    @jax.jit
    def run(params: Params, x: Array, keys: Key, cond: Cond) -> Array:
        denoise = denoiser.denoiser(experiment, params, clip="none")
        return flow.bits_per_dim(process, denoise, x, keys, cond, dequantize="process").bits

    return intervals.mean(np.asarray(run(trained.params, images, keys, cond)))


# ---- the latent of a VAE
def _of_autoencoder(trained: Trained, dataset: data.Dataset) -> tuple[Row, Pictures]:
    experiment = trained.experiment
    found = autoencoders.held_out(experiment, trained.params, dataset.test)
    scores = {
        key: found[key] for key in ("active_units", "units", "rate", "distortion", "iw_bound")
    }
    if experiment.objective.likelihood.is_discrete:
        scores["bits"] = -found["iw_bound"] / math.log(2) / math.prod(experiment.shape)
    return scores, _probes(trained, dataset)


def _probes(trained: Trained, dataset: data.Dataset) -> Pictures:
    """The rate of each unit, traversals of live and dead units, and reconstructions.

    A traversal begins at the posterior mean of the first test image and sets one unit to each of
    TRAVERSED. An autoregressive decoder draws all its images from the same random numbers, so that
    only the latent differs.
    """
    experiment, params = trained.experiment, trained.params
    examples = data.arrays(dataset.test, POSTERIORS)
    x = transforms.to_float(jnp.asarray(examples["image"]))
    classes = experiment.num_classes
    cond = experiment.conditions.of_labels(examples["label"]) if classes else None

    def first(count: int, index: np.ndarray) -> Cond:
        return jax.tree.map(lambda c: jnp.asarray(c)[jnp.asarray(index[:count])], cond)

    mean, log_variance = jax.jit(
        lambda params, x, cond: autoencoder.networks(experiment, params).encode(x, cond)
    )(params, x, cond)
    rates = np.asarray(variational.kl(mean, log_variance).mean(0)).ravel()
    order = np.argsort(-rates, kind="stable")
    units = np.concatenate([order[:LIVE], order[-DEAD:]])
    z = np.repeat(np.asarray(mean[:1]), len(units) * len(TRAVERSED), axis=0)
    z.reshape(len(z), -1)[np.arange(len(z)), np.repeat(units, len(TRAVERSED))] = np.tile(
        TRAVERSED, len(units)
    )
    same = jax.random.split(jax.random.key(0), 1)[np.zeros(len(z), int)]
    traversed = jax.jit(
        lambda params, z, keys, cond: autoencoder.decode_latents(experiment, params, z, keys, cond)
    )(params, jnp.asarray(z), same, first(len(z), np.zeros(len(z), int)))
    keys = arrays.example_keys(jax.random.key(0), RECONSTRUCTED)
    few = np.arange(min(RECONSTRUCTED, len(x)))
    again = autoencoders.reconstruct_fn(experiment)(
        params, x[: len(few)], first(len(few), few), keys[: len(few)]
    )
    return {
        "rates": rates,
        "units": units,
        "traversals": np.asarray(transforms.to_uint8(np.asarray(traversed))).reshape(
            len(units), len(TRAVERSED), *experiment.shape
        ),
        "reconstructions": np.asarray(transforms.to_uint8(np.asarray(again))),
    }
