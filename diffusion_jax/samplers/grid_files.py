"""Files of grids: the times that experiments.optimize_grid placed, as log-SNRs, by their number."""

from __future__ import annotations

import os

from diffusion_jax.core import reading
from diffusion_jax.core.errors import UserError


def _rising(value: object, place: str) -> None:
    """Checks the log-SNRs of a stored grid."""
    reading.items(reading.number(-1e4, 1e4), least=1, most=100_000)(value, place)
    if not all(a <= b for a, b in zip(value, value[1:])):
        raise reading.Mismatch(f"{place} does not rise")


def _lengths(value: object, place: str) -> None:
    """Checks the grids of a file, each of which has its number of times as its key."""
    reading.table(_rising)(value, place)
    if wrong := [key for key, grid in value.items() if key != str(len(grid))]:
        raise reading.Mismatch(f"{place}.{wrong[0]:.60} has {len(value[wrong[0]])} values")


FILE = reading.record({"logsnr": _lengths})  # the format of a file of grids


def load(path: str, n: int) -> list[float]:
    """Reads the log-SNRs of the grid of n times, rising; [] for one time, which is in no file.

    Args:
      path: the JSON file; a leading ~ is expanded.
      n: number of times.

    Raises:
      UserError: if the file does not exist, is of another format, or has no grid of n times.
    """
    path = os.path.expanduser(path)
    if not os.path.lexists(path):
        raise UserError(
            f"grid file '{path}' does not exist; experiments.optimize_grid writes such files"
        )
    try:
        found = reading.json_file(path, FILE)["logsnr"]
    except UserError as error:
        raise UserError(
            "the grid file is not one that experiments.optimize_grid wrote "
            f"({error}); make it again"
        ) from None
    if n > 1 and str(n) not in found:
        raise UserError(
            f"grid file '{path}' has grids of {', '.join(sorted(found, key=int))} times, not of "
            f"{n}; make one with experiments.optimize_grid --nfe=..."
        )
    return found[str(n)] if n > 1 else []
