"""data.json: what a workdir records of its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_jax.core import reading
from diffusion_jax.data import Dataset
from diffusion_jax.data.normalization import DTYPES, Normalization

_SIZES = reading.items(reading.integer(1, 2**20), least=1, most=4)

_ENCODED = {
    "autoencoder": reading.text(1),
    "image_shape": _SIZES,
    "data": reading.text(),
    "num_classes": reading.integer(0, 10**6),
    "class_names": reading.items(reading.text()),
    "shift": reading.items(reading.number()),
    "scale": reading.items(reading.number(low=1e-30)),
}

_PER_CHANNEL = reading.items(reading.number(), least=1, most=2**20)

_NORMALIZED = {
    "shift": _PER_CHANNEL,
    "scale": reading.items(reading.number(low=1e-30), least=1, most=2**20),
    "low": _PER_CHANNEL,
    "high": _PER_CHANNEL,
    "dtype": reading.one_of(*DTYPES),
}

_NEEDED = {
    "image_shape": _SIZES,
    "num_classes": reading.integer(0, 10**6),
    "class_names": reading.items(reading.text()),
}

_ALSO = {
    "name": reading.text(),
    "encoded": reading.record(_ENCODED),
    "normalization": reading.record(_NORMALIZED),
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
        about["normalization"] = dataset.normalization._asdict()
    return about


def normalization(about: Mapping[str, Any]) -> Normalization | None:
    """The normalization that a data.json records; None for images, points and latents.

    Args:
      about: its content.
    """
    if "normalization" not in about:
        return None
    own = {**about["normalization"]}
    return Normalization(**{n: tuple(v) if isinstance(v, list) else v for n, v in own.items()})
