"""Log-mel spectrograms of sounds, and sounds from spectrograms.

    S[p, k] = sum_n x[n] w[n - p hop] exp(-2 pi i k n / bins)            the short-time spectrum
    M[p, m] = sqrt(sum_k B[m, k] |S[p, k]|^2),    L = log max(M, FLOOR)

with a Hann window w and triangular filters B that are evenly spaced on the mel scale
2595 log10(1 + f / 700) (O'Shaughnessy 1987). Neither step can be inverted exactly. `sound` finds
magnitudes by non-negative least squares, with multiplicative updates (Lee & Seung 2001), and then
phases by the fast Griffin-Lim algorithm (Perraudin, Balazs & Sondergaard 2013). It has no random
numbers, so a spectrogram is always the same sound.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.core.deferred import deferred
from diffusion_jax.core.errors import UserError

signal = deferred("scipy.signal")

FLOOR = 1e-4  # magnitude of a full-scale sine: 1, so that this is 80 dB below it
MAGNITUDES, PHASES = 30, 32  # iterations
MOMENTUM = 0.99  # of the fast Griffin-Lim algorithm


class Scale(NamedTuple):
    """The resolution of log-mel spectrograms.

    Attributes:
      rate: samples in a second.
      mels: number of filters, from 0 Hz to half the rate.
      window: length of the window, in samples.
      hop: samples from one frame to the next.
    """

    rate: int
    mels: int
    window: int
    hop: int


def frames(scale: Scale, length: int) -> int:
    """Return the number of frames that touch a sound.

    Args:
      scale: the resolution.
      length: of the sound, in samples.
    """
    return _transform(scale).p_num(length)


def spectrogram(scale: Scale, waves: np.ndarray) -> np.ndarray:
    """Compute log-mel spectrograms.

    Args:
      scale: the resolution.
      waves: (N, n), in [-1, 1].

    Returns:
      (N, frames, mels), float32.
    """
    power = np.square(np.abs(_transform(scale).stft(waves)))
    mel = np.sqrt(np.swapaxes(filters(scale) @ power, -1, -2))
    return np.log(np.maximum(mel, FLOOR)).astype(np.float32)


def sound(scale: Scale, spectrograms: np.ndarray, length: int) -> np.ndarray:
    """Find sounds that have given log-mel spectrograms, as nearly as possible.

    Args:
      scale: the resolution.
      spectrograms: (N, frames, mels).
      length: of the sounds, in samples.

    Returns:
      (N, length), float32, in [-1, 1].
    """
    transform, magnitude = _transform(scale), _magnitudes(scale, spectrograms)
    phase, before = np.ones_like(magnitude, np.complex64), 0.0
    for _ in range(PHASES):
        waves = transform.istft(magnitude * phase, k1=length)
        consistent = transform.stft(waves)
        ahead = consistent + MOMENTUM * (consistent - before)
        phase, before = ahead / np.maximum(np.abs(ahead), 1e-12), consistent
    waves = transform.istft(magnitude * phase, k1=length)
    return np.clip(waves, -1.0, 1.0).astype(np.float32)


def _magnitudes(scale: Scale, spectrograms: np.ndarray) -> np.ndarray:
    """Magnitudes (N, bins, frames) whose filtered powers are those of the spectrograms."""
    bank = filters(scale)
    mel = np.exp(np.asarray(spectrograms, np.float32))
    wanted = np.swapaxes(np.square(np.where(mel > FLOOR * 1.01, mel, 0.0)), -1, -2)
    power = numerator = bank.T @ wanted
    for _ in range(MAGNITUDES):
        power = power * numerator / np.maximum(bank.T @ (bank @ power), 1e-20)
    return np.sqrt(power)


@functools.cache
def _transform(scale: Scale) -> Any:  # scipy.signal.ShortTimeFFT
    window = signal.windows.hann(scale.window, sym=False)
    return signal.ShortTimeFFT(
        window * 2 / window.sum(), scale.hop, scale.rate, mfft=bins(scale), fft_mode="onesided"
    )


def bins(scale: Scale) -> int:
    """Return the length of the Fourier transform: twice the window, padded with zeros.

    Args:
      scale: the resolution.
    """
    return 2 * scale.window


@functools.cache
def filters(scale: Scale) -> np.ndarray:
    """Return the triangular filters of the mel scale.

    Args:
      scale: the resolution.

    Returns:
      (mels, bins / 2 + 1), float32; the weights of each filter add up to 1.

    Raises:
      UserError: where filters are narrower than the distance of two frequencies.
    """
    frequencies = np.linspace(0.0, scale.rate / 2, bins(scale) // 2 + 1)
    top = 2595.0 * np.log10(1.0 + scale.rate / 1400.0)
    edges = 700.0 * (10.0 ** (np.linspace(0.0, top, scale.mels + 2) / 2595.0) - 1.0)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    bank = np.maximum(0.0, np.minimum(rising, falling))
    if empty := int((bank.sum(1) == 0).sum()):
        raise UserError(
            f"config.data.sound: {empty} of {scale.mels} mels have no frequency of a window of "
            f"{scale.window} samples at {scale.rate} Hz; use fewer mels or a longer window"
        )
    return (bank / bank.sum(1, keepdims=True)).astype(np.float32)
