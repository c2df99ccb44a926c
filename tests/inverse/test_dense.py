"""Dense conditions: what is seen of a sample, against plain loops and counts."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from diffusion_jax.core.errors import UserError
from diffusion_jax.inverse import dense

KEYS = jax.random.split(jax.random.key(0), 200)


def noise(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(6, 2), (6, 9, 2), (3, 6, 3, 1)])
def test_lowres_is_the_mean_of_each_block_in_all_of_its_positions(shape):
    x, made = noise(3, *shape), dense.lowres(shape, 0, 3)
    found, wanted = np.asarray(made.make(x, None, KEYS[:3])), np.zeros_like(x)
    for corner in np.ndindex(*(n // 3 for n in shape[:-1])):
        block = (slice(None), *(slice(3 * i, 3 * i + 3) for i in corner))
        axes = tuple(range(1, x.ndim - 1))
        wanted[block] = x[block].mean(axes, keepdims=True)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    small = dense.reduced(x, 3)
    assert small.shape[1:] == made.measured and made.channels == shape[-1]
    np.testing.assert_allclose(made.of_measured(small), found, atol=1e-6)


def test_lowres_interpolates_between_the_middles_of_blocks():
    """As torch's bilinear interpolation without aligned corners, which ADM's networks have."""
    made = dense.lowres((4, 2, 1), 0, 2, enlarged="bilinear")
    small = np.float32([[[[0.0]], [[1.0]]]])
    expected = np.float32([0, 0.25, 0.75, 1])
    np.testing.assert_allclose(made.of_measured(small)[0, :, 0, 0], expected, atol=1e-6)
    x = np.repeat(small, 2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(made.make(x, None, None)[0, :, 1, 0], expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(5,), (8, 2), (8, 6, 3), (4, 4, 4, 1)])
def test_inpainting_shows_the_sample_where_its_mask_is_one(shape):
    """And zeros elsewhere; the mask is that of the example's key alone."""
    x, made = noise(200, *shape), dense.inpaint(shape)
    found = np.asarray(made.make(x, None, KEYS))
    assert found.shape == (200, *shape[:-1], made.channels)
    seen, mask = found[..., : shape[-1]], found[..., shape[-1] :]
    assert set(np.unique(mask)) == {0.0, 1.0}
    np.testing.assert_array_equal(seen, np.where(mask == 1, x, 0))
    np.testing.assert_array_equal(found[7], made.make(x[7:8], None, KEYS[7:8])[0])
    hidden = 1 - mask.reshape(200, -1).mean(1)
    assert 0.2 < hidden.mean() < 0.8 and hidden.std() > 0.1
    np.testing.assert_array_equal(made.of_mask(x, mask), found)


def test_boxes_are_boxes_and_scattered_masks_are_not():
    """A box hides a product of intervals, each at least a quarter of the axis."""
    x = noise(200, 8, 8, 1)
    mask = np.asarray(dense.inpaint((8, 8, 1), scattered=0.0).make(x, None, KEYS))[..., 1] == 0
    rows, columns = mask.any(2), mask.any(1)
    np.testing.assert_array_equal(mask, rows[:, :, None] & columns[:, None])
    for axis in (rows, columns):
        assert (axis.sum(1) >= 2).all()  # a quarter of 8
        assert (np.abs(np.diff(axis.astype(int), axis=1)).sum(1) <= 2).all()  # one interval
    assert rows.mean(0).min() > 0.3  # every row is hidden at times
    scattered = np.asarray(dense.inpaint((8, 8, 1), scattered=1.0).make(x, None, KEYS))[..., 1]
    assert abs(scattered.mean() - 0.5) < 0.1


def test_gray_classes_and_stored_arrays():
    x = noise(3, 4, 4, 3)
    np.testing.assert_allclose(
        dense.gray((4, 4, 3)).make(x, None, None), x.mean(-1, keepdims=True), rtol=1e-5, atol=1e-6
    )
    numbers = np.arange(16).reshape(1, 4, 4, 1) % 5
    made = dense.classes((4, 4, 3), number=4)
    found = np.asarray(made.make(None, numbers, None))
    np.testing.assert_array_equal(found, np.eye(5)[:, :4][numbers[..., 0]])  # 4 is no class
    assert made.shown(found).shape == (1, 4, 4, 3)
    assert dense.array((4, 4, 3), 2).channels == 2
    np.testing.assert_array_equal(dense.array((4, 4, 3), 3).make(None, x, None), x)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: dense.lowres((6, 8, 1), 0, 4), "does not divide samples"),
        (lambda: dense.lowres((6,), 0, 2), "does not divide samples"),
        (lambda: dense.lowres((6, 8, 1), 0, 2, enlarged="bilinera"), "did you mean 'bilinear'"),
        (lambda: dense.lowres((6, 8, 1), 0, 1), "lowres: factor"),
        (lambda: dense.inpaint((6, 8, 1), scattered=2.0), "inpaint: scattered"),
        (lambda: dense.gray((6, 8, 1)), "several channels"),
        (lambda: dense.classes((6, 8, 1), number=1), "classes: number"),
    ],
)
def test_impossible_conditions_are_one_line(make, words):
    with pytest.raises(UserError, match=words):
        make()
