"""Folders of images: labels, splits, kinds of files, sizes, unreadable files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from diffusion_jax import data
from diffusion_jax.core.errors import UserError
from diffusion_jax.data import sources
from diffusion_jax.data.folder import decode
from tests.data.sets import values, write_image


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
    """Gray, palette, transparent, 16-bit, turned by EXIF, CMYK: all become the same white-on-black
    squares, upright.
    """
    gray = np.zeros((4, 6), np.uint8)
    gray[:, :2] = 255
    upright = Image.fromarray(gray)
    upright.save(tmp_path / "gray.png")
    upright.convert("P").save(tmp_path / "palette.gif")
    upright.convert("CMYK").save(tmp_path / "cmyk.tif")
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    alpha = np.where(gray[..., None] > 0, np.uint8([9, 9, 9, 0]), np.uint8([0, 0, 0, 255]))
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by a quarter
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    d = data.load("folder", path=str(tmp_path))
    assert d.image_shape == (4, 6, 3)
    images = np.concatenate([data.arrays(d.train)["image"], data.arrays(d.test)["image"]])
    assert len(images) == 6
    np.testing.assert_array_equal(images, np.broadcast_to(gray[..., None], images.shape))
    found = decode(tmp_path / "alpha.png", 0, 4)  # with the opacity, where it is requested
    np.testing.assert_array_equal(found, alpha)


def test_sizes_differ_and_are_fitted(tmp_path):
    write_image(tmp_path / "wide.png", 80, size=(9, 5), mode="L")
    write_image(tmp_path / "tall.jpg", 80, size=(4, 12), mode="L", quality=95)
    d = data.load("folder", path=str(tmp_path), image_size=(4, 8), channels=3)
    assert d.image_shape == (4, 8, 3)
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
    assert caplog.text.count(f"{first:02}.png") == 1  # said once, however often the file is read
    for k in range(30):
        (tmp_path / f"{k:02}.png").unlink(missing_ok=True)
    with pytest.raises(UserError, match="more than data.limit_bad=3 unreadable"):
        for _ in data.prefetch(data.batches(d.train, batch_size=4), 0, 5):
            pass
