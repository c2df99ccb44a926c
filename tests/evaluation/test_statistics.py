"""Reference statistics: computed, resumed, refused for anything else."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.data.sources import Arrays
from diffusion_jax.evaluation import (
    features,
    frechet,
    statistics,
)


def test_statistics_are_of_something_and_refused_for_anything_else(tmp_path):
    rng = np.random.default_rng(11)
    images = rng.integers(0, 256, (2500, 3, 3, 1), np.uint8)
    extractor, path = features.extractor("pixels"), tmp_path / "reference.npz"
    made = statistics.compute(extractor, Arrays(images), "noise", "train")
    np.testing.assert_allclose(
        made.moments.cov, np.cov(images.reshape(2500, 9) / 255, rowvar=False), atol=1e-8
    )
    assert (made.moments.count, made.of["count"], made.of["image_shape"]) == (2500, 2500, [3, 3, 1])
    statistics.save(path, made)
    read = statistics.load(path)
    np.testing.assert_array_equal(read.moments.cov, made.moments.cov)
    assert read.of == made.of
    statistics.need(read, path, **statistics.describe(extractor, Arrays(images), "noise", "train"))
    others = {
        "digest": statistics.describe(
            extractor._replace(digest="classifier-2"), Arrays(images), "noise", "train"
        ),
        "resize": statistics.describe(
            extractor._replace(resize="bicubic"), Arrays(images), "noise", "train"
        ),
        "data": statistics.describe(extractor, Arrays(images), "digits", "train"),
        "split": statistics.describe(extractor, Arrays(images), "noise", "test"),
        "data_digest": statistics.describe(extractor, Arrays(images[::-1]), "noise", "train"),
        "image_shape": statistics.describe(extractor, Arrays(images[:, :2]), "noise", "train"),
        "count": statistics.describe(extractor, Arrays(images[:2000]), "noise", "train"),
    }
    for key, of in others.items():
        with pytest.raises(
            UserError, match=f"^.*reference.npz' holds statistics of another {key} .*$"
        ):
            statistics.need(read, path, **of)


def test_an_interrupted_pass_goes_on_where_it_was(tmp_path):
    images = np.random.default_rng(13).integers(0, 256, (1000, 3, 3, 1), np.uint8)
    seen, partial = [], tmp_path / "reference.partial.npz"

    def outputs(images, describe="", stop=False):
        if stop and len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(len(images))
        return features.Outputs(features.pixels(images))

    extractor = features.extractor("pixels")._replace(
        outputs=lambda images: outputs(images, stop=True)
    )
    with pytest.raises(KeyboardInterrupt):
        statistics.compute(
            extractor, Arrays(images), "noise", "train", partial=partial, save_every=0
        )
    with pytest.raises(UserError, match="is unfinished"):
        statistics.need(statistics.load(partial), partial)
    extractor = extractor._replace(outputs=outputs)
    made = statistics.compute(
        extractor, Arrays(images), "noise", "train", partial=partial, save_every=0
    )
    assert seen == [256] * 4 and made.moments.count == 1000 and not list(tmp_path.iterdir())
    np.testing.assert_allclose(
        made.moments.cov, np.cov(images.reshape(1000, 9) / 255, rowvar=False), atol=1e-8
    )
    statistics.save(
        partial, statistics.Statistics(frechet.moments(np.zeros((9, 9))), {"count": 9})
    )  # of another set
    again = statistics.compute(extractor, Arrays(images), "noise", "train", partial=partial)
    np.testing.assert_array_equal(again.moments.cov, made.moments.cov)


def test_statistics_that_were_changed_or_are_none_are_refused(tmp_path):
    made = statistics.Statistics(
        frechet.moments(np.random.default_rng(0).normal(size=(9, 3))), {"extractor": "pixels"}
    )
    statistics.save(tmp_path / "good.npz", made)
    with np.load(tmp_path / "good.npz") as file:
        arrays = dict(file)
    np.savez(tmp_path / "changed.npz", **arrays | {"mean": arrays["mean"] + 1})
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    for name, said in {
        "changed": "contents do not match",
        "other": "holds no statistics",
        "absent": "there is no",
    }.items():
        with pytest.raises(UserError, match=said):
            statistics.load(tmp_path / f"{name}.npz")
