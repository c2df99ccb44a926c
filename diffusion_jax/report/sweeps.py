"""Scores of a sweep as figures: against the length of an EMA, the scale of guidance, or by name."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from diffusion_jax.evaluation.metrics import find
from diffusion_jax.report import style
from diffusion_jax.report.style import COLORS, MARKERS, MORE_COLORS, is_number, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GUIDED = ("accuracy", "precision", "frechet", "recall", "coverage")  # panels of guidance_curves
TITLE_SIZE = 9


def lengths(
    rows: Sequence[Mapping[str, Any]],
    path: str | os.PathLike,
    *,
    features: str,
    title: str | None = None,
) -> None:
    """Scores against the relative length of an EMA, a panel for each metric.

    Args:
      rows: {'length', metric: (mean, half of its interval or None)}; other keys are ignored.
      path: the file to write.
      features: what the scores without features depend on, which labels name; '' for points.
      title: stands at the top.
    """
    metrics = [key for key, value in rows[0].items() if isinstance(value, tuple)]
    x = [row["length"] for row in rows]
    size = (4.3, 3.4)
    with style.figure(path, len(metrics), size, title=title, title_size=TITLE_SIZE) as axes:
        for axis, key in zip(axes, metrics):
            metric = find(key, features)
            values = [(mean, spread or 0.0) for mean, spread in (row[key] for row in rows)]
            mean, spread = metric.format.factor * np.array(values, float).T
            axis.errorbar(x, mean, spread, color=COLORS[0], marker="o", capsize=2.5)
            axis.set(xlabel="relative length σ of the average", ylabel=wrapped(metric.label))


def bars(
    scored: Mapping[str, Mapping[str, tuple[float, float]]],
    metrics: Sequence[str],
    path: str | os.PathLike,
    *,
    features: str,
    reference: Mapping[str, float] | None = None,
    title: str | None = None,
) -> None:
    """A panel for each metric, with a bar and its error for each name.

    Bars that differ more than thirtyfold are drawn on a logarithmic scale.

    Args:
      scored: (mean, error) by name and metric.
      metrics: names of evaluation.metrics; those that no name has are left out.
      path: the file to write.
      features: what the scores depend on, which labels name; '' for scores of points.
      reference: the score of real images, a gray line, by metric.
      title: stands at the top.
    """
    present = [key for key in metrics if any(key in scores for scores in scored.values())]
    names, rows = list(scored), 1 if len(present) < 4 else 2
    columns = math.ceil(len(present) / rows)
    size = (3.7, 0.9 + 0.22 * len(names))
    with style.figure(path, len(present), size, rows, title=title, title_size=TITLE_SIZE) as axes:
        for i, (axis, key) in enumerate(zip(axes, present)):
            metric = find(key, features)
            factor = metric.format.factor
            _bars_of_metric(axis, scored, key, factor)
            if reference and is_number(reference.get(key)):
                line = {"color": style.FAINT, "linestyle": ":", "label": "real images"}
                axis.axvline(factor * reference[key], **line)
            axis.set(
                yticks=range(len(names)),
                yticklabels=names if i % columns == 0 else [],
                ylim=(len(names) - 0.5, -0.5),
                xlabel=wrapped(metric.label),
            )
            axis.grid(visible=False, axis="y")


def _bars_of_metric(
    axis: Axes, scored: Mapping[str, Mapping[str, tuple[float, float]]], key: str, factor: float
) -> None:
    names = list(scored)
    have = [name for name in names if key in scored[name]]
    mean, error = (factor * np.array([scored[name][key][j] for name in have]) for j in (0, 1))
    look = {"color": COLORS[0], "height": 0.65}
    whiskers = {"ecolor": style.INK, "elinewidth": 0.9}
    places = [names.index(name) for name in have]
    axis.barh(places, mean, xerr=error, error_kw=whiskers, **look)
    if mean.min() > 0 and mean.max() > 30 * mean.min():
        axis.set_xscale("log")
        style.plain_logarithms(axis.xaxis, np.log10(mean.max() / mean.min()))


def guidance_curves(
    rows: Sequence[Mapping[str, Any]],
    path: str | os.PathLike,
    *,
    features: str,
    reference: Mapping[str, float] | None = None,
    title: str | None = None,
) -> None:
    """Scores against the scale of guidance, a curve for each guide; and precision against recall.

    The last panel, fidelity against diversity, begins at scale 1; its points are named by their
    scales. It is left out where rows lack precision or recall.

    Args:
      rows: {'guide', 'scale', metric of GUIDED: value}, and 'intervals', half the width of those
        that are known, which are bars.
      path: the file to write.
      features: what the scores depend on, which labels name; '' for scores of points.
      reference: the score of real images, a gray line, by metric.
      title: stands at the top.
    """
    guides = list(dict.fromkeys(row["guide"] for row in rows))
    metrics = [key for key in GUIDED if key in rows[0]]
    both = {"precision", "recall"} <= {*metrics}  # too few real images have neither
    panels, size = len(metrics) + both, (4.1, 3.2)
    with style.figure(path, panels, size, rows=2, title=title, title_size=TITLE_SIZE) as axes:
        looks = zip((COLORS + MORE_COLORS) * len(guides), MARKERS * len(guides))
        for guide, (color, marker) in zip(guides, looks):
            own = [row for row in rows if row["guide"] == guide]
            own = sorted(own, key=lambda row: row["scale"])
            look = {"color": color, "marker": marker, "label": guide}
            for axis, key in zip(axes, metrics):
                scales, half = [row["scale"] for row in own], _halves(own, key)
                axis.plot(scales, _series(own, key), **look)
                style.error_bars(axis, scales, _series(own, key), yerr=half, color=color)
            if both:
                _precision_against_recall(axes[-1], own, look)
        for axis, key in zip(axes, metrics):
            if reference and is_number(reference.get(key)):
                line = {"color": style.FAINT, "linestyle": ":", "zorder": 0, "label": "real images"}
                axis.axhline(find(key).format.factor * reference[key], **line)
            axis.set(xlabel="scale (1: no guidance)", ylabel=wrapped(find(key, features).label))
        if "frechet" in metrics:
            style.log_if_wide(axes[metrics.index("frechet")])
        handles, names = axes[0].get_legend_handles_labels()
        place = {"loc": "outside lower center", "ncols": 3, "fontsize": 8.5}
        axes[0].figure.legend(handles, names, **place)


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """The scores of rows in the unit of the metric's label."""
    return find(key).format.factor * np.array([row[key] for row in rows], float)


def _halves(rows: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """Half the intervals of the scores in the same unit; 0 where they are not known."""
    known = [row.get("intervals", {}).get(key, 0.0) for row in rows]
    return find(key).format.factor * np.array(known, float)


def _precision_against_recall(axis: Axes, rows: Sequence[Mapping[str, Any]], look: dict) -> None:
    own = [row for row in rows if row["scale"] >= 1]
    recall, precision = _series(own, "recall"), _series(own, "precision")
    axis.plot(recall, precision, **look)
    text = {"textcoords": "offset points", "fontsize": 7, "color": look["color"]}
    for row, *where in zip(own, recall, precision):
        axis.annotate(f"{row['scale']:g}", where, (4, 3), **text)
    axis.set(xlabel="recall: diversity", ylabel="precision: fidelity", title="From scale 1 on")
