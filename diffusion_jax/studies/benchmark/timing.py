"""How the benchmark takes time, and what it measures on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax.assembly import datasets
from diffusion_jax.assembly.settings import Experiment
from diffusion_jax.core.progress import progress
from diffusion_jax.data import Dataset, toys
from diffusion_jax.data.sources import Arrays

NOISE_IMAGES = 50_000  # images of a data set of noise, fewer where they are large
NOISE_NUMBERS = 2 * 10**8  # numbers of such a data set, at most


class BenchmarkSettings(NamedTuple):
    """The settings of the command that apply to all parts.

    Attributes:
      samplers: the samplers, each with '@grid' if it has a grid of its own.
      nfe: network evaluations per image.
      shape: the shape of noise that takes the place of data; [] measures on the config's data.
      classes: number of classes of that noise.
      batch_size: images at once, of samplers.
      repeats: how often everything is timed.
      steps: training steps of the loop.
    """

    samplers: list[str]
    nfe: int
    shape: list[int]
    classes: int
    batch_size: int
    repeats: int
    steps: int


class BenchmarkSubject(NamedTuple):
    """The model and the data that a part measures.

    Attributes:
      title: the name of the config.
      config: the config.
      dataset: its data, or noise in its place.
      experiment: what the config describes, for these data.
      consumed: images per second that the train step consumes; None if that was not measured.
    """

    title: str
    config: ConfigDict
    dataset: Dataset
    experiment: Experiment
    consumed: float | None = None

    @property
    def words(self) -> str:
        """The model and its data, in words."""
        return f"{self.experiment.specs.model} on {self.data}"

    @property
    def data(self) -> str:
        """The shape and the name of the data, in words."""
        return f"{' x '.join(map(str, self.dataset.image_shape))} ({self.dataset.name})"


class Part(NamedTuple):
    """The result of a part: rows, {key: heading} of their table, and a sentence about them."""

    rows: list[dict[str, Any]]
    columns: Mapping[str, str]
    facts: str


def compiled(function: Callable, *args: Any) -> tuple[Callable, float]:
    """Compile a function for these arguments.

    Args:
      function: a function of arrays, which is compiled by `jax.jit`.
      *args: the arguments, whose shapes, types and shardings the compiled function has. Nothing is
        computed with their values.

    Returns:
      (the compiled function, seconds of tracing and compiling).
    """
    began = time.perf_counter()
    return jax.jit(function).lower(*args).compile(), time.perf_counter() - began


def timed(function: Callable[[], Any]) -> float:
    """Seconds until the results of a function are there.

    Args:
      function: has no arguments.
    """
    began = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - began


def take_turns(
    programs: Mapping[Any, Callable[[], Any]],
    rounds: int,
    seconds_of: Callable[[Callable[[], Any]], float] = timed,
) -> dict[Any, list[float]]:
    """Time programs in turn, so that other load on the machine affects all of them alike.

    Args:
      programs: name -> function without arguments, whose results are waited for.
      rounds: how often each is timed; each round begins with another program.
      seconds_of: runs a program and returns its time.

    Returns:
      name -> seconds of every round.
    """
    names = list(programs)
    seconds: dict[Any, list[float]] = {name: [] for name in names}
    for program in programs.values():  # first calls load and touch memory; they do not count
        jax.block_until_ready(program())
    with progress(rounds, "measuring", unit="rounds") as advance:
        for i in range(rounds):
            for name in names[i % len(names) :] + names[: i % len(names)]:
                seconds[name].append(seconds_of(programs[name]))
            advance(1)
    return seconds


def spread(seconds: Sequence[float]) -> float:
    """Compute the distance between the quartiles as a share of the median.

    Args:
      seconds: the times of all repeats, in any unit.

    Returns:
      The uncertainty of the times, at least 0; 0.1 means that the middle half of them spans 10 % of
      the median.
    """
    low, middle, high = np.quantile(seconds, (0.25, 0.5, 0.75))
    return float((high - low) / middle)


def dataset_for(config: ConfigDict, shape: Sequence[int] = (), classes: int = 10) -> Dataset:
    """The data set of a config if it is on this machine, else noise of its shape.

    Args:
      config: the config.
      shape: measure on noise of this shape instead.
      classes: number of classes of that noise.
    """
    if not shape and (config.data.path or config.data.name in ("digits", *toys.TOYS)):
        return datasets.dataset(config)
    return synthetic(*((tuple(shape), classes) if shape else datasets.data_shape(config)))


def synthetic(shape: tuple[int, ...], classes: int, size: int = NOISE_IMAGES) -> Dataset:
    """A data set of noise.

    Args:
      shape: (H, W, C) for uint8 images, or (D,) for points.
      classes: number of classes; 0 for none.
      size: number of examples, fewer where they are large.
    """
    rng, size = np.random.default_rng(0), max(256, min(size, NOISE_NUMBERS // int(np.prod(shape))))
    if len(shape) == 3:
        image = rng.integers(256, size=(size, *shape), dtype=np.uint8)
    else:
        image = rng.normal(size=(size, *shape)).astype(np.float32)
    label = rng.integers(classes, size=size) if classes else None
    source = Arrays(image, label)
    return Dataset("noise", source, source, tuple(shape), classes, tuple(map(str, range(classes))))
