"""Whether generated images are copies of training images.

Their distances to the nearest training image are compared with those of real images that were not
trained on. A model that has learned the distribution comes no nearer to its training set than
held-out real images do.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

RARE = 0.01  # the fraction of held-out images that count as copies, by definition


class Memorization(NamedTuple):
    """The distance of generated images to training images, relative to held-out images.

    Attributes:
      ratio: the median distance to the nearest training image, divided by that of held-out images;
        0 means that all are copies.
      copies: the fraction that is nearer to a training image than all but the nearest 1 % of the
        held-out images; 0.01 is chance.
    """

    ratio: float
    copies: float


def memorization(distances: np.ndarray, typical: np.ndarray) -> Memorization:
    """Compare the distances of generated images to the nearest training image with typical ones.

    Args:
      distances: (N,), `prdc.nearest_distances` of features of the generated images to those of the
        training images.
      typical: (K,), the distances of held-out images to the same.
    """
    ratio = float(np.median(distances) / max(np.median(typical), 1e-12))
    return Memorization(ratio, float(np.mean(distances < np.quantile(typical, RARE))))
