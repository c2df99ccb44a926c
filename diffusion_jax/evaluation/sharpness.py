"""How sharp images are: two numbers that blur lowers and noise raises.

They are meaningful only relative to those of real images. The mean of a Gaussian decoder averages
over all images that its code allows, which keeps the low frequencies and removes the high ones;
both numbers show that without any network, and memorizing one sharp image does not raise them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from diffusion_jax.data import transforms
from diffusion_jax.evaluation import intervals
from diffusion_jax.evaluation.intervals import Measured


def laplacian_variance(images: np.ndarray) -> np.ndarray:
    """Variance over the pixels of the five-point Laplacian (Pech-Pacheco et al. 2000).

    Values are in [0, 1]; the result is the mean over channels.

    Args:
      images: uint8 (N, H, W, C), at least 3 x 3.

    Returns:
      (N,).
    """
    x = transforms.to_unit(images)
    inner = x[:, 1:-1, 1:-1]
    laplacian = x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:] - 4 * inner
    return laplacian.var(axis=(1, 2)).mean(axis=-1)


def high_frequency(images: np.ndarray, above: float = 0.25) -> np.ndarray:
    """Energy at high frequencies per pixel, of values in [0, 1]; the mean over channels.

        sum_k |X_k|^2 1[|k| > above] / (H W)^2

    which is, by Parseval, what a perfect low-pass filter at `above` removes from the mean square.

    Args:
      images: uint8 (N, H, W, C).
      above: the lowest frequency that counts, in cycles per pixel (Nyquist is 0.5).

    Returns:
      (N,).
    """
    x = transforms.to_unit(images)
    rows, columns = (np.fft.fftfreq(n) for n in x.shape[1:3])
    mask = np.hypot(rows[:, None], columns) > above
    energy = np.abs(np.fft.fft2(x, axes=(1, 2))) ** 2
    return (energy * mask[..., None]).sum(axis=(1, 2)).mean(axis=-1) / (
        x.shape[1] * x.shape[2]
    ) ** 2


def relative(images: np.ndarray, real: np.ndarray) -> dict[str, Measured]:
    """Divide both measures of images, averaged over the set, by those of real images.

    Args:
      images: the images that are judged, uint8 (N, H, W, C).
      real: real images of the same size, uint8 (M, H, W, C), whose averages count as exact.

    Returns:
      {'laplacian', 'high_frequency'} with intervals: 1 is as sharp as the real images, less is
      blurred, more is noisy.
    """
    measures = {"laplacian": laplacian_variance, "high_frequency": high_frequency}

    def ratio(measure: Callable[[np.ndarray], np.ndarray]) -> Measured:
        mean, half, _ = intervals.mean(measure(images))
        unit = float(measure(real).mean())
        return Measured(mean / unit, None if half is None else half / unit)

    return {name: ratio(measure) for name, measure in measures.items()}
