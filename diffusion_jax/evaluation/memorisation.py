"""Are generated images copies of training images? Their distance to the nearest, beside that of
real images never seen.

A model that has learnt the law comes no nearer to its training set than held-out real images do.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from diffusion_jax.evaluation.prdc import nearest_distances

RARE = 0.01  # the fraction of held-out images that count as copies, by definition


class Memorisation(NamedTuple):
    """ratio: the median distance to the nearest training image, over that of held-out images; 0:
    all are copies.

    copies: the fraction nearer to a training image than all but the nearest 1 % of held-out ones;
      0.01 is chance.
    """

    ratio: float
    copies: float


def memorisation(fake: np.ndarray, train: np.ndarray, typical: np.ndarray) -> Memorisation:
    """Of features (N, D) against training features (M, D); typical: nearest_distances(held-out
    features, train).
    """
    distances = nearest_distances(fake, train)
    ratio = float(np.median(distances) / max(np.median(typical), 1e-12))
    return Memorisation(ratio, float(np.mean(distances < np.quantile(typical, RARE))))
