"""A data set in one line, for people, and what looks wrong in it."""

from __future__ import annotations

import functools
import sys

import numpy as np
from absl import logging

from diffusion_jax.core.errors import printable
from diffusion_jax.data import columns
from diffusion_jax.data.dataset import Dataset
from diffusion_jax.data.sources import Cached, Source, labels_of, some

SCANNED = 64  # images whose values are examined

# of 255: images with a smaller span of values, or a smaller standard deviation, are nearly constant
NARROW, FLAT = 26, 2.0

NAMED = 5  # classes that are named
READ = 100_000  # images that are read, and kept in memory, to count their classes


def line(dataset: Dataset) -> str:
    """Describe a data set in one line, with the names and counts of the first classes.

    For example: 'data: folder: 540 training and 60 test images, 32x32, 3 channels; 2 classes: cats
    300, dogs 240; a tenth is held out by file name'.

    Args:
      dataset: the data set, of which sizes, labels and captions are shown.
    """
    height_width, channels = dataset.image_shape[:-1], dataset.image_shape[-1]
    kind = _kind(dataset)
    size = f"of {channels} numbers"
    if known := dataset.normalization and dataset.normalization.columns:
        count = sum(column.width > 0 for column in known)
        size = f"of {count} column{'s' * (count > 1)} as {channels} numbers"
    if height_width:
        size = f"{'x'.join(map(str, height_width))}, {channels} channel{'s' * (channels > 1)}"
    tested = kind if len(dataset.test) != 1 or kind == "series" else kind[:-1]
    counts = f"{len(dataset.train):,} training and {len(dataset.test):,} test {tested}"
    parts = [f"data: {printable(dataset.name)}: {counts}, {size}", _classes(dataset)]
    parts += [f"{len(dataset.captions):,} captions"] if dataset.captions else []
    return "; ".join([*parts, *([dataset.rule] if dataset.rule else [])])


def _kind(dataset: Dataset) -> str:
    """What the examples are, in the plural."""
    if dataset.encoded:
        return "latents"
    kinds = ("vectors", "series", "images", "volumes")
    if dataset.normalization and dataset.normalization.sound:
        return "sounds"
    if dataset.normalization and dataset.normalization.columns:
        return "rows"
    if dataset.normalization:
        return kinds[len(dataset.image_shape) - 1]
    return "images" if len(dataset.image_shape) == 3 else "points"


def announce(dataset: Dataset) -> None:
    """Print the line of a data set to stderr, once in a process, and that of a table's columns.

    Args:
      dataset: the data set that `line` describes.
    """
    _say(line(dataset))
    known = dataset.normalization
    if known and known.columns:
        _say(columns.describe(known.columns, known.low, known.high))


@functools.cache
def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def warn(dataset: Dataset) -> None:
    """Warn of a split that is nearly constant, and of classes without training images.

    Args:
      dataset: the data set, of whose images a sample is read.
    """
    found = [
        (split, _values(source))
        for split, source in (("training", dataset.train), ("test", dataset.test))
    ]
    if flat := [
        (split, values)
        for split, values in found
        if values and (values[1] - values[0] < NARROW or values[2] < FLAT)
    ]:
        (_, (low, high, spread)), splits = flat[0], " and ".join(split for split, _ in flat)
        logging.warning(
            "data.name=%s: the %s images are nearly constant, with values from %d to %d of 255 "
            "(standard deviation %.1f); are they scaled wrongly? (config.data.value_range)",
            printable(dataset.name),
            splits,
            low,
            high,
            spread,
        )
    _warn_of_classes(dataset, labels_of(dataset.train))
    if len(dataset.captions) == 1 and len(dataset.train) > 1:
        logging.warning("data.name=%s: all images have the same caption", printable(dataset.name))


def _values(source: Source) -> tuple[int, int, float] | None:
    """Return (smallest, largest, standard deviation) of some images, None if they are not uint8."""
    image = some(source, SCANNED)["image"]
    return (
        (int(image.min()), int(image.max()), float(image.std()))
        if image.dtype == np.uint8
        else None
    )


def _warn_of_classes(dataset: Dataset, labels: np.ndarray | None) -> None:
    if labels is None or not dataset.num_classes:
        return
    empty = np.flatnonzero(np.bincount(labels, minlength=dataset.num_classes) == 0)
    if empty.size:
        names = ", ".join(printable(dataset.class_names[i]) for i in empty[:NAMED]) + ", ..." * (
            empty.size > NAMED
        )
        hint = (
            "are the labels numbered from 1? they count from 0"
            if empty.tolist() == [0]
            else "labels count from 0, without gaps"
        )
        logging.warning(
            "data.name=%s: %d of %d classes have no training image and cannot be learned: %s; %s",
            printable(dataset.name),
            empty.size,
            dataset.num_classes,
            names,
            hint,
        )


def _classes(dataset: Dataset) -> str:
    if not dataset.num_classes:
        return "no classes"
    labels = _read_labels(dataset, dataset.train)
    counts = None if labels is None else np.bincount(labels, minlength=dataset.num_classes).tolist()
    first = [printable(name) for name in dataset.class_names[:NAMED]]
    first = [f"{name} {count:,}" for name, count in zip(first, counts)] if counts else first
    rest = ", ..." * (dataset.num_classes > NAMED)
    return (
        f"{dataset.num_classes} class{'es' * (dataset.num_classes > 1)}: {', '.join(first)}{rest}"
    )


def _read_labels(dataset: Dataset, source: Source) -> np.ndarray | None:
    """Return the labels of a source; one that is kept in memory is read for that."""
    known = labels_of(source)
    if known is None and isinstance(source, Cached) and len(source) <= READ:
        known = source.rows(np.arange(len(source))).get("label")
        _warn_of_classes(dataset, known)
    return known
