"""Quality of a set of images against a data set, in the numbers that every command prints.

`against(train, labels)` is the cheap pair of numbers that every comparison affords: recognition and the Frechet distance
of pixels. With more `features` and `metrics` it is the laboratory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from diffusion_jax import data
from diffusion_jax.data.sources import Source
from diffusion_jax.errors import UserError, unknown
from diffusion_jax.evaluation import features as extractors
from diffusion_jax.evaluation import frechet, kid, memorisation, mmd, prdc, recognition, scores
from diffusion_jax.evaluation.statistics import Statistics

REFERENCE = 10_000  # training images in the reference statistics, at most
PAIRED = 5_000  # in metrics of pairs, at most: their cost is a square
CMMD_SIGMA = 10.0  # Jayasumana et al. (2024)

Scores = dict[str, float]
Judge = Callable[..., Scores]  # (images uint8 (N, H, W, C), labels=those asked for) -> Scores


class Real(NamedTuple):
    """The training split as one extractor sees it: features of its first images, as many as the metrics asked for want."""

    features: np.ndarray
    held_out: np.ndarray | None
    extractor: extractors.Extractor
    statistics: Statistics | None  # instead of the moments of the features


class Seen(NamedTuple):
    """A set of images to be judged: its features and logits, and the labels asked for."""

    features: np.ndarray
    logits: np.ndarray | None
    labels: np.ndarray | None


class Metric(NamedTuple):
    """prepare(real), done once, gives the function that scores a set; wants: training images it compares with, None: all."""

    prepare: Callable[[Real], Callable[[Seen], Scores]]
    wants: int | None


def _frechet(real: Real):
    moments = _moments(real)
    return lambda seen: {"frechet": frechet.frechet_distance(frechet.moments(seen.features), moments)}


def _frechet_infinity(real: Real):
    moments = _moments(real)
    return lambda seen: {"frechet_infinity": frechet.infinity(seen.features, moments).value}


def _frechet_interval(real: Real):
    moments = _moments(real)
    return lambda seen: dict(zip(("frechet_low", "frechet_high"), frechet.interval(seen.features, moments)))


def _kid(real: Real):
    reference = kid.reference(real.features[:PAIRED])
    return lambda seen: dict(zip(("kid", "kid_se"), kid.kid(seen.features[:PAIRED], reference)))


def _prdc(real: Real):
    support = prdc.support(real.features[:PAIRED])
    return lambda seen: prdc.prdc(seen.features[:PAIRED], support)._asdict()


def _cmmd(real: Real):
    reference = real.features[:PAIRED]
    return lambda seen: {"cmmd": 1000 * mmd.squared_mmd(seen.features[:PAIRED], reference, sigma=CMMD_SIGMA)}


def _memorisation(real: Real):
    if real.held_out is None:
        raise UserError("metric memorisation needs held-out real images; this command has none")
    typical = prdc.nearest_distances(real.held_out, real.features)

    def score(seen):
        found = memorisation.memorisation(seen.features[:PAIRED], real.features, typical)
        return {"nearest_ratio": found.ratio, "copies": found.copies}

    return score


def _inception_score(real: Real):
    return lambda seen: {} if seen.logits is None else {"inception_score": scores.inception_score(seen.logits)}


def _class_accuracy(real: Real):
    def score(seen):
        known = real.extractor.classes and seen.labels is not None
        return {"class_accuracy": scores.class_accuracy(seen.logits, seen.labels)} if known else {}

    return score


METRICS = {
    "frechet": Metric(_frechet, REFERENCE),
    "kid": Metric(_kid, PAIRED),
    "prdc": Metric(_prdc, PAIRED),
    "class_accuracy": Metric(_class_accuracy, 0),
    "inception_score": Metric(_inception_score, 0),
    "memorisation": Metric(_memorisation, None),
    "cmmd": Metric(_cmmd, PAIRED),
    "frechet_infinity": Metric(_frechet_infinity, REFERENCE),
    "frechet_interval": Metric(_frechet_interval, REFERENCE),
}


def against(
    train: Source,
    labels: np.ndarray | None,
    *,
    features: Sequence[str | extractors.Extractor] = ("pixels",),
    metrics: Sequence[str] = ("frechet",),
    held_out: Source | None = None,
    statistics: Statistics | None = None,
) -> Judge:
    """A function images uint8 (N, H, W, C) -> {'accuracy', 'frechet', ...}; 'frechet/NAME' for features other than pixels.

    accuracy (where labels (N,) are given): the fraction that an SVM, fitted to the real training split, recognises as them.
    frechet: Frechet distance to the training split's first 10,000; its floor at this N is what real test images score.
    features: names, or extractors made before. metrics: names of METRICS; those that need logits or labels are left out where
    there are none. held_out: the test split, for memorisation. statistics: instead of the moments of the training images, for
    the extractor that they name. UserError for unknown names.
    """
    chosen, asked = named(metrics), labels
    everything = data.arrays(train) if labels is not None else {}
    recognise = recognition.recognizer(everything["image"], everything["label"]) if labels is not None else None
    prepared = []
    for extractor in [extractor_for(feature, train) for feature in features]:
        real = _real(extractor, train, held_out, chosen, statistics)
        prepared.append((extractor, [metric.prepare(real) for metric in chosen]))

    def judge(images: np.ndarray, labels: np.ndarray | None = None) -> Scores:
        labels = asked if labels is None else labels
        result = {"accuracy": recognition.accuracy(recognise, images, labels)} if recognise else {}
        for extractor, parts in prepared:
            seen = Seen(*_outputs(extractor, images), labels)
            suffix = "" if extractor.name == "pixels" else f"/{extractor.name}"
            for part in parts:
                result |= {name + suffix: value for name, value in part(seen).items()}
        return result

    return judge


def on_real(train: Source, test: Source, judge: Judge | None = None, count: int = REFERENCE) -> Scores:
    """The same numbers for `count` of the real test split: what as many of a perfect model would score. judge: one made before."""
    held_out = data.arrays(test, limit=min(count, REFERENCE))
    return (judge or against(train, held_out.get("label")))(held_out["image"], held_out.get("label"))


def named(metrics: Sequence[str]) -> list[Metric]:
    """The metrics of these names; UserError for one that is none."""
    for name in metrics:
        if name not in METRICS:
            raise unknown("metric", name, METRICS)
    return [METRICS[name] for name in metrics]


def extractor_for(feature: str | extractors.Extractor, train: Source) -> extractors.Extractor:
    """The extractor of this name, the classifier fitted to the training split; one made before passes through."""
    if not isinstance(feature, str):
        return feature
    everything = data.arrays(train) if feature == "classifier" else {}
    return extractors.extractor(feature, everything.get("image"), everything.get("label"))


def _moments(real: Real) -> frechet.Moments:
    return real.statistics.moments if real.statistics else frechet.moments(real.features[:REFERENCE])


def _real(extractor, train, held_out, chosen: list[Metric], statistics: Statistics | None) -> Real:
    statistics = statistics if statistics and statistics.of["extractor"] == extractor.name else None
    wants = [metric.wants for metric in chosen if not (statistics and metric.wants == REFERENCE)]  # those need moments alone
    limit = None if None in wants else max(wants, default=0)
    features = np.zeros((0, 0), np.float32)
    if limit != 0:
        features = _outputs(extractor, data.arrays(train, limit)["image"], "training ").features
    test = None
    if held_out is not None and None in wants:
        test = _outputs(extractor, data.arrays(held_out, PAIRED)["image"], "held-out ").features
    return Real(features, test, extractor, statistics)


def _outputs(extractor: extractors.Extractor, images: np.ndarray, which: str = "") -> extractors.Outputs:
    """Network passes that may take long show how far they are."""
    quick = extractor.name in ("pixels", "classifier")
    return extractor.outputs(images, "" if quick else f"{which}{extractor.name} features")
