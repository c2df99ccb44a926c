"""Arrays whose channels are not their last axis, and arrays that can be read in several ways."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from configs import arrays
from diffusion_jax import data
from diffusion_jax.assembly import config_files
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import describe

X = np.random.default_rng(0).standard_normal((20, 4, 6, 8)).astype(np.float32)
WIDE = np.ones((20, 18, 20, 24), np.float32) * X[:, :1, :1, :1]


def load(folder, array, channel_axis="", **more):
    np.save(folder / "a.npy", array)
    return data.load("arrays", path=str(folder / "a.npy"), channel_axis=channel_axis, **more)


@pytest.mark.parametrize(
    "stored, choice, shape, said",
    [
        (X, "", (4, 6, 8), "images, 4x6, 8 channels; no classes; read as (N, H, W, C); a tenth"),
        (X, "none", (4, 6, 8, 1), "volumes, 4x6x8, 1 channel; no classes; read as (N, D, H, W); "),
        (X, "first", (6, 8, 4), "images, 6x8, 4 channels; no classes; read as (N, C, H, W); a"),
        (X[:, 0], "first", (8, 6), "series, 8, 6 channels; no classes; read as (N, C, L); a"),
        (X[:, 0, 0], "", (8,), "vectors, of 8 numbers; no classes; read as (N, C); a"),
        (X[:, 0, 0], "none", (8, 1), "series, 8, 1 channel; no classes; read as (N, L); a"),
        (
            WIDE,
            "last",
            (18, 20, 24),
            "images, 18x20, 24 channels; no classes; read as (N, H, W, C)",
        ),
        (X[..., None].repeat(20, -1).reshape(20, 4, 6, 160), "last", (4, 6, 160), "(N, H, W, C)"),
    ],
)
def test_a_key_says_which_axis_is_the_channels(stored, choice, shape, said, tmp_path):
    """Normalized by channel; the line about the data names the reading."""
    loaded = load(tmp_path, stored, choice)
    assert loaded.image_shape == shape and said in describe.line(loaded)
    x = data.arrays(loaded.train)["image"]
    assert x.shape[1:] == shape and len(loaded.normalization.shift) == shape[-1]
    again = pickle.loads(pickle.dumps(loaded.train))  # mapped by another process
    np.testing.assert_array_equal(data.arrays(again)["image"], x)
    if choice == "first":
        back = np.moveaxis(loaded.normalization.decode(x), -1, 1)
        np.testing.assert_allclose(back, stored[loaded.train.index], atol=1e-5)


@pytest.mark.parametrize(
    "stored, words",
    [
        (
            WIDE,
            "(18, 20, 24), which can be read as images 18x20 of 24 channels (--config.data.chan",
        ),
        (
            WIDE,
            "=last), or as volumes 18x20x24 without channels (--config.data.channel_axis=none);",
        ),
        (WIDE[:, :3], "as images 20x24 of 3 channels (--config.data.channel_axis=first)"),
        (
            WIDE[:, 0],
            "series 20 of 24 channels (--config.data.channel_axis=last), or as images 20x",
        ),
        (WIDE[:, :3, :, :, None].repeat(17, -1), "volumes 20x24x17 of 3 channels"),
    ],
)
def test_arrays_with_several_readings_are_refused_in_one_line(stored, words, tmp_path):
    with pytest.raises(UserError) as error:
        load(tmp_path, stored)
    assert words in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="can be read as"):  # from the header alone
        config_files.apply(arrays.get_config().lock(), [("data.path", str(tmp_path / "a.npy"))])


def test_the_key_chooses_the_network_and_serves_dense_conditions_and_8_bits(tmp_path):
    path = str(tmp_path / "a.npy")
    np.save(tmp_path / "a_dense.npy", X)
    loaded = load(tmp_path, X, "none", dense="numbers")
    assert data.arrays(loaded.train)["dense"].shape[1:] == (4, 6, 8, 1)
    (tmp_path / "a_dense.npy").unlink()
    for choice, network in (("last", "mlp.MLP"), ("none", "unet.UNet")):
        np.save(tmp_path / "a.npy", X[:, 0, 0])
        config = arrays.get_config().lock()
        config_files.apply(config, [("data.path", path), ("data.channel_axis", choice)])
        assert config.model.name == network
    gray = load(tmp_path, X[:, 0].astype(np.uint8), "none")
    assert gray.normalization is None and gray.image_shape == (6, 8, 1)
    with pytest.raises(UserError, match="at most 3 axes besides the channels are read"):
        load(tmp_path, X[..., None], "none")


def test_the_key_is_refused_where_it_says_nothing():
    with pytest.raises(UserError, match="channel_axis=none is not used by data.name=digits, only"):
        data.load("digits", channel_axis="none")
    assert data.load("digits", channel_axis="last").image_shape == (8, 8, 1)
