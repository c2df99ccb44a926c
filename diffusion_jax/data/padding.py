"""Any number of rows in batches of one size, so that one compiled program serves all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class PaddedBatch(NamedTuple):
    """One batch of a pass over rows.

    Attributes:
      start: the number of the first row.
      index: (batch_size,), the numbers of the rows; beyond the last row they repeat the last row.
      real: how many of them are rows of their own; what belongs to the others is to be dropped.
    """

    start: int
    index: np.ndarray
    real: int


def padded_batches(count: int, batch_size: int) -> Iterator[PaddedBatch]:
    """Yield the rows 0, ..., count - 1 in order, in batches of exactly `batch_size`.

    Args:
      count: the number of rows.
      batch_size: rows in each batch, at least 1.

    Yields:
      The batches; the last one is filled up with copies of the last row.
    """
    for start in range(0, count, batch_size):
        index = np.minimum(np.arange(start, start + batch_size), count - 1)
        yield PaddedBatch(start, index, min(batch_size, count - start))
