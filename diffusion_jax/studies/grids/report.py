"""The table and the figure of optimized grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_jax.core import files
from diffusion_jax.evaluation.metrics import INTERVALS, find
from diffusion_jax.report import quality
from diffusion_jax.report.tables import markdown_table
from diffusion_jax.studies.samplers.ranking import QUALITY, interval

PLACED = "placed"  # the name of the optimized grid in rows
SHIFT = "shift"  # the distance of a grid's samples to the exact samples

Rows = Sequence[Mapping[str, Any]]


def write(kept: Mapping[str, Any], title: str, stem: Path) -> str:
    """Write stem.md and stem.png.

    Args:
      kept: the content of stem.json: 'rows', 'logsnr', 'exact', 'floor' and 'floor_intervals' (the
        scores of the truth), 'starts', 'num' and, of images, 'features'.
      title: the title of both.
      stem: the path of the files, without their endings.

    Returns:
      The text of stem.md.
    """
    rows, exact, truth = kept["rows"], kept["exact"], kept.get("floor", {})
    features = kept.get("features", "")
    judged = [metric for metric in QUALITY if metric in rows[0]]
    measures = [metric for metric in (SHIFT, *judged) if all(metric in row for row in rows)]
    measures = ["error", *measures]
    known = truth | {"intervals": kept.get("floor_intervals", {})}
    scores, truth_said = _said(exact, judged, features), _said(known, judged, features)
    text = (
        f"# {title}\n\nPlaced by {kept['starts']} seeds; measured on {kept['num']} others, those "
        f"with exact solutions on the first {exact['solved']}. The exact solution is "
        f"{exact['what']}"
    )
    text += f"; its own scores: {scores}." if scores else "."
    if truth_said:
        text += (
            f" As much real data scores: {truth_said}; differences between scores "
            "below that are noise."
        )
    text += f"\n\n{report(rows, measures, features)}\n{INTERVALS}\n"
    files.save_text(Path(f"{stem}.md"), text)
    lengths = {int(n): lam for n, lam in kept["logsnr"].items()}
    how = {"features": features, "title": title, "reference": truth}
    quality.placed_times(rows, lengths, measures, Path(f"{stem}.png"), **how)
    return text


def titles(row: Mapping[str, Any], features: str) -> dict[str, str]:
    """The title of every score in a row.

    Args:
      row: 'sampler', 'nfe', the scores and their 'intervals'.
      features: what the scores depend on, which is named; '' for scores of points.
    """
    scores = [name for name in row if name not in ("sampler", "nfe", "intervals")]
    return {name: find(name, features).title for name in scores}


def report(rows: Rows, measures: Sequence[str], features: str) -> str:
    """Write a Markdown table of the best hand-made and the placed grid, by budget and measure.

    Args:
      rows: a row for each grid and budget: 'sampler' (PLACED for the optimized grid, otherwise the
        grid's name), 'nfe', and every measure, where lower is better.
      measures: names of metrics, each of which has three columns: both scores and their ratio.
      features: what the Fréchet distance compares, which is named; '' for scores of points.
    """
    columns, table = {"nfe": "NFE"}, []
    for metric in measures:
        columns |= {
            f"{metric}.hand": f"{find(metric, features).title}, best hand-made grid",
            f"{metric}.placed": PLACED,
            f"{metric}.ratio": "times smaller",
        }
    for nfe in sorted({row["nfe"] for row in rows}):
        own = [row for row in rows if row["nfe"] == nfe]
        placed = next(row for row in own if row["sampler"] == PLACED)
        line: dict[str, Any] = {"nfe": nfe}
        for metric in measures:
            hand_made = [row for row in own if row["sampler"] != PLACED]
            hand = min(hand_made, key=lambda row: row[metric])
            line |= {
                f"{metric}.hand": f"{_score(hand, metric)} ({hand['sampler']})",
                f"{metric}.placed": _score(placed, metric),
                f"{metric}.ratio": _times(hand[metric], placed[metric]),
            }
        table.append(line)
    return markdown_table(table, columns)


def _times(hand: float, placed: float) -> str:
    """How many times smaller a score is; '-' for one that is 0, or below it as KID may be."""
    return f"{hand / placed:.2f}" if hand > 0 and placed > 0 else "-"


def _score(row: Mapping[str, Any], metric: str) -> str:
    return find(metric).number(row[metric], interval(row, metric))


def _said(scores: Mapping[str, Any], metrics: Sequence[str], features: str) -> str:
    present = [metric for metric in metrics if metric in scores]
    return ", ".join(
        f"{find(metric, features).title} "
        f"{find(metric).text(scores[metric], interval(scores, metric))}"
        for metric in present
    )
