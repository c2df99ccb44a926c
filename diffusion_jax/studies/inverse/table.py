"""The rows of the inverse benchmark, kept in one JSON file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.core import reading
from diffusion_jax.core.types import Array
from diffusion_jax.inverse.measurements import Measurement
from diffusion_jax.inverse.methods import Method
from diffusion_jax.studies import store
from diffusion_jax.studies.edits import restoration
from diffusion_jax.studies.edits.job import Job


class Problem(NamedTuple):
    """A task of the benchmark and a method for it: the task's name, and what was measured, y."""

    name: str
    measurement: Measurement
    method: Method
    y: Array


def open_rows(path: Path, about: Mapping[str, Any]) -> store.Table:
    """The rows of a JSON file about the same settings, or none.

    Args:
      path: the JSON file.
      about: the settings that every row depends on.
    """
    shown = {
        "shown": reading.nested(reading.integer(0, 255)),
        "draws": reading.nested(reading.number()),
    }
    words = dict.fromkeys(("task", "method"), reading.text(1)) | {
        "evaluations": reading.optional(reading.number(0))
    }
    row = reading.record({}, words | shown, others=reading.nested(reading.number(finite=False)))
    rule = reading.record({"about": reading.table(), "rows": reading.items(row)})
    table = store.open_table(path, about, rule, nested="about")
    for found in table.rows:
        if "coverage" in found:  # its name in files of earlier versions
            found["interval_coverage"] = found.pop("coverage")
    return table


def timed_row(
    table: store.Table, key: Mapping[str, Any], make: Callable[[], Mapping[str, Any]], place: str
) -> dict[str, Any]:
    """The row of a key: that of the table, or one that is made, kept and reported with its time.

    Args:
      table: the rows; changed in place.
      key: what names the row.
      make: makes the rest of the row.
      place: words before the name of the row, such as '1 of 12:'.
    """

    def timed() -> Mapping[str, Any]:
        began = time.monotonic()
        made = make()
        name = " ".join(map(str, key.values()))
        print(f"{place} {name}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
        return made

    return store.row(table, key, timed)


def solved(
    job: Job,
    spec: str,
    problem: Problem,
    row: Callable[[np.ndarray], dict[str, Any]],
    table: store.Table,
    place: str,
) -> dict[str, Any]:
    """The row of a task and a method.

    Args:
      job: the samples and the model.
      spec: the method.
      problem: the task.
      row: the scores of restored samples (N, ...).
      table: the rows; changed in place.
      place: as of `timed_row`.
    """
    budgeted, evaluations = restoration.with_budget(job, problem.method, problem.measurement)

    def make() -> dict[str, Any]:
        return row(
            restoration.restored(
                budgeted,
                problem.method,
                problem.measurement,
                problem.y,
                job.keys,
                description=f"{problem.name} {spec}",
            )
        )

    key = {"task": problem.name, "method": spec, "evaluations": evaluations}
    return timed_row(table, key, make, place)
