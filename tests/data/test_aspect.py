"""Aspect-ratio buckets: which images go where, and that batches are a function of seed and step."""

from __future__ import annotations

import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import aspect, pipeline
from tests.data.sets import write_image

SHAPES = ((4, 8), (6, 6), (8, 4))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """24 wide images of value 10, 12 square ones of 100 and 4 high ones of 200."""
    folder = tmp_path_factory.mktemp("images")
    for value, size, count in ((10, (16, 7), 24), (100, (9, 9), 12), (200, (6, 12), 4)):
        for k in range(count):
            write_image(folder / f"{value}_{k}.png", value, size, mode="L")
    return data.load("folder", path=str(folder), image_size=6, buckets=SHAPES)


def test_images_go_to_the_nearest_aspect_ratio():
    sizes = [(7, 16), (10, 10), (100, 60), (5, 7), (1, 100)]
    assert aspect.nearest(sizes, SHAPES).tolist() == [0, 1, 2, 1, 0]


def test_each_batch_has_one_shape_and_each_bucket_its_share(loaded):
    """Everything but training sees the square images."""
    assert loaded.image_shape == (6, 6, 1) and loaded.train[0]["image"].shape == (6, 6, 1)
    assert "batches of 4x8" in loaded.rule
    batch = pipeline.batches(loaded.train, batch_size=4, seed=3)
    seen = {value: 0 for value in (10, 100, 200)}
    for step in range(300):
        images = batch(step)["image"]
        (value,) = np.unique(np.rint((images + 1) * 127.5))
        assert images.shape == (4, *dict(zip((10, 100, 200), SHAPES))[int(value)], 1)
        seen[int(value)] += 1
    sizes = np.array([len(own) for own in loaded.train.buckets])
    assert sizes.sum() == len(loaded.train)
    share = np.array([*seen.values()]) / 300
    bound = 4 * np.sqrt(0.25 / 300)  # four standard errors of a share
    assert np.abs(share - sizes / sizes.sum()).max() < bound


def test_a_batch_depends_on_seed_and_step_and_processes_share_it(loaded):
    whole = pipeline.batches(loaded.train, batch_size=4, seed=3)
    later = pipeline.batches(loaded.train, batch_size=4, seed=3)
    np.testing.assert_array_equal(later(40)["image"], whole(40)["image"])  # without those before
    parts = [
        pipeline.batches(loaded.train, batch_size=4, seed=3, process_index=p, process_count=2)
        for p in (0, 1)
    ]
    for step in range(6):
        both = np.concatenate([part(step)["image"] for part in parts])
        np.testing.assert_array_equal(both, whole(step)["image"])
    drawn = [[aspect.visit(seed, (5, 3), k)[0] for k in range(50)] for seed in (0, 1)]
    assert drawn[0] != drawn[1]


def test_visits_count_the_earlier_steps_of_a_bucket(monkeypatch):
    """Also across the blocks in which they are drawn."""
    monkeypatch.setattr(aspect, "BLOCK", 7)
    aspect._drawn.cache_clear(), aspect._before.cache_clear()
    counts = [0, 0, 0]
    for step in range(50):
        bucket, earlier = aspect.visit(5, (2, 1, 4), step)
        assert earlier == counts[bucket]
        counts[bucket] += 1
    aspect._drawn.cache_clear(), aspect._before.cache_clear()


def test_buckets_are_for_folders_without_captions(tmp_path):
    with pytest.raises(UserError, match="data.buckets=.* is not used by data.name=digits"):
        data.load("digits", buckets=SHAPES)
    with pytest.raises(UserError, match="images with captions have no buckets"):
        data.load("folder", path=str(tmp_path), buckets=SHAPES, captioned=True)


def test_one_image_in_a_bucket_fills_batches_and_extreme_shapes_are_named(tmp_path, caplog):
    """A batch may be larger than its bucket; buckets without images are said to have none."""
    for name, size in (*((f"{i}.png", (6, 6)) for i in range(9)), ("thin.png", (3000, 1))):
        write_image(tmp_path / name, 10, size, mode="L")
    loaded = data.load("folder", path=str(tmp_path), image_size=6, buckets=(*SHAPES, (6, 6)))
    assert loaded.rule.endswith("batches of 4x8 (1), 6x6 (6), 8x4 (no image), 6x6 (no image)")
    assert "1 of 7 training images lose more than three quarters" in caplog.text
    assert "thin.png is 1x3000" in caplog.text
    batch = pipeline.batches(loaded.train, batch_size=16, seed=0)
    shapes = {batch(step)["image"].shape for step in range(40)}
    assert shapes == {(16, 4, 8, 1), (16, 6, 6, 1)}
