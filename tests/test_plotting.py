"""Pictures show the very pixels and numbers they were given. How they look was judged by eye."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from PIL import Image, ImageChops

from diffusion_jax import plotting
from diffusion_jax.errors import UserError


def dark_images(*shape):
    return np.random.default_rng(0).integers(
        0, 200, shape, np.uint8
    )  # no white: the paper can be told from the pictures


def on_paper(image):
    """The part of a picture that is not white paper."""
    box = ImageChops.difference(image, Image.new("RGB", image.size, "white")).getbbox()
    return np.asarray(image.crop(box))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_every_pixel_enlarged(channels):
    images = dark_images(5, 4, 6, channels)
    shown = on_paper(plotting.image_grid(images, 3, scale=2))
    first, third, fourth = (image.repeat(2, 0).repeat(2, 1) for image in images[[0, 2, 3]])
    assert (shown[:8, :12] == first).all() and (shown[:8, -12:] == third).all() and (shown[-8:, :12] == fourth).all()
    assert (shown[-8:, -12:] == 255).all()  # five images leave the sixth place empty


def test_a_grid_of_floating_images_is_the_grid_of_their_bytes():
    images = dark_images(4, 8, 8, 1)
    assert plotting.image_grid(images / np.float32(127.5) - 1, 2) == plotting.image_grid(images, 2)


def test_labels_and_title_stand_outside_the_pictures():
    images = dark_images(4, 8, 8, 1)
    bare = plotting.image_grid(images, 2)
    labelled = plotting.image_grid(
        images, 2, row_labels=["zero", "one"], column_labels=[1, 2], title="A long title of the grid"
    )
    assert labelled.width > bare.width and labelled.height > bare.height
    tiles, page = on_paper(bare), np.asarray(labelled)
    h, w = tiles.shape[:2]
    places = ((y, x) for y in range(page.shape[0] - h + 1) for x in range(page.shape[1] - w + 1))
    assert any((page[y, x] == tiles[0, 0]).all() and (page[y : y + h, x : x + w] == tiles).all() for y, x in places)


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 8, 8, 2), (0, 8, 8, 1)])
def test_what_is_no_picture_is_refused(shape):
    with pytest.raises(UserError):
        plotting.image_grid(np.zeros(shape, np.uint8), 2)


def test_a_denoising_strip_goes_from_the_first_step_to_the_last():
    x0_hat = dark_images(31, 2, 8, 8, 1) / np.float32(127.5) - 1
    x_t = 80 * np.random.default_rng(0).standard_normal(x0_hat.shape)
    strip = plotting.denoising_strip(x_t, x0_hat, np.linspace(1, 0, 31), images=2, scale=1)
    assert (
        strip.size
        == plotting.denoising_strip(x_t[::3], x0_hat[::3], np.linspace(1, 0, 11), images=2, columns=10, scale=1).size
    )
    last = np.asarray(plotting.denoising_strip(x_t, x0_hat, np.linspace(1, 0, 31), images=1, columns=1 + 30, scale=1))
    final = plotting.to_uint8(x0_hat[-1, 0])
    places = ((y, x) for y in range(last.shape[0] - 7) for x in range(last.shape[1] - 7))
    assert any((last[y : y + 8, x : x + 8] == final).all() for y, x in places)
    with pytest.raises(UserError, match="31, 31, 5"):
        plotting.denoising_strip(x_t, x0_hat, np.zeros(5))


def test_exploding_noise_is_shown_in_its_own_range():
    noise = 80 * np.random.default_rng(0).standard_normal((1, 16, 16, 1))
    shown = plotting.to_uint8(plotting._into_range(noise))
    assert np.isin(shown, (0, 255)).mean() < 0.05
    quiet = np.full((1, 2, 2, 1), 0.5)
    assert (plotting._into_range(quiet) == quiet).all()


def test_pictures_are_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    picture, path = plotting.image_grid(dark_images(1, 8, 8, 1), 1), tmp_path / "a.png"
    plotting.save(picture, path)
    with Image.open(path) as image:
        assert image.size == picture.size
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        plotting.save(None, path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_samplers_side_by_side(tmp_path):
    images = {
        ("ddim", 5): dark_images(9, 8, 8, 1),
        ("ddim", 10): dark_images(9, 8, 8, 1),
        ("heun", 10): dark_images(9, 8, 8, 1),
    }
    plain, judged = tmp_path / "plain.png", tmp_path / "judged.png"
    plotting.sampler_comparison(images, [], plain)
    table = [
        {"sampler": "ddim", "nfe": 5, "accuracy": 0.97, "frechet": None},
        {"sampler": "heun", "nfe": 10, "frechet": 1.5},
    ]
    plotting.sampler_comparison(images, table, judged)
    with Image.open(plain) as a, Image.open(judged) as b:
        assert b.height > a.height  # the numbers beneath


def test_the_verdict_names_what_is_known():
    assert (
        plotting._verdict({"accuracy": 0.973, "frechet": 12.34, "seconds_per_image": 0.002})
        == "97.3 %  ·  12.3  ·  2 ms"
    )
    assert plotting._verdict({"frechet": float("nan"), "accuracy": None}) == ""


@pytest.fixture
def drawn(monkeypatch):
    """The axes that a function draws on, kept for inspection after the file is written."""
    kept = []
    figure = plotting._figure

    @contextlib.contextmanager
    def keep(*args, **kwargs):
        with figure(*args, **kwargs) as axes:
            kept.extend(axes)
            yield axes

    monkeypatch.setattr(plotting, "_figure", keep)
    return kept


def test_loss_curves_from_rows_with_holes(tmp_path, drawn):
    edges = [-4.0, 0.0, 4.0]
    rows = [{"step": i, "images": 10 * i, "loss": 2.0} for i in range(100)] + [{"event": "saved"}]
    rows[50] |= {"eval_loss": 1.5, "loss_by_level": [3.0, None], "level_edges": edges}
    rows[60] |= {"eval_loss": 1.25, "loss_by_level": [1.0, 0.5], "level_edges": edges}
    rows[70]["loss"] = None
    plotting.loss_curve(rows, tmp_path / "loss.png", title="a run")
    loss, levels = drawn
    raw, smooth, held = loss.lines
    assert len(raw.get_xdata()) == 99 and (smooth.get_ydata() == 2.0).all()
    assert held.get_xdata().tolist() == [500, 600] and held.get_ydata().tolist() == [1.5, 1.25]
    assert loss.get_xlabel() == "images seen"
    early, late = levels.lines
    assert early.get_xdata().tolist() == [-2.0, 2.0] and early.get_ydata()[0] == 3.0 and np.isnan(early.get_ydata()[1])
    assert late.get_ydata().tolist() == [1.0, 0.5]
    with Image.open(tmp_path / "loss.png") as image:
        assert image.width > 1000


def test_a_loss_curve_by_step_alone_and_of_nothing(tmp_path, drawn):
    plotting.loss_curve([{"step": 3, "loss": 1.0}], tmp_path / "a.png")
    plotting.loss_curve([], tmp_path / "b.png")
    assert drawn[0].get_xlabel() == "training step" and len(drawn) == 2


def test_smoothing_keeps_a_line_straight_and_calms_noise():
    noise = np.random.default_rng(0).standard_normal(6000)
    assert plotting._smooth(noise)[1000:-1000].std() < 0.1
    line = np.arange(600.0)
    np.testing.assert_allclose(plotting._smooth(line)[:590], line[:590])


def test_quality_curves_are_sorted_named_and_in_percent(tmp_path, drawn):
    table = [
        {"sampler": "ddim", "nfe": 20, "accuracy": 0.9, "frechet": 1.0},
        {"sampler": "ddim", "nfe": 5, "accuracy": 0.5, "frechet": 9.0},
        {"sampler": "heun", "nfe": 20, "accuracy": 0.95, "frechet": None},
        {"sampler": "heun", "nfe": 5, "accuracy": 0.6},
    ]
    plotting.quality_curves(table, tmp_path / "a.png")
    accuracy, distance = drawn
    assert [line.get_xdata().tolist() for line in accuracy.lines] == [[5, 20], [5, 20]]
    np.testing.assert_allclose(accuracy.lines[0].get_ydata(), [50, 90])
    assert {text.get_text() for text in accuracy.texts} == {"ddim", "heun"} and [
        t.get_text() for t in distance.texts
    ] == ["ddim"]
    assert accuracy.get_xscale() == distance.get_yscale() == "log" and accuracy.get_yscale() == "linear"
    with pytest.raises(UserError, match="none of the metrics"):
        plotting.quality_curves([{"sampler": "ddim", "nfe": 5}], tmp_path / "b.png")


def test_names_are_moved_apart_no_more_than_needed():
    assert plotting._apart([0, 50, 100], 10, 0, 100) == [0, 50, 100]
    assert plotting._apart([50, 50, 52, 90], 10, 0, 100) == pytest.approx(
        [50.667 - 10, 50.667, 50.667 + 10, 90], abs=1e-3
    )
    assert plotting._apart([99, 100, 100], 10, 0, 100) == [80, 90, 100]
    assert plotting._apart([0, 0, 12], 10, 0, 100) == [0, 10, 20]


def test_points_beside_their_data(tmp_path, drawn):
    data = np.random.default_rng(0).standard_normal((50, 2))
    plotting.points(data, {"ddim": data + 1, "heun": data}, tmp_path / "a.png")
    assert [axis.get_title(loc="left") for axis in drawn] == ["data", "ddim", "heun"]
    assert drawn[0].get_xlim() == drawn[1].get_xlim()
    np.testing.assert_allclose(drawn[1].collections[0].get_offsets(), data + 1)
