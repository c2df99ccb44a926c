"""Values of pixels: which of them are black and white, and what 8 bits make of them.

Networks see images of 8 bits. Values 0..255, and of 16-bit files 0..65535, have a known meaning;
float and 32-bit values do not, and neither do 16-bit ones that stay in the lowest quarter (12-bit
cameras and microscopes, 8 bits in a wider file): these are refused unless config.data.value_range
says which values are black and white. The scale is one for the whole set, never one per image.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from diffusion_jax.core.errors import UserError

Range = tuple[float, ...]  # (black, white), or () where the values say it themselves
BITS_16: Range = (0, 65535)
QUARTER = 16383

# formats whose mode "I" has 16 bits (that of TIFF has 32)
SIXTEEN_BITS = ("PNG", "PPM", "JPEG2000")

USUAL = ((0, 1), (-1, 1), (0, 255), (-128, 127), (0, 1023), (0, 4095), (0, 16383), (0, 65535))
OUTSIDE = 0.01  # the fraction of values that may lie outside a stated range


def depth(image: Image.Image) -> str:
    """Return what the values of an image are.

    Args:
      image: an image that Pillow has opened; its pixels are not read.

    Returns:
      '' for values in 0..255, else '16 bits', '32 bits' or 'float'.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in SIXTEEN_BITS):
        return "16 bits"
    return {"I": "32 bits", "F": "float"}.get(image.mode, "")


def to_uint8(values: np.ndarray, value_range: Range) -> np.ndarray:
    """Convert values of any type to levels: round(255 (x - black) / (white - black)), clipped.

    Args:
      values: pixels of any shape and type.
      value_range: (black, white), the values that become 0 and 255; black may be the larger one.

    Raises:
      ValueError: for values that are not finite.
    """
    black, white = value_range
    scaled = (values.astype(np.float64) - black) * (255 / (white - black))
    if not np.isfinite(scaled).all():
        raise ValueError("it has values that are not finite")
    return scaled.clip(0, 255).round().astype(np.uint8)


def check(what: str, kind: str, values: np.ndarray, value_range: Range) -> None:
    """Refuse values whose scale is not known, or that do not fit the stated one.

    Args:
      what: the images, for the message.
      kind: '' for 8 bits, '16 bits', or any other name of their type.
      values: some of them.
      value_range: config.data.value_range.

    Raises:
      UserError: one line with the values found and what to set.
    """
    numbers = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if not numbers.size:
        raise UserError(f"{what} have no finite values")
    low, high = float(numbers.min()), float(numbers.max())
    found = f"from {low:.4g} to {high:.4g}"
    if value_range:
        black, white = sorted(value_range)
        outside = np.mean((numbers < black) | (numbers > white))
        if outside > OUTSIDE:
            raise UserError(
                f"{what} have values {found}, of which {outside:.0%} are outside of "
                f"config.data.value_range={value_range}; set it to the values of black and white"
            )
        return
    guess = next((r for r in USUAL if r[0] <= low and high <= r[1]), (low, high))
    if kind == "16 bits" and high > QUARTER or kind == "":
        return
    if kind == "16 bits" and high == low:
        return  # nothing to see in any scale: the check of the whole set says so
    if kind == "16 bits":
        raise UserError(
            f"{what} have 16 bits but values {found} of 65535, nearly black; set "
            f"config.data.value_range={guess} if {guess[1]} is white, or (0, 65535) if they are so "
            "dark"
        )
    raise UserError(
        f"{what} have {kind} values {found}, and which of them are black and white is not known; "
        f"set config.data.value_range={guess}, or what is right for them, or save them as uint8 in "
        "0..255"
    )


def check_range(value_range: Range) -> None:
    """Check that a range of values is empty, or two different numbers.

    Args:
      value_range: config.data.value_range: (black, white), or () for 8 and 16 bits.

    Raises:
      UserError: if it is not.
    """
    if value_range and not (
        len(value_range) == 2
        and np.isfinite(value_range).all()
        and value_range[0] != value_range[1]
    ):
        raise UserError(
            f"config.data.value_range={value_range} must be (black, white), two different numbers, "
            "or () for 8 and 16 bits"
        )
