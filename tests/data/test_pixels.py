"""Values of pixels, and labels: scales, ranges, constant splits, ids."""

from __future__ import annotations

import re

import numpy as np
import pytest
from PIL import Image

from diffusion_jax import data
from diffusion_jax.core.errors import UserError


@pytest.fixture
def ramp() -> np.ndarray:
    return np.linspace(0, 1, 256).reshape(16, 16)


STORED = {  # name: (type, scale, offset, the range to state)
    "unit floats": ("f4", 1, 0, (0, 1)),
    "signed floats": ("f4", 2, -1, (-1, 1)),
    "wide floats": ("f4", 65535, 0, (0, 65535)),
    "32 bits of 8": ("i4", 255, 0, (0, 255)),
    "16 bits of 8": ("u2", 255, 0, (0, 255)),
    "16 bits of 12": ("u2", 4095, 0, (0, 4095)),
}


@pytest.mark.parametrize("name", STORED)
def test_values_of_unknown_scale_are_refused_and_a_stated_range_is_used(tmp_path, ramp, name):
    kind, scale, offset, stated = STORED[name]
    for k in range(4):
        Image.fromarray((ramp * scale + offset).astype(kind)).save(tmp_path / f"{k}.tif")
    with pytest.raises(UserError, match=re.escape(f"value_range={stated}")) as error:
        data.load("folder", path=str(tmp_path))
    assert "\n" not in str(error.value)
    d = data.load("folder", path=str(tmp_path), value_range=stated)
    assert d.image_shape == (16, 16, 1)
    np.testing.assert_allclose(
        data.arrays(d.train)["image"][0, ..., 0], np.round(255 * ramp), atol=1
    )
    with pytest.raises(UserError, match=r"are outside of config.data.value_range=\(0.9, 0.91\)"):
        data.load("folder", path=str(tmp_path), value_range=(0.9, 0.91))


def test_sixteen_bits_that_are_used_need_no_range(tmp_path, ramp):
    for k in range(4):
        Image.fromarray((ramp * 65535).astype("u2")).save(tmp_path / f"{k}.png")
    d = data.load("folder", path=str(tmp_path))
    np.testing.assert_array_equal(data.arrays(d.train)["image"][0, ..., 0], np.round(255 * ramp))


def test_a_range_of_eight_bits(tmp_path, ramp):
    for k in range(4):
        Image.fromarray(np.round(ramp * 16).astype(np.uint8)).save(tmp_path / f"{k}.png")
    d = data.load("folder", path=str(tmp_path), value_range=(0, 16), channels=3)
    expected = np.round(np.round(ramp * 16) * 255 / 16)
    np.testing.assert_array_equal(data.arrays(d.train)["image"][0, ..., 1], expected)


@pytest.mark.parametrize("bad", [(1,), (0, 0), (0, float("nan")), (0, 1, 2)])
def test_ranges_that_are_none(tmp_path, bad):
    with pytest.raises(UserError, match="config.data.value_range=.* must be"):
        data.load("folder", path=str(tmp_path), value_range=bad)
    with pytest.raises(UserError, match="value_range=.* is not used by data.name=digits"):
        data.load("digits", value_range=(0, 1))


def test_floats_that_are_not_finite_are_unreadable_images(tmp_path, ramp):
    for k in range(4):
        Image.fromarray(np.where(k == 1, np.nan, ramp).astype("f4")).save(tmp_path / f"{k}.tif")
    with pytest.raises(
        UserError, match=r"limit_bad=0 unreadable.*1.tif \(it has values that are not finite\)"
    ):
        data.load("folder", path=str(tmp_path), value_range=(0, 1), limit_bad=0)


def test_an_npz_of_floats_with_a_range(tmp_path, ramp):
    np.savez(tmp_path / "d.npz", images=np.stack([ramp] * 4).astype("f4"))
    with pytest.raises(UserError, match=r"float32 values from 0 to 1, .*value_range=\(0, 1\)"):
        data.load("npz", path=str(tmp_path / "d.npz"))
    d = data.load("npz", path=str(tmp_path / "d.npz"), value_range=(0, 1))
    np.testing.assert_array_equal(data.arrays(d.train)["image"][0, ..., 0], np.round(255 * ramp))
    np.savez(tmp_path / "d.npz", images=np.full((4, 2, 2), np.nan))
    with pytest.raises(UserError, match="have no finite values"):
        data.load("npz", path=str(tmp_path / "d.npz"), value_range=(0, 1))


def test_a_split_that_is_nearly_constant_warns(tmp_path, caplog):
    image = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 1)).astype(np.uint8)
    for kind, scale in (("dark", 16), ("good", 1)):
        np.savez(tmp_path / f"{kind}.npz", images=image // scale)
    with caplog.at_level("WARNING"):
        data.load("npz", path=str(tmp_path / "good.npz"))
        assert not caplog.text
        data.load("npz", path=str(tmp_path / "dark.npz"))
    assert (
        "training and test images are nearly constant, with values from 0 to 15 of 255"
        in caplog.text
    )


def save_labels(path, labels) -> str:
    np.savez(
        path,
        images=np.random.default_rng(0).integers(0, 256, (40, 4, 4)).astype(np.uint8),
        labels=labels,
    )
    return str(path)


@pytest.mark.parametrize(
    "labels, classes, warning",
    [
        (
            np.arange(40) % 3 + 1,
            4,
            "1 of 4 classes have no training image and cannot be learned: 0; are the labels "
            "numbered from 1",
        ),
        (
            np.arange(40) % 3 * 2,
            5,
            "2 of 5 classes have no training image and cannot be learned: 1, 3; labels count from "
            "0",
        ),
        (np.arange(40) % 3, 3, ""),
        (np.r_[np.zeros(39), 1].astype(int), 2, ""),  # a class of one image is not held out
    ],
)
def test_labels_without_training_images_warn(tmp_path, caplog, labels, classes, warning):
    with caplog.at_level("WARNING"):
        d = data.load("npz", path=save_labels(tmp_path / "d.npz", labels))
    assert (
        d.num_classes == classes and warning in caplog.text and bool(warning) == bool(caplog.text)
    )


@pytest.mark.parametrize("labels", [[2_000_000_000, 5] * 20, [100, 200] * 20, [0, 2**62] * 20])
def test_ids_are_refused_before_they_are_named(tmp_path, labels):
    with pytest.raises(
        UserError, match="2 different labels, up to .*, look like ids; number the classes from 0"
    ):
        data.load("npz", path=save_labels(tmp_path / "d.npz", np.array(labels)))


def test_a_stated_number_of_classes_is_taken(tmp_path):
    d = data.load(
        "npz", path=save_labels(tmp_path / "d.npz", np.array([100, 200] * 20)), num_classes=1000
    )
    assert d.num_classes == 1000


@pytest.mark.parametrize(
    "labels, match",
    [
        (
            np.array(["a", "b"] * 20),
            r"'labels' is <U1 \(40,\); 40 integers.*np.unique\(labels, return_inverse=True\)",
        ),
        (np.zeros(40), r"'labels' is float64 \(40,\); 40 integers.*np.unique"),
        (np.zeros((40, 10), int), r"'labels' is int64 \(40, 10\); 40 integers"),
        (np.array([-1, 0] * 20), "has label -1, outside 0..0"),
        (np.arange(40), "each of the 40 classes has one example, so none can be held out"),
    ],
)
def test_labels_that_are_none(tmp_path, labels, match):
    with pytest.raises(UserError, match=match):
        data.load("npz", path=save_labels(tmp_path / "d.npz", labels))
