"""Data sets by name: the embedded digits, TFDS sets, idx and npz files, toys."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from diffusion_jax import data
from diffusion_jax.data import toys
from tests.data.sets import values, write_idx, write_tfds


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> data.Dataset:
    return data.load("digits", data_dir=str(tmp_path_factory.mktemp("tfds")))


def test_digits_are_whole_disjoint_and_full_range(digits):

    train, test = data.arrays(digits.train), data.arrays(digits.test)
    assert (
        digits.image_shape == (8, 8, 1)
        and digits.num_classes == 10
        and digits.class_names == tuple("0123456789")
    )
    assert (len(train["label"]), len(test["label"])) == (1500, 297)
    assert train["image"].max() == 255 and train["image"].min() == 0
    real = load_digits()
    ours = np.concatenate([train["image"], test["image"]]).reshape(-1, 64) / 255 * 16
    together = np.concatenate(
        [np.round(ours), np.concatenate([train["label"], test["label"]])[:, None]], axis=1
    )
    expected = np.concatenate([real.data, real.target[:, None]], axis=1)
    assert sorted(map(tuple, together)) == sorted(
        map(tuple, expected)
    )  # each of the 1,797 in exactly one split
    assert set(np.bincount(test["label"])) <= {29, 30}  # stratified: 29.7 each


def test_digits_are_prepared_in_silence_and_by_two_processes_at_once(tmp_path):
    folder = str(tmp_path / "tfds")
    code = f"from diffusion_jax import data; print(len(data.load(data_dir={folder!r}).train))"
    command = [sys.executable, "-c", code]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for process in [subprocess.Popen(command, **pipes) for _ in range(2)]:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out, err) == (0, "1500\n", "")


@pytest.mark.parametrize("name, shape", [("mnist", (28, 28, 1)), ("cifar10", (32, 32, 3))])
def test_a_tfds_set_by_name(name, shape):

    with tfds.testing.mock_data(num_examples=5):
        d = data.load(name)
        resized = data.load(name, image_size=8, channels=1)
        b = data.batches(d.train, batch_size=8)(0)
        assert (d.image_shape, d.num_classes, len(d.train)) == (shape, 10, 5)
        assert b["image"].shape == (8, *shape) and b["label"].shape == (8,)
        assert data.arrays(resized.test)["image"].shape == (5, 8, 8, 1) and resized.image_shape == (
            8,
            8,
            1,
        )


def test_an_unlabeled_tfds_set():

    with tfds.testing.mock_data(num_examples=2):
        d = data.load("celeb_a", image_size=16)
        assert d.num_classes == 0 and d.image_shape == (16, 16, 3) and set(d.train[0]) == {"image"}


@pytest.mark.parametrize(
    "splits, test",
    [
        ({"test": [4], "validation": [5]}, [4]),
        ({"validation": [5]}, [5]),
        ({"unlabelled": [5]}, None),
    ],
)
def test_a_prepared_set_and_its_held_out_split(tmp_path, splits, test):
    write_tfds(str(tmp_path), splits | {"train": list(range(20))})
    d = data.load("blobs", data_dir=str(tmp_path))
    if test:
        assert sorted(values(d.train)) == list(range(20)) and values(d.test) == test
    else:  # a tenth of train is held out (TFDS itself has shuffled the records)
        assert sorted(values(d.train) + values(d.test)) == list(range(20)) and len(d.test) == 2
    assert d.class_names == ("dark", "light") and d.image_shape == (2, 2, 1)
    assert data.arrays(d.train)["label"].tolist() == [n % 2 for n in values(d.train)]


def test_the_data_dir_comes_from_the_environment(tmp_path, monkeypatch):
    write_tfds(str(tmp_path), {"train": [1], "test": [2]})
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert values(data.load("blobs").test) == [2]


@pytest.fixture
def idx_folder(tmp_path):
    rng = np.random.default_rng(0)
    for part, n in (("train", 6), ("t10k", 3)):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", rng.integers(256, size=(n, 4, 5)))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", np.arange(n))
    return tmp_path


def test_idx_files(idx_folder):
    d = data.load("mnist", path=str(idx_folder))
    image = np.random.default_rng(0).integers(256, size=(6, 4, 5))
    np.testing.assert_array_equal(data.arrays(d.train)["image"][..., 0], image)
    assert (d.image_shape, d.num_classes, d.class_names[3]) == ((4, 5, 1), 10, "3")
    assert data.load("fashion_mnist", path=str(idx_folder)).class_names[9] == "Ankle boot"
    assert data.load("idx", path=str(idx_folder)).num_classes == 6
    big = data.load("idx", path=str(idx_folder), image_size=8, channels=3, num_classes=7)
    assert big.image_shape == (8, 8, 3) and big.num_classes == 7
    b = data.batches(big.train, batch_size=2)(0)["image"]
    assert b.shape == (2, 8, 8, 3) and (b[..., 0] == b[..., 2]).all()


@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
    ],
)
def test_npz_with_two_splits(tmp_path, names):
    image, label = np.zeros((4, 3, 3), np.uint8), np.array([[0], [1], [2], [1]])
    np.savez(tmp_path / "d.npz", **dict(zip(names, (image, label, image[:2] + 1, label[:2]))))
    d = data.load("npz", path=str(tmp_path / "d.npz"))
    assert (d.image_shape, d.num_classes, len(d.train), len(d.test)) == ((3, 3, 1), 3, 4, 2)
    assert d.train[2]["label"] == 2 and values(d.test) == [1, 1]


@pytest.mark.parametrize("keys", [("images", "labels"), ("arr_0", "arr_1"), ("images",)])
def test_npz_with_one_split_holds_out_a_tenth(tmp_path, keys):
    each = np.arange(30) // 2  # two of each class, of which one may be held out
    image = each.astype(np.uint8).reshape(30, 1, 1, 1) * np.ones((1, 2, 2, 3), np.uint8)
    np.savez(tmp_path / "d.npz", **dict(zip(keys, (image, each))))
    d = data.load("npz", path=str(tmp_path / "d.npz"), num_classes=30)
    assert len(d.test) == 3 and sorted(values(d.train) + values(d.test)) == each.tolist()
    assert values(d.test) == values(
        data.load("npz", path=str(tmp_path / "d.npz"), num_classes=30, seed=1).test
    )
    assert d.num_classes == (30 if len(keys) == 2 else 0)
    assert len(keys) == 1 or data.arrays(d.test)["label"].tolist() == values(d.test)


@pytest.mark.parametrize("name", sorted(toys.TOYS))
def test_toys(name):
    d, again, other = (data.load(name, seed=s) for s in (1, 1, 2))
    points = d.train.columns["image"]
    assert points.shape == (50_000, 2) and points.dtype == np.float32 and len(d.test) == 10_000
    np.testing.assert_array_equal(points, again.train.columns["image"])
    assert not np.isin(points[:, 0], other.train.columns["image"][:, 0]).all()
    assert (
        np.isin(d.test.columns["image"][:, 0], points[:, 0]).mean() < 0.05
    )  # drawn apart (float32 ties aside)
    assert (
        np.abs(points).max() < 2 and 0.3 < points.std() < 1 and np.abs(points.mean(0)).max() < 0.02
    )
    labels = d.train.columns.get("label")
    assert (labels is None) == (d.num_classes == 0)
    assert labels is None or set(labels) == set(range(d.num_classes))
    b = data.batches(d.train, batch_size=4)(0)["image"]
    assert b.shape == (4, 2) and np.isin(b[:, 0], points[:, 0]).all()  # not scaled


def test_toy_labels_say_where_a_point_is():
    ring = data.load("rings").train.columns
    radius = np.linalg.norm(ring["image"], axis=1)
    np.testing.assert_allclose(
        [radius[ring["label"] == k].mean() for k in range(3)], [1 / 3, 2 / 3, 1], atol=5e-3
    )
    mode = data.load("mixture").train.columns
    centers = np.stack([mode["image"][mode["label"] == k].mean(0) for k in range(8)])
    np.testing.assert_allclose(np.linalg.norm(centers, axis=1), 1, atol=0.01)
    board = (data.load("checkerboard").train.columns["image"] + 1) * 2
    assert (np.floor(board).astype(int).sum(1) % 2 == 0).all()
