"""Quality of a set of images against a data set, in the numbers that every command prints.

`against(train, labels)` gives the two inexpensive numbers of every comparison: recognition, and the
Fréchet distance of the default features. It takes any other `features` and `metrics` too. `choose`
decides what can be measured on the data at hand, before anything is sampled.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from diffusion_jax import data
from diffusion_jax.data.sources import Source
from diffusion_jax.errors import UserError, unknown
from diffusion_jax.evaluation import (
    features,
    frechet,
    kid,
    memorisation,
    mmd,
    prdc,
    recognition,
    scores,
)
from diffusion_jax.evaluation import features as extractors
from diffusion_jax.evaluation.statistics import Statistics

REFERENCE = 10_000  # training images in the reference statistics, at most
PAIRED = 5_000  # in metrics of pairs, at most: their cost is a square
CMMD_SIGMA = 10.0  # Jayasumana et al. (2024)
Scores = dict[str, float]

Judge = Callable[
    ..., Scores
]  # (images uint8 (N, H, W, C), labels=those asked for; (): unknown) -> Scores


class Real(NamedTuple):
    """The training split as one extractor sees it: features of its first images, as many as the
    metrics asked for want.

    root: the Gaussian that Fréchet distances are measured to, computed once. held_out: features of
      the test split.
    """

    features: np.ndarray
    held_out: np.ndarray | None
    extractor: features.Extractor
    root: Callable[[], frechet.Root]


class Seen(NamedTuple):
    """A set of images to be judged: its features and logits, and the labels asked for."""

    features: np.ndarray
    logits: np.ndarray | None
    labels: np.ndarray | None


class Estimator(NamedTuple):
    """prepare(real), done once, gives the function that scores a set.

    wants: training images it compares with, None: all. least: images that every set must have.
    logits, labels, held_out: whether it needs the logits of a classifier, labels of the samples
    with a classifier of these classes, real images never trained on.
    """

    prepare: Callable[[Real], Callable[[Seen], Scores]]
    wants: int | None
    least: int = 1
    logits: bool = False
    labels: bool = False
    held_out: bool = False


def _frechet(real: Real):
    root = real.root()
    return lambda seen: {"frechet": frechet.distance_to(seen.features, root)}


def _frechet_infinity(real: Real):
    root = real.root()

    def score(seen: Seen) -> Scores:
        what = _if_slow("Fréchet distances of subsets", seen.features)
        return {"frechet_infinity": frechet.infinity(seen.features, root, description=what).value}

    return score


def _frechet_interval(real: Real):
    root = real.root()

    def score(seen: Seen) -> Scores:
        what = _if_slow("Fréchet distances of resampled sets", seen.features)
        return dict(
            zip(
                ("frechet_low", "frechet_high"),
                frechet.interval(seen.features, root, description=what),
            )
        )

    return score


def _if_slow(description: str, features: np.ndarray) -> str:
    """The description of a progress that is worth showing, else ''."""
    return description if min(features.shape) > 500 else ""


def _kid(real: Real):
    reference = kid.reference(real.features[:PAIRED])
    return lambda seen: dict(zip(("kid", "kid_se"), kid.kid(seen.features[:PAIRED], reference)))


def _prdc(real: Real):
    support = prdc.support(real.features[:PAIRED])
    return lambda seen: prdc.prdc(seen.features[:PAIRED], support)._asdict()


def _cmmd(real: Real):
    reference = real.features[:PAIRED]
    return lambda seen: {
        "cmmd": 1000 * mmd.squared_mmd(seen.features[:PAIRED], reference, sigma=CMMD_SIGMA)
    }


def _memorisation(real: Real):
    typical = prdc.nearest_distances(real.held_out, real.features)

    def score(seen):
        found = memorisation.memorisation(seen.features[:PAIRED], real.features, typical)
        return {"nearest_ratio": found.ratio, "copies": found.copies}

    return score


def _inception_score(real: Real):
    return lambda seen: (
        {} if seen.logits is None else {"inception_score": scores.inception_score(seen.logits)}
    )


def _class_accuracy(real: Real):
    def score(seen):
        known = real.extractor.classes and seen.labels is not None
        return {"class_accuracy": scores.class_accuracy(seen.logits, seen.labels)} if known else {}

    return score


ESTIMATORS = {
    "frechet": Estimator(_frechet, REFERENCE, least=2),
    "kid": Estimator(_kid, PAIRED, least=3),
    "prdc": Estimator(_prdc, PAIRED, least=6),
    "class_accuracy": Estimator(_class_accuracy, 0, logits=True, labels=True),
    "inception_score": Estimator(_inception_score, 0, logits=True),
    "memorisation": Estimator(_memorisation, None, held_out=True),
    "cmmd": Estimator(_cmmd, PAIRED),
    "frechet_infinity": Estimator(_frechet_infinity, REFERENCE, least=4),
    "frechet_interval": Estimator(_frechet_interval, REFERENCE, least=2),
}

ACCURACY = "accuracy"  # of the recognizer, which reads the images themselves
NAMES = (ACCURACY, *ESTIMATORS)

STANDARD, READ = (
    (ACCURACY, "frechet", "kid", "prdc"),
    ("class_accuracy", "inception_score"),
)  # READ: from logits

ONE_CLASS = "the training images are not labeled with two classes or more"


class Choice(NamedTuple):
    """What is measured: the extractors, names of NAMES, and what was requested but cannot be had, a
    sentence for each.
    """

    features: tuple[features.Extractor, ...]
    metrics: tuple[str, ...]
    notes: tuple[str, ...] = ()


def choose(
    train: Source,
    labels: np.ndarray | None,
    *,
    features: Sequence[str | extractors.Extractor] = (),
    metrics: Sequence[str] = (),
    held_out: Source | None = None,
    count: int | None = None,
) -> Choice:
    """The features and metrics that can be had of these data, out of those that are requested; the
    others have a note.

    Args:
      train: the training split.
      labels: (N,), the labels of the samples to be judged, or None.
      features: names, or extractors made before; none: those of `features.default`.
      metrics: names of NAMES; none: the inexpensive ones, with those of logits where an extractor
        has them.
      held_out: the test split, if there is one.
      count: how many samples every set to be judged has, None: not known.

    Raises:
      UserError: for unknown names, and if nothing that was requested can be had.
    """
    named(metrics)
    classes, notes = has_classes(train), []
    names = features or (default_features(train),)
    possible = [name for name in names if classes or name != "classifier"]
    if not possible:
        raise UserError(
            f"features classifier cannot be had: {ONE_CLASS}; choose pixels, thumbnails, inception or efficientnet_lite0"
        )
    if len(possible) < len(names):
        notes.append(f"features classifier are left out: {ONE_CLASS}")
    made = tuple(extractor_for(name, train) for name in possible)
    kept = []
    for name in metrics or STANDARD + READ * any(extractor.logits for extractor in made):
        if why := _missing(name, made, labels, classes, len(train), held_out, count):
            notes.append(f"metric {name} is left out: {why}")
        else:
            kept.append(name)
    if not kept:
        raise UserError(f"there is nothing to measure: {'; '.join(notes)}")
    short = [
        name
        for name in kept
        if held_out is not None and name in ESTIMATORS and len(held_out) < ESTIMATORS[name].least
    ]
    if short:
        notes.append(
            f"real test images have no {', '.join(short)}: there are {len(held_out)} of them, and "
            f"{max(ESTIMATORS[name].least for name in short)} are needed"
        )
    return Choice(made, tuple(kept), tuple(notes))


def _missing(
    name: str, made, labels, classes: bool, trained: int, held_out: Source | None, count: int | None
) -> str:
    """Why a metric cannot be had, '' if it can."""
    if name == ACCURACY:
        if labels is None:
            return "the samples have no labels"
        return "" if classes else ONE_CLASS
    metric, features = ESTIMATORS[name], ", ".join(extractor.name for extractor in made)
    if metric.labels and labels is None:
        return "the samples have no labels"
    if metric.logits and not any(extractor.logits for extractor in made):
        return f"the features {features} have no logits; add --features=classifier or inception"
    if metric.labels and not any(extractor.classes for extractor in made):
        return (
            f"the features {features} know other classes than the data's; add --features=classifier"
        )
    if metric.held_out and not (held_out is not None and len(held_out)):
        return "there are no held-out real images"
    if metric.wants != 0 and trained < metric.least:
        return f"it needs {metric.least} training images, and there are {trained}"
    if count is not None and count < metric.least:
        return f"it needs {metric.least} samples, and {count} are asked for"
    return ""


def default_features(train: Source) -> str:
    """The name of the features that a training split is compared by where none are chosen (see
    `features.default`).
    """
    return features.default(train.rows(np.zeros(1, int))["image"].shape[1:], has_classes(train))


def has_classes(train: Source) -> bool:
    """Whether the training split is labeled with two classes or more."""
    some = np.unique(
        np.linspace(0, len(train) - 1, min(len(train), 200)).astype(int)
    )  # sorted splits differ at their ends
    if "label" not in (probe := train.rows(some)):
        return False
    first = probe["label"][0]
    if (probe["label"] != first).any():
        return True
    blocks = np.array_split(np.arange(len(train)), -(-len(train) // 1000))
    return any((train.rows(block)["label"] != first).any() for block in blocks)


def against(
    train: Source,
    labels: np.ndarray | None,
    *,
    features: Sequence[str | extractors.Extractor] = (),
    metrics: Sequence[str] = (),
    held_out: Source | None = None,
    statistics: Statistics | None = None,
    count: int | None = None,
) -> Judge:
    """A function images uint8 (N, H, W, C) -> {'accuracy', 'frechet', ...}, prepared once for every
    set that is judged.

    accuracy: the fraction that an SVM, fitted to the real training split, recognizes as `labels`.
    frechet: the Fréchet distance to the training split's first 10,000; its floor at this N is what
    real test images score. The scores of chosen features other than pixels are named
    'frechet/NAME'. What cannot be had (see `choose`) is left out, with a note on stderr; so is from
    the scores of a set what needs more images than the set has.

    Args:
      train: the training split.
      labels: (N,), the labels that the samples were asked to be of, or None.
      features: names, or extractors made before; none: those of `features.default`, whose scores
        are named without them.
      metrics: names of NAMES; none: 'frechet', and 'accuracy' where there are labels.
      held_out: the test split, for memorisation.
      statistics: used instead of the moments of the training images, for the extractor that they
        name.
      count: how many images every set has, for the notes.

    Raises:
      UserError: for unknown names, and if nothing that is requested can be had.
    """
    metrics = metrics or (("frechet",) if labels is None else (ACCURACY, "frechet"))
    chosen, asked = (
        choose(train, labels, features=features, metrics=metrics, held_out=held_out, count=count),
        labels,
    )
    everything = data.arrays(train) if ACCURACY in chosen.metrics else {}
    recognise = (
        recognition.recognizer(everything["image"], everything["label"]) if everything else None
    )
    prepared = []
    for extractor in chosen.features:
        wanted = [ESTIMATORS[name] for name in chosen.metrics if name in ESTIMATORS]
        real = _real(extractor, train, held_out, wanted, statistics)
        suffix = f"/{extractor.name}" if features and extractor.name != "pixels" else ""
        prepared.append(
            (extractor, suffix, [(metric.least, metric.prepare(real)) for metric in wanted])
        )
        if any(name.startswith("frechet") for name in chosen.metrics):
            _note_few(real, len(train), count if labels is None else len(labels))
    for text in chosen.notes:
        note(text)

    def judge(images: np.ndarray, labels: np.ndarray | None = None) -> Scores:
        labels = asked if labels is None else labels if len(labels) else None
        result = (
            {ACCURACY: recognition.accuracy(recognise, images, labels)}
            if recognise and labels is not None
            else {}
        )
        for extractor, suffix, parts in prepared:
            seen = Seen(*_outputs(extractor, images), labels)
            for least, part in parts:
                scores = part(seen) if len(images) >= least else {}
                result |= {name + suffix: value for name, value in scores.items()}
        return result

    return judge


@functools.cache
def note(text: str) -> None:
    """Print a note on stderr, once in a process."""
    print(f"note: {text}", file=sys.stderr)


def _note_few(real: Real, trained: int, count: int | None) -> None:
    """A note where the Fréchet distance of these features is of too few images to be compared with
    any other number.
    """
    width = real.root().mean.size
    for number, which in (
        (count, "samples"),
        (min(trained, real.root().count), "reference images"),
    ):
        if number is not None and number < width:
            note(
                f"{number} {which} are fewer than the {width} features ({real.extractor.name}), so the Fréchet distance is "
                "biased upward; compare it only with that of as many images, such as of real test images"
            )


def on_real(
    train: Source, test: Source, judge: Judge | None = None, count: int = REFERENCE
) -> Scores:
    """The same numbers for `count` of the real test split: what as many of a perfect model would
    score.

    Nothing if the test split is empty. judge: one made before.
    """
    if not len(test):
        return {}
    held_out = data.arrays(test, limit=min(count, REFERENCE))
    return (judge or against(train, held_out.get("label")))(
        held_out["image"], held_out.get("label", ())
    )


def spelled(features: Sequence[str], metrics: Sequence[str]) -> tuple[list[str], list[str]]:
    """(features, metrics) in the names of this project, from those of a command line, in any case.

    'fid' is the metric frechet, and 'fid_infinity' frechet_infinity, of the features inception,
    which are added to those that are named, and are the only ones if none are.
    """
    features, metrics = [name.lower() for name in features], [name.lower() for name in metrics]
    fid = {"fid": "frechet", "fid_infinity": "frechet_infinity"}
    if any(name in fid for name in metrics):
        features = list(dict.fromkeys([*features, "inception"]))
    return features, list(dict.fromkeys(fid.get(name, name) for name in metrics))


def named(metrics: Sequence[str]) -> None:
    """UserError for a name that is no metric."""
    for name in metrics:
        if name not in NAMES:
            raise unknown("metric", name, NAMES)


def extractor_for(feature: str | features.Extractor, train: Source) -> features.Extractor:
    """The extractor of this name, the classifier fitted to the training split; one made before
    passes through.
    """
    if not isinstance(feature, str):
        return feature
    everything = data.arrays(train) if feature == "classifier" else {}
    return features.extractor(feature, everything.get("image"), everything.get("label"))


def _real(
    extractor, train, held_out, chosen: list[Estimator], statistics: Statistics | None
) -> Real:
    statistics = statistics if statistics and statistics.of["extractor"] == extractor.name else None
    wants = [
        metric.wants for metric in chosen if not (statistics and metric.wants == REFERENCE)
    ]  # those need moments alone
    limit = None if None in wants else max(wants, default=0)
    features = np.zeros((0, 0), np.float32)
    if limit != 0:
        features = _outputs(extractor, data.arrays(train, limit)["image"], "training ").features
    test = None
    if held_out is not None and any(metric.held_out for metric in chosen):
        test = _outputs(extractor, data.arrays(held_out, PAIRED)["image"], "held-out ").features

    @functools.cache
    def root() -> frechet.Root:
        width = statistics.moments.mean.size if statistics else features.shape[1]
        if width > extractors.WIDEST and (statistics or len(features) > width):
            print(
                f"computing the root of a {width} x {width} covariance, once ...", file=sys.stderr
            )
        return (
            frechet.root_of_moments(statistics.moments)
            if statistics
            else frechet.root_of(features[:REFERENCE])
        )

    return Real(features, test, extractor, root)


def _outputs(
    extractor: features.Extractor, images: np.ndarray, which: str = ""
) -> features.Outputs:
    """Network passes that may take long show how far they are."""
    quick = extractor.name in ("pixels", "thumbnails", "classifier")
    return extractor.outputs(images, "" if quick else f"{which}{extractor.name} features")
