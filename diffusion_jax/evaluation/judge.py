"""Quality of a set of images against a data set, in the metrics that every command prints.

`against(train, labels)` makes a judge of the two inexpensive metrics of every comparison:
recognition, and the Fréchet distance of the default features. It takes any other `features` and
`metrics` too (choice.py says which ones the data allow).

    judged = against(train, labels)
    rows = judged.extract(images, labels)                # what is kept of images (samples.py)
    measured = judged.measure(samples.in_memory(rows))   # scores with their intervals
    scores = judged(images)                              # both at once, without intervals
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax import data
from diffusion_jax.data import table
from diffusion_jax.data.sources import Source
from diffusion_jax.evaluation import choice, frechet, hearing, intervals, recognition, samples
from diffusion_jax.evaluation import features as extractors
from diffusion_jax.evaluation import scores as of_logits
from diffusion_jax.evaluation.choice import ACCURACY, SPECTRAL, note
from diffusion_jax.evaluation.estimators import (
    ESTIMATORS,
    PAIRED,
    REFERENCE,
    Estimator,
    Measurements,
    Real,
    Score,
    Scores,
)
from diffusion_jax.evaluation.features import Extractor, Outputs
from diffusion_jax.evaluation.metrics import find
from diffusion_jax.evaluation.samples import (
    CLASSIFIED,
    FEATURES,
    LOGITS,
    RECOGNIZED,
    SPECTRUM,
    Kept,
    Rows,
)
from diffusion_jax.evaluation.statistics import Statistics


class Judge(NamedTuple):
    """What judges sets of samples.

    Attributes:
      extract: (samples (N, ...), labels (N,), None for those of `against`, () for unknown) -> the
        rows that are kept of them.
      measure: (kept, grouped=True) -> scores, with intervals where `grouped`.
      identity: what the rows depend on besides the samples, as plain data.
      features: the names of the extractors; () for points.
      plain: the one whose scores are named without it; '' for none.
    """

    extract: Callable[..., Rows]
    measure: Callable[..., Measurements]
    identity: dict[str, Any]
    features: tuple[str, ...] = ()
    plain: str = ""

    def title(self, name: str) -> str:
        """Return the title of a score, with the features that it depends on.

        Args:
          name: the name of the score, such as 'frechet' or 'frechet/inception'.
        """
        return find(name, self.plain).title

    def measured(self, images: np.ndarray, labels: np.ndarray | None = None) -> Measurements:
        """Score a set of samples that is in memory, with intervals.

        Args:
          images: uint8 (N, H, W, C), or points (N, D).
          labels: (N,), the classes that they are meant to show; None for those that the judge was
            prepared with, and () where they are not known.
        """
        return self.measure(samples.in_memory(self.extract(images, labels)))

    def __call__(self, images: np.ndarray, labels: np.ndarray | None = None) -> Scores:
        """Score a set of samples that is in memory, without intervals.

        Args:
          images: uint8 (N, H, W, C), or points (N, D).
          labels: (N,), the classes that they are meant to show; None for those that the judge was
            prepared with, and () where they are not known.
        """
        kept = samples.in_memory(self.extract(images, labels))
        return intervals.values(self.measure(kept, grouped=False))


# features whose scores are named without them
PLAIN = ("pixels", "values")


class _Listens(NamedTuple):
    """How samples are judged that are sounds; the defaults are those of other data.

    Attributes:
      ear: samples -> pictures of what is heard of them.
      fields: name -> (K,), the value of a field by class.
      long_term: (mels,), the mean spectrum of the training sounds, if it is compared.
    """

    ear: Callable[[np.ndarray], np.ndarray] | None = None
    fields: Mapping[str, np.ndarray] = MappingProxyType({})
    long_term: np.ndarray | None = None


class _Prepared(NamedTuple):
    """The estimators of one extractor, prepared on the training split."""

    extractor: Extractor
    suffix: str  # of the names of its scores
    parts: tuple[tuple[Estimator, Score], ...]


def against(
    train: Source,
    labels: np.ndarray | None,
    *,
    features: Sequence[str | Extractor] = (),
    metrics: Sequence[str] = (),
    held_out: Source | None = None,
    statistics: Statistics | None = None,
    count: int | None = None,
    plain: bool = False,
) -> Judge:
    """Prepare a judge of sets of images against a training split.

    'accuracy' is the fraction of images that a support-vector machine, fitted to the real training
    split, recognizes as their labels. 'frechet' is the Fréchet distance to the first 10,000
    training images; the score of as many real test images is the best to expect. The scores of
    chosen features other than pixels are named 'frechet/NAME'. What cannot be measured (see
    `choice.choose`) is left out with a note on stderr; so are scores that need more images than a
    set has.

    Args:
      train: the training split.
      labels: (N,), the labels that the samples are generated for, or None.
      features: names, or extractors made before; () means those of `features.default`, whose
        scores are named without them.
      metrics: names of choice.NAMES; () means 'frechet' for images, choice.COMPARED for tables,
        choice.OF_VALUES for other arrays, and 'accuracy' where there are labels.
      held_out: the test split, for memorization.
      statistics: used instead of the moments of the training images, for the extractor that they
        name.
      count: the number of images in every set, for the notes.
      plain: whether the scores of the first features are named without them.

    Raises:
      UserError: for unknown names, and if nothing that is requested can be measured.
    """
    ear = hearing.ear(train)
    train, held_out = hearing.as_judged(train), hearing.as_judged(held_out)
    metrics = metrics or _standard(train, labels)
    chosen = choice.choose(
        train, labels, features=features, metrics=metrics, held_out=held_out, count=count
    )
    recognize = _recognizer(train) if ACCURACY in chosen.metrics else None
    estimators = [ESTIMATORS[name] for name in chosen.metrics if name in ESTIMATORS]
    number, prepared = count if labels is None else len(labels), []
    for extractor in chosen.features:
        real = _real(extractor, train, held_out, estimators, statistics)
        suffix = _suffix(extractor.name, bool(features), plain, not prepared)
        parts = tuple((estimator, estimator.prepare(real)) for estimator in estimators)
        prepared.append(_Prepared(extractor, suffix, parts))
        if any(name.startswith("frechet") for name in chosen.metrics):
            _note_few(real, len(train), number)
    for text in chosen.notes:
        note(text)
    listens = _Listens(ear, *_of_sounds(train, SPECTRAL in chosen.metrics))
    extract = functools.partial(_extract, recognize, prepared, labels, listens)
    measure = functools.partial(_measure, prepared, listens)
    plain = next((each.extractor.name for each in prepared if not each.suffix), "")
    names = tuple(extractor.name for extractor in chosen.features)
    return Judge(extract, measure, _identity(chosen), names, plain)


def _suffix(name: str, chosen: bool, plain: bool, first: bool) -> str:
    """What the scores of an extractor are named with: '' or '/NAME'."""
    named = chosen and not (plain and first) and (plain or name not in PLAIN)
    return f"/{name}" if named else ""


def _of_sounds(train: Source, compared: bool) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """The fields of the classes of sounds, and their mean spectrum if it is compared."""
    fields = hearing.by_field(hearing.sound_of(train))
    if not compared:
        return fields, None
    return fields, hearing.spectrum(data.arrays(train, REFERENCE)["image"]).mean(0)


def _standard(train: Source, labels: np.ndarray | None) -> tuple[str, ...]:
    """The inexpensive metrics of a data set."""
    names = choice.COMPARED if table.columns_of(train) else choice.OF_VALUES
    names = (ACCURACY, "frechet") if choice.of_images(train) else names
    names += (SPECTRAL,) if hearing.sound_of(train) else ()
    return tuple(name for name in names if name != ACCURACY or labels is not None)


def _identity(chosen: choice.Choice) -> dict[str, Any]:
    """What the rows of samples depend on: the extractors, and what else is read from images."""
    reads = {ACCURACY, SPECTRAL, *choice.FROM_LOGITS} & set(chosen.metrics)
    return {"features": {e.name: e.digest for e in chosen.features}, "reads": sorted(reads)}


def _recognizer(train: Source) -> recognition.Recognize:
    everything = data.arrays(train)
    return recognition.recognizer(everything["image"], everything["label"])


def _extract(
    recognize: recognition.Recognize | None,
    prepared: Sequence[_Prepared],
    default_labels: np.ndarray | None,
    listens: _Listens,
    images: np.ndarray,
    labels: np.ndarray | None = None,
) -> Rows:
    """The rows of a set of images; those of labels are left out where there are none."""
    labels = default_labels if labels is None else labels
    labels = None if labels is None or not len(labels) else labels
    rows: Rows = {}
    images = listens.ear(images) if listens.ear else images
    if recognize and labels is not None:
        rows |= recognition.recognized_by_field(recognize, images, labels, listens.fields)
    if listens.long_term is not None:
        rows[SPECTRUM] = hearing.spectrum(images)
    for extractor, _, parts in prepared:
        name, outputs = extractor.name, _outputs(extractor, images)
        rows[FEATURES + name] = outputs.features
        if outputs.logits is None:
            continue
        if any(estimator.logits and not estimator.labels for estimator, _ in parts):
            rows[LOGITS + name] = outputs.logits
        if extractor.classes and labels is not None and any(e.labels for e, _ in parts):
            rows[CLASSIFIED + name] = of_logits.classified(outputs.logits, labels)
    return rows


def _measure(
    prepared: Sequence[_Prepared], listens: _Listens, kept: Kept, *, grouped: bool = True
) -> Measurements:
    """The scores of what is kept of a set of images."""
    result = {}
    for name in sorted(name for name in kept.names if name.startswith(RECOGNIZED)):
        result[name.replace(RECOGNIZED, ACCURACY)] = intervals.fraction(kept.whole(name))
    if SPECTRUM in kept.names and listens.long_term is not None:
        spectra = kept.whole(SPECTRUM)

        def distance(stays: np.ndarray) -> Scores:
            mean = spectra[stays].mean(0)
            return {SPECTRAL: hearing.spectral_distance(mean, listens.long_term)}

        result |= intervals.by_groups(distance, kept.count, grouped=grouped)
    for extractor, suffix, parts in prepared:
        possible = [(e, score) for e, score in parts if kept.count >= e.least]
        keeps = [estimator.keeps for estimator, _ in possible]
        summary = samples.summarize(
            kept,
            extractor.name,
            first=None if None in keeps else max(keeps, default=0),
            moments=any(estimator.moments for estimator, _ in possible),
            grouped=grouped,
        )
        for _, score in possible:
            found = score(summary)
            result |= {name + suffix: value for name, value in found.items()}
    return result


def _note_few(real: Real, trained: int, count: int | None) -> None:
    """Print a note where a Fréchet distance is of fewer images than features."""
    width = real.root().mean.size
    for number, which in (
        (count, "samples"),
        (min(trained, real.root().count), "reference images"),
    ):
        if number is not None and number < width:
            note(
                f"{number} {which} are fewer than the {width} features ({real.extractor.name}), so "
                "the Fréchet distance is biased upward; compare it only with that of as many "
                "examples, such as of real test data"
            )


def on_real(
    train: Source, test: Source, judge: Judge | None = None, count: int = REFERENCE
) -> Scores:
    """Score real test images: what a perfect model would score with as many images.

    Args:
      train: the training split.
      test: the test split.
      judge: a judge made before; None makes the default one.
      count: the number of test images.

    Returns:
      The scores, {} if the test split is empty.
    """
    if not len(test):
        return {}
    images, labels = _held_out(test, count)
    return (judge or against(train, labels))(images, () if labels is None else labels)


def measured_on_real(
    train: Source, test: Source, judge: Judge | None = None, count: int = REFERENCE
) -> Measurements:
    """Score real test images, as `on_real`, with intervals.

    Args:
      train: the training split, which a judge is prepared against if none is given.
      test: the test split; an empty one has no scores.
      judge: the judge; None prepares one of the default metrics.
      count: number of test images, at most.
    """
    if not len(test):
        return {}
    images, labels = _held_out(test, count)
    return (judge or against(train, labels)).measured(images, () if labels is None else labels)


def _held_out(test: Source, count: int) -> tuple[np.ndarray, np.ndarray | None]:
    found = data.arrays(test, limit=min(count, REFERENCE))
    return found["image"], found.get("label")


def _real(
    extractor: Extractor,
    train: Source,
    held_out: Source | None,
    chosen: list[Estimator],
    statistics: Statistics | None,
) -> Real:
    """Extract the features of the real images that the chosen estimators need."""
    statistics = statistics if statistics and statistics.of["extractor"] == extractor.name else None
    # with statistics, the estimators of Fréchet distances need no images
    wants = [each.wants for each in chosen if not (statistics and each.wants == REFERENCE)]
    limit = None if None in wants else max(wants, default=0)
    features = np.zeros((0, 0), np.float32)
    if limit != 0:
        features = _outputs(extractor, data.arrays(train, limit)["image"], "training ").features
    test = None
    if held_out is not None and any(estimator.held_out for estimator in chosen):
        test = _outputs(extractor, data.arrays(held_out, PAIRED)["image"], "held-out ").features

    @functools.cache
    def root() -> frechet.Root:
        width = statistics.moments.mean.size if statistics else features.shape[1]
        if width > extractors.WIDEST and (statistics or len(features) > width):
            print(
                f"computing the root of a {width} x {width} covariance, once ...", file=sys.stderr
            )
        if statistics:
            return frechet.root_of_moments(statistics.moments)
        return frechet.root_of(features[:REFERENCE])

    return Real(features, test, extractor, root, table.columns_of(train))


def _outputs(extractor: Extractor, images: np.ndarray, which: str = "") -> Outputs:
    """Run an extractor, with progress where it may take long."""
    quick = extractor.name in ("values", "pixels", "thumbnails", "classifier")
    return extractor.outputs(images, "" if quick else f"{which}{extractor.name} features")
