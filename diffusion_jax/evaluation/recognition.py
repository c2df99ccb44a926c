"""Are the samples what they were asked to be? A support-vector machine trained on the REAL training split reads them.

It is the project's cheap, independent judge of class-conditional samples: no network of ours has a part in it. Its own
score on the real test split belongs beside every number that it gives.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np

from diffusion_jax.errors import UserError
from diffusion_jax.provenance import atomic_path

Recognise = Callable[[np.ndarray], np.ndarray]  # images uint8 (N, H, W, C) -> labels (N,)

PENALTY = 10.0  # C of the machine
COMPONENTS = 50  # principal components kept of pictures larger than 8x8: 98.7 % on MNIST's test images


def recognizer(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    cache_dir: str | os.PathLike | None = "~/.cache/diffusion_jax",
    limit: int = 60_000,
) -> Recognise:
    """A function images uint8 (N, H, W, C) -> labels (N,), fitted to real images and their labels.

    RBF support-vector machine on 50 principal components (pixels themselves where there are no more than 64). Sets so
    small that five times as many images stay within `limit` are joined by their one-pixel shifts; of larger ones
    `limit` images are drawn, always the same ones. The fit is kept in cache_dir under a hash of data and settings
    (None: not kept). 60,000 MNIST images: half a minute. Raises UserError for labels that do not fit the images and for
    a set of one class.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    if images.ndim != 4 or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
        got = f"{images.dtype} {images.shape}, labels {labels.shape}"
        raise UserError(f"recognition needs uint8 images (N, H, W, C) with one label each; got {got}")
    if len(np.unique(labels)) < 2:
        raise UserError(f"recognition needs images of at least two classes; all {len(labels)} have the same label")
    labels = labels.astype(np.int64)
    path = None if cache_dir is None else Path(cache_dir).expanduser() / f"svm-{_digest(images, labels, limit)}.pkl"
    machine = _load(path)
    if machine is None:
        machine = _fit(*_training_set(images, labels, limit))
        _keep(path, machine)
    shape = images.shape[1:]

    def recognise(images: np.ndarray) -> np.ndarray:
        if images.shape[1:] != shape or images.dtype != np.uint8:
            raise UserError(f"this recogniser reads uint8 images {shape}; got {images.dtype} {images.shape[1:]}")
        return machine.predict(_flat(images))

    return recognise


def accuracy(recognise: Recognise, images: np.ndarray, labels: np.ndarray) -> float:
    """The fraction of images (N, H, W, C) uint8 that are recognised as their labels (N,)."""
    if len(images) != len(labels):
        raise UserError(f"{len(images)} images and {len(labels)} labels: accuracy needs one label for each image")
    return float(np.mean(recognise(images) == np.asarray(labels)))


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)


def _training_set(images: np.ndarray, labels: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
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


def _fit(images: np.ndarray, labels: np.ndarray):
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import SVC

    flat = _flat(images)
    machine = SVC(C=PENALTY, gamma="scale", cache_size=500)
    if flat.shape[1] <= 64:
        return make_pipeline(machine).fit(flat, labels)
    components = min(COMPONENTS, len(flat))
    return make_pipeline(PCA(components, random_state=0), machine).fit(flat, labels)


def _digest(images: np.ndarray, labels: np.ndarray, limit: int) -> str:
    """Names a fit by all that goes into it; by the version of scikit-learn too, whose pickles are its own."""
    import sklearn

    settings = [sklearn.__version__, PENALTY, COMPONENTS, limit, images.shape]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for part in (images, labels):
        digest.update(np.ascontiguousarray(part))
    return digest.hexdigest()[:24]


def _load(path: Path | None):
    """The machine this module kept there before, or None: a missing or damaged file only means to fit again."""
    if path is None or not path.exists():
        return None
    try:
        return pickle.loads(path.read_bytes())
    except Exception:  # a damaged pickle can raise nearly anything
        return None


def _keep(path: Path | None, machine) -> None:
    """Best effort: without a cache that can be written the machine works as well."""
    if path is not None:
        with contextlib.suppress(UserError, OSError), atomic_path(path) as temporary:
            temporary.write_bytes(pickle.dumps(machine))
