"""`load`: one line of configuration -> a data set with disjoint train and test splits."""

from __future__ import annotations

from typing import NamedTuple

from diffusion_jax.data import (
    captions,
    describe,
    digits_captions,
    files,
    folder,
    latents,
    pixels,
    records,
    toys,
    transforms,
)
from diffusion_jax.data import captions as texts
from diffusion_jax.data.pixels import Range
from diffusion_jax.data.sources import Arrays, Source, mapped
from diffusion_jax.errors import UserError, unknown

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
WITH_PATH = ("folder", "npz", "latents", *IDX_CLASSES)


class Dataset(NamedTuple):
    """Two disjoint sources of examples and what they hold."""

    name: str
    train: Source
    test: Source
    image_shape: tuple[int, ...]  # (H, W, C); (2,) for the 2-D toys
    num_classes: int  # 0: unlabelled
    class_names: tuple[str, ...]
    captions: tuple[str, ...] = ()  # every different one, if they were asked for; see captions.py
    encoded: latents.Encoded | None = None  # what made them, if the examples are latents
    rule: str = ""  # how the examples were split, for people


def load(
    name: str = "digits",
    *,
    path: str = "",
    data_dir: str = "",
    image_size: int = 0,
    channels: int = 0,
    num_classes: int = 0,
    limit_bad: int = -1,
    seed: int = 0,
    captioned: bool = False,
    captions: str = "",
    layout: str = "",
    value_range: Range = (),
) -> Dataset:
    """The data set of this name. What looks wrong in it, but may be right, is a warning.

    Args:
      name: 'digits' (embedded); 'digits_captions' (the same, described in words); 'folder', 'npz',
        'idx' (from `path`); 'latents' (from `path`; experiments.encode); 'mixture', 'rings',
        'checkerboard', 'two_moons' (2-D points, drawn from `seed`); or any TFDS image set, kept in
        data_dir ($TFDS_DATA_DIR, ~/tensorflow_datasets). 'mnist' and 'fashion_mnist' with a path
        read the four original idx files there.
      image_size, channels: resize (antialiased, center crop) and convert; 0 keeps what the data
        has.
      num_classes: for npz and idx, where the labels found may not show all classes; 0 counts them.
      limit_bad: for folder, how many unreadable files to skip; -1 a tenth (at least 1, at most
        100).
      captioned: with captions; UserError for a set that has none. captions: for npz, their JSON
        file.
      layout: for folder, what it means (data/layout.py); '' refuses one that can be read in two
        ways.
      value_range: for folder and npz, the values of black and white; () for 8-bit and 16-bit
        images.

    Raises:
      UserError: for everything a user can get wrong, in one line.
    """
    _check_request(name, path, image_size, channels, captioned, layout, value_range)
    options = {
        "path": path,
        "image_size": image_size,
        "channels": channels,
        "value_range": value_range,
    }
    if name == "folder":
        found = folder.load(**options, limit_bad=limit_bad, captioned=captioned, how=layout)
        made = Dataset(
            name,
            found.train,
            found.test,
            found.image_shape,
            len(found.class_names),
            found.class_names,
            found.captions,
            rule=found.rule,
        )
    elif name == "npz":
        made = _npz(**options, num_classes=num_classes, captioned=captioned, captions=captions)
    elif name == "latents":
        train, test, about = latents.load(path, image_size, channels)
        made = Dataset(
            name,
            train,
            test,
            train.mean.shape[1:],
            about.num_classes,
            about.class_names,
            encoded=about,
            rule="split as its images",
        )
    elif path:
        made = _from_arrays(
            name, path, *files.read_idx(path), image_size, channels, num_classes, IDX_CLASSES[name]
        )
        made = made._replace(rule="split by its files, train and t10k")
    else:
        made = _by_name(name, data_dir, image_size, channels, seed, captioned)
    describe.warn(made)
    return made


def _check_request(
    name: str,
    path: str,
    image_size: int,
    channels: int,
    captioned: bool,
    layout: str,
    value_range: Range,
) -> None:
    """Refuse options that no data set has, or this one not."""
    if name != "latents":
        transforms.check_request(image_size, channels)
    pixels.check_range(value_range)
    if name in WITH_PATH and not path and name not in records.POPULAR:
        raise UserError(f"data.name={name} needs data.path")
    if path and name not in WITH_PATH:
        raise UserError(
            f"data.path={path} is not used by data.name={name}, only by {', '.join(WITH_PATH)} (see data.data_dir)"
        )
    for key, value, users in (
        ("layout", layout, ("folder",)),
        ("value_range", value_range, ("folder", "npz")),
    ):
        if value and name not in users:
            raise UserError(
                f"data.{key}={value} is not used by data.name={name}, only by {' and '.join(users)}"
            )
    if captioned and (name in ("digits", "latents") or name in toys.TOYS or name in IDX_CLASSES):
        ours = "digits_captions, folder, npz or coco_captions"
        raise UserError(f"data.name={name} has no captions; use {ours}, or config.text.encoder=''")


def _npz(path, image_size, channels, value_range, num_classes, captioned, captions) -> Dataset:
    train, test, rows = files.read_npz(path, value_range)
    own = texts.of_npz(path, captions, (len(train[0]), len(test[0])), rows) if captioned else None
    made = _from_arrays("npz", path, train, test, image_size, channels, num_classes, (), own)
    return made._replace(
        rule="split by its arrays" if rows is None else "a tenth is held out by row"
    )


def _by_name(
    name: str, data_dir: str, image_size: int, channels: int, seed: int, captioned: bool
) -> Dataset:
    """A set that needs no path."""
    if name == "digits_captions":
        sources, *rest = digits_captions.splits(data_dir, image_size, channels)
        return Dataset(
            name,
            *sources,
            *rest,
            rule="split as digits, without one look of each digit in training",
        )
    if name in toys.TOYS:
        train, test, classes = toys.split(name, seed)
        return Dataset(
            name, train, test, (2,), classes, tuple(map(str, range(classes))), rule="drawn apart"
        )
    try:
        return Dataset(name, *records.splits(name, data_dir, image_size, channels, captioned))
    except records.NotFound:
        ours = {"digits", "digits_captions", *WITH_PATH, *toys.TOYS, *records.POPULAR}
        raise UserError(
            f"{unknown('data set', name, ours)}; and every image set of tensorflow-datasets by its name"
        ) from None


def _from_arrays(
    name, path, train, test, image_size, channels, num_classes, class_names, own=None
) -> Dataset:
    if not image_size and train[0].shape[1:] != test[0].shape[1:]:
        raise UserError(
            f"data.path={path}: train images are {train[0].shape[1:]}, test images {test[0].shape[1:]}; "
            f"set data.image_size"
        )
    classes = files.count_classes(path, train, test, num_classes or len(class_names))
    shape = transforms.fitted_shape(train[0].shape[1:], image_size, channels)
    every, numbers = captions.numbered(*own) if own else ((), (None, None))
    sources = [
        _fitted(Arrays(*split, n), shape, image_size) for split, n in zip((train, test), numbers)
    ]
    return Dataset(
        name, *sources, shape, classes, class_names or tuple(map(str, range(classes))), every
    )


def _fitted(source: Arrays, shape: tuple[int, int, int], image_size: int) -> Source:
    if source[0]["image"].shape == shape:
        return source
    return mapped(
        source, lambda e: e | {"image": transforms.fit(e["image"], image_size, shape[2])}, shape
    )
