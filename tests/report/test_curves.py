"""Figures show the very numbers they were given. How they look was judged by eye."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.core.errors import UserError
from diffusion_jax.report import losses, quality, scatter, style, sweeps


@pytest.fixture
def drawn(monkeypatch):
    """The axes that a function draws on, kept for inspection after the file is written."""
    kept = []
    figure = style.figure

    @contextlib.contextmanager
    def keep(*args, **kwargs):
        with figure(*args, **kwargs) as axes:
            kept.extend(axes)
            yield axes

    monkeypatch.setattr(style, "figure", keep)
    return kept


def test_loss_curves_from_rows_with_holes(tmp_path, drawn):
    edges = [-4.0, 0.0, 4.0]
    rows = [{"step": i, "images": 10 * i, "loss": 2.0} for i in range(100)] + [{"event": "saved"}]
    rows[50] |= {"eval_loss": 1.5, "loss_by_level": [3.0, None], "level_edges": edges}
    rows[60] |= {"eval_loss": 1.25, "loss_by_level": [1.0, 0.5], "level_edges": edges}
    rows[70]["loss"] = None
    losses.loss_curve(rows, tmp_path / "loss.png", title="a run")
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
    losses.loss_curve([{"step": 3, "loss": 1.0}], tmp_path / "a.png")
    losses.loss_curve([], tmp_path / "b.png")
    assert drawn[0].get_xlabel() == "training step" and len(drawn) == 2


def test_smoothing_keeps_a_line_straight_and_calms_noise():
    noise = np.random.default_rng(0).standard_normal(6000)
    assert losses._smooth(noise)[1000:-1000].std() < 0.1
    line = np.arange(600.0)
    np.testing.assert_allclose(losses._smooth(line)[:590], line[:590])


def bars(axis, direction=1):
    """The ends of the error bars of a panel, in order; direction 0 is along x."""
    segments = [s for c in axis.collections if hasattr(c, "get_segments") for s in c.get_segments()]
    return [tuple(s[:, direction]) for s in segments if len(s)]


def one_line(label):
    return label.replace("\n", " ")


def test_quality_curves_are_sorted_named_and_in_percent(tmp_path, drawn):
    table = [
        {"sampler": "ddim", "nfe": 20, "evaluations": 20, "accuracy": 0.9, "frechet": 1.0},
        {"sampler": "ddim", "nfe": 5, "evaluations": 5, "accuracy": 0.5, "frechet": 9.0}
        | {"intervals": {"frechet": 2.0}},
        {"sampler": "heun", "nfe": 20, "evaluations": 19, "accuracy": 0.95, "frechet": None},
        {"sampler": "heun", "nfe": 5, "evaluations": 5, "accuracy": 0.6},
        {"sampler": "sde", "nfe": 5, "evaluations": 5, "accuracy": 0.4, "stochastic": True},
        {"sampler": "tsit5", "nfe": None, "evaluations": 70.5, "frechet": 0.9},
    ]
    quality.quality_curves(table, tmp_path / "a.png", features="pixels", reference={"frechet": 0.5})
    accuracy, distance = drawn
    assert [line.get_xdata().tolist() for line in accuracy.lines] == [[5, 20], [5, 19], [5]]
    np.testing.assert_allclose(accuracy.lines[0].get_ydata(), [50, 90])
    assert [line.get_linestyle() for line in accuracy.lines] == ["-", "-", "--"]
    assert [line.get_label() for line in distance.lines] == ["ddim", "tsit5", "real data"]
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
        "real data",
    ]
    assert (
        accuracy.get_xscale() == distance.get_yscale() == "log"
        and accuracy.get_yscale() == "linear"
    )
    assert bars(distance) == [(7.0, 11.0), (1.0, 1.0)] and not bars(accuracy)
    assert one_line(distance.get_ylabel()) == "Fréchet distance of pixels to the training data"
    with pytest.raises(UserError, match="none of the metrics"):
        quality.quality_curves([{"sampler": "ddim", "nfe": 5}], tmp_path / "b.png", features="")


def test_guidance_curves_without_precision_and_recall_have_no_panel_of_them(tmp_path, drawn):
    rows = [
        {"guide": "cfg()", "scale": scale, "accuracy": 0.5, "frechet": 1.0} for scale in (1.0, 2.0)
    ]
    sweeps.guidance_curves(rows, tmp_path / "a.png", features="pixels")
    assert len(drawn) == 2
    drawn.clear()
    both = {"precision": 0.5, "recall": 0.5, "intervals": {"frechet": 0.1}}
    sweeps.guidance_curves([row | both for row in rows], tmp_path / "b.png", features="classifier")
    assert "Fréchet distance to the training data (classifier)" in one_line(drawn[2].get_ylabel())
    assert [bars(axis) for axis in drawn] == [[], [], [(0.9, 1.1), (0.9, 1.1)], [], []]
    assert len(drawn) == 5 and drawn[-1].get_xlabel().startswith("recall")


def test_the_curves_of_a_single_panel_are_named_at_their_ends(tmp_path, drawn):
    table = [
        {"sampler": name, "nfe": nfe, "error": nfe**-p}
        for name, p in (("ddim", 1), ("heun", 2))
        for nfe in (5, 10)
    ]
    quality.quality_curves(table, tmp_path / "a.png", features="")
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
    table[0]["intervals"] = {"accuracy": 0.1}
    how = {"features": "", "reference": {"accuracy": 0.97}}
    quality.quality_curves(table, tmp_path / "a.png", **how)
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
    assert bars(accuracy, 0)[0] == pytest.approx((40, 60)) and not bars(error, 0)
    drawn.clear()
    grids = [
        row | {"sampler": row["sampler"].replace("sampler", "grid"), "shift": 0.1} for row in table
    ]
    times, how = {8: np.linspace(-9, 9, 8)}, {"features": "", "title": "A title"}
    quality.placed_times(grids, times, ["error", "shift"], tmp_path / "b.png", **how)
    assert [len(axis.collections[0].get_offsets()) for axis in drawn[1:]] == [8, 9]


def test_an_interval_that_reaches_zero_does_not_stretch_a_logarithmic_axis(tmp_path, drawn):
    table = [
        {"sampler": "a", "nfe": nfe, "error": score, "intervals": {"error": 0.999 * score}}
        for nfe, score in ((5, 0.9), (10, 0.1), (20, 0.05))
    ]
    quality.quality_curves(table, tmp_path / "a.png", features="")
    low, high = drawn[0].get_ylim()
    assert drawn[0].get_yscale() == "log" and 0.03 < low < 0.05 and high > 0.9


def test_bars_of_very_different_lengths_have_plain_numbers_at_their_axis(tmp_path, drawn):
    """Signs of mathematics are text in figures, because names may contain them."""
    scored = {"vae": {"milliseconds": (0.03, 0.0)}, "flow": {"milliseconds": (98.0, 1.0)}}
    sweeps.bars(scored, ["milliseconds"], tmp_path / "a.png", features="")
    assert drawn[0].get_xscale() == "log"
    texts = [label.get_text() for label in drawn[0].get_xticklabels(which="both")]
    assert {"0.1", "1", "10"} <= set(texts) and not any("$" in text for text in texts)


@pytest.mark.parametrize("budgets", [(8,), (8, 16)])
def test_nothing_of_a_figure_of_placed_times_is_cut_off(tmp_path, drawn, budgets):
    table = [
        {"sampler": name, "nfe": nfe, "error": 1.0, "shift": 2.0}
        for name in ("align_your_steps", "placed")
        for nfe in budgets
    ]
    quality.placed_times(
        table,
        {nfe: np.linspace(-9, 9, nfe) for nfe in budgets},
        ["error", "shift"],
        tmp_path / "a.png",
        features="pixels",
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
    assert quality._apart([0, 50, 100], 10, 0, 100) == [0, 50, 100]
    assert quality._apart([50, 50, 52, 90], 10, 0, 100) == pytest.approx(
        [50.667 - 10, 50.667, 50.667 + 10, 90], abs=1e-3
    )
    assert quality._apart([99, 100, 100], 10, 0, 100) == [80, 90, 100]
    assert quality._apart([0, 0, 12], 10, 0, 100) == [0, 10, 20]


def test_points_beside_their_data(tmp_path, drawn):
    data = np.random.default_rng(0).standard_normal((50, 2))
    scatter.points(data, {"ddim": data + 1, "heun": data}, tmp_path / "a.png")
    assert [axis.get_title(loc="left") for axis in drawn] == ["data", "ddim", "heun"]
    assert drawn[0].get_xlim() == drawn[1].get_xlim()
    np.testing.assert_allclose(drawn[1].collections[0].get_offsets(), data + 1)
