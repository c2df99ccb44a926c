"""Series, volumes and vectors restored by a trained model: scores in their own units, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.core import npz
from diffusion_jax.core.types import Array
from diffusion_jax.data import columns as of_table
from diffusion_jax.data.normalization import Normalization
from diffusion_jax.evaluation import metrics
from diffusion_jax.evaluation.restored import crps, rmse
from diffusion_jax.inverse import baselines, measurements
from diffusion_jax.inverse.measurements import Measurement
from diffusion_jax.report import media, restored, row_figure
from diffusion_jax.report.tables import markdown_table
from diffusion_jax.studies.edits import restoration
from diffusion_jax.studies.edits.job import Job, psnr_of
from diffusion_jax.studies.edits.restoration import RestoredSamples

CHANNELS = 4  # whose errors have columns of their own, at most
SHOWN = 8  # samples of a picture, at most


class ScoredArrays(NamedTuple):
    """RestoredSamples arrays and their scores.

    Attributes:
      found: what the method made.
      given: (N, ...) the measurements in the shape of samples, normalized.
      known: (N_1, ..., C), 1 where a value was measured as it is; None where none was (deblurring).
      rows: a row for each baseline and for the method: 'method', 'evaluations', and for 'rmse' and
        'crps' (N, C), for 'psnr' (N,).
    """

    found: RestoredSamples
    given: np.ndarray
    known: np.ndarray | None
    rows: list[dict[str, Any]]


def restore(
    job: Job, task: str, mask: str, spec: str, draws: int, mean: np.ndarray
) -> ScoredArrays:
    """Restore the arrays of a job from their own measurements, and score them.

    Args:
      job: the arrays and the model.
      task: the measurement, as in `requests.measurement_for`.
      mask: its mask.
      spec: the method.
      draws: results of each array.
      mean: (N_1, ..., C) the mean of the training split, normalized.
    """
    found, model = restoration.restore(job, task, mask, spec, draws), job.trained.experiment
    known = known_by(found.measurement, task, model.shape)
    given = restoration.as_image(found.measurement, found.y, model.shape)
    trivial = without_model(found.measurement, found.y, known, given, mean)
    counted = np.ones(model.shape, bool) if known is None else ~known
    normalization = model.normalization
    truth = normalization.decode(found.truth)

    def row(name: str, results: np.ndarray, **more: Any) -> dict[str, Any]:
        decoded = [normalization.decode(result) for result in results]
        return {
            "method": name,
            "rmse": np.mean([rmse(result, truth, counted) for result in decoded], 0),
            "crps": crps(np.stack(decoded), truth, counted),
            "psnr": np.mean([psnr_of(model, r, found.truth) for r in results], 0),
            **more,
        }

    rows = [row(name, values[None]) for name, values in trivial.items()]
    rows.append(row(spec, found.draws, evaluations=found.evaluations))
    if draws > 1:
        average = row(f"mean of {draws} draws", found.draws.mean(0, keepdims=True))
        evaluations = draws * found.evaluations if found.evaluations else None
        rows.append(average | {"evaluations": evaluations})
    return ScoredArrays(found, given, known, rows)


def known_by(measurement: Measurement, task: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Which values a mask lets through, (N_1, ..., C) of bool; None for a task without a mask.

    Args:
      measurement: of the task.
      task: its name.
      shape: (N_1, ..., N_d, C) of a sample.
    """
    if task.partition("(")[0].strip() != "inpaint":
        return None
    return np.asarray(measurement.forward(jnp.ones((1, *shape))))[0] > 0


def without_model(
    measurement: Measurement,
    y: Array,
    known: np.ndarray | None,
    given: np.ndarray,
    mean: np.ndarray,
) -> dict[str, np.ndarray]:
    """Restorations without a model: {name: (N, ...)}.

    Args:
      measurement: how samples were measured.
      y: (N, ...) what was measured.
      known: as of `known_by`.
      given: (N, ...) what was measured, in the shape of samples.
      mean: (N_1, ..., C) the mean of the training split.
    """
    if known is not None:
        filled = {"mean of the training set": np.where(known, given, mean)}
        if any(known.any(axis)[~known.all(axis)].any() for axis in range(known.ndim - 1)):
            filled["linear interpolation"] = baselines.interpolated(given, known, mean)
        return filled
    if y.ndim == given.ndim and y.shape != given.shape:  # of a lower resolution
        linear = np.asarray(jax.image.resize(y, given.shape, "linear"))
        return {"nearest": np.asarray(given), "linear interpolation": linear}
    if measurement.spectral is None:  # not linear
        return {"measurement itself": np.asarray(given)}
    return {"pseudo-inverse": np.asarray(measurements.pinv(measurement, y))}


def table(scored: ScoredArrays, normalization: Normalization) -> str:
    """Write the scores in Markdown, each with its standard error over samples.

    Args:
      scored: what was restored.
      normalization: of the data.
    """
    channels = len(normalization.scale)
    names = of_table.names(normalization.columns) or [f"channel {i}" for i in range(channels)]
    columns = {"method": "method", "evaluations": "NFE"}
    shown = [{key: row.get(key) for key in columns} for row in scored.rows]
    for name in ("rmse", "crps"):
        metric = metrics.find(name)
        # those of which every value was measured have no errors
        missing = np.flatnonzero(~np.isnan([row[name] for row in scored.rows]).all((0, 1)))
        for channel in missing[:CHANNELS]:
            own = [row[name][:, channel] for row in scored.rows]
            key = f"{name} {channel}"
            columns[key] = f"{metric.title}, {names[channel]}" if channels > 1 else metric.title
            for line, values in zip(shown, own):
                line[key] = metric.number(*_mean_and_error(values))
    columns["psnr"] = metrics.find("psnr").label
    for line, row in zip(shown, scored.rows):
        line["psnr"] = metrics.find("psnr").number(*_mean_and_error(row["psnr"]))
    return markdown_table(shown, columns)


def _mean_and_error(values: np.ndarray) -> tuple[float, float | None]:
    """The mean over samples and its standard error; None for the error of a single sample."""
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
    return float(np.mean(values)), error


def facts(scored: ScoredArrays, spec: str) -> dict[str, Any]:
    """What the JSON file says of the results: the scores of every sample.

    Args:
      scored: what was restored.
      spec: the method.
    """
    rows = [
        {
            key: value.tolist() if isinstance(value, np.ndarray) else value
            for key, value in r.items()
        }
        for r in scored.rows
    ]
    counted = "all values" if scored.known is None else "values that were not measured"
    return {
        "method": spec,
        "evaluations": scored.found.evaluations,
        "scores": rows,
        "rmse_and_crps_of": counted,
    }


def save(
    scored: ScoredArrays,
    shown: media.Media,
    normalization: Normalization,
    files: Mapping[str, Path],
    labels: np.ndarray | None = None,
) -> list[Path]:
    """Write the picture, the arrays in the units of the data, and what `save_parts` writes.

    Args:
      scored: what was restored.
      shown: how samples are shown.
      normalization: of the data.
      files: the files by their endings, '.png' and '.npz'.
      labels: (N,), the classes of the samples, where they are known.

    Returns:
      The files besides these two.
    """
    found, decode = scored.found, normalization.decode
    arrays = {"restored": np.stack([decode(draw) for draw in found.draws])}
    arrays |= {"truth": decode(found.truth), "measurement": decode(scored.given)}
    if scored.known is not None:
        arrays["known"] = scored.known
    npz.save(files[".npz"], arrays, compressed=True)
    parts = {} if shown.table else {"measured": scored.given}
    several = len(found.draws) > 1
    parts |= {f"restored {i}" if several else "restored": d for i, d in enumerate(found.draws, 1)}
    parts |= {"truth": found.truth}
    more = restored.save_parts(shown, parts, files[".npz"], labels)
    as_lines = shown.name == "series" or found.truth.ndim == 3  # waves, too
    several = as_lines and found.truth.shape[-1] > 1
    few = slice(SHOWN // 2 if several else SHOWN)  # a row of panels for each, or half of one
    draws, truth, given = found.draws[:, few], found.truth[few], scored.given[few]
    if as_lines:
        lines = [decode(values) for values in (given, *draws, truth)]
        restored.series(lines[0], np.stack(lines[1:-1]), lines[-1], scored.known, files[".png"])
        return more
    if shown.table:
        parts = {name: own[few] for name, own in ({"measured": scored.given} | parts).items()}
        hidden = None if scored.known is None else ~scored.known
        row_figure.figure(normalization, parts, files[".png"], hidden)
        return more
    restored.strips(shown, normalization, given, draws, truth, scored.known, files[".png"])
    return more


def summary(scored: ScoredArrays, names: Sequence[Path]) -> str:
    """The last line of the command: what the columns mean, and the files.

    Args:
      scored: what was restored.
      names: the files.
    """
    counted = "all values" if scored.known is None else "the values that were not measured"
    return (
        f"RMSE and CRPS of {counted}, in the units of the data; PSNR of all values, by the range "
        f"of the training split; ±: standard error over {len(scored.given)} samples\n"
        + ", ".join(map(str, names))
    )
