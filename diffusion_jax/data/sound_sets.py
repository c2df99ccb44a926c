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

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion_jax.core import npz
from diffusion_jax.core.errors import UserError, printable
from diffusion_jax.data import array_files, fields, folder, layout, normalization, sound, tree
from diffusion_jax.data import sound_files as files
from diffusion_jax.data.any_shape import StoredArrays
from diffusion_jax.data.held_out import File, held_out
from diffusion_jax.data.sound import Representation, Sound
from diffusion_jax.data.sound_files import SoundHeader
from diffusion_jax.data.sources import Splits, parallel

AT_ONCE = 256  # sounds that are represented at once


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


class _Recordings(NamedTuple):
    """Sounds that are not yet brought to one length.

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


def load(
    path: str, request: Request, rule: str = "standard", how: str = "", limit_bad: int = -1
) -> Splits:
    """Read a set of sounds into memory.

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
    found = _recordings_of(path, request, how, limit_bad, what)
    own = _format(found, request, what)
    values = _values(found, own)
    rows = [np.flatnonzero(found.test == held) for held in (False, True)]
    normalized = normalization.measure([values[rows[0]]], rule, own.dtype, what)
    normalized = normalized._replace(sound=own)
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
        rule=found.rule,
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
    return _format(_recordings_of(path, request, how, limit_bad, what), request, what)


def _recordings_of(path: str, request: Request, how: str, limit_bad: int, what: str) -> _Recordings:
    """The sounds of a folder or an .npz file, which are not read yet."""
    place = Path(os.path.expanduser(path))
    if request.channels not in (0, 1, 2):
        raise UserError(f"data.channels={request.channels}: sounds are mono, 1, or stereo, 2")
    if place.suffix == ".npz" and place.is_file():
        return _of_npz(place, request, what)
    if place.is_dir():
        return _of_folder(place, request, how, limit_bad, what)
    raise UserError(
        f"{what} must be a folder of WAV or FLAC files, or an .npz file of sounds; there is none"
    )


def _format(found: _Recordings, request: Request, what: str) -> Sound:
    """What the sounds become; UserError where they differ and no key says it."""
    rate = request.rate or _common(found, [h.rate for h in found.headers], "rates", "Hz", what)
    channels = request.channels or _common(
        found, [h.channels for h in found.headers], "numbers of channels", "channels", what
    )
    if request.length:
        length = round(request.length * rate)
    else:
        seconds = [h.length / h.rate for h in found.headers]
        length = round(_common(found, seconds, "lengths", "s", what) * rate)
    if length < max(1, request.representation.window):
        raise UserError(
            f"config.data.length={request.length:g} (seconds) is {length} samples at {rate} Hz; at "
            f"least {max(1, request.representation.window)} are needed"
        )
    return Sound(rate, length, channels, *request.representation, fields=found.fields)


def _common(found: _Recordings, each: list, plural: str, unit: str, what: str) -> float:
    """The value that all sounds share."""
    other = next((i for i, value in enumerate(each) if value != each[0]), None)
    if other is None:
        return each[0]
    key = {"rates": "rate=8000", "lengths": "length=1.0"}.get(plural, "channels=1")
    raise UserError(
        f"{what} has sounds of several {plural} ({printable(found.names[0])} {each[0]:g} {unit}, "
        f"{printable(found.names[other])} {each[other]:g} {unit}): set data.{key}, for instance"
    )


def _values(found: _Recordings, own: Sound) -> np.ndarray:
    """Read and represent all sounds: (N, *own.shape)."""

    def one(number: int) -> np.ndarray:
        return fitted(found.read(number, own.rate, own.length), own)

    values = np.zeros((len(found.headers), *own.shape), own.dtype)
    for start in range(0, len(values), AT_ONCE):
        numbers = list(range(start, min(start + AT_ONCE, len(values))))
        values[numbers] = sound.values(own, np.stack(parallel(one, numbers)))
    return values


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
def _of_folder(root: Path, request: Request, how: str, limit_bad: int, what: str) -> _Recordings:
    listing = tree.walk(root, files.ENDINGS, lambda path: False)
    if not listing.images:
        held = tree.counted(listing, (), "; it holds ", ", which are not read")
        raise UserError(f"{what} holds no WAV or FLAC files{held}")
    by_name = bool(request.pattern)
    arranged = layout.arrange(root, listing, "flat" if by_name else how)
    train, test = _readable(arranged, limit_bad, what)
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


def _by_fields(
    every: list[File], request: Request, values: fields.Fields, what: str
) -> _Recordings:
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


def _of_files(every: list[File], *about: object) -> _Recordings:
    headers = [files.header(file.path) for file in every]

    def read(number: int, rate: int, length: int) -> np.ndarray:
        try:
            return files.read(every[number].path, rate, length)
        except files.UnreadableSound as error:
            raise UserError(
                f"'{printable(str(every[number].path))}' is damaged: {error}"
            ) from error

    return _Recordings([file.name for file in every], headers, read, *about)


def _readable(
    arranged: layout.Arranged, limit_bad: int, what: str
) -> tuple[list[File], list[File]]:
    """The files of both splits that can be read; at most `limit_bad` others are skipped."""
    parts = [arranged.train, arranged.test or []]
    limit = folder.default_limit(sum(map(len, parts))) if limit_bad < 0 else limit_bad
    unreadable = folder.Unreadable(what.partition("=")[2], limit, "sounds")
    headers: dict[File, SoundHeader] = {}

    def readable(file: File) -> bool:
        try:
            headers[file] = files.header(file.path)
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


# ---- .npz files
def _of_npz(path: Path, request: Request, what: str) -> _Recordings:
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

    def read(number: int, rate: int, length: int) -> np.ndarray:
        own = headers[number]
        part = samples[offsets[number] : offsets[number + 1]][: files.enough(own, length, rate)]
        part = part / np.float32(sound.PEAK + 1) if part.dtype == np.int16 else part
        return files.fitted_rate(part.astype(np.float32), own.rate, rate)[:length]

    parts = (made.labels, made.names, made.fields) if made else (None, (), ())
    return _Recordings([f"row {i}" for i in range(count)], headers, read, *parts, held, rule)


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
