"""Quality against the number of network evaluations, by sampler, as figures."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from diffusion_jax.core.errors import UserError
from diffusion_jax.evaluation.metrics import find
from diffusion_jax.report import style
from diffusion_jax.report.style import COLORS, MARKERS, MORE_COLORS, is_number, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRICS = ("accuracy", "frechet", "sliced_wasserstein", "error", "seconds_per_image")

Table = Sequence[Mapping[str, Any]]


def quality_curves(
    table: Table,
    path: str | os.PathLike,
    *,
    features: str,
    metrics: Sequence[str] = METRICS,
    reference: Mapping[str, float] | None = None,
    title: str | None = None,
) -> None:
    """Quality against NFE: a curve for each sampler, and a panel for each metric of the table.

    At a single budget each sampler is a row with a dot instead. Axes are logarithmic, but for
    percentages. The names stand at the ends of the curves of a single panel, or in a legend next to
    several.

    Args:
      table: rows {'sampler', 'nfe' (requested), 'evaluations' (made), metric: value, ...}, and
        'stochastic', which makes a curve dashed, and 'intervals', half the widths of the bars,
        where known.
      path: the file to write.
      features: what the scores depend on, which labels name; '' for scores of points.
      metrics: names of evaluation.metrics; those that the table lacks are left out.
      reference: the score of real data, a gray line, by metric.
      title: stands at the top.

    Raises:
      UserError: if the table has none of the metrics.
    """
    present = [key for key in metrics if any(is_number(row.get(key)) for row in table)]
    if not present:
        raise UserError(
            f"the table has none of the metrics {', '.join(metrics)}: there is no curve to draw"
        )
    samplers = list(dict.fromkeys(row["sampler"] for row in table))
    budget = _one_budget(table)
    alone, rows = len(present) == 1, _rows(len(present))
    names = 0.9 + 0.3 * len(samplers) if budget else (0.9 + 0.19 * len(samplers)) / rows
    size = (5.2 if alone else 4.1, max(3.5, names))  # high enough for every name
    reference = reference or {}
    with style.figure(path, len(present), size, rows, title=title) as axes:
        for i, (axis, metric) in enumerate(zip(axes, present)):
            label = wrapped(find(metric, features).label)
            if budget:
                first = i % math.ceil(len(present) / rows) == 0
                scores, real = _scores(table, metric), _scaled(reference, metric)
                _dots(axis, scores, label, real, named=first)
                continue
            ends = _draw_curves(axis, table, samplers, metric, reference.get(metric))
            axis.set(xlabel="network evaluations (NFE)", ylabel=label)
            if alone:
                _name_ends(axis, ends)
        if not (alone or budget):
            _legend(axes, samplers)


def placed_times(
    table: Table,
    logsnr: Mapping[int, Sequence[float]],
    metrics: Sequence[str],
    path: str | os.PathLike,
    *,
    features: str,
    title: str | None = None,
    reference: Mapping[str, float] | None = None,
) -> None:
    """Draw the times at every budget as a row of marks, and the scores of every grid.

    Scores are curves against NFE, or, at one budget, a row of the panel for each grid.

    Args:
      table: rows as for quality_curves, 'sampler' being the name of the grid.
      logsnr: the log-SNR of the times, by their number.
      metrics: names of evaluation.metrics, a panel for each.
      path: the file to write.
      features: what the scores depend on, which labels name; '' for scores of points.
      title: stands at the top.
      reference: the score of real data, a gray line, by metric.
    """
    grids = list(dict.fromkeys(row["sampler"] for row in table))
    budget, reference = len({row["nfe"] for row in table}) == 1, reference or {}
    panels = 1 + len(metrics)
    with style.figure(path, panels, (4.3, 3.8), _rows(panels), title=title) as axes:
        _draw_times(axes[0], logsnr)
        for i, (axis, metric) in enumerate(zip(axes[1:], metrics)):
            label = wrapped(find(metric, features).label)
            if budget:
                scores, least = _scores(table, metric), _scaled(reference, metric)
                _dots(axis, scores, label, least, named=i == 0, marked=grids[-1])
            else:
                _draw_curves(axis, table, grids, metric, reference.get(metric))
                axis.set(xlabel="network evaluations (NFE)", ylabel=label)
        if not budget:
            handles, names = axes[-1].get_legend_handles_labels()
            axes[0].figure.legend(handles, names, loc="outside right center", fontsize=8.5)


def _rows(panels: int) -> int:
    """The number of rows of panels, so that their text is legible at the width of a page."""
    return 1 if panels < 4 else 2


def _one_budget(table: Table) -> bool:
    """Whether all rows have the same NFE."""
    budgets = {row.get("nfe") for row in table}
    return len(budgets) == 1 and None not in budgets


def _scores(table: Table, metric: str) -> dict[str, tuple[float | None, float]]:
    """The score of each sampler and half its interval, in the unit of the metric's label.

    The score is None where there is none, and the interval 0 where it is not known.
    """
    return {row["sampler"]: (_scaled(row, metric), _half(row, metric)) for row in table}


def _scaled(row: Mapping[str, Any], metric: str) -> float | None:
    value = row.get(metric)
    return find(metric).format.factor * value if is_number(value) else None


def _half(row: Mapping[str, Any], metric: str) -> float:
    """Half the interval of a score, in the unit of the metric's label; 0 where it is not known."""
    return find(metric).format.factor * row.get("intervals", {}).get(metric, 0.0)


def _draw_times(axis: Axes, logsnr: Mapping[int, Sequence[float]]) -> None:
    for i, n in enumerate(sorted(logsnr)):
        places = -0.5 * np.asarray(logsnr[n]) / math.log(10)
        axis.plot(places, np.full(n, i), color=COLORS[0], marker="o", linewidth=0.8)
    axis.set_yticks(range(len(logsnr)), [f"{n} times" for n in sorted(logsnr)])
    axis.set(xlabel="log₁₀(σ / α): data left, noise right", ylim=(-0.5, len(logsnr) - 0.5))


def _draw_curves(
    axis: Axes, table: Table, samplers: Sequence[str], metric: str, reference: float | None
) -> list[tuple[float, float, str, str]]:
    """Draw a curve for each sampler, and return the ends of the curves: (x, y, name, color)."""
    factor = find(metric).format.factor
    stochastic = {row["sampler"] for row in table if row.get("stochastic")}
    ends = []
    for name in samplers:
        own = [row for row in table if row["sampler"] == name and is_number(row.get(metric))]
        curve = sorted(
            (row.get("evaluations", row.get("nfe")), factor * row[metric], _half(row, metric))
            for row in own
        )
        if not curve:
            continue
        x, y, half = zip(*curve)
        peers = [other for other in samplers if (other in stochastic) == (name in stochastic)]
        color, marker = _look(peers.index(name))
        fill, line = (style.PAPER, "--") if name in stochastic else (color, "-")
        look = {"color": color, "marker": marker, "markerfacecolor": fill, "linestyle": line}
        axis.plot(x, y, label=name, **look)
        style.error_bars(axis, x, y, yerr=half, color=color)
        ends.append((x[-1], y[-1], name, color))
    if reference is not None:
        line = {"color": style.FAINT, "linewidth": 1.2, "linestyle": ":", "zorder": 0}
        axis.axhline(factor * reference, label="real data", **line)
    if metric == "accuracy":
        axis.set_ylim(top=min(axis.get_ylim()[1], 101))  # percent
    else:
        style.log_if_wide(axis)
    _mark_budgets(axis, table)
    return ends


def _look(i: int) -> tuple[str, str]:
    """Color and marker of the i-th curve; the second use of a color has another marker."""
    palette = COLORS + MORE_COLORS
    again, i = divmod(i, len(palette))
    return palette[i], MARKERS[(i + again) % len(MARKERS)]


def _mark_budgets(axis: Axes, table: Table) -> None:
    """A logarithmic x axis with ticks at the budgets, but for those too close to the one before."""
    budgets = sorted(
        {row["nfe"] for row in table if row.get("nfe")} or {row["evaluations"] for row in table}
    )
    ticks = functools.reduce(
        lambda kept, nfe: kept + [nfe] if not kept or nfe > 1.2 * kept[-1] else kept, budgets, []
    )
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{nfe:g}" for nfe in ticks])
    axis.set_xticks([], minor=True)


def _legend(axes: Sequence[Axes], samplers: Sequence[str]) -> None:
    """One legend next to all panels, with the samplers in their order first."""
    lines: dict[str, Any] = {}
    for axis in axes:
        lines |= dict(zip(*reversed(axis.get_legend_handles_labels())))
    names = [name for name in samplers if name in lines]
    names += [name for name in lines if name not in samplers]
    handles = [lines[name] for name in names]
    place = {"loc": "outside right center", "fontsize": 8.5, "handlelength": 3}
    axes[0].figure.legend(handles, names, **place)


def _dots(
    axis: Axes,
    scores: Mapping[str, tuple[float | None, float]],
    label: str,
    reference: float | None,
    *,
    named: bool,
    marked: str = "",
) -> None:
    """A dot with its number for the score of each name, the first name at the top.

    Args:
      axis: the panel.
      scores: the score of each name, None where there is none, and half its interval.
      label: the label of the axis of scores.
      reference: the score of real data, a gray line.
      named: whether the names stand next to the panel.
      marked: the name that has another color.
    """
    names = list(scores)
    present = [i for i, name in enumerate(names) if is_number(scores[name][0])]
    values, halves = np.array([scores[names[i]] for i in present], float).reshape(-1, 2).T
    colors = [COLORS[names[i] == marked] for i in present]
    if reference is not None:
        axis.axvline(reference, color=style.FAINT, linestyle=":", zorder=0, label="real data")
        axis.legend(fontsize=8.5)
    axis.scatter(values, present, color=colors, zorder=3)
    style.error_bars(axis, values, present, xerr=halves)
    if len(values) and values.min() > 0 and values.max() > 4 * values.min():
        axis.set_xscale("log")
        style.plain_logarithms(axis.xaxis, math.log10(values.max() / values.min()))
    text = {"textcoords": "offset points", "ha": "center", "fontsize": 7.5}
    for i, value in zip(present, values):
        axis.annotate(f"{value:.3g}", (value, i), (0, 5), **text)
    axis.margins(x=0.12)
    axis.set(
        yticks=range(len(names)),
        yticklabels=names if named else [],
        ylim=(len(names) - 0.5, -0.7),
        xlabel=label,
    )


def _name_ends(
    axis: Axes, ends: Sequence[tuple[float, float, str, str]], line_height: float = 13.0
) -> None:
    """Write each curve's name to the right of its last point, moved apart where they overlap."""
    axis.figure.draw_without_rendering()  # settles the limits of the axes
    ends = sorted(ends, key=lambda end: end[1])
    points = 72 / axis.figure.dpi  # in a pixel; the offsets below are in points
    low, high = axis.bbox.intervaly * points + np.array([0.5, -0.5]) * line_height
    wanted = [axis.transData.transform(end[:2])[1] * points for end in ends]
    places = _apart(wanted, line_height, low, high)
    for (x, y, name, color), want, place in zip(ends, wanted, places):
        look = {"va": "center", "color": color, "annotation_clip": False}
        axis.annotate(name, (x, y), (9, place - want), textcoords="offset points", **look)


def _apart(wanted: Sequence[float], distance: float, low: float, high: float) -> list[float]:
    """Ascending positions, moved as little as keeps them `distance` apart.

    They stay within [low, high] while there is enough space. Those that collide are spread around
    their mean.
    """
    groups: list[list[float]] = []

    def bottom(group: list[float]) -> float:
        span = distance * (len(group) - 1)
        return max(min(float(np.mean(group)) - span / 2, high - span), low)

    for position in wanted:
        groups.append([position])
        while len(groups) > 1 and bottom(groups[-1]) < bottom(groups[-2]) + distance * len(
            groups[-2]
        ):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [bottom(group) + distance * i for group in groups for i in range(len(group))]
