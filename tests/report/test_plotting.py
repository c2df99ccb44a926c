"""Pictures show the very pixels and numbers they were given. How they look was judged by eye."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from PIL import Image, ImageChops

from diffusion_jax.data import transforms
from diffusion_jax.errors import UserError
from diffusion_jax.report import curves, pictures


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
        pictures, "_lay_out", lambda rows, row_labels=None, **how: drawn.append((rows, row_labels))
    )
    images, names = dark_images(9, 4, 4, 1), ["cat", "dog", "any"]
    pictures.grid_by_class(images, [1, 0, 1, 0, 1, 0, 1, 2, 1], names, columns=4, scale=1)
    rows, told = drawn.pop()
    assert told == ["dog", "", "cat", "any"] and [len(row) for row in rows] == [4, 1, 3, 1]
    assert [(row[0].tile[..., :1] == images[i]).all() for row, i in zip(rows, (0, 8, 1, 7))] == [
        True
    ] * 4
    pictures.grid_by_class(
        dark_images(30, 4, 4, 3), range(30), [f"class number {i}" for i in range(30)]
    )
    rows, told = drawn.pop()  # many classes: the names stand beneath
    assert (
        told is None
        and [len(row) for row in rows] == [10] * 3
        and rows[2][9].caption == "class number\n29"
    )


def test_a_grid_of_floating_images_is_the_grid_of_their_bytes():
    images = dark_images(4, 8, 8, 1)
    assert pictures.image_grid(images / np.float32(127.5) - 1, 2) == pictures.image_grid(images, 2)


def test_labels_and_title_stand_outside_the_pictures():
    images = dark_images(4, 8, 8, 1)
    bare = pictures.image_grid(images, 2)
    labelled = pictures.image_grid(
        images,
        2,
        row_labels=["zero", "one"],
        column_labels=[1, 2],
        title="A long title of the grid",
    )
    assert labelled.width > bare.width and labelled.height > bare.height
    tiles, page = on_paper(bare), np.asarray(labelled)
    h, w = tiles.shape[:2]
    places = ((y, x) for y in range(page.shape[0] - h + 1) for x in range(page.shape[1] - w + 1))
    assert any(
        (page[y, x] == tiles[0, 0]).all() and (page[y : y + h, x : x + w] == tiles).all()
        for y, x in places
    )


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 8, 8, 2), (0, 8, 8, 1)])
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
    tile, real = (np.full((20, 30, 3), colour, np.uint8) for colour in (red, green))
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
        assert picture.height == shorter.height + (20 + pictures._height("real data") + 10) + 2 * (
            pictures.TEXT + 4
        )
    above, below = (np.argwhere((page == colour).all(-1)) for colour in (green, red))
    assert (
        above[:, 0].max() + pictures.TEXT < below[:, 0].min()
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
    said = pictures.verdict({"accuracy": 0.973, "frechet": 12.34, "error": 0.002})
    assert said == "recognized 97.3 %\nFréchet distance 12.3\nRMS error 0.002"
    assert pictures.verdict({"sliced_wasserstein": 0.5}) == "sliced Wasserstein 0.5"
    assert (
        pictures.verdict({"frechet": float("nan"), "accuracy": None, "seconds_per_image": 1.0})
        == ""
    )


@pytest.fixture
def drawn(monkeypatch):
    """The axes that a function draws on, kept for inspection after the file is written."""
    kept = []
    figure = curves._figure

    @contextlib.contextmanager
    def keep(*args, **kwargs):
        with figure(*args, **kwargs) as axes:
            kept.extend(axes)
            yield axes

    monkeypatch.setattr(curves, "_figure", keep)
    return kept


def test_loss_curves_from_rows_with_holes(tmp_path, drawn):
    edges = [-4.0, 0.0, 4.0]
    rows = [{"step": i, "images": 10 * i, "loss": 2.0} for i in range(100)] + [{"event": "saved"}]
    rows[50] |= {"eval_loss": 1.5, "loss_by_level": [3.0, None], "level_edges": edges}
    rows[60] |= {"eval_loss": 1.25, "loss_by_level": [1.0, 0.5], "level_edges": edges}
    rows[70]["loss"] = None
    curves.loss_curve(rows, tmp_path / "loss.png", title="a run")
    loss, levels = drawn
    raw, smooth, held = loss.lines
    assert len(raw.get_xdata()) == 99 and (smooth.get_ydata() == 2.0).all()
    assert held.get_xdata().tolist() == [500, 600] and held.get_ydata().tolist() == [1.5, 1.25]
    assert loss.get_xlabel() == "images seen"
    early, late = levels.lines
    assert (
        early.get_xdata().tolist() == [-2.0, 2.0]
        and early.get_ydata()[0] == 3.0
        and np.isnan(early.get_ydata()[1])
    )
    assert late.get_ydata().tolist() == [1.0, 0.5]
    with Image.open(tmp_path / "loss.png") as image:
        assert image.width > 1000


def test_a_loss_curve_by_step_alone_and_of_nothing(tmp_path, drawn):
    curves.loss_curve([{"step": 3, "loss": 1.0}], tmp_path / "a.png")
    curves.loss_curve([], tmp_path / "b.png")
    assert drawn[0].get_xlabel() == "training step" and len(drawn) == 2


def test_smoothing_keeps_a_line_straight_and_calms_noise():
    noise = np.random.default_rng(0).standard_normal(6000)
    assert curves._smooth(noise)[1000:-1000].std() < 0.1
    line = np.arange(600.0)
    np.testing.assert_allclose(curves._smooth(line)[:590], line[:590])


def test_quality_curves_are_sorted_named_and_in_percent(tmp_path, drawn):
    table = [
        {"sampler": "ddim", "nfe": 20, "evaluations": 20, "accuracy": 0.9, "frechet": 1.0},
        {"sampler": "ddim", "nfe": 5, "evaluations": 5, "accuracy": 0.5, "frechet": 9.0},
        {"sampler": "heun", "nfe": 20, "evaluations": 19, "accuracy": 0.95, "frechet": None},
        {"sampler": "heun", "nfe": 5, "evaluations": 5, "accuracy": 0.6},
        {"sampler": "sde", "nfe": 5, "evaluations": 5, "accuracy": 0.4, "stochastic": True},
        {"sampler": "tsit5", "nfe": None, "evaluations": 70.5, "frechet": 0.9},
    ]
    curves.quality_curves(table, tmp_path / "a.png", floor={"frechet": 0.5})
    accuracy, distance = drawn
    assert [line.get_xdata().tolist() for line in accuracy.lines] == [[5, 20], [5, 19], [5]]
    np.testing.assert_allclose(accuracy.lines[0].get_ydata(), [50, 90])
    assert [line.get_linestyle() for line in accuracy.lines] == ["-", "-", "--"]
    assert [line.get_label() for line in distance.lines] == ["ddim", "tsit5", "truth itself"]
    assert (
        len({line.get_color() for line in accuracy.lines[:2]} | {distance.lines[1].get_color()})
        == 3
    )
    (legend,) = accuracy.figure.legends
    assert [text.get_text() for text in legend.texts] == [
        "ddim",
        "heun",
        "sde",
        "tsit5",
        "truth itself",
    ]
    assert (
        accuracy.get_xscale() == distance.get_yscale() == "log"
        and accuracy.get_yscale() == "linear"
    )
    with pytest.raises(UserError, match="none of the metrics"):
        curves.quality_curves([{"sampler": "ddim", "nfe": 5}], tmp_path / "b.png")


def test_guidance_curves_without_precision_and_recall_have_no_panel_of_them(tmp_path, drawn):
    rows = [
        {"guide": "cfg()", "scale": scale, "accuracy": 0.5, "frechet": 1.0} for scale in (1.0, 2.0)
    ]
    curves.guidance_curves(rows, tmp_path / "a.png")
    assert len(drawn) == 2
    drawn.clear()
    curves.guidance_curves(
        [row | {"precision": 0.5, "recall": 0.5} for row in rows], tmp_path / "b.png"
    )
    assert len(drawn) == 5 and drawn[-1].get_xlabel().startswith("recall")


def test_the_curves_of_a_single_panel_are_named_at_their_ends(tmp_path, drawn):
    table = [
        {"sampler": name, "nfe": nfe, "error": nfe**-p}
        for name, p in (("ddim", 1), ("heun", 2))
        for nfe in (5, 10)
    ]
    curves.quality_curves(table, tmp_path / "a.png")
    assert {text.get_text() for text in drawn[0].texts} == {"ddim", "heun"} and not drawn[
        0
    ].figure.legends


def test_at_one_budget_every_name_has_a_row_with_its_number(tmp_path, drawn):
    names = [f"sampler number {i}" for i in range(9)]
    table = [
        {
            "sampler": name,
            "nfe": 8,
            "evaluations": 8,
            "accuracy": 0.5 + 0.05 * i,
            "error": 10.0**-i if i else None,
        }
        for i, name in enumerate(names)
    ]
    curves.quality_curves(table, tmp_path / "a.png", floor={"accuracy": 0.97})
    accuracy, error = drawn
    assert [
        text.get_text() for text in accuracy.get_yticklabels()
    ] == names and not accuracy.figure.legends
    np.testing.assert_allclose(
        accuracy.collections[0].get_offsets(), [(50 + 5 * i, i) for i in range(9)]
    )
    assert (
        len(error.collections[0].get_offsets()) == 8
        and error.get_xscale() == "log"
        and accuracy.get_xscale() == "linear"
    )
    assert accuracy.lines[0].get_xdata()[0] == 97
    drawn.clear()
    grids = [
        row | {"sampler": row["sampler"].replace("sampler", "grid"), "shift": 0.1} for row in table
    ]
    curves.placed_times(
        grids, {8: np.linspace(-9, 9, 8)}, ["error", "shift"], tmp_path / "b.png", title="A title"
    )
    assert [len(axis.collections[0].get_offsets()) for axis in drawn[1:]] == [8, 9]


@pytest.mark.parametrize("budgets", [(8,), (8, 16)])
def test_nothing_of_a_figure_of_placed_times_is_cut_off(tmp_path, drawn, budgets):
    table = [
        {"sampler": name, "nfe": nfe, "error": 1.0, "shift": 2.0}
        for name in ("align_your_steps", "placed")
        for nfe in budgets
    ]
    curves.placed_times(
        table,
        {nfe: np.linspace(-9, 9, nfe) for nfe in budgets},
        ["error", "shift"],
        tmp_path / "a.png",
        title="T",
    )
    figure = drawn[0].figure
    figure.draw_without_rendering()
    for axis in drawn:
        (left, right), (low, high) = sorted(axis.get_xlim()), sorted(axis.get_ylim())
        ticks = [text for text in axis.get_xticklabels() if left <= text.get_position()[0] <= right]
        ticks += [text for text in axis.get_yticklabels() if low <= text.get_position()[1] <= high]
        for text in (axis.xaxis.label, axis.yaxis.label, *ticks):
            box = text.get_window_extent()
            assert (
                box.x0 >= 0
                and box.y0 >= 0
                and box.x1 <= figure.bbox.width
                and box.y1 <= figure.bbox.height
            ), text.get_text()
        assert (
            axis.yaxis.label.get_window_extent().height <= axis.bbox.height
        )  # it would reach into the title
        assert axis.xaxis.label.get_window_extent().width <= axis.bbox.width


def test_names_are_moved_apart_no_more_than_needed():
    assert curves._apart([0, 50, 100], 10, 0, 100) == [0, 50, 100]
    assert curves._apart([50, 50, 52, 90], 10, 0, 100) == pytest.approx(
        [50.667 - 10, 50.667, 50.667 + 10, 90], abs=1e-3
    )
    assert curves._apart([99, 100, 100], 10, 0, 100) == [80, 90, 100]
    assert curves._apart([0, 0, 12], 10, 0, 100) == [0, 10, 20]


def test_points_beside_their_data(tmp_path, drawn):
    data = np.random.default_rng(0).standard_normal((50, 2))
    curves.points(data, {"ddim": data + 1, "heun": data}, tmp_path / "a.png")
    assert [axis.get_title(loc="left") for axis in drawn] == ["data", "ddim", "heun"]
    assert drawn[0].get_xlim() == drawn[1].get_xlim()
    np.testing.assert_allclose(drawn[1].collections[0].get_offsets(), data + 1)
