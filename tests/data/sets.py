"""Small data sets that tests write and recognize."""

from __future__ import annotations

import gzip

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from diffusion_jax import data


def write_tfds(
    data_dir: str,
    splits: dict[str, np.ndarray],
    features=None,
    file_format="array_record",
    name="blobs",
    make=None,
):
    """A prepared TFDS set on disk whose image i is filled with the number given for it, and
    labeled by it. `make` has functions from the number to further features.
    """

    features = features or {
        "image": tfds.features.Tensor(shape=(2, 2, 1), dtype=np.uint8),
        "label": tfds.features.ClassLabel(names=["dark", "light"]),
    }

    class Writer(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(numbers) for split, numbers in splits.items()}

        def _generate_examples(self, numbers):
            for i, n in enumerate(numbers):
                example = {
                    "image": np.full((2, 2, 1), n, np.uint8),
                    "label": int(n) % 2,
                    "caption": "x",
                    "signal": n + np.arange(8, dtype=np.float32).reshape(4, 2),
                }
                example |= {key: of(n) for key, of in (make or {}).items()}
                yield i, {k: v for k, v in example.items() if k in features}

    Writer.name = name
    Writer(data_dir=data_dir, file_format=file_format).download_and_prepare()


def values(source) -> list[int]:
    return data.arrays(source)["image"][:, 0, 0, 0].tolist()


def write_idx(path, array: np.ndarray) -> None:

    raw = (
        bytes([0, 0, 8, array.ndim])
        + np.array(array.shape, ">u4").tobytes()
        + array.astype(np.uint8).tobytes()
    )
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def write_image(path, value, size=(6, 4), mode="RGB", **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path, **kwargs)
