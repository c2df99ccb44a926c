"""The endless order of the examples, from which batches are cut: a pure function of the seed.

The order of epoch e is argsort of the raw Philox stream keyed by (seed, e): a uniform permutation
that no version of NumPy or grain can change (raw bits are guaranteed stable, shuffling routines are
not). Whether an example is mirrored, and which of its captions is taken, is drawn for each example
and epoch likewise.

    uniform     every epoch is a fresh permutation of all examples
    balanced    every round has each class once, in an order that is drawn for the round; the
                example of a class in round r is the r-th of an endless order of its own, in which
                every epoch is a fresh permutation of its examples

So a balanced batch has equal shares of the classes: any n positions in a row hold a class of K
n / K times, up to 2. A class of m examples begins a new epoch every m rounds, a rare class earlier
than a frequent one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.progress import progress
from diffusion_jax.data.sources import Source, labels_of

SHUFFLE, FLIP, CAPTION = 0, 1, 2  # independent random streams; aspect.BUCKET is 3
CLASSES = 4
CACHED = 4096  # epochs of classes that are kept
READ = 1024  # examples that are read at a time where their labels are not known


class Chosen(NamedTuple):
    """The examples at some positions of the order.

    Attributes:
      index: their indices in the source, (n,).
      mirrored: whether each is mirrored, (n,) bool.
      phrase: numbers from 0 to 2^31 - 1 that choose a caption of each, (n,).
    """

    index: np.ndarray
    mirrored: np.ndarray
    phrase: np.ndarray


Order = Callable[[np.ndarray], Chosen]  # of ascending positions


def uniform(size: int, seed: int) -> Order:
    """The order in which all examples are equally frequent.

    Args:
      size: the number of examples.
      seed: the seed.
    """

    def order(positions: np.ndarray) -> Chosen:
        number, offset = np.divmod(positions, size)
        parts = [(_epoch(seed, int(e), size), offset[number == e]) for e in np.unique(number)]
        columns = zip(*[[column[o] for column in epoch] for epoch, o in parts])
        return Chosen(*map(np.concatenate, columns))

    return order


def balanced(labels: np.ndarray, seed: int) -> Order:
    """The order in which all classes that have examples are equally frequent.

    Args:
      labels: the class of each example, (N,).
      seed: the seed.
    """
    classes, of = np.unique(labels, return_inverse=True)
    by_class = np.argsort(of, kind="stable")
    counts = np.bincount(of)
    first = np.cumsum(counts) - counts

    def order(positions: np.ndarray) -> Chosen:
        rounds, place = np.divmod(positions, len(classes))
        own = np.empty(len(positions), int)  # the class at each position
        for number in np.unique(rounds):
            there = rounds == number
            own[there] = _round(seed, int(number), len(classes))[place[there]]
        parts, where = [], []
        for c in np.unique(own):
            there = np.flatnonzero(own == c)
            number, offset = np.divmod(rounds[there], counts[c])
            for e in np.unique(number):
                index, *rest = _epoch_of_class(seed, int(e), int(counts[c]), int(c))
                chosen = offset[number == e]
                parts.append((by_class[first[c] + index[chosen]], *(r[chosen] for r in rest)))
                where.append(there[number == e])
        back = np.argsort(np.concatenate(where))
        return Chosen(*(np.concatenate(column)[back] for column in zip(*parts)))

    return order


def known_labels(source: Source, key: str) -> np.ndarray:
    """All labels of a source, (N,), for which the source is read if it does not know them.

    Args:
      source: a split.
      key: the config key that needs them, with its value, for the message.

    Raises:
      UserError: for data without labels.
    """
    labels = labels_of(source)
    if labels is None and "label" in source[0]:
        labels = _read_labels(source)
    if labels is None:
        raise UserError(f"config.{key}: the data set has no labels; leave this key at its default")
    return labels


@functools.lru_cache(maxsize=2)
def _read_labels(source: Source) -> np.ndarray:
    """The labels, read example by example."""
    found, size = [], len(source)
    with progress(size, "reading labels", unit="examples") as advance:
        for start in range(0, size, READ):
            found.append(source.rows(np.arange(start, min(start + READ, size)))["label"])
            advance(len(found[-1]))
    return np.concatenate(found)


@functools.lru_cache(maxsize=4)
def _epoch(seed: int, number: int, size: int) -> Chosen:
    """The order, the mirrored examples and the choice of captions of an epoch."""
    return _drawn(size, seed, number)


@functools.lru_cache(maxsize=CACHED)
def _epoch_of_class(seed: int, number: int, size: int, label: int) -> Chosen:
    """The same of an epoch of one class."""
    return _drawn(size, seed, number, label + 1)  # a word 0 at the end would change nothing


def _drawn(size: int, seed: int, number: int, *of: int) -> Chosen:
    order = np.argsort(_bits(size, seed, number, SHUFFLE, *of), kind="stable")
    phrase = (_bits(size, seed, number, CAPTION, *of) >> np.uint64(33)).astype(np.int32)
    return Chosen(order, (_bits(size, seed, number, FLIP, *of) & 1).astype(bool), phrase)


@functools.lru_cache(maxsize=CACHED)
def _round(seed: int, number: int, classes: int) -> np.ndarray:
    """The order of the classes in a round."""
    return np.argsort(_bits(classes, seed, number, CLASSES), kind="stable")


def _bits(size: int, *words: int) -> np.ndarray:
    return np.random.Philox(np.random.SeedSequence(words)).random_raw(size)
