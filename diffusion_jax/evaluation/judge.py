"""Quality of a set of images against a data set, in the numbers every command prints: recognition and Frechet distance."""

from __future__ import annotations

from typing import Callable

import numpy as np

from diffusion_jax import data
from diffusion_jax.data.sources import Source
from diffusion_jax.evaluation import features, frechet, recognition

REFERENCE = 10_000  # training images in the reference statistics, at most


def against(train: Source, labels: np.ndarray | None) -> Callable[[np.ndarray], dict[str, float]]:
    """A function from images uint8 (N, H, W, C) to {'accuracy', 'frechet'}.

    accuracy (where labels (N,) are given): the fraction that an SVM, trained on the real training split, recognises as their labels.
    frechet: Frechet distance of pixels in [0, 1] to the training split's; its floor at this N is what real test images score.
    """
    real = data.arrays(train, limit=REFERENCE)["image"]
    reference = frechet.moments_of(features.pixels, real)
    recognise = None
    if labels is not None:
        everything = data.arrays(train)
        recognise = recognition.recognizer(everything["image"], everything["label"])

    def judge(images: np.ndarray) -> dict[str, float]:
        scores = {"frechet": frechet.frechet_distance(frechet.moments_of(features.pixels, images), reference)}
        return ({"accuracy": recognition.accuracy(recognise, images, labels)} if recognise else {}) | scores

    return judge


def on_real(train: Source, test: Source) -> dict[str, float]:
    """The same numbers for the real test split: what a perfect model would score."""
    held_out = data.arrays(test, limit=REFERENCE)
    return against(train, held_out.get("label"))(held_out["image"])

