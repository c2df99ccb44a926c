"""The tables, figures and page of a comparison of families."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_jax import data
from diffusion_jax.core import files
from diffusion_jax.evaluation.metrics import find
from diffusion_jax.report import html, sweeps, tables
from diffusion_jax.studies.families import figures
from diffusion_jax.studies.families.claims import METRICS, Scored, over_seeds, verdicts
from diffusion_jax.studies.families.figures import FIGURES, Material
from diffusion_jax.studies.families.tasks import FamilyResult
from diffusion_jax.studies.samplers.ranking import interval

DRAWN = (  # the metrics in the figure of bars
    "laplacian",
    "high_frequency",
    "frechet",
    "precision",
    "recall",
    "accuracy",
    "minutes",
    "milliseconds",
)
CLAIMS = {
    "claim": "the textbook says",
    "verdict": "in this setting",
    "measured": "measured",
    "picture": "figure",
}
CURVES = ("minutes", "images", "frechet", "accuracy", "laplacian", "recall")


def write(
    results: Sequence[FamilyResult],
    dataset: data.Dataset,
    real: Mapping[str, Any],
    titles: Mapping[str, str],
    stem: Path,
    record: Mapping[str, Any],
    copies: str = "",
) -> str:
    """Write stem.json, .md, .html, .png and the figures stem_NAME.png.

    Args:
      results: the finished runs.
      dataset: the images.
      real: what real test images score, and half the widths of their 'intervals'.
      titles: family -> what it is.
      stem: the path of the files, without their endings.
      record: 'data', 'num', 'images', 'end_logsnr', 'features', 'finished' and 'provenance'.
      copies: the beginning of the paths of copies of the figures; '' for none.

    Returns:
      The text of stem.md.
    """
    rows = [{"family": r.task.name, "seed": r.task.seed} | r.row for r in results]
    features, scored = record["features"], over_seeds(rows)
    title = f"Families of generative models on {record['data']}"
    claims, facts = verdicts(scored, features), _facts(rows, record)
    material = Material(results, scored, dataset, real, features, stem.parent)
    pictures = figures.draw(material, stem)
    shown = _with_intervals(scored, rows)
    table, columns = _table(shown, real, features)
    curves = _curves(results, features)
    text = (
        f"# {title}\n\n{facts}\n\n{tables.markdown_table(claims, CLAIMS)}\n"
        f"{tables.markdown_table(table, columns)}\n{tables.markdown_table(*curves)}"
    )
    files.save_text(stem.with_suffix(".md"), text)
    result = {
        "rows": rows,
        "curves": {r.task.folder: r.curve for r in results},
        "verdicts": claims,
        "real": dict(real),
        "titles": columns,
    }
    files.save_json(stem.with_suffix(".json"), {**result, **record})
    bars = stem.with_suffix(".png")
    sweeps.bars(shown, DRAWN, bars, features=features, reference=real, title=title)
    _copy({**pictures, "bars": bars}, copies)
    everything = html.code(files.canonical_json(record))
    page = [
        ("What the textbook says, and what was measured", html.table(claims, CLAIMS)),
        *((FIGURES[name][0], html.picture(path, name)) for name, path in pictures.items()),
        ("In numbers", html.picture(bars, "bars")),
        ("All of them", html.table(table, columns)),
        ("At each point of training", html.table(*curves)),
        ("The families", html.facts(titles)),
        ("Where the numbers come from", html.folded("everything on record", everything)),
    ]
    html.save(stem.with_suffix(".html"), html.page(title, page, lead=facts))
    return text


def _copy(pictures: Mapping[str, Path], beginning: str) -> None:
    """Copy the figures to BEGINNING_NAME.png, where a page of the documentation shows them."""
    for name, path in pictures.items() if beginning else ():
        target = Path(f"{beginning}_{name}.png")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


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
    ends = f"all processes end at log-SNR {record['end_logsnr']:g} for bits per dimension"
    spread = (
        f"the standard deviation over {seeds} seeds where a family has more than one, otherwise "
    )
    return (
        f"{record['images']:,} training images seen by each family, the same in the same order; "
        f"{record['num']} images drawn of each and compared with training images by "
        f"{record['features']} features; {ends}; times are those of one core; ± is "
        f"{spread if seeds > 1 else ''}half the width "
        f"of the 95 % interval of its images. {record['finished']} runs finished. "
        f"{stamp['date'][:10]}, {stamp['cpu']['model']}."
    )


def _with_intervals(
    scored: Mapping[str, Scored], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Scored]:
    """The scores of families, with the interval of its images for a family with one seed."""
    shown = {name: dict(scores) for name, scores in scored.items()}
    for row in rows:
        for key, (mean, std) in scored[row["family"]].items():
            alone = scored[row["family"]]["seeds"][0] == 1
            shown[row["family"]][key] = mean, (interval(row, key) or 0.0) if alone else std
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


def _curves(
    results: Sequence[FamilyResult], features: str
) -> tuple[list[dict[str, str]], dict[str, str]]:
    """Make (a row for each family, seed and point of training, the headings of the columns)."""
    rows = [
        {"family": result.task.name, "seed": str(result.task.seed)}
        | {key: find(key).text(row[key], interval(row, key)) for key in CURVES if key in row}
        for result in results
        for row in result.curve
    ]
    heads = {key: find(key, features).title for key in CURVES}
    return rows, {"family": "family", "seed": "seed"} | heads
