"""Sets of tensorflow-datasets with a feature of type Audio, such as spoken_digit: data.name=NAME.

A feature of that type needs TensorFlow to be constructed, but what it has stored is a tensor of
samples. So the set is opened by a copy of its description in which the feature is that tensor, next
to links to its files. The rate is the feature's own; classes are those of the feature 'label'. What
becomes of the sounds is said as for files (sound_sets.py).
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.core import reading
from diffusion_jax.core.deferred import deferred
from diffusion_jax.core.errors import UserError, printable
from diffusion_jax.data import records, sound, sound_arrays, sound_sets, tfds_builder
from diffusion_jax.data.recordings import Recordings, Request
from diffusion_jax.data.sound_files import RATES, SoundHeader
from diffusion_jax.data.sources import Splits

tfds = deferred("tensorflow_datasets")

AUDIO = "tensorflow_datasets.core.features.audio_feature.Audio"
TENSOR = "tensorflow_datasets.core.features.tensor_feature.Tensor"
SHARE = 0.5  # of the memory that a set may fill
VERSION = re.compile(r"\d+\.\d+\.\d+")
DEEPEST = 2  # folders of a configuration and a version below that of a set


class _Described(NamedTuple):
    """A prepared set of sounds.

    Attributes:
      folder: that has its files.
      features: the content of features.json.
      key: of the feature that holds the sounds.
      audio: what features.json says of that feature.
    """

    folder: Path
    features: dict[str, Any]
    key: str
    audio: dict[str, Any]


def is_of_sounds(name: str, data_dir: str) -> bool:
    """Whether a set is prepared and has a feature of type Audio and none of images.

    Args:
      name: data.name.
      data_dir: config.data.data_dir.

    Raises:
      UserError: for a set that is there with classes that are not TFDS's own, or in several
        configurations of which none is named.
    """
    return bool(_described(name, tfds_builder.default_dir(data_dir)))


def load(name: str, data_dir: str, request: Request, rule: str = "standard") -> Splits:
    """Read a set of sounds.

    Args:
      name: data.name.
      data_dir: config.data.data_dir.
      request: what config.data says about sounds.
      rule: config.data.normalization.

    Raises:
      UserError: for a set without a rate, of other values than sounds, and as `sound_sets.load`.
    """
    return sound_sets.splits_of(*_recordings(name, data_dir, request), rule, f"data.name={name}")


def described(name: str, data_dir: str, request: Request) -> sound.Sound:
    """Return what the sounds of a set become; the set is read for it.

    Args:
      name: data.name.
      data_dir: config.data.data_dir.
      request: what config.data says about sounds.

    Raises:
      UserError: as `load`.
    """
    return sound_sets.format_of(*_recordings(name, data_dir, request), f"data.name={name}")


def _described(name: str, data_dir: str) -> _Described | None:
    parts = re.fullmatch(r"([A-Za-z_]\w*)(?:/([\w+.-]+))?(?::([\d.*]+))?", name)
    root = Path(data_dir) / (parts[1] if parts else "")
    if not parts or not root.is_dir():
        return None
    tfds_builder.check_features(name, root)
    found = [
        file.parent
        for depth in range(1, DEEPEST + 1)
        for file in root.glob("*/" * depth + "features.json")
        if VERSION.fullmatch(file.parent.name)
        and parts[3] in (None, "*.*.*", file.parent.name)
        and parts[2] in (None, file.parent.parent.name)
    ]
    known = [each for each in map(_of_folder, found) if each]
    if len({each.folder.parent for each in known}) > 1:
        names = ", ".join(sorted({f"{parts[1]}/{each.folder.parent.name}" for each in known}))
        raise UserError(f"data.name={name} is prepared in several configurations: name {names}")
    return max(known, key=lambda each: [*map(int, each.folder.name.split("."))], default=None)


def _of_folder(folder: Path) -> _Described | None:
    features = reading.json_file(folder / "features.json")
    own = features.get("featuresDict", {}) if isinstance(features, dict) else {}
    own = own.get("features", {}) if isinstance(own, dict) else {}
    if not isinstance(own, dict) or "image" in own:
        return None
    keys = [k for k, v in own.items() if isinstance(v, dict) and v.get("pythonClassName") == AUDIO]
    if not keys:
        return None
    return _Described(folder, features, keys[0], own[keys[0]].get("audio") or {})


def _recordings(name: str, data_dir: str, request: Request) -> tuple[Recordings, Request]:
    """The sounds of both splits in memory, one after another."""
    found, what = _described(name, tfds_builder.default_dir(data_dir)), f"data.name={name}"
    rate = int(found.audio.get("sampleRate") or 0) or request.rate
    if not RATES[0] <= rate <= RATES[1]:
        raise UserError(f"{what} does not say its rate: set config.data.rate in Hz, such as 16000")
    if found.audio.get("lazyDecode"):
        raise UserError(
            f"{what} stores encoded files ('{found.key}' has lazy_decode), which need TensorFlow; "
            "save its sounds as WAV or FLAC files, and name their folder by config.data.path with "
            "config.data.name=sound"
        )
    if request.pattern or request.class_fields or request.test_where:
        raise UserError(
            f"{what} has its own classes and splits; leave config.data.pattern, "
            "config.data.class_fields and config.data.test_where out"
        )
    with tempfile.TemporaryDirectory() as place:
        made = tfds.builder_from_directory(str(_as_tensors(found, Path(place))))
        _check_memory(sum(split.num_bytes for split in made.info.splits.values()), what)
        label = dict(made.info.features).get("label")
        names = tuple(map(printable, label.names)) if label else ()
        *splits, how = records.train_and_test(made, bool(label), found.key)
        parts = [[dict(split[i]) for i in range(len(split))] for split in splits]
    examples = [example for part in parts for example in part]
    samples = [_samples(example[found.key], what, i) for i, example in enumerate(examples)]
    if len({own.shape[1] for own in samples}) > 1:
        raise UserError(f"{what} has sounds of several numbers of channels, which are not read")
    labels = np.array([example["label"] for example in examples], np.int32) if names else None
    if names and not ((labels >= 0) & (labels < len(names))).all():
        raise UserError(f"{what} has labels outside 0..{len(names) - 1}")
    headers = [SoundHeader(rate, own.shape[1], len(own)) for own in samples]
    offsets = np.cumsum([0, *map(len, samples)])
    read = functools.partial(sound_arrays.read, np.concatenate(samples), offsets, headers)
    held = np.arange(len(samples)) >= len(parts[0])
    rows = [f"sound {i}" for i in range(len(samples))]
    return Recordings(rows, headers, read, labels, names, (), held, how), request


def _check_memory(size: int, what: str) -> None:
    """Refuse a set that would fill the memory of the machine; it is read whole."""
    if size > (most := SHARE * memory()):
        raise UserError(
            f"{what} has {size / 1e9:.3g} GB of sounds, and at most {most / 1e9:.3g} GB, half of "
            "the memory, are read at once; save its sounds as WAV files, which are read batch by "
            "batch, and name their folder by config.data.path with config.data.name=sound"
        )


def memory() -> int:
    """Return the memory of the machine, in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _as_tensors(found: _Described, place: Path) -> Path:
    """Make a folder that describes the sounds as tensors, and the labels, and nothing else."""
    own, folder = found.features["featuresDict"]["features"], place / "sounds" / found.folder.name
    folder.mkdir(parents=True)
    tensor = {key: found.audio[key] for key in ("shape", "dtype", "encoding") if key in found.audio}
    kept = {found.key: {"pythonClassName": TENSOR, "tensor": tensor}}
    if "classLabel" in own.get("label", {}):
        kept["label"] = own["label"]
    described = {**found.features, "featuresDict": {"features": kept}}
    (folder / "features.json").write_text(json.dumps(described))
    for file in found.folder.iterdir():
        if file.name == "dataset_info.json" or file.name.endswith("labels.txt"):
            shutil.copy(file, folder / file.name)
        elif file.name != "features.json":
            (folder / file.name).symlink_to(file.absolute())
    return folder


def _samples(stored: Any, what: str, number: int) -> np.ndarray:
    """The samples of a sound, (n, channels), int16 or float32 in [-1, 1]."""
    own = np.asarray(stored)
    own = own.reshape(len(own), -1) if own.ndim in (1, 2) and own.size else own
    if own.ndim != 2 or own.shape[1] > 2 or own.dtype.kind not in "iuf":
        raise UserError(
            f"{what}: sound {number} is {own.dtype} {own.shape}; (n,) or (n, 1 or 2) is needed"
        )
    whole, limit = own.dtype.kind != "f", np.abs(own.astype(np.float64)).max()
    if not limit <= (sound.PEAK + 1 if whole else 1.0):
        allowed = "whole numbers of 16 bits" if whole else "numbers from -1 to 1"
        raise UserError(f"{what}: sound {number} has samples up to {limit:g}; {allowed} are read")
    return own.clip(max=sound.PEAK).astype(np.int16) if whole else own.astype(np.float32)
