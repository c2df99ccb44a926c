"""`load`: one line of configuration -> a data set with disjoint train and test splits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.data import (
    any_shape,
    array_files,
    describe,
    digits_captions,
    folder,
    latents,
    pixels,
    records,
    sound_sets,
    table,
    tfds_builder,
    tfds_sounds,
    toys,
    transforms,
)
from diffusion_jax.data import captions as texts
from diffusion_jax.data.dataset import Dataset
from diffusion_jax.data.pixels import Range
from diffusion_jax.data.sources import Arrays, Source, Splits, mapped
from diffusion_jax.data.transforms import Size

DIGITS = tuple("0123456789")

FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

IDX_CLASSES = {"mnist": DIGITS, "fashion_mnist": FASHION, "idx": ()}
WITH_PATH = ("folder", "npz", "arrays", "sound", "table", "latents", *IDX_CLASSES)


class _Request(NamedTuple):
    """The arguments of `load`."""

    name: str
    path: str
    data_dir: str
    image_size: Size
    channels: int
    num_classes: int
    limit_bad: int
    seed: int
    captioned: bool
    captions: str
    layout: str
    value_range: Range
    normalization: str
    sounds: sound_sets.Request
    roles: table.Roles
    condition: str
    dense: str
    buckets: tuple[tuple[int, int], ...]
    channel_axis: str


def load(
    name: str = "digits",
    *,
    path: str = "",
    data_dir: str = "",
    image_size: int | tuple[int, int] = 0,
    channels: int = 0,
    num_classes: int = 0,
    limit_bad: int = -1,
    seed: int = 0,
    captioned: bool = False,
    captions: str = "",
    layout: str = "",
    value_range: Range = (),
    normalization: str = "standard",
    fit: str = "crop",
    sounds: sound_sets.Request = sound_sets.Request(),
    roles: table.Roles = table.Roles(),
    condition: str = "",
    dense: str = "",
    buckets: tuple[tuple[int, int], ...] = (),
    channel_axis: str = "",
) -> Dataset:
    """Load the data set of this name; a warning says what looks wrong in it but may be right.

    Args:
      name: 'digits' (embedded); 'digits_captions' (the same, described in words); from `path`:
        'folder', 'npz', 'idx', 'arrays' (any_shape.py), 'sound' (sound_sets.py), 'table' (table.py)
        and 'latents' (experiments.encode); 'mixture', 'rings', 'checkerboard', 'two_moons'; or a
        TFDS set of images or tensors. 'mnist' and 'fashion_mnist' with a path read the idx files.
      path: the folder or file of the data.
      data_dir: where TFDS keeps its sets; '' means $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      image_size: the side to which images are resized, or (height, width); 0 keeps their size.
      channels: 1, 3 or 4, to which images are converted; 0 keeps theirs.
      num_classes: where not all classes occur; 0 counts the labels.
      limit_bad: for folder, how many unreadable files are skipped; -1: a tenth, from 1 to 100.
      seed: the seed of the 2-D toys.
      captioned: whether captions are loaded.
      captions: for npz, their JSON file; '' means STEM_captions.json.
      layout: for folder, what it means (see layout.py); '' refuses one with two readings.
      value_range: for folder and npz, the values of black and white; () for 8 and 16 bits.
      normalization: how each channel is scaled: one of normalization.RULES; of tables 'quantile'.
      fit: what becomes of another aspect ratio than that of image_size: one of transforms.FITS.
      sounds: what becomes of sounds, and which of their fields are classes and splits.
      roles: for table, what is said of its columns.
      condition: for arrays, the name of the array of their condition vectors.
      dense: for arrays, what their array 'dense' holds: one of condition_arrays.DENSE_KINDS.
      buckets: for folder, the heights and widths of training batches, see aspect.py.
      channel_axis: for arrays and sets of tensors, one of array_axes.CHOICES.

    Raises:
      UserError: for every mistake that a user can make, in one line.
    """
    rest = seed, captioned, captions, layout, value_range, normalization
    rest = (*rest, sounds, roles, condition, dense, buckets, channel_axis)
    if name != "latents":
        transforms.check_request(image_size, 0)
        image_size = transforms.frame(image_size, fit) or 0
    request = _Request(name, path, data_dir, image_size, channels, num_classes, limit_bad, *rest)
    return _loaded(request)


def _loaded(request: _Request) -> Dataset:
    _check(request)
    made = _latents(request) if request.name == "latents" else _images(request)
    describe.warn(made)
    return made


def is_here(name: str, path: str) -> bool:
    """Whether the file or folder of a data set exists; True for one that needs none, or is remote.

    Args:
      name: config.data.name.
      path: config.data.path.
    """
    if not path:
        return name not in WITH_PATH or name in records.POPULAR
    return "://" in path or Path(os.path.expanduser(path)).exists()


def _check(request: _Request) -> None:
    """Refuse options that no data set has, or that this one does not have."""
    name, path = request.name, request.path
    pixels.check_range(request.value_range)
    if name in WITH_PATH and not path and name not in records.POPULAR:
        raise UserError(
            f"data.name={name} needs data.path, its file or folder: --config.data.path=PATH"
        )
    if path and name not in WITH_PATH:
        raise UserError(
            f"data.path={path} is not used by data.name={name}, only by {', '.join(WITH_PATH)} "
            "(see data.data_dir)"
        )
    heard = ("sound",)
    ours = path or name in {*WITH_PATH, *toys.TOYS, "digits", "digits_captions"} - {*IDX_CLASSES}
    if not ours and tfds_sounds.is_of_sounds(name, request.data_dir):
        heard = ("sound", name)
    if name in heard:
        sound_sets.check_channels(request.channels)
    elif name != "latents":
        transforms.check_request(0, request.channels)
    images, measured = ("sets of images",), ("arrays", "sound", "table")
    for key, value, users in (
        ("layout", request.layout, ("folder", "sound")),
        ("value_range", request.value_range, ("folder", "npz")),
        *((key, given, ("table",)) for key, given in request.roles._asdict().items()),
        *(
            (key, getattr(request.sounds, key), heard)
            for key in ("pattern", "class_fields", "test_where", "rate", "length")
        ),
        ("condition", request.condition, ("arrays",)),
        ("dense", request.dense and "array", ("arrays",)),
        ("buckets", request.buckets, ("folder",)),
        ("channel_axis", request.channel_axis if ours else "", ("arrays",)),
        ("captions", request.captions, ("npz",)),
        ("limit_bad", str(request.limit_bad) if request.limit_bad >= 0 else "", ("folder", *heard)),
        ("normalization", request.normalization if ours else "", measured),
        ("image_size", _shown(request.image_size) if name in (*toys.TOYS, "sound") else "", images),
        ("channels", request.channels if name in toys.TOYS else 0, images),
    ):
        if value and value not in ("last", "standard") and name not in users:
            raise UserError(
                f"data.{key}={value} is not used by data.name={name}, only by {' and '.join(users)}"
            )
    if request.buckets and request.captioned:
        raise UserError(f"data.buckets={request.buckets}: images with captions have no buckets")
    plain = (
        name in ("digits", "arrays", "sound", "table", "latents")
        or name in toys.TOYS
        or name in IDX_CLASSES
    )
    if request.captioned and plain:
        ours = "digits_captions, folder, npz or coco_captions"
        raise UserError(f"data.name={name} has no captions; use {ours}, or config.text.encoder=''")


def _shown(size: Size) -> str:
    """A size of images as it is typed; '' for none."""
    return f"{size.height}x{size.width}" if isinstance(size, transforms.Frame) else ""


def _latents(request: _Request) -> Dataset:
    train, test, about = latents.load(request.path, request.image_size, request.channels)
    return Dataset(
        request.name,
        train,
        test,
        train.mean.shape[1:],
        about.num_classes,
        about.class_names,
        encoded=about,
        rule="split as its images",
    )


def _images(request: _Request) -> Dataset:
    found = _splits(request)
    return Dataset(
        request.name,
        found.train,
        found.test,
        found.image_shape,
        found.num_classes,
        found.class_names,
        found.captions,
        rule=found.rule,
        normalization=found.normalization,
        units=found.units,
    )


def _splits(request: _Request) -> Splits:
    """Read the two splits of a set of images or points."""
    name, path = request.name, request.path
    if name == "folder":
        return folder.load(
            path,
            request.image_size,
            request.channels,
            limit_bad=request.limit_bad,
            captioned=request.captioned,
            how=request.layout,
            value_range=request.value_range,
            buckets=request.buckets,
        )
    if name == "npz":
        return _npz(request)
    if name == "arrays":
        return _any_shape(request)
    if name == "sound":
        wanted = request.sounds._replace(channels=request.channels)
        return sound_sets.load(
            path, wanted, request.normalization, request.layout, request.limit_bad
        )
    if name == "table":
        return _table(request)
    if path:
        train, test = array_files.read_idx(path)
        found = _from_arrays(request, train, test, IDX_CLASSES[name])
        return found._replace(rule="split by its files, train and t10k")
    if name == "digits_captions":
        return digits_captions.splits(request.data_dir, request.image_size, request.channels)
    if name in toys.TOYS:
        train, test, classes = toys.split(name, request.seed)
        return Splits(train, test, (2,), classes, _numbers(classes), rule="drawn independently")
    try:
        if tfds_sounds.is_of_sounds(name, request.data_dir):
            return _tfds_sounds(request)
        wanted = request.image_size, request.channels, request.captioned, request.normalization
        return records.splits(name, request.data_dir, *wanted, request.channel_axis)
    except tfds_builder.NotFound:
        ours = {"digits", "digits_captions", *WITH_PATH, *toys.TOYS, *records.POPULAR}
        raise UserError(
            f"{unknown('data set', name, ours)}; and every set of images or tensors of "
            "tensorflow-datasets by its name"
        ) from None


def _tfds_sounds(request: _Request) -> Splits:
    """Read a set of sounds of tensorflow-datasets."""
    if request.image_size or request.captioned:
        raise UserError(
            f"data.name={request.name} has sounds: leave data.image_size and config.text.encoder "
            "out"
        )
    wanted = request.sounds._replace(channels=request.channels)
    return tfds_sounds.load(request.name, request.data_dir, wanted, request.normalization)


def _any_shape(request: _Request) -> Splits:
    """Read arrays of any shape; only those that are images of 8 bits can be fitted."""
    path, size = request.path, request.image_size
    stored = request.condition, request.dense, request.channel_axis
    found = any_shape.load(path, request.normalization, *stored)
    classes = array_files.count_classes(
        path, *((None, labels) for labels in found.labels), request.num_classes
    )
    shape, train, test = found.shape, found.train, found.test
    if found.normalization is None:
        shape = transforms.fitted_shape(shape, size, request.channels)
        if request.dense and shape != found.shape:
            raise UserError(
                f"data.path={path}: 'dense' is of the images as they are stored, {found.shape}; "
                "leave data.image_size and data.channels out"
            )
        train, test = (_fitted(source, shape, size) for source in (train, test))
    elif size or request.channels not in (0, shape[-1]):
        raise UserError(
            f"data.path={path} holds {found.normalization.dtype} arrays {shape}, and "
            "data.image_size and data.channels are for images of 8 bits; leave both out"
        )
    names, kept = _numbers(classes), {"normalization": found.normalization, "units": found.units}
    return Splits(train, test, shape, classes, names, rule=found.rule, **kept)


def _table(request: _Request) -> Splits:
    """Read a table, which has nothing to fit."""
    for key in ("image_size", "channels", "num_classes"):
        if getattr(request, key):
            raise UserError(f"config.data.{key} is not used by data.name=table; leave it out")
    return table.load(request.path, request.normalization, request.roles)


def _npz(request: _Request) -> Splits:
    path = request.path
    train, test, rows = array_files.read_npz(path, request.value_range)
    own = None
    if request.captioned:
        own = texts.of_npz(path, request.captions, (len(train[0]), len(test[0])), rows)
    found = _from_arrays(request, train, test, (), own)
    rule = "split by its arrays" if rows is None else "a tenth is held out by row"
    return found._replace(rule=rule)


def _from_arrays(
    request: _Request,
    train: array_files.Split,
    test: array_files.Split,
    class_names: tuple[str, ...],
    own: tuple[texts.Texts, texts.Texts] | None = None,
) -> Splits:
    """Make splits of arrays, with the captions `own`, if any."""
    size = request.image_size
    if not size and train[0].shape[1:] != test[0].shape[1:]:
        raise UserError(
            f"data.path={request.path}: train images are {train[0].shape[1:]}, test images "
            f"{test[0].shape[1:]}; set data.image_size"
        )
    wanted = request.num_classes or len(class_names)
    classes = array_files.count_classes(request.path, train, test, wanted)
    shape = transforms.fitted_shape(train[0].shape[1:], size, request.channels)
    every, numbers = texts.numbered(*own) if own else ((), (None, None))
    sources = [
        _fitted(Arrays(*split, column), shape, size)
        for split, column in zip((train, test), numbers)
    ]
    return Splits(*sources, shape, classes, class_names or _numbers(classes), every)


def _numbers(classes: int) -> tuple[str, ...]:
    """Name classes by their numbers."""
    return tuple(map(str, range(classes)))


def _fitted(source: Source, shape: tuple[int, int, int], image_size: Size) -> Source:
    if source[0]["image"].shape == shape:
        return source

    def fit(example: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return example | {"image": transforms.fit(example["image"], image_size, shape[2])}

    return mapped(source, fit, shape)
