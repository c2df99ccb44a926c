"""Transforms of images: resizing and channels."""

from __future__ import annotations

import numpy as np
from PIL import Image

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
