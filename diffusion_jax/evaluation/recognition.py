"""Whether samples show the classes that they were generated for, by a support-vector machine.

The machine is fitted to the real training split. It is an inexpensive, independent judge of
class-conditional samples: none of our networks has a part in it. Its own score on the real test
split belongs next to every number that it gives.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion_jax.core import npz, reading
from diffusion_jax.core.deferred import deferred
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import transforms

sklearn = deferred("sklearn")
decomposition = deferred("sklearn.decomposition")
svm = deferred("sklearn.svm")

Recognize = Callable[[np.ndarray], np.ndarray]  # images uint8 (N, H, W, C) -> labels (N,)
PENALTY = 10.0  # the penalty C of the machine

# images that are recognized at once: their kernel with 60,000 support vectors takes 120 MB
BLOCK = 256
# principal components of images larger than 8 x 8: 98.7 % on the test images of MNIST
COMPONENTS = 50


class Machine(NamedTuple):
    """A fitted support-vector machine.

    There are S support vectors in P dimensions, of images with D pixels in C classes.

    Attributes:
      mean: (D,), of the pixels.
      components: (P, D), the principal components; (0, D) where pixels are used as they are.
      vectors: (S, P), the support vectors, class by class.
      counts: (C,), the number of support vectors of each class.
      coefficients: (C - 1, S), of every vector in the C - 1 machines of its class.
      intercepts: the intercepts of the machines of the pairs (0, 1), (0, 2), ..., (C - 2, C - 1).
      classes: (C,), the labels.
      gamma: (), of the kernel exp(-gamma |x - y|^2).
    """

    mean: np.ndarray
    components: np.ndarray
    vectors: np.ndarray
    counts: np.ndarray
    coefficients: np.ndarray
    intercepts: np.ndarray
    classes: np.ndarray
    gamma: np.ndarray


def recognizer(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    cache_dir: str | os.PathLike | None = "~/.cache/diffusion_jax",
    limit: int = 60_000,
) -> Recognize:
    """Fit a recognizer to real images and their labels, or read it from the cache.

    It is an RBF support-vector machine on 50 principal components, or on the pixels where there
    are at most 64. Sets so small that five times as many images stay within `limit` are extended by
    their one-pixel shifts; of larger ones `limit` images are drawn, always the same ones. 60,000
    images of MNIST take half a minute.

    Args:
      images: uint8 (N, H, W, C), or normalized arrays float32 (N, ...), whose shifts are not added.
      labels: (N,).
      cache_dir: where the fit is kept under a hash of data and settings; None keeps nothing.
      limit: the number of images that the machine is fitted to, at most.

    Returns:
      A function images uint8 (N, H, W, C) -> labels (N,).

    Raises:
      UserError: for labels that do not fit the images, and for a set of one class.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    kind = images.dtype
    known = kind == np.float32 or (kind == np.uint8 and images.ndim == 4)
    if not known or labels.shape != images.shape[:1]:
        got = f"{kind} {images.shape}, labels {labels.shape}"
        raise UserError(
            "recognition needs uint8 images (N, H, W, C) or float32 arrays with one label each; "
            f"got {got}"
        )
    if len(np.unique(labels)) < 2:
        raise UserError(
            f"recognition needs images of at least two classes; all {len(labels)} have the same "
            "label"
        )
    labels = labels.astype(np.int64)
    path = (
        None
        if cache_dir is None
        else Path(cache_dir).expanduser() / f"svm-{_digest(images, labels, limit)}.npz"
    )
    machine = None if path is None else reading.kept(path, lambda path: _load(path, images, labels))
    if machine is None:
        machine = _fit(*_training_set(images, labels, limit))
        _keep(path, machine)
    shape = images.shape[1:]

    def recognize(images: np.ndarray) -> np.ndarray:
        if images.shape[1:] != shape or images.dtype != kind:
            got = f"{images.dtype} {images.shape[1:]}"
            raise UserError(f"this recognizer reads {kind} images {shape}; got {got}")
        return predict(machine, images)

    return recognize


def recognized(recognize: Recognize, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return (N,) of bool: whether images are recognized as their labels.

    Args:
      recognize: images -> labels, such as `recognizer` returns.
      images: uint8 (N, H, W, C).
      labels: (N,), the classes that the images are meant to show.

    Raises:
      UserError: if there is not one label for each image.
    """
    if len(images) != len(labels):
        raise UserError(
            f"{len(images)} images and {len(labels)} labels: accuracy needs one label for each "
            "image"
        )
    return recognize(images) == np.asarray(labels)


def recognized_by_field(
    recognize: Recognize,
    images: np.ndarray,
    labels: np.ndarray,
    fields: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Return whether images are recognized, as their labels and by every field of the labels.

    Args:
      recognize: images -> labels.
      images: uint8 (N, H, W, C).
      labels: (N,), the classes that the images are meant to show.
      fields: name -> (K,), the value of a field by class, such as the digit of a digit and speaker.

    Returns:
      {'recognized': (N,) of bool, 'recognized/FIELD': the same for the value of a field}.
    """
    if not fields:
        return {"recognized": recognized(recognize, images, labels)}
    found, labels = recognize(images), np.asarray(labels)
    of_fields = {f"recognized/{name}": own[found] == own[labels] for name, own in fields.items()}
    return {"recognized": found == labels} | of_fields


def _flat(images: np.ndarray) -> np.ndarray:
    flat = images.reshape(len(images), -1)
    return transforms.to_unit(flat) if images.dtype == np.uint8 else flat


def _training_set(
    images: np.ndarray, labels: np.ndarray, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    if len(images) > limit:
        chosen = np.sort(np.random.default_rng(0).permutation(len(images))[:limit])
        return images[chosen], labels[chosen]
    moves = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)]
    if len(images) * len(moves) > limit or images.dtype != np.uint8:
        return images, labels
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    shifted = [padded[:, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width] for dy, dx in moves]
    return np.concatenate(shifted), np.tile(labels, len(moves))


def predict(machine: Machine, images: np.ndarray) -> np.ndarray:
    """Recognize images: every pair of classes votes, and the first class with most votes wins.

    This is what scikit-learn's SVC does (one against one; Chang & Lin 2011, section 7), on plain
    arrays.

    Args:
      machine: the machine.
      images: uint8 (N, H, W, C).

    Returns:
      The labels (N,).
    """
    if not len(images):
        return np.zeros(0, machine.classes.dtype)
    return np.concatenate(
        [_predict(machine, images[i : i + BLOCK]) for i in range(0, len(images), BLOCK)]
    )


def _predict(machine: Machine, images: np.ndarray) -> np.ndarray:
    x, classes = _projected(machine.mean, machine.components, _flat(images)), len(machine.classes)
    squares = (
        np.square(x).sum(1)[:, None] + np.square(machine.vectors).sum(1) - 2 * x @ machine.vectors.T
    )
    kernel = np.exp(-machine.gamma * np.maximum(squares, 0))
    ends = np.cumsum(machine.counts)
    parts = [
        kernel[:, end - count : end] @ machine.coefficients[:, end - count : end].T
        for end, count in zip(ends, machine.counts)
    ]  # (N, C - 1) of each class
    votes, number = np.zeros((len(x), classes), int), 0
    for i in range(classes):
        for j in range(i + 1, classes):
            first = parts[i][:, j - 1] + parts[j][:, i] + machine.intercepts[number] > 0
            votes[:, i] += first
            votes[:, j] += ~first
            number += 1
    return machine.classes[votes.argmax(1)]


def _projected(mean: np.ndarray, components: np.ndarray, flat: np.ndarray) -> np.ndarray:
    """Project flat images (N, D) float32 on the principal components, (N, P) float64."""
    return (flat @ components.T - mean @ components.T if len(components) else flat).astype(
        np.float64
    )


def _fit(images: np.ndarray, labels: np.ndarray) -> Machine:
    flat = _flat(images)
    mean, components = np.zeros(flat.shape[1], np.float32), np.zeros((0, flat.shape[1]), np.float32)
    if flat.shape[1] > 64:
        found = decomposition.PCA(min(COMPONENTS, len(flat)), random_state=0).fit(flat)
        mean, components = found.mean_, found.components_
    x = _projected(mean, components, flat)
    gamma = 1 / (x.shape[1] * (x.var() or 1.0))
    machine = svm.SVC(C=PENALTY, gamma=gamma, cache_size=500).fit(x, labels)
    # scikit-learn changes the sign of the only machine of two classes
    sign = -1 if len(machine.classes_) == 2 else 1
    return Machine(
        mean,
        components,
        machine.support_vectors_,
        machine.n_support_.astype(np.int64),
        sign * machine.dual_coef_,
        sign * machine.intercept_,
        machine.classes_.astype(np.int64),
        np.float64(gamma),
    )


def _digest(images: np.ndarray, labels: np.ndarray, limit: int) -> str:
    """Name a fit by all that it depends on, the version of scikit-learn included."""
    settings = [sklearn.__version__, PENALTY, COMPONENTS, limit, images.shape]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for part in (images, labels):
        digest.update(np.ascontiguousarray(part))
    return digest.hexdigest()[:24]


def _load(path: Path, images: np.ndarray, labels: np.ndarray) -> Machine:
    """Read the machine that `_keep` wrote for such images; UserError for a damaged file."""
    pixels, classes = int(np.prod(images.shape[1:])), np.unique(labels)
    pairs = len(classes) * (len(classes) - 1) // 2
    shapes = {
        "mean": ("f", (pixels,)),
        "components": ("f", (None, pixels)),
        "vectors": ("f", (None, None)),
        "counts": ("i", (len(classes),)),
        "coefficients": ("f", (len(classes) - 1, None)),
        "intercepts": ("f", (pairs,)),
        "classes": ("i", (len(classes),)),
        "gamma": ("f", ()),
    }
    kept = Machine(**npz.load(path, {name: npz.ArraySpec(*spec) for name, spec in shapes.items()}))
    vectors, dimensions = kept.vectors.shape
    fits = kept.counts.min() >= 0 and kept.counts.sum() == vectors == kept.coefficients.shape[1]
    if (
        not fits
        or dimensions != (len(kept.components) or pixels)
        or (kept.classes != classes).any()
    ):
        raise UserError(f"'{path}' is damaged: its arrays do not fit each other")
    return kept


def _keep(path: Path | None, machine: Machine) -> None:
    """Write the machine to the cache; a cache that cannot be written is no error."""
    if path is not None:
        with contextlib.suppress(UserError, OSError):
            npz.save(path, machine._asdict())
