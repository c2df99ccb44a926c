"""Images as the networks want them: one size, one number of channels, [-1, 1]."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

from diffusion_jax.core.errors import UserError
from diffusion_jax.core.types import Array

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
FITS = ("crop", "letterbox")


# Every format in which an image file is opened, in the order in which they are tried. All are
# decoded inside this process: none starts another program (EPS starts Ghostscript), fetches a
# file, or decompresses a stream of unknown size (FITS). Formats whose files have no signature stand
# last (TGA).
FORMATS = (
    "PNG",
    "JPEG",
    "GIF",
    "BMP",
    "DIB",
    "WEBP",
    "TIFF",
    "PPM",
    "AVIF",
    "JPEG2000",
    "QOI",
    "SGI",
    "PCX",
    "ICO",
    "TGA",
)


class UnreadableImage(Exception):
    """An image file cannot be decoded; the cause is the error of the decoder."""


@contextlib.contextmanager
def open_image(
    file: str | os.PathLike | IO[bytes], formats: tuple[str, ...] = FORMATS
) -> Iterator[Image.Image]:
    """Open an image file in one of `formats`, whatever its name says, and decode it in the block.

    This is the only place of the project that opens image files. Pillow raises errors of many types
    for a damaged file (OSError, SyntaxError, struct.error, ...), some of them only when the pixels
    are used, so all errors of the block become one type.

    Args:
      file: a path, or an open binary file.
      formats: names of Pillow's formats, a part of FORMATS; those that this Pillow was built
        without are left out.

    Yields:
      The image, whose pixels are not decoded yet.

    Raises:
      UnreadableImage: for what is not a regular file, such as a pipe, for a file in none of these
        formats, and for an image that cannot be decoded in the block.
    """
    try:
        if not hasattr(file, "read") and os.path.exists(file) and not os.path.isfile(file):
            raise OSError("it is not a regular file")
        Image.init()
        available = [name for name in formats if name in Image.OPEN]
        with Image.open(file, formats=available) as image:
            yield image
    except UserError:
        raise
    except Exception as error:
        raise UnreadableImage(str(error) or type(error).__name__) from error


def endings() -> frozenset[str]:
    """Return the endings that Pillow registers for FORMATS, in lower case: '.jpg', '.tga', ..."""
    Image.init()
    names = (*FORMATS, "MPO")  # MPO is read as JPEG
    return frozenset(ending for ending, name in Image.EXTENSION.items() if name in names)


class Frame(NamedTuple):
    """The size to which images are brought, and how.

    Attributes:
      height: in pixels.
      width: in pixels.
      fit: 'crop' cuts off what has another aspect ratio, 'letterbox' fills it up with black.
    """

    height: int
    width: int
    fit: str = "crop"


Size = int | tuple[int, int] | Frame  # the side of a square, (height, width), or all of it


def frame(size: Size, fit: str = "crop") -> Frame | None:
    """Return the frame that a size means; None for 0, which keeps the size that images have.

    Args:
      size: the side of a square, (height, width), or a Frame, which is returned unchanged.
      fit: one of FITS.
    """
    if isinstance(size, Frame):
        return size
    if not size:
        return None
    return Frame(*((size, size) if isinstance(size, int) else size), fit)


def fitted_shape(shape: tuple[int, ...], image_size: Size, channels: int) -> tuple[int, int, int]:
    """Return the (H, W, C) that `fit` gives to an image.

    Args:
      shape: (H, W, C) of the image.
      image_size: the size of the result; 0 keeps the size.
      channels: 1, 3 or 4; 0 keeps the number.
    """
    wanted = frame(image_size)
    height, width = wanted[:2] if wanted else shape[:2]
    return height, width, channels or shape[2]


def fit(image: np.ndarray, image_size: Size = 0, channels: int = 0) -> np.ndarray:
    """Bring an image to a size, by cropping its center or by black bars, and convert it.

    Args:
      image: uint8 (H, W, C).
      image_size: the size of the result (antialiased bicubic); 0 keeps the size.
      channels: gray is repeated to RGB, RGB becomes gray by the ITU-R 601 luma, and 4 adds or keeps
        opacity; 0 keeps them. Images with other numbers of channels keep theirs.

    Returns:
      uint8 (height, width, channels).

    Raises:
      UserError: for images of other numbers of channels that are to be converted.
    """
    wanted = fitted_shape(image.shape, image_size, channels)
    if image.shape == wanted:
        return image
    if image.shape[2] not in MODES:
        if wanted[2] != image.shape[2]:
            raise UserError(
                f"data.channels={channels}: images of {image.shape[2]} channels cannot be "
                "converted; set data.channels=0"
            )
        bands = np.split(image, image.shape[2], axis=2)
        return np.concatenate([fit(band, image_size) for band in bands], axis=2)
    return to_array(fit_pil(from_array(image), image_size), channels or image.shape[2])


def fit_pil(image: Image.Image, image_size: Size) -> Image.Image:
    """Resize the largest centered part of a Pillow image that has the aspect ratio of the frame.

    For a square this equals resizing the short side and cropping the center. With 'letterbox' the
    whole image is resized, and black bars fill the rest of the frame. Pillow's bicubic filter
    widens its kernel when it shrinks an image, which antialiases; a kernel of fixed width would
    skip pixels.

    Args:
      image: an image of any size and mode.
      image_size: the size of the result; 0 keeps the size.
    """
    wanted = frame(image_size)
    if wanted is None or image.size == (wanted.width, wanted.height):
        return image
    height, width = wanted[:2]
    if wanted.fit == "letterbox":
        ratio = min(width / image.width, height / image.height)
        size = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
        page = Image.new(image.mode, (width, height))
        corner = (width - size[0]) // 2, (height - size[1]) // 2
        page.paste(image.resize(size, Image.Resampling.BICUBIC), corner)
        return page
    if image.width * height <= image.height * width:
        across, down = image.width, image.width * height / width
    else:
        across, down = image.height * width / height, image.height
    left, top = (image.width - across) / 2, (image.height - down) / 2
    box = (left, top, left + across, top + down)
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


def from_array(image: np.ndarray) -> Image.Image:
    """Convert an array to a Pillow image.

    Args:
      image: uint8 (H, W, 1, 3 or 4).
    """
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def to_array(image: Image.Image, channels: int) -> np.ndarray:
    """Convert a Pillow image to an array.

    Args:
      image: an image of any mode.
      channels: 1 (gray), 3 (color) or 4 (color and opacity).

    Returns:
      uint8 (H, W, channels).
    """
    array = np.asarray(image.convert(MODES[channels]), np.uint8)
    return array[..., None] if channels == 1 else array


def to_float(images: np.ndarray | Array, dtype: Any = np.float32) -> Any:
    """Convert levels 0, ..., 255 to numbers in [-1, 1]: u -> u / 127.5 - 1.

    The inverse of `to_uint8`. Works on arrays of numpy and of JAX, inside jit too.

    Args:
      images: uint8 of any shape; floating-point data (points of 2-D sets) are not scaled.
      dtype: the floating-point type of the result.

    Returns:
      An array of the same shape and kind.
    """
    scaled = images.astype(dtype, copy=False)
    if images.dtype != np.uint8:
        return scaled
    scaled *= np.asarray(1 / 127.5, dtype)
    scaled -= np.asarray(1, dtype)
    return scaled


def to_unit(images: np.ndarray) -> np.ndarray:
    """Convert levels 0, ..., 255 to float32 in [0, 1]: u -> u / 255, for features of pixels.

    Args:
      images: uint8, of any shape.
    """
    return images.astype(np.float32) / np.float32(255)


def check_request(image_size: Size, channels: int) -> None:
    """Check that data.image_size and data.channels are possible.

    Args:
      image_size: the side of an image in pixels, or (height, width); 0 keeps the size that the data
        have.
      channels: 1 (gray), 3 (color) or 4 (color and opacity); 0 keeps what the data have.

    Raises:
      UserError: for a size or a number of channels that no image can have.
    """
    if min(image_size if isinstance(image_size, tuple) else (image_size,)) < 0:
        raise UserError(
            f"data.image_size={image_size} must be 0 (keep the size) or a number of pixels"
        )
    if channels not in (0, *MODES):
        raise UserError(
            f"data.channels={channels} must be 0 (as the data has), 1 (gray), 3 (color) or 4 "
            "(color and opacity)"
        )


def finite(samples: np.ndarray) -> np.ndarray:
    """Return samples unchanged if all of their values are finite.

    Args:
      samples: (N, ...), of any floating type.

    Raises:
      UserError: if some values are not finite.
    """
    if not np.isfinite(samples).all():
        bad = (~np.isfinite(samples)).reshape(len(samples), -1).any(1).sum()
        raise UserError(
            f"{bad} of {len(samples)} samples are not finite; take more steps, another sampler, or "
            "clip x0"
        )
    return samples


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Convert numbers in [-1, 1] to levels 0, ..., 255: clip, then round (x + 1) 127.5.

    The inverse of `to_float`.

    Args:
      images: floating-point numbers of any shape.

    Returns:
      uint8 of the same shape.

    Raises:
      UserError: for values that are not finite.
    """
    images = finite(np.asarray(images, np.float32))
    return np.rint((np.clip(images, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
