"""How sharp images are: two numbers that a blur lowers and noise raises. They mean something beside
those of real images.

The mean of a Gaussian decoder averages over all images that its code allows, which leaves the low
frequencies as they are and takes the high ones away; both numbers see that without any network, and
neither can be had by memorising one sharp image.
"""

from __future__ import annotations

import numpy as np

from diffusion_jax.data import transforms


def laplacian_variance(images: np.ndarray) -> np.ndarray:
    """The variance over pixels of the five-point Laplacian (Pech-Pacheco et al. 2000), of values in
    [0, 1]; mean over channels.

    images: uint8 (N, H, W, C), at least 3 x 3. Returns (N,).
    """
    x = transforms.to_unit(images)
    inner = x[:, 1:-1, 1:-1]
    laplacian = x[:, :-2, 1:-1] + x[:, 2:, 1:-1] + x[:, 1:-1, :-2] + x[:, 1:-1, 2:] - 4 * inner
    return laplacian.var(axis=(1, 2)).mean(axis=-1)


def high_frequency(images: np.ndarray, above: float = 0.25) -> np.ndarray:
    """The energy at frequencies of more than `above` cycles a pixel (Nyquist is 0.5), per pixel, of
    values in [0, 1].

    sum_k |X_k|^2 1[|k| > above] / (H W)^2 by Parseval: what a perfect low-pass filter at `above`
    would take from the mean square of an image; mean over channels. images: uint8 (N, H, W, C).
    Returns (N,).
    """
    x = transforms.to_unit(images)
    rows, columns = (np.fft.fftfreq(n) for n in x.shape[1:3])
    mask = np.hypot(rows[:, None], columns) > above
    energy = np.abs(np.fft.fft2(x, axes=(1, 2))) ** 2
    return (energy * mask[..., None]).sum(axis=(1, 2)).mean(axis=-1) / (
        x.shape[1] * x.shape[2]
    ) ** 2


def relative(images: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Both, of images over those of real ones (means over images): 1 is as sharp as life, less is
    blurred, more is noisy.
    """
    measures = {"laplacian": laplacian_variance, "high_frequency": high_frequency}
    return {
        name: float(measure(images).mean() / measure(real).mean())
        for name, measure in measures.items()
    }
