"""Batches are a pure function of (seed, step); sets are read as they are; splits are disjoint."""

from __future__ import annotations

import gzip
import multiprocessing
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from diffusion_jax import data
from diffusion_jax.data import sources, toys, transforms
from diffusion_jax.data.sources import Arrays
from diffusion_jax.errors import UserError


def numbered(n: int, channels: int = 1) -> Arrays:
    """n images 2 x 3 in which image i is recognisable: its label is i, its left column i, the rest
    0.
    """
    image = np.zeros((n, 2, 3, channels), np.uint8)
    image[:, :, 0] = np.arange(n)[:, None, None]
    return Arrays(image, np.arange(n))


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> data.Dataset:
    return data.load("digits", data_dir=str(tmp_path_factory.mktemp("tfds")))


# ---- batches ----
@pytest.mark.parametrize("size, batch_size", [(10, 4), (10, 10), (3, 8), (1, 4)])
def test_every_epoch_holds_each_example_once(size, batch_size):
    batch = data.batches(numbered(size), batch_size=batch_size, seed=3)
    steps = 5 * size // np.gcd(size, batch_size)
    order = np.concatenate([batch(s)["label"] for s in range(steps)])
    epochs = order[: len(order) // size * size].reshape(-1, size)
    assert (np.sort(epochs, axis=1) == np.arange(size)).all()
    assert (
        size == 1 or len({tuple(e) for e in epochs}) >= 4
    )  # reshuffled (of three examples there are six orders)


def test_order_depends_on_seed_and_epoch():
    first = [
        data.batches(numbered(50), batch_size=50, seed=s)(e)["label"].tolist()
        for s in range(3)
        for e in range(3)
    ]
    assert len(set(map(tuple, first))) == 9


def test_batch_is_a_pure_function_of_the_step():
    options = dict(batch_size=8, seed=5, flip=True)
    straight = [data.batches(numbered(20), **options)(s) for s in range(12)]
    once = data.batches(numbered(20), **options)
    for s in (11, 3, 7, 3, 0):  # any order, again and again, and from a fresh start
        for key in ("image", "label"):
            np.testing.assert_array_equal(once(s)[key], straight[s][key])


def test_a_batch_may_be_changed_without_changing_the_data():
    source = numbered(4)
    batch = data.batches(source, batch_size=4, flip=True)
    batch(0)["image"][:] = 7
    np.testing.assert_array_equal(source.columns["image"], numbered(4).columns["image"])


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batch_of_one(processes):
    whole = data.batches(numbered(10), batch_size=8, seed=1, flip=True)
    parts = [
        data.batches(
            numbered(10), batch_size=8, seed=1, flip=True, process_index=p, process_count=processes
        )
        for p in range(processes)
    ]
    for step in (0, 1, 6):
        for key, value in whole(step).items():
            np.testing.assert_array_equal(
                np.concatenate([part(step)[key] for part in parts]), value
            )


def test_flip_mirrors_half_of_the_examples_anew_each_epoch():
    size = 200
    batch = data.batches(numbered(size, channels=3), batch_size=size, flip=True)
    mirrored = []
    for epoch in (0, 1):
        b = batch(epoch)
        value = b["label"] / 127.5 - 1
        right = np.isclose(b["image"][:, :, 2], value[:, None, None], atol=1e-6).all((1, 2))
        left = np.isclose(b["image"][:, :, 0], value[:, None, None], atol=1e-6).all((1, 2))
        assert (left ^ right)[b["label"] > 0].all()
        mirrored.append(right[np.argsort(b["label"])][1:])
    assert 70 < mirrored[0].sum() < 130  # 100 expected, standard deviation 7
    assert 70 < (mirrored[0] != mirrored[1]).sum() < 130


def test_values_and_types():
    image = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    b = data.batches(Arrays(image, np.array([3])), batch_size=2)(0)
    assert (
        b["image"].dtype == np.float32
        and b["label"].dtype == np.int32
        and b["image"].shape == (2, 16, 16, 1)
    )
    np.testing.assert_allclose(b["image"][0].ravel(), np.linspace(-1, 1, 256), atol=1e-6)
    assert np.abs(b["image"]).max() <= 1
    assert "label" not in data.batches(Arrays(image), batch_size=1)(0)


@pytest.mark.parametrize("batch_size", [0, -4, 6])
def test_batch_size_must_divide(batch_size):
    with pytest.raises(
        UserError, match=f"batch_size={batch_size} must be a positive multiple .* 4"
    ):
        data.batches(numbered(4), batch_size=batch_size, process_count=4)


def test_refuses_a_negative_seed_and_mirrored_points():
    with pytest.raises(UserError, match="seed=-1"):
        data.batches(numbered(4), batch_size=2, seed=-1)
    with pytest.raises(UserError, match="flip"):
        data.batches(data.load("rings").train, batch_size=2, flip=True)


def test_lazy_and_cached_sources_agree_with_arrays():
    plain, reads = numbered(40), []

    def example(i: int) -> dict:
        reads.append(i)
        return plain[i]

    lazy, cached = sources.Lazy(40, example), sources.Cached(sources.Lazy(40, example))
    assert not reads  # nothing is read before it is asked for
    index = np.array([7, 0, 39, 7])
    for source in (lazy, cached, cached):
        assert len(source) == 40 and source[5]["label"] == 5
        for key, value in source.rows(index).items():
            np.testing.assert_array_equal(value, plain.rows(index)[key])
    assert len(reads) == 5 + 40  # once each by the cache, five by the lazy source


# ---- arrays, sequential, prefetch ----
def test_arrays_are_the_split_in_order():
    a = data.arrays(numbered(7))
    assert a["image"].dtype == np.uint8 and a["label"].tolist() == list(range(7))
    assert data.arrays(numbered(7), limit=3)["label"].tolist() == [0, 1, 2]
    assert data.arrays(numbered(7), limit=99)["image"].shape == (7, 2, 3, 1)


@pytest.mark.parametrize(
    "size, expected", [(7, [[0, 1, 2], [3, 4, 5]]), (6, [[0, 1, 2], [3, 4, 5]]), (2, [[0, 1, 0]])]
)
def test_sequential_gives_full_batches_in_order(size, expected):
    assert [b["label"].tolist() for b in data.sequential(numbered(size), 3)] == expected


def test_sequential_is_sharded_like_batches():
    parts = [
        list(data.sequential(numbered(9), 4, process_index=p, process_count=2)) for p in (0, 1)
    ]
    assert [b["label"].tolist() for b in parts[0]] == [[0, 1], [4, 5]]
    assert [b["label"].tolist() for b in parts[1]] == [[2, 3], [6, 7]]


def test_prefetch_runs_ahead_in_order_and_stops():
    assert list(data.prefetch(lambda s: s * s, 3, 7, put=str)) == [
        (3, "9"),
        (4, "16"),
        (5, "25"),
        (6, "36"),
    ]
    assert list(data.prefetch(lambda s: None, 3, 5)) == [(3, None), (4, None)]
    computed = []
    ahead = data.prefetch(
        lambda s: s, 0, depth=2, put=computed.append
    )  # put, too, while the consumer is busy with another
    next(ahead)
    deadline = threading.Event()
    while len(computed) < 4 and not deadline.wait(
        0.01
    ):  # one taken, two ready, one waiting for room
        pass
    deadline.wait(0.1)
    assert computed == [0, 1, 2, 3]
    ahead.close()


def test_prefetch_passes_the_error_on_at_its_step():
    def batch(step: int) -> int:
        if step == 2:
            raise FileNotFoundError("gone.png")
        return step

    seen = []
    with pytest.raises(FileNotFoundError, match="gone.png"):
        for step, _ in data.prefetch(batch, 0, 9, depth=4):
            seen.append(step)
    assert seen == [0, 1]


def test_closing_prefetch_ends_its_thread():
    before = set(threading.enumerate())
    iterator = data.prefetch(lambda s: s, 0)
    next(iterator)
    (thread,) = set(threading.enumerate()) - before
    assert thread.daemon
    iterator.close()
    assert not thread.is_alive()


def test_workers_give_the_same_batches_in_the_same_order(tmp_path):
    """Of a set that is read as needed, from files, with labels and flips; and they are gone
    afterwards.
    """
    for k in range(12):
        write_image(tmp_path / "ab"[k % 2] / f"{k}.png", (k, 2 * k, 0))
    d = data.load("folder", path=str(tmp_path))
    batch = data.batches(
        sources.Cached(sources.Lazy(len(d.train), d.train.__getitem__)),
        batch_size=4,
        seed=2,
        flip=True,
    )
    before = set(multiprocessing.active_children())
    ahead = list(data.prefetch(batch, 3, 8, workers=2, put=lambda b: b | {"placed": True}))
    assert [step for step, _ in ahead] == [3, 4, 5, 6, 7] and set(
        multiprocessing.active_children()
    ) <= before
    for step, found in ahead:
        assert found.pop("placed")
        for key, value in batch(step).items():
            np.testing.assert_array_equal(found[key], value)


def test_errors_of_workers_come_here_and_a_dead_worker_is_said():
    """One worker raises at step 4; another kills itself, as the kernel does where memory is short."""

    def batch(step: int) -> dict:
        if step == 4:
            raise UserError("data.path=x: no more")
        return {"step": np.full(3, step)}

    def dying(step: int) -> dict:
        if step == 1:
            os.kill(os.getpid(), 9)
        return {"step": np.full(3, step)}

    seen = []
    with pytest.raises(UserError, match="data.path=x: no more"):
        for step, found in data.prefetch(batch, 2, 9, workers=1):
            seen.append((step, found["step"].tolist()))
    assert seen == [(2, [2] * 3), (3, [3] * 3)]
    with pytest.raises(
        UserError,
        match=r"worker died before step \d \(.*exit code -9\); is memory short\? use fewer",
    ):
        list(data.prefetch(dying, 0, 9, workers=1))


# ---- the embedded digits ----
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
    code = "from diffusion_jax import data; print(len(data.load(data_dir=%r).train))" % str(
        tmp_path / "tfds"
    )
    command = [sys.executable, "-c", code]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for process in [subprocess.Popen(command, **pipes) for _ in range(2)]:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out, err) == (0, "1500\n", "")


# ---- TFDS sets by name ----
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


def test_an_unlabelled_tfds_set():

    with tfds.testing.mock_data(num_examples=2):
        d = data.load("celeb_a", image_size=16)
        assert d.num_classes == 0 and d.image_shape == (16, 16, 3) and set(d.train[0]) == {"image"}


def write_tfds(
    data_dir: str,
    splits: dict[str, np.ndarray],
    features=None,
    file_format="array_record",
    name="blobs",
):
    """A prepared TFDS set on disk whose image i is filled with the number given for it, and
    labelled by it.
    """

    features = features or {
        "image": tfds.features.Tensor(shape=(2, 2, 1), dtype=np.uint8),
        "label": tfds.features.ClassLabel(names=["dark", "light"]),
    }

    class Writer(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(numbers) for split, numbers in splits.items()}

        def _generate_examples(self, numbers):
            for i, n in enumerate(numbers):
                example = {
                    "image": np.full((2, 2, 1), n, np.uint8),
                    "label": int(n) % 2,
                    "caption": "x",
                }
                yield i, {k: v for k, v in example.items() if k in features}

    Writer.name = name
    Writer(data_dir=data_dir, file_format=file_format).download_and_prepare()


def values(source) -> list[int]:
    return data.arrays(source)["image"][:, 0, 0, 0].tolist()


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


# ---- idx and npz ----
def write_idx(path, array: np.ndarray) -> None:

    raw = (
        bytes([0, 0, 8, array.ndim])
        + np.array(array.shape, ">u4").tobytes()
        + array.astype(np.uint8).tobytes()
    )
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


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


# ---- folders ----
def write_image(path, value, size=(6, 4), mode="RGB", **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path, **kwargs)


def test_a_folder_with_labels(tmp_path):
    for k in range(20):
        write_image(tmp_path / "red" / f"{k}.png", (200, k, 0))
        write_image(tmp_path / "blue" / "deep" / f"{k}.PNG", (0, k, 200))
    (tmp_path / "red" / "notes.txt").write_text("not an image")
    d = data.load("folder", path=str(tmp_path))
    assert (d.image_shape, d.class_names, d.num_classes) == ((4, 6, 3), ("blue", "red"), 2)
    assert len(d.train) + len(d.test) == 40 and len(d.test) >= 1
    pixels = [
        tuple(e["image"][0, 0]) + (e["label"],)
        for s in (d.train, d.test)
        for e in map(s.__getitem__, range(len(s)))
    ]
    expected = [(200, k, 0, 1) for k in range(20)] + [(0, k, 200, 0) for k in range(20)]
    assert sorted(tuple(map(int, p)) for p in pixels) == sorted(expected)


def test_adding_files_moves_none_between_the_splits(tmp_path):
    for k in range(60):
        write_image(tmp_path / f"{k}.png", k, mode="L", size=(1, 1))
    before = data.load("folder", path=str(tmp_path))
    for k in range(60, 120):
        write_image(tmp_path / f"{k}.png", k, mode="L", size=(1, 1))
    after = data.load("folder", path=str(tmp_path))
    assert set(values(before.test)) <= set(values(after.test)) and set(values(before.train)) <= set(
        values(after.train)
    )
    assert (
        before.num_classes == 0
        and before.image_shape == (1, 1, 1)
        and "label" not in before.train[0]
    )
    assert 3 <= len(after.test) <= 25  # 12 expected


@pytest.mark.parametrize("held_out", ["test", "val", "Valid"])
def test_a_folder_that_is_split_already(tmp_path, held_out):
    for k in range(3):
        write_image(tmp_path / "train" / "a" / f"{k}.png", k, mode="L")
        write_image(tmp_path / "train" / "b" / f"{k}.png", 10 + k, mode="L")
    write_image(tmp_path / held_out / "b" / "0.png", 20, mode="L")
    d = data.load("folder", path=str(tmp_path))
    assert (
        values(d.train) == [0, 1, 2, 10, 11, 12]
        and values(d.test) == [20]
        and d.test[0]["label"] == 1
    )


def test_kinds_of_files(tmp_path):
    """Grey, palette, transparent, 16-bit, turned by EXIF, CMYK: all become the same white-on-black
    squares, upright.
    """
    grey = np.zeros((4, 6), np.uint8)
    grey[:, :2] = 255
    upright = Image.fromarray(grey)
    upright.save(tmp_path / "grey.png")
    upright.convert("P").save(tmp_path / "palette.gif")
    upright.convert("CMYK").save(tmp_path / "cmyk.tif")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    alpha = np.where(grey[..., None] > 0, np.uint8([9, 9, 9, 0]), np.uint8([0, 0, 0, 255]))
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by a quarter
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    d = data.load("folder", path=str(tmp_path))
    assert d.image_shape == (4, 6, 3)
    images = np.concatenate([data.arrays(d.train)["image"], data.arrays(d.test)["image"]])
    assert len(images) == 6
    np.testing.assert_array_equal(images, np.broadcast_to(grey[..., None], images.shape))


def test_sizes_differ_and_are_fitted(tmp_path):
    write_image(tmp_path / "wide.png", 80, size=(9, 5), mode="L")
    write_image(tmp_path / "tall.jpg", 80, size=(4, 12), mode="L", quality=95)
    d = data.load("folder", path=str(tmp_path), image_size=4, channels=3)
    assert d.image_shape == (4, 4, 3)
    np.testing.assert_allclose(data.arrays(d.train)["image"], 80, atol=1)


def test_a_few_unreadable_files_are_named_and_skipped(tmp_path, caplog):
    for k in range(20):
        write_image(tmp_path / f"{k:02}.png", k, mode="L")
    (tmp_path / "03.png").write_bytes(
        (tmp_path / "03.png").read_bytes()[:50]
    )  # the header is whole, the pixels are not
    (tmp_path / "04.png").write_text("no image at all")
    with caplog.at_level("WARNING"):
        d = data.load("folder", path=str(tmp_path))
    assert sorted(values(d.train) + values(d.test)) == [k for k in range(20) if k not in (3, 4)]
    assert "03.png" in caplog.text and "04.png" in caplog.text and "02.png" not in caplog.text
    with pytest.raises(UserError, match=r"limit_bad=1 unreadable images: .*0[34]\.png"):
        data.load("folder", path=str(tmp_path), limit_bad=1)


def test_a_large_folder_is_read_as_needed_and_survives_a_lost_file(tmp_path, monkeypatch, caplog):
    for k in range(30):
        write_image(tmp_path / f"{k:02}.png", k, mode="L")
    whole = data.load("folder", path=str(tmp_path))
    monkeypatch.setattr(sources, "MEMORY", 0)
    d = data.load("folder", path=str(tmp_path))
    assert values(d.train) == values(whole.train)
    first, second = values(whole.train)[:2]
    (tmp_path / f"{first:02}.png").unlink()
    with caplog.at_level("WARNING"):
        assert (
            values(d.train)[:2] == [second, second]
            and values(d.train)[2:] == values(whole.train)[2:]
        )
    assert (
        caplog.text.count(f"{first:02}.png") == 1
    )  # said once, however often the file is asked for
    for k in range(30):
        (tmp_path / f"{k:02}.png").unlink(missing_ok=True)
    with pytest.raises(UserError, match="more than data.limit_bad=3 unreadable"):
        for _ in data.prefetch(data.batches(d.train, batch_size=4), 0, 5):
            pass


# ---- transforms ----
def test_resizing_is_antialiased_and_centred():
    fine = (np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)[
        ..., None
    ]  # the finest checkerboard
    small = transforms.fit(fine, 8).astype(int)
    assert small.shape == (8, 8, 1)
    assert (
        np.abs(small - 127.5).max() < 12
    )  # grey; without antialiasing it would stay black or white
    wide = np.random.default_rng(0).integers(256, size=(4, 12, 3)).astype(np.uint8)
    np.testing.assert_array_equal(transforms.fit(wide, 4), wide[:, 4:8])
    shrunk = np.asarray(Image.fromarray(wide).resize((6, 2), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(transforms.fit(wide, 2), shrunk[:, 2:4])


def test_channels():
    red = np.full((2, 2, 3), [255, 0, 0], np.uint8)
    assert (transforms.fit(red, channels=1) == 76).all()  # 0.299 * 255
    grey = np.full((2, 2, 1), 9, np.uint8)
    np.testing.assert_array_equal(transforms.fit(grey, channels=3), np.full((2, 2, 3), 9))
    assert transforms.fit(grey) is grey


# ---- toys ----
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
    centres = np.stack([mode["image"][mode["label"] == k].mean(0) for k in range(8)])
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, atol=0.01)
    board = (data.load("checkerboard").train.columns["image"] + 1) * 2
    assert (np.floor(board).astype(int).sum(1) % 2 == 0).all()
