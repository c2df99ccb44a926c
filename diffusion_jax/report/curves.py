"""Pictures of samples (Pillow) and curves (matplotlib), in one style.

Functions that lay out images return a PIL.Image, to be kept with `save`; functions that draw curves
write the file they are given. Both are written atomically. Images are (N, H, W, C), grey or colour,
uint8 or floating in [-1, 1].
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullLocator

from diffusion_jax.errors import UserError
from diffusion_jax.evaluation import metrics as metrics_table
from diffusion_jax.files import atomic_path

INK, FAINT, RULE, PAPER = "#222222", "#767676", "#e2e2e2", "#ffffff"


# Okabe & Ito (2008), told apart with any colour vision; yellow is left out because it is too pale
# on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5A5A5A", "#882255")
MORE = ("#332288", "#999933", "#117733", "#8B5A2B")  # after Tol (2021), for figures of many curves
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

STYLE = {
    "text.parse_math": False,  # names of classes may hold dollars
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.constrained_layout.h_pad": 0.09,
    "figure.constrained_layout.w_pad": 0.09,
    "savefig.dpi": 160,
    "savefig.facecolor": PAPER,
}


# ---- curves ----
def loss_curve(
    rows: Sequence[Mapping[str, Any]], path: str | os.PathLike, *, title: str | None = None
) -> None:
    """The loss against images seen (raw, smoothed, held-out), and by noise level early, midway and
    late.

    rows of metrics.jsonl, any of whose keys may be missing: 'images' (else 'step'), 'loss',
    'eval_loss', 'loss_by_level' (a list of means) with 'level_edges' (log-SNR at the edges of the
    bins, one more than the means).
    """
    by_level = [row for row in rows if row.get("loss_by_level") and row.get("level_edges")]
    with _figure(path, panels=2 if by_level else 1) as axes:
        _loss_against_images(axes[0], rows)
        if by_level:
            _loss_by_level(axes[1], by_level)
        if title:
            axes[0].figure.suptitle(title, x=0.01, ha="left", fontweight="bold")


def quality_curves(
    table: Sequence[Mapping[str, Any]],
    path: str | os.PathLike,
    *,
    metrics: Sequence[str] = (
        "accuracy",
        "frechet",
        "sliced_wasserstein",
        "error",
        "seconds_per_image",
    ),
    floor: Mapping[str, float] | None = None,
    title: str | None = None,
    labels: Mapping[str, str] | None = None,
) -> None:
    """Quality against NFE, one curve for each sampler, one panel for each metric that the table
    has.

    table: rows {'sampler', 'nfe' (asked), 'evaluations' (made), metric: value, ...}, and
    'stochastic', which makes a curve dashed. metrics: names of evaluation.metrics. labels: metric ->
    label of its axis, instead of the table's. floor: metric -> what truth itself scores, a grey line. Axes are
    logarithmic, but for percentages. The names stand at the ends of the curves of an only panel, or
    in a legend beside several.
    """
    present = [key for key in metrics if any(_number(row.get(key)) for row in table)]
    if not present:
        raise UserError(
            f"the table has none of the metrics {', '.join(metrics)}: there is no curve to draw"
        )
    samplers = list(dict.fromkeys(row["sampler"] for row in table))
    alone, rows = len(present) == 1, 1 if len(present) < 4 else 2
    one_budget = len(budgets := {row.get("nfe") for row in table}) == 1 and None not in budgets
    height = max(
        3.5, 0.9 + 0.3 * len(samplers) if one_budget else (0.9 + 0.19 * len(samplers)) / rows
    )  # room for every name
    with _figure(
        path, panels=len(present), size=(5.2 if alone else 4.1, height), rows=rows
    ) as axes:
        for i, (axis, metric) in enumerate(zip(axes, present)):
            if one_budget:
                own = metrics_table.find(metric)
                said, factor = own.label, own.format.factor
                scores = {
                    row["sampler"]: factor * row[metric] if _number(row.get(metric)) else None
                    for row in table
                }
                least = (floor or {}).get(metric)
                _dots(
                    axis,
                    scores,
                    _wrapped((labels or {}).get(metric, said)),
                    None if least is None else factor * least,
                    named=i % math.ceil(len(present) / rows) == 0,
                )
                continue
            ends = _quality_panel(axis, table, samplers, metric, (floor or {}).get(metric))
            label = (labels or {}).get(metric, metrics_table.find(metric).label)
            axis.set(xlabel="network evaluations (NFE)", ylabel=_wrapped(label))
            if alone:
                _name_ends(axis, ends)
        if not (alone or one_budget):
            lines = {}
            for axis in axes:
                lines |= dict(zip(*reversed(axis.get_legend_handles_labels())))
            names = [name for name in samplers if name in lines] + [
                name for name in lines if name not in samplers
            ]
            handles = [lines[name] for name in names]
            axes[0].figure.legend(
                handles, names, loc="outside right center", fontsize=8.5, handlelength=3
            )
        if title:
            axes[0].figure.suptitle(title, x=0.01, ha="left", fontweight="bold")


def placed_times(
    table: Sequence[Mapping[str, Any]],
    logsnr: Mapping[int, Sequence[float]],
    metrics: Sequence[str],
    path: str | os.PathLike,
    *,
    title: str | None = None,
    floor: Mapping[str, float] | None = None,
) -> None:
    """Where times were placed, one row of marks for each number of times, and what every grid
    scores.

    Scores are curves against NFE, or, at one budget, a row of the panel for each grid.

    Args:
      table: rows as for quality_curves, 'sampler' being the grid's name.
      logsnr: how many times -> their log-SNR.
      metrics: names of evaluation.metrics, a panel for each.
      path: the file to write.
      title: stands at the top.
      floor: metric -> what the truth itself scores, a gray line.
    """
    grids = list(dict.fromkeys(row["sampler"] for row in table))
    with _figure(path, panels=1 + len(metrics), size=(4.3, 3.8)) as axes:
        for i, n in enumerate(sorted(logsnr)):
            places = -0.5 * np.asarray(logsnr[n]) / math.log(10)
            axes[0].plot(places, np.full(n, i), color=COLOURS[0], marker="o", linewidth=0.8)
        axes[0].set_yticks(range(len(logsnr)), [f"{n} times" for n in sorted(logsnr)])
        axes[0].set(xlabel="log₁₀(σ / α): data left, noise right", ylim=(-0.5, len(logsnr) - 0.5))
        alone = len({row["nfe"] for row in table}) == 1
        for i, (axis, metric) in enumerate(zip(axes[1:], metrics)):
            least, label = (floor or {}).get(metric), _wrapped(metrics_table.find(metric).label)
            if alone:
                _dots(
                    axis,
                    {row["sampler"]: row.get(metric) for row in table},
                    label,
                    least,
                    named=i == 0,
                    marked=grids[-1],
                )
            else:
                _quality_panel(axis, table, grids, metric, least)
                axis.set(xlabel="network evaluations (NFE)", ylabel=label)
        if not alone:
            handles, names = axes[-1].get_legend_handles_labels()
            axes[0].figure.legend(handles, names, loc="outside right center", fontsize=8.5)
        if title:
            axes[0].figure.suptitle(title, x=0.01, ha="left", fontweight="bold")


def lengths(
    rows: Sequence[Mapping[str, Any]], path: str | os.PathLike, *, title: str | None = None
) -> None:
    """Scores against the relative length of an EMA. rows: {'length', metric: (mean, standard
    deviation)}, other keys aside.
    """
    metrics = [key for key, value in rows[0].items() if isinstance(value, tuple)]
    with _figure(path, panels=len(metrics), size=(4.3, 3.4)) as axes:
        for axis, metric in zip(axes, metrics):
            own = metrics_table.find(metric)
            label, factor = own.label, own.format.factor
            mean, spread = factor * np.array([row[metric] for row in rows], float).T
            axis.errorbar(
                [row["length"] for row in rows],
                mean,
                spread,
                color=COLOURS[0],
                marker="o",
                capsize=2.5,
            )
            axis.set(xlabel="relative length σ of the average", ylabel=label)
        if title:
            axes[0].figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=9)


def bars(
    scored: Mapping[str, Mapping[str, tuple[float, float]]],
    metrics: Mapping[str, tuple[str, float]],
    path: str | os.PathLike,
    *,
    floor: Mapping[str, float] | None = None,
    title: str | None = None,
) -> None:
    """A panel for each metric, a bar with its error for each name.

    scored: name -> metric -> (mean, error); metrics: key -> (label, factor), those that nobody has
    are left out; floor: metric -> what the truth scores, a grey line. Bars that differ more than
    thirtyfold are drawn on a logarithmic scale.
    """
    present = {
        key: what
        for key, what in metrics.items()
        if any(key in scores for scores in scored.values())
    }
    names, rows = list(scored), 1 if len(present) < 4 else 2
    with _figure(path, panels=len(present), size=(3.7, 0.9 + 0.22 * len(names)), rows=rows) as axes:
        for i, (axis, (key, (label, factor))) in enumerate(zip(axes, present.items())):
            have = [name for name in names if key in scored[name]]
            mean, error = (
                factor * np.array([scored[name][key][j] for name in have]) for j in (0, 1)
            )
            axis.barh(
                [names.index(name) for name in have],
                mean,
                xerr=error,
                color=COLOURS[0],
                height=0.65,
                error_kw={"ecolor": INK, "elinewidth": 0.9},
            )
            if floor and _number(floor.get(key)):
                axis.axvline(factor * floor[key], color=FAINT, linestyle=":", label="real images")
            if mean.min() > 0 and mean.max() > 30 * mean.min():
                axis.set_xscale("log")
            first = i % math.ceil(len(present) / rows) == 0
            axis.set(
                yticks=range(len(names)),
                yticklabels=names if first else [],
                ylim=(len(names) - 0.5, -0.5),
                xlabel=label,
            )
            axis.grid(visible=False, axis="y")
        if title:
            axes[0].figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=9)


GUIDED = ("accuracy", "precision", "frechet", "recall", "coverage")  # panels of guidance_curves


def guidance_curves(
    rows: Sequence[Mapping[str, Any]],
    path: str | os.PathLike,
    *,
    floor: Mapping[str, float] | None = None,
    title: str | None = None,
) -> None:
    """Scores against the scale of guidance, one curve for each guide; and precision against recall,
    fidelity against diversity.

    rows: {'guide', 'scale', metric of GUIDED: value}. The last panel begins at scale 1, its points
      named by their scales.
    floor: metric -> what real images score, a grey line.
    """
    guides = list(dict.fromkeys(row["guide"] for row in rows))
    metrics = [key for key in GUIDED if key in rows[0]]
    both = {"precision", "recall"} <= {*metrics}  # too few real images have neither
    with _figure(path, panels=len(metrics) + both, size=(4.1, 3.2), rows=2) as axes:
        for guide, colour, marker in zip(
            guides, (COLOURS + MORE) * len(guides), MARKERS * len(guides)
        ):
            own = sorted(
                (row for row in rows if row["guide"] == guide), key=lambda row: row["scale"]
            )
            style, scales = (
                {"color": colour, "marker": marker, "label": guide},
                np.array([row["scale"] for row in own]),
            )
            series = {
                key: metrics_table.find(key).format.factor
                * np.array([row[key] for row in own], float)
                for key in metrics
            }
            for axis, key in zip(axes, metrics):
                axis.plot(scales, series[key], **style)
            if not both:
                continue
            recall, precision = series["recall"][scales >= 1], series["precision"][scales >= 1]
            axes[-1].plot(recall, precision, **style)
            for scale, *where in zip(scales[scales >= 1], recall, precision):
                style = {"textcoords": "offset points", "fontsize": 7, "color": colour}
                axes[-1].annotate(f"{scale:g}", where, (4, 3), **style)
        for axis, key in zip(axes, metrics):
            metric = metrics_table.find(key)
            label, factor = metric.label, metric.format.factor
            if floor and _number(floor.get(key)):
                axis.axhline(
                    factor * floor[key], color=FAINT, linestyle=":", zorder=0, label="real images"
                )
            axis.set(xlabel="scale (1: no guidance)", ylabel=_wrapped(label))
        _log_if_wide(axes[metrics.index("frechet")])
        if both:
            axes[-1].set(
                xlabel="recall: diversity",
                ylabel="precision: fidelity",
                title="From scale 1 on",
            )
        handles, names = axes[0].get_legend_handles_labels()
        axes[0].figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8.5)
        if title:
            axes[0].figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=9)


def points(
    data: np.ndarray,
    samples: np.ndarray | Mapping[str, np.ndarray],
    path: str | os.PathLike,
    *,
    shown: int = 4000,
) -> None:
    """2-D samples beside their data, on the same axes. data (M, 2); samples (N, 2), or several by
    name.
    """
    sets = {"data": data} | (
        dict(samples) if isinstance(samples, Mapping) else {"samples": samples}
    )
    low, high = np.quantile(data, 0.001, axis=0), np.quantile(data, 0.999, axis=0)
    centre, half = (low + high) / 2, 0.6 * float(max(high - low))
    with _figure(path, panels=len(sets), size=(3.2, 3.4)) as axes:
        for i, (axis, (name, xy)) in enumerate(zip(axes, sets.items())):
            some = np.asarray(xy)[:: math.ceil(len(xy) / shown)]
            axis.scatter(*some.T, s=3, alpha=0.4, linewidths=0, color=COLOURS[min(i, 1)])
            (left, bottom), (right, top) = centre - half, centre + half
            axis.set(title=name, xlim=(left, right), ylim=(bottom, top), aspect="equal")
            axis.set(xlabel="x₁", ylabel="x₂" if i == 0 else "")


@contextlib.contextmanager
def _figure(
    path: str | os.PathLike, panels: int, size: tuple[float, float] = (5.2, 3.5), rows: int = 1
) -> Iterator[list]:
    """with _figure(path, panels) as axes: draw in the house style; the file is written when the
    block ends well.

    size: of a panel, in inches; the panels stand in `rows` rows.
    """
    with matplotlib.rc_context(STYLE):
        columns = math.ceil(panels / rows)
        figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
        for axis in axes[panels:]:
            axis.remove()
        yield axes[:panels]
        with atomic_path(path) as temporary:
            figure.savefig(temporary)


def _loss_against_images(axis, rows: Sequence[Mapping[str, Any]]) -> None:
    unit = "images" if any("images" in row for row in rows) else "step"

    def series(key: str) -> tuple[np.ndarray, np.ndarray]:
        pairs = [
            (row[unit], row[key])
            for row in rows
            if _number(row.get(key)) and _number(row.get(unit))
        ]
        return tuple(np.array(pairs, float).reshape(-1, 2).T)

    x, loss = series("loss")
    axis.plot(x, loss, color=COLOURS[0], alpha=0.25, linewidth=0.8)
    axis.plot(x, _smooth(loss), color=COLOURS[0], label="training (smoothed)")
    held_x, held = series("eval_loss")
    if len(held):
        axis.plot(held_x, held, color=COLOURS[1], marker="o", label="held-out")
    _log_if_wide(axis)
    axis.set(
        xlabel="images seen" if unit == "images" else "training step", ylabel="loss", title="Loss"
    )
    axis.xaxis.set_major_formatter(_engineering())
    axis.legend()


def _loss_by_level(axis, rows: Sequence[Mapping[str, Any]]) -> None:
    thirds = np.array_split(np.arange(len(rows)), min(3, len(rows)))
    names = {1: ["training"], 2: ["early", "late"], 3: ["early", "midway", "late"]}[len(thirds)]
    for indices, name, colour in zip(thirds, names, ("#9ecae1", "#4292c6", "#08306b")):
        edges = np.array(rows[indices[-1]]["level_edges"], float)
        curves = [rows[i]["loss_by_level"] for i in indices]
        means = _nan_mean([curve for curve in curves if len(curve) == len(edges) - 1])
        axis.plot((edges[1:] + edges[:-1]) / 2, means, color=colour, marker="o", label=name)
    axis.set(
        xlabel="log-SNR (noise at the left, data at the right)",
        ylabel="loss",
        title="Loss by noise level",
    )
    _log_if_wide(axis)
    axis.legend()


def _quality_panel(
    axis,
    table: Sequence[Mapping[str, Any]],
    samplers: Sequence[str],
    metric: str,
    floor: float | None,
) -> list:
    """Draw the curves; returns where each ends: (x, y, name, colour)."""
    factor = metrics_table.find(metric).format.factor
    stochastic = [
        name
        for name in samplers
        if any(row.get("stochastic") for row in table if row["sampler"] == name)
    ]
    ends, palette = [], COLOURS + MORE
    for name in samplers:
        own = [row for row in table if row["sampler"] == name and _number(row.get(metric))]
        curve = sorted(
            (row.get("evaluations", row.get("nfe")), factor * row[metric]) for row in own
        )
        if curve:
            x, y = zip(*curve)
            peers = (
                stochastic
                if name in stochastic
                else [other for other in samplers if other not in stochastic]
            )
            again, i = divmod(peers.index(name), len(palette))
            marker, colour = (
                MARKERS[(i + again) % len(MARKERS)],
                palette[i],
            )  # a colour's second use has another marker
            fill, line = (PAPER, "--") if name in stochastic else (colour, "-")
            axis.plot(
                x, y, label=name, color=colour, marker=marker, markerfacecolor=fill, linestyle=line
            )
            ends.append((x[-1], y[-1], name, colour))
    if floor is not None:
        axis.axhline(
            factor * floor,
            color=FAINT,
            linewidth=1.2,
            linestyle=":",
            zorder=0,
            label="truth itself",
        )
    if metric == "accuracy":
        axis.set_ylim(top=min(axis.get_ylim()[1], 101))  # percent
    else:
        _log_if_wide(axis)
    budgets = sorted(
        {row["nfe"] for row in table if row.get("nfe")} or {row["evaluations"] for row in table}
    )
    ticks = functools.reduce(
        lambda kept, nfe: kept + [nfe] if not kept or nfe > 1.2 * kept[-1] else kept, budgets, []
    )
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{nfe:g}" for nfe in ticks])
    axis.set_xticks([], minor=True)
    return ends


def _dots(
    axis,
    scores: Mapping[str, float | None],
    label: str,
    floor: float | None,
    *,
    named: bool,
    marked: str = "",
) -> None:
    """A dot with its number for the score of each name, the first name at the top; `marked` in
    another color.
    """
    names = list(scores)
    there = [i for i, name in enumerate(names) if _number(scores[name])]
    values = np.array([scores[names[i]] for i in there], float)
    colours = [COLOURS[names[i] == marked] for i in there]
    if floor is not None:
        axis.axvline(floor, color=FAINT, linestyle=":", zorder=0, label="truth itself")
        axis.legend(fontsize=8.5)
    axis.scatter(values, there, color=colours, zorder=3)
    if len(values) and values.min() > 0 and values.max() > 4 * values.min():
        axis.set_xscale("log")
        _plain_logarithms(axis.xaxis, math.log10(values.max() / values.min()))
    for i, value in zip(there, values):
        axis.annotate(
            f"{value:.3g}",
            (value, i),
            (0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=7.5,
        )
    axis.margins(x=0.12)
    axis.set(
        yticks=range(len(names)),
        yticklabels=names if named else [],
        ylim=(len(names) - 0.5, -0.7),
        xlabel=label,
    )


def _wrapped(label: str) -> str:
    """The label of an axis in lines that fit beside a panel."""
    return "\n".join(textwrap.wrap(label, 36))


def _name_ends(
    axis, ends: Sequence[tuple[float, float, str, str]], line_height: float = 13.0
) -> None:
    """Write each curve's name to the right of its last point; names that would overlap are moved
    apart.
    """
    axis.figure.draw_without_rendering()  # settles the axes' limits
    ends = sorted(ends, key=lambda end: end[1])
    points = 72 / axis.figure.dpi  # in a pixel; the offsets below are in points
    low, high = axis.bbox.intervaly * points + np.array([0.5, -0.5]) * line_height
    wanted = [axis.transData.transform(end[:2])[1] * points for end in ends]
    for (x, y, name, colour), want, place in zip(
        ends, wanted, _apart(wanted, line_height, low, high)
    ):
        style = {"va": "center", "color": colour, "annotation_clip": False}
        axis.annotate(name, (x, y), (9, place - want), textcoords="offset points", **style)


def _apart(wanted: Sequence[float], distance: float, low: float, high: float) -> list[float]:
    """Ascending positions moved as little as keeps them `distance` apart, within [low, high] while
    there is room.

    Those that collide are spread around their mean.
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


def _log_if_wide(axis) -> None:
    """A logarithmic y axis, with numbers a person can read, where positive values span more than a
    factor of four.
    """
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axis.lines])
    values = values[np.isfinite(values)]
    if len(values) and values.min() > 0 and values.max() > 4 * values.min():
        axis.set_yscale("log")
        _plain_logarithms(axis.yaxis, math.log10(values.max() / values.min()))


def _plain_logarithms(axis, decades: float) -> None:
    """Ticks of a logarithmic axis as numbers that a person can read."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _smooth(values: np.ndarray) -> np.ndarray:
    """Mean over about a thirtieth of the run; narrower at the start, so that the first steep fall
    is not bent.
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    i = np.arange(len(values))
    reach = np.minimum(len(values) // 60, i)
    low, high = i - reach, np.minimum(i + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _nan_mean(rows: Sequence[Sequence[float | None]]) -> np.ndarray:
    """Column means over the entries that are there (a bin that met no example has None or NaN)."""
    values = np.array(rows, float)
    there = np.isfinite(values)
    counts = there.sum(0)
    return np.where(counts > 0, np.where(there, values, 0.0).sum(0) / np.maximum(counts, 1), np.nan)


def _engineering():

    return EngFormatter(sep="")


def _number(value: Any) -> bool:
    return value is not None and np.isscalar(value) and math.isfinite(value)
