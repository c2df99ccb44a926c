"""What a sweep found: rows, verdicts, tables, the Pareto front, and overrides to paste."""

from __future__ import annotations

import csv
import io
import math
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffusion_jax.core import files
from diffusion_jax.evaluation import intervals
from diffusion_jax.evaluation.metrics import INTERVALS, find
from diffusion_jax.report import html, pareto, pictures
from diffusion_jax.report.tables import markdown_table
from diffusion_jax.studies.samplers import ranking
from diffusion_jax.studies.sweep import space
from diffusion_jax.studies.sweep import task as sweep_task
from diffusion_jax.studies.sweep.cells import CellScores, Scoring, SweepCell
from diffusion_jax.studies.sweep.task import Results, Task
from diffusion_jax.training import restoring

BEST, TIED, WORSE, DROPPED, FAILED = "best", "not distinguishable", "worse", "dropped", "failed"
IMAGES = 20  # best settings whose images the page shows

Row = dict[str, Any]


class Verdict(NamedTuple):
    """The rows of a sweep and the best of them.

    Attributes:
      rows: one for each cell.
      best: the cell with the best score of all images; None where every cell failed.
      of_group: (values of the grouped keys) -> the best cell of the group.
    """

    rows: list[Row]
    best: int | None
    of_group: dict[Any, int]


# ---- comparing
def distinguishable(best: CellScores, other: CellScores, metric: str) -> bool:
    """Whether a cell is worse than the best by more than chance explains.

    The difference is paired: both cells drew the same seeds, and the same groups of them are left
    out. Without groups every difference counts.

    Args:
      best: the scores of the best cell.
      other: the scores of the other cell on as many images.
      metric: the optimized score.
    """
    loss = find(metric).loss
    worse = loss(other.scores[metric]) - loss(best.scores[metric])
    if not (best.left_out and other.left_out):
        return worse > 0
    gaps = [b - a for a, b in zip(best.left_out, other.left_out)]
    return worse > intervals.STUDENT * intervals.standard_error(gaps)


def verdict(task: Task, results: Results, scored: Scoring) -> Verdict:
    """The rows of all cells, the best of them, and which cannot be distinguished from it.

    Args:
      task: the sweep.
      results: the scores of its cells.
      scored: how they were judged.
    """
    losses = sweep_task.losses(results, scored)
    last = {number: _last(results, number) for number in task.cells}
    whole = {
        number: losses[number, found.images]
        for number, found in last.items()
        if found and not found.note and found.images == task.num
    }
    best = min(whole, key=whole.get, default=None)
    of_group = {}
    for group, members in task.plan.groups.items():
        own = {number: whole[number] for number in members if number in whole}
        if own:
            of_group[group] = min(own, key=own.get)
    rows = []
    for number, cell in task.cells.items():
        standing = _standing(number, best, last[number], results, task, scored)
        rows.append(_row(cell, last[number], standing, task, scored))
    return Verdict(rows, best, of_group)


def _last(results: Results, number: int) -> CellScores | None:
    """The result of a cell on its largest number of images."""
    own = [found for (cell, _), found in results.items() if cell == number]
    return max(own, key=lambda found: found.images, default=None)


def _standing(
    number: int,
    best: int | None,
    last: CellScores | None,
    results: Results,
    task: Task,
    scored: Scoring,
) -> str:
    if last is None or last.note:
        return FAILED
    if number == best:
        return BEST
    if last.images < task.num:
        return DROPPED
    return WORSE if distinguishable(results[best, task.num], last, scored.metric) else TIED


def _row(
    cell: SweepCell, last: CellScores | None, standing: str, task: Task, scored: Scoring
) -> Row:
    row = {"cell": cell.number, **cell.settings}
    if task.runs:
        row["run"] = str(Path("runs") / cell.workdir.name)
        row["steps"] = restoring.latest_step(cell.workdir / "checkpoints")
    if last is None:
        return row | {"standing": standing, "note": "not measured"}
    return row | {
        "images": last.images,
        "scores": list(last.scores),
        **last.scores,
        "interval": last.intervals.get(scored.metric),
        "intervals": last.intervals,
        "evaluations": last.evaluations,
        "seconds_per_image": last.seconds,
        "standing": standing,
        "note": last.note,
    }


# ---- what is written
def write(
    task: Task,
    results: Results,
    scored: Scoring,
    record: Mapping[str, Any],
    workdir: str | None,
    asked: Collection[str] = (),
) -> str:
    """Write sweep.md, .csv, .json, .png and .html into the folder of the sweep.

    Args:
      task: the sweep.
      results: the scores of all cells.
      scored: how they were judged.
      record: the provenance.
      workdir: folder of the trained model; None where the cells were trained.
      asked: the config keys that the command line sets, which the commands repeat.

    Returns:
      The text of sweep.md.
    """
    found, pasted = verdict(task, results, scored), {}
    title = f"Sweep of {' x '.join(axis.key for axis in task.space.axes)}"
    pasted = paste(found, task, scored, workdir, asked)
    shown = columns(found.rows, task, scored)
    table = markdown_table(_as_text(found.rows, scored), shown)
    text = f"# {title}\n\n{sweep_task.described(task)}.\n\n{_listed(pasted)}{table}\n{INTERVALS}\n"
    files.save_text(task.root / "sweep.md", text)
    _save_csv(task.root / "sweep.csv", found.rows)
    content = {
        "over": {axis.key: list(axis.values) for axis in task.space.axes},
        "metric": scored.metric,
        "num": task.num,
        "judged": scored.about,
        "real": intervals.record(scored.real),
        "rows": found.rows,
        "best": found.best,
        "pasted": pasted,
        "provenance": record,
    }
    files.save_json(task.root / "sweep.json", content)
    _page(task, results, scored, found, title, pasted)
    return text


def paste(
    found: Verdict,
    task: Task,
    scored: Scoring,
    workdir: str | None,
    asked: Collection[str] = (),
) -> dict[str, str]:
    """The best settings, of all and of each group, as commands to paste.

    Args:
      found: the rows and the best of them.
      task: the sweep.
      scored: how the cells were judged.
      workdir: folder of the trained model; None where the cells were trained.
      asked: the config keys that the command line sets, which the commands repeat.

    Returns:
      {what they are best at: command}.
    """
    metric, rows = find(scored.metric), {row["cell"]: row for row in found.rows}

    def line(number: int) -> str:
        settings, folder = dict(task.cells[number].settings), workdir
        for key in sorted(set(asked) - set(settings)):
            if space.is_sampling(key):
                section, name = key.split(".")
                settings[key] = task.cells[number].config[section][name]
        if task.runs:
            settings = {k: v for k, v in settings.items() if space.is_sampling(k)}
            folder = str(task.root / rows[number]["run"])
        command = f"python -m experiments.sample --workdir={shlex.quote(str(folder))}"
        return f"{command} {space.overrides(settings)}".strip()

    def words(number: int) -> str:
        value, half = rows[number][scored.metric], rows[number]["interval"]
        return f"{scored.judged.title(scored.metric)} {metric.text(value, half)}"

    lines = {}
    if found.best is not None:
        lines[f"best of all: {words(found.best)}"] = line(found.best)
    for group, number in found.of_group.items() if task.grouped else ():
        said = ", ".join(f"{key}={value}" for key, value in zip(task.grouped, group))
        lines[f"best with {said}: {words(number)}"] = line(number)
    return lines


def _listed(pasted: Mapping[str, str]) -> str:
    if not pasted:
        return "Every cell failed; the column note says why.\n\n"
    return "".join(f"{what}\n\n    {command}\n\n" for what, command in pasted.items())


def columns(rows: Sequence[Row], task: Task, scored: Scoring) -> dict[str, str]:
    """The headings of the columns in which a row has a value.

    Args:
      rows: the rows of the cells.
      task: the sweep.
      scored: how the cells were judged.
    """
    headings = {
        **{axis.key: axis.key for axis in task.space.axes},
        **{name: scored.judged.title(name) for name in _scores(rows, scored)},
        "standing": "against the best",
        "steps": "training steps",
        "images": "images",
        "evaluations": find("evaluations").title,
        "seconds_per_image": find("seconds_per_image").title,
        "note": "note",
    }
    there = {key for row in rows for key, value in row.items() if value not in (None, "")}
    return {key: heading for key, heading in headings.items() if key in there}


def _scores(rows: Sequence[Row], scored: Scoring) -> list[str]:
    """The names of the scores in rows, the optimized one first."""
    names = dict.fromkeys(name for row in rows for name in row.get("scores", ()))
    return [scored.metric, *(name for name in names if name != scored.metric)]


def _as_text(rows: Sequence[Row], scored: Scoring) -> list[Row]:
    """The rows as text, those of the most images and the best first."""
    metric = find(scored.metric)

    def rank(row: Row) -> tuple[int, float]:
        value = row.get(scored.metric)
        return -row.get("images", 0), math.inf if value is None else metric.loss(value)

    shown = []
    for row in sorted(rows, key=rank):
        names = [*row.get("scores", ()), "evaluations", "seconds_per_image"]
        known = [key for key in names if row.get(key) is not None]
        texts = {key: find(key).text(row[key], ranking.interval(row, key)) for key in known}
        shown.append(row | texts)
    return shown


def _save_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write the rows, with half the width of every interval in a column NAME_interval."""
    rows = [
        row | {f"{name}_interval": half for name, half in row.get("intervals", {}).items()}
        for row in rows
    ]
    keys = dict.fromkeys(key for row in rows for key in row if key not in ("scores", "intervals"))
    text = io.StringIO()
    writer = csv.DictWriter(text, [*keys], lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    files.save_text(path, text.getvalue())


# ---- the page
def _page(
    task: Task,
    results: Results,
    scored: Scoring,
    found: Verdict,
    title: str,
    pasted: Mapping[str, str],
) -> None:
    """Write the page and its figure."""
    names = [axis.key for axis in task.space.axes if len(axis.values) > 1]
    whole = [
        row | {"name": ", ".join(str(row[key]) for key in names)}
        for row in found.rows
        if row.get("images") == task.num and not row["note"] and row["seconds_per_image"]
    ]
    sections = [("Best settings", html.code(_listed(pasted).strip()))]
    if whole:
        figure, real = task.root / "sweep.png", scored.real.get(scored.metric)
        real = real and real.value
        how = {"metric": scored.metric, "features": scored.judged.plain, "real": real}
        pareto.pareto_fronts(whole, figure, title=title, **how)
        said = (
            f"Every point drew {task.num} images; its bar is the 95 % interval. A setting is on "
            "the front if no other is both better and cheaper. Times are those of the fastest "
            "batch on this machine, without compilation."
        )
        curves = html.picture(figure, title) + html.paragraph(said, faint=True)
        sections.append(("Quality against cost", curves))
        sections.append(("The same seeds", _gallery(task, results, whole, scored)))
    sections.append(("All cells", _numbers(task, scored, found)))
    html.save(task.root / "sweep.html", html.page(title, sections, lead=sweep_task.described(task)))


def _gallery(task: Task, results: Results, whole: Sequence[Row], scored: Scoring) -> str:
    """The first images of the best settings."""
    metric = find(scored.metric)
    ordered = sorted(whole, key=lambda row: metric.loss(row[scored.metric]))[:IMAGES]
    return html.side_by_side(
        {
            f"{row['name']}\n{metric.text(row[scored.metric], row['interval'])}": html.picture(
                pictures.mosaic(results[row["cell"], task.num].shown, 2)
            )
            for row in ordered
        }
    )


def _numbers(task: Task, scored: Scoring, found: Verdict) -> str:
    """The table of all cells, with the best and those that are tied with it marked."""
    shown = columns(found.rows, task, scored)
    written = [*_scores(found.rows, scored), "evaluations", "seconds_per_image"]
    table = html.table(
        found.rows,
        shown,
        formats={key: find(key).text for key in written},
        spread=ranking.interval,
        best=lambda row, key: key == scored.metric and row["standing"] in (BEST, TIED),
    )
    marked = (
        "Marked: the best of the cells that drew all images, and those that cannot be "
        "distinguished from it, by the paired difference over groups of seeds. Scores of fewer "
        "images cannot be compared with those of all; a dropped cell was worse than others on as "
        "many images."
    )
    return html.paragraph(marked, faint=True) + table
