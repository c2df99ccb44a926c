"""Sounds as they are judged: by pictures of their log-mel spectrograms.

A generated sound is judged by what is heard of it: its values become a wave, with the inverse of
the spectrogram if they are one, and the picture is that of the wave's own spectrogram. Every metric
of images then applies: recognition, features of a classifier, Fréchet distances. A training sound
has the picture of its values, which no inverse has touched; real test sounds are scored like
generated ones, so that their scores include what the inverse loses.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from diffusion_jax.data import logmel, sound
from diffusion_jax.data.normalization import Normalization
from diffusion_jax.data.sound import Sound
from diffusion_jax.data.sources import Arrays, Source

AT_ONCE = 256  # sounds whose waves are in memory at once
QUIET = float(np.log(logmel.FLOOR))  # black in a picture; white is 0, a sine of full scale
DECIBELS = 20 / np.log(10)  # of a unit of log magnitude


class Heard(Arrays):
    """A split of sounds as uint8 pictures.

    Args:
      image: (N, frames, mels, channels), uint8.
      label: (N,), or None.
      sounds: what the sounds are.
    """

    def __init__(self, image: np.ndarray, label: np.ndarray | None, sounds: Sound) -> None:
        super().__init__(image, label)
        self.sounds = sounds


def sound_of(source: Source) -> Sound | None:
    """Return what the sounds of a split are; None for other data.

    Args:
      source: the split, of values or of pictures.
    """
    normalized: Normalization | None = getattr(source, "normalized", None)
    return normalized.sound if normalized else getattr(source, "sounds", None)


def as_judged(source: Source | None) -> Source | None:
    """Return the pictures of a split of sounds; any other split as it is.

    Args:
      source: the split.
    """
    normalized: Normalization | None = getattr(source, "normalized", None)
    if source is None or normalized is None or normalized.sound is None:
        return source
    parts, labels = [], []
    for start in range(0, len(source), AT_ONCE):
        rows = source.rows(np.arange(start, min(start + AT_ONCE, len(source))))
        values = normalized.decode(rows["image"])
        parts.append(pictures(_spectrograms(normalized.sound, values)))
        labels.append(rows.get("label"))
    label = None if labels[0] is None else np.concatenate(labels)
    return Heard(np.concatenate(parts), label, normalized.sound)


def ear(source: Source) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return the function from normalized samples to the pictures of what is heard of them.

    Args:
      source: a split of sounds; of other data the result is None.
    """
    normalized: Normalization | None = getattr(source, "normalized", None)
    if normalized is None or normalized.sound is None:
        return None
    return functools.partial(_heard, normalized)


def _heard(normalized: Normalization, samples: np.ndarray) -> np.ndarray:
    own, parts = normalized.sound, []
    for start in range(0, len(samples), AT_ONCE):
        waves = sound.waves(own, normalized.decode(samples[start : start + AT_ONCE]))
        parts.append(pictures(sound.spectrograms(own, waves)))
    return np.concatenate(parts)


def _spectrograms(own: Sound, values: np.ndarray) -> np.ndarray:
    if own.kind == "logmel":
        return values
    return sound.spectrograms(own, sound.waves(own, values))


def pictures(spectrograms: np.ndarray) -> np.ndarray:
    """Return log-mel spectrograms as levels: 0 at the floor, 255 for a sine of full scale.

    Args:
      spectrograms: log magnitudes of any shape.

    Returns:
      uint8 of the same shape; a level is about 0.3 dB.
    """
    return np.rint(255 * np.clip(1 - spectrograms / QUIET, 0, 1)).astype(np.uint8)


def spectrum(images: np.ndarray) -> np.ndarray:
    """Average pictures over their frames and channels: the long-term spectrum of each sound.

    Args:
      images: (N, frames, mels, channels), as `pictures` returns them.

    Returns:
      (N, mels), float32, in dB below a sine of full scale.
    """
    return (images.mean((1, 3), dtype=np.float32) / 255 - 1) * np.float32(-QUIET * DECIBELS)


def spectral_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The log-spectral distance of two long-term spectra, sqrt(mean (a - b)^2), in dB.

    Args:
      a: (mels,), in dB.
      b: (mels,), in dB.
    """
    return float(np.sqrt(np.mean(np.square(a - b, dtype=np.float64))))


def by_field(own: Sound | None) -> dict[str, np.ndarray]:
    """Return the value of every field by class, as numbers: {'digit': (K,), 'speaker': (K,)}.

    Args:
      own: what the sounds are; {} for other data and for classes without fields.
    """
    fields = own.fields if own and len(own.fields) > 1 else ()
    return {name: np.unique(values, return_inverse=True)[1] for name, values in fields}
