"""Figures of a comparison of families: against training time, over beta, by unit and over seeds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from diffusion_jax.core.deferred import deferred
from diffusion_jax.evaluation.metrics import find
from diffusion_jax.report import style
from diffusion_jax.report.style import COLORS, MARKERS, MORE_COLORS, is_number, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ticker = deferred("matplotlib.ticker")

Rows = Sequence[Mapping[str, Any]]
DEAD = 0.02  # nats below which a unit of a latent is called dead


def _looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A color and a marker for each name."""
    colors = (COLORS + MORE_COLORS) * len(names)
    markers = MARKERS * len(names)
    return {
        name: {"color": colors[i], "marker": markers[i], "label": name}
        for i, name in enumerate(names)
    }


def training_curves(
    curves: Mapping[str, Rows],
    metrics: Sequence[str],
    path: str | os.PathLike,
    *,
    features: str,
    reference: Mapping[str, float] | None = None,
    title: str | None = None,
) -> None:
    """Scores against training time on a logarithmic axis, a curve for each family.

    Args:
      curves: by family, the scores at each point of training, with 'minutes', and 'intervals', half
        the width of the interval of each score that has one; points without 'minutes' are left out.
      metrics: names of evaluation.metrics, a panel for each.
      path: the file to write.
      features: what the scores depend on, which labels name.
      reference: the score of real images, a gray line, by metric.
      title: stands at the top.
    """
    looks = _looks(list(curves))
    size = (4.3, 3.6)
    curves = {
        name: timed
        for name, rows in curves.items()
        if (timed := [row for row in rows if "minutes" in row])
    }
    every = [row["minutes"] for rows in curves.values() for row in rows]
    unit, of_minute = ("minutes", 1) if max(every) > 2 else ("seconds", 60)
    with style.figure(path, len(metrics), size, title=title) as axes:
        for axis, key in zip(axes, metrics):
            metric = find(key, features)
            factor = metric.format.factor
            for name, rows in curves.items():
                known = [row for row in rows if is_number(row.get(key))]
                x = [of_minute * row["minutes"] for row in known]
                y = [factor * row[key] for row in known]
                axis.plot(x, y, **looks[name])
                half = [factor * row.get("intervals", {}).get(key, 0.0) for row in known]
                style.error_bars(axis, x, y, yerr=half, color=looks[name]["color"])
            style.log_if_wide(axis)
            if reference and is_number(reference.get(key)):
                line = {"color": style.FAINT, "linestyle": ":", "zorder": 0}
                axis.axhline(factor * reference[key], label="real test images", **line)
            axis.set(xlabel=f"training time ({unit} of one core)", ylabel=wrapped(metric.label))
            axis.set_xscale("log")
            style.plain_logarithms(axis.xaxis, np.log10(max(every) / min(every)))
        handles, names = axes[0].get_legend_handles_labels()
        axes[0].figure.legend(handles, names, loc="outside lower center", ncols=8, fontsize=8.5)


def rate_distortion(
    rows: Rows, marked: Rows, path: str | os.PathLike, *, title: str | None = None
) -> None:
    """Rate against distortion of test images over beta, and the Fréchet distance of samples.

    Args:
      rows: in the order of beta, each with 'name', 'rate', 'distortion', 'active_units' and
        'frechet'.
      marked: rows of other families, points without a line in the second panel.
      path: the file to write.
      title: stands at the top.
    """
    with style.figure(path, 2, (4.6, 3.6), title=title) as axes:
        rate = [row["rate"] for row in rows]
        axes[0].plot(rate, [row["distortion"] for row in rows], color=COLORS[0], marker="o")
        for i, row in enumerate(rows):
            text = f"{row['name']} ({row['active_units']:.0f})"
            _note(axes[0], text, row["rate"], row["distortion"], below=i % 2 == 1)
        axes[0].set(xlabel="rate: KL(q(z|x) || p(z)), nats; in brackets active units")
        axes[0].set(ylabel="distortion: -log p(x|z), nats")
        axes[1].plot(rate, [row["frechet"] for row in rows], color=COLORS[0], marker="o")
        for i, row in enumerate(rows):
            _note(axes[1], row["name"], row["rate"], row["frechet"], below=i % 2 == 1)
        marked = sorted(marked, key=lambda row: row["frechet"])
        for i, (row, color) in enumerate(zip(marked, (*COLORS[1:], *MORE_COLORS))):
            axes[1].plot(row["rate"], row["frechet"], color=color, marker="s", linestyle="none")
            _note(axes[1], row["name"], row["rate"], row["frechet"], color, below=i % 2 == 0)
        axes[1].set(xlabel="rate, nats", ylabel="Fréchet distance of samples")
        for axis in axes:
            axis.margins(x=0.35, y=0.12)
            axis.set_xlim(left=0)


def _note(
    axis: Axes, text: str, x: float, y: float, color: str = style.INK, *, below: bool = False
) -> None:
    look = {"textcoords": "offset points", "fontsize": 7.5, "color": color}
    axis.annotate(text, (x, y), (5, -10 if below else 4), **look)


def collapse(
    probes: Mapping[str, Mapping[str, np.ndarray]],
    path: str | os.PathLike,
    *,
    title: str | None = None,
) -> None:
    """The rate of each unit as bars, and what setting a live or a dead unit changes.

    Args:
      probes: by family 'rates' (D,), the nats of each unit; 'units' (U,), those that are traversed;
        and 'traversals' (U, V, H, W, C), uint8.
      path: the file to write.
      title: stands at the top.
    """
    highest = max(float(probe["rates"].max()) for probe in probes.values())
    with style.figure(path, 2 * len(probes), (4.4, 2.4), len(probes), title=title) as axes:
        for i, (name, probe) in enumerate(probes.items()):
            rates = np.sort(probe["rates"])[::-1]
            axis = axes[2 * i]
            axis.bar(range(len(rates)), rates, color=COLORS[0])
            for place in range(len(probe["units"])):
                dead = place >= len(probe["units"]) - 2
                where = len(rates) - len(probe["units"]) + place if dead else place
                axis.bar(where, rates[where], color=COLORS[1] if dead else COLORS[2])
            axis.set(xlabel="unit of the latent, by rate", ylabel="KL (nats)", title=name)
            axis.set(xticks=range(0, len(rates), 5), ylim=(0, 1.1 * highest))
            axis.grid(visible=False, axis="x")
            _draw_traversals(axes[2 * i + 1], probe["traversals"], rates)


def _draw_traversals(axis: Axes, images: np.ndarray, rates: np.ndarray) -> None:
    units, values, height, width, channels = images.shape
    gap = max(1, height // 14)
    sheet = np.full(
        (units * (height + gap) - gap, values * (width + gap) - gap, channels), 255, np.uint8
    )
    for row in range(units):
        for column in range(values):
            y, x = row * (height + gap), column * (width + gap)
            sheet[y : y + height, x : x + width] = images[row, column]
    shown = sheet if channels == 3 else sheet[..., 0]
    look = {"cmap": "gray", "vmin": 0, "vmax": 255, "interpolation": "nearest"}
    axis.imshow(shown, aspect="equal", extent=(0, sheet.shape[1], sheet.shape[0], 0), **look)
    axis.grid(visible=False)
    axis.spines[["left", "bottom"]].set_visible(False)
    step = np.arange(units) * (height + gap) + height / 2
    shown_rates = [*rates[: units - 2], *rates[-2:]]
    names = [f"{'live' if rate > DEAD else 'dead'}: {rate:.2f} nats" for rate in shown_rates]
    axis.set_yticks(step, names, fontsize=7.5)
    places = np.array([0, values // 2, values - 1]) * (width + gap) + width / 2
    axis.set_xticks(places, ["-3", "0", "3"])
    axis.tick_params(length=0)
    axis.set_xlabel("value of one unit, the others fixed")


def stability(
    losses: Mapping[str, Sequence[Rows]],
    scored: Mapping[str, Sequence[float]],
    path: str | os.PathLike,
    *,
    features: str,
    title: str | None = None,
) -> None:
    """Loss curves of several seeds, a panel for each family, and the Fréchet distance of each seed.

    Args:
      losses: by family and seed, rows of metrics.jsonl with 'images' and 'loss'.
      scored: by family, the Fréchet distance of each seed.
      path: the file to write.
      features: what the distance depends on.
      title: stands at the top.
    """
    panels = len(losses) + 1
    rows = 1 if panels <= 3 else 2
    with style.figure(path, panels, (3.9, 3.0), rows, title=title) as axes:
        for axis, (name, runs) in zip(axes, losses.items()):
            for i, run in enumerate(runs):
                known = [row for row in run if is_number(row.get("loss"))]
                x, y = ([row[key] for row in known] for key in ("images", "loss"))
                axis.plot(x, y, color=COLORS[i % len(COLORS)], linewidth=1.1, label=f"seed {i}")
            style.log_if_wide(axis)
            axis.set(xlabel="images seen", ylabel="training loss", title=name)
            axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
        axes[0].legend(fontsize=8)
        axis, names = axes[-1], list(scored)
        for place, name in enumerate(names):
            values = scored[name]
            axis.plot(values, [place] * len(values), "o", color=COLORS[0], alpha=0.8)
        axis.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
        axis.set(xlabel=wrapped(find("frechet", features).label), title="each seed")
        axis.set_xlim(0, 1.08 * max(max(values) for values in scored.values()))


def cost_of_quality(
    rows: Rows,
    path: str | os.PathLike,
    *,
    features: str,
    reference: float | None = None,
    title: str | None = None,
) -> None:
    """The Fréchet distance against the time of an image, a named point for each family.

    Args:
      rows: each with 'name', 'milliseconds', 'evaluations' and 'frechet'.
      path: the file to write.
      features: what the distance depends on.
      reference: that of real test images, a gray line.
      title: stands at the top.
    """
    with style.figure(path, 1, (6.6, 4.2), title=title) as (axis,):
        for i, row in enumerate(sorted(rows, key=lambda row: row["frechet"])):
            color = (COLORS + MORE_COLORS)[i % 12]
            axis.plot(row["milliseconds"], row["frechet"], color=color, marker="o")
            text = f"{row['name']} ({row['evaluations']:.0f})"
            _note(axis, text, row["milliseconds"], row["frechet"], color, below=i % 2 == 0)
        axis.set_xscale("log")
        times = [row["milliseconds"] for row in rows]
        style.plain_logarithms(axis.xaxis, np.log10(max(times) / min(times)))
        style.log_if_wide(axis)
        if is_number(reference):
            axis.axhline(reference, color=style.FAINT, linestyle=":", zorder=0)
            axis.annotate(
                "real test images",
                (0.01, reference),
                (0, 3),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                fontsize=7.5,
                color=style.FAINT,
            )
        axis.set(
            xlabel="time per image (ms of one core); in brackets network evaluations",
            ylabel=wrapped(find("frechet", features).label),
        )
        axis.margins(0.2)
