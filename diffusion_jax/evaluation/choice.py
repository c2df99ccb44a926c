"""The choice of features and metrics: what can be measured on the data at hand, and what cannot.

`choose` decides before anything is sampled, and gives a sentence for everything that was requested
and is left out. `default_features` names the features of a command whose user did not choose.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diffusion_jax import data
from diffusion_jax.core.errors import UserError, unknown
from diffusion_jax.data import table
from diffusion_jax.data.sources import Source
from diffusion_jax.evaluation import features as extractors
from diffusion_jax.evaluation import hearing
from diffusion_jax.evaluation.estimators import ESTIMATORS
from diffusion_jax.evaluation.features import Extractor
from diffusion_jax.pretrained import weights

ACCURACY = "accuracy"  # of the recognizer, which reads the images themselves
SPECTRAL = "spectral_distance"  # of sounds, which reads their pictures (hearing.py)
NAMES = (ACCURACY, SPECTRAL, *ESTIMATORS)
STANDARD = (ACCURACY, "frechet", "kid", "prdc")  # the metrics of images where none are chosen
# and of arrays that are not images: distances of their normalized values
OF_VALUES = (ACCURACY, "frechet", "mmd_median", "sliced_wasserstein")
# and of rows of tables; comparisons do without the two expensive ones
OF_TABLES = (ACCURACY, "c2st", "marginals", "correlation", "frechet", "memorization")
COMPARED = (ACCURACY, "marginals", "correlation", "frechet")
# and of sounds
OF_SOUNDS = (ACCURACY, "frechet", SPECTRAL, "prdc", "memorization")
FROM_LOGITS = ("class_accuracy", "inception_score")  # and those of extractors with logits


class Alias(NamedTuple):
    """A name on the command line for a metric of certain features.

    Attributes:
      metric: a name of NAMES.
      features: the features that it adds; '' for none.
    """

    metric: str
    features: str


ALIASES = {
    "fid": Alias("frechet", "inception"),
    "fid_infinity": Alias("frechet_infinity", "inception"),
    "sfid": Alias("frechet", "inception_spatial"),
    "fd_dinov2": Alias("frechet", "dinov2_vitl14"),
    "cmmd": Alias("cmmd", "clip_vitl14_336"),
    "mmd": Alias("cmmd", ""),
}

ONE_CLASS = "the training images are not labeled with two classes or more"


class Choice(NamedTuple):
    """The choice of metrics and features.

    Attributes:
      features: the extractors.
      metrics: names of NAMES.
      notes: a sentence for everything that was requested and cannot be measured.
    """

    features: tuple[Extractor, ...]
    metrics: tuple[str, ...]
    notes: tuple[str, ...] = ()


def choose(
    train: Source,
    labels: np.ndarray | None,
    *,
    features: Sequence[str | Extractor] = (),
    metrics: Sequence[str] = (),
    held_out: Source | None = None,
    count: int | None = None,
) -> Choice:
    """Choose the requested features and metrics that can be measured on these data.

    Args:
      train: the training split.
      labels: (N,), the labels of the samples to be judged, or None.
      features: names, or extractors made before; () means those of `features.default`.
      metrics: names of NAMES; () means the inexpensive ones, with those of logits where an
        extractor has logits.
      held_out: the test split, if there is one.
      count: the number of samples in every set to be judged, None if it is not known.

    Raises:
      UserError: for unknown names, and if nothing that was requested can be measured.
    """
    check_metrics(metrics)
    train, held_out = hearing.as_judged(train), hearing.as_judged(held_out)
    classes, notes = has_classes(train), []
    _check_suitable(train, features)
    names = features or (default_features(train),)
    possible = [name for name in names if classes or name != "classifier"]
    if not possible:
        raise UserError(
            f"features classifier cannot be used: {ONE_CLASS}; choose pixels, thumbnails, "
            "inception or efficientnet_lite0"
        )
    if len(possible) < len(names):
        notes.append(f"features classifier are left out: {ONE_CLASS}")
    made = tuple(extractor_for(name, train) for name in possible)
    kept = []
    standard = OF_TABLES if table.columns_of(train) else OF_VALUES
    standard = STANDARD if of_images(train) else standard
    standard = OF_SOUNDS if hearing.sound_of(train) else standard
    for name in metrics or standard + FROM_LOGITS * any(extractor.logits for extractor in made):
        if why := _missing(name, made, labels, classes, train, held_out, count):
            notes.append(f"metric {name} is left out: {why}")
        else:
            kept.append(name)
    if not kept:
        raise UserError(f"there is nothing to measure: {'; '.join(notes)}")
    notes += _short_test_split(kept, held_out)
    return Choice(made, tuple(kept), tuple(notes))


def of_images(train: Source) -> bool:
    """Return whether a data set is of images of 8 bits, which features of images can read.

    Args:
      train: the training split, whose first example decides.
    """
    image = train.rows(np.zeros(1, int))["image"]
    return image.ndim == 4 and image.dtype == np.uint8


def _check_suitable(train: Source, features: Sequence[str | Extractor]) -> None:
    """Refuse features of images for other arrays, and features of values for images."""
    images = of_images(train)
    for feature in features:
        name = feature if isinstance(feature, str) else feature.name
        if (name == "values") == images:
            kind, fitting = ("images", "pixels") if images else ("arrays", "values")
            raise UserError(
                f"--features={name} cannot be used: the data are {kind}; use --features={fitting}"
            )


def _short_test_split(metrics: Sequence[str], held_out: Source | None) -> list[str]:
    """Return a note where the test split is too small for some of the metrics."""
    if held_out is None:
        return []
    least = {name: ESTIMATORS[name].least for name in metrics if name in ESTIMATORS}
    short = [name for name in least if len(held_out) < least[name]]
    if not short:
        return []
    return [
        f"real test images have no {', '.join(short)}: there are {len(held_out)} of them, and "
        f"{max(least[name] for name in short)} are needed"
    ]


def _missing(
    name: str,
    made: Sequence[Extractor],
    labels: np.ndarray | None,
    classes: bool,
    train: Source,
    held_out: Source | None,
    count: int | None,
) -> str:
    """Return why a metric cannot be measured, '' if it can."""
    if name == ACCURACY:
        if labels is None:
            return "the samples have no labels"
        return "" if classes else ONE_CLASS
    if name == SPECTRAL:
        return "" if hearing.sound_of(train) else "the data are no sounds"
    estimator, features = ESTIMATORS[name], ", ".join(extractor.name for extractor in made)
    if estimator.labels and labels is None:
        return "the samples have no labels"
    if estimator.logits and not any(extractor.logits for extractor in made):
        if not of_images(train):
            return "it needs features with logits, which are of images"
        return (
            f"the features {features} have no logits; add --features=classifier or "
            "efficientnet_lite0"
        )
    if estimator.labels and not any(extractor.classes for extractor in made):
        return (
            f"the features {features} have other classes than the data; add --features=classifier"
        )
    if estimator.columns and not table.columns_of(train):
        return "the data are no table"
    if estimator.held_out and not (held_out is not None and len(held_out)):
        return "there are no held-out real images"
    if estimator.held_out and len(held_out) < estimator.least:
        return f"it needs {estimator.least} held-out examples, and there are {len(held_out)}"
    if estimator.wants != 0 and len(train) < estimator.least:
        return f"it needs {estimator.least} training images, and there are {len(train)}"
    if count is not None and count < estimator.least:
        return f"it needs {estimator.least} samples, and {count} are requested"
    return ""


def default_features(train: Source) -> str:
    """Name the default features of a data set; see `features.default`.

    Args:
      train: the training split; its first image and its labels decide.
    """
    train = hearing.as_judged(train)
    shape = train.rows(np.zeros(1, int))["image"].shape[1:]
    if hearing.sound_of(train):  # networks for photographs know nothing of spectrograms
        return extractors.default(shape, has_classes(train))
    installed = weights.installed("inception")
    images = of_images(train)
    chosen = extractors.default(shape, has_classes(train), installed=installed, images=images)
    if images and extractors.is_large(shape) and not installed:
        note(
            f"the features are {chosen}, as the weights of Inception are not here; for FID run "
            "python -m experiments.get_weights inception"
        )
    return chosen


def has_classes(train: Source) -> bool:
    """Return whether the training split is labeled with two classes or more.

    Args:
      train: the training split; all labels are read only if those of 200 rows are the same.
    """
    # splits that are sorted by class differ at their ends
    some = np.unique(np.linspace(0, len(train) - 1, min(len(train), 200)).astype(int))
    probe = train.rows(some)
    if "label" not in probe:
        return False
    first = probe["label"][0]
    if (probe["label"] != first).any():
        return True
    blocks = np.array_split(np.arange(len(train)), -(-len(train) // 1000))
    return any((train.rows(block)["label"] != first).any() for block in blocks)


def resolve_names(features: Sequence[str], metrics: Sequence[str]) -> tuple[list[str], list[str]]:
    """Translate the names of features and metrics on a command line, in any case.

    The names of ALIASES are metrics of certain features, which are added to those that are named:
    'fid' is the metric frechet of the features inception. 'mmd' is the estimator of 'cmmd' for the
    features that are named.

    Args:
      features: names of features as the user wrote them.
      metrics: names of metrics as the user wrote them.

    Returns:
      (features, metrics), in lower case; every metric is named once.
    """
    features, metrics = [name.lower() for name in features], [name.lower() for name in metrics]
    needed = [ALIASES[name].features for name in metrics if name in ALIASES]
    features = list(dict.fromkeys([*features, *filter(None, needed)]))
    chosen = [ALIASES[name].metric if name in ALIASES else name for name in metrics]
    return features, list(dict.fromkeys(chosen))


def check_features(features: Sequence[str]) -> None:
    """Check that every name is one of a feature extractor.

    Args:
      features: names in lower case, as `resolve_names` returns them.

    Raises:
      UserError: for an unknown name.
    """
    for name in features:
        if name not in extractors.EXTRACTORS:
            raise unknown("features", name, extractors.EXTRACTORS)


def check_metrics(metrics: Sequence[str]) -> None:
    """Check that every name is a metric.

    Args:
      metrics: names in lower case, as `resolve_names` returns them.

    Raises:
      UserError: for an unknown name.
    """
    for name in metrics:
        if name not in NAMES:
            raise unknown("metric", name, NAMES)


def extractor_for(feature: str | Extractor, train: Source) -> Extractor:
    """Make the extractor of a name; the classifier is fitted to the training split.

    Args:
      feature: a name of features, or an extractor that was made before and is returned as it is.
      train: the training split, whose images and labels are read only for the classifier.
    """
    if not isinstance(feature, str):
        return feature
    everything = data.arrays(hearing.as_judged(train)) if feature == "classifier" else {}
    return extractors.extractor(feature, everything.get("image"), everything.get("label"))


@functools.cache
def note(text: str) -> None:
    """Print a note on stderr, once in a process.

    Args:
      text: one line without the word 'note', which is put in front of it.
    """
    print(f"note: {text}", file=sys.stderr)
