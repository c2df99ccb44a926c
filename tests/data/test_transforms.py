"""Transforms of images: resizing and channels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.core.errors import UserError
from diffusion_jax.data import transforms


def test_resizing_is_antialiased_and_centered():
    fine = (np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)[
        ..., None
    ]  # the finest checkerboard
    small = transforms.fit(fine, 8).astype(int)
    assert small.shape == (8, 8, 1)
    assert (
        np.abs(small - 127.5).max() < 12
    )  # gray; without antialiasing it would stay black or white
    wide = np.random.default_rng(0).integers(256, size=(4, 12, 3)).astype(np.uint8)
    np.testing.assert_array_equal(transforms.fit(wide, 4), wide[:, 4:8])
    shrunk = np.asarray(Image.fromarray(wide).resize((6, 2), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(transforms.fit(wide, 2), shrunk[:, 2:4])


def test_channels():
    red = np.full((2, 2, 3), [255, 0, 0], np.uint8)
    assert (transforms.fit(red, channels=1) == 76).all()  # 0.299 * 255
    gray = np.full((2, 2, 1), 9, np.uint8)
    np.testing.assert_array_equal(transforms.fit(gray, channels=3), np.full((2, 2, 3), 9))
    assert transforms.fit(gray) is gray


def test_a_size_of_another_aspect_ratio_is_cropped_or_gets_bars():
    """(height, width); each is the part or the whole of the image in its own proportions."""
    wide = np.random.default_rng(0).integers(1, 256, size=(4, 12, 3)).astype(np.uint8)
    np.testing.assert_array_equal(transforms.fit(wide, (4, 6)), wide[:, 3:9])
    tall = wide.transpose(1, 0, 2)
    np.testing.assert_array_equal(transforms.fit(tall, (6, 4)), tall[3:9])
    whole = transforms.fit(wide, transforms.frame((6, 12), "letterbox"))
    np.testing.assert_array_equal(whole[1:5], wide)
    assert whole.shape == (6, 12, 3) and not whole[0].any() and not whole[5].any()
    half = transforms.fit(wide, transforms.frame(6, "letterbox"))
    shrunk = np.asarray(Image.fromarray(wide).resize((6, 2), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(half[2:4], shrunk)


def test_opacity_and_many_channels_are_kept():
    clear = np.full((4, 4, 4), [200, 100, 0, 255], np.uint8)
    np.testing.assert_array_equal(transforms.fit(clear, 2), clear[:2, :2])
    assert transforms.fit(clear, channels=3).shape == (4, 4, 3)
    bands = np.random.default_rng(0).integers(256, size=(8, 8, 5)).astype(np.uint8)
    small = transforms.fit(bands, 4)
    for i in range(5):
        np.testing.assert_array_equal(
            small[..., i], transforms.fit(bands[..., i : i + 1], 4)[..., 0]
        )
    with pytest.raises(UserError, match="images of 5 channels cannot be converted"):
        transforms.fit(bands, channels=3)
