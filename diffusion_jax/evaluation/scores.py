"""Metrics of generated images from the logits of a classifier."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from diffusion_jax.core.deferred import deferred

special = deferred("scipy.special")


class LogitSums(NamedTuple):
    """The sums over images that an inception score depends on, in float64.

    Attributes:
      count: the number of images.
      negentropy: sum of sum_y p(y|x) log p(y|x).
      probabilities: (K,), sum of p(y|x).
    """

    count: int
    negentropy: float
    probabilities: np.ndarray


def logit_sums(logits: np.ndarray) -> LogitSums:
    """Compute the sums of one batch of logits.

    Args:
      logits: (N, K), N >= 1, of any floating type; the sums are in float64.
    """
    log_p = special.log_softmax(np.asarray(logits, np.float64), 1)
    p = np.exp(log_p)
    return LogitSums(len(p), float(np.sum(p * log_p)), p.sum(0))


def merge(a: LogitSums, b: LogitSums) -> LogitSums:
    """The sums of two sets together.

    Args:
      a: the sums of one set.
      b: those of another set, of the same classifier.
    """
    return LogitSums(*(x + y for x, y in zip(a, b)))


def inception_score(sums: LogitSums) -> float:
    """Inception score (Salimans et al. 2016): exp(mean KL(p(y|x) || p(y))) over all images.

    It is high where each image is clearly of one class and all classes occur. Scores by other
    classifiers than Inception are comparable only with each other.

    Args:
      sums: `logit_sums` of the images, of K classes.

    Returns:
      A number in [1, K].
    """
    marginal = sums.probabilities / sums.count
    cross = np.sum(marginal * np.log(np.maximum(marginal, 1e-300)))
    return float(np.exp(sums.negentropy / sums.count - cross))


def classified(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return (N,) of bool: whether the largest logit of an image is that of its label.

    Args:
      logits: (N, K).
      labels: (N,), in 0, ..., K - 1.
    """
    return np.argmax(logits, 1) == np.asarray(labels)
