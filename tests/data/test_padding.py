"""Padded batches: every row once, every batch of one size."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_jax.data.padding import padded_batches


@pytest.mark.parametrize("count, batch_size", [(1, 1), (5, 2), (6, 3), (2, 7), (7, 7)])
def test_every_row_comes_once_and_every_batch_is_full(count, batch_size):
    parts = list(padded_batches(count, batch_size))
    assert all(part.index.shape == (batch_size,) and part.index.max() < count for part in parts)
    assert all(part.index[0] == part.start for part in parts)
    rows = np.concatenate([part.index[: part.real] for part in parts])
    assert rows.tolist() == list(range(count))
    assert (parts[-1].index[parts[-1].real :] == count - 1).all()


def test_no_rows_are_no_batches():
    assert list(padded_batches(0, 3)) == []
