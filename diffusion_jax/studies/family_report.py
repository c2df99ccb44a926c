"""The tables, figures and page of a comparison of families."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.core import files
from diffusion_jax.evaluation.metrics import find
from diffusion_jax.report import html, pictures, sweeps, tables
from diffusion_jax.studies.claims import METRICS, Scored, over_seeds, verdicts
from diffusion_jax.studies.ranking import interval

DRAWN = (  # the metrics in the figure
    "laplacian",
    "high_frequency",
    "frechet",
    "precision",
    "recall",
    "accuracy",
    "milliseconds",
)
CLAIMS = {"claim": "the textbook says", "verdict": "here", "measured": "measured"}


def write(
    rows: Sequence[Mapping[str, Any]],
    shown: Mapping[str, np.ndarray],
    real: Mapping[str, float],
    titles: Mapping[str, str],
    stem: Path,
    record: Mapping[str, Any],
) -> str:
    """Write stem.json, .md, .png, _strips.png and .html.

    Args:
      rows: a row for each family and seed.
      shown: family -> its first images; 'real' is one of the keys.
      real: what real test images score, and half the widths of their 'intervals'.
      titles: family -> what it is.
      stem: the path of the files, without their endings.
      record: 'data', 'num', 'seconds', 'features' and 'provenance'.

    Returns:
      The text of stem.md.
    """
    features, scored = record["features"], over_seeds(rows)
    title = f"Families of generative models on {record['data']}"
    claims, facts = verdicts(scored, features), _facts(rows, record)
    scored = _with_intervals(scored, rows)
    table, columns = _table(scored, real, features)
    text = (
        f"# {title}\n\n{facts}\n\n{tables.markdown_table(claims, CLAIMS)}\n"
        f"{tables.markdown_table(table, columns)}"
    )
    files.save_text(stem.with_suffix(".md"), text)
    result = {"rows": list(rows), "verdicts": claims, "real": dict(real), "titles": columns}
    files.save_json(stem.with_suffix(".json"), {**result, **record})
    how = {"features": features, "reference": real, "title": title}
    sweeps.bars(scored, DRAWN, stem.with_suffix(".png"), **how)
    everything = html.code(files.canonical_json(record))
    page = [
        (
            "What the textbook says, and what was measured",
            html.table(claims, CLAIMS, wrong="measured"),
        ),
        ("Samples", _strips(shown, titles, stem)),
        ("In numbers", html.picture(stem.with_suffix(".png"), "bars")),
        ("All of them", html.table(table, columns)),
        ("The families", html.facts(titles)),
        ("Where the numbers come from", html.folded("everything on record", everything)),
    ]
    html.save(stem.with_suffix(".html"), html.page(title, page, lead=facts))
    return text


def said_scores(row: Mapping[str, Any], features: str) -> str:
    """The scores of a row that the figure shows, with their titles, units and intervals.

    Args:
      row: scores by metric, and half the widths of the 'intervals' that are known.
      features: what plain scores depend on, which is named; '' where it is not known.
    """
    return ", ".join(
        f"{find(key, features).title} {find(key).text(row[key], interval(row, key))}"
        for key in DRAWN
        if key in row
    )


def _facts(rows: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> str:
    seeds, stamp = len({row["seed"] for row in rows}), record["provenance"]
    return (
        f"{record['seconds']:g} s of training each, {record['num']} images a model, compared with "
        f"training images by {record['features']}; ± is the standard deviation over {seeds} seeds "
        "where a family has more than one, otherwise half the width of the 95 % interval of its "
        f"images. {stamp['date'][:10]}, {stamp['cpu']['model']}."
    )


def _with_intervals(
    scored: Mapping[str, Scored], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Scored]:
    """The scores of families, with the interval of its images for a family with one seed."""
    shown = {name: dict(scores) for name, scores in scored.items()}
    for row in rows:
        for key, (mean, std) in scored[row["family"]].items():
            shown[row["family"]][key] = mean, std or interval(row, key) or 0.0
    return shown


def _table(
    scored: Mapping[str, Scored], real: Mapping[str, Any], features: str
) -> tuple[list[dict[str, str]], dict[str, str]]:
    """Make (a row for each family and one for real images, the headings of the columns)."""
    present = [key for key in METRICS if any(key in scores for scores in scored.values())]
    table = [
        {"family": name} | {key: find(key).text(*scores[key]) for key in present if key in scores}
        for name, scores in scored.items()
    ]
    last = {key: find(key).text(real[key], interval(real, key)) for key in present if key in real}
    table.append({"family": "real test images"} | last)
    return table, {"family": "family"} | {key: find(key, features).title for key in present}


def _strips(shown: Mapping[str, np.ndarray], titles: Mapping[str, str], stem: Path) -> str:
    """Write stem_strips.png; returns the same pictures as HTML."""
    scale = max(1, round(56 / shown["real"].shape[1]))
    strips = {(name, 0): pictures.mosaic(images, 1, scale=scale) for name, images in shown.items()}
    path, title = stem.with_name(f"{stem.name}_strips.png"), "The first samples of every family"
    pictures.strips(strips, path, columns={0: ""}, title=title)
    cells = {key: (html.picture(tile), titles.get(key[0], "")) for key, tile in strips.items()}
    return html.gallery(cells, {name: name for name in shown}, {0: ""})
