"""The commands that train: a model, all parts of latent diffusion, a classifier; and encode."""

from __future__ import annotations

import shlex
from collections.abc import Container
from pathlib import Path

from ml_collections import ConfigDict

from diffusion_jax.assembly import train as assembly_train
from diffusion_jax.assembly import train_classifier as assembly_classifier
from diffusion_jax.assembly import train_latent as assembly_latent
from diffusion_jax.assembly.workdir import saved_config
from diffusion_jax.core.errors import UNFINISHED, CommandExit
from diffusion_jax.studies import evaluation, generation
from diffusion_jax.training import distributed

# what a run may write, as a reader looks at it
WRITTEN = ("loss.png", "metrics.jsonl", "samples/", "reconstructions/", "checkpoints/")


def train(config: ConfigDict, workdir: str, *, asked: Container[str] = ()) -> None:
    """Train a model, or resume the run in the workdir.

    Args:
      config: the config of the run.
      workdir: the folder of the run.
      asked: the config keys that the user has set.

    Raises:
      CommandExit: if a signal stopped the training; running it again resumes.
    """
    if not assembly_train.train(config, workdir, asked=asked):
        raise CommandExit(UNFINISHED)
    if distributed.first():
        made = [name for name in WRITTEN if (Path(workdir) / name).exists()]
        print(f"{workdir}: {', '.join(made)}; to draw from the model:")
        print(f"python -m experiments.sample --workdir={shlex.quote(str(workdir))}")


def train_until(
    config: ConfigDict, workdir: str, until: int, *, asked: Container[str] = ()
) -> None:
    """Train a model to a step before its end; `train` or another call resumes it.

    Args:
      config: the config of the run.
      workdir: the folder of the run.
      until: the step, a multiple of config.training.steps_per_call.
      asked: the config keys that the user has set.

    Raises:
      CommandExit: if a signal stopped the training; running it again resumes.
    """
    if not assembly_train.train(config, workdir, until=until, asked=asked):
        raise CommandExit(UNFINISHED)


def train_latent(config: ConfigDict, workdir: str, images: str = "", num: int = 1000) -> None:
    """Train an autoencoder and a diffusion model of its latents, then sample and evaluate.

    Args:
      config: the config of the diffusion model; config.latent.recipe names the autoencoder's.
      workdir: the folder of all parts.
      images: data.path of the images, for data sets that need one.
      num: number of images in each set that is evaluated.

    Raises:
      CommandExit: if a signal stopped the training; running it again resumes.
    """
    model = assembly_latent.train_latent(config, workdir, images)
    if model is None:
        raise CommandExit(UNFINISHED)
    own = saved_config(model)
    generation.sample(own, workdir=str(model))
    evaluation.evaluate(own, workdir=str(model), num=num)


def train_classifier(config: ConfigDict, workdir: str, pool: str = "attention") -> None:
    """Train a noise-conditional classifier and print its held-out accuracy by noise level.

    Args:
      config: the config of a diffusion model of the same data.
      workdir: the folder of the run.
      pool: how the last feature map becomes a vector: 'attention' or 'mean'.

    Raises:
      CommandExit: if a signal stopped the training; running it again resumes.
    """
    text = assembly_classifier.train_classifier(config, workdir, pool)
    if text is None:
        raise CommandExit(UNFINISHED)
    print(f"{text}\n{workdir}/checkpoints/ has the classifier; to sample with its guidance:")
    guide = f"classifier(workdir='{workdir}')"
    print(f'python -m experiments.sample --workdir=MODEL --config.sampler.guide="{guide}"')


def encode(
    config: ConfigDict, workdir: str, out: str, half: bool = False, flips: bool = False
) -> None:
    """Encode a data set by a trained autoencoder.

    Args:
      config: the config of the autoencoder, with the data that are to be encoded.
      workdir: the folder of the autoencoder.
      out: the file to write, .npz.
      half: keep the latents in float16.
      flips: keep those of the mirrored training images as well, for data.flip=True.
    """
    size = config.sampler.batch_size
    how = {"half": half, "flips": flips, "batch_size": size}
    file = assembly_latent.encode(config, workdir, out, **how)
    print("to train a diffusion model of these latents, with one of the configs of latents:")
    keys = f"--config.data.path={file} --config.latent.autoencoder={workdir}"
    print(f"python -m experiments.train --config=configs/fashion_latent.py {keys} --workdir=FOLDER")
