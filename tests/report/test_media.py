"""Pictures and files of samples, by their shape."""

from __future__ import annotations

import contextlib
import csv

import numpy as np
import pytest
from PIL import Image, ImageColor

from diffusion_jax.data import loading, normalization, sound, sound_files
from diffusion_jax.data.columns import CATEGORY, NUMBER, Column
from diffusion_jax.data.normalization import Normalization
from diffusion_jax.report import media, pictures, restored, row_figure, style


def normalized(shape, dtype="float32"):
    values = np.random.default_rng(0).uniform(0, 9, (6, *shape)).astype(dtype)
    return values, normalization.measure([values], "standard", dtype, "")


@pytest.mark.parametrize(
    "shape, name",
    [((3,), "vector"), ((9, 2), "series"), ((4, 6, 1), "image"), ((3, 4, 4, 1), "volume")],
)
def test_files_have_the_units_of_the_data_and_pictures_a_tile_of_each(shape, name, tmp_path):
    values, known = normalized(shape, "int16")
    shown, x = media.media_of(shape, known), known.encode(values)
    assert shown.name == name and shown.of_sets == (name == "vector")
    np.testing.assert_array_equal(shown.arrays(x)["data"], values)
    tiles = shown.tiles(x)
    assert len(tiles) == 6 and tiles.dtype == np.uint8 and tiles.shape[-1] == 3
    media.grid(shown, x, tmp_path / "a.png", columns=3, real=x)
    with Image.open(tmp_path / "a.png") as picture:
        assert min(picture.size) > 60


def test_images_of_8_bits_and_points_are_as_ever():
    image, point = media.media_of((8, 8, 3), None), media.media_of((2,), None)
    x = np.zeros((2, 8, 8, 3), np.uint8)
    assert image.tiles(x) is x and image.arrays(x)["images"] is x
    assert (
        point.of_sets
        and len(point.tiles(np.zeros((3, 2)))) == 3
        and list(point.arrays(x)) == ["images"]
    )


def test_a_line_passes_through_the_values():
    """From the lower left to the upper right, on white."""
    up = media.lines(np.linspace(0, 1, 5).reshape(1, 5, 1))[0]
    dark = up.sum(-1) < 500
    rows = [np.flatnonzero(dark[4:-4, column]).mean() for column in (8, 48, 88)]
    assert rows == sorted(rows, reverse=True) and rows[0] - rows[2] > 40
    assert tuple(up[8, 8]) == (255, 255, 255)


def test_bars_are_as_high_as_the_values():
    tile = media.bars(np.array([[0.25, 1.0, 0.5]]))[0]
    heights = [(tile[:, x].sum(-1) < 700).mean() for x in (16, 48, 80)]
    np.testing.assert_allclose(heights, [0.25, 1, 0.5], atol=0.02)


def test_slices_are_in_reading_order_from_dark_to_light():
    volume = np.broadcast_to(np.linspace(0, 1, 4)[:, None, None, None], (1, 4, 16, 16, 1))
    tile = media.slices(volume)[0]
    half_y, half_x = tile.shape[0] // 2, tile.shape[1] // 2
    corners = [tile[y, x, 0] for y in (6, half_y + 4) for x in (6, half_x + 4)]
    assert corners == [0, 85, 170, 255]


def test_shades_have_the_range_of_the_training_split():
    values, known = normalized((4, 4, 1))
    tile = media.media_of((4, 4, 1), known).tiles(known.encode(values))
    low, high = np.unravel_index([values.argmin(), values.argmax()], values.shape)[0]
    assert tile[low].min() == 0 and tile[high].max() == 255


def test_a_table_has_a_heading_and_a_row_for_each_vector(tmp_path):
    values, known = normalized((3,))
    shown = media.media_of((3,), known)
    file = media.save_table(shown, known.encode(values), tmp_path / "cfg1.5.npz")
    assert file == tmp_path / "cfg1.5.csv"
    with open(file, newline="") as text:
        head, *rows = csv.reader(text)
    assert head == ["x1", "x2", "x3"]
    np.testing.assert_allclose(np.array(rows, float), values, rtol=1e-6)


def test_opacity_is_laid_on_white_and_many_channels_stand_side_by_side():
    clear = np.array([[[[9, 9, 9, 0], [200, 100, 0, 255]]]], np.uint8)
    np.testing.assert_array_equal(pictures.rgb(clear)[0, 0], [[255] * 3, [200, 100, 0]])
    five = np.arange(5, dtype=np.uint8).reshape(1, 1, 1, 5)
    np.testing.assert_array_equal(pictures.rgb(five)[0, 0, :, 1], np.arange(5))


def heard(kind="waveform", length=256):
    """Normalized tones of 500 and 3000 Hz, and what they are."""
    times = np.arange(length) / 8000
    waves = np.stack([0.5 * np.sin(2 * np.pi * f * times) for f in (500, 3000)])[..., None]
    own = sound.Sound(8000, length, 1, kind, *((32, 64, 32) if kind == "logmel" else ()))
    values = sound.values(own, waves.astype(np.float32))
    known = normalization.measure([values], "standard", own.dtype, "")._replace(sound=own)
    return waves, known, known.encode(values)


@pytest.mark.parametrize("kind", ["waveform", "logmel"])
def test_sounds_are_files_spectrograms_and_players(kind, tmp_path):
    waves, known, x = heard(kind)
    shown = media.media_of(x.shape[1:], known)
    assert shown.name == "sound" and not shown.of_sets
    tiles = shown.tiles(x).astype(int).sum(-1)
    bright = tiles[:, :, tiles.shape[2] // 2].argmax(1) / tiles.shape[1]
    assert bright[0] > 0.6 and bright[1] < 0.3  # the high tone is above the low one
    arrays = shown.arrays(x)
    made = arrays["data"] / 32767
    peaks = np.abs(np.fft.rfft(made[..., 0])).argmax(1) * 8000 / made.shape[1]
    np.testing.assert_allclose(peaks, [500, 3000], atol=40)
    if kind == "waveform":
        np.testing.assert_allclose(made, waves, atol=1e-4)
    about = {"seeds": [0, 7], "labels": [0, 1], "names": ["low tone", "high/tone"]}
    folder, page = media.save_sounds(shown, x, arrays, tmp_path / "s.npz", **about)
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["0000_low_tone.wav", "0007_high_tone.wav"]
    read = sound_files.read(folder / files[0], 8000, 0)
    np.testing.assert_allclose(read, made[0], atol=1e-3)
    assert page.read_text().count("data:audio/wav;base64,") == 2


def test_parts_of_an_edit_are_a_table_or_sounds_or_nothing_more(tmp_path):
    """Rows of a CSV file by part; WAV files by sample, which sort as they are compared."""
    values, known = normalized((3,))
    x = known.encode(values)
    parts = {'10 % "b"': x, "truth": x[:, ::-1]}
    (file,) = restored.save_parts(media.media_of((3,), known), parts, tmp_path / "a.b.png")
    assert file == tmp_path / "a.b.csv"
    with open(file, newline="") as text:
        head, *rows = csv.reader(text)
    assert head == ["part", "x1", "x2", "x3"] and len(rows) == 12
    assert rows[0][0] == '10 % "b"' and rows[6][0] == "truth"
    _, known, x = heard()
    parts = {"measured": x, "truth": x[::-1]}
    shown = media.media_of(x.shape[1:], known)
    folder, page = restored.save_parts(shown, parts, tmp_path / "s.npz")
    files = sorted(path.name for path in folder.iterdir())
    assert files == [f"000{i}_{part}.wav" for i in range(2) for part in parts]
    first, last = ((folder / name).read_bytes() for name in (files[0], files[3]))
    assert first == last and page.name == "s.html"
    values, known = normalized((4, 1))
    assert not restored.save_parts(media.media_of((4, 1), known), {"a": values}, tmp_path / "n.png")


def test_nothing_is_heard_of_images(tmp_path):
    shown = media.media_of((8, 8, 1), None)
    about = {"seeds": [], "labels": [], "names": []}
    assert media.save_sounds(shown, np.zeros(0), {}, tmp_path / "s.npz", **about) == []


def test_values_of_an_array_that_were_not_measured_are_orange(tmp_path):
    values, known = normalized((4, 4, 1))
    shown, x = media.media_of((4, 4, 1), known), known.encode(values)
    file, orange = tmp_path / "a.png", ImageColor.getrgb(restored.HIDDEN)
    measured = np.arange(16).reshape(4, 4, 1) % 4 != 2
    restored.strips(shown, known, x, x[None], x, measured, file)
    with Image.open(file) as picture:
        hidden = (np.asarray(picture.convert("RGB")) == orange).all(-1)
    height, width = shown.tiles(x).shape[1:3]
    assert hidden.sum() == len(values) * height * width // 4


def test_sets_without_their_data_are_shown_alone(tmp_path):
    """As of a published model, whose data are elsewhere."""
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    known = (Column("n", NUMBER), Column("c", CATEGORY, ("a", "b")))
    one = (0.0,) * 3, (1.0,) * 3, (-3.0,) * 3, (3.0,) * 3
    for name, columns in (("vectors", ()), ("rows", known)):
        shown = media.media_of((3,), Normalization(*one, "float32", columns=columns))
        media.grid(shown, x, tmp_path / f"{name}.png", columns=4)
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    assert loading.is_here("digits", "") and not loading.is_here("table", "")
    assert not loading.is_here("table", str(tmp_path / "t.csv"))
    assert loading.is_here("arrays", "gs://bucket/a.npz") and loading.is_here("arrays", ".")


@pytest.fixture
def drawn(monkeypatch):
    """The axes of the figures that a test draws."""
    figure, found = style.figure, []

    @contextlib.contextmanager
    def kept(*args, **options):
        with figure(*args, **options) as axes:
            yield axes
        found.extend(axes)

    monkeypatch.setattr(style, "figure", kept)
    return found


def test_the_foot_of_a_picture_names_the_units_of_the_data():
    values, known = normalized((9, 2))
    known = known._replace(low=(-1.5, 0), high=(2.25, 300))
    said = (
        "to the right: 9 values; upward: channel 0 (blue) -1.5 to 2.25, channel 1 (orange) 0 to 300"
    )
    assert media.media_of((9, 2), known).note == said
    one = Normalization((0,), (1,), (-7,), (1e4,), "float32")
    assert media.media_of((4, 4, 1), one).note == "from black to white: -7 to 1e+04"
    assert media.media_of((9, 1), one).note.endswith("upward: -7 to 1e+04")


@pytest.mark.parametrize("width", [2, 3])
def test_plots_of_vectors_are_in_the_units_of_the_data(width, drawn, tmp_path):
    values = np.random.default_rng(0).uniform(0, 1, (30, width)) + 1000 * np.arange(1, width + 1)
    known = normalization.measure([values], "standard", "float32", "")
    x = known.encode(values)
    media.grid(media.media_of((width,), known), x, tmp_path / "a.png", columns=1, real=x)
    low, high = drawn[0].get_xlim()
    assert 999 < low < 1000 and 1001 < high < 1002
    low, high = drawn[0 if width == 2 else width].get_ylim()  # of the second column
    assert 1999 < low < 2000 and 2001 < high < 2002


def test_edited_rows_are_panels_with_the_names_and_cells_of_the_columns(drawn, tmp_path):
    """Columns that were drawn come first, with results and truth; the others as measured."""
    table = (Column("age", NUMBER), Column("color", CATEGORY, ("red", "blue")))
    known = Normalization((50, 0, 0), (10, 1, 1), (0, 0, 0), (99, 1, 1), "float32", columns=table)
    cells = np.array([[20, 1, 0], [60, 0, 1]], np.float32)
    parts = {name: known.encode(cells + [i, 0, 0]) for i, name in enumerate(("measured", "truth"))}
    parts |= {f"restored {i}": known.encode(cells[::-1]) for i in (1, 2)}
    row_figure.figure(known, parts, tmp_path / "a.png", np.array([False, True, True]))
    color, age = drawn
    assert [axis.get_title("left") for axis in (color, age)] == ["color", "age"]
    assert [tick.get_text() for tick in color.get_yticklabels()] == ["red", "blue"]
    offsets = {
        axis: [own.get_offsets()[:, 1].tolist() for own in axis.collections] for axis in drawn
    }
    assert offsets[age] == [[20, 60]] and offsets[color] == [[0, 1], [1, 0], [1, 0]]
    assert color.get_legend_handles_labels()[1] == ["truth", "restored"]
