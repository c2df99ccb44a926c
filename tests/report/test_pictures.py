"""Image grids show the very pixels they were given. How they look was judged by eye."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageChops

from diffusion_jax.core.errors import UserError
from diffusion_jax.data import transforms
from diffusion_jax.report import layout, pictures


def dark_images(*shape):
    return np.random.default_rng(0).integers(
        0, 200, shape, np.uint8
    )  # no white, so that the paper differs from the images


def on_paper(image):
    """The part of a picture that is not white paper."""
    box = ImageChops.difference(image, Image.new("RGB", image.size, "white")).getbbox()
    return np.asarray(image.crop(box))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_every_pixel_enlarged(channels):
    images = dark_images(5, 4, 6, channels)
    shown = on_paper(pictures.image_grid(images, 3, scale=2))
    first, third, fourth = (image.repeat(2, 0).repeat(2, 1) for image in images[[0, 2, 3]])
    assert (
        (shown[:8, :12] == first).all()
        and (shown[:8, -12:] == third).all()
        and (shown[-8:, :12] == fourth).all()
    )
    assert (shown[-8:, -12:] == 255).all()  # five images leave the sixth place empty


def test_a_grid_by_class_has_a_row_for_each_class_with_its_name(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        pictures, "lay_out", lambda rows, row_labels=None, **how: drawn.append((rows, row_labels))
    )
    images, names = dark_images(9, 4, 4, 1), ["cat", "dog", "any"]
    pictures.grid_by_class(images, [1, 0, 1, 0, 1, 0, 1, 2, 1], names, columns=4, scale=1)
    rows, labels = drawn.pop()
    assert labels == ["dog", "", "cat", "any"] and [len(row) for row in rows] == [4, 1, 3, 1]
    assert [(row[0].tile[..., :1] == images[i]).all() for row, i in zip(rows, (0, 8, 1, 7))] == [
        True
    ] * 4
    pictures.grid_by_class(
        dark_images(30, 4, 4, 3), range(30), [f"class number {i}" for i in range(30)]
    )
    rows, labels = drawn.pop()  # many classes: the names are beneath
    assert (
        labels is None
        and [len(row) for row in rows] == [10] * 3
        and rows[2][9].caption == "class number\n29"
    )


def test_a_grid_of_floating_images_is_the_grid_of_their_bytes():
    images = dark_images(4, 8, 8, 1)
    assert pictures.image_grid(images / np.float32(127.5) - 1, 2) == pictures.image_grid(images, 2)


def test_labels_and_title_stand_outside_the_pictures():
    images = dark_images(4, 8, 8, 1)
    bare = pictures.image_grid(images, 2)
    labeled = pictures.image_grid(
        images,
        2,
        row_labels=["zero", "one"],
        column_labels=[1, 2],
        title="A long title of the grid",
    )
    assert labeled.width > bare.width and labeled.height > bare.height
    tiles, page = on_paper(bare), np.asarray(labeled)
    h, w = tiles.shape[:2]
    places = ((y, x) for y in range(page.shape[0] - h + 1) for x in range(page.shape[1] - w + 1))
    assert any(
        (page[y, x] == tiles[0, 0]).all() and (page[y : y + h, x : x + w] == tiles).all()
        for y, x in places
    )


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 8, 8, 0), (0, 8, 8, 1)])
def test_what_is_no_picture_is_refused(shape):
    with pytest.raises(UserError):
        pictures.image_grid(np.zeros(shape, np.uint8), 2)


def test_a_denoising_strip_goes_from_the_first_step_to_the_last():
    x0_hat = dark_images(31, 2, 8, 8, 1) / np.float32(127.5) - 1
    x_t = 80 * np.random.default_rng(0).standard_normal(x0_hat.shape)
    strip = pictures.denoising_strip(x_t, x0_hat, np.linspace(1, 0, 31), images=2, scale=1)
    assert (
        strip.size
        == pictures.denoising_strip(
            x_t[::3], x0_hat[::3], np.linspace(1, 0, 11), images=2, columns=10, scale=1
        ).size
    )
    last = np.asarray(
        pictures.denoising_strip(
            x_t, x0_hat, np.linspace(1, 0, 31), images=1, columns=1 + 30, scale=1
        )
    )
    final = transforms.to_uint8(x0_hat[-1, 0])
    places = ((y, x) for y in range(last.shape[0] - 7) for x in range(last.shape[1] - 7))
    assert any((last[y : y + 8, x : x + 8] == final).all() for y, x in places)
    with pytest.raises(UserError, match="31, 31, 5"):
        pictures.denoising_strip(x_t, x0_hat, np.zeros(5))


def test_exploding_noise_is_shown_in_its_own_range():
    noise = 80 * np.random.default_rng(0).standard_normal((1, 16, 16, 1))
    shown = transforms.to_uint8(pictures._into_range(noise))
    assert np.isin(shown, (0, 255)).mean() < 0.05
    quiet = np.full((1, 2, 2, 1), 0.5)
    assert (pictures._into_range(quiet) == quiet).all()


def test_pictures_are_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    picture, path = pictures.image_grid(dark_images(1, 8, 8, 1), 1), tmp_path / "a.png"
    pictures.save(picture, path)
    with Image.open(path) as image:
        assert image.size == picture.size
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        pictures.save(None, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_strip_has_a_row_for_each_sampler_and_a_column_for_each_budget(tmp_path):
    tile = pictures.mosaic(dark_images(9, 8, 8, 1), scale=2)
    tiles = {("ddim", 5): tile, ("ddim", 10): tile, ("heun", 10): tile}
    columns = {5: "5 NFE", 10: "10 NFE", None: "adaptive"}
    pictures.strips(tiles, tmp_path / "plain.png", columns=columns)
    pictures.strips(
        tiles,
        tmp_path / "judged.png",
        columns=columns,
        captions={("ddim", 5): "97.3 %"},
        note="beneath: a number",
    )
    with Image.open(tmp_path / "plain.png") as plain, Image.open(tmp_path / "judged.png") as judged:
        page, height = np.asarray(plain), judged.height
        assert height > plain.height  # the numbers beneath
    h, w = tile.shape[:2]
    found = [
        (y, x)
        for y in range(page.shape[0] - h + 1)
        for x in range(page.shape[1] - w + 1)
        if (page[y, x] == tile[0, 0]).all() and (page[y : y + h, x : x + w] == tile).all()
    ]
    assert len(found) == 3 and len({y for y, _ in found}) == 2 and len({x for _, x in found}) == 2


def test_what_belongs_to_no_column_stands_above_the_headings(tmp_path):
    red, green = [200, 0, 0], [0, 200, 0]
    tile, real = (np.full((20, 30, 3), color, np.uint8) for color in (red, green))
    pictures.strips(
        {("ddim", 5): tile},
        tmp_path / "a.png",
        columns={5: "5 NFE"},
        above={"real data": real, "exact": real},
        captions={("ddim", 5): "one\ntwo\nthree"},
    )
    pictures.strips(
        {("ddim", 5): tile}, tmp_path / "b.png", columns={5: "5 NFE"}, captions={("ddim", 5): "one"}
    )
    with Image.open(tmp_path / "a.png") as picture, Image.open(tmp_path / "b.png") as shorter:
        page = np.asarray(picture)
        assert picture.height == shorter.height + (
            20 + layout.caption_height("real data") + 10
        ) + 2 * (layout.TEXT_SIZE + 4)
    above, below = (np.argwhere((page == color).all(-1)) for color in (green, red))
    assert (
        above[:, 0].max() + layout.TEXT_SIZE < below[:, 0].min()
        and len(above) == 2 * 600
        and len(below) == 600
    )


def test_a_mosaic_holds_the_images_in_rows():
    images = dark_images(5, 4, 6, 1)
    tile = pictures.mosaic(images, 2, scale=1, gap=2)
    assert tile.shape == (10, 22, 3)
    assert (
        (tile[:4, 16:] == images[2]).all()
        and (tile[6:, :6] == images[3]).all()
        and (tile[6:, 16:] == 255).all()
    )


def test_a_density_is_dark_where_the_points_are():
    points = np.concatenate(
        [np.tile([[0.75, 0.75]], (50, 1)), [[-0.75, -0.25], [9.0, 9.0], [np.nan, 0.0]]]
    )
    tile = pictures.density(points, ([-1, -1], [1, 1]), side=8).astype(int).sum(-1)
    assert (
        tile.shape == (8, 8)
        and tile[0:2, 6:8].max() == tile.min()
        and tile[:2, :6].min() == tile.max()
    )  # up is up
    assert tile.min() < tile[4:6, 0:2].min() < tile.max()
    assert (pictures.density(points + 100, ([-1, -1], [1, 1])) == 247).all()


def test_the_verdict_names_what_is_known():
    said = pictures.verdict({"accuracy": 0.973, "frechet": 12.34, "error": 0.002}, "pixels")
    assert said == "recognized 97.3 %\nFréchet distance of pixels 12.3\nRMS error 0.002"
    assert pictures.verdict({"sliced_wasserstein": 0.5}, "") == "sliced Wasserstein 0.5"
    assert (
        pictures.verdict({"frechet": float("nan"), "accuracy": None, "seconds_per_image": 1.0}, "")
        == ""
    )
