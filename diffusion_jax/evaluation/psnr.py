"""Peak signal-to-noise ratio of reconstructed and restored images."""

from __future__ import annotations

import numpy as np

LARGEST = 100.0  # dB, of equal images


def psnr(images: np.ndarray, truth: np.ndarray, span: np.ndarray | None = None) -> np.ndarray:
    """Peak signal-to-noise ratio of each image, 10 log10(range^2 / mean squared error), in dB.

    Args:
      images: (N, ...), uint8, or floating-point numbers in [-1, 1].
      truth: the true images, of the same shape and type.
      span: (C,) the range of each channel, for arrays of other numbers.

    Returns:
      (N,) float64, at most LARGEST.
    """
    difference = images.astype(np.float64) - truth.astype(np.float64)
    if span is not None:
        difference, span = difference / span, 1.0
    else:
        span = 255.0 if truth.dtype == np.uint8 else 2.0
    error = np.square(difference).reshape(len(images), -1).mean(1)
    return np.minimum(10 * np.log10(span**2 / np.maximum(error, 1e-12)), LARGEST)
