"""Images that tests of autoencoders share."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

W = np.array([[0.8, 0.3], [-0.4, 0.5], [0.1, -0.6], [0.3, 0.2]])


Q_MEAN, Q_VARIANCE = (
    np.array([[0.4, -0.3, 0.2, 0.1], [0.1, 0.5, -0.2, 0.3]]),
    np.array([0.5, 1.4]),
)  # a poor posterior


X = np.array([[0.5, -0.3, 0.2, 0.9], [-0.7, 0.1, 0.4, 0.0], [1.0, 0.6, -0.8, 0.2]])


IMAGES = jnp.asarray(X.reshape(3, 2, 2, 1), jnp.float32)


def sigma_points(batch=3):
    """Four points of R^2 with zero mean and unit covariance: averages of quadratics over them are
    exact. (4, B, 2)
    """
    points = np.sqrt(2) * np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    return jnp.asarray(np.repeat(points[:, None], batch, 1), jnp.float32)
