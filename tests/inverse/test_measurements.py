"""Measurements against explicit matrices, and masks."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from diffusion_jax.core.errors import UserError
from diffusion_jax.inverse import edits, masks, measurements, methods
from tests.families import public
from tests.inverse.problems import METHODS

SHAPE = (4, 4, 3)
SERIES, VOLUME = (24, 2), (4, 3, 4, 1)  # as many numbers


MASK = (np.arange(16).reshape(4, 4, 1) % 3 > 0).astype(np.float32)


MEASUREMENTS = {
    "inpaint": lambda **k: measurements.inpaint(SHAPE, MASK, **k),
    "colorize": lambda **k: measurements.colorize(SHAPE, **k),
    "superres": lambda **k: measurements.superres(SHAPE, 2, **k),
    "deblur": lambda **k: measurements.deblur(SHAPE, 0.6, **k),
    "deblur_uniform": lambda **k: measurements.deblur(SHAPE, 1, "uniform", **k),
    "superres_series": lambda **k: measurements.superres(SERIES, 4, **k),
    "superres_volume": lambda **k: measurements.superres(VOLUME, 2, axes=(2, 0), **k),
    "deblur_series": lambda **k: measurements.deblur(SERIES, 0.6, **k),
    "deblur_volume": lambda **k: measurements.deblur(VOLUME, 0.6, **k),
    "linear": lambda **k: measurements.linear(
        SHAPE, np.random.default_rng(0).standard_normal((5, 48)), **k
    ),
}


every_measurement = pytest.mark.parametrize("name", MEASUREMENTS)


def shape_of(name):
    return {"series": SERIES, "volume": VOLUME}.get(name.partition("_")[2], SHAPE)


def test_every_measurement_and_method_is_here():
    made = set(public(measurements, "Measurement"))
    assert made == {name.partition("_")[0] for name in MEASUREMENTS} | {"saturate"}
    assert set(METHODS) == {"unguided", "ddnm", "pigdm", "dps", "replacement", "repaint"}
    assert set(public(masks, "Mask")) == {"half", "box", "random", "channels"}


@every_measurement
def test_all_of_a_measurement_is_that_of_its_matrix(name):
    """The transpose, the pseudo-inverse and a function of A A^T, from the matrix of forward."""
    measurement = MEASUREMENTS[name]()
    eye = jnp.eye(48).reshape(48, *shape_of(name))
    rows = measurement.forward(eye)
    matrix = np.asarray(rows, np.float64).reshape(48, -1).T  # (M, 48)
    units = jnp.eye(len(matrix)).reshape(-1, *rows.shape[1:])

    def flat(a):
        return np.asarray(a).reshape(len(a), -1)

    assert_allclose(
        flat(measurement.adjoint(measurement.spectral(units, lambda s2: (s2 > 1e-9) * 1.0))).T,
        matrix.T,
        atol=1e-5,
    )
    assert_allclose(
        flat(measurements.pinv(measurement, measurement.forward(eye))).T,
        np.linalg.pinv(matrix, rcond=1e-3) @ matrix,
        atol=2e-4,
    )
    gram = matrix @ matrix.T
    wanted = gram @ np.linalg.inv(0.3 * gram + 0.2 * np.eye(len(gram)))
    assert_allclose(
        flat(measurement.spectral(units, lambda s2: s2 / (0.3 * s2 + 0.2))), wanted, atol=1e-5
    )


@every_measurement
def test_consistent_is_the_nearest_image_with_the_measurement(name):
    measurement = MEASUREMENTS[name]()
    rng = np.random.default_rng(1)
    x, other = (jnp.asarray(rng.standard_normal((2, *shape_of(name))), "float32") for _ in range(2))
    y = measurement.forward(other)
    found = measurements.consistent(measurement, x, y)
    assert_allclose(measurement.forward(found), y, atol=2e-4)
    moved = np.asarray(
        measurements.pinv(measurement, measurement.forward(found - x))
    )  # the move lies in what A sees
    assert_allclose(found - x, moved, atol=2e-3)
    if name == "inpaint":
        known = np.broadcast_to(MASK == 1, x.shape)
        assert_array_equal(np.asarray(found)[known], np.asarray(other)[known])
        assert_array_equal(np.asarray(found)[~known], np.asarray(x)[~known])


def test_noise_is_of_the_measured_part_and_of_the_image():
    measurement = MEASUREMENTS["inpaint"](std=0.5)
    x = jnp.zeros((200, *SHAPE))
    y = np.asarray(measurements.measure(measurement, jax.random.key(0), x))
    assert not y[:, MASK[..., 0] == 0].any()
    assert abs(y[:, MASK[..., 0] == 1].std() - 0.5) < 0.01
    assert_array_equal(measurements.measure(measurement, jax.random.key(0), x[:3]), y[:3])


def test_blur_against_a_plain_loop():
    x = np.random.default_rng(0).standard_normal((1, 4, 4, 3))
    near = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    wanted = np.mean([np.roll(x, shift, (1, 2)) for shift in near], 0)
    assert_allclose(
        MEASUREMENTS["deblur_uniform"]().forward(jnp.asarray(x, "float32")), wanted, atol=1e-6
    )


def test_masks():
    assert masks.half((4, 6, 1)).mean() == 0.5 and masks.half((4, 6, 1))[:2].all()
    hole = masks.box((8, 8, 1))[..., 0]
    assert hole.sum() == 48 and not hole[2:6, 2:6].any()
    scattered = masks.random((10, 10, 3), 0.3, seed=1)
    assert scattered.shape == (10, 10, 1) and scattered.sum() == 30
    assert_array_equal(scattered, masks.random((10, 10, 3), 0.3, seed=1))


def test_masks_of_other_axes():
    """A vector has a value for each column, and chosen axes leave the others whole."""
    assert_array_equal(masks.half((5,)), [1, 1, 0, 0, 0])
    assert masks.half((4, 2, 6, 1), axis=2)[:, :, :3].all() and masks.half((8, 2)).shape == (8, 1)
    assert_array_equal(masks.box((8, 2), 0.25)[:, 0], [1, 1, 1, 0, 0, 1, 1, 1])
    slab = masks.box((4, 4, 4, 1), axes=(1,))
    assert not slab[:, 1:3].any() and slab[:, [0, 3]].all()
    rows = masks.random((10, 4, 1), 0.3, axes=(0,))[..., 0]
    assert (rows == rows[:, :1]).all() and rows.mean() == 0.3
    assert_array_equal(masks.channels((8, 3), known=(2, 0)), [[1, 0, 1]])
    assert_array_equal(masks.channels((3,), known=(1,)), [0, 1, 0])


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: measurements.inpaint((8, 8, 1), np.ones((4, 8, 1))), "does not fit"),
        (lambda: measurements.colorize((8, 8, 1)), "needs color"),
        (lambda: measurements.superres((8, 8, 1), 3), "does not divide"),
        (lambda: measurements.superres((2,), 2), "needs samples with an axis.*vectors"),
        (lambda: measurements.deblur((2,)), "needs samples with an axis.*vectors"),
        (lambda: measurements.superres((8, 1), 2, axes=(1,)), "numbered from 0 to 0"),
        (lambda: masks.half((8, 1), axis=1), "samples have 1 axis besides channels"),
        (lambda: masks.box((8, 8, 1), axes=(2,)), "samples have 2 axes .* from 0 to 1"),
        (lambda: masks.channels((8, 1)), "not all of them"),
        (lambda: masks.channels((8, 2), (2,)), "2 channels, numbered from 0"),
        (lambda: measurements.deblur((8, 8, 1), -1.0), "width=-1.0: it must be at least"),
        (lambda: measurements.linear((2,), np.ones((1, 3))), "must be"),
        (
            lambda: measurements.linear((2,), np.ones((1, 2)), std=-1.0),
            "std=-1.0: it must be at least 0",
        ),
        (lambda: masks.box((8, 8, 1), 1.5), "between 0 and 1"),
        (lambda: masks.random((8, 8, 1), 0.0), "between 0 and 1"),
        (lambda: methods.repaint(0), "resample=0: it must be at least 1"),
        (lambda: edits.last_moves(jnp.ones(3), 0.0), "above 0"),
        (
            lambda: methods.restore(methods.ddnm(), measurements.saturate((2,)), *[None] * 7),
            "needs a linear measurement",
        ),
    ],
)
def test_mistakes_are_one_line(make, words):
    with pytest.raises(UserError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


def test_public_functions_say_what_they_are():
    for name, function in (
        public(methods) | public(measurements) | public(masks) | public(edits)
    ).items():
        assert inspect.getdoc(function), name
