"""Sounds as arrays: the representation that a network learns, and the sounds that it stands for.

    waveform    (samples, channels), int16
    logmel      (frames, mels, channels), float32, see logmel.py

`Sound` says which one the values of a data set are. It is part of their normalization, so that it
is recorded in data.json and accompanies a model.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.data import logmel as spectra

PEAK = 32767  # of 16-bit samples
HEARD = spectra.Scale(0, 64, 256, 96)  # at 8 kHz: how waveforms are shown and judged


class Representation(NamedTuple):
    """The arrays that stand for sounds.

    Attributes:
      kind: 'waveform' or 'logmel'.
      mels: number of filters; 0 for waveforms.
      window: length of the window, in samples; 0 for waveforms.
      hop: samples from one frame to the next; 0 for waveforms.
    """

    kind: str
    mels: int = 0
    window: int = 0
    hop: int = 0


class Sound(NamedTuple):
    """What the values of a data set of sounds are.

    Attributes:
      rate: samples in a second.
      length: of a sound, in samples.
      channels: 1 for mono, 2 for stereo.
      kind: 'waveform' or 'logmel', and with the next three a `Representation`.
      mels: number of filters.
      window: length of the window, in samples.
      hop: samples from one frame to the next.
      fields: (name, value of each class) of the fields that make the classes, such as digit and
        speaker; () where classes are not made of fields.
    """

    rate: int
    length: int
    channels: int
    kind: str
    mels: int = 0
    window: int = 0
    hop: int = 0
    fields: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def scale(self) -> spectra.Scale:
        """The resolution of its log-mel spectrograms; of a waveform, that of pictures."""
        if self.kind == "logmel":
            return spectra.Scale(self.rate, self.mels, self.window, self.hop)
        factor = max(1, round(self.rate / 8000))
        return spectra.Scale(self.rate, HEARD.mels, HEARD.window * factor, HEARD.hop * factor)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the values of one sound."""
        if self.kind == "waveform":
            return self.length, self.channels
        return spectra.frames(self.scale, self.length), self.mels, self.channels

    @property
    def dtype(self) -> str:
        """The type of the values."""
        return "int16" if self.kind == "waveform" else "float32"


def waveform() -> Representation:
    """The samples of a sound themselves."""
    return Representation("waveform")


def logmel(mels: int = 64, window: int = 256, hop: int = 96) -> Representation:
    """Log-mel spectrograms; the defaults suit speech at 8 kHz.

    Args:
      mels: number of filters, from 0 Hz to half the rate.
      window: length of the Hann window, in samples.
      hop: samples from one frame to the next, at most half of the window.

    Raises:
      UserError: for a resolution that cannot be inverted.
    """
    if not (1 <= mels <= 512 and 16 <= window <= 2**14 and 1 <= hop <= window // 2):
        raise UserError(
            f"config.data.sound='logmel(mels={mels}, window={window}, hop={hop})': mels must be 1 "
            "to 512, window 16 to 16384 samples, and hop at most half of the window"
        )
    return Representation("logmel", mels, window, hop)


def values(own: Sound, waves: np.ndarray) -> np.ndarray:
    """Represent waves.

    Args:
      own: the representation.
      waves: (N, length, channels), in [-1, 1].

    Returns:
      (N, *own.shape), of own.dtype.
    """
    if own.kind == "waveform":
        return np.rint(PEAK * np.clip(waves, -1, 1)).astype(np.int16)
    return spectrograms(own, waves)


def waves(own: Sound, represented: np.ndarray) -> np.ndarray:
    """Return the sounds that values stand for.

    Args:
      own: the representation.
      represented: (N, *own.shape), in the units of `values`.

    Returns:
      (N, length, channels), float32, in [-1, 1].
    """
    if own.kind == "waveform":
        return np.clip(np.asarray(represented, np.float32) / PEAK, -1, 1)
    apart = np.moveaxis(represented, -1, 1).reshape(-1, *own.shape[:-1])
    found = spectra.sound(own.scale, apart, own.length)
    return np.moveaxis(found.reshape(-1, own.channels, own.length), 1, -1)


def spectrograms(own: Sound, waves: np.ndarray) -> np.ndarray:
    """Compute the log-mel spectrograms of waves.

    Args:
      own: the representation, which has the resolution.
      waves: (N, length, channels), in [-1, 1].

    Returns:
      (N, frames, mels, channels), float32; silence follows waves shorter than the window.
    """
    apart = np.moveaxis(waves, -1, 1).reshape(-1, waves.shape[1])
    apart = np.pad(apart, ((0, 0), (0, max(0, own.scale.window - waves.shape[1]))))
    found = spectra.spectrogram(own.scale, apart)
    return np.moveaxis(found.reshape(-1, waves.shape[2], *found.shape[1:]), 1, -1)


SOUNDS = (waveform, logmel)
