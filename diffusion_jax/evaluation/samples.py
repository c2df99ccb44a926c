"""What is kept of a set of images: numbers of each image, from which its scores are computed.

Extracting turns images into rows of numbers (features, logits, whether the image is recognized);
the images themselves are not kept. `summarize` reads the rows of one extractor in order, once,
and reduces them to what the estimators need: sums of groups of images, which take the same memory
for any number of images, and the features of the first images for metrics of pairs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.evaluation import frechet, intervals, scores

CHUNK = 512  # rows that are read and summed at a time; part of the rounding of the sums

Rows = dict[str, np.ndarray]  # name -> (n, ...), for n images

FEATURES, LOGITS, CLASSIFIED = "features/", "logits/", "classified/"  # + the name of the extractor
RECOGNIZED = "recognized"  # of a field of the classes, with /NAME
SPECTRUM = "spectrum"  # of sounds, see hearing.py


class Kept(NamedTuple):
    """The rows of a set of images, in memory or on disk.

    Attributes:
      count: the number of images.
      names: the names of the rows.
      read: (name, positions) -> the rows (n, ...) of that name at these positions.
      first: name -> rows of the first images alone, such as pictures of them.
    """

    count: int
    names: frozenset[str]
    read: Callable[[str, range], np.ndarray]
    first: Callable[[str], np.ndarray] | None = None

    def whole(self, name: str) -> np.ndarray:
        """Read all rows of a name.

        Args:
          name: one of `names`.

        Returns:
          (count, ...).
        """
        return self.read(name, range(self.count))


def in_memory(rows: Rows) -> Kept:
    """Make the rows of a set from arrays that are in memory.

    Args:
      rows: {name: (N, ...)}, with an image in each row.
    """
    count = len(next(iter(rows.values())))
    return Kept(count, frozenset(rows), lambda name, at: rows[name][at.start : at.stop])


class Summary(NamedTuple):
    """What estimators need of a set, as one extractor sees it.

    Attributes:
      count: the number of images.
      features: (M, D), features of the first images; of all where they are fewer than the
        features, and where a metric needs all.
      moments: those of each group of images; () where `features` are those of all images.
      logits: `scores.LogitSums` of each group; () where they are not needed.
      classified: (count,) of bool, whether each image is classified as its label, or None.
      grouped: whether scores need intervals.
    """

    count: int
    features: np.ndarray
    moments: tuple[frechet.Moments, ...] = ()
    logits: tuple[scores.LogitSums, ...] = ()
    classified: np.ndarray | None = None
    grouped: bool = True


def summarize(
    kept: Kept,
    extractor: str,
    *,
    first: int | None,
    moments: bool,
    grouped: bool = True,
) -> Summary:
    """Reduce the rows of one extractor to what estimators need.

    Sums run in float64 over CHUNK rows at a time in the order of the images, so that they do not
    depend on how the images were drawn.

    Args:
      kept: the rows.
      extractor: the name of the extractor.
      first: the number of images whose features are kept; None keeps all.
      moments: whether moments are needed.
      grouped: whether scores need intervals.
    """
    name, count = FEATURES + extractor, kept.count
    features = kept.read(name, range(1))[:0]
    if moments and count <= features.shape[1]:  # they are no larger than a covariance
        first, moments = None, False
    if first != 0:
        features = kept.read(name, range(count if first is None else min(first, count)))
    groups = (intervals.groups(count) if grouped else []) or [range(count)]
    sums = functools.partial(_of_groups, kept, groups)
    return Summary(
        count,
        features,
        sums(name, frechet.moments, frechet.merge) if moments else (),
        sums(LOGITS + extractor, scores.logit_sums, scores.merge)
        if LOGITS + extractor in kept.names
        else (),
        kept.whole(read) if (read := CLASSIFIED + extractor) in kept.names else None,
        grouped,
    )


def _of_groups(
    kept: Kept,
    groups: Sequence[range],
    name: str,
    of: Callable[[np.ndarray], Any],
    merge: Callable[[Any, Any], Any],
) -> tuple[Any, ...]:
    """The merged sums of each group of images."""
    return tuple(
        functools.reduce(merge, (of(kept.read(name, part)) for part in _chunks(group)))
        for group in groups
    )


def _chunks(group: range) -> Iterator[range]:
    """The positions of a group, divided at the multiples of CHUNK."""
    start = group.start
    while start < group.stop:
        end = min(start - start % CHUNK + CHUNK, group.stop)
        yield range(start, end)
        start = end


def jackknife(
    parts: tuple[Any, ...], merge: Callable[[Any, Any], Any], score: Callable[[Any], float]
) -> intervals.Measured:
    """Compute a score from the merged sums of groups, with its interval.

    Args:
      parts: the sums of each group; with a single one the interval is not known.
      merge: (sums, sums) -> the sums of both together.
      score: sums -> the score.
    """
    whole = score(functools.reduce(merge, parts))
    if len(parts) == 1:
        return intervals.Measured(whole)
    left_out = [
        score(functools.reduce(merge, parts[:i] + parts[i + 1 :])) for i in range(len(parts))
    ]
    return intervals.jackknife(whole, left_out)
