"""Methods for inverse problems on held-out series, volumes, vectors, rows of tables and sounds."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffusion_jax import data
from diffusion_jax.assembly import sampling
from diffusion_jax.data import Dataset
from diffusion_jax.evaluation.restored import rmse
from diffusion_jax.report import media
from diffusion_jax.studies import store
from diffusion_jax.studies.edits import arrays, restoration
from diffusion_jax.studies.edits.job import Job, psnr_of
from diffusion_jax.studies.edits.requests import measurement_for, method_for, of_table
from diffusion_jax.studies.inverse.table import Problem, solved, timed_row

MEAN_OF = 10_000  # training samples of whose mean a baseline is made, at most
SHOWN = 5  # samples of a strip


def make_rows(
    job: Job,
    dataset: Dataset,
    tasks: Mapping[str, tuple[str, str]],
    methods: Sequence[str],
    table: store.Table,
) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Make rows for the measurement, the baselines and the methods of every task.

    Args:
      job: the samples and the model.
      dataset: its data set.
      tasks: {name: (task, mask)}.
      methods: the methods.
      table: keeps the rows.

    Returns:
      Rows {'task', 'method', 'evaluations', 'psnr' and 'rmse' of each sample, 'shown': tiles of the
      first samples}, and the tiles of their truth (SHOWN, h, w, C) uint8.
    """
    model = job.trained.experiment
    mean = data.arrays(dataset.train, MEAN_OF)["image"].mean(0)
    tiles = media.media_of(model.shape, model.normalization).tiles
    truth, rows = sampling.to_output(model)(job.images), []
    for place, (name, (task, mask)) in enumerate(tasks.items()):
        measurement = measurement_for(task, mask, model.shape, of_table(model.normalization))
        y = restoration.measure(job, measurement)
        known = arrays.known_by(measurement, task, model.shape)
        given = restoration.as_image(measurement, y, model.shape)
        row = functools.partial(_row, job, truth, known)
        measured = functools.partial(dict, shown=tiles(given[:SHOWN]).tolist())
        rows.append(timed_row(table, {"task": name, "method": "y"}, measured, "measured"))
        trivial = arrays.without_model(measurement, y, known, given, mean)
        for method, values in trivial.items():
            own = functools.partial(row, np.asarray(values, np.float32))
            rows.append(timed_row(table, {"task": name, "method": method}, own, "baseline"))
        for spec in methods:
            problem = Problem(name, measurement, method_for(spec, measurement, task), y)
            of = f"task {place + 1} of {len(tasks)}:"
            rows.append(solved(job, spec, problem, row, table, of))
    return rows, tiles(truth[:SHOWN])


def _row(
    job: Job, truth: np.ndarray, known: np.ndarray | None, values: np.ndarray
) -> dict[str, Any]:
    """Score samples by the PSNR of all values and the RMSE of those that were not measured."""
    model = job.trained.experiment
    counted = np.ones(model.shape, bool) if known is None else ~known
    each = {"psnr": psnr_of(model, values, truth)}
    each["rmse"] = np.nanmean(rmse(values, truth, counted), 1)  # over channels
    scores = {name: own.astype(float).round(5).tolist() for name, own in each.items()}
    tiles = media.media_of(model.shape, model.normalization).tiles
    return scores | {"shown": tiles(values[:SHOWN]).tolist()}
