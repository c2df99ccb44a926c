"""Sounds in pictures, files and pages: spectrograms, WAV files, and players.

Samples are normalized values of a data set of sounds. Their spectrogram is that of the values
themselves; what is heard is the wave that they stand for (data/sound.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from diffusion_jax.core.deferred import deferred
from diffusion_jax.core.files import atomic_path
from diffusion_jax.data import logmel, sound, sound_files
from diffusion_jax.data.normalization import Normalization

html = deferred("diffusion_jax.report.html")
matplotlib = deferred("matplotlib")

RANGE = 60.0  # dB from black to the loudest place of a spectrogram, as in phonetics
QUIETEST = -60.0  # dB below full scale: what is nowhere louder stays dark
SMALLEST = 64  # pixels of a side of a tile, at least
COLORS = "magma"
SECONDS = 10.0  # that a player has of a sound, at most


def arrays(normalization: Normalization, samples: np.ndarray) -> dict[str, np.ndarray]:
    """Return the waves of samples as the arrays of a file, which data.name=sound reads.

    Args:
      normalization: of the data set.
      samples: (N, ...), normalized.

    Returns:
      {'data': (N, length, channels) int16, 'rate': ()}.
    """
    own = normalization.sound
    waves = sound.waves(own, normalization.decode(samples))
    return {"data": np.rint(sound.PEAK * waves).astype(np.int16), "rate": np.int64(own.rate)}


def tiles(normalization: Normalization, samples: np.ndarray) -> np.ndarray:
    """Draw spectrograms: time to the right, frequency upward, brighter is louder.

    Each has a scale of its own, so that quiet speakers are seen as well as loud ones.

    Args:
      normalization: of the data set.
      samples: (N, ...), normalized.

    Returns:
      (N, h, w, 3) uint8; channels are one above the other.
    """
    own, values = normalization.sound, normalization.decode(samples)
    if own.kind == "waveform":
        values = sound.spectrograms(own, sound.waves(own, values))
    decibels = 20 / np.log(10) * values
    loudest = np.maximum(decibels.max((1, 2, 3), keepdims=True), QUIETEST)
    black = np.maximum(loudest - RANGE, 20 * np.log10(logmel.FLOOR))
    levels = np.clip((decibels - black) / (loudest - black), 0, 1)
    table = matplotlib.colormaps[COLORS](np.arange(256), bytes=True)[:, :3]
    colored = table[np.rint(255 * levels).astype(np.uint8)]  # (N, frames, mels, channels, 3)
    upward = np.moveaxis(colored[:, :, ::-1], 1, 3)  # (N, mels, channels, frames, 3)
    stacked = np.moveaxis(upward, 2, 1).reshape(len(values), -1, values.shape[1], 3)
    scale = max(1, -(-SMALLEST // min(stacked.shape[1:3])))
    return stacked.repeat(scale, 1).repeat(scale, 2)


def names(seeds: Sequence[int], labels: Sequence[int], classes: Sequence[str]) -> list[str]:
    """Name the files of sounds by seed and class, such as 0007_3_theo.wav.

    Args:
      seeds: one for each sound.
      labels: (N,), or () without classes.
      classes: the names of the classes.
    """
    texts = [f"_{classes[label]}" for label in labels] if len(labels) else [""] * len(seeds)
    plain = [re.sub(r"[^A-Za-z0-9_-]+", "_", text) for text in texts]
    return [f"{seed:04d}{text}.wav" for seed, text in zip(seeds, plain)]


def save(folder: Path, own: Sequence[str], found: dict[str, np.ndarray]) -> None:
    """Write sounds as WAV files into a folder of their own, which is emptied first.

    Args:
      folder: the folder.
      own: the name of each file.
      found: what `arrays` returns.
    """
    if folder.is_dir():
        for file in folder.glob("*.wav"):
            file.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    for name, wave in zip(own, found["data"]):
        with atomic_path(folder / name) as part:
            part.write_bytes(sound_files.wav(wave / sound.PEAK, int(found["rate"])))


def players(normalization: Normalization, samples: np.ndarray) -> list[Markup]:
    """Make a player of every sample, for a page.

    Args:
      normalization: of the data set.
      samples: (N, ...), normalized.
    """
    found = arrays(normalization, samples)
    most, rate = int(SECONDS * found["rate"]), int(found["rate"])
    return [html.player(sound_files.wav(wave[:most] / sound.PEAK, rate)) for wave in found["data"]]
