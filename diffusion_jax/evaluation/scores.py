"""Metrics of generated images from the logits of a classifier."""

from __future__ import annotations

import numpy as np

from diffusion_jax.core.deferred import deferred
from diffusion_jax.core.errors import UserError

special = deferred("scipy.special")


def inception_score(logits: np.ndarray) -> float:
    """Inception score (Salimans et al. 2016): exp(mean KL(p(y|x) || p(y))) over all images.

    It is high where each image is clearly of one class and all classes occur. Scores by other
    classifiers than Inception are comparable only with each other.

    Args:
      logits: (N, K).

    Returns:
      A number in [1, K].
    """
    log_p = special.log_softmax(np.asarray(logits, np.float64), 1)
    p = np.exp(log_p)
    marginal = p.mean(0)
    return float(np.exp(np.mean(np.sum(p * (log_p - np.log(np.maximum(marginal, 1e-300))), 1))))


def class_accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the fraction of images whose largest logit is that of their label.

    Args:
      logits: (N, K).
      labels: (N,), in 0, ..., K - 1.

    Raises:
      UserError: if there is not one label for each image.
    """
    if len(logits) != len(labels):
        raise UserError(
            f"{len(logits)} images and {len(labels)} labels: accuracy needs one label for each "
            "image"
        )
    return float(np.mean(np.argmax(logits, 1) == np.asarray(labels)))
