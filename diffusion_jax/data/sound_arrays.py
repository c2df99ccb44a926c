"""Sounds in the arrays of an .npz file; sound_sets.py says which arrays."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from diffusion_jax.core import npz
from diffusion_jax.core.errors import UserError, printable
from diffusion_jax.data import array_files, fields, sound
from diffusion_jax.data import sound_files as files
from diffusion_jax.data.recordings import Recordings, Request
from diffusion_jax.data.sound_files import SoundHeader


def of_npz(path: Path, request: Request, what: str) -> Recordings:
    """Read an .npz file of sounds.

    Args:
      path: the file.
      request: what config.data says about sounds.
      what: the data, for messages.

    Raises:
      UserError: for arrays that are not sounds, and for a file without a rate.
    """
    arrays = npz.load(path, {}, lambda name: npz.ArraySpec("fiuU"), unpacked=1100)
    offsets, samples, key = _recordings(arrays, what)
    count = len(offsets) - 1
    rate = request.rate
    if "rate" in arrays and arrays["rate"].size == 1 and arrays["rate"].dtype.kind != "U":
        rate = int(arrays["rate"].item())
    if not files.RATES[0] <= rate <= files.RATES[1]:
        raise UserError(f"{what} has no 'rate' in Hz: set config.data.rate, such as 8000")
    values = _fields_of(arrays, count, (key, "offsets", "rate"))
    if "labels" in arrays and "labels" not in values:
        own = arrays["labels"]
        raise UserError(
            f"{what}: 'labels' is {own.dtype} {own.shape}; {count} whole numbers or names, one a "
            "sound, are needed"
        )
    wanted = request.class_fields or (("labels",) if "labels" in values else ())
    made = fields.classes(wanted, values) if wanted else None
    if request.test_where:
        held, rule = fields.held_out(request.test_where, values, what), request.test_where
    else:
        rows = array_files.held_out(count, made and made.labels, what)[1]
        held, rule = np.isin(np.arange(count), rows), "a tenth is held out by row"
    headers = [SoundHeader(rate, samples.shape[1], int(n)) for n in np.diff(offsets)]
    one = functools.partial(read, samples, offsets, headers)
    parts = (made.labels, made.names, made.fields) if made else (None, (), ())
    return Recordings([f"row {i}" for i in range(count)], headers, one, *parts, held, rule)


def read(
    samples: np.ndarray,
    offsets: np.ndarray,
    headers: Sequence[SoundHeader],
    number: int,
    rate: int,
    length: int,
) -> np.ndarray:
    """Read the beginning of one of several sounds at a sampling rate, as `Recordings.read`.

    Args:
      samples: (total, channels), of all sounds one after another.
      offsets: (N + 1,), where each begins and the last ends.
      headers: of each.
      number: which of them.
      rate: to which it is resampled.
      length: the samples that are wanted, at that rate.

    Returns:
      (n, channels), float32; n is at most `length`.
    """
    own = headers[number]
    part = samples[offsets[number] : offsets[number + 1]][: files.enough(own, length, rate)]
    part = part / np.float32(sound.PEAK + 1) if part.dtype == np.int16 else part
    return files.fitted_rate(part.astype(np.float32), own.rate, rate)[:length]


def _recordings(arrays: Mapping[str, np.ndarray], what: str) -> tuple[np.ndarray, np.ndarray, str]:
    """(offsets (N + 1,), samples (total, channels), name of the array) of an .npz file."""
    key = next((name for name in ("data", "pcm") if name in arrays), "")
    samples = arrays.get(key)
    if key == "data" and samples.ndim in (2, 3) and samples.size:
        offsets = np.arange(len(samples) + 1) * samples.shape[1]
        samples = samples.reshape(-1, samples.shape[2] if samples.ndim == 3 else 1)
    elif key == "pcm" and samples.ndim in (1, 2) and _are_whole(arrays.get("offsets")):
        samples = samples.reshape(len(samples), -1)
        offsets = arrays["offsets"].astype(np.int64)
    else:
        raise UserError(
            f"{what} has {', '.join(map(printable, sorted(arrays))) or 'nothing'}; an .npz of "
            "sounds needs 'data' (N, n) or (N, n, channels), or 'pcm' and 'offsets' (N + 1,)"
        )
    good = (
        offsets.ndim == 1 and len(offsets) > 1 and offsets[0] >= 0 and (np.diff(offsets) > 0).all()
    )
    if not good or offsets[-1] > len(samples) or samples.shape[1] > 2:
        raise UserError(
            f"{what}: '{key}' {samples.shape} and its offsets are not N sounds of one or two "
            "channels, none of them empty"
        )
    limit = 1.0 if samples.dtype.kind == "f" else np.inf
    if samples.dtype not in (np.int16, np.float32, np.float16) or np.abs(samples).max() > limit:
        raise UserError(
            f"{what}: '{key}' is {samples.dtype}; int16, or float32 and float16 in [-1, 1] are read"
        )
    return offsets, samples, key


def _are_whole(offsets: np.ndarray | None) -> bool:
    return offsets is not None and offsets.dtype.kind in "iu"


def _fields_of(
    arrays: Mapping[str, np.ndarray], count: int, others: tuple[str, ...]
) -> dict[str, list[str]]:
    """The fields of an .npz file: arrays of one whole number or text for each sound."""
    found = {}
    for name, array in arrays.items():
        if name in others or array.shape != (count,) or array.dtype.kind not in "iuU":
            continue
        words, own = arrays.get(f"{name}s"), array.tolist()
        if array.dtype.kind != "U" and words is not None and words.dtype.kind == "U":
            if min(own) < 0 or max(own) >= len(words):
                raise UserError(
                    f"'{name}' has values outside 0..{len(words) - 1}, which '{name}s' names"
                )
            own = [words[i] for i in own]
        found[name] = [str(value) for value in own]
    return found
