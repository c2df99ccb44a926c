"""Sets in single files: the four idx files of MNIST and its relatives, and .npz archives."""

from __future__ import annotations

import gzip
import os
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion_jax.core import npz
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import pixels
from diffusion_jax.data.held_out import hold_out
from diffusion_jax.data.pixels import Range

Split = tuple[np.ndarray, np.ndarray | None]  # images (N, H, W, C) uint8, labels (N,) or None
MOST_CHANNELS = 16  # of images in an .npz
CHUNK = 64_000_000  # bytes that are converted at once


# labels are refused as ids if there would be more classes than IDS_ABOVE, and more than IDS_TIMES
# the number of distinct labels
IDS_ABOVE, IDS_TIMES = 100, 10

NPZ_PAIRS = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)

NPZ_SINGLE = (("images", "labels"), ("image", "label"), ("x", "y"), ("arr_0", "arr_1"))


def read_idx(path: str) -> tuple[Split, Split]:
    """Read a set of idx files: {train,t10k}-{images-idx3,labels-idx1}-ubyte, plain or .gz.

    Args:
      path: the folder that has the four files; ~ is expanded.

    Returns:
      (train, test), each with images uint8 (N, H, W, 1) and labels int32 (N,).

    Raises:
      UserError: for files that are missing or damaged.
    """
    folder = Path(os.path.expanduser(path))
    if not folder.is_dir():
        raise UserError(
            f"data.path={path} is not a folder; it should hold the four idx files "
            "(train-images-idx3-ubyte.gz, ...)"
        )

    def split(part: str) -> Split:
        files = [
            _idx_file(folder, f"{part}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")
        ]
        images, labels = _read_idx_file(files[0], rank=3), _read_idx_file(files[1], rank=1)
        if len(images) != len(labels):
            raise UserError(
                f"{files[0]} holds {len(images)} images, but {files[1]} {len(labels)} labels"
            )
        return images[..., None], labels.astype(np.int32)

    return split("train"), split("t10k")


def _idx_file(folder: Path, stem: str) -> Path:
    spellings = [
        stem,
        stem + ".gz",
        stem.replace("-idx", ".idx"),
        stem.replace("-idx", ".idx") + ".gz",
    ]
    found = [folder / s for s in spellings if (folder / s).is_file()]
    if not found:
        raise UserError(f"data.path={folder} has no file {stem} or {stem}.gz")
    return found[0]


def _read_idx_file(file: Path, rank: int) -> np.ndarray:
    """Read one idx file: 0, 0, 8 (for unsigned bytes), rank, big-endian uint32 sizes, bytes."""
    try:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file} is truncated or corrupt ({error}); download it again") from error
    header = 4 + 4 * rank
    if raw[:4] != bytes([0, 0, 8, rank]) or len(raw) < header:
        raise UserError(
            f"{file} is not an idx file of unsigned bytes with {rank} dimension(s); download it "
            "again"
        )
    shape = tuple(int(d) for d in np.frombuffer(raw, ">u4", rank, offset=4))
    if len(raw) - header != int(np.prod(shape)):
        raise UserError(
            f"{file} is truncated or corrupt: {len(raw) - header} bytes for {shape}; download it "
            "again"
        )
    if 0 in shape:
        raise UserError(f"{file} is empty: its shape is {shape}; download it again")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


class Npz(NamedTuple):
    """The two splits of an .npz.

    Attributes:
      train: images and labels to train on.
      test: images and labels that are held out.
      rows: the rows of each split in a file that is not split, else None.
    """

    train: Split
    test: Split
    rows: tuple[np.ndarray, np.ndarray] | None


def read_npz(path: str, value_range: Range = ()) -> Npz:
    """Read an .npz; one set of images is split 90 / 10 by a fixed permutation of its rows.

    Args:
      path: the file.
      value_range: the values of black and white; () for uint8 in 0..255.

    Raises:
      UserError: for anything but plain arrays of images, with whole numbers as labels.
    """
    file = Path(os.path.expanduser(path))
    if not file.is_file():
        raise UserError(
            f"data.path={path} is not a file; data.name=npz needs an .npz with 'images' and, "
            "optionally, 'labels'"
        )
    names = {name for group in NPZ_PAIRS + NPZ_SINGLE for name in group}
    try:
        # what each array must be is checked in the user's terms below
        anything = npz.ArraySpec("fiubcmMSUV", finite=False)
        # images of few values compress more than a hundredfold; deflate reaches at most 1,032
        wanted = npz.load(file, {}, lambda name: anything if name in names else None, unpacked=1100)
        with zipfile.ZipFile(file) as archive:
            keys = [name.removesuffix(".npy") for name in archive.namelist()]
    except UserError as error:
        raise UserError(
            f"data.path={path} cannot be read as an .npz of plain arrays: {error}"
        ) from error
    for x_train, y_train, x_test, y_test in NPZ_PAIRS:
        if x_train in wanted and x_test in wanted:
            pairs = ((x_train, y_train), (x_test, y_test))
            return Npz(*(_npz_split(path, wanted, x, y, value_range) for x, y in pairs), None)
    for x, y in NPZ_SINGLE:
        if x in wanted:
            images, labels = _npz_split(path, wanted, x, y, value_range)
            rows = held_out(len(images), labels, f"data.path={path}")
            return Npz(*((images[r], None if labels is None else labels[r]) for r in rows), rows)
    raise UserError(
        f"data.path={path} holds {', '.join(sorted(keys)) or 'nothing'}; it should hold 'images' "
        f"(N, H, W[, C]) uint8 and, optionally, 'labels' (N,), or x_train, y_train, x_test, y_test"
    )


def _npz_split(
    path: str, archive: dict[str, np.ndarray], image_key: str, label_key: str, value_range: Range
) -> Split:
    images, labels = archive[image_key], archive.get(label_key)
    images, where = images[..., None] if images.ndim == 3 else images, f"data.path={path}"
    if images.ndim != 4 or not images.size or not _channels_last(images.shape):
        raise UserError(
            f"{where}: '{image_key}' has shape {images.shape}; (N, H, W) or (N, H, W, C) is "
            f"needed, with C at most {MOST_CHANNELS} (data.name=arrays reads any C)"
        )
    images = _eight_bits(f"{where}: '{image_key}'", images, value_range)
    if labels is None:
        return images, None
    if not np.issubdtype(labels.dtype, np.integer) or labels.size != len(images):
        numbers = (
            f"; np.unique({label_key}, return_inverse=True)[1] makes them"
            if labels.size == len(images)
            else ""
        )
        raise UserError(
            f"{where}: '{label_key}' is {labels.dtype} {labels.shape}; {len(images)} integers, one "
            f"an image, are needed{numbers}"
        )
    return images, labels.reshape(-1)


def _channels_last(shape: tuple[int, ...]) -> bool:
    """Whether the last axis holds channels, and not the second one, as in files of torch."""
    usual = (1, 3, 4)
    return shape[3] in usual or (shape[3] <= MOST_CHANNELS and shape[1] not in usual)


def _eight_bits(what: str, images: np.ndarray, value_range: Range) -> np.ndarray:
    """Return uint8 images as they are, others converted by their stated range."""
    if images.dtype == np.uint8 and not value_range:
        return images
    if images.dtype.kind not in "fuib":
        raise UserError(f"{what} is {images.dtype}; save the images as uint8 in 0..255")
    kind, parts = "" if images.dtype == np.uint8 else str(images.dtype), -(-images.nbytes // CHUNK)
    pixels.check(f"{what}: {len(images)} images", kind, images.ravel(), value_range)
    try:
        return np.concatenate(
            [pixels.to_uint8(part, value_range) for part in np.array_split(images, parts)]
        )
    except ValueError as error:
        raise UserError(f"{what}: {error}") from None


def held_out(
    size: int, labels: np.ndarray | None = None, what: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """Split rows 90 / 10 by a fixed permutation, but never hold out the last row of a label.

    Args:
      size: the number of rows.
      labels: (size,), or None.
      what: the data, for messages.

    Returns:
      (rows of train, rows of test).

    Raises:
      UserError: for one row, or one row of every class.
    """
    order = np.argsort(
        np.random.Philox(np.random.SeedSequence(0)).random_raw(size), kind="stable"
    ).tolist()
    own = [0] * size if labels is None else labels.tolist()
    train, test = hold_out(order, max(1, size // 10), own, what)
    return np.array(train), np.array(test)


def count_classes(path: str, train: Split, test: Split, num_classes: int) -> int:
    """Return num_classes if it is not 0, else the largest training label + 1; 0 without labels.

    Args:
      path: data.path, for messages.
      train: (images, labels or None) of the training split.
      test: the same of the test split.
      num_classes: data.num_classes; 0 counts the classes.

    Raises:
      UserError: for labels outside 0..classes-1, and for labels that look like ids: far fewer of
        them than their size implies.
    """
    where = f"data.path={path}"
    if (train[1] is None) != (test[1] is None):
        raise UserError(f"{where} has labels for one of train and test only; give both or none")
    if train[1] is None:
        return 0
    distinct = np.unique(train[1])
    classes = num_classes or int(max(train[1].max(), 0)) + 1
    if not num_classes and classes > max(IDS_ABOVE, IDS_TIMES * len(distinct)):
        raise UserError(
            f"{where}: {len(distinct)} different labels, up to {distinct[-1]}, look like ids; "
            "number the classes from 0 (np.unique(labels, return_inverse=True)[1]), or set "
            "data.num_classes if there are so many"
        )
    for part, (_, labels) in (("train", train), ("test", test)):
        bad = np.flatnonzero((labels < 0) | (labels >= classes))
        if bad.size:
            raise UserError(
                f"{where}: {part} image {bad[0]} has label {labels[bad[0]]}, outside "
                f"0..{classes - 1}; fix the labels or set data.num_classes"
            )
    return classes
