"""Estimators: what computes the metrics of a set of images from features, logits and labels.

An estimator is named on the command line and may give several metrics of metrics.py: 'prdc' gives
precision, recall, density and coverage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from diffusion_jax.evaluation import frechet, kid, memorization, mmd, prdc, scores
from diffusion_jax.evaluation.features import Extractor

REFERENCE = 10_000  # training images in the reference statistics, at most
PAIRED = 5_000  # images in metrics of pairs, at most: their cost is quadratic
CMMD_SIGMA = 10.0  # Jayasumana et al. (2024)

Scores = dict[str, float]  # metric -> value


class Real(NamedTuple):
    """The training split as one extractor sees it.

    Attributes:
      features: (N, D), features of the first training images, as many as the estimators need.
      held_out: (M, D), features of the test split; None where no estimator needs them.
      extractor: the extractor.
      root: returns the Gaussian that Fréchet distances are measured to; it is computed once.
    """

    features: np.ndarray
    held_out: np.ndarray | None
    extractor: Extractor
    root: Callable[[], frechet.Root]


class Generated(NamedTuple):
    """A set of images to be judged.

    Attributes:
      features: (N, D).
      logits: (N, K), None where the extractor has none.
      labels: (N,), the labels that the images were generated for; None where there are none.
    """

    features: np.ndarray
    logits: np.ndarray | None
    labels: np.ndarray | None


Score = Callable[[Generated], Scores]


class Estimator(NamedTuple):
    """The computation of one or more metrics.

    Attributes:
      prepare: Real -> the function that scores a set; done once.
      wants: the training images that sets are compared with; None means all, 0 none.
      least: the images that every set must have.
      logits: whether the logits of a classifier are needed.
      labels: whether labels of the samples and a classifier of the same classes are needed.
      held_out: whether real images that were not trained on are needed.
    """

    prepare: Callable[[Real], Score]
    wants: int | None
    least: int = 1
    logits: bool = False
    labels: bool = False
    held_out: bool = False


def _frechet(real: Real) -> Score:
    root = real.root()
    return lambda made: {"frechet": frechet.distance_to(made.features, root)}


def _frechet_infinity(real: Real) -> Score:
    root = real.root()

    def score(made: Generated) -> Scores:
        description = _if_slow("Fréchet distances of subsets", made.features)
        found = frechet.infinity(made.features, root, description=description)
        return {"frechet_infinity": found.value}

    return score


def _frechet_interval(real: Real) -> Score:
    root = real.root()

    def score(made: Generated) -> Scores:
        description = _if_slow("Fréchet distances of resampled sets", made.features)
        low, high = frechet.interval(made.features, root, description=description)
        return {"frechet_low": low, "frechet_high": high}

    return score


def _if_slow(description: str, features: np.ndarray) -> str:
    """Return the description of a computation whose progress is worth showing, else ''."""
    return description if min(features.shape) > 500 else ""


def _kid(real: Real) -> Score:
    reference = kid.reference(real.features[:PAIRED])

    def score(made: Generated) -> Scores:
        found = kid.kid(made.features[:PAIRED], reference)
        return {"kid": found.value, "kid_se": found.standard_error}

    return score


def _prdc(real: Real) -> Score:
    support = prdc.support(real.features[:PAIRED])
    return lambda made: prdc.prdc(made.features[:PAIRED], support)._asdict()


def _cmmd(real: Real) -> Score:
    reference = real.features[:PAIRED]

    def score(made: Generated) -> Scores:
        squared = mmd.squared_mmd(made.features[:PAIRED], reference, sigma=CMMD_SIGMA)
        return {"cmmd": 1000 * squared}

    return score


def _memorization(real: Real) -> Score:
    typical = prdc.nearest_distances(real.held_out, real.features)

    def score(made: Generated) -> Scores:
        found = memorization.memorization(made.features[:PAIRED], real.features, typical)
        return {"nearest_ratio": found.ratio, "copies": found.copies}

    return score


def _inception_score(real: Real) -> Score:
    def score(made: Generated) -> Scores:
        if made.logits is None:
            return {}
        return {"inception_score": scores.inception_score(made.logits)}

    return score


def _class_accuracy(real: Real) -> Score:
    def score(made: Generated) -> Scores:
        if not real.extractor.classes or made.labels is None:
            return {}
        return {"class_accuracy": scores.class_accuracy(made.logits, made.labels)}

    return score


ESTIMATORS = {
    "frechet": Estimator(_frechet, REFERENCE, least=2),
    "kid": Estimator(_kid, PAIRED, least=3),
    "prdc": Estimator(_prdc, PAIRED, least=6),
    "class_accuracy": Estimator(_class_accuracy, 0, logits=True, labels=True),
    "inception_score": Estimator(_inception_score, 0, logits=True),
    "memorization": Estimator(_memorization, None, held_out=True),
    "cmmd": Estimator(_cmmd, PAIRED),
    "frechet_infinity": Estimator(_frechet_infinity, REFERENCE, least=4),
    "frechet_interval": Estimator(_frechet_interval, REFERENCE, least=2),
}
