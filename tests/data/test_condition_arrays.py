"""Vectors and dense arrays that condition a model: how they are read, normalized and refused."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.assembly import data_record, same_run
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import normalization, pipeline

RNG = np.random.default_rng(0)
X = RNG.normal(5, 2, (20, 6, 2)).astype("f")
VECTORS = RNG.normal([1, -30], [0.1, 9], (20, 2))
DENSE = RNG.normal(9, 3, (20, 6, 1)).astype("f")
BOTH = {"condition": "condition", "dense": "numbers"}


def loaded(folder, options=BOTH, **arrays):
    np.savez(folder / "set.npz", **arrays)
    return data.load("arrays", path=str(folder / "set.npz"), **options)


def test_each_column_is_normalized_by_the_training_split(tmp_path):
    """Mean 0 and variance 1 there, the rows of the samples, and the units in data.json."""
    found = loaded(tmp_path, data=X, condition=VECTORS, dense=DENSE)
    train, test = (data.arrays(split) for split in (found.train, found.test))
    for name, values in (("condition", VECTORS), ("dense", DENSE)):
        axes = tuple(range(values.ndim - 1))
        np.testing.assert_allclose(train[name].mean(axes), 0, atol=1e-5)
        np.testing.assert_allclose(train[name].std(axes), 1, rtol=1e-5)
        assert train[name].dtype == np.float32 and len(test[name]) == 2
    both = found.units.vector.decode(np.concatenate([train["condition"], test["condition"]]))
    order = [int(np.argmin(np.abs(X[:, 0, 0] - x))) for x in _first(found)]
    np.testing.assert_allclose(both, VECTORS[order], rtol=1e-5)  # each with its own sample
    about = data_record.description(found)
    assert data_record.units(about) == found.units and len(about["vector"]["shift"]) == 2


def _first(found):
    """The first number of every sample in the units of the data, training split first."""
    rows = [data.arrays(split)["image"] for split in (found.train, found.test)]
    return found.normalization.decode(np.concatenate(rows))[:, 0, 0]


def test_arrays_next_to_an_npy_are_mapped_and_sent_by_name(tmp_path):
    for name, values in (("a", X), ("a_condition", VECTORS[:, 0]), ("a_dense", DENSE)):
        np.save(tmp_path / f"{name}.npy", values)
    found = data.load("arrays", path=str(tmp_path / "a.npy"), **BOTH)
    again = pickle.loads(pickle.dumps(found.train))
    assert isinstance(again.more["dense"].values, np.memmap)
    whole = loaded(tmp_path, data=X, condition=VECTORS[:, :1], dense=DENSE)
    for name, column in data.arrays(again).items():
        np.testing.assert_array_equal(column, data.arrays(whole.train)[name])


@pytest.mark.parametrize("ending", ["npz", "npy"])
def test_classes_in_another_byte_order_are_what_jax_reads(ending, tmp_path):
    numbers = RNG.integers(0, 3, (20, 6, 1))
    np.savez(tmp_path / "a.npz", data=X.astype(">f4"), dense=numbers.astype(">i4"))
    np.save(tmp_path / "a.npy", X)
    np.save(tmp_path / "a_dense.npy", numbers.astype(">i4"))
    found = data.load("arrays", path=str(tmp_path / f"a.{ending}"), dense="classes")
    rows = found.train.rows(np.arange(18))
    assert rows["dense"].dtype.isnative and rows["image"].dtype == np.float32
    np.testing.assert_array_equal(rows["dense"], numbers[found.train.index])


def test_a_file_that_is_split_has_both_parts_of_each_array(tmp_path):
    parts = {"data": X, "condition": VECTORS, "test_data": X[:3], "test_condition": VECTORS[:3]}
    found = loaded(tmp_path, {"condition": "condition"}, **parts)
    np.testing.assert_allclose(
        found.units.vector.decode(data.arrays(found.test)["condition"]), VECTORS[:3], rtol=1e-5
    )


def test_classes_stay_numbers_and_images_keep_their_columns(tmp_path):
    """Images of 8 bits that are resized still have their vectors; dense arrays are mirrored too."""
    images = RNG.integers(0, 256, (20, 4, 4, 1)).astype(np.uint8)
    found = loaded(tmp_path, {"dense": "classes"}, data=images, dense=images // 64)
    batch = pipeline.batches(found.train, batch_size=18, flip=True)(0)
    levels = np.rint((batch["image"] + 1) * 127.5).astype(int)
    np.testing.assert_array_equal(levels // 64, batch["dense"])
    np.savez(tmp_path / "set.npz", data=images, condition=VECTORS)
    resized = data.load(
        "arrays", path=str(tmp_path / "set.npz"), image_size=2, condition="condition"
    )
    rows = data.arrays(resized.train)
    assert rows["image"].shape == (18, 2, 2, 1) and rows["condition"].shape == (18, 2)


def test_a_trained_model_keeps_its_own_units(tmp_path):
    """Of other data the same vector is the same number for the network."""
    found = loaded(tmp_path, data=X, condition=VECTORS, dense=DENSE)
    other = loaded(tmp_path, data=X, condition=2 * VECTORS + 1, dense=DENSE)
    about = {**data_record.description(found), "image_shape": [6, 2], "class_names": []}
    seen = same_run.same_data(tmp_path, about, other, sizes=False)
    assert seen.units == found.units
    units = found.units.vector
    np.testing.assert_allclose(
        units.decode(data.arrays(seen.train)["condition"]),
        other.units.vector.decode(data.arrays(other.train)["condition"]),
        rtol=1e-5,
    )
    with pytest.raises(UserError, match="values of vector 0 are from .*, and were from"):
        same_run.same_data(tmp_path, about, other, sizes=False, values=True)
    fewer = loaded(tmp_path, data=X, condition=VECTORS[:, :1], dense=DENSE)
    with pytest.raises(UserError, match="data.condition has 1 columns, and had 2"):
        same_run.same_data(tmp_path, about, fewer, sizes=False)


def test_changing_the_normalization_is_decoding_and_encoding():
    a, b = (normalization.measure([values], "standard", "float32", "") for values in (X, 3 * X + 1))
    np.testing.assert_allclose(
        normalization.changed(a.encode(X), a, b), b.encode(X), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    "arrays, options, words",
    [
        ({}, BOTH, ["data.condition=condition", "no array 'condition' (N, K)"]),
        (dict(condition=VECTORS[:5]), BOTH, ["'condition' has 5 rows for 20 samples"]),
        (dict(condition=X), BOTH, ["'condition' has shape (20, 6, 2)", "K numbers"]),
        (dict(condition=VECTORS.astype("U")), BOTH, ["real numbers are needed"]),
        (dict(condition=np.full((20, 1), np.nan)), BOTH, ["'condition' has NaN"]),
        (dict(condition=VECTORS), BOTH, ["no array 'dense'", "lowres(4)"]),
        (dict(dense=DENSE[:, :4]), {"dense": "numbers"}, ["(N, 6, K)", "same extents"]),
        (dict(dense=DENSE[..., 0]), {"dense": "numbers"}, ["(20, 6)", "(N, 6, K)"]),
        (dict(dense=DENSE), {"dense": "classes"}, ["float32 (20, 6, 1)", "whole numbers"]),
        (
            dict(condition=VECTORS, test_data=X[:2]),
            {"condition": "condition"},
            ["'condition' has no 'test_condition'"],
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(arrays, options, words, tmp_path):
    with pytest.raises(UserError) as error:
        loaded(tmp_path, options, data=X, **arrays)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value), error.value


def test_other_data_have_no_such_arrays():
    with pytest.raises(UserError, match="data.condition=age is not used by data.name=digits"):
        data.load("digits", condition="age")
    with pytest.raises(UserError, match="data.dense=array is not used by data.name=digits"):
        data.load("digits", dense="numbers")
