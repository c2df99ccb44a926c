"""Restorations without a model."""

from __future__ import annotations

import numpy as np

from diffusion_jax.inverse import baselines, masks


def test_a_series_is_interpolated_and_stays_constant_beyond_its_ends():
    at = np.array([2, 3, 7, 10])
    known = np.zeros((12, 2), int)
    known[at, 0], known[:, 1] = 1, 1
    values = np.random.default_rng(0).standard_normal((3, 12, 2))
    found = baselines.interpolated(values, known, np.zeros((12, 2)))
    for x, wanted in zip(found, values):
        np.testing.assert_allclose(x[:, 0], np.interp(np.arange(12), at, wanted[at, 0]))
    np.testing.assert_array_equal(found[:, :, 1], values[:, :, 1])
    values[:, known[:, 0] == 0, 0] = np.nan  # what is not known has no effect
    np.testing.assert_array_equal(baselines.interpolated(values, known, 0 * values[0]), found)


def test_a_plane_is_interpolated_along_both_axes():
    """A hole in an affine function is filled exactly; a missing half from its border alone."""
    plane = (2.0 * np.arange(8)[:, None] - 3.0 * np.arange(8))[None, ..., None]
    hole = np.broadcast_to(masks.box((8, 8, 1)), (8, 8, 1))
    found = baselines.interpolated(plane * hole, hole, np.zeros((8, 8, 1)))
    np.testing.assert_allclose(found, plane, atol=1e-14)
    half = masks.half((8, 8, 1), axis=1)
    found = baselines.interpolated(plane * half, half, np.zeros((8, 8, 1)))
    np.testing.assert_allclose(found[:, :, 4:], plane[:, :, 3:4].repeat(4, 2))


def test_where_nothing_is_known_on_any_line_the_mean_stands():
    x, mean = np.ones((2, 5, 2)), np.full((5, 2), 7.0)
    known = np.broadcast_to(masks.channels((5, 2)), (5, 2))
    found = baselines.interpolated(x, known, mean)
    assert (found[..., 0] == 1).all() and (found[..., 1] == 7).all()
