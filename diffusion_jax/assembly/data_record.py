"""data.json: what a workdir records of its data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from diffusion_jax.core import reading
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import Dataset, columns
from diffusion_jax.data.normalization import DTYPES, ConditionUnits, Normalization
from diffusion_jax.data.sound import Sound, logmel

_EXTENTS = reading.items(reading.integer(1, 2**26), least=1, most=4)
MOST = 2**30  # numbers of a sample; JAX counts those of an array in 32 bits


def _sizes(value: Any, place: str) -> None:
    """Allow the shape of a sample."""
    _EXTENTS(value, place)
    if math.prod(value) > MOST:
        raise reading.Mismatch(f"{place} has {math.prod(value):,} numbers, more than {MOST:,}")


_ENCODED = {
    "autoencoder": reading.text(1),
    "image_shape": _sizes,
    "data": reading.text(),
    "num_classes": reading.integer(0, 10**6),
    "class_names": reading.items(reading.text()),
    "shift": reading.items(reading.number()),
    "scale": reading.items(reading.number(low=1e-30)),
}

_PER_CHANNEL = reading.items(reading.number(), least=1, most=2**20)

_FIELD = reading.items(reading.either(reading.text(), reading.items(reading.text())), 2, 2)

_SOUND = {
    "rate": reading.integer(1, 384_000),
    "length": reading.integer(1, 2**30),
    "channels": reading.integer(1, 2),
    "kind": reading.one_of("waveform", "logmel"),
    "mels": reading.integer(0, 512),
    "window": reading.integer(0, 2**14),
    "hop": reading.integer(0, 2**13),
    "fields": reading.items(_FIELD, most=8),
}

_NORMALIZED = {
    "shift": _PER_CHANNEL,
    "scale": reading.items(reading.number(low=1e-30), least=1, most=2**20),
    "low": _PER_CHANNEL,
    "high": _PER_CHANNEL,
    "dtype": reading.one_of(*DTYPES),
}

_OF_TABLE = {"columns": reading.items(columns.RULE, least=1, most=2**20)}

_NEEDED = {
    "image_shape": _sizes,
    "num_classes": reading.integer(0, 10**6),
    "class_names": reading.items(reading.text()),
}

_ALSO = {
    "name": reading.text(),
    "encoded": reading.record(_ENCODED),
    "normalization": reading.record(_NORMALIZED, {"sound": reading.record(_SOUND)} | _OF_TABLE),
    "vector": reading.record(_NORMALIZED),
    "dense": reading.record(_NORMALIZED),
    "train_size": reading.integer(),
    "test_size": reading.integer(),
}

RULE = reading.record(_NEEDED, _ALSO)

KEYS = (*_NEEDED, *_ALSO)  # of data.json


def description(dataset: Dataset) -> dict[str, Any]:
    """Describe a data set, for data.json.

    Args:
      dataset: the data set. Of data that are only described (import_weights) the sizes are left
        out.
    """
    about = {
        "name": dataset.name,
        "image_shape": dataset.image_shape,
        "num_classes": dataset.num_classes,
        "class_names": dataset.class_names,
    }
    if dataset.train is not None:
        about |= {"train_size": len(dataset.train), "test_size": len(dataset.test)}
    if dataset.encoded:
        about["encoded"] = dataset.encoded._asdict()
    if dataset.normalization:
        about["normalization"] = _recorded(dataset.normalization)
    for name, own in dataset.units._asdict().items():
        if own:
            about[name] = _recorded(own)
    return about


def _recorded(own: Normalization) -> dict[str, Any]:
    """The record of a normalization; what its values are is left out where they are plain."""
    found = own._asdict()
    sound, of_table = found.pop("sound"), columns.recorded(found.pop("columns"))
    found |= {"sound": sound._asdict()} if sound else {}
    return found | ({"columns": of_table} if of_table else {})


def normalization(about: Mapping[str, Any]) -> Normalization | None:
    """The normalization that a data.json records; None for images, points and latents.

    Args:
      about: its content.

    Raises:
      UserError: for columns of a table that do not fit the rest.
    """
    return _normalization(about, "normalization")


def units(about: Mapping[str, Any]) -> ConditionUnits:
    """The units of the arrays that condition a model, as a data.json records them.

    Args:
      about: its content.
    """
    return ConditionUnits(*(_normalization(about, name) for name in ConditionUnits._fields))


def _normalization(about: Mapping[str, Any], name: str) -> Normalization | None:
    if name not in about:
        return None
    own = {key: value for key, value in about[name].items() if key in Normalization._fields}
    heard, known = own.pop("sound", None), columns.read(own.pop("columns", ()))
    parts = {n: tuple(v) if isinstance(v, list) else v for n, v in own.items()}
    found = Normalization(**parts, columns=known)
    counts = {len(value) for value in parts.values() if isinstance(value, tuple)}
    counts |= {sum(column.width for column in known)} if known else set()
    counts |= {about["image_shape"][-1]} if name == "normalization" else set()
    if len(counts) > 1:
        raise _damaged(f"{name} and what it is of have {sorted(counts)} channels")
    return found if heard is None else found._replace(sound=_sound(about, heard))


def _sound(about: Mapping[str, Any], heard: Mapping[str, Any]) -> Sound:
    """The sounds that a data.json records, which fit the rest of it."""
    named = all(isinstance(name, str) and isinstance(v, list) for name, v in heard["fields"])
    if not named or any(len(v) != about["num_classes"] for _, v in heard["fields"]):
        raise _damaged(f"the fields of its sounds are not those of {about['num_classes']} classes")
    fields = tuple((name, tuple(values)) for name, values in heard["fields"])
    own = {key: value for key, value in heard.items() if key in Sound._fields}
    found = Sound(**{**own, "fields": fields})
    if found.kind == "logmel":
        logmel(found.mels, found.window, found.hop)  # refuses what has no inverse
    if found.shape != tuple(about["image_shape"]):
        raise _damaged(f"its sounds have the shape {found.shape}, not {about['image_shape']}")
    return found


def _damaged(why: str) -> UserError:
    return UserError(f"data.json is damaged: {why}; make it again, or restore it")
