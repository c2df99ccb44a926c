"""Sounds before they are brought to one rate, length and number of channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from diffusion_jax.data.sound import Representation
from diffusion_jax.data.sound_files import SoundHeader


class Request(NamedTuple):
    """What config.data says about sounds.

    Attributes:
      representation: config.data.sound.
      rate: in Hz; 0 keeps that of the sounds.
      length: in seconds; 0 keeps that of the sounds.
      channels: 1 or 2; 0 keeps those of the sounds.
      pattern: of file names with fields; '' for classes by sub-folders.
      class_fields: the fields that make the classes.
      test_where: the examples that are held out, by a field; '' for those of the folder's layout.
    """

    representation: Representation = Representation("waveform")
    rate: int = 0
    length: float = 0.0
    channels: int = 0
    pattern: str = ""
    class_fields: tuple[str, ...] = ()
    test_where: str = ""


class Recordings(NamedTuple):
    """Sounds that are not yet brought to one rate and length.

    Attributes:
      names: of the sounds, for messages.
      headers: of each.
      read: (number, rate, samples wanted) -> (n, channels), float32.
      labels: (N,) or None.
      class_names: by label.
      fields: as in `Sound`.
      test: (N,) of bool.
      rule: how they are split, in words.
    """

    names: Sequence[str]
    headers: list[SoundHeader]
    read: Callable[[int, int, int], np.ndarray]
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    fields: tuple[tuple[str, tuple[str, ...]], ...]
    test: np.ndarray
    rule: str
