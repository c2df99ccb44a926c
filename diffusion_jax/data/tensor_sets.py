"""Sets of tensorflow-datasets whose samples are tensors of numbers instead of images.

The sample is the set's one feature of type Tensor, of any shape that any_shape.py takes, and is
normalized as there. (Features of type Audio need TensorFlow to be read, so sounds come as files.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from diffusion_jax.core.deferred import deferred
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import any_shape, array_axes, normalization
from diffusion_jax.data.any_shape import StoredArrays
from diffusion_jax.data.normalization import DTYPES
from diffusion_jax.data.sources import Source, Splits
from diffusion_jax.data.tfds_builder import NotFound, default_dir, find_builder

tfds = deferred("tensorflow_datasets")


def feature_of(name: str, features: Mapping[str, Any]) -> str:
    """Return the key of the feature that holds the samples.

    Args:
      name: the name of the set, for messages.
      features: the features of its examples by key.

    Raises:
      UserError: for a set that has no such feature or several, and for one of another type or
        shape.
    """
    found = [key for key, feature in features.items() if type(feature) is tfds.features.Tensor]
    if len(found) != 1:
        several = f"several tensors ({', '.join(found)})" if found else "no tensor of numbers"
        raise UserError(
            f"data.name={name} has no feature 'image' (it has {', '.join(sorted(features))}), and "
            f"{several}; save its samples as 'data' (N, ..., C) in an .npz file, and name it by "
            "config.data.path"
        )
    shape, dtype = features[found[0]].shape, np.dtype(features[found[0]].np_dtype)
    if not 1 <= len(shape) <= any_shape.AXES + 1 or None in shape or dtype.name not in DTYPES:
        extents = ", ".join("any" if n is None else str(n) for n in shape)
        raise UserError(
            f"data.name={name}: '{found[0]}' is {dtype.name} ({extents}); one of "
            f"{', '.join(DTYPES)} and a fixed shape (N_1, ..., N_d, C) with d = 0 to "
            f"{any_shape.AXES} are needed"
        )
    return found[0]


def described(name: str, data_dir: str, channel_axis: str = "") -> tuple[tuple[int, ...], np.dtype]:
    """Return the shape of a sample and its type, as TFDS describes them.

    Args:
      name: the name of the set.
      data_dir: where TFDS keeps its sets; '' for its own place.
      channel_axis: config.data.channel_axis, one of array_axes.CHOICES.

    Raises:
      UserError: for a set that TFDS does not know, one of images, and one without such samples.
    """
    try:
        features = dict(find_builder(name, default_dir(data_dir)).info.features)
    except NotFound:
        features = {"image": None}
    if "image" in features:
        raise UserError(
            f"config.data.name={name}: this config reads arrays, from the file config.data.path or "
            "from a set of tensors of tensorflow-datasets; for images take another config, such as "
            "configs/folder.py"
        )
    feature = features[feature_of(name, features)]
    shape = array_axes.moved(feature.shape, channel_axis, f"data.name={name}")
    return shape, np.dtype(feature.np_dtype)


def splits(
    name: str,
    features: Mapping[str, Any],
    read: Callable[[str], tuple[Source, Source, str]],
    class_names: tuple[str, ...],
    rule: str,
    channel_axis: str = "",
) -> Splits:
    """Read a set of tensors into memory, and normalize it.

    Args:
      name: the name of the set.
      features: the features of its examples by key.
      read: key -> (train, test, how they are split in words), whose examples have that feature.
      class_names: of its labels; () without labels.
      rule: config.data.normalization.
      channel_axis: config.data.channel_axis, one of array_axes.CHOICES.

    Raises:
      UserError: for values that are not finite, and for labels outside of the classes.
    """
    key, what = feature_of(name, features), f"data.name={name}"
    dtype = np.dtype(features[key].np_dtype)
    shape = array_axes.moved(features[key].shape, channel_axis, what)
    *sources, how = read(key)
    values, labels = [], []
    for source in sources:
        examples = [source[i] for i in range(len(source))]
        stored = np.stack([np.asarray(example[key], dtype) for example in examples])
        values.append(array_axes.channels_last(stored, channel_axis))
        labels.append(np.array([e["label"] for e in examples], int) if class_names else None)
        if class_names and not ((labels[-1] >= 0) & (labels[-1] < len(class_names))).all():
            raise UserError(f"{what} has labels outside 0..{len(class_names) - 1}")
    normalized = None
    if not any_shape.is_image(shape, dtype):
        normalized = normalization.measure([values[0]], rule, dtype.name, what)
        normalization.check_finite(values[1], what)
    train, test = (
        StoredArrays(own, np.arange(len(own)), label, normalized)
        for own, label in zip(values, labels)
    )
    classes = len(class_names)
    how = f"{array_axes.described(len(features[key].shape), channel_axis)}; {how}"
    return Splits(train, test, shape, classes, class_names, rule=how, normalization=normalized)
