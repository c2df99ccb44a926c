"""The table and the figures of few-step methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax import data
from diffusion_jax.core import files, provenance
from diffusion_jax.evaluation.metrics import INTERVALS, find
from diffusion_jax.report import media, pictures, quality
from diffusion_jax.report.tables import markdown_table
from diffusion_jax.studies.samplers import ranking
from diffusion_jax.training import distributed

SHOWN = ("accuracy", "frechet")  # what figures show


class FewStepTable(NamedTuple):
    """The results so far; `add` changes them in place.

    Attributes:
      dataset: the data set of all models.
      count: images in each cell.
      rows: a row for each model and budget.
      tiles: (model, budget) -> picture of its first images.
      captions: (model, budget) -> its scores.
      judging: features, metrics and reference of `subjects.of_model`.
    """

    dataset: data.Dataset
    count: int
    rows: list[dict[str, Any]]
    tiles: dict[tuple[str, int], np.ndarray]
    captions: dict[tuple[str, int], str]
    judging: Mapping[str, str] = {}


def report(rows: Sequence[dict[str, Any]], budgets: Sequence[int], real: dict[str, Any]) -> str:
    """Write a Markdown table of each model's training seconds and its scores at every budget.

    The last line has the scores of real test images.

    Args:
      rows: a row for each model and budget: 'sampler' (the title of the model), 'nfe', 'seconds'
        (None where they are not known), and either scores with their 'intervals' or a 'note' that
        says why there are none.
      budgets: numbers of network evaluations; the scores of real images stand in the column of the
        first.
      real: the scores of as many real test images, with their 'intervals'.
    """
    names = score_names(rows)

    def show(row: dict[str, Any]) -> str:
        if not any(name in row for name in names):
            return row.get("note", "")
        half = row.get("intervals", {})
        return " / ".join(find(n).text(row[n], half.get(n)) for n in names if n in row)

    table = []
    for name in dict.fromkeys(row["sampler"] for row in rows):
        own = [row for row in rows if row["sampler"] == name]
        took = own[0]["seconds"]
        line = {"model": name, "seconds": "unknown" if took is None else f"{took:.0f}"}
        table.append(line | {f"at {row['nfe']}": show(row) for row in own})
    table.append({"model": "real test images", f"at {budgets[0]}": show(real)})
    columns = {f"at {n}": f"{n} NFE" for n in sorted({row["nfe"] for row in rows})}
    return markdown_table(table, {"model": "model", "seconds": "training, s"} | columns)


def score_names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """List the scores in rows: recognition, the deciding distance, and all with an interval.

    Args:
      rows: as for `report`.
    """
    there = dict.fromkeys(name for row in rows for name in row.get("intervals", {}))
    first = [name for name in SHOWN if any(name in row for row in rows)]
    return [*first, *(name for name in there if name not in (*SHOWN, "error"))]


def write(table: FewStepTable, root: Path, budgets: Sequence[int], real: dict[str, Any]) -> str:
    """Write few_step.md, .json, .png and _grid.png in the folder `root`.

    Args:
      table: the results so far; the rows of methods that are not trained yet are absent.
      root: the folder of the files, which are replaced.
      budgets: numbers of network evaluations that the methods are judged at.
      real: the scores of as many real test images, as `add` returns them.

    Returns:
      The text of few_step.md; on the processes that write nothing, all but the first, ''.
    """
    if not distributed.first():
        return ""
    features = real["features"]
    titles = {name: find(name, features).title for name in score_names(table.rows)}
    said = " / ".join(titles.values())
    title = f"{table.dataset.name} in a few evaluations: {table.count} images, {said}"
    included = (
        "Training is without the teacher's, whose time is not known."
        if any(row["seconds"] is None for row in table.rows)
        else "Training includes the teacher's where a method needs one."
    )
    text = f"# {title}\n\n{report(table.rows, budgets, real)}\n{INTERVALS} {included}\n"
    files.save_text(root / "few_step.md", text)
    record = {
        "rows": table.rows,
        "real": real,
        "titles": titles,
        "provenance": provenance.provenance(None, 0),
    }
    files.save_json(root / "few_step.json", record)
    curves = {"features": features, "metrics": SHOWN, "reference": real, "title": title}
    quality.quality_curves(table.rows, root / "few_step.png", **curves)
    shown = media.media_of(table.dataset.image_shape, table.dataset.normalization)
    images = shown.tiles(data.arrays(table.dataset.test, limit=10)["image"])
    pictures.strips(
        table.tiles,
        root / "few_step_grid.png",
        captions=table.captions,
        title=title,
        above={"real test images": pictures.mosaic(images, 1)},
        columns={n: f"{n} NFE" for n in sorted({row["nfe"] for row in table.rows})},
    )
    return text


def need_results(table: FewStepTable) -> None:
    """Check that a table has at least one result, in the first process, which has them.

    Args:
      table: the results.

    Raises:
      UserError: if every cell has failed; it states the first reason.
    """
    if distributed.first():
        ranking.need_results(table.rows)
