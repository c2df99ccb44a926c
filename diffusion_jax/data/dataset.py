"""`load`: one line of configuration -> a data set with disjoint train and test splits."""

from __future__ import annotations

from typing import NamedTuple

from diffusion_jax.data import captions as texts
from diffusion_jax.data import digits_captions, files, folder, latents, records, toys, transforms
from diffusion_jax.data.sources import Arrays, Source, mapped
from diffusion_jax.errors import UserError, unknown

DIGITS = tuple("0123456789")
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
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
) -> Dataset:
    """The data set of this name.

    name: 'digits' (embedded); 'digits_captions' (the same, described in words); 'folder', 'npz', 'idx' (from `path`);
    'latents' (from `path`; experiments.encode);
    'mixture', 'rings', 'checkerboard', 'two_moons' (2-D points, drawn from `seed`); or any TFDS image set, kept in data_dir
    ($TFDS_DATA_DIR, ~/tensorflow_datasets). 'mnist' and 'fashion_mnist' with a path read the four original idx files there.
    image_size, channels: resize (antialiased, centre crop) and convert; 0 keeps what the data has.
    num_classes: for npz and idx, where the labels found may not show all classes; 0 counts them.
    captioned: with captions; UserError for a set that has none. captions: for npz, their JSON file.
    limit_bad: for folder, how many unreadable files to skip; -1 a tenth (at least 1, at most 100).
    Raises UserError for everything a user can get wrong, in one line.
    """
    if name != "latents":
        transforms.check_request(image_size, channels)
    if name in WITH_PATH and not path and name not in records.POPULAR:
        raise UserError(f"data.name={name} needs data.path")
    if path and name not in WITH_PATH:
        raise UserError(
            f"data.path={path} is not used by data.name={name}, only by {', '.join(WITH_PATH)} (see data.data_dir)"
        )
    if captioned and (name in ("digits", "latents") or name in toys.TOYS or name in IDX_CLASSES):
        ours = "digits_captions, folder, npz or coco_captions"
        raise UserError(f"data.name={name} has no captions; use {ours}, or config.text.encoder=''")
    if name == "digits_captions":
        sources, *rest = digits_captions.splits(data_dir, image_size, channels)
        return Dataset(name, *sources, *rest)
    if name in toys.TOYS:
        train, test, classes = toys.split(name, seed)
        return Dataset(name, train, test, (2,), classes, tuple(map(str, range(classes))))
    if name == "latents":
        train, test, made = latents.load(path, image_size, channels)
        return Dataset(name, train, test, train.mean.shape[1:], made.num_classes, made.class_names, encoded=made)
    if name == "folder":
        return Dataset(name, *folder.splits(path, image_size, channels, limit_bad, captioned))
    if name == "npz":
        splits = files.npz(path)
        own = texts.of_npz(path, captions, tuple(len(images) for images, _ in splits)) if captioned else None
        return _from_arrays(name, path, *splits, image_size, channels, num_classes, (), own)
    if path:
        return _from_arrays(name, path, *files.idx(path), image_size, channels, num_classes, IDX_CLASSES[name])
    try:
        return Dataset(name, *records.splits(name, data_dir, image_size, channels, captioned))
    except records.NotFound:
        ours = {"digits", "digits_captions", *WITH_PATH, *toys.TOYS, *records.POPULAR}
        raise UserError(
            f"{unknown('data set', name, ours)}; and every image set of tensorflow-datasets by its name"
        ) from None


def _from_arrays(name, path, train, test, image_size, channels, num_classes, class_names, own=None) -> Dataset:
    if not image_size and train[0].shape[1:] != test[0].shape[1:]:
        raise UserError(
            f"data.path={path}: train images are {train[0].shape[1:]}, test images {test[0].shape[1:]}; "
            f"set data.image_size"
        )
    classes = files.count_classes(path, train, test, num_classes or len(class_names))
    shape = transforms.fitted_shape(train[0].shape[1:], image_size, channels)
    every, numbers = texts.numbered(*own) if own else ((), (None, None))
    sources = [_fitted(Arrays(*split, n), shape, image_size) for split, n in zip((train, test), numbers)]
    return Dataset(name, *sources, shape, classes, class_names or tuple(map(str, range(classes))), every)


def _fitted(source: Arrays, shape: tuple[int, int, int], image_size: int) -> Source:
    if source[0]["image"].shape == shape:
        return source
    return mapped(source, lambda e: e | {"image": transforms.fit(e["image"], image_size, shape[2])}, shape)
