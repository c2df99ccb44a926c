"""Quality against cost: the settings that no other beats in both."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffusion_jax.evaluation.metrics import find
from diffusion_jax.report import style
from diffusion_jax.report.style import COLORS

NAMED = 60  # characters of a name


def front(costs: Sequence[float], losses: Sequence[float]) -> list[int]:
    """The points of which no other has both a lower cost and a lower loss, by increasing cost.

    Of points that are equal in both, the first counts.

    Args:
      costs: of each point.
      losses: of each point; less is better.

    Returns:
      The numbers of the points.
    """
    found: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], losses[i], i)):
        if not found or losses[i] < losses[found[-1]]:
            found.append(i)
    return found


def pareto_fronts(
    rows: Sequence[Mapping[str, Any]],
    path: str | os.PathLike,
    *,
    metric: str,
    features: str,
    costs: Sequence[str] = ("evaluations", "seconds_per_image"),
    real: float | None = None,
    title: str | None = None,
) -> None:
    """A score against each kind of cost; settings on a front have numbers that are named below.

    Args:
      rows: {metric: score, cost: value, 'interval': half its 95 % interval or None, 'name': text}.
      path: the file to write.
      metric: the score.
      features: what the score depends on, which its label names; '' for scores of points.
      costs: the keys of the costs; a panel for each.
      real: the score of real images, a gray line.
      title: stands at the top.
    """
    score = find(metric, features)
    losses = [score.loss(row[metric]) for row in rows]
    fronts = {key: front([row[key] for row in rows], losses) for key in costs}
    named = list(dict.fromkeys(i for best in fronts.values() for i in best))
    with style.figure(path, len(costs), (5.6, 4.2), title=title, title_size=9) as axes:
        for axis, key in zip(axes, costs):
            cost = find(key)
            x = np.array([row[key] for row in rows], float) * cost.format.factor
            y = np.array([row[metric] for row in rows], float) * score.format.factor
            half = [(row.get("interval") or 0.0) * score.format.factor for row in rows]
            best = fronts[key]
            style.error_bars(axis, x, y, yerr=half, color=style.FAINT)
            axis.plot(x, y, "o", color=style.FAINT, markersize=4, zorder=2)
            axis.plot(x[best], y[best], "o-", color=COLORS[0], label="Pareto front", zorder=3)
            if real is not None:
                line = {"color": style.FAINT, "linestyle": ":", "label": "real images"}
                axis.axhline(real * score.format.factor, **line)
            axis.set(xlabel=cost.label, ylabel=style.wrapped(score.label), xscale="log")
            style.plain_logarithms(axis.xaxis, np.log10(max(x.max() / max(x.min(), 1e-12), 1)))
            style.log_if_wide(axis)
            look = {"textcoords": "offset points", "fontsize": 8, "color": COLORS[0]}
            for i in best:
                axis.annotate(str(named.index(i) + 1), (x[i], y[i]), (4, 4), **look)
        axes[0].legend(fontsize=8)
        lines = [f"{n + 1}: {str(rows[i]['name'])[:NAMED]}" for n, i in enumerate(named)]
        axes[0].figure.supxlabel("   ".join(lines), fontsize=8, wrap=True)
