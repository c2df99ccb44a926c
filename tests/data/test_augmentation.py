"""Non-leaky augmentation: the same images as EDM's program, and its labels."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.data import augmentation
from diffusion_jax.data.augmentation import Distortion

STORED = np.load(Path(__file__).parents[1] / "fixtures" / "augmentation.npz")
CASES = ("flips", "scale", "rotation", "stretch", "translation", "all")
# the columns of the labels of each case, and w there per w here (make_augmentation_fixtures.py)
COLUMNS = {
    "flips": (0, 1),
    "scale": (2,),
    "rotation": (3, 4),
    "stretch": (5, 6),
    "translation": (7, 8),
    "all": tuple(range(9)),
}
UNITS = np.array([1, 1, 2, 1, 1, 2, 2, 2.5, 2.5])


def stored(case):
    return Distortion(*(STORED[f"{case}/{name}"] for name in Distortion._fields))


@pytest.mark.parametrize("case", CASES)
def test_images_and_labels_are_those_of_edm(case):
    out = augmentation.distort(STORED["images"], stored(case))
    np.testing.assert_allclose(out, STORED[f"{case}/out"], atol=2e-5)
    columns = list(COLUMNS[case])
    labels = np.asarray(augmentation.labels(stored(case)) * UNITS)
    np.testing.assert_allclose(labels[:, columns], STORED[f"{case}/labels"], atol=1e-6)
    assert not np.delete(labels, columns, axis=1).any()


def test_an_image_without_distortion_and_shifts_by_whole_pixels_are_exact():
    """The standard deviation of a shift is an eighth of the side, here one pixel."""
    images = np.asarray(STORED["images"][:1, :8, :8])
    none = Distortion(*(np.zeros_like(value[:1]) for value in stored("all")))
    np.testing.assert_allclose(augmentation.distort(images, none), images, atol=1e-6)
    moved = augmentation.distort(images, none._replace(shift=np.array([[1.0, -2.0]])))
    np.testing.assert_allclose(moved[:, :-2, 1:], images[:, 2:, :-1], atol=1e-5)
    np.testing.assert_allclose(moved[:, :-2, 0], images[:, 2:, 1], atol=1e-5)  # by reflection


def test_each_distortion_is_drawn_at_its_rate_from_the_key_of_the_example_alone():
    keys = jax.random.split(jax.random.key(0), 4000)
    labels = np.asarray(augmentation.labels(augmentation.draw(keys, 0.12)))
    rates = (labels != 0).mean(0)
    spread = 4 * np.sqrt(0.12 * 0.88 / 4000)
    assert abs(rates[0] - 0.5) < 4 * np.sqrt(0.25 / 4000)
    assert abs(rates[1] - 0.06) < spread
    assert np.all(np.abs(rates[[2, 3, 4, 5, 7, 8]] - 0.12) < spread)
    assert abs(rates[6] - 0.06) < spread  # half of the stretches are along the axes
    once = np.asarray(augmentation.labels(augmentation.draw(keys[7:8], 0.12)))
    np.testing.assert_array_equal(once[0], labels[7])
    always = np.asarray(augmentation.labels(augmentation.draw(keys, 1.0)))
    moments = always[:, [2, 7, 8]]
    assert np.abs(moments.mean(0)).max() < 0.08 and np.abs(moments.std(0) - 1).max() < 0.06


def test_no_probability_leaves_only_the_flips():
    keys = jax.random.split(jax.random.key(1), 6)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4, 6, 1)), jnp.float32)
    out, labels = augmentation.augment(keys, images, 0.0)
    assert not np.asarray(labels)[:, 1:].any() and 0 < np.asarray(labels)[:, 0].sum() < 6
    wanted = np.where(np.asarray(labels)[:, :1, None, None] > 0, images[:, :, ::-1], images)
    np.testing.assert_allclose(out, wanted, atol=1e-5)


def test_images_of_one_row_are_refused():
    with pytest.raises(UserError, match="two rows"):
        augmentation.augment(jax.random.split(jax.random.key(0), 2), jnp.zeros((2, 1, 4, 1)), 0.1)
