"""Measurements of small images, and methods, that the tests of this folder share."""

from __future__ import annotations

import numpy as np

from diffusion_jax.inverse import methods
from tests.families import public

METHODS = {name: make() for name, make in public(methods, "Method").items()}


A, STD, Y = np.array([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]]), 0.3, np.array([0.7, -0.4])


MEAN, ROOT = (
    np.array([0.3, -0.2, 0.5]),
    np.array([[0.8, 0.0, 0.0], [0.5, 0.4, 0.0], [-0.3, 0.2, 0.6]]),
)


COVARIANCE = ROOT @ ROOT.T
