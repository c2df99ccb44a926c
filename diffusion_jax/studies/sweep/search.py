"""Which cells of a sweep get how many images: all of them, random ones, or by successive halving.

    grid()                        every cell, on all of its images
    random(cells=20)              so many of them, chosen by a seed
    halving(share=0.2)            successive halving

All cells draw the same seeds, so a cell that gets more images continues its own set. A search is a
pure function of the scores so far: `wanted` names the next (cell, images) to measure, until nothing
is left. The cells are searched in groups, such as one for each number of network evaluations, in
each of which a best cell is found.

Successive halving (Jamieson & Talwalkar 2016) measures all cells on few images, the better half on
twice as many, and so on until the last ones have all of the images. `rungs` begins with as many
images as a given share of the whole grid's affords.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from diffusion_jax.core.errors import UserError, need_range

MOST_CELLS = 10_000  # that one sweep goes through
LEAST = 50  # images of the first rung: fewer say too little to drop half of the cells

Losses = Mapping[tuple[int, int], float]  # (cell, images) -> its loss: less is better


class Rung(NamedTuple):
    """A rung of a search: so many cells are measured on so many images each."""

    cells: int
    images: int


class SearchMethod(NamedTuple):
    """How a space is searched.

    Attributes:
      choose: size -> the numbers of the cells that take part.
      rungs: (cells of a group, images) -> the rungs of the group.
    """

    choose: Callable[[int], list[int]]
    rungs: Callable[[int, int], list[Rung]]


def grid() -> SearchMethod:
    """Measure every cell on all of its images."""
    return SearchMethod(_all, lambda cells, images: [Rung(cells, images)])


def random(cells: int = 20, seed: int = 0) -> SearchMethod:
    """Measure random cells, each on all of its images.

    Args:
      cells: how many.
      seed: random seed by which cells are chosen.

    Raises:
      UserError: for numbers out of range.
    """
    need_range("--search: random: cells", cells, 1, MOST_CELLS)
    need_range("--search: random: seed", seed, 0, 2**32 - 1)
    return SearchMethod(lambda size: _random_cells(size, cells, seed), grid().rungs)


def halving(share: float = 0.2, cells: int = 0, seed: int = 0) -> SearchMethod:
    """Measure cells by successive halving (`halving_rungs`).

    Args:
      share: largest share of the images of a whole grid of the cells that take part.
      cells: how many random cells take part; 0 for all.
      seed: random seed by which cells are chosen.

    Raises:
      UserError: for numbers out of range.
    """
    need_range("--search: halving: share", share, 0, 1, above=True)
    need_range("--search: halving: cells", cells, 0, MOST_CELLS)
    need_range("--search: halving: seed", seed, 0, 2**32 - 1)
    choose = random(cells, seed).choose if cells else _all
    return SearchMethod(choose, lambda count, images: halving_rungs(count, images, share))


SEARCHES = (grid, random, halving)


def _all(size: int) -> list[int]:
    if size > MOST_CELLS:
        raise UserError(
            f"the space has {size:,} cells, and at most {MOST_CELLS:,} are searched; give fewer "
            "values, or use --search='halving(cells=200)' or --search='random(cells=100)'"
        )
    return list(range(size))


def halving_rungs(cells: int, images: int, share: float) -> list[Rung]:
    """The rungs of successive halving whose images are at most a share of those of the grid.

    Rung r of R measures ceil(cells / 2^r) cells on images / 2^(R - 1 - r) images. R is the
    smallest number that keeps to the share: the first rung, which drops the most cells, gets as
    many images as possible. It has at least LEAST images; a share that is too small for that is
    exceeded.

    Args:
      cells: the number of cells.
      images: number of images of a cell that reaches the last rung.
      share: largest share of cells * images that is drawn.
    """
    found = [Rung(cells, images)]
    while (
        cost(found) > share * cells * images
        and found[-1].cells > 1
        and found[0].images // 2 >= LEAST
    ):
        depth = len(found) + 1
        found = [
            Rung(math.ceil(cells / 2**r), images // 2 ** (depth - 1 - r)) for r in range(depth)
        ]
    return found


def cost(rungs: Sequence[Rung]) -> int:
    """The images that rungs draw in all; a cell that moves up a rung keeps those it has.

    Args:
      rungs: the rungs of one group of cells.
    """
    before = [0, *(rung.images for rung in rungs)]
    return sum(rung.cells * (rung.images - less) for rung, less in zip(rungs, before))


def _random_cells(size: int, count: int, seed: int) -> list[int]:
    """`count` different numbers of cells out of `size`, ascending; all if there are no more.

    Args:
      size: the number of cells of the space.
      count: how many are chosen.
      seed: random seed by which cells are chosen.
    """
    if count >= size:
        return list(range(size))
    rng, found = np.random.default_rng(seed), set()
    while len(found) < count:  # (a permutation of a large space would not fit the memory)
        found |= {int(cell) for cell in rng.integers(0, size, count - len(found))}
    return sorted(found)


class SearchPlan(NamedTuple):
    """The plan of a search.

    Attributes:
      groups: the numbers of the cells in each group.
      rungs: the rungs of each group.
    """

    groups: dict[Hashable, list[int]]
    rungs: dict[Hashable, list[Rung]]

    @property
    def images(self) -> int:
        """The images that are drawn in all."""
        return sum(map(cost, self.rungs.values()))


def plan(groups: Mapping[Hashable, Sequence[int]], images: int, method: SearchMethod) -> SearchPlan:
    """Plan the search of groups of cells, each on at most so many images.

    Args:
      groups: the numbers of the cells in each group, by its name.
      images: number of images of a cell that is fully measured.
      method: says which rungs a group has.
    """
    cells = {group: list(members) for group, members in groups.items()}
    return SearchPlan(cells, {name: method.rungs(len(own), images) for name, own in cells.items()})


def entrants(search: SearchPlan, group: Hashable, rung: int, losses: Losses) -> list[int] | None:
    """The cells of a rung, the best of the rung before first; None while that is not complete.

    Equal losses keep the order of the cells. A loss that is not finite counts as the worst.

    Args:
      search: the plan.
      group: the name of the group.
      rung: the number of the rung, from 0.
      losses: the losses of all cells that were measured.
    """
    cells, rungs = search.groups[group], search.rungs[group]
    for before, after in zip(rungs[:rung], rungs[1 : rung + 1]):
        if any((cell, before.images) not in losses for cell in cells):
            return None
        found = {cell: losses[cell, before.images] for cell in cells}
        cells = sorted(cells, key=lambda c: found[c] if math.isfinite(found[c]) else math.inf)
        cells = cells[: after.cells]
    return cells


def wanted(search: SearchPlan, losses: Losses) -> list[tuple[int, int]]:
    """The (cell, images) to measure next: what each group lacks on its first incomplete rung.

    Args:
      search: the plan.
      losses: the losses of all cells that were measured.
    """
    found = []
    for group, rungs in search.rungs.items():
        for number, rung in enumerate(rungs):
            cells = entrants(search, group, number, losses) or []
            lacking = [(cell, rung.images) for cell in cells if (cell, rung.images) not in losses]
            found += lacking
            if lacking:
                break
    return found
