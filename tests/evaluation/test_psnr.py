"""The peak signal-to-noise ratio."""

from __future__ import annotations

import numpy as np

from diffusion_jax.evaluation.psnr import psnr


def test_psnr_of_levels_and_of_numbers_in_their_range():
    images = np.zeros((2, 4, 4, 1), np.uint8)
    np.testing.assert_allclose(psnr(images + np.uint8(255), images), 0.0)
    np.testing.assert_allclose(psnr(images, images), 100.0)
    np.testing.assert_allclose(psnr(images + np.uint8(1), images), 20 * np.log10(255))
    floats = np.zeros((2, 4, 4, 1), np.float32)
    np.testing.assert_allclose(psnr(floats + np.float32(0.5), floats), 20 * np.log10(4))
    np.testing.assert_allclose(psnr(floats, floats), 100.0)
