"""Which images of a set that is not split are held out from training."""

from __future__ import annotations

import collections
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_jax.core.errors import UserError

HELD_OUT = 0.1  # the fraction of the images that is held out
FLAT = " (--config.data.layout=flat)"


class File(NamedTuple):
    """An image file.

    Attributes:
      path: the path of the file.
      name: the path relative to the folder of its split, with '/'.
      label: the name of its class, '' without classes.
    """

    path: Path
    name: str
    label: str


def held_out(files: list[File], what: str) -> tuple[list[File], list[File]]:
    """Split files by the hashes of their names, so that adding files moves none of the others.

    Args:
      files: all files.
      what: the data, for messages.

    Returns:
      (train, test); about a tenth of the files is held out.

    Raises:
      UserError: as `hold_out`.
    """
    draws = [
        int.from_bytes(hashlib.sha256(os.fsencode(file.name)).digest()[:8]) / 2**64
        for file in files
    ]
    order = sorted(range(len(files)), key=draws.__getitem__)
    wanted = sum(draw < HELD_OUT for draw in draws)
    splits = hold_out(order, wanted, [file.label for file in files], what, FLAT)
    return tuple([files[row] for row in rows] for rows in splits)


def hold_out(
    order: Sequence[int], wanted: int, labels: Sequence[Any], what: str, hint: str = ""
) -> tuple[list[int], list[int]]:
    """Hold out the first rows of an order, at least one, but never the last row of a label.

    Args:
      order: all rows, those first that are to be held out.
      wanted: the number of rows to hold out.
      labels: the label of each row.
      what: the data, for messages.
      hint: how to use the data without labels, for messages.

    Returns:
      (rows to train on, rows that are held out), in ascending order.

    Raises:
      UserError: for one row, or where every class has one row, so that none can be held out.
    """
    if len(order) < 2:
        raise UserError(
            f"{what} holds one example; at least two are needed, to train on and to test with"
        )
    left, held = collections.Counter(labels), set()
    for position, row in enumerate(order):
        if held and position >= wanted:
            break
        if left[labels[row]] > 1:
            held.add(row)
            left[labels[row]] -= 1
    if not held:
        raise UserError(
            f"{what}: each of the {len(left)} classes has one example, so none can be held out for "
            f"testing; add examples or a test split, or use them without labels{hint}"
        )
    return [row for row in range(len(order)) if row not in held], sorted(held)
