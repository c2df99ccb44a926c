"""A trained model that draws on request, as the local page needs it: settings -> images.

A program is compiled once for a sampler and a batch size, and serves every grid, budget and scale
of the guidance. An image has the same bits as that of the command line which belongs to it.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from diffusion_jax.assembly import components, denoiser, sampling
from diffusion_jax.assembly.build import build
from diffusion_jax.assembly.experiment import need_images
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.core import parsing
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Cond, Key
from diffusion_jax.data import transforms
from diffusion_jax.data.padding import padded_batches
from diffusion_jax.evaluation import generate
from diffusion_jax.inverse import measurements
from diffusion_jax.report import movies, pictures
from diffusion_jax.samplers import base
from diffusion_jax.studies import animation, generation
from diffusion_jax.studies.app import requests
from diffusion_jax.studies.app.requests import MOST_EVALUATIONS, DrawingRequest
from diffusion_jax.studies.edits import requests as edit_requests
from diffusion_jax.studies.edits import restoration
from diffusion_jax.studies.edits.job import Job, job_for

KEPT = 64  # compiled programs of each kind
LARGEST = 16_000_000  # pixels of an uploaded image
FRAMES = 10  # states of the strip of a trajectory
SHOWN = MOST_EVALUATIONS + 1  # times of the longest trajectory
WIDE, HIGH, LARGE, SMALL = 1300, 440, 224, 96  # pixels of pictures, of one image and of a frame


class Drawn(NamedTuple):
    """The result of a request.

    Attributes:
      images: (N, H, W, C) uint8.
      picture: all of them, as the command line writes them.
      seconds: the time that drawing took, without compilation.
      compilation: the time that compiling took; 0 where the program was there.
      evaluations: network evaluations of each image; None where a tolerance decides. (A program
        that counts them rounds otherwise than that of the command line.)
      command: the command line that draws the same.
    """

    images: np.ndarray
    picture: Image.Image
    seconds: float
    compilation: float
    evaluations: int | None
    command: str


class _Wanted(NamedTuple):
    """Samples that are requested: the sampler, its method, and keys, conditions and labels (N,)."""

    sampler: str
    resolved: sampling.SamplingMethod
    keys: Key
    cond: Cond
    labels: np.ndarray


class InteractiveModel:
    """A trained model with the programs that it has compiled.

    Args:
      trained: a model of images.
      config: its config, with the values that the command line has set.
      workdir: its folder, as the user named it.
      overridden: the config keys that the command line has set.

    Raises:
      UserError: for a model of points, and for a classifier.
    """

    def __init__(
        self,
        trained: Trained,
        config: ConfigDict,
        workdir: str,
        overridden: Iterable[str] = (),
    ) -> None:
        _need_drawing(trained, workdir)
        self.trained, self.experiment, self.workdir = trained, trained.experiment, workdir
        self.mesh = sampling.sampling_mesh(config)
        self.overrides = requests.overriding(config, overridden)
        self.classes: list[str] = list(trained.data.get("class_names") or ())
        self._compiled: set[Any] = set()
        self._program = functools.lru_cache(KEPT)(self._make_program)
        self._follow = functools.lru_cache(KEPT)(self._make_follow)
        self._inpainter = functools.lru_cache(KEPT)(self._make_inpainter)

    @property
    def can_inpaint(self) -> bool:
        """Whether the model has the flow, and sees the pixels, that inpainting needs."""
        return self.experiment.kind.has_flow and self.experiment.latents is None

    def request(self) -> DrawingRequest:
        """The request with the settings that the model was trained with."""
        own = self.experiment.sampling
        few = {"nfe": min(own.nfe, MOST_EVALUATIONS), "guidance": own.guidance}
        return DrawingRequest(sampler=own.name, grid=own.grid, **few)

    # ---- images
    def draw(self, request: DrawingRequest) -> Drawn:
        """Draw images.

        Args:
          request: what to draw.

        Raises:
          UserError: for settings and conditions that do not exist or that the model cannot use.
        """
        requests.check(request)
        wanted = self._wanted(request)
        resolved, keys, cond = wanted.resolved, wanted.keys, wanted.cond
        batch_size = min(self.experiment.sampling.batch_size, len(keys))
        run, ts = self._program(wanted.sampler, resolved.guided), self._padded(resolved)
        scale = np.float32(resolved.guidance)
        compilation = self._compile(
            (wanted.sampler, resolved.guided, batch_size, len(ts)),
            lambda start: run(*_first(keys, cond, batch_size), start, scale),
            ts,
        )
        began = time.monotonic()
        images = generate.generate(
            lambda keys, cond: run(keys, cond, ts, scale),
            keys,
            cond,
            batch_size=batch_size,
            progress=False,
        )
        seconds = time.monotonic() - began
        return Drawn(
            images,
            arranged(images, wanted.labels, [*self.classes, "any"], request.prompts),
            seconds,
            compilation,
            sampling.evaluations(resolved) if self.experiment.kind.denoises else 1,
            requests.sample_command(self.experiment, self.workdir, request, self.overrides),
        )

    def _wanted(self, request: DrawingRequest) -> _Wanted:
        """The samples of a request, as experiments.sample makes them of its flags."""
        first, model = int(request.seed), self.experiment
        seeds = [*range(first, first + int(request.num))] * max(len(request.prompts), 1)
        labels = parsing.labels("labels", request.labels, self.classes)
        chosen, cond = generation.requested_conditions(model, labels, request.prompts, len(seeds))
        settings = requests.settings(model, request)
        keys = generate.seeds_to_keys(seeds)
        return _Wanted(settings.name, sampling.method(model, settings), keys, cond, chosen)

    def _make_program(self, sampler: str, guided: bool) -> Callable[..., Any]:
        """The function (keys, cond, ts, scale) -> images."""
        method = self._method(sampler, guided)
        return sampling.program(self.experiment, self.trained.params, method, self.mesh)

    def _make_follow(self, sampler: str, guided: bool) -> Callable[..., Any]:
        """The function (keys, cond, ts, scale) -> what `trajectory` shows of each time."""
        return sampling.trajectory_program(
            self.experiment,
            self.trained.params,
            self._method(sampler, guided),
            animation.pictured,
            self.mesh,
            padded=True,
        )

    def _method(self, sampler: str, guided: bool) -> sampling.SamplingMethod:
        """The part of a method that its program depends on."""
        settings = self.experiment.sampling
        if self.experiment.kind.denoises:
            settings = sampling.with_sampler(settings, sampler)
        resolved = sampling.method(self.experiment, settings._replace(grid="auto", nfe=1))
        return resolved._replace(guided=guided)

    def _padded(self, resolved: sampling.SamplingMethod, length: int = 0) -> np.ndarray:
        """The times of a method, padded to those of the largest budget."""
        length = length or base.points(resolved.sampler, MOST_EVALUATIONS)
        return np.asarray(sampling.pad(jnp.asarray(resolved.ts), max(length, len(resolved.ts))))

    def _compile(self, key: Any, run: Callable[[np.ndarray], Any], ts: np.ndarray) -> float:
        """Compile a program by a run without a move, unless it is there; return the seconds."""
        if key in self._compiled:
            return 0.0
        began = time.monotonic()
        jax.block_until_ready(run(np.full_like(ts, ts[-1])))  # a grid of one time has no move
        self._compiled.add(key)
        return time.monotonic() - began

    def trajectory(self, request: DrawingRequest) -> Image.Image:
        """Draw x_t and x0-hat of the first image of a request, at some of the sampler's times.

        Above a column stands the noise level sigma / alpha. An adaptive sampler is stopped at these
        times, as in an animation.

        Args:
          request: what is drawn.

        Raises:
          UserError: as `draw`, and for a model that is not a denoiser.
        """
        requests.check(request)
        denoiser.need_denoiser(self.experiment)
        wanted = self._wanted(request._replace(num=1, prompts=request.prompts[:1]))
        resolved = wanted.resolved
        if base.adaptive(resolved.sampler):
            resolved = resolved._replace(ts=sampling.grid(self.experiment, resolved.grid, FRAMES))
        run, ts = self._follow(wanted.sampler, resolved.guided), self._padded(resolved, SHOWN)
        states = run(wanted.keys, wanted.cond, ts, np.float32(resolved.guidance))[0]
        shown = movies.evenly(len(resolved.ts), FRAMES)
        times, process = jnp.asarray(resolved.ts)[shown], self.experiment.process
        levels = np.asarray(process.sigma(times) / process.alpha(times))
        frames = np.concatenate(np.moveaxis(states[shown], 1, 0))
        return pictures.image_grid(
            frames,
            len(shown),
            scale=max(1, SMALL // frames.shape[1]),
            row_labels=["x\u209c", "x\u0302\u2080"],
            column_labels=[f"{level:.2g}" for level in levels],
        )

    # ---- inpainting
    def read_image(self, file: str | Path) -> np.ndarray:
        """Read an image of the user's in the size and the channels of the model, as edit does.

        Args:
          file: the picture file.

        Returns:
          (H, W, C) uint8.

        Raises:
          UserError: for a file that is no picture, or has too many pixels.
        """
        try:
            with transforms.open_image(file) as picture:
                width, height = picture.size
        except transforms.UnreadableImage as error:
            raise UserError("the uploaded file cannot be read as a picture") from error
        if width * height > LARGEST:
            raise UserError(
                f"the uploaded picture has {width}x{height} pixels; upload one of at most "
                f"{LARGEST // 1_000_000} million"
            )
        return edit_requests.read_images([str(file)], self.experiment.shape)[0]

    def inpaint(self, request: DrawingRequest, image: np.ndarray, unknown: np.ndarray) -> Drawn:
        """Draw a part of an image anew.

        Args:
          request: how; `num` is the number of results, and all have the seed of the request.
          image: (H, W, C) uint8.
          unknown: (H, W) bool, where the image is drawn anew.

        Returns:
          The results; the picture shows what is known, then the results.

        Raises:
          UserError: for settings and conditions that the model cannot use, and for a mask that
            leaves nothing to draw or nothing to start from.
        """
        requests.check(request)
        with tempfile.TemporaryDirectory() as folder:
            mask = edit_requests.mask_for(save_mask(unknown, folder), self.experiment.shape)
        measurement = measurements.inpaint(self.experiment.shape, mask)
        method = edit_requests.method_for(request.method, measurement, "inpaint")
        job, spent = restoration.with_budget(self._job(request, image), method, measurement)
        resolved, keys = job.sampling, (request.method, request.sampler, job.sampling.guided)
        run = self._inpainter(*keys)
        wrapped = method.wrap(resolved.sampler, measurement, None)
        ts = self._padded(resolved, base.points(wrapped, MOST_EVALUATIONS))
        y = restoration.measure(job, measurement)

        def drawn(ts: np.ndarray, draw: int) -> np.ndarray:
            return restoration.restored(
                job._replace(sampling=resolved._replace(ts=ts)),
                method,
                measurement,
                y,
                restoration.keys_of_draw(job, draw),
                run=lambda *given: run(*given, mask),
                progress=False,
            )

        compilation = self._compile(keys, lambda start: drawn(start, 0), ts)
        began = time.monotonic()
        results = [drawn(ts, draw)[0] for draw in range(int(request.num))]
        seconds, given = time.monotonic() - began, transforms.to_uint8(y)[0]
        picture = pictures.image_grid(
            np.stack([given, *results]),
            1 + len(results),
            scale=max(1, LARGE // (2 * len(given))),
            column_labels=["known", *[""] * len(results)],
        )
        command = requests.edit_command(self.experiment, self.workdir, request, self.overrides)
        return Drawn(np.stack(results), picture, seconds, compilation, spent, command)

    def _job(self, request: DrawingRequest, image: np.ndarray) -> Job:
        """The job of one image, with the sampling settings of a request."""
        model = self.experiment._replace(sampling=requests.settings(self.experiment, request))
        return job_for(
            self.trained._replace(experiment=model),
            None,
            np.arange(1),
            request.labels,
            request.prompts,
            [int(request.seed)],
            image[None],
        )

    def _make_inpainter(self, method: str, sampler: str, guided: bool) -> Callable[..., Array]:
        resolved = self._method(sampler, guided)
        return restoration.inpainter(self.experiment, resolved, build(components.METHODS, method))


def _need_drawing(trained: Trained, workdir: str) -> None:
    """Raise UserError for a model of points, and for a classifier."""
    need_images(trained.experiment)
    if trained.experiment.kind.classifies:
        raise UserError(f"--workdir={workdir} is a classifier, which draws nothing")


def arranged(
    images: np.ndarray, labels: np.ndarray, names: Sequence[str], prompts: Sequence[str]
) -> Image.Image:
    """The picture of images: a column for each class, or a row for each prompt, where that fits.

    Args:
      images: (N, H, W, C) uint8.
      labels: (N,), or (0,) without classes.
      names: the names of the classes by number.
      prompts: captions, each of N / len(prompts) images in a row.
    """
    classes = len(set(labels.tolist()))
    columns = animation.columns_for(len(images), classes, len(prompts))
    if classes < 2 and not prompts:
        columns = max(columns, min(len(images), 10))
    rows = -(-len(images) // columns)
    height, width = images.shape[1:3]
    scale = max(1, min(WIDE // (columns * width), HIGH // (rows * height), LARGE // height))
    heads = [names[label] for label in labels[:columns]] if columns == classes > 1 else None
    return pictures.image_grid(
        images, columns, scale=scale, column_labels=heads, row_labels=prompts or None
    )


def save_mask(unknown: np.ndarray, folder: str | Path) -> str:
    """Write the mask that experiments.edit takes: white where pixels are known.

    Args:
      unknown: (H, W) bool.
      folder: the folder to write to.

    Returns:
      The path of the file.
    """
    path = Path(folder) / "mask.png"
    pictures.save(Image.fromarray(np.where(unknown, 0, 255).astype(np.uint8)), path)
    return str(path)


def _first(keys: Key, cond: Cond, batch_size: int) -> tuple[Key, Cond]:
    """The keys and conditions of the first batch, as generate takes them."""
    index = next(padded_batches(len(keys), batch_size)).index
    return keys[index], jax.tree.map(lambda values: values[index], cond)
