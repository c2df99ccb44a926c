"""GIFs of one palette, without frames that are shown twice; points where they belong."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageSequence

from diffusion_jax.core.errors import UserError
from diffusion_jax.report import movies


def frame(gray, size=(24, 16)):
    return Image.new("RGB", size, (gray, gray, gray))


def opened(path):
    """The frames of a file as arrays, and how long each is shown, in milliseconds."""
    with Image.open(path) as gif:
        frames = [
            (np.asarray(each.convert("RGB")), each.info["duration"]) for each in frames_of(gif)
        ]
    return [each for each, _ in frames], [duration for _, duration in frames]


def frames_of(gif):
    return ImageSequence.Iterator(gif)


def test_equal_frames_become_one_and_the_last_is_held(tmp_path):
    frames = [frame(255), frame(40), frame(40), frame(40), frame(200)]
    movies.save_gif(frames, tmp_path / "a.gif", fps=10, first=0.5, last=3)
    shown, durations = opened(tmp_path / "a.gif")
    assert [each[0, 0, 0] for each in shown] == [255, 40, 200]
    assert durations == [500, 300, 3000]
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.info["loop"] == 0
    with pytest.raises(UserError, match="no frame"):
        movies.save_gif([], tmp_path / "b.gif")


def test_all_frames_share_few_colors_and_paper_stays_white(tmp_path):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 250, (30, 30, 3), np.uint8) for _ in range(3)]
    for each in noise:
        each[:, 20:] = 255
    movies.save_gif([Image.fromarray(each) for each in noise], tmp_path / "a.gif", colors=16)
    shown, _ = opened(tmp_path / "a.gif")
    assert len(np.unique(np.concatenate(shown).reshape(-1, 3), axis=0)) <= 16
    assert all((each[:, 20:] == 255).all() for each in shown)


@pytest.mark.parametrize(
    "count, most, expected", [(5, 9, range(5)), (9, 3, [0, 4, 8]), (9, 1, [8]), (1, 4, [0])]
)
def test_frames_are_chosen_evenly_with_both_ends(count, most, expected):
    assert movies.evenly(count, most).tolist() == list(expected)


def test_a_frame_shows_both_sides():
    x_t, x0 = np.full((2, 3, 4, 4, 1), 90, np.uint8), np.full((2, 3, 4, 4, 1), 30, np.uint8)
    page = np.asarray(movies.image_frames(x_t, x0, ["step 0", "step 1"], columns=2)[1])
    (_, left, _), (_, right, _) = (np.argwhere(page == gray).max(0) for gray in (90, 30))
    assert left < np.argwhere(page == 30).min(0)[1] <= right


def test_a_point_is_drawn_where_it_is_and_what_is_not_finite_nowhere():
    under = np.full((40, 40, 3), 255, np.uint8)
    box = ([-1.0, -1.0], [1.0, 1.0])
    tile = movies.plane(np.array([[0.5, 0.5], [np.nan, 0.0]]), box, under)
    rows, columns = np.nonzero((tile < 200).any(-1))
    assert abs(rows.mean() - 10) < 1 and abs(columns.mean() - 30) < 1  # up is up
    tails = np.array([[[-0.5, 0.5]], [[0.0, 0.5]]])
    drawn = movies.plane(np.array([[0.5, 0.5]]), box, under, tails=tails)
    assert (drawn[10, 11:28] < 255).any(-1).all() and (drawn[:8] == 255).all()


def test_a_density_is_darkest_at_its_peak():
    density = np.zeros((8, 8))
    density[6, 1] = 4.0  # right and low
    tile = movies.shaded(density, 40).astype(int).sum(-1)
    row, column = np.unravel_index(tile.argmin(), tile.shape)
    assert row > 28 and column > 28 and tile[0, 0] == 3 * movies.PAPER
    assert (movies.shaded(0 * density, 8) == movies.PAPER).all()


def test_exploding_points_are_zoomed_into_the_box_of_the_data():
    points = np.random.default_rng(0).normal(size=(500, 2))
    zoom = movies.zoomed(np.ones(2), np.array([100.0, 0.01]), points)
    low, high = movies.box_of(points)
    assert (np.abs(100 * points / zoom[0]) < (high - low)).mean() > 0.95 and zoom[1] < 1.5
    assert (movies.zoomed(np.array([0.5]), np.array([0.1]), points) == 1).all()
