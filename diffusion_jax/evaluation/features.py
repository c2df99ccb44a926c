"""What a picture is compared by. A feature extractor is one function: images uint8 (N, H, W, C) -> (N, D) floats.

Metrics (frechet.py and those to come) take features and never ask where they come from.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Features = Callable[[np.ndarray], np.ndarray]


def pixels(images: np.ndarray) -> np.ndarray:
    """The picture itself, in [0, 1]: (N, H, W, C) uint8 -> (N, H W C) float32. For small, aligned images."""
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)
