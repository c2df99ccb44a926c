"""Training on images of several shapes: buckets by aspect ratio (Podell et al. 2023, section 2.3).

Each image belongs to the bucket whose aspect ratio is nearest to its own, and a batch is of one
bucket, so that its images have one shape. The bucket of a step is drawn with the probability of its
share of the images, from raw Philox bits of (seed, step). The n-th batch of a bucket is the n-th of
its own order, so batch(step) stays a pure function of seed and step.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from diffusion_jax.data.sources import Example, Source, labels_of

BUCKET = 3  # a random stream of its own; those of the pipeline are 0 to 2
LITTLE = 0.25  # images of which less is left where they are cropped cause a warning
BLOCK = 2**16  # steps whose buckets are drawn at once

Shape = tuple[int, int]  # height and width


class Bucketed:
    """A split whose training batches are of several shapes, and which is of one shape otherwise.

    Args:
      whole: all images, of one shape.
      buckets: the same images in their buckets, each of one shape.
    """

    def __init__(self, whole: Source, buckets: Sequence[Source]) -> None:
        self.whole, self.buckets = whole, tuple(buckets)
        self.rows = whole.rows

    @property
    def labels(self) -> np.ndarray | None:
        """The labels of all examples (N,), or None where they are not known."""
        return labels_of(self.whole)

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, i: int) -> Example:
        return self.whole[i]


def nearest(sizes: Sequence[Shape], shapes: Sequence[Shape]) -> np.ndarray:
    """Choose the shape of the nearest aspect ratio, by the logarithm of height / width.

    Args:
      sizes: height and width of N images.
      shapes: height and width of the buckets.

    Returns:
      (N,), the number of the bucket of each image; of equally near ones the first.
    """
    own, known = (np.log([height / width for height, width in s]) for s in (sizes, shapes))
    return np.abs(own[:, None] - known).argmin(1)


def kept(sizes: Sequence[Shape], shapes: Sequence[Shape]) -> np.ndarray:
    """Return the shares of images that are left where they are cropped to an aspect ratio.

    Args:
      sizes: height and width of N images.
      shapes: to which they are cropped.

    Returns:
      (N,), in (0, 1].
    """
    own, wanted = (np.array([height / width for height, width in s]) for s in (sizes, shapes))
    return np.minimum(own / wanted, wanted / own)


def visit(seed: int, sizes: tuple[int, ...], step: int) -> tuple[int, int]:
    """Draw the bucket of a step.

    Args:
      seed: the seed of the order of the data.
      sizes: the number of images in each bucket.
      step: the number of the step.

    Returns:
      (bucket, number of earlier steps that had the same bucket).
    """
    block, offset = divmod(step, BLOCK)
    drawn = _drawn(seed, sizes, block)
    bucket = int(drawn[offset])
    earlier = int((drawn[:offset] == bucket).sum())
    return bucket, _before(seed, sizes, block)[bucket] + earlier


@functools.lru_cache(maxsize=8)
def _drawn(seed: int, sizes: tuple[int, ...], block: int) -> np.ndarray:
    """The buckets of the steps of a block."""
    bits = np.random.Philox(np.random.SeedSequence((seed, block, BUCKET))).random_raw(BLOCK)
    uniform = (bits >> np.uint64(11)) * 2.0**-53
    return np.searchsorted(np.cumsum(sizes)[:-1] / sum(sizes), uniform, side="right")


@functools.lru_cache(maxsize=4096)
def _before(seed: int, sizes: tuple[int, ...], block: int) -> tuple[int, ...]:
    """How often each bucket was drawn before a block."""
    if not block:
        return (0,) * len(sizes)
    last = np.bincount(_drawn(seed, sizes, block - 1), minlength=len(sizes))
    return tuple((last + _before(seed, sizes, block - 1)).tolist())
