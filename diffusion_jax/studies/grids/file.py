"""The file of placed grids: the content that it must have, and how a search resumes from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.core import reading
from diffusion_jax.samplers import grid_files
from diffusion_jax.studies import store
from diffusion_jax.studies.grids.report import PLACED


def _rule() -> reading.Rule:
    """The rule for a file of placed grids.

    It is that of samplers/grid_files.py, with a row of every grid at every budget, one of them
    PLACED.
    """
    score = reading.number(finite=False)
    halves = reading.table(reading.number(0))
    row = reading.record(
        {"nfe": reading.integer(1), "sampler": reading.text(1), "error": score},
        {"intervals": halves},
        others=score,
    )
    exact = reading.record(
        {"what": reading.text(1), "solved": reading.integer(1)},
        {"intervals": halves},
        others=score,
    )

    def rows(value: Any, place: str) -> None:
        reading.items(row)(value, place)
        for nfe in {each["nfe"] for each in value}:
            placed = [each["sampler"] == PLACED for each in value if each["nfe"] == nfe]
            if placed.count(True) != 1 or all(placed):
                raise reading.Mismatch(
                    f"{place} has not one placed grid and a hand-made one at {nfe} NFE"
                )

    def file(value: Any, place: str) -> None:
        grid_files.FILE(value, place)
        reading.record({"rows": rows, "exact": exact})(value, place)

    return file


def open_grids(
    path: Path, settings: Mapping[str, Any], identity: Mapping[str, Any] | None = None
) -> store.Table:
    """Return the grids of an earlier run with the same settings, or an empty table.

    Args:
      path: the JSON file, which need not exist.
      settings: everything that all grids depend on. A file with other settings is not used.
      identity: the identity of the subject; its hash is a part of the provenance of the file.
    """
    table = store.open_table(path, settings, _rule(), config=identity)
    table.content.setdefault("logsnr", {})
    return table
