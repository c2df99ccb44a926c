"""What a user gets wrong about data is said in one line that names it."""

from __future__ import annotations

import gzip
import importlib.util
import re

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from diffusion_jax import data
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import folder, transforms
from tests.data.sets import write_idx, write_image, write_tfds


def fails(match: str, name: str, **options) -> None:
    with pytest.raises(UserError, match=match) as error:
        data.load(name, **options)
    assert "\n" not in str(error.value)


# ---- names and options ----
def test_unknown_names(tmp_path):
    fails("unknown data set 'mnits'; did you mean 'mnist'.*two_moons.*tensorflow-datasets", "mnits")
    fails(
        "unknown configuration of downsampled_imagenet '31x31'; did you mean '32x32'",
        "downsampled_imagenet/31x31",
    )
    fails("data.name=not a name cannot be used", "not a name", data_dir=str(tmp_path))


@pytest.mark.parametrize("options", [{"image_size": -1}, {"channels": 2}, {"channels": 5}])
def test_impossible_requests(options):
    ((key, value),) = options.items()
    fails(f"data.{key}={value} must be", "digits", **options)


@pytest.mark.parametrize("name", ["folder", "npz", "idx"])
def test_a_path_is_needed(name):
    fails(f"data.name={name} needs data.path", name)


@pytest.mark.parametrize("name", ["digits", "cifar10", "rings"])
def test_a_path_that_would_be_ignored(name):
    fails(f"data.path=/x is not used by data.name={name}", name, path="/x")


@pytest.mark.parametrize(
    "name, options",
    [
        ("digits", {"normalization": "range"}),
        ("digits", {"captions": "a.json"}),
        ("digits", {"limit_bad": 0}),
        ("rings", {"image_size": 8}),
        ("rings", {"channels": 3}),
        ("sound", {"image_size": 8, "path": "/x"}),
    ],
)
def test_a_key_that_would_be_ignored(name, options):
    fails(f"data.{[*options][0]}=.* is not used by data.name={name}, only by", name, **options)


# ---- TFDS ----
def test_a_set_that_is_not_prepared_says_what_to_type(tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: None if n == "tensorflow" else real(n, *a)
    )
    command = re.escape(
        f"tfds.builder('cifar10', data_dir='{tmp_path}', file_format='array_record')"
    )
    fails(
        rf"pip install 'diffusion_jax\[tfds-prepare\]', then python -c .*{command}",
        "cifar10",
        data_dir=str(tmp_path),
    )


def test_a_download_that_fails(tmp_path, monkeypatch):

    def offline(self):
        raise ConnectionError("no route\nto host")

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: n == "tensorflow" or real(n, *a))
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", offline)
    fails(
        r"cifar10 could not be prepared in .*ConnectionError: no route to host",
        "cifar10",
        data_dir=str(tmp_path),
    )


def test_a_data_dir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    fails(
        "digits could not be prepared in .*choose another data.data_dir",
        "digits",
        data_dir=str(tmp_path / "file"),
    )


def test_a_set_prepared_in_another_format(tmp_path):
    write_tfds(str(tmp_path), {"train": [1], "test": [2]})
    info = tmp_path / "blobs" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    fails(
        "blobs.* is not prepared as array_record.*prepare it again", "blobs", data_dir=str(tmp_path)
    )


def test_sets_that_are_not_sets_of_images(tmp_path):

    write_tfds(
        str(tmp_path), {"train": [1]}, features={"caption": tfds.features.Text()}, name="words"
    )
    fails("data.name=words has no feature 'image' .it has caption", "words", data_dir=str(tmp_path))
    write_tfds(str(tmp_path), {"validation": [1]}, name="bare")
    fails("bare.* has no split 'train' .it has validation", "bare", data_dir=str(tmp_path))


# ---- folders ----
def test_folders_without_images(tmp_path):
    fails("nowhere is not a folder", "folder", path=str(tmp_path / "nowhere"))
    fails("holds no images", "folder", path=str(tmp_path))
    (tmp_path / "readme.txt").write_text("words")
    fails("holds no images", "folder", path=str(tmp_path))
    write_image(tmp_path / "only.png", 0)
    fails("holds one example; at least two", "folder", path=str(tmp_path))


def test_images_of_several_sizes(tmp_path):
    write_image(tmp_path / "a.png", 0, size=(4, 4))
    write_image(tmp_path / "b.png", 0, size=(6, 5))
    fails(
        r"several sizes \((a.png is 4x4, b.png 5x6|b.png is 5x6, a.png 4x4)\): set data.image_size",
        "folder",
        path=str(tmp_path),
    )


def test_labels_that_do_not_add_up(tmp_path):
    write_image(tmp_path / "mixed" / "a" / "0.png", 0)
    write_image(tmp_path / "mixed" / "stray.png", 0)
    fails("both in sub-folders and next to them .stray.png", "folder", path=str(tmp_path / "mixed"))
    for part, label in (("train", "a"), ("test", "b")):
        write_image(tmp_path / "split" / part / label / "0.png", 0)
    fails("label 'b' that no train image has", "folder", path=str(tmp_path / "split"))
    write_image(tmp_path / "half" / "train" / "a" / "0.png", 0)
    write_image(tmp_path / "half" / "test" / "0.png", 0)
    fails(
        "train images are in sub-folders .labels., the test images are not",
        "folder",
        path=str(tmp_path / "half"),
    )
    write_image(tmp_path / "case" / "train" / "Cat" / "0.png", 0)
    write_image(tmp_path / "case" / "test" / "cat" / "0.png", 0)
    fails(
        "label 'cat' that no train image has .there is Cat.", "folder", path=str(tmp_path / "case")
    )
    write_image(tmp_path / "empty" / "train" / "0.png", 0)
    (tmp_path / "empty" / "val").mkdir()
    fails("val holds no images", "folder", path=str(tmp_path / "empty"))


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"not a picture"])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_corrupt_images(tmp_path, suffix, damage):
    noise = np.random.default_rng(0).integers(256, size=(32, 32, 3)).astype(np.uint8)
    for k in range(4):
        Image.fromarray(noise).save(tmp_path / f"{k}{suffix}")
    for k in range(2):
        file = tmp_path / f"{k}{suffix}"
        file.write_bytes(damage(file.read_bytes()))
    fails(
        rf"more than data.limit_bad=1 unreadable images: .*[01]\{suffix}",
        "folder",
        path=str(tmp_path),
    )
    fails(
        rf"more than data.limit_bad=0 unreadable images: .*[01]\{suffix}",
        "folder",
        path=str(tmp_path),
        limit_bad=0,
    )


def test_a_split_without_one_readable_image(tmp_path):
    for k in range(9):
        write_image(tmp_path / "train" / f"{k}.png", k)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "0.png").write_text("no image")
    fails("no image of the test split is readable", "folder", path=str(tmp_path))
    noise = np.random.default_rng(0).integers(256, size=(4, 6, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "test" / "0.png")
    whole = (tmp_path / "test" / "0.png").read_bytes()
    (tmp_path / "test" / "0.png").write_bytes(whole[:80])  # the header is whole, the pixels are not
    fails("no image of a split is readable", "folder", path=str(tmp_path))


@pytest.mark.parametrize("total, limit", [(4, 1), (50, 5), (5000, 100)])
def test_the_default_limit_is_a_tenth_within_bounds(total, limit):
    assert folder.default_limit(total) == limit


# ---- idx ----
@pytest.fixture
def idx_folder(tmp_path):
    for part in ("train", "t10k"):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", np.zeros((3, 4, 4)))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", np.arange(3))
    data.load("mnist", path=str(tmp_path))  # good as it is
    return tmp_path


def test_idx_files_that_are_missing(tmp_path, idx_folder):
    fails("nowhere is not a folder", "mnist", path=str(tmp_path / "nowhere"))
    (idx_folder / "t10k-labels-idx1-ubyte.gz").unlink()
    fails("no file t10k-labels-idx1-ubyte", "mnist", path=str(idx_folder))


@pytest.mark.parametrize(
    "damage, match",
    [
        (lambda raw: raw[:-12], "truncated or corrupt"),
        (lambda raw: b"<html>not found</html>", "truncated or corrupt"),
        (
            lambda raw: gzip.compress(gzip.decompress(raw)[:-5]),
            r"truncated or corrupt: 43 bytes for \(3, 4, 4\)",
        ),
        (lambda raw: gzip.compress(gzip.decompress(raw)[:9]), "not an idx file"),
        (
            lambda raw: gzip.compress(b"\0\0\x0d\3" + gzip.decompress(raw)[4:]),
            "not an idx file of unsigned bytes",
        ),
        (lambda raw: raw[:20] + bytes([raw[20] ^ 255]) + raw[21:], "truncated or corrupt"),
    ],
)
def test_idx_files_that_are_damaged(idx_folder, damage, match):
    file = idx_folder / "train-images-idx3-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    fails(f"train-images-idx3-ubyte.gz is {match}", "mnist", path=str(idx_folder))


@pytest.mark.parametrize("shape", [(0, 4, 4), (3, 0, 4)])
def test_idx_files_that_are_empty(idx_folder, shape):
    write_idx(idx_folder / "train-images-idx3-ubyte.gz", np.zeros(shape))
    write_idx(idx_folder / "train-labels-idx1-ubyte.gz", np.zeros(shape[:1]))
    fails("is empty: its shape is", "mnist", path=str(idx_folder))


@pytest.mark.parametrize("name", ["folder", "npz", "idx", "latents"])
def test_a_path_of_a_user_who_does_not_exist(name):
    fails("data.path=~nobody-at-all/x (is not|does not)", name, path="~nobody-at-all/x")


def test_idx_files_that_do_not_match(idx_folder):
    write_idx(idx_folder / "t10k-labels-idx1-ubyte.gz", np.array([1, 2]))
    fails(
        "t10k-images.* holds 3 images, but .*t10k-labels.* 2 labels", "mnist", path=str(idx_folder)
    )
    write_idx(idx_folder / "t10k-labels-idx1-ubyte.gz", np.array([1, 10, 2]))
    fails(r"test image 1 has label 10, outside 0\.\.9", "mnist", path=str(idx_folder))


# ---- npz ----
IMAGES = np.zeros((4, 2, 2), np.uint8)


@pytest.mark.parametrize(
    "match, content",
    [
        ("holds pictures; it should hold 'images'", {"pictures": IMAGES}),
        ("holds nothing", {}),
        (
            r"'images': 4 images have float32 values from 0 to 0.*value_range=\(0, 1\)",
            {"images": IMAGES.astype(np.float32)},
        ),
        (
            r"'images': 4 images have uint16 values from 0 to 0.*save them as uint8",
            {"images": IMAGES.astype(np.uint16)},
        ),
        (
            "'images' is complex64; save the images as uint8",
            {"images": IMAGES.astype(np.complex64)},
        ),
        (r"'images' has shape \(4, 2\)", {"images": IMAGES[:, 0]}),
        (r"'images' has shape \(4, 3, 8, 8\)", {"images": np.zeros((4, 3, 8, 8), np.uint8)}),
        ("holds one example; at least two", {"images": IMAGES[:1]}),
        (r"'labels' is float64 \(4,\); 4 integers", {"images": IMAGES, "labels": np.zeros(4)}),
        (
            r"'labels' is int64 \(3,\); 4 integers",
            {"images": IMAGES, "labels": np.zeros(3, np.int64)},
        ),
        (r"image \d has label -1, outside 0..0", {"images": IMAGES, "labels": np.full(4, -1)}),
        (
            r"test image 1 has label 3, outside 0..1",
            {
                "x_train": IMAGES,
                "y_train": np.array([0, 1, 0, 1]),
                "x_test": IMAGES,
                "y_test": np.array([0, 3, 1, 9]),
            },
        ),
        (
            "labels for one of train and test only",
            {"x_train": IMAGES, "y_train": np.zeros(4, int), "x_test": IMAGES},
        ),
        ("set data.image_size", {"x_train": IMAGES, "x_test": np.zeros((4, 3, 3), np.uint8)}),
        ("cannot be read as an .npz of plain arrays", {"images": np.array([{}, {}], object)}),
    ],
)
def test_npz_files_that_do_not_fit(tmp_path, match, content):
    np.savez(tmp_path / "d.npz", **content)
    fails(match, "npz", path=str(tmp_path / "d.npz"))


def test_labels_beyond_the_number_of_classes(tmp_path):
    np.savez(tmp_path / "d.npz", images=IMAGES, labels=np.full(4, 7))
    fails(r"has label 7, outside 0\.\.4", "npz", path=str(tmp_path / "d.npz"), num_classes=5)


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:100], lambda raw: b"", lambda raw: b"PK\3\4 no zip"]
)
def test_npz_files_that_are_damaged(tmp_path, damage):
    file = tmp_path / "d.npz"
    fails("is not a file", "npz", path=str(file))
    np.savez(file, images=IMAGES)
    file.write_bytes(damage(file.read_bytes()))
    fails("d.npz cannot be read as an .npz", "npz", path=str(file))


def test_a_plain_npy_is_not_an_npz(tmp_path):
    np.save(tmp_path / "d.npy", IMAGES)
    fails("d.npy cannot be read as an .npz", "npz", path=str(tmp_path / "d.npy"))


# ---- formats ----
def test_pictures_are_opened_in_listed_formats_alone(tmp_path):
    """The name of a file does not matter: EPS would start Ghostscript, and FITS has no bound."""
    for k in range(12):
        write_image(tmp_path / f"{k}.png", k)
    Image.new("RGB", (6, 4)).save(tmp_path / "bad.png", "EPS")
    with (
        pytest.raises(transforms.UnreadableImage, match="cannot identify") as failure,
        transforms.open_image(tmp_path / "bad.png"),
    ):
        pass
    assert isinstance(failure.value.__cause__, OSError)
    fails("limit_bad=0 unreadable images: .*bad.png", "folder", path=str(tmp_path), limit_bad=0)
    assert not {"EPS", "PDF", "FITS", "WMF", "PSD"} & set(transforms.FORMATS)
    assert {".jpg", ".jfif", ".jpe", ".tga", ".jp2", ".png", ".mpo"} <= transforms.endings()
    assert not {".eps", ".ps", ".pdf", ".h5", ".fits"} & transforms.endings()
    (tmp_path / "bare").write_bytes((tmp_path / "0.png").read_bytes())
    with transforms.open_image(tmp_path / "bare") as image:  # the content decides, not the name
        assert image.format == "PNG"
