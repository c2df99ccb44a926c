"""WAV and FLAC files: headers, samples, resampling, and WAV files to write.

WAV files of 16 bits are read by the standard library. Others, and FLAC, need `soundfile`, which is
the extra `sound`. Nothing in a file is executed, and no more samples are read than are wanted.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.core.deferred import deferred
from diffusion_jax.core.errors import UserError
from diffusion_jax.data.sound import PEAK

signal = deferred("scipy.signal")

ENDINGS = (".wav", ".flac")
RATES = (1, 384_000)  # Hz
MOST = 2**26  # samples of a file without a length, so that a header cannot exhaust the memory
BLOCK = 2**16  # samples that are decoded at once to find damage
HEADER = 44  # bytes before the samples of a WAV file, at least
LOUDEST = 4.0  # of samples of floats, 12 dB above full scale: others have another unit
INSTALL = "pip install 'diffusion_jax[sound]'"


class UnreadableSound(Exception):
    """A file that is not a sound, or is damaged."""


class SoundHeader(NamedTuple):
    """What the first bytes of a file state.

    Attributes:
      rate: samples in a second.
      channels: 1 or 2.
      length: in samples.
    """

    rate: int
    channels: int
    length: int


def header(path: Path) -> SoundHeader:
    """Read the header of a file, and decode its first samples.

    Args:
      path: a WAV or FLAC file.

    Raises:
      UnreadableSound: for a file that is not a sound, is empty, or has more than two channels.
      UserError: where soundfile is needed and not installed.
    """
    return _read(path, 1, 1)[0]


def checked(path: Path, seconds: float) -> SoundHeader:
    """Read the header of a file, and decode its beginning, so that damage in it is found.

    Samples of 16 bits in a WAV file cannot be damaged and are not read.

    Args:
      path: a WAV or FLAC file.
      seconds: how much is decoded; 0 is all.

    Raises:
      UnreadableSound: as `header`, and for what cannot be decoded.
      UserError: where soundfile is needed and not installed.
    """
    if not path.is_file():
        raise UnreadableSound("it is not a regular file")
    if path.suffix.lower() == ".wav" and (found := _read_wave(path, 1, 1)):
        return found[0]
    with _opened(path) as (file, found):
        left = enough(found, math.ceil(seconds) or -1, 1)
        while left > 0:
            samples = _sane(file.read(min(left, BLOCK), dtype="float32", always_2d=True))
            if not len(samples):
                break
            left -= len(samples)
        return found


def read(path: Path, rate: int, length: int) -> np.ndarray:
    """Read the beginning of a file at a sampling rate.

    Args:
      path: a WAV or FLAC file.
      rate: to which it is resampled.
      length: the samples that are wanted, at that rate; 0 reads all.

    Returns:
      (n, channels), float32, in [-1, 1]; n is at most `length`.

    Raises:
      UnreadableSound: for a damaged file.
    """
    found, samples = _read(path, length or -1, rate)
    return fitted_rate(samples, found.rate, rate)[: length or None]


def fitted_rate(samples: np.ndarray, own: int, rate: int) -> np.ndarray:
    """Resample by a polyphase filter.

    Args:
      samples: (n, channels).
      own: their rate, in Hz.
      rate: the new rate.

    Returns:
      (n', channels), float32.
    """
    if own == rate or not len(samples):
        return samples
    common = math.gcd(own, rate)
    return signal.resample_poly(samples, rate // common, own // common, axis=0).astype(np.float32)


def wav(samples: np.ndarray, rate: int) -> bytes:
    """Return a WAV file of 16 bits.

    Args:
      samples: (n, channels), in [-1, 1].
      rate: in Hz.
    """
    with wave.open(buffer := io.BytesIO(), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        levels = np.rint(PEAK * np.clip(samples, -1, 1)).astype("<i2")
        file.writeframes(levels.tobytes())
    return buffer.getvalue()


def _read(path: Path, wanted: int, rate: int) -> tuple[SoundHeader, np.ndarray]:
    """The header of a file and its first samples: `wanted` of them at `rate`, -1 for all."""
    if not path.is_file():
        raise UnreadableSound("it is not a regular file")
    if path.suffix.lower() == ".wav" and (found := _read_wave(path, wanted, rate)):
        return found
    return _read_soundfile(path, wanted, rate)


def enough(found: SoundHeader, wanted: int, rate: int) -> int:
    """Return how many samples of a sound give `wanted` samples at another rate.

    Args:
      found: its header.
      wanted: the samples at that rate; -1 for all.
      rate: the other rate, in Hz.
    """
    most = min(found.length, MOST)
    return most if wanted < 0 else min(most, math.ceil(wanted * found.rate / max(rate, 1)))


def _read_wave(path: Path, wanted: int, rate: int) -> tuple[SoundHeader, np.ndarray] | None:
    """Read a WAV file of 16 bits; None for what the standard library does not know."""
    try:
        with wave.open(str(path), "rb") as file:
            if file.getsampwidth() != 2:
                return None
            found = _checked(file.getframerate(), file.getnchannels(), file.getnframes())
            size = max(0, os.path.getsize(path) - HEADER) // (2 * found.channels)
            found = found._replace(length=min(found.length, size))
            content = file.readframes(enough(found, wanted, rate))
    except (wave.Error, EOFError, OSError, RuntimeError):  # (RuntimeError: a chunk beyond the end)
        return None
    whole = len(content) // (2 * found.channels) * 2 * found.channels
    levels = np.frombuffer(content[:whole], "<i2").reshape(-1, found.channels)
    return found, levels.astype(np.float32) / (PEAK + 1)


def _read_soundfile(path: Path, wanted: int, rate: int) -> tuple[SoundHeader, np.ndarray]:
    with _opened(path) as (file, found):
        count = enough(found, wanted, rate)
        return found, _sane(file.read(count, dtype="float32", always_2d=True))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, SoundHeader]]:
    """A file and its header; what soundfile raises in the block is an UnreadableSound."""
    try:
        import soundfile  # noqa: PLC0415  an optional dependency: soundfile
    except ImportError as error:
        raise UserError(
            f"'{path}' is not a WAV file of 16 bits; other sounds are read by soundfile: {INSTALL}"
        ) from error
    length = 0
    try:
        with soundfile.SoundFile(path) as file:
            length = file.frames
            yield file, _checked(file.samplerate, file.channels, length)
    except (soundfile.SoundFileError, OSError, MemoryError) as error:
        if length > MOST:  # as of a stream that was cut, or written without knowing its end
            raise UnreadableSound("its header does not say how long it is") from error
        raise UnreadableSound(f"{error!s:.200}") from error


def _sane(samples: np.ndarray) -> np.ndarray:
    """Refuse samples of floats that are no numbers, or whose full scale is not 1."""
    if not np.isfinite(samples).all():
        raise UnreadableSound("it has samples that are NaN or infinite")
    if (loudest := np.abs(samples).max(initial=0)) > LOUDEST:
        raise UnreadableSound(f"its samples reach {loudest:g}, and full scale is 1: divide them")
    return samples


def _checked(rate: int, channels: int, length: int) -> SoundHeader:
    if not RATES[0] <= rate <= RATES[1]:
        raise UnreadableSound(f"its rate is {rate} Hz")
    if channels not in (1, 2):
        raise UnreadableSound(f"it has {channels} channels; mono and stereo are read")
    if length < 1:
        raise UnreadableSound("it is empty")
    return SoundHeader(rate, channels, length)
