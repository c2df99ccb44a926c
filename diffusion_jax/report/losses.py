"""The loss of a training run as a figure."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from diffusion_jax.core.deferred import deferred
from diffusion_jax.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ticker = deferred("matplotlib.ticker")

SHADES = ("#9ecae1", "#4292c6", "#08306b")  # early, midway and late in a run


def loss_curve(
    rows: Sequence[Mapping[str, Any]], path: str | os.PathLike, *, title: str | None = None
) -> None:
    """The loss against images seen (raw, smoothed, held-out), and by noise level.

    Args:
      rows: rows of metrics.jsonl, any of whose keys may be missing: 'images' (or else 'step'),
        'loss', 'eval_loss', and 'loss_by_level', a list of means, with 'level_edges', the log-SNR
        at the edges of the bins (one more than the means).
      path: the file to write.
      title: stands at the top.
    """
    by_level = [row for row in rows if row.get("loss_by_level") and row.get("level_edges")]
    with style.figure(path, panels=2 if by_level else 1, title=title) as axes:
        _loss_against_images(axes[0], rows)
        if by_level:
            _loss_by_level(axes[1], by_level)


def _loss_against_images(axis: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    unit = "images" if any("images" in row for row in rows) else "step"

    def series(key: str) -> np.ndarray:
        pairs = [
            (row[unit], row[key])
            for row in rows
            if style.is_number(row.get(key)) and style.is_number(row.get(unit))
        ]
        return np.array(pairs, float).reshape(-1, 2).T

    x, loss = series("loss")
    axis.plot(x, loss, color=style.COLORS[0], alpha=0.25, linewidth=0.8)
    axis.plot(x, _smooth(loss), color=style.COLORS[0], label="training (smoothed)")
    held_x, held = series("eval_loss")
    if len(held):
        axis.plot(held_x, held, color=style.COLORS[1], marker="o", label="held-out")
    style.log_if_wide(axis)
    label = "images seen" if unit == "images" else "training step"
    axis.set(xlabel=label, ylabel="loss", title="Loss")
    axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    axis.legend()


def _loss_by_level(axis: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """The means of each third of the run, in a darker shade the later."""
    thirds = np.array_split(np.arange(len(rows)), min(3, len(rows)))
    names = {1: ["training"], 2: ["early", "late"], 3: ["early", "midway", "late"]}[len(thirds)]
    for indices, name, color in zip(thirds, names, SHADES):
        edges = np.array(rows[indices[-1]]["level_edges"], float)
        curves = [rows[i]["loss_by_level"] for i in indices]
        means = _nan_mean([curve for curve in curves if len(curve) == len(edges) - 1])
        axis.plot((edges[1:] + edges[:-1]) / 2, means, color=color, marker="o", label=name)
    axis.set(
        xlabel="log-SNR (noise at the left, data at the right)",
        ylabel="loss",
        title="Loss by noise level",
    )
    style.log_if_wide(axis)
    axis.legend()


def _smooth(values: np.ndarray) -> np.ndarray:
    """The mean over about a thirtieth of the run.

    It is narrower at the start, so that the first steep descent is not distorted.
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    i = np.arange(len(values))
    reach = np.minimum(len(values) // 60, i)
    low, high = i - reach, np.minimum(i + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _nan_mean(rows: Sequence[Sequence[float | None]]) -> np.ndarray:
    """Means of columns over the entries that exist; a bin without examples has None or NaN."""
    values = np.array(rows, float)
    exists = np.isfinite(values)
    counts = exists.sum(0)
    sums = np.where(exists, values, 0.0).sum(0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
