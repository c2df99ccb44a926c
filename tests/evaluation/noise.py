"""Splits of noise, for the tests of the judge and of its commands."""

from __future__ import annotations

import numpy as np

from diffusion_jax.data.sources import Arrays


def noise(count, shape=(4, 4, 1), labels=None):
    return Arrays(np.random.default_rng(15).integers(0, 256, (count, *shape), np.uint8), labels)
