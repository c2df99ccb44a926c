"""Data sets of sounds: a folder of WAV and FLAC files, or the arrays of an .npz file.

    FOLDER      sub-folders are classes (layout.py), or file names have fields (fields.py)
    FILE.npz    'data' (N, n) or (N, n, channels), or recordings of any length one after another:
                'pcm' (total[, channels]) and 'offsets' (N + 1,); int16, or float in [-1, 1].
                'rate' is in Hz. Other arrays of N integers are fields; names of their values are in
                an array with an s ('speaker' and 'speakers').

All sounds are resampled to data.rate, brought to data.channels, and cropped or padded with silence
to data.length. Nothing is guessed: sounds that differ in one of these are refused without its key.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from diffusion_jax.core.errors import UserError, printable
from diffusion_jax.data import (
    condition_arrays,
    fields,
    folder,
    layout,
    normalization,
    sound,
    sound_arrays,
    tree,
)
from diffusion_jax.data import sound_files as files
from diffusion_jax.data.any_shape import StoredArrays
from diffusion_jax.data.held_out import File, held_out
from diffusion_jax.data.recordings import Recordings, Request
from diffusion_jax.data.sound import Sound
from diffusion_jax.data.sources import Splits, held_in_memory, parallel

AT_ONCE = 256  # sounds that are represented at once


def load(
    path: str, request: Request, rule: str = "standard", how: str = "", limit_bad: int = -1
) -> Splits:
    """Read a set of sounds: into memory, or, if it is large, as batches need them.

    Args:
      path: data.path, a folder or an .npz file.
      request: what config.data says about sounds.
      rule: config.data.normalization.
      how: config.data.layout, of a folder.
      limit_bad: the number of unreadable files that are skipped; -1 is a tenth, from 1 to 100.

    Raises:
      UserError: for every mistake that a user can make, in one line.
    """
    what = f"data.path={path}"
    return splits_of(_recordings_of(path, request, how, limit_bad, what), request, rule, what)


def splits_of(found: Recordings, request: Request, rule: str, what: str) -> Splits:
    """Bring sounds to one rate, length and number of channels, and normalize them.

    Args:
      found: the sounds.
      request: what config.data says about sounds.
      rule: config.data.normalization.
      what: the data, for messages.

    Raises:
      UserError: for sounds that differ where no key says what they become, and damaged ones.
    """
    own = format_of(found, request, what)
    values, split_rule = Represented(found.read, own, len(found.headers)), found.rule
    if held_in_memory(len(values) * np.dtype(own.dtype).itemsize, own.shape):
        values = _whole(values)
    else:
        split_rule += "; too large for the memory, so read batch by batch"
    rows = [np.flatnonzero(found.test == held) for held in (False, True)]
    parts = condition_arrays.chunks(values, rows[0])
    normalized = normalization.measure(parts, rule, own.dtype, what)._replace(sound=own)
    for part in condition_arrays.chunks(values, rows[1]):  # so that damage is found now
        normalization.check_finite(part, what)
    labels = [None if found.labels is None else found.labels[r] for r in rows]
    if own.fields:
        _check_trained(labels[0], found.class_names, what)
    train, test = (StoredArrays(values, r, y, normalized) for r, y in zip(rows, labels))
    return Splits(
        train,
        test,
        own.shape,
        len(found.class_names),
        found.class_names,
        rule=split_rule,
        normalization=normalized,
    )


def described(path: str, request: Request, how: str = "", limit_bad: int = -1) -> Sound:
    """Return what the sounds of a set become, from the headers of its files.

    Args:
      path: as of `load`.
      request: likewise.
      how: likewise.
      limit_bad: likewise.

    Raises:
      UserError: likewise.
    """
    what = f"data.path={path}"
    return format_of(_recordings_of(path, request, how, limit_bad, what), request, what)


def _recordings_of(path: str, request: Request, how: str, limit_bad: int, what: str) -> Recordings:
    """The sounds of a folder or an .npz file, which are not read yet."""
    place = Path(os.path.expanduser(path))
    check_channels(request.channels)
    if place.suffix == ".npz" and place.is_file():
        return sound_arrays.of_npz(place, request, what)
    if place.is_dir():
        return _of_folder(place, request, how, limit_bad, what)
    wrong = "is not a folder or an .npz file" if place.exists() else "does not exist"
    raise UserError(
        f"{what} {wrong}; name a folder of WAV or FLAC files, or an .npz file of sounds"
    )


def check_channels(channels: int) -> None:
    """Check that sounds can have so many channels.

    Args:
      channels: data.channels; 0 keeps what the sounds have.

    Raises:
      UserError: for anything but mono and stereo.
    """
    if channels not in (0, 1, 2):
        raise UserError(f"data.channels={channels}: sounds are mono, 1, or stereo, 2")


def format_of(found: Recordings, request: Request, what: str) -> Sound:
    """Return what sounds become.

    Args:
      found: the sounds.
      request: what config.data says about sounds.
      what: the data, for messages.

    Raises:
      UserError: for sounds that differ where no key says what they become.
    """
    rate = request.rate or _common(found, [h.rate for h in found.headers], "rates", "Hz", what)
    channels = request.channels or _common(
        found, [h.channels for h in found.headers], "numbers of channels", "channels", what
    )
    if request.length:
        length = round(request.length * rate)
    else:
        seconds = [h.length / h.rate for h in found.headers]
        length = round(_common(found, seconds, "lengths", "s", what) * rate)
    if length > files.MOST:
        raise UserError(
            f"{what}: sounds of {length / rate:,.0f} seconds at {rate} Hz have {length:,} samples, "
            f"and at most {files.MOST:,} are read; set config.data.length"
        )
    if length < max(1, request.representation.window):
        raise UserError(
            f"config.data.length={request.length:g} (seconds) is {length} samples at {rate} Hz; at "
            f"least {max(1, request.representation.window)} are needed"
        )
    return Sound(rate, length, channels, *request.representation, fields=found.fields)


def _common(found: Recordings, each: list, plural: str, unit: str, what: str) -> float:
    """The value that all sounds share."""
    other = next((i for i, value in enumerate(each) if value != each[0]), None)
    if other is None:
        return each[0]
    key = {"rates": "rate=8000", "lengths": "length=1.0"}.get(plural, "channels=1")
    raise UserError(
        f"{what} has sounds of several {plural} ({printable(found.names[0])} {each[0]:g} {unit}, "
        f"{printable(found.names[other])} {each[other]:g} {unit}): set data.{key}, for instance"
    )


class Represented:
    """The values of sounds as an array (N, *own.shape) that is read where it is indexed.

    Args:
      read: (number, rate, samples wanted) -> (n, channels), float32.
      own: what the sounds become.
      count: the number of sounds.
    """

    def __init__(self, read: Callable[[int, int, int], np.ndarray], own: Sound, count: int) -> None:
        self.read, self.own = read, own
        self.shape, self.dtype = (count, *own.shape), np.dtype(own.dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        if not len(rows):
            return np.zeros((0, *self.own.shape), self.dtype)
        waves = parallel(self._wave, [int(row) for row in rows])
        return sound.values(self.own, np.stack(waves)).astype(self.dtype)

    def _wave(self, number: int) -> np.ndarray:
        return fitted(self.read(number, self.own.rate, self.own.length), self.own)


def _whole(values: Represented) -> np.ndarray:
    """The values of all sounds in memory."""
    result = np.zeros(values.shape, values.dtype)
    for start in range(0, len(result), AT_ONCE):
        rows = np.arange(start, min(start + AT_ONCE, len(result)))
        result[rows] = values[rows]
    return result


def fitted(samples: np.ndarray, own: Sound) -> np.ndarray:
    """Crop or pad samples to the length of a format, and mix or repeat their channels.

    Args:
      samples: (n, channels), at its rate.
      own: the format.

    Returns:
      (own.length, own.channels), float32.
    """
    if samples.shape[1] != own.channels:
        samples = samples.mean(1, keepdims=True) if own.channels == 1 else samples.repeat(2, 1)
    result = np.zeros((own.length, own.channels), np.float32)
    result[: len(samples)] = samples[: own.length]
    return result


def _check_trained(labels: np.ndarray, names: tuple[str, ...], what: str) -> None:
    missing = sorted(set(range(len(names))) - set(labels.tolist()))
    if missing:
        raise UserError(
            f"{what}: no training sound is of class '{names[missing[0]]}'; choose another "
            "config.data.test_where or config.data.class_fields"
        )


# ---- folders
def _of_folder(root: Path, request: Request, how: str, limit_bad: int, what: str) -> Recordings:
    listing = tree.walk(root, files.ENDINGS, lambda path: False)
    if not listing.images:
        held = tree.counted(listing, (), "; it holds ", ", which are not read")
        raise UserError(f"{what} holds no WAV or FLAC files{held}")
    by_name = bool(request.pattern)
    arranged = layout.arrange(root, listing, "flat" if by_name else how)
    layout.warn_of_unused(str(root), listing, arranged)
    train, test = _readable(arranged, request.length, limit_bad, what)
    layout.check_classes(str(root), arranged.classes, {file.label for file in train}, "sound")
    if by_name:
        names = [Path(file.name).stem for file in train]
        values = fields.of_names(_stem(request.pattern), names, what)
        return _by_fields(train, request, values, what)
    if request.class_fields or request.test_where:
        raise UserError(
            "config.data.class_fields and config.data.test_where need fields: set "
            "config.data.pattern, such as {digit}_{speaker}_{index}.wav"
        )
    if arranged.test is None:
        train, test = held_out(train, what)
    every, number = [*train, *test], {name: i for i, name in enumerate(arranged.classes)}
    labels = np.array([number[f.label] for f in every], np.int32) if number else None
    held = np.arange(len(every)) >= len(train)
    names = tuple(map(printable, arranged.classes))
    return _of_files(every, labels, names, (), held, arranged.rule)


def _stem(pattern: str) -> str:
    """A pattern without the ending of a file."""
    ending = Path(pattern).suffix.lower()
    return pattern[: -len(ending)] if ending in files.ENDINGS else pattern


def _by_fields(every: list[File], request: Request, values: fields.Fields, what: str) -> Recordings:
    made = fields.classes(request.class_fields, values) if request.class_fields else None
    if request.test_where:
        held = fields.held_out(request.test_where, values, what)
        rule = f"held out: {printable(request.test_where)}"
    else:
        own = [f._replace(label=str(y)) for f, y in zip(every, made.labels)] if made else every
        test = {file.path for file in held_out(own, what)[1]}
        held, rule = np.array([file.path in test for file in every]), "a tenth is held out by name"
    parts = (made.labels, made.names, made.fields) if made else (None, (), ())
    return _of_files(every, *parts, held, rule)


def _of_files(every: list[File], *about: object) -> Recordings:
    headers = [files.header(file.path) for file in every]
    read = functools.partial(_read_file, [file.path for file in every])
    return Recordings([file.name for file in every], headers, read, *about)


def _read_file(paths: Sequence[Path], number: int, rate: int, length: int) -> np.ndarray:
    """As `Recordings.read`, of files."""
    try:
        return files.read(paths[number], rate, length)
    except files.UnreadableSound as error:
        raise UserError(
            f"'{printable(str(paths[number]))}' is damaged: {error}; remove it, or save it again"
        ) from error


def _readable(
    arranged: layout.Arranged, seconds: float, limit_bad: int, what: str
) -> tuple[list[File], list[File]]:
    """The files of both splits that can be read; at most `limit_bad` others are skipped."""
    parts = [arranged.train, arranged.test or []]
    limit = folder.default_limit(sum(map(len, parts))) if limit_bad < 0 else limit_bad
    unreadable = folder.Unreadable(what.partition("=")[2], limit, "sounds")

    def readable(file: File) -> bool:
        try:
            files.checked(file.path, seconds)
            return True
        except files.UnreadableSound as error:
            unreadable.add(file.path, error)
            return False

    kept = [[f for f, good in zip(part, parallel(readable, part)) if good] for part in parts]
    unreadable.report()
    if not kept[0] or (arranged.test and not kept[1]):
        raise UserError(
            f"{what}: no sound of the {'test' if kept[0] else 'train'} split is readable"
        )
    return kept[0], kept[1]
