"""A folder of images: sub-folders are labels, any size, grey or colour; with captions, if they are asked for.

What is checked when. The header of every file is read at the start (about 0.2 ms each): it gives size and
colour and finds files that are no images. A split that fits in memory is also decoded at the start, so every corrupt
file is known before the first step. A larger one is decoded batch by batch; a file that turns out to be corrupt, or
has gone, is reported once by name and its place is taken by the next readable file in the order, which keeps
batch(step) a pure function of the files. Either way more than `limit_bad` unreadable files end the run with a
UserError, at the start where possible.
"""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from PIL import Image, ImageOps

from diffusion_jax.data import captions, transforms
from diffusion_jax.data.sources import Arrays, Lazy, Source, held_in_memory, parallel
from diffusion_jax.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
TRAIN, TEST = ("train",), ("test", "val", "valid", "validation")
GREY_MODES = {"1", "L", "LA", "I", "I;16", "I;16B"}
TURNED = range(5, 9)  # the EXIF orientations that swap width and height


class File(NamedTuple):
    path: Path
    name: str  # relative to its split's folder, with '/'
    label: str  # the first sub-folder, '' if there is none


class Header(NamedTuple):
    size: tuple[int, int]  # (H, W)
    grey: bool


def splits(
    path: str, image_size: int, channels: int, limit_bad: int, captioned: bool = False
) -> tuple[Source, Source, tuple, int, tuple, tuple]:
    """(train, test, image_shape, num_classes, class_names, captions). limit_bad: -1 is a tenth of the files, from 1 to 100."""
    root = Path(path).expanduser()
    if not root.is_dir():
        raise UserError(f"data.path={path} is not a folder; data.name=folder wants a folder of images")
    parts = _find(root)
    total = sum(map(len, parts))
    unreadable = Unreadable(path, default_limit(total) if limit_bad < 0 else limit_bad)
    headers = [_headers(part, unreadable) for part in parts]
    parts = [[f for f in part if f.path in h] for part, h in zip(parts, headers)]
    unreadable.report()
    if not all(parts):
        raise UserError(f"data.path={path}: no image of the {'test' if parts[0] else 'train'} split is readable")
    shape = _shape(path, headers[0] | headers[1], image_size, channels)
    names = _class_names(path, *parts)
    texts, numbers = (), [None, None]
    if captioned:
        roots = [_root(part[0]) for part in parts]
        texts, numbers = captions.numbered(*captions.beside_images(path, roots, [[f.path for f in part] for part in parts]))
    sources = [_source(part, names, shape, image_size, unreadable, n) for part, n in zip(parts, numbers)]
    unreadable.report()
    return *sources, shape, len(names), names, texts


def _root(file: File) -> Path:
    """The folder of a file's split."""
    return file.path.parents[len(Path(file.name).parts) - 1]


def default_limit(total: int) -> int:
    """How many of `total` files may be unreadable: a tenth, but at least 1 and at most 100."""
    return min(100, max(1, total // 10))


def _find(root: Path) -> tuple[list[File], list[File]]:
    """The (train, test) files: from sub-folders of those names, else a tenth held out by the hash of the path."""
    below = {p.name.lower(): p for p in sorted(root.iterdir()) if p.is_dir()}
    train = next((below[n] for n in TRAIN if n in below), None)
    test = next((below[n] for n in TEST if n in below), None)
    files = _files(train or root)
    if not files:
        raise UserError(f"data.path={root} holds no images ({', '.join(sorted(SUFFIXES))})")
    if train and test:
        return files, _files(test) or _no_test(test)
    if len(files) < 2:
        raise UserError(
            f"data.path={root} holds one image; at least two are needed, one to train on and one to test with"
        )
    drawn = sorted(files, key=_draw)
    held = min(max(1, sum(_draw(f) < 0.1 for f in files)), len(files) - 1)
    test_names = {f.name for f in drawn[:held]}
    return [f for f in files if f.name not in test_names], [f for f in files if f.name in test_names]


def _no_test(folder: Path):
    raise UserError(f"{folder} holds no images; add some, or remove it to hold out a tenth of the training images")


def _draw(file: File) -> float:
    """A number in [0, 1) that depends on the relative path alone: adding files moves none between the splits."""
    return int.from_bytes(hashlib.sha256(file.name.encode()).digest()[:8]) / 2**64


def _files(folder: Path) -> list[File]:
    relative = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    files = [
        File(folder / r, r.as_posix(), r.parts[0] if len(r.parts) > 1 else "")
        for r in relative
        if not any(part.startswith(".") for part in r.parts)
    ]
    if len({bool(f.label) for f in files}) > 1:
        stray = next(f for f in files if not f.label)
        raise UserError(
            f"data.path={folder} has images both in sub-folders and beside them ({stray.name}): a sub-folder is a label"
        )
    return files


def _class_names(path: str, train: list[File], test: list[File]) -> tuple[str, ...]:
    names = sorted({f.label for f in train} - {""})
    strange = sorted({f.label for f in test} - set(names) - {""} if names else {f.label for f in test} - {""})
    if strange:
        raise UserError(f"data.path={path}: the test images have a label '{strange[0]}' that no train image has")
    if names and any(not f.label for f in test):
        raise UserError(f"data.path={path}: the train images are in sub-folders (labels), the test images are not")
    return tuple(names)


_reporting = threading.Lock()  # not in Unreadable, which travels to data workers


class Unreadable:
    """The files that could not be read: reported by name, tolerated up to a limit."""

    def __init__(self, path: str, limit: int):
        self.path, self.limit, self.reasons, self.reported = path, limit, {}, 0

    def add(self, file: Path, error: Exception) -> None:
        with _reporting:
            reason = " ".join(str(error).replace(f"'{file}'", "").split()) or type(error).__name__
            self.reasons[str(file)] = reason.rstrip(" :")
            if len(self.reasons) > self.limit:
                raise UserError(
                    f"data.path={self.path} has more than data.limit_bad={self.limit} unreadable images: "
                    f"{self._names(0)}; remove or mend them, or raise data.limit_bad"
                )

    def report(self) -> None:
        """One warning naming the files found since the last one."""
        with _reporting:
            if len(self.reasons) > self.reported:
                logging.warning("skipped unreadable images (at most %d): %s", self.limit, self._names(self.reported))
                self.reported = len(self.reasons)

    def _names(self, first: int) -> str:
        listed = [f"{file} ({reason})" for file, reason in list(self.reasons.items())[first:]]
        return ", ".join(listed[:10]) + (f" and {len(listed) - 10} more" if len(listed) > 10 else "")


def _headers(files: list[File], unreadable: Unreadable) -> dict[Path, Header]:
    def one(file: File) -> Header | None:
        try:
            with transforms.open_image(file.path) as image:
                exif = Image.Image.getexif(image)  # (a PNG's own getexif would decode the pixels)
                size = image.size if exif.get(0x0112, 1) in TURNED else image.size[::-1]
                return Header(size, image.mode in GREY_MODES)
        except Exception as error:  # decoders raise what they like: OSError, SyntaxError, struct.error, ...
            return unreadable.add(file.path, error)

    return {f.path: h for f, h in zip(files, parallel(one, files)) if h}


def _shape(path: str, headers: dict[Path, Header], image_size: int, channels: int) -> tuple[int, int, int]:
    first, (size, _) = next(iter(headers.items()))
    other = next((f for f, h in headers.items() if h.size != size), None)
    if other and not image_size:
        theirs = headers[other].size
        raise UserError(
            f"data.path={path} has images of several sizes ({first.name} is {size[0]}x{size[1]}, {other.name} "
            f"{theirs[0]}x{theirs[1]}): set data.image_size=64, for instance"
        )
    grey = all(h.grey for h in headers.values())
    return transforms.fitted_shape((*size, 1 if grey else 3), image_size, channels)


def decode(file: Path, image_size: int, channels: int) -> np.ndarray:
    """One image file -> (H, W, channels) uint8: turned as its EXIF says, transparency on white, resized."""
    with transforms.open_image(file) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16-bit grey: keep the high byte, where convert would clip
            image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        return transforms.to_array(transforms.fit_pil(image.convert(transforms.MODES[channels]), image_size), channels)


def _source(
    files: list[File],
    names: tuple[str, ...],
    shape: tuple,
    image_size: int,
    unreadable: Unreadable,
    numbers: np.ndarray | None,
) -> Source:
    labels = np.array([names.index(f.label) for f in files], np.int32) if names else None

    def image(i: int) -> np.ndarray | None:
        try:
            array = decode(files[i].path, image_size, shape[2])
            if array.shape != shape:  # it has changed since its header was read
                raise ValueError(f"it is {array.shape}, not {shape}")
            return array
        except Exception as error:  # as above
            return unreadable.add(files[i].path, error)

    if held_in_memory(len(files), shape):
        images = parallel(image, list(range(len(files))))
        kept = [i for i, x in enumerate(images) if x is not None]
        if not kept:
            raise UserError(f"data.path={unreadable.path}: no image of a split is readable")
        return Arrays(np.stack([images[i] for i in kept]), *(None if x is None else x[kept] for x in (labels, numbers)))

    def example(i: int) -> dict:
        for j in range(i, i + unreadable.limit + 1):
            x = image(j % len(files))
            unreadable.report()
            if x is not None:
                columns = {"label": labels, "caption": numbers}
                return {"image": x} | {k: column[j % len(files)] for k, column in columns.items() if column is not None}
        raise UserError(
            f"data.path={unreadable.path}: {unreadable.limit + 1} unreadable images in a row from {files[i].path}"
        )

    return Lazy(len(files), example)
