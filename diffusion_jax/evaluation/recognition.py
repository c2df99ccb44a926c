"""Are the samples what they were asked to be? A support-vector machine trained on the REAL training
split reads them.

It is the project's cheap, independent judge of class-conditional samples: no network of ours has a
part in it. Its own score on the real test split belongs beside every number that it gives.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sklearn
from sklearn.decomposition import PCA
from sklearn.svm import SVC

from diffusion_jax import npz, reading
from diffusion_jax.data import transforms
from diffusion_jax.errors import UserError

Recognise = Callable[[np.ndarray], np.ndarray]  # images uint8 (N, H, W, C) -> labels (N,)
PENALTY = 10.0  # C of the machine

BLOCK = (
    256  # images that are recognised at once: their kernel with 60,000 support vectors takes 120 MB
)

COMPONENTS = (
    50  # principal components kept of pictures larger than 8x8: 98.7 % on MNIST's test images
)


class Machine(NamedTuple):
    """A fitted support-vector machine: principal components of D pixels, S support vectors in P
    dimensions, C classes.

    Attributes:
      mean: of the pixels, (D,).
      components: (P, D); of pixels that are used as they are, (0, D).
      vectors: the support vectors, class by class, (S, P).
      counts: how many of them each class has, (C,).
      coefficients: of every vector in the C - 1 machines of its class, (C - 1, S).
      intercepts: of the machines of the pairs (0, 1), (0, 2), ..., (C - 2, C - 1).
      classes: the labels, (C,).
      gamma: of the kernel exp(-gamma |x - y|^2), ().
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
) -> Recognise:
    """A function images uint8 (N, H, W, C) -> labels (N,), fitted to real images and their labels.

    RBF support-vector machine on 50 principal components (pixels themselves where there are no more
    than 64). Sets so small that five times as many images stay within `limit` are joined by their
    one-pixel shifts; of larger ones `limit` images are drawn, always the same ones. The fit is kept
    in cache_dir under a hash of data and settings
    (None: not kept). 60,000 MNIST images: half a minute. Raises UserError for labels that do not
    fit the images and for a set of one class.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim != 4 or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
        got = f"{images.dtype} {images.shape}, labels {labels.shape}"
        raise UserError(
            f"recognition needs uint8 images (N, H, W, C) with one label each; got {got}"
        )
    if len(np.unique(labels)) < 2:
        raise UserError(
            f"recognition needs images of at least two classes; all {len(labels)} have the same label"
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

    def recognise(images: np.ndarray) -> np.ndarray:
        if images.shape[1:] != shape or images.dtype != np.uint8:
            raise UserError(
                f"this recogniser reads uint8 images {shape}; got {images.dtype} {images.shape[1:]}"
            )
        return predict(machine, images)

    return recognise


def accuracy(recognise: Recognise, images: np.ndarray, labels: np.ndarray) -> float:
    """The fraction of images (N, H, W, C) uint8 that are recognised as their labels (N,)."""
    if len(images) != len(labels):
        raise UserError(
            f"{len(images)} images and {len(labels)} labels: accuracy needs one label for each image"
        )
    return float(np.mean(recognise(images) == np.asarray(labels)))


def _flat(images: np.ndarray) -> np.ndarray:
    return transforms.to_unit(images.reshape(len(images), -1))


def _training_set(
    images: np.ndarray, labels: np.ndarray, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    if len(images) > limit:
        chosen = np.sort(np.random.default_rng(0).permutation(len(images))[:limit])
        return images[chosen], labels[chosen]
    moves = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)]
    if len(images) * len(moves) > limit:
        return images, labels
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    shifted = [padded[:, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width] for dy, dx in moves]
    return np.concatenate(shifted), np.tile(labels, len(moves))


def predict(machine: Machine, images: np.ndarray) -> np.ndarray:
    """The labels (N,) of images (N, H, W, C) uint8: every pair of classes votes, and the first with
    most votes wins.

    This is what scikit-learn's SVC does (one against one; Chang & Lin 2011, section 7), on plain
    arrays.
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
    """(N, D) float32 -> (N, P) float64."""
    return (flat @ components.T - mean @ components.T if len(components) else flat).astype(
        np.float64
    )


def _fit(images: np.ndarray, labels: np.ndarray) -> Machine:

    flat = _flat(images)
    mean, components = np.zeros(flat.shape[1], np.float32), np.zeros((0, flat.shape[1]), np.float32)
    if flat.shape[1] > 64:
        found = PCA(min(COMPONENTS, len(flat)), random_state=0).fit(flat)
        mean, components = found.mean_, found.components_
    x = _projected(mean, components, flat)
    gamma = 1 / (x.shape[1] * (x.var() or 1.0))
    machine = SVC(C=PENALTY, gamma=gamma, cache_size=500).fit(x, labels)
    sign = (
        -1 if len(machine.classes_) == 2 else 1
    )  # scikit-learn turns the only machine of two classes round
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
    """Names a fit by all that goes into it; by the version of scikit-learn, which fits it, too."""
    settings = [sklearn.__version__, PENALTY, COMPONENTS, limit, images.shape]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for part in (images, labels):
        digest.update(np.ascontiguousarray(part))
    return digest.hexdigest()[:24]


def _load(path: Path, images: np.ndarray, labels: np.ndarray) -> Machine:
    """The machine that `_keep` wrote for such images. UserError for a file that is damaged, or is
    of other images.
    """
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
    """Best effort: without a cache that can be written the machine works as well."""
    if path is not None:
        with contextlib.suppress(UserError, OSError):
            npz.save(path, machine._asdict())
