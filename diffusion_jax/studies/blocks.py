"""Numbers of many examples, made in blocks that an interrupted command finds again.

    kept = run(folder, 50_000, make, ["features/pixels"], at_once=256)
    kept.read("features/pixels", range(100))

`make(positions)` returns rows of numbers for the examples at some positions. They are written to
one .npz file for each block, so that a run that is killed loses one block at most, and a run of
more examples extends an earlier one. What is read does not depend on the division into blocks.

With several processes all of them make the blocks, which may need all devices; the first alone
decides which are missing, and reads and writes the files.
"""

from __future__ import annotations

import functools
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion_jax.core import npz
from diffusion_jax.core.errors import UserError
from diffusion_jax.core.progress import progress
from diffusion_jax.evaluation.samples import Kept, Rows
from diffusion_jax.studies import store
from diffusion_jax.training import distributed

FIRST = "first/"  # + the name of rows that are kept of the first examples alone
BLOCK = 512  # examples in a block, if no other size is given: what a killed run loses
LARGER = 10_000  # a file may unpack to so many times its size

# (positions, advance: called with the numbers of examples that are done) -> rows
Make = Callable[[np.ndarray, Callable[[int], None]], Rows]


class Block(NamedTuple):
    """The rows of adjacent examples.

    Attributes:
      start: the position of the first.
      end: the position after the last.
      names: the names of the rows.
      rows: name -> (end - start, ...).
    """

    start: int
    end: int
    names: frozenset[str]
    rows: Callable[[str], np.ndarray]


def run(
    folder: Path | None,
    count: int,
    make: Make,
    names: Collection[str],
    *,
    at_once: int,
    size: int | None = None,
    description: str = "",
    unit: str = "samples",
) -> Kept:
    """Make the rows of the examples 0, ..., count - 1 that the folder does not hold.

    Args:
      folder: where blocks are kept; None keeps them in memory.
      count: the number of examples.
      make: (positions (n,), advance) -> {name: rows (n, ...)}. Rows whose name begins with FIRST
        may be fewer: they are kept of the first examples alone.
      names: rows that a kept block must have; a block without them is made again.
      at_once: the examples that `make` handles at a time.
      size: the most examples of a block; None: a multiple of BLOCK that is at least `at_once`.
      description: names the progress; '' shows none.
      unit: the unit of the progress.

    Returns:
      The rows of all examples; where there are several processes, on the first alone.
    """
    first = distributed.first()
    found = _find(folder, names) if folder is not None and first else []
    size = size or -(-at_once // BLOCK) * BLOCK
    left = distributed.from_first([[a, b] for a, b in _missing(found, count, size)])
    todo = sum(end - start for start, end in left)
    if todo < count and description:
        said = f"{count - todo} of {count} {unit} are taken from {folder}"
        print(f"{description}: {said}", file=sys.stderr)
    with progress(todo, description, enabled=bool(description and todo), unit=unit) as advance:
        for start, end in left:
            rows = make(np.arange(start, end), advance)
            if first:
                found.append(_keep(folder, start, end, rows))
    return _kept(found, count) if first else Kept(count, frozenset(), _elsewhere, _elsewhere)


def discard(folder: Path) -> None:
    """Remove the blocks of a run whose result is kept elsewhere.

    Args:
      folder: the folder of the run; the one that it is in is removed if it is empty then.
    """
    if distributed.first() and folder.is_dir():
        shutil.rmtree(folder)
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()


def _missing(found: Sequence[Block], count: int, size: int) -> Iterator[tuple[int, int]]:
    """The runs of positions that are not there, divided at multiples of the size of a block."""
    there = np.zeros(count + 1, bool)
    for block in found:
        there[block.start : block.end] = True
    there[count] = True
    start = None
    for position in range(count + 1):
        if start is not None and (there[position] or position % size == 0):
            yield start, position
            start = None
        if start is None and not there[position]:
            start = position


# ---- files
def _keep(folder: Path | None, start: int, end: int, rows: Rows) -> Block:
    if folder is None:
        return Block(start, end, frozenset(rows), rows.__getitem__)
    path = folder / f"{start:08d}-{end:08d}.npz"
    npz.save(path, rows)
    return Block(start, end, frozenset(rows), functools.partial(_array, path))


def _find(folder: Path, names: Collection[str]) -> list[Block]:
    """The blocks of a folder; one that is damaged is removed."""
    found, covered = [], 0
    for path in sorted(folder.glob("[0-9]*.npz")):
        if not (matched := re.fullmatch(r"(\d{8})-(\d{8})", path.stem)):
            print(f"{path} is of an earlier version, and is not used", file=sys.stderr)
            continue
        start, end = map(int, matched.groups())
        there = store.load(path, functools.partial(_names, needed=names, size=end - start))
        if there is None or start < covered:
            path.unlink()
            continue
        found.append(Block(start, end, there, functools.partial(_array, path)))
        covered = end
    return found


_ANY = npz.ArraySpec("fiub", finite=False)


def _names(path: Path, needed: Collection[str], size: int) -> frozenset[str]:
    """The names of the rows of a block; UserError where it is damaged, or lacks some."""
    rows = npz.load(path, dict.fromkeys(needed, _ANY), lambda name: _ANY, unpacked=LARGER)
    sizes = {rows[name].shape[:1] for name in rows if not name.startswith(FIRST)}
    if sizes != {(size,)} or any(value.ndim < 1 for value in rows.values()):
        raise UserError(f"'{path}' is damaged: its arrays do not have {size} rows each")
    return frozenset(rows)


@functools.lru_cache(maxsize=4)  # a block is read in chunks
def _array(path: Path, name: str) -> np.ndarray:
    return npz.load(path, {name: _ANY}, unpacked=LARGER)[name]


# ---- reading
def _kept(found: Sequence[Block], count: int) -> Kept:
    """The rows of all blocks, of the names that every block has."""
    blocks = [block for block in sorted(found, key=lambda b: b.start) if block.start < count]

    def read(name: str, at: range) -> np.ndarray:
        parts = [
            block.rows(name)[max(at.start - block.start, 0) : at.stop - block.start]
            for block in blocks
            if block.start < at.stop and at.start < block.end
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def first(name: str) -> np.ndarray:
        parts = [block.rows(FIRST + name) for block in blocks if FIRST + name in block.names]
        return np.concatenate([part for part in parts if len(part)] or parts[:1])

    names = frozenset.intersection(*(block.names for block in blocks))
    return Kept(count, names, read, first)


def _elsewhere(name: str, at: range | None = None) -> np.ndarray:
    raise RuntimeError("the rows of examples are on the first process alone")
