"""Sets of arrays of any shape: how they are read, normalized and refused."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import any_shape, normalization

SHAPES = [(3,), (6, 2), (4, 6, 2), (4, 2, 6, 1)]


def drawn(shape, dtype="float32", count=20):
    """Numbers whose channels have scales and places of their own."""
    x = np.random.default_rng(0).standard_normal((count, *shape)) * np.arange(1, shape[-1] + 1)
    return (30 * x + 100).clip(0, 250).astype(dtype)


def file_of(folder, **arrays):
    np.savez(folder / "set.npz", **arrays)
    return str(folder / "set.npz")


@pytest.mark.parametrize("shape, dtype", [*zip(SHAPES, ("float32", "int16", "float16", "uint8"))])
def test_channels_are_normalized_by_the_training_split_alone(shape, dtype, tmp_path):
    """Mean 0 and variance 1 there; the held-out rows by the same numbers; both are undone."""
    values, labels = drawn(shape, dtype), np.arange(20) % 2
    loaded = data.load("arrays", path=file_of(tmp_path, data=values, labels=labels))
    assert loaded.image_shape == shape and loaded.num_classes == 2
    train, test = (data.arrays(split) for split in (loaded.train, loaded.test))
    assert train["image"].dtype == np.float32
    axes = tuple(range(len(shape)))
    np.testing.assert_allclose(train["image"].mean(axes), 0, atol=1e-5)
    np.testing.assert_allclose(train["image"].std(axes), 1, rtol=1e-4)
    again = loaded.normalization.decode(np.concatenate([train["image"], test["image"]]))
    flat, wanted = (np.sort(x.reshape(20, -1).astype(float), 0) for x in (again, values))
    np.testing.assert_allclose(flat, wanted, rtol=1e-3, atol=1e-3)
    assert len(test["image"]) == 2 and again.dtype == dtype
    assert loaded.normalization.dtype == dtype


def test_the_range_of_the_training_split_becomes_minus_one_to_one(tmp_path):
    """Also of a file whose test split is its own, which may go beyond."""
    values = drawn((5, 2))
    path = file_of(tmp_path, data=values, test_data=2 * values)
    loaded = data.load("arrays", path=path, normalization="range")
    x = data.arrays(loaded.train)["image"]
    np.testing.assert_allclose([x.min((0, 1)), x.max((0, 1))], [[-1, -1], [1, 1]], atol=1e-6)
    assert np.abs(data.arrays(loaded.test)["image"]).max() > 1
    assert loaded.rule == "read as (N, L, C); split by its arrays"


def test_statistics_of_parts_are_those_of_the_whole():
    values = drawn((7, 3), count=31).astype(np.float64)
    parts = np.split(values, [1, 2, 20])
    found = normalization.measure(parts, "standard", "float32", "")
    np.testing.assert_allclose(found.shift, values.mean((0, 1)))
    np.testing.assert_allclose(found.scale, values.std((0, 1)))
    np.testing.assert_allclose(found.bits, np.log2(values.std((0, 1))).mean())
    unit = found.unit(found.encode(values))
    np.testing.assert_allclose([unit.min((0, 1)), unit.max((0, 1))], [[0] * 3, [1] * 3], atol=1e-6)


def test_integers_are_rounded_and_stay_within_their_type():
    found = normalization.measure([drawn((2,), "uint8")], "standard", "uint8", "")
    np.testing.assert_array_equal(found.decode(np.full((1, 2), 99.0)), [[255, 255]])
    x = found.encode(np.array([[7, 9]]))
    np.testing.assert_array_equal(found.decode(x + 0.4 / np.array(found.scale)), [[7, 9]])


def test_a_constant_channel_is_kept_with_a_warning(caplog):
    values = drawn((4,))
    values[:, 2] = 5
    found = normalization.measure([values], "standard", "float32", "data.path=a.npz")
    assert found.scale[2] == 1 and "channel 2 is constant in the training split (5)" in caplog.text
    np.testing.assert_array_equal(found.decode(found.encode(values))[:, 2], 5)


def test_an_npy_is_mapped_and_has_labels_next_to_it(tmp_path):
    values = drawn((6, 1))
    np.save(tmp_path / "a.npy", values), np.save(tmp_path / "a_labels.npy", np.arange(20) % 4)
    loaded = data.load("arrays", path=str(tmp_path / "a.npy"))
    assert isinstance(loaded.train.values, np.memmap) and loaded.num_classes == 4
    np.savez(tmp_path / "a.npz", data=values, labels=np.arange(20) % 4)
    again = data.load("arrays", path=str(tmp_path / "a.npz"))
    for one, other in ((loaded.train, again.train), (loaded.test, again.test)):
        for name, column in data.arrays(one).items():
            np.testing.assert_array_equal(column, data.arrays(other)[name])
    assert again.normalization == loaded.normalization
    sent = pickle.dumps(loaded.test)  # to a data worker, which maps the file itself
    assert len(sent) < values.nbytes + 1000 and isinstance(pickle.loads(sent).values, np.memmap)
    for name in ("a.npy", "a.npz"):
        assert any_shape.described(str(tmp_path / name)) == ((6, 1), np.float32)


def test_images_of_8_bits_are_images_of_any_number_of_channels(tmp_path):
    """Unchanged levels, and so to [-1, 1] like those of other sets."""
    values = drawn((4, 6, 5), "uint8")
    loaded = data.load("arrays", path=file_of(tmp_path, data=values))
    assert loaded.normalization is None and loaded.image_shape == (4, 6, 5)
    held = any_shape.read(str(tmp_path / "set.npz")).rows[0]
    np.testing.assert_array_equal(data.arrays(loaded.train)["image"], values[held])


def test_damaged_npy_files_are_one_line(tmp_path):
    np.save(tmp_path / "a.npy", drawn((6, 1)))
    whole = (tmp_path / "a.npy").read_bytes()
    np.save(tmp_path / "b.npy", np.array([{}]), allow_pickle=True)
    for name, content in (("c", whole[:-1]), ("d", whole[:40]), ("e", b""), ("f", b"PK" + whole)):
        (tmp_path / f"{name}.npy").write_bytes(content)
    for name in "bcdef":
        with pytest.raises(UserError, match="cannot be read as plain arrays") as error:
            data.load("arrays", path=str(tmp_path / f"{name}.npy"))
        assert "\n" not in str(error.value)


X = drawn((6, 2))
LABELS = np.arange(20)
SPOILED = X.copy()
SPOILED[3, 0, 0] = np.nan


@pytest.mark.parametrize(
    "arrays, options, words",
    [
        (dict(data=X.astype(float)), {}, ["float64", "astype('float32')"]),
        (dict(data=X[:, 0, 0]), {}, ["(20,)", "data[..., None]"]),
        (dict(data=X[:, :, None, None, None]), {}, ["d = 0 to 3"]),
        (dict(data=SPOILED), {}, ["NaN or infinite"]),
        (dict(data=X, test_data=np.full((2, 6, 2), np.inf, "f")), {}, ["NaN or infinite"]),
        (dict(data=X, test_data=X[:, :4]), {}, ["(6, 2)", "(4, 2)", "one type and shape"]),
        (dict(data=X, labels=LABELS[:5]), {}, ["'labels' is int64 (5,)", "20 integers"]),
        (dict(data=X, labels=LABELS.astype("f")), {}, ["float32 (20,)", "np.unique"]),
        (dict(images=X), {}, ["lacks data; it holds images", "'data' (N, ..., C)"]),
        (dict(data=X, test_labels=LABELS), {}, ["'test_labels' and no 'test_data'"]),
        (dict(data=np.array([{}])), {}, ["pickle", "'data' (N, ..., C)"]),
        (dict(data=X), dict(image_size=8), ["image_size", "8 bits"]),
        (dict(data=X), dict(channels=3), ["data.channels", "8 bits"]),
        (dict(data=X), dict(normalization="unit"), ["'unit'", "standard"]),
    ],
)
def test_what_is_no_such_set_is_refused_in_one_line(arrays, options, words, tmp_path):
    with pytest.raises(UserError) as error:
        data.load("arrays", path=file_of(tmp_path, **arrays), **options)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value), error.value
