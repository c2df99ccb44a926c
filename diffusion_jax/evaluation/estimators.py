"""Estimators: what computes the metrics of a set of images from features, logits and labels.

An estimator is named on the command line and may give several metrics of metrics.py: 'prdc' gives
precision, recall, density and coverage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from diffusion_jax.data.columns import Column
from diffusion_jax.evaluation import (
    frechet,
    intervals,
    kid,
    marginals,
    memorization,
    mmd,
    points,
    prdc,
    samples,
    scores,
    two_sample,
)
from diffusion_jax.evaluation.features import Extractor
from diffusion_jax.evaluation.intervals import Measured
from diffusion_jax.evaluation.samples import Summary

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
      columns: of a table; () for other data.
    """

    features: np.ndarray
    held_out: np.ndarray | None
    extractor: Extractor
    root: Callable[[], frechet.Root]
    columns: tuple[Column, ...] = ()


Measurements = dict[str, Measured]
Score = Callable[[Summary], Measurements]


class Estimator(NamedTuple):
    """The computation of one or more metrics.

    Attributes:
      prepare: Real -> the function that scores a set; done once.
      wants: the training images that sets are compared with; None means all, 0 none.
      least: the images that every set must have.
      keeps: the images of a set whose features it needs; None means all, 0 none.
      moments: whether the moments of a set's features are needed.
      logits: whether the logits of a classifier are needed.
      labels: whether labels of the samples and a classifier of the same classes are needed.
      held_out: whether real images that were not trained on are needed.
      columns: whether the samples must be rows of a table.
    """

    prepare: Callable[[Real], Score]
    wants: int | None
    least: int = 1
    keeps: int | None = 0
    moments: bool = False
    logits: bool = False
    labels: bool = False
    held_out: bool = False
    columns: bool = False


def _frechet(real: Real) -> Score:
    root = real.root()

    def of_moments(moments: frechet.Moments) -> float:
        return frechet.distance_of_moments(moments, root)

    def score(made: Summary) -> Measurements:
        if made.moments:
            return {"frechet": samples.jackknife(made.moments, frechet.merge, of_moments)}

        def of_features(stays: np.ndarray) -> Scores:
            return {"frechet": frechet.distance_to(made.features[stays], root)}

        return intervals.by_groups(of_features, made.count, grouped=made.grouped)

    return score


def _frechet_infinity(real: Real) -> Score:
    root = real.root()

    def score(made: Summary) -> Measurements:
        description = _if_slow("Fréchet distances of subsets", made.features)
        found = frechet.infinity(made.features, root, description=description)
        half = intervals.NORMAL * found.standard_error
        return {"frechet_infinity": Measured(found.value, half)}

    return score


def _frechet_interval(real: Real) -> Score:
    root = real.root()

    def score(made: Summary) -> Measurements:
        description = _if_slow("Fréchet distances of resampled sets", made.features)
        low, high = frechet.interval(made.features, root, description=description)
        return {"frechet_low": Measured(low), "frechet_high": Measured(high)}

    return score


def _if_slow(description: str, features: np.ndarray) -> str:
    """Return the description of a computation whose progress is worth showing, else ''."""
    return description if min(features.shape) > 500 else ""


def _kid(real: Real) -> Score:
    reference = kid.reference(real.features[:PAIRED])

    def score(made: Summary) -> Measurements:
        found = kid.kid(made.features[:PAIRED], reference)
        half = intervals.NORMAL * found.standard_error
        return {"kid": Measured(found.value, half), "kid_se": Measured(found.standard_error)}

    return score


def _prdc(real: Real) -> Score:
    support = prdc.support(real.features[:PAIRED])
    return _paired(lambda features: prdc.prdc(features, support)._asdict())


def _cmmd(real: Real) -> Score:
    reference = real.features[:PAIRED]

    def score(features: np.ndarray) -> Scores:
        return {"cmmd": 1000 * mmd.squared_mmd(features, reference, sigma=CMMD_SIGMA)}

    return _paired(score)


def _mmd(real: Real) -> Score:
    reference = real.features[:PAIRED]
    width = points.median_distance(reference)
    return _paired(lambda features: {"mmd_median": points.mmd(features, reference, sigma=width)})


def _sliced_wasserstein(real: Real) -> Score:
    reference = real.features[:PAIRED]

    def score(features: np.ndarray) -> Scores:
        return {"sliced_wasserstein": points.sliced_wasserstein(features, reference)}

    return _paired(score)


def _c2st(real: Real) -> Score:
    """Samples against held-out rows, and the held-out rows themselves against training rows.

    A model that is fitted to the training rows agrees with their moments better than other rows of
    the same law do, so that its accuracy against them would be below that of chance.
    """
    trained = real.features[np.random.default_rng(0).permutation(len(real.features))]

    def score(made: Summary) -> Measurements:
        rows, other = made.features[:PAIRED], real.held_out
        if np.array_equal(rows, other[: len(rows)]):
            rows, other = trained, rows
        return {"c2st": intervals.of_sets(two_sample.in_sets(rows, other))}

    return score


def _marginals(real: Real) -> Score:
    return _paired(lambda rows: marginals.distances(rows, real.features[:PAIRED], real.columns))


def _correlation(real: Real) -> Score:
    reference = real.features[:PAIRED]

    def score(rows: np.ndarray) -> Scores:
        return {"correlation": marginals.correlation_distance(rows, reference, real.columns)}

    return _paired(score)


def _paired(score: Callable[[np.ndarray], Scores]) -> Score:
    """A metric of pairs, jackknifed over groups of the first images."""

    def measure(made: Summary) -> Measurements:
        features = made.features[:PAIRED]
        return intervals.by_groups(
            lambda stays: score(features[stays]), len(features), grouped=made.grouped
        )

    return measure


def _memorization(real: Real) -> Score:
    typical = prdc.nearest_distances(real.held_out, real.features)

    def score(made: Summary) -> Measurements:
        distances = prdc.nearest_distances(made.features[:PAIRED], real.features)

        def of_group(stays: np.ndarray) -> Scores:
            found = memorization.memorization(distances[stays], typical)
            return {"nearest_ratio": found.ratio, "copies": found.copies}

        return intervals.by_groups(of_group, len(distances), grouped=made.grouped)

    return score


def _inception_score(real: Real) -> Score:
    def score(made: Summary) -> Measurements:
        if not made.logits:
            return {}
        found = samples.jackknife(made.logits, scores.merge, scores.inception_score)
        return {"inception_score": found}

    return score


def _class_accuracy(real: Real) -> Score:
    def score(made: Summary) -> Measurements:
        if made.classified is None:
            return {}
        return {"class_accuracy": intervals.fraction(made.classified)}

    return score


ESTIMATORS = {
    "frechet": Estimator(_frechet, REFERENCE, least=2, moments=True),
    "kid": Estimator(_kid, PAIRED, least=3, keeps=PAIRED),
    "prdc": Estimator(_prdc, PAIRED, least=6, keeps=PAIRED),
    "class_accuracy": Estimator(_class_accuracy, 0, logits=True, labels=True),
    "inception_score": Estimator(_inception_score, 0, logits=True),
    "memorization": Estimator(_memorization, None, keeps=PAIRED, held_out=True),
    "cmmd": Estimator(_cmmd, PAIRED, keeps=PAIRED),
    "mmd_median": Estimator(_mmd, PAIRED, keeps=PAIRED),
    "sliced_wasserstein": Estimator(_sliced_wasserstein, PAIRED, keeps=PAIRED),
    "c2st": Estimator(_c2st, PAIRED, least=20, keeps=PAIRED, held_out=True),
    "marginals": Estimator(_marginals, PAIRED, keeps=PAIRED, columns=True),
    "correlation": Estimator(_correlation, PAIRED, least=2, keeps=PAIRED, columns=True),
    "frechet_infinity": Estimator(_frechet_infinity, REFERENCE, least=4, keeps=None),
    "frechet_interval": Estimator(_frechet_interval, REFERENCE, least=2, keeps=None),
}
