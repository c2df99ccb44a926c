"""The embedded default: the 1,797 handwritten 8x8 digits of scikit-learn as a TFDS set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from diffusion_jax.core.deferred import deferred

datasets = deferred("sklearn.datasets")

TEST = 297


class SklearnDigits(tfds.core.GeneratorBasedBuilder):
    """Images uint8 8x8x1 (0..16 scaled to 0..255) and labels 0..9.

    There are 1,500 training and 297 test examples, stratified by class.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Tensor(
                shape=(8, 8, 1), dtype=np.uint8
            ),  # features.Image would encode with TensorFlow
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits of the UCI repository (Alpaydin and Kaynak 1998), "
            "from scikit-learn.",
            features=tfds.features.FeaturesDict(features),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        digits = datasets.load_digits()
        by_class = np.argsort(digits.target, kind="stable")
        held_out = np.zeros(len(by_class), bool)
        held_out[by_class[np.linspace(0, len(by_class) - 1, TEST).round().astype(int)]] = True
        return {
            "train": self._generate_examples(digits, np.flatnonzero(~held_out)),
            "test": self._generate_examples(digits, np.flatnonzero(held_out)),
        }

    def _generate_examples(self, digits: Any, indices: np.ndarray) -> Iterator[tuple[int, Any]]:
        for i in indices:
            image = np.round(digits.images[i] * (255 / 16)).astype(np.uint8)[..., None]
            yield int(i), {"image": image, "label": int(digits.target[i])}
