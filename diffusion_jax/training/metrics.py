"""What a run writes about itself: metrics.jsonl, and the same numbers in its trackers.

metrics.jsonl has one JSON object a line: {'step': 100, 'images': 12800, 'loss': 0.3, ..., 'timing':
{...}}. All but 'timing' is a pure function of the run's config: every number is the mean over the
steps since the row before, summed in float64 in step order.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.core import reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.files import save_text
from diffusion_jax.training import trackers

# {'steps': n, 'sums': {name: float or list}, 'edges': list or None}: plain JSON data, so that a
# checkpoint can hold it
Tally = dict[str, Any]

# what the metrics of a step say under 'nonfinite', and what a row calls the number of such steps
COUNTED = (("flag", "skipped"), ("overflow", "overflows"), ("replaced", "replaced"))


def empty_tally() -> Tally:
    """No steps yet."""
    return {"steps": 0, "sums": {}, "edges": None}


def add(tally: Tally, metrics: dict[str, Any]) -> Tally:
    """The tally with the metrics of one call added, summed in float64.

    Steps that are not finite are only counted ('skipped', and 'overflows' of a scaled loss): they
    changed nothing, and would make every mean NaN. Steps of whose gradient numbers were replaced
    are counted too ('replaced').

    Args:
      tally: the sums so far.
      metrics: numpy arrays (n, ...) for the n steps of the call.
    """
    found = metrics.get("nonfinite", {})
    if counts := {name: int(np.sum(found[key])) for key, name in COUNTED if np.any(found.get(key))}:
        left_out = np.asarray(found["flag"]) | np.asarray(found.get("overflow", False))
        good = {key: value for key, value in metrics.items() if key != "nonfinite"}
        good = _map(lambda x: np.asarray(x)[~left_out], good)
        tally = tally | {name: tally.get(name, 0) + count for name, count in counts.items()}
        return add(tally, good) if len(good["loss"]) else tally
    counted = {
        key: value for key, value in metrics.items() if key not in ("nonfinite", "loss_by_level")
    }
    by_level = metrics.get("loss_by_level")
    edges = tally["edges"]
    if by_level is not None:
        counted |= {"level_sum": by_level["sum"], "level_count": by_level["count"]}
        edges = np.asarray(by_level["edges"])[0].tolist()
    sums = {key: np.sum(np.asarray(value, np.float64), axis=0) for key, value in counted.items()}
    if tally["steps"]:
        sums = {key: value + np.asarray(tally["sums"][key]) for key, value in sums.items()}
    steps = tally["steps"] + len(np.asarray(metrics["loss"]))
    return tally | {
        "steps": steps,
        "sums": {key: value.tolist() for key, value in sums.items()},
        "edges": edges,
    }


def row(tally: Tally) -> dict[str, Any]:
    """Compute the means of a tally.

    Args:
      tally: the sums over some steps, at least one of them.

    Returns:
      {'loss': mean, ..., 'loss_by_level': [mean or None], 'level_edges': [...]}, and the numbers
      of steps that `add` counts, where there are any.
    """
    sums = dict(tally["sums"])
    level_sum, level_count = sums.pop("level_sum", None), sums.pop("level_count", None)
    means = {key: value / tally["steps"] for key, value in sums.items()}
    if level_sum is not None:
        means["loss_by_level"] = [
            s / n if n else None for s, n in zip(level_sum, level_count, strict=True)
        ]
        means["level_edges"] = tally["edges"]
    return means | {name: tally[name] for _, name in COUNTED if name in tally}


def _map(function: Callable, tree: Any) -> Any:
    return (
        {key: _map(function, value) for key, value in tree.items()}
        if isinstance(tree, dict)
        else function(tree)
    )


class Writer(NamedTuple):
    """The functions that write the metrics of a run.

    Attributes:
      row: row(step, values, timing) writes a line and its scalars.
      images: images(step, name, batch) shows uint8 images (N, H, W, C) in the trackers.
      sync: waits until everything is on disk.
      close: closes the files.
      text: text(step, name, content) shows a text in the trackers that have texts.
    """

    row: Callable[..., None]
    images: Callable[[int, str, np.ndarray], None]
    sync: Callable[[], None]
    close: Callable[[], None]
    text: Callable[[int, str, str], None]


def open_writer(
    directory: str | os.PathLike,
    *,
    start_step: int = 0,
    log_every: int = 0,
    names: Sequence[str] = ("tensorboard",),
    config: Mapping[str, Any] | None = None,
) -> Writer:
    """A writer into DIR/metrics.jsonl and the trackers.

    Args:
      directory: the folder DIR.
      start_step: rows after this step, of a run that died, are removed.
      log_every: steps between rows; `cut` warns of rows that are lost.
      names: the trackers, keys of trackers.TRACKERS; () for none.
      config: the config of the run, for trackers that show it.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "metrics.jsonl"
    cut(path, start_step, log_every)
    file = path.open("a", encoding="utf-8")

    def rows() -> Iterator[tuple[int, dict[str, float]]]:
        for row in read_rows(path):
            yield row["step"], _scalars(row, row.get("timing", {}))

    tracked = trackers.Tracked(directory, start_step, config or {}, rows)
    opened = trackers.open_trackers(names, tracked)

    def write(step: int, values: dict[str, Any], timing: dict[str, Any] | None = None) -> None:
        line = {"step": step} | _finite(values) | {"timing": _finite(timing or {})}
        file.write(json.dumps(line, allow_nan=False) + "\n")
        file.flush()
        for tracker in opened:
            tracker.scalars(step, _scalars(values, timing or {}))

    def images(step: int, name: str, batch: np.ndarray) -> None:
        batch = batch if batch.shape[-1] == 3 else np.repeat(batch[..., :1], 3, axis=-1)
        for tracker in opened:
            tracker.images(step, name, batch)

    def sync() -> None:
        file.flush()
        os.fsync(file.fileno())
        for tracker in opened:
            tracker.flush()

    def close() -> None:
        file.close()
        for tracker in opened:
            tracker.close()

    def text(step: int, name: str, content: str) -> None:
        for tracker in opened:
            tracker.text(step, name, content)

    return Writer(write, images, sync, close, text)


def _scalars(values: Mapping[str, Any], timing: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row, of its timing and of its bins of noise levels, by name."""
    everything = {**values, **timing, **_by_level(values)}
    numbers = {key: value for key, value in everything.items() if isinstance(value, (int, float))}
    return {key: value for key, value in numbers.items() if key != "step"}


def _by_level(values: Mapping[str, Any]) -> dict[str, float]:
    """The mean loss of every bin of noise levels as a scalar; empty bins have none.

    Returns:
      {'loss_by_level/03_log-SNR_-5.0_to_-2.5': mean, ...}.
    """
    found = {}
    for key, means in values.items():
        if key.endswith("loss_by_level") and (
            edges := values.get(key.replace("loss_by_level", "level_edges"))
        ):
            for i, (mean, low, high) in enumerate(zip(means, edges[:-1], edges[1:])):
                if mean is not None:
                    found[f"{key}/{i:02d}_log-SNR_{low:.1f}_to_{high:.1f}"] = float(mean)
    return found


def no_writer() -> Writer:
    """A writer that writes nothing, for all processes but the first."""
    return Writer(*[lambda *_: None] * 5)


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Read the rows of a metrics.jsonl, in order.

    Damaged lines are left out; a killed run may leave half of one.

    Args:
      path: the file; a missing one has no rows.
    """
    return [row for _, row in _rows(path) if row is not None]


def cut(path: str | os.PathLike, step: int, log_every: int = 0) -> None:
    """Keep the rows up to and including a step, atomically, without changing them.

    One warning on stderr reports rows up to this step that are lost: damaged lines, or a file that
    ends too early.

    Args:
      path: the file.
      step: the step.
      log_every: steps between rows; 0 if it is not known.
    """
    path = Path(path)
    found = _rows(path)
    last = max(
        (i for i, (_, row) in enumerate(found) if row is not None and row["step"] <= step),
        default=-1,
    )
    damaged = sum(row is None for _, row in found[: last + 1])
    reached = found[last][1]["step"] if last >= 0 else 0
    missing = log_every and step >= reached + log_every
    if damaged or missing:
        what = [f"{damaged} damaged line{'s' * (damaged > 1)} left out"] if damaged else []
        what += [f"no rows between step {reached} and step {step}"] if missing else []
        print(
            f"warning: '{path}': {', '.join(what)}; the curves are affected, the model is not",
            file=sys.stderr,
        )
    keep = [line for line, row in found if row is not None and row["step"] <= step]
    if path.exists() and keep != [line for line, _ in found]:
        save_text(path, "".join(keep))


def _rows(path: str | os.PathLike) -> list[tuple[str, dict[str, Any] | None]]:
    """Iterate over the lines of a file with their ends and rows; None for a line without a row."""
    path = Path(path)
    if not path.exists():
        return []
    lines = reading.content(path, LARGEST).decode("utf-8", errors="replace").splitlines()
    return [(line + "\n", _row_of(line)) for line in lines if line.strip()]


def _row_of(line: str) -> dict[str, Any] | None:
    try:
        return reading.json_text(line, "a row", ROW)
    except UserError:
        return None


LARGEST = 2**32  # bytes of a metrics.jsonl: ten million rows
_LOSS = reading.optional(reading.number(finite=False))

ROW = reading.record(
    {"step": reading.integer()},
    {  # what is read of a row; other keys are free
        "images": reading.integer(),
        "loss": _LOSS,
        "eval_loss": _LOSS,
        "loss_by_level": reading.optional(reading.items(_LOSS)),
        "level_edges": reading.optional(reading.items(reading.number())),
        "timing": reading.record({}, {"images_per_s": reading.optional(reading.number(1e-12))}),
    },
)


def _finite(value: Any) -> Any:
    """Plain JSON data in which what is not finite is None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if hasattr(value, "tolist"):
        return _finite(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
