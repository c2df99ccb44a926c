"""The cells of a sweep: what each of them samples, its images, and its scores, kept on disk.

All cells draw the same seeds. A cell that is measured on more images than before continues its own
set: what scores need of its images is kept in blocks (scoring.py) until the sweep is complete. Its
scores are in one file, by a name that depends on everything its images depend on: the run, its
checkpoint and the sampling settings. Several processes may measure the cells of one folder at a
time: whoever comes second waits for the first and reads its result.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_jax.assembly import denoiser, origins, sample_conditions, sampling, stored
from diffusion_jax.assembly import experiment as experiments
from diffusion_jax.assembly import workdir as workdirs
from diffusion_jax.assembly.settings import SamplingSettings
from diffusion_jax.assembly.workdir import Trained
from diffusion_jax.core import npz, reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array, Cond, Key
from diffusion_jax.data import Dataset
from diffusion_jax.evaluation.estimators import Measurements
from diffusion_jax.evaluation.intervals import GROUPS
from diffusion_jax.evaluation.judge import Judge
from diffusion_jax.samplers import base
from diffusion_jax.studies import blocks, scoring, store
from diffusion_jax.training import distributed, post_hoc, sharding

SHOWN = 10  # images of a cell that pictures show
VERSION = 2  # of how cells are drawn and judged: cells of another version are not used


class SweepCell(NamedTuple):
    """One combination of settings of a sweep.

    Attributes:
      number: its number in the space.
      settings: the value of every key that the sweep varies.
      workdir: the folder of the trained model.
      config: the config of the model with the settings.
      sampling: the sampling settings.
      guide: the spec of the guide.
      first: the first seed of its images.
    """

    number: int
    settings: dict[str, Any]
    workdir: Path
    config: ConfigDict
    sampling: SamplingSettings
    guide: str
    first: int = 0


class Scoring(NamedTuple):
    """How the images of all cells are judged.

    Attributes:
      judged: what scores them.
      metric: the score that is optimized.
      about: what the scores depend on besides the images, as plain data.
      real: the scores of real test images.
    """

    judged: Judge
    metric: str
    about: dict[str, Any]
    real: Measurements


class CellScores(NamedTuple):
    """What is known of a cell from a number of its images.

    Attributes:
      images: how many images.
      scores: the scores of all of them; {} where the cell failed.
      intervals: half the width of the 95 % interval of each score that has one.
      left_out: the optimized score without each of GROUPS groups; () for too few images.
      evaluations: network evaluations of an image.
      seconds: time to draw an image in the fastest batch, without compilation.
      note: why the cell failed; '' if it did not.
      shown: its first images.
    """

    images: int
    scores: dict[str, float]
    intervals: dict[str, float] = {}
    left_out: tuple[float, ...] = ()
    evaluations: float | None = None
    seconds: float | None = None
    note: str = ""
    shown: np.ndarray = scoring.NO_IMAGES


def make(
    number: int, settings: Mapping[str, Any], workdir: Path, config: ConfigDict, first: int = 0
) -> SweepCell:
    """The cell of these settings.

    Args:
      number: its number in the space.
      settings: the value of every key that the sweep varies.
      workdir: the folder of the trained model.
      config: the config of the model, which has the settings already.
      first: the first seed of its images.
    """
    chosen = experiments.sampling_settings(config)
    return SweepCell(number, dict(settings), workdir, config, chosen, config.sampler.guide, first)


# ---- drawing
class Clock:
    """The evaluations of all batches, and the time of the fastest, which is disturbed least."""

    def __init__(self) -> None:
        self.images, self.evaluations, self.seconds = 0, 0.0, float("inf")

    def add(self, seconds: float, evaluations: np.ndarray) -> None:
        """Add a batch.

        Args:
          seconds: the time that drawing it took.
          evaluations: network evaluations of each image, (B,).
        """
        self.images += len(evaluations)
        self.evaluations += float(np.sum(evaluations))
        self.seconds = min(self.seconds, seconds / len(evaluations))


class CellSampler:
    """Draws the images of cells.

    The last model stays loaded, and a program is compiled once for all grids, scales and weights,
    so cells are best drawn in the order of `order`.
    """

    def __init__(
        self, cells: Sequence[SweepCell], dataset: Dataset, first: int, mesh: Mesh
    ) -> None:
        """Prepare to draw.

        Args:
          cells: all cells that may be drawn.
          dataset: the data of their conditions.
          first: the images that a cell begins with, which are one batch if they are fewer than
            config.sampler.batch_size.
          mesh: the devices that draw.
        """
        self._dataset, self._first, self._mesh = dataset, first, mesh
        self._model, self._programs = (None, None), {}
        self._lengths: dict[tuple, int] = {}
        for cell in cells:
            length = base.points(cell.sampling.sampler, cell.sampling.nfe)
            self._lengths[_method(cell)] = max(length, self._lengths.get(_method(cell), 0))

    def model(self, cell: SweepCell) -> Trained:
        """The trained model of a cell, with its weights and its guide.

        Args:
          cell: names the workdir, the weights, the checkpoint and the guide.
        """
        step = stored.identity(cell.workdir, cell.sampling.checkpoint)
        key = (*order(cell)[:4], step)  # a run may have been trained further
        if self._model[0] != key:
            self._model = key, workdirs.load(cell.workdir, cell.config, self._mesh)
        return self._model[1]

    def labels(self, cell: SweepCell, count: int) -> np.ndarray | None:
        """The labels of the first images of a cell, (count,), or None.

        Args:
          cell: the cell, whose model says whether there are labels.
          count: the number of images, from the first seed on.
        """
        return sample_conditions.for_judging(self.model(cell).experiment, self._dataset, count)[0]

    def plan(self, cell: SweepCell, images: int) -> tuple[scoring.Plan, Clock]:
        """Return the plan of a cell's first images, and the clock that times their drawing.

        Args:
          cell: the cell.
          images: how many.

        Raises:
          UserError: where its model cannot use its settings.
        """
        trained = self.model(cell)
        model, clock = trained.experiment, Clock()
        method = _need_step(sampling.method(model, cell.sampling), cell)
        run = self._program(cell, trained, method)
        params, scale = denoiser.ensemble(model, trained.params), np.float32(method.guidance)
        ts = np.asarray(sampling.pad(method.ts, self._lengths[_method(cell)]))

        def draw(keys: Key, cond: Cond) -> Array:
            if run.compiled != len(keys):  # before the clock starts: one time has no step
                run.draw(params, (keys, cond), np.full_like(ts, ts[-1]), scale)
                run.compiled = len(keys)
            began = time.monotonic()
            drawn, evaluations = run.draw(params, (keys, cond), ts, scale)
            clock.add(time.monotonic() - began, evaluations)
            return drawn

        seeds = range(cell.first, cell.first + images)
        size, kept = min(cell.sampling.batch_size, self._first), scoring.kept_of(model)
        own = model._replace(sampling=cell.sampling)  # the model is that of a cell before
        conditions = functools.partial(sample_conditions.at, own, self._dataset)
        return scoring.Plan(draw, seeds, conditions, size, {}, *kept), clock

    def _program(
        self, cell: SweepCell, trained: Trained, method: sampling.SamplingMethod
    ) -> _Program:
        key = (cell.workdir, cell.guide, method.guided, *_method(cell))
        if key not in self._programs:
            run = sampling.sample_fn(
                trained.experiment,
                method.sampler,
                guided=method.guided,
                clip=method.clip,
                noise=method.noise,
                count=True,
            )
            self._programs[key] = _Program(sharding.spread(run, self._mesh))
        return self._programs[key]


class _Program:
    """A compiled program: how it draws, and the batch size that it was compiled for."""

    def __init__(self, draw: Callable) -> None:
        self.draw, self.compiled = draw, 0


def _need_step(method: sampling.SamplingMethod, cell: SweepCell) -> sampling.SamplingMethod:
    """Refuse a budget that no step of the sampler fits."""
    sampler, nfe = method.sampler, cell.sampling.nfe
    if not base.adaptive(sampler) and nfe > 1 and len(method.ts) < 2:
        step = sampler.nfe + sum(sampler.warmup[:1])
        raise UserError(f"no step fits: one takes {step} evaluations, and x0-hat one")
    return method


def _method(cell: SweepCell) -> tuple:
    """What a program of the sampler depends on besides the model."""
    return (cell.sampling.name, cell.sampling.clip, cell.sampling.noise)


def order(cell: SweepCell) -> tuple:
    """A key by which cells are sorted, so that neighbors share models and programs.

    Args:
      cell: the cell; its grid, budget and scale have no influence.
    """
    chosen = cell.sampling
    return (str(cell.workdir), chosen.weights, chosen.checkpoint, cell.guide, *_method(cell))


# ---- measuring
def measure(
    cell: SweepCell, images: int, sampler: CellSampler, scored: Scoring, folder: Path
) -> CellScores:
    """Measure a cell on so many images, of which those of an earlier measurement are kept.

    A cell whose samples are not finite, or whose settings do not fit together, gets a note.

    Args:
      cell: the cell.
      images: how many images.
      sampler: draws them.
      scored: judges them.
      folder: where cells are kept.
    """
    path = cell_path(cell, scored, folder)
    alone = store.locked(path) if distributed.first() else contextlib.nullcontext()
    with alone:
        kept = (store.load(path, _read) or ()) if distributed.first() else ()
        found = next((each for each in kept if each.images == images), None)
        if distributed.from_first(found is not None):
            return found or next(each for each in _read(path) if each.images == images)
        try:
            new = _measured(cell, images, sampler, scored, path.with_suffix(""))
        except UserError as error:
            new = CellScores(images, {}, note=str(error))
        times = [each.seconds for each in (*kept, new) if each.seconds is not None]
        new = new._replace(seconds=min(times, default=None))
        if distributed.first():
            _save(path, (*kept, new))
        return new


def _measured(
    cell: SweepCell, images: int, sampler: CellSampler, scored: Scoring, folder: Path
) -> CellScores:
    """Draw and judge the images of a cell that its blocks do not hold."""
    plan, clock = sampler.plan(cell, images)
    found = scoring.score(plan, scored.judged, folder, shown=SHOWN, description="")
    measured = found.measured.get(scored.metric)
    method = sampling.method(sampler.model(cell).experiment, cell.sampling)
    evaluations = sampling.evaluations(method)
    if evaluations is None and clock.images:
        evaluations = clock.evaluations / clock.images
    return CellScores(
        images,
        found.scores,
        found.intervals,
        tuple(map(float, measured.left_out)) if measured else (),
        evaluations,
        clock.seconds if clock.images else None,
        "" if measured else f"{scored.metric} needs more than {images} images",
        found.shown,
    )


def known(cell: SweepCell, scored: Scoring, folder: Path) -> tuple[CellScores, ...]:
    """All measurements of a cell that a folder holds, by increasing numbers of images.

    Args:
      cell: the cell.
      scored: how it was judged.
      folder: where cells are kept.
    """
    kept = store.load(cell_path(cell, scored, folder), _read) or ()
    return tuple(sorted(kept, key=lambda each: each.images))


def discard_blocks(cell: SweepCell, scored: Scoring, folder: Path) -> None:
    """Remove what would be needed to extend the images of a cell; its scores stay.

    Args:
      cell: the cell.
      scored: how it was judged.
      folder: where cells are kept.
    """
    blocks.discard(cell_path(cell, scored, folder).with_suffix(""))


def cell_path(cell: SweepCell, scored: Scoring, folder: Path) -> Path:
    """The file of a cell, by everything that its images and scores depend on.

    The model itself is not loaded for it: the number of its checkpoint stands for its weights.

    Args:
      cell: the cell.
      scored: how it is judged.
      folder: where cells are kept.
    """
    config = cell.config.to_dict()
    config["sampler"].pop("batch_size")
    made_of_snapshots = post_hoc.length_of(cell.sampling.weights) is not None
    identity = {
        "version": VERSION,
        "config": config,
        "step": stored.identity(cell.workdir, cell.sampling.checkpoint),
        "snapshots": post_hoc.steps(cell.workdir / "ema_snapshots") if made_of_snapshots else None,
        "first": cell.first,
        "judged": scored.about,
        **origins.of_weights(cell.workdir, cell.config),
        **origins.of_times(cell.sampling, workdirs.grid_folders(cell.workdir)),
    }
    return store.cell_path(folder, identity)


_SCORES = reading.table(reading.number(finite=False))
_RUNG = reading.record(
    {
        "images": reading.integer(1),
        "scores": _SCORES,
        "intervals": _SCORES,
        "left_out": reading.items(reading.number(finite=False), most=GROUPS),
        "evaluations": reading.optional(reading.number(0)),
        "seconds": reading.optional(reading.number(0)),
        "note": reading.text(),
    }
)
_RULE = reading.record({"rungs": reading.items(_RUNG, least=1)})


def _save(path: Path, rungs: Sequence[CellScores]) -> None:
    records = [{k: v for k, v in rung._asdict().items() if k != "shown"} for rung in rungs]
    store.save_cell(path, "cell", {"rungs": records}, {"shown": rungs[-1].shown})


def _read(path: Path) -> tuple[CellScores, ...]:
    """The measurements of a cell's file; UserError for one that is damaged."""
    shown = {"shown": npz.ArraySpec("u", (None, None, None, None))}
    found, arrays = store.read_cell(path, "cell", _RULE, shown)
    return tuple(
        CellScores(**rung | {"left_out": tuple(rung["left_out"])}, **arrays)
        for rung in found["rungs"]
    )
