"""Animations of a trained model's sampling: x_t and x0-hat side by side, from noise to data."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from PIL import Image

from diffusion_jax.assembly import denoiser, sampling
from diffusion_jax.assembly.experiment import Experiment
from diffusion_jax.assembly.sampling import SamplingMethod
from diffusion_jax.core.arrays import expand
from diffusion_jax.core.types import Array, Cond, Key, Params
from diffusion_jax.evaluation import generate
from diffusion_jax.report import movies
from diffusion_jax.samplers import base
from diffusion_jax.training import distributed

MOST = 256  # images of an animation
AT_ONCE = 64  # images whose whole trajectories are in the device's memory
FEWEST = 10  # an animation of fewer frames is slower, so that it takes as long as one of these


class Look(NamedTuple):
    """How an animation looks.

    Attributes:
      frames: number of frames, at most.
      fps: frames in a second.
      columns: images of a row.
      real: samples of the data, for a model of points (2,); others are shown by their tiles.
      tiles: samples -> the images that show them (report.media).
    """

    frames: int
    fps: float
    columns: int
    real: np.ndarray | None = None
    tiles: Callable[[np.ndarray], np.ndarray] = np.asarray


def animate(
    experiment: Experiment,
    params: Params,
    chosen: SamplingMethod,
    keys: Key,
    cond: Cond,
    path: Path,
    look: Look,
    mesh: Mesh | None = None,
) -> None:
    """Sample again and write the trajectories as a GIF, on the first process.

    A frame is a time at which the sampler evaluates the network, and the last one has the samples
    themselves. An adaptive sampler chooses times of its own for each image, so it is stopped at
    the times of the frames on its way; its samples then agree with those of the command within its
    tolerance.

    Args:
      experiment: the model, which must be a denoiser.
      params: its parameters.
      chosen: how to sample.
      keys: (N,), of which the first MOST are shown.
      cond: the conditions of the samples, or None.
      path: the file to write.
      look: the number of frames and how they look.
      mesh: the devices that draw; None for one device.

    Raises:
      UserError: for a model that is not a denoiser.
    """
    denoiser.need_denoiser(experiment)
    if base.adaptive(chosen.sampler):
        chosen = chosen._replace(ts=sampling.grid(experiment, chosen.grid, max(look.frames - 1, 2)))
        print("note: the animation stops the adaptive sampler at each frame", file=sys.stderr)
    if len(keys) > MOST:
        print(f"note: the animation shows the first {MOST} images", file=sys.stderr)
        keys, cond = keys[:MOST], cond and {name: each[:MOST] for name, each in cond.items()}
    shown = movies.evenly(len(chosen.ts), max(look.frames - 1, 1))
    show = pictured if experiment.is_image else _both
    states = generate.generate(
        sampling.trajectory_fn(experiment, params, chosen, show, mesh),
        keys,
        cond,
        batch_size=min(experiment.sampling.batch_size, AT_ONCE, len(keys)),
        finish=functools.partial(np.take, indices=shown, axis=1),
        description="animation",
    )
    if distributed.first():
        frames = _frames(experiment, chosen, states, shown, look)
        slower = max(1.0, FEWEST / len(frames))
        colors = 32 if experiment.is_image and states.shape[-1] == 1 else 128
        speed = {"fps": max(look.fps / slower, 1.0), "first": max(0.5, slower / look.fps)}
        movies.save_gif(frames, path, colors=colors, **speed)


def _frames(
    experiment: Experiment,
    chosen: SamplingMethod,
    states: np.ndarray,
    shown: np.ndarray,
    look: Look,
) -> list[Image.Image]:
    """The frames of states (N, S, 2, ...) at some of the times, and one of the samples."""
    x_t, x0 = np.moveaxis(states, (1, 2), (1, 0))
    x_t, x0 = np.concatenate([x_t, x0[-1:]]), np.concatenate([x0, x0[-1:]])
    captions = [f"step {i} of {len(chosen.ts)}" for i in [*shown, len(chosen.ts)]]
    if look.real is None or experiment.normalization is not None:
        x_t, x0 = (np.stack([look.tiles(each) for each in part]) for part in (x_t, x0))
        return movies.image_frames(x_t, x0, captions, look.columns)
    process, ts = experiment.process, jnp.asarray(chosen.ts)[shown]
    alpha, sigma = np.asarray(process.alpha(ts)), np.asarray(process.sigma(ts))
    zoom = np.append(movies.zoomed(alpha, sigma, look.real), 1.0)  # of the samples: none
    return movies.point_frames(x_t, x0, captions, zoom, look.real)


def pictured(experiment: Experiment, x: Array, x0: Array, t: Array) -> Array:
    """(B, 2, H, W, C) uint8: x_t, divided so that its noise is seen, and x0-hat; both decoded.

    An image is at most 1, and 2 sigma is the range of the noise. A decoder needs what has the scale
    of the latents instead, whose variance is 1.

    Args:
      experiment: the model, of images.
      x: x_t, (B, ...).
      x0: x0-hat, (B, ...).
      t: the time, a scalar.
    """
    process = experiment.process
    alpha, sigma = process.alpha(t), process.sigma(t)
    latent = experiment.latents is not None
    scale = jnp.hypot(alpha, sigma) if latent else jnp.maximum(alpha + 2 * sigma, 1.0)
    both = [sampling.decoded(experiment, each) for each in (x / expand(scale, x), x0)]
    return jnp.stack([_bytes(each) for each in both], 1)


def _bytes(images: Array) -> Array:
    """Images in [-1, 1] as uint8, as transforms.to_uint8 converts them on the host."""
    return jnp.round(jnp.clip(images, -1, 1) * 127.5 + 127.5).astype(jnp.uint8)


def _both(experiment: Experiment, x: Array, x0: Array, t: Array) -> Array:
    return jnp.stack([x, x0], 1)


def columns_for(count: int, classes: int, prompts: int) -> int:
    """Choose how many images stand in a row: a class or a seed in each column where that fits.

    Args:
      count: number of images.
      classes: the number of different labels that the images have in turn; 0 for none.
      prompts: the number of captions, each of which has count / prompts images in a row.
    """
    if prompts:
        return count // prompts
    if 1 < classes <= 12 and count >= 2 * classes:
        return classes
    return math.ceil(math.sqrt(count))
