"""A folder of images: sub-folders are labels, any size, gray or color; with captions on request.

layout.py decides which files are images, which are for training and of which class they are. The
header of every file is read at the start (about 0.2 ms each): it gives size and color, and finds
files that are not images. A split that fits in memory is also decoded at the start, so every
corrupt file is known before the first step. A larger one is decoded batch by batch. A file that
turns out to be corrupt, or has gone, is reported once by name and replaced by the next readable
file in the order, which keeps batch(step) a pure function of the files. In both cases more than
`limit_bad` unreadable files end the run with a UserError, at the start where possible.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from PIL import Image, ImageOps

from diffusion_jax.core.errors import UserError, printable
from diffusion_jax.data import aspect, captions, layout, pixels, transforms, tree
from diffusion_jax.data.held_out import File, held_out
from diffusion_jax.data.pixels import Range
from diffusion_jax.data.sources import Arrays, Lazy, Source, Splits, held_in_memory, parallel
from diffusion_jax.data.transforms import Size

# formats that are recognized by their first bytes
SIGNED = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "AVIF", "JPEG2000")

GRAY_MODES = {"1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"}
ROTATED = range(5, 9)  # the EXIF orientations that swap width and height
SCANNED = 64  # files whose values are read to find their scale


class Header(NamedTuple):
    """The properties of an image file that its first bytes state.

    Attributes:
      size: (H, W).
      gray: whether the image has no color.
      depth: '' for values in 0..255; '16 bits', '32 bits', 'float'.
    """

    size: tuple[int, int]
    gray: bool
    depth: str


def load(
    path: str,
    image_size: Size = 0,
    channels: int = 0,
    *,
    limit_bad: int = -1,
    captioned: bool = False,
    how: str = "",
    value_range: Range = (),
    buckets: Sequence[aspect.Shape] = (),
) -> Splits:
    """Read a folder of images.

    Args:
      path: the folder.
      image_size: the size to which images are brought; 0 keeps theirs.
      channels: 1, 3 or 4, to which they are converted; 0 keeps theirs.
      limit_bad: the number of unreadable files that are skipped; -1 is a tenth, from 1 to 100.
      captioned: whether captions are read, from files next to the images.
      how: config.data.layout; see layout.py.
      value_range: the values of black and white; () for 0..255, and 0..65535 of 16-bit images.
      buckets: heights and widths of training batches; () for those of image_size alone.

    Raises:
      UserError: for what cannot be read, or can be read in two ways.
    """
    root = _root(path)
    listing = tree.walk(root, transforms.endings(), _is_image)
    found = layout.arrange(root, listing, how)
    layout.warn_of_unused(path, listing, found, captioned)
    parts = [found.train] + ([found.test] if found.test else [])
    total = sum(map(len, parts))
    unreadable = Unreadable(path, default_limit(total) if limit_bad < 0 else limit_bad)
    headers = [_headers(part, unreadable) for part in parts]
    parts = [[f for f in part if f.path in h] for part, h in zip(parts, headers)]
    unreadable.report()
    if not all(parts):
        raise UserError(
            f"data.path={path}: no image of the {'test' if parts[0] else 'train'} split is readable"
        )
    layout.check_classes(path, found.classes, {f.label for f in parts[0]})
    every = {file: header for part in headers for file, header in part.items()}
    if not found.test:
        parts = held_out(parts[0], f"data.path={path}")
    shape = _shape(path, every, image_size, channels)
    _check_values(path, every, value_range)
    texts, numbers = (), [None, None]
    if captioned:
        roots = [_captions_root(root, folder) for folder in found.roots]
        texts, numbers = captions.numbered(
            *captions.of_images(path, roots, [[f.path for f in part] for part in parts])
        )
    read = _Read(found.classes, shape, image_size, value_range, unreadable)
    sources = [_source(part, read, n) for part, n in zip(parts, numbers)]
    unreadable.report()
    rule = found.rule
    if buckets:
        sources[0], rule = _bucketed(sources[0], parts[0], every, read, buckets, rule)
    names = tuple(map(printable, found.classes))
    return Splits(*sources, shape, len(names), names, texts, rule)


def _bucketed(
    whole: Source,
    files: list[File],
    headers: dict[Path, Header],
    read: _Read,
    shapes: Sequence[aspect.Shape],
    rule: str,
) -> tuple[aspect.Bucketed, str]:
    """The training split in buckets by aspect ratio, and the rule of the split with their sizes."""
    sizes = [headers[file.path].size for file in files]
    chosen = aspect.nearest(sizes, shapes)
    kept = aspect.kept(sizes, [shapes[bucket] for bucket in chosen])
    if (thin := np.flatnonzero(kept < aspect.LITTLE)).size:
        height, width = sizes[thin[0]]
        logging.warning(
            "data.buckets: %d of %d training images lose more than three quarters, as no "
            "bucket has their aspect ratio: %s is %dx%d; add a bucket, or remove them",
            thin.size,
            len(files),
            printable(files[thin[0]].name),
            height,
            width,
        )
    buckets, counts = [], []
    for number, (height, width) in enumerate(shapes):
        if own := [file for file, bucket in zip(files, chosen) if bucket == number]:
            size = transforms.Frame(height, width)
            shape = (height, width, read.shape[2])
            buckets.append(_source(own, read._replace(shape=shape, image_size=size), None))
        counts.append(f"{height}x{width} ({len(own) or 'no image'})")
    read.unreadable.report()
    return aspect.Bucketed(whole, buckets), f"{rule}; batches of {', '.join(counts)}"


def _root(path: str) -> Path:
    """The folder of data.path."""
    root = Path(os.path.expanduser(path))
    if not root.is_dir():
        raise UserError(
            f"data.path={path} is not a folder; data.name=folder needs a folder of images"
        )
    return root


def default_limit(total: int) -> int:
    """Return how many files may be unreadable: a tenth, from 1 to 100.

    Args:
      total: number of image files in the folder.
    """
    return min(100, max(1, total // 10))


def _is_image(path: str) -> bool:
    """Whether a file without an ending is an image, by its first bytes."""
    try:
        with transforms.open_image(path, SIGNED):
            return True
    except transforms.UnreadableImage:
        return False


def _captions_root(root: Path, folder: Path) -> Path:
    """Return the folder of metadata.jsonl: that of the split, or one above it."""
    here = [folder, *(above for above in folder.parents if above.is_relative_to(root))]
    return next((place for place in here if (place / "metadata.jsonl").is_file()), folder)


_reporting = threading.Lock()  # not in Unreadable, which travels to data workers


class Unreadable:
    """The files that could not be read: reported by name, tolerated up to a limit.

    Args:
      path: data.path, for messages.
      limit: number of unreadable files that are tolerated.
      what: what the files are, for messages.
    """

    def __init__(self, path: str, limit: int, what: str = "images") -> None:
        self.path, self.limit, self.reasons, self.reported = printable(path), limit, {}, 0
        self.what = what

    def add(self, file: Path, error: Exception) -> None:
        """Note an unreadable file and the reason.

        Args:
          file: the path of the file; a file that is added twice counts once.
          error: the error of the decoder, whose message becomes the reason.

        Raises:
          UserError: beyond the limit of data.limit_bad.
        """
        logging.debug("'%s' cannot be read", printable(str(file)), exc_info=error)
        with _reporting:
            reason = " ".join(str(error).replace(f"'{file}'", "").split()) or type(error).__name__
            self.reasons[printable(str(file))] = printable(reason.rstrip(" :"))
            if len(self.reasons) > self.limit:
                raise UserError(
                    f"data.path={self.path} has more than data.limit_bad={self.limit} unreadable "
                    f"{self.what}: {self._names(0)}; remove or replace them, or raise "
                    "data.limit_bad"
                )

    def report(self) -> None:
        """Log one warning with the names of the files found since the last one."""
        with _reporting:
            if len(self.reasons) > self.reported:
                logging.warning(
                    "skipped unreadable %s (at most %d): %s",
                    self.what,
                    self.limit,
                    self._names(self.reported),
                )
                self.reported = len(self.reasons)

    def _names(self, first: int) -> str:
        listed = [f"{file} ({reason})" for file, reason in list(self.reasons.items())[first:]]
        return ", ".join(listed[:10]) + (
            f" and {len(listed) - 10} more" if len(listed) > 10 else ""
        )


def _headers(files: list[File], unreadable: Unreadable) -> dict[Path, Header]:
    def one(file: File) -> Header | None:
        try:
            with transforms.open_image(file.path) as image:
                exif = Image.Image.getexif(image)  # (a PNG's own getexif would decode the pixels)
                size = image.size if exif.get(0x0112, 1) in ROTATED else image.size[::-1]
                return Header(size, image.mode in GRAY_MODES, pixels.depth(image))
        except transforms.UnreadableImage as error:
            return unreadable.add(file.path, error)

    return {f.path: h for f, h in zip(files, parallel(one, files)) if h}


def _shape(
    path: str, headers: dict[Path, Header], image_size: Size, channels: int
) -> tuple[int, int, int]:
    first, (size, *_) = next(iter(headers.items()))
    other = next((f for f, h in headers.items() if h.size != size), None)
    if other and not image_size:
        theirs = headers[other].size
        raise UserError(
            f"data.path={path} has images of several sizes ({first.name} is {size[0]}x{size[1]}, "
            f"{other.name} {theirs[0]}x{theirs[1]}): set data.image_size=64, for instance"
        )
    gray = all(h.gray for h in headers.values())
    return transforms.fitted_shape((*size, 1 if gray else 3), image_size, channels)


def _check_values(path: str, headers: dict[Path, Header], value_range: Range) -> None:
    """Refuse values whose black and white are not known, by up to SCANNED files of each depth."""
    for kind in sorted({h.depth for h in headers.values()}):
        files = [f for f, h in headers.items() if h.depth == kind]
        if not kind and not value_range:
            continue
        some = [
            files[i] for i in np.linspace(0, len(files) - 1, min(len(files), SCANNED)).astype(int)
        ]
        values = [v for v in parallel(_values, some) if v is not None]
        if values:
            what = f"data.path={path}: {len(files)} images ({files[0].name})"
            pixels.check(what, kind, np.concatenate(values), value_range)


def _values(file: Path) -> np.ndarray | None:
    """Return the values of an image file as they are stored, or None where it cannot be read."""
    try:
        with transforms.open_image(file) as image:
            return np.asarray(image if pixels.depth(image) else image.convert("RGB")).ravel()
    except transforms.UnreadableImage:  # it is reported when the file is decoded
        return None


def decode(file: Path, image_size: Size, channels: int, value_range: Range = ()) -> np.ndarray:
    """Decode an image file: rotated as its EXIF data say, transparency on white, resized.

    Args:
      file: the file.
      image_size: the size of the result; 0 keeps the size.
      channels: 1, 3, or 4, which keeps the opacity.
      value_range: the values of black and white; () for 0 and 255 (65535 of 16 bits).

    Returns:
      uint8 (H, W, channels).
    """
    with transforms.open_image(file) as image:
        kind, image = pixels.depth(image), ImageOps.exif_transpose(image)
        if kind:
            image = Image.fromarray(
                pixels.to_uint8(np.asarray(image), value_range or pixels.BITS_16)
            )
        clear = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
        if clear and channels != 4:
            image = Image.alpha_composite(
                Image.new("RGBA", image.size, "white"), image.convert("RGBA")
            )
        image = image.convert(transforms.MODES[channels])
        if value_range and not kind:
            image = image.point(pixels.to_uint8(np.arange(256), value_range).tolist() * channels)
        return transforms.to_array(transforms.fit_pil(image, image_size), channels)


class _Read(NamedTuple):
    """The function and the settings that read the files of both splits."""

    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    image_size: Size
    value_range: Range
    unreadable: Unreadable


def _source(files: list[File], read: _Read, numbers: np.ndarray | None) -> Source:
    index = {name: i for i, name in enumerate(read.classes)}
    labels = np.array([index[f.label] for f in files], np.int32) if read.classes else None
    unreadable, shape = read.unreadable, read.shape

    def image(i: int) -> np.ndarray | None:
        try:
            array = decode(files[i].path, read.image_size, shape[2], read.value_range)
            if array.shape != shape:  # it has changed since its header was read
                raise transforms.UnreadableImage(f"it is {array.shape}, not {shape}")
            return array
        except transforms.UnreadableImage as error:
            return unreadable.add(files[i].path, error)

    if held_in_memory(len(files), shape):
        images = parallel(image, list(range(len(files))))
        kept = [i for i, x in enumerate(images) if x is not None]
        if not kept:
            raise UserError(f"data.path={unreadable.path}: no image of a split is readable")
        return Arrays(
            np.stack([images[i] for i in kept]),
            *(None if x is None else x[kept] for x in (labels, numbers)),
        )

    def example(i: int) -> dict:
        for j in range(i, i + unreadable.limit + 1):
            x = image(j % len(files))
            unreadable.report()
            if x is not None:
                columns = {"label": labels, "caption": numbers}
                return {"image": x} | {
                    k: column[j % len(files)] for k, column in columns.items() if column is not None
                }
        raise UserError(
            f"data.path={unreadable.path}: {unreadable.limit + 1} unreadable images in a row from "
            f"{files[i].path}"
        )

    return Lazy(len(files), example, labels)
